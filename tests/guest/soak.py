"""Millions of messages over a lossy wire: ``python -m tests.guest.soak MESSAGES``.

An application echoes on rings; streams of messages come and go, each with bytes that say where
they belong, and what comes back is compared byte by byte.  Some streams are reset in the middle,
and every minute the application is killed and another takes its place: nothing of the old one may
be left.  Prints a line of JSON after each application, and one at the end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import resource
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guest.app import App, Nursery
from tests.guest.commands import sh
from tests.guest.memory import in_use, settle
from tests.guest.pattern import pattern
from tests.guest.peer import inside
from tests.guest.site import KernelLog, Site, references
from tests.guest.victim import MAX_FILES
from tests.reset import reset_on_close
from tests.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE = 64
STREAMS = 48
#: Bytes of a stream that are on their way, there or back.
WINDOW = 1 << 16
CHUNK = 1 << 15
LONGEST = 20_000
RESET_SHARE = 0.05
LOSS = "1%"
LIFE_SECONDS = 60.0


class LossySite(Site):
    """The namespaces are joined by a third one, whose NICs lose packets in both directions."""

    wire = "lifetimes-wire"
    peer_address = "10.80.0.2"

    def plug(self) -> None:
        """Connect the namespaces through the third; a packet is a segment, as on a real wire."""
        sh(f"""
            ip netns add {self.wire}
            ip link add {self.nic} netns {self.app} type veth peer name near netns {self.wire}
            ip link add {self.nic} netns {self.peer} type veth peer name far netns {self.wire}
            ip -n {self.wire} addr add 10.79.0.254/24 dev near
            ip -n {self.wire} addr add 10.80.0.254/24 dev far
            ip -n {self.wire} link set near up
            ip -n {self.wire} link set far up
            ip netns exec {self.wire} sh -c "echo 1 >/proc/sys/net/ipv4/ip_forward"
            tc -n {self.wire} qdisc add dev near root netem loss {LOSS} limit 10000
            tc -n {self.wire} qdisc add dev far root netem loss {LOSS} limit 10000
            ip -n {self.app} link set {self.nic} gso_max_segs 1
            ip -n {self.peer} link set {self.nic} gso_max_segs 1
            ip -n {self.peer} addr add {self.peer_address}/24 dev {self.nic}
            ip -n {self.peer} link set {self.nic} up
            ip -n {self.peer} route add default via 10.80.0.254
        """)

    def build(self) -> None:
        super().build()
        sh(f"ip -n {self.app} route add default via 10.79.0.254")

    def remove(self) -> None:
        super().remove()
        sh(f"ip netns del {self.wire}")


@dataclass
class Tally:
    """Counters of the run."""

    messages: int = 0
    wrong_bytes: int = 0
    finished: int = 0
    reset: int = 0
    cut_off: int = 0
    killed: int = 0


class Stream:
    """One connection, and how far it is."""

    def __init__(self, number: int, sock: socket.socket, chance: random.Random) -> None:
        self.number = number
        self.sock = sock
        self.size = MESSAGE * chance.randint(1, LONGEST)
        resets = chance.random() < RESET_SHARE
        #: How much is to come back before it is reset.
        self.reset_at = chance.randrange(self.size) if resets else None
        self.sent = 0
        self.received = 0


class Soak:
    """The streams' end of it."""

    def __init__(self, site: LossySite, wanted: int) -> None:
        self.site = site
        self.references = references()
        self.wanted = wanted
        self.tally = Tally()
        self.chance = random.Random(wanted)
        self.epoll = select.epoll()
        self.streams: dict[int, Stream] = {}
        self.number = 0
        self.address: tuple[str, int] | None = None
        self.alive = False

    @property
    def done(self) -> bool:
        return self.tally.messages >= self.wanted

    # -- streams --

    def begin(self) -> None:
        """Have as many streams as there should be."""
        missing = STREAMS - len(self.streams)
        if not missing:
            return
        assert self.address is not None
        with inside(self.site.peer):
            socks = [socket.socket() for _ in range(missing)]
        for sock in socks:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            status = sock.connect_ex(self.address)
            assert status == errno.EINPROGRESS, errno.errorcode[status]
            self.number += 1
            self.streams[sock.fileno()] = Stream(self.number, sock, self.chance)
            self.epoll.register(sock, select.EPOLLIN | select.EPOLLOUT)

    def end(self, stream: Stream) -> None:
        """Forget a stream."""
        del self.streams[stream.sock.fileno()]
        stream.sock.close()

    def serve(self, timeout: float) -> None:
        """Send and receive what can be."""
        for fd, events in self.epoll.poll(timeout):
            stream = self.streams[fd]
            try:
                if events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                    self._receive(stream)
                elif events & select.EPOLLOUT:
                    self._send(stream)
            except BlockingIOError:
                pass
            except OSError as error:
                self._broken(stream, errno.errorcode[error.errno or 0])

    def _receive(self, stream: Stream) -> None:
        data = stream.sock.recv(CHUNK)
        if not data:
            if stream.received < stream.size:
                self._broken(stream, "EOF")
                return
            self.tally.finished += 1
            self.end(stream)
            return
        expected = pattern(stream.number, stream.received, len(data))
        if data != expected or stream.received + len(data) > stream.sent:
            wrong = sum(a != b for a, b in zip(data, expected, strict=True))
            self.tally.wrong_bytes += max(wrong, 1)
        before = stream.received // MESSAGE
        stream.received += len(data)
        self.tally.messages += stream.received // MESSAGE - before
        if stream.reset_at is not None and stream.received >= stream.reset_at:
            reset_on_close(stream.sock)
            self.tally.reset += 1
            self.end(stream)
        elif stream.sent < stream.size:
            self._send(stream)

    def _send(self, stream: Stream) -> None:
        """Send up to the window; then wait for what comes back, not for room."""
        room = min(WINDOW - (stream.sent - stream.received), stream.size - stream.sent)
        while room > 0:
            size = min(room, CHUNK)
            try:
                taken = stream.sock.send(pattern(stream.number, stream.sent, size))
            except BlockingIOError:
                break
            stream.sent += taken
            room -= taken
        if stream.sent == stream.size:
            stream.sock.shutdown(socket.SHUT_WR)
        wanted = select.EPOLLOUT if room > 0 else 0
        self.epoll.modify(stream.sock, select.EPOLLIN | wanted)

    def _broken(self, stream: Stream, how: str) -> None:
        """Only a kill explains a connection that ends before its stream does."""
        assert not self.alive, f"stream {stream.number} ended with {how}: {vars(stream)}"
        self.tally.cut_off += 1
        self.end(stream)

    # -- applications --

    def live(self, app: App, begin: float) -> None:
        """Have streams with an application, until it is time to kill it or all is done."""
        while time.monotonic() < begin + LIFE_SECONDS and not self.done:
            self.begin()
            self.serve(1.0)
        self.address = None
        if self.done:
            self._until(lambda: not self.streams)
            self.alive = False
            eventually(lambda: app.status().pinned == 0, app.status)
            status = app.status()
            assert status.bad == 0, status
            assert status.sent == status.released_by_ack + status.released_by_reset, status
            app.exit()
        else:
            self.alive = False
            app.kill()
            self.tally.killed += 1
            self._until(lambda: not self.streams)
        self._until(lambda: references() == self.references)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (len(self.streams), in_use())
            self.serve(0.05)

    def run(self, nursery: Nursery) -> None:
        """One application after the other."""
        number = 0
        while not self.done:
            begin = time.monotonic()
            with nursery.bear() as app:
                number = app.order(
                    "open", namespace=self.site.app, nic=self.site.nic,
                    address=self.site.address, number=number,
                )  # fmt: skip
                app.order("echo")
                self.address = (self.site.address, number)
                self.alive = True
                self.live(app, begin)
            settle()
            print(json.dumps({**asdict(self.tally), **in_use()}), flush=True)


def retransmitted(namespace: str) -> int:
    """Segments that TCP has sent again in a namespace."""
    with inside(namespace):
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("RetransSegs")])


def main() -> None:
    """Soak, and say what came of it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    sh("modprobe veth; modprobe sch_netem")
    log = KernelLog()
    site = LossySite()
    site.build()
    soak = Soak(site, int(sys.argv[1]))
    begin = time.monotonic()
    with Nursery() as nursery, contextlib.closing(soak.epoll):
        soak.run(nursery)
    report = {
        **asdict(soak.tally),
        "seconds": round(time.monotonic() - begin, 1),
        "retransmitted": {name: retransmitted(name) for name in (site.app, site.peer)},
        "kernel": Path("/proc/sys/kernel/osrelease").read_text().strip(),
        "complaints": log.complaints(),
    }
    site.remove()
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
