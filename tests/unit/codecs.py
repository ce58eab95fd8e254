"""Helpers for tests of codecs: feed them, and check the guarantees that all codecs give."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from stackmap.codec import RemoteProtocolError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

    from stackmap.codec import Codec

In = TypeVar("In")
Out = TypeVar("Out")


def received(codec: Codec[In, Out], pieces: Iterable[bytes]) -> Iterator[In]:
    """The messages of a stream that arrives in pieces, each in memory that is used again."""
    for piece in pieces:
        memory = bytearray(piece)
        with memoryview(memory) as view:
            codec.receive(view)
        memory[:] = b"\xff" * len(memory)
        while (message := codec.next_message()) is not None:
            yield message


def sent(codec: Codec[In, Out], messages: Iterable[Out]) -> bytes:
    return b"".join(bytes(buffer) for message in messages for buffer in codec.send(message))


def cut(stream: bytes, generator: random.Random) -> Iterator[bytes]:
    """Pieces of a stream, of one byte up to all of it."""
    start = 0
    while start < len(stream):
        end = start + generator.choice([1, 1, 2, 3, 7, 50, 1000, 20_000, 1 << 20])
        yield stream[start:end]
        start = end


def outcome(
    codec: Codec[In, Out], pieces: Iterable[bytes], bound: int, *, words: bool = True
) -> list[object]:
    """The messages of any bytes, and the error that ends them, if wanted in its own words.

    It checks that no other error is raised, that the error is raised again, and that what waits in
    the codec is bounded.
    """
    found: list[object] = []
    try:
        for piece in pieces:
            codec.receive(piece)
            while (message := codec.next_message()) is not None:
                found.append(message)
            assert codec.held <= bound
        codec.receive_eof()
        while (message := codec.next_message()) is not None:
            found.append(message)
    except RemoteProtocolError as error:
        found += [str(error) if words else "error", *map(bytes, error.reply)]
        codec.receive(b"x" * 1000)
        assert codec.held == 0
        with pytest.raises(RemoteProtocolError, match=re.escape(str(error))):
            codec.next_message()
    return found


class Searched(bytearray):
    """Counts the bytes in which something was searched."""

    searched = 0

    def find(self, sub: Any, start: Any = 0, *rest: Any) -> int:
        self.searched += len(self) - start
        return super().find(sub, start, *rest)
