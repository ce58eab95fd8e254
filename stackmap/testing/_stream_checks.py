"""Checks that every stream must pass: a reader and a writer in the manner of asyncio's.

They expect what the documentation of :class:`asyncio.StreamReader` and
:class:`asyncio.StreamWriter` promises, and what these do.  Where they leave a choice (how bytes are
cut into pieces, how much is buffered, what becomes of unread bytes at a reset), nothing is
expected.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from ._errors import ConformanceError, expect, expect_same, naming
from ._stream_like import ReaderLike, WriterLike

_T = TypeVar("_T")
_E = TypeVar("_E", bound=BaseException)

Stream = tuple[ReaderLike, WriterLike]
#: Connects two streams, given the limit of the first one's reader in bytes, and returns both, and
#: what resets the connection at the second one's end.
MakeStreams = Callable[[int], Awaitable[tuple[Stream, Stream, Callable[[], object]]]]
StreamCheck = Callable[[MakeStreams], Awaitable[None]]

#: Seconds to wait for what must happen; for what must not; and between pieces that are to arrive
#: one by one.
_PATIENCE = 60.0
_QUIET = 0.1
_APART = 0.005
#: Turns of the loop within which a task comes to wait, or the end of a connection is noticed.
_TURNS = 50
#: The reader's limit, in bytes.
_LIMIT = 4096
#: Bytes of one write where many are written; the most that buffers on the way take; and more than
#: they usually take.
_PIECE = 64 << 10
_BUFFERS = 256 << 20
_MUCH = 8 << 20

#: The ways to read for which bytes without an end of line must be waited for.
_READS: Mapping[str, Callable[[ReaderLike], Coroutine[Any, Any, bytes]]] = {
    "read()": lambda reader: reader.read(_LIMIT),
    "readexactly()": lambda reader: reader.readexactly(10),
    "readuntil()": lambda reader: reader.readuntil(b"\n"),
    "readline()": lambda reader: reader.readline(),
}


class _Link:
    """A stream, its peer, and the tasks of a check."""

    def __init__(self, stream: Stream, peer: Stream, reset: Callable[[], object]) -> None:
        self.reader, self.writer = stream
        self.peer_reader, self.peer_writer = peer
        self.reset = reset
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, coroutine: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run something beside the check, and no longer than it."""
        task = asyncio.create_task(coroutine)
        self._tasks.append(task)
        return task

    async def fill(self) -> tuple[bytes, asyncio.Task[None]]:
        """Write to a peer that does not read, until ``drain()`` waits.

        Returns:
            What was written, and the drain.
        """
        written = 0
        while written < _BUFFERS:
            self.writer.write(_data(_PIECE, written))
            written += _PIECE
            drain = self.start(self.writer.drain())
            await asyncio.wait([drain], timeout=_QUIET)
            if not drain.done():
                return _data(written), drain
            await _result(drain, "drain() while nobody reads")
        raise ConformanceError(f"drain() had {written} bytes written that nobody reads")

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reset()
        self.writer.close()
        self.peer_writer.close()
        await _turns()


@contextlib.asynccontextmanager
async def _linked(make_pair: MakeStreams) -> AsyncGenerator[_Link, None]:
    link = _Link(*await make_pair(_LIMIT))
    try:
        yield link
    finally:
        await link.end()


