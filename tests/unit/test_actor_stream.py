"""A connection's actor over transports in memory: credit, payload, writes, hand-over."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Never, TypeVar
from unittest.mock import Mock

import pytest

from stackmap import Connection, Kept
from stackmap.actor import (
    Ack,
    ActorRef,
    ActorSystem,
    Buffer,
    Child,
    Closed,
    Connected,
    ConnectionActor,
    DecodeError,
    Passive,
    Payload,
    PeerClosed,
    Restart,
    Signal,
    Stop,
    WriteFailed,
    WritingResumed,
)
from stackmap.codec import Lines, RemoteProtocolError
from stackmap.errors import BrokenError, BusyError, ClosedError, WouldBlockError
from stackmap.testing import MemoryTransport, VirtualClock, memory_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main())


async def settle() -> None:
    await asyncio.sleep(0.001)


class Peer(asyncio.Protocol):
    """The other end."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.ends.append("eof")
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        self.ends.append(exc)


class Session(ConnectionActor[Any, Any, Any]):
    """Keeps what it is told; other actors' messages are functions to call with it."""

    def __init__(self, mode: Any = True) -> None:
        self.mode = mode
        self.seen: list[Any] = []

    def connected(self) -> None:
        if self.mode:
            self.stream.active(self.mode)

    def received(self, message: Any) -> Awaitable[None] | None:
        self.seen.append(bytes(message))
        return None

    def receive(self, message: Any) -> Awaitable[None] | None:
        result: Awaitable[None] | None = message(self)
        return result

    def on_signal(self, signal: Signal) -> Awaitable[None] | None:
        if not isinstance(signal, Connected):
            self.seen.append(signal)
        return super().on_signal(signal)


class WithFarewell(Lines):
    """Lines of up to 100 bytes, with words for a longer one."""

    def __init__(self) -> None:
        super().__init__(max_length=100)

    def next_message(self) -> bytes | None:
        try:
            return super().next_message()
        except RemoteProtocolError as error:
            raise RemoteProtocolError(str(error), [b"too ", b"long\n"]) from error


class Place:
    """An actor, its peer, and both transports."""

    def __init__(
        self,
        system: ActorSystem,
        actor: Session | None = None,
        codec: Callable[[], Any] | None = Lines,
        **options: Any,
    ) -> None:
        self.actor = actor or Session()
        self.seen = self.actor.seen
        protocol = system.protocol(Child(lambda: self.actor, capacity=8), codec)
        self.peer = Peer()
        self.transport, self.far = memory_pair(protocol, self.peer, **options)
        self.ref = protocol.ref


# -- receiving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_bytes_become_messages_however_they_are_cut(chunk: int) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system)
            place.far.chunk = chunk
            place.far.write(b"one\ntwo\n\nthr")
            await settle()
            assert place.seen == [b"one", b"two", b""]
            place.far.write(b"ee\n")
            place.far.write_eof()
            await settle()
            assert place.seen[3:5] == [b"three", PeerClosed()]

    run(main)


def test_a_connection_begins_passive_and_holds_the_peer_back() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Session(None), window=100)
            await settle()
            place.far.write(b"line\n" * 100)
            await settle()
            assert place.seen == []
            assert not place.transport.is_reading()
            assert place.far.get_write_buffer_size() == 400
            place.ref.tell_nowait(lambda actor: actor.stream.active(True))
            await settle()
            assert place.seen == [b"line"] * 100

    run(main)


def test_credit_counts_reads_and_passive_follows_their_last_message() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Session(2), automatic=False)
            far = place.far
            far.write(b"a\nb\nc\nd\ne\nf\n")
            await settle()
            for _ in range(3):
                far.deliver(4)
                await settle()
            assert place.seen == [b"a", b"b", b"c", b"d", Passive()]
            assert far.in_flight == 4
            place.ref.tell_nowait(lambda actor: actor.stream.active("once"))
            await settle()
            far.deliver(1)
            await settle()
            assert place.seen[5:] == [Passive()], "the read had no complete message"
            place.ref.tell_nowait(lambda actor: actor.stream.active(1))
            await settle()
            far.deliver(3)
            await settle()
            assert place.seen[6:] == [b"e", b"f", Passive()]

    run(main)


