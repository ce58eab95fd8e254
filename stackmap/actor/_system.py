"""All actors of an event loop: their root, their names, their listing."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
from typing import TYPE_CHECKING, Any, Self, TypeVar

from stackmap.errors import BusyError, make_error

from ._cell import Cell, Parent
from ._child import Child
from ._protocol import StreamProtocol
from ._supervisor import Strategy, Supervisor

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable
    from types import TracebackType

    from stackmap.codec import Codec

    from ._cell import Source
    from ._ref import ActorRef

log = logging.getLogger("stackmap.actor")

M = TypeVar("M")

_HEADER = ("ACTOR", "CLASS", "STATE", "MAILBOX", "PEAK", "HANDLED", "DROPPED", "BUSY", "RESTARTS")


class ActorSystem:
    """The root of a tree of actors, as an asynchronous context manager.

    ::

        async with ActorSystem() as system:
            counter = system.spawn(Child(Counter, capacity=100, name="counter"))
            await counter.tell(Add(1))

    Leaving it stops all actors: those spawned last stop first, and each drains its mailbox as far
    as its own deadline lets it.  If the root supervisor gives up, the task that is inside of the
    ``async with`` is cancelled, and what it gave up for is raised there, as ``TaskGroup`` does.

    It runs on any event loop of asyncio, and is for the thread of that loop.

    Attributes:
        dead_letters: messages to actors that had ended, or ended before they handled them.
        killed: lives of actors that were cut short because they had not stopped in time.

    Args:
        strategy: of the root supervisor, as are the following.
        intensity: see :class:`Supervisor`.
        period: see :class:`Supervisor`.
        grace: seconds that all actors together have to stop; after that, all that are left are
            cancelled.  None leaves it to their own deadlines.
    """

    def __init__(
        self,
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: int = 1,
        period: float = 5.0,
        grace: float | None = None,
    ) -> None:
        self.dead_letters = self.killed = 0
        self._root: Supervisor[Any] = Supervisor(
            strategy=strategy, intensity=intensity, period=period
        )
        self._root_cell: Cell[Any] | None = None
        self._grace = grace
        self._names: dict[str, Cell[Any]] = {}
        self._numbers = itertools.count(1)
        self._host: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._host = asyncio.current_task()
        child = Child(lambda: self._root, capacity=1, shutdown=self._grace)
        self._root_cell = Cell(self, _Top(self), child, "system")
        await self._root_cell.ready()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        host, self._host = self._host, None
        assert self._root_cell is not None
        self._root_cell.stop()
        await self._root_cell.wait()
        if self._failure is not None:
            if isinstance(error, asyncio.CancelledError) and host is not None:
                host.uncancel()
            raise self._failure

    def spawn(self, child: Child[M]) -> ActorRef[M]:
        """Start an actor under the root; see :meth:`Supervisor.spawn`."""
        return self._root.spawn(child)

    def protocol(
        self, child: Child[Any], codec: Callable[[], Codec[Any, Any]] | None = None
    ) -> StreamProtocol:
        """Make a protocol whose connection will be owned by an actor, a :class:`ConnectionActor`.

        It is for ``loop.create_connection()`` and whatever else makes transports.  The actor is
        spawned when the connection is made; its address is ``protocol.ref`` then.
        """
        return StreamProtocol(self._root, child, codec)

    async def connect(
        self,
        child: Child[M],
        host: str,
        port: int,
        *,
        codec: Callable[[], Codec[Any, Any]] | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> ActorRef[M]:
        """Connect, and have an actor own the connection.

        Raises:
            OSError: as of ``loop.create_connection()``.
        """
        loop = asyncio.get_running_loop()
        _transport, protocol = await loop.create_connection(
            lambda: self.protocol(child, codec), host, port, ssl=ssl
        )
        return protocol.ref

    def whereis(self, name: str) -> ActorRef[Any] | None:
        """The actor that is registered under a name; None if there is none."""
        return self._names.get(name)

    async def wait(self) -> None:
        """Wait until all actors have stopped, which :meth:`stop` asks for."""
        if self._root_cell is not None:
            await self._root_cell.wait()

    def stop(self) -> None:
        """Begin to stop all actors.  Idempotent."""
        if self._root_cell is not None:
            self._root_cell.stop()

    def tree(self) -> str:
        """A listing of all actors as a table, children below their supervisor."""
        rows: list[tuple[str, ...]] = [_HEADER]
        if self._root_cell is not None:
            _list(self._root_cell, 0, rows)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines: list[str] = []
        for row in rows:
            texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join(texts + numbers).rstrip())
        return "\n".join(lines)

    # -- for supervisors -------------------------------------------------------------------------

    def create(self, parent: Parent, child: Child[M], stream: Source | None) -> Cell[M]:
        """Make an actor, and register its name.

        Raises:
            BusyError: ``EEXIST``, the name is taken.
        """
        name = child.name
        if name is not None and name in self._names:
            raise make_error(BusyError, errno.EEXIST, f"an actor is registered as {name!r} already")
        made = getattr(child.make, "__name__", "actor").replace("<lambda>", "actor")
        cell = Cell(self, parent, child, name or f"{made}-{next(self._numbers)}", stream)
        if name is not None:
            self._names[name] = cell
        return cell

    def forget(self, cell: Cell[Any]) -> None:
        """An actor has ended."""
        if self._names.get(cell.name) is cell:
            del self._names[cell.name]

    def fail(self, error: BaseException) -> None:
        """The root has failed."""
        self._failure = error
        if self._host is not None:
            self._host.cancel()


class _Top:
    """Above the root."""

    def __init__(self, system: ActorSystem) -> None:
        self._system = system

    def child_down(self, cell: Cell[Any], reason: BaseException | None) -> None:
        cell.dispose(reason)
        if cell.killed:
            log.warning("%s; what was left was cancelled", reason)
        elif reason is not None:
            self._system.fail(reason)


def _list(cell: Cell[Any], depth: int, rows: list[tuple[str, ...]]) -> None:
    statistics = cell.statistics
    rows.append(
        (
            "  " * depth + cell.name,
            cell.child_class,
            statistics.state,
            f"{statistics.depth}/{statistics.capacity}",
            str(statistics.peak),
            str(statistics.handled),
            str(statistics.dropped),
            f"{statistics.busy:.3f}s",
            str(statistics.restarts),
        )
    )
    if isinstance(cell.actor, Supervisor):
        for child in cell.actor.children:
            if isinstance(child, Cell):
                _list(child, depth + 1, rows)
