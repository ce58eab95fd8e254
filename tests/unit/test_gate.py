"""The gate on cost: what it makes of counts, and when it fails."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stackmap_testbed.cost import gate
from stackmap_testbed.cost.baseline import (
    GATED,
    MAX_SPREAD,
    SATURATED,
    SHARED_EVENTS,
    Record,
    faults,
    judge,
    keep,
    read_kept,
    spread,
)
from stackmap_testbed.cost.counting import Counter, build_plugin
from stackmap_testbed.cost.echo import EchoError, announced, read_report, running
from stackmap_testbed.lab.errors import GuestTimeoutError, LabError

HERE = {"kernel": "6.12.117+deb12-cloud-amd64", "qemu": "7.2.22", "gcc": "12.2.0"}
ON_RINGS = {rings: connections for rings, _epoll, connections in GATED}
ON_EPOLL = {epoll: connections for _rings, epoll, connections in GATED}
SERVERS = {**ON_RINGS, **ON_EPOLL}


def figure(ring: int, epoll: int = 60000, here: dict[str, str] = HERE) -> Record:
    """The same figures for all servers on rings, and for all on epoll."""

    def server(cost: int, happened: float) -> dict[str, Any]:
        events = dict.fromkeys(SHARED_EVENTS, happened)
        return {
            number: {"instructions": cost, "spread": 0.01, "events": dict(events)}
            for number in ("1", "16", "64", "256")
        }

    servers = {
        name: server(epoll, 2.0) if name in ON_EPOLL else server(ring, 0.2) for name in SERVERS
    }
    return {"servers": servers, "environment": here}


def test_spread_is_relative_to_the_median() -> None:
    assert spread([95.0, 100.0, 105.0]) == pytest.approx(0.1)
    assert spread([7.0]) == 0


@pytest.mark.parametrize(("server", "connections"), ON_RINGS.items())
@pytest.mark.parametrize(("ring", "passes"), [(51500, True), (51501, False), (40000, True)])
def test_three_percent_more_than_kept_fails(
    server: str, connections: str, ring: int, passes: bool
) -> None:
    measured = figure(50000)
    measured["servers"][server][connections]["instructions"] = ring
    verdict = judge(measured, figure(50000))
    assert verdict.passed is passes
    expected = f"{server}, {connections} connections: {ring} instructions, 50000 kept"
    assert any(sentence.startswith(expected) for sentence in verdict.sentences)


def test_one_connection_is_for_information() -> None:
    measured = figure(50000)
    for server in SERVERS:
        measured["servers"][server]["1"] = {"instructions": 70000, "spread": 0.2}
    assert judge(measured, figure(50000)).passed


def test_a_failure_says_how_to_keep_the_rise() -> None:
    verdict = judge(figure(55000), figure(50000))
    assert "+10.0%" in verdict.sentences[0]
    assert "make bench-gate UPDATE=1" in verdict.sentences[0]


def test_a_gain_is_worth_keeping() -> None:
    verdict = judge(figure(45000), figure(50000))
    assert verdict.passed
    assert "keep what was gained" in verdict.sentences[-1]


@pytest.mark.parametrize("name", ["kernel", "qemu", "gcc"])
def test_another_environment_is_judged_by_its_own_epoll_cost(name: str) -> None:
    there = {**HERE, name: "another"}
    verdict = judge(figure(55000, 66000, there), figure(50000))
    assert verdict.passed
    assert f"{name} {HERE[name]} instead of another" in verdict.sentences[-1]
    assert "make bench-gate UPDATE=1" in verdict.sentences[-1]


@pytest.mark.parametrize(("ring", "passes"), [(56600, True), (56700, False), (40000, True)])
def test_another_environment_allows_three_percent_of_epoll_cost(ring: int, passes: bool) -> None:
    verdict = judge(figure(ring, 66000, {**HERE, "gcc": "another"}), figure(50000))
    assert verdict.passed is passes
    assert any("of what epoll costs" in sentence for sentence in verdict.sentences)


def test_a_failure_elsewhere_says_by_how_much() -> None:
    verdict = judge(figure(55000, here={**HERE, "gcc": "another"}), figure(50000))
    assert "91.7% of what epoll costs" in verdict.sentences[0]
    assert "83.3% kept" in verdict.sentences[0]
    assert "+10.0%" in verdict.sentences[0]


def test_a_name_on_one_side_only_is_a_difference() -> None:
    verdict = judge(figure(50000, here={**HERE, "cffi": "2.1.1"}), figure(50000))
    assert verdict.passed
    assert "cffi None instead of 2.1.1" in verdict.sentences[-1]


@pytest.mark.parametrize("elsewhere", [{}, {"kernel": "another"}])
@pytest.mark.parametrize(("rings", "epoll", "connections"), GATED)
def test_rings_must_cost_less_than_epoll_anywhere(
    elsewhere: dict[str, str], rings: str, epoll: str, connections: str
) -> None:
    measured = figure(50000, here={**HERE, **elsewhere})
    measured["servers"][epoll][connections]["instructions"] = 50000
    verdict = judge(measured, figure(50000))
    assert not verdict.passed
    assert verdict.sentences[0].startswith(f"{rings}, {connections} connections")
    assert "rings must cost less" in verdict.sentences[0]


@pytest.mark.parametrize("event", SHARED_EVENTS)
def test_saturated_rings_share_doorbells_and_interrupts(event: str) -> None:
    measured = figure(50000)
    rings, _epoll, connections = SATURATED
    measured["servers"][rings][connections]["events"][event] = 0.21
    verdict = judge(measured, figure(50000))
    assert not verdict.passed
    assert f"0.21 {event} per request, and 2.00 on epoll" in verdict.sentences[0]


@pytest.mark.parametrize("elsewhere", [{}, {"kernel": "another"}])
@pytest.mark.parametrize(("server", "connections"), SERVERS.items())
def test_repeats_that_differ_decide_nothing(
    elsewhere: dict[str, str], server: str, connections: str
) -> None:
    apart = figure(50000, here={**HERE, **elsewhere})
    apart["servers"][server][connections]["spread"] = MAX_SPREAD
    verdict = judge(apart, figure(50000))
    assert not verdict.passed
    assert verdict.sentences[0].startswith(f"{server}, {connections} connections")
    assert "find out what is not repeatable" in verdict.sentences[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        json.dumps({"6.1": figure(50000)}),
        json.dumps({"6.12": {**figure(50000), "servers": {}}}),
        json.dumps({"6.12": {**figure(50000), "environment": None}}),
    ],
)
def test_a_broken_kept_figure_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(LabError, match=r"does not hold kept figures of Linux 6\.12"):
        read_kept("6.12", path)


@pytest.mark.parametrize("series", ["6.12", "6.1"])
def test_the_kept_figures_are_complete(series: str) -> None:
    kept = read_kept(series)
    assert set(kept["environment"]) == {"kernel", "qemu", "gcc", "python", "cffi"}
    assert kept["environment"]["kernel"].startswith(f"{series}.")
    assert faults(kept) == []


def report(*lines: tuple[int, int, int]) -> str:
    return "\n".join(
        json.dumps(
            {
                "bytes": 64,
                "connections": connections,
                "requests": requests,
                "errors": errors,
                "p99_ns": 1000,
            }
        )
        for connections, requests, errors in lines
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (report((1, 9, 1)), "9 replies were right, 1 wrong or missing"),
        (report((1, 0, 0)), "0 replies were right"),
    ],
)
def test_a_load_that_went_wrong_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(EchoError, match=complaint):
        read_report(text)


class Mute:
    """A guest in which each process ends before it listens."""

    def popen(self, *_arguments: Any, **_options: Any) -> Any:
        return self

    def wait_for_output(self, *_arguments: Any, **_options: Any) -> None:
        raise GuestTimeoutError("'server' in the guest ended with 1")

    def output(self) -> str:
        return "no such option\n"

    def kill(self, _number: int) -> None:
        pass

    wait = kill


def test_a_server_that_does_not_listen_is_quoted() -> None:
    guest: Any = Mute()
    with (
        pytest.raises(EchoError, match=r"not listen on .*, port 7; it said: no such option$"),
        running(guest, ["server"], rings=False),
    ):
        pass


def started(command: list[str], tmp_path: Path, listening: str) -> subprocess.Popen[str]:
    """A server that does not say when it is listening; ``ss`` prints ``listening`` about it."""
    ss = tmp_path / "ss"
    ss.write_text(f"#!/bin/sh\n{listening}\n")
    ss.chmod(0o755)
    return subprocess.Popen(
        announced(command, patience=0.5),
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )


def test_a_port_announces_a_server(tmp_path: Path) -> None:
    with started(["sleep", "60"], tmp_path, f"cat {tmp_path}/ports 2>/dev/null") as server:
        (tmp_path / "ports").write_text("LISTEN\n")
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        server.kill()


def test_a_server_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    with started(["echo", "no such option"], tmp_path, "true") as server:
        server.wait(30)
        assert server.stdout is not None
        assert server.stdout.read() == "no such option\n"


def test_a_server_on_another_port_is_ended(tmp_path: Path) -> None:
    line = f'LISTEN 0 5 [::]:7000 [::]:* users:((\\"s\\",pid=$(cat {tmp_path}/pid),fd=3))'
    with started(["sleep", "60"], tmp_path, f'[ $1 = -Hltn ] || echo "{line}"') as server:
        (tmp_path / "pid").write_text(str(server.pid))
        assert server.wait(30) == -signal.SIGTERM
        assert server.stdout is not None
        assert server.stdout.read() == "it listens on [::]:7000\n"


def test_the_counts_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    path.write_bytes(struct.pack("=5Q", 2, 100, 230, 0, 0))
    assert Counter(path, tmp_path / "blocks").marks() == [100, 230]


def test_the_plugin_has_what_qemu_asks_for(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("gcc is not installed")
    plugin = build_plugin(tmp_path)
    names = subprocess.run(
        ["nm", "--dynamic", "--defined-only", plugin], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"qemu_plugin_install", "qemu_plugin_version"} <= set(names)


def run_gate(
    measured: Record, kept: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, Record]:
    """Let the gate find ``measured``; returns its status, and the file that it wrote."""
    out = kept.with_name("out") / "bench-gate.json"
    monkeypatch.setattr(gate, "KEPT", kept)
    monkeypatch.setattr(gate, "measure", lambda *_arguments, **_options: measured)
    status = gate.main(["--out", str(out), *options])
    return status, json.loads(out.read_text())


def test_an_update_replaces_the_figures_of_its_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    older = figure(48000, here={**HERE, "kernel": "6.1.0-56-cloud-amd64"})
    keep(figure(50000), kept)
    keep(older, kept)
    before, after = figure(50000), figure(55000)
    assert run_gate(after, kept, monkeypatch) == (1, after)
    assert "FAILED" in capsys.readouterr().out
    assert json.loads(kept.read_text()) == {"6.12": before, "6.1": older}
    assert run_gate(after, kept, monkeypatch, "--update") == (0, after)
    assert json.loads(kept.read_text()) == {"6.12": after, "6.1": older}
    assert run_gate(after, kept, monkeypatch) == (0, after)
    assert "passed" in capsys.readouterr().out


def test_figures_with_errors_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    keep(figure(50000), kept)
    assert run_gate(figure(60000), kept, monkeypatch, "--update") == (1, figure(60000))
    said = capsys.readouterr().out
    assert "rings must cost less" in said
    assert "not kept" in said
    assert read_kept("6.12", kept) == figure(50000)


def test_an_update_needs_no_figures_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    assert run_gate(figure(50000), kept, monkeypatch, "--update")[0] == 0
    assert read_kept("6.12", kept) == figure(50000)


def test_a_machine_without_what_is_needed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(_kernel: str, _module: Path | None, *, to_keep: bool) -> Record:
        raise LabError("QEMU is not installed")

    monkeypatch.setattr(gate, "measure", measure)
    assert gate.main([]) == 1
    assert capsys.readouterr().err == "error: QEMU is not installed\n"


def test_only_what_is_of_interest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {
        "instructions": 5, "spread": 0, "parts": {}, "sleeping": 0, "repetitions": 0,
        "events": {"doorbells": 0.5}, "client": 4, "p99_us": 3, "files": {}, "functions": {},
    }  # fmt: skip

    def run(
        _kernel: str, _module: Path | None, servers: Any, _repeats: int, *, bursts: bool
    ) -> Any:
        assert all(server.sizes == (64,) for server in servers.values())
        assert all(server.connections == (16,) for server in servers.values())
        figures = {name: {"64": {"256" if bursts else "16": whole}} for name in servers}
        return {"servers": figures, "requests": 1280, "environment": HERE}

    monkeypatch.setattr(gate, "run", run)
    found = gate.measure("6.12", None, to_keep=False)
    assert found["environment"] == HERE
    assert {name: list(figures) for name, figures in found["servers"].items()} == {
        name: [connections] for name, connections in SERVERS.items()
    }
    figures = found["servers"]["C rings"]["16"]
    assert figures["events"] == {"doorbells": 0.5}
    assert not {"files", "functions", "p99_us", "client"} & set(figures)
