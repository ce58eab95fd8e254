"""A bound on the requests that are in progress at a time."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import TYPE_CHECKING, TypeVar

from ._errors import RejectedError
from ._filter import AnyFilter
from ._service import ready
from ._waiters import Waiters

if TYPE_CHECKING:
    from ._service import Service, Waiter

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class ConcurrencyLimit(AnyFilter):
    """Lets so many requests through at a time, has so many wait, and rejects the others.

    It is not ready while a request would be rejected: a server reads no more then, and the limit
    becomes back-pressure on its clients.

    Args:
        max_concurrent: requests in progress behind this filter.
        max_waiters: requests that wait, in the order in which they came.  With 0 it is a counter,
            and costs next to nothing.

    Raises (from a request):
        RejectedError: there is no room; the request may be retried.
    """

    def __init__(self, max_concurrent: int, max_waiters: int = 0) -> None:
        if max_concurrent < 1 or max_waiters < 0:
            raise ValueError("a limit needs max_concurrent >= 1 and max_waiters >= 0")
        self._max = max_concurrent
        self._max_waiters = max_waiters
        self._running = 0
        #: Requests that have been let in, but not through.
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()
        self._waiters = Waiters(self._room)

    def __repr__(self) -> str:
        return f"ConcurrencyLimit({self._max}, {self._max_waiters})"

    @property
    def running(self) -> int:
        """Requests in progress."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def _room(self) -> int:
        return self._max + self._max_waiters - self._running - len(self._queue)

    def ready(self, service: Service[Req, Rep], /) -> Waiter:
        """Not while a request would be rejected."""
        return ready(service) if self._room() > 0 else self._waiters.add()

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on when its turn comes."""
        if self._running < self._max:
            self._running += 1
        elif len(self._queue) < self._max_waiters:
            await self._wait()
        else:
            raise RejectedError(
                f"{self._running} requests are in progress and {len(self._queue)} wait, "
                "which is all that may: try again later"
            )
        try:
            return await service(req)
        finally:
            self._leave()

    async def _wait(self) -> None:
        """Wait for a place among those in progress, which whoever leaves hands over."""
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave()  # it had got the place already
            else:
                with contextlib.suppress(ValueError):
                    self._queue.remove(turn)
                self._waiters.wake()
            raise

    def _leave(self) -> None:
        queue = self._queue
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        else:
            self._running -= 1
        self._waiters.wake()
