"""A TCP echo server with so many layers: ``echo_layers.py ADDRESS PORT NIC KIND NUMBER``.

It is that of ``stackmap serve echo``, on rings: as a service (``filters``), behind so many filters
that do nothing; or as actors (``hops``), where so many messages between two actors carry a client's
message before it is sent back.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Any

from stackmap import open_port
from stackmap.actor import Actor, ActorRef, Child, ConnectionActor, Payload
from stackmap.codec import Buffer
from stackmap.servers.echo import Pieces, echo
from stackmap.servers.host import run_actors, run_service
from stackmap.service import AnyFilter, Service

_BACKLOG = 4096


class Through(AnyFilter):
    """Does nothing."""

    async def __call__(self, req: Any, service: Service[Any, Any], /) -> Any:
        """Pass on the request, and the reply."""
        return await service(req)


@dataclass
class Token:
    """A message on its way between two actors."""

    owner: ActorRef[Token]
    data: bytes
    hops: int


class Worker(Actor[Token]):
    """Sends each token back."""

    def receive(self, message: Token) -> None:
        """Count the hop."""
        message.hops -= 1
        message.owner.tell_nowait(message)


class Client(ConnectionActor[Token, Payload, Buffer]):
    """Owns a connection, and has its messages carried by tokens."""

    hops = 0

    def connected(self) -> None:
        """Take everything; there is one worker for all."""
        self._worker: ActorRef[Token] = self.system.whereis("worker") or self.system.spawn(
            Child(Worker, capacity=_BACKLOG, name="worker")
        )
        self.stream.active(True)

    def received(self, message: Payload) -> None:
        """Send it back, or on its way."""
        if self.hops:
            self._worker.tell_nowait(Token(self.ref, message.detach(), self.hops - 1))
        else:
            self.send(message.view)

    def receive(self, message: Token) -> None:
        """Send it back when it has made all its hops."""
        if message.hops > 0:
            message.hops -= 1
            self._worker.tell_nowait(message)
        else:
            self.send(message.data)


def serve(address: str, port_number: int, nic: str, kind: str, number: int) -> None:
    """Serve until SIGTERM.

    Args:
        address: where to listen.
        port_number: the same.
        nic: whose rings to use.
        kind: ``"filters"`` or ``"hops"``.
        number: how many; hops are there and back, so an even number.
    """
    sock = socket.create_server((address, port_number), backlog=_BACKLOG)
    with open_port("stackmap", nic) as port, sock:
        print("listening", flush=True)
        if kind == "filters":
            service: Service[bytes, bytes | None] = echo
            for _ in range(number):
                service = Through().and_then(service)
            run_service(port, sock, service, Pieces)
        else:
            Client.hops = number
            run_actors(port, sock, Client)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
