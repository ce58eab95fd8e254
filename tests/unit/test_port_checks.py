"""``check_port()``: ports on sockets pass, and a port with a defect is found out."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import Event, SocketPort
from stackmap.testing import PORT_CHECKS, ConformanceError, _port_checks, check_port

if TYPE_CHECKING:
    from stackmap import Port, Segment


def connect() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        return peer, listener.accept()[0]


@pytest.mark.parametrize("name", PORT_CHECKS)
def test_ports_on_sockets(name: str) -> None:
    check_port(SocketPort, connect, {name: PORT_CHECKS[name]})


# -- defects --


def shown(segment: Any, view: memoryview) -> Any:
    """A segment that shows something else."""
    return SimpleNamespace(
        connection=Wrong.of.get(segment.connection, segment.connection),
        view=view, event=segment.event, errno=segment.errno, real=segment,
    )  # fmt: skip


class Defect(SocketPort):
    """Does something wrong with its connections, or with what it returns."""

    def attach(self, sock: socket.socket) -> Any:
        return Wrong(self, super().attach(sock))

    def wrong(self, segments: list[Segment]) -> list[Any]:
        return list(segments)

    def exchange(self, timeout: float | None = 0.0) -> list[Any]:
        segments = self.wrong(super().exchange(timeout))
        return [shown(each, each.view) for each in segments]

    def keep(self, segment: Any, **options: Any) -> Any:
        return super().keep(segment.real, **options)


class Wrong:
    """A connection of such a port; a subclass of the port says what is wrong with it."""

    of: dict[Any, Wrong] = {}  # noqa: RUF012 (a test's)

    def __init__(self, port: Defect, connection: Any) -> None:
        self.port, self.connection = port, connection
        self.of[connection] = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, f"wrong_{name}", None) or getattr(self.connection, name)

    def write(self, data: Any, **options: Any) -> None:
        change = getattr(self.port, "written", bytes)
        try:
            self.connection.write(change(data), **options)
        except BrokenPipeError:
            if not isinstance(self.port, TakesWritesWhenClosed):
                raise


class LosesAByte(Defect):
    def written(self, data: Any) -> bytes:
        return bytes(data[:-1] if len(data) > 4096 else data)


class LosesASegment(Defect):
    def wrong(self, segments: list[Segment]) -> list[Any]:
        return [each for each in segments if each.event or len(each.view) != 4]


class ShowsWritableViews(Defect):
    def wrong(self, segments: list[Segment]) -> list[Any]:
        return [shown(each, memoryview(bytearray(each.view))) for each in segments]


class LeavesViews(Defect):
    def wrong(self, segments: list[Segment]) -> list[Any]:
        return [shown(each, memoryview(bytes(each.view))) for each in segments]

    def keep(self, segment: Any, **_options: Any) -> Any:
        return SimpleNamespace(view=segment.view, release=lambda: None)


class DoesNotPause(Defect):
    def wrong_pause_reading(self) -> None:
        pass


class IgnoresGrants(Defect):
    def wrong_grant(self, count: int | None) -> None:
        pass


class RepeatsEvents(Defect):
    repeated = Event.WRITABLE

    def wrong(self, segments: list[Segment]) -> list[Any]:
        return [each for s in segments for each in [s] * (1 + (s.event == self.repeated))]


class RepeatsReports(RepeatsEvents):
    repeated = Event.ACKED


class RepeatsTheEnd(RepeatsEvents):
    repeated = Event.EOF


class RepeatsClosed(RepeatsEvents):
    repeated = Event.CLOSED


class HidesErrors(Defect):
    def wrong(self, segments: list[Segment]) -> list[Any]:
        return [each for each in segments if each.event != Event.ERROR]


class TakesWritesWhenClosed(Defect):
    pass


class CannotBeWoken(Defect):
    def wakeup(self) -> None:
        pass


class DoesNotSayThatItIsClosed(Defect):
    @property
    def closed(self) -> bool:
        return False


DEFECTS: dict[type[Defect], str] = {
    LosesAByte: "written_bytes_arrive",
    LosesASegment: "sent_bytes_are_received",
    ShowsWritableViews: "sent_bytes_are_received",
    LeavesViews: "views_end_with_the_next_exchange",
    DoesNotPause: "nothing_comes_while_paused",
    IgnoresGrants: "granted_segments_come",
    RepeatsEvents: "a_full_connection_becomes_writable",
    RepeatsReports: "a_report_follows_the_ack",
    RepeatsTheEnd: "a_half_can_be_closed",
    RepeatsClosed: "close_sends_everything",
    TakesWritesWhenClosed: "close_sends_everything",
    HidesErrors: "a_reset_is_told",
    CannotBeWoken: "a_wait_ends",
    DoesNotSayThatItIsClosed: "closing_the_port_closes_its_connections",
}


@pytest.mark.parametrize("kind", DEFECTS, ids=lambda kind: kind.__name__)
def test_a_defect_is_found(kind: type[Defect], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_port_checks, "_PATIENCE", 2.0)
    name = DEFECTS[kind]
    opened: list[Port] = []

    def open_port() -> Port:
        opened.append(kind())
        return opened[-1]

    with pytest.raises(ConformanceError) as found:
        check_port(open_port, connect, {name: PORT_CHECKS[name]})
    assert found.value.__notes__[0].startswith(f"check {name}: ")
    Wrong.of.clear()


def test_each_check_has_a_defect_that_it_finds() -> None:
    assert set(DEFECTS.values()) == set(PORT_CHECKS)
