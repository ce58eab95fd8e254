"""A pair of rings in the memory of a port: slots, staged payloads and pages."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from ._fast import FastPath
from ._kernel_port import check
from ._ring_c import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._fast import LentSegment, Page
    from ._kernel_port import KernelPort

#: Payloads of up to so many bytes are copied to the staging area.
SMALL: int = lib.SMR_SMALL
#: Fields of a received slot: id, start, buffer, length, flags, errno (struct smr_segment).
_SEGMENT = struct.Struct("=IIIHBB")


class Pair:
    """A transmit and a receive ring, and the arrays that C fills for them.

    Attributes:
        kernel: the port whose memory they are in.
        struct: its ``struct smr_pair``.
        fast: the calls that every exchange and most writes make.
        aside: pages that slices of views still show, by number of buffer.  Each costs a spare
            buffer of the port.
    """

    def __init__(self, kernel: KernelPort, index: int, epoll: int, spin: float) -> None:
        self.kernel = kernel
        tx_slots, rx_slots = kernel.tx_slots, kernel.rx_slots
        self._arrays = {
            "received": ffi.new("struct smr_segment[]", rx_slots),
            "staging": ffi.new("char[]", lib.SMR_STAGING_START + rx_slots * SMALL),
            "refused": ffi.new("struct smr_segment[]", tx_slots),
            "found": ffi.new("int32_t[]", 3),
            "watched": ffi.new("int32_t[]", lib.SMR_WATCHED),
        }
        self.struct: Any = ffi.new("struct smr_pair *", {"fd": -1, "epoll": epoll})
        self.struct.spin_us = round(spin * 1e6)
        for name, array in self._arrays.items():
            setattr(self.struct, name, array)
        #: Numbers of bytes staged, slots refused, and watched files ready.
        self.found = memoryview(ffi.buffer(self._arrays["found"])).cast("B").cast("i")
        self._received = ffi.buffer(self._arrays["received"])
        self._staging = ffi.buffer(self._arrays["staging"])
        self.aside: dict[int, Page] = {}
        self._aside_max = max(1, kernel.spare_buffers // (4 * kernel.rings))
        address = int(ffi.cast("uintptr_t", self.struct))
        self.fast = FastPath(address, self.struct, self.aside)
        check(lib.smr_open_pair(self.struct, kernel.shared, index), "ring")

    def close(self) -> None:
        """Close its descriptor.  Nothing uses its memory any more."""
        lib.smr_close_pair(self.struct)

    # -- received slots --

    def received(self, count: int) -> Iterator[tuple[int, int, int, int, int, int]]:
        """The slots that the last exchange received: id, start, buffer, length, flags, errno."""
        return _SEGMENT.iter_unpack(self._received[: count * _SEGMENT.size])

    def staged(self, size: int) -> bytes:
        """A copy of the small payloads that the last exchange received."""
        staged: bytes = self._staging[:size]
        return staged

    def payload(self, start: int, buffer: int, size: int) -> bytes:
        """A copy of the payload of a received slot."""
        if size <= SMALL:
            staged: bytes = self._staging[start : start + size]
            return staged
        page = lib.smr_buffer(self.struct, buffer)
        return bytes(ffi.buffer(page + (start & lib.SMR_OFFSET), size))

    def watched(self, count: int) -> list[int]:
        """The descriptors of the watched files that the last exchange found ready."""
        return list(self._arrays["watched"][0:count])

    # -- pages in use after their exchange --

    @property
    def must_copy(self) -> bool:
        """So many pages are set aside that the ring needs the rest."""
        return len(self.aside) >= self._aside_max

    def set_aside(self, segment: LentSegment) -> None:
        """Take a page that is still in use out of the receive ring."""
        self.reclaim()
        extra = self.kernel.extra_buffers
        page = segment.set_aside(extra.pop() if extra else 0)  # 0: one of the kernel's
        self.aside[page.buffer] = page

    def reclaim(self) -> None:
        """Take back buffers with pages that are not in use any more."""
        for buffer, page in list(self.aside.items()):
            if page.release():
                del self.aside[buffer]
                self.kernel.extra_buffers.append(buffer)

    # -- transmit slots --

    @property
    def all_synced(self) -> bool:
        """All slots that were filled have been handed to TCP."""
        synced: bool = self.struct.tx_synced == self.struct.tx_head
        return synced

    def refused(self, count: int) -> Iterator[tuple[int, int, bytes]]:
        """Take the slots that the kernel refused: id, errno, payload."""
        self.found[1] = 0
        slots = self._arrays["refused"]
        for i in range(count):
            slot = slots[i]
            start = lib.smr_buffer(self.struct, slot.buf) + slot.start
            yield slot.id, slot.err, bytes(ffi.buffer(start, slot.len))

    def buffers_linked_from(self, buffer: int) -> list[int]:
        """The buffers of a list that the kernel made; each begins with the number of the next."""
        buffers = []
        while buffer:
            buffers.append(buffer)
            buffer = ffi.cast("uint32_t *", lib.smr_buffer(self.struct, buffer))[0]
        return buffers
