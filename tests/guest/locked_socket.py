"""A socket whose lock is held by a call, and calls that have begun to wait for it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30.0
_SYS_USERFAULTFD = 323
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
_UFFD_API, _MISSING = 0xAA, 1

_libc = ctypes.CDLL(None, use_errno=True)


class WaitingCall(threading.Thread):
    """A system call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        #: The errno with which it failed, or 0.
        self.code: int | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
            self.code = 0
        except OSError as error:
            self.code = error.errno

    def await_lock(self) -> None:
        """Wait until it sleeps on a socket's lock, or has returned."""
        self._await("D")

    def await_sleep(self) -> None:
        """Wait until it sleeps in the kernel and stays there, or has returned."""
        for _ in range(10):
            self._await("S")
            time.sleep(0.01)

    def _await(self, state: str) -> None:
        eventually(
            lambda: self._state() == state or not self.is_alive(),
            lambda: "the call neither waits nor returns",
            patience=PATIENCE,
        )

    def _state(self) -> str:
        try:
            stat = Path(f"/proc/self/task/{self.native_id}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""  # it has just ended
        return stat.rpartition(")")[2].split()[0]

    def result(self) -> int:
        """Wait for its end; returns the errno, or 0."""
        self.join(PATIENCE)
        assert self.code is not None, "the call does not return"
        return self.code


class MissingPage:
    """Memory whose one page is not there until somebody lets it come."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        fcntl.ioctl(self._fd, _UFFDIO_API, bytearray(struct.pack("<QQQ", _UFFD_API, 0, 0)))
        self._ioctl(_UFFDIO_REGISTER, _MISSING)

    def _ioctl(self, request: int, mode: int) -> None:
        fcntl.ioctl(
            self._fd, request, bytearray(struct.pack("<QQQQ", self._start, mmap.PAGESIZE, mode, 0))
        )

    def await_fault(self) -> None:
        """Wait until somebody wants the page."""
        os.read(self._fd, 32)

    def let_come(self) -> None:
        """Fill the page with zeros, which lets the threads that wait for it go on."""
        self._ioctl(_UFFDIO_ZEROPAGE, 0)
        os.close(self._fd)


@contextmanager
def lock_held(sock: socket.socket) -> Iterator[None]:
    """Hold the socket's lock: a send() of one page of zeros is under way until the end.

    A kernel without userfaultfd (user-mode Linux) holds nothing: calls come one after the other.
    """
    with under_way(sock.sendall):
        yield


@contextmanager
def attached_lock_held(sock: socket.socket) -> Iterator[None]:
    """The same for a socket that is attached: a setsockopt() with no effect is under way."""
    no_options = 4  # bytes of zeros

    def set_no_options(page: mmap.mmap | bytearray) -> None:
        value = ctypes.byref(ctypes.c_char.from_buffer(page))
        # Python's own does not let other threads run meanwhile.
        if _libc.setsockopt(sock.fileno(), socket.IPPROTO_IP, socket.IP_OPTIONS, value, no_options):
            raise OSError(ctypes.get_errno(), "setsockopt")

    with under_way(set_no_options):
        yield


@contextmanager
def under_way(call: Callable[[mmap.mmap | bytearray], object]) -> Iterator[None]:
    """Hold up a system call where it reads its argument, a page of zeros."""
    try:
        page = MissingPage()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        call(bytearray(mmap.PAGESIZE))
        yield
        return
    caller = WaitingCall(lambda: call(page.memory))
    page.await_fault()
    try:
        yield
    finally:
        page.let_come()
    assert caller.result() == 0
