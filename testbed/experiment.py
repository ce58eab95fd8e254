"""One server on rings against the same server on sockets: runs that can be compared.

Whatever changes with time on a machine (its load, its clock, its caches) must hit both sides
alike.  So the runs of a pair follow each other within one boot, each pair in the other order than
the one before, each with a freshly started server, and what is reported is the ratio within pairs.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

BACKENDS = ("sockets", "stackmap")


class Process(Protocol):
    """A command running on a host."""

    @property
    def stdout(self) -> str:
        """What it has printed so far."""

    def output(self) -> str:
        """What it has printed so far, errors included."""

    def wait_for_output(self, pattern: str, timeout: float = ...) -> re.Match[str]:
        """Wait until it has printed something that matches."""

    def wait(self, timeout: float | None = ...) -> int:
        """Wait until it has ended; returns its exit status."""

    def kill(self, number: int = ...) -> None:
        """Send it a signal."""


class Host(Protocol):
    """A machine that runs commands; of the server's, processor time can be read from outside."""

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
    """What to compare, and how often."""

    address: str
    connections: tuple[int, ...] = (1, 16, 128)
    rounds: int = 5
    value_size: int = 64
    warmup: float = 1.0
    seconds: float = 4.0
    port: int = 11211
    memory_mb: int = 64
    nic: str = "eth0"
    #: For anything but the measurement itself: starting Python on a slow machine takes a while.
    patience: float = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """One server, one load, one measurement."""

    backend: str
    connections: int
    round: int
    value_size: int
    requests: int
    errors: int
    first_wrong: str | None
    seconds: float
    requests_per_second: float
    server_cpu_seconds: float
    server_cpu_us_per_request: float
    requests_per_cpu_second: float
    latency_us: dict[str, float]
    histogram: str = field(repr=False)
    counters: dict[str, int] = field(default_factory=dict)


class ServerError(Exception):
    """The server under test ended by itself."""


class LoadError(Exception):
    """The load generator failed."""


def schedule(plan: Plan) -> Iterator[tuple[int, int, str]]:
    """Yield (connections, round, backend) in the order of execution."""
    for connections in plan.connections:
        for number in range(plan.rounds):
            for backend in BACKENDS if number % 2 == 0 else reversed(BACKENDS):
                yield connections, number, backend


def program(name: str) -> str:
    """The path of a command that is installed beside the running Python, on every host."""
    return str(Path(sys.executable).parent / name)


@contextlib.contextmanager
def serving(host: Host, plan: Plan, backend: str) -> Iterator[Process]:
    """Have the project's memcached server listen on a host.

    Raises:
        ServerError: it has ended by itself when it should be stopped.
        GuestTimeoutError: it does not start, or does not end when it is told to.  On a host that is
            no guest it is what the host's processes raise.
    """
    process = host.popen(
        [
            program("stackmap"), "serve", "memcached",
            "--backend", backend,
            "--listen", f"{plan.address}:{plan.port}",
            "--memory", str(plan.memory_mb),
            "--nic", plan.nic,
        ]
    )  # fmt: skip
    try:
        process.wait_for_output("listening on", timeout=plan.patience)
        yield process
    finally:
        process.kill(signal.SIGTERM)
        status = process.wait(timeout=plan.patience)
    if status not in (0, -signal.SIGTERM):
        raise ServerError(f"the server on {backend} ended with {status}: {process.output()[-800:]}")


def measure(hosts: TwoHosts, plan: Plan, connections: int, number: int, backend: str) -> Run:
    """Start a server, load it, stop it.

    Raises:
        ServerError: see :func:`serving`.
        LoadError: the load generator did not come to a result.
    """
    with serving(hosts.server, plan, backend):
        load = hosts.client.popen(
            [
                sys.executable, "-m", "stackmap_testbed.load",
                "--host", plan.address,
                "--port", str(plan.port),
                "--connections", str(connections),
                "--value-size", str(plan.value_size),
                "--warmup", str(plan.warmup),
                "--seconds", str(plan.seconds),
                "--counters", "--json",
            ]
        )  # fmt: skip
        try:
            load.wait_for_output("measuring", timeout=plan.patience)
            before = hosts.server.vcpu_cpu_seconds()
            load.wait_for_output("measured", timeout=plan.seconds + plan.patience)
            cpu = hosts.server.vcpu_cpu_seconds() - before
            record = _result(load, plan)
        except BaseException as failure:
            if isinstance(failure, Exception):
                failure.add_note(state_of(hosts, plan))
            load.kill(signal.SIGKILL)
            load.wait(timeout=plan.patience)
            raise
    return Run(
        backend=backend,
        connections=connections,
        round=number,
        value_size=plan.value_size,
        requests=record["requests"],
        errors=record["errors"],
        first_wrong=record["first_wrong"],
        seconds=record["seconds"],
        requests_per_second=record["requests_per_second"],
        server_cpu_seconds=cpu,
        server_cpu_us_per_request=cpu * 1e6 / record["requests"],
        requests_per_cpu_second=record["requests"] / cpu,
        latency_us=record["latency_us"],
        histogram=record["histogram"],
        counters=record["counters"],
    )


def state_of(hosts: TwoHosts, plan: Plan) -> str:
    """What both hosts' networks look like now: for whoever has to find out why a run failed."""
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


def pairs(runs: Sequence[Run], connections: int) -> list[tuple[Run, Run]]:
    """The (sockets, stackmap) runs of each round at a connection count."""
    found = {(run.round, run.backend): run for run in runs if run.connections == connections}
    rounds = sorted({number for number, _ in found})
    return [(found[number, "sockets"], found[number, "stackmap"]) for number in rounds]
