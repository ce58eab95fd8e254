"""``stackmap lab`` from outside, as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel_independent

Output = subprocess.CompletedProcess[str]


class Cli:
    """Runs ``stackmap lab`` with a run-time directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}

    def __call__(self, *arguments: str) -> Output:
        return subprocess.run(
            [sys.executable, "-m", "stackmap_cli.main", "lab", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    command = Cli(tmp_path)
    yield command
    command("down")


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
    ping = cli("exec", "client", "--", "busybox", "ping", "-c", "2", "server")
    assert float(ping.stdout.rsplit("/", 1)[1].split()[0]) > 200  # ms, there and back
    changed = json.loads(cli("wire", "--clear", "--loss", "2", "--drop-acks", "to-server").stdout)
    assert changed["to-client"]["conditions"]["delay_ms"] == 0
    assert changed["to-client"]["conditions"]["loss"] == 0.02
    assert changed["to-server"]["conditions"]["drop_acks"]

    assert cli("down").returncode == 0
    assert cli("status").stdout == "down\n"
    assert not any(Path(f"/proc/{guest['pid']}").exists() for guest in state["guests"].values())


def test_a_lab_killed_outright_leaves_nothing_behind(cli: Cli, kernel: str) -> None:
    assert cli("up", "--kernel", kernel).returncode == 0
    state = json.loads(cli("status", "--json").stdout)
    os.kill(state["pid"], 9)
    machines = [Path(f"/proc/{guest['pid']}") for guest in state["guests"].values()]
    deadline = time.monotonic() + 60
    while any(machine.exists() for machine in machines):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert cli("status").stdout == "down\n"
    assert cli("exec", "server", "true").returncode == 1
