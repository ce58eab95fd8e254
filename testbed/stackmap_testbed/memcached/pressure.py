"""Clients that make a memcached server hold memory, and one that wants to be served meanwhile.

``python -m stackmap_testbed.memcached.pressure`` starts the server on sockets with ``--memory 64``,
puts it under each load in turn, and prints its peak of resident memory and the longest that the
other client waited.  With an argument, ``HOST:PORT``, it puts a running server under them, which it
flushes.  ``--pid`` is that server's process, if it is on this host.
"""

from __future__ import annotations

import contextlib
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import click

from stackmap_testbed.memcached.conformance import Address, Conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    #: Called between rounds of work.
    Between = Callable[[], None]

#: Bytes sent on a connection per round, so that all get on side by side.
_PIECE = 16 << 10
#: Rounds in which nobody takes anything, after which the server is taken to have paused reading.
_PATIENCE = 20
_PROBE: Final = (
    (b"set other 0 0 2\r\nok\r\n", b"STORED\r\n"),
    (
        b"get other\r\n",
        b"VALUE other 0 2\r\nok\r\nEND\r\n",
    ),
)


class Crowd:
    """Clients that send much and read nothing, all at the same time.

    Args:
        address: the server.
        count: how many.
        between: called between rounds of work.
    """

    def __init__(self, address: Address, count: int, between: Between) -> None:
        self._between = between
        self.socks: dict[int, socket.socket] = {}
        for number in range(count):
            sock = socket.create_connection(address, 60)
            sock.setblocking(False)
            # The server is to keep unread bytes, not this kernel.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.socks[number] = sock
            if number % 100 == 99:
                between()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self.socks.values():
            sock.close()

    def send(self, data: Callable[[int], bytes]) -> None:
        """Every client sends its data, a piece per round, until the server takes no more."""
        left = {number: memoryview(data(number)) for number in self.socks}
        stuck = 0
        while left and stuck < _PATIENCE:
            taken = 0
            for number in list(left):
                try:
                    sent = self.socks[number].send(left[number][:_PIECE])
                except BlockingIOError:
                    continue
                except ConnectionError:
                    # It was chosen to give way.
                    del left[number]
                    continue
                taken += sent
                left[number] = left[number][sent:]
                if not left[number]:
                    del left[number]
            stuck = 0 if taken else stuck + 1
            self._between()

    def wait_for_replies(self) -> None:
        """Wait until every client has received something."""
        poll = select.poll()
        waiting = {sock.fileno() for sock in self.socks.values()}
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        while waiting:
            for fd, _events in poll.poll(50):
                waiting.discard(fd)
                poll.unregister(fd)
            self._between()


def _value(key: bytes, size: int, options: bytes = b" noreply") -> bytes:
    """A command that stores a value of that size."""
    return b"set %b 0 0 %d%b\r\n%b\r\n" % (key, size, options, bytes(size))


def _values_begun(address: Address, between: Between) -> None:
    """1000 clients send the line of a large set, one byte of the value, and nothing more."""
    with Crowd(address, 1000, between) as crowd:
        crowd.send(lambda number: b"set k%d 0 0 1000000\r\nx" % number)


def _values_nearly_sent(address: Address, between: Between) -> None:
    """300 clients send a large value but for its last bytes."""
    with Crowd(address, 300, between) as crowd:
        crowd.send(lambda number: _value(b"k%d" % number, 1_000_000)[:-100])


def _lines_unfinished(address: Address, between: Between) -> None:
    """40 clients send 4 MB of keys, and no end of the line."""
    line = b"get" + b" k" * 2_000_000
    with Crowd(address, 40, between) as crowd:
        crowd.send(lambda _number: line)


def _lines(address: Address, between: Between) -> None:
    """Two clients ask for 1.4 million keys in one line each, of which there is none."""
    line = b"get" + b" k" * 1_400_000 + b"\r\n"
    with Crowd(address, 2, between) as crowd:
        crowd.send(lambda _number: line)
        crowd.wait_for_replies()


def _large_replies_unread(address: Address, between: Between) -> None:
    """100 clients ask for values of 1 MB and read nothing, and these values are replaced."""
    with Crowd(address, 100, between) as crowd:
        crowd.send(lambda number: _value(b"k%d" % (number % 40), 1_000_000))
        crowd.send(lambda number: b"get k%d\r\n" % (number % 40) * 20)
        with Crowd(address, 1, between) as writer:
            writer.send(lambda _number: b"".join(_value(b"k%d" % i, 1_000_000) for i in range(60)))


def _small_replies_unread(address: Address, between: Between) -> None:
    """500 clients ask again and again for values of 4 kB, and for reports, and read nothing."""
    with Crowd(address, 500, between) as crowd:
        crowd.send(lambda _number: _value(b"k", 4000))
        crowd.send(lambda _number: b"get k\r\nstats\r\n" * 10_000)


