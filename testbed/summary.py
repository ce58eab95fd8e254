"""What a set of runs amounts to: ratios, what was pinned, which way the bytes went, what is wrong.

Only numbers that mean something on an emulated machine are condensed: ratios within pairs.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stackmap_testbed.experiment import Plan, Run, pairs

METHOD = (
    "Two virtual machines of one boot, joined by a wire of their own. For each number of "
    "connections, rounds of two runs, sockets and stackmap, in alternating order; each run starts "
    "the server afresh, warms up, and measures a closed loop of GETs whose every reply byte is "
    "compared with the value stored. Server CPU is the time the server machine's virtual "
    "processor ran during the measurement: interrupts, kernel, driver and application, idle "
    "spinning included. A ratio is stackmap over sockets within one round; given are the median "
    "of the rounds and their extremes."
)
EMULATED = (
    "The machines were emulated in software (no hardware virtualisation): absolute times and rates "
    "mean nothing, only ratios do."
)
BUSY = "Something else kept the machine busy when this began (load average {load}): expect scatter."

_RATIOS: dict[str, Callable[[Run], float]] = {
    "throughput": lambda run: run.requests_per_second,
    "cpu_per_request": lambda run: run.server_cpu_us_per_request,
    "p99": lambda run: run.latency_us["p99"],
    "requests_per_cpu_second": lambda run: run.requests_per_cpu_second,
}
_PATH = ("ring_bytes_rx", "ring_bytes_tx", "socket_bytes_rx", "socket_bytes_tx")


def ratios(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Stackmap over sockets, by connection count and figure: median, min and max of the rounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for connections in dict.fromkeys(run.connections for run in runs):
        found[str(connections)] = {}
        for name, figure in _RATIOS.items():
            values = [
                figure(rings) / figure(sockets) for sockets, rings in pairs(runs, connections)
            ]
            found[str(connections)][name] = {
                "median": round(statistics.median(values), 4),
                "min": round(min(values), 4),
                "max": round(max(values), 4),
            }
    return found


def pinning(runs: Sequence[Run]) -> dict[str, int]:
    """Transmit buffers of the stackmap runs: sent, released by ACK, still pinned at each end."""
    rings = [run.counters for run in runs if run.backend == "stackmap"]
    return {
        "slots_sent": sum(counters["slots_sent"] for counters in rings),
        "slots_released_by_ack": sum(counters["slots_released_by_ack"] for counters in rings),
        "slots_pinned_at_end": sum(counters["slots_pinned"] for counters in rings),
    }


def path(runs: Sequence[Run]) -> dict[str, int]:
    """Payload bytes of the stackmap runs, by the way they went."""
    rings = [run.counters for run in runs if run.backend == "stackmap"]
    return {name: sum(counters[name] for counters in rings) for name in _PATH}


def problems(runs: Sequence[Run], kernel_log: Mapping[str, Sequence[str]]) -> list[str]:
    """What must not be, each in a sentence; empty when all is well."""
    found = []
    for run in runs:
        name = f"{run.backend}, {run.connections} connections, round {run.round + 1}"
        if run.errors:
            detail = f" ({run.first_wrong})" if run.first_wrong else ""
            found.append(f"{name}: {run.errors} wrong or missing replies{detail}")
        if run.backend != "stackmap":
            continue
        counters = run.counters
        strayed = counters["socket_bytes_rx"] + counters["socket_bytes_tx"]
        if strayed:
            found.append(f"{name}: {strayed} payload bytes went through sockets, not rings")
        if not counters["ring_bytes_rx"] or not counters["ring_bytes_tx"]:
            found.append(f"{name}: no payload went through the rings")
        if counters["slots_pinned"]:
            found.append(
                f"{name}: {counters['slots_pinned']} transmit buffers are still pinned after the "
                "clients finished"
            )
    for host, lines in kernel_log.items():
        found += [f"kernel log of the {host}: {line}" for line in lines]
    return found


def caveats(accel: str, machine: Mapping[str, Any]) -> str:
    """What a reader of the numbers must know first; empty when there is nothing."""
    found = [EMULATED] if accel == "tcg" else []
    if machine["load_average_at_start"] > 0.5:
        found.append(BUSY.format(load=machine["load_average_at_start"]))
    return " ".join(found)


def summarise(
    plan: Plan,
    runs: Sequence[Run],
    *,
    kernel: str,
    accel: str,
    machine: Mapping[str, Any],
    kernel_log: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The content of ``report.json``."""
    return {
        "kernel": kernel,
        "accel": accel,
        "machine": dict(machine),
        "method": METHOD,
        "caveat": caveats(accel, machine),
        "plan": dataclasses.asdict(plan),
        "runs": [dataclasses.asdict(run) for run in runs],
        "ratio": ratios(runs),
        "pin": pinning(runs),
        "path": path(runs),
        "kernel_log": {
            host: {"clean": not lines, "lines": list(lines)} for host, lines in kernel_log.items()
        },
        "problems": problems(runs, kernel_log),
    }
