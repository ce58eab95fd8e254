"""Two rings on two processors and two queues of a NIC: their throughput over one's; so with epoll.

``python -m stackmap_testbed.cost.two_rings --out out/bench-rings.json``

A server has a thread for each of its processors, which has a queue of the NIC, clients, and, on
rings, a ring to itself.  The processors' instructions are counted as
:mod:`stackmap_testbed.cost.models` counts them, but behind another NIC
(:mod:`stackmap_testbed.cost.queues`).

Throughput is requests by the instructions of the busier processor.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stackmap_testbed.cost.counting import SERVER_NIC, VETH
from stackmap_testbed.cost.echo import (
    PORT,
    EchoError,
    command_line,
    machine,
    own_command,
    positive,
    write_figures,
)
from stackmap_testbed.cost.models import Cost, Server, kernel_symbols, loads, summary
from stackmap_testbed.cost.queues import QUEUES, Queue
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.kernels import find_kernel
from stackmap_testbed.lab.versions import versions

#: Kinds of servers, with the options of the one in C.
KINDS: Mapping[str, Sequence[str]] = {"rings": [SERVER_NIC], "epoll": []}
#: How often each server is started anew: how it and what receives for it get their turns settles
#: differently each time, and stays.
REPEATS = 5
#: Of each queue.
CONNECTIONS = 64
REQUESTS = 40 * CONNECTIONS
#: How many times the throughput of one ring two should have.
WANTED = 1.9
#: How often a processor of the server may have nothing to do, for each of its requests.  If that
#: were more often, the clients would be what is measured.
IDLE = 0.1

_PATIENCE = 600.0


def server(kind: str, queues: Sequence[Queue]) -> Server:
    """A server on the processors of queues, and their clients."""
    processors = ",".join(str(queue.server) for queue in queues)
    echo = own_command("echo_c", SERVER_ADDRESS, PORT, *KINDS[kind], "--threads", len(queues))
    return Server(
        ["taskset", "--cpu-list", processors, *echo],
        rings=kind == "rings",
        connections=(CONNECTIONS,),
        load=["--processors", *(str(queue.client) for queue in queues)],
    )


@contextlib.contextmanager
def occupied(guest: Guest, queues: Sequence[Queue]) -> Iterator[None]:
    """Let the processors of queues that are not in use execute something.

    The guest's time passes by the instructions of all processors.  While fewer of them execute,
    there are fewer ticks of the scheduler for each request.
    """
    with contextlib.ExitStack() as stack:
        for queue in queues:
            for processor in (queue.server, queue.client):
                loop = ["taskset", "--cpu-list", str(processor), "sh", "-c", "while :; do :; done"]
                process = guest.popen(loop)
                stack.callback(process.wait, _PATIENCE)
                stack.callback(process.kill, signal.SIGKILL)
        yield


def check_busy(costs: Sequence[Cost], requests: float) -> None:
    """Check that a processor had something to do all the time.

    Args:
        costs: its own.
        requests: of those that are counted, the part that it served.

    Raises:
        EchoError: it had not.
    """
    idle = max(cost.events["sleeps"] for cost in costs) / requests
    if idle > IDLE:
        raise EchoError(
            f"a processor of the server had nothing to do {idle:.2f} times for each of its requests"
        )


def compare(one: Sequence[Cost], two: Sequence[Sequence[Cost]]) -> dict[str, Any]:
    """Two processors' throughput over one's.

    Args:
        one: its cost in each repeat.
        two: each one's cost in each repeat, per request of both.

    Returns:
        figures of :func:`summary` for ``one`` and each of ``two``, the ratio, and how far it may be
        off: half of both spreads.
    """
    busier = [max(each, key=lambda cost: cost.instructions) for each in zip(*two, strict=True)]
    alone, together = summary(one), summary(busier)
    ratio = alone["instructions"] / together["instructions"]
    return {
        "one": alone,
        "two": [summary(costs) for costs in two],
        "throughput": round(ratio, 3),
        "off": round(ratio * (alone["spread"] + together["spread"]) / 2, 3),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of the table, in Markdown: thousands of instructions per request, and waits."""
    lines = [
        "| server | one processor | two: first | second | throughput | waits: one | two |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind, each in found.items():
        costs = [each["one"], *each["two"]]
        thousands = " | ".join(f"{cost['instructions'] / 1000:.2f}" for cost in costs)
        waits = [cost["events"]["waits"] for cost in costs]
        lines.append(
            f"| {kind} | {thousands} | {each['throughput']:.2f} ± {each['off']:.2f} "
            f"| {waits[0]:.3f} | {sum(waits[1:]):.3f} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures; the exit status says whether two rings have what is wanted."""
    parser = command_line("two_rings", __doc__, "out/bench-rings.json")
    parser.add_argument("--repeats", type=positive, default=REPEATS, metavar="N")
    args = parser.parse_args(argv)
    found = {}
    try:
        kernel = find_kernel(args.kernel)
        with machine(kernel, args.module, nic=VETH) as (guest, counter):
            symbols = kernel_symbols(guest)

            def costs(kind: str, threads: int) -> list[list[Cost]]:
                queues = QUEUES[:threads]
                each = []
                with occupied(guest, QUEUES[threads:]):
                    for _ in range(args.repeats):
                        each += loads(guest, counter, server(kind, queues), 1, REQUESTS)
                by_queue = [
                    [loaded.cost(queue.server, symbols, VETH) for loaded in each]
                    for queue in queues
                ]
                for its_costs in by_queue:
                    check_busy(its_costs, 1 / threads)
                return by_queue

            for kind in KINDS:
                (one,) = costs(kind, 1)
                found[kind] = compare(one, costs(kind, len(QUEUES)))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = table(found)
    figures = {"servers": found, "table": lines, "wanted": WANTED, "requests": REQUESTS}
    write_figures({**figures, "environment": versions(kernel.release)}, args.out)
    print("\n".join(lines))
    passed = found["rings"]["throughput"] >= WANTED
    print(f"{args.out}: at least {WANTED} on rings: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