def _reports_unread(address: Address, between: Between) -> None:
    """100 clients ask for lists of keys of 2.5 MB, and read nothing."""
    with Crowd(address, 1, between) as writer:
        writer.send(lambda _number: b"".join(_value(b"%0240d" % i, 1) for i in range(10_000)))
    with Crowd(address, 100, between) as crowd:
        crowd.send(lambda _number: b"stats cachedump 1 0\r\n" * 10)


def _all_sizes(address: Address, between: Between) -> None:
    """200 clients store 200 MB of values of all sizes, and delete some."""
    generator = random.Random(1)

    def values(number: int) -> bytes:
        parts = []
        for i in range(15):
            key = b"v%d-%d" % (number, i)
            parts.append(_value(key, int(10 ** generator.uniform(0, 6)) - 1))
            if generator.random() < 0.3:
                parts.append(b"delete %b noreply\r\n" % key)
        return b"".join(parts)

    with Crowd(address, 200, between) as crowd:
        for _ in range(2):
            crowd.send(values)


def _all_at_once(address: Address, between: Between) -> None:
    """1000 clients send a value of 60 kB each at the same time, three times."""
    with Crowd(address, 1000, between) as crowd:
        for _ in range(3):
            crowd.send(lambda number: _value(b"k%d" % number, 60_000))


LOADS: Final[dict[str, Callable[[Address, Between], None]]] = {
    "values-begun": _values_begun,
    "values-nearly-sent": _values_nearly_sent,
    "lines-unfinished": _lines_unfinished,
    "lines": _lines,
    "large-replies-unread": _large_replies_unread,
    "small-replies-unread": _small_replies_unread,
    "reports-unread": _reports_unread,
    "all-sizes": _all_sizes,
    "all-at-once": _all_at_once,
}


class Probe:
    """Another client, which wants the right answers all the while.

    Attributes:
        count: answers so far.
        longest: seconds that it waited at most.
    """

    def __init__(self, address: Address) -> None:
        self._sock = socket.create_connection(address, 60)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.count = 0
        self.longest = 0.0

    def __call__(self) -> None:
        """Store a value and get it.

        Raises:
            AssertionError: that was not the answer.
        """
        for command, expected in _PROBE:
            start = time.monotonic()
            self._sock.sendall(command)
            reply = b""
            while len(reply) < len(expected):
                received = self._sock.recv(4096)
                if not received:
                    raise AssertionError(f"hung up on, after {reply!r}")
                reply += received
            self.longest = max(self.longest, time.monotonic() - start)
            if reply != expected:
                raise AssertionError(f"{command!r} was answered with {reply!r}")
        self.count += 1

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def press(address: Address, load: str) -> Probe:
    """Put a server under a load; what another client had of it meanwhile.

    Raises:
        AssertionError: that client got a wrong answer.
        TimeoutError: it got none.
    """
    conversation = Conversation(address)
    conversation.ask(b"flush_all\r\n")
    conversation.close()
    probe = Probe(address)
    try:
        LOADS[load](address, probe)
    finally:
        probe.close()
    return probe


def peak(pid: int) -> int:
    """The most memory that a process has had resident, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@contextlib.contextmanager
def server(*options: str) -> Iterator[tuple[Address, int]]:
    """Run ``stackmap serve memcached`` on a free port of the loopback interface.

    Yields:
        its address and its process id.
    """
    command = [sys.executable, "-m", "stackmap_cli.main", "serve", "memcached"]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"listening on ([\d.]+):(\d+),", line)
            if found is None:
                raise RuntimeError(f"the server did not start: {line!r}")
            yield (found[1], int(found[2])), process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def allow_descriptors() -> None:
    """Let this process have the connections that the loads take."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@click.command()
@click.argument("address", required=False)
@click.option("--pid", type=int, help="The server's process, whose memory is to be shown.")
@click.option("--load", "loads", multiple=True, type=click.Choice(list(LOADS)), help="Only these.")
def main(address: str | None, pid: int | None, loads: tuple[str, ...]) -> None:
    """Put a memcached server under loads that make it hold memory."""
    allow_descriptors()
    with contextlib.ExitStack() as stack:
        if address is None:
            where, pid = stack.enter_context(
                server("--backend", "sockets", "--memory", "64", "--max-connections", "2000")
            )
        else:
            host, _colon, port = address.rpartition(":")
            where = host, int(port)
        for load in loads or LOADS:
            probe = press(where, load)
            memory = f"peak {peak(pid) / 1e6:5.0f} MB" if pid is not None else ""
            click.echo(
                f"{load:22} {memory}  another client: {probe.count} answers, "
                f"the longest after {probe.longest:.3f} s"
            )


if __name__ == "__main__":
    main()
