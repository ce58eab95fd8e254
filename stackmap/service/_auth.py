"""Requests on somebody's behalf."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ._errors import UnauthenticatedError
from ._filter import Filter
from ._service import describe

if TYPE_CHECKING:
    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")
Principal = TypeVar("Principal")


@dataclass(frozen=True, slots=True)
class Authenticated(Generic[Principal, Req]):
    """A request, and on whose behalf it is made."""

    principal: Principal
    request: Req


class Auth(Filter[Req, Rep, Authenticated[Principal, Req], Rep], Generic[Req, Rep, Principal]):
    """Finds out who makes a request: the service behind it takes authenticated requests only.

    So a service that needs to know cannot be put behind anything else by mistake: its type is
    another one.  This is the example of the paper.  Give the types when you make it, because the
    reply's cannot be inferred: ``Auth[Request, Reply, User](find_user)``.

    Args:
        authenticate: returns the principal of a request, or None if it is not known.

    Raises (from a request):
        UnauthenticatedError: the principal is not known.
    """

    def __init__(self, authenticate: Callable[[Req], Awaitable[Principal | None]]) -> None:
        self._authenticate = authenticate

    def __repr__(self) -> str:
        return f"Auth({describe(self._authenticate)})"

    async def __call__(
        self, req: Req, service: Service[Authenticated[Principal, Req], Rep], /
    ) -> Rep:
        """Pass a request on with its principal."""
        principal = await self._authenticate(req)
        if principal is None:
            raise UnauthenticatedError("it is not known on whose behalf the request is made")
        return await service(Authenticated(principal, req))
