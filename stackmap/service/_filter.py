"""Filters: what stands before a service, and may look at, change, delay or refuse requests.

A filter is a function of a request and of the service behind it.  Filters are joined with
:meth:`Filter.and_then` to each other and at last to a service, which makes a service again.
Everything is bound when the chain is made: a request to n filters makes n coroutines, and nothing
else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ._factory import ServiceFactory
from ._service import Service, Status, Waiter, close, describe, readiness, ready, status_of

if TYPE_CHECKING:
    from ._peer import Peer
    from ._service import ClosableService

ReqIn = TypeVar("ReqIn", contravariant=True)  # noqa: PLC0105
RepOut = TypeVar("RepOut", covariant=True)  # noqa: PLC0105
ReqOut = TypeVar("ReqOut", covariant=True)  # noqa: PLC0105
RepIn = TypeVar("RepIn", contravariant=True)  # noqa: PLC0105
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")


class Filter(Generic[ReqIn, RepOut, ReqOut, RepIn]):
    """Turns a ``Service[ReqOut, RepIn]`` into a ``Service[ReqIn, RepOut]``.

    Subclasses implement ``__call__``.  They let ``asyncio.CancelledError`` pass.  A filter may be
    in several chains; what it counts or limits, it counts and limits in all of them together.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    async def __call__(self, req: ReqIn, service: Service[ReqOut, RepIn], /) -> RepOut:
        """Answer a request, with the help of the service behind."""
        raise NotImplementedError

    def ready(self, service: Service[ReqOut, RepIn], /) -> Waiter:
        """Ask whether a request is welcome; see :meth:`ReadyService.ready`.

        By default, if it is to the service behind.
        """
        return ready(service)

    def bind(self, service: Service[ReqOut, RepIn], /) -> ClosableService[ReqIn, RepOut]:
        """Make a service of this filter and the service behind it.

        :meth:`and_then` calls it when a chain is made.  A filter that prepares something for each
        chain overrides it.
        """
        return _Chain(self, service)

    @overload
    def and_then(self, nxt: AnyFilter, /) -> Filter[ReqIn, RepOut, ReqOut, RepIn]: ...
    @overload
    def and_then(self, nxt: Filter[ReqOut, RepIn, V, W], /) -> Filter[ReqIn, RepOut, V, W]: ...
    @overload
    def and_then(self, nxt: ServiceFactory[ReqOut, RepIn], /) -> ServiceFactory[ReqIn, RepOut]: ...
    @overload
    def and_then(self, nxt: Service[ReqOut, RepIn], /) -> ClosableService[ReqIn, RepOut]: ...
    def and_then(
        self, nxt: Filter[Any, Any, Any, Any] | ServiceFactory[Any, Any] | Service[Any, Any], /
    ) -> Any:
        """Put something behind this filter: another filter, a service, or a service factory.

        It is associative, and :data:`identity` is left out.  The result forwards its end, status
        and readiness to what is behind, and shows the whole chain as its ``repr``.

        Raises:
            TypeError: it is none of them.
        """
        return _compose(self, nxt)

    @overload
    def and_then_if(
        self, condition: bool, nxt: AnyFilter, /
    ) -> Filter[ReqIn, RepOut, ReqOut, RepIn]: ...
    @overload
    def and_then_if(
        self: Filter[T, U, V, W], condition: bool, nxt: Filter[V, W, V, W], /
    ) -> Filter[T, U, V, W]: ...
    def and_then_if(self, condition: bool, nxt: Filter[Any, Any, Any, Any], /) -> Any:
        """Put a filter behind this one if the condition holds now, when the chain is made."""
        return self.and_then(nxt) if condition else self

    @staticmethod
    def mk(function: Callable[[T, Service[V, W]], Awaitable[U]], /) -> Filter[T, U, V, W]:
        """Make a filter from a function of a request and a service; usable as a decorator."""
        return _FromFunction(function)


_ready_by_default: object = Filter[Any, Any, Any, Any].ready


class SimpleFilter(Filter[T, U, T, U]):
    """A filter that leaves the types of requests and replies as they are."""

    __slots__ = ()


