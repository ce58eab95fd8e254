"""Tell a pure TCP acknowledgement from every other Ethernet frame."""

from __future__ import annotations

_IPV4 = 0x0800
_IPV6 = 0x86DD
_TCP = 6
_SYN_FIN_RST = 0x07
_ACK = 0x10


def is_pure_ack(frame: bytes) -> bool:
    """Return whether the frame is a TCP segment with an acknowledgement and nothing else."""
    if len(frame) < 54:
        return False
    kind = int.from_bytes(frame[12:14], "big")
    if kind == _IPV4:
        header = (frame[14] & 0x0F) * 4
        end = 14 + int.from_bytes(frame[16:18], "big")
        tcp = 14 + header
        protocol = frame[23]
    elif kind == _IPV6:
        end = 54 + int.from_bytes(frame[18:20], "big")
        tcp = 54
        protocol = frame[20]
    else:
        return False
    if protocol != _TCP or len(frame) < tcp + 20:
        return False
    flags = frame[tcp + 13]
    payload = end - tcp - (frame[tcp + 12] >> 4) * 4
    return payload == 0 and bool(flags & _ACK) and not flags & _SYN_FIN_RST