def test_once_armed_again_by_the_handler_is_never_passive() -> None:
    class Once(Session):
        def received(self, message: Any) -> None:
            self.seen.append(bytes(message))
            self.stream.active("once")

    async def main() -> None:
        for codec in (Lines, None):
            async with ActorSystem() as system:
                place = Place(system, Once("once"), codec)
                place.far.chunk = 2
                place.far.write(b"a\nb\nc\n")
                await settle()
                assert b"".join(line.rstrip() for line in place.seen) == b"abc"
                place.far.write_eof()
                await settle()
                assert place.seen[3] == PeerClosed()

    run(main)


def test_false_withholds_what_was_received_already() -> None:
    class Stops(Session):
        def received(self, message: Any) -> None:
            self.seen.append(message)
            self.stream.active(False)

    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Stops())
            place.far.write(b"a\nb\n")
            await settle()
            assert place.seen == [b"a"]
            place.ref.tell_nowait(lambda actor: actor.stream.active(True))
            await settle()
            assert place.seen == [b"a", b"b"]

    run(main)


@pytest.mark.parametrize("mode", [0, -1])
def test_credit_is_positive(mode: int) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system)
            await settle()
            with pytest.raises(ValueError, match="active"):
                place.actor.stream.active(mode)

    run(main)


def test_what_waits_for_a_slow_actor_is_bounded() -> None:
    class Slow(Session):
        async def received(self, message: Any) -> None:
            await asyncio.sleep(1)
            self.seen.append(message)

    async def main() -> None:
        async with ActorSystem(grace=0.0) as system:
            place = Place(system, Slow(), window=1 << 20)
            place.far.chunk = 10_000
            line = b"x" * 99 + b"\n"
            place.far.write(line * 5000)
            await asyncio.sleep(10.5)
            assert len(place.seen) == 10
            assert not place.transport.is_reading()
            assert place.far.in_flight >= 5000 * 100 - 90_000

    run(main)


def test_a_protocol_error_is_a_signal_after_the_messages_before_it() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, codec=WithFarewell)
            place.far.write(b"good\n" + b"x" * 200 + b"\nignored\n")
            await settle()
            assert place.seen[0] == b"good"
            assert isinstance(place.seen[1], DecodeError)
            assert place.peer.data == b"too long\n"
            assert place.peer.ends == ["eof"]
            await asyncio.sleep(1.0)  # the peer has a second to hang up
            assert not place.ref.alive
            assert b"ignored" not in place.seen

    run(main)


def test_the_codec_is_told_of_the_end() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system)
            place.far.write(b"whole\ncut")
            place.far.write_eof()
            await settle()
            assert place.seen[0] == b"whole"
            assert isinstance(place.seen[1], DecodeError)
            assert str(place.seen[1].error) == "the peer hung up within a message"

    run(main)


def test_answers_that_are_not_read_hold_back_further_requests() -> None:
    class Answers(Session):
        def received(self, message: Any) -> None:
            self.seen.append(message)
            self.send(b"x" * 999)

    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Answers(), window=1000)
            place.far.pause_reading()
            place.far.write(b"\n" * 900)
            await settle()
            assert 64 <= len(place.seen) <= 2 * 64 + 66
            assert place.actor.stream.congested
            place.far.resume_reading()
            await settle()
            assert len(place.seen) == 900
            assert place.peer.data == (b"x" * 999 + b"\n") * 900

    run(main)


# -- payload -------------------------------------------------------------------------------------


class FakeSegment:
    """As a ring's: valid until the call returns, unless it is kept."""

    def __init__(self, data: bytes) -> None:
        self.memory = bytearray(data)
        self.view = memoryview(self.memory).toreadonly()
        self.released = False

    def release(self) -> None:
        self.view.release()
        self.released = True

    def reuse(self) -> None:
        """The call is over: the page is the ring's again."""
        self.view.release()
        self.memory[:] = b"#" * len(self.memory)


class FakeKept(Kept):
    """A segment that was kept."""

    released = False

    def __init__(self, data: bytes) -> None:
        super().__init__(Mock(spec=Connection), memoryview(data))

    def release(self) -> None:
        super().release()
        self.released = True


