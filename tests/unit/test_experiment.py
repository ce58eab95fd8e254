"""The comparison: its order, one measurement on hosts that are this machine, what it condenses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram

from stackmap_testbed import experiment
from stackmap_testbed.experiment import (
    LoadError,
    Plan,
    Run,
    ServerError,
    measure,
    schedule,
    serving,
)
from stackmap_testbed.plot import plot_latency
from stackmap_testbed.report import render_html, verdict
from stackmap_testbed.summary import caveats, path, pinning, problems, ratios, summarise

COUNTERS = {
    "ring_bytes_rx": 100,
    "ring_bytes_tx": 900,
    "socket_bytes_rx": 0,
    "socket_bytes_tx": 0,
    "slots_sent": 10,
    "slots_released_by_ack": 10,
    "slots_pinned": 0,
}


def histogram(*milliseconds: int) -> str:
    recorded = HdrHistogram(1, 3600 * 10**9, 3)
    for value in milliseconds:
        recorded.record_value(value * 1_000_000)
    return str(recorded.encode().decode())


def a_run(backend: str, connections: int = 1, number: int = 0, speed: float = 1.0) -> Run:
    return Run(
        backend=backend,
        connections=connections,
        round=number,
        value_size=64,
        requests=int(1000 * speed),
        errors=0,
        first_wrong=None,
        seconds=1.0,
        requests_per_second=1000 * speed,
        server_cpu_seconds=0.5,
        server_cpu_us_per_request=500 / speed,
        requests_per_cpu_second=2000 * speed,
        latency_us={"p50": 1 / speed, "p90": 2 / speed, "p99": 3 / speed, "p999": 4 / speed},
        histogram=histogram(*range(1, 40)),
        counters=COUNTERS if backend == "stackmap" else {},
    )


RUNS = [
    a_run("sockets", 16, 0),
    a_run("stackmap", 16, 0, 2.0),
    a_run("stackmap", 16, 1, 1.5),
    a_run("sockets", 16, 1),
    a_run("sockets", 16, 2),
    a_run("stackmap", 16, 2, 4.0),
]


def test_pairs_alternate_their_order() -> None:
    order = list(schedule(Plan("h", connections=(1, 16), rounds=2)))
    assert order == [
        (1, 0, "sockets"),
        (1, 0, "stackmap"),
        (1, 1, "stackmap"),
        (1, 1, "sockets"),
        (16, 0, "sockets"),
        (16, 0, "stackmap"),
        (16, 1, "stackmap"),
        (16, 1, "sockets"),
    ]


def test_ratios_are_medians_of_paired_rounds() -> None:
    ratio = ratios(RUNS)["16"]
    assert ratio["throughput"] == {"median": 2.0, "min": 1.5, "max": 4.0}
    assert ratio["requests_per_cpu_second"] == {"median": 2.0, "min": 1.5, "max": 4.0}
    assert ratio["cpu_per_request"] == {"median": 0.5, "min": 0.25, "max": 0.6667}
    assert ratio["p99"] == {"median": 0.5, "min": 0.25, "max": 0.6667}


def test_pinning_and_path_count_the_ring_runs() -> None:
    assert pinning(RUNS) == {
        "slots_sent": 30,
        "slots_released_by_ack": 30,
        "slots_pinned_at_end": 0,
    }
    assert path(RUNS) == {
        "ring_bytes_rx": 300,
        "ring_bytes_tx": 2700,
        "socket_bytes_rx": 0,
        "socket_bytes_tx": 0,
    }


def test_a_clean_comparison_has_no_problems() -> None:
    assert problems(RUNS, {"server": [], "client": []}) == []


@pytest.mark.parametrize(
    ("counters", "complaint"),
    [
        ({"socket_bytes_tx": 1}, "1 payload bytes went through sockets"),
        ({"socket_bytes_rx": 7}, "7 payload bytes went through sockets"),
        ({"ring_bytes_tx": 0}, "no payload went through the rings"),
        ({"slots_pinned": 2}, "2 transmit buffers are still pinned"),
    ],
)
def test_what_must_not_be_counted(counters: dict[str, int], complaint: str) -> None:
    run = dataclasses.replace(RUNS[1], counters=COUNTERS | counters)
    (problem,) = problems([RUNS[0], run], {})
    assert complaint in problem


def test_wrong_replies_and_kernel_complaints_are_problems() -> None:
    run = dataclasses.replace(RUNS[0], errors=3, first_wrong="offset 5")
    found = problems([run], {"server": ["WARNING: at net/"], "client": []})
    assert len(found) == 2
    assert "3 wrong or missing replies (offset 5)" in found[0]
    assert found[1] == "kernel log of the server: WARNING: at net/"


def a_report() -> dict[str, object]:
    return summarise(
        Plan("h", connections=(16,)),
        RUNS,
        kernel="6.12.0",
        accel="tcg",
        machine={"processor": "a <fast> one", "cores": 2, "load_average_at_start": 0.2},
        kernel_log={"server": [], "client": []},
    )


def test_report_is_json_and_says_that_it_was_emulated() -> None:
    report = json.loads(json.dumps(a_report()))
    assert report["accel"] == "tcg"
    assert "absolute times and rates mean nothing" in report["caveat"]
    assert len(report["runs"]) == len(RUNS)
    assert report["problems"] == []


def test_caveats() -> None:
    assert caveats("kvm", {"load_average_at_start": 0.1}) == ""
    assert "only ratios" in caveats("tcg", {"load_average_at_start": 0.1})
    assert "load average 3.5" in caveats("kvm", {"load_average_at_start": 3.5})


def test_page_has_everything_inside() -> None:
    page = render_html(a_report(), b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "a &lt;fast&gt; one" in page
    assert "absolute times and rates mean nothing" in page


def test_page_shows_problems() -> None:
    page = render_html(a_report() | {"problems": ["a <bad> thing"]}, b"")
    assert "a &lt;bad&gt; thing" in page


def test_picture_is_a_png(tmp_path: Path) -> None:
    plot_latency(RUNS, "title", "caveat", tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high", "more", "fewer"),
    [(1.1, 1.3, "better", "worse"), (0.8, 0.9, "worse", "better"), (0.9, 1.1, "", "")],
)
def test_verdict_needs_every_round(low: float, high: float, more: str, fewer: str) -> None:
    ratio = {"median": 1.0, "min": low, "max": high}
    assert verdict(ratio, more_is_better=True) == more
    assert verdict(ratio, more_is_better=False) == fewer


class LocalProcess:
    """A process of this machine, seen as the experiment sees one of a host."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.stdout = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.stdout += line

    def output(self) -> str:
        return self.stdout

    def wait_for_output(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.stdout)):
            if time.monotonic() > deadline or not self._reader.is_alive():
                raise TimeoutError(f"{pattern!r} is not in {self.stdout!r}")
            time.sleep(0.01)
        return match

    def wait(self, timeout: float | None = None) -> int:
        status = self._process.wait(timeout)
        self._reader.join()
        return status

    def kill(self, number: int = 9) -> None:
        self._process.send_signal(number)


