"""A port on rings whose application scribbles over every transmit buffer it gets back, at once."""

from __future__ import annotations

import struct
from typing import Any

from stackmap import RingPort
from stackmap._ring_c import ffi

_SLOT = struct.Struct("<IHHQ")
_FIRST_SLOT = 256
_BUF_CHANGED = 1
_BUFFER = 4096
_SCRIBBLE = b"\xee" * _BUFFER


class _Ring:
    """One ring in the mapping, by the offsets of the interface's header file."""

    def __init__(self, memory: memoryview, start: int) -> None:
        self.memory = memory
        self.start = start
        self.buffers: int = start + struct.unpack_from("<q", memory, start)[0]
        self.slots: int = struct.unpack_from("<I", memory, start + 8)[0]

    @property
    def tail(self) -> int:
        tail: int = struct.unpack_from("<I", self.memory, self.start + 28)[0]
        return tail

    @property
    def head(self) -> int:
        head: int = struct.unpack_from("<I", self.memory, self.start + 20)[0]
        return head

    def buffer_and_flags(self, i: int) -> tuple[int, int]:
        found = _SLOT.unpack_from(self.memory, self.start + _FIRST_SLOT + _SLOT.size * i)
        return found[0], found[2]

    def between(self, first: int, last: int) -> list[int]:
        """The numbers of the slots from ``first`` up to, but not with, ``last``."""
        return [(first + i) % self.slots for i in range((last - first) % self.slots)]


class OverwritingPort(RingPort):
    """Counts in ``overwritten`` the buffers it has scribbled over.

    ``submitted`` has, in order, the buffers that the kernel took with their payload.
    """

    def __init__(self, nic: str, **sizes: Any) -> None:
        super().__init__(nic, **sizes)
        memory = memoryview(ffi.buffer(self._ring.mem, self._ring.size))
        base = self._ring.mem
        self._tx = _Ring(memory, ffi.cast("char *", self._ring.tx) - base)
        self._rx = _Ring(memory, ffi.cast("char *", self._ring.rx) - base)
        self.overwritten = 0
        self.submitted: list[int] = []

    def owned(self) -> set[int]:
        """The buffers that are the application's now."""
        tx = self._tx.between(self._ring.tx_head, (self._tx.tail + 1) % self._tx.slots)
        rx = self._rx.between(self._rx.head, self._rx.tail)
        return {self._tx.buffer_and_flags(i)[0] for i in tx} | {
            self._rx.buffer_and_flags(i)[0] for i in rx
        }

    def _sync(self) -> None:
        batch = self._batch()
        super()._sync()
        self._scribble(batch)

    def _send_batch(self) -> None:
        batch = self._batch()
        super()._send_batch()
        self._scribble(batch)

    def _batch(self) -> list[tuple[int, int]]:
        slots = self._tx.between(self._ring.tx_synced, self._ring.tx_head)
        return [(i, self._tx.buffer_and_flags(i)[0]) for i in slots]

    def _scribble(self, batch: list[tuple[int, int]]) -> None:
        tx = self._tx
        for i, submitted in batch:
            buffer, flags = tx.buffer_and_flags(i)
            if flags & _BUF_CHANGED:
                assert buffer != submitted
                start = tx.buffers + _BUFFER * buffer
                tx.memory[start : start + _BUFFER] = _SCRIBBLE
                self.overwritten += 1
                self.submitted.append(submitted)
