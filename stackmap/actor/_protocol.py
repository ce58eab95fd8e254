"""Between asyncio's transport and a stream."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, cast

from ._cell import Cell
from ._child import Child, Restart
from ._stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stackmap.codec import Codec

    from ._payload import Held
    from ._ref import ActorRef
    from ._supervisor import Supervisor


class StreamProtocol(asyncio.Protocol):
    """Has an actor own the connection that it is made for.

    A loop that offers it calls :meth:`segments_received` instead of :meth:`data_received`.
    """

    def __init__(
        self,
        supervisor: Supervisor[Any],
        child: Child[Any],
        codec: Callable[[], Codec[Any, Any]] | None,
    ) -> None:
        self._supervisor = supervisor
        self._child = dataclasses.replace(child, restart=Restart.TEMPORARY)
        self._codec = codec
        self._stream: Stream[Any, Any] | None = None
        self._cell: Cell[Any] | None = None

    @property
    def ref(self) -> ActorRef[Any]:
        """The actor that the connection began with.

        Raises:
            RuntimeError: the connection is not made, or the supervisor was stopping then.
        """
        if self._cell is None:
            raise RuntimeError("no actor has the connection: it is not made, or comes too late")
        return self._cell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Spawn the actor."""
        # Not all of uvloop's are derived from it.
        made = cast("asyncio.Transport", transport)
        if not self._supervisor.accepts:
            made.abort()
            return
        try:
            codec = None if self._codec is None else self._codec()
        except BaseException:
            made.abort()  # nobody would own the connection; the loop reports the error
            raise
        self._stream = Stream(made, codec)
        self._cell = self._supervisor.adopt(self._child, self._stream)
        self._stream.connect(self._cell)

    def data_received(self, data: bytes) -> None:
        """Pass on bytes."""
        if self._stream is not None:
            self._stream.receive(data)

    def segments_received(self, segments: Sequence[Held]) -> None:
        """Pass on segments of a ring."""
        if self._stream is not None:
            self._stream.receive_segments(segments)

    def eof_received(self) -> bool:
        """The actor decides when to close; TLS has no half of a connection to go on with."""
        if self._stream is None:
            return False
        self._stream.receive_eof()
        return self._stream.transport.get_extra_info("ssl_object") is None

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        if self._stream is not None:
            self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        """The transport's buffer is above its high mark."""
        if self._stream is not None:
            self._stream.buffer_changed()

    def resume_writing(self) -> None:
        """The transport's buffer has sunk to its low mark."""
        if self._stream is not None:
            self._stream.watch_buffer()
