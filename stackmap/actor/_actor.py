"""The base class of actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from ._ref import Msg

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ._cell import Cell
    from ._ref import ActorRef
    from ._signals import Signal
    from ._system import ActorSystem


class Actor(Generic[Msg]):
    """State that only its own handlers touch, one message at a time.

    Derive from it with the type of the messages, and override :meth:`receive`::

        class Counter(Actor[Add | Read]):
            def __init__(self) -> None:
                self.total = 0

            def receive(self, message: Add | Read) -> None:
                match message:
                    case Add(number):
                        self.total += number
                    case Read(reply):
                        reply.send(self.total)

    Each method may be ``async``.  Nothing else of the actor runs while it waits then; a plain one
    costs less.  What one raises is a failure of the actor, which its supervisor decides about.
    A restart makes a new object; the mailbox and the address stay.
    """

    _cell: Cell[Msg] | None = None

    # -- overridden by a program -----------------------------------------------------------------

    def receive(self, message: Msg) -> Awaitable[None] | None:
        """Handle a message."""
        raise NotImplementedError(f"{type(self).__name__} has no receive()")

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        """Handle what the system tells, :class:`Stop` or :class:`Down` for instance."""

    def on_start(self) -> Awaitable[None] | None:
        """The actor begins; messages come after this."""

    def on_stop(self, reason: BaseException | None) -> Awaitable[None] | None:
        """The actor ends, because it is to stop (None), or because of an exception."""

    # -- for its handlers ------------------------------------------------------------------------

    @property
    def cell(self) -> Cell[Msg]:
        """What runs the actor."""
        if self._cell is None:
            raise RuntimeError(
                f"{type(self).__name__} was not spawned: give the class, or a function that makes "
                "it, to spawn(); its address is known from on_start() on"
            )
        return self._cell

    def live_in(self, cell: Cell[Msg]) -> None:
        """Be run by a cell; it calls this."""
        if self._cell is not None and self._cell is not cell:
            raise ValueError(f"{self._cell.name} is run by the same object: make one for each")
        self._cell = cell

    @property
    def ref(self) -> ActorRef[Msg]:
        """The actor's own address.

        Raises:
            RuntimeError: the actor was not spawned, or is in its ``__init__()``.
        """
        return self.cell

    @property
    def system(self) -> ActorSystem:
        """The system that the actor is part of."""
        return self.cell.system

    def watch(self, ref: ActorRef[Any]) -> None:
        """Have :class:`Down` told when another actor ends; at once if it has ended.  Idempotent."""
        self.cell.watch(ref)

    def unwatch(self, ref: ActorRef[Any]) -> None:
        """Undo :meth:`watch`.  Idempotent."""
        self.cell.unwatch(ref)

    def stop(self) -> None:
        """End after what is in the mailbox.  A permanent actor is restarted then."""
        self.cell.begin_stop(final=False)