def _data(size: int, start: int = 0) -> bytes:
    """Bytes from ``start`` on, a multiple of 4, of a sequence that looks the same nowhere."""
    numbers = array.array("I", range(start // 4, (start + size) // 4 + 1))
    return numbers.tobytes()[:size]


def _text(size: int) -> bytes:
    """Digits that look the same nowhere."""
    return b"".join(b"%08d" % number for number in range(size // 8 + 1))[:size]


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


async def _outcome(awaitable: Awaitable[_T], call: str) -> _T | Exception:
    """Return the result of a call, or the exception that it raises; it must end soon."""
    patience = asyncio.timeout(_PATIENCE)
    try:
        async with patience:
            return await awaitable
    except Exception as error:  # noqa: BLE001 (of anybody's code)
        if patience.expired():
            raise ConformanceError(f"{call} did not end within {_PATIENCE:.0f} s") from None
        return error


async def _result(awaitable: Awaitable[_T], call: str) -> _T:
    """Return the result of a call."""
    outcome = await _outcome(awaitable, call)
    if isinstance(outcome, Exception):
        raise ConformanceError(f"{call} raised {outcome!r}") from outcome
    return outcome


async def _error(kind: type[_E], awaitable: Awaitable[object], call: str) -> _E:
    """Return the exception that a call raises."""
    outcome = await _outcome(awaitable, call)
    if isinstance(outcome, kind):
        return outcome
    if isinstance(outcome, Exception):
        raise ConformanceError(f"{call} raised {outcome!r}, no {kind.__name__}") from outcome
    raise ConformanceError(f"{call} returned {outcome!r} and raised no {kind.__name__}")


async def _receives(reader: ReaderLike, data: bytes, what: str) -> None:
    """Read as many bytes, and compare."""
    got = bytearray()
    while len(got) < len(data):
        left = min(_PIECE, len(data) - len(got))
        piece = await _result(reader.read(left), f"read() behind {len(got)} bytes of {what}")
        expect(piece, f"{what} ended after {len(got)} bytes of {len(data)}")
        got += piece
    expect_same(bytes(got), data, what)


async def _ends(reader: ReaderLike, what: str) -> None:
    """Expect the end, however often it is asked for."""
    for _ in range(2):
        got = await _result(reader.read(10), f"read() at the end of {what}")
        expect(got == b"", f"{got!r} came behind the end of {what}")


async def _trickle(writer: WriterLike, data: bytes, size: int = 1) -> None:
    """Write in pieces that arrive one by one."""
    for at in range(0, len(data), size):
        writer.write(data[at : at + size])
        await asyncio.sleep(_APART)


async def _send(writer: WriterLike, data: bytes) -> None:
    """Write much, as the peer takes it."""
    for at in range(0, len(data), _PIECE):
        writer.write(data[at : at + _PIECE])
        await writer.drain()


async def _echo(reader: ReaderLike, writer: WriterLike, size: int) -> None:
    """Send back so many bytes, and read no more before what came is sent."""
    while size and (piece := await reader.read(_PIECE)):
        size -= len(piece)
        writer.write(piece)
        await writer.drain()


# -- reading --


async def _bytes_arrive_as_written(make_pair: MakeStreams) -> None:
    """Bytes arrive whole and in order, in both directions."""
    async with _linked(make_pair) as link:
        expect(not link.writer.is_closing(), "a new stream is closing")
        expect(not link.reader.at_eof(), "a new stream is at its end")
        sizes = (1, 0, 2, 511, 512, 513, 4096, 4097, 70_000, 1 << 20)
        data = _data(sum(sizes))
        for writer, reader, what in (
            (link.writer, link.peer_reader, "what the stream wrote"),
            (link.peer_writer, link.reader, "what the stream received"),
        ):
            at = 0
            for size in sizes:
                writer.write(data[at : at + size])
                at += size
            await _receives(reader, data, what)


async def _read_returns_what_there_is(make_pair: MakeStreams) -> None:
    """read(n) returns n bytes at most, and waits for the first of them only."""
    async with _linked(make_pair) as link:
        link.peer_writer.write(b"abc")
        got = await _result(link.reader.read(100), "read(100) of 3 bytes")
        expect(got and b"abc".startswith(got), f"read(100) of b'abc' returned {got!r}")
        await _receives(link.reader, b"abc"[len(got) :], "the rest of b'abc'")
        link.peer_writer.write(b"abc")
        got = await _result(link.reader.read(2), "read(2) of 3 bytes")
        expect(got and b"ab".startswith(got), f"read(2) of b'abc' returned {got!r}")
        nothing = await _result(link.reader.read(0), "read(0)")
        expect(nothing == b"", f"read(0) returned {nothing!r}")
        await _receives(link.reader, b"abc"[len(got) :], "the rest of b'abc'")


async def _all_is_read_to_the_end(make_pair: MakeStreams) -> None:
    """read() and read(-1) return all to the end, more than the limit too."""
    data = _data(10 * _LIMIT + 1)
    for n in ((), (-1,)):
        async with _linked(make_pair) as link:
            link.peer_writer.write(data)
            link.peer_writer.close()
            got = await _result(link.reader.read(*n), "read() to the end")
            expect_same(got, data, "what read() returned")
            await _ends(link.reader, "what was read to the end")


async def _exactly_as_many_are_read(make_pair: MakeStreams) -> None:
    """readexactly() crosses the borders of pieces; at the end its error has what there was."""
    async with _linked(make_pair) as link:
        data = _data(3 * _LIMIT)
        reading = link.start(link.reader.readexactly(len(data)))
        await _trickle(link.peer_writer, data + b"rest", 1000)
        got = await _result(reading, f"readexactly({len(data)})")
        expect_same(got, data, "what readexactly() returned")
        got = await _result(link.reader.readexactly(0), "readexactly(0)")
        expect(got == b"", f"readexactly(0) returned {got!r}")
        link.peer_writer.close()
        error = await _error(
            asyncio.IncompleteReadError, link.reader.readexactly(10), "readexactly(10) of 4 bytes"
        )
        expect(error.partial == b"rest", f"partial is {error.partial!r} where b'rest' was left")
        expect(error.expected == 10, f"expected is {error.expected} after readexactly(10)")
        await _ends(link.reader, "what readexactly() gave as partial")


async def _separators_are_found(make_pair: MakeStreams) -> None:
    """readuntil() finds separators that arrive in pieces, and at the end gives what there was."""
    async with _linked(make_pair) as link:
        first, second = b"\r\n\rkey: \r\n\r\r\n\r\n", b"\r\n\r\n"
        reading = link.start(link.reader.readuntil(b"\r\n\r\n"))
        await _trickle(link.peer_writer, first + second)
        got = await _result(reading, "readuntil() of a separator that comes in pieces")
        expect(got == first, f"readuntil() returned {got!r}, not {first!r}")
        got = await _result(link.reader.readuntil(b"\r\n\r\n"), "readuntil() of a separator")
        expect(got == second, f"readuntil() returned {got!r}, not {second!r}")
        link.peer_writer.write(b"one line\nEND;rest")
        got = await _result(link.reader.readuntil(), "readuntil() of a line")
        expect(got == b"one line\n", f"readuntil() returned {got!r}, not b'one line\\n'")
        got = await _result(link.reader.readuntil(b"END;"), "readuntil() of two at once")
        expect(got == b"END;", f"readuntil() returned {got!r}, not b'END;'")
        link.peer_writer.close()
        error = await _error(
            asyncio.IncompleteReadError, link.reader.readuntil(), "readuntil() at the end"
        )
        expect(error.partial == b"rest", f"partial is {error.partial!r} where b'rest' was left")
        await _ends(link.reader, "what readuntil() gave as partial")


async def _long_messages_are_refused_and_kept(make_pair: MakeStreams) -> None:
    """Beyond the limit readuntil() raises, says how much can be read before, and takes nothing."""
    fitting, long = _text(_LIMIT - 1) + b";", _text(_LIMIT + 100) + b";"
    async with _linked(make_pair) as link:
        link.peer_writer.write(fitting)
        got = await _result(link.reader.readuntil(b";"), "readuntil() of as much as the limit")
        expect_same(got, fitting, "a message as long as the limit")
        for in_pieces in (False, True):
            if in_pieces:
                link.peer_writer.write(long[:-1])
            else:
                link.peer_writer.write(long + fitting)
                await asyncio.sleep(_QUIET)
            error = await _error(
                asyncio.LimitOverrunError,
                link.reader.readuntil(b";"),
                f"readuntil() of {len(long)} bytes where the limit is {_LIMIT}",
            )
            if in_pieces:
                link.peer_writer.write(long[-1:] + fitting)
            expect(
                0 < error.consumed < len(long),
                f"consumed is {error.consumed} where the separator is at {len(long) - 1}",
            )
            head = await _result(
                link.reader.readexactly(error.consumed), "readexactly() of what is to be consumed"
            )
            rest = await _result(link.reader.readuntil(b";"), "readuntil() of the rest")
            expect_same(head + rest, long, "a message that was refused")
            got = await _result(link.reader.readuntil(b";"), "readuntil() of the next message")
            expect_same(got, fitting, "a message behind one that was refused")


async def _lines_are_read_to_the_end(make_pair: MakeStreams) -> None:
    """readline() returns the last line without its end, then b""; one beyond the limit raises."""
    async with _linked(make_pair) as link:
        reading = link.start(link.reader.readline())
        await _trickle(link.peer_writer, b"one\n")
        link.peer_writer.write(b"\nthree\nlast")
        link.peer_writer.close()
        for wanted in (b"one\n", b"\n", b"three\n", b"last", b"", b""):
            got = await _result(reading, "readline()")
            expect(got == wanted, f"readline() returned {got!r}, not {wanted!r}")
            reading = link.start(link.reader.readline())
    async with _linked(make_pair) as link:
        link.peer_writer.write(_text(_LIMIT + 100) + b"\n")
        await _error(ValueError, link.reader.readline(), "readline() of more than the limit")


async def _iteration_gives_the_lines(make_pair: MakeStreams) -> None:
    """``async for`` gives what readline() would, and stops at the end."""

    async def iterate(reader: ReaderLike) -> list[bytes]:
        return [line async for line in reader]

    async with _linked(make_pair) as link:
        link.peer_writer.write(b"one\n\nthree\nlast")
        link.peer_writer.close()
        lines = await _result(iterate(link.reader), "async for")
        wanted = [b"one\n", b"\n", b"three\n", b"last"]
        expect(lines == wanted, f"async for gave {lines}, not {wanted}")


async def _the_end_is_behind_the_last_byte(make_pair: MakeStreams) -> None:
    """at_eof() is true once the stream has ended and all of it was read, and not before."""
    async with _linked(make_pair) as link:
        link.peer_writer.write(b"abc")
        await _receives(link.reader, b"ab", "what came before the end")
        await _receives(link.reader, b"c", "what came before the end")
        expect(not link.reader.at_eof(), "at_eof() is true when all was read of an open stream")
        link.peer_writer.write(b"defg")
        link.peer_writer.close()
        await asyncio.sleep(_QUIET)
        for piece in (b"de", b"fg"):
            expect(not link.reader.at_eof(), f"at_eof() is true before {piece!r} was read")
            await _receives(link.reader, piece, "what came before the end")
        await _ends(link.reader, "the stream")
        expect(link.reader.at_eof(), "at_eof() is false after read() returned b''")


async def _a_cancelled_read_loses_nothing(make_pair: MakeStreams) -> None:
    """Bytes that came for a read that was cancelled are there for the next."""
    for name, read in _READS.items():
        async with _linked(make_pair) as link:
            for number in range(40):
                what = f"what came while {name} was cancelled"
                piece = b"%09d\n" % number if number % 2 else b"%05d" % number
                reading = link.start(read(link.reader))
                await asyncio.sleep(0)
                link.peer_writer.write(piece)
                for _ in range(number // 2):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.wait([reading], timeout=_PATIENCE)
                expect(reading.done(), f"{name} did not end when it was cancelled")
                got = b"" if reading.cancelled() else await _result(reading, name)
                expect(piece.startswith(got), f"{name} returned {got!r} of {piece!r}")
                await _receives(link.reader, piece[len(got) :], what)


async def _one_task_reads_at_a_time(make_pair: MakeStreams) -> None:
    """A second reader is refused with RuntimeError, and the first goes on."""
    for name, read in _READS.items():
        async with _linked(make_pair) as link:
            first = link.start(link.reader.readexactly(3))
            await _turns()
            await _error(RuntimeError, read(link.reader), f"{name} while another task reads")
            link.peer_writer.write(b"abc")
            got = await _result(first, f"readexactly(3) after {name} beside it")
            expect(got == b"abc", f"readexactly(3) returned {got!r} after {name} beside it")


async def _a_reset_is_told_to_readers(make_pair: MakeStreams) -> None:
    """ConnectionResetError ends a read that waits, and any after it."""
    for name, read in _READS.items():
        async with _linked(make_pair) as link:
            reading = link.start(read(link.reader))
            await _turns()
            link.reset()
            await _error(ConnectionResetError, reading, f"{name} during a reset")
            await _error(ConnectionResetError, read(link.reader), f"{name} after a reset")


# -- writing --


async def _written_buffers_are_the_callers(make_pair: MakeStreams) -> None:
    """write() sends the bytes of the call, whatever becomes of the buffer."""
    async with _linked(make_pair) as link:
        for full in (False, True):
            wanted = (await link.fill())[0] if full else b""
            for number in range(10):
                buffer = bytearray(_data(1000 * number))
                wanted += buffer
                link.writer.write(buffer if number % 2 else memoryview(buffer))
                buffer[:] = bytes(len(buffer))
            what = f"a buffer that was altered after write(){' to a full stream' if full else ''}"
            await _receives(link.peer_reader, wanted, what)


async def _writelines_writes_all_as_one(make_pair: MakeStreams) -> None:
    """writelines() of any iterable of buffers is write() of them joined."""
    pieces = [_data(size) for size in (0, 1, 700, 0, 5000, 2)]
    kinds: tuple[Callable[[bytes], Any], ...] = (bytes, bytearray, memoryview)
    async with _linked(make_pair) as link:
        for full in (False, True):
            wanted = (await link.fill())[0] if full else b""
            link.writer.write(b"before")
            link.writer.writelines([])
            link.writer.writelines(kinds[i % 3](piece) for i, piece in enumerate(pieces))
            link.writer.writelines([memoryview(pieces[4])])
            link.writer.write(b"behind")
            wanted += b"before" + b"".join([*pieces, pieces[4]]) + b"behind"
            await _receives(link.peer_reader, wanted, "what writelines() was given")


async def _drain_waits_for_the_peer(make_pair: MakeStreams) -> None:
    """drain() waits while the peer does not read, in any number of tasks, and ends when it does."""
    async with _linked(make_pair) as link:
        await _result(link.writer.drain(), "drain() of a new stream")
        written, drain = await link.fill()
        another = link.start(link.writer.drain())
        await _receives(link.peer_reader, written, "what was written to a full stream")
        for each in (drain, another):
            await _result(each, "drain() after the peer has read")
        await _result(link.writer.drain(), "another drain() after the peer has read")


async def _drain_tells_of_a_loss(make_pair: MakeStreams) -> None:
    """ConnectionError ends a drain() that waits for a connection that is lost, and any after it."""
    async with _linked(make_pair) as link:
        _written, drain = await link.fill()
        link.reset()
        await _error(ConnectionError, drain, "drain() during a reset")
        await _error(ConnectionError, link.writer.drain(), "drain() after a reset")


async def _a_half_can_be_closed(make_pair: MakeStreams) -> None:
    """write_eof() ends one direction, and the other one goes on; or can_write_eof() says not."""
    async with _linked(make_pair) as link:
        if not link.writer.can_write_eof():
            try:
                link.writer.write_eof()
            except NotImplementedError:
                return
            raise ConformanceError("write_eof() raises no NotImplementedError")
        link.writer.write(b"the last words")
        link.writer.write_eof()
        await _receives(link.peer_reader, b"the last words", "what was written before write_eof()")
        await _ends(link.peer_reader, "a half that was closed")
        expect(not link.writer.is_closing(), "write_eof() closes the stream")
        try:
            link.writer.write(b"too late")
        except RuntimeError:
            pass
        else:
            raise ConformanceError("write() after write_eof() raises no RuntimeError")
        link.peer_writer.write(b"an answer")
        await _receives(link.reader, b"an answer", "the other direction after write_eof()")
    async with _linked(make_pair) as link:
        link.peer_writer.write_eof()
        await _ends(link.reader, "the half that the peer closed")
        await _turns()
        expect(not link.writer.is_closing(), "the stream closes at the peer's write_eof()")
        link.writer.write(b"an answer")
        await _receives(link.peer_reader, b"an answer", "what was written after the peer's end")


async def _close_sends_everything(make_pair: MakeStreams) -> None:
    """close() sends all bytes and then the end; wait_closed() waits for it."""
    async with _linked(make_pair) as link:
        written, _drain = await link.fill()
        link.writer.close()
        link.writer.close()
        expect(link.writer.is_closing(), "is_closing() is false after close()")
        closing = link.start(link.writer.wait_closed())
        await asyncio.sleep(_QUIET)
        expect(not closing.done(), "wait_closed() ended before what was written was sent")
        await _receives(link.peer_reader, written, "what was written before close()")
        await _ends(link.peer_reader, "a closed stream")
        await _result(closing, "wait_closed()")
        await _result(link.writer.wait_closed(), "another wait_closed()")
        expect(link.writer.is_closing(), "is_closing() is false after wait_closed()")


async def _a_loss_can_be_survived(make_pair: MakeStreams) -> None:
    """After a reset write() and close() raise nothing, and wait_closed() ends, if with an error."""
    async with _linked(make_pair) as link:
        reading = link.start(link.reader.read(1))
        link.reset()
        await _outcome(reading, "read() during a reset")
        try:
            link.writer.write(b"nobody reads this")
            link.writer.close()
        except Exception as error:
            raise ConformanceError(f"a lost stream raised {error!r}") from error
        expect(link.writer.is_closing(), "is_closing() is false after a reset and close()")
        outcome = await _outcome(link.writer.wait_closed(), "wait_closed() after a reset")
        expect(
            outcome is None or isinstance(outcome, OSError),
            f"wait_closed() after a reset raised {outcome!r}",
        )


async def _only_buffers_are_written(make_pair: MakeStreams) -> None:
    """Anything else raises TypeError, and nothing is sent."""
    async with _linked(make_pair) as link:
        wrong: tuple[Any, ...] = ("text", 5)
        for each in wrong:
            try:
                link.writer.write(each)
            except TypeError:
                continue
            raise ConformanceError(f"write({each!r}) raises no TypeError")
        link.writer.write(b"right")
        await _receives(link.peer_reader, b"right", "a write after wrong ones")


async def _nothing_else_can_be_asked_of_a_reader(make_pair: MakeStreams) -> None:
    """readexactly() of less than nothing and readuntil() of b"" raise ValueError."""
    async with _linked(make_pair) as link:
        link.peer_writer.write(b"abc")
        await _error(ValueError, link.reader.readexactly(-1), "readexactly(-1)")
        await _error(ValueError, link.reader.readuntil(b""), "readuntil(b'')")
        await _receives(link.reader, b"abc", "what came before wrong calls")


async def _unknown_information_is_the_default(make_pair: MakeStreams) -> None:
    """get_extra_info() of a name that nobody knows returns None, or what it was given."""
    async with _linked(make_pair) as link:
        for default in ((), ("something",)):
            try:
                found = link.writer.get_extra_info("no such name", *default)
            except Exception as error:
                raise ConformanceError(f"get_extra_info() raised {error!r}") from error
            wanted = default[0] if default else None
            expect(found == wanted, f"get_extra_info() returned {found!r}, not {wanted!r}")


async def _both_ways_go_on_at_once(make_pair: MakeStreams) -> None:
    """One task may read while another drains: a peer that echoes all is no deadlock."""
    async with _linked(make_pair) as link:
        data = _data(_MUCH)
        echo = link.start(_echo(link.peer_reader, link.peer_writer, len(data)))
        sending = link.start(_send(link.writer, data))
        await _receives(link.reader, data, "what the peer echoed")
        await _result(sending, "drain() while another task reads")
        await _result(echo, "the peer's drain() of what was read")


#: The checks of :func:`check_stream` by name, to run each as a test of its own.
STREAM_CHECKS: Mapping[str, StreamCheck] = MappingProxyType(
    {
        check.__name__.lstrip("_"): check
        for check in (
            _bytes_arrive_as_written,
            _read_returns_what_there_is,
            _all_is_read_to_the_end,
            _exactly_as_many_are_read,
            _separators_are_found,
            _long_messages_are_refused_and_kept,
            _lines_are_read_to_the_end,
            _iteration_gives_the_lines,
            _the_end_is_behind_the_last_byte,
            _a_cancelled_read_loses_nothing,
            _one_task_reads_at_a_time,
            _a_reset_is_told_to_readers,
            _nothing_else_can_be_asked_of_a_reader,
            _written_buffers_are_the_callers,
            _writelines_writes_all_as_one,
            _only_buffers_are_written,
            _drain_waits_for_the_peer,
            _drain_tells_of_a_loss,
            _a_half_can_be_closed,
            _close_sends_everything,
            _a_loss_can_be_survived,
            _unknown_information_is_the_default,
            _both_ways_go_on_at_once,
        )
    }
)


async def check_stream(
    make_pair: MakeStreams, checks: Mapping[str, StreamCheck] = STREAM_CHECKS
) -> None:
    """Hold a stream to the contract of asyncio's.

    ::

        async def make_pair(limit):
            accepted = asyncio.Queue()
            server = await asyncio.start_server(lambda *peer: accepted.put_nowait(peer), "::1", 0)
            address = server.sockets[0].getsockname()
            stream = await asyncio.open_connection(*address[:2], limit=limit)
            peer = await accepted.get()
            server.close()
            return stream, peer, lambda: stackmap.reset_transport(peer[1].transport)

        asyncio.run(check_stream(make_pair))

    Args:
        make_pair: connects two streams, each a reader and a writer, of any classes that have the
            methods of :class:`ReaderLike` and :class:`WriterLike`.  It is given the most bytes that
            the reader of the first may return from ``readuntil()``, and returns the streams, and
            a function that resets the connection from the second's end, at any time and more than
            once.  The first stream is checked; the second only has to work.  The check closes
            both.  It is called at least once for each check.
        checks: which of ``STREAM_CHECKS``.

    Raises:
        ConformanceError: the stream does not keep to the contract; it says in what.
    """
    for name, check in checks.items():
        with naming(name, check):
            await check(make_pair)
