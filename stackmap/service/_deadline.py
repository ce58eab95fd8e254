"""The time until which an answer is of use to whoever asked for it."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, TypeVar

from ._errors import DeadlineExceededError
from ._filter import AnyFilter

if TYPE_CHECKING:
    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar(
    "stackmap_deadline", default=None
)


def current_deadline() -> float | None:
    """The deadline of the request that is being served, a time of the running loop's clock."""
    return _deadline.get()


class Deadline(AnyFilter):
    """Gives requests an absolute deadline, and fails those that come after theirs.

    The deadline is in a context variable, see :func:`current_deadline`, so everything that is done
    for a request has it, in tasks too.  An earlier deadline from outside stays.  This filter does
    not interrupt work that has begun: :class:`Timeout` does, at the deadline if that comes first.

    Args:
        seconds: from the time at which the request comes here.

    Raises (from a request):
        DeadlineExceededError: the deadline had passed before any work was done.
    """

    __slots__ = ("_seconds",)

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"Deadline({self._seconds})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on with its deadline."""
        now = asyncio.get_running_loop().time()
        deadline = now + self._seconds
        outer = _deadline.get()
        if outer is not None and outer < deadline:
            deadline = outer
        if deadline <= now:
            raise DeadlineExceededError(f"the deadline passed {now - deadline:.3f} s ago")
        token = _deadline.set(deadline)
        try:
            return await service(req)
        finally:
            _deadline.reset(token)
