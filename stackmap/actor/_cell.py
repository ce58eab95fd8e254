"""The runtime of one actor: its mailbox, its turns on the event loop, its lives and its end.

An actor whose handlers are plain functions has no task.  A message to an idle one costs an append
and ``call_soon()``, and the callback handles all that has come by then.  The first handler that
returns something to await gets the actor a task, in which it runs from then on.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import errno
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from stackmap.errors import BrokenError, ClosedError, WouldBlockError, make_error

from ._mailbox import Mailbox, Overflow
from ._ref import ActorRef, Msg, Reply
from ._signals import Down, Signal, Stop
from ._statistics import ActorStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from ._actor import Actor
    from ._child import Child
    from ._system import ActorSystem

log = logging.getLogger("stackmap.actor")

T = TypeVar("T")

#: Messages that an actor handles before the loop and the other actors get their turn.
TURN = 64
#: Exceptions of a handler that end its actor and nothing else.
_FAILURES = (Exception, asyncio.CancelledError)
#: Seconds between attempts to cancel a handler that does not end when it is cancelled.
_INSIST = 1.0
_DEFAULT: Any = object()


class State(enum.Enum):
    """Where an actor is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    #: ``on_stop()`` runs, or the connection is being flushed.
    FINISHING = "stopping"
    #: One life is over, and the supervisor decides about the next.
    DOWN = "down"
    ENDED = "ended"


# A member of an enumeration is looked up slowly.
_STARTING, _RUNNING, _ENDED = State.STARTING, State.RUNNING, State.ENDED


class Parent(Protocol):
    """Decides what becomes of an actor whose life is over."""

    def child_down(self, cell: Cell[Any], reason: BaseException | None) -> None:
        """Restart it or dispose of it, now or later."""


class Source(Protocol):
    """A connection, as the actor's turn sees it."""

    #: Signals that overtake what the peer sent.
    urgent: deque[Signal]
    #: There may be something to deliver.
    ready: bool
    #: Written in this turn, and not with the transport yet.
    corked: list[Any]
    #: Something of the peer waits until what was written is sent.
    held_back: bool
    #: The connection is gone.
    lost: bool

    def deliver(self, actor: Any) -> Awaitable[object] | None:
        """Have the actor handle one message of the peer, if one is complete."""

    def flush(self) -> None:
        """Hand what is corked to the transport."""

    def finish_reading(self) -> None:
        """Take nothing more from the transport; what was received is still delivered."""

    def close(self) -> None:
        """Flush and close."""

    def abort(self) -> None:
        """Close at once."""