class AnyFilter(Filter[Any, Any, Any, Any]):
    """A filter for requests and replies of any type, which it leaves as they are.

    In a chain it has the types of its neighbours, so a chain through it is checked like one without
    (Finagle's ``Filter.TypeAgnostic``).
    """

    __slots__ = ()

    async def __call__(self, req: T, service: Service[T, U], /) -> U:
        """Answer a request, with the help of the service behind."""
        raise NotImplementedError

    @overload
    def and_then(self, nxt: AnyFilter, /) -> AnyFilter: ...
    @overload
    def and_then(self, nxt: Filter[T, U, V, W], /) -> Filter[T, U, V, W]: ...
    @overload
    def and_then(self, nxt: ServiceFactory[T, U], /) -> ServiceFactory[T, U]: ...
    @overload
    def and_then(self, nxt: Service[T, U], /) -> ClosableService[T, U]: ...
    def and_then(
        self, nxt: Filter[Any, Any, Any, Any] | ServiceFactory[Any, Any] | Service[Any, Any], /
    ) -> Any:
        """Put something behind this filter, see :meth:`Filter.and_then`."""
        return _compose(self, nxt)

    @overload
    def and_then_if(self, condition: bool, nxt: AnyFilter, /) -> AnyFilter: ...
    @overload
    def and_then_if(self, condition: bool, nxt: Filter[T, U, T, U], /) -> Filter[T, U, T, U]: ...
    def and_then_if(self, condition: bool, nxt: Filter[Any, Any, Any, Any], /) -> Any:
        """Put a filter behind this one if the condition holds now, when the chain is made."""
        return super().and_then_if(condition, nxt)


