"""EOF, resets and half-closes reach the application as events, in order with the data."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.lab.addresses import CLIENT_ADDRESS
from tests.lab.captures import FIN, segments
from tests.lab.hosts import pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab

PORT = 7300

pytestmark = [
    pytest.mark.first_kernel,
    pytest.mark.usefixtures("rings"),
    pytest.mark.timeout(900),
]


def ends_with(name: str) -> Callable[[Any], bool]:
    """For a server's ``state``: this is the last of its events so far."""
    return lambda state: bool(state["log"]) and state["log"][-1][0] == name


def names(log: list[list[Any]]) -> list[str]:
    return [entry[0] for entry in log]


def test_eof_comes_after_the_data_and_sending_goes_on(lab: Lab) -> None:
    with pair(lab, PORT) as hosts:
        one = hosts.connect()
        hosts.client.send(peer=one, size=50_000)
        hosts.client.wait_for("state", lambda s: s["unsent"] == 0, peer=one)
        hosts.client.shutdown_write(peer=one)
        state = hosts.server.wait_for("state", ends_with("EOF"), peer=one)
        assert state["log"] == [["data", 50_000], ["EOF", 0]]

        hosts.server.write(peer=one, size=70_000)
        hosts.client.wait_for("state", lambda s: s["received"] == 70_000, peer=one)
        assert hosts.client.state(peer=one)["ended"] == ""
        hosts.check(one)
        hosts.server.close(peer=one)
        hosts.client.wait_for("state", lambda s: s["ended"] == "EOF", peer=one)
        state = hosts.server.wait_for("state", ends_with("CLOSED"), peer=one)
        assert names(state["log"]) == ["data", "EOF", "CLOSED"]


def test_the_server_half_closes_and_receiving_goes_on(lab: Lab) -> None:
    with pair(lab, PORT) as hosts:
        one = hosts.connect()
        hosts.server.write(peer=one, size=30_000)
        hosts.server.shutdown_write(peer=one)
        state = hosts.client.wait_for("state", lambda s: s["ended"] == "EOF", peer=one)
        assert state["received"] == 30_000

        hosts.sent_to_server(one, 60_000)
        assert names(hosts.server.state(peer=one)["log"]) == ["data"]
        hosts.check(one)
        hosts.client.shutdown_write(peer=one)
        # With both directions ended there is nothing left to close.
        state = hosts.server.wait_for("state", ends_with("CLOSED"), peer=one)
        assert names(state["log"]) == ["data", "EOF", "CLOSED"]
        assert hosts.server.stats()["slots_released_reset"] == 0


def test_fin_riding_on_data(lab: Lab, tmp_path: Path) -> None:
    sent, _delivered = lab.wire.capture(tmp_path / "fin")
    with pair(lab, PORT) as hosts:
        one = hosts.connect()
        hosts.client.send_with_fin(peer=one, size=777)
        state = hosts.server.wait_for("state", ends_with("EOF"), peer=one)
        assert state["log"] == [["data", 777], ["EOF", 0]]
        hosts.check(one)
    lab.wire.stop_capture()
    fins = [segment for segment in segments(sent, CLIENT_ADDRESS) if segment.flags & FIN]
    # A slow server's ACK comes late, and the same segment once more.
    assert fins
    assert {(segment.seq, len(segment.payload)) for segment in fins} == {(fins[0].seq, 777)}


def test_a_reset_is_an_error_with_its_errno(lab: Lab) -> None:
    with pair(lab, PORT) as hosts:
        one, other = hosts.connect(), hosts.connect()
        hosts.sent_to_server(one, 5000)
        hosts.client.reset(peer=one)
        state = hosts.server.wait_for("state", ends_with("CLOSED"), peer=one)
        assert state["log"][:2] == [["data", 5000], ["ERROR", errno.ECONNRESET]]
        assert names(state["log"]) == ["data", "ERROR", "CLOSED"]
        hosts.sent_to_server(other, 5000)
        assert hosts.server.state(peer=other)["log"] == [["data", 5000]]
        hosts.check(other)


def test_a_reset_after_eof(lab: Lab) -> None:
    with pair(lab, PORT) as hosts:
        one = hosts.connect()
        hosts.client.shutdown_write(peer=one)
        hosts.server.wait_for("state", ends_with("EOF"), peer=one)
        hosts.client.reset(peer=one)
        state = hosts.server.wait_for("state", ends_with("CLOSED"), peer=one)
        # The errno of read() or write() on a socket in this state.
        assert state["log"][:2] == [["EOF", 0], ["ERROR", errno.EPIPE]]
        assert names(state["log"]) == ["EOF", "ERROR", "CLOSED"]


def test_order_survives_a_bad_wire(lab: Lab) -> None:
    with pair(lab, PORT, slots=64) as hosts:
        peers = [hosts.connect() for _ in range(12)]
        lab.wire.configure(loss=0.05, reorder=0.25, duplicate=0.05, seed=3)
        for peer in peers:
            hosts.client.send(peer=peer, size=20_000 + 1000 * peer)
        for peer in peers:
            hosts.client.wait_for("state", lambda s: s["unsent"] == 0, peer=peer)
            hosts.client.shutdown_write(peer=peer)
        for peer in peers:
            state = hosts.server.wait_for("state", ends_with("EOF"), peer=peer)
            assert state["log"] == [["data", 20_000 + 1000 * peer], ["EOF", 0]]
        hosts.check(*peers)
