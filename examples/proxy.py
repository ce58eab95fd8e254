"""A TCP proxy: what one side sends, the other receives, each direction until its own end.

    python examples/proxy.py --listen 127.0.0.1:8080 --to 127.0.0.1:80

It shows forwarding without a copy, flow control from end to end, half close, and connecting
without blocking.  The proxy holds what is under way and nothing else: while one side does not read,
nothing is taken from the other, whose TCP window closes.
"""

from __future__ import annotations

import argparse
import socket

from stackmap import Event, Port, open_port

#: Sockets at a time, two for each client; other clients wait in the listener's backlog.
MAX_SOCKETS = 1000
#: Seconds to connect, and for which either side may leave data unread or its host may be silent.
PATIENCE = 60


class Proxy:
    """All pairs of connections on one port.

    ``app`` of each connection is the other one of its pair.
    """

    def __init__(self, port: Port, listener: socket.socket, to: tuple[str, int]) -> None:
        self.port = port
        self.listener = listener
        # Names are looked up once: a port connects to addresses.
        host, number = socket.getaddrinfo(*to, type=socket.SOCK_STREAM)[0][4][:2]
        self.to = (str(host), int(number))
        self.sockets = 0
        self.accepting = False
        self.count(0)

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
                    self.count(-1)

    def accept(self) -> None:
        """Take one client from the backlog, and begin to connect on its behalf.

        What it sends meanwhile waits in the queue of the other connection, until that is connected;
        it is not read from any more then.
        """
        client, _address = self.listener.accept()
        try:
            here = self.port.attach(client)
        except OSError:  # the client has gone meanwhile, or the port is full
            client.close()
            return
        self.count(1)
        here.app = here  # until there is another
        try:
            there = self.port.connect(self.to)
        except OSError:  # no socket is left
            here.abort()
            return
        self.count(1)
        here.app, there.app = there, here
        for sock in (here.sock, there.sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)

    def count(self, change: int) -> None:
        """Count connections; accept while there is room for a pair."""
        self.sockets += change
        accepting = self.sockets <= MAX_SOCKETS - 2
        if accepting and not self.accepting:
            self.port.watch(self.listener, self.accept)
        elif self.accepting and not accepting:
            self.port.unwatch(self.listener)
        self.accepting = accepting


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
