"""TCP segments of a capture, and what was transmitted more than once."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scapy.utils import RawPcapReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_ETHERNET = 14


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment."""

    source: str
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    #: As it stands in the header, not scaled.
    window: int
    payload: bytes


def segments(path: Path, source: str) -> Iterator[Segment]:
    """The TCP segments over IPv4 that one host sent, in the order of the capture."""
    address = socket.inet_aton(source)
    with RawPcapReader(str(path)) as capture:
        for frame, _metadata in capture:
            if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
                continue
            if frame[26:30] != address:
                continue
            tcp = _ETHERNET + (frame[14] & 15) * 4
            end = _ETHERNET + int.from_bytes(frame[16:18], "big")
            sport, dport, seq, ack, length, flags, window = struct.unpack_from(
                "!HHIIBBH", frame, tcp
            )
            payload = frame[tcp + (length >> 4) * 4 : end]
            yield Segment(source, sport, dport, seq, ack, flags, window, payload)


@dataclass
class Transmissions:
    """Payload that one host sent, and retransmitted."""

    data_segments: int = 0
    #: Payload bytes, each counted once.
    bytes: int = 0
    #: Data segments with at least one byte that had been transmitted before.
    retransmitted_segments: int = 0
    retransmitted_bytes: int = 0
    #: Ranges whose bytes are not those of their first transmission.
    changed: list[str] = field(default_factory=list)


@dataclass
class _Flow:
    first: int
    data: bytearray = field(default_factory=bytearray)
    #: For every byte, whether it was seen: TCP numbers what a full queue then drops.
    seen: bytearray = field(default_factory=bytearray)


def transmissions(path: Path, source: str, port: int) -> Transmissions:
    """Compare everything that ``source`` sent again with its first transmission.

    ``port`` is the server's port, whether ``source`` is the server or the client.
    The capture must have the connections from their first segment on.
    """
    found = Transmissions()
    flows: dict[tuple[int, int], _Flow] = {}
    for segment in segments(path, source):
        if port not in (segment.source_port, segment.destination_port):
            continue
        ports = segment.source_port, segment.destination_port
        if segment.flags & SYN:
            flows.setdefault(ports, _Flow(segment.seq + 1))
        if not segment.payload:
            continue
        found.data_segments += 1
        flow = flows[ports]
        start = (segment.seq - flow.first) & 0xFFFFFFFF
        end = start + len(segment.payload)
        if end > len(flow.data):
            missing = end - len(flow.data)
            flow.data += bytes(missing)
            flow.seen += bytes(missing)
        first = segment.payload
        again = flow.seen.count(1, start, end)
        if again:
            found.retransmitted_segments += 1
            found.retransmitted_bytes += again
            first = bytes(
                before if seen else now
                for before, seen, now in zip(
                    flow.data[start:end], flow.seen[start:end], segment.payload, strict=True
                )
            )
            if first != segment.payload:
                found.changed.append(f"ports {ports}: bytes {start} to {end}")
        found.bytes += end - start - again
        flow.data[start:end] = first
        flow.seen[start:end] = b"\x01" * len(first)
    return found