class LocalHosts:
    """Server and client on this machine; the processor time is made up."""

    def __init__(self) -> None:
        self._cpu = 0.0

    @property
    def server(self) -> LocalHosts:
        return self

    @property
    def client(self) -> LocalHosts:
        return self

    def popen(self, argv: list[str]) -> LocalProcess:
        return LocalProcess(argv)

    def vcpu_cpu_seconds(self) -> float:
        self._cpu += 0.25
        return self._cpu


@pytest.fixture
def plan() -> Plan:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return Plan("127.0.0.1", port=port, warmup=0.1, seconds=0.3, patience=20.0)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``stackmap`` command that runs Debian's memcached."""
    memcached = shutil.which("memcached", path="/usr/bin:/usr/local/bin")
    if memcached is None:
        pytest.skip("memcached is not installed")
    command = tmp_path / "stackmap"
    command.write_text(
        f'#!/bin/sh\n(sleep 0.3; echo listening on) &\nexec {memcached} -u nobody -l "${{6%:*}}" '
        '-p "${6##*:}"\n'
    )
    command.chmod(0o755)
    monkeypatch.setattr(experiment, "program", lambda _: str(command))
    return command


@pytest.mark.usefixtures("stand_in")
def test_measure(plan: Plan) -> None:
    run = measure(LocalHosts(), plan, 4, 1, "sockets")
    assert (run.backend, run.connections, run.round, run.errors) == ("sockets", 4, 1, 0)
    assert run.requests > 0
    assert run.server_cpu_seconds == 0.25
    assert run.server_cpu_us_per_request == pytest.approx(250_000 / run.requests)
    assert run.requests_per_cpu_second == pytest.approx(run.requests / 0.25)


def test_a_server_that_dies_is_named(stand_in: Path, plan: Plan) -> None:
    stand_in.write_text("#!/bin/sh\necho listening on; sleep 0.2; echo alas; exit 3\n")
    with (
        pytest.raises(ServerError, match=r"ended with 3: (?s:.*)alas"),
        serving(LocalHosts(), plan, "stackmap") as process,
    ):
        process.wait(20)


def test_a_load_without_result_is_named(stand_in: Path, plan: Plan) -> None:
    stand_in.write_text("#!/bin/sh\necho listening on; exec sleep 60\n")
    with pytest.raises((LoadError, TimeoutError), match="Connection refused") as caught:
        measure(LocalHosts(), plan, 1, 0, "sockets")
    (evidence,) = caught.value.__notes__
    assert "== server ==" in evidence
    assert "== client ==" in evidence
    assert "TCP:" in evidence, "what ss says"
