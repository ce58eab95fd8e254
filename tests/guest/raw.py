"""A port as the ABI describes it, without the library: bytes, offsets and ioctl numbers.

It shares no code with ``stackmap/_ring.c``, so a mistake there cannot hide here; and it can write
what the library never would.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.guest.wire import NIC

if TYPE_CHECKING:
    import socket

NIOCCTRL = 0xC0586997
SMIOC_ATTACH = 0xC01869C0
SMIOC_DETACH = 0x400869C1
SMIOC_RXCTL = 0x400869C2
SMIOC_SYNC = 0x401069C3
SMIOC_STATS = 0x808069C4
NIOCTXSYNC = 0x6994
NIOCRXSYNC = 0x6995

REGISTER_SIZE = 56
SYNC_TX, SYNC_RX, SYNC_POLL = 1, 2, 4
EOF, ERROR, WRITABLE, CLOSED, REFUSED = 1, 2, 4, 8, 16
RX_PAUSE = 1

HEAD, CUR, TAIL = 20, 24, 28
SLOTS = 256

STATS = (
    *("rx_bytes", "tx_bytes", "rx_slots", "slots_sent", "released_ack", "released_reset"),
    *("pinned", "again", "bad_slots", "unknown_conn", "dead_conn", "bad_rings", "stalls"),
    *("syncs", "connections", "bufs_free"),
)


@dataclass
class Slot:
    """One slot, as it stands in the ring."""

    buf: int
    len: int
    flags: int
    id: int
    offset: int
    events: int
    err: int


class Ring:
    """One ring in the mapping."""

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        self.memory = memory
        self.start = start
        self.buf_ofs: int
        self.buf_size: int
        self.buf_ofs, self.n, self.buf_size = struct.unpack_from("<qII", memory, start)
        self.ringid, self.dir = struct.unpack_from("<HH", memory, start + 16)

    def _get(self, at: int) -> int:
        value: int = struct.unpack_from("<I", self.memory, self.start + at)[0]
        return value

    def _set(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.memory, self.start + at, value)

    @property
    def head(self) -> int:
        return self._get(HEAD)

    @property
    def cur(self) -> int:
        return self._get(CUR)

    @property
    def tail(self) -> int:
        return self._get(TAIL)

    def set_head(self, value: int) -> None:
        self._set(HEAD, value)
        self._set(CUR, value)

    def set_cur(self, value: int) -> None:
        self._set(CUR, value)

    def slot(self, i: int) -> Slot:
        at = self.start + SLOTS + 16 * (i % self.n)
        buf, length, flags, id, offset, events, err = struct.unpack_from(
            "<IHHIHBB", self.memory, at
        )
        return Slot(buf, length, flags, id, offset, events, err)

    def fill(self, i: int, **fields: int) -> None:
        """Write a slot; what is not named keeps its value, but events and err become 0."""
        old = self.slot(i)
        values = {"buf": old.buf, "len": 0, "flags": 0, "id": 0, "offset": 0, "events": 0,
                  "err": 0} | fields  # fmt: skip
        struct.pack_into(
            "<IHHIHBB", self.memory, self.start + SLOTS + 16 * (i % self.n), *values.values()
        )

    def address(self, buf: int) -> int:
        """Where a buffer is in the mapping."""
        return self.start + self.buf_ofs + buf * self.buf_size


class RawPort:
    """An open, registered, mapped port."""

    def __init__(self, tx_slots: int = 0, rx_slots: int = 0, nic: str = NIC) -> None:
        self.fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
        body = bytearray(REGISTER_SIZE)
        struct.pack_into("<II", body, 16, tx_slots, rx_slots)
        register(self.fd, f"tcp:{nic}", body)
        nif, self.size, self.tx_slots, self.rx_slots = struct.unpack_from("<QQII", body)
        self.mem_id: int = struct.unpack_from("<H", body, 32)[0]
        self.memory = mmap.mmap(self.fd, self.size)
        self.name = self.memory[nif : nif + 16].rstrip(b"\0").decode()
        tx_ofs, host_tx, rx_ofs, host_rx = struct.unpack_from("<4q", self.memory, nif + 56)
        assert host_tx == host_rx == 0
        self.tx = Ring(self.memory, nif + tx_ofs)
        self.rx = Ring(self.memory, nif + rx_ofs)

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def attach(self, sock: socket.socket | int, flags: int = 0, reserved: int = 0) -> int:
        fd = sock if isinstance(sock, int) else sock.fileno()
        req = bytearray(struct.pack("<iIIIII", fd, flags, 0, 0, 0, reserved))
        fcntl.ioctl(self.fd, SMIOC_ATTACH, req)
        id: int = struct.unpack_from("<I", req, 12)[0]
        return id

    def detach(self, id: int) -> None:
        fcntl.ioctl(self.fd, SMIOC_DETACH, struct.pack("<II", id, 0))

    def pause(self, id: int, flags: int = RX_PAUSE) -> None:
        fcntl.ioctl(self.fd, SMIOC_RXCTL, struct.pack("<II", id, flags))

    def sync(self, flags: int = SYNC_TX | SYNC_RX | SYNC_POLL, spin_us: int = 0) -> None:
        fcntl.ioctl(self.fd, SMIOC_SYNC, struct.pack("<IIq", flags, spin_us, 0))

    def stats(self) -> dict[str, int]:
        raw = bytearray(8 * len(STATS))
        fcntl.ioctl(self.fd, SMIOC_STATS, raw)
        return dict(zip(STATS, struct.unpack(f"<{len(STATS)}Q", raw), strict=True))

    def put(self, i: int, to: int, data: bytes, **fields: int) -> int:
        """Fill slot i and its buffer; returns the buffer's index."""
        slot = self.tx.slot(i)
        at = self.tx.address(slot.buf)
        self.memory[at : at + len(data)] = data
        self.tx.fill(i, **({"id": to, "len": len(data)} | fields))
        return slot.buf

    def send(self, id: int, data: bytes) -> None:
        """Send one slot; it must be accepted."""
        i = self.tx.head
        self.put(i, id, data)
        self.tx.set_head((i + 1) % self.tx.n)
        self.sync(SYNC_TX)
        assert not self.tx.slot(i).events & REFUSED, self.tx.slot(i)

    def receive(self) -> list[tuple[int, bytes, int, int]]:
        """Sync, and take everything: (id, payload, events, errno) per slot."""
        self.sync(SYNC_RX | SYNC_POLL)
        found = []
        i = self.rx.head
        while i != self.rx.tail:
            slot = self.rx.slot(i)
            at = self.rx.address(slot.buf) + slot.offset
            found.append((slot.id, self.memory[at : at + slot.len], slot.events, slot.err))
            i = (i + 1) % self.rx.n
        self.rx.set_head(i)
        return found


def register(fd: int, name: str, body: bytearray, **header: int) -> None:
    """NIOCCTRL with a REGISTER request; ``body`` is updated."""
    buffer = (ctypes.c_char * len(body)).from_buffer(body)
    values = {"version": 14, "reqtype": 1, "reserved": 0, "options": 0} | header
    raw = struct.pack(
        "<HHI64sQQ", values["version"], values["reqtype"], values["reserved"], name.encode(),
        values["options"], ctypes.addressof(buffer),
    )  # fmt: skip
    fcntl.ioctl(fd, NIOCCTRL, bytearray(raw))
