"""One task for all requests of a connection, which most requests never wake.

A request whose coroutine ends without waiting for anything needs no task of its own, only the
appearance of one: ``asyncio.timeout()`` and ``asyncio.current_task()`` ask for the current task.
So each connection has one long-lived task, as which its callbacks run the beginning of a request
(Python 3.12 runs "eager" tasks in the same way).  If the coroutine waits, the task takes it over
where it stands, and is then really the one that is scheduled, timed out and cancelled.

The alternative is a task that awaits each message.  It needs a future, a wake-up and one more turn
of the event loop for a message that comes alone, where it costs half as much again; on rings each
turn is a system call.  For requests that wait, and for those that come many at a time, it is the
cheaper one, by a fifth at most.  docs/services.md has figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

T = TypeVar("T")


class Suspended(Generic[T]):
    """A coroutine that was begun by hand and has yielded; a task goes on with it by awaiting this.

    Args:
        coroutine: the coroutine.
        yielded: what it has yielded, for the task that goes on with it: a future, or None.
    """

    __slots__ = ("_coroutine", "_error", "_yielded")

    def __init__(self, coroutine: Coroutine[Any, Any, T], yielded: Any) -> None:
        self._coroutine = coroutine
        self._yielded = yielded
        self._error: BaseException | None = None

    def cancel(self, error: BaseException) -> None:
        """The task was cancelled before it took over: cancel what ``Task.cancel()`` would have."""
        if self._yielded is None or not self._yielded.cancel():
            self._error = error

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, yielded, error = self._coroutine, self._yielded, self._error
        while True:
            if error is None:
                try:
                    yield yielded
                except BaseException as raised:  # noqa: BLE001 (the coroutine's to handle)
                    error = raised
                else:
                    # From here on the task talks to the coroutine itself.
                    return (yield from coroutine.__await__())
            try:
                yielded = coroutine.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            error = None
