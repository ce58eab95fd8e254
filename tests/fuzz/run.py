"""Runs the fuzzer inside a debug kernel, and says whether anything was wrong.

``make fuzz MINUTES=60 KERNEL=uml SEED=1 SLOTS=10000000``.  Besides what the fuzzer itself finds,
the run fails for anything in the kernel's log, for a module that cannot be unloaded afterwards, for
leaks, and for having tried too little.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackmap_testbed.lab.errors import LabError
from stackmap_testbed.lab.kernels import module_for
from stackmap_testbed.lab.lab import Lab
from tests.debug.kernels import NotBuiltError, find_debug_kernel
from tests.debug.races import complaints
from tests.debug.uml import Options, run_in_uml
from tests.unload import UNLOAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.process import GuestProcess

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = Path(__file__).resolve().parent
PROGRAM = ROOT / "build" / "fuzz" / "fuzz"
#: Seconds that the fuzzer and the kernel may take to start and to end.
_AROUND_SECONDS = 600
#: A kernel full of checks takes minutes to boot, or to do anything, where the machine is emulated.
_BOOT_SECONDS = 600.0
_COMMAND_SECONDS = 600.0
#: Modules that ours needs (KUnit, on a debug kernel), and those that give the fuzzer more to do.
_HELPERS = ("kunit", "veth", "tls", "kcm", "tcp_diag")
#: kmemleak passes over what is younger than five seconds.
_SCAN_FOR_LEAKS = """
set -e
cd /sys/kernel/debug
for scan in 1 2; do echo scan >kmemleak; sleep 6; done
"""
#: Actions that a run must have done at least once, by the seconds that it takes.
_NEEDED = {
    30: (
        *("honest_sent", "honest_received", "honest_rounds"),
        *("slots_mutated", "dumps", "trace_switches"),
    ),
    300: ("honest_detaches", "honest_rounds_ipv6", "trace_lines"),
}
#: The console says this where it could not keep up: a complaint may be among what is missing.
_LOST = re.compile(r"printk messages dropped")


@dataclass
class Outcome:
    """The result of a run."""

    output: str = ""
    complaints: list[str] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        """The fuzzer's own counters."""
        found = re.findall(r"^result (\{.*\})$", self.output, re.MULTILINE)
        result: dict[str, Any] = json.loads(found[-1]) if found else {}
        return result

    def failures(self) -> list[str]:
        """Everything that was wrong; a run that has not ended is."""
        failures = re.findall(r"^failure (.*)$", self.output, re.MULTILINE)
        if not self.result():
            failures.append("the fuzzer did not end")
        return failures + self.complaints

    def shortfalls(self, seconds: float, slots: int) -> list[str]:
        """Actions that a run of so many seconds, with so many slots to mutate, left undone."""
        result = self.result()
        needed = [name for after, names in _NEEDED.items() if seconds >= after for name in names]
        found = [f"{name} is 0" for name in needed if not result.get(name)]
        if (mutated := result.get("slots_mutated", 0)) < slots:
            found.append(f"{mutated} slots were mutated, fewer than {slots}")
        return found


def build() -> None:
    """Compile the fuzzer, unless that has been done; other runs may be using it."""
    inputs = [*SOURCES.glob("*.[ch]"), *(ROOT / "kmod" / "uapi").glob("*.h")]
    if PROGRAM.exists() and PROGRAM.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    new = PROGRAM.with_suffix(".new")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    warnings += ["-Wno-unused-result", "-Wno-missing-field-initializers"]
    subprocess.run(
        [
            "gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", *warnings, "-pthread",
            "-o", new, *sorted(SOURCES.glob("*.c")),
        ],
        check=True,
    )  # fmt: skip
    new.replace(PROGRAM)


