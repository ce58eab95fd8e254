"""Checks that every transport of asyncio's must pass: trio's ``check_two_way_stream()`` for it.

They expect the behaviour of the standard library's selector transports, and its documentation.
Where these leave a choice (how bytes are cut into pieces, whether ``abort()`` resets), nothing is
expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from ._errors import ConformanceError, expect, expect_same, naming

#: Connects two protocols and returns their transports, in the same order.
MakePair = Callable[
    [asyncio.BaseProtocol, asyncio.BaseProtocol],
    Awaitable[tuple[asyncio.Transport, asyncio.Transport]],
]
TransportCheck = Callable[[MakePair], Awaitable[None]]

#: Seconds to wait for what must happen.
_PATIENCE = 60.0
#: Turns of the loop in which nothing may happen.
_TURNS = 50
#: More than the buffers of two kernels' sockets hold.
_MUCH = 16 << 20
_PATTERN = bytes(range(251))
_HIGH, _LOW = 64 << 10, 16 << 10


class _Recorder(asyncio.Protocol):
    """Records what its transport tells."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.story: list[str] = []
        self.data = bytearray()
        self.lost: list[BaseException | None] = []
        #: Bytes that waited in the transport at each pause_writing(), and at each resume_writing().
        self.paused_at: list[int] = []
        self.resumed_at: list[int] = []
        self._keep_open = keep_open
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.story[-1:] != ["data"]:
            self._note("data")
        self._changed.set()

    def eof_received(self) -> bool:
        self._note("eof")
        return self._keep_open

    def pause_writing(self) -> None:
        self.paused_at.append(self.transport.get_write_buffer_size())
        self._changed.set()

    def resume_writing(self) -> None:
        self.resumed_at.append(self.transport.get_write_buffer_size())
        self._changed.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.append(exc)
        self._note("lost")

    def _note(self, what: str) -> None:
        self.story.append(what)
        self._changed.set()

    async def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait until something has happened that this protocol is told of."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while not happened():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConformanceError(
                f"{what} did not happen within {_PATIENCE:.0f} s; so far: {self.story}, "
                f"{len(self.data)} bytes"
            ) from None

    async def receives(self, data: bytes, what: str) -> None:
        """Wait for as many bytes, and compare."""
        await self.until(lambda: len(self.data) >= len(data), f"the arrival of {what}")
        expect_same(bytes(self.data), data, what)


class _Buffered(asyncio.BufferedProtocol):
    """Takes what arrives into a small buffer of its own."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 (asyncio's name)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        expect(0 < nbytes <= len(self._buffer), f"buffer_updated({nbytes}) for a buffer of 1000")
        self.data += self._buffer[:nbytes]


def _pattern(size: int) -> bytes:
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _end(*transports: asyncio.Transport) -> None:
    for transport in transports:
        transport.abort()
    await _turns()


async def _callbacks_come_in_order(make_pair: MakePair) -> None:
    """connection_made(), data_received(), eof_received() and connection_lost(), in turn."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    expect(subject.story == ["made"], f"the callbacks of a new connection were {subject.story}")
    expect(subject.transport is transport, "connection_made() was given another transport")
    expect(transport.is_reading(), "a new transport does not read")
    expect(not transport.is_closing(), "a new transport is closing")
    peer_transport.write(b"abc")
    await subject.receives(b"abc", "a write")
    peer_transport.write_eof()
    await subject.until(lambda: subject.lost, "connection_lost() after the end of the stream")
    expect(subject.story == ["made", "data", "eof", "lost"], f"callbacks were {subject.story}")
    expect(subject.lost == [None], f"connection_lost() was given {subject.lost[0]!r}")
    expect(transport.is_closing(), "is_closing() is false after connection_lost()")
    await _end(peer_transport)
    expect(len(subject.lost) == 1, "connection_lost() was called twice")


