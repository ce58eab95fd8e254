"""Echo (RFC 862), three ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

from stackmap.actor import ConnectionActor, Payload
from stackmap.codec import Buffer, Codec

from .host import PortLoop, run_actors, run_service

if TYPE_CHECKING:
    import socket

    from stackmap import Connection, Port, Segment


class EchoLoop(PortLoop):
    """Passes on each segment's memory to the transmit ring, without a copy."""

    def received(self, segment: Segment) -> None:
        """Send it back; a client that does not read is not read from."""
        connection = segment.connection
        connection.forward(segment)
        if connection.pending:
            connection.pause_reading()

    def writable(self, connection: Connection) -> None:
        """Read on."""
        connection.resume_reading()

    def ended(self, connection: Connection) -> None:
        """Close once everything is sent."""
        connection.close()


class Pieces(Codec[bytes, Buffer]):
    """No protocol: a message is what has come, whatever that is."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def receive(self, data: Buffer) -> None:
        """Take what the peer sent."""
        self._data += data

    def receive_eof(self) -> None:
        """The peer will send nothing more."""

    def next_message(self) -> bytes | None:
        """All that has come since the last message; None if that is nothing."""
        data = bytes(self._data)
        self._data.clear()
        return data or None

    def send(self, message: Buffer) -> list[Buffer]:
        """Encode a message, which is what it is."""
        return [message]

    @property
    def held(self) -> int:
        """How many bytes of the peer wait in the codec."""
        return len(self._data)


async def echo(message: bytes, /) -> bytes:
    """The service."""
    return message


class EchoActor(ConnectionActor[Never, Payload, Buffer]):
    """Owns one connection."""

    def connected(self) -> None:
        """Take everything; the stream holds back a peer that does not read."""
        self.stream.active(True)

    def received(self, message: Payload) -> None:
        """Send it back."""
        self.send(message.view)


def run_echo(model: str, port: Port, sock: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM.

    Args:
        model: ``"loop"``, ``"service"`` or ``"actors"``.
        port: the data path.
        sock: a listening socket.

    Returns:
        The exit code: 1 if clients were cut off that had not taken their replies in time.
    """
    if model == "loop":
        return EchoLoop(port, sock).run()
    if model == "service":
        return run_service(port, sock, echo, Pieces)
    return run_actors(port, sock, EchoActor)
