"""A chat server: every line that a client sends goes to all others.

    python examples/chat.py --listen 127.0.0.1:7000
    nc 127.0.0.1 7000

It shows one writer, many readers.  Nobody can be made to wait for the slowest reader here, as
a proxy makes a sender wait, because then one client that does not read would silence the others.
So a client that falls too far behind is disconnected, and memory stays bounded.
"""

from __future__ import annotations

import argparse
import socket
from itertools import count

from stackmap import Connection, Event, Port, open_port

#: Bytes of one line; a client that sends a longer one is disconnected.
MAX_LINE = 1024
#: Bytes that may wait in memory for a client that does not read as fast as others write.
MAX_BEHIND = 256 * 1024
#: Clients at a time; the others wait in the listener's backlog.
MAX_CLIENTS = 500
#: Seconds for which a client may leave data unread, or its host may be silent.
PATIENCE = 60


class Client:
    """One client, until it leaves."""

    def __init__(self, connection: Connection, name: bytes) -> None:
        self.connection = connection
        self.name = name
        self.line = bytearray()  # that it has begun


class Chat:
    """All clients on one port."""

    def __init__(self, port: Port, sock: socket.socket) -> None:
        self.port = port
        self.listener = port.attach_listener(sock)
        self.clients: dict[Connection, Client] = {}
        self.late: set[Client] = set()  # to be disconnected
        self.open = 0  # connections, those that are being closed included
        self.numbers = count(1)
        port.watch(self.listener, self.accept)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for segment in self.port.exchange(timeout=None):
                client = self.clients.get(segment.connection)
                if client and not segment.event:
                    self.receive(client, segment.view)
                elif client and segment.event & (Event.EOF | Event.CLOSED):
                    self.leave(client)
                if segment.event & Event.CLOSED:
                    self.closed()
                while self.late:
                    self.leave(self.late.pop(), at_once=True)

    def accept(self) -> None:
        """Take one client from the backlog, and stop listening at the limit."""
        connection = self.listener.accept()
        client = Client(connection, b"guest-%d" % next(self.numbers))
        self.clients[connection] = client
        self.open += 1
        if self.open == MAX_CLIENTS:
            self.port.unwatch(self.listener)
        connection.write(b"* you are %s\n" % client.name)
        self.say(b"* %s is here\n" % client.name, but=client)

    def receive(self, client: Client, data: memoryview) -> None:
        """Pass on the lines that are complete; keep the start of the next one."""
        *lines, client.line = (client.line + data).split(b"\n")
        for line in lines:
            if len(line) <= MAX_LINE:
                self.say(b"%s: %s\n" % (client.name, line), but=client)
        if max(map(len, [*lines, client.line])) > MAX_LINE:
            client.connection.write(b"* a line has at most %d bytes: goodbye\n" % MAX_LINE)
            self.leave(client)

    def say(self, line: bytes, *, but: Client | None = None) -> None:
        """Send a line to everybody but one, and note who does not keep up."""
        for client in self.clients.values():
            if client is not but:
                client.connection.write(line)
                if client.connection.pending > MAX_BEHIND:
                    self.late.add(client)

    def leave(self, client: Client, *, at_once: bool = False) -> None:
        """Disconnect a client and tell the others.

        What it was sent is still delivered, unless ``at_once``.  What it had begun to say is not.
        """
        del self.clients[client.connection]
        self.late.discard(client)
        if at_once:
            client.connection.abort()
        else:
            client.connection.close()
        self.say(b"* %s has left\n" % client.name)

    def closed(self) -> None:
        """A connection is gone, and another may come."""
        self.open -= 1
        if self.open == MAX_CLIENTS - 1:
            self.port.watch(self.listener, self.accept)


def main() -> None:
    """Parse the command line, listen and serve."""
    parser = argparse.ArgumentParser(description="A chat server.")
    parser.add_argument("--backend", choices=["auto", "stackmap", "sockets"], default="auto")
    parser.add_argument("--listen", default="127.0.0.1:7000", metavar="HOST:PORT")
    options = parser.parse_args()
    host, _colon, number = options.listen.rpartition(":")
    with open_port(options.backend) as port, socket.create_server((host, int(number))) as sock:
        # Accepted sockets inherit these options.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)
        chat = Chat(port, sock)
        print(f"listening on {host}:{sock.getsockname()[1]}, backend {port.backend}", flush=True)
        chat.run()


if __name__ == "__main__":
    main()
