"""One io_uring request at a time, without a library.

User memory that a request names lives until its completion was taken.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import socket

_SYS_SETUP, _SYS_ENTER = 425, 426
_GET_EVENTS, _EXT_ARG = 1, 8
_POLL_ADD, _MULTISHOT = 6, 1
_MORE = 2
_CQ_RING, _SQES = 0x8000000, 0x10000000
_PARAMETERS = 120
_PAGE = 4096
SEND, RECV, READ, WRITE, SEND_ZC = 26, 27, 22, 23, 47

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    whole = (ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)
    result: int = _libc.syscall(number, *whole)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Uring:
    """An io_uring with a few entries."""

    def __init__(self) -> None:
        raw = ctypes.create_string_buffer(_PARAMETERS)
        self.fd = _call(_SYS_SETUP, 4, raw)
        # sq_off and cq_off: where head, tail, ring_mask... are in the mappings
        self._sq_off = struct.unpack_from("<8I", raw, 40)
        self._cq_off = struct.unpack_from("<8I", raw, 80)
        self._sq = mmap.mmap(self.fd, _PAGE, offset=0)
        self._cq = mmap.mmap(self.fd, _PAGE, offset=_CQ_RING)
        self._sqes = mmap.mmap(self.fd, _PAGE, offset=_SQES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for mapping in (self._sq, self._cq, self._sqes):
            mapping.close()
        os.close(self.fd)

    def run(self, operation: int, sock: socket.socket, size: int) -> int:
        """Do one operation with ``size`` bytes; its result: what the kernel says, -errno if bad."""
        data = ctypes.create_string_buffer(size)
        self._submit(operation, sock.fileno(), ctypes.addressof(data), size, 0)
        result, flags = self.completion()
        if flags & _MORE:
            # of SEND_ZC: a second completion says that the kernel needs the memory no more
            self.completion()
        return result

    def poll(self, fd: int, events: int) -> None:
        """Have a completion for each time that a file gets ready, until the io_uring is closed."""
        self._submit(_POLL_ADD, fd, 0, _MULTISHOT, events)

    def _submit(self, operation: int, fd: int, address: int, length: int, events: int) -> None:
        sq_tail_at, mask_at, array_at = (self._sq_off[i] for i in (1, 2, 6))
        (tail,) = struct.unpack_from("<I", self._sq, sq_tail_at)
        (mask,) = struct.unpack_from("<I", self._sq, mask_at)
        place = tail & mask
        struct.pack_into(
            "<BBHiQQIIQ24x", self._sqes, 64 * place,
            *(operation, 0, 0, fd, 0, address, length, events, 1),
        )  # fmt: skip
        struct.pack_into("<I", self._sq, array_at + 4 * place, place)
        struct.pack_into("<I", self._sq, sq_tail_at, tail + 1)
        _call(_SYS_ENTER, self.fd, 1, 0, 0, None, 0)

    def completion(self, seconds: int = 60) -> tuple[int, int]:
        """Wait for the next completion; its result and flags.  ETIME if none comes."""
        until = ctypes.create_string_buffer(struct.pack("<qq", seconds, 0))
        extended = struct.pack("<QIIQ", 0, 0, 0, ctypes.addressof(until))
        _call(_SYS_ENTER, self.fd, 0, 1, _GET_EVENTS | _EXT_ARG, extended, len(extended))
        head_at, _tail_at, mask_at, _entries, _overflow, cqes_at = self._cq_off[:6]
        (head,) = struct.unpack_from("<I", self._cq, head_at)
        (mask,) = struct.unpack_from("<I", self._cq, mask_at)
        result, flags = struct.unpack_from("<8xiI", self._cq, cqes_at + 16 * (head & mask))
        struct.pack_into("<I", self._cq, head_at, head + 1)
        return result, flags
