"""How a check of conformance fails."""

from __future__ import annotations


class ConformanceError(AssertionError):
    """The checked object breaks its contract; the text says in which point."""


def expect(kept: object, complaint: str) -> None:
    """Fail with ``complaint`` unless the contract was kept."""
    if not kept:
        raise ConformanceError(complaint)
