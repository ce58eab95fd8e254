"""Imports go one way: a lower layer never imports a higher one."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]

#: The folder that each package is in.
FOLDERS = {"stackmap": ".", "stackmap_cli": "cli", "stackmap_testbed": "testbed"}

#: The layers, lower ones first: a package or a module, and what it may import of this project.  A
#: module is in the layer with the longest name that it is in, and may import all of that layer.  A
#: name that may be imported stands for all that is in it, but for what is private there.
LAYERS: dict[str, tuple[str, ...]] = {
    "stackmap": (),
    # On any loop of asyncio.
    "stackmap.actor": ("stackmap", "stackmap.codec"),
    "stackmap.testing": ("stackmap",),
    # Protocols without I/O know nothing of where the bytes come from.
    "stackmap.codec": (),
    # Runs on any event loop of asyncio; of a connection it uses what its transport shows.
    "stackmap.service": ("stackmap", "stackmap.codec"),
    "stackmap.memcached": ("stackmap", "stackmap.codec", "stackmap.servers.drain"),
    # The same server on an event loop, and what it is composed with there.
    "stackmap.memcached.hosting": (
        "stackmap",
        "stackmap.aio",
        "stackmap.codec",
        "stackmap.memcached",
    ),
    "stackmap.memcached.service": (
        "stackmap.codec",
        "stackmap.memcached",
        "stackmap.servers.drain",
        "stackmap.service",
    ),
    "stackmap.memcached.actors": (
        "stackmap.actor",
        "stackmap.codec",
        "stackmap.memcached",
        "stackmap.servers.drain",
    ),
    # What it does for each message in C is in the extension of the package.
    "stackmap.aio": ("stackmap", "stackmap._fast"),
    # What the bare loops share, memcached's among them.
    "stackmap.servers.drain": ("stackmap",),
    "stackmap.servers": (
        "stackmap",
        "stackmap.actor",
        "stackmap.aio",
        "stackmap.codec",
        "stackmap.service",
    ),
    "stackmap_testbed": (),
    "stackmap_testbed.load": ("stackmap_testbed.waiting",),
    # Runs as a plain script, as process 1 of a guest.
    "stackmap_testbed.lab.agent": (),
    "stackmap_testbed.lab": (
        "stackmap.errors",
        "stackmap_testbed.lab.agent",
        "stackmap_testbed.waiting",
    ),
    "stackmap_testbed.memcached": ("stackmap_testbed.waiting",),
    "stackmap_testbed.cost": ("stackmap_testbed.lab", "stackmap_testbed.load"),
    # Each is what the other is compared with.
    "stackmap_testbed.cost.echo_epoll": (),
    "stackmap_testbed.cost.echo_rings": ("stackmap",),
    # Its loops are in C, of which this is the build's output.
    "stackmap_testbed.cost.echo_c": ("stackmap", "stackmap_testbed.cost._echo_c"),
    "stackmap_testbed.cost.echo_asyncio": ("stackmap", "stackmap.aio"),
    "stackmap_testbed.cost.echo_layers": (
        "stackmap",
        "stackmap.actor",
        "stackmap.codec",
        "stackmap.servers",
        "stackmap.service",
    ),
    "stackmap_testbed.comparison": ("stackmap_testbed.lab", "stackmap_testbed.load"),
    "stackmap_cli": ("stackmap", "stackmap_testbed.lab"),
}


def is_in(module: str, name: str) -> bool:
    return f"{module}.".startswith(f"{name}.")


def is_public_in(module: str, name: str) -> bool:
    below = module.removeprefix(name).split(".")
    return is_in(module, name) and not any(part.startswith("_") for part in below)


def modules(root: Path) -> dict[str, Path]:
    """The files of all modules, by name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((root / folder / package).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """The lines of all imports of a module, wherever they stand in it, and what they import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".") + ["__init__"] * (path.name == "__init__.py")
                base = ".".join([*parents[: -node.level], *filter(None, [node.module])])
            for alias in node.names:
                module = f"{base}.{alias.name}"
                yield node.lineno, module if module in known else base


def layer_of(module: str) -> str | None:
    return max((layer for layer in LAYERS if is_in(module, layer)), key=len, default=None)


def violations(root: Path) -> list[str]:
    """The imports in a tree that the table does not allow, and modules that are in no layer."""
    known = modules(root)
    found = []
    for name, path in known.items():
        where = path.relative_to(root)
        layer = layer_of(name)
        if layer is None:
            found.append(f"{where}: {name} is in no layer")
            continue
        for line, module in imports(name, path, known):
            ours = any(is_in(module, package) for package in FOLDERS)
            allowed = any(is_public_in(module, lower) for lower in LAYERS[layer])
            if ours and not allowed and layer_of(module) != layer:
                found.append(f"{where}:{line}: {layer} may not import {module}")
    return found


def test_imports_go_one_way() -> None:
    assert violations(ROOT) == []


def test_the_table_names_what_there_is() -> None:
    assert set(LAYERS) - set(modules(ROOT)) == set()


def test_the_testbed_imports_by_absolute_names() -> None:
    for name, path in modules(ROOT).items():
        if is_in(name, "stackmap_testbed"):
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.ImportFrom) or node.level == 0, path


def test_rooms_import_nothing_by_themselves() -> None:
    known = modules(ROOT)
    for name, path in known.items():
        if is_in(name, "stackmap_testbed") and path.name == "__init__.py":
            assert list(imports(name, path, known)) == [], path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose modules import nothing."""
    for name, path in modules(ROOT).items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(f'"""{name}."""\n')
    return tmp_path


def plant(tree: Path, module: str, text: str) -> None:
    modules(tree)[module].write_text(text + "\n")


@pytest.mark.parametrize(
    "text",
    [
        "import stackmap_testbed.cost.gate",
        "import os, stackmap_testbed.cost.gate as gate",
        "from stackmap_testbed import cost",
        "from stackmap_testbed.cost import gate",
        "from stackmap_testbed.cost.gate import run",
        "from .. import cost",
        "from ..cost import gate",
        "from ..cost.gate import run",
        "if TYPE_CHECKING:\n    from stackmap_testbed.cost.gate import run",
        "def later():\n    from stackmap_testbed.cost.gate import run",
        "class Guest:\n    with suppress(ImportError):\n        import stackmap_testbed.cost.gate",
    ],
)
def test_an_import_is_found_in_any_form(tree: Path, text: str) -> None:
    plant(tree, "stackmap_testbed.lab.guest", text)
    (found,) = violations(tree)
    assert found.startswith("testbed/stackmap_testbed/lab/guest.py:")
    assert "stackmap_testbed.lab may not import stackmap_testbed.cost" in found


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("stackmap", "stackmap_cli.main"),
        ("stackmap._open", "stackmap_testbed.lab.lab"),
        ("stackmap._open", "stackmap.aio"),
        ("stackmap.aio._loop", "stackmap._open"),
        ("stackmap_testbed.load.generator", "stackmap_testbed.lab.errors"),
        ("stackmap_testbed.lab.lab", "stackmap_testbed.comparison.demo"),
        ("stackmap_testbed.lab.lab", "stackmap_cli.main"),
        ("stackmap_testbed.lab.lab", "stackmap._open"),
        ("stackmap_testbed.lab.agent", "stackmap_testbed.lab.errors"),
        ("stackmap_testbed.memcached.pressure", "stackmap_testbed.lab.lab"),
        ("stackmap_testbed.cost.gate", "stackmap_testbed.comparison.demo"),
        ("stackmap_testbed.cost.gate", "stackmap_testbed.load._load_c"),
        ("stackmap_testbed.cost.echo_epoll", "stackmap"),
        ("stackmap_testbed.comparison.demo", "stackmap_testbed.cost.gate"),
        ("stackmap_testbed.waiting", "stackmap_testbed.lab.errors"),
        ("stackmap_cli.lab", "stackmap_testbed.comparison.demo"),
        ("stackmap_cli.lab", "stackmap._ring"),
    ],
)
def test_a_higher_layer_or_a_private_module_is_refused(
    tree: Path, module: str, imported: str
) -> None:
    plant(tree, module, f"import {imported}")
    (found,) = violations(tree)
    assert found.endswith(f"may not import {imported}")


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("stackmap._open", "stackmap._ring"),
        ("stackmap_testbed.lab.guest", "stackmap_testbed.lab.agent"),
        ("stackmap_testbed.cost.gate", "stackmap_testbed.lab.lab"),
        ("stackmap_testbed.comparison.demo", "stackmap_testbed.load.generator"),
        ("stackmap_testbed.load.generator", "stackmap_testbed.load._load_c"),
        ("stackmap_cli.lab", "stackmap_testbed.lab.session"),
        ("stackmap_cli.serve", "stackmap.memcached.server"),
        ("stackmap_cli.serve", "stackmapper"),
    ],
)
def test_lower_layers_and_neighbours_are_allowed(tree: Path, module: str, imported: str) -> None:
    plant(tree, module, f"import {imported}")
    assert violations(tree) == []


def test_a_tree_without_imports_is_right(tree: Path) -> None:
    assert violations(tree) == []


def test_a_module_needs_a_layer(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(LAYERS, "stackmap_cli")
    assert "cli/stackmap_cli/main.py: stackmap_cli.main is in no layer" in violations(tree)
