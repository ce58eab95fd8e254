"""One server on rings against the same server on sockets: runs that can be compared.

Whatever changes with time on a machine (its load, its clock, its caches) must hit both sides
alike.  So the runs of a pair follow each other within one boot, each pair in the other order than
the one before, each with a freshly started server, and what is reported is the ratio within pairs.

A closed loop finds the peak, but its latencies say no more than that: with n requests outstanding
at all times, the mean latency is n over the throughput.  So latencies are measured with an open
loop as well, at shares of the peak.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stackmap_testbed.lab.tuning import tuning

BACKENDS = ("sockets", "stackmap")


class Process(Protocol):
    """A command running on a host."""

    @property
    def stdout(self) -> str:
        """Return its standard output so far."""

    def output(self) -> str:
        """Return its output so far, errors included."""

    def wait_for_output(self, pattern: str, timeout: float = ...) -> re.Match[str]:
        """Wait until it has printed something that matches."""

    def wait(self, timeout: float | None = ...) -> int:
        """Wait until it has ended; returns its exit status."""

    def kill(self, number: int = ...) -> None:
        """Send it a signal."""


class Host(Protocol):
    """A machine that runs commands, and whose processor time can be read from outside."""

    def popen(self, argv: list[str]) -> Process:
        """Start a command."""

    def vcpu_cpu_seconds(self) -> float:
        """Processor time that all of the machine has used: kernel, interrupts, applications."""


class TwoHosts(Protocol):
    """A server machine, a client machine, and a wire between them."""

    @property
    def server(self) -> Host:
        """The one that serves."""

    @property
    def client(self) -> Host:
        """The one that asks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of a comparison.

    Attributes:
        rounds: of the closed loop, each measured for ``seconds``.
        open_connections: those of ``connections`` with which there is an open loop, too.  With one
            connection it would only have requests wait for each other.
        loads: of the open loop, as shares of the peak (see :func:`peak`).
        open_rounds: of the open loop, each measured for ``open_seconds``.
        tuned: whether the NIC is tuned for the server on sockets, so that it polls busily.
    """

    address: str
    connections: tuple[int, ...] = (1, 16, 128)
    rounds: int = 5
    seconds: float = 2.0
    open_connections: tuple[int, ...] = (16,)
    loads: tuple[float, ...] = (0.5, 0.8, 0.95)
    open_rounds: int = 3
    open_seconds: float = 1.5
    value_size: int = 64
    warmup: float = 0.5
    port: int = 11211
    memory_mb: int = 64
    nic: str = "eth0"
    tuned: bool = False
    #: For anything but the measurement itself: starting Python on a slow machine takes a while.
    patience: float = 120.0


@dataclass(frozen=True, slots=True)
class Step:
    """Which run comes next; ``load`` is a share of the peak, or None for the closed loop."""

    connections: int
    round: int
    backend: str
    load: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One server, one load, one measurement.

    Attributes:
        load: the share of the peak that was offered; None for a closed loop.
        offered: requests per second that were due; None for a closed loop.
        requests: those recorded, all of which were answered unless there were ``errors``.
        requests_per_second: replies; see :class:`~stackmap_testbed.load.generator.LoadResult`.
        observed_seconds: between the two readings of processor times, about the measurement.
        load_average: of this machine, over the last minute, at the start and at the end.
    """

    backend: str
    connections: int
    round: int
    load: float | None
    offered: float | None
    value_size: int
    requests: int
    errors: int
    first_wrong: str | None
    seconds: float
    requests_per_second: float
    observed_seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    requests_per_cpu_second: float
    load_average: tuple[float, float]
    latency_us: dict[str, float]
    histogram: str = field(repr=False)
    counters: dict[str, int] = field(default_factory=dict)


class ServerError(Exception):
    """The server under test ended by itself."""


class LoadError(Exception):
    """The load generator failed."""


def schedule(plan: Plan) -> Iterator[Step]:
    """Yield the runs in the order of execution."""
    for connections in plan.connections:
        loads: list[tuple[int, float | None]] = [(number, None) for number in range(plan.rounds)]
        if connections in plan.open_connections:
            loads += [(number, load) for number in range(plan.open_rounds) for load in plan.loads]
        for place, (number, load) in enumerate(loads):
            for backend in BACKENDS if place % 2 == 0 else reversed(BACKENDS):
                yield Step(connections, number, backend, load)


def peak(runs: Sequence[Run], connections: int) -> float:
    """Return the rate that both backends can serve: the lower median rate of their closed loops."""
    return min(
        statistics.median(run.requests_per_second for run in found)
        for backend in BACKENDS
        if (found := [
            run
            for run in runs
            if (run.backend, run.connections, run.load) == (backend, connections, None)
        ])
    )  # fmt: skip


def program(name: str) -> str:
    """The path of a command that is installed beside the running Python, on every host."""
    return str(Path(sys.executable).parent / name)


