"""A server's cost by part: what is made of figures, and what is asked for."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from stackmap_testbed.cost import profile
from stackmap_testbed.cost.by_part import ALL_PARTS, beside, heading, profiles, read_profiles
from stackmap_testbed.cost.profile_table import table
from stackmap_testbed.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stackmap_testbed.cost.models import Server


def figure(tcp: float, module: int = 0) -> dict[str, Any]:
    """A server's figures as models has them."""
    parts = {"python": 500, "extension": 30, "other C": 20, "module": module, "kernel": 4000}
    functions = {"tcp_ack": tcp, "__tcp_push": 40.0, "vp_notify [virtio_pci]": 7.0, "odd": 3.0}
    if module:
        functions["sm_tx_sync [stackmap]"] = float(module)
    files = {"python3.11": 500.0, "_fast.so": 30.0, "libc.so.6": 20.0}
    return {"parts": parts, "functions": functions, "files": files}


FIGURES = {
    "servers": {
        "C rings": {"64": {"1": figure(3000, 250), "16": figure(2000, 200)}},
        "by itself": {"64": {"16": figure(100)}},
        "C epoll": {"64": {"1": figure(3100), "16": figure(2500)}},
    }
}


def test_parts_add_up_to_all() -> None:
    (first, *_) = profiles(FIGURES)
    assert (first.server, first.size, first.connections) == ("C rings", 64, 1)
    assert first.parts == {
        **dict.fromkeys(ALL_PARTS, 0),
        "python": 500,
        "extension": 30,
        "other C": 20,
        "module": 250,
        "TCP": 3040,
        "driver": 7,
        "other": 4000 - 3047,
    }
    assert first.instructions == 500 + 30 + 20 + 250 + 4000
    assert first.functions["TCP"] == {"tcp_ack": 3000, "__tcp_push": 40}
    assert first.functions["module"] == {"sm_tx_sync [stackmap]": 250}
    assert first.functions["other C"] == {"libc.so.6": 20}


def test_rings_are_beside_sockets() -> None:
    found = [each for each in profiles(FIGURES) if each.connections == 16]
    assert [
        (profile.server, sockets.server if sockets else None) for profile, sockets in beside(found)
    ] == [("C rings", "C epoll"), ("by itself", None)]


def test_rings_are_beside_sockets_of_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / "here" / "profile.json", tmp_path / "there" / "profile.json"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(FIGURES))
    found = [each for each in read_profiles(paths) if each.connections == 1]
    assert [each.source for each in found] == [
        name for name in ("here/profile", "there/profile") for _ in range(2)
    ]
    for rings, sockets in beside(found):
        assert sockets is not None
        assert sockets.source == rings.source


def test_a_heading_has_its_plural() -> None:
    one, sixteen, *_ = profiles(FIGURES)
    assert heading(one) == "64 bytes, 1 connection"
    assert heading(sixteen) == "64 bytes, 16 connections"


