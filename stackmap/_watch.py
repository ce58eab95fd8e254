"""Files other than connections that a port waits for: listeners, timers, signal pipes.

Both backends wait in an epoll of their own; this class keeps the extra files in it.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._port import HasFileno


class Watches:
    """The watched files of one port, registered in the port's epoll (level triggered)."""

    __slots__ = ("_callbacks", "_epoll")

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._callbacks: dict[int, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._callbacks)

    def add(self, file: HasFileno, callback: Callable[[], None]) -> None:
        """Have ``callback`` run when ``file`` is readable.

        Raises:
            FileExistsError: the file is watched already or, on sockets, attached.
            OSError: the file cannot be waited for (closed, or a regular file).
        """
        fd = file.fileno()
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, file: HasFileno) -> None:
        """Forget ``file``.  Do this before closing it.

        Raises:
            KeyError: the file is not watched.
        """
        fd = file.fileno()
        del self._callbacks[fd]
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
