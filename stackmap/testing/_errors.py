"""How a check of conformance fails."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class ConformanceError(AssertionError):
    """The checked object breaks its contract; the text says in which point."""


def expect(kept: object, complaint: str) -> None:
    """Fail with ``complaint`` unless the contract was kept."""
    if not kept:
        raise ConformanceError(complaint)


def expect_same(got: bytes, data: bytes, what: str) -> None:
    """Fail unless ``what`` arrived as it was written."""
    if got != data:
        pairs = enumerate(zip(got, data, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(got), len(data)))
        raise ConformanceError(
            f"{what} did not arrive as written: {len(got)} bytes of {len(data)}, different from "
            f"byte {at} on"
        )


@contextlib.contextmanager
def naming(name: str, check: Callable[..., object]) -> Generator[None, None, None]:
    """Have a failure say which check found it, and the first line of its docstring."""
    try:
        yield
    except ConformanceError as error:
        error.add_note(f"check {name}: {(check.__doc__ or '').splitlines()[0]}")
        raise
