"""The server of a bulk transfer, on rings: sends and checks a stream on every connection.

Prints ``listening``, ``connected``, ``stalled`` whenever TCP takes nothing for a second,
``progress N`` for every tenth of what it has to send, and at the end what happened, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from dataclasses import asdict

from stackmap import Connection, Event
from tests.lab.programs.overwriting import OverwritingPort
from tests.lab.programs.streams import Stream, WrongBytesError

_MOST = 32768
_PATIENCE = 60.0


class Transfer:
    """All connections of one run."""

    def __init__(self, arguments: argparse.Namespace, port: OverwritingPort) -> None:
        self.arguments = arguments
        self.port = port
        self.open: set[Connection] = set()
        self.sending: dict[Connection, Stream] = {}
        self.receiving: dict[Connection, Stream] = {}
        self.problems: list[str] = []
        self.ended_early = 0
        self.sent = self.received = 0

    def accept(self, listener: socket.socket) -> None:
        sock, address = listener.accept()
        number = address[1] - self.arguments.base_port
        connection = self.port.attach(sock)
        self.open.add(connection)
        self.sending[connection] = Stream(f"server {number}", self.arguments.send)
        self.receiving[connection] = Stream(f"client {number}", self.arguments.receive)

    def run(self) -> None:
        """Until every connection is closed, or its client has gone."""
        tenths = 0
        total = self.arguments.send * len(self.open)
        while self.open:
            self.write()
            if total and self.sent * 10 // total > tenths:
                tenths = self.sent * 10 // total
                print("progress", tenths, flush=True)
            waiting = all(connection.pending for connection in self.sending)
            segments = self.port.exchange(1.0 if waiting else 0.0)
            if waiting and self.sending and not segments:
                print("stalled", flush=True)
            for segment in segments:
                if segment.event:
                    self.event(segment.connection, segment.event, segment.errno)
                else:
                    self.take(segment.connection, bytes(segment.view))

    def write(self) -> None:
        for connection, stream in list(self.sending.items()):
            if connection.pending:
                continue
            if stream.left:
                data = stream.some(_MOST)
                self.sent += len(data)
                connection.write(data)
                self.port.scribble()
            if not stream.left:
                connection.shutdown_write()
                del self.sending[connection]
                self.close_if_done(connection)

    def take(self, connection: Connection, data: bytes) -> None:
        self.received += len(data)
        try:
            self.receiving[connection].check(data)
        except WrongBytesError as wrong:
            self.problems.append(str(wrong))

    def event(self, connection: Connection, event: Event, code: int) -> None:
        if event & Event.EOF:
            stream = self.receiving.pop(connection)
            if stream.left:
                self.problems.append(f"{stream.name}: ended {stream.left} bytes early")
            self.close_if_done(connection)
        if event & Event.ERROR:
            unsent = self.sending.pop(connection, None)
            self.receiving.pop(connection, None)
            if self.arguments.may_reset:
                self.ended_early += 1
            else:
                self.problems.append(f"{unsent and unsent.name}: {os.strerror(code)}")
        if event & Event.CLOSED:
            self.open.discard(connection)

    def close_if_done(self, connection: Connection) -> None:
        if connection not in self.sending and connection not in self.receiving:
            connection.close()

    def result(self) -> dict[str, object]:
        """Once the last buffers are released, what happened."""
        deadline = time.monotonic() + _PATIENCE
        while self.port.stats().bufs_pinned and time.monotonic() < deadline:
            self.port.exchange(0.1)
        return {
            "sent": self.sent,
            "received": self.received,
            "problems": self.problems,
            "ended_early": self.ended_early,
            "overwritten": self.port.overwritten,
            "stats": asdict(self.port.stats()),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--base-port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--send", type=int, default=0, help="bytes on every connection")
    parser.add_argument("--receive", type=int, default=0, help="bytes on every connection")
    parser.add_argument("--may-reset", action="store_true", help="clients may go early")
    arguments = parser.parse_args()
    with (
        OverwritingPort("eth0") as port,
        socket.create_server(("10.77.0.1", arguments.listen), backlog=128) as listener,
    ):
        print("listening", flush=True)
        transfer = Transfer(arguments, port)
        for _ in range(arguments.connections):
            transfer.accept(listener)
        print("connected", flush=True)
        transfer.run()
        print(json.dumps(transfer.result()), flush=True)


if __name__ == "__main__":
    main()
