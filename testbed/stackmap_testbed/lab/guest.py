"""One guest of the lab: a machine that runs commands for the caller."""

from __future__ import annotations

import base64
import contextlib
import errno
import itertools
import os
import shlex
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackmap_testbed.lab.agent import __file__ as agent_script
from stackmap_testbed.lab.channel import Channel, Message
from stackmap_testbed.lab.environment import guest_environment, guest_python, visible_paths
from stackmap_testbed.lab.errors import (
    CommandStartError,
    GuestCommandError,
    GuestDiedError,
    GuestTimeoutError,
    KernelLogError,
    LabError,
    RefusalError,
)
from stackmap_testbed.lab.helper_process import end_process, start_process
from stackmap_testbed.lab.initramfs import GuestIdentity, build_initramfs
from stackmap_testbed.lab.kernel_log import offending_lines, parse_record
from stackmap_testbed.lab.process import Completed, GuestProcess
from stackmap_testbed.lab.qemu import AGENT_PORT, Sockets, device_arguments, machine_arguments
from stackmap_testbed.lab.qmp import Qmp, QmpRefusalError, thread_cpu_nanoseconds
from stackmap_testbed.lab.virtiofs import RootShare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stackmap_testbed.lab.kernels import Kernel

_FILE_CHUNK = 512 * 1024
_CONSOLE_LINES = 25
# How long QEMU may take to end after the agent's connection did.
_DEATH_SECONDS = 2.0


@dataclass(frozen=True)
class GuestSettings:
    """The parts of a guest's machine."""

    identity: GuestIdentity
    mac: str
    kernel: Kernel
    accel: str
    cpus: int
    memory: int
    command_line: str
    #: Further arguments of QEMU: devices that only this guest has.
    extra: tuple[str, ...] = ()
    #: Modules of the kernel that only this guest needs to boot; a NIC's gives it the first name.
    modules: tuple[str, ...] = ()


