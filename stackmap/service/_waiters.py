"""Callers that wait until something has room, in the order in which they came."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Waiters:
    """Futures of those that were told that something is not ready.

    As many are woken as there is room for.  Those that were woken may not come, because they are
    cancelled or their connection is gone; so the next ones are woken as long as there is room.

    Args:
        room: returns how many would be welcome now.
    """

    __slots__ = ("_room", "_waiting", "_waking")

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._waking = False

    def __len__(self) -> int:
        """How many wait; some may have been cancelled."""
        return len(self._waiting)

    def add(self) -> asyncio.Future[None]:
        """Return a future that is done when there is room."""
        waiting = self._waiting
        while waiting and waiting[0].done():
            waiting.popleft()
        waiter = asyncio.get_running_loop().create_future()
        if waiting and waiting[-1].done():
            waiting[-1] = waiter  # whoever only asks, and cancels, leaves one behind
        else:
            waiting.append(waiter)
        return waiter

    def wake(self) -> None:
        """There may be room: call it when something has ended."""
        if self._waiting and not self._waking:
            self._wake_some()

    def _wake_some(self) -> None:
        self._waking = False
        waiting = self._waiting
        room = self._room()
        while waiting and room > 0:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1
                self._waking = True
        if self._waking:
            # Runs after those that were woken, which have taken their room by then if they want it.
            asyncio.get_running_loop().call_soon(self._wake_some)
