"""Throughput of one connection by the size of its slots: ``python -m tests.slots``.

In one guest a ring and a socket take turns.  Both send to a peer in another network namespace of
the guest, across a veth pair and a round trip that netem makes.  Both send 60 pieces at a time: one
as slots and a sync, the other as system calls.  A ratio below the limit means that the ring
starves.  Rates of an emulated machine say little: only the two side by side do.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.kernels import find_kernel, module_for
from stackmap_testbed.lab.lab import Lab
from stackmap_testbed.lab.versions import versions
from tests.guest.raw import REFUSED, SLOTS, SYNC_WAIT, RawPort

ROUND_TRIPS_MS = (0.1, 10.0, 40.0)
SIZES = (1, 64, 100, 300, 500, 1000, 4096)
ROUNDS = 5
#: Pieces at a time.
WRITES = 60
#: The least throughput of a ring, as a part of a socket's.
LIMIT = 0.9

_NIC, _FAR = "slots0", "slots"
_ADDRESS, _PEER = "10.91.0.1", "10.91.0.2"
#: Round trips until TCP's window has grown, and seconds for what takes no round trips.
_WARM_UP_ROUND_TRIPS, _WARM_UP_SECONDS = 15, 0.3
_BOOT_SECONDS, _RUN_SECONDS = 600.0, 7200.0
#: Where struct tcp_info has tcpi_bytes_acked.
_BYTES_ACKED = 120


def _acked(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int.from_bytes(raw[_BYTES_ACKED : _BYTES_ACKED + 8], "little")


@contextmanager
def _wire() -> Iterator[None]:
    """A veth pair, its far end in a namespace of its own."""
    far = f"ip -n {_FAR}"
    subprocess.run(
        ["sh", "-ec", f"""
        modprobe veth; modprobe sch_netem
        ip netns add {_FAR}
        ip link add {_NIC} type veth peer name {_NIC} netns {_FAR}
        ip addr add {_ADDRESS}/24 dev {_NIC}; ip link set {_NIC} up
        {far} addr add {_PEER}/24 dev {_NIC}; {far} link set {_NIC} up; {far} link set lo up
        """],
        check=True,
    )  # fmt: skip
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "del", _FAR], check=True)


def _set_round_trip(milliseconds: float) -> None:
    """All of it on the way back, as the NIC's own qdisc is the module's."""
    subprocess.run(
        ["tc", "-n", _FAR, "qdisc", "replace", "dev", _NIC, "root", "netem", "limit", "100000",
         "delay", f"{round(milliseconds * 1000)}us"],
        check=True,
    )  # fmt: skip


def _bind(bound: bool) -> None:
    change = ["replace", "dev", _NIC, "root", "stackmap"] if bound else ["del", "dev", _NIC, "root"]
    subprocess.run(["tc", "qdisc", *change], check=True)


_SINK = """
import socket
listener = socket.create_server(("", 7))
while True:
    sock, _address = listener.accept()
    with sock:
        while sock.recv(1 << 20):
            pass
"""


@contextmanager
def _sink() -> Iterator[None]:
    """A process at the far end that reads all it is sent."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", _FAR, sys.executable, "-c", _SINK], start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _connect() -> socket.socket:
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((_PEER, 7), timeout=60)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _rate(sock: socket.socket, push: Callable[[], object], warm_up: float, seconds: float) -> float:
    """Bytes per second that the peer acknowledges while ``push`` is called again and again."""
    end = time.monotonic() + warm_up
    while time.monotonic() < end:
        push()
    before, start = _acked(sock), time.monotonic()
    while time.monotonic() < start + seconds:
        push()
    return (_acked(sock) - before) / (time.monotonic() - start)


def _on_socket(size: int, warm_up: float, seconds: float) -> float:
    payload = bytes(size)
    with closing(_connect()) as sock:
        sock.setblocking(False)
        space = select.poll()
        space.register(sock, select.POLLOUT)

        def push() -> None:
            try:
                for _ in range(WRITES):
                    sock.send(payload)
            except BlockingIOError:
                space.poll(10)

        return _rate(sock, push, warm_up, seconds)


#: Slots of a ring: those of a sync are never at both ends of it.
_RING = 16 * WRITES
#: Each piece that was not acknowledged has a buffer, and a connection may use half of them: enough
#: for pieces of one byte as fast as a socket sends them, and the longest of the round trips.
_SPARE = 16 * _RING
#: The size of a slot, and the offsets of its length, its id and its events.
_SLOT, _LENGTH, _ID, _EVENTS = 16, 4, 8, 14


