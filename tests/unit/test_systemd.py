"""systemd accepts the unit; ``tests/vm/test_installed.py`` runs its commands, and the udev rule."""

from __future__ import annotations

import subprocess
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "cli" / "systemd"
#: In a mount namespace of its own, where the command is where README installs it.
VERIFY = """
mount -t tmpfs tmpfs /opt
mkdir -p /opt/stackmap/bin
cp /bin/true /opt/stackmap/bin/stackmap
systemd-analyze verify "$1"
"""


def verify(unit: Path) -> subprocess.CompletedProcess[str]:
    command = ["unshare", "--mount", "sh", "-ec", VERIFY, "verify", str(unit)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    text = (UNITS / "stackmap-bind@.service").read_text()
    for name in ("stackmap-bind@.service", "stackmap-bind@eth1.service"):
        (tmp_path / name).write_text(text)
    done = verify(tmp_path / "stackmap-bind@eth1.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_would_find_one(tmp_path: Path) -> None:
    text = (UNITS / "stackmap-bind@.service").read_text()
    broken = tmp_path / "broken@eth1.service"
    broken.write_text(text.replace("RemainAfterExit=", "RemainAfterEnd="))
    assert "Unknown key 'RemainAfterEnd'" in verify(broken).stderr
