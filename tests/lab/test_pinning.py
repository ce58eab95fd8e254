"""Transmit buffers are pinned until their ACK, and not a moment less: here it is withheld."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from tests.lab.captures import transmissions
from tests.lab.hosts import pair

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab

PORT = 7200
#: Less than TCP's initial congestion window, so that it is sent although nothing is acknowledged.
SIZE = 3 * 4096

pytestmark = [pytest.mark.usefixtures("rings"), pytest.mark.timeout(900)]


def released(stats: dict[str, Any]) -> bool:
    return bool(stats["bufs_pinned"] == 0)


@pytest.mark.parametrize("withheld", ["pure ACKs", "everything"])
def test_buffers_stay_pinned_for_seconds_until_their_ack(
    lab: Lab, tmp_path: Path, withheld: str
) -> None:
    sent, _delivered = lab.wire.capture(tmp_path / "pinning")
    with pair(lab, PORT) as hosts:
        server, client = hosts.server, hosts.client
        one, other = hosts.connect(), hosts.connect()
        server.write(peer=one, size=1000)
        before = server.wait_for("stats", released)

        if withheld == "everything":
            lab.wire.configure(drop="to-server")
        else:
            lab.wire.configure(drop_acks="to-server")
        pinned = server.write(peer=one, size=SIZE)
        assert len(pinned) == SIZE // 4096
        client.wait_for("state", lambda s: s["received"] == 1000 + SIZE, peer=one)
        for _ in range(7):
            time.sleep(0.5)
            # New buffers for these slots come from where released ones would go.
            pinned += server.write(peer=other, size=100)
            stats = server.stats()
            assert stats["bufs_pinned"] == len(pinned) == len(set(pinned))
            assert stats["slots_released_ack"] == before["slots_released_ack"]
            assert stats["slots_released_reset"] == 0
            assert not set(server.owned()) & set(pinned)
        lab.wire.stop_capture()
        found = transmissions(sent, SERVER_ADDRESS, PORT)
        print(f"{len(pinned)} buffers pinned, {found.retransmitted_segments} segments again")
        assert found.retransmitted_segments > 0
        assert found.changed == []

        lab.wire.configure(drop="off", drop_acks="off")
        stats = server.wait_for("stats", released)
        assert stats["slots_released_ack"] == before["slots_released_ack"] + len(pinned)
        assert stats["slots_released_reset"] == 0
        assert stats["slots_sent"] == stats["slots_released_ack"] == stats["overwritten"]
        client.wait_for("state", lambda s: s["received"] == 700, peer=other)
        hosts.check(one, other)


@pytest.mark.parametrize("by", ["client", "server"])
def test_a_reset_releases_what_waited_for_its_ack(lab: Lab, by: str) -> None:
    with pair(lab, PORT) as hosts:
        server, client = hosts.server, hosts.client
        one, other = hosts.connect(), hosts.connect()
        lab.wire.configure(drop_acks="to-server")
        pinned = server.write(peer=one, size=SIZE)
        others = server.write(peer=other, size=SIZE)
        for peer in (one, other):
            client.wait_for("state", lambda s: s["received"] == SIZE, peer=peer)
        assert server.stats()["bufs_pinned"] == len(pinned) + len(others)

        if by == "client":
            client.reset(peer=one)
        else:
            server.abort(peer=one)
        server.wait_for("state", lambda s: s["log"][-1:] and s["log"][-1][0] == "CLOSED", peer=one)
        stats = server.wait_for("stats", lambda s: s["bufs_pinned"] == len(others))
        assert stats["slots_released_reset"] == len(pinned)
        assert stats["slots_released_ack"] == 0
        if by == "client":
            assert ["ERROR", errno.ECONNRESET] in server.state(peer=one)["log"]
        else:
            client.wait_for("state", lambda s: s["ended"] == "ECONNRESET", peer=one)

        lab.wire.configure(drop_acks="off")
        stats = server.wait_for("stats", released)
        assert stats["slots_released_ack"] == len(others)
        assert stats["slots_released_reset"] == len(pinned)
        hosts.check(other)
