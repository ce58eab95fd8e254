"""What every transport of TCP does.  The standard library's is the oracle.

``tests/guest/test_aio_transport.py`` runs the same on rings.
"""

from __future__ import annotations

import array
import asyncio
import contextvars
import logging
import socket
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from stackmap import SocketPort
from stackmap.aio import loop_factory
from tests.aio_loops import Recorder, connect, receive, receive_all, run, until
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    NewLoop = Callable[[], asyncio.AbstractEventLoop]

#: More than the buffers of both kernels' sockets hold.
HUGE = 8 << 20
PATTERN = bytes(range(251)) * 4177  # 1 MiB


@pytest.fixture(params=["asyncio", "sockets"])
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    """Makes loops of the kind under test."""
    return asyncio.SelectorEventLoop if request.param == "asyncio" else loop_factory(SocketPort)


def test_callbacks_come_in_order(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            assert protocol.story == ["made"]
            peer.send(b"abc")
            await until(lambda: protocol.data)
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.lost)
        assert protocol.story == ["made", "data", "eof", "lost"]
        assert protocol.lost == [None]
        assert transport.is_closing()
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"

    run(new_loop, main())


def test_a_megabyte_each_way(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.write(PATTERN)
            loop = asyncio.get_running_loop()
            sending = loop.create_task(loop.sock_sendall(peer, PATTERN))
            assert await receive(peer, len(PATTERN)) == PATTERN
            await sending
            await until(lambda: len(protocol.data) == len(PATTERN))
            assert protocol.data == PATTERN
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_a_buffer_may_be_reused_after_write(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            data = bytearray(PATTERN)
            for _ in range(8):  # most of it waits in the transport
                transport.write(data)
            data[:] = bytes(len(data))
            assert await receive(peer, 8 * len(PATTERN)) == 8 * PATTERN
            transport.abort()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_items_of_a_view_may_be_larger_than_bytes(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.write(memoryview(array.array("I", b"abcdefgh")))
            assert await receive(peer, 8) == b"abcdefgh"
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_close_sends_everything(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.write(bytes(HUGE))
            transport.close()
            assert protocol.lost == []
            assert await receive_all(peer) == bytes(HUGE)
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(new_loop, main())


def test_resume_writing_may_write_while_closing(new_loop: NewLoop) -> None:
    """As TLS does with its close_notify; all that waited fits into one send."""

    class Writer(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"end")

    async def main() -> None:
        transport, protocol, peer = await connect(Writer)
        with peer:
            transport.set_write_buffer_limits(high=0)
            size = 0
            while "pause" not in protocol.story:
                transport.write(PATTERN[:50_000])
                size += 50_000
                await asyncio.sleep(0)
            with suppress(BlockingIOError):  # makes room before the next turn sends
                while True:
                    size -= len(peer.recv(HUGE))
            transport.close()
            await until(lambda: protocol.lost)
            assert protocol.story == ["made", "pause", "resume", "lost"]
            rest = await receive_all(peer)
            assert (len(rest), rest[-3:]) == (size + 3, b"end")

    run(new_loop, main())


@pytest.mark.parametrize("closing", [False, True])
def test_a_queue_that_grows_before_its_protocol_is_told(new_loop: NewLoop, closing: bool) -> None:
    """It has sunk to the low limit, and then another connection's protocol writes to it."""

    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        written = 0

        def write(size: int) -> None:
            nonlocal written
            transport.write(bytes(size))
            written += size

        class Writer(Recorder):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                while not transport.get_write_buffer_size():
                    write(500)
                if closing:
                    transport.close()

        other_transport, other, other_peer = await connect(Writer)
        with peer, other_peer:
            transport.set_write_buffer_limits(high=20_000, low=0)
            while "pause" not in protocol.story:
                write(5000)
                await asyncio.sleep(0)
            other_peer.send(b"x")
            read = 0
            with suppress(BlockingIOError):  # the next turn sends all that waits
                while True:
                    read += len(peer.recv(HUGE))
            await until(lambda: other.data)
            while read < written:
                read += len(await receive(peer, written - read))
            await until(lambda: "resume" in protocol.story)
            transport.close()
            other_transport.close()
            await until(lambda: protocol.lost and other.lost)

    run(new_loop, main())


def test_limits_may_change_while_writing_is_paused(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.set_write_buffer_limits(high=0)
            transport.write(bytes(HUGE))
            await until(lambda: "pause" in protocol.story)
            transport.set_write_buffer_limits(high=2 * HUGE, low=0)
            assert await receive(peer, HUGE) == bytes(HUGE)
            await until(lambda: "resume" in protocol.story)
            transport.close()
            await until(lambda: protocol.lost)
            assert protocol.story == ["made", "pause", "resume", "lost"]

    run(new_loop, main())


def test_abort_drops_what_is_not_sent(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.write(bytes(HUGE))
            await asyncio.sleep(0)
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]
            assert len(await receive_all(peer)) < HUGE  # and no reset

    run(new_loop, main())


def test_a_connection_that_is_reset_before_it_is_accepted(new_loop: NewLoop) -> None:
    """Its protocol may ask for its own address, as uvicorn's, and set options, as aiohttp's."""

    class Asking(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert sock.getsockname() == address
            assert transport.get_extra_info("sockname") == address
            with suppress(OSError):
                sock.getpeername()

    async def main() -> None:
        protocols: list[Asking] = []

        def make() -> Asking:
            protocols.append(Asking())
            return protocols[-1]

        server = await asyncio.get_running_loop().create_server(make, sock=listener)
        for data in (b"", b"request"):
            with socket.create_connection(address) as peer:
                peer.sendall(data)
                reset_on_close(peer)
        await until(lambda: sum(len(each.lost) for each in protocols) == 2)
        server.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        run(new_loop, main())


def test_a_reset_is_reported(new_loop: NewLoop) -> None:
    async def main() -> None:
        _transport, protocol, peer = await connect(Recorder)
        reset_on_close(peer)
        peer.close()
        await until(lambda: protocol.lost)
        assert [type(exc) for exc in protocol.lost] != [type(None)]
        assert isinstance(protocol.lost[0], ConnectionResetError)

    run(new_loop, main())


@pytest.mark.parametrize("way", ["write", "writelines"])
@pytest.mark.parametrize("high", [0, None])
def test_flow_control(new_loop: NewLoop, way: str, high: int | None) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            transport.set_write_buffer_limits(high=high)
            if way == "write":
                transport.write(bytes(HUGE))
            else:
                transport.writelines([bytes(HUGE // 4)] * 4)
            await until(lambda: "pause" in protocol.story)
            low, _high = transport.get_write_buffer_limits()
            assert transport.get_write_buffer_size() > low
            assert await receive(peer, HUGE) == bytes(HUGE)
            await until(lambda: "resume" in protocol.story)
            assert transport.get_write_buffer_size() <= low
            assert protocol.story == ["made", "pause", "resume"]
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_limits_are_checked(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.set_write_buffer_limits(low=100)
            assert transport.get_write_buffer_limits() == (100, 400)
            with pytest.raises(ValueError, match="must be >="):
                transport.set_write_buffer_limits(high=1, low=2)
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_pause_writing_may_write(new_loop: NewLoop) -> None:
    class Writer(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.write(b"end")

    async def main() -> None:
        transport, protocol, peer = await connect(Writer)
        with peer:
            transport.write(bytes(HUGE))
            assert await receive(peer, HUGE + 3) == bytes(HUGE) + b"end"
            await until(lambda: "resume" in protocol.story)
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_nothing_is_delivered_while_reading_is_paused(new_loop: NewLoop) -> None:
    class Sipper(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async def main() -> None:
        transport, protocol, peer = await connect(Sipper)
        with peer:
            await asyncio.get_running_loop().sock_sendall(peer, PATTERN[:20000])
            peer.shutdown(socket.SHUT_WR)
            while not protocol.lost:
                await until(lambda: not transport.is_reading() or protocol.lost)
                had = len(protocol.data)
                for _ in range(3):
                    await asyncio.sleep(0)
                assert len(protocol.data) == had
                transport.resume_reading()
        assert protocol.data == PATTERN[:20000]
        assert protocol.story == ["made", "data", "eof", "lost"]

    run(new_loop, main())


@pytest.mark.parametrize("keep_open", [False, True])
def test_a_reset_that_answers_what_was_sent_before_close(
    new_loop: NewLoop, keep_open: bool
) -> None:
    """Everything was handed to TCP: it is a close like others, as with asyncio's transports."""

    async def main() -> None:
        transport, protocol, peer = await connect(lambda: Recorder(keep_open=keep_open))
        peer.close()
        if keep_open:
            await until(lambda: "eof" in protocol.story)
        transport.write(b"to nobody")
        if keep_open:
            transport.close()
        await until(lambda: protocol.lost)
        assert protocol.story == ["made", "eof", "lost"]
        assert protocol.lost == [None]

    run(new_loop, main())


def test_half_close(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            assert transport.can_write_eof()
            transport.write(b"question")
            transport.write_eof()
            transport.write_eof()
            assert await receive_all(peer) == b"question"
            with pytest.raises(RuntimeError, match="after write_eof"):
                transport.write(b"more")
            peer.send(b"answer")
            await until(lambda: protocol.data)
            assert not transport.is_closing()
            transport.close()
            await until(lambda: protocol.lost)
            assert (protocol.data, protocol.lost) == (b"answer", [None])

    run(new_loop, main())


def test_a_protocol_may_keep_it_open_after_eof(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(lambda: Recorder(keep_open=True))
        with peer:
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: "eof" in protocol.story)
            transport.write(b"still here")
            transport.write_eof()
            assert await receive_all(peer) == b"still here"
            for _ in range(10):
                await asyncio.sleep(0)
            assert protocol.lost == []  # it is for the program to close
            transport.close()
            await until(lambda: protocol.lost)
            assert protocol.lost == [None]

    run(new_loop, main())


def test_bad_arguments(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            for bad in ("text", 1, None, [b"x"]):
                with pytest.raises(TypeError):
                    transport.write(bad)
            transport.write(b"")
            transport.close()
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


@pytest.mark.parametrize("debug", [False, True])
def test_bad_parts(new_loop: NewLoop, debug: bool) -> None:
    """With one of them, nothing is sent of the others."""
    released = memoryview(b"released")
    released.release()

    async def main() -> None:
        asyncio.get_running_loop().set_debug(debug)
        transport, protocol, peer = await connect(Recorder)
        with peer:
            for bad in ("text", 1, None, memoryview(b"a b c")[::2]):
                for parts in ([b"a", bad], (b"a", bad), iter([b"a", bad])):
                    with pytest.raises(TypeError):
                        transport.writelines(parts)
            with pytest.raises((TypeError, ValueError)):
                transport.writelines([b"a", released])
            with pytest.raises(TypeError):
                transport.writelines(1)
            transport.write_eof()
            with pytest.raises(RuntimeError):
                transport.writelines([b"a"])
            assert await receive_all(peer) == b""
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


PARTS = [b"one, ", bytearray(b"two, "), memoryview(b"three"), b"", memoryview(bytes(8)).cast("Q")]


def test_parts_are_sent_in_order(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            ways: list[Callable[[list[Any]], Iterable[Any]]] = [list, tuple, iter]
            for way in ways:
                transport.writelines(way([]))
                transport.writelines(way([b""]))
                transport.writelines(way(PARTS))
                transport.writelines(way([PATTERN[:3000], PATTERN[:5000], b"end"]))
            sent = b"one, two, three" + bytes(8) + PATTERN[:3000] + PATTERN[:5000] + b"end"
            assert await receive(peer, 3 * len(sent)) == 3 * sent
            transport.close()
            await until(lambda: protocol.lost)
            transport.writelines([b"dropped"])

    run(new_loop, main())


def test_parts_that_a_port_does_not_take_at_once(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            parts = [b"first", PATTERN * (HUGE // len(PATTERN)), b"last"]
            transport.writelines(parts)
            transport.writelines(parts)
            sent = 2 * b"".join(parts)
            assert await receive(peer, len(sent)) == sent
            transport.close()
            await until(lambda: protocol.lost)

    run(new_loop, main())


def test_writes_to_a_lost_connection(new_loop: NewLoop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        peer.close()
        await until(lambda: protocol.lost)
        with caplog.at_level(logging.WARNING, logger="asyncio"):
            for _ in range(4):
                transport.write(b"dropped")
            assert not caplog.records
            transport.write(b"dropped")
            assert len(caplog.records) == 1

    run(new_loop, main())


def test_a_program_that_only_writes_hears_of_the_end(new_loop: NewLoop) -> None:
    """Without giving the loop a turn, as ``drain()`` need not."""

    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        reset_on_close(peer)
        peer.close()
        while not transport.is_closing():
            transport.write(bytes(1000))
        await until(lambda: protocol.lost)
        assert isinstance(protocol.lost[0], OSError)

    run(new_loop, main())


class Filler(asyncio.BufferedProtocol):
    """Has buffers of so many bytes."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.data = bytearray()
        self.ended = False

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002
        self.ended = True


@pytest.mark.parametrize("size", [1, 100, 5000, 100_000])
def test_buffered_protocol(new_loop: NewLoop, size: int) -> None:
    amount = min(len(PATTERN), 300 * size)

    async def main() -> None:
        _transport, protocol, peer = await connect(lambda: Filler(size))
        with peer:
            await asyncio.get_running_loop().sock_sendall(peer, PATTERN[:amount])
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: protocol.ended)
        assert protocol.data == PATTERN[:amount]

    run(new_loop, main())


def test_the_protocol_may_change_in_mid_stream(new_loop: NewLoop) -> None:
    after = Recorder(story=["made"])

    class Header(Filler):
        transport: Any

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            if len(self.data) == 4:
                self.transport.set_protocol(after)

    async def main() -> None:
        _transport, protocol, peer = await connect(lambda: Header(2))
        with peer:
            await asyncio.get_running_loop().sock_sendall(peer, PATTERN[:20000])
            peer.shutdown(socket.SHUT_WR)
            await until(lambda: after.lost)
        assert protocol.data + after.data == PATTERN[:20000]

    run(new_loop, main())


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_callbacks_have_the_context_of_creation(new_loop: NewLoop) -> None:
    seen = {}

    class Looker(Recorder):
        def data_received(self, data: bytes) -> None:  # noqa: ARG002
            seen["data"] = variable.get()

        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            seen["lost"] = variable.get()

    async def main() -> None:
        variable.set("at creation")
        _transport, protocol, peer = await connect(Looker)
        variable.set("later")
        with peer:
            peer.send(b"x")
            await until(lambda: seen)
        await until(lambda: protocol.lost)
        assert seen == {"data": "at creation", "lost": "at creation"}

    run(new_loop, main())


def test_what_programs_ask_a_transport_for(new_loop: NewLoop) -> None:
    async def main() -> None:
        transport, protocol, peer = await connect(Recorder)
        with peer:
            assert isinstance(transport, asyncio.Transport)
            assert weakref.ref(transport)() is transport
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getpeername() == transport.get_extra_info("peername") == peer.getsockname()
            assert sock.getsockname() == transport.get_extra_info("sockname") == peer.getpeername()
            assert transport.get_extra_info("sslcontext") is None
            assert id(transport.get_protocol()) == id(protocol)
            assert transport.is_reading()
            assert "fd=" in repr(transport)
            transport.close()
            await until(lambda: protocol.lost)
            assert transport.get_extra_info("peername") == peer.getsockname()
            assert "closed" in repr(transport)

    run(new_loop, main())


def test_an_exception_of_a_protocol_ends_the_connection(new_loop: NewLoop) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:  # noqa: ARG002
            raise ZeroDivisionError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: told.append(context))
        transport, protocol, peer = await connect(Failing)
        with peer:
            peer.send(b"x")
            await until(lambda: protocol.lost)
        assert [type(each["exception"]) for each in told] == [ZeroDivisionError]
        assert told[0]["transport"] is transport
        assert isinstance(protocol.lost[0], ZeroDivisionError)

    run(new_loop, main())


def test_what_is_written_last_is_sent(new_loop: NewLoop) -> None:
    """The loop ends with the turn that writes, and the peer is read in the same thread."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        transport, _protocol, peer = runner.run(connect(Recorder))

        async def write() -> None:
            transport.write(b"last")

        runner.run(write())
        peer.settimeout(60)
        assert peer.recv(10) == b"last"
        transport.write(b"outside")
        assert peer.recv(10) == b"outside"
        transport.close()
        peer.close()
        runner.run(asyncio.sleep(0))
        runner.run(asyncio.sleep(0))
