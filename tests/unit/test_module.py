"""Where ``stackmap bind`` looks for a module that nobody has named or installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stackmap_cli import module


def plant(folder: Path) -> Path:
    file = folder / "stackmap.ko"
    folder.mkdir(parents=True)
    file.write_bytes(b"\0vermagic=%s SMP \0" % os.uname().release.encode())
    return file


@pytest.mark.parametrize("place", ["kmod", f"build/kmod/{os.uname().release}"])
def test_a_checkout_has_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "cli" / "stackmap_cli")
    planted = plant(tmp_path / place)
    assert module._built_nearby() == planted


@pytest.mark.parametrize("place", ["kmod", f"build/kmod/{os.uname().release}"])
def test_folders_beside_an_installed_package_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "site-packages" / "stackmap_cli")
    plant(tmp_path / place)
    plant(tmp_path / "site-packages" / place)
    with pytest.raises(module.ModuleError, match=r"no stackmap\.ko is installed or built"):
        module._built_nearby()


def test_this_is_a_checkout() -> None:
    assert Path(__file__).parents[2] / "cli" / "stackmap_cli" == module._PACKAGE
