"""The queue that connections of every backend have."""

from __future__ import annotations

import socket

from stackmap import Connection
from stackmap._connection import Buffer


class Stub(Connection):
    """A backend that takes nothing until it is told what comes of the next call."""

    __slots__ = ("fails", "gives_back", "log", "takes")

    def __init__(self) -> None:
        super().__init__(socket.socket(), 1)
        self.sock.close()
        self.takes = 0
        self.fails = False
        self.gives_back = b""
        self.log: list[bytes | str] = []

    def _send(self, data: Buffer) -> int:
        if self.fails:
            self._drop_queue()
        if self.gives_back:
            self._requeue(self.gives_back)
            self.gives_back = b""
        taken = min(self.takes, len(data))
        if taken:
            self.log.append(bytes(data[:taken]))
        return taken

    def _send_fin(self) -> None:
        self.log.append("FIN")

    def _release(self) -> None:
        self.log.append("closed")

    def _reset(self) -> None:
        """Not of interest here."""

    def _apply_pause(self) -> None:
        """Not of interest here."""

    def _apply_credits(self, more: int | None) -> None:
        """Not of interest here."""

    def _prepare_report(self) -> None:
        """Not of interest here."""

    def _request_report(self) -> None:
        self.log.append("report")

    def _report_written(self) -> bool:
        return False

    @property
    def unsynced(self) -> int:
        return 0

    def _unsent_by_backend(self) -> int:
        """Not of interest here."""
        return 0


def test_bytes_given_back_by_the_backend_go_first() -> None:
    connection = Stub()
    connection.write(b"second")
    connection.write(b"third")
    connection.takes, connection.gives_back = 3, b"first"
    assert not connection._flush()
    assert connection.pending == 5 + 3 + 5
    connection.takes = 100
    assert connection._flush()
    assert connection.log == [b"sec", b"first", b"ond", b"third"]
    assert connection.pending == 0


def test_a_queue_that_is_dropped_while_it_is_sent_is_empty() -> None:
    for taken in (0, 2, 100):
        connection = Stub()
        connection.write(b"never")
        connection.write(b"ever")
        connection.takes, connection.fails = taken, True
        assert not connection._flush(), "it is not what WRITABLE says"
        assert connection.pending == 0
        assert not connection._waiting


def test_a_close_that_waited_for_a_dropped_queue_happens() -> None:
    connection = Stub()
    connection.write(b"never")
    connection.close()
    assert connection.log == []
    connection.takes, connection.fails = 100, True
    connection._flush()
    assert connection.log == [b"never", "closed"]
