"""Bytes that say where in a stream they belong, and never look like what ends one."""

from __future__ import annotations

import random

# A prime length, so that no multiple of a buffer's or a segment's size maps onto the same bytes.
_LENGTH = 1_000_003
_TABLE = random.Random(0).randbytes(_LENGTH).replace(b"\xff", b"\xfe")
_DOUBLE = _TABLE * 2

#: Comes behind the pattern, and is no part of it: 255 is not.
TRAILER = b"\xff" * 8


def pattern(stream: int, position: int, size: int) -> bytes:
    """Bytes ``position`` to ``position + size`` of a stream; at most a table's length at once."""
    start = (stream * 7919 + position) % _LENGTH
    return _DOUBLE[start : start + size]
