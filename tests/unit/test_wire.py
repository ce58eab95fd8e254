"""The wire's process, with datagram sockets where the guests would be."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.wire import RelayProcess, Way, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 20.0
ACK = bytes(Ether() / IP() / TCP(flags="A"))
DATA = bytes(Ether() / IP() / TCP(flags="A") / b"payload")


class Ends:
    """A running wire and the two sockets at its ends."""

    def __init__(self, directory: Path) -> None:
        self.server, server_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.client, client_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with server_far, client_far:
            self.relay = RelayProcess(server_far, client_far, directory)
        self.wire = self.relay.wire

    def close(self) -> None:
        self.relay.close()
        self.server.close()
        self.client.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    pair = Ends(tmp_path)
    yield pair
    pair.close()


def waiting(sock: socket.socket) -> Iterator[bytes]:
    """The frames that are there."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recv(65536, socket.MSG_DONTWAIT)


def under_way(ends: Ends, way: Way, sent: int) -> bool:
    """Whether the wire still has any of the frames that were ever sent that way."""
    stats: dict[str, int] = ends.wire.stats()[way]
    lost = stats["dropped"] + stats["acks_dropped"]
    arriving = stats["received"] - lost + stats["duplicated"]
    return stats["received"] != sent or stats["delivered"] != arriving or stats["queued"] != 0


def rest(ends: Ends, way: Way, sent: int) -> list[bytes]:
    """Frames that arrive until none is under way, if so many were ever sent that way."""
    target = ends.server if way == "to-server" else ends.client
    arrived: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while under_way(ends, way, sent):
        assert time.monotonic() < deadline, ends.wire.stats()
        arrived += waiting(target)
        time.sleep(0.001)
    return [*arrived, *waiting(target)]


def exchange(ends: Ends, way: Way, frames: list[bytes]) -> list[bytes]:
    """Send frames that way; returns what arrives."""
    source, target = ends.client, ends.server
    if way == "to-client":
        source, target = target, source
    before = ends.wire.stats()[way]["received"]
    arrived: list[bytes] = []
    for frame in frames:
        source.send(frame)
        arrived += waiting(target)
    return arrived + rest(ends, way, before + len(frames))


def numbered(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big").ljust(60, b".") for number in range(count)]


def test_frames_cross_both_ways_unchanged_and_in_order(ends: Ends) -> None:
    frames = numbered(3000)
    assert exchange(ends, "to-client", frames) == frames
    assert exchange(ends, "to-server", frames) == frames


def test_a_receiver_that_pauses_loses_nothing(ends: Ends) -> None:
    frames = numbered(1500)
    for frame in frames:
        ends.server.send(frame)
    time.sleep(0.3)
    assert rest(ends, "to-client", len(frames)) == frames


def test_one_direction_can_be_impaired_alone(ends: Ends) -> None:
    ends.wire.configure(loss=0.3, direction="to-client", seed=5)
    frames = numbered(2000)
    assert exchange(ends, "to-server", frames) == frames
    assert 1200 < len(exchange(ends, "to-client", frames)) < 1600
    stats = ends.wire.stats()
    assert stats["to-server"]["dropped"] == 0
    assert 400 < stats["to-client"]["dropped"] < 800


def test_acks_are_withheld_and_let_through_live(ends: Ends) -> None:
    ends.wire.configure(drop_acks="to-server")
    assert exchange(ends, "to-client", [ACK]) == [ACK]
    assert exchange(ends, "to-server", [ACK, DATA]) == [DATA]
    ends.wire.configure(drop_acks="off")
    assert exchange(ends, "to-server", [ACK]) == [ACK]


def test_a_cut_wire_heals(ends: Ends) -> None:
    ends.wire.configure(drop="both")
    assert exchange(ends, "to-server", [b"lost"]) == []
    ends.wire.clear()
    assert exchange(ends, "to-server", [b"found"]) == [b"found"]


def test_delay_is_real_time(ends: Ends) -> None:
    ends.wire.configure(delay_ms=80)
    ends.server.settimeout(PATIENCE)
    delays = []
    for _ in range(3):
        start = time.monotonic()
        ends.client.send(b"late")
        assert ends.server.recv(100) == b"late"
        delays.append(time.monotonic() - start)
    # A busy machine makes it longer, but hardly each time.
    assert all(delay >= 0.08 for delay in delays)
    assert min(delays) < 0.5


def test_captures_hold_what_was_sent_and_what_arrived(ends: Ends, tmp_path: Path) -> None:
    segments = [bytes(Ether() / IP() / TCP(seq=n) / b"data") for n in range(500)]
    sent, delivered = ends.wire.capture(tmp_path / "run")
    ends.wire.configure(loss=0.2, reorder=0.2, seed=2)
    before = time.time()
    arrived = exchange(ends, "to-server", segments)
    assert ends.wire.stop_capture() == {"sent": 500, "delivered": len(arrived)}
    assert [bytes(packet) for packet in rdpcap(str(sent))] == segments
    packets = rdpcap(str(delivered))
    assert [bytes(packet) for packet in packets] == arrived
    assert len(arrived) < 450
    assert all(before - 1 < float(packet.time) < time.time() + 1 for packet in packets)


def test_a_capture_goes_on_after_one_end_has_gone(ends: Ends) -> None:
    ends.server.close()
    ends.client.send(b"to nobody")
    time.sleep(0.1)
    assert ends.wire.stats()["to-server"]["received"] == 1


def test_a_refused_setting_says_why(ends: Ends) -> None:
    with pytest.raises(LabError, match="loss is a probability"):
        ends.wire.configure(loss=3)
    assert ends.wire.stats()["to-server"]["conditions"]["loss"] == 0.0


def test_two_wires_cannot_share_a_directory(ends: Ends, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="does a lab use it"):
        RelayProcess(ends.server, ends.client, tmp_path)


def test_a_missing_wire_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no wire answers"):
        Wire(tmp_path / "wire.sock")


def test_a_client_that_hangs_up_does_not_end_the_wire(ends: Ends) -> None:
    for answers_lost in (False, True):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(ends.relay.control))
            client.sendall(b'{"do": "stats"}\n' * 1000)
            if answers_lost:
                client.recv(1)  # some are there, and are not read
    assert exchange(ends, "to-client", [DATA]) == [DATA]
    assert ends.wire.stats()


def test_a_wire_that_has_ended_says_so(ends: Ends) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(ends.relay.control))
        client.sendall(b'{"do": "stop"}\n')
        assert client.recv(1) == b""
    for _ in range(2):
        with pytest.raises(LabError, match="has ended"):
            ends.wire.stats()
