"""Bytes that both ends of a connection know, so that every one of them can be compared.

A stream is a random block whose length is a prime, over and over: bytes that are lost, repeated,
swapped or another stream's show at once.
"""

from __future__ import annotations

import random

_BLOCK = 65521
#: The most that can be looked at in one go.
LIMIT = 2 * _BLOCK


class WrongBytesError(Exception):
    """A stream is not what it should be."""


class Stream:
    """One direction of one connection: ``size`` bytes that follow from ``name``."""

    def __init__(self, name: str, size: int) -> None:
        self._random = random.Random(name)
        self._blocks = self._random.randbytes(_BLOCK) * 3
        self.name = name
        self.size = size
        self.position = 0

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self.size - self.position

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, or all that are left."""
        start = self.position % _BLOCK
        return self._blocks[start : start + min(count, self.left, LIMIT)]

    def some(self, most: int) -> bytes:
        """The next few bytes, how many is random; they are taken."""
        data = self.peek(self._random.randint(1, most))
        self.position += len(data)
        return data

    def check(self, data: bytes) -> None:
        """Take the next bytes, which must be these.

        Raises:
            WrongBytesError: they are not.
        """
        expected = self.peek(len(data))
        if data != expected:
            first = next(
                (i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b),
                len(expected),
            )
            raise WrongBytesError(
                f"{self.name}: byte {self.position + first} of {self.size} is wrong: "
                f"{data[first : first + 16].hex()}, not {expected[first : first + 16].hex()}"
            )
        self.position += len(data)
