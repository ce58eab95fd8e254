"""The TCP proxy of ``proxy.py`` with asyncio's protocols, on whose event loop is the only change.

    python examples/proxy_asyncio.py --listen 127.0.0.1:8080 --to 127.0.0.1:80

It shows flow control from end to end, half close and resets: what a program on asyncio does, it
does on rings.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import socket
from typing import cast

from stackmap import open_port, reset_on_close, reset_transport
from stackmap.aio import EventLoop

#: Sockets at a time, two for each client; other clients wait in the listener's backlog.
MAX_SOCKETS = 1000
#: Seconds to connect, and for which either side may leave data unread or its host may be silent.
PATIENCE = 60


class Half(asyncio.Protocol):
    """One of a pair of connections; what it receives goes to the other one."""

    def __init__(self) -> None:
        self.other: Half | None = None
        self.early = bytearray()  # came before there was another
        self.ended = False  # the peer sends nothing more
        self.failed = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=0)  # hold up the sender as soon as it waits
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PATIENCE * 1000)

    def join(self, other: Half) -> None:
        """Pass on to the other one from now on, and first what has come already."""
        self.other = other
        if self.early:
            other.transport.write(self.early)
        if self.ended:
            self.pass_on_end()
        if self.failed:
            reset_transport(other.transport)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is None:
            self.early += data
        else:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass on the end of this direction; the other one may go on."""
        self.ended = True
        if self.other is not None:
            self.pass_on_end()
        return True

    def pass_on_end(self) -> None:
        """Close one direction, or all once both are."""
        assert self.other is not None
        if self.other.ended:
            self.transport.close()
            self.other.transport.close()
        else:
            self.other.transport.write_eof()

    def pause_writing(self) -> None:
        """The peer does not read: hold up the other one."""
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer has read."""
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on a reset; an end was passed on before."""
        self.failed = exc is not None
        if self.failed and self.other is not None:
            reset_transport(self.other.transport)
        self.lost.set_result(None)


async def join(client: socket.socket, to: tuple[str, int]) -> None:
    """Connect a client that was accepted, and wait until both connections are gone."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            _transport, there = await loop.create_connection(Half, *to)
    except OSError:
        reset_on_close(client)  # nobody is there
        client.close()
        return
    _transport, here = await loop.connect_accepted_socket(Half, client)
    here.join(there)
    there.join(here)
    await asyncio.wait([here.lost, there.lost])


async def serve(listener: socket.socket, to: tuple[str, int]) -> None:
    """Serve for ever."""
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(MAX_SOCKETS // 2)
    pairs: set[asyncio.Task[None]] = set()

    def ended(pair: asyncio.Task[None]) -> None:
        pairs.discard(pair)
        room.release()

    while True:
        await room.acquire()
        client, _address = await loop.sock_accept(listener)
        pair = loop.create_task(join(client, to))
        pairs.add(pair)
        pair.add_done_callback(ended)


def main() -> None:
    """Parse the command line, listen and serve."""
    parser = argparse.ArgumentParser(description="A half-closing TCP proxy on asyncio.")
    parser.add_argument("--backend", choices=["auto", "stackmap", "sockets"], default="auto")
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    host, _colon, number = options.listen.rpartition(":")
    to_host, _colon, to_number = options.to.rpartition(":")
    with open_port(options.backend) as port, socket.create_server((host, int(number))) as listener:
        listener.setblocking(False)
        number = listener.getsockname()[1]
        print(f"listening on {host}:{number}, backend {port.backend}", flush=True)
        with asyncio.Runner(loop_factory=functools.partial(EventLoop, port)) as runner:
            runner.run(serve(listener, (to_host, int(to_number))))


if __name__ == "__main__":
    main()
