"""A server on rings that does what a test says, step by step, and keeps a log per connection."""

from __future__ import annotations

import socket
import sys
from dataclasses import asdict
from typing import Any

from stackmap import Connection, Event
from tests.lab.programs.controlled import Commands
from tests.lab.programs.overwriting import OverwritingPort
from tests.lab.programs.streams import Stream, WrongBytesError

_ENDLESS = 1 << 40


class Peer:
    """One connection, and what has happened on it."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.outgoing = Stream(f"server {number}", _ENDLESS)
        self.incoming = Stream(f"client {number}", _ENDLESS)
        #: ``["data", bytes]`` and ``[event, errno]`` in order; data in a row is added up.  How
        #: often sending had to wait depends on the time, so WRITABLE is left out.
        self.log: list[list[Any]] = []
        self.problem = ""
        self.submitted: list[int] = []

    def data(self, data: bytes) -> None:
        try:
            self.incoming.check(data)
        except WrongBytesError as wrong:
            self.problem = self.problem or str(wrong)
        if self.log and self.log[-1][0] == "data":
            self.log[-1][1] += len(data)
        else:
            self.log.append(["data", len(data)])


class Server:
    """Obeys ``do_`` methods; takes and gives data in between."""

    def __init__(self, port: OverwritingPort, listener: socket.socket) -> None:
        self.port = port
        self.listener = listener
        self.commands = Commands(self)
        self.peers: list[Peer] = []
        self.by_connection: dict[Connection, Peer] = {}
        self.holding = self.stopped = False

    def run(self) -> None:
        self.port.watch(self.commands, self.commands.read)
        while not self.stopped:
            if self.holding:
                self.commands.read()
            else:
                self.exchange()
            self.commands.obey()

    def exchange(self, timeout: float | None = None) -> None:
        for segment in self.port.exchange(timeout):
            peer = self.by_connection[segment.connection]
            if not segment.event:
                peer.data(bytes(segment.view))
                continue
            for event in Event:
                if segment.event & event & ~Event.WRITABLE:
                    peer.log.append([event.name, segment.errno])

    def do_accept(self) -> int:
        sock, _address = self.listener.accept()
        peer = Peer(self.port.attach(sock), len(self.peers))
        self.peers.append(peer)
        self.by_connection[peer.connection] = peer
        return len(self.peers) - 1

    def do_write(self, peer: int, size: int) -> list[int]:
        """Returns the buffers that the kernel took."""
        before = len(self.port.submitted)
        outgoing = self.peers[peer].outgoing
        while size:
            data = outgoing.peek(size)
            outgoing.position += len(data)
            size -= len(data)
            self.peers[peer].connection.write(data)
            self.port.scribble()
        self.exchange(0.0)
        return self.port.submitted[before:]

    def do_shutdown_write(self, peer: int) -> None:
        self.peers[peer].connection.shutdown_write()

    def do_close(self, peer: int) -> None:
        self.peers[peer].connection.close()

    def do_abort(self, peer: int) -> None:
        self.peers[peer].connection.abort()

    def do_pause_reading(self, peer: int) -> None:
        self.peers[peer].connection.pause_reading()

    def do_resume_reading(self, peer: int) -> None:
        self.peers[peer].connection.resume_reading()

    def do_hold(self) -> None:
        """Do not go near the rings until told."""
        self.holding = True

    def do_go_on(self) -> None:
        self.holding = False

    def do_state(self, peer: int) -> dict[str, Any]:
        state = self.peers[peer]
        return {
            "received": state.incoming.position,
            "pending": state.connection.pending,
            "log": state.log,
            "problem": state.problem,
        }

    def do_stats(self) -> dict[str, Any]:
        return {**asdict(self.port.stats()), "overwritten": self.port.overwritten}

    def do_owned(self) -> list[int]:
        """The buffers that are the application's."""
        return sorted(self.port.owned())

    def do_quit(self) -> None:
        self.stopped = True


def main() -> None:
    listen, slots = map(int, sys.argv[1:])
    with (
        OverwritingPort("eth0", tx_slots=slots, rx_slots=slots) as port,
        socket.create_server(("10.77.0.1", listen)) as listener,
    ):
        print("listening", flush=True)
        Server(port, listener).run()


if __name__ == "__main__":
    main()
