"""Every promise of docs/security.md names tests, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "security.md"
NO_PROMISES = "What is not guaranteed"
#: A promise: one sentence, and its tests.
PROMISE = re.compile(r"[A-Z][^`.]*(?:`[^`]+`[^`.]*)*\. (`[^`]+::\w+`(?:, `[^`]+::\w+`)*)")


def sections() -> dict[str, str]:
    """The text under each heading."""
    _before, *parts = re.split(r"^## (.*)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def promises() -> list[str]:
    """Everything that is said in the sections of promises, each item on one line."""
    found = []
    for title, text in sections().items():
        if title != NO_PROMISES:
            items = re.split(r"\n(?=- )|\n\n", text)
            found += [" ".join(item.split()) for item in items if item.strip()]
    return [item for item in found if not re.fullmatch(r"Against [^.]*:", item)]


def functions(path: Path) -> set[str]:
    """The names of the functions in a file."""
    text = path.read_text()
    if path.suffix == ".c":
        return set(re.findall(r"^\w[\w\s*]*?(\w+)\([^;]*\)\n\{", text, re.MULTILINE))
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


def test_there_are_promises() -> None:
    assert NO_PROMISES in sections()
    assert len(promises()) > 30


@pytest.mark.parametrize("promise", promises())
def test_a_promise_is_one_sentence_with_its_tests(promise: str) -> None:
    found = PROMISE.fullmatch(promise.removeprefix("- "))
    assert found, f"no sentence with tests: {promise}"
    for reference in re.findall(r"`([^`]+)`", found[1]):
        path, _, name = reference.partition("::")
        assert (ROOT / path).is_file(), f"there is no file {path}"
        assert name in functions(ROOT / path), f"{path} has no {name}"
        assert name.startswith("test_") or path.startswith("kmod/selftest/")
