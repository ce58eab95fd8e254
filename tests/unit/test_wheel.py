"""What pip puts on a user's machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    "pyproject.toml",
    "setup.py",
    "README.md",
    "MANIFEST.in",
    "stackmap",
    "cli",
    "testbed",
    "kmod",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*_c.c")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
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
    (path,) = folder.glob("stackmap-*.whl")
    return zipfile.ZipFile(path).namelist()


def test_nothing_but_names_of_our_own(wheel: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "stackmap",
        "stackmap_cli",
        "stackmap_testbed",
    }


@pytest.mark.parametrize(
    "module", ["stackmap/_fast.", "stackmap/_ring_c", "stackmap_testbed/_load_c"]
)
def test_extension_modules(wheel: list[str], module: str) -> None:
    assert any(name.startswith(module) and name.endswith(".so") for name in wheel)


@pytest.mark.parametrize(
    "module",
    [
        "stackmap/__init__.py",
        "stackmap/memcached/__init__.py",
        "stackmap_cli/main.py",
        "stackmap_testbed/load.py",
        "stackmap/_fast.pyi",
        "stackmap/py.typed",
    ],
)
def test_modules(wheel: list[str], module: str) -> None:
    assert module in wheel


def test_the_command(wheel: list[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
