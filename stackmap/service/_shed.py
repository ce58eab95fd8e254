"""Turn away what would have to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from ._errors import RejectedError
from ._filter import AnyFilter
from ._service import describe, ready

if TYPE_CHECKING:
    from ._service import Service, Waiter

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class LoadShed(AnyFilter):
    """Rejects requests while what is behind it is not ready, instead of having clients wait.

    Raises (from a request):
        RejectedError: the service is not ready; the request may be retried.
    """

    __slots__ = ()

    def ready(self, _service: Service[Req, Rep], /) -> Waiter:
        """Always."""
        return None

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on if the service is ready."""
        waiter = ready(service)
        if waiter is not None:
            waiter.cancel()
            raise RejectedError(f"overloaded: {describe(service)} is not ready; try again later")
        return await service(req)
