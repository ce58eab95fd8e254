"""A connection as the actor that owns it sees it: credit, messages, writes, hand-over."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from stackmap import reset_transport
from stackmap.codec import RemoteProtocolError
from stackmap.errors import BrokenError, BusyError, ClosedError, WouldBlockError, make_error

from ._ack import Ack
from ._cell import Cell
from ._payload import Payload, keep
from ._signals import (
    Closed,
    Connected,
    DecodeError,
    Passive,
    PeerClosed,
    Signal,
    WriteFailed,
    WritingResumed,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from stackmap.codec import Buffer, Codec

    from ._cell import Source
    from ._payload import Chunk, Held
    from ._ref import ActorRef

In = TypeVar("In")
Out = TypeVar("Out")

#: Bytes that wait for the actor, above which no more is read, and up to which it is again.
_INBOX_HIGH, _INBOX_LOW = 64 << 10, 16 << 10
#: Bytes written in a turn that are collected for one call of the transport.
_CORK = 64 << 10
DEFAULT_HIGH, DEFAULT_LOW, DEFAULT_LIMIT = 64 << 10, 16 << 10, 1 << 20
#: Seconds that a peer has to read the last words and to hang up.  A socket that is closed while
#: more comes in would be reset, and those words lost with it (RFC 9112, section 9.6).
_LINGER = 1.0


class Stream(Generic[In, Out]):
    """One connection, owned by one actor at a time.

    It begins passive.  What is received is decoded only when the actor is about to handle it, so
    all that waits are the bytes as they came, and their number is bounded.

    Attributes:
        transport: asyncio's transport, for ``get_extra_info()``.
    """

    def __init__(self, transport: asyncio.Transport, codec: Codec[In, Out] | None) -> None:
        self.transport = transport
        #: Signals that overtake what the peer sent.
        self.urgent: deque[Signal] = deque([Connected()])
        #: Bytes of this turn that the transport was not given yet.
        self.corked: list[Buffer] = []
        self.ready = False
        self.lost = False
        self._codec = codec
        self._owner: Cell[Any] | None = None
        # Receiving: chunks that were not decoded yet, and how many may be.
        self._inbox: deque[Chunk] = deque()
        self._inbox_bytes = 0
        self._inbox_full = False
        self._credit: int | None = 0
        self._passive = True
        self._eof = self._eof_told = False
        self._deaf = False  # what comes is not wanted: a protocol error, or the actor stops
        self._broken = False  # the codec has given up
        self._at_end = False  # the peer has sent its FIN
        #: Runs while the peer has time to hang up; what it goes on to send is read, and dropped.
        self._linger: asyncio.TimerHandle | None = None
        self._reading = True
        # Of a ring: slots that were granted and did not come yet; None while not counted.
        self._granting = False
        self._outstanding = 0
        # Writing.
        # Whether the transport copies what it cannot send at once; some keep a view of it.
        self._copies = transport.get_extra_info("stackmap.connection") is not None
        self._high, self._low, self._limit = DEFAULT_HIGH, DEFAULT_LOW, DEFAULT_LIMIT
        self._written = 0
        self._corked_bytes = 0
        self._congested = False
        self._nacking = self._resuming = False
        # Writes that are waited for: a heap of their ends.
        self._acks: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ack_numbers = itertools.count()
        self._closing = self._eof_written = self._aborted = False
        self._known_accepted = 0
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "closed" if self.lost else "closing" if self._closing else "open"
        mode = "passive" if self._passive else "active"
        return f"<Stream to {self.peername}, {state}, {mode}, {self.pending} bytes pending>"

    # -- receiving -------------------------------------------------------------------------------

    @property
    def peername(self) -> Any:
        """The peer's address, also after the end; None if the transport does not know it."""
        return self.transport.get_extra_info("peername")

    @property
    def codec(self) -> Codec[In, Out] | None:
        """The codec; None if the actor receives :class:`Payload`."""
        return self._codec

    @property
    def held(self) -> int:
        """Bytes of the peer that were received, and that are no message yet."""
        return self._inbox_bytes + (0 if self._codec is None else self._codec.held)

    def look_again(self) -> None:
        """Deliver what the codec has, although nothing came: it was changed from outside."""
        self._look()

    def active(self, mode: bool | int | Literal["once"]) -> None:
        """Say how much of what the peer sends is to be delivered, as Erlang's ``{active, N}``.

        Args:
            mode: ``True`` delivers everything as it comes.  ``False`` delivers nothing, not even
                messages that were received.  A number is added to what may still be delivered: so
                many ring slots, or reads of the transport where it has no ring.  When all of their
                messages were delivered, :class:`Passive` comes, and the peer is held back by TCP's
                window.  ``"once"`` is 1.

        Raises:
            ValueError: the number is not positive.
        """
        if mode is True:
            self._credit = None
        elif mode is False:
            self._credit = 0
        else:
            more = 1 if mode == "once" else mode
            if more < 1:
                raise ValueError(f"active() takes True, False, 'once' or 1 and more, not {mode!r}")
            self._credit = more + (self._credit or 0)
        self._passive = mode is False
        self._look()
        self._apply_reading()

    def deliver(self, actor: Any) -> Awaitable[object] | None:
        """Have the actor handle one message of the peer, if one is complete."""
        codec = self._codec
        if codec is None:
            return self._deliver_payload(actor)
        while True:
            try:
                message = None if self._broken else codec.next_message()
            except RemoteProtocolError as error:
                self._stop_hearing()
                return actor.on_signal(DecodeError(error))  # type: ignore[no-any-return]
            if message is not None:
                return actor.received(message)  # type: ignore[no-any-return]
            if not self._broken:
                self._let_codec_speak(codec)
            if not self._inbox:
                if self._eof and not self._eof_told and not self._broken:
                    self._eof_told = True
                    codec.receive_eof()
                    continue
                return self._nothing_left(actor)
            if self._credit == 0:
                return self._nothing_left(actor)
            chunk = self._take()
            if isinstance(chunk, bytes):
                codec.receive(chunk)
            else:
                codec.receive(chunk.view)
                chunk.release()

    def _deliver_payload(self, actor: Any) -> Awaitable[object] | None:
        if not self._inbox or self._credit == 0:
            return self._nothing_left(actor)
        payload = Payload(self._take())
        pending: Awaitable[object] | None = None
        try:
            pending = actor.received(payload)
        finally:
            if pending is None:
                payload.release()
        if pending is None:
            if self._credit == 0 and not (self._passive or self._eof):
                return self._nothing_left(actor)
            return None
        payload.keep(self.transport.get_extra_info("stackmap.port"))
        return _release_after(pending, payload)

    def _nothing_left(self, actor: Any) -> Awaitable[object] | None:
        """All messages that may be delivered were."""
        if self._credit == 0 and not (self._eof and not self._inbox):
            self._passive = True
            self.ready = False
            self._apply_reading()
            return actor.on_signal(Passive())  # type: ignore[no-any-return]
        self.ready = False
        if self._eof and not self._broken:
            self._eof, self._broken = False, True
            return actor.on_signal(PeerClosed())  # type: ignore[no-any-return]
        return None

    def _take(self) -> Chunk:
        """Take the next chunk, for which there is credit."""
        chunk = self._inbox.popleft()
        if self._credit is not None:
            self._credit -= 1
        self._inbox_bytes -= _size(chunk)
        if self._inbox_full and self._inbox_bytes <= _INBOX_LOW:
            self._inbox_full = False
            self._apply_reading()
        return chunk

    @property
    def held_back(self) -> bool:
        """Something of the peer waits until what was written is sent."""
        if not self._congested or self._passive or self._broken:
            return False
        return bool(self._inbox) or (self._codec is not None and self._codec.held > 0)

    def _look(self) -> None:
        """There may be something to deliver."""
        self.ready = not (self._passive or self._congested or self._broken)
        if self.ready and self._owner is not None:
            self._owner.wake()

    def _stop_hearing(self) -> None:
        """The codec has ended the connection: drop whatever comes."""
        self._broken = True
        self.ready = False
        while self._inbox:
            chunk = self._inbox.popleft()
            if not isinstance(chunk, bytes):
                chunk.release()
        self._inbox_bytes = 0
        self.finish_reading()

    def finish_reading(self) -> None:
        """Take nothing more from the transport; what was received is still delivered."""
        self._deaf = True
        self._apply_reading()

    def _apply_reading(self) -> None:
        """Have the transport read as far as there is credit, and room."""
        transport = self.transport
        if self.lost:
            return
        if self._inbox_bytes > _INBOX_HIGH:
            self._inbox_full = True
        credit = self._credit
        wanted = not (self._deaf or self._inbox_full)
        if self._linger is not None:
            credit = None
            wanted = True
        if not self._granting:
            wanted = wanted and (credit is None or credit > len(self._inbox))
        elif credit is None:
            transport.get_extra_info("stackmap.connection").grant(None)
            self._granting = False
        else:
            missing = credit - len(self._inbox) - self._outstanding
            if missing > 0:
                transport.get_extra_info("stackmap.connection").grant(missing)
                self._outstanding += missing
            wanted = wanted and (credit > 0 or not self._outstanding)
        if wanted is not self._reading and not transport.is_closing():
            self._reading = wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    # -- called by the protocol --

    def connect(self, owner: Cell[Any]) -> None:
        """The connection is made."""
        self._owner = owner
        self.transport.set_write_buffer_limits(self._high, self._low)
        # The transport begins to read after connection_made(), which would undo a pause.
        asyncio.get_running_loop().call_soon(self._apply_reading)

    def receive(self, data: bytes) -> None:
        """Bytes came."""
        if self._linger is not None or (self._deaf and self._broken):
            return
        self._inbox.append(data)
        self._inbox_bytes += len(data)
        self._handle_now()

    def receive_segments(self, segments: Sequence[Held]) -> None:
        """Segments of a ring came, whose views are valid until this returns."""
        if self._linger is not None or (self._deaf and self._broken):
            return
        inbox = self._inbox
        inbox.extend(segments)
        self._inbox_bytes += sum(len(segment.view) for segment in segments)
        if self._granting:
            self._outstanding = max(self._outstanding - len(segments), 0)
        elif self._credit is not None:
            # The ring's slots are counted from now on.
            self.transport.get_extra_info("stackmap.connection").grant(0)
            self._granting = True
        try:
            self._handle_now()
        finally:
            if inbox:
                keeper = self.transport.get_extra_info("stackmap.port")
                for index, chunk in enumerate(inbox):
                    if not isinstance(chunk, bytes):
                        inbox[index] = keep(chunk, keeper)

    def _handle_now(self) -> None:
        self.ready = not (self._passive or self._congested or self._broken)
        owner = self._owner
        if self.ready and owner is not None:
            owner.take_turn()
        if self._inbox or self._credit is not None:
            self._apply_reading()

    def receive_eof(self) -> None:
        """The peer sends nothing more."""
        self._eof = self._at_end = True
        if self._linger is not None:
            self.transport.close()
        else:
            self._look()

    def connection_lost(self, error: BaseException | None) -> None:
        """The connection is gone."""
        if self._linger is not None:
            self._linger.cancel()
        self.flush()
        if error is None and not self._aborted:
            self._known_accepted = self._written  # close() sends everything first
        self.lost = self._closing = True
        self._error = error
        self._congested = False
        self.corked.clear()
        self._fail_acks()
        self._look()
        owner = self._owner
        if owner is not None:
            self.urgent.append(Closed(error))
            owner.wake()
            owner.stream_lost()

    # -- writing ---------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Bytes that were written, and that TCP did not take yet."""
        return self._corked_bytes + (0 if self.lost else self.transport.get_write_buffer_size())

    @property
    def accepted(self) -> int:
        """Bytes that were written, and that TCP has taken, as far as that is known."""
        if not self.lost:
            self._known_accepted = self._written - self.pending
        return self._known_accepted

    @property
    def congested(self) -> bool:
        """More than the high mark waits to be sent; until it is the low mark, nothing is delivered.

        So a peer that does not read its answers is not given more of them.
        """
        return self._congested

    def set_write_limits(self, high: int, low: int | None = None, limit: int | None = None) -> None:
        """Set the marks of the queue in front of TCP.

        Args:
            high: bytes above which the stream is :attr:`congested`.
            low: bytes at which it is no longer; by default a quarter of ``high``.
            limit: bytes above which a write is refused; by default 16 times ``high``.

        Raises:
            ValueError: not 0 <= low <= high <= limit.
        """
        low = high // 4 if low is None else low
        limit = 16 * high if limit is None else limit
        if not 0 <= low <= high <= limit:
            raise ValueError(f"not 0 <= low {low} <= high {high} <= limit {limit}")
        self._high, self._low, self._limit = high, low, limit
        if not self.lost:
            self.watch_buffer()

    def write(self, *buffers: Buffer) -> Ack:
        """Write buffers, in order, whole or not at all.

        They are copied, or unchangeable, when this returns.  Writes of one turn of the actor go to
        the transport together.

        Returns:
            An :class:`Ack`, which may be awaited.  A write is refused, and its ack has the error:
            if more than the limit waits already (:class:`WriteFailed` is signalled, and further
            ones are refused until :meth:`resume_writing`), and after the end of the connection.
        """
        if self._closing or self._eof_written:
            return Ack(self, self._written, self._ended())
        if self._nacking or (self._congested and self.pending > self._limit):
            return self._refuse(buffers)
        corked = self.corked
        at_once = self._owner is None or not self._owner.in_turn
        size = 0
        for data in buffers:
            if type(data) is bytes:
                size += len(data)
            elif self._copies:
                size += memoryview(data).nbytes
                at_once = True
            else:
                data = bytes(data)  # noqa: PLW2901 (the same data)
                size += len(data)
            corked.append(data)
        self._written += size
        self._corked_bytes += size
        if at_once or self._corked_bytes > _CORK:
            self.flush()
        return Ack(self, self._written)

    def send(self, message: Out) -> Ack:
        """Encode a message with the codec, and write it; see :meth:`write`.

        Without a codec, it is a buffer.
        """
        codec = self._codec
        if codec is None:
            return self.write(message)  # type: ignore[arg-type]
        ack = self.write(*codec.send(message))
        if codec.must_close:
            self._end()
        return ack

    def _let_codec_speak(self, codec: Codec[In, Out]) -> None:
        """Send what the protocol itself has to say, now that more input is needed."""
        output = codec.take_output()
        if output:
            self.write(*output)
        if codec.must_close:
            self._end()

    def _end(self) -> None:
        """The protocol ends the connection: send what was written, and receive nothing more."""
        self._stop_hearing()
        self.close()

    def flush(self) -> None:
        """Give the transport what was written in this turn; the end of the turn does so."""
        corked = self.corked
        if corked:
            self.corked = []
            self._corked_bytes = 0
            if self.lost:
                return
            if len(corked) == 1:
                self.transport.write(corked[0])
            else:
                self.transport.writelines(corked)
            if self._acks:
                self.buffer_changed()  # the marks are not the stream's own now

    def resume_writing(self) -> None:
        """After :class:`WriteFailed`: take writes again, once the queue has sunk to the low mark.

        :class:`WritingResumed` says so.
        """
        if self._nacking:
            self._resuming = True
            self.watch_buffer()

    def _refuse(self, buffers: tuple[Buffer, ...]) -> Ack:
        error = make_error(
            WouldBlockError,
            errno.EAGAIN,
            f"{self.pending} bytes wait to be sent to {self.peername}, more than {self._limit}: "
            "write again after resume_writing()",
        )
        if not self._nacking:
            self._nacking = True
            self._signal(WriteFailed(buffers, error))
        return Ack(self, self._written, error)

    def _ended(self) -> OSError:
        if self._error is not None:
            code = getattr(self._error, "errno", None) or errno.ECONNRESET
            error: OSError = make_error(BrokenError, code)
            error.__cause__ = self._error
            return error
        return make_error(ClosedError, errno.EPIPE, "the actor itself has closed the connection")

    async def wait_accepted(self, ack: Ack) -> None:
        """Wait until TCP has all of a write."""
        if ack.error is not None:
            raise ack.error
        self.flush()
        if self.accepted < ack.end:
            if self.lost:
                raise self._ended()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._acks, (ack.end, next(self._ack_numbers), future))
            self.watch_buffer()
            await future

    async def wait_acknowledged(self, ack: Ack) -> None:
        """Wait until the peer's TCP has acknowledged a write."""
        if ack.error is not None:
            raise ack.error
        self.flush()
        acknowledged = getattr(self.transport, "acknowledged", None)
        if acknowledged is None:
            raise NotImplementedError(
                f"{self.transport!r} cannot tell what the peer's TCP has: only transports of "
                "stackmap.aio can, without TLS"
            )
        await acknowledged()

    def buffer_changed(self) -> None:
        """The transport's buffer went above its high mark, or sank to its low mark."""
        size = self.transport.get_write_buffer_size()
        accepted = self._written - size - self._corked_bytes
        acks = self._acks
        while acks and (acks[0][0] <= accepted or acks[0][2].done()):
            _end, _number, future = heapq.heappop(acks)
            if not future.done():
                future.set_result(None)
        if size > self._high:
            self._congested = True
            self.ready = False
        elif self._congested and size <= self._low:
            self._congested = False
            self._look()
        if self._resuming and size <= self._low:
            self._nacking = self._resuming = False
            self._signal(WritingResumed())

    def watch_buffer(self) -> None:
        """Handle what the transport's buffer allows, and set its marks to where more is to be done.

        A mark is the size that the buffer sinks to, and then ``resume_writing()`` is called.
        """
        self.buffer_changed()
        low, high = self._low, self._high
        if self._acks or self._resuming:
            marks: list[int] = []
            if self._acks:
                marks.append(self._written - self._corked_bytes - self._acks[0][0])
            if self._resuming or self._congested:
                marks.append(self._low)
            low = high = max(marks)
        transport = self.transport
        if transport.get_write_buffer_limits() != (low, high):
            transport.set_write_buffer_limits(high, low)

    def _fail_acks(self) -> None:
        acks, self._acks = self._acks, []
        for _end, _number, future in acks:
            if not future.done():
                future.set_exception(self._ended())

    def _signal(self, signal: Signal) -> None:
        self.urgent.append(signal)
        if self._owner is not None:
            self._owner.wake()

    # -- the end, and the next owner -------------------------------------------------------------

    def write_eof(self) -> None:
        """Close this direction after what was written.  The peer may go on sending.  Idempotent.

        Where a transport cannot do that (TLS), nothing happens before :meth:`close`.
        """
        if not (self._closing or self._eof_written):
            self.flush()
            if self.transport.can_write_eof():
                self._eof_written = True
                try:
                    self.transport.write_eof()
                except OSError:  # the peer has reset the connection, which is not noticed yet
                    self.transport.abort()

    def close(self) -> None:
        """Close after what was written is with TCP; :class:`Closed` follows.  Idempotent.

        The peer has a second to hang up as well.
        """
        if not self._closing:
            self.flush()
            if not self._at_end and self.transport.can_write_eof():
                self.write_eof()
                self._linger = asyncio.get_running_loop().call_later(_LINGER, self.transport.close)
                self._apply_reading()
            else:
                self.transport.close()
            self._closing = True

    def abort(self) -> None:
        """Close at once with RST: the peer must not take half an answer for a whole one.

        What TCP has not taken is dropped.  :class:`Closed` follows.
        """
        if not self.lost:
            self._closing = self._aborted = True
            self.corked.clear()
            self._corked_bytes = 0
            reset_transport(self.transport)

    def hand_over(self, ref: ActorRef[Any]) -> None:
        """Have another actor own the connection, as Erlang's ``controlling_process/2``.

        The new owner gets :class:`Connected`, and the stream is passive.  Everything that was not
        delivered moves on, bytes, messages and signals, and is delivered to the new owner in order,
        once it calls :meth:`active`.

        Raises:
            BusyError: ``EBUSY``, that actor owns a connection already.
            ClosedError: ``ESHUTDOWN``, that actor has ended, or is stopping.
            TypeError: it is no actor.
        """
        if not isinstance(ref, Cell):
            raise TypeError(f"only an actor can own a connection, not {ref!r}")
        if ref.stream is not None:
            raise make_error(
                BusyError, errno.EBUSY, f"the actor {ref.name} owns a connection already"
            )
        if not ref.accepts:
            raise ref.gone()
        self.flush()
        if self._owner is not None:
            self._owner.stream = None
        self._owner = ref
        ref.stream = cast("Source", self)
        self.active(False)
        self.urgent.appendleft(Connected())
        ref.wake()


async def _release_after(pending: Awaitable[object], payload: Payload) -> None:
    try:
        await pending
    finally:
        payload.release()


def _size(chunk: Chunk) -> int:
    return len(chunk) if isinstance(chunk, bytes) else len(chunk.view)
