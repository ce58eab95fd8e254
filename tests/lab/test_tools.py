"""``ss``, ``tcpdump`` and ``ethtool`` go on working on a bound NIC while data flows in rings."""

from __future__ import annotations

import re
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.lab import CLIENT_ADDRESS, SERVER_ADDRESS
from tests.lab.captures import transmissions
from tests.lab.hosts import PATIENCE, pair

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.lab import Lab

PORT = 7600
TO_SERVER, TO_CLIENT = 200_000, 300_000
PROGRAMS = ("ss", "tcpdump", "ethtool")

pytestmark = [
    pytest.mark.usefixtures("rings"),
    pytest.mark.timeout(300),
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
    """What ``ss`` shows of TCP's state of the one connection."""
    told = lab.server.run(f"ss -Htin state established sport = :{PORT}").stdout
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)\b", told)}


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
        hosts.server.wait_for("stats", lambda s: s["slots_pinned"] == 0)
        shown = details(lab)
        assert shown["bytes_received"] == TO_SERVER
        assert shown["bytes_sent"] >= TO_CLIENT
        assert shown["bytes_acked"] >= TO_CLIENT
        assert kicks(lab) > before
        hosts.check(peer)
    # It may be behind, and an interrupt ends it where it is.
    written = -1
    while written != (written := int(lab.server.run("stat -c %s /tmp/rings.pcap").stdout)):
        time.sleep(2)
    tcpdump.kill(signal.SIGINT)
    assert tcpdump.wait(PATIENCE) == 0, tcpdump.output()
    capture = tmp_path / "rings.pcap"
    capture.write_bytes(lab.server.get("/tmp/rings.pcap"))
    for source, size in ((SERVER_ADDRESS, TO_CLIENT), (CLIENT_ADDRESS, TO_SERVER)):
        found = transmissions(capture, source, PORT)
        assert found.bytes == size
        assert found.changed == []
