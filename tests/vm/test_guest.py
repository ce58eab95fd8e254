"""A guest runs commands, and says what went wrong."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stackmap_testbed.lab.errors import (
    GuestCommandError,
    GuestDiedError,
    GuestTimeoutError,
    KernelLogError,
    LabError,
)
from stackmap_testbed.lab.lab import Lab
from tests.vm.conftest import BOOT_SECONDS

if TYPE_CHECKING:
    from stackmap_testbed.lab.guest import Guest

pytestmark = pytest.mark.first_kernel


def test_status_and_both_streams_come_back(server: Guest) -> None:
    result = server.run("echo out; echo err >&2; exit 7", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (7, "out\n", "err\n")
    with pytest.raises(GuestCommandError, match="ended with 7: err"):
        server.run("echo err >&2; exit 7")
    with pytest.raises(LabError, match="no-such-program"):
        server.run(["no-such-program"])


def test_input_reaches_the_command(server: Guest) -> None:
    text = "line\n" * 100_000
    assert server.run(["wc", "-c"], input=text).stdout.strip() == str(len(text))


def test_standard_streams_have_names(server: Guest) -> None:
    command = "cat /dev/stdin >/dev/stdout; cat /dev/fd/3 >/dev/stderr 3</etc/hostname"
    result = server.run(command, input="in\n")
    assert (result.stdout, result.stderr) == ("in\n", Path("/etc/hostname").read_text())


def test_large_output_arrives_whole(server: Guest) -> None:
    assert len(server.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3_000_000


def test_this_python_and_this_project_are_inside(server: Guest) -> None:
    program = "import sys, stackmap_testbed.lab.agent as a; print(sys.prefix, a.__file__)"
    prefix, path = server.run([sys.executable, "-c", program]).stdout.split()
    assert prefix == sys.prefix
    assert Path(path).exists()


def test_the_root_is_read_only_and_tmp_is_not(server: Guest, tmp_path: Path) -> None:
    refused = server.run("touch /etc/written", check=False)
    assert "Read-only file system" in refused.stderr
    server.run("touch /tmp/written /run/written /dev/shm/written")
    assert not Path("/tmp/written").exists()


def test_a_file_changed_here_is_new_in_there(server: Guest) -> None:
    # Not below /tmp, which a guest has for itself.
    with tempfile.NamedTemporaryFile(dir=Path(__file__).parent, suffix=".txt") as file:
        for text in ("first", "later"):
            Path(file.name).write_text(text)
            time.sleep(1.2)
            assert server.run(["cat", file.name]).stdout == text


def test_commands_run_side_by_side(server: Guest) -> None:
    first = server.popen("read line; echo got $line", stdin=True)
    second = server.popen("echo started; exec sleep 100")
    second.wait_for_output("started")
    first.send(b"this\n")
    assert first.wait(120) == 0
    assert first.stdout == "got this\n"
    assert second.poll() is None
    second.kill(signal.SIGTERM)
    assert second.wait(120) == -signal.SIGTERM


def test_a_hang_is_cut_off_and_says_what_was_printed(server: Guest) -> None:
    for timeout in (1, 5, 60):  # a slow guest may not have come to print anything in the first
        with pytest.raises(GuestTimeoutError) as caught:
            server.run("echo so far; sleep 999; true", timeout=timeout)
        if "it had printed 'so far" in str(caught.value):  # its command is in there as well
            break
    else:
        pytest.fail("what was printed is not said")
    time.sleep(0.5)
    assert "sleep 999" not in server.run("ps axww").stdout


def test_waiting_for_what_is_never_printed_ends_with_the_command(server: Guest) -> None:
    process = server.popen("echo something; exit 3")
    with pytest.raises(GuestTimeoutError, match="ended with 3"):
        process.wait_for_output("something else", timeout=120)


def test_orphans_are_reaped(server: Guest) -> None:
    server.run("(sleep 0.2 &) ; (sleep 0.2 &)")
    time.sleep(1)
    assert "defunct" not in server.run("ps ax").stdout


def test_files_go_in_and_come_out(server: Guest) -> None:
    data = os.urandom(1_500_000)
    server.put("/tmp/data", data)
    assert server.get("/tmp/data") == data
    server.put("/tmp/empty", b"")
    assert server.get("/tmp/empty") == b""
    with pytest.raises(LabError, match="No such file"):
        server.get("/tmp/missing")


def test_processor_time_counts_the_work_done(server: Guest) -> None:
    before = server.vcpu_cpu_seconds()
    time.sleep(1)
    idle = server.vcpu_cpu_seconds() - before
    server.run([sys.executable, "-c", "for i in range(2000000): pass"])
    busy = server.vcpu_cpu_seconds() - before - idle
    assert 0 < idle < busy


def test_a_complaint_of_the_kernel_is_found_once(server: Guest) -> None:
    server.check_kernel_log()
    server.put("/dev/kmsg", b"WARNING: possible circular locking dependency detected\n")
    with pytest.raises(KernelLogError, match="circular locking") as raised:
        server.check_kernel_log()
    assert len(raised.value.lines) == 1
    server.check_kernel_log()
    assert "circular locking" in server.kernel_log()


def test_a_panic_fails_what_was_waiting_at_once(kernel: str, tmp_path: Path) -> None:
    with Lab(kernel=kernel, guests=("server",), boot_seconds=BOOT_SECONDS) as lab:
        waiting = lab.server.popen("sleep 1000")
        with pytest.raises(GuestDiedError, match="sysrq triggered crash"):
            lab.server.run("echo c >/proc/sysrq-trigger; sleep 1000", timeout=100)
        with pytest.raises(GuestDiedError):
            waiting.wait(100)
        assert not lab.server.alive
