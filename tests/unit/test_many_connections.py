"""The cost among many connections: what is measured, and when it fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.cost import many_connections
from stackmap_testbed.lab.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

Run = dict[str, Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Run:
    """What the command asks the machine for; ``cost`` says what it finds among many connections."""
    asked: Run = {"cost": {}}

    def run(_kernel: str, _module: Path | None, servers: Any, repeats: int, **rest: Any) -> Any:
        asked.update(servers=servers, repeats=repeats, **rest)
        return {
            "servers": {
                name: {
                    "64": {
                        "100": {"instructions": 1000},
                        "10000": {"instructions": asked["cost"].get(name, 1000)},
                    }
                }
                for name in servers
            }
        }

    monkeypatch.setattr(many_connections, "run", run)
    return asked


@pytest.mark.parametrize(
    ("server", "cost", "status"),
    [
        ("C rings", 1100, 0),
        ("C rings", 1101, 1),
        ("bare rings", 1101, 1),
        ("C epoll", 2000, 0),
    ],
)
def test_a_tenth_more_on_rings_fails(
    asked: Run, tmp_path: Path, server: str, cost: int, status: int
) -> None:
    asked["cost"][server] = cost
    out = tmp_path / "out.json"
    assert many_connections.main(["--out", str(out)]) == status
    assert json.loads(out.read_text())["ratios"][server] == cost / 1000


def test_only_the_number_of_connections_differs(asked: Run, tmp_path: Path) -> None:
    many_connections.main(["--out", str(tmp_path / "out.json")])
    assert list(asked["servers"]) == ["C rings", "C epoll", "bare rings", "bare epoll"]
    for server in asked["servers"].values():
        assert server.connections == ["100/64", "10000/64"]
        assert server.files > 10000
    assert asked["requests"] == 10000, "each connection has one"
    assert "quickack" in asked["setup"]


def test_acks_are_left_to_the_client_on_demand(asked: Run, tmp_path: Path) -> None:
    many_connections.main(["--delayed-acks", "--out", str(tmp_path / "out.json")])
    assert not asked["setup"]


def test_a_machine_that_does_not_boot_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_arguments: Any, **_options: Any) -> Any:
        raise LabError("it does not boot")

    monkeypatch.setattr(many_connections, "run", run)
    assert many_connections.main(["--out", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err == "error: it does not boot\n"