class Cell(ActorRef[Msg]):
    """One actor, from being spawned to its end; a restart puts a new object into it."""

    __slots__ = (
        "_asks",
        "_call_soon",
        "_capacity",
        "_context",
        "_ended",
        "_in_turn",
        "_killed",
        "_left",
        "_loop",
        "_messages",
        "_peer_next",
        "_quitting",
        "_settled",
        "_started",
        "_stopping",
        "_suspended",
        "_task",
        "_time",
        "_timer",
        "_waker",
        "_watchers",
        "_watching",
        "actor",
        "awake",
        "busy",
        "child",
        "doing",
        "dropped",
        "final",
        "handled",
        "mailbox",
        "parent",
        "reason",
        "restarts",
        "signals",
        "state",
        "stream",
        "system",
    )

    def __init__(
        self,
        system: ActorSystem,
        parent: Parent,
        child: Child[Msg],
        name: str,
        stream: Source | None = None,
    ) -> None:
        self.name = name
        self.system = system
        self.parent = parent
        self.child = child
        self.actor: Actor[Msg] | None = None
        self.state = State.STARTING
        self.stream = stream
        self.mailbox: Mailbox[Msg] = Mailbox(child.capacity, child.overflow)
        self.signals: deque[Signal] = deque()
        self.awake = False
        #: It is not restarted.
        self.final = False
        self.reason: BaseException | None = None
        #: What the handler that failed was given.
        self.doing: object = None
        self.handled = self.dropped = self.restarts = 0
        self.busy = 0.0
        self._loop = asyncio.get_running_loop()
        self._call_soon, self._time = self._loop.call_soon, self._loop.time
        self._context = contextvars.copy_context()
        # Of the mailbox; a limit of 0 turns everything away.
        self._messages = self.mailbox.messages
        self._capacity = child.capacity
        self._left = 0
        self._in_turn = False
        self._peer_next = False
        self._stopping = self._quitting = False
        self._killed: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._suspended = False
        self._waker: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._started = False
        self._settled: list[asyncio.Future[None]] = []
        self._ended: list[asyncio.Future[None]] = []
        self._asks: set[Reply[Any]] = set()
        self._watchers: dict[Cell[Any], None] = {}
        self._watching: dict[Cell[Any], None] = {}
        self.wake()

    def __repr__(self) -> str:
        return f"<actor {self.name}, {self.child_class}, {self.statistics.state}>"

    @property
    def child_class(self) -> str:
        """The name of the actor's class, or of what makes it."""
        made = type(self.actor) if self.actor is not None else self.child.make
        return getattr(made, "__name__", type(made).__name__)

    # -- the address -----------------------------------------------------------------------------

    def tell_nowait(self, message: Msg, /) -> None:
        """Send a message; see :meth:`ActorRef.tell_nowait`."""
        messages = self._messages
        if len(messages) >= self._capacity and not self._make_room(message):
            return
        messages.append(message)
        if not self.awake:
            self.wake()

    async def tell(self, message: Msg, /) -> None:
        """Send a message; see :meth:`ActorRef.tell`."""
        if len(self._messages) < self._capacity or self.mailbox.overflow is not Overflow.BLOCK:
            self.tell_nowait(message)
        elif self._capacity == 0:
            self._lose([message])
        elif asyncio.current_task() is self._task and self._task is not None:
            raise make_error(
                WouldBlockError,
                errno.EAGAIN,
                f"the mailbox of {self.name} is full, and the actor itself would wait for room: "
                "make it larger, or use tell_nowait()",
            )
        else:
            admitted: asyncio.Future[bool] = self._loop.create_future()
            self.mailbox.waiting.append((message, admitted))
            await admitted

    async def ask(
        self,
        make: Callable[[Reply[T]], Msg],
        /,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (it covers two waits)
    ) -> T:
        """Send a question, and wait for the answer; see :meth:`ActorRef.ask`."""
        if self._capacity == 0:
            raise self.gone()
        future: asyncio.Future[T] = self._loop.create_future()
        reply = Reply(future)
        message = make(reply)
        reply.message = message
        self._asks.add(reply)
        try:
            async with asyncio.timeout(timeout):
                await self.tell(message)
                return await future
        finally:
            self._asks.discard(reply)
            future.cancel()

    def stop(self, deadline: float | None = None) -> None:
        """Drain the mailbox and end; see :meth:`ActorRef.stop`."""
        self.begin_stop(final=True, deadline=self.child.shutdown if deadline is None else deadline)

    async def ready(self) -> None:
        """Wait until ``on_start()`` has returned; see :meth:`ActorRef.ready`."""
        while not self._started:
            if self.state is State.ENDED:
                raise self.gone()
            await self.settled()

    async def wait(self) -> BaseException | None:
        """Wait for the end; see :meth:`ActorRef.wait`."""
        if self.state is not State.ENDED:
            await self._event(self._ended)
        return self.reason

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self.state is not State.ENDED

    @property
    def statistics(self) -> ActorStatistics:
        """Counters since it was spawned."""
        depth = len(self._messages)
        state = self.state
        if state is State.RUNNING and (self._stopping or self._quitting):
            state = State.FINISHING
        return ActorStatistics(
            state.value,
            depth,
            max(depth, self.mailbox.peak),
            sum(not admitted.done() for _message, admitted in self.mailbox.waiting),
            self.mailbox.capacity,
            self.handled,
            self.dropped,
            self.busy,
            self.restarts,
        )

    # -- for the actor ---------------------------------------------------------------------------

    def watch(self, ref: ActorRef[Any]) -> None:
        """Have Down signalled when another actor ends."""
        if not isinstance(ref, Cell):
            raise TypeError(f"only actors can be watched, not {ref!r}")
        if ref.state is State.ENDED:
            self.signal(Down(ref, ref.reason))
        else:
            ref._watchers[self] = None
            self._watching[ref] = None

    def unwatch(self, ref: ActorRef[Any]) -> None:
        """Undo watch()."""
        if isinstance(ref, Cell):
            ref._watchers.pop(self, None)
            self._watching.pop(ref, None)

    # -- for the system --------------------------------------------------------------------------

    @property
    def in_turn(self) -> bool:
        """A plain handler of the actor is being called."""
        return self._in_turn

    @property
    def accepts(self) -> bool:
        """It may be given a connection: it has not ended, and is not stopping."""
        return self.state in (State.STARTING, State.RUNNING) and not self._stopping

    @property
    def killed(self) -> bool:
        """It did not stop in time."""
        return self._killed is not None

    @property
    def started(self) -> bool:
        """It has started at least once."""
        return self._started

    def signal(self, signal: Signal) -> None:
        """Tell the actor something ahead of all messages."""
        if self.state is not State.ENDED:
            self.signals.append(signal)
            self.wake()

    def wake(self) -> None:
        """Have a turn soon."""
        if not self.awake:
            self.awake = True
            if self._task is None:
                self._call_soon(self._turn, context=self._context)
            elif self._waker is not None and not self._waker.done():
                self._waker.set_result(None)

    def take_turn(self) -> None:
        """Have a turn now, if the actor is idle: its connection has received something."""
        if self.awake:
            return
        if self._task is None:
            self.awake = True
            self._context.run(self._turn)
        else:
            self.wake()

    def begin_stop(self, *, final: bool, deadline: float | None = _DEFAULT) -> None:
        """Begin to stop, after what is in the mailbox.

        A mailbox that another life will read need not be drained.
        """
        self.final |= final
        if deadline is _DEFAULT:
            deadline = self.child.shutdown
        if not final and self.parent_restarts:
            self.begin_quit()
        elif self.state is State.DOWN:
            self.dispose(None)
        elif not self._stopping and self.state is not State.ENDED:
            self._stopping = True
            self._quitting = False  # no next life will drain the mailbox
            self._turn_away()
            if self.stream is not None:
                self.stream.finish_reading()
            self.signals.append(Stop(deadline))
            self._set_deadline(deadline)
            self.wake()

    def begin_quit(self) -> None:
        """End this life after the handler that runs; leave the mailbox to the next one.

        One that is stopping has no next one, and ends by itself.
        """
        going = self.state in (State.STARTING, State.RUNNING)
        if going and not (self._quitting or self._stopping):
            self._quitting = True
            self._set_deadline(self.child.shutdown)
            self.wake()

    @property
    def parent_restarts(self) -> bool:
        """It is restarted even if it ends in order."""
        return self.child.restart.value == "permanent" and not self.final

    def restart(self) -> None:
        """Begin another life."""
        for ref in list(self._watching):
            self.unwatch(ref)
        self.signals.clear()
        self.actor = None
        self.restarts += 1
        self._capacity = self.child.capacity
        self._killed = None
        self._stopping = self._quitting = False
        self.state = State.STARTING
        self.wake()

    def dispose(self, reason: BaseException | None) -> None:
        """The actor has ended for good.  Idempotent."""
        if self.state is State.ENDED:
            return
        self.state = State.ENDED
        self.reason = reason
        self._cancel_timer()
        self._turn_away()
        self._lose(self.mailbox.clear())
        for reply in list(self._asks):
            reply.fail(self.gone())
        for ref in list(self._watching):
            self.unwatch(ref)
        self.signals.clear()
        if self.stream is not None:
            self.stream.abort()
            self.stream = None
        self.system.forget(self)
        for watcher in self._watchers:
            watcher._watching.pop(self, None)
            watcher.signal(Down(self, reason))
        self._watchers.clear()
        _resolve(self._settled)
        _resolve(self._ended)
        if self._suspended and self._task is not None:
            self._task.cancel()
        self.wake()

    async def settled(self) -> None:
        """Wait until the actor has started, or its life is over."""
        if self.state is State.STARTING or (self.state is State.FINISHING and not self._started):
            await self._event(self._settled)

    def stream_lost(self) -> None:
        """The connection is gone."""
        if self.state is State.FINISHING and not self._suspended and not self._in_turn:
            self._down()

    # -- turns -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        time = self._time
        self._left = TURN
        began = time()
        pending = self._drain()
        self.busy += time() - began
        if pending is None and self._left > 0 and self.state is _RUNNING:
            self.awake = False  # it handled all that there was
        elif pending is not None:
            self._task = self._loop.create_task(
                self._run(pending), name=self.name, context=self._context
            )
        elif self._has_work():
            self._call_soon(self._turn, context=self._context)
        else:
            self.awake = False

    async def _run(self, pending: Awaitable[object] | None) -> None:
        """Be the task of an actor with a handler that must be awaited."""
        time = self._time
        while True:
            began = time()
            while pending is not None:
                self._suspended = True
                try:
                    await pending
                except _FAILURES as error:
                    self._suspended = False
                    pending = self._fail(error)
                    continue
                self._suspended = False
                if self._left <= 0:
                    break
                pending = self._drain()
            self.busy += time() - began
            if self.state is _ENDED:
                return
            if self._left <= 0 or self._has_work():
                await asyncio.sleep(0)
            else:
                self.awake = False
                self._waker = self._loop.create_future()
                await self._waker
            self._left = TURN
            pending = self._drain()

    def _has_work(self) -> bool:
        if self.state is State.RUNNING:
            stream = self.stream
            return bool(
                self.signals
                or self._messages
                or self._may_finish()
                or self._quitting
                or (stream is not None and (stream.urgent or stream.ready))
            )
        return self.state is State.STARTING

    def _may_finish(self) -> bool:
        """It is to stop, and nothing is left that it is still to handle."""
        if not self._stopping:
            return False
        return self.stream is None or not self.stream.held_back or self._killed is not None

    def _drain(self) -> Awaitable[object] | None:
        """Handle what there is, as far as this turn goes.

        Returns:
            What a handler wants awaited before anything else is handled.
        """
        if self.state is _STARTING:
            pending = self._start()
            if pending is not None:
                return pending
        if self.state is not _RUNNING:
            return None
        if self._quitting:
            return self._finish(None)
        actor = self.actor
        assert actor is not None
        signals, messages, mailbox = self.signals, self._messages, self.mailbox
        receive = actor.receive
        left = before = self._left
        peak = mailbox.peak
        doing: object = None
        self._in_turn = True
        try:
            while left > 0:
                stream = self.stream
                if signals:
                    doing = signal = signals.popleft()
                    result: Awaitable[object] | None = actor.on_signal(signal)
                elif stream is not None and stream.urgent:
                    doing = signal = stream.urgent.popleft()
                    result = actor.on_signal(signal)
                elif messages and not (self._peer_next and stream is not None and stream.ready):
                    self._peer_next = True
                    depth = len(messages)
                    if depth > peak:  # noqa: PLR1730 (max() is slower)
                        peak = depth
                    doing = message = messages.popleft()
                    if mailbox.waiting:
                        mailbox.admit()
                    result = receive(message)
                elif stream is not None and stream.ready:
                    self._peer_next = False
                    doing = "what the peer sent"
                    result = stream.deliver(actor)
                elif self._stopping and self._may_finish():
                    return self._finish(self._killed)
                else:
                    break
                left -= 1
                if result is not None:
                    self.doing = doing
                    return result
        except _FAILURES as error:
            self.doing = doing
            left -= 1
            return self._fail(error)
        finally:
            self._in_turn = False
            self._left = left
            mailbox.peak = peak
            self.handled += before - left
            stream = self.stream
            if stream is not None and stream.corked:
                stream.flush()
        return None

    # -- lives -----------------------------------------------------------------------------------

    def _start(self) -> Awaitable[object] | None:
        self.doing = "on_start()"
        try:
            self.actor = actor = self.child.make()
            actor.live_in(self)
            result = actor.on_start()
        except _FAILURES as error:
            return self._fail(error)
        if result is not None:
            return self._await_start(result)
        self._begin()
        return None

    async def _await_start(self, result: Awaitable[object]) -> None:
        await result
        self._begin()

    def _begin(self) -> None:
        self.state = State.RUNNING
        self._started = True
        _resolve(self._settled)

    def _fail(self, error: BaseException) -> Awaitable[object] | None:
        """A handler raised; or it was cancelled because it took too long to stop."""
        if self.state in (State.DOWN, State.ENDED):
            return None
        if isinstance(error, asyncio.CancelledError) and self._killed is not None:
            error = self._killed
        return self._finish(error)

    def _finish(self, reason: BaseException | None) -> Awaitable[object] | None:
        """End this life."""
        self.state = State.FINISHING
        self.reason = reason
        actor = self.actor
        result: Awaitable[object] | None = None
        if actor is not None:
            try:
                result = actor.on_stop(reason)
            except _FAILURES as error:
                self._failed_in_on_stop(error)
        if result is not None:
            return self._await_stop(result)
        self._close_stream()
        return None

    async def _await_stop(self, result: Awaitable[object]) -> None:
        try:
            await result
        except _FAILURES as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            self._failed_in_on_stop(self._killed or error if cancelled else error)
        if self.state is State.FINISHING:
            self._close_stream()

    def _failed_in_on_stop(self, error: BaseException) -> None:
        if self.reason is None:
            self.reason = error
            self.doing = "on_stop()"
        else:
            log.error("%s failed in on_stop() as well", self.name, exc_info=error)

    def _close_stream(self) -> None:
        stream = self.stream
        if stream is not None and not stream.lost:
            if self.reason is None:
                self.doing = "the end of what it wrote"
                stream.close()
                if self._timer is None:
                    self._set_deadline(self.child.shutdown)
                return  # stream_lost() follows
            stream.abort()
        self._down()

    def _down(self) -> None:
        self.state = State.DOWN
        self.stream = None
        self._cancel_timer()
        self._stopping = self._quitting = False
        reason = self.reason
        # What this life knew of questions is lost; those that still wait are for the next one.
        waiting = {id(message) for message in self._messages}
        waiting |= {id(message) for message, _admitted in self.mailbox.waiting}
        for reply in list(self._asks):
            if id(reply.message) not in waiting:
                reply.fail(self._broken(reason) if reason is not None else self.gone())
        _resolve(self._settled)
        self.parent.child_down(self, reason)

    # -- the end ---------------------------------------------------------------------------------

    def _set_deadline(self, deadline: float | None) -> None:
        self._cancel_timer()
        if deadline is not None:
            self._timer = self._loop.call_later(deadline, self._kill, deadline)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _kill(self, deadline: float) -> None:
        """The deadline has passed."""
        self.system.killed += self._killed is None
        self._killed = TimeoutError(f"{self.name} did not stop within {deadline:g} s")
        self._timer = self._loop.call_later(_INSIST, self._kill, deadline + _INSIST)
        if self._stopping:
            if not self._suspended and self.state is _RUNNING:
                self.doing = "the rest of its mailbox"
            lost = self.mailbox.clear()
            self.dropped += len(lost)
            self._lose(lost)
            self.signals.clear()
        stream = self.stream
        if stream is not None:
            if self.state is State.FINISHING:
                self.reason = self.reason or self._killed
            stream.abort()
        if self._suspended and self._task is not None:
            self._task.cancel()
        self.wake()

    def _turn_away(self) -> None:
        """Take no more messages."""
        self._capacity = 0
        waiting = self.mailbox.waiting
        lost = [message for message, admitted in waiting if not admitted.done()]
        while waiting:
            _message, admitted = waiting.popleft()
            if not admitted.done():
                admitted.set_result(False)
        self._lose(lost)

    def _make_room(self, message: Msg) -> bool:
        """The mailbox is full; whether there is room for the message now."""
        if self._capacity == 0:
            self._lose([message])
            return False
        if self.mailbox.overflow is Overflow.DROP_OLDEST:
            dropped = self._messages.popleft()
            self.dropped += 1
            for reply in self._asks_in([dropped]):
                reply.fail(self._full("the question was dropped for newer messages"))
            return True
        raise self._full("try again later, or await tell()")

    def _full(self, remedy: str) -> WouldBlockError:
        return make_error(
            WouldBlockError,
            errno.EAGAIN,
            f"the mailbox of {self.name} is full with {self.mailbox.capacity} messages: {remedy}",
        )

    def gone(self) -> ClosedError:
        """The error for callers of an actor that has ended."""
        error = make_error(ClosedError, errno.ESHUTDOWN, f"the actor {self.name} has ended")
        error.__cause__ = self.reason
        return error

    def _broken(self, reason: BaseException) -> BrokenError:
        error = make_error(
            BrokenError,
            errno.ECONNABORTED,
            f"the actor {self.name} failed before it answered: {reason!r}",
        )
        error.__cause__ = reason
        return error

    def _lose(self, messages: list[Msg]) -> None:
        """Count dead letters."""
        if messages:
            self.system.dead_letters += len(messages)
            log.debug("%s has ended: %d messages are dead letters", self.name, len(messages))
            for reply in self._asks_in(messages):
                reply.fail(self.gone())

    def _asks_in(self, messages: Iterable[Msg]) -> list[Reply[Any]]:
        if not self._asks:
            return []
        lost = {id(message) for message in messages}
        return [reply for reply in self._asks if id(reply.message) in lost]

    async def _event(self, waiters: list[asyncio.Future[None]]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        waiters.append(future)
        await future


def _resolve(waiters: list[asyncio.Future[None]]) -> None:
    for future in waiters:
        if not future.done():
            future.set_result(None)
    waiters.clear()
