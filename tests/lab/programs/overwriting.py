"""A port on rings; its application overwrites each transmit buffer as soon as it gets it back."""

from __future__ import annotations

import struct
from typing import Any

from stackmap import RingPort, Segment
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
        shared, pair = self._kernel.shared, self.rings[0]._pair.struct
        memory = memoryview(ffi.buffer(shared.mem, shared.size))
        self._tx = _Ring(memory, ffi.cast("char *", pair.tx) - shared.mem)
        self._rx = _Ring(memory, ffi.cast("char *", pair.rx) - shared.mem)
        self._done = self._next_to_be_done()
        #: Which buffer is in which transmit slot.
        self._buffers = [self._tx.buffer_and_flags(i)[0] for i in range(self._tx.slots)]
        self.overwritten = 0
        self.submitted: list[int] = []

    def exchange(self, timeout: float | None = 0.0) -> list[Segment]:
        segments = super().exchange(timeout)
        self.scribble()
        return segments

    def scribble(self) -> None:
        """Overwrite the buffers that the kernel has put in place of those it took."""
        tx = self._tx
        done = self._next_to_be_done()
        for i in tx.between(self._done, done):
            buffer, flags = tx.buffer_and_flags(i)
            if buffer == self._buffers[i]:
                continue  # refused
            self.submitted.append(self._buffers[i])
            self._buffers[i] = buffer
            assert flags & _BUF_CHANGED
            start = tx.buffers + _BUFFER * buffer
            tx.memory[start : start + _BUFFER] = _SCRIBBLE
            self.overwritten += 1
        self._done = done

    def owned(self) -> set[int]:
        """The buffers that are the application's now."""
        rx = self._rx.between(self._rx.head, self._rx.tail)
        return {*self._buffers} | {self._rx.buffer_and_flags(i)[0] for i in rx}

    def _next_to_be_done(self) -> int:
        """The kernel has been through all transmit slots before this one."""
        return (self._tx.tail + 1) % self._tx.slots
