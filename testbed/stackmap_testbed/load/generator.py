"""Offer a memcached server a load, check every byte of its replies, and measure latencies.

A reply that differs from the right one in a single byte is an error.  An open loop (``rate``) has
requests due at evenly spaced times whatever the server does, on the connections in turn, and a
latency counts from when its request was due, so that a stall is seen by every request it held up
and not only by the one that met it (coordinated omission).  What is due while the measurement lasts
is sent and counted even if that happens after its end.  In a closed loop each connection has one
request outstanding at all times.

The loop itself is C (``_load.c``); this file prepares its requests and reads its results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from stackmap_testbed.load._load_c import ffi, lib

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
LONGEST_NS = 3600 * 10**9
_ORDER_LENGTH = 4096
_EINTR, _EPIPE = 4, 32


@dataclasses.dataclass(frozen=True, slots=True)
class LoadPlan:
    """The load to offer.

    The measurement ends after ``seconds`` or after ``requests`` requests, whichever is given
    (or comes first).  ``rate`` is in requests per second over all connections.
    """

    host: str
    port: int
    connections: int = 1
    value_size: int = 64
    keys: int = 16
    set_share: float = 0.0
    rate: float | None = None
    seconds: float | None = 5.0
    requests: int | None = None
    warmup: float = 1.0
    timeout: float = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load.

    Attributes:
        rate: requests per second that were due; None for a closed loop.
        requests_per_second: replies per second.  Of an open loop that lasted ``seconds``, those
            that came meanwhile: fewer than ``rate`` when the server did not keep up.
        errors: ``wrong``, ``lost`` and ``unanswered`` together.
        histogram: HdrHistogram of nanoseconds (V2, compressed, base64).
    """

    connections: int
    value_size: int
    set_share: float
    rate: float | None
    requests: int
    seconds: float
    requests_per_second: float
    errors: int
    wrong: int
    lost: int
    unanswered: int
    first_wrong: str | None
    latency_us: dict[str, float]
    histogram: str


def key_of(index: int) -> bytes:
    """The name of a preset key."""
    return b"load:%d" % index


def value_of(index: int, size: int) -> bytes:
    """The one right value of a preset key; values of different keys differ."""
    return random.Random(index).randbytes(size)


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """One request and the only reply to it that is right, but for bytes that may be any."""

    request: bytes
    reply: bytes
    any: range = range(0)


def _set(index: int, size: int) -> Exchange:
    value = value_of(index, size)
    return Exchange(b"set %s 0 0 %d\r\n%s\r\n" % (key_of(index), size, value), b"STORED\r\n")


def get_of(index: int, size: int) -> Exchange:
    """The GET of a preset key, and its reply."""
    value = value_of(index, size)
    return Exchange(
        b"get %s\r\n" % key_of(index),
        b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (key_of(index), size, value),
    )


def preset(plan: LoadPlan) -> None:
    """Store the known values.

    Raises:
        OSError: the server cannot be reached.
        ValueError: the server refused a value.
    """
    with socket.create_connection((plan.host, plan.port), plan.timeout) as sock:
        replies = sock.makefile("rb")
        for index in range(plan.keys):
            sock.sendall(_set(index, plan.value_size).request)
            reply = replies.readline()
            if reply != b"STORED\r\n":
                raise ValueError(f"the server answered {reply!r} to a set")


