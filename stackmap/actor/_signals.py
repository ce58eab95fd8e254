"""Signals: notifications of the system to an actor, handled ahead of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stackmap.codec import RemoteProtocolError

    from ._ref import ActorRef


class Signal:
    """Anything that :meth:`Actor.on_signal` is given."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Stop(Signal):
    """The actor is to stop: it is given what is in its mailbox, and nothing more.

    Attributes:
        deadline: seconds from now after which its handler is cancelled; None for never.
    """

    deadline: float | None


@dataclass(frozen=True, slots=True)
class Down(Signal):
    """A watched actor has ended, and is not restarted.

    Attributes:
        ref: which one.
        reason: why; None if it stopped in order.
    """

    ref: ActorRef[Any]
    reason: BaseException | None


@dataclass(frozen=True, slots=True)
class Connected(Signal):
    """The actor owns a connection now: a new one, or one that was handed over to it.

    It is passive: nothing is delivered before :meth:`Stream.active`.
    """


@dataclass(frozen=True, slots=True)
class Passive(Signal):
    """The credit of :meth:`Stream.active` is used up, and all messages of it were delivered."""


@dataclass(frozen=True, slots=True)
class PeerClosed(Signal):
    """The peer sends nothing more.  Everything that it sent was delivered before this.

    It may still read.
    """


@dataclass(frozen=True, slots=True)
class DecodeError(Signal):
    """The peer does not keep to the protocol; nothing that it sends is delivered any more.

    Attributes:
        error: the codec's exception.
    """

    error: RemoteProtocolError


@dataclass(frozen=True, slots=True)
class WriteFailed(Signal):
    """A write was refused whole, because too much waits to be sent.

    Further ones are refused too, without a signal, until :meth:`Stream.resume_writing`.

    Attributes:
        buffers: what was to be written.
        error: why.
    """

    buffers: tuple[bytes | bytearray | memoryview, ...]
    error: OSError


@dataclass(frozen=True, slots=True)
class WritingResumed(Signal):
    """After :meth:`Stream.resume_writing`: what waits has sunk to the low mark; write again."""


@dataclass(frozen=True, slots=True)
class Closed(Signal):
    """The connection is gone.

    Attributes:
        error: what ended it; None if the actor itself closed or aborted it.
    """

    error: BaseException | None
