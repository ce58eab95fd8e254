"""Received bytes that are lent to a handler."""

from __future__ import annotations

import contextlib
from typing import Protocol

from stackmap import Kept


class Held(Protocol):
    """A segment of a ring, or one that is kept."""

    @property
    def view(self) -> memoryview: ...

    def release(self) -> None: ...


class Keeper(Protocol):
    """A port, which can have a segment's payload outlive the next exchange."""

    def keep(self, segment: Held, /) -> Held: ...


Chunk = bytes | Held


class Payload:
    """Bytes of the peer, where the transport received them: in a ring's page, for instance.

    They are the handler's until it has returned, or was awaited.  Using :attr:`view` after that
    raises ``ValueError``.  What is to live longer is copied out with :meth:`detach`.  A slice of
    the view that outlives it still shows the same bytes, and keeps a page from the ring meanwhile.
    """

    __slots__ = ("_held", "_view")

    def __init__(self, chunk: Chunk) -> None:
        if isinstance(chunk, bytes):
            self._held: Held | None = None
            self._view = memoryview(chunk)
        else:
            self._held = chunk
            self._view = chunk.view

    def __repr__(self) -> str:
        try:
            return f"<Payload of {len(self._view)} bytes>"
        except ValueError:
            return "<Payload, released>"

    def __len__(self) -> int:
        return len(self._view)

    def __bytes__(self) -> bytes:
        return bytes(self._view)

    @property
    def view(self) -> memoryview:
        """The bytes themselves, read-only."""
        return self._view

    def detach(self) -> bytes:
        """Copy the bytes out, and give them back.

        Raises:
            ValueError: they were given back before.
        """
        data = bytes(self._view)
        self.release()
        return data

    def release(self) -> None:
        """Give the bytes back.  Idempotent; done when the handler has returned."""
        self._view.release()
        if self._held is not None:
            with contextlib.suppress(BufferError):  # of slices: the port knows when they are gone
                self._held.release()
            self._held = None

    def keep(self, keeper: Keeper | None) -> None:
        """Have the bytes outlive the call of the transport: the handler is to be awaited."""
        if self._held is not None:
            self._held = keep(self._held, keeper)
            self._view = self._held.view


class _Copy:
    """A copy of bytes that cannot be kept."""

    __slots__ = ("view",)

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(data)

    def release(self) -> None:
        self.view.release()


def keep(segment: Held, keeper: Keeper | None) -> Held:
    """Have a segment's bytes outlive the call that delivered it, in its page or as a copy.

    A segment that was kept before is returned as it is.
    """
    if isinstance(segment, Kept | _Copy):
        return segment
    if keeper is not None:
        with contextlib.suppress(BufferError):  # a slice of it is in use
            return keeper.keep(segment)
    return _Copy(bytes(segment.view))
