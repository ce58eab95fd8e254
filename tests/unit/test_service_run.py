"""A server as a program: signals, exit codes, and what the service manager is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import uvloop

from stackmap.aio import EventLoop
from stackmap.codec import Lines
from stackmap.service import drain_on_signals, notify, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(__file__).with_name("service_program.py")
#: Seconds, more than anything here takes.
PATIENCE = 60


class Program:
    """The program, its service manager, and a client of it."""

    def __init__(self, folder: Path, what: str, grace: float) -> None:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(str(folder / "notify"))
        manager.settimeout(PATIENCE)
        self.manager = manager
        self.address = str(folder / "socket")
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), what, self.address, str(grace)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.said() == "READY=1"
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(PATIENCE)
        self.client.connect(self.address)

    def said(self) -> str:
        """The next notification to the service manager."""
        return self.manager.recv(100).decode()

    def begin(self) -> None:
        """Send a request, and wait until it is in progress."""
        self.client.sendall(b"request\n")
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.client.close()
        self.manager.close()
        self.process.kill()
        self.process.communicate()


class Start(Protocol):
    def __call__(self, what: str, grace: float = PATIENCE) -> Program: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(what: str, grace: float = PATIENCE) -> Program:
            return stack.enter_context(contextlib.closing(Program(tmp_path, what, grace)))

        yield begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains(start: Start, number: signal.Signals) -> None:
    program = start("slow")
    program.begin()
    program.signal(number)
    assert program.said() == "STOPPING=1"
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(OSError):
        late.connect(program.address)
    assert program.process.stdin is not None
    program.process.stdin.write("go on\n")
    program.process.stdin.flush()
    assert program.client.recv(100) == b"request\n"
    assert program.client.recv(100) == b""
    program.client.close()
    assert program.exit_code() == 0


def test_the_exit_code_says_that_connections_were_cut_off(start: Start) -> None:
    program = start("stuck", 0.01)
    program.begin()
    program.signal(signal.SIGTERM)
    assert program.exit_code() == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_program_at_once(start: Start, number: signal.Signals) -> None:
    program = start("stuck")
    program.begin()
    program.signal(number)
    assert program.said() == "STOPPING=1"
    program.signal(number)
    assert program.exit_code() == -number


def test_an_idle_program_ends_with_the_first_signal(start: Start) -> None:
    program = start("echo")
    program.client.sendall(b"a\n")
    assert program.client.recv(100) == b"a\n"
    program.signal(signal.SIGTERM)
    assert program.client.recv(100) == b""
    assert program.exit_code() == 0


def test_a_service_that_never_returns_is_ended_by_the_second_signal(start: Start) -> None:
    program = start("spin")
    program.begin()
    # It cannot drain, because the event loop does not turn; signals may merge until it was seen.
    while program.process.poll() is None:
        program.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.process.wait(0.01)
    assert program.exit_code() == -signal.SIGTERM


@pytest.mark.parametrize(
    "loop",
    [asyncio.new_event_loop, uvloop.new_event_loop, EventLoop],
    ids=["own", "uvloop", "port"],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_program_keeps_its_handlers_of_other_signals(
    loop: Callable[[], asyncio.AbstractEventLoop], before: bool
) -> None:
    """Those of before, and those that are added while a signal would drain the server."""

    async def main() -> None:
        this = asyncio.get_running_loop()
        called = asyncio.Event()

        async def arrives() -> None:
            called.clear()
            signal.raise_signal(signal.SIGUSR1)
            await asyncio.wait_for(called.wait(), PATIENCE)

        if before:
            this.add_signal_handler(signal.SIGUSR1, called.set)
        with drain_on_signals(serve([], echo, Lines)):
            if not before:
                this.add_signal_handler(signal.SIGUSR1, called.set)
            await arrives()
        await arrives()
        this.remove_signal_handler(signal.SIGUSR1)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def echo(req: bytes) -> bytes:
    return req


def test_without_notify_socket_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


def test_an_abstract_socket_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"stackmap-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_a_service_manager_that_is_gone_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    assert not notify("READY=1")
    assert "cannot tell the service manager READY=1" in caplog.text
