"""An RPC server: numbered requests, answered as they get done by a pool of threads.

    python examples/rpc_server.py --listen 127.0.0.1:9000

A message is a header of two 32-bit numbers in network byte order, the size of its payload and the
request's number, and the payload.  The reply has the number of its request; replies come in any
order.  This service answers with the SHA-256 of what it was sent.

It shows framing, work in other threads, and back-pressure.  A client that asks for more than
is done, or does not read its replies, is not read from until it has caught up; then its own TCP
makes it wait.  What one client can make the server hold is bounded: its requests in work, their
replies, the start of a frame, and what one exchange brings.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import socket
import struct
from concurrent.futures import Future, ThreadPoolExecutor

from stackmap import Connection, Event, Port, open_port

HEADER = struct.Struct("!II")
#: Bytes of a payload; a client that announces more is disconnected.
MAX_FRAME = 64 * 1024
#: Requests of one client that are in work, or wait for a thread.
MAX_IN_FLIGHT = 8
#: Clients at a time; the others wait in the listener's backlog.
MAX_CLIENTS = 500
#: Seconds for which a client may leave replies unread, or its host may be silent.
PATIENCE = 60


def handle(payload: bytes) -> bytes:
    """The service itself.  Runs in a thread of the pool."""
    return hashlib.sha256(payload).digest()


class FrameTooLargeError(Exception):
    """A client announced a payload that is too large."""


class Client:
    """One client: what it has sent that is not in work yet, and how much is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.received = bytearray()
        self.in_flight = 0
        self.has_ended = False  # it sends no more requests
        self.is_gone = False

    @property
    def is_busy(self) -> bool:
        """It has asked for enough, or does not read its replies: nothing more is begun."""
        return self.in_flight >= MAX_IN_FLIGHT or self.connection.pending > 0

    def next_request(self) -> tuple[int, bytes] | None:
        """Take the number and the payload of the next request, if all of it is here.

        Raises:
            FrameTooLargeError: it announces more than MAX_FRAME bytes.
        """
        if len(self.received) < HEADER.size:
            return None
        size, number = HEADER.unpack_from(self.received)
        if size > MAX_FRAME:
            raise FrameTooLargeError
        end = HEADER.size + size
        if len(self.received) < end:
            return None
        payload = bytes(self.received[HEADER.size : end])
        del self.received[:end]
        return number, payload


class RpcServer:
    """All clients on one port."""

    def __init__(self, port: Port, sock: socket.socket, pool: ThreadPoolExecutor) -> None:
        self.port = port
        self.pool = pool
        self.listener = port.attach_listener(sock)
        self.clients = 0
        # A port is for one thread: the others leave results here, and wake it.
        self.done: collections.deque[tuple[Client, int, Future[bytes]]] = collections.deque()
        port.watch(self.listener, self.accept)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for segment in self.port.exchange(timeout=None):
                client = segment.connection.app
                if segment.event & Event.CLOSED:
                    self.closed(client)
                elif not client.is_gone:
                    if not segment.event:
                        client.received += segment.view
                    client.has_ended |= bool(segment.event & Event.EOF)
                    self.go_on(client)
            self.reply()

    def accept(self) -> None:
        """Take one client from the backlog, and stop listening at the limit."""
        connection = self.listener.accept()
        connection.app = Client(connection)
        self.clients += 1
        if self.clients == MAX_CLIENTS:
            self.port.unwatch(self.listener)

    def closed(self, client: Client) -> None:
        """A connection is gone; the replies to what is in work for it will not be sent."""
        client.is_gone = True
        if self.clients == MAX_CLIENTS:
            self.port.watch(self.listener, self.accept)
        self.clients -= 1

    def go_on(self, client: Client) -> None:
        """Begin what can be begun now, and read on only if that is all that was received."""
        try:
            while not client.is_busy and (request := client.next_request()):
                self.begin(client, *request)
        except FrameTooLargeError:
            self.drop(client)
            return
        if client.is_busy:
            client.connection.pause_reading()
            return
        client.connection.resume_reading()
        if client.has_ended and not client.in_flight:
            client.connection.close()

    def drop(self, client: Client) -> None:
        """Disconnect a client at once; its connection is counted until the port says CLOSED."""
        client.is_gone = True
        client.received.clear()
        client.connection.abort()

    def begin(self, client: Client, number: int, payload: bytes) -> None:
        """Give a request to the pool."""
        client.in_flight += 1

        def finished(future: Future[bytes]) -> None:  # in a thread of the pool
            self.done.append((client, number, future))
            self.port.wakeup()

        self.pool.submit(handle, payload).add_done_callback(finished)

    def reply(self) -> None:
        """Send what is done, and go on with the clients that waited for it."""
        while self.done:
            client, number, future = self.done.popleft()
            client.in_flight -= 1
            if client.is_gone:
                continue
            if future.exception():
                self.drop(client)
                continue
            result = future.result()
            client.connection.writelines([HEADER.pack(len(result), number), result])
            self.go_on(client)


def main() -> None:
    """Parse the command line, listen and serve."""
    parser = argparse.ArgumentParser(description="A length-prefixed RPC server.")
    parser.add_argument("--backend", choices=["auto", "stackmap", "sockets"], default="auto")
    parser.add_argument("--listen", default="127.0.0.1:9000", metavar="HOST:PORT")
    options = parser.parse_args()
    host, _colon, number = options.listen.rpartition(":")
    with (
        open_port(options.backend) as port,
        socket.create_server((host, int(number))) as sock,
        ThreadPoolExecutor() as pool,
    ):
        # Accepted sockets inherit these options.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)
        server = RpcServer(port, sock, pool)
        print(f"listening on {host}:{sock.getsockname()[1]}, backend {port.backend}", flush=True)
        server.run()


if __name__ == "__main__":
    main()
