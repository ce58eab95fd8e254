"""Summarise a set of runs: ratios, latencies at stated loads, pinned buffers, faults.

On an emulated machine only ratios within pairs mean something; what else is here is there to judge
them by.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stackmap_testbed.comparison.experiment import BACKENDS, Plan, Run, pairs

METHOD = """
Two virtual machines of one boot, joined by a wire of their own. Runs come in pairs, sockets and
rings, in alternating order. Each run starts the server afresh, warms up, and measures GETs;
every byte of every reply is compared with the value stored.

The closed loop keeps one request outstanding on each connection. It finds the peak, but not a
latency to expect: with n connections that is n over the throughput.

The open loop has a request due at evenly spaced times, on the connections in turn. Its rate is a
share of the peak, which is the lower of both servers' closed loops (median of rounds) at the same
number of connections, so both are offered the same. A latency counts from when the request was due,
whenever it could be sent, and all that was due is in it (corrected for coordinated omission). A
server that achieved less than 97 % of the offered rate in any round was saturated: its latency
would grow with the time it is measured, so none is given. With one connection there is no open
loop: in the closed one nothing waits.

Server CPU is the time the server machine's virtual processor ran during the measurement:
interrupts, kernel, driver and application, idle spinning included. A ratio is rings over sockets
within one pair; given are the median of the rounds and their extremes.
"""
EMULATED = (
    "The machines were emulated in software (no hardware virtualisation): absolute times and rates "
    "mean nothing, only ratios do."
)
TUNED = (
    "The server on sockets polled its NIC busily, and the NIC's interrupts waited for that: tuned "
    "sockets. Such a server uses its processor also while it waits, so its requests per CPU second "
    "say something at the peak only."
)
ONE_MACHINE = (
    "Ratios, too, belong to one machine: at 128 connections one gave 1.24 times the requests per "
    "server CPU second, and another 2.53."
)
BUSY = (
    "This machine had other work (load average {start} at the start, up to {most} during the runs; "
    "the two hosts themselves make {hosts} of it): expect scatter, and see each run's load average."
)
#: A server that achieves less of the offered rate is saturated (METHOD says it in words).
KEEPS_UP = 0.97
#: Processors that both hosts together can keep busy.
_HOSTS_LOAD = 2
_QUIET = 0.5

_LATENCIES = ("p50", "p99", "p999")
_PATH = ("rx_bytes", "tx_bytes", "socket_rx_bytes", "socket_tx_bytes")

Figure = Callable[[Run], float]
Spread = dict[str, float]


def _latency(name: str) -> Figure:
    return lambda run: run.latency_us[name]


def _spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return {
        "median": round(statistics.median(found), 4),
        "min": round(min(found), 4),
        "max": round(max(found), 4),
    }


def _ratio(couples: Sequence[tuple[Run, Run]], figure: Figure) -> Spread:
    return _spread(figure(rings) / figure(sockets) for sockets, rings in couples)


def ratios(runs: Sequence[Run]) -> dict[str, dict[str, Spread]]:
    """The closed loop's ratios of stackmap to sockets, by number of connections and figure."""
    return {
        str(connections): {
            "requests_per_cpu_second": _ratio(couples, lambda run: run.requests_per_cpu_second),
            "throughput": _ratio(couples, lambda run: run.requests_per_second),
        }
        for connections in dict.fromkeys(run.connections for run in runs)
        if (couples := pairs(runs, connections))
    }


def saturated(run: Run) -> bool:
    """Whether the server did not keep up with an open loop."""
    return run.offered is not None and run.requests_per_second < KEEPS_UP * run.offered


