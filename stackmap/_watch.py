"""Files other than connections that a port waits for: listeners, timers, signal pipes.

Both backends wait in an epoll of their own; this class keeps the extra files in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import threading
from typing import TYPE_CHECKING, Protocol

from .errors import BusyError, make_error, port_closed

if TYPE_CHECKING:
    from collections.abc import Callable


class HasFileno(Protocol):
    """Anything :mod:`select` can wait for."""

    def fileno(self) -> int: ...


_MASKS = {
    selectors.EVENT_READ: select.EPOLLIN,
    selectors.EVENT_WRITE: select.EPOLLOUT,
    selectors.EVENT_READ | selectors.EVENT_WRITE: select.EPOLLIN | select.EPOLLOUT,
}


class Watches:
    """The watched files of one port, registered in the port's epoll (level triggered)."""

    __slots__ = ("_callbacks", "_epoll", "_lock", "_wake_fd")

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._wake_fd = -1  # made by the first wake()
        self._lock = threading.RLock()  # a signal's handler may call wake() within wake()

    def add(self, file: HasFileno | int, callback: Callable[[], object], events: int) -> None:
        """Have ``callback`` run when ``file`` is ready; see :meth:`Port.watch`."""
        mask = _MASKS.get(events)
        if mask is None:
            raise ValueError(f"events must be EVENT_READ, EVENT_WRITE or both, not {events!r}")
        fd = self._descriptor(file)
        try:
            self._epoll.register(fd, mask)
        except OSError as failure:
            raise _watch_error(failure, fd, watched=fd in self._callbacks) from failure
        self._callbacks[fd] = callback

    def remove(self, file: HasFileno | int) -> None:
        """Forget ``file``.  Do this before closing it.

        Raises:
            ValueError: the file is not watched, or is closed, or the port is closed.
        """
        fd = self._descriptor(file)
        if self._callbacks.pop(fd, None) is None:
            raise ValueError(f"descriptor {fd} is not watched")
        with contextlib.suppress(OSError):  # closed by its number: epoll has forgotten it
            self._epoll.unregister(fd)

    def run(self, ready: list[int]) -> None:
        """Call the callbacks of the descriptors in ``ready``.

        Descriptors that an earlier callback of the batch removed are skipped.
        """
        for fd in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
            elif fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)

    def wake(self) -> None:
        """End the wait in the epoll, or the next one.  Any thread, and a signal's handler."""
        with self._lock:
            if self._epoll.closed:
                return
            if self._wake_fd < 0:
                fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                if self._wake_fd < 0:
                    self._wake_fd = fd
                    self._epoll.register(fd, select.EPOLLIN)
                else:
                    os.close(fd)
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Forget all files, some of which may be closed already, and close the epoll."""
        self._callbacks.clear()
        with self._lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1
            self._epoll.close()

    def _descriptor(self, file: HasFileno | int) -> int:
        if self._epoll.closed:
            raise port_closed()
        fd = file if isinstance(file, int) else file.fileno()
        if fd < 0:
            raise ValueError(f"{file!r} is closed")
        return fd


def _watch_error(failure: OSError, fd: int, *, watched: bool) -> Exception:
    """Return the exception for an error of epoll's."""
    if failure.errno == errno.EEXIST:
        how = "watched" if watched else "attached"
        return make_error(BusyError, errno.EEXIST, f"descriptor {fd} is {how} already")
    if failure.errno == errno.EPERM:
        what = f"descriptor {fd} is a regular file or a folder: it is never waited for"
        return PermissionError(errno.EPERM, what)
    if failure.errno == errno.EBADF:
        return ValueError(f"descriptor {fd} is closed")
    return failure
