"""What hot calls into C cost, by cffi and by the extension: ``python -m tests.call_cost``.

Three calls are made for every message or every exchange on rings: writing 64 bytes, the exchange
itself, and making received slots into segments.  Here each is made in two ways, through cffi in its
API mode and through ``stackmap/_fast*.c``, on rings in ordinary memory, with a kernel that takes
all slots at once and shows the same received ones again.  No module and no rights are needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cffi import FFI

from stackmap import Event, Segment

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7
CALLS = 20_000
SIZE = 64
SLOTS = 256
#: Slots that an exchange receives.
BATCHES = (1, 16)

_MOCK_H = """
struct smr_pair *mock_open(uint32_t slots, uint32_t received, uint32_t size);
"""
_MOCK_C = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include "stackmap.h"
#include "_ring.h"

#define BUFFER 4096

/* By descriptor. */
static struct {
	struct smr_pair *pair;
	uint32_t received;
} mocks[8];
static int mock_count;

int mock_ioctl(int fd, unsigned long request, ...)
{
	struct sm_ring *tx = mocks[fd].pair->tx, *rx = mocks[fd].pair->rx;

	(void)request;
	tx->tail = tx->head ? tx->head - 1 : tx->num_slots - 1;
	rx->tail = (rx->head + mocks[fd].received) % rx->num_slots;
	return 0;
}

int mock_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
	(void)epoll;
	(void)events;
	(void)most;
	(void)timeout;
	return 0;
}

static struct sm_ring *make_ring(char *memory, char *buffers, uint32_t first,
	uint32_t slots, uint32_t size)
{
	struct sm_ring *ring = (struct sm_ring *)memory;

	ring->buf_ofs = buffers - memory;
	ring->num_slots = slots;
	ring->nr_buf_size = BUFFER;
	for (uint32_t i = 0; i < slots; i++) {
		ring->slot[i].buf_idx = first + i;
		ring->slot[i].len = size;
		ring->slot[i].ptr = SM_PTR(1 + i % 16, 0);
	}
	return ring;
}

struct smr_pair *mock_open(uint32_t slots, uint32_t received, uint32_t size)
{
	size_t ring = (sizeof(struct sm_ring) + slots * sizeof(struct sm_slot) + 4095) & ~4095UL;
	char *memory = aligned_alloc(4096, 2 * ring + 2 * slots * BUFFER);
	struct smr_pair *pair = calloc(1, sizeof(*pair));

	memset(memory, 0, 2 * ring + 2 * slots * BUFFER);
	pair->tx = make_ring(memory, memory + 2 * ring, 0, slots, 0);
	pair->rx = make_ring(memory + ring, memory + 2 * ring, slots, slots, size);
	pair->tx->tail = slots - 1;
	pair->received = calloc(slots, sizeof(*pair->received));
	pair->refused = calloc(slots, sizeof(*pair->refused));
	pair->staging = calloc(1, SMR_STAGING_START + slots * SMR_SMALL);
	pair->found = calloc(3, sizeof(*pair->found));
	pair->watched = calloc(SMR_WATCHED, sizeof(*pair->watched));
	pair->fd = mock_count++;
	mocks[pair->fd].pair = pair;
	mocks[pair->fd].received = received;
	return pair;
}
"""
_DEFINES = [("ioctl", "mock_ioctl"), ("epoll_wait", "mock_epoll_wait")]
_INCLUDES = [str(ROOT / "stackmap"), str(ROOT / "kmod" / "uapi")]


class Connection:
    """Has what the calls look at."""

    __slots__ = ("_copy_max", "_deaf", "_failure", "_outlet", "_shutdown", "_waiting", "id")

    def __init__(self, id: int) -> None:
        self.id = id
        self._deaf = False


CONNECTIONS: dict[int, Any] = {id: Connection(id) for id in range(1, 17)}