@contextlib.contextmanager
def serving(host: Host, plan: Plan, backend: str) -> Iterator[Process]:
    """Have the project's memcached server listen on a host.

    Raises:
        ServerError: it has ended by itself when it should be stopped, or the NIC cannot be tuned.
        GuestTimeoutError: it does not start, or does not end when it is told to.  On a host that is
            no guest it is what the host's processes raise.
    """
    tuned = plan.tuned and backend == "sockets"
    if tuned:
        _tune(host, plan, tuned=True)
    process = host.popen(
        [
            program("stackmap"), "serve", "memcached",
            "--backend", backend,
            "--listen", f"{plan.address}:{plan.port}",
            "--memory", str(plan.memory_mb),
            *(["--nic", plan.nic] if backend == "stackmap" else []),
        ]
    )  # fmt: skip
    try:
        process.wait_for_output("listening on", timeout=plan.patience)
        yield process
    finally:
        process.kill(signal.SIGTERM)
        status = process.wait(timeout=plan.patience)
        if tuned:
            _tune(host, plan, tuned=False)
    if status not in (0, -signal.SIGTERM):
        raise ServerError(f"the server on {backend} ended with {status}: {process.output()[-800:]}")


def _tune(host: Host, plan: Plan, *, tuned: bool) -> None:
    process = host.popen(tuning(plan.nic, tuned=tuned))
    if process.wait(timeout=plan.patience):
        raise ServerError(f"{plan.nic} cannot be tuned: {process.output()[-800:]}")


def measure(hosts: TwoHosts, plan: Plan, step: Step, rate: float | None = None) -> Run:
    """Start a server, load it, stop it.

    Args:
        hosts: where.
        plan: how.
        step: what.
        rate: of an open loop, in requests per second.

    Raises:
        ServerError: see :func:`serving`.
        LoadError: the load generator did not come to a result.
    """
    seconds = plan.seconds if rate is None else plan.open_seconds
    load_before = os.getloadavg()[0]
    with serving(hosts.server, plan, step.backend):
        load = hosts.client.popen(
            [
                sys.executable, "-m", "stackmap_testbed.load",
                "--host", plan.address,
                "--port", str(plan.port),
                "--connections", str(step.connections),
                "--value-size", str(plan.value_size),
                "--warmup", str(plan.warmup),
                "--seconds", str(seconds),
                *(() if rate is None else ("--rate", str(rate))),
                "--counters", "--json",
            ]
        )  # fmt: skip
        try:
            load.wait_for_output("measuring", timeout=plan.patience)
            began, before = time.monotonic(), _cpu_seconds(hosts)
            load.wait_for_output("measured", timeout=seconds + plan.patience)
            observed, after = time.monotonic() - began, _cpu_seconds(hosts)
            load_after = os.getloadavg()[0]
            record = _result(load, plan)
        except BaseException as failure:
            if isinstance(failure, Exception):
                failure.add_note(state_of(hosts, plan))
            load.kill(signal.SIGKILL)
            load.wait(timeout=plan.patience)
            raise
    server_cpu, client_cpu = (end - start for start, end in zip(before, after, strict=True))
    return Run(
        backend=step.backend,
        connections=step.connections,
        round=step.round,
        load=step.load,
        offered=rate,
        value_size=plan.value_size,
        requests=record["requests"],
        errors=record["errors"],
        first_wrong=record["first_wrong"],
        seconds=record["seconds"],
        requests_per_second=record["requests_per_second"],
        observed_seconds=observed,
        server_cpu_seconds=server_cpu,
        client_cpu_seconds=client_cpu,
        requests_per_cpu_second=record["requests"] / server_cpu,
        load_average=(load_before, load_after),
        latency_us=record["latency_us"],
        histogram=record["histogram"],
        counters=record["counters"],
    )


def _cpu_seconds(hosts: TwoHosts) -> tuple[float, float]:
    return hosts.server.vcpu_cpu_seconds(), hosts.client.vcpu_cpu_seconds()


def state_of(hosts: TwoHosts, plan: Plan) -> str:
    """Describe both hosts' networks, to help find out why a run failed."""
    command = (
        f"tc -s qdisc show dev {plan.nic}; ip -s link show dev {plan.nic}; ip neigh; ss -s; "
        "ss -tno | head -20; nstat -az | grep -E 'Retrans|Timeout|Drop|Overflow'; dmesg | tail -20"
    )
    found = []
    for name, host in (("server", hosts.server), ("client", hosts.client)):
        process = host.popen(["sh", "-c", command])
        process.wait(timeout=plan.patience)
        found.append(f"== {name} ==\n{process.output()}")
    return "\n".join(found)


def _result(load: Process, plan: Plan) -> dict[str, Any]:
    """The record that the load generator prints at its end."""
    status = load.wait(timeout=plan.patience)
    for line in load.stdout.splitlines():
        if line.startswith("{"):
            record: dict[str, Any] = json.loads(line)
            if record["requests"]:
                return record
    raise LoadError(f"the load ended with {status} and no result: {load.output()[-800:]}")


def pairs(
    runs: Sequence[Run], connections: int, load: float | None = None
) -> list[tuple[Run, Run]]:
    """The (sockets, stackmap) runs of each round at a number of connections and a load."""
    found = {
        (run.round, run.backend): run
        for run in runs
        if (run.connections, run.load) == (connections, load)
    }
    rounds = sorted({number for number, _ in found})
    return [(found[number, "sockets"], found[number, "stackmap"]) for number in rounds]
