"""The bounded queue in front of an actor."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

Msg = TypeVar("Msg")


class Overflow(enum.Enum):
    """What happens to a message that finds the mailbox full."""

    #: ``tell()`` waits for room; ``tell_nowait()`` raises ``WouldBlockError``.
    BLOCK = "block"
    #: The oldest message is dropped.
    DROP_OLDEST = "drop-oldest"
    #: ``tell()`` raises ``WouldBlockError`` as well.
    FAIL = "fail"


class Mailbox(Generic[Msg]):
    """A bounded queue, and the senders that wait for room in it, first come, first served.

    It is full as long as a sender waits, so nobody can overtake one.

    Attributes:
        messages: at most ``capacity`` of them.
        waiting: messages that senders wait with.
        peak: the most messages that were in it.
    """

    __slots__ = ("capacity", "messages", "overflow", "peak", "waiting")

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox has a capacity of at least 1, not {capacity}")
        self.capacity = capacity
        self.overflow = overflow
        self.peak = 0
        self.messages: deque[Msg] = deque()
        self.waiting: deque[tuple[Msg, asyncio.Future[bool]]] = deque()

    def admit(self) -> None:
        """There is room: move up the first message that a sender still waits with."""
        waiting = self.waiting
        while waiting:
            message, admitted = waiting.popleft()
            if not admitted.done():
                self.messages.append(message)
                admitted.set_result(True)
                return

    def clear(self) -> list[Msg]:
        """Empty it, and turn away those who wait; returns all messages that are lost by that."""
        lost = list(self.messages)
        self.messages.clear()
        while self.waiting:
            message, admitted = self.waiting.popleft()
            if not admitted.done():
                lost.append(message)
                admitted.set_result(False)
        return lost
