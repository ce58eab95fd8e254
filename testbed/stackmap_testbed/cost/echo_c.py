"""TCP echo servers in C: ``python -m stackmap_testbed.cost.echo_c ADDRESS PORT [NIC]``.

On rings if a NIC is named, otherwise on epoll, which polls the NIC busily for the microseconds of
``--busy``.  They show the cost of a request without Python.

With ``--threads`` there are several, each on the next processor that the process may run on, with
a ring of the same port, if on rings, and a listener on the same port number of its own.  Since
Linux 6.2 the listener of the processor that receives a connection's packets gets it; before, any.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue

from stackmap import DEVICE
from stackmap_testbed.cost._echo_c import ffi, lib


def _run_all(servers: Iterable[tuple[int, Callable[[], int]]]) -> int:
    """Run each server in a thread on its processor; returns what the first one to end returns."""
    ended: SimpleQueue[int] = SimpleQueue()

    def run(processor: int, server: Callable[[], int]) -> None:
        os.sched_setaffinity(0, {processor})
        ended.put(server())

    for each in servers:
        threading.Thread(target=run, args=each, daemon=True).start()
    return ended.get()


def serve(address: str, port: int, nic: str | None, busy_usecs: int, threads: int) -> None:
    """Send back what comes, until the process is ended.

    Raises:
        OSError: it cannot listen, open a port on rings, or go on.
    """
    rings = None if nic is None else lib.echo_port(DEVICE.encode(), nic.encode(), threads)
    if rings == ffi.NULL:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
    servers: list[tuple[int, Callable[[], int]]] = []
    with ExitStack() as stack:
        processors = itertools.cycle(sorted(os.sched_getaffinity(0)))
        for ring, processor in zip(range(threads), processors, strict=False):
            listener = socket.create_server((address, port), backlog=4096, reuse_port=threads > 1)
            stack.enter_context(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU, processor)
            if rings is None:
                server = partial(lib.echo_on_epoll, listener.fileno(), busy_usecs)
            else:
                server = partial(lib.echo_on_ring, listener.fileno(), rings, ring)
            servers.append((processor, server))
        print("listening", flush=True)
        # Where a process has several threads, each use of a file costs more.
        error = _run_all(servers) if threads > 1 else servers[0][1]()
    raise OSError(-error, os.strerror(-error))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("nic", nargs="?")
    parser.add_argument("--busy", type=int, default=0, metavar="MICROSECONDS")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    args = parser.parse_args()
    serve(args.address, args.port, args.nic, args.busy, args.threads)
