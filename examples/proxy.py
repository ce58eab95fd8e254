"""A TCP proxy: what one side sends, the other receives, each direction until its own end.

    python examples/proxy.py --listen 127.0.0.1:8080 --to 127.0.0.1:80

It shows forwarding without a copy, flow control from end to end, half close, and connecting
without blocking.  The proxy holds what is under way and nothing else: while one side does not read,
nothing is taken from the other, whose TCP window closes.
"""

from __future__ import annotations

import argparse
import errno
import selectors
import socket
from typing import Any

from stackmap import Event, Port, open_port

#: Sockets at a time, two for each client; other clients wait in the listener's backlog.
MAX_SOCKETS = 1000
#: Seconds to connect, and for which either side may leave data unread or its host may be silent.
PATIENCE = 60


class Proxy:
    """All pairs of connections on one port.

    ``app`` of each connection is the other one of its pair.
    """

    to: Any  # an address, whose form depends on the family

    def __init__(self, port: Port, listener: socket.socket, to: tuple[str, int]) -> None:
        self.port = port
        self.listener = listener
        family, kind, protocol, _name, self.to = socket.getaddrinfo(*to, type=socket.SOCK_STREAM)[0]
        self.kind = (family, kind, protocol)
        self.sockets = 0
        # A port waits for files that can be read, and a socket that has connected is one that can
        # be written to.  But a selector is a file itself, which can be read when one of its sockets
        # is ready.
        self.connecting = selectors.EpollSelector()
        port.watch(self.connecting, self.connected)
        port.watch(listener, self.accept)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for segment in self.port.exchange(timeout=None):
                here, there = segment.connection, segment.connection.app
                if not segment.event:
                    there.forward(segment)
                    if there.pending:
                        here.pause_reading()
                if segment.event & Event.EOF:
                    there.shutdown_write()
                if segment.event & Event.WRITABLE:
                    there.resume_reading()
                if segment.event & Event.ERROR:
                    there.abort()
                if segment.event & Event.CLOSED:
                    self.gone(1)

    def accept(self) -> None:
        """Take one client from the backlog, and begin to connect on its behalf.

        The client is attached only then: what it sends meanwhile waits in its socket.
        """
        client, _address = self.listener.accept()
        server = socket.socket(*self.kind)
        server.setblocking(False)
        for sock in (client, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)
        self.sockets += 2
        if self.sockets >= MAX_SOCKETS:
            self.port.unwatch(self.listener)
        error = server.connect_ex(self.to)
        if error in (0, errno.EINPROGRESS):
            self.connecting.register(server, selectors.EVENT_WRITE, client)
        else:
            self.give_up(client, server)

    def connected(self) -> None:
        """Some connects have ended: join the two sides of those that succeeded."""
        for key, _events in self.connecting.select(0):
            client, server = key.data, key.fileobj
            assert isinstance(server, socket.socket)
            self.connecting.unregister(server)
            if server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.give_up(client, server)
                continue
            try:
                one = self.port.attach(client)
            except OSError:  # the client has gone meanwhile, or the port is full
                self.give_up(client, server)
                continue
            one.app = one  # until there is another
            try:
                other = self.port.attach(server)
            except OSError:
                one.abort()
                self.give_up(server)
                continue
            one.app, other.app = other, one

    def give_up(self, *socks: socket.socket) -> None:
        """Close sockets that were not attached."""
        for sock in socks:
            sock.close()
        self.gone(len(socks))

    def gone(self, number: int) -> None:
        """So many sockets are closed: if that makes room, listen again."""
        was_full = self.sockets >= MAX_SOCKETS
        self.sockets -= number
        if was_full and self.sockets < MAX_SOCKETS:
            self.port.watch(self.listener, self.accept)


def main() -> None:
    """Parse the command line, listen and serve."""
    parser = argparse.ArgumentParser(description="A half-closing TCP proxy.")
    parser.add_argument("--backend", choices=["auto", "stackmap", "sockets"], default="auto")
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    host, _colon, number = options.listen.rpartition(":")
    to_host, _colon, to_number = options.to.rpartition(":")
    with open_port(options.backend) as port, socket.create_server((host, int(number))) as listener:
        proxy = Proxy(port, listener, (to_host, int(to_number)))
        number = listener.getsockname()[1]
        print(f"listening on {host}:{number}, backend {port.backend}", flush=True)
        proxy.run()


if __name__ == "__main__":
    main()
