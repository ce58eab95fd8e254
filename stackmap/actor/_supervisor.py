"""Actors that start, stop and restart other actors, after OTP's supervisor."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from stackmap.errors import StackmapError

from ._actor import Actor
from ._cell import Cell, State
from ._child import Child, Restart
from ._ref import Msg
from ._signals import Signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from ._ref import ActorRef

log = logging.getLogger("stackmap.actor")

M = TypeVar("M")


class Strategy(enum.Enum):
    """Which children are restarted when one fails."""

    #: That one.
    ONE_FOR_ONE = "one-for-one"
    #: All of them.
    ONE_FOR_ALL = "one-for-all"
    #: That one, and those that were started after it.
    REST_FOR_ONE = "rest-for-one"


class RestartIntensityError(StackmapError):
    """Children of a supervisor failed more often than it may restart them."""


@dataclass(frozen=True, slots=True)
class _RestartGroup(Signal):
    """A child is down that is to be restarted with others."""

    cell: Cell[Any]


@dataclass(frozen=True, slots=True)
class _GiveUp(Signal):
    """Too many restarts."""

    error: RestartIntensityError


def _check_child(child: object) -> None:
    if not isinstance(child, Child):
        given = type(child).__name__
        raise TypeError(f"spawn() takes a Child, which says how to make an actor, not a {given}")


class Supervisor(Actor[Msg]):
    """Starts children in order, restarts those that fail, and stops them in reverse order.

    A child whose first start fails is not restarted: the supervisor fails to start, or
    ``ready()`` of the child raises if it was spawned later.  A child that was stopped by
    ``ref.stop()`` is not restarted either.

    A restart loses the state of the actor, and the message whose handler failed; its address and
    the rest of its mailbox stay.  Watchers are told nothing of it.

    Args:
        children: what to start, in this order, each after the one before it has started.
        strategy: which children are restarted when one is.
        intensity: restarts that may happen within ``period``; one more, and the supervisor stops
            its children and fails itself, which is for its own supervisor to answer.
        period: seconds.

    Raises:
        ValueError: ``intensity`` is negative, or ``period`` is not positive.
    """

    def __init__(
        self,
        children: Sequence[Child[Any]] = (),
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: int = 1,
        period: float = 5.0,
    ) -> None:
        if intensity < 0 or period <= 0:
            raise ValueError(f"no supervisor allows {intensity} restarts in {period} s")
        self.strategy = strategy
        self.intensity = intensity
        self.period = period
        self._specifications = tuple(children)
        self._cells: dict[Cell[Any], None] = {}
        self._restarts: deque[float] = deque()
        self._closing = False
        # Children that are being taken down.
        self._awaited: dict[Cell[Any], asyncio.Future[None]] = {}

    @property
    def children(self) -> tuple[ActorRef[Any], ...]:
        """The children, in the order in which they were started."""
        return tuple(self._cells)

    def spawn(self, child: Child[M]) -> ActorRef[M]:
        """Start one more child; it begins in a later turn of the loop.

        Raises:
            BusyError: ``EEXIST``, an actor is registered under this name.
            ClosedError: ``ESHUTDOWN``, the supervisor is stopping.
            TypeError: it is no :class:`Child`.
        """
        _check_child(child)
        return self.adopt(child, None)

    @property
    def accepts(self) -> bool:
        """More children may be started."""
        return not self._closing

    def adopt(self, child: Child[M], stream: Any) -> Cell[M]:
        """Start one more child, which owns a connection from the beginning."""
        if self._closing:
            raise self.cell.gone()
        cell = self.system.create(self, child, stream)
        self._cells[cell] = None
        return cell

    # -- handlers --------------------------------------------------------------------------------

    def on_start(self) -> Awaitable[None] | None:
        """Start the children in order."""
        return self._start_children() if self._specifications else None

    async def _start_children(self) -> None:
        for child in self._specifications:
            await self.spawn(child).ready()

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        """Restart children together, or fail."""
        match signal:
            case _RestartGroup(cell):
                return self._restart_group(cell)
            case _GiveUp(error):
                raise error
            case _:
                return None

    def on_stop(self, reason: BaseException | None) -> Awaitable[None] | None:  # noqa: ARG002
        """Stop the children in reverse order."""
        self._closing = True
        return self._stop_all() if self._cells else None

    async def _stop_all(self) -> None:
        try:
            await self._stop_children(list(reversed(self._cells)))
        finally:
            for cell in list(self._cells):  # there is no time left for them
                self._remove(cell, cell.reason)

    async def _stop_children(self, cells: Sequence[Cell[Any]]) -> None:
        """Stop children in this order, one after the other."""
        for cell in cells:
            await self._take_down(cell, final=True)
            self._remove(cell, cell.reason)

    # -- what becomes of children ----------------------------------------------------------------

    def child_down(self, cell: Cell[Any], reason: BaseException | None) -> None:
        """A child's life is over: restart it, restart it with others, or forget it."""
        awaited = self._awaited.pop(cell, None)
        if awaited is not None:
            if reason is not None:
                self._log(cell, reason, "it was being stopped")
            awaited.set_result(None)
            return
        restart = cell.child.restart
        wanted = cell.started and not cell.final and not self._closing
        wanted = wanted and (
            restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and reason is not None)
        )
        if not wanted:
            if reason is not None:
                self._log(cell, reason, "it is not restarted")
            self._remove(cell, reason)
        elif not self._may_restart():
            error = RestartIntensityError(
                f"children of {self.cell.name} ended more than {self.intensity} times within "
                f"{self.period:g} s, {cell.name} the last of them"
            )
            error.__cause__ = reason
            if reason is not None:
                self._log(cell, reason, f"{self.cell.name} gives up")
            self._remove(cell, reason)
            self.cell.signal(_GiveUp(error))
        else:
            if reason is not None:
                self._log(cell, reason, "it is restarted")
            if self.strategy is Strategy.ONE_FOR_ONE:
                cell.restart()
            else:
                self.cell.signal(_RestartGroup(cell))

    def _log(self, cell: Cell[Any], reason: BaseException, consequence: str) -> None:
        log.error(
            "actor %s (%s) failed while it handled %r: %s",
            cell.name,
            cell.child_class,
            cell.doing,
            consequence,
            exc_info=reason,
        )

    def _may_restart(self) -> bool:
        now = asyncio.get_running_loop().time()
        restarts = self._restarts
        while restarts and restarts[0] <= now - self.period:
            restarts.popleft()
        restarts.append(now)
        return len(restarts) <= self.intensity

    def _remove(self, cell: Cell[Any], reason: BaseException | None) -> None:
        self._cells.pop(cell, None)
        self._awaited.pop(cell, None)
        cell.dispose(reason)

    async def _take_down(self, cell: Cell[Any], *, final: bool) -> None:
        """End a child's life, and wait for that."""
        if cell.state in (State.DOWN, State.ENDED):
            return
        down = self._awaited[cell] = asyncio.get_running_loop().create_future()
        if final:
            cell.begin_stop(final=True)
        else:
            cell.begin_quit()
        await down

    async def _restart_group(self, failed: Cell[Any]) -> None:
        if failed.state is not State.DOWN:
            return  # restarted with another one meanwhile, or stopped
        group = list(self._cells)
        if self.strategy is Strategy.REST_FOR_ONE:
            group = group[group.index(failed) :]
        for cell in reversed(group):
            await self._take_down(cell, final=False)
        for cell in group:
            if cell.state is State.ENDED:
                continue
            if cell.final or cell.child.restart is Restart.TEMPORARY:
                self._remove(cell, cell.reason)
                continue
            cell.restart()
            await cell.settled()
            if cell.state is not State.RUNNING:
                return  # its end is signalled, and restarts the group again
