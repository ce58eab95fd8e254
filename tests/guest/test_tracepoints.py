"""Each tracepoint fires, once, with the right fields."""

from __future__ import annotations

import errno
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest.commands import sh
from tests.guest.partial_slot import peer_is_full
from tests.guest.wire import connect_pair
from tests.receiving import receive_exactly
from tests.reset import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guest.attached import Attached
    from tests.guest.raw import RawPort

TRACEFS = Path("/sys/kernel/tracing")
LINE = re.compile(r" sm_(\w+): (.*)$", re.MULTILINE)


class Trace:
    """An instance of the kernel's trace buffer, with this module's tracepoints on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, name: str) -> list[dict[str, str]]:
        """The fields of what fired under this name since the last look."""
        text = (self._folder / "trace").read_text()
        return [
            dict(field.split("=") for field in fields.split())
            for found, fields in LINE.findall(text)
            if found == name
        ]

    def clear(self) -> None:
        (self._folder / "trace").write_text("")


@pytest.fixture
def trace() -> Iterator[Trace]:
    if not (TRACEFS / "events").exists():
        sh(f"mount -t tracefs tracefs {TRACEFS}")
    folder = TRACEFS / "instances" / "stackmap"
    folder.mkdir()
    (folder / "events" / "stackmap" / "enable").write_text("1")
    yield Trace(folder)
    (folder / "events" / "stackmap" / "enable").write_text("0")
    folder.rmdir()


def fields(port: RawPort, id: int, **more: object) -> dict[str, str]:
    values = {"port": port.mem_id, "ring": 0, "conn": id} | more
    return {name: str(value) for name, value in values.items()}


def test_sending(two: Attached, trace: Trace) -> None:
    port = two.port
    first = port.tx.head
    for i, size in enumerate((100, 200, 300)):
        port.put(first + i, two.id, b"x" * size)
    port.tx.set_head((first + 3) % port.tx.n)
    port.sync()
    assert receive_exactly(two.peer, 600) == b"x" * 600
    while port.stats()["pinned"]:
        port.sync()
    assert trace.take("send") == [fields(port, two.id, slots=3, bytes=600, result=600)]
    assert trace.take("pin") == [fields(port, two.id, bufs=3)]
    assert trace.take("release") == [fields(port, two.id, bufs=3, by="ack")]
    assert trace.take("refuse") == []


def test_receiving(two: Attached, trace: Trace) -> None:
    two.peer.sendall(b"y" * 500)
    got = 0
    while got < 500:
        got += sum(len(payload) for _id, payload, _events, _err in two.port.receive())
    received = trace.take("receive")
    assert sum(int(line.pop("bytes")) for line in received) == 500
    assert all(line == fields(two.port, two.id) for line in received)
    assert trace.take("event") == []


def test_refusing(two: Attached, trace: Trace) -> None:
    port = two.port
    first = port.tx.head
    port.put(first, two.id, b"x", len=0)
    port.put(first + 1, 77_777, b"to nobody")
    port.tx.set_head((first + 2) % port.tx.n)
    port.sync()
    assert trace.take("refuse") == [
        fields(port, two.id, slot=first, errno=errno.EINVAL),
        fields(port, 77_777, slot=first + 1, errno=errno.ENOENT),
    ]
    assert trace.take("send") == []


def test_events_and_a_reset(two: Attached, trace: Trace) -> None:
    port = two.port
    peer, sock = connect_pair()
    with closing(sock):
        id = port.attach(sock)
        # no ACK may come later and release what the reset should
        while not (trace.take("refuse") and peer_is_full(sock)):
            port.put(port.tx.head, id, b"z" * 4096)
            port.tx.set_head((port.tx.head + 1) % port.tx.n)
            port.sync()
        assert trace.take("refuse")[0]["errno"] == str(errno.EAGAIN)
        trace.clear()
        reset_on_close(peer)
        peer.close()
        while len(trace.take("event")) < 2:
            port.receive()
        events = trace.take("event")
        assert events[-2:] == [
            fields(port, id, flags="ERROR", errno=errno.ECONNRESET),
            fields(port, id, flags="CLOSED", errno=0),
        ]
        while port.stats()["pinned"]:
            port.sync()
        assert "reset" in {line["by"] for line in trace.take("release")}


def test_disabled_tracepoints_print_nothing(two: Attached, trace: Trace) -> None:
    (TRACEFS / "instances" / "stackmap" / "events" / "stackmap" / "enable").write_text("0")
    two.check_honest()
    for name in ("send", "pin", "release", "receive", "event", "refuse"):
        assert trace.take(name) == []