def loads(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Latencies at each load, of each backend and as ratios, and the CPU time at the same load.

    Returns:
        An entry for each number of connections and load (None is the closed loop).  ``ratio`` is
        None where a backend was saturated in a round; a backend's own latencies are then, too.
    """
    found = []
    for connections, load in dict.fromkeys((run.connections, run.load) for run in runs):
        couples = pairs(runs, connections, load)
        sides = dict(zip(BACKENDS, zip(*couples, strict=True), strict=True))
        entry: dict[str, Any] = {
            "connections": connections,
            "load": load,
            "offered": couples[0][0].offered,
            "rounds": len(couples),
        }
        for backend, side in sides.items():
            late = sum(saturated(run) for run in side)
            entry[backend] = {
                "achieved": _spread(run.requests_per_second for run in side),
                "requests_per_cpu_second": _spread(run.requests_per_cpu_second for run in side),
                "saturated_rounds": late,
                "latency_us": None
                if late
                else {name: _spread(map(_latency(name), side)) for name in _LATENCIES},
            }
        entry["ratio"] = (
            None
            if any(entry[backend]["saturated_rounds"] for backend in BACKENDS)
            else {
                **{name: _ratio(couples, _latency(name)) for name in _LATENCIES},
                "requests_per_cpu_second": _ratio(couples, lambda run: run.requests_per_cpu_second),
            }
        )
        found.append(entry)
    return found


def pinning(runs: Sequence[Run]) -> dict[str, int]:
    """Transmit buffers of the stackmap runs: sent, released by ACK, still pinned at each end."""
    rings = [run.counters for run in runs if run.backend == "stackmap"]
    return {
        "slots_sent": sum(counters["slots_sent"] for counters in rings),
        "slots_released_ack": sum(counters["slots_released_ack"] for counters in rings),
        "bufs_pinned_at_end": sum(counters["bufs_pinned"] for counters in rings),
    }


def path(runs: Sequence[Run]) -> dict[str, int]:
    """Payload bytes of the stackmap runs, by the way they went."""
    rings = [run.counters for run in runs if run.backend == "stackmap"]
    return {name: sum(counters[name] for counters in rings) for name in _PATH}


def describe_load(load: float | None) -> str:
    """Name a share of the peak as a reader knows it."""
    return "closed loop" if load is None else f"{load:.0%} of the peak"


def problems(runs: Sequence[Run], kernel_log: Mapping[str, Sequence[str]]) -> list[str]:
    """Return faults of the runs, each in a sentence; empty when there are none."""
    found = []
    for run in runs:
        name = (
            f"{run.backend}, {run.connections} connections, {describe_load(run.load)}, "
            f"round {run.round + 1}"
        )
        if run.errors:
            detail = f" ({run.first_wrong})" if run.first_wrong else ""
            found.append(f"{name}: {run.errors} wrong or missing replies{detail}")
        if run.backend != "stackmap":
            continue
        counters = run.counters
        strayed = counters["socket_rx_bytes"] + counters["socket_tx_bytes"]
        if strayed:
            found.append(f"{name}: {strayed} payload bytes went through sockets, not rings")
        if not counters["rx_bytes"] or not counters["tx_bytes"]:
            found.append(f"{name}: no payload went through the rings")
        if counters["bufs_pinned"]:
            found.append(
                f"{name}: {counters['bufs_pinned']} transmit buffers are still pinned after the "
                "clients finished"
            )
    for host, lines in kernel_log.items():
        found += [f"kernel log of the {host}: {line}" for line in lines]
    return found


def caveats(accel: str, load_at_start: float, runs: Sequence[Run]) -> list[str]:
    """Return caveats for readers of the numbers, each in a sentence."""
    found = [EMULATED] if accel == "tcg" else []
    found.append(ONE_MACHINE)
    most = max((load for run in runs for load in run.load_average), default=0.0)
    if load_at_start > _QUIET or most > _HOSTS_LOAD + _QUIET:
        found.append(
            BUSY.format(start=f"{load_at_start:.1f}", most=f"{most:.1f}", hosts=_HOSTS_LOAD)
        )
    return found


def summarise(
    plan: Plan,
    runs: Sequence[Run],
    *,
    kernel: str,
    accel: str,
    module: Mapping[str, str],
    machine: Mapping[str, Any],
    kernel_log: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The content of ``report.json``."""
    return {
        "kernel": kernel,
        "accel": accel,
        "module": dict(module),
        "machine": dict(machine),
        "method": [" ".join(paragraph.split()) for paragraph in METHOD.split("\n\n")],
        "caveats": [
            *([TUNED] if plan.tuned else []),
            *caveats(accel, machine["load_average_at_start"], runs),
        ],
        "plan": dataclasses.asdict(plan),
        "runs": [dataclasses.asdict(run) for run in runs],
        "ratio": ratios(runs),
        "loads": loads(runs),
        "pin": pinning(runs),
        "path": path(runs),
        "kernel_log": {
            host: {"clean": not lines, "lines": list(lines)} for host, lines in kernel_log.items()
        },
        "problems": problems(runs, kernel_log),
    }