@contextlib.contextmanager
def connected(host: str, port: int, connections: int, timeout: float) -> Iterator[list[int]]:
    """Descriptors of this many connections.

    Raises:
        OSError: the server cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        fds = []
        for _ in range(connections):
            sock = stack.enter_context(socket.create_connection((host, port), timeout))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            fds.append(sock.fileno())
        yield fds


def _mix(plan: LoadPlan) -> tuple[list[Exchange], array[int]]:
    """The GETs and SETs of a plan, and the order in which connections send them."""
    exchanges = [
        *(get_of(index, plan.value_size) for index in range(plan.keys)),
        *(_set(index, plan.value_size) for index in range(plan.keys)),
    ]
    chance = random.Random(plan.keys)
    order = array("I")
    for _ in range(_ORDER_LENGTH):
        stores = chance.random() < plan.set_share
        order.append(chance.randrange(plan.keys) + (plan.keys if stores else 0))
    return exchanges, order


class Load:
    """The C side of one run, and what has to stay alive as long as it does.

    Args:
        fds: non-blocking sockets.
        exchanges: what may be sent.
        order: the exchanges' numbers, in the order in which connections send them.
        interval_ns: of an open loop; 0 for a closed one.
        window: of a closed loop: how many requests are outstanding, on the connections in turn;
            without it, one on each.
    """

    def __init__(
        self,
        fds: Sequence[int],
        exchanges: Sequence[Exchange],
        order: array[int],
        interval_ns: int = 0,
        window: int | None = None,
    ) -> None:
        self._exchanges = exchanges
        self._buffers = []
        table = ffi.new("struct load_exchange[]", len(exchanges))
        for entry, exchange in zip(table, exchanges, strict=True):
            request, reply = ffi.from_buffer(exchange.request), ffi.from_buffer(exchange.reply)
            self._buffers += [request, reply]
            entry.request, entry.request_len = request, len(exchange.request)
            entry.reply, entry.reply_len = reply, len(exchange.reply)
            entry.any_at, entry.any_len = exchange.any.start, len(exchange.any)
        self._table = table
        self._order = ffi.from_buffer("uint32_t[]", order)
        self._fds = ffi.new("int[]", fds)
        load = lib.load_new(self._fds, len(fds), table, self._order, len(order), interval_ns)
        if load == ffi.NULL:
            raise OSError(ffi.errno, "the load generator cannot watch its connections")
        self._load = ffi.gc(load, lib.load_free)
        if window is not None:
            lib.load_set_window(load, window)

    def run(self, seconds: float | None, requests: int | None, *, record: bool) -> None:
        """Drive the connections for a time or a number of requests (or until none is left)."""
        lib.load_begin(self._load, round((seconds or 0) * 1e9), requests or 0, record)
        self._check(lambda: lib.load_run(self._load))

    def drain(self, seconds: float) -> None:
        """Wait for the outstanding replies, of an open loop for those that are due, too."""
        until = lib.load_now_ns() + round(seconds * 1e9)
        self._check(lambda: lib.load_drain(self._load, until))

    @staticmethod
    def _check(call: Callable[[], int]) -> None:
        # A signal ends the C call so that Python can run its handler, which may raise.
        while (status := call()) == -_EINTR:
            pass
        if status not in (0, -_EPIPE):
            raise OSError(-status, "the load generator failed")

    def histogram(self) -> HdrHistogram:
        """The latencies of what was recorded."""
        histogram = HdrHistogram(1, LONGEST_NS, 3)
        left = self.result().requests
        for bucket in range(lib.load_buckets()):
            if not left:
                break
            count = lib.load_bucket_count(self._load, bucket)
            if count:
                value = min(max(lib.load_bucket_ns(bucket), 1), LONGEST_NS)
                histogram.record_value(value, count)
                left -= count
        return histogram

    def result(self) -> Any:
        """The counts, as a ``struct load_result *``."""
        result = ffi.new("struct load_result *")
        lib.load_result(self._load, result)
        return result

    def describe_first_wrong(self, result: Any) -> str | None:
        """Say which byte of a reply was the first wrong one, if one was."""
        if not result.wrong:
            return None
        what = self._exchanges[result.wrong_exchange].request.split(b"\r\n", 1)[0].decode()
        expected = "the end" if result.wrong_expected < 0 else f"byte 0x{result.wrong_expected:02x}"
        return (
            f"connection {result.wrong_connection}, reply to {what!r}, offset "
            f"{result.wrong_offset}: expected {expected}, got 0x{result.wrong_received:02x}"
        )


def run_load(plan: LoadPlan, on_phase: Callable[[str], None] = lambda _: None) -> LoadResult:
    """Preset, connect, warm up, measure, drain.

    Args:
        plan: what to do.
        on_phase: called with ``"measuring"`` and ``"measured"`` at both ends of the measurement.

    Raises:
        OSError: the server cannot be reached.
        ValueError: the server refused a preset value.
    """
    preset(plan)
    with connected(plan.host, plan.port, plan.connections, plan.timeout) as fds:
        load = Load(fds, *_mix(plan), round(1e9 / plan.rate) if plan.rate else 0)
        if plan.warmup:
            load.run(plan.warmup, None, record=False)
        on_phase("measuring")
        load.run(plan.seconds, plan.requests, record=True)
        on_phase("measured")
        load.drain(plan.timeout)
        counted = load.result()
        histogram = load.histogram()
        first_wrong = load.describe_first_wrong(counted)
    if plan.rate and plan.seconds and plan.requests is None:
        replies, seconds = counted.answered, plan.seconds
    else:
        replies = counted.requests
        seconds = (counted.last_reply_ns - counted.first_start_ns) / 1e9 if replies else 0.0
    return LoadResult(
        connections=plan.connections,
        value_size=plan.value_size,
        set_share=plan.set_share,
        rate=plan.rate,
        requests=counted.requests,
        seconds=seconds,
        requests_per_second=replies / seconds if seconds else 0.0,
        errors=counted.wrong + counted.lost + counted.unanswered,
        wrong=counted.wrong,
        lost=counted.lost,
        unanswered=counted.unanswered,
        first_wrong=first_wrong,
        latency_us={
            name: round(histogram.get_value_at_percentile(percentile) / 1000, 3)
            for name, percentile in PERCENTILES.items()
        },
        histogram=histogram.encode().decode(),
    )


def mark() -> None:
    """Execute the marker of ``_mark.h``, which a counter of instructions sees from outside."""
    lib.load_mark()


def write_hgrm(result: LoadResult, target: Path) -> None:
    """Write the latencies, in microseconds, as HdrHistogram's plotters read them (``.hgrm``)."""
    with target.open("wb") as file:
        HdrHistogram.decode(result.histogram).output_percentile_distribution(file, 1000)