def shown(top: int) -> list[list[str]]:
    """The rows of the table with 16 connections, by cell."""
    out = io.StringIO()
    found = [each for each in profiles(FIGURES) if each.connections == 16]
    Console(file=out, width=120).print(table(found, top))
    lines = [line.strip("│") for line in out.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")] for line in lines]


def test_the_table_is_in_thousands_with_the_difference() -> None:
    rows = shown(0)
    assert rows[0] == ["all", "4.75", "4.55", "+0.20", "4.55"]
    assert ["TCP", "2.04", "2.54", "-0.50", "0.14"] in rows
    assert ["driver", "0.01", "0.01", "+0.00", "0.01"] in rows
    assert "GRO" not in [row[0] for row in rows], "nothing is in it"


def test_the_most_expensive_functions_of_each_part_are_shown() -> None:
    rows = shown(1)
    after = {row[0]: below[0] for row, below in pairwise(rows)}
    assert after["TCP"] == "tcp_ack"
    assert after["tcp_ack"] == "driver", "one function, and no more"
    assert after["module"] == "sm_tx_sync [stackmap]"


def test_a_file_of_figures_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "figures.json", tmp_path / "out"
    path.write_text(json.dumps(FIGURES))
    assert profile.main(["--from", str(path), "--servers", "^C", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "C rings" in printed
    assert "by itself" not in printed
    assert printed.index("1 connection") < printed.index("16 connections")
    assert (out / "profile.svg").read_text().startswith("<?xml")
    assert (out / "profile.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "profile.json").exists(), "nothing was measured"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read"),
        ("[]", "has no figures by function"),
        ('{"servers": {"C rings": {"16": {"instructions": 5}}}}', "has no figures by function"),
        ('{"servers": {}}', "nothing in there is what you asked for"),
    ],
)
def test_a_file_without_figures_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(text)
    assert profile.main(["--from", str(path), "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert complaint in error


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"none\.json cannot be read"):
        read_profiles([tmp_path / "none.json"])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Server]:
    """The servers that the command measures, without a machine."""
    asked: dict[str, Server] = {}

    def run(
        _kernel: str,
        _module: Path | None,
        servers: Mapping[str, Server],
        _times: int,
        *,
        nic: str,
    ) -> Any:
        assert nic == "virtio-net"
        asked.update(servers)
        return {
            "servers": {
                name: {
                    str(size): {str(number): figure(100) for number in server.connections}
                    for size in server.sizes
                }
                for name, server in servers.items()
            }
        }

    monkeypatch.setattr(profile, "run", run)
    return asked


def test_bars_are_in_the_order_of_the_table(
    measured: dict[str, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        profile,
        "plot_profiles",
        lambda groups, *_rest: drawn.extend([each.server for each in group] for group in groups),
    )
    options = ["--servers", "^C (rings|epoll)$", "--connections", "16", "--out", str(tmp_path)]
    assert profile.main(options) == 0
    assert list(measured) == ["C epoll", "C rings"]
    assert drawn == [["C rings", "C epoll"]]


def test_the_servers_of_the_gate_are_measured(measured: dict[str, Server], tmp_path: Path) -> None:
    assert profile.main(["--out", str(tmp_path)]) == 0
    assert list(measured) == ["C rings", "C epoll", "bare rings", "bare epoll"]
    assert {(*server.sizes, *server.connections) for server in measured.values()} == {
        (64, 1, 16, 64)
    }
    kept = json.loads((tmp_path / "profile.json").read_text())
    assert kept["servers"]["C epoll"]["64"]["16"]["by part"]["TCP"] == 140
    assert read_profiles([tmp_path / "profile.json"])


def test_servers_of_the_readers_own_are_measured(
    measured: dict[str, Server], tmp_path: Path
) -> None:
    own = ["--rings", "mine=serve 'a b' eth0", "--sockets", "mine=serve", "--load", "memcached"]
    assert profile.main([*own, "--connections", "8", "--bytes", "100", "--out", str(tmp_path)]) == 0
    rings, sockets = measured["mine rings"], measured["mine sockets"]
    assert list(measured) == ["mine rings", "mine sockets"]
    assert (rings.rings, sockets.rings) == (True, False)
    assert rings.command[-3:] == ["serve", "a b", "eth0"]
    assert rings.load == sockets.load == ("--memcached",)
    assert (rings.sizes, rings.connections) == ([100], [8])


def test_servers_of_ones_own_are_beside_others(measured: dict[str, Server], tmp_path: Path) -> None:
    options = ["--servers", "^C epoll$", "--sockets", "mine=serve", "--out", str(tmp_path)]
    assert profile.main(options) == 0
    assert list(measured) == ["C epoll", "mine sockets"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rings", "serve"], "--rings takes NAME=COMMAND, and not 'serve'"),
        (["--rings", "=serve"], "--rings takes NAME=COMMAND"),
        (["--sockets", "mine="], "--sockets takes NAME=COMMAND"),
        (["--sockets", "mine='serve"], '"\'serve" is not a command: No closing quotation'),
        (["--rings", "a=b", "--rings", "a=c"], "there are two servers with the name 'a'"),
        (["--from", "x", "--rings", "a=b"], "--from measures nothing"),
        (["--servers", "["], "'[' is no pattern: unterminated character set"),
        (["--connections", "16", "0"], "'0' is no number of at least 1"),
        (["--repeats", "-1"], "'-1' is no number of at least 1"),
        (["--load", "dns"], "invalid choice: 'dns'"),
    ],
)
def test_a_command_that_cannot_be_understood_is_explained(
    capsys: pytest.CaptureFixture[str], options: Sequence[str], complaint: str
) -> None:
    with pytest.raises(SystemExit):
        profile.main(options)
    assert complaint in capsys.readouterr().err


def test_a_pattern_without_servers_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["--servers", "nobody"]) == 1
    error = capsys.readouterr().err
    assert "no server's name has 'nobody' in it; there are" in error
    assert "C epoll" in error
