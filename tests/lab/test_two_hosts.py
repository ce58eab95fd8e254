"""Two guests reach each other over a wire that does what it is told."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import ICMP, TCP
from scapy.utils import rdpcap

from tests.lab.hosts import PATIENCE
from tests.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab

pytestmark = pytest.mark.first_kernel

SERVER = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as listener:
    print("listening", flush=True)
    connection, _ = listener.accept()
    total = 0
    while data := connection.recv(65536):
        total += len(data)
    connection.sendall(str(total).encode())
"""
CLIENT = """
import socket
with socket.create_connection(("10.77.0.1", 7000)) as connection:
    connection.sendall(bytes(1000000))
    connection.shutdown(socket.SHUT_WR)
    print(connection.recv(100).decode())
"""


def transfer(lab: Lab) -> str:
    server = lab.server.popen([sys.executable, "-I", "-S", "-c", SERVER])
    server.wait_for_output("listening")
    result = lab.client.run([sys.executable, "-I", "-S", "-c", CLIENT], timeout=100)
    assert server.wait(120) == 0
    return result.stdout.strip()


def test_names_and_both_address_families_work(lab: Lab) -> None:
    assert lab.server.run("hostname").stdout == "server\n"
    assert lab.client.run("hostname").stdout == "client\n"
    lab.client.run("busybox ping -c 2 -W 10 server && busybox ping6 -c 2 -W 10 fd77::1")


def test_pings_are_captured(lab: Lab, tmp_path: Path) -> None:
    lab.client.run("busybox ping -c 1 -W 10 server")
    sent, delivered = lab.wire.capture(tmp_path / "ping")
    lab.wire.configure(drop="to-server")
    assert lab.client.run("busybox ping -c 1 -W 2 server", check=False).returncode == 1
    lab.wire.configure(drop="off")
    lab.client.run("busybox ping -c 1 -W 10 server")
    lab.wire.stop_capture()
    assert len([packet for packet in rdpcap(str(sent)) if ICMP in packet]) == 3
    assert len([packet for packet in rdpcap(str(delivered)) if ICMP in packet]) == 2


def test_tcp_survives_a_bad_wire_by_retransmitting(lab: Lab, tmp_path: Path) -> None:
    sent, _ = lab.wire.capture(tmp_path / "tcp")
    lab.wire.configure(loss=0.05, reorder=0.25, duplicate=0.02, seed=11)
    assert transfer(lab) == "1000000"
    lab.wire.stop_capture()
    stats = lab.wire.stats()["to-server"]
    assert stats["dropped"]
    assert stats["reordered"]
    assert stats["duplicated"]
    segments = [
        (packet[TCP].seq, len(packet[TCP].payload))
        for packet in rdpcap(str(sent))
        if TCP in packet and packet[TCP].dport == 7000 and len(packet[TCP].payload) > 0
    ]
    assert len(set(segments)) < len(segments)


def test_withheld_acks_stall_the_sender_until_they_pass(lab: Lab) -> None:
    lab.wire.configure(drop_acks="to-client")
    server = lab.server.popen([sys.executable, "-I", "-S", "-c", SERVER])
    server.wait_for_output("listening")
    client = lab.client.popen([sys.executable, "-I", "-S", "-c", CLIENT])
    eventually(
        lambda: lab.wire.stats()["to-client"]["acks_dropped"] != 0,
        client.output,
        patience=PATIENCE,
    )
    lab.client.run("sleep 3")
    assert client.poll() is None
    lab.wire.configure(drop_acks="off")
    assert client.wait(PATIENCE) == 0
    assert client.stdout == "1000000\n"
    assert server.wait(120) == 0