def fuzz(kernel: str, seconds: int, seed: int, processes: int = 3) -> Outcome:
    """Run the fuzzer in one kernel: a debug kernel, or a series of Debian's.

    Raises:
        NotBuiltError: there is no such debug kernel.
        LabError: the guest cannot be had here.
    """
    build()
    command = [
        *(str(PROGRAM), "--seconds", str(seconds), "--seed", str(seed)),
        *("--processes", str(processes)),
    ]
    if kernel == "uml":
        return _in_uml(command, seconds)
    return _in_qemu(kernel, command, seconds)


def _in_uml(command: Sequence[str], seconds: int) -> Outcome:
    options = Options(leaks=True, timeout=seconds + _AROUND_SECONDS)
    report = run_in_uml(find_debug_kernel("uml"), command, options)
    outcome = Outcome(report.output, list(report.complaints))
    if not report.good:
        outcome.output += report.console
    return outcome


def _in_qemu(name: str, command: Sequence[str], seconds: int) -> Outcome:
    if name in ("smp", "kcsan"):
        debug = find_debug_kernel(name)
        kernel, module = str(debug.directory), debug.build_module()
    else:
        kernel, module = name, None
    leaks = name == "smp"
    outcome = Outcome()
    lab = Lab(
        kernel=kernel,
        guests=("server",),
        cpus=2,
        memory=2048,
        command_line="kmemleak=on" if leaks else "",
        boot_seconds=_BOOT_SECONDS,
    )
    with lab:
        guest = lab.server
        process = None
        try:
            guest.run(f"for m in {' '.join(_HELPERS)}; do modprobe -q $m; done; true")
            if leaks:
                _run(guest, f"{_SCAN_FOR_LEAKS}echo clear >kmemleak")
            guest.insmod(module or module_for(lab.release))
            process = guest.popen(command)
            _follow(process, seconds + _AROUND_SECONDS)
            _run(guest, UNLOAD)
            if leaks:
                outcome.complaints += _run(guest, f"{_SCAN_FOR_LEAKS}cat kmemleak").splitlines()
        except LabError as error:
            outcome.complaints.append(str(error))
        outcome.output = process.output() if process else ""
        # The console has all since boot; the kernel's own log forgets.
        console = guest.console.read_text(errors="replace")
    outcome.complaints += complaints(console)
    outcome.complaints += [line for line in console.splitlines() if _LOST.search(line)]
    if outcome.failures():
        outcome.output += console
    return outcome


def _run(guest: Guest, command: str) -> str:
    return guest.run(command, timeout=_COMMAND_SECONDS).stdout


def _follow(process: GuestProcess, seconds: float) -> None:
    """Show what the fuzzer says, until it ends."""
    deadline = time.monotonic() + seconds
    shown = 0
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        output = process.output()
        print(output[shown:], end="", flush=True)
        shown = len(output)
        if ended:
            break
        time.sleep(1)
    process.wait(1)


def main() -> int:
    """Run the command line's wish."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description=__doc__)
    parser.add_argument("--kernel", default="uml", help="uml, smp, kcsan, 6.12 or 6.1")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--processes", type=int, default=3, help="hostile processes")
    parser.add_argument("--slots", type=int, default=0, help="fail if fewer were mutated")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz")
    arguments = parser.parse_args()
    print(f"fuzzing {arguments.kernel} for {arguments.minutes:g} min, seed {arguments.seed}")
    seconds = int(arguments.minutes * 60)
    try:
        outcome = fuzz(arguments.kernel, seconds, arguments.seed, arguments.processes)
    except (NotBuiltError, LabError) as reason:
        print(reason, file=sys.stderr)
        return 2
    failures = outcome.failures() + outcome.shortfalls(seconds, arguments.slots)
    arguments.out.mkdir(parents=True, exist_ok=True)
    summary = outcome.result() | {"kernel": arguments.kernel, "failures": failures}
    (arguments.out / f"{arguments.kernel}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (arguments.out / f"{arguments.kernel}.log").write_text(outcome.output)
    for name, value in summary.items():
        print(f"{name:>20}  {value}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