async def _bytes_arrive_as_written(make_pair: MakePair) -> None:
    """In both directions, of all kinds of buffers; a buffer may be changed after write()."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    for writer, reader, which in (
        (transport, peer, "what the transport wrote"),
        (peer_transport, subject, "what the transport received"),
    ):
        wanted = b""
        for number, size in enumerate((1, 0, 2, 511, 512, 513, 4096, 4097, 70_000, 1 << 20)):
            data = bytearray(_pattern(size + number)[number:])
            wanted += data
            if number % 3 == 0:
                writer.write(bytes(data))
            elif number % 3 == 1:
                writer.write(memoryview(data))
            else:
                writer.writelines([data[: size // 2], b"", memoryview(data)[size // 2 :]])
            data[:] = bytes(len(data))
        await reader.receives(wanted, which)
    await _end(transport, peer_transport)


async def _nothing_is_delivered_while_paused(make_pair: MakePair) -> None:
    """Neither data nor its end; after resume_reading() all of it, in order."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    transport.pause_reading()
    transport.pause_reading()
    expect(not transport.is_reading(), "is_reading() is true after pause_reading()")
    data = _pattern(1 << 20)
    peer_transport.write(data)
    peer_transport.write_eof()
    transport.write(b"on the way back")
    await peer.receives(b"on the way back", "a write while reading is paused")
    await _turns()
    expect(subject.story == ["made"], f"while reading was paused there were {subject.story[1:]}")
    transport.resume_reading()
    transport.resume_reading()
    expect(transport.is_reading(), "is_reading() is false after resume_reading()")
    await subject.receives(data, "what was sent while reading was paused")
    await subject.until(lambda: subject.lost, "the end behind it")
    expect(subject.story == ["made", "data", "eof", "lost"], f"callbacks were {subject.story}")
    await _end(peer_transport)


