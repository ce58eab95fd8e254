"""A sync gives the driver all its packets at once: what the driver does not take waits."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from tests.lab.hosts import PATIENCE, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.lab import Lab
    from stackmap_testbed.lab.process import GuestProcess

PORT = 7800
#: A sync that takes two jiffies, on a busy machine, holds nothing more: some of so many do not.
ROUNDS = 100
SIZE = 64
#: More than one doorbell serves: the driver can be stopped at the first one only.
CONNECTIONS = 80
LIMITS = "/sys/class/net/eth0/queues/tx-0/byte_queue_limits"

pytestmark = [
    pytest.mark.first_kernel,
    pytest.mark.usefixtures("rings"),
    pytest.mark.timeout(900),
]


@contextlib.contextmanager
def hosts(lab: Lab) -> Iterator[tuple[GuestProcess, GuestProcess]]:
    """Both programs, when all connections are attached."""
    with running(lab.server, "batches", PORT, CONNECTIONS, SIZE) as sender:
        sender.wait_for_output("listening", PATIENCE)
        arguments = (SERVER_ADDRESS, PORT, CONNECTIONS, SIZE, ROUNDS)
        with running(lab.client, "many_readers", *arguments) as reader:
            sender.wait_for_output("attached", PATIENCE)
            yield sender, reader


def requeued(lab: Lab) -> int:
    """How many packets the driver has not taken at once."""
    shown = json.loads(lab.server.run("tc -s -j qdisc show dev eth0").stdout)
    (fifo,) = (qdisc for qdisc in shown if qdisc["kind"] == "stackmap_queue")
    return int(fifo["requeues"])


def has_bql(lab: Lab) -> bool:
    """Whether the NIC's driver, which has sent something, tells BQL of it: Linux 6.1's does not."""
    return int(lab.server.run(["cat", f"{LIMITS}/limit"]).stdout) > 0


def test_packets_that_the_driver_does_not_take_are_sent_later(lab: Lab) -> None:
    """The kernel lets few bytes wait in the NIC (BQL), so a sync meets a stopped queue."""
    most = lab.server.run(["cat", f"{LIMITS}/limit_max"]).stdout
    with hosts(lab) as (sender, reader):
        lab.server.run(f"echo 2000 > {LIMITS}/limit_max")
        try:
            before = requeued(lab)
            for number in range(ROUNDS):
                sender.send(b"\n")
                reader.wait_for_output(f"read {number}\n", PATIENCE)
            assert (requeued(lab) > before) == has_bql(lab)
        finally:
            lab.server.run(f"echo {most.strip()} > {LIMITS}/limit_max")
