"""A service for each connection, for protocols whose connections have a state."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._service import Service, Status, describe

if TYPE_CHECKING:
    from ._peer import Peer

Req = TypeVar("Req", contravariant=True)  # noqa: PLC0105
Rep = TypeVar("Rep", covariant=True)  # noqa: PLC0105


class ServiceFactory(Generic[Req, Rep]):
    """Makes a service for each connection; the server closes it when the connection has ended.

    A server tells it from a service by its class.  Subclass it, or use :func:`per_connection`.
    """

    @property
    def status(self) -> Status:
        """Whether it makes services."""
        return Status.OPEN

    async def make(self, peer: Peer, /) -> Service[Req, Rep]:
        """Make the service of a new connection.  If this raises, the connection is closed."""
        raise NotImplementedError

    async def aclose(self, deadline: float | None = None, /) -> None:
        """Make no more services.  Those that are in use are closed with their connections."""


class _FromFunction(ServiceFactory[Req, Rep]):
    def __init__(self, function: Callable[[Peer], Any]) -> None:
        self._function = function

    def __repr__(self) -> str:
        return f"per_connection({describe(self._function)})"

    async def make(self, peer: Peer, /) -> Service[Req, Rep]:
        made = self._function(peer)
        service: Service[Req, Rep] = await made if inspect.isawaitable(made) else made
        return service


def per_connection(
    function: Callable[[Peer], Service[Req, Rep] | Awaitable[Service[Req, Rep]]],
    /,
) -> ServiceFactory[Req, Rep]:
    """Make a factory from a function that makes a service, or an awaitable of one."""
    return _FromFunction(function)
