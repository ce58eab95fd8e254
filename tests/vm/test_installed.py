"""StackMap as an operator installs it: the module by Debian's DKMS, the NIC bound by systemd.

DKMS runs on this machine, in a mount namespace whose copies of ``/lib/modules``, ``/usr/src`` and
``/var/lib/dkms`` are the test's own, because a guest would take minutes to compile.  The guest then
has what DKMS made of ``/lib/modules``.
"""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stackmap import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stackmap_testbed.lab.guest import Guest
    from stackmap_testbed.lab.lab import Lab

COMMAND_SECONDS = 300.0
BUILD_SECONDS = 1200.0
pytestmark = pytest.mark.timeout(BUILD_SECONDS + 6 * COMMAND_SECONDS)

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "cli" / "stackmap_cli" / "systemd"
#: The command that README has, where it changes nothing of this machine.  DKMS logs to its tree.
INSTALL = """
for place in /lib/modules /usr/src /var/lib/dkms; do
	upper=$1/upper$place work=$1/work$place
	mkdir -p "$upper" "$work"
	mount -t overlay overlay -o "lowerdir=$place,upperdir=$upper,workdir=$work" $place
done
dkms install "$2/kmod" -k "$3" || {
	cat /var/lib/dkms/stackmap/*/build/make.log
	exit 1
}
dkms status stackmap
"""


@pytest.fixture(scope="module")
def installed(server: Guest, vm_lab: Lab) -> Iterator[None]:
    """The module is installed in the guest, and nothing else is where the command looks for it."""
    release = vm_lab.release
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="dkms-") as folder:
        command = [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            INSTALL,
            "install",
            folder,
            str(ROOT),
            release,
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=BUILD_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        status = f"stackmap/{__version__}, {release}, x86_64: installed\n"
        assert done.stdout.endswith(status), done.stdout
        server.run(f"""
            mount --bind {folder}/upper/lib/modules/{release} /lib/modules/{release}
            mount -t tmpfs tmpfs {ROOT}/build/kmod
            mount -t tmpfs tmpfs /opt
            mkdir -p /opt/stackmap/bin
            ln -s {Path(sys.executable).parent}/stackmap /opt/stackmap/bin
        """)
        yield
        server.run(f"umount /opt {ROOT}/build/kmod /lib/modules/{release}; rmmod stackmap")


def unit(name: str) -> list[str]:
    """The command of the unit of this name, for eth0."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SYSTEMD / "stackmap-bind@.service")
    return shlex.split(parser["Service"][name].replace("%I", "eth0"))


@pytest.mark.long
@pytest.mark.usefixtures("installed")
def test_the_unit_binds_with_the_module_that_dkms_installed(server: Guest) -> None:
    ko = server.run("modprobe --show-depends stackmap").stdout.split()
    assert ko[0] == "insmod"
    assert ko[1].endswith(("/updates/dkms/stackmap.ko", "/updates/dkms/stackmap.ko.xz"))
    server.run("ip link set eth0 down")
    server.run(unit("ExecStartPre"))
    started = server.run(unit("ExecStart"), timeout=COMMAND_SECONDS)
    assert started.stdout == "eth0 is bound.\n"
    assert server.run("tc qdisc show dev eth0 root").stdout.split()[1] == "stackmap"
    assert server.run("cat /sys/module/stackmap/version").stdout.strip() == __version__
    stopped = server.run(unit("ExecStop"), timeout=COMMAND_SECONDS)
    assert stopped.stdout == "eth0 is no longer bound.\n"
    assert server.run("tc qdisc show dev eth0 root").stdout.split()[1] != "stackmap"
