"""systemd accepts the unit, and the udev rule names it; nothing of this machine is changed.

``tests/vm/test_installed.py`` runs the commands of the unit.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

UNITS = Path(__file__).resolve().parents[2] / "cli" / "stackmap_cli" / "systemd"
#: In a mount namespace of its own, where the command is where README installs it.
VERIFY = """
mount -t tmpfs tmpfs /opt
mkdir -p /opt/stackmap/bin
cp /bin/true /opt/stackmap/bin/stackmap
systemd-analyze verify "$1"
"""
#: In network and mount namespaces of its own, the only NIC of which is lo.
ADD = """
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/udev/rules.d
cp "$1" /run/udev/rules.d
udevadm test --action=add /sys/class/net/lo
"""
PLACEHOLDER, LO = "02:00:00:00:00:01", "00:00:00:00:00:00"


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


def wanted_by_lo(rules: Path) -> list[str]:
    """The unit that systemd would start for lo if it appeared, by these rules."""
    command = ["unshare", "--net", "--mount", "sh", "-ec", ADD, "add", str(rules)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return re.findall(r"^SYSTEMD_WANTS=(.*)$", done.stdout, re.MULTILINE)


def test_the_rule_starts_the_unit_for_its_nic_only(tmp_path: Path) -> None:
    rules = (UNITS / "90-stackmap.rules").read_text()
    assert rules.count(PLACEHOLDER) == 1
    copy = tmp_path / "90-stackmap.rules"
    copy.write_text(rules)
    assert wanted_by_lo(copy) == []
    copy.write_text(rules.replace(PLACEHOLDER, LO))
    assert wanted_by_lo(copy) == ["stackmap-bind@lo.service"]
