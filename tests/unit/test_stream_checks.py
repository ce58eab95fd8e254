"""``check_stream()``: streams of asyncio's pass on all loops, and those with a defect do not.

``tests/guest/test_conformance.py`` runs the checks on rings.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from stackmap import SocketPort
from stackmap.aio import loop_factory
from stackmap.testing import (
    STREAM_CHECKS,
    ConformanceError,
    VirtualClock,
    _stream_checks,
    check_stream,
    memory_pair,
)
from tests.aio_loops import connect_streams, run
from tests.certificate import contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.aio_loops import Stream

    NewLoop = Callable[[], asyncio.AbstractEventLoop]

OF_TCP = pytest.mark.parametrize(
    "new_loop",
    [
        pytest.param(asyncio.SelectorEventLoop, id="asyncio"),
        pytest.param(loop_factory(SocketPort), id="sockets"),
    ],
)


@pytest.mark.parametrize("name", STREAM_CHECKS)
@OF_TCP
def test_streams_of_tcp(new_loop: NewLoop, name: str) -> None:
    run(new_loop, check_stream(connect_streams, {name: STREAM_CHECKS[name]}))


@pytest.mark.parametrize("name", STREAM_CHECKS)
@OF_TCP
def test_streams_of_tls(new_loop: NewLoop, name: str, tmp_path: Path) -> None:
    accepting, trusting = contexts(tmp_path)
    make_pair = functools.partial(connect_streams, accepting=accepting, trusting=trusting)
    run(new_loop, check_stream(make_pair, {name: STREAM_CHECKS[name]}))


def test_uvloop_differs_in_two_things() -> None:
    checks = dict(STREAM_CHECKS)
    for name, complaint in (
        ("written_buffers_are_the_callers", "altered after write"),
        ("a_loss_can_be_survived", "the handler is closed"),
    ):
        with pytest.raises(ConformanceError, match=complaint):
            run(uvloop.new_event_loop, check_stream(connect_streams, {name: checks.pop(name)}))
    run(uvloop.new_event_loop, check_stream(connect_streams, checks))


class Reader(asyncio.StreamReader):
    """A reader whose defects look inside."""

    _buffer: bytearray
    _eof: bool
    _limit: int
    _transport: asyncio.Transport

    async def _wait_for_data(self, name: str) -> None:
        await super()._wait_for_data(name)  # type: ignore[misc]


class Writer(asyncio.StreamWriter):
    """A writer whose defects look inside."""

    _protocol: Any
    _reader: Reader
    _transport: asyncio.Transport


async def connect_in_memory(
    limit: int, kind: type[Reader | Writer] = Reader
) -> tuple[Stream, Stream, Callable[[], object]]:
    """Connect a stream, of which one half is of that kind, and a peer without a defect."""
    loop = asyncio.get_running_loop()
    make_reader = kind if issubclass(kind, Reader) else Reader
    make_writer = kind if issubclass(kind, Writer) else Writer
    reader, peer_reader = make_reader(limit, loop), Reader(limit, loop)
    protocols = [asyncio.StreamReaderProtocol(each, loop=loop) for each in (reader, peer_reader)]
    transport, peer = memory_pair(*protocols)
    return (
        (reader, make_writer(transport, protocols[0], reader, loop)),
        (peer_reader, Writer(peer, protocols[1], peer_reader, loop)),
        lambda: peer.lose(ConnectionResetError("as the check asked")),
    )


@pytest.mark.parametrize("name", STREAM_CHECKS)
def test_streams_in_memory(name: str) -> None:
    run(VirtualClock, check_stream(connect_in_memory, {name: STREAM_CHECKS[name]}))


# -- defects --


class ReadsAsManyAsItMay(Reader):
    async def read(self, n: int = -1) -> bytes:
        if n < 0:
            return await super().read(n)
        try:
            return await self.readexactly(n)
        except asyncio.IncompleteReadError as error:
            return error.partial


class ReadsOnceForAll(Reader):
    async def read(self, n: int = -1) -> bytes:
        return await super().read(self._limit if n < 0 else n)


class ReadsLessThanExactly(Reader):
    async def readexactly(self, n: int) -> bytes:
        try:
            return await super().readexactly(n)
        except asyncio.IncompleteReadError as error:
            return error.partial


class LosesWhatIsIncomplete(Reader):
    async def readexactly(self, n: int) -> bytes:
        try:
            return await super().readexactly(n)
        except asyncio.IncompleteReadError:
            raise asyncio.IncompleteReadError(b"", n) from None


class SeeksSeparatorsInEachPiece(Reader):
    async def readuntil(self, separator: Any = b"\n") -> bytes:
        start = 0
        while len(separator) > 1 and self._buffer.find(separator, start) < 0 and not self._eof:
            start = len(self._buffer)
            await self._wait_for_data("readuntil")
        return await super().readuntil(separator)


class DropsWhatItRefuses(Reader):
    async def readuntil(self, separator: Any = b"\n") -> bytes:
        try:
            return await super().readuntil(separator)
        except asyncio.LimitOverrunError:
            self._buffer.clear()
            raise


class DoesNotSayHowMuchIsTooMuch(Reader):
    async def readuntil(self, separator: Any = b"\n") -> bytes:
        try:
            return await super().readuntil(separator)
        except asyncio.LimitOverrunError as error:
            raise asyncio.LimitOverrunError(str(error), 0) from None


class HasNoLimit(Reader):
    async def readuntil(self, separator: Any = b"\n") -> bytes:
        limit, self._limit = self._limit, 1 << 30
        try:
            return await super().readuntil(separator)
        finally:
            self._limit = limit


class ReadsWholeLinesOnly(Reader):
    async def readline(self) -> bytes:
        return await self.readuntil(b"\n")

    async def __anext__(self) -> bytes:
        if line := await super().readline():
            return line
        raise StopAsyncIteration


class IteratesOverWhatIsInLines(Reader):
    async def __anext__(self) -> bytes:
        return (await super().__anext__()).rstrip(b"\n")


class EndsBeforeItWasRead(Reader):
    def at_eof(self) -> bool:
        return self._eof


class NeverSaysThatItEnded(Reader):
    def at_eof(self) -> bool:
        return False


class TakesBytesAndWaits(Reader):
    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        await asyncio.sleep(0)
        return data


class TakesPiecesOfWhatItNeeds(Reader):
    async def readexactly(self, n: int) -> bytes:
        if n < 0:
            return await super().readexactly(n)
        data = b""
        while len(data) < n:
            if not (piece := await self.read(n - len(data))):
                raise asyncio.IncompleteReadError(data, n)
            data += piece
        return data


class LetsReadersQueue(Reader):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._turn = asyncio.Lock()

    async def _wait_for_data(self, name: str) -> None:
        async with self._turn:
            await super()._wait_for_data(name)


class EndsAtAReset(Reader):
    def set_exception(self, exc: Exception) -> None:  # noqa: ARG002 (asyncio's name)
        self.feed_eof()


class TellsOfAResetOnce(Reader):
    def exception(self) -> Exception | None:
        return getattr(self, "_told", None)

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._told, self._exception = exc, None
        self._eof = True


class ReadsLessThanNothing(Reader):
    async def readexactly(self, n: int) -> bytes:
        return await super().readexactly(max(n, 0))


class ClosesAtThePeersEnd(Reader):
    def feed_eof(self) -> None:
        super().feed_eof()
        self._transport.close()


class LosesAByteOfOddSizes(Writer):
    def write(self, data: Any) -> None:
        super().write(data[:-1] if len(data) > 100 and len(data) % 2 else data)


class KeepsTheCallersBuffer(Writer):
    def write(self, data: Any) -> None:
        if isinstance(data, bytearray | memoryview):
            asyncio.get_running_loop().call_soon(super().write, data)
        else:
            super().write(data)


class ReversesWritelines(Writer):
    def writelines(self, data: Iterable[Any]) -> None:
        super().writelines(reversed(list(data)))


class TakesText(Writer):
    def write(self, data: Any) -> None:
        super().write(data.encode() if isinstance(data, str) else data)


class NeverWaits(Writer):
    async def drain(self) -> None:
        if (error := self._reader.exception()) is not None:
            raise error


class ForgetsAllButTheFirstToDrain(Writer):
    async def drain(self) -> None:
        if self._protocol._drain_waiters:
            await asyncio.get_running_loop().create_future()
        await super().drain()


class HidesItsLoss(Writer):
    async def drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await super().drain()


class ClosesBothHalves(Writer):
    def write_eof(self) -> None:
        self.close()


class TakesWritesBehindTheEnd(Writer):
    def write(self, data: Any) -> None:
        with contextlib.suppress(RuntimeError):
            super().write(data)


class ClosesAHalfThatItCannot(Writer):
    def can_write_eof(self) -> bool:
        return False


class ClosesWithoutSending(Writer):
    def close(self) -> None:
        self.transport.abort()


class IsClosedAtOnce(Writer):
    async def wait_closed(self) -> None:
        pass


class RaisesWhenItIsLost(Writer):
    def write(self, data: Any) -> None:
        if self._reader.exception() is not None:
            raise OSError("the connection was lost")
        super().write(data)


class IsNeverClosedByAReset(Writer):
    async def wait_closed(self) -> None:
        try:
            await super().wait_closed()
        except ConnectionError:
            await asyncio.get_running_loop().create_future()


class KnowsNoDefault(Writer):
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": default}[name]


class DoesNotReadWhileItDrains(Writer):
    async def drain(self) -> None:
        self._transport.pause_reading()
        await super().drain()
        self._transport.resume_reading()


#: The checks that find each; those that fill a stream need a drain() that waits.
DEFECTS: dict[type[Reader | Writer], set[str]] = {
    LosesAByteOfOddSizes: {"bytes_arrive_as_written"},
    ReadsAsManyAsItMay: {"read_returns_what_there_is"},
    ReadsOnceForAll: {"all_is_read_to_the_end"},
    ReadsLessThanExactly: {"exactly_as_many_are_read"},
    LosesWhatIsIncomplete: {"exactly_as_many_are_read"},
    SeeksSeparatorsInEachPiece: {"separators_are_found"},
    DropsWhatItRefuses: {"long_messages_are_refused_and_kept"},
    DoesNotSayHowMuchIsTooMuch: {"long_messages_are_refused_and_kept"},
    HasNoLimit: {"long_messages_are_refused_and_kept", "lines_are_read_to_the_end"},
    ReadsWholeLinesOnly: {"lines_are_read_to_the_end"},
    IteratesOverWhatIsInLines: {"iteration_gives_the_lines"},
    EndsBeforeItWasRead: {"the_end_is_behind_the_last_byte"},
    NeverSaysThatItEnded: {"the_end_is_behind_the_last_byte"},
    TakesBytesAndWaits: {"a_cancelled_read_loses_nothing"},
    TakesPiecesOfWhatItNeeds: {"a_cancelled_read_loses_nothing"},
    LetsReadersQueue: {"one_task_reads_at_a_time"},
    EndsAtAReset: {"a_reset_is_told_to_readers"},
    TellsOfAResetOnce: {"a_reset_is_told_to_readers"},
    ReadsLessThanNothing: {"nothing_else_can_be_asked_of_a_reader"},
    KeepsTheCallersBuffer: {"written_buffers_are_the_callers"},
    ReversesWritelines: {"writelines_writes_all_as_one"},
    TakesText: {"only_buffers_are_written"},
    NeverWaits: {
        "written_buffers_are_the_callers",
        "writelines_writes_all_as_one",
        "drain_waits_for_the_peer",
        "drain_tells_of_a_loss",
        "close_sends_everything",
    },
    ForgetsAllButTheFirstToDrain: {"drain_waits_for_the_peer"},
    HidesItsLoss: {"drain_tells_of_a_loss"},
    ClosesBothHalves: {"a_half_can_be_closed"},
    TakesWritesBehindTheEnd: {"a_half_can_be_closed"},
    ClosesAHalfThatItCannot: {"a_half_can_be_closed"},
    ClosesAtThePeersEnd: {"a_half_can_be_closed"},
    ClosesWithoutSending: {"close_sends_everything"},
    IsClosedAtOnce: {"close_sends_everything"},
    RaisesWhenItIsLost: {"a_loss_can_be_survived"},
    IsNeverClosedByAReset: {"a_loss_can_be_survived"},
    KnowsNoDefault: {"unknown_information_is_the_default"},
    DoesNotReadWhileItDrains: {"both_ways_go_on_at_once"},
}


@pytest.mark.parametrize("kind", DEFECTS, ids=lambda kind: kind.__name__)
def test_a_defect_is_found(kind: type[Reader | Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream_checks, "_BUFFERS", 1 << 20)
    make_pair = functools.partial(connect_in_memory, kind=kind)
    found: dict[str, ConformanceError] = {}
    for name, check in STREAM_CHECKS.items():
        try:
            run(VirtualClock, check_stream(make_pair, {name: check}))
        except ConformanceError as error:
            found[name] = error
    assert set(found) == DEFECTS[kind]
    for name, complaint in found.items():
        assert complaint.__notes__[0].startswith(f"check {name}: ")


def test_each_check_has_a_defect_that_only_it_finds() -> None:
    assert {name for names in DEFECTS.values() if len(names) == 1 for name in names} == set(
        STREAM_CHECKS
    )