def build(folder: Path) -> tuple[Any, Path]:
    """Compile both ways; returns the cffi module and where the extension is."""
    mock = folder / "mock.c"
    mock.write_text(_MOCK_C)
    hot = (ROOT / "stackmap" / "_ring_hot.h").read_text()
    ffi = FFI()
    ffi.cdef(
        "struct sm_ring; struct sm_if; struct sm_state;"
        + (ROOT / "stackmap" / "_ring.h").read_text()
        + hot
        + _MOCK_H
    )
    ring = str(ROOT / "stackmap" / "_ring.c")
    ffi.set_source(
        "call_cost_c",
        '#include <stddef.h>\n#include <stdint.h>\n#include "stackmap.h"\n#include "_ring.h"\n'
        '#include "_ring_hot.h"\n' + _MOCK_H,
        sources=[ring, str(mock)],
        include_dirs=_INCLUDES,
        define_macros=_DEFINES,
        extra_compile_args=["-O2"],
    )
    compiled = ffi.compile(tmpdir=str(folder))
    extension = folder / "_fast.so"
    subprocess.run(
        [
            *("gcc", "-O2", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"),
            *(f"-I{path}" for path in _INCLUDES),
            *(f"-D{name}={value}" for name, value in _DEFINES),
            *map(str, (ROOT / "stackmap").glob("_fast*.c")),
            *(ring, str(mock), "-o", str(extension)),
        ],
        check=True,
    )
    return _load("call_cost_c", Path(compiled)), extension


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Loop = Callable[[int], None]


def loops(folder: Path) -> dict[tuple[str, str], Loop]:
    """The loops to measure, by call and binding; each takes the number of calls to make."""
    module, extension = build(folder)
    found = {("write of 64 bytes", "cffi"): cffi_write(module)}
    found["write of 64 bytes", "extension"] = extension_write(extension)
    for batch in BATCHES:
        call = f"exchange that receives {batch}"
        found[call, "cffi"] = cffi_exchange(module, batch)
        found[call, "extension"] = extension_exchange(extension, batch)
    return found


def cffi_write(module: Any) -> Loop:
    """Through cffi, writing a view as an echo does."""
    ffi, lib = module.ffi, module.lib
    pair = lib.mock_open(SLOTS, 0, SIZE)
    data = memoryview(bytes(SIZE))

    def loop(calls: int) -> None:
        write, from_buffer = lib.smr_write, ffi.from_buffer
        for _ in range(calls // 100):
            for _ in range(100):  # they share slots, so the ring does not fill up
                write(pair, 1, from_buffer(data), len(data))
            lib.smr_exchange(pair, 0)

    return loop


def extension_write(extension: Path) -> Loop:
    """Through the extension."""
    fast = extension_path(extension, 0)
    outlet = _load("_fast", extension).Outlet(fast, 1)
    data = memoryview(bytes(SIZE))

    def loop(calls: int) -> None:
        write = outlet.write
        for _ in range(calls // 100):
            for _ in range(100):
                write(data)
            fast.exchange(0.0, CONNECTIONS)

    return loop


def extension_path(extension: Path, batch: int) -> Any:
    """A FastPath on a mock ring of its own."""
    library = ctypes.CDLL(str(extension))
    library.mock_open.restype = ctypes.c_void_p
    address = library.mock_open(SLOTS, batch, SIZE)
    fast = _load("_fast", extension)
    # As for the class of a ring's connections: it learns where instances have what it looks at.
    fast.usual_connection_write(Connection.__init__).__set_name__(Connection, "write")
    return fast.FastPath(address, library, {})


def cffi_exchange(module: Any, batch: int) -> Loop:
    """Through cffi: what the extension does for a batch of small payloads, in Python."""
    ffi, lib = module.ffi, module.lib
    pair = lib.mock_open(SLOTS, batch, SIZE)
    layout = struct.Struct("=IIIHBB")
    received = ffi.buffer(pair.received, SLOTS * layout.size)
    staging = ffi.buffer(pair.staging, lib.SMR_STAGING_START + SLOTS * lib.SMR_SMALL)
    found = memoryview(ffi.buffer(pair.found, 12)).cast("B").cast("i")

    def loop(calls: int) -> None:
        exchange, find, no_event = lib.smr_exchange, CONNECTIONS.get, Event.NONE
        shown: list[Segment] = []
        small = staging[: lib.SMR_STAGING_START]  # not b"", which others refer to
        for _ in range(calls):
            for segment in shown:
                segment.view.release()
            if sys.getrefcount(small) > 3:
                raise AssertionError
            count = exchange(pair, 0)
            if found[1] or found[2]:
                raise AssertionError
            small = staging[: found[0]]
            whole = memoryview(small)
            segments = []
            for id, start, _buffer, size, flags, _code in layout.iter_unpack(
                received[: count * layout.size]
            ):
                connection = find(id)
                if flags or connection is None or connection._deaf:
                    raise AssertionError
                segments.append(Segment(connection, whole[start : start + size], no_event, 0))
            del whole
            shown = segments.copy()

    return loop


def extension_exchange(extension: Path, batch: int) -> Loop:
    """Through the extension."""
    fast = extension_path(extension, batch)

    def loop(calls: int) -> None:
        exchange = fast.exchange
        for _ in range(calls):
            segments = exchange(0.0, CONNECTIONS)
            if len(segments) != batch:
                raise AssertionError

    return loop


def nanoseconds(loop: Loop) -> float:
    """The median time of a call."""
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        loop(CALLS)
        spent.append((time.perf_counter_ns() - start) / CALLS)
    return statistics.median(spent)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'call':<26}{'way':<12}{'ns':>8}")
        for (call, way), loop in loops(Path(folder)).items():
            print(f"{call:<26}{way:<12}{nanoseconds(loop):>8.0f}")


if __name__ == "__main__":
    main()
