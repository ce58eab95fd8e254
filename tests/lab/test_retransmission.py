"""TCP retransmits from the application's own buffers, which it cannot have changed meanwhile.

On a bad wire, 32 connections carry random data in both directions.  The server application
scribbles over every transmit buffer the moment it gets it back, so a buffer that came back before
its last byte was acknowledged shows twice: the client finds wrong bytes, and the capture has a
retransmission that differs from the first transmission.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.lab.addresses import SERVER_ADDRESS
from tests.lab.captures import transmissions
from tests.lab.hosts import base_ports, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stackmap_testbed.lab.lab import Lab
    from stackmap_testbed.lab.process import GuestProcess

CONNECTIONS = 32
#: In each direction, over all connections.
BYTES = 50_000_000
SIZE = BYTES // CONNECTIONS
PORT = 7100
#: For one transfer; on two emulated processors it takes half a minute.
PATIENCE = 300

pytestmark = [pytest.mark.usefixtures("rings"), pytest.mark.timeout(4 * PATIENCE)]


@dataclass
class Run:
    """One transfer between two programs in the guests."""

    server: GuestProcess
    client: GuestProcess

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both ends' results; the bytes are compared there."""
        for process in (self.client, self.server):
            assert process.wait(PATIENCE) == 0, process.output()
        server, client = (
            json.loads(process.stdout.splitlines()[-1]) for process in (self.server, self.client)
        )
        assert server["problems"] == []
        assert client["problems"] == []
        assert (server["sent"], server["received"]) == (BYTES, BYTES)
        assert (client["sent"], client["received"]) == (BYTES, BYTES)
        return server, client


@contextlib.contextmanager
def transfer(lab: Lab, *client_options: str) -> Iterator[Run]:
    """Start one."""
    common: list[str | int] = ["--base-port", next(base_ports), "--connections", CONNECTIONS]
    common += ["--send", SIZE, "--receive", SIZE]
    with running(lab.server, "stream_rings", "--listen", PORT, *common) as server:
        server.wait_for_output("listening", PATIENCE)
        common += client_options
        with running(lab.client, "stream_sockets", "--connect", PORT, *common) as client:
            yield Run(server, client)


@pytest.fixture
def capture(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """The file with everything that is put on the wire; deleted at the end, as it is large."""
    sent, delivered = lab.wire.capture(tmp_path / "run")
    yield sent
    lab.wire.stop_capture()
    sent.unlink()
    delivered.unlink()


def check(lab: Lab, run: Run, capture: Path) -> None:
    server, client = run.finish()
    lab.wire.stop_capture()
    stats = server["stats"]
    assert stats["tx_bytes"] == stats["rx_bytes"] == BYTES
    assert stats["slots_sent"] == stats["slots_released_ack"] == server["overwritten"] > 0
    assert stats["slots_released_reset"] == stats["bufs_pinned"] == 0
    wire = lab.wire.stats()["to-client"]
    assert all(wire[what] > 0 for what in ("dropped", "reordered", "duplicated"))

    found = transmissions(capture, SERVER_ADDRESS, PORT)
    print(  # for pytest -rP
        f"{BYTES / 1e6:.0f} MB each way in {client['seconds']:.0f} s, "
        f"{found.retransmitted_segments} of {found.data_segments} data segments retransmitted, "
        f"{server['overwritten']} buffers overwritten, "
        f"{stats['slots_again']} slots put off"
    )
    assert found.changed == []
    assert found.retransmitted_segments > 0


def test_on_a_bad_wire(lab: Lab, capture: Path) -> None:
    lab.wire.configure(loss=0.05, reorder=0.25, duplicate=0.02, seed=5)
    with transfer(lab) as run:
        check(lab, run, capture)


@pytest.mark.first_kernel
def test_after_stalls(lab: Lab, capture: Path) -> None:
    lab.wire.configure(loss=0.05, reorder=0.25, duplicate=0.02, seed=6)
    with transfer(lab, "--wait") as run:
        # The clients do not read: their windows close.
        run.server.wait_for_output("connected", PATIENCE)
        run.server.wait_for_output("stalled", PATIENCE)
        assert run.client.poll() is None
        run.client.send(b"read\n")
        # Nothing is acknowledged: congestion windows fill.
        run.server.wait_for_output("progress 3", PATIENCE)
        stalls = run.server.stdout.count("stalled")
        lab.wire.configure(drop_acks="to-server", drop="to-server")
        run.server.wait_for_output("(?s)" + "stalled.*" * (stalls + 1), PATIENCE)
        lab.wire.configure(drop_acks="off", drop="off")
        check(lab, run, capture)
