"""A bound on the requests per second."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ._errors import RejectedError
from ._filter import AnyFilter
from ._service import ready
from ._waiters import Waiters

if TYPE_CHECKING:
    from ._service import Service, Waiter

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class RateLimit(AnyFilter):
    """Lets so many requests through per second, on average, and rejects the others.

    A token bucket by the running loop's clock.  It is not ready while it is empty: a server reads
    no more then until there is a token again.

    Args:
        rate: requests per second.
        burst: requests that may come at once after a pause; the size of the bucket.

    Raises (from a request):
        RejectedError: the bucket is empty; the request may be retried.
    """

    def __init__(self, rate: float, burst: int = 1) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a rate limit needs rate > 0 and burst >= 1")
        self._rate = rate
        self._burst = burst
        #: When the bucket will have been filled.
        self._full_at = float("-inf")
        self._waiters = Waiters(self._tokens)
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"RateLimit({self._rate:g}, {self._burst})"

    def _tokens(self) -> int:
        missing = (self._full_at - asyncio.get_running_loop().time()) * self._rate
        # The sum of many 1/rate is not exact: a token that lacks a billionth is one.
        return int(self._burst - max(missing, 0.0) + 1e-9)

    def ready(self, service: Service[Req, Rep], /) -> Waiter:
        """Not while the bucket is empty."""
        if self._tokens() > 0:
            return ready(service)
        if self._timer is None:
            self._wait_for_token()
        return self._waiters.add()

    def _wait_for_token(self) -> None:
        when = self._full_at - (self._burst - 1) / self._rate
        self._timer = asyncio.get_running_loop().call_at(when, self._token_came)

    def _token_came(self) -> None:
        self._timer = None
        self._waiters.wake()
        if len(self._waiters):
            self._wait_for_token()

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on if there is a token."""
        if self._tokens() < 1:
            raise RejectedError(f"more than {self._rate:g} requests per second: try again later")
        now = asyncio.get_running_loop().time()
        self._full_at = max(self._full_at, now) + 1 / self._rate
        return await service(req)