class Guest:
    """A running guest; its methods may be called from any thread."""

    def __init__(
        self, settings: GuestSettings, workdir: Path, network: socket.socket | None
    ) -> None:
        """Start the machine; ``wait_ready`` says when it can be used."""
        self.settings = settings
        self.name = settings.identity.name
        self.address = settings.identity.ipv4.partition("/")[0]
        self.console = workdir / f"{self.name}.console"
        self._log = workdir / f"{self.name}.qemu.log"
        self._cwd = str(Path.cwd())
        self._ready = threading.Event()
        self._processes: dict[int, GuestProcess] = {}
        self._processes_lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._log_position = -1
        with contextlib.ExitStack() as undo:
            self._share = RootShare(workdir / f"{self.name}.virtiofsd.log")
            undo.callback(self._share.close)
            initramfs = workdir / f"{self.name}.initramfs"
            initramfs.write_bytes(self._initramfs())
            agent, agent_far = socket.socketpair()
            control, control_far = socket.socketpair()
            undo.callback(agent.close)
            undo.callback(control.close)
            with agent_far, control_far:
                self._machine = self._start_machine(initramfs, agent_far, control_far, network)
            self._share.socket.close()
            undo.pop_all()
        self._qmp = Qmp(control)
        self._channel = Channel(agent, self._handle, self.status)
        self._channel.start()

    def _initramfs(self) -> bytes:
        command = [guest_python(), "-I", "-S", str(Path(agent_script).resolve()), AGENT_PORT]
        settings = self.settings
        return build_initramfs(
            settings.kernel, settings.identity, command, visible_paths(), settings.modules
        )

    def _start_machine(
        self,
        initramfs: Path,
        agent: socket.socket,
        control: socket.socket,
        network: socket.socket | None,
    ) -> subprocess.Popen[bytes]:
        settings = self.settings
        sockets = Sockets(
            self._share.socket.fileno(),
            agent.fileno(),
            control.fileno(),
            network.fileno() if network else None,
        )
        command = machine_arguments(
            settings.accel, settings.kernel, initramfs, self.console, settings.memory
        )
        command += device_arguments(
            self.name, settings.cpus, settings.mac, sockets, settings.command_line
        )
        command += settings.extra
        passed = [sockets.root, sockets.agent, sockets.control]
        if sockets.network is not None:
            passed.append(sockets.network)
        return start_process(command, self._log, passed)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest takes commands.

        Raises:
            GuestDiedError: it ended while it booted.
            GuestTimeoutError: it did not get there in time.
        """
        deadline = time.monotonic() + timeout
        while not self._ready.wait(0.1):
            if self._channel.dead:
                raise GuestDiedError(self.status())
            if time.monotonic() > deadline:
                raise GuestTimeoutError(
                    f"{self.name} did not boot within {timeout:g} s: {self.status()}"
                )

    @property
    def pid(self) -> int:
        """The process id of the guest's QEMU on this machine."""
        return self._machine.pid

    @property
    def alive(self) -> bool:
        """Whether the guest is up and answers."""
        return self._ready.is_set() and not self._channel.dead

    def popen(
        self,
        argv: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        cwd: str | None = None,
    ) -> GuestProcess:
        """Start a command and return at once; a string goes to the shell.

        Args:
            argv: the command.
            env: what to add to the guest's environment.
            stdin: whether its standard input is open for ``send``; it is empty otherwise.
            terminal: the rows and columns of a terminal that it is to run on, instead of pipes;
                what it writes is all standard output then.
            cwd: where to run it, instead of here.

        Raises:
            CommandStartError: there is no such command, or it cannot be run.
            LabError: it cannot be started for another reason.
        """
        words = ["/bin/sh", "-c", argv] if isinstance(argv, str) else [str(word) for word in argv]
        number = next(self._numbers)
        process = GuestProcess(self, number, words)
        with self._processes_lock:
            self._processes[number] = process
        try:
            reply = self._channel.request(
                "spawn",
                process=number,
                argv=words,
                env={**guest_environment(), **(env or {})},
                cwd=cwd or self._cwd,
                stdin=stdin,
                terminal=terminal,
            )
        except RefusalError as refusal:
            with self._processes_lock:
                del self._processes[number]
            raise self._not_started(words[0], cwd or self._cwd, refusal) from None
        except BaseException:
            with self._processes_lock:
                del self._processes[number]
            raise
        process.pid = reply["pid"]
        return process

    def _not_started(self, program: str, cwd: str, refusal: RefusalError) -> LabError:
        if refusal.errno is None:
            return refusal
        reason = os.strerror(refusal.errno)
        if refusal.file == cwd:
            return LabError(f"{self.name} cannot run commands in {cwd}: {reason}")
        if refusal.errno == errno.ENOENT:
            return CommandStartError(f"{self.name} has no command {program!r}", 127)
        return CommandStartError(f"{self.name} cannot run {program!r}: {reason}", 126)

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        timeout: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        input: str | bytes | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """Run a command to its end and return its status and output.

        Raises:
            GuestCommandError: it failed, and ``check`` is set.
            GuestTimeoutError: it did not end in time; it has been killed.
            GuestDiedError: the guest ended meanwhile.
        """
        process = self.popen(argv, env=env, stdin=input is not None, cwd=cwd)
        if input is not None:
            process.send(input.encode() if isinstance(input, str) else input)
            process.close_input()
        try:
            status = process.wait(timeout)
        except GuestTimeoutError:
            process.kill(group=True)
            raise
        result = Completed(process.argv, status, process.stdout, process.stderr)
        if check and status != 0:
            command = argv if isinstance(argv, str) else shlex.join(process.argv)
            said = (result.stderr or result.stdout).strip()[-2000:]
            raise GuestCommandError(
                f"'{command}' on {self.name} ended with {status}: {said or 'it said nothing'}"
            )
        return result

    def put(self, path: str | Path, data: bytes) -> None:
        """Write a file in the guest, below /tmp or another of its writable places."""
        for offset in range(0, max(len(data), 1), _FILE_CHUNK):
            text = base64.b64encode(data[offset : offset + _FILE_CHUNK]).decode()
            self._channel.request("put", path=str(path), data=text, append=offset > 0)

    def get(self, path: str | Path) -> bytes:
        """Return the contents of a file in the guest."""
        return b"".join(self._chunks(str(path)))

    def _chunks(self, path: str) -> Iterator[bytes]:
        offset = 0
        while True:
            chunk = base64.b64decode(self._channel.request("get", path=path, offset=offset)["data"])
            if not chunk:
                return
            offset += len(chunk)
            yield chunk

    def insmod(self, path: str | Path, *parameters: str) -> None:
        """Load a kernel module from a file."""
        self.run(["/sbin/insmod", str(Path(path).resolve()), *parameters])

    def kernel_log(self) -> str:
        """Return the guest's kernel log since it booted."""
        return "\n".join(line for _, line in self._records(-1))

    def check_kernel_log(self) -> None:
        """Search what the kernel logged since the last check.

        Raises:
            KernelLogError: it reports a bug, a warning, a stall or a leak.
        """
        records = self._records(self._log_position)
        if records:
            self._log_position = records[-1][0]
        log = [line for _, line in records]
        offending = offending_lines(log)
        if offending:
            raise KernelLogError(self.name, offending, log)

    def mark_kernel_log(self, text: str) -> None:
        """Write a line into the guest's kernel log, to say what comes after it."""
        self.put("/dev/kmsg", f"stackmap: {text}\n".encode())

    def _records(self, after: int) -> list[tuple[int, str]]:
        reply = self._channel.request("kernel_log", after=after)
        return [parse_record(record) for record in reply["records"]]

    def vcpu_cpu_seconds(self) -> float:
        """Return the host's processor time that the guest's virtual processors have used.

        Raises:
            GuestDiedError: QEMU has ended.
        """
        cpus = self.monitor("query-cpus-fast")
        try:
            times = [thread_cpu_nanoseconds(self._machine.pid, cpu["thread-id"]) for cpu in cpus]
        except OSError:
            raise GuestDiedError(self.status()) from None
        return sum(times) / 1e9

    def monitor(self, command: str, **arguments: object) -> Any:
        """Have QEMU do something to the machine; see its QMP reference.

        Raises:
            GuestDiedError: QEMU has ended.
            LabError: it refuses.
        """
        try:
            return self._qmp.execute(command, **arguments)
        except QmpRefusalError as refusal:
            raise LabError(f"QEMU refuses {command}: {refusal}") from None
        except OSError:
            raise GuestDiedError(self.status()) from None

    def send_signal(self, pid: int, number: int, *, group: bool) -> None:
        """Signal a process of the guest, or the group that it leads."""
        self._channel.request("kill", pid=pid, signal=int(number), group=group)

    def write_input(self, process: int, data: bytes | None) -> None:
        """Feed the standard input of a started process; None closes it."""
        text = None if data is None else base64.b64encode(data).decode()
        self._channel.request("stdin", process=process, data=text)

    def set_window(self, process: int, size: tuple[int, int]) -> None:
        """Set the rows and columns of a started process's terminal."""
        self._channel.request("window", process=process, size=size)

    def status(self) -> str:
        """Say whether the guest still runs, with the end of its console or its first complaint."""
        if self._channel.dead:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._machine.wait(_DEATH_SECONDS)
        state = "is still running" if self._machine.poll() is None else "has ended"
        if (said := self._log.read_text(errors="replace").strip()) and state == "has ended":
            state += f" ({said.splitlines()[-1]})"
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        complaints = offending_lines(lines)
        start = lines.index(complaints[0]) if complaints else len(lines) - _CONSOLE_LINES
        shown = "\n".join(lines[max(start, 0) :][:_CONSOLE_LINES])
        if not shown:
            return f"{self.name} {state}, and its console ({self.console}) is empty"
        return f"{self.name} {state}; from its console ({self.console}):\n{shown}"

    def _handle(self, message: Message) -> None:
        kind = message["event"]
        if kind == "ready":
            self._ready.set()
            return
        with self._processes_lock:
            if kind == "dead":
                concerned = list(self._processes.values())
            else:
                # None: starting it took too long, and the caller has given up.
                found = self._processes.get(message["process"])
                concerned = [found] if found else []
                if kind == "closed":
                    self._processes.pop(message["process"], None)
        for process in concerned:
            process.handle(message)

    def close(self) -> None:
        """Switch the guest off."""
        end_process(self._machine)
        self._channel.close()
        self._qmp.close()
        self._share.close()
