"""What one delivery does to protocols that fail, pause, close or change in the middle of it.

Deliveries are in C (``stackmap/_fast_transport.c``).  ``tests/guest/test_aio_delivery.py`` runs the
same on rings.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import socket
import sys
import weakref
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from stackmap import Port, Segment, SocketPort
from stackmap.aio import PortTransport, SegmentProtocol, loop_factory
from tests.aio_loops import PATIENCE, Recorder, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    NewLoop = Callable[[], asyncio.AbstractEventLoop]

COUNT = 5
number_of: contextvars.ContextVar[int] = contextvars.ContextVar("number_of", default=-1)


@pytest.fixture
def make_port() -> Callable[[], Port]:
    """Makes ports of the backend under test."""
    return SocketPort


@pytest.fixture(params=["plain", "debug"])
def loop(
    request: pytest.FixtureRequest, make_port: Callable[[], Port]
) -> Iterator[asyncio.AbstractEventLoop]:
    loop = loop_factory(make_port)()
    loop.set_debug(request.param == "debug")
    yield loop
    loop.close()


class Party:
    """Connections whose data arrive at once, and what is done by whose is delivered first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        self.loop = loop
        self.stack = stack
        self.members: list[Member] = []
        self.calls = 0
        self.complaints: list[dict[str, Any]] = []
        #: What the callback with this number does.
        self.acts: dict[int, Callable[[Member], object]] = {}
        loop.set_exception_handler(self._complain)

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append({**context, "number": number_of.get(), "handled": sys.exc_info()[1]})

    def called(self, member: Member) -> None:
        assert number_of.get() == member.number
        self.calls += 1
        act = self.acts.pop(self.calls, None)
        if act is not None:
            act(member)

    def others(self) -> list[Member]:
        """Those that nothing was delivered to so far."""
        return [member for member in self.members if not member.data]

    async def gather(self, make: Callable[[Party, int], Member]) -> None:
        listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for number in range(COUNT):
            member = make(self, number)

            async def join(member: Member = member, number: int = number) -> None:
                number_of.set(number)
                protocol: Any = member
                await self.loop.create_connection(lambda: protocol, *listener.getsockname()[:2])

            await asyncio.create_task(join())
            member.peer = self.stack.enter_context(listener.accept()[0])
            self.members.append(member)

    def send(self, data: bytes = b"data") -> None:
        for member in self.members:
            member.peer.sendall(data)


