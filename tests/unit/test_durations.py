"""Where the time of the tests went, by the reports that pytest itself writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOST = """
import time
import pytest

@pytest.mark.parametrize("file", ["test_slow.py"])
def test_inside(file): time.sleep(1)
def test_quick(): pass
"""
GUEST = "import time\n\ndef test_it(): time.sleep(0.9)\n"


def run_pytest(file: Path, text: str, report: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file.name]
    subprocess.run(
        [*command, "--junitxml", str(report)], cwd=file.parent, check=True, capture_output=True
    )


def test_files_of_a_guest_count_as_files_and_their_tests_as_tests(tmp_path: Path) -> None:
    reports = tmp_path / "junit"
    run_pytest(tmp_path / "vm" / "test_host.py", HOST, reports / "test-vm-6.12.xml")
    run_pytest(
        tmp_path / "guest" / "test_slow.py", GUEST, reports / "test-vm-6.12" / "test_slow.xml"
    )
    command = [sys.executable, "-m", "tests.durations", str(reports)]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files, tests = (part.splitlines() for part in told.split("\n\n"))
    assert [line.split()[:2] for line in files] == [
        ["suite", "file"],
        ["test-vm-6.12", "all"],
        ["test-vm-6.12", "guest/test_slow.py"],
        ["test-vm-6.12", "test_host.py"],
    ]
    # A file that was run inside is not one more test.
    assert [line.split()[1] for line in tests] == [
        "test",
        "test_slow.py::test_it",
        "test_host.py::test_quick",
    ]
