"""A port as the ABI describes it, without the library: bytes, offsets and ioctl numbers.

It shares no code with ``stackmap/_ring.c``, so a mistake there cannot hide here; and it can write
what the library never would.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.guest.wire import NIC
from tests.waiting import eventually

if TYPE_CHECKING:
    import socket

NIOCCTRL = 0xC0586997
SMIOC_ATTACH = 0xC01869C0
SMIOC_DETACH = 0x400869C1
SMIOC_RXCTL = 0x400869C2
SMIOC_SYNC = 0x401069C3
SMIOC_STATS = 0x809069C4
SMIOC_RING = 0x400869C5
SMIOC_CREDITS = 0x400869C6
NIOCTXSYNC = 0x6994
NIOCRXSYNC = 0x6995

REGISTER_SIZE = 56
SYNC_TX, SYNC_RX, SYNC_POLL, SYNC_WAIT = 1, 2, 4, 8
EOF, ERROR, WRITABLE, CLOSED, REFUSED, OPEN, ACKED = 1, 2, 4, 8, 16, 32, 64
BUF_CHANGED, REPORT = 1, 2
RX_PAUSE = 1
ATTACH_LISTENER = 1
RING_ANY = 0xFFFFFFFF
OPT_LIMITS = 0x5301
OPTION_SIZE = 40
STATE_OFFSET = 1 << 40
STATE_SIZE = 128

HEAD, CUR, TAIL = 20, 24, 28
SLOTS = 256

STATS = (
    *("rx_bytes", "tx_bytes", "rx_slots", "slots_sent", "released_ack", "released_reset"),
    *("pinned", "again", "bad_slots", "unknown_conn", "dead_conn", "bad_rings", "stalls"),
    *("syncs", "direct_packets", "direct_received", "connections", "bufs_free"),
)


#: Id, payload, events and errno of a received slot.
Received = tuple[int, bytes, int, int]


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

    def __init__(self, memory: mmap.mmap | memoryview, start: int) -> None:
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


@dataclass
class Attachment:
    """The answer of SMIOC_ATTACH."""

    ring: int
    id: int
    record: int


class RawPair:
    """A transmit and a receive ring, and the descriptor to sync them with."""

    def __init__(self, fd: int, memory: mmap.mmap, nif: int, index: int) -> None:
        self.fd = fd
        self.memory = memory
        pairs = struct.unpack_from("<I", memory, nif + 24)[0]
        self.tx = Ring(memory, nif + struct.unpack_from("<q", memory, nif + 56 + 8 * index)[0])
        at = nif + 56 + 8 * (pairs + 1 + index)
        self.rx = Ring(memory, nif + struct.unpack_from("<q", memory, at)[0])

    def sync(
        self, flags: int = SYNC_TX | SYNC_RX | SYNC_POLL, spin_us: int = 0, deadline: float = 0.0
    ) -> None:
        """Sync; ``deadline`` is as of time.monotonic(), negative: none."""
        deadline_ns = int(deadline * 1e9)
        fcntl.ioctl(self.fd, SMIOC_SYNC, struct.pack("<IIq", flags, spin_us, deadline_ns))

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
        assert self.try_send(id, data), self.tx.slot(i)

    def try_send(self, id: int, data: bytes) -> bool:
        """Send one slot; says whether it was accepted."""
        i = self.tx.head
        self.put(i, id, data)
        self.tx.set_head((i + 1) % self.tx.n)
        self.sync(SYNC_TX)
        return not self.tx.slot(i).events & REFUSED

    def sync_all(self, patience: float = 60.0) -> None:
        """Sync until every slot was taken or refused: the ring may stop for want of memory."""
        self.sync(SYNC_TX)
        wanted = select.poll()
        wanted.register(self.fd, select.POLLOUT)
        while self.tx.tail != (self.tx.head - 1) % self.tx.n:
            assert wanted.poll(patience * 1000), "the ring has stopped, and nobody is woken"
            self.sync(SYNC_TX)

    def receive(self, flags: int = SYNC_POLL, **arguments: float) -> list[Received]:
        """Sync, and take everything."""
        self.sync(SYNC_RX | flags, **arguments)  # type: ignore[arg-type]
        found: list[Received] = []
        i = self.rx.head
        while i != self.rx.tail:
            slot = self.rx.slot(i)
            at = self.rx.address(slot.buf) + slot.offset
            found.append((slot.id, self.memory[at : at + slot.len], slot.events, slot.err))
            i = (i + 1) % self.rx.n
        self.rx.set_head(i)
        return found


class RawPort(RawPair):
    """An open, registered, mapped port.  It is its own first pair."""

    def __init__(
        self, tx_slots: int = 0, rx_slots: int = 0, nic: str = NIC, *, rings: int = 0,
        extra: int = 0, spare: int | None = None, connections: int | None = None,
    ) -> None:  # fmt: skip
        self.port_fd = os.open("/dev/stackmap", os.O_RDWR | os.O_CLOEXEC)
        body = register_body(tx_slots, rx_slots, rings, rings, extra)
        option = limits_option(spare or 0, connections or 0)
        wanted = spare is not None or connections is not None
        try:
            register(self.port_fd, f"tcp:{nic}", body, options=address_of(option) if wanted else 0)
        except OSError:
            os.close(self.port_fd)
            raise
        self.nif, self.size, self.tx_slots, self.rx_slots = struct.unpack_from("<QQII", body)
        self.rings: int = struct.unpack_from("<H", body, 24)[0]
        self.mem_id: int = struct.unpack_from("<H", body, 32)[0]
        self.spare, self.connections = struct.unpack_from("<II", option, 24)
        memory = mmap.mmap(self.port_fd, self.size)
        self.name = memory[self.nif : self.nif + 16].rstrip(b"\0").decode()
        super().__init__(self.port_fd, memory, self.nif, 0)
        self.pairs = [self, *(self._open_pair(i) for i in range(1, self.rings))]

    def _open_pair(self, index: int) -> RawPair:
        fd = fcntl.ioctl(self.port_fd, SMIOC_RING, bytearray(struct.pack("<II", index, 0)))
        return RawPair(fd, self.memory, self.nif, index)

    def close(self) -> None:
        self.memory.close()
        for pair in self.pairs:
            os.close(pair.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def attach(self, sock: socket.socket | int, flags: int = 0, reserved: int = 0) -> int:
        """Attach to the first pair; returns the id."""
        return self.attach_to(0, sock, flags, reserved).id

    def attach_to(
        self, ring: int, sock: socket.socket | int, flags: int = 0, reserved: int = 0
    ) -> Attachment:
        """Attach to a pair of rings."""
        fd = sock if isinstance(sock, int) else sock.fileno()
        req = bytearray(struct.pack("<iIIIII", fd, flags, ring, 0, 0, reserved))
        fcntl.ioctl(self.port_fd, SMIOC_ATTACH, req)
        return Attachment(*struct.unpack_from("<III", req, 8))

    def detach(self, id: int) -> None:
        fcntl.ioctl(self.port_fd, SMIOC_DETACH, struct.pack("<II", id, 0))

    def pause(self, id: int, flags: int = RX_PAUSE) -> None:
        fcntl.ioctl(self.port_fd, SMIOC_RXCTL, struct.pack("<II", id, flags))

    def credit(self, id: int, slots: int) -> None:
        """Let the connection open so many more receive slots."""
        fcntl.ioctl(self.port_fd, SMIOC_CREDITS, struct.pack("<II", id, slots))

    def stats(self) -> dict[str, int]:
        raw = bytearray(8 * len(STATS))
        fcntl.ioctl(self.port_fd, SMIOC_STATS, raw)
        return dict(zip(STATS, struct.unpack(f"<{len(STATS)}Q", raw), strict=True))

    def await_bytes(self, total: int) -> None:
        """Wait, without a sync, until so many bytes have come since the port was opened."""
        eventually(lambda: self.stats()["rx_bytes"] == total, self.stats)

    def extra_buffers(self) -> list[int]:
        """The application's buffers that are in no slot: a chain from ni_bufs_head."""
        found = []
        index = struct.unpack_from("<I", self.memory, self.nif + 32)[0]
        while index:
            found.append(index)
            index = struct.unpack_from("<I", self.memory, self.tx.address(index))[0]
        return found