class Member:
    """A protocol; subclasses say what it takes."""

    def __init__(self, party: Party, number: int) -> None:
        self.party = party
        self.number = number
        self.data = b""
        self.lost: list[BaseException | None] = []
        self.peer: Any = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def take(self, data: bytes) -> None:
        self.data += data
        self.party.called(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.append(exc)

    def eof_received(self) -> None:
        pass

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


class TakesBytes(Member, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.take(data)


class TakesSegments(Member, SegmentProtocol):
    def segments_received(self, segments: list[Segment]) -> None:
        for segment in segments:
            assert segment.connection is self.transport.get_extra_info("stackmap.connection")
        self.take(b"".join(segment.view for segment in segments))


class TakesBuffers(Member, asyncio.BufferedProtocol):
    room = 65536

    def get_buffer(self, sizehint: int) -> bytearray:
        assert sizehint == -1
        self.buffer = bytearray(self.room)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.take(bytes(self.buffer[:nbytes]))


KINDS = [TakesBytes, TakesSegments, TakesBuffers]
each_kind = pytest.mark.parametrize("kind", KINDS)


def party(loop: asyncio.AbstractEventLoop, program: Callable[[Party], Any], kind: Any) -> Party:
    """Run a program with a party, and close what is left of it."""
    with ExitStack() as stack:
        found = Party(loop, stack)

        async def main() -> None:
            await found.gather(kind)
            async with asyncio.timeout(PATIENCE):
                await program(found)

        async def end() -> None:
            for member in found.members:
                member.transport.abort()
            await until(lambda: all(member.lost for member in found.members))

        loop.run_until_complete(main())
        loop.run_until_complete(end())
    return found


def fail(exc: BaseException) -> Callable[[Member], object]:
    def act(_member: Member) -> None:
        raise exc

    return act


@each_kind
def test_a_failing_protocol_is_the_only_one_that_ends(
    loop: asyncio.AbstractEventLoop, kind: type[Member]
) -> None:
    failure = ZeroDivisionError()

    async def program(party: Party) -> None:
        party.acts[2] = fail(failure)
        party.send()
        await until(lambda: party.calls == COUNT and any(member.lost for member in party.members))
        assert [member.data for member in party.members] == [b"data"] * COUNT
        party.send(b"more")
        await until(lambda: party.calls == 2 * COUNT - 1)

    found = party(loop, program, kind)
    (complaint,) = found.complaints
    (victim,) = [member for member in found.members if member.lost == [failure]]
    assert victim.data == b"data"
    assert complaint["exception"] is complaint["handled"] is failure
    assert failure.__traceback__ is not None
    assert complaint["message"].startswith("Fatal error: protocol.")
    assert complaint["message"].endswith("() call failed.")
    assert complaint["protocol"] is victim
    assert complaint["transport"] is victim.transport
    assert complaint["number"] == victim.number  # the handler runs in the transport's context


@each_kind
@pytest.mark.parametrize("exc", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_program_leaves_the_rest_for_later(
    loop: asyncio.AbstractEventLoop, kind: type[Member], exc: type[BaseException]
) -> None:
    with ExitStack() as stack:
        found = Party(loop, stack)
        loop.run_until_complete(found.gather(kind))
        found.send()
        found.acts[2] = fail(exc())
        loop.call_later(PATIENCE, loop.stop)
        with pytest.raises(exc):
            loop.run_forever()
        assert found.calls == 2
        loop.run_until_complete(until(lambda: found.calls == COUNT))
        assert [member.data for member in found.members] == [b"data"] * COUNT
        assert not found.complaints
        for member in found.members:
            member.transport.abort()
        loop.run_until_complete(until(lambda: all(member.lost for member in found.members)))


@each_kind
def test_one_that_another_pauses_gets_its_data_later(
    loop: asyncio.AbstractEventLoop, kind: type[Member]
) -> None:
    async def program(party: Party) -> None:
        paused: list[Member] = []

        def pause(_member: Member) -> None:
            paused[:] = party.others()
            for other in paused:
                other.transport.pause_reading()

        party.acts[2] = pause
        party.send(b"da")
        await until(lambda: party.calls == 2)
        party.send(b"ta")
        for _ in range(10):
            await asyncio.sleep(0)
        assert party.others() == paused
        assert len(paused) == COUNT - 2
        for member in paused:
            member.transport.resume_reading()
        await until(lambda: all(member.data == b"data" for member in party.members))

    assert not party(loop, program, kind).complaints


@each_kind
@pytest.mark.parametrize("how", ["close", "abort"])
def test_one_that_another_closes_gets_nothing(
    loop: asyncio.AbstractEventLoop, kind: type[Member], how: str
) -> None:
    async def program(party: Party) -> None:
        def close(_member: Member) -> None:
            for other in party.others():
                getattr(other.transport, how)()

        party.acts[2] = close
        party.send()
        await until(lambda: sum(bool(member.lost) for member in party.members) == COUNT - 2)
        assert party.calls == 2

    assert not party(loop, program, kind).complaints


@each_kind
@pytest.mark.parametrize("after", KINDS)
def test_one_that_another_gives_a_protocol(
    loop: asyncio.AbstractEventLoop, kind: type[Member], after: type[Member]
) -> None:
    async def program(party: Party) -> None:
        successors = []

        def succeed(_member: Member) -> None:
            for other in party.others():
                successor = after(party, other.number)
                successor.transport = other.transport
                other.transport.set_protocol(successor)
                successors.append(successor)

        party.acts[2] = succeed
        party.send()
        await until(lambda: party.calls == COUNT)
        assert [successor.data for successor in successors] == [b"data"] * (COUNT - 2)
        assert len(party.others()) == COUNT - 2
        for successor in successors:
            successor.transport.set_protocol(party.members[successor.number])

    assert not party(loop, program, kind).complaints


@each_kind
def test_a_protocol_that_only_its_callback_keeps(
    loop: asyncio.AbstractEventLoop, kind: type[Member]
) -> None:
    async def program(party: Party) -> None:
        member = party.members[0]
        forgotten = kind(party, 0)
        forgotten.transport = member.transport
        member.transport.set_protocol(forgotten)
        seen = weakref.ref(forgotten)
        del forgotten

        def leave(last: Member) -> None:
            last.transport.set_protocol(member)
            assert seen() is last

        party.acts[1] = leave
        member.peer.sendall(b"data")
        await until(lambda: party.calls)
        gc.collect()
        assert seen() is None

    assert not party(loop, program, kind).complaints


class Small(TakesBuffers):
    room = 3


@pytest.mark.parametrize("after", KINDS)
def test_a_buffer_that_does_not_hold_all_and_is_the_last(
    loop: asyncio.AbstractEventLoop, after: type[Member]
) -> None:
    async def program(party: Party) -> None:
        member = party.members[0]
        successor = after(party, 0)
        successor.transport = member.transport
        party.acts[2] = lambda _member: member.transport.set_protocol(successor)
        member.peer.sendall(b"0123456789" * 100)
        await until(lambda: len(successor.data) == 994)
        assert member.data + successor.data == b"0123456789" * 100
        member.transport.set_protocol(member)

    assert not party(loop, program, Small).complaints


@pytest.mark.parametrize("how", ["pause_reading", "close"])
def test_a_buffer_that_does_not_hold_all_and_is_enough(
    loop: asyncio.AbstractEventLoop, how: str
) -> None:
    async def program(party: Party) -> None:
        member = party.members[0]
        party.acts[2] = lambda _member: getattr(member.transport, how)()
        member.peer.sendall(b"0123456789" * 100)
        await until(lambda: party.calls == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert member.data == b"012345"
        member.transport.resume_reading()
        if how == "pause_reading":
            await until(lambda: len(member.data) == 1000)
            assert member.data == b"0123456789" * 100

    assert not party(loop, program, Small).complaints


class NoBuffer(TakesBuffers):
    def get_buffer(self, sizehint: int) -> bytearray:
        found: list[bytearray] = []
        return found[sizehint]


class EmptyBuffer(TakesBuffers):
    room = 0


class ReadOnly(TakesBuffers):
    def get_buffer(self, _sizehint: int) -> Any:
        return b"read only"


@pytest.mark.parametrize(
    ("kind", "exc"),
    [(NoBuffer, IndexError), (EmptyBuffer, RuntimeError), (ReadOnly, BufferError)],
)
def test_a_protocol_without_a_buffer(
    loop: asyncio.AbstractEventLoop, kind: type[Member], exc: type[Exception]
) -> None:
    async def program(party: Party) -> None:
        party.send()
        await until(lambda: all(member.lost for member in party.members))

    found = party(loop, program, kind)
    assert len(found.complaints) == COUNT
    for complaint in found.complaints:
        assert isinstance(complaint["exception"], exc)
        assert complaint["message"] == "Fatal error: protocol.get_buffer() call failed."


@each_kind
def test_nothing_is_left_of_deliveries(loop: asyncio.AbstractEventLoop, kind: type[Member]) -> None:
    loop.set_debug(False)  # it keeps tracebacks

    async def program(party: Party) -> None:
        wanted = [0]

        async def deliver(times: int) -> None:
            for _ in range(times):
                wanted[0] = party.calls + COUNT
                party.send()
                await until(lambda: party.calls >= wanted[0])
                for member in party.members:
                    member.data = b""
            gc.collect()

        await deliver(20)
        blocks = sys.getallocatedblocks()
        none, true = sys.getrefcount(None), sys.getrefcount(True)
        await deliver(400)
        assert sys.getallocatedblocks() - blocks < 200
        assert abs(sys.getrefcount(None) - none) < 200
        assert abs(sys.getrefcount(True) - true) < 200

    party(loop, program, kind)


@each_kind
def test_nothing_is_left_of_failures(loop: asyncio.AbstractEventLoop, kind: type[Member]) -> None:
    loop.set_debug(False)
    transports: list[weakref.ref[Any]] = []

    def fail_all(times: int) -> None:
        for _ in range(times):

            async def program(party: Party) -> None:
                transports.extend(weakref.ref(member.transport) for member in party.members)
                for call in range(1, COUNT + 1):
                    party.acts[call] = fail(ZeroDivisionError())
                party.send()
                await until(lambda: all(member.lost for member in party.members))

            assert len(party(loop, program, kind).complaints) == COUNT
        loop.set_exception_handler(None)
        gc.collect()

    fail_all(3)
    blocks = sys.getallocatedblocks()
    fail_all(10)
    assert sys.getallocatedblocks() - blocks < 200
    assert not any(transport() for transport in transports)


def test_write_is_a_method_like_others(loop: asyncio.AbstractEventLoop) -> None:
    assert str(inspect.signature(PortTransport.write)) == "(self, data: 'Buffer') -> 'None'"
    assert PortTransport.write.__name__ == "write"
    assert (PortTransport.write.__doc__ or "").startswith("Send ``data``")

    async def program(party: Party) -> None:
        transport = party.members[0].transport
        peer = party.members[0].peer
        assert str(inspect.signature(transport.write)) == "(data: 'Buffer') -> 'None'"
        assert transport.write(b"1") is None
        transport.write(data=b"2")
        PortTransport.write(transport, bytearray(b"3"))
        write = transport.write
        write(memoryview(b"456")[1:2])
        transport.write(memoryview(b"a-b-c-")[::2].tobytes())
        transport.write(b"")
        await until(lambda: transport.get_write_buffer_size() == 0)
        received = b""
        while len(received) < 7:
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                received += peer.recv(100, socket.MSG_DONTWAIT)
        assert received == b"1235abc"
        for wrong in ("text", 1, None):
            with pytest.raises(TypeError, match="bytes-like"):
                transport.write(wrong)
        with pytest.raises(TypeError):
            transport.write()
        with pytest.raises(TypeError):
            transport.write(b"", b"")
        with pytest.raises(AttributeError):
            PortTransport.write(cast("Any", party.members[0]), b"")
        transport.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            transport.write(b"late")

    assert not party(loop, program, TakesBytes).complaints


def test_a_stranger_is_told_of(make_port: Callable[[], Port]) -> None:
    """Whoever attaches a connection to the loop's port loses what it receives, and is told."""
    with make_port() as port, ExitStack() as stack:
        loop = loop_factory(lambda: port)()
        stack.callback(loop.close)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        peer = stack.enter_context(socket.create_connection(listener.getsockname()))
        connection = port.attach(listener.accept()[0])
        complaints: list[str] = []
        loop.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))

        async def main() -> None:
            peer.sendall(b"lost")
            await until(lambda: complaints)

        loop.run_until_complete(main())
        assert "attached to the loop's port by somebody else" in complaints[0]
        connection.close()


def test_recorder_is_told_as_before(loop: asyncio.AbstractEventLoop) -> None:
    """A protocol that closes within its callback gets no more, and is told of its end once."""

    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _transport, protocol = await loop.create_connection(Closing, *listener.getsockname())
            peer, _address = listener.accept()
        with peer:
            peer.sendall(b"data")
            await until(lambda: protocol.lost)
            assert protocol.story == ["made", "data", "lost"]

    loop.run_until_complete(main())
