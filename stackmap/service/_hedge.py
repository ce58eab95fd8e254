"""Ask twice when the first answer is late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from ._filter import AnyFilter
from ._service import call, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._budget import RetryBudget
    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")

#: By how much a sample moves the estimate of a percentile, as a part of it.
_STEP = 0.05


class Percentile:
    """An estimate of a percentile of latencies that costs one comparison a sample.

    Stochastic approximation (H. Robbins and S. Monro, 1951): a sample above the estimate raises it,
    one below lowers it, in such proportion that they balance at the percentile.  It follows
    latencies that change, and wanders around the true value by some steps of 5 %.

    Args:
        percent: such as 95.
        initial: the first estimate, in seconds.
    """

    __slots__ = ("_down", "_percent", "_up", "seconds")

    def __init__(self, percent: float, initial: float) -> None:
        if not 0 < percent < 100 or initial <= 0:
            raise ValueError("a percentile needs 0 < percent < 100 and initial > 0")
        self._percent = percent
        self.seconds = initial
        self._up = 1 + _STEP * percent / 100
        self._down = 1 - _STEP * (1 - percent / 100)

    def __repr__(self) -> str:
        return f"Percentile({self._percent:g}, {self.seconds:g})"

    def add(self, seconds: float) -> None:
        """Take a sample."""
        self.seconds *= self._up if seconds > self.seconds else self._down


class Hedge(AnyFilter):
    """Sends a second, equal request if the first is not answered soon; the first reply counts.

    J. Dean and L. A. Barroso, "The Tail at Scale", CACM 2013: after the 95th percentile this costs
    5 % more requests, and cuts off most of the tail.  The loser is cancelled, and has ended before
    the reply is returned.  A failure counts if the other one fails as well.

    Args:
        delay: seconds, or a percentile of the latencies that this filter sees.
        idempotent: whether a request may be served twice.  Others are passed on once.
        budget: what a second request takes a token from; without one there is no limit.
    """

    def __init__(
        self,
        delay: float | Percentile,
        idempotent: Callable[[Any], bool],
        *,
        budget: RetryBudget | None = None,
    ) -> None:
        self._delay = delay
        self._idempotent = idempotent
        self._budget = budget

    def __repr__(self) -> str:
        return f"Hedge({self._delay!r}, {describe(self._idempotent)})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on, perhaps twice."""
        if self._budget is not None:
            self._budget.deposit()
        if not self._idempotent(req):
            return await service(req)
        loop = asyncio.get_running_loop()
        delay = self._delay
        first = loop.create_task(call(service, req))
        tasks = {first}
        begun = loop.time()
        try:
            seconds = delay.seconds if isinstance(delay, Percentile) else delay
            await asyncio.wait(tasks, timeout=seconds)
            if not first.done() and (self._budget is None or self._budget.withdraw()):
                tasks.add(loop.create_task(call(service, req)))
            winner = await self._first_success(tasks)
            if isinstance(delay, Percentile) and winner is first:
                delay.add(loop.time() - begun)
            elif isinstance(delay, Percentile):
                delay.add(float("inf"))  # the first one is late, however late it would have been
            return (winner or first).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @staticmethod
    async def _first_success(tasks: set[asyncio.Task[Rep]]) -> asyncio.Task[Rep] | None:
        """Wait for one that succeeds; None if there is none."""
        left = tasks
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and task.exception() is None:
                    return task
        return None
