"""A client on plain sockets that does what a test says, step by step."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
from typing import Any

from tests.lab.programs.controlled import Commands
from tests.lab.programs.streams import Stream, WrongBytesError
from tests.reset import reset_on_close

_ENDLESS = 1 << 40
_MOST = 65536


class Peer:
    """One connection, and what has happened on it."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.outgoing = Stream(f"client {number}", _ENDLESS)
        self.incoming = Stream(f"server {number}", _ENDLESS)
        self.quota = 0
        self.ended = ""
        self.problem = ""

    def send(self) -> None:
        while self.quota:
            try:
                sent = self.sock.send(self.outgoing.peek(min(self.quota, _MOST)))
            except BlockingIOError:
                return
            self.outgoing.position += sent
            self.quota -= sent

    def receive(self) -> bool:
        """False when there is nothing more to come."""
        try:
            data = self.sock.recv(_MOST)
        except OSError as failure:
            self.ended = errno.errorcode[failure.errno or 0]
            return False
        try:
            self.incoming.check(data)
        except WrongBytesError as wrong:
            self.problem = self.problem or str(wrong)
        if not data:
            self.ended = "EOF"
        return bool(data)


class Client:
    """Obeys ``do_`` methods; takes and gives data in between."""

    def __init__(self) -> None:
        self.commands = Commands(self)
        self.peers: list[Peer] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.commands, selectors.EVENT_READ)
        self.stopped = False

    def run(self) -> None:
        while not self.stopped:
            for key, events in self.selector.select():
                if key.data is None:
                    self.commands.read()
                    continue
                if events & selectors.EVENT_READ and not key.data.receive():
                    self.watch(key.data, reading=False)
                elif events & selectors.EVENT_WRITE:
                    key.data.send()
                    if not key.data.quota:
                        self.watch(key.data)
            self.commands.obey()

    def watch(self, peer: Peer, *, reading: bool = True) -> None:
        with contextlib.suppress(KeyError):
            self.selector.unregister(peer.sock)
        events = selectors.EVENT_READ if reading and not peer.ended else 0
        events |= selectors.EVENT_WRITE if peer.quota else 0
        if events:
            self.selector.register(peer.sock, events, peer)

    def do_connect(self, port: int) -> int:
        sock = socket.create_connection(("10.77.0.1", port))
        sock.setblocking(False)
        self.peers.append(Peer(sock, len(self.peers)))
        self.watch(self.peers[-1])
        return len(self.peers) - 1

    def do_send(self, peer: int, size: int) -> None:
        """Send this many bytes as soon as TCP takes them."""
        self.peers[peer].quota += size
        self.peers[peer].send()
        self.watch(self.peers[peer])

    def do_send_with_fin(self, peer: int, size: int) -> None:
        """Send a few bytes in one segment with FIN."""
        sock = self.peers[peer].sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.do_send(peer, size)
        sock.shutdown(socket.SHUT_WR)

    def do_shutdown_write(self, peer: int) -> None:
        self.peers[peer].sock.shutdown(socket.SHUT_WR)

    def do_reset(self, peer: int) -> None:
        """Close with RST."""
        self.watch(self.peers[peer], reading=False)
        sock = self.peers[peer].sock
        reset_on_close(sock)
        sock.close()

    def do_state(self, peer: int) -> dict[str, Any]:
        state = self.peers[peer]
        return {
            "sent": state.outgoing.position,
            "unsent": state.quota,
            "received": state.incoming.position,
            "ended": state.ended,
            "problem": state.problem,
        }

    def do_quit(self) -> None:
        self.stopped = True


if __name__ == "__main__":
    Client().run()
