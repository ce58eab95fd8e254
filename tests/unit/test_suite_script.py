"""Suites that run side by side: what the script around each keeps, and what it shows at the end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "suite.sh"


class Suites:
    """The script in a tree of its own."""

    def __init__(self, root: Path) -> None:
        (root / "tests").mkdir()
        self._script = shutil.copy(SCRIPT, root / "tests")

    def __call__(self, *words: str, quiet: str = "yes", **more: str) -> tuple[int, str]:
        done = subprocess.run(
            [self._script, *words],
            env={"PATH": "/usr/bin:/bin", "QUIET": quiet, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def suites(tmp_path: Path) -> Suites:
    return Suites(tmp_path)


def test_a_quiet_suite_says_how_it_ended_and_is_shown_later(suites: Suites) -> None:
    status, said = suites("run", "good", "echo", "3 passed")
    assert status == 0
    assert said.startswith("good: ")
    assert "3 passed" not in said
    status, said = suites("show", "good")
    assert status == 0
    assert "\n3 passed\n" in said


def test_a_single_suite_is_seen_while_it_runs(suites: Suites) -> None:
    status, said = suites("run", "bad", "sh", "-c", "echo begun; exit 3", quiet="")
    assert status == 3
    assert said.startswith("begun\n")
    assert said.endswith("FAILED\n")


def test_failed_suites_are_shown_last_by_name(suites: Suites) -> None:
    assert suites("run", "bad", "sh", "-c", "echo 1 failed; exit 1")[0] == 1
    suites("run", "good", "echo", "3 passed")
    status, said = suites("show", "bad", "good")
    assert status == 1
    assert said.index("3 passed") < said.index("--- bad FAILED\n1 failed")
    assert said.endswith("FAILED: bad\n")


def test_a_suite_that_did_not_run_has_failed(suites: Suites) -> None:
    suites("run", "good", "true")
    status, said = suites("show", "good", "absent")
    assert status == 1
    assert said.endswith("FAILED: absent\n")


def test_a_suite_that_passed_before_does_not_hide_that_it_fails(suites: Suites) -> None:
    suites("run", "suite", "true")
    suites("run", "suite", "false")
    assert suites("show", "suite")[0] == 1


def test_a_make_in_a_suite_has_its_own_options(suites: Suites) -> None:
    command = ("sh", "-c", 'test -z "$MAKEFLAGS"')
    assert suites("run", "inner", *command, MAKEFLAGS="k -j3 -o setup")[0] == 0
