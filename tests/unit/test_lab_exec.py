"""``stackmap lab exec`` and ``shell``, with a guest's agent that runs here, in no guest."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.lab.agent import _set_window
from stackmap_testbed.lab.background import Background
from stackmap_testbed.lab.channel import Channel
from stackmap_testbed.lab.errors import CommandStartError
from stackmap_testbed.lab.guest import Guest
from stackmap_testbed.lab.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

AGENT = "import sys; from stackmap_testbed.lab.agent import Agent; Agent(int(sys.argv[1])).run()"
CLI = [sys.executable, "-m", "stackmap_cli.main", "lab"]
SECONDS = 60


class LocalGuest(Guest):
    """A guest without a machine: its agent is a process of this one."""

    def __init__(self) -> None:
        self.name = "server"
        self._cwd = "/"
        self._ready = threading.Event()
        self._processes = {}
        self._processes_lock = threading.Lock()
        self._numbers = itertools.count(1)
        near, far = socket.socketpair()
        with far:
            self._agent = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(far.fileno())], pass_fds=[far.fileno()]
            )
        self._channel = Channel(near, self._handle, self.status)
        self._channel.start()

    def status(self) -> str:
        return "the agent has ended"

    def open_files(self) -> int:
        """How many descriptors the agent has."""
        return len(list(Path(f"/proc/{self._agent.pid}/fd").iterdir()))

    def close(self) -> None:
        self._agent.kill()
        self._agent.wait()
        self._channel.close()


class Here:
    """A lab that is up, as far as ``exec`` can tell."""

    def __init__(self, guest: LocalGuest, environment: dict[str, str]) -> None:
        self.guest = guest
        self._environment = environment

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*CLI, *arguments], env=self._environment, **options)

    def run(self, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.start(*arguments, **pipes) as process:
            out, err = process.communicate(data, SECONDS)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def processes(self, name: str) -> list[str]:
        """Command lines of processes that have this word in them."""
        lines = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return [line for line in lines if name in line and "stackmap_cli" not in line]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    runtime = str(tmp_path_factory.mktemp("run"))
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("XDG_RUNTIME_DIR", runtime)
        # A job in the background ignores Ctrl-C, and its children inherit that.  A signal that is
        # caught here has its default in a child.
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGINT, ignored)
        guest = stack.enter_context(contextlib.closing(LocalGuest()))
        session = Session()
        stack.enter_context(session.claim())
        background = Background(session, {"wire": "direct"})
        listener = stack.enter_context(background._listen())
        lab: Any = SimpleNamespace(guests={"server": guest})
        threading.Thread(target=background._accept, args=(listener, lab), daemon=True).start()
        yield Here(guest, dict(os.environ))
        listener.shutdown(socket.SHUT_RDWR)


def test_streams_and_status(here: Here) -> None:
    script = "read line; echo got $line; cat >&2; exit 5"
    done = here.run("exec", "server", "sh", "-c", script, data=b"this\nand the rest")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"got this\n", b"and the rest")


def test_options_after_the_host_are_the_commands(here: Here) -> None:
    assert here.run("exec", "server", "echo", "-n", "--name", "x").stdout == b"--name x"
    assert here.run("exec", "server", "--", "echo", "--").stdout == b"--\n"


def test_input_of_any_length_arrives_and_comes_back_whole(here: Here) -> None:
    data = os.urandom(5_000_000)
    assert here.run("exec", "server", "cat", data=data).stdout == data


@pytest.mark.parametrize(
    ("command", "status", "sentence"),
    [
        (["no-such-command"], 127, "Error: server has no command 'no-such-command'\n"),
        (["/etc/passwd"], 126, "Error: server cannot run '/etc/passwd': Permission denied\n"),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM, ""),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL, ""),
        (["sh", "-c", "exit 255"], 255, ""),
    ],
)
def test_exit_codes_are_a_shells(
    here: Here, command: list[str], status: int, sentence: str
) -> None:
    done = here.run("exec", "server", *command)
    assert (done.returncode, done.stderr.decode()) == (status, sentence)


def test_input_that_nobody_reads_waits_outside(here: Here, tmp_path: Path) -> None:
    """It is read no further than a pipe and the lab hold, and is no obstacle to the end."""
    source = tmp_path / "input"
    with source.open("wb") as file:
        file.truncate(64 << 20)
    with source.open("rb") as file:
        pipes = {"stdin": file, "stdout": subprocess.PIPE}
        with here.start("exec", "server", "sh", "-c", "sleep 3; echo end", **pipes) as process:
            assert process.communicate(timeout=SECONDS)[0] == b"end\n"
        assert process.returncode == 0
        assert file.tell() < 8 << 20


def test_no_descriptor_is_left_whatever_became_of_a_command(here: Here) -> None:
    before = here.guest.open_files()
    here.guest.run("true")
    here.guest.run("cat", input="text")
    here.guest.run("exec <&-; sleep 0.1", input="text that nobody reads")
    for terminal in (None, (24, 80)):
        with pytest.raises(CommandStartError):
            here.guest.popen(["no-such-command"], stdin=True, terminal=terminal)
        here.guest.popen(["true"], terminal=terminal).wait(SECONDS)
    while here.guest.open_files() > before:
        pass


def test_no_standard_input_at_all(here: Here) -> None:
    script = f"{' '.join(CLI)} exec server cat <&-"
    done = subprocess.run(["sh", "-c", script], env=here._environment, check=False, timeout=SECONDS)
    assert done.returncode == 0


def test_a_command_ends_with_the_one_that_asked(here: Here) -> None:
    process = here.start(
        "exec", "server", "sh", "-c", "echo on; sleep 4321", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    assert here.processes("sleep 4321")
    process.kill()
    process.wait()
    process.stdout.close()
    while here.processes("sleep 4321"):
        pass


def test_shell_runs_commands_from_standard_input(here: Here) -> None:
    done = here.run("shell", "server", data=b"echo $BASH_VERSION | cut -c1; exit 9\n")
    assert (done.returncode, done.stdout[1:]) == (9, b"\n")


def test_a_terminal_is_refused_where_there_is_none(here: Here) -> None:
    done = here.run("exec", "-t", "server", "tty")
    assert done.returncode == 2
    assert b"standard input is not a terminal" in done.stderr


class Terminal:
    """A person at a terminal of 33 rows and 77 columns."""

    def __init__(self, here: Here, *arguments: str) -> None:
        self._master, self.slave = pty.openpty()
        _set_window(self._master, (33, 77))
        self.before = termios.tcgetattr(self.slave)
        ends = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave}
        self.process = here.start(*arguments, start_new_session=True, **ends)
        self.shown = b""

    def wait_for(self, text: bytes) -> None:
        """Read until this is shown, and forget what came before."""
        while text not in self.shown:
            self.shown += os.read(self._master, 1000)
        self.shown = self.shown.partition(text)[2]

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        _set_window(self._master, (rows, columns))
        os.kill(self.process.pid, signal.SIGWINCH)  # the terminal is not its controlling one

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self.slave)


def test_a_shell_on_a_terminal(here: Here) -> None:
    with contextlib.closing(Terminal(here, "shell", "server")) as person:
        person.type(b"PS1='ready> '; stty size; tty; echo $TERM-$-\r")
        person.wait_for(b"33 77\r\n/dev/pts/")
        person.wait_for(b"ready> ")
        # A key reaches the command under way, not this program.
        person.type(b"sleep 4322\r")
        while not here.processes("sleep 4322"):
            pass
        person.type(b"\x03")
        person.wait_for(b"^C")
        person.wait_for(b"ready> ")
        person.type(b"echo status $?\r")
        person.wait_for(b"status 130\r\n")
        person.resize(20, 50)
        person.type(b"until [ \"$(stty size)\" = '20 50' ]; do sleep 0.1; done; echo re''sized\r")
        person.wait_for(b"resized\r\n")
        person.type(b"exit 7\r")
        assert person.process.wait(SECONDS) == 7
        assert termios.tcgetattr(person.slave) == person.before


def test_a_terminal_is_put_back_when_killed(here: Here) -> None:
    with contextlib.closing(Terminal(here, "exec", "-t", "server", "sleep", "4323")) as person:
        while not here.processes("sleep 4323"):
            pass
        assert termios.tcgetattr(person.slave) != person.before
        person.process.terminate()
        assert person.process.wait(SECONDS) == 128 + signal.SIGTERM
        assert termios.tcgetattr(person.slave) == person.before
        while here.processes("sleep 4323"):  # it was hung up
            pass


def test_the_last_output_of_a_terminal_is_not_lost(here: Here) -> None:
    with contextlib.closing(Terminal(here, "exec", "-t", "server", "seq", "3000")) as person:
        person.wait_for(b"3000\r\n")
        assert person.process.wait(SECONDS) == 0
