"""``ss``, ``tcpdump`` and ``ethtool`` go on working on a bound NIC while data flows in rings."""

from __future__ import annotations

import re
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.lab.addresses import CLIENT_ADDRESS, SERVER_ADDRESS
from tests.lab.captures import transmissions
from tests.lab.hosts import PATIENCE, pair

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab

PORT = 7600
TO_SERVER, TO_CLIENT = 200_000, 300_000
PROGRAMS = ("ss", "tcpdump", "ethtool")
#: Bytes that are kept in flight during the samples, and the number of samples.
UNDER_WAY, LOOKS = 8_000_000, 5

pytestmark = [
    pytest.mark.first_kernel,
    pytest.mark.usefixtures("rings"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)), reason=f"one is not installed: {PROGRAMS}"
    ),
]


def kicks(lab: Lab) -> int:
    """How often the driver has rung the NIC's doorbells, as the driver itself tells."""
    told = lab.server.run("ethtool -S eth0").stdout
    found = re.findall(r"kicks: (\d+)$", told, re.MULTILINE)
    assert found, told
    return sum(map(int, found))


def details(lab: Lab) -> dict[str, int]:
    """TCP's state of the one connection as ``ss`` shows it."""
    told = lab.server.run(f"ss -Htin state established sport = :{PORT}").stdout
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)\b", told)}


#: Looks again and again, so that many looks fall into a stream, however fast that is.
LOOKING = f"""
while :; do
    ss -Htin state established sport = :{PORT}
    ethtool -S eth0 | grep kicks
    echo looked
done
"""


def looks(told: str) -> list[tuple[int, int, int, int]]:
    """For each sample: bytes received, bytes acknowledged, kicks, and the longer of the queues."""
    found = []
    for look in told.split("looked\n")[:-1]:
        of = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)\b", look)}
        queues = re.match(r"\s*(\d+)\s+(\d+)", look)
        assert queues, look
        kicked = sum(map(int, re.findall(r"kicks: (\d+)$", look, re.MULTILINE)))
        deepest = max(map(int, queues.groups()))
        found.append((of.get("bytes_received", 0), of.get("bytes_acked", 0), kicked, deepest))
    return found


def test_they_show_a_stream_while_it_flows(lab: Lab) -> None:
    """From one look to another all counters grow, and no queue without bound."""
    with pair(lab, PORT) as hosts:
        peer = hosts.connect()
        looking = lab.server.popen(LOOKING)
        sent = answered = 0
        deadline = time.monotonic() + 2 * PATIENCE
        found: list[tuple[int, int, int, int]] = []
        try:
            while not all(len({look[n] for look in found}) >= LOOKS for n in range(3)):
                assert time.monotonic() < deadline, found
                unsent = hosts.client.state(peer=peer)["unsent"]
                hosts.client.send(peer=peer, size=UNDER_WAY - unsent)
                sent += UNDER_WAY - unsent
                # The program that scribbles over buffers may have less than a ring of them waiting.
                if hosts.server.state(peer=peer)["pending"] < TO_CLIENT:
                    hosts.server.write(peer=peer, size=TO_CLIENT)
                    answered += TO_CLIENT
                found = looks(looking.output())
        finally:
            looking.kill(group=True)
            looking.wait(PATIENCE)
        for n, most in ((0, sent), (1, answered + 1), (2, None)):
            shown = [look[n] for look in found]
            assert shown == sorted(shown)
            assert most is None or shown[-1] <= most
        # More than the system's limits on a socket's buffers, and much less than was sent.
        assert max(look[3] for look in found) < UNDER_WAY

        hosts.server.wait_for("state", lambda s: s["received"] == sent, 2 * PATIENCE, peer=peer)
        hosts.client.wait_for("state", lambda s: s["received"] == answered, 2 * PATIENCE, peer=peer)
        hosts.server.wait_for("stats", lambda s: s["bufs_pinned"] == 0)
        told = lab.server.run(f"ss -Htin state established sport = :{PORT}").stdout
        assert told.split()[:2] == ["0", "0"]
        assert details(lab)["bytes_received"] == sent
        hosts.check(peer)


def test_they_show_what_the_rings_carry(lab: Lab, tmp_path: Path) -> None:
    before = kicks(lab)
    filter_ = f"tcp port {PORT}"
    # Room for all of it: tcpdump may get no turn on the guest's one CPU while data flows.
    options = "-Z root -U -B 16384 -i eth0 -w /tmp/rings.pcap"
    tcpdump = lab.server.popen(f"exec tcpdump {options} {filter_}")
    tcpdump.wait_for_output("listening on")
    with pair(lab, PORT) as hosts:
        peer = hosts.connect()
        hosts.sent_to_server(peer, TO_SERVER)
        hosts.server.write(peer=peer, size=TO_CLIENT)
        hosts.client.wait_for("state", lambda s: s["received"] == TO_CLIENT, peer=peer)
        hosts.server.wait_for("stats", lambda s: s["bufs_pinned"] == 0)
        shown = details(lab)
        assert shown["bytes_received"] == TO_SERVER
        assert shown["bytes_sent"] >= TO_CLIENT
        assert shown["bytes_acked"] >= TO_CLIENT
        assert kicks(lab) > before
        hosts.check(peer)
    # It may be behind, and an interrupt ends it where it is.
    written = -1
    while written != (written := int(lab.server.run("stat -c %s /tmp/rings.pcap").stdout)):
        time.sleep(5)
    tcpdump.kill(signal.SIGINT)
    assert tcpdump.wait(PATIENCE) == 0, tcpdump.output()
    capture = tmp_path / "rings.pcap"
    capture.write_bytes(lab.server.get("/tmp/rings.pcap"))
    for source, size in ((SERVER_ADDRESS, TO_CLIENT), (CLIENT_ADDRESS, TO_SERVER)):
        found = transmissions(capture, source, PORT)
        assert found.bytes == size
        assert found.changed == []
