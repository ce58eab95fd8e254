"""A broken environment is one sentence that says what to do."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from stackmap_cli.lab import lab as lab_command
from stackmap_testbed.lab.channel import Channel
from stackmap_testbed.lab.errors import GuestDiedError, LabError, MissingToolError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.lab import Lab
from stackmap_testbed.lab.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="run it as root"):
        Lab()


def test_without_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="apt-get install qemu-system-x86"):
        Lab()


def test_a_lab_that_is_down() -> None:
    runner = CliRunner()
    down = runner.invoke(lab_command, ["status"])
    assert (down.exit_code, down.output) == (3, "down\n")
    down = runner.invoke(lab_command, ["status", "--json"])
    assert (down.exit_code, down.output) == (3, '{\n  "up": false\n}\n')
    assert runner.invoke(lab_command, ["down"]).output == "The lab was not up.\n"
    for command in (["exec", "server", "true"], ["shell", "server"], ["wire", "--clear"]):
        refused = runner.invoke(lab_command, command)
        assert refused.exit_code == 1
        assert refused.output == "Error: the lab 'lab' is not up: use 'stackmap lab up'\n"
    other = runner.invoke(lab_command, ["exec", "--name", "other", "server", "true"])
    assert "use 'stackmap lab up --name other'" in other.output


def test_a_kernel_that_is_not_installed() -> None:
    refused = CliRunner().invoke(lab_command, ["up", "--kernel", "5.99"])
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: no kernel 5.99 ")
    assert refused.output.endswith(": choose 6.1 or 6.12, or a release that is installed\n")
    assert refused.output.count("\n") == 1


def test_a_direct_wire_with_loss_is_refused() -> None:
    refused = CliRunner().invoke(lab_command, ["up", "--wire", "direct", "--loss", "5"])
    assert refused.exit_code == 2
    assert "--wire relay" in refused.output


def test_a_lab_that_is_up_already() -> None:
    session = Session("mine")
    with session.claim():
        assert session.held()
        with pytest.raises(LabError, match="is up already"), Session("mine").claim():
            pass
        with pytest.raises(LabError, match="is still booting"):
            session.status()
    assert not session.held()


def test_remains_of_a_dead_lab_are_removed() -> None:
    session = Session("dead")
    session.directory.mkdir()
    (session.directory / "control.sock").touch()
    assert session.status() == {"up": False}
    with session.claim():
        assert list(session.directory.iterdir()) == []
    assert list(session.directory.parent.iterdir()) == []


def test_down_removes_what_a_lab_that_was_killed_left() -> None:
    session = Session("dead")
    session.directory.mkdir()
    lock = session.directory.with_suffix(".lock")
    lock.touch()
    assert not session.down()
    assert list(session.directory.parent.iterdir()) == []


def test_a_removed_lock_file_is_opened_again() -> None:
    """Two that wait for a lab's end get it one after the other."""
    session = Session()
    opened = []
    flock = fcntl.flock

    def removed_meanwhile(file: IO[str], operation: int) -> None:
        opened.append(file)
        if len(opened) == 1:
            session.directory.with_suffix(".lock").unlink()
        flock(file, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", removed_meanwhile)
        claim = session.claim()
        claim.__enter__()
    assert len(opened) == 2
    assert session.held()
    claim.__exit__(None, None, None)
    assert not session.held()


def test_a_process_that_ends_before_the_lab_is_up_is_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LabError, match="ended with 1 before the lab was up: it said nothing"):
        Session().up({}, lambda _text: None)
    monkeypatch.setattr(sys, "executable", "/bin/cp")
    with pytest.raises(LabError, match="before the lab was up: Try '/bin/cp --help'"):
        Session().up({}, lambda _text: None)


@contextmanager
def lab_that_ends_after(session: Session, said: bytes) -> Iterator[None]:
    """A lab that takes one command, says something, and is gone."""
    with session.claim(), socket.socket(socket.AF_UNIX) as control:
        control.bind(str(session.control))
        control.listen()

        def obey() -> None:
            connection, _address = control.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        thread = threading.Thread(target=obey)
        thread.start()
        yield
        thread.join(10)


@pytest.mark.parametrize("command", [["status"], ["exec", "server", "--", "true"]])
@pytest.mark.parametrize("said", [b"", b'{"outp'])
def test_a_lab_that_ends_while_it_is_asked(command: list[str], said: bytes) -> None:
    with lab_that_ends_after(Session(), said):
        refused = CliRunner().invoke(lab_command, command)
    assert refused.exit_code == 1
    assert refused.output == "Error: the lab 'lab' has ended\n"


def test_a_lab_that_ends_while_a_command_runs() -> None:
    with lab_that_ends_after(Session(), b'{"output": {"stdout": "aGFsZiBvZiD/"}}\n'):
        refused = CliRunner().invoke(lab_command, ["exec", "server", "--", "true"])
    assert refused.exit_code == 1
    assert refused.stdout_bytes == b"half of \xff"
    assert refused.stderr == "Error: the lab 'lab' has ended\n"


@pytest.mark.parametrize("name", ["", "../x", "Capital", "a" * 33])
def test_a_name_that_cannot_be_a_directory(name: str) -> None:
    with pytest.raises(LabError, match="cannot be named"):
        Session(name)


def test_replies_of_a_cancelled_command_are_ignored() -> None:
    """The guest started the command after its caller had given up."""
    guest: Any = Guest.__new__(Guest)
    guest._processes, guest._processes_lock = {}, threading.Lock()
    for event in ("output", "exit", "closed"):
        guest._handle({"event": event, "process": 7})
    assert guest._processes == {}


def test_every_waiting_request_fails_at_once_when_the_guest_dies() -> None:
    near, far = socket.socketpair()
    channel = Channel(near, lambda _message: None, lambda: "the guest has ended")
    channel.start()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            channel.request("get", timeout=60)
        except GuestDiedError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    far.close()
    for thread in threads:
        thread.join(10)
    assert [str(failure) for failure in failures] == ["the guest has ended"] * 3
    with pytest.raises(GuestDiedError):
        channel.request("get")
    channel.close()
