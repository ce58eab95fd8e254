"""Files other than connections that a port waits for: listeners, timers, signal pipes.

Both backends wait in an epoll of their own; this class keeps the extra files in it.
"""

from __future__ import annotations

import contextlib
import errno
import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class HasFileno(Protocol):
    """Anything :mod:`select` can wait for."""

    def fileno(self) -> int: ...


class Watches:
    """The watched files of one port, registered in the port's epoll (level triggered)."""

    __slots__ = ("_callbacks", "_epoll")

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._callbacks: dict[int, Callable[[], object]] = {}

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, file: HasFileno | int, callback: Callable[[], object]) -> None:
        """Have ``callback`` run when ``file`` is readable.

        Raises:
            FileExistsError: the file is watched already or, on sockets, attached.
            PermissionError: it is a regular file or a folder, which epoll cannot wait for.
            ValueError: the file is closed, or the port is.
        """
        fd = self._descriptor(file)
        try:
            self._epoll.register(fd, select.EPOLLIN)
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

    def clear(self) -> None:
        """Forget all files, some of which may be closed already: the epoll is closed next."""
        self._callbacks.clear()

    def _descriptor(self, file: HasFileno | int) -> int:
        if self._epoll.closed:
            raise ValueError("the port is closed")
        fd = file if isinstance(file, int) else file.fileno()
        if fd < 0:
            raise ValueError(f"{file!r} is closed")
        return fd


def _watch_error(failure: OSError, fd: int, *, watched: bool) -> Exception:
    """Return the exception for an error of epoll's."""
    if failure.errno == errno.EEXIST:
        how = "watched" if watched else "attached"
        return FileExistsError(errno.EEXIST, f"descriptor {fd} is {how} already")
    if failure.errno == errno.EPERM:
        what = f"descriptor {fd} is a regular file or a folder: it is never waited for"
        return PermissionError(errno.EPERM, what)
    if failure.errno == errno.EBADF:
        return ValueError(f"descriptor {fd} is closed")
    return failure
