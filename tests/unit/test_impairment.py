"""Impairment of one direction of the wire, on invented time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from stackmap_testbed.lab.frames import is_pure_ack
from stackmap_testbed.lab.impairment import Conditions, Impairment

ACK = bytes(Ether() / IP() / TCP(flags="A"))
DATA = bytes(Ether() / IP() / TCP(flags="PA") / b"payload")


def numbered(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


def send_all(impairment: Impairment, frames: list[bytes]) -> list[bytes]:
    arrived = []
    for tick, frame in enumerate(frames):
        impairment.submit(frame, tick * 1e-4)
        arrived += impairment.due(tick * 1e-4)
    return arrived + impairment.due(1e9)


def test_a_clean_wire_delivers_at_once_and_in_order() -> None:
    impairment = Impairment()
    frames = numbered(100)
    for frame in frames:
        impairment.submit(frame, 1.0)
    assert impairment.due(1.0) == frames
    assert impairment.next_due() is None


def test_loss_is_as_frequent_as_asked() -> None:
    impairment = Impairment(Conditions(loss=0.05), seed=7)
    arrived = send_all(impairment, numbered(20_000))
    assert 0.045 < 1 - len(arrived) / 20_000 < 0.055
    assert impairment.counters.dropped == 20_000 - len(arrived)


def test_duplicates_arrive_twice() -> None:
    impairment = Impairment(Conditions(duplicate=0.1), seed=7)
    arrived = send_all(impairment, numbered(10_000))
    assert 900 < len(arrived) - 10_000 < 1100
    assert set(arrived) == set(numbered(10_000))


def test_reordered_frames_come_after_later_ones_and_none_is_lost() -> None:
    frames = numbered(10_000)
    impairment = Impairment(Conditions(reorder=0.25), seed=7)
    arrived = send_all(impairment, frames)
    assert sorted(arrived) == frames
    overtaken = sum(1 for a, b in itertools.pairwise(arrived) if a > b)
    assert 1200 < overtaken < 2600
    assert 2300 < impairment.counters.reordered < 2700


def test_the_last_frame_is_held_back_only_briefly() -> None:
    impairment = Impairment(Conditions(reorder=1.0))
    impairment.submit(b"last", 5.0)
    assert impairment.due(5.0) == []
    due = impairment.next_due()
    assert due is not None
    assert 5.0 < due < 5.1
    assert impairment.due(due) == [b"last"]


def test_delay_keeps_the_order() -> None:
    impairment = Impairment(Conditions(delay_ms=10))
    for number, frame in enumerate(numbered(3)):
        impairment.submit(frame, number * 0.001)
    assert impairment.due(0.0099) == []
    assert impairment.next_due() == pytest.approx(0.010)
    assert impairment.due(0.0111) == numbered(3)[:2]


def test_the_same_seed_takes_the_same_decisions() -> None:
    conditions = Conditions(loss=0.1, reorder=0.2, duplicate=0.1)
    first = send_all(Impairment(conditions, seed=3), numbered(1000))
    again = Impairment(conditions, seed=4)
    again.reseed(3)
    assert send_all(again, numbered(1000)) == first
    assert send_all(Impairment(conditions, seed=4), numbered(1000)) != first


def test_dropping_acks_drops_nothing_else() -> None:
    impairment = Impairment(Conditions(drop_acks=True))
    assert send_all(impairment, [DATA, ACK, DATA, ACK]) == [DATA, DATA]
    assert impairment.counters.acks_dropped == 2


def test_a_dead_direction_delivers_nothing() -> None:
    assert send_all(Impairment(Conditions(drop=True)), [DATA, ACK]) == []


@pytest.mark.parametrize("wrong", [{"loss": 1.5}, {"reorder": -0.1}, {"delay_ms": -1}])
def test_impossible_conditions_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conditions(**wrong)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (IP() / TCP(flags="A"), True),
        (IP(options=b"\x01" * 4) / TCP(flags="A", options=[("Timestamp", (1, 2))]), True),
        (IPv6() / TCP(flags="A"), True),
        (IP() / TCP(flags="PA") / b"x", False),
        (IPv6() / TCP(flags="A") / b"x", False),
        (IP() / TCP(flags="SA"), False),
        (IP() / TCP(flags="FA"), False),
        (IP() / TCP(flags="RA"), False),
        (IP() / TCP(flags="R"), False),
        (IP() / UDP(), False),
        (ARP(), False),
    ],
)
def test_pure_acks_are_told_from_the_rest(packet: ARP, *, expected: bool) -> None:
    frame = bytes(Ether() / packet)
    assert is_pure_ack(frame) is expected
    assert is_pure_ack(frame.ljust(60, b"\0")) is expected  # as padded to Ethernet's minimum


def test_a_cut_frame_is_no_ack() -> None:
    assert not any(is_pure_ack(ACK[:length]) for length in range(len(ACK) - 1))