def register_body(
    tx_slots: int = 0, rx_slots: int = 0, tx_rings: int = 0, rx_rings: int = 0, extra: int = 0
) -> bytearray:
    """The body of a REGISTER request."""
    body = bytearray(REGISTER_SIZE)
    struct.pack_into("<IIHH", body, 16, tx_slots, rx_slots, tx_rings, rx_rings)
    struct.pack_into("<I", body, 40, extra)
    return body


def limits_option(
    spare: int = 0, connections: int = 0, following: int = 0, reserved: int = 0
) -> bytearray:
    """A struct sm_opt_limits."""
    return bytearray(
        struct.pack(
            "<QIIQIIII", following, OPT_LIMITS, 0, OPTION_SIZE, spare, connections, 0, reserved
        )
    )


def address_of(buffer: bytearray) -> int:
    """Where a buffer is; it must live on, and keep its size, while the address is used."""
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def register(fd: int, name: str, body: bytearray, **header: int) -> None:
    """NIOCCTRL with a REGISTER request; ``body`` is updated."""
    buffer = (ctypes.c_char * len(body)).from_buffer(body)
    values = {"version": 14, "reqtype": 1, "reserved": 0, "options": 0} | header
    raw = struct.pack(
        "<HHI64sQQ", values["version"], values["reqtype"], values["reserved"], name.encode(),
        values["options"], ctypes.addressof(buffer),
    )  # fmt: skip
    fcntl.ioctl(fd, NIOCCTRL, bytearray(raw))