class FakePort:
    """Keeps segments."""

    def __init__(self) -> None:
        self.kept: list[FakeKept] = []

    def keep(self, segment: FakeSegment) -> FakeKept:
        assert isinstance(segment, FakeSegment), "it is kept already"
        kept = FakeKept(bytes(segment.view))
        segment.release()
        self.kept.append(kept)
        return kept


class FakeConnection:
    """Counts credit as a ring does."""

    def __init__(self) -> None:
        self.credit: int | None = None

    def grant(self, segments: int | None) -> None:
        self.credit = None if segments is None else (self.credit or 0) + segments


class Ring(Place):
    """A place whose loop offers segments."""

    def __init__(self, system: ActorSystem, *arguments: Any) -> None:
        super().__init__(system, *arguments)
        self.port, self.connection = FakePort(), FakeConnection()
        transport: Any = self.transport
        transport._extra["stackmap.port"] = self.port
        transport._extra["stackmap.connection"] = self.connection
        self.segments: list[FakeSegment] = []

    def deliver(self, *payloads: bytes) -> None:
        segments = [FakeSegment(payload) for payload in payloads]
        protocol: Any = self.transport.get_protocol()
        if self.connection.credit is not None:
            self.connection.credit -= len(segments)
            assert self.connection.credit >= 0
        protocol.segments_received(segments)
        for segment in segments:
            segment.reuse()
        self.segments += segments


def test_segments_are_decoded_in_place_and_released() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            ring = Ring(system)
            await settle()
            ring.deliver(b"one\ntw", b"o\n")
            assert ring.seen == [b"one", b"two"], "in the same call"
            assert all(segment.released for segment in ring.segments)
            assert ring.port.kept == []

    run(main)


def test_segments_that_must_wait_are_kept() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            ring = Ring(system, Session(1))
            await settle()
            ring.deliver(b"one\n", b"two\n", b"three\n")
            assert ring.seen == [b"one", Passive()], "in the same call"
            assert len(ring.port.kept) == 2
            await settle()
            ring.ref.tell_nowait(lambda actor: actor.stream.active(2))
            await settle()
            assert ring.seen == [b"one", Passive(), b"two", b"three", Passive()]
            assert all(kept.released for kept in ring.port.kept)

    run(main)


def test_credit_is_granted_in_slots() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            ring = Ring(system, Session("once"))
            await settle()
            ring.deliver(b"a\n")
            await settle()
            assert ring.seen == [b"a", Passive()]
            assert ring.connection.credit == 0, "counted from now on"
            ring.ref.tell_nowait(lambda actor: actor.stream.active(3))
            await settle()
            assert ring.connection.credit == 3
            assert ring.transport.is_reading()
            ring.deliver(b"b\n", b"c\n")
            ring.ref.tell_nowait(lambda actor: actor.stream.active(1))
            await settle()
            assert ring.connection.credit == 2
            ring.ref.tell_nowait(lambda actor: actor.stream.active(False))
            await settle()
            assert not ring.transport.is_reading()
            ring.ref.tell_nowait(lambda actor: actor.stream.active(True))
            await settle()
            assert ring.connection.credit is None
            assert ring.transport.is_reading()

    run(main)


