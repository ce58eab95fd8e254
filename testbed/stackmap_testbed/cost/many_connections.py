"""The cost of a request among many connections.

``python -m stackmap_testbed.cost.many_connections --out out/bench-connections.json``

The gate's echo on rings, in the same machine that counts its instructions, with few and with many
connections.  Both have the same number of requests under way, on all connections in turn, so that
only the number of connections differs.  It is compared with epoll's, because part of the difference
is TCP's: on a connection that is used rarely, a reply is acknowledged by a packet of its own.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from stackmap_testbed.cost.baseline import environment
from stackmap_testbed.cost.counting import (
    AT_CLIENT,
    SERVER_ADDRESS,
    SERVER_NIC,
    Counter,
    counting_guest,
)
from stackmap_testbed.cost.gate import per_request
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import Kernel, find_kernel, module_for

FEW, MANY = 100, 10_000
#: Requests under way.
WINDOW = 64
#: Each connection has one at least, before and while it is measured.
REQUESTS = MANY
#: How much more a request may cost with many connections.
LIMIT = 1.3

_MEMORY_MB = 2048
_PORT = 7
_PATIENCE = 3600.0
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
_FILES = ("prlimit", f"--nofile={MANY + 100}:{MANY + 100}")


def measure(guest: Guest, counter: Counter, server: str, connections: int) -> float:
    """Instructions per request with so many connections, of a server started for this.

    Raises:
        LabError: a reply was missing or wrong.
    """
    program = [*_FILES, sys.executable, "-m", f"{__package__}.echo_{server}"]
    more = [SERVER_NIC] if server == "rings" else []
    process = guest.popen([*program, SERVER_ADDRESS, str(_PORT), *more], env=_ENVIRONMENT)
    try:
        process.wait_for_output("listening", timeout=_PATIENCE)
        known = len(counter.marks())
        program = [*_FILES, sys.executable, "-m", f"{__package__}.echo_load"]
        load = [SERVER_ADDRESS, str(_PORT), str(REQUESTS), f"{connections}/{WINDOW}"]
        ended = guest.run([*AT_CLIENT, *program, *load], env=_ENVIRONMENT, timeout=_PATIENCE)
    finally:
        process.kill(signal.SIGTERM)
        process.wait(_PATIENCE)
    return per_request(ended.stdout, counter.marks()[known:])[connections]


def run(kernel: Kernel, module: Path | None) -> dict[str, dict[int, float]]:
    """Instructions per request, by server and number of connections.

    Raises:
        LabError: something that is needed is missing, or does not work.
    """
    costs: dict[str, dict[int, float]] = {}
    with counting_guest(kernel, _MEMORY_MB) as (guest, counter):
        guest.insmod(module or module_for(kernel.release))
        for server in ("epoll", "rings"):
            if server == "rings":
                guest.run(["tc", "qdisc", "replace", "dev", SERVER_NIC, "root", "stackmap"])
            costs[server] = {}
            for connections in (FEW, MANY):
                cost = costs[server][connections] = measure(guest, counter, server, connections)
                print(f"{server}, {connections:6} connections: {cost:8.0f}", flush=True)
        guest.check_kernel_log()
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures; the exit status says whether the limit is kept."""
    parser = argparse.ArgumentParser(
        prog="python -m stackmap_testbed.cost.many_connections", description=__doc__
    )
    parser.add_argument("--kernel", default="6.12", metavar="SERIES")
    parser.add_argument(
        "--module", type=Path, help="stackmap.ko (default: as `make kmod` built it)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench-connections.json"))
    args = parser.parse_args(argv)
    print("instructions per request of the whole machine")
    try:
        kernel = find_kernel(args.kernel)
        costs = run(kernel, args.module)
        versions = environment(kernel.release)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ratios = {server: cost[MANY] / cost[FEW] for server, cost in costs.items()}
    figures = {
        server: {
            **{str(connections): round(figure) for connections, figure in cost.items()},
            "ratio": round(ratios[server], 3),
        }
        for server, cost in costs.items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({**figures, "limit": LIMIT, "environment": versions}, indent=2) + "\n"
    )
    passed = ratios["rings"] <= LIMIT
    print(
        f"{args.out}: on rings {ratios['rings']:.3f} times the cost, on epoll "
        f"{ratios['epoll']:.3f} times: {'passed' if passed else 'FAILED'}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
