"""Soak the module: ``python -m tests.soak --messages 10000000 --out out/soak.json``.

Runs ``tests/guest/soak.py`` inside the user-mode Linux debug kernel, which also looks for leaked
memory at the end, or with ``--kernel 6.12`` in a guest of the lab, on a stock kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackmap_testbed.lab.errors import GuestCommandError, KernelLogError, LabError
from stackmap_testbed.lab.kernels import module_for
from stackmap_testbed.lab.lab import Lab
from tests.debug.kernels import NotBuiltError, find_debug_kernel
from tests.debug.uml import Options, run_in_uml
from tests.unload import UNLOAD, UNLOAD_SECONDS

UML = "uml"
#: Seconds per message that no machine should need, and for all that is not messages.
_PATIENCE_EACH, _PATIENCE = 1e-3, 600.0
#: One port has more, buffers and rings.
_GROWTH_KIB = 8192
#: A run of so many messages must have met with everything that a soak is about.
_LONG = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """The guest's output, and complaints."""

    output: str
    complaints: list[str]


def soak_in_uml(command: list[str], patience: float) -> Outcome:
    """Run it under the debug kernel, and look for leaks when the module is unloaded.

    Raises:
        NotBuiltError: there is no such kernel.
    """
    options = Options(leaks=True, timeout=patience)
    report = run_in_uml(find_debug_kernel(UML), command, options)
    complaints = list(report.complaints)
    if report.status != 0:
        complaints.append(f"the program's status is {report.status}")
    return Outcome(report.output, complaints)


def soak_in_lab(kernel: str, command: list[str], patience: float) -> Outcome:
    """Run it in a guest.

    Raises:
        LabError: the guest does not boot.
    """
    with Lab(kernel=kernel, guests=("server",)) as lab:
        lab.server.insmod(module_for(lab.release))
        done = lab.server.run(command, timeout=patience, check=False)
        complaints = [] if done.returncode == 0 else [done.stderr]
        try:
            lab.server.run(UNLOAD, timeout=UNLOAD_SECONDS)
            lab.server.check_kernel_log()
        except (GuestCommandError, KernelLogError) as complaint:
            complaints.append(str(complaint))
    return Outcome(done.stdout, complaints)


def lines_of(output: str) -> list[dict[str, Any]]:
    """The reports in a program's output, which may hold other lines."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def growth(applications: list[dict[str, object]]) -> list[str]:
    """Growth of the kernel's memory from the first application's end to the last one's."""
    if len(applications) < 2:
        return []
    first, last = applications[0], applications[-1]
    found = []
    for name, sign in (("MemAvailable", -1), ("SUnreclaim", 1), ("VmallocUsed", 1)):
        more = sign * (int(str(last[name])) - int(str(first[name])))
        if more > _GROWTH_KIB:
            found.append(f"{name} has changed by {more} KiB over {len(applications)} applications")
    return found


def shortfalls(
    applications: list[dict[str, object]], total: dict[str, Any], messages: int
) -> list[str]:
    """Situations that a run of so many messages should have met, and has not."""
    found = []
    if total.get("messages", 0) < messages:
        found.append(f"{total.get('messages', 0)} messages of {messages} came back")
    if messages < _LONG:
        return found
    for end, segments in (total.get("retransmitted") or {"nobody": 0}).items():
        if not segments:
            found.append(f"no segment was sent again by {end}")
    if not total.get("killed"):
        found.append("no application was killed")
    if len(applications) < 2:
        found.append("there were no two applications between which memory could have grown")
    return found


def main() -> int:
    """Soak, write what came of it; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--kernel", default=UML, help="uml, or a series of Debian's")
    parser.add_argument("--out", type=Path, default=Path("out/soak.json"))
    args = parser.parse_args()
    command = [sys.executable, "-B", "-m", "tests.guest.soak", str(args.messages)]
    patience = _PATIENCE + _PATIENCE_EACH * args.messages
    try:
        if args.kernel == UML:
            outcome = soak_in_uml(command, patience)
        else:
            outcome = soak_in_lab(args.kernel, command, patience)
    except (LabError, NotBuiltError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    *applications, total = lines_of(outcome.output) or [{}]
    complaints = outcome.complaints + growth(applications)
    complaints += shortfalls(applications, total, args.messages)
    figures = {**total, "applications": applications, "wrong": complaints}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(*complaints, sep="\n")
    good = not complaints and total["wrong_bytes"] == 0 and not total["complaints"]
    if good:
        print(
            f"{args.out}: {total['messages']} messages in {total['seconds']} s, "
            f"{total['finished']} streams to their end, {total['reset']} reset, "
            f"{total['cut_off']} cut off by killing the application {total['killed']} times; "
            f"no wrong byte, no leak"
        )
    else:
        print(outcome.output[-4000:], file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