def _on_ring(size: int, warm_up: float, seconds: float) -> float:
    lengths = array("H", [size] * WRITES)
    with RawPort(_RING, 64, _NIC, spare=_SPARE) as port, closing(_connect()) as sock:
        ids = array("Q", [port.attach(sock)] * WRITES)
        # The contents of the buffers do not matter.  One assignment for all slots of a sync costs
        # less than a loop, which would be measured instead of the ring.
        with memoryview(port.memory) as memory, memory.cast("H") as by_2, memory.cast("Q") as by_8:
            blocked = False

            def push() -> None:
                nonlocal blocked
                if blocked:  # until WRITABLE comes
                    port.receive(SYNC_WAIT, deadline=time.monotonic() + 0.01)
                first = port.tx.head
                at = port.tx.start + SLOTS + _SLOT * first
                end = at + _SLOT * WRITES
                by_2[(at + _LENGTH) // 2 : end // 2 : _SLOT // 2] = lengths
                by_8[(at + _ID) // 8 : end // 8 : _SLOT // 8] = ids
                port.tx.set_head((first + WRITES) % port.tx.n)
                port.sync_all()
                blocked = bool(memory[end - _SLOT + _EVENTS] & REFUSED)

            return _rate(sock, push, warm_up, seconds)


def _measure(round_trips: Sequence[float], sizes: Sequence[int], seconds: float) -> None:
    """In the guest: print a line of JSON for each round trip and size."""
    with _wire(), _sink():
        for round_trip in round_trips:
            _set_round_trip(round_trip)
            warm_up = _WARM_UP_SECONDS + _WARM_UP_ROUND_TRIPS * round_trip / 1000
            for size in sizes:
                rates: dict[str, list[float]] = {"socket": [], "ring": []}
                for _ in range(ROUNDS):
                    rates["socket"].append(_on_socket(size, warm_up, seconds))
                    _bind(True)
                    rates["ring"].append(_on_ring(size, warm_up, seconds))
                    _bind(False)
                figures = {name: median(found) for name, found in rates.items()}
                line = {"round_trip_ms": round_trip, "size": size, **figures}
                print(json.dumps(line | {"ratio": figures["ring"] / figures["socket"]}), flush=True)


def _run(args: argparse.Namespace) -> list[dict[str, float]]:
    """Boot a guest and measure in it.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    kernel = find_kernel(args.kernel)
    command = [sys.executable, "-m", "tests.slots", "--inside"]
    command += ["--seconds", str(args.seconds), "--sizes", *map(str, args.sizes)]
    command += ["--round-trips", *map(str, args.round_trips)]
    with Lab(kernel=args.kernel, guests=("server",), boot_seconds=_BOOT_SECONDS) as lab:
        lab.server.insmod(module_for(kernel.release))
        ended = lab.server.run(command, timeout=_RUN_SECONDS)
        lab.server.check_kernel_log()
    return [json.loads(line) for line in ended.stdout.splitlines()]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures; the exit status says whether the limit is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.slots", description=__doc__)
    parser.add_argument("--kernel", default="6.12", metavar="SERIES")
    parser.add_argument("--out", type=Path, default=Path("out/bench-slots.json"))
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes")
    parser.add_argument(
        "--round-trips", type=float, nargs="+", default=ROUND_TRIPS_MS, help="milliseconds"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.inside:
        _measure(args.round_trips, args.sizes, args.seconds)
        return 0
    try:
        figures = _run(args)
        environment = versions(find_kernel(args.kernel).release)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{WRITES} pieces at a time, kB/s, median of {ROUNDS} rounds")
    print(f"{'round trip':>10} {'slot':>5} {'socket':>8} {'ring':>8} {'ratio':>6}")
    for line in figures:
        print(
            f"{line['round_trip_ms']:7} ms {line['size']:5} {line['socket'] / 1000:8.0f} "
            f"{line['ring'] / 1000:8.0f} {line['ratio']:6.2f}"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"figures": figures, "limit": LIMIT, "environment": environment}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    least = min(line["ratio"] for line in figures)
    print(f"{args.out}: {least:.2f} at the least: {'passed' if least >= LIMIT else 'FAILED'}")
    return 0 if least >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
