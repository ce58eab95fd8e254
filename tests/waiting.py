"""Wait for what nobody announces, in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stackmap_testbed.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds, more than TCP ever lets pass between two retransmissions (TCP_RTO_MAX, 120).
PATIENCE = 180.0


def eventually(
    condition: Callable[[], bool],
    what: Callable[[], object],
    progress: Callable[[], object] = lambda: None,
    *,
    patience: float = PATIENCE,
) -> None:
    """Wait until a condition holds.

    If it never does, fail with what ``what`` says: when the time is up since ``progress`` last said
    something new.
    """
    last = progress()
    while not wait_until(condition, patience):
        there = progress()
        assert there != last, what()
        last = there
