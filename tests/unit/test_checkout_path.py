"""A checkout in a folder whose name the kernel's build system does not take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["a b", "a:b", "a$b", "it's", "a#b"]


@pytest.fixture(params=NAMES)
def checkout(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Copy the files that a build of the module reads to such a folder."""
    folder: Path = tmp_path / request.param / "stackmap"
    for part in ("kmod", "testbed"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.o", "*.ko"))
    shutil.copy(ROOT / "Makefile", folder)
    return folder


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("target", ["setup", "kmod"])
def test_it_is_refused_in_a_sentence_before_anything_is_made(
    checkout: Path, tmp_path: Path, target: str
) -> None:
    before = everything(tmp_path)
    result = subprocess.run(
        ["make", target], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    sentence, *rest = result.stderr.splitlines()
    assert sentence.startswith(f"setup: modules cannot be built in '{checkout}': move this folder")
    assert all(line.startswith("make: ***") for line in rest)
    assert everything(tmp_path) == before


def test_kmod_on_its_own_refuses_too(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    shutil.copytree(ROOT / "kmod", folder / "kmod", ignore=shutil.ignore_patterns("*.o", "*.ko"))
    before = everything(tmp_path)
    result = subprocess.run(
        ["make", "-C", str(folder / "kmod")], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert f"modules cannot be built in '{folder}/kmod': move the checkout" in result.stderr
    assert everything(tmp_path) == before
