"""Programs in the guests: how to start them, and how to drive those that take commands."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.lab import Lab
    from stackmap_testbed.lab.process import GuestProcess

ROOT = Path(__file__).parent.parent.parent
#: For one step of a program, where more guests than processors are emulated.
PATIENCE = 180.0


#: First ports of transfers: none twice, as a client's port is taken for a while after its end.
base_ports = itertools.count(10_000, 64)


def start(guest: Guest, name: str, *arguments: str | int) -> GuestProcess:
    """Start one of ``tests/lab/programs`` in a guest, with its standard input open."""
    module = f"tests.lab.programs.{name}"
    command = [sys.executable, "-B", "-m", module, *map(str, arguments)]
    return guest.popen(command, stdin=True, cwd=str(ROOT))


@contextlib.contextmanager
def running(guest: Guest, name: str, *arguments: str | int) -> Iterator[GuestProcess]:
    """The same, for as long as the context lasts."""
    process = start(guest, name, *arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)


class Remote:
    """A program in a guest that takes commands; calling a method sends one, and returns its answer.

    See ``programs/controlled_rings.py`` and ``programs/controlled_sockets.py`` for what there is.
    """

    def __init__(self, guest: Guest, name: str, *arguments: str | int) -> None:
        self.process = start(guest, name, *arguments)
        self._answers = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self._answers += 1
            self.process.send(json.dumps({"do": name, **arguments}).encode() + b"\n")
            answer = self.process.wait_for_output(rf"^={self._answers} (.*)\n", PATIENCE)
            return json.loads(answer[1])

        return call

    def wait_for(
        self, what: str, satisfied: Callable[[Any], bool], patience: float = PATIENCE, **of: Any
    ) -> Any:
        """Ask again and again until the answer satisfies; returns it."""
        answer = None

        def asked() -> bool:
            nonlocal answer
            answer = getattr(self, what)(**of)
            return satisfied(answer)

        eventually(asked, lambda: answer, patience=patience)
        return answer


class Pair:
    """A server on rings and a client on plain sockets, both under a test's control."""

    def __init__(self, server: Remote, client: Remote, port: int) -> None:
        self.server = server
        self.client = client
        self._port = port

    def connect(self) -> int:
        """One more connection; returns the number by which both sides know it."""
        number: int = self.client.connect(port=self._port)
        assert self.server.accept() == number
        return number

    def sent_to_server(self, peer: int, size: int) -> None:
        """Have the client send, and wait until the server's application has everything."""
        before = self.server.state(peer=peer)["received"]
        self.client.send(peer=peer, size=size)
        self.server.wait_for("state", lambda s: s["received"] == before + size, peer=peer)

    def check(self, *peers: int) -> None:
        """No end of these connections has seen a wrong byte."""
        for peer in peers:
            for remote in (self.server, self.client):
                assert remote.state(peer=peer)["problem"] == ""


@contextlib.contextmanager
def pair(lab: Lab, port: int, slots: int = 256) -> Iterator[Pair]:
    """Start both programs; the server's ring sizes may be chosen."""
    server = Remote(lab.server, "controlled_rings", port, slots)
    client = Remote(lab.client, "controlled_sockets")
    try:
        server.process.wait_for_output("listening", PATIENCE)
        yield Pair(server, client, port)
        for remote in (client, server):
            remote.quit()
            assert remote.process.wait(PATIENCE) == 0, remote.process.output()
            assert not remote.process.stderr, remote.process.stderr
    finally:
        for remote in (client, server):
            if remote.process.poll() is None:
                remote.process.kill()
                remote.process.wait(PATIENCE)