class Borrower(Session):
    """Keeps payloads beyond their time."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def received(self, message: Payload) -> None:
        self.kept.append(message)
        self.kept.append(message.view)


@pytest.mark.parametrize("on_ring", [True, False])
def test_use_after_release_raises(on_ring: bool) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            if on_ring:
                place: Place = Ring(system, Borrower(), None)
                await settle()
                place.deliver(b"data")  # type: ignore[attr-defined]
            else:
                place = Place(system, Borrower(), None)
                place.far.write(b"data")
            await settle()
            payload, view = place.actor.kept  # type: ignore[attr-defined]
            for use in (
                lambda: view[0],
                lambda: bytes(view),
                lambda: bytes(payload),
                lambda: len(payload),
                payload.detach,
            ):
                with pytest.raises(ValueError, match="released"):
                    use()
            assert repr(payload) == "<Payload, released>"

    run(main)


def test_detach_copies_out() -> None:
    class Detacher(Session):
        def received(self, message: Payload) -> None:
            self.seen.append(message.detach())

    async def main() -> None:
        async with ActorSystem() as system:
            ring = Ring(system, Detacher(), None)
            await settle()
            ring.deliver(b"first", b"second")
            assert ring.seen == [b"first", b"second"]
            assert all(segment.released for segment in ring.segments)

    run(main)


def test_a_payload_lives_as_long_as_its_async_handler() -> None:
    class Late(Session):
        async def received(self, message: Payload) -> None:
            await asyncio.sleep(1)
            self.seen.append(bytes(message.view))

    async def main() -> None:
        async with ActorSystem() as system:
            ring = Ring(system, Late(), None)
            await settle()
            ring.deliver(b"first", b"second")
            await asyncio.sleep(3)
            assert ring.seen == [b"first", b"second"]
            assert all(kept.released for kept in ring.port.kept)

    run(main)


# -- writing -------------------------------------------------------------------------------------


def test_writes_of_a_turn_go_out_together_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[bytes]] = []

    class Many(Session):
        def received(self, message: Any) -> None:
            self.stream.write(message, memoryview(b"-"))
            self.send(bytearray(b"+"))

    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Many())
            await settle()

            def writelines(parts: list[bytes]) -> None:
                calls.append(parts)
                place.transport.write(b"".join(parts))

            monkeypatch.setattr(place.transport, "writelines", writelines)
            place.far.write(b"a\nb\nc\n")
            await settle()
            assert place.peer.data == b"a-+\nb-+\nc-+\n"
            assert len(calls) == 1

    run(main)


def test_a_buffer_may_be_changed_after_the_write() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, window=2)
            buffer = bytearray(b"before")

            def write(actor: Session) -> None:
                actor.stream.write(buffer)
                buffer[:] = b"after!"

            place.ref.tell_nowait(write)
            await settle()
            assert place.peer.data == b"before"

    run(main)


def test_an_ack_is_awaited_until_the_write_is_accepted() -> None:
    async def main() -> None:
        log: list[Any] = []
        async with ActorSystem() as system:
            place = Place(system, window=10, automatic=False)
            await settle()
            stream = place.actor.stream
            first, second = stream.write(b"x" * 15), stream.write(b"y" * 15)
            third = stream.write(b"z" * 5)
            waiters = []
            for ack in (third, first, second):

                async def wait(ack: Ack = ack) -> None:
                    await ack
                    log.append((ack.end, stream.pending))

                waiters.append(asyncio.ensure_future(wait()))
            await settle()
            assert (first.accepted, log) == (False, [])
            sizes = []
            for _ in range(4):
                place.transport.deliver(10)
                await settle()
                sizes.append(list(log))
            # 10, 20, 30, 35 bytes were taken by then, as the window moves on.
            assert sizes[0] == [(15, 15)]
            assert sizes[1] == [(15, 15), (30, 5)]
            assert sizes[2] == [(15, 15), (30, 5), (35, 0)]
            assert third.accepted
            assert place.transport.get_write_buffer_limits() == (16 << 10, 64 << 10)
            await stream.write(b"")

    run(main)


def test_an_ack_fails_with_the_connection() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, window=4, automatic=False)
            await settle()
            stream = place.actor.stream
            taken, lost = stream.write(b"1234"), stream.write(b"5678")
            await taken
            waiting = asyncio.ensure_future(asyncio.wait_for(lost, 5))
            await settle()
            place.transport.lose(ConnectionResetError(errno.ECONNRESET, "reset"))
            with pytest.raises(ConnectionResetError) as raised:
                await waiting
            assert isinstance(raised.value, BrokenError)
            await taken
            with pytest.raises(BrokenError):
                await stream.write(b"more")
            assert [type(signal) for signal in place.seen] == [Closed, Stop]
            assert await place.ref.wait() is None

    run(main)


def test_writes_after_the_own_end_are_refused() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system)
            await settle()
            stream = place.actor.stream
            whole = stream.write(b"all of it")
            stream.write_eof()
            late = stream.write(b"late")
            with pytest.raises(ClosedError):
                await late
            await settle()
            assert (place.peer.data, place.peer.ends) == (b"all of it", ["eof"])
            place.far.write(b"still\n")
            await settle()
            assert place.seen == [b"still"]
            stream.close()
            await settle()
            await whole
            assert place.peer.data == b"all of it"

    run(main)


def test_a_refused_write_is_told_and_nothing_follows_until_writing_is_resumed() -> None:
    class Nack(Session):
        def connected(self) -> None:
            self.stream.set_write_limits(high=100, low=50, limit=200)
            self.stream.active(True)

        def on_signal(self, signal: Signal) -> Awaitable[None] | None:
            self.seen.append(signal)
            if isinstance(signal, WriteFailed):
                return None
            return ConnectionActor.on_signal(self, signal)

    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Nack(), window=10, automatic=False)
            await settle()
            place.seen.clear()
            stream = place.actor.stream
            acks = [stream.write(b"%03d" % number * 20) for number in range(8)]
            await settle()
            # Of 60 bytes each: 10 are in the window, and 230 wait when the fifth is refused.
            assert [ack.error is None for ack in acks] == [True] * 4 + [False] * 4
            with pytest.raises(WouldBlockError, match="resume_writing"):
                await acks[5]
            (failed,) = place.seen
            assert failed.buffers == (b"004" * 20,)
            while stream.pending:
                place.transport.deliver(10)
            assert stream.write(b"not yet").error is not None
            stream.resume_writing()
            await settle()
            assert place.seen == [failed, WritingResumed()]
            assert stream.write(b"again").error is None
            while place.transport.deliver(10):
                pass
            expected = b"".join(b"%03d" % number * 20 for number in range(4)) + b"again"
            assert place.peer.data == expected

    run(main)


def test_resumed_writing_waits_for_the_low_mark() -> None:
    class Nack(Session):
        def connected(self) -> None:
            self.stream.set_write_limits(high=100, low=50, limit=100)

        def on_signal(self, signal: Signal) -> Awaitable[None] | None:
            self.seen.append(signal)
            if isinstance(signal, WriteFailed):
                self.stream.resume_writing()
                return None
            return ConnectionActor.on_signal(self, signal)

    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Nack(), window=10, automatic=False)
            await settle()
            stream = place.actor.stream
            stream.write(b"x" * 150)
            stream.write(b"refused")
            await settle()
            while not any(isinstance(signal, WritingResumed) for signal in place.seen):
                assert stream.pending > 50
                assert place.transport.deliver(10)
                await settle()
            assert stream.pending == 50

    run(main)


def test_a_peer_that_does_not_read_is_disconnected_by_default() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, automatic=False)
            for _ in range(12):
                place.ref.tell_nowait(lambda actor: actor.stream.write(b"x" * 200_000) and None)
                await settle()
            assert await place.ref.wait() is None
            assert any(isinstance(end, ConnectionResetError) for end in place.peer.ends)

    run(main)


def test_acknowledgements_are_asked_of_the_transport() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system)
            await settle()
            stream = place.actor.stream
            with pytest.raises(NotImplementedError, match=r"stackmap\.aio"):
                await stream.write(b"1").acknowledged()
            done = asyncio.get_running_loop().create_future()
            place.transport.acknowledged = lambda: done  # type: ignore[attr-defined]
            waiting = asyncio.ensure_future(stream.write(b"2").acknowledged())
            await settle()
            assert not waiting.done()
            done.set_result(None)
            await waiting

    run(main)


def test_write_limits_are_checked() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system)
            await settle()
            with pytest.raises(ValueError, match="low 7 <= high 5"):
                place.actor.stream.set_write_limits(5, 7)

    run(main)


# -- ends ----------------------------------------------------------------------------------------


def test_a_failed_actor_aborts_its_connection_and_is_not_restarted() -> None:
    class Fails(Session):
        def received(self, message: Any) -> None:
            raise ValueError(message)

    async def main() -> None:
        async with ActorSystem(intensity=0) as system:
            place = Place(system, Fails())
            place.far.write(b"x\n")
            assert isinstance(await place.ref.wait(), ValueError)
            await settle()
            (end,) = place.peer.ends
            assert isinstance(end, ConnectionResetError)

    run(main)


def test_stopping_serves_what_was_received_and_flushes() -> None:
    class Answers(Session):
        async def received(self, message: Any) -> None:
            await asyncio.sleep(0.1)
            self.send(message)

    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, Answers(), window=5)
            place.far.write(b"1\n2\n3\n")
            await settle()
            place.ref.stop()
            await place.ref.wait()
            await settle()
            assert place.peer.data == b"1\n2\n3\n"
            assert place.peer.ends[0] == "eof"

    run(main)


def test_a_peer_that_does_not_take_the_rest_is_aborted_at_the_deadline() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place = Place(system, window=5, automatic=False)
            await settle()
            place.actor.stream.write(b"never taken")
            place.ref.stop(deadline=2.0)
            assert isinstance(await place.ref.wait(), TimeoutError)
            assert asyncio.get_running_loop().time() == pytest.approx(2.001)

    run(main)


# -- hand-over -----------------------------------------------------------------------------------


class Login(Session):
    """Hands over after the first line."""

    def __init__(self, next_owner: ActorRef[Any]) -> None:
        super().__init__()
        self.next_owner = next_owner

    def received(self, message: Any) -> None:
        self.seen.append(message)
        self.stream.hand_over(self.next_owner)
        assert not self.has_stream
        self.stop()


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_a_connection_is_handed_over_with_all_that_was_not_delivered(chunk: int) -> None:
    async def main() -> None:
        second = Session()
        async with ActorSystem() as system:
            heir = system.spawn(Child(lambda: second, capacity=3))
            await heir.ready()
            with pytest.raises(RuntimeError, match="owns no connection"):
                second.stream  # noqa: B018
            place = Place(system, Login(heir))
            place.far.chunk = chunk
            place.far.write(b"user\none\ntwo\nth")
            await place.ref.wait()
            await settle()
            place.far.write(b"ree\n")
            place.far.write_eof()
            await settle()
            assert place.seen == [b"user", Stop(5.0)]
            assert second.seen[:4] == [b"one", b"two", b"three", PeerClosed()]

    run(main)


def test_the_new_owner_begins_passive() -> None:
    async def main() -> None:
        second = Session(None)
        async with ActorSystem() as system:
            heir = system.spawn(Child(lambda: second, capacity=3))
            place = Place(system, Login(heir))
            place.far.write(b"user\none\ntwo\n")
            await settle()
            assert second.seen == []
            assert not place.transport.is_reading()
            heir.tell_nowait(lambda actor: actor.stream.active(True))
            await settle()
            assert second.seen == [b"one", b"two"]

    run(main)


def test_a_payload_in_use_and_segments_move_too() -> None:
    async def main() -> None:
        second = Session()
        async with ActorSystem() as system:
            heir = system.spawn(Child(lambda: second, capacity=3))
            await heir.ready()
            ring = Ring(system, Login(heir), None)
            await settle()
            ring.deliver(b"first", b"second", b"third")
            await settle()
            assert second.seen == [b"second", b"third"]

    run(main)


def test_to_whom_a_connection_cannot_be_handed_over() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            place, other = Place(system), Place(system)
            await settle()
            with pytest.raises(BusyError, match="owns a connection already"):
                place.actor.stream.hand_over(other.ref)
            heir = system.spawn(Child(Session, capacity=3))
            await heir.ready()
            heir.stop()
            with pytest.raises(ClosedError):
                place.actor.stream.hand_over(heir)
            assert place.actor.has_stream

    run(main)


def test_signals_move_with_the_connection() -> None:
    async def main() -> None:
        second = Session()
        async with ActorSystem() as system:
            heir = system.spawn(Child(lambda: second, capacity=3, restart=Restart.TEMPORARY))
            await heir.ready()
            place = Place(system)
            await settle()
            stream = place.actor.stream
            place.transport.lose(ConnectionResetError(errno.ECONNRESET, "reset"))
            stream.hand_over(heir)
            await settle()
            assert [type(signal) for signal in second.seen] == [Closed, Stop]
            assert not heir.alive

    run(main)


def test_a_codec_type_is_a_type_of_the_actor() -> None:
    class Typed(ConnectionActor[Never, bytes, Buffer]):
        def received(self, message: bytes) -> None:
            self.send(message.upper())

    async def main() -> None:
        async with ActorSystem() as system:
            protocol = system.protocol(Child(Typed, capacity=1), Lines)
            peer = Peer()
            _near, far = memory_pair(protocol, peer)
            assert isinstance(far, MemoryTransport)
            assert protocol.ref.alive

    run(main)
