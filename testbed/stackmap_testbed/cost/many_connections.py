"""The cost of a request among many connections.

``python -m stackmap_testbed.cost.many_connections --out out/bench-connections.json``

An echo, with few and with many connections, of which the server's share is counted as
:mod:`stackmap_testbed.cost.models` counts it.  Both numbers have the same number of requests under
way, on all connections in turn.  The client acknowledges each reply by a packet of its own: left to
itself, its TCP does so on connections that are used rarely, which are many, and on the others by
its next request.  So only the number of connections differs.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from stackmap_testbed.cost.baseline import PAIRS
from stackmap_testbed.cost.counting import CLIENT_NIC
from stackmap_testbed.cost.echo import command_line, write_figures
from stackmap_testbed.cost.models import SERVERS, run
from stackmap_testbed.lab.addresses import CLIENT_ADDRESS, SERVER_ADDRESS
from stackmap_testbed.lab.errors import LabError

FEW, MANY = 100, 10_000
#: Requests under way.
WINDOW = 64
#: Each connection has one at least, before and while it is measured.
REQUESTS = MANY
#: How many times the cost among few connections a request on rings may cost among many.
LIMIT = 1.1

_BYTES = 64
_MEMORY_MB = 2048
_FILES = MANY + 100
_ACKNOWLEDGE_AT_ONCE = (
    *("ip", "-n", "client", "route", "add", SERVER_ADDRESS, "dev", CLIENT_NIC),
    *("src", CLIENT_ADDRESS, "quickack", "1"),
)


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """How many times the cost among few connections a request costs among many, by server."""

    def cost(server: str, connections: int) -> int:
        return int(figures["servers"][server][str(_BYTES)][str(connections)]["instructions"])

    names = figures["servers"]
    return {server: round(cost(server, MANY) / cost(server, FEW), 3) for server in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures; the exit status says whether the limit is kept."""
    parser = command_line("many_connections", __doc__, "out/bench-connections.json")
    parser.add_argument(
        "--delayed-acks",
        action="store_true",
        help="leave it to the client's TCP when it acknowledges",
    )
    args = parser.parse_args(argv)
    connections = [f"{number}/{WINDOW}" for number in (FEW, MANY)]
    servers = {
        name: dataclasses.replace(
            SERVERS[name], sizes=(_BYTES,), connections=connections, files=_FILES
        )
        for pair in PAIRS.items()
        for name in pair
    }
    try:
        figures = run(
            args.kernel,
            args.module,
            servers,
            1,
            requests=REQUESTS,
            memory=_MEMORY_MB,
            setup=() if args.delayed_acks else _ACKNOWLEDGE_AT_ONCE,
        )
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = ratios(figures)
    write_figures({**figures, "ratios": found, "limit": LIMIT}, args.out)
    for server, ratio in found.items():
        print(f"{server}: with {MANY} connections {ratio:.3f} times the cost with {FEW}")
    passed = all(found[rings] <= LIMIT for rings in PAIRS)
    print(f"{args.out}: at most {LIMIT} on rings: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
