"""The chat server of ``chat.py`` as actors: the room is one, and so is each client.

    python examples/chat_actors.py --listen 127.0.0.1:7000

It shows state that many share without locks.  Nobody can be made to wait for the slowest reader:
the room never waits, a client that falls too far behind is disconnected, and one that talks faster
than the room passes on waits itself.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import socket
from dataclasses import dataclass

from stackmap import WouldBlockError, open_port
from stackmap.actor import (
    Actor,
    ActorRef,
    ActorSystem,
    Buffer,
    Child,
    ConnectionActor,
    Listener,
    Overflow,
)
from stackmap.aio import EventLoop
from stackmap.codec import Lines

#: Bytes of one line; a client that sends a longer one is disconnected.
MAX_LINE = 1024
#: Bytes that may wait in memory for a client that does not read as fast as others write.
MAX_BEHIND = 256 * 1024
#: Clients at a time; the others wait in the listener's backlog.
MAX_CLIENTS = 500
#: Seconds for which a client may leave data unread, or its host may be silent.
PATIENCE = 60


@dataclass
class Join:
    """A client has come."""

    who: ActorRef[bytes]


@dataclass
class Say:
    """A client has said a line."""

    who: ActorRef[bytes]
    line: bytes


@dataclass
class Leave:
    """A client has gone."""

    who: ActorRef[bytes]


class Room(Actor[Join | Say | Leave]):
    """Knows who is here."""

    def __init__(self) -> None:
        self.names: dict[ActorRef[bytes], bytes] = {}
        self.numbers = itertools.count(1)

    def receive(self, message: Join | Say | Leave) -> None:
        """Tell everybody else."""
        match message:
            case Join(who):
                self.names[who] = name = b"guest-%d" % next(self.numbers)
                self.tell(who, b"* you are %b\n" % name)
                self.say(who, b"* %b is here\n" % name)
            case Say(who, line):
                self.say(who, b"%b: %b\n" % (self.names[who], line))
            case Leave(who):
                self.say(who, b"* %b has left\n" % self.names.pop(who))

    def say(self, speaker: ActorRef[bytes], line: bytes) -> None:
        """Tell all but one."""
        for client in self.names:
            if client is not speaker:
                self.tell(client, line)

    def tell(self, client: ActorRef[bytes], line: bytes) -> None:
        """Tell one, or disconnect it if its mailbox is full."""
        try:
            client.tell_nowait(line)
        except WouldBlockError:
            client.stop(0)


class Client(ConnectionActor[bytes, bytes, Buffer]):
    """One client: its lines go to the room, and the room's to it."""

    async def connected(self) -> None:
        """Join, and hear both sides."""
        room = self.system.whereis("room")
        assert room is not None
        self.room: ActorRef[Join | Say | Leave] = room
        self.stream.set_write_limits(MAX_BEHIND, limit=MAX_BEHIND)  # beyond it is disconnected
        await self.room.tell(Join(self.ref))
        self.stream.active(True)

    async def received(self, message: bytes) -> None:
        """Say a line."""
        await self.room.tell(Say(self.ref, message))

    def receive(self, message: bytes) -> None:
        """Hear a line."""
        self.stream.write(message)

    async def on_stop(self, reason: BaseException | None) -> None:  # noqa: ARG002
        """Leave.  A message, unlike the signal that watch() asks for, overtakes no line."""
        await self.room.tell(Leave(self.ref))


async def serve(sock: socket.socket) -> None:
    """Serve for ever."""

    def listener() -> Listener[bytes, Buffer]:
        return Listener(
            Client,
            sock,
            codec=functools.partial(Lines, max_length=MAX_LINE),
            capacity=1000,
            overflow=Overflow.FAIL,
            max_connections=MAX_CLIENTS,
        )

    async with ActorSystem() as system:
        system.spawn(Child(Room, capacity=1000, name="room"))
        system.spawn(Child(listener, capacity=1))
        await asyncio.Event().wait()


def main() -> None:
    """Parse the command line, listen and serve."""
    parser = argparse.ArgumentParser(description="A chat server of actors.")
    parser.add_argument("--backend", choices=["auto", "stackmap", "sockets"], default="auto")
    parser.add_argument("--listen", default="127.0.0.1:7000", metavar="HOST:PORT")
    options = parser.parse_args()
    host, _colon, number = options.listen.rpartition(":")
    with open_port(options.backend) as port, socket.create_server((host, int(number))) as sock:
        # Accepted sockets inherit these options.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)
        print(f"listening on {host}:{sock.getsockname()[1]}, backend {port.backend}", flush=True)
        with asyncio.Runner(loop_factory=functools.partial(EventLoop, port)) as runner:
            runner.run(serve(sock))


if __name__ == "__main__":
    main()
