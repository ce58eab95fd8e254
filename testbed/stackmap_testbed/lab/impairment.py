"""Decide what one direction of the wire does to each frame: pass, drop, delay, hold back, repeat.

No sockets and no clock in here: the caller says what time it is, so that a test
can run it on invented time and a seed gives the same decisions every time.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass

from stackmap_testbed.lab.frames import is_pure_ack

DIRECTIONS = ("to-server", "to-client")

# A frame held back to come later than its successors is let go after this long
# even if none follow: the last frame of a burst must be late, never lost.
_HOLD_SECONDS = 0.02


@dataclass(frozen=True)
class Conditions:
    """Conditions of a direction of the wire; probabilities are between 0 and 1."""

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    delay_ms: float = 0.0
    drop_acks: bool = False
    drop: bool = False

    def __post_init__(self) -> None:
        """Reject what cannot be a probability or a delay."""
        for name in ("loss", "reorder", "duplicate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"{name} is a probability between 0 and 1, not {getattr(self, name)}"
                )
        if self.delay_ms < 0:
            raise ValueError(f"delay_ms cannot be negative, as {self.delay_ms} is")


@dataclass
class Counters:
    """Counters of the frames of one direction."""

    received: int = 0
    delivered: int = 0
    dropped: int = 0
    acks_dropped: int = 0
    duplicated: int = 0
    reordered: int = 0


@dataclass
class _Held:
    frame: bytes
    until: float
    successors: int


class Impairment:
    """The state of one direction: what is in flight and what is being held back."""

    def __init__(self, conditions: Conditions | None = None, seed: int = 0) -> None:
        """Start with an empty wire."""
        self.conditions = conditions or Conditions()
        self.counters = Counters()
        self._random = random.Random(seed)
        self._in_flight: list[tuple[float, int, bytes]] = []
        self._order = 0
        self._held: deque[_Held] = deque()

    def reseed(self, seed: int) -> None:
        """Start the sequence of decisions again from a seed."""
        self._random = random.Random(seed)

    def submit(self, frame: bytes, now: float) -> None:
        """Take in a frame from the sending end."""
        conditions, counters = self.conditions, self.counters
        counters.received += 1
        if conditions.drop or (conditions.loss and self._random.random() < conditions.loss):
            counters.dropped += 1
            return
        if conditions.drop_acks and is_pure_ack(frame):
            counters.acks_dropped += 1
            return
        copies = 1
        if conditions.duplicate and self._random.random() < conditions.duplicate:
            counters.duplicated += 1
            copies = 2
        if conditions.reorder and self._random.random() < conditions.reorder:
            counters.reordered += 1
            self._held.append(_Held(frame, now + _HOLD_SECONDS, self._random.randint(1, 3)))
            copies -= 1
        for _ in range(copies):
            self._launch(frame, now)
            self._count_successor(now)

    def due(self, now: float) -> list[bytes]:
        """Return the frames that reach the other end by now, in the order they do."""
        while self._held and self._held[0].until <= now:
            self._launch(self._held.popleft().frame, now)
        arrived = []
        while self._in_flight and self._in_flight[0][0] <= now:
            arrived.append(heapq.heappop(self._in_flight)[2])
        self.counters.delivered += len(arrived)
        return arrived

    def next_due(self) -> float | None:
        """Return when something will be due next, or None while nothing is in here."""
        times = [self._in_flight[0][0]] if self._in_flight else []
        if self._held:
            times.append(self._held[0].until)
        return min(times) if times else None

    def _launch(self, frame: bytes, now: float) -> None:
        self._order += 1
        heapq.heappush(
            self._in_flight, (now + self.conditions.delay_ms / 1000.0, self._order, frame)
        )

    def _count_successor(self, now: float) -> None:
        """Release every held frame that enough later ones have now overtaken."""
        ripe = []
        for held in self._held:
            held.successors -= 1
            if held.successors <= 0:
                ripe.append(held)
        for held in ripe:
            self._held.remove(held)
            self._launch(held.frame, now)
