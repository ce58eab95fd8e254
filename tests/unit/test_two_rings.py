"""Two rings beside one: what is measured, the arithmetic, and when it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.cost import two_rings
from stackmap_testbed.cost.echo import EchoError
from stackmap_testbed.cost.models import Cost
from stackmap_testbed.cost.queues import PROCESSORS, QUEUES
from stackmap_testbed.cost.two_rings import check_busy, compare, server, table
from stackmap_testbed.lab.errors import LabError
from tests.unit.test_echo_c import started, stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def cost(instructions: float, *, sleeps: float = 0.0, waits: float = 0.0) -> Cost:
    """The cost of a request in one repeat."""
    happened = {"polls": 0.0, "switches": 0.0, "sleeps": sleeps, "waits": waits}
    return Cost(instructions, {"kernel": instructions}, 0, 0, 0, 0, {}, {}, happened)


def test_each_thread_has_a_processor_and_a_client() -> None:
    assert len({each for queue in QUEUES for each in dataclasses.astuple(queue)}) == PROCESSORS - 1
    one, two = server("rings", QUEUES[:1]), server("rings", QUEUES)
    assert one.command[:3] == ["taskset", "--cpu-list", "1"]
    assert two.command[:3] == ["taskset", "--cpu-list", "1,2"]
    assert (one.command[-2:], two.command[-2:]) == (["--threads", "1"], ["--threads", "2"])
    assert (one.load, two.load) == (["--processors", "4"], ["--processors", "4", "6"])
    assert one.connections == two.connections, "each client has as many"


def test_epoll_has_no_ring() -> None:
    rings, epoll = server("rings", QUEUES), server("epoll", QUEUES)
    assert (rings.rings, epoll.rings) == (True, False)
    assert [word for word in rings.command if word not in epoll.command] == ["eth0"]


def test_throughput_is_that_of_the_busier_processor() -> None:
    found = compare([cost(1000)] * 3, [[cost(500)] * 3, [cost(525)] * 3])
    assert (found["throughput"], found["off"]) == (1.905, 0)
    assert [each["instructions"] for each in found["two"]] == [500, 525]


def test_either_processor_may_be_the_busier_one() -> None:
    found = compare([cost(1000)] * 2, [[cost(500), cost(550)], [cost(550), cost(500)]])
    assert found["throughput"] == 1.818


def test_a_ratio_is_off_by_half_of_both_spreads() -> None:
    found = compare([cost(1000), cost(1000), cost(1020)], [[cost(500), cost(500), cost(520)]] * 2)
    assert found["throughput"] == 2
    assert found["off"] == pytest.approx(2 * (0.02 + 0.04) / 2)


def test_a_processor_without_work_is_refused() -> None:
    """Sleeps are counted per request of both, of which the processor served half."""
    check_busy([cost(1, sleeps=0.05)], 1 / 2)
    with pytest.raises(EchoError, match=r"nothing to do 0\.12 times"):
        check_busy([cost(1), cost(1, sleeps=0.06)], 1 / 2)


def test_the_table_has_thousands_and_waits() -> None:
    found = compare([cost(1000, waits=0.01)], [[cost(500, waits=0.02)], [cost(520, waits=0.03)]])
    assert table({"rings": found})[2:] == [
        "| rings | 1.00 | 0.50 | 0.52 | 1.92 ± 0.00 | 0.010 | 0.050 |"
    ]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The costs that a command finds: of each of two processors, by server; that of one is 1."""
    two = {"rings": 0.5, "epoll": 0.5}

    class Loaded:
        def __init__(self, instructions: float) -> None:
            self._instructions = instructions

        def cost(self, *_arguments: Any) -> Cost:
            return cost(1000 * self._instructions)

    def loads(_guest: Any, _counter: Any, server: Any, repeats: int, _requests: int) -> Any:
        kind = "rings" if server.rings else "epoll"
        return [Loaded(two[kind] if "2" in server.command else 1)] * repeats

    @contextlib.contextmanager
    def nothing(*_arguments: Any, **_options: Any) -> Iterator[tuple[None, None]]:
        yield None, None

    for name in ("machine", "occupied"):
        monkeypatch.setattr(two_rings, name, nothing)
    monkeypatch.setattr(two_rings, "loads", loads)
    monkeypatch.setattr(two_rings, "kernel_symbols", lambda _guest: None)
    return two


@pytest.mark.parametrize(
    ("server", "instructions", "status"),
    [("rings", 0.526, 0), ("rings", 0.527, 1), ("epoll", 0.6, 0)],
)
def test_less_than_is_wanted_of_rings_fails(
    found: dict[str, float], tmp_path: Path, server: str, instructions: float, status: int
) -> None:
    found[server] = instructions
    out = tmp_path / "out.json"
    assert two_rings.main(["--out", str(out)]) == status
    figures = json.loads(out.read_text())
    assert figures["servers"][server]["throughput"] == round(1 / instructions, 3)
    assert len(figures["table"]) == 4


def test_a_machine_that_does_not_boot_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def machine(*_arguments: Any, **_options: Any) -> Any:
        raise LabError("it does not boot")

    monkeypatch.setattr(two_rings, "machine", machine)
    assert two_rings.main(["--out", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err == "error: it does not boot\n"


def loaded(port: int, *options: str) -> Any:
    """The report of a load of ten requests on three connections."""
    command: Sequence[str] = ["-m", "stackmap_testbed.cost.echo_load", "127.0.0.1", str(port)]
    ended = subprocess.run(
        [sys.executable, *command, "10", "3", *options], stdout=subprocess.PIPE, check=True
    )
    return json.loads(ended.stdout)


def test_a_load_has_a_client_on_each_processor() -> None:
    process, port = started("127.0.0.1", "--threads", "2")
    processor = str(min(os.sched_getaffinity(0)))
    try:
        alone, together = loaded(port), loaded(port, "--processors", processor, processor)
    finally:
        stop(process)
    assert (alone["connections"], alone["requests"], alone["errors"]) == (3, 10, 0)
    assert (together["connections"], together["requests"], together["errors"]) == (6, 20, 0)
