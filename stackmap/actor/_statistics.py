"""Counters of an actor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """Counters of one actor since it was spawned, restarts included.

    Attributes:
        state: ``"starting"``, ``"running"``, ``"stopping"``, ``"down"`` (between two lives) or
            ``"ended"``.
        depth: messages in the mailbox now.
        peak: the most that were in it.
        waiting: senders that wait for room.
        capacity: messages that have room.
        handled: messages and signals that were handled, those of the connection included.
        dropped: messages that were dropped for newer ones, or because the actor was killed.
        busy: seconds in which it handled something; time that a handler awaited is included.
        restarts: how often it was restarted.
    """

    state: str
    depth: int
    peak: int
    waiting: int
    capacity: int
    handled: int
    dropped: int
    busy: float
    restarts: int
