"""Run commands inside the user-mode Linux debug kernel, which is a process of this machine.

The guest sees this machine's files, read-only but for a few tmpfs; it has one processor and no
network but what it makes itself.  From a shell::

    python -m tests.debug.uml [--time-travel] [--leaks] COMMAND...

prints what COMMAND and the kernel said, and fails if either did.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stackmap_testbed.lab.environment import guest_environment, visible_paths
from stackmap_testbed.lab.helper_process import end_process, start_process
from stackmap_testbed.lab.kernel_log import offending_lines
from tests.debug.kernels import DebugKernel, find_debug_kernel
from tests.unload import UNLOAD

if TYPE_CHECKING:
    from collections.abc import Sequence

_TMPFS = ("/tmp", "/run", "/var/tmp", "/var/log", "/dev/shm")
#: Where a guest has the directory that it shares with its caller.
_SHARED = "/run/caller"
#: kmemleak passes over what is younger than five seconds.
_LEAK_AGE_SECONDS = 6
_UNIT_TEST_FAILED = re.compile(r"\bnot ok \d+ ")
_SCAN = f"""
echo scan >/sys/kernel/debug/kmemleak || fail looking for leaks
sleep {_LEAK_AGE_SECONDS}
echo scan >/sys/kernel/debug/kmemleak || fail looking for leaks
"""


@dataclass(frozen=True)
class Options:
    """Options of a run."""

    #: Megabytes.
    memory: int = 3072
    #: Time stands still while the guest works and jumps while it sleeps.
    time_travel: bool = False
    #: Look for leaks after the module has been unloaded.
    leaks: bool = False
    #: Seconds of this machine's time.
    timeout: float = 600.0
    #: Loads the module, and unloads it afterwards.
    module: bool = True


@dataclass(frozen=True)
class Report:
    """The result of a run."""

    #: The command's exit status; None if it did not end.
    status: int | None
    #: The command's output.
    output: str
    #: The kernel's console.
    console: str
    #: Complaints besides the status, one line each.
    complaints: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether the command succeeded and the kernel has nothing to complain of."""
        return self.status == 0 and not self.complaints

    def check(self) -> None:
        """Fail unless all went well.

        Raises:
            AssertionError: it did not; the message has what was said.
        """
        if not self.good:
            raise AssertionError(
                f"the command's status is {self.status}\n{self.output[-8000:]}\n"
                + "\n".join(self.complaints)
                + self._context()
            )

    def _context(self) -> str:
        """The console around the first complaint that is in it."""
        lines = self.console.splitlines()
        first = next((n for n, line in enumerate(lines) if line in self.complaints), None)
        if first is None:
            return ""
        return "\nconsole:\n" + "\n".join(lines[max(first - 5, 0) : first + 80])


def run_in_uml(kernel: DebugKernel, command: Sequence[str], options: Options) -> Report:
    """Boot a guest, run the command in it in this process's directory, and switch it off."""
    with tempfile.TemporaryDirectory(prefix="stackmap-uml-") as name:
        shared = Path(name)
        (shared / "init").write_text(_init_script(kernel, command, options, shared))
        (shared / "init").chmod(0o755)
        console = shared / "console"
        machine = start_process(_machine_arguments(kernel, options, shared), console)
        try:
            machine.wait(options.timeout)
        except subprocess.TimeoutExpired:
            ended = False
        else:
            ended = True
        finally:
            # Its output while it is killed does not count.
            said = console.read_text(errors="replace")
            end_process(machine)
        return _report(shared, said, options, ended=ended)


def _machine_arguments(kernel: DebugKernel, options: Options, shared: Path) -> list[str]:
    return [
        str(kernel.kernel.image),
        f"mem={options.memory}M",
        *("rootfstype=hostfs", "rootflags=/", "ro", f"init={shared}/init", f"uml_dir={shared}"),
        *("con=null", "con0=null,fd:1", "loglevel=7", "panic=-1", "panic_on_oops=1"),
        f"kmemleak={'on' if options.leaks else 'off'}",
        # A machine that is busy elsewhere may leave this one without a processor for a while.
        "watchdog_thresh=60",
        *(["time-travel=inf-cpu"] if options.time_travel else []),
    ]


