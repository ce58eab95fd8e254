"""A connection of a server: reads messages, has the service answer them, writes the replies."""

from __future__ import annotations

import array
import asyncio
import collections
import contextvars
import fcntl
import logging
import termios
from asyncio import CancelledError, _enter_task, _leave_task, current_task
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, cast

from stackmap.codec import LocalProtocolError, RemoteProtocolError

from ._flow import watch_transmit_slots
from ._peer import Peer, enter_peer
from ._service import await_it, call, close, describe, readiness
from ._task import Suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stackmap.codec import Buffer, Codec

    from ._background import Background
    from ._factory import ServiceFactory
    from ._service import Service, Waiter

log = logging.getLogger(__name__)

#: Requests that a connection may begin before others get their turn.
REQUESTS_PER_TURN = 64
#: Bytes of requests behind those in progress above which no more is read.
READ_AHEAD = 64 << 10
#: Bytes of replies that are collected before they are written.
WRITE_SIZE = 64 << 10
#: Turns of the event loop for which a connection that is drained is read from, whatever its socket
#: says: enough for a new transport to begin to read, and for one select().
LAST_TURNS = 3
#: Seconds that a client has to read the last replies and to hang up, before the socket is closed.
#: A socket that is closed while more requests come in would be reset, and replies lost with it
#: (RFC 9112, section 9.6).
LINGER = 1.0


