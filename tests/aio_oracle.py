"""A transport and the standard library's, driven by the same program: they must tell the same.

A program is a list of operations of the transport's owner and of the peer.  After each, the loop
runs until everything that was sent has arrived, so that what is compared does not depend on time.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.aio_loops import Recorder, connect, receive, until
from tests.reset import reset_on_close

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

#: Each with a size, which those that move no data ignore.  So many bytes fit into any buffer.
OPERATIONS = (
    "write",
    "writelines",
    "peer sends",
    "pause",
    "resume",
    "write_eof",
    "peer ends",
    "close",
    "abort",
    "peer resets",
)
SIZE_MAX = 20_000
PATTERN = bytes(range(251)) * (SIZE_MAX // 251 + 2)

Operation = tuple[str, int]


def random_program(source: random.Random) -> list[Operation]:
    """A program of up to a dozen operations, most of which move data."""
    weights = [6, 3, 6, 3, 3, 1, 1, 1, 1, 1]
    length = source.randint(1, 12)
    names = source.choices(OPERATIONS, weights, k=length)
    return [(name, source.choice((0, 1, 600, 5000, SIZE_MAX))) for name in names]


@dataclass
class World:
    """One transport and its peer."""

    transport: asyncio.Transport
    protocol: Recorder
    peer: socket.socket
    written: int = 0
    heard: int = 0
    sent: int = 0

    async def do(self, operation: Operation) -> str:
        """Do one operation and let it take effect; returns what can be seen of it."""
        name, size = operation
        try:
            self._act(name, size)
        except (RuntimeError, TypeError, ValueError) as exc:
            return f"{name}: {type(exc).__name__}"
        await self._settle()
        protocol, transport = self.protocol, self.transport
        return (
            f"{name}: {protocol.story} {len(protocol.data)} in, {self.heard} out, "
            f"closing {transport.is_closing()}, reading {transport.is_reading()}, "
            f"lost {[type(exc).__mro__[-4:-2] if exc else None for exc in protocol.lost]}, "
            f"buffered {transport.get_write_buffer_size()}"
        )

    def _act(self, name: str, size: int) -> None:
        transport, peer = self.transport, self.peer
        writable = not transport.is_closing() and not self.protocol.lost
        if name == "write":
            transport.write(PATTERN[:size])
            self.written += size * writable
        elif name == "writelines":
            transport.writelines([PATTERN[:size], b"", PATTERN[:1]])
            self.written += (size + 1) * writable
        elif name == "pause":
            transport.pause_reading()
        elif name == "resume":
            transport.resume_reading()
        elif name == "write_eof":
            transport.write_eof()
        elif name == "close":
            transport.close()
        elif name == "abort":
            transport.abort()
        elif peer.fileno() < 0 or self.protocol.lost:
            pass  # the peer is gone, or nobody listens to it
        elif name == "peer sends" and not self._peer_has_ended:
            peer.send(PATTERN[:size])
            self.sent += size
        elif name == "peer ends" and not self._peer_has_ended:
            peer.shutdown(socket.SHUT_WR)
            self._peer_has_ended = True
        elif name == "peer resets" and transport.is_reading() and not self._peer_has_ended:
            # While reading is paused they differ: the port tells of a reset at once.
            reset_on_close(peer)
            peer.close()

    _peer_has_ended = False

    async def _settle(self) -> None:
        transport, protocol = self.transport, self.protocol
        if self.peer.fileno() < 0:
            await until(lambda: protocol.lost)
            return
        if self.heard < self.written:
            data = await receive(self.peer, self.written - self.heard)
            self.heard += len(data)
        if transport.is_reading():
            await until(lambda: len(protocol.data) == self.sent or transport.is_closing())
            if self._peer_has_ended:
                await until(lambda: "eof" in protocol.story or transport.is_closing())
        if transport.is_closing():
            await until(lambda: protocol.lost)


async def observe(program: Sequence[Operation]) -> list[str]:
    """Run a program on a new connection of the running loop; returns all that can be seen."""
    transport, protocol, peer = await connect(Recorder)
    world = World(transport, protocol, peer)
    try:
        return [await world.do(operation) for operation in program]
    finally:
        transport.abort()
        peer.close()
        await until(lambda: protocol.lost)


def compare(
    oracle: asyncio.Runner, subject: asyncio.Runner, programs: Sequence[Sequence[Operation]]
) -> None:
    """Fail at the first program of which the two loops tell different things."""
    for program in programs:
        wanted = oracle.run(observe(program))
        found = subject.run(observe(program))
        assert found == wanted, program
