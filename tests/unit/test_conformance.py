"""Real transports pass the checks of ``stackmap.testing``; those with a defect do not.

``tests/guest/test_conformance.py`` runs them on rings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from stackmap import SocketPort
from stackmap.aio import loop_factory
from stackmap.testing import (
    TRANSPORT_CHECKS,
    ConformanceError,
    MemoryTransport,
    VirtualClock,
    check_transport,
    memory_pair,
)
from tests.aio_loops import connect_protocols, run

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 64 << 10


async def in_memory(
    first: asyncio.BaseProtocol, second: asyncio.BaseProtocol
) -> tuple[asyncio.Transport, asyncio.Transport]:
    return memory_pair(first, second)


@pytest.mark.parametrize("name", TRANSPORT_CHECKS)
@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(asyncio.SelectorEventLoop, id="asyncio"),
        pytest.param(loop_factory(SocketPort), id="sockets"),
    ],
)
def test_transports_of_tcp(factory: Callable[[], asyncio.AbstractEventLoop], name: str) -> None:
    run(factory, check_transport(connect_protocols, {name: TRANSPORT_CHECKS[name]}))


def test_uvloop_differs_in_one_thing() -> None:
    checks = dict(TRANSPORT_CHECKS)
    after_the_end = checks.pop("the_end_can_be_survived")
    run(uvloop.new_event_loop, check_transport(connect_protocols, checks))
    with pytest.raises(ConformanceError, match="the handler is closed"):
        run(uvloop.new_event_loop, check_transport(connect_protocols, {"": after_the_end}))


@pytest.mark.parametrize("name", TRANSPORT_CHECKS)
def test_transports_in_memory(name: str) -> None:
    run(VirtualClock, check_transport(in_memory, {name: TRANSPORT_CHECKS[name]}))


# -- defects --


class LosesAByte(MemoryTransport):
    def write(self, data: Any) -> None:
        super().write(data[:-1] if len(data) > 4096 else data)


class ReordersWritelines(MemoryTransport):
    def writelines(self, list_of_data: Any) -> None:
        super().writelines(reversed(list(list_of_data)))


class KeepsTheCallersBuffer(MemoryTransport):
    def write(self, data: Any) -> None:
        if isinstance(data, memoryview):
            self._loop.call_soon(super().write, data)
        else:
            super().write(data)


class DeliversWhilePaused(MemoryTransport):
    def is_reading(self) -> bool:
        return not self._closing


class DropsWhatIsPaused(MemoryTransport):
    def pause_reading(self) -> None:
        super().pause_reading()
        peer = self._peer
        assert peer is not None
        self._loop.call_later(0, lambda: peer._in_flight.__delitem__(slice(0, 10)))


class NeverPausesTheWriter(MemoryTransport):
    def _pause_or_resume_protocol(self) -> None:
        pass


class ResumesTheWriterEarly(MemoryTransport):
    def connect(self, peer: MemoryTransport, protocol: asyncio.BaseProtocol) -> None:
        super().connect(peer, protocol)
        self.chunk = 1000  # so that what waits sinks slowly

    def _pause_or_resume_protocol(self) -> None:
        self._low = self._high - 1
        super()._pause_or_resume_protocol()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._high // 4, self._high


class ClosesWithoutSending(MemoryTransport):
    def close(self) -> None:
        self._unsent.clear()
        super().close()


class DeliversAfterClose(MemoryTransport):
    def close(self) -> None:
        if not self._closing and self._protocol is not None:
            self._protocol.data_received(b"late")  # type: ignore[attr-defined]
        super().close()


class EndsTwice(MemoryTransport):
    def _lose(self, error: Exception | None) -> None:
        if not self._lost and self._protocol is not None:
            self._loop.call_soon(self._protocol.connection_lost, error)
        super()._lose(error)


class EndsWithinAbort(MemoryTransport):
    def abort(self) -> None:
        if self._protocol is not None and not self._lost:
            self._protocol.connection_lost(None)
        self._protocol = None
        super().abort()


class WritesAfterItsEnd(MemoryTransport):
    def write(self, data: Any) -> None:
        self._eof, eof = False, self._eof
        super().write(data)
        self._eof = eof


class RaisesWhenClosed(MemoryTransport):
    def write(self, data: Any) -> None:
        if self._lost:
            raise OSError("the transport is closed")
        super().write(data)


class ClosesAtThePeersEnd(MemoryTransport):
    def _receive_eof(self) -> None:
        super()._receive_eof()
        self.close()


class TakesText(MemoryTransport):
    def write(self, data: Any) -> None:
        super().write(data.encode() if isinstance(data, str) else data)


class KeepsItsFirstProtocol(MemoryTransport):
    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if self._protocol is None:
            super().set_protocol(protocol)


DEFECTS: dict[type[MemoryTransport], str] = {
    LosesAByte: "bytes_arrive_as_written",
    ReordersWritelines: "bytes_arrive_as_written",
    KeepsTheCallersBuffer: "bytes_arrive_as_written",
    DeliversWhilePaused: "nothing_is_delivered_while_paused",
    DropsWhatIsPaused: "nothing_is_delivered_while_paused",
    NeverPausesTheWriter: "writers_are_paused_and_resumed",
    ResumesTheWriterEarly: "writers_are_paused_and_resumed",
    ClosesWithoutSending: "close_sends_everything",
    DeliversAfterClose: "close_sends_everything",
    EndsTwice: "callbacks_come_in_order",
    EndsWithinAbort: "abort_ends_at_once",
    WritesAfterItsEnd: "a_half_can_be_closed",
    RaisesWhenClosed: "the_end_can_be_survived",
    ClosesAtThePeersEnd: "a_protocol_may_outlive_the_end",
    TakesText: "only_buffers_are_written",
    KeepsItsFirstProtocol: "another_protocol_takes_over",
}


@pytest.mark.parametrize("kind", DEFECTS, ids=lambda kind: kind.__name__)
def test_a_defect_is_found(kind: type[MemoryTransport]) -> None:
    async def make_pair(
        first: asyncio.BaseProtocol, second: asyncio.BaseProtocol
    ) -> tuple[asyncio.Transport, asyncio.Transport]:
        loop = asyncio.get_running_loop()
        ends = kind(loop, WINDOW), MemoryTransport(loop, WINDOW)
        for end, peer, protocol in zip(ends, reversed(ends), (first, second), strict=True):
            end.connect(peer, protocol)
        for end, protocol in zip(ends, (first, second), strict=True):
            protocol.connection_made(end)
        return ends

    name = DEFECTS[kind]
    with pytest.raises(ConformanceError) as found:
        run(VirtualClock, check_transport(make_pair, {name: TRANSPORT_CHECKS[name]}))
    assert found.value.__notes__[0].startswith(f"check {name}: ")


def test_each_check_has_a_defect_that_it_finds() -> None:
    assert set(DEFECTS.values()) == set(TRANSPORT_CHECKS)