def unread_bytes(transport: asyncio.Transport) -> int:
    """How many bytes the transport's socket has received that the transport has not read.

    It is not known of TLS, whose bytes are not the application's.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0 or transport.get_extra_info("ssl_object") is not None:
        return 0
    count = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


class Host(Protocol):
    """The part of a server that its connections use."""

    service: Service[Any, Any] | None
    factory: ServiceFactory[Any, Any] | None
    make_codec: Callable[[], Codec[Any, Any]]
    concurrency: int
    background: Background
    deadline: float | None

    def opened(self, connection: ServedConnection) -> None:
        """A connection has begun."""

    def ended(self, connection: ServedConnection) -> None:
        """A connection and its last request are gone."""


class ServedConnection(asyncio.Protocol):
    """Requests are served one after the other, and replies go out in their order.

    It is idle, or running (a request is in progress, or received), or closing.  All is done in
    callbacks of the transport, as the connection's task; see :mod:`stackmap.service._task`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._codec = host.make_codec()
        self._service = host.service
        self._ask: Callable[[], Waiter] | None = None
        #: Replies that are to be written, and their size.
        self._out: list[Buffer] = []
        self._out_size = 0
        #: What to write before hanging up.
        self._farewell: list[Buffer] = []
        #: A message that waits until the service is ready.
        self._held: Any = None
        self._waiter: Waiter = None
        self._suspended: Suspended[Any] | None = None
        self._begun = False  # the task has had its first step
        #: What the task waits for while there is nothing for it to do.
        self._wake: asyncio.Future[None] | None = None
        #: No message has been received that is not being served: the next may come.
        self._hungry = True
        self._serving = False
        self._write_paused = False
        self._turn_due = False
        self._reading = True
        self._at_end = False  # the peer sends nothing more
        self._draining = False
        #: Bytes that the socket had received when the drain began, and that are still to be read.
        self._unread = 0
        self._looked = False  # the turns are over for which it reads in any case
        self._last = False  # nothing more is read
        self._hanging_up = False  # no more requests are begun
        self._closing = False
        self._lost = False
        self._ending = False  # the task has done with requests
        self._linger: asyncio.TimerHandle | None = None

    # -- what the transport calls ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self.peer = Peer(
            self._transport,
            self._codec,
            hang_up=self._hang_up,
            look_again=self._look_again,
            pending=self._pending,
        )
        watch_transmit_slots(self._transport)
        self._context = contextvars.copy_context()
        self._context.run(enter_peer, self.peer)
        self._context.run(self._host.background.enter)
        if self._service is None:
            self._hungry = False
        else:
            self._ask = readiness(self._service)
        self.task = self._loop.create_task(
            self._run(), name=f"stackmap connection {self.peer.peername}", context=self._context
        )
        self.task.add_done_callback(self._ended)
        self._host.opened(self)

    def data_received(self, data: bytes) -> None:
        """Serve what came, or let it wait behind what is being served."""
        if self._closing:
            return
        self._codec.receive(data)
        if self._draining:
            self._unread -= len(data)
            self._may_stop_reading()
        if self._hungry:
            self._context.run(self._go_on)
        elif self._codec.held > READ_AHEAD:
            self._pause_reading()

    def eof_received(self) -> bool:
        """Serve what came before the end.  TLS has no half of a connection to go on with."""
        if self._closing:
            return False
        if not self._at_end:
            self._at_end = True
            self._codec.receive_eof()
            if self._hungry:
                self._context.run(self._go_on)
        return self._transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        """The client does not read its replies."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The client has read replies."""
        self._write_paused = False
        if not self._hungry:
            self._go_on_soon()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Cancel what is in progress."""
        self._lost = self._closing = True
        self._out.clear()
        self._out_size = 0
        if not self._ending:
            self.task.cancel()
        if self._waiter is not None:
            self._waiter.cancel()
        if self._linger is not None:
            self._linger.cancel()

    # -- what the server calls -------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """It has no request: neither in progress, nor received."""
        return self._closing or (self._hungry and not self._in_progress)

    def drain(self) -> None:
        """Serve what has arrived at this host, and end."""
        if self._closing:
            return
        self._draining = True
        self._unread = unread_bytes(self._transport)
        self._look(LAST_TURNS)

    def abort(self) -> None:
        """End at once, with RST."""
        self._closing = True
        self.peer.abort()
        self.task.cancel()

    # -- serving ---------------------------------------------------------------------------------

    def _go_on_soon(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._take_turn, context=self._context)

    def _take_turn(self) -> None:
        self._turn_due = False
        self._go_on()

    def _go_on(self) -> None:
        """Serve as the connection's task.  Runs in the connection's context."""
        loop = self._loop
        if current_task(loop) is not None or not self._begun:
            # A transport that calls back from within another task; or on uvloop, data that comes
            # before the task's first step.  A request's timeout must not find a task that has not
            # begun: cancelling it would end it before it could clean up.
            if not self.task.done():
                self._go_on_soon()
            return
        task = self.task
        _enter_task(loop, task)
        try:
            self._serve()
        finally:
            _leave_task(loop, task)

    def _serve(self) -> None:
        """Answer messages until one has to wait, or there is none."""
        if self._serving or self._hanging_up or self._closing or self._suspended is not None:
            return
        self._serving = True
        self._hungry = False
        try:
            self._hungry = self._answer_messages()
        finally:
            self._serving = False
        self._flush()
        self._settle()

    def _answer_messages(self) -> bool:
        """Returns whether there are no more."""
        service = cast("Service[Any, Any]", self._service)
        for _ in range(REQUESTS_PER_TURN):
            message = self._next_message()
            if message is None:
                return self._waiter is None and not self._write_paused
            try:
                answer = service(message)
                if type(answer) is CoroutineType:
                    coroutine = cast("Coroutine[Any, Any, Any]", answer)
                else:
                    coroutine = await_it(answer)
                yielded = coroutine.send(None)
            except StopIteration as stop:
                if stop.value is not None:
                    self._take_reply(stop.value)
            except (Exception, CancelledError) as error:  # noqa: BLE001 (reported there)
                self._failed(error)
            else:
                self._suspended = Suspended(coroutine, yielded)
                if self._wake is not None and not self._wake.done():
                    self._wake.set_result(None)
                return False
            if self._hanging_up:
                return True
        self._go_on_soon()
        return False

    def _next_message(self) -> Any:
        """The next message that can be served now; None if there is none."""
        if self._write_paused:
            return None
        message = self._held
        if message is None:
            try:
                message = self._codec.next_message()
            except RemoteProtocolError as error:
                log.debug("%s: %s", self.peer, error)
                self._farewell = error.reply
                self._hanging_up = True
                return None
            if message is None:
                self._out += self._codec.take_output()
                self._hanging_up |= self._codec.must_close
                return None
        if self._ask is not None:
            waiter = self._ask()
            if waiter is not None:
                self._held = message
                self._waiter = waiter
                waiter.add_done_callback(self._may_be_ready, context=self._context)
                return None
            self._held = None
        return message

    def _may_be_ready(self, _waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        self._go_on()

    def _take_reply(self, reply: Any) -> None:
        """Encode a reply."""
        codec = self._codec
        try:
            parts = codec.send(reply)
        except LocalProtocolError as error:
            # Of several requests in progress, the reply to an earlier one may end the connection.
            if codec.must_close:
                log.debug("%s: a reply after the last one is dropped: %s", self.peer, error)
            else:
                self._failed(error)
            return
        except Exception as error:  # noqa: BLE001 (reported there)
            self._failed(error)
            return
        self._hanging_up |= codec.must_close
        self._out += parts
        for part in parts:
            self._out_size += len(part)
        if self._out_size >= WRITE_SIZE:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            self._out = []
            self._out_size = 0
            if len(out) == 1:
                self._transport.write(out[0])
            else:
                self._transport.writelines(out)

    def _failed(self, error: BaseException) -> None:
        """A request has no reply.  Those behind it must not be answered in its place."""
        if not self._closing:
            log.error(
                "%s: hanging up, because %s failed: %r",
                self.peer,
                describe(self._service),
                error,
                exc_info=error,
            )
        self._hanging_up = True

    # -- the task --------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._begun = True
        factory = self._host.factory
        try:
            if factory is not None:
                self._service = await self._make_service(factory)
                self._ask = readiness(self._service)
                self._serve()
            await self._run_requests()
        except CancelledError:
            pass  # the connection is gone, or cut off
        finally:
            self._ending = True
            if not self._lost:
                self._closing = True
                self._transport.abort()
            if factory is not None and self._service is not None:
                await close(self._service, self._host.deadline)

    async def _make_service(self, factory: ServiceFactory[Any, Any]) -> Service[Any, Any]:
        try:
            return await factory.make(self.peer)
        except Exception as error:
            log.exception("%s: hanging up, because no service could be made", self.peer)
            raise CancelledError from error

    async def _run_requests(self) -> None:
        """Go on with requests that wait for something, until the connection is lost."""
        while not self._lost:
            suspended = self._suspended
            if suspended is None:
                self._wake = self._loop.create_future()
                try:
                    await self._wake
                except CancelledError as error:
                    if self._suspended is None:
                        raise
                    self._suspended.cancel(error)
                continue
            try:
                reply = await suspended
            except CancelledError as error:
                self._failed(error)
                raise
            except Exception as error:  # noqa: BLE001 (reported there)
                self._failed(error)
            else:
                if reply is not None and not self._closing:
                    self._take_reply(reply)
            self._suspended = None
            self._next_request()

    def _next_request(self) -> None:
        """Go on after a request has ended in a task."""
        if self._hanging_up:
            self._flush()
            self._settle()
        else:
            self._serve()

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._host.ended(self)

    # -- reading and ending ----------------------------------------------------------------------

    @property
    def _in_progress(self) -> bool:
        """Requests have been begun that have no reply yet."""
        return self._suspended is not None

    def _settle(self) -> None:
        """See what comes next after what could be served was served."""
        if self._closing:
            return
        if self._hanging_up or (self._hungry and (self._at_end or self._last)):
            if self._in_progress:
                self._pause_reading()
            else:
                self._part()
        elif self._hungry:
            self._resume_reading()
        elif self._write_paused or self._waiter is not None or self._codec.held > READ_AHEAD:
            self._pause_reading()
        else:
            self._resume_reading()  # that is also how the loss of the connection is noticed

    def _pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not (self._reading or self._last or self._at_end):
            self._reading = True
            self._transport.resume_reading()

    def _look(self, turns: int) -> None:
        """Read for some more turns of the loop."""
        if self._closing:
            return
        if turns:
            self._loop.call_soon(self._look, turns - 1)
            return
        self._looked = True
        self._may_stop_reading()
        if self._last and self.idle:
            # What may be on its way would have the kernel reset a closed socket, replies and all.
            self._part()

    def _may_stop_reading(self) -> None:
        """Read no more once everything has been read that was there when the drain began."""
        if self._looked and self._unread <= 0:
            self._last = True
            self._pause_reading()

    def _look_again(self) -> None:
        if self._hungry:
            self._context.run(self._go_on)

    def _pending(self) -> int:
        return self._out_size + self._transport.get_write_buffer_size()

    def _hang_up(self) -> None:
        self._hanging_up = True
        if self._hungry and not self._in_progress and not self._closing:
            self._part()

    def _part(self) -> None:
        """Send everything, then FIN; close when the client has done so too, or after a while."""
        self._closing = True
        transport = self._transport
        if self._farewell:
            transport.writelines(self._farewell)
        if self._at_end or not transport.can_write_eof():
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:  # the client has reset the connection, which has not been noticed yet
            transport.abort()
            return
        if not self._reading:
            transport.resume_reading()
        self._linger = self._loop.call_later(LINGER, transport.close)


class ConcurrentConnection(ServedConnection):
    """Several requests of a connection are in progress at a time, each in a task of its own.

    Replies go out in the order of their requests.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._replies: collections.deque[asyncio.Task[Any]] = collections.deque()

    @property
    def _in_progress(self) -> bool:
        return bool(self._replies)

    def _answer_messages(self) -> bool:
        service = cast("Service[Any, Any]", self._service)
        for _ in range(REQUESTS_PER_TURN):
            if len(self._replies) >= self._host.concurrency:
                return False
            message = self._next_message()
            if message is None:
                return self._waiter is None and not self._write_paused
            task = self._loop.create_task(call(service, message), context=self._context.copy())
            self._replies.append(task)
            task.add_done_callback(self._replied, context=self._context)
        self._go_on_soon()
        return False

    def _replied(self, _task: asyncio.Task[Any]) -> None:
        replies = self._replies
        while replies and replies[0].done():
            task = replies.popleft()
            if task.cancelled():
                self._failed(CancelledError())
            elif (error := task.exception()) is not None:
                self._failed(error)
            elif not self._closing and (reply := task.result()) is not None:
                self._take_reply(reply)
        self._next_request()

    def _failed(self, error: BaseException) -> None:
        super()._failed(error)
        for task in self._replies:
            task.cancel()
        self._replies.clear()

    async def _run_requests(self) -> None:
        try:
            await super()._run_requests()
        finally:
            tasks = list(self._replies)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
