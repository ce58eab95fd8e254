"""Output of ``stackmap ports``, ``conns`` and ``stats``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich.console import Console

from stackmap import DEVICE
from stackmap.inspect import ConnectionInfo, Counters, Grants, PortInfo, RingInfo
from stackmap_cli.main import main
from stackmap_cli.show import connections_table, counters_table, ports_table

if TYPE_CHECKING:
    from rich.table import Table

COUNTERS = Counters(*range(1000, 1016))
PORT = PortInfo(
    mem_id=7,
    name="tcp:eth1",
    ifindex=3,
    pid=812,
    uid=1000,
    rings=1,
    tx_slots=1024,
    rx_slots=2048,
    bufs=7168,
    bufs_free=4000,
    bufs_pinned=96,
    connections_max=16384,
    counters=COUNTERS,
)
CONNECTION = ConnectionInfo(
    mem_id=7,
    id=5,
    ring=0,
    inode=30211,
    state="ESTAB",
    local="192.0.2.1",
    local_port=11211,
    peer="192.0.2.2",
    peer_port=40000,
    bufs_pinned=2,
    bytes_pinned=8000,
    rest=17,
    paused=False,
    blocked=False,
    leaving=False,
)


def lines(table: Table) -> list[list[str]]:
    """The words of every line, as printed 200 columns wide."""
    console = Console(width=200, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_a_port_is_a_line() -> None:
    heading, line = lines(ports_table([PORT], {}))
    assert dict(zip(heading, line, strict=True)) == {
        "PORT": "7", "NAME": "tcp:eth1", "PID": "812", "UID": "1000", "RINGS": "1",
        "TX-SLOTS": "1024", "RX-SLOTS": "2048", "BUFFERS": "7168", "FREE": "4000",
        "PINNED": "96", "CONNS": "1015", "MAX": "16384",
    }  # fmt: skip


def test_a_port_whose_nic_is_gone_says_so() -> None:
    line = lines(ports_table([PORT, replace(PORT, ifindex=None)], {"eth2": "fq"}))[2]
    assert "tcp:eth1 (no longer bound)" in " ".join(line)


def test_a_port_whose_binding_somebody_took_says_what_is_in_its_place() -> None:
    taken = replace(PORT, ifindex=None)
    sentence = "tcp:eth1 (no longer bound: its qdisc is fq now)"
    assert sentence in " ".join(lines(ports_table([taken], {"eth1": "fq"}))[1])
    assert sentence in " ".join(lines(counters_table(taken, [], {"eth1": "fq"}))[0])


def test_a_connection_is_a_line_with_its_addresses_as_ss_writes_them() -> None:
    six = replace(CONNECTION, local="2001:db8::1", peer="::ffff:192.0.2.2")
    busy = replace(CONNECTION, paused=True, blocked=True)
    heading, plain, over_six, flagged = lines(connections_table([CONNECTION, six, busy]))
    assert " ".join(heading) == "PORT RING ID INODE STATE LOCAL PEER PINNED BYTES REST FLAGS"
    assert " ".join(plain) == "7 0 5 30211 ESTAB 192.0.2.1:11211 192.0.2.2:40000 2 8000 17"
    assert over_six[5:7] == ["[2001:db8::1]:11211", "[::ffff:192.0.2.2]:40000"]
    assert flagged[-1] == "paused,blocked"


def test_one_ring_needs_no_column_of_its_own() -> None:
    ring = RingInfo(7, 0, None, 0, tx_stalled=False, counters=COUNTERS)
    heading, *rows = lines(counters_table(PORT, [ring], {}))
    assert heading == ["PORT", "7,", "tcp:eth1", "ALL"]
    assert rows[0] == ["rx-bytes", "1000"]
    assert rows[-1] == ["connections", "1015"]
    assert len(rows) == 16


def test_several_rings_stand_beside_their_sum() -> None:
    halves = [
        RingInfo(7, i, i, 0, tx_stalled=False, counters=Counters(*[500 + i] * 16)) for i in range(2)
    ]
    heading, *rows = lines(counters_table(PORT, halves, {}))
    assert heading[3:] == ["ALL", "RING", "0", "RING", "1"]
    assert rows[0] == ["rx-bytes", "1000", "500", "501"]


def test_a_table_names_no_markup() -> None:
    line = lines(ports_table([replace(PORT, name="tcp:[red]x")], {}))[1]
    assert "tcp:[red]x" in line


@pytest.mark.skipif(os.path.exists(DEVICE), reason="the kernel module is loaded")  # noqa: PTH110
@pytest.mark.parametrize("command", ["ports", "conns", "stats"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_the_module_it_is_one_sentence(command: str, options: list[str]) -> None:
    result = CliRunner().invoke(main, [command, *options])
    assert result.exit_code == 1
    assert result.output.startswith("Error: the kernel module is not loaded")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("grants", "sentence"),
    [
        (Grants(), "only root may open ports on it"),
        (Grants(uid=0), "user root may open ports on it"),
        (Grants(gid=0), "group root may open ports on it"),
        (Grants(uid=0, gid=4242424), "user root and group 4242424 may open ports on it"),
    ],
)
def test_who_may_open_ports(grants: Grants, sentence: str) -> None:
    assert str(grants) == sentence


@pytest.mark.parametrize(
    ("option", "sentence"), [("--user", "no user 'nobody-at-all'"), ("--group", "no group")]
)
def test_an_unknown_user_or_group_is_refused(option: str, sentence: str) -> None:
    result = CliRunner().invoke(main, ["bind", "eth0", option, "nobody-at-all"])
    assert result.exit_code == 1
    assert sentence in result.output
