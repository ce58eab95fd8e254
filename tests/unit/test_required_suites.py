"""A required suite may skip nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\n\ndef test_skips(): pytest.skip('no reason')\n"
SKIPS_ALL = "import pytest\npytest.skip('no reason', allow_module_level=True)\n"
XFAILS = "import pytest\n\n@pytest.mark.xfail\ndef test_fails(): assert False\n"


def run(folder: Path, content: str, required: str) -> tuple[int, str]:
    suite = folder / "tests" / "unit"
    suite.mkdir(parents=True)
    shutil.copy(CONFTEST, folder / "tests")
    (suite / "test_it.py").write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder,
        env=os.environ | {"STACKMAP_REQUIRE": required},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("content", "required", "complaint"),
    [
        (PASSES + SKIPS, "unit", "skipped tests/unit/test_it.py::test_skips"),
        (SKIPS_ALL, "unit", "no test passed"),
        (PASSES, "unit,vm", "suite vm: no test passed"),
    ],
)
def test_complains(tmp_path: Path, content: str, required: str, complaint: str) -> None:
    status, said = run(tmp_path, content, required)
    assert status == 1
    assert complaint in said


@pytest.mark.parametrize(
    ("content", "required"), [(PASSES, "unit"), (PASSES + XFAILS, "unit"), (PASSES + SKIPS, "")]
)
def test_is_content(tmp_path: Path, content: str, required: str) -> None:
    status, said = run(tmp_path, content, required)
    assert status == 0, said
