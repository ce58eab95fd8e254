"""A bound on the time that a request may take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ._deadline import current_deadline
from ._filter import AnyFilter

if TYPE_CHECKING:
    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Timeout(AnyFilter):
    """Cancels a request that takes too long, and fails with ``TimeoutError``.

    A request with a deadline (see :class:`Deadline`) is cancelled at the deadline if that is
    earlier.  How far the request got is unknown then, so it is not retried.  Cancellation from
    outside passes through as what it is.

    Args:
        seconds: for which a request may take.
    """

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"Timeout({self._seconds})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on, for a while."""
        when = asyncio.get_running_loop().time() + self._seconds
        deadline = current_deadline()
        if deadline is not None and deadline < when:
            when = deadline
        async with asyncio.timeout_at(when):
            return await service(req)
