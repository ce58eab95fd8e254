"""Runs the fuzzer inside a debug kernel, and says whether anything was wrong.

``make fuzz MINUTES=60 KERNEL=uml SEED=1``.  Besides what the fuzzer itself finds, the run fails for
anything in the kernel's log, for a module that cannot be unloaded afterwards, and for leaks.
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

from stackmap_testbed.errors import LabError
from stackmap_testbed.kernel_log import offending_lines
from stackmap_testbed.kernels import module_for
from stackmap_testbed.lab import Lab
from tests.debug.kernels import NotBuiltError, find_debug_kernel
from tests.debug.uml import Options, run_in_uml

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = Path(__file__).resolve().parent
PROGRAM = ROOT / "build" / "fuzz" / "fuzz"
#: What the fuzzer and the kernel may take to start and to end.
_AROUND_SECONDS = 600
_REPORT_SECONDS = 10
#: Modules that ours needs (KUnit, on a debug kernel), and those that give the fuzzer more to do.
_HELPERS = ("kunit", "veth", "tls", "kcm", "tcp_diag")
_LEAKS = """
for scan in 1 2; do echo scan >/sys/kernel/debug/kmemleak; sleep 6; done
cat /sys/kernel/debug/kmemleak
"""


@dataclass
class Outcome:
    """What came of a run."""

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


def build() -> None:
    """Compile the fuzzer."""
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    warnings = ["-Wall", "-Wextra", "-Werror"]
    warnings += ["-Wno-unused-result", "-Wno-missing-field-initializers"]
    subprocess.run(
        [
            "gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", *warnings, "-pthread",
            "-o", PROGRAM, *sorted(SOURCES.glob("*.c")),
        ],
        check=True,
    )  # fmt: skip


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
    outcome = Outcome()
    with Lab(kernel=kernel, guests=("server",), cpus=2, memory=2048).up() as lab:
        guest = lab.server
        guest.run(f"for m in {' '.join(_HELPERS)}; do modprobe -q $m; done; true")
        guest.insmod(module or module_for(lab.release))
        try:
            process = guest.popen(command)
            _follow(process, seconds + _AROUND_SECONDS)
            outcome.output = process.output()
            unloaded = guest.run("rmmod stackmap", check=False)
            if unloaded.returncode:
                outcome.complaints.append(unloaded.stderr)
            if guest.run("test -e /sys/kernel/debug/kmemleak", check=False).returncode == 0:
                outcome.complaints += guest.run(_LEAKS, timeout=600).stdout.splitlines()
            outcome.complaints += offending_lines(guest.kernel_log().splitlines())
        except LabError as error:
            outcome.output = process.output() + guest.console.read_text(errors="replace")
            outcome.complaints.append(str(error))
    return outcome


def _follow(process: Any, seconds: float) -> None:
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
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz")
    arguments = parser.parse_args()
    print(f"fuzzing {arguments.kernel} for {arguments.minutes:g} min, seed {arguments.seed}")
    try:
        outcome = fuzz(
            arguments.kernel, int(arguments.minutes * 60), arguments.seed, arguments.processes
        )
    except (NotBuiltError, LabError) as reason:
        print(reason, file=sys.stderr)
        return 2
    failures = outcome.failures()
    arguments.out.mkdir(parents=True, exist_ok=True)
    summary = outcome.result() | {"kernel": arguments.kernel, "failures": failures}
    (arguments.out / f"{arguments.kernel}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (arguments.out / f"{arguments.kernel}.log").write_text(outcome.output)
    for name, value in summary.items():
        print(f"{name:>20}  {value}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
