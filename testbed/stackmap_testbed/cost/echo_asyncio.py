"""A TCP echo server on asyncio: ``echo_asyncio.py ADDRESS PORT LOOP API [NIC]``.

The same program for all event loops: asyncio's own, uvloop, and :mod:`stackmap.aio` on rings or on
sockets; with streams, as a protocol, or, on :mod:`stackmap.aio`, as a protocol that is given
segments.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any

import stackmap
import stackmap.aio

_BACKLOG = 4096
_CHUNK = 65536


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


class SegmentEcho(stackmap.aio.SegmentProtocol):
    """Sends back what comes, from where it lies."""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def segments_received(self, segments: list[stackmap.Segment]) -> None:
        """Send it back."""
        write = self._transport.write
        for segment in segments:
            write(segment.view)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(address: str, port_number: int, api: str) -> None:
    """Serve until the process is ended."""
    if api == "streams":
        server = await asyncio.start_server(echo, address, port_number, backlog=_BACKLOG)
    else:
        protocol = {"protocol": Echo, "segments": SegmentEcho}[api]
        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocol, address, port_number, backlog=_BACKLOG)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


def loop_factory(name: str, nic: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the event loop of that name."""
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 (the others do not need it)

        make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return make
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    backend: Any = {"rings": "stackmap", "sockets": "sockets"}[name]
    nic_if_needed = nic if name == "rings" else None
    return stackmap.aio.loop_factory(functools.partial(stackmap.open_port, backend, nic_if_needed))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[3], sys.argv[5])) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[4]))
