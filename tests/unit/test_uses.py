"""Uses of a NIC, and how a command finds the SSH session that it was started from."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stackmap_cli.topology import Device, Topology
from stackmap_cli.uses import SshSession, ssh_session

ETH0 = Device(1, "eth0", altnames=("enp3s0", "a-name-of-more-than-15-characters"))


def topology(*devices: Device) -> Topology:
    return Topology({device.index: device for device in (ETH0, *devices)})


@pytest.mark.parametrize("name", ["eth0", *ETH0.altnames])
def test_a_device_is_found_by_every_name(name: str) -> None:
    assert topology(Device(2, "eth1")).find(name) == ETH0
    assert topology(Device(2, "eth1")).find(name + "x") is None


def test_all_that_stands_on_a_nic_is_found_with_its_way_down() -> None:
    vlan = Device(2, "eth0.5", kind="vlan", below=frozenset({1}), master=3)
    bridge = Device(3, "br0", kind="bridge")
    tunnel = Device(4, "vxlan0", kind="vxlan", below=frozenset({3}))
    beside = Device(5, "eth1")
    found = topology(tunnel, bridge, vlan, beside)
    assert found.above(ETH0) == {
        1: (),
        2: ("eth0.5",),
        3: ("br0", "eth0.5"),
        4: ("vxlan0", "br0", "eth0.5"),
    }
    assert found.below(bridge) == [vlan]
    assert found.below(vlan) == [ETH0]


def test_a_loop_of_tunnels_ends() -> None:
    """Two tunnels, each with its far end behind the other."""
    one = Device(2, "gre1", kind="gre", below=frozenset({3, 1}))
    two = Device(3, "gre2", kind="gre", below=frozenset({2}))
    assert set(topology(one, two).above(ETH0)) == {1, 2, 3}


FIND = "from stackmap_cli.uses import ssh_session; print(ssh_session()); "


@pytest.mark.parametrize(
    ("connection", "session"),
    [
        ("192.0.2.7 51234 192.0.2.1 22", SshSession("192.0.2.7", "192.0.2.1")),
        ("2001:db8::7 51234 2001:db8::1 22", SshSession("2001:db8::7", "2001:db8::1")),
        ("fe80::7%eth0 5 fe80::1%eth0 22", SshSession("fe80::7", "fe80::1", "eth0")),
    ],
)
def test_the_session_is_found_when_the_environment_has_been_cleared(
    connection: str, session: SshSession
) -> None:
    """sudo does that: only a forebear has the variable."""
    cleared = f'env -i sh -c \'"{sys.executable}" -c "{FIND}"; true\'; true'
    told = subprocess.run(
        ["/usr/bin/env", "-i", f"SSH_CONNECTION={connection}", "/bin/sh", "-c", cleared],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{session}\n"


def test_without_a_session_there_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ssh_session(1) is None
