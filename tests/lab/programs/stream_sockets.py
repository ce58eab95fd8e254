"""The client of a bulk transfer, on plain sockets: sends and checks a stream on every connection.

With ``--wait`` it reads nothing until a line comes in on standard input.  The last ``--stuck``
connections are never read.  Prints what happened, as JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import selectors
import socket
import sys
import time

from tests.lab.programs.streams import Stream, WrongBytesError

_MOST = 65536


class Transfer:
    """All connections of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.selector = selectors.DefaultSelector()
        self.sending: dict[socket.socket, Stream] = {}
        self.receiving: dict[socket.socket, Stream] = {}
        self.stuck: list[socket.socket] = []
        self.problems: list[str] = []
        self.sent = self.received = 0

    def connect(self) -> None:
        arguments = self.arguments
        for number in range(arguments.connections + arguments.stuck):
            sock = socket.create_connection(
                ("10.77.0.1", arguments.connect),
                source_address=("10.77.0.2", arguments.base_port + number),
            )
            if number >= arguments.connections:
                self.stuck.append(sock)
                continue
            sock.setblocking(False)
            self.sending[sock] = Stream(f"client {number}", arguments.send)
            self.receiving[sock] = Stream(f"server {number}", arguments.receive)
            self.selector.register(sock, selectors.EVENT_WRITE, sock)

    def watch(self, sock: socket.socket) -> None:
        """Wait for what this connection still has to do; close it if that is nothing."""
        events = selectors.EVENT_WRITE if sock in self.sending else 0
        events |= selectors.EVENT_READ if sock in self.receiving else 0
        if events:
            self.selector.modify(sock, events, sock)
        else:
            self.selector.unregister(sock)
            sock.close()

    def run(self) -> None:
        if self.arguments.wait:
            select.select([sys.stdin], [], [])
        for sock in self.receiving:
            self.watch(sock)
        while self.receiving or self.sending:
            for key, events in self.selector.select():
                sock = key.data
                if events & selectors.EVENT_READ:
                    self.read(sock)
                if events & selectors.EVENT_WRITE and sock in self.sending:
                    self.write(sock)

    def write(self, sock: socket.socket) -> None:
        stream = self.sending[sock]
        if stream.left:
            sent = sock.send(stream.peek(_MOST))
            stream.position += sent
            self.sent += sent
        if not stream.left:
            sock.shutdown(socket.SHUT_WR)
            del self.sending[sock]
            self.watch(sock)

    def read(self, sock: socket.socket) -> None:
        stream = self.receiving[sock]
        data = sock.recv(_MOST)
        self.received += len(data)
        try:
            stream.check(data)
        except WrongBytesError as wrong:
            self.problems.append(str(wrong))
        if not data:
            if stream.left:
                self.problems.append(f"{stream.name}: ended {stream.left} bytes early")
            del self.receiving[sock]
            self.watch(sock)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connect", type=int, required=True)
    parser.add_argument("--base-port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--send", type=int, default=0, help="bytes on every connection")
    parser.add_argument("--receive", type=int, default=0, help="bytes on every connection")
    parser.add_argument("--stuck", type=int, default=0, help="further connections, never read")
    parser.add_argument("--wait", action="store_true", help="do not read before a line of input")
    transfer = Transfer(parser.parse_args())
    transfer.connect()
    print("connected", flush=True)
    start = time.monotonic()
    transfer.run()
    print(
        json.dumps(
            {
                "sent": transfer.sent,
                "received": transfer.received,
                "problems": transfer.problems,
                "seconds": time.monotonic() - start,
            }
        ),
        flush=True,
    )
    for sock in transfer.stuck:
        sock.close()


if __name__ == "__main__":
    main()
