"""Modules of the package import only modules below them, those for types included."""

from __future__ import annotations

import ast
from pathlib import Path

import stackmap

PACKAGE = Path(stackmap.__file__).parent

#: From the lowest to the highest.
LAYERS = (
    # What both backends are made of.
    ("_version", "_device", "_event", "_reset", "_tcp_state", "errors"),
    ("_attach_errors", "_in_use", "_watch", "_connection"),
    ("_connect", "_fast"),
    ("_port",),
    # Sockets.
    ("_sockets",),
    # Rings: the kernel's side of a port, the slots, a connection, a ring, a port.
    ("_ring_c",),
    ("_open_errors",),
    ("_kernel_port",),
    ("_pair",),
    ("_kept", "_transmission"),
    ("_ring_connection",),
    ("_ring_listener",),
    ("_unclaimed",),
    ("_ring",),
    ("_ring_port",),
    # What users import besides.
    ("_nics",),
    ("_open", "inspect"),
    ("__init__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
#: Built by cffi, and what builds it.
NO_MODULES = {"_ring_build"}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file of it imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any(name.split(".")[0] == "stackmap" for name in names), path
    return found


def test_every_module_has_its_place() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py*") if path.suffix in (".py", ".pyi")}
    assert files - NO_MODULES == set(RANK) - {"_ring_c"}


def test_imports_go_down() -> None:
    files = [path for path in PACKAGE.glob("*.py*") if path.stem in RANK]
    assert len(files) == len(RANK) - 1
    for path in files:
        for name in imported(path):
            assert RANK[name] < RANK[path.stem], f"{path.name} imports {name}"


def test_nothing_imports_the_server() -> None:
    for path in PACKAGE.glob("*.py"):
        assert "memcached" not in path.read_text(), path
