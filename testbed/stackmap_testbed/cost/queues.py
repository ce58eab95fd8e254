"""A NIC with two queues in the machine that counts: veths, and the processors of their queues.

No NIC that QEMU emulates by itself has several queues.  A veth has, and with threaded NAPI what
receives from a queue is a thread, which has a processor.  Each end chooses the queue to send into
by the processor that sends (XPS), and the other end receives from the queue of the same number.  So
the client's processor decides which of the server's has to do with a connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stackmap_testbed.lab.addresses import CLIENT_MAC, SERVER_ADDRESS, SERVER_MAC


@dataclass(frozen=True, slots=True)
class Queue:
    """The processors that have to do with a queue.

    Attributes:
        server: of the server's thread, and where its NIC receives.
        client_nic: where the client's NIC receives.
        client: of the client.
    """

    server: int
    client_nic: int
    client: int


#: The client has twice the server's processors, to keep these busy.
QUEUES = (Queue(1, 3, 4), Queue(2, 5, 6))
#: The first one is nobody's.
PROCESSORS = 1 + 3 * len(QUEUES)
#: How many instructions a processor executes until it is the next one's turn: so few that another
#: one meets it in the middle of a request, and so often, as if both were executing at once.
TURN = 1000


def pair(server_nic: str, client_nic: str) -> str:
    """The commands that make the veths, with the addresses that the NICs on a hub have.

    Without GRO a veth receives without NAPI, and also from another one that segments itself.
    """
    queues = f"numtxqueues {len(QUEUES)} numrxqueues {len(QUEUES)}"
    return f"""
set -e
ip link add {server_nic} address {SERVER_MAC} {queues} type veth \\
    peer name {client_nic} address {CLIENT_MAC} {queues}
for nic in {server_nic} {client_nic}; do ethtool -K $nic gro on tso off; done
ip addr add {SERVER_ADDRESS}/24 dev {server_nic}
ip link set {server_nic} up
"""


def receive_at_server(nic: str) -> str:
    """The commands that give the queues of the server's NIC their processors."""
    return _receive(nic, [(queue.server, [queue.server]) for queue in QUEUES])


def receive_at_client(nic: str) -> str:
    """The commands that give the queues of the client's NIC their processors."""
    return _receive(nic, [(queue.client_nic, [queue.client_nic, queue.client]) for queue in QUEUES])


def _receive(nic: str, queues: Sequence[tuple[int, Sequence[int]]]) -> str:
    """Of each queue, the processor that receives from it, and those that send into it."""
    # The numbers in the threads' names have the order of the queues.
    lines = [
        f"set -e; cd /sys/class/net/{nic}; echo 1 >threaded",
        f"set -- $(pgrep -l '^napi/{nic}-' | sort -k 2 | cut -d ' ' -f 1)",
    ]
    for number, (receiving, sending) in enumerate(queues):
        mask = sum(1 << processor for processor in sending)
        lines.append(f"taskset --cpu-list --pid {receiving} ${number + 1} >/dev/null")
        lines.append(f"echo {mask:x} >queues/tx-{number}/xps_cpus")
    return "\n".join(lines)
