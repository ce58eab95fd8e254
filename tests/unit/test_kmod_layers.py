"""A file of the module includes no header of a higher layer than its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

KMOD = Path(__file__).resolve().parents[2] / "kmod"

#: Which folders a file may include headers of, by its own; "." has the files beside the folders.
MAY_INCLUDE: dict[str, set[str]] = {
    "uapi": set(),
    "core": {"core", "uapi", "."},
    "nic": {"nic", "uapi", "."},
    "tcp": {"tcp", "nic", "core", "uapi", "."},
    "selftest": {"selftest", "tcp", "nic", "core", "uapi", "."},
    ".": {"tcp", "nic", "core", "uapi", "."},
}
#: Of the files beside the folders, those that layers may include: they include no layer themselves.
SHARED = {"compat.h", "trace.h"}
#: Self-tests of one layer: the loop port shows core/ without the others.
ALONE = {"selftest/loop.c": {"core", "selftest"}}


def includes(path: Path) -> set[str]:
    """The headers of the module that a file includes."""
    return set(re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE))


def folder_of(name: str) -> str:
    return name.rsplit("/", 1)[0] if "/" in name else "."


def violations(kmod: Path) -> list[str]:
    found = []
    for path in sorted(kmod.rglob("*.[ch]")):
        name = path.relative_to(kmod).as_posix()
        if name.endswith(".mod.c"):
            continue
        folder = folder_of(name)
        allowed = ALONE.get(name, MAY_INCLUDE[folder])
        for header in sorted(includes(path)):
            target = folder_of(header)
            shared = target == "." and (folder == "." or header in SHARED)
            if target not in allowed or (target == "." and not shared):
                found.append(f"{name} includes {header}")
            if name in SHARED and target not in {"uapi", "."}:
                found.append(f"{name} is for all layers, and includes {header}")
    return found


def test_no_layer_includes_a_higher_one() -> None:
    assert violations(KMOD) == []


def test_each_file_has_a_header_beside_it() -> None:
    without = {
        path.relative_to(KMOD).as_posix()
        for layer in ("core", "nic", "tcp")
        for path in (KMOD / layer).glob("*.c")
        if not path.with_suffix(".h").exists()
    }
    # One header is the interface of several files, and says which has what.
    assert without == {"core/limits.c", "core/rxring.c", "core/txring.c"}


@pytest.mark.parametrize(
    ("file", "header"),
    [
        ("core/pool.c", "tcp/conn.h"),
        ("core/ring.h", "nic/nic.h"),
        ("nic/qdisc.c", "core/port.h"),
        ("nic/nic.h", "tcp/port.h"),
        ("core/file.c", "netlink.h"),
        ("trace.h", "tcp/conn.h"),
        ("selftest/loop.c", "tcp/port.h"),
        ("tcp/tx.c", "selftest/suites.h"),
    ],
)
def test_an_include_upwards_is_found(tmp_path: Path, file: str, header: str) -> None:
    for path in KMOD.rglob("*.[ch]"):
        copy = tmp_path / path.relative_to(KMOD)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    assert violations(tmp_path) == []
    changed = tmp_path / file
    changed.write_text(f'#include "{header}"\n' + changed.read_text())
    assert any(found.startswith(f"{file} ") for found in violations(tmp_path))
