"""The selector of the event loop: what it waits with is an exchange of a port."""

from __future__ import annotations

import collections
import contextlib
import functools
import select
import selectors
from typing import TYPE_CHECKING, Any

from stackmap import Event, RingPort, Segment
from stackmap._fast import usual_select

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import FileDescriptorLike

    from stackmap import Port

_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


# SelectorEventLoop asks of a selector what this base, common to those of the standard library, has.
class PortSelector(selectors._BaseSelectorImpl):  # pyright: ignore[reportPrivateUsage]
    """Waits for files and for a port's connections in one exchange.

    Attributes:
        port: the port.  Its files are watched by :meth:`Port.watch`.
        segments: what the last exchange returned, and the loop has not delivered yet; always the
            same list.
        loop: the event loop, whose turns may be made from here; None until there is one.
        pending: the callbacks that the loop has to run.
        waiting: the loop's thread is in an exchange, or the loop does not run.
        turns: how many exchanges have been made.
        turn_begins: called at the end of each exchange, if it is not None.
    """

    #: State that the usual select() reads and sets (stackmap/_fast_turn.c).
    __slots__ = (
        "_exchange",
        "_ready",
        "loop",
        "pending",
        "segments",
        "turn_begins",
        "turns",
        "waiting",
    )

    if TYPE_CHECKING:  # of the base class, whose types do not have it
        _fd_to_key: dict[int, selectors.SelectorKey]

    def __init__(self, port: Port) -> None:
        super().__init__()
        self.port = port
        # A turn makes one call less to its first ring than to the port.
        self._exchange = port.rings[0].exchange if isinstance(port, RingPort) else port.exchange
        self.loop: Any = None
        self.pending: collections.deque[Any] = collections.deque()
        self.segments: list[Segment] = []
        self.waiting = True
        self.turns = 0
        self.turn_begins: Callable[[], None] | None = None
        self._ready: list[tuple[selectors.SelectorKey, int]] = []

    def register(
        self, fileobj: FileDescriptorLike, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        """Watch a file; see :meth:`selectors.BaseSelector.register`."""
        key = super().register(fileobj, events, data)
        try:
            self.port.watch(key.fd, functools.partial(self._found_ready, key.fd), events)
        except BaseException:
            super().unregister(fileobj)
            raise
        return key

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Stop watching a file; see :meth:`selectors.BaseSelector.unregister`."""
        key = super().unregister(fileobj)
        with contextlib.suppress(ValueError):  # the port is closed
            self.port.unwatch(key.fd)
        return key

    @usual_select
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Exchange, and return the files that are ready.  What was received is in ``segments``.

        If the loop would do nothing but wait, what is received is delivered from here, and the
        next exchange is made from here, until there is something for the loop to do.  Such a turn
        costs a small part of one of asyncio's.
        """
        segments = self.segments
        if segments:
            # A callback raised SystemExit, and the loop runs again.
            segments[:] = [_detached(segment) for segment in segments]
            timeout = 0.0
        elif timeout is not None and timeout < 0:
            timeout = 0.0
        self._take_turn(timeout)
        return self._take_ready()

    def _take_ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready, self._ready = self._ready, []
        return ready

    def _take_turn(self, timeout: float | None) -> None:
        self.waiting = True
        self.segments += self._exchange(timeout)
        self.waiting = False
        self.turns += 1
        if self.turn_begins is not None:
            self.turn_begins()

    def close(self) -> None:
        """Stop watching all files.  The port stays open."""
        for fd in list(self._fd_to_key):
            self.unregister(fd)
        super().close()
        self.loop = None

    def _found_ready(self, fd: int) -> None:
        key = self._fd_to_key[fd]
        events = key.events
        if events == _BOTH:  # the port does not say which of the two it is
            poll = select.poll()
            poll.register(fd, select.POLLIN | select.POLLOUT)
            events = 0
            for _fd, ready in poll.poll(0):
                if ready & ~select.POLLOUT:
                    events |= selectors.EVENT_READ
                if ready & ~select.POLLIN:
                    events |= selectors.EVENT_WRITE
        self._ready.append((key, events))


def _detached(segment: Segment) -> Segment:
    """The segment, with a payload of its own that outlives the next exchange."""
    if segment.event:
        return segment
    return Segment(segment.connection, memoryview(segment.tobytes()), Event.NONE, 0)