class _Identity(AnyFilter):
    """Does nothing: the unit of composition, which no chain contains."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "identity"

    async def __call__(self, req: T, service: Service[T, U], /) -> U:
        return await service(req)

    def bind(self, service: Service[Any, Any], /) -> Any:
        return service

    def and_then(self, nxt: Any, /) -> Any:
        return nxt


identity: AnyFilter = _Identity()


def _compose(
    first: Filter[Any, Any, Any, Any],
    nxt: Filter[Any, Any, Any, Any] | ServiceFactory[Any, Any] | Service[Any, Any],
) -> Any:
    if isinstance(nxt, Filter):
        return first if nxt is identity else _Joined(first, nxt)
    if isinstance(nxt, ServiceFactory):
        return _FilteredFactory(first, nxt)
    if not callable(nxt):
        raise TypeError(f"a filter, a service or a factory can follow a filter, not {nxt!r}")
    return first.bind(nxt)


def _links(thing: object) -> list[str]:
    if isinstance(thing, _Chain | _Joined | _FilteredFactory):
        return [name for link in thing.links() for name in _links(link)]
    return [describe(thing)]


def _show(chain: object) -> str:
    """The chain as a program would write it, however it was put together."""
    first, *others = _links(chain)
    return first + "".join(f".and_then({name})" for name in others)


class _Chain(Generic[ReqIn, RepOut]):
    """A filter, bound to the service behind it."""

    __slots__ = ("__weakref__", "_filter", "_service")

    def __init__(self, filter: Filter[ReqIn, RepOut, Any, Any], service: Service[Any, Any]) -> None:
        self._filter = filter
        self._service = service

    def __repr__(self) -> str:
        return _show(self)

    def links(self) -> tuple[object, object]:
        return self._filter, self._service

    def __call__(self, req: ReqIn, /) -> Coroutine[Any, Any, RepOut]:
        return self._filter(req, self._service)

    @property
    def status(self) -> Status:
        return status_of(self._service)

    async def aclose(self, deadline: float | None = None, /) -> None:
        await close(self._service, deadline)

    def ready(self) -> Waiter:
        return self._filter.ready(self._service)

    def _readiness(self) -> Callable[[], Waiter] | None:
        """See :func:`readiness`: skips the filters that only ask what is behind them."""
        if type(self._filter).ready is _ready_by_default:
            return readiness(self._service)
        return self.ready


class _Joined(Filter[ReqIn, RepOut, ReqOut, RepIn]):
    """Two filters, one behind the other."""

    __slots__ = ("_first", "_second")

    def __init__(
        self,
        first: Filter[ReqIn, RepOut, Any, Any],
        second: Filter[Any, Any, ReqOut, RepIn],
    ) -> None:
        self._first = first
        self._second = second

    def __repr__(self) -> str:
        return _show(self)

    def links(self) -> tuple[object, object]:
        return self._first, self._second

    async def __call__(self, req: ReqIn, service: Service[ReqOut, RepIn], /) -> RepOut:
        return await self.bind(service)(req)

    def ready(self, service: Service[ReqOut, RepIn], /) -> Waiter:
        return self._first.ready(self._second.bind(service))

    def bind(self, service: Service[ReqOut, RepIn], /) -> ClosableService[ReqIn, RepOut]:
        return self._first.bind(self._second.bind(service))


class _FilteredFactory(ServiceFactory[ReqIn, RepOut]):
    """A factory of services behind a filter."""

    def __init__(
        self, filter: Filter[ReqIn, RepOut, Any, Any], factory: ServiceFactory[Any, Any]
    ) -> None:
        self._filter = filter
        self._factory = factory

    def __repr__(self) -> str:
        return _show(self)

    def links(self) -> tuple[object, object]:
        return self._filter, self._factory

    @property
    def status(self) -> Status:
        return self._factory.status

    async def make(self, peer: Peer, /) -> Service[ReqIn, RepOut]:
        return self._filter.bind(await self._factory.make(peer))

    async def aclose(self, deadline: float | None = None, /) -> None:
        await self._factory.aclose(deadline)


class _FromFunction(Filter[ReqIn, RepOut, ReqOut, RepIn]):
    """A filter made from a function."""

    def __init__(self, function: Callable[[Any, Service[Any, Any]], Awaitable[Any]]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return describe(self._function)

    async def __call__(self, req: ReqIn, service: Service[ReqOut, RepIn], /) -> RepOut:
        reply: RepOut = await self._function(req, service)
        return reply

    def bind(self, service: Service[ReqOut, RepIn], /) -> ClosableService[ReqIn, RepOut]:
        if inspect.iscoroutinefunction(self._function):
            return _Bound(self, service, self._function)
        return super().bind(service)


class _Bound(_Chain[ReqIn, RepOut]):
    """A coroutine function as a filter, which is called without a coroutine in between."""

    __slots__ = ("_function",)

    def __init__(
        self,
        filter: Filter[ReqIn, RepOut, Any, Any],
        service: Service[Any, Any],
        function: Callable[[Any, Service[Any, Any]], Coroutine[Any, Any, Any]],
    ) -> None:
        super().__init__(filter, service)
        self._function = function

    def __call__(self, req: ReqIn, /) -> Coroutine[Any, Any, RepOut]:
        return self._function(req, self._service)


class _Choose(Filter[T, U, T, U]):
    """Passes each request to one of several filters."""

    def __init__(self, select: Callable[[T], Filter[T, U, T, U] | None]) -> None:
        self._select = select

    def __repr__(self) -> str:
        return f"choose({describe(self._select)})"

    async def __call__(self, req: T, service: Service[T, U], /) -> U:
        chosen = self._select(req)
        return await (service(req) if chosen is None else chosen(req, service))

    def bind(self, service: Service[T, U], /) -> ClosableService[T, U]:
        return _Chosen(self, service, self._select)


class _Chosen(_Chain[T, U]):
    """A choice of filters, each bound to the service at its first use."""

    __slots__ = ("_bound", "_select")

    def __init__(
        self,
        filter: Filter[T, U, T, U],
        service: Service[T, U],
        select: Callable[[T], Filter[T, U, T, U] | None],
    ) -> None:
        super().__init__(filter, service)
        self._select = select
        self._bound: dict[Filter[T, U, T, U], Service[T, U]] = {}

    async def __call__(self, req: T, /) -> U:
        chosen = self._select(req) or identity
        bound = self._bound.get(chosen)
        if bound is None:
            bound = self._bound[chosen] = chosen.bind(self._service)
        return await bound(req)


def choose(select: Callable[[T], Filter[T, U, T, U] | None], /) -> Filter[T, U, T, U]:
    """Choose a filter for each request.

    Args:
        select: returns one of a few filters that it keeps, or None for no filter.  It must not make
            a filter for each request: chains remember those that they have seen.
    """
    return _Choose(select)
