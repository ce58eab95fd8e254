"""Services: asynchronous functions from a request to a reply.

M. Eriksen, "Your Server as a Function", PLOS 2013.  A service is any ``async def`` function of one
argument.  What a service may have besides, it has by further methods: a status, an end, and
readiness.  The functions here ask for them, and know the answer where there is none.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

if TYPE_CHECKING:
    from typing import Never

Req = TypeVar("Req")
Rep = TypeVar("Rep")
Req_contra = TypeVar("Req_contra", contravariant=True)
Rep_co = TypeVar("Rep_co", covariant=True)

#: None: ready now.  Otherwise a future of the caller's own, done when it is worth asking again.
Waiter = asyncio.Future[None] | None


class Status(enum.Enum):
    """Whether a service takes requests."""

    OPEN = "open"
    #: It would reject, or delay, a request now.
    BUSY = "busy"
    #: It takes no more requests.
    CLOSED = "closed"


class Service(Protocol[Req_contra, Rep_co]):
    """Whatever answers requests: ``async def service(request, /) -> reply``.

    A function that returns another awaitable, such as a future, is one as well.  What it raises
    instead of returning one is raised where the awaitable would have been awaited.
    """

    def __call__(self, req: Req_contra, /) -> Awaitable[Rep_co]:
        """Answer a request.  Awaiting the reply raises what the service fails with."""
        ...


class ClosableService(Service[Req_contra, Rep_co], Protocol[Req_contra, Rep_co]):
    """A service that holds something: connections, tasks, files."""

    @property
    def status(self) -> Status:
        """Whether it takes requests."""
        ...

    async def aclose(self, deadline: float | None = None, /) -> None:
        """Let requests in progress finish, then give up what the service holds.  Idempotent.

        Args:
            deadline: a time of the running loop's clock (``loop.time()``) at which what is not
                done is cancelled; None: it may take as long as it wants.
        """
        ...


class ReadyService(Service[Req_contra, Rep_co], Protocol[Req_contra, Rep_co]):
    """A service that says when it would rather not be called (``poll_ready`` of Rust's tower)."""

    def ready(self) -> Waiter:
        """Ask whether a request is welcome now.

        Returns:
            None if it is.  Otherwise a future that is done when it is worth asking again; it is the
            caller's, who may cancel it.  Either is a hint and no promise: others may be faster.
        """
        ...


def status_of(service: object) -> Status:
    """The status of a service or a factory; a plain function is always open."""
    found: Status = getattr(service, "status", Status.OPEN)
    return found


async def close(service: Service[Any, Any], deadline: float | None = None) -> None:
    """Close a service if it can be closed; see :meth:`ClosableService.aclose`."""
    aclose = getattr(service, "aclose", None)
    if aclose is not None:
        await aclose(deadline)


def readiness(service: Service[Any, Any]) -> Callable[[], Waiter] | None:
    """The function to ask whether a service is ready; None if it always is.

    It is looked up once, so that requests to a chain without back-pressure pay nothing for it.
    """
    of_chain = getattr(service, "_readiness", None)
    if of_chain is not None:
        return cast("Callable[[], Callable[[], Waiter] | None]", of_chain)()
    return getattr(service, "ready", None)


def ready(service: Service[Any, Any]) -> Waiter:
    """Ask whether a service is ready, see :meth:`ReadyService.ready`."""
    ask = readiness(service)
    return None if ask is None else ask()


async def wait_ready(service: Service[Any, Any]) -> None:
    """Wait until a service says that it is ready."""
    ask = readiness(service)
    while ask is not None and (waiter := ask()) is not None:
        await waiter


def describe(service: object) -> str:
    """The name of a function, or the ``repr`` of anything else."""
    if inspect.isroutine(service):
        return service.__qualname__.replace("<locals>.", "")
    return repr(service)


class _Function(Generic[Req, Rep]):
    """A service made from a function that may not be a coroutine function."""

    def __init__(self, function: Callable[[Req], Any]) -> None:
        self._function = function
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return describe(self._function)

    async def __call__(self, req: Req, /) -> Rep:
        reply = self._function(req)
        return cast("Rep", await reply if inspect.isawaitable(reply) else reply)


@overload
def make_service(function: Callable[[Req], Awaitable[Rep]], /) -> Service[Req, Rep]: ...
@overload
def make_service(function: Callable[[Req], Rep], /) -> Service[Req, Rep]: ...
def make_service(function: Callable[[Req], Any], /) -> Service[Req, Any]:
    """Make a service from any function; usable as a decorator.

    The function may return its reply or an awaitable of it.  It runs in the event loop, so it must
    not block; see :func:`asyncio.to_thread` for one that does.  What it raises is raised when the
    service is awaited, never by the call itself.
    """
    if inspect.iscoroutinefunction(function):
        return function
    return _Function(function)


class _Const(Generic[Rep_co]):
    __slots__ = ("_reply",)

    def __init__(self, reply: Rep_co) -> None:
        self._reply = reply

    def __repr__(self) -> str:
        return f"const({self._reply!r})"

    async def __call__(self, _req: object, /) -> Rep_co:
        return self._reply


def const(reply: Rep) -> Service[object, Rep]:
    """Return a service that answers every request with the same reply."""
    return _Const(reply)


async def pending(_req: object, /) -> Never:
    """Never answer: a service for tests of timeouts and of cancellation."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("a future that nobody completes was completed")


async def await_it(awaitable: Awaitable[Rep]) -> Rep:
    """Await: makes a coroutine of any awaitable."""
    return await awaitable


def call(service: Service[Req, Rep], req: Req) -> Coroutine[Any, Any, Rep]:
    """Call a service of which nothing is known, for a caller that needs a coroutine.

    A service may return any awaitable, and may raise instead of returning one.
    """

    async def call_and_await() -> Rep:
        return await service(req)

    return call_and_await()
