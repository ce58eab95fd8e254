"""Load a server and mark the measured part for a counter of instructions.

``python -m stackmap_testbed.cost.echo_load ADDRESS PORT REQUESTS CONNECTIONS[/WINDOW]...``

Sends messages that an echo server sends back; with ``--memcached``, GETs of values that it has
stored before; with ``--http``, GETs of files that the server has, which are named after their size.
With ``--drain`` all replies come before each marker.
Keeps one outstanding on each of so many connections, for one size and number of
connections after the other; with a window, on so many of them at a time, in turn.  Once the server
is warm, a marker is executed at both ends of ``REQUESTS`` messages.  Prints one line of JSON for
each.

With ``--processors`` there is a client on each of these, with as many requests and connections of
its own.  The markers are executed when the last one is ready, and when the last one is done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from stackmap_testbed.load.generator import (
    Exchange,
    Load,
    LoadPlan,
    connected,
    get_of,
    mark,
    preset,
)

MESSAGE_BYTES = 64
_MESSAGES = 16
_PATIENCE = 30.0


def _echoes(_address: str, _port: int, size: int) -> list[Exchange]:
    chance = random.Random(size)
    return [Exchange(text, text) for text in (chance.randbytes(size) for _ in range(_MESSAGES))]


def _gets(address: str, port: int, size: int) -> list[Exchange]:
    preset(LoadPlan(address, port, value_size=size, keys=_MESSAGES))
    return [get_of(index, size) for index in range(_MESSAGES)]


def _pages(address: str, port: int, size: int) -> list[Exchange]:
    request = b"GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n" % (size, address.encode())
    with socket.create_connection((address, port), _PATIENCE) as sock:
        sock.sendall(request)
        with sock.makefile("rb") as reply:
            head = b"".join(iter(reply.readline, b"\r\n")) + b"\r\n"
            body = reply.read(size)
    date = re.search(rb"(?im)^date: (.*)\r$", head)
    if not head.startswith(b"HTTP/1.1 200 ") or date is None:
        raise ValueError(f"the server answered {head!r} to {request!r}")
    return [Exchange(request, head + body, range(*date.span(1)))]


def measure(
    address: str,
    port: int,
    exchanges: Sequence[Exchange],
    requests: int,
    *,
    connections: int,
    window: int | None,
    drain: bool = False,
    at_mark: Callable[[], object] = mark,
) -> dict[str, int]:
    """Warm up with as many messages as are then measured, and call ``at_mark`` at both ends.

    With ``drain`` all replies come before each end: otherwise a burst that is under way there may
    be the server's work between both or not.

    Raises:
        OSError: the server cannot be reached.
    """
    with connected(address, port, connections, _PATIENCE) as fds:
        load = Load(fds, exchanges, array("I", range(len(exchanges))), window=window)
        for record in (False, True):
            load.run(None, requests, record=record)
            if drain:
                load.drain(_PATIENCE)
            at_mark()
        load.drain(_PATIENCE)
        result = load.result()
        p99 = load.histogram().get_value_at_percentile(99)
    return {
        "connections": connections,
        "requests": result.requests,
        "errors": result.wrong + result.lost + result.unanswered,
        "p99_ns": p99,
    }


def measure_together(
    processors: Sequence[int], measure_one: Callable[..., dict[str, int]]
) -> dict[str, int]:
    """Measure with a client on each processor at once; returns their sums, and the longest p99.

    Args:
        processors: their numbers.
        measure_one: :func:`measure`, which is given ``at_mark`` here.

    Raises:
        OSError: the server cannot be reached.
    """
    marks = threading.Barrier(len(processors), mark, timeout=_PATIENCE)

    def client(processor: int) -> dict[str, int]:
        os.sched_setaffinity(0, {processor})
        return measure_one(at_mark=marks.wait)

    with ThreadPoolExecutor(len(processors)) as threads:
        found = list(threads.map(client, processors))
    total = {name: sum(each[name] for each in found) for name in found[0]}
    return {**total, "p99_ns": max(each["p99_ns"] for each in found)}


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=int)
    parser.add_argument("connections", nargs="+")
    parser.add_argument("--bytes", type=int, nargs="+", default=[MESSAGE_BYTES])
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--processors", type=int, nargs="+", metavar="N")
    protocol = parser.add_mutually_exclusive_group()
    for name, prepare in (("--memcached", _gets), ("--http", _pages)):
        protocol.add_argument(
            name, dest="prepare", action="store_const", const=prepare, default=_echoes
        )
    args = parser.parse_args()
    for size in args.bytes:
        exchanges = args.prepare(args.address, args.port, size)
        for words in args.connections:
            number, _, window = words.partition("/")
            one = partial(
                measure,
                args.address,
                args.port,
                exchanges,
                args.requests,
                connections=int(number),
                window=int(window) if window else None,
                drain=args.drain,
            )
            found = measure_together(args.processors, one) if args.processors else one()
            print(json.dumps({"bytes": size, **found}))


if __name__ == "__main__":
    _main()
