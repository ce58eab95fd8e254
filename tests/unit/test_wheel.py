"""Files that pip installs on a user's machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from stackmap import __version__

ROOT = Path(__file__).parents[2]
SOURCES = [
    "pyproject.toml",
    "setup.py",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "LICENSES",
    "MANIFEST.in",
    "Makefile",
    "stackmap",
    "cli",
    "testbed",
    "kmod",
    "docs",
    "examples",
]
SDIST = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*_c.c")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def sdist(source: Path) -> list[str]:
    """The names of the files in a source distribution, below its folder."""
    folder = source.parent / "sdist"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", SDIST, str(folder)], check=True, cwd=source, capture_output=True
    )
    (path,) = folder.glob(f"stackmap-{__version__}.tar.gz")
    with tarfile.open(path) as archive:
        return [name.partition("/")[2] for name in archive.getnames()]


@pytest.fixture(scope="module")
def wheel(source: Path) -> list[str]:
    """The names of the files in a wheel."""
    folder = source.parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            folder,
            source,
        ],
        check=True,
    )
    (path,) = folder.glob(f"stackmap-{__version__}-*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_installs_only_our_packages(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "stackmap",
        "stackmap_cli",
        "stackmap_testbed",
    }


@pytest.mark.parametrize(
    "module",
    [
        "stackmap/_fast.",
        "stackmap/_ring_c",
        "stackmap_testbed/cost/_echo_c",
        "stackmap_testbed/load/_load_c",
    ],
)
def test_extension_modules(wheel: list[str], module: str) -> None:
    assert any(name.startswith(module) and name.endswith(".so") for name in wheel)


@pytest.mark.parametrize(
    "module",
    [
        "stackmap/__init__.py",
        "stackmap/memcached/__init__.py",
        "stackmap_cli/main.py",
        "stackmap_testbed/comparison/demo.py",
        "stackmap_testbed/cost/_blocks.h",
        "stackmap_testbed/cost/_count_plugin.c",
        "stackmap_testbed/cost/gate.py",
        "stackmap_testbed/lab/agent.py",
        "stackmap_testbed/load/_mark.h",
        "stackmap_testbed/load/generator.py",
        "stackmap_testbed/memcached/conformance.py",
        "stackmap_testbed/waiting.py",
        "stackmap/_fast.pyi",
        "stackmap/py.typed",
    ],
)
def test_modules(wheel: list[str], module: str) -> None:
    assert module in wheel


@pytest.mark.parametrize("text", ["LICENSE", "LICENSES/Linux-syscall-note", "LICENSES/MIT"])
def test_licences(wheel: list[str], sdist: list[str], text: str) -> None:
    assert f"stackmap-{__version__}.dist-info/licenses/{text}" in wheel
    assert text in sdist


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "Makefile",
        "cli/stackmap_cli/systemd/stackmap-bind@.service",
        "docs/programming.md",
        "examples/chat.py",
        "kmod/dkms.conf",
        "kmod/uapi/stackmap.h",
        "stackmap/_ring.c",
    ],
)
def test_sources(sdist: list[str], file: str) -> None:
    assert file in sdist


def test_every_part_of_the_extension(sdist: list[str]) -> None:
    parts = {f"stackmap/{path.name}" for path in (ROOT / "stackmap").glob("_fast*.[ch]")}
    assert parts <= set(sdist)
    listed = (ROOT / "setup.py").read_text()
    assert all(f'"{part}"' in listed for part in parts)


def test_files_for_systemd(wheel: list[str]) -> None:
    assert "stackmap_cli/systemd/stackmap-bind@.service" in wheel
    assert "stackmap_cli/systemd/90-stackmap.rules" in wheel


def test_the_command(wheel: list[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
