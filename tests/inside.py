"""Run a file of tests with pytest inside a guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from stackmap_testbed.lab.errors import GuestTimeoutError

if TYPE_CHECKING:
    import pytest

    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.process import GuestProcess

#: For the kernels of guests that are tested, not measured: an emulated processor speculates about
#: nothing, and spends a tenth of its time on the kernel's defence against what it would do.
NO_MITIGATIONS = "mitigations=off"

#: Plugins of which tests in guests use nothing.  Hypothesis' takes an emulated machine a quarter of
#: a minute to load, the others together a second for each file; a cache cannot be kept, because a
#: guest's view of this tree is read-only.
_UNUSED = (
    *("anyio", "cacheprovider", "doctest", "hypothesispytest", "legacypath"),
    *("pastebin", "setuponly", "setupplan", "stepwise", "subtests"),
)
_OPTIONS = ("-q", "-x", "--tb=short", *(f"-pno:{plugin}" for plugin in _UNUSED))


def pytest_command(tests: Path, *options: str) -> list[str]:
    """Returns a command for a guest."""
    return [sys.executable, "-B", "-m", "pytest", *_OPTIONS, *options, str(tests)]


def rewrite_assertions(tests: Path) -> None:
    """Have pytest keep the files of tests in the form in which it runs them.

    A guest, which cannot write it, would spend seconds on making it of each file.
    """
    command = pytest_command(tests, "--collect-only")
    command.remove("-B")
    # Collecting passes no test, which the suite that is required here must not be blamed for.
    unwanted = {"PYTHONDONTWRITEBYTECODE", "STACKMAP_REQUIRE", "PYTEST_ADDOPTS"}
    environment = {n: v for n, v in os.environ.items() if n not in unwanted}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def check_report(output: str) -> None:
    """Fail unless tests passed and none was skipped."""
    assert " passed" in output, output
    assert " skipped" not in output, output


def reports_folder(config: pytest.Config) -> Path | None:
    """Returns where the JUnit reports of guests go: beside the one of this session, if any."""
    own: str | None = config.option.xmlpath
    return Path(own).with_suffix("") if own else None


class GuestPytest:
    """pytest, loaded in a guest, with a process for each file of tests.

    Each file's JUnit report, with the durations of its tests, is copied to the folder ``reports``.
    """

    def __init__(self, guest: Guest, reports: Path | None = None) -> None:
        self._guest = guest
        self._reports = reports
        self._process: GuestProcess | None = None
        self._runs = count(1)

    def passes(
        self, tests: Path, timeout: float, patience: int, rounds: str = "0", select: str = ""
    ) -> None:
        """Have tests passed: all within ``timeout`` seconds, and each within ``patience``.

        ``select`` is an expression of markers, as of pytest's ``-m``.
        """
        if not self._process:
            command = [sys.executable, "-B", "-m", "tests.forked", *_OPTIONS]
            self._process = self._guest.popen(command, stdin=True)
        process, run = self._process, next(self._runs)
        before = len(process.output())
        report_inside = f"/tmp/junit-{run}.xml"
        limits = ["--timeout", str(patience)]
        request = {
            "run": run,
            "options": [*limits, "-m", select, "--junitxml", report_inside, str(tests)],
            "environment": {"STACKMAP_ROUNDS": rounds},
        }
        process.send(json.dumps(request).encode() + b"\n")
        try:
            end = process.wait_for_output(rf"^run {run} ended with (-?\d+)$", timeout)
        except GuestTimeoutError:
            process.kill(group=True)
            self._process = None
            raise
        report = process.output()[before:]
        if self._reports and end[1] in ("0", "1"):  # otherwise pytest did not get to write one
            self._reports.mkdir(parents=True, exist_ok=True)
            (self._reports / f"{tests.stem}.xml").write_bytes(self._guest.get(report_inside))
        assert end[1] == "0", report[-10_000:]
        check_report(report)
