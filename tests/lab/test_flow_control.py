"""A slow application holds peers back by TCP's own window; a slow peer holds back nobody else."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from tests.lab.captures import RST, SYN, segments
from tests.lab.hosts import PATIENCE, base_ports, pair, running

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab
    from tests.lab.hosts import Pair

PORT = 7400
#: More than both ends' socket buffers can grow to.
MUCH = 20_000_000

pytestmark = [
    pytest.mark.first_kernel,
    pytest.mark.usefixtures("rings"),
    pytest.mark.timeout(900),
]


def window_is_closed(lab: Lab) -> bool:
    """Whether the client's TCP has met a window of zero.

    It waits for a larger one also while there is some room, but less than for a packet; its first
    probe fills that.
    """
    shown = lab.client.run(["ss", "-HtnoiO", "dport", "=", f":{PORT}"]).stdout
    return any("timer:(persist" in line and " backoff:" in line for line in shown.splitlines())


def wait_until_stuck(lab: Lab, hosts: Pair, peer: int) -> int:
    """Until the window is closed, and the client could send nothing for a while.

    Returns how much it had sent.
    """
    deadline = time.monotonic() + PATIENCE
    sent = -1
    while (now := hosts.client.state(peer=peer)["sent"]) != sent or not window_is_closed(lab):
        assert time.monotonic() < deadline
        sent = now
        time.sleep(1.5)
    return sent


@pytest.mark.parametrize("how", ["pause_reading", "hold"])
def test_an_application_that_stops_reading_closes_the_window_and_loses_nothing(
    lab: Lab, tmp_path: Path, how: str
) -> None:
    sent, delivered = lab.wire.capture(tmp_path / "window")
    with pair(lab, PORT, slots=64) as hosts:
        one, other = hosts.connect(), hosts.connect()
        hosts.sent_to_server(one, 100_000)
        if how == "hold":
            hosts.server.hold()  # receive slots are not given back
        else:
            hosts.server.pause_reading(peer=one)
        hosts.client.send(peer=one, size=MUCH)
        stuck_at = wait_until_stuck(lab, hosts, one)
        assert stuck_at < MUCH
        received = hosts.server.state(peer=one)["received"]
        # Of what was sent meanwhile, at most a ring full was delivered.
        assert received <= 100_000 + 64 * 4096
        if how == "pause_reading":
            hosts.sent_to_server(other, 100_000)
            assert hosts.server.state(peer=one)["received"] == received
            hosts.server.resume_reading(peer=one)
        else:
            hosts.server.go_on()
        hosts.server.wait_for(
            "state", lambda s: s["received"] == 100_000 + MUCH, patience=120, peer=one
        )
        hosts.check(one, other)
        assert hosts.client.state(peer=one)["unsent"] == 0
    lab.wire.stop_capture()
    windows = [
        segment.window
        for segment in segments(sent, SERVER_ADDRESS)
        if segment.source_port == PORT and not segment.flags & (SYN | RST)
    ]
    assert 0 in windows
    assert windows[-1] > 0
    sent.unlink()
    delivered.unlink()


# -- one client that never reads, and 31 that do --

READERS = 31
EACH = 1_000_000
ROUNDS = 5
#: The least share of the throughput without a client that never reads.
ENOUGH = 0.7


def throughput(lab: Lab, stuck: int) -> float:
    """Bytes per second that the server sends to the clients that read."""
    common: list[str | int] = ["--base-port", next(base_ports)]
    serve: list[str | int] = [
        "--listen",
        PORT,
        "--send",
        EACH,
        "--connections",
        READERS + stuck,
        "--may-reset",
    ]
    load: list[str | int] = [
        "--connect",
        PORT,
        "--receive",
        EACH,
        "--connections",
        READERS,
        "--stuck",
        stuck,
    ]
    with running(lab.server, "stream_rings", *common, *serve) as server:
        server.wait_for_output("listening", PATIENCE)
        with running(lab.client, "stream_sockets", *common, *load) as client:
            for process in (client, server):
                assert process.wait(2 * PATIENCE) == 0, process.output()
    read, served = (json.loads(process.stdout.splitlines()[-1]) for process in (client, server))
    assert read["problems"] == served["problems"] == []
    assert read["received"] == READERS * EACH
    assert served["ended_early"] == stuck
    if stuck:
        check_stuck(served)
    print(f"{stuck} stuck: {served['stats']['slots_again']} slots put off")
    return float(read["received"] / read["seconds"])


def check_stuck(served: dict[str, Any]) -> None:
    """The connection that nobody read really could not send any more."""
    assert served["sent"] < (READERS + 1) * EACH
    assert served["stats"]["slots_again"] > 0
    assert served["stats"]["slots_released_reset"] > 0


@pytest.mark.long
@pytest.mark.timeout(2 * ROUNDS * 3 * PATIENCE)  # each run has limits of its own
def test_a_client_that_never_reads_does_not_slow_the_others(lab: Lab) -> None:
    """The median of the rounds is as it should be; what is left of them cannot change it."""
    ratios: list[float] = []
    while sum(ratio > ENOUGH for ratio in ratios) <= ROUNDS // 2:
        assert len(ratios) < ROUNDS, ratios
        order = (0, 1) if len(ratios) % 2 == 0 else (1, 0)
        rate = {stuck: throughput(lab, stuck) for stuck in order}
        ratios.append(rate[1] / rate[0])
        print(f"without {rate[0] / 1e6:.2f} MB/s, with a stuck client {ratios[-1]:.2f} of that")
