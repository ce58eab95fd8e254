"""Options of all suites, and the rule that a required suite may skip nothing.

``STACKMAP_REQUIRE=unit,vm`` names suites (folders under ``tests/``) that must run here: a test of
theirs that is skipped fails the session, and so does a suite of which no test passed.  Without it,
tests skip what the machine cannot do.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel",
        default=os.environ.get("STACKMAP_KERNEL", "6.12"),
        metavar="SERIES",
        help="kernel of the guests: Debian's 6.12 (default) or 6.1, a release, or a directory",
    )
    parser.addoption("--cpus", type=int, default=1, help="processors of each guest")


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> str:
    """The kernel series or release that guests boot."""
    name: str = request.config.getoption("--kernel")
    return name


@pytest.fixture(scope="session")
def cpus(request: pytest.FixtureRequest) -> int:
    """How many processors a guest has."""
    number: int = request.config.getoption("--cpus")
    return number


def suite_of(nodeid: str) -> str:
    """The folder under ``tests/`` that a test is in."""
    return nodeid.removeprefix("tests/").split("/")[0]


class RequiredSuites:
    """Counts outcomes by suite and fails the session for what is missing."""

    def __init__(self, required: list[str]) -> None:
        self.required = required
        self.passed: Counter[str] = Counter()
        self.skipped: defaultdict[str, list[str]] = defaultdict(list)

    def complaints(self) -> list[str]:
        found = []
        for suite in self.required:
            if not self.passed[suite]:
                found.append(f"required suite {suite}: no test passed")
            found += [f"required suite {suite}: skipped {name}" for name in self.skipped[suite]]
        return found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        suite = suite_of(report.nodeid)
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[suite].append(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed[suite] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[suite_of(report.nodeid)].append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.complaints() and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for complaint in self.complaints():
            terminalreporter.write_line(complaint, red=True)


def pytest_configure(config: pytest.Config) -> None:
    required = os.environ.get("STACKMAP_REQUIRE", "")
    if required:
        config.pluginmanager.register(RequiredSuites(required.split(",")), "required-suites")
