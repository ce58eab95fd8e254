"""Tasks that outlive the request that began them, but not the server."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class Background:
    """The background tasks of a server, or of a program without one.

    Args:
        ended: is called when a task has ended.
    """

    def __init__(self, ended: Callable[[], object] = lambda: None) -> None:
        #: The loop itself keeps weak references only.
        self.tasks: set[asyncio.Task[Any]] = set()
        self._ended = ended

    def add(self, task: asyncio.Task[Any]) -> None:
        """Keep a task until it has ended."""
        self.tasks.add(task)
        task.add_done_callback(self._remove)

    def enter(self) -> None:
        """Have tasks that are begun in the running context kept here."""
        _current.set(self)

    def _remove(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        self._ended()


_current: contextvars.ContextVar[Background] = contextvars.ContextVar(
    "stackmap_background",
    default=Background(),  # noqa: B039 (there is one for all that no server serves)
)


def background(coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
    """Run a coroutine beyond the end of the current request.

    A server that stops waits for it until the drain's deadline, and then cancels it.  Whoever
    awaits the task gets what it raises; if nobody does, asyncio logs it.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _current.get().add(task)
    return task
