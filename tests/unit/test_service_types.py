"""What a type checker says of chains of filters; `make check` asks pyright as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRONG = Path("tests/typing/service_wrong.py")
CACHE = Path(".mypy_cache/test_service_types")


def test_mypy_knows_right_chains_from_wrong_ones() -> None:
    pytest.importorskip("mypy", reason="a type checker is among the dev dependencies")
    # Errors are expected where the file ignores them; here nothing is ignored.
    text = (ROOT / WRONG).read_text()
    # Always at the same place, because mypy's cache remembers errors with their paths.
    copy = CACHE / "service_wrong_copy.py"
    (ROOT / CACHE).mkdir(parents=True, exist_ok=True)
    (ROOT / copy).write_text(text.replace("# type: ignore", "# expected"))
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(CACHE)]
    files = ["tests/typing/service_right.py", str(copy)]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    found = {
        line.partition(": error: ")[0] for line in done.stdout.splitlines() if ": error: " in line
    }
    expected = {
        f"{copy}:{number}"
        for number, line in enumerate(text.splitlines(), 1)
        if "# type: ignore" in line
    }
    assert len(expected) >= 15
    assert found == expected, done.stdout + done.stderr