def _init_script(
    kernel: DebugKernel, command: Sequence[str], options: Options, shared: Path
) -> str:
    environment = (f"{name}={value}" for name, value in guest_environment().items())
    words = ["env", "-i", *environment, *command]
    load = unload = ""
    if options.module:
        load = f"""
modprobe kunit || fail loading kunit
insmod {shlex.quote(str(kernel.build_module()))} || fail loading the module"""
        unload = f"\n{UNLOAD} || fail unloading the module"
    before = after = ""
    if options.leaks:
        before = f"{_SCAN}echo clear >/sys/kernel/debug/kmemleak"
        after = f"{_SCAN}cat /sys/kernel/debug/kmemleak >{_SHARED}/leaks"
    return f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
fail() {{ echo "$@" >>{_SHARED}/failures; }}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind {shlex.quote(str(kernel.kernel.modules.parent))} /lib/modules
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
ln -s /proc/self/fd/0 /dev/stdin
{_tmpfs_commands()}
mkdir -p {_SHARED}
mount -t hostfs -o {shlex.quote(str(shared))} none {_SHARED}
ip link set lo up
{before}{load}
cd {shlex.quote(str(Path.cwd()))} || fail cannot go to the directory
{shlex.join(words)} </dev/null >{_SHARED}/output 2>&1
echo $? >{_SHARED}/status
{unload}{after}
cd /
busybox poweroff -f
"""


def _tmpfs_commands() -> str:
    """Put a tmpfs on each writable place, then bring back what it hides and the guest must see."""
    lines = [f"mount -t tmpfs -o mode=1777 tmpfs {place}" for place in _TMPFS]
    for path in visible_paths():
        if any(Path(place) in path.parents for place in _TMPFS):
            quoted = shlex.quote(str(path))
            lines += [f"mkdir -p {quoted}", f"mount -t hostfs -o {quoted} -r none {quoted}"]
    return "\n".join(lines)


def _report(shared: Path, console: str, options: Options, *, ended: bool) -> Report:
    def text(name: str) -> str:
        file = shared / name
        return file.read_text(errors="replace") if file.exists() else ""

    complaints = text("failures").splitlines() + offending_lines(console.splitlines())
    complaints += [line for line in console.splitlines() if _UNIT_TEST_FAILED.search(line)]
    complaints += text("leaks").splitlines()
    status = text("status").strip()
    if not ended:
        complaints.append(f"the guest did not end within {options.timeout:g} s")
    elif not status:
        complaints.append("the guest ended before the command did")
    elif options.leaks and not (shared / "leaks").exists():
        complaints.append("the guest ended before it had looked for leaks")
    return Report(int(status) if status else None, text("output"), console, tuple(complaints))


def main() -> int:
    """Run the command line's command."""
    parser = argparse.ArgumentParser(prog="tests.debug.uml", description=__doc__)
    parser.add_argument("--time-travel", action="store_true", help="simulated time")
    parser.add_argument("--leaks", action="store_true", help="look for leaks at the end")
    parser.add_argument("--memory", type=int, default=Options.memory, help="megabytes")
    parser.add_argument("--timeout", type=float, default=Options.timeout, help="seconds")
    parser.add_argument("--no-module", dest="module", action="store_false")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    command = arguments.command or parser.error("name a command")
    options = Options(
        arguments.memory, arguments.time_travel, arguments.leaks, arguments.timeout,
        arguments.module,
    )  # fmt: skip
    report = run_in_uml(find_debug_kernel("uml"), command, options)
    print(report.console, report.output, *report.complaints, sep="\n")
    print(f"status {report.status}: {'good' if report.good else 'BAD'}")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
