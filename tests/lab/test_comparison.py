"""A small `make demo`: a real client, and a pair of measured runs, on two hosts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.comparison.demo import kernel_logs
from stackmap_testbed.comparison.experiment import (
    BACKENDS,
    Plan,
    Step,
    measure,
    peak,
    program,
    serving,
)
from stackmap_testbed.comparison.summary import loads, path, pinning, problems, ratios
from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from stackmap_testbed.lab.kernels import module_for

if TYPE_CHECKING:
    from stackmap_testbed.lab.lab import Lab

pytestmark = [pytest.mark.first_kernel, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def plan(lab: Lab) -> Plan:
    """A short plan, and the server's NIC bound."""
    plan = Plan(SERVER_ADDRESS, connections=(16,), rounds=1, seconds=1.5)
    bind = [program("stackmap"), "bind", plan.nic, "--module", str(module_for(lab.release))]
    lab.server.run(bind, timeout=plan.patience)
    return plan


@pytest.mark.parametrize("backend", ["sockets", "stackmap"])
def test_a_real_client_gets_right_answers(lab: Lab, plan: Plan, backend: str) -> None:
    command = [
        sys.executable,
        "-m",
        "stackmap_testbed.comparison.client_demo",
        "--host",
        plan.address,
    ]
    with serving(lab.server, plan, backend):
        result = lab.client.run(command, timeout=plan.patience)
    assert "WRONG" not in result.stdout
    assert "get large, the same bytes" in result.stdout


@pytest.mark.parametrize("value_size", [pytest.param(64, marks=pytest.mark.long), 100_000])
def test_payload_of_the_ring_server_goes_through_rings(
    lab: Lab, plan: Plan, value_size: int
) -> None:
    plan = Plan(
        plan.address,
        connections=plan.connections,
        rounds=1,
        value_size=value_size,
        seconds=plan.seconds,
    )
    runs = [measure(lab, plan, Step(16, 0, backend)) for backend in BACKENDS]
    assert problems(runs, kernel_logs(lab)) == []
    sockets, rings = runs
    assert sockets.counters["socket_tx_bytes"] > sockets.requests * value_size
    assert sockets.counters["tx_bytes"] == 0
    assert rings.counters["tx_bytes"] > rings.requests * value_size
    assert (path(runs)["socket_rx_bytes"], path(runs)["socket_tx_bytes"]) == (0, 0)
    pinned = pinning(runs)
    assert pinned["slots_sent"] == pinned["slots_released_ack"] > 0
    assert pinned["bufs_pinned_at_end"] == 0
    assert ratios(runs)["16"]["throughput"]["median"] > 0


def test_an_open_loop_offers_both_servers_the_same(lab: Lab, plan: Plan) -> None:
    closed = [measure(lab, plan, Step(16, 0, backend)) for backend in BACKENDS]
    rate = 0.5 * peak(closed, 16)
    runs = [measure(lab, plan, Step(16, 0, backend, 0.5), rate) for backend in BACKENDS]
    assert problems([*closed, *runs], kernel_logs(lab)) == []
    for run in runs:
        assert abs(run.requests - rate * plan.open_seconds) <= 1, (
            "what was due is sent, and no more"
        )
        assert run.client_cpu_seconds > 0
    entry = loads([*closed, *runs])[1]
    assert (entry["load"], entry["offered"]) == (0.5, rate)
