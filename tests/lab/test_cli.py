"""``stackmap lab`` from outside, as a person uses it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.first_kernel

Output = subprocess.CompletedProcess[str]


class Cli:
    """Runs ``stackmap lab`` with a run-time directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
        self._command = [sys.executable, "-m", "stackmap_cli.main", "lab"]
        self.runtime = directory / "stackmap"

    def __call__(self, *arguments: str, input: str = "") -> Output:
        return subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def on_a_terminal(self, *arguments: str, keys: bytes) -> tuple[int, bytes]:
        """Run it on a terminal of 33 rows and 77 columns; return its status and what it showed."""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
        with os.fdopen(master, "r+b", buffering=0) as person:
            process = subprocess.Popen(
                [*self._command, *arguments],
                env=self._environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
            os.close(slave)
            person.write(keys)
            shown = b""
            with contextlib.suppress(OSError):  # EIO: it has ended
                while data := person.read(1000):
                    shown += data
            return process.wait(100), shown


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    command = Cli(tmp_path)
    yield command
    command("down")


def left(runtime: Path) -> list[Path]:
    """Files that a lab has left.  Whether KVM works is kept for all labs until the next boot."""
    return [path for path in runtime.iterdir() if not path.name.startswith("accel-")]


def test_up_use_and_down(cli: Cli, kernel: str) -> None:
    up = cli("up", "--kernel", kernel, "--delay", "100")
    assert up.returncode == 0, up.stderr
    assert "booting server and client" in up.stderr
    state = json.loads(cli("status", "--json").stdout)
    assert state["release"].startswith(kernel)
    assert state["guests"]["client"]["alive"]

    again = cli("up")
    assert again.returncode == 1
    assert "is up already" in again.stderr
    assert again.stderr.count("\n") == 1

    done = cli("exec", "server", "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    text = "from here to there\n" * 20_000
    assert cli("exec", "client", "cat", input=text).stdout == text
    missing = cli("exec", "server", "no-such-command")
    assert (missing.returncode, missing.stdout) == (127, "")
    assert missing.stderr == "Error: server has no command 'no-such-command'\n"
    assert cli("exec", "server", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    status, shown = cli.on_a_terminal("shell", "server", keys=b"tty; stty size; exit 7\r")
    assert status == 7
    assert b"/dev/pts/" in shown
    assert b"33 77\r\n" in shown
    ping = cli("exec", "client", "--", "busybox", "ping", "-c", "2", "server")
    assert float(ping.stdout.rsplit("/", 1)[1].split()[0]) > 200  # ms, there and back
    changed = json.loads(cli("wire", "--clear", "--loss", "2", "--drop-acks", "to-server").stdout)
    assert changed["to-client"]["conditions"]["delay_ms"] == 0
    assert changed["to-client"]["conditions"]["loss"] == 0.02
    assert changed["to-server"]["conditions"]["drop_acks"]

    assert cli("down").returncode == 0
    assert left(cli.runtime) == []
    down = cli("status")
    assert (down.returncode, down.stdout) == (3, "down\n")
    assert not any(Path(f"/proc/{guest['pid']}").exists() for guest in state["guests"].values())


def test_a_lab_killed_outright_leaves_nothing_behind(cli: Cli, kernel: str) -> None:
    assert cli("up", "--kernel", kernel).returncode == 0
    state = json.loads(cli("status", "--json").stdout)
    wire = cli("wire", "--clear")
    assert (wire.returncode, wire.stderr.count("\n")) == (1, 1)
    assert "has a direct wire, which cannot be impaired" in wire.stderr
    os.kill(state["pid"], 9)
    machines = [Path(f"/proc/{guest['pid']}") for guest in state["guests"].values()]
    eventually(
        lambda: not any(machine.exists() for machine in machines), lambda: machines, patience=60
    )
    assert cli("status").stdout == "down\n"
    assert cli("exec", "server", "true").returncode == 1
    assert cli("down").stdout == "The lab was not up.\n"
    assert left(cli.runtime) == []
