"""What a request costs an event loop in user mode: ``python -m tests.aio_cost``.

Counts the instructions that an echo server's process executes outside of the kernel, with
valgrind's callgrind, which must be installed; the load comes from this process.  Sockets are those
of the loopback device.  Rings are counted where the module is loaded, for instance in user-mode
Linux: ``python -m tests.debug.uml python -m tests.aio_cost --rings``.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stackmap.aio
from stackmap import RingPort, SocketPort
from stackmap.aio import _watchdog
from tests.guest import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZES = (64, 1024)
CONNECTIONS = (1, 16, 64)
#: Requests that are counted, and that come before, of each number of connections.
COUNTED, WARMING = 1280, 256

_MARK_C = """
#include <valgrind/callgrind.h>
void mark(const char *name) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_DUMP_STATS_AT(name); }
"""
_TOTALS = re.compile(r"^(?:desc: Trigger: Client Request: (\S+)|totals: (\d+))$", re.MULTILINE)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = memoryview(bytearray(65536))

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(self.buffer[:nbytes])


class SegmentEcho(stackmap.aio.SegmentProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def segments_received(self, segments: list[stackmap.Segment]) -> None:
        for segment in segments:
            self.transport.write(segment.view)


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


PROTOCOLS: dict[str, Callable[[], asyncio.BaseProtocol]] = {
    "protocol": Echo,
    "buffered": BufferedEcho,
    "segments": SegmentEcho,
    "streams": lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), echo_stream),
}


def make_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": make_uvloop,
    "sockets": stackmap.aio.loop_factory(SocketPort),
    "rings": stackmap.aio.loop_factory(lambda: RingPort(wire.NIC)),
}


def serve(loop: str, protocol: str, address: str, library: str) -> None:
    """Serve in the process that is counted: each SIGUSR1 ends a phase, and is answered."""
    mark = ctypes.CDLL(library).mark
    _watchdog.TURN_MAX *= 100  # as everything takes so much longer under valgrind
    names = sys.stdin

    async def main() -> None:
        this = asyncio.get_running_loop()
        server = await this.create_server(PROTOCOLS[protocol], address, 0, backlog=256)

        def end_phase() -> None:
            name = names.readline().strip()
            mark(name.encode())
            print(name, flush=True)
            if name == "end":
                os._exit(0)

        this.add_signal_handler(signal.SIGUSR1, end_phase)
        print(server.sockets[0].getsockname()[1], flush=True)
        await this.create_future()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


class Load:
    """A server under valgrind, and connections to it."""

    def __init__(self, loop: str, protocol: str, folder: Path) -> None:
        library = folder / "mark.so"
        if not library.exists():
            (folder / "mark.c").write_text(_MARK_C)
            include = f"-I{sysconfig.get_path('include')}"
            subprocess.run(
                ["gcc", "-O2", "-shared", "-fPIC", include, folder / "mark.c", "-o", library],
                check=True,
            )
        self._address = wire.ADDRESS if loop == "rings" else "127.0.0.1"
        self._far = loop == "rings"
        self._out = folder / f"{loop}-{protocol}"
        self._server = subprocess.Popen(
            [
                *("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"),
                *(f"--callgrind-out-file={self._out}", sys.executable, "-m", "tests.aio_cost"),
                *("--serve", loop, protocol, self._address, str(library)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        self._port = int(self._read())

    def _read(self) -> str:
        assert self._server.stdout
        line = self._server.stdout.readline()
        assert line, "the server has ended"
        return line.strip()

    def mark(self, name: str) -> None:
        assert self._server.stdin
        self._server.stdin.write(name + "\n")
        self._server.stdin.flush()
        self._server.send_signal(signal.SIGUSR1)
        assert self._read() == name

    def request(self, connections: int, size: int) -> None:
        """Send one request on each connection, then wait for all replies, again and again."""
        message = bytes(size)
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for _ in range(connections):
                sock = wire.in_peer_namespace() if self._far else socket.socket()
                stack.enter_context(sock)
                sock.connect((self._address, self._port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(sock, selectors.EVENT_READ)
            for count, name in ((WARMING, "warm"), (COUNTED, f"{connections}/{size}")):
                for _ in range(count // connections):
                    left = {key.fd: size for key in selector.get_map().values()}
                    for key in selector.get_map().values():
                        key.fileobj.send(message)  # type: ignore[union-attr]
                    while left:
                        for key, _ready in selector.select():
                            got = len(key.fileobj.recv(65536))  # type: ignore[union-attr]
                            assert 0 < got <= left[key.fd]
                            left[key.fd] -= got
                            if not left[key.fd]:
                                del left[key.fd]
                self.mark(name)

    def figures(self) -> dict[str, float]:
        """Instructions per request by phase, once all requests were made."""
        self.mark("end")
        self._server.wait()
        found = {}
        for file in self._out.parent.glob(self._out.name + ".*"):
            text = file.read_text()
            name, total = None, 0
            for match in _TOTALS.finditer(text):
                name, total = match[1] or name, int(match[2] or total)
            if name and "/" in name:
                found[name] = total / COUNTED
        return found


@contextmanager
def bound_nic() -> Iterator[None]:
    """The wire of the tests that run in a guest."""
    from tests.guest.conftest import nic

    yield from nic.__wrapped__()  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.aio_cost", description=__doc__)
    parser.add_argument("--rings", action="store_true", help="count rings, and nothing else")
    parser.add_argument("--loops", nargs="+", default=["asyncio", "uvloop", "sockets"])
    parser.add_argument("--protocols", nargs="+", default=[*PROTOCOLS])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--connections", nargs="+", type=int, default=CONNECTIONS)
    parser.add_argument("--keep", type=Path, help="where to leave callgrind's files")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    phases = [f"{n}/{size}" for size in options.sizes for n in options.connections]
    print(f"{'connections/size':<20}" + "".join(f"{phase:>9}" for phase in phases), flush=True)
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.rings:
            stack.enter_context(bound_nic())
        for loop in ["rings"] if options.rings else options.loops:
            for protocol in options.protocols:
                if protocol == "segments" and loop in {"asyncio", "uvloop"}:
                    continue  # they have none
                load = Load(loop, protocol, folder)
                for size in options.sizes:
                    for connections in options.connections:
                        load.request(connections, size)
                found = load.figures()
                counts = "".join(f"{found[phase]:>9.0f}" for phase in phases)
                print(f"{loop + ' ' + protocol:<20}{counts}", flush=True)


if __name__ == "__main__":
    main()