async def _writers_are_paused_and_resumed(make_pair: MakePair) -> None:
    """pause_writing() above the high limit, resume_writing() at the low one."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    transport.set_write_buffer_limits(high=_HIGH, low=_LOW)
    limits = transport.get_write_buffer_limits()
    expect(limits == (_LOW, _HIGH), f"get_write_buffer_limits() returns {limits}")
    peer_transport.pause_reading()
    piece = _pattern(_HIGH)
    written = 0
    while not subject.paused_at:
        expect(written < _MUCH, f"no pause_writing() after {written} bytes nobody reads")
        transport.write(piece)
        written += len(piece)
        await asyncio.sleep(0)
    expect(
        subject.paused_at[0] > _HIGH,
        f"pause_writing() at {subject.paused_at[0]} bytes, with a limit of {_HIGH}",
    )
    await _turns()
    expect(not subject.resumed_at, "resume_writing() although nobody reads")
    peer_transport.resume_reading()
    await subject.until(lambda: subject.resumed_at, "resume_writing()")
    expect(
        subject.resumed_at[0] <= _LOW,
        f"resume_writing() at {subject.resumed_at[0]} bytes, with a limit of {_LOW}",
    )
    await peer.receives(piece * (written // len(piece)), "what was written beyond the limit")
    expect(len(subject.paused_at) == len(subject.resumed_at), "pause and resume are not in turns")
    await _end(transport, peer_transport)


async def _a_half_can_be_closed(make_pair: MakePair) -> None:
    """write_eof() ends one direction, and the other one goes on."""
    subject, peer = _Recorder(), _Recorder(keep_open=True)
    transport, peer_transport = await make_pair(subject, peer)
    expect(transport.can_write_eof(), "can_write_eof() is false")
    transport.write(b"the last words")
    transport.write_eof()
    transport.write_eof()
    await peer.until(lambda: "eof" in peer.story, "the end of the stream at the peer")
    await peer.receives(b"the last words", "a write before write_eof()")
    try:
        transport.write(b"too late")
    except RuntimeError:
        pass
    else:
        raise ConformanceError("write() after write_eof() raises no RuntimeError")
    peer_transport.write(b"an answer")
    await subject.receives(b"an answer", "the other direction after write_eof()")
    peer_transport.close()
    await subject.until(lambda: subject.lost, "connection_lost() when both directions are closed")
    expect(subject.lost == [None], f"connection_lost() was given {subject.lost[0]!r}")
    await _end(transport)


async def _a_protocol_may_outlive_the_end(make_pair: MakePair) -> None:
    """If eof_received() returns a true value, writing goes on."""
    subject, peer = _Recorder(keep_open=True), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    peer_transport.write_eof()
    await subject.until(lambda: "eof" in subject.story, "eof_received()")
    await _turns()
    expect(not transport.is_closing(), "the transport closes although eof_received() was true")
    transport.write(b"still here")
    await peer.receives(b"still here", "a write after the peer's end")
    transport.close()
    await subject.until(lambda: subject.lost, "connection_lost() after close()")
    await _end(peer_transport)


async def _close_sends_everything(make_pair: MakePair) -> None:
    """Data written before close() arrives; data that arrives after it is not delivered."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    peer_transport.pause_reading()
    data = _pattern(_MUCH // 4)
    transport.write(data)
    transport.close()
    transport.close()
    expect(transport.is_closing(), "is_closing() is false after close()")
    expect(not subject.lost, "connection_lost() from within close()")
    peer_transport.resume_reading()
    await peer.receives(data, "what was written before close()")
    await subject.until(lambda: subject.lost, "connection_lost() after close()")
    expect(subject.lost == [None], f"connection_lost() was given {subject.lost[0]!r}")
    expect(subject.story == ["made", "lost"], f"callbacks were {subject.story}")
    await _end(peer_transport)


async def _abort_ends_at_once(make_pair: MakePair) -> None:
    """connection_lost(None) follows, whatever waits, and the peer's connection ends."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    peer_transport.pause_reading()
    transport.write(bytes(_MUCH // 4))
    await asyncio.sleep(0)
    transport.abort()
    expect(not subject.lost, "connection_lost() from within abort()")
    expect(transport.is_closing(), "is_closing() is false after abort()")
    await subject.until(lambda: subject.lost, "connection_lost() after abort()")
    expect(subject.lost == [None], f"connection_lost() was given {subject.lost[0]!r}")
    peer_transport.resume_reading()
    await peer.until(lambda: peer.lost, "the end of the peer's connection after abort()")


async def _the_end_can_be_survived(make_pair: MakePair) -> None:
    """After connection_lost(), write(), close() and abort() do nothing, and raise nothing."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    transport.close()
    await subject.until(lambda: subject.lost, "connection_lost() after close()")
    try:
        transport.write(b"nobody reads this")
        transport.close()
        transport.abort()
    except Exception as error:
        raise ConformanceError(f"a closed transport raised {error!r}") from error
    await _turns()
    expect(subject.story == ["made", "lost"], f"callbacks were {subject.story}")
    expect(not peer.data, f"{bytes(peer.data)!r} was sent after the end")
    await _end(peer_transport)


async def _only_buffers_are_written(make_pair: MakePair) -> None:
    """Anything else raises TypeError, and nothing is sent."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    wrong: tuple[Any, ...] = ("text", 5)
    for each in wrong:
        try:
            transport.write(each)
        except TypeError:
            continue
        raise ConformanceError(f"write({each!r}) raises no TypeError")
    transport.write(b"right")
    await peer.receives(b"right", "a write after wrong ones")
    await _end(transport, peer_transport)


async def _another_protocol_takes_over(make_pair: MakePair) -> None:
    """set_protocol() changes who is called from then on; a BufferedProtocol, too, gets all."""
    subject, peer = _Recorder(), _Recorder()
    transport, peer_transport = await make_pair(subject, peer)
    peer_transport.write(b"to the first")
    await subject.receives(b"to the first", "a write")
    second = _Buffered()
    transport.set_protocol(second)
    expect(transport.get_protocol() is second, "get_protocol() returns another protocol")
    data = _pattern(100_000)
    peer_transport.write(data)
    async with asyncio.timeout(_PATIENCE):
        while len(second.data) < len(data):  # noqa: ASYNC110 (it is called, not told)
            await asyncio.sleep(0)
    expect(bytes(second.data) == data, "a BufferedProtocol did not get what was written")
    expect(
        bytes(subject.data) == b"to the first",
        "the protocol before was called after set_protocol()",
    )
    await _end(transport, peer_transport)


#: The checks of :func:`check_transport` by name, to run each as a test of its own.
TRANSPORT_CHECKS: Mapping[str, TransportCheck] = MappingProxyType(
    {
        check.__name__.lstrip("_"): check
        for check in (
            _callbacks_come_in_order,
            _bytes_arrive_as_written,
            _nothing_is_delivered_while_paused,
            _writers_are_paused_and_resumed,
            _a_half_can_be_closed,
            _a_protocol_may_outlive_the_end,
            _close_sends_everything,
            _abort_ends_at_once,
            _the_end_can_be_survived,
            _only_buffers_are_written,
            _another_protocol_takes_over,
        )
    }
)


async def check_transport(
    make_pair: MakePair, checks: Mapping[str, TransportCheck] = TRANSPORT_CHECKS
) -> None:
    """Hold a transport to asyncio's contract.

    ::

        async def make_pair(first, second):
            server = await loop.create_server(lambda: second, "127.0.0.1", 0)
            ...
            return first_transport, second_transport

        asyncio.run(check_transport(make_pair))

    Args:
        make_pair: connects two protocols, and returns their transports.  The first one is checked;
            the second only has to work.  It is called once for each check.
        checks: which of ``TRANSPORT_CHECKS``.

    Raises:
        ConformanceError: the transport does not keep to the contract; it says in what.
    """
    for name, check in checks.items():
        with naming(name, check):
            await check(make_pair)
