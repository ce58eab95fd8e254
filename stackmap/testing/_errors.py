"""How a check of conformance fails."""

from __future__ import annotations


class ConformanceError(AssertionError):
    """What was checked does not keep to its contract; the text says in what."""


def expect(kept: object, complaint: str) -> None:
    """Fail with ``complaint`` unless the contract was kept."""
    if not kept:
        raise ConformanceError(complaint)
