"""An actor that owns a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

from ._actor import Actor
from ._ref import Msg
from ._signals import Closed, Connected, DecodeError, PeerClosed, Signal, WriteFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ._ack import Ack
    from ._stream import Stream

In = TypeVar("In")
Out = TypeVar("Out")


class ConnectionActor(Actor[Msg], Generic[Msg, In, Out]):
    """Owns one connection, or waits to be handed one.

    The types are the messages of other actors, those of the peer, and those to the peer: what the
    codec makes and takes, or :class:`Payload` and buffers where there is none::

        class Echo(ConnectionActor[Never, Payload, Buffer]):
            def connected(self) -> None:
                self.stream.active(True)

            def received(self, message: Payload) -> None:
                self.send(message.view)

    Override :meth:`on_signal` for anything else than what it does here; pass on the rest to it.
    """

    @property
    def stream(self) -> Stream[In, Out]:
        """The connection.

        Raises:
            RuntimeError: the actor has none: it was handed over, or none came yet.
        """
        stream = self.cell.stream
        if stream is None:
            raise RuntimeError(
                f"{self.cell.name} owns no connection: it handed it over, or waits for Connected"
            )
        return cast("Stream[In, Out]", stream)

    @property
    def has_stream(self) -> bool:
        """The actor owns a connection."""
        return self._cell is not None and self._cell.stream is not None

    def connected(self) -> Awaitable[None] | None:
        """The connection is the actor's now: say what may be delivered (:meth:`Stream.active`)."""

    def received(self, message: In) -> Awaitable[None] | None:
        """Handle a message of the peer."""
        raise NotImplementedError(f"{type(self).__name__} has no received()")

    def send(self, message: Out) -> Ack:
        """Encode a message, and write it; see :meth:`Stream.write`.

        Raises:
            LocalProtocolError: the codec does not allow it; nothing was written.
        """
        return self.stream.send(message)

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        """Stop at the end of the connection, and end it where nothing sensible can follow.

        A peer that does not keep to the protocol gets the codec's reply, and is disconnected.  One
        that does not read, so that a write was refused, is disconnected at once.
        """
        match signal:
            case Connected():
                return self.connected()
            case DecodeError(error):
                if error.reply:
                    self.stream.write(*error.reply)
                self.stop()
            case PeerClosed() | Closed():
                self.stop()
            case WriteFailed():
                self.stream.abort()
            case _:
                pass
        return None
