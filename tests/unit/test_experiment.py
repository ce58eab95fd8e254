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

from stackmap_testbed.comparison import experiment
from stackmap_testbed.comparison.experiment import (
    LoadError,
    Plan,
    Run,
    ServerError,
    Step,
    measure,
    peak,
    schedule,
    serving,
)
from stackmap_testbed.comparison.machine import UNKNOWN, describe_commit, describe_machine
from stackmap_testbed.comparison.plot import plot_latency
from stackmap_testbed.comparison.report import render_html, saturation, verdict
from stackmap_testbed.comparison.summary import (
    caveats,
    loads,
    path,
    pinning,
    problems,
    ratios,
    saturated,
    summarise,
)

COUNTERS = {
    "rx_bytes": 100,
    "tx_bytes": 900,
    "socket_rx_bytes": 0,
    "socket_tx_bytes": 0,
    "slots_sent": 10,
    "slots_released_ack": 10,
    "bufs_pinned": 0,
}


def histogram(*milliseconds: int) -> str:
    recorded = HdrHistogram(1, 3600 * 10**9, 3)
    for value in milliseconds:
        recorded.record_value(value * 1_000_000)
    return str(recorded.encode().decode())


def a_run(
    backend: str,
    connections: int = 1,
    number: int = 0,
    speed: float = 1.0,
    *,
    load: float | None = None,
    kept: float = 1.0,
) -> Run:
    """A run of a server that is so much faster, and keeps up with so much of an open loop."""
    offered = None if load is None else 1000 * load
    return Run(
        backend=backend,
        connections=connections,
        round=number,
        load=load,
        offered=offered,
        value_size=64,
        requests=int(1000 * speed),
        errors=0,
        first_wrong=None,
        seconds=1.0,
        requests_per_second=1000 * speed if offered is None else offered * kept,
        observed_seconds=1.0,
        server_cpu_seconds=0.5,
        client_cpu_seconds=0.25,
        requests_per_cpu_second=2000 * speed,
        load_average=(1.0, 2.25),
        latency_us={
            "p50": 1000 / speed,
            "p90": 2000 / speed,
            "p99": 3000 / speed,
            "p999": 4000 / speed,
        },
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
#: At 80 % both keep up; at 95 % sockets once do not.
OPEN_RUNS = [
    a_run("sockets", 16, 0, 1.0, load=0.8),
    a_run("stackmap", 16, 0, 2.0, load=0.8, kept=0.99),
    a_run("stackmap", 16, 1, 4.0, load=0.8),
    a_run("sockets", 16, 1, 1.0, load=0.8, kept=1.01),
    a_run("sockets", 16, 0, 1.0, load=0.95, kept=0.9),
    a_run("stackmap", 16, 0, 2.0, load=0.95),
    a_run("stackmap", 16, 1, 2.0, load=0.95),
    a_run("sockets", 16, 1, 1.0, load=0.95, kept=0.98),
]


def test_pairs_alternate_their_order() -> None:
    plan = Plan("h", connections=(1, 16), rounds=2, loads=(0.5, 0.95), open_rounds=2)
    order = [(step.connections, step.round, step.load, step.backend) for step in schedule(plan)]
    assert order == [
        (1, 0, None, "sockets"),
        (1, 0, None, "stackmap"),
        (1, 1, None, "stackmap"),
        (1, 1, None, "sockets"),
        (16, 0, None, "sockets"),
        (16, 0, None, "stackmap"),
        (16, 1, None, "stackmap"),
        (16, 1, None, "sockets"),
        (16, 0, 0.5, "sockets"),
        (16, 0, 0.5, "stackmap"),
        (16, 0, 0.95, "stackmap"),
        (16, 0, 0.95, "sockets"),
        (16, 1, 0.5, "sockets"),
        (16, 1, 0.5, "stackmap"),
        (16, 1, 0.95, "stackmap"),
        (16, 1, 0.95, "sockets"),
    ]


def test_a_load_meets_both_orders() -> None:
    first: dict[float | None, set[str]] = {}
    seen = set()
    for step in schedule(Plan("h", connections=(16,))):
        if (step.load, step.round) not in seen:
            first.setdefault(step.load, set()).add(step.backend)
        seen.add((step.load, step.round))
    assert first == {load: {"sockets", "stackmap"} for load in (None, 0.5, 0.8, 0.95)}


def test_the_peak_is_what_both_can_serve() -> None:
    slow = [a_run("sockets", 16, number, speed) for number, speed in enumerate((0.5, 0.7, 2.0))]
    fast = [a_run("stackmap", 16, number, speed) for number, speed in enumerate((0.6, 0.8, 0.9))]
    other = [a_run("sockets", 1, 0, 0.1), a_run("sockets", 16, 0, 0.1, load=0.8, kept=0.1)]
    assert peak([*slow, *fast, *other], 16) == 700


def test_ratios_are_medians_of_paired_rounds() -> None:
    ratio = ratios(RUNS)["16"]
    assert ratio["throughput"] == {"median": 2.0, "min": 1.5, "max": 4.0}
    assert ratio["requests_per_cpu_second"] == {"median": 2.0, "min": 1.5, "max": 4.0}
    assert set(ratio) == {"throughput", "requests_per_cpu_second"}, "one column for one fact"


def test_the_open_loop_does_not_change_the_ratios_of_the_closed_one() -> None:
    assert ratios([*RUNS, *OPEN_RUNS]) == ratios(RUNS)


def test_a_server_that_falls_behind_is_saturated() -> None:
    assert saturated(a_run("sockets", load=0.8, kept=0.969))
    assert not saturated(a_run("sockets", load=0.8, kept=0.971))
    assert not saturated(a_run("sockets", speed=0.1)), "the closed loop has no rate to keep up with"


def test_latencies_at_stated_loads() -> None:
    closed, kept_up, late = loads([*RUNS, *OPEN_RUNS])
    assert (closed["load"], closed["offered"], closed["rounds"]) == (None, None, 3)
    assert closed["stackmap"]["latency_us"]["p99"] == {"median": 1500, "min": 750, "max": 2000}
    assert (kept_up["connections"], kept_up["load"], kept_up["offered"]) == (16, 0.8, 800)
    assert kept_up["sockets"]["achieved"] == {"median": 804, "min": 800, "max": 808}
    assert kept_up["stackmap"]["latency_us"]["p999"] == {"median": 1500, "min": 1000, "max": 2000}
    assert kept_up["ratio"]["p50"] == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert kept_up["ratio"]["requests_per_cpu_second"] == {"median": 3, "min": 2, "max": 4}
    assert (late["load"], late["ratio"]) == (0.95, None)
    assert (late["sockets"]["saturated_rounds"], late["sockets"]["latency_us"]) == (1, None)
    assert late["stackmap"]["latency_us"]["p99"]["median"] == 1500
    assert saturation(late["sockets"], 2) == "saturated in 1 of 2"
    assert saturation(late["stackmap"], 2) == ""


def test_pinning_and_path_count_the_ring_runs() -> None:
    assert pinning(RUNS) == {
        "slots_sent": 30,
        "slots_released_ack": 30,
        "bufs_pinned_at_end": 0,
    }
    assert path(RUNS) == {
        "rx_bytes": 300,
        "tx_bytes": 2700,
        "socket_rx_bytes": 0,
        "socket_tx_bytes": 0,
    }


def test_a_clean_comparison_has_no_problems() -> None:
    assert problems(RUNS, {"server": [], "client": []}) == []


@pytest.mark.parametrize(
    ("counters", "complaint"),
    [
        ({"socket_tx_bytes": 1}, "1 payload bytes went through sockets"),
        ({"socket_rx_bytes": 7}, "7 payload bytes went through sockets"),
        ({"tx_bytes": 0}, "no payload went through the rings"),
        ({"bufs_pinned": 2}, "2 transmit buffers are still pinned"),
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
        [*RUNS, *OPEN_RUNS],
        kernel="6.12.0",
        accel="tcg",
        module={"version": "0.1.0", "srcversion": "ABCDEF0123"},
        machine=describe_machine() | {"processor": "a <fast> one", "commit": "1234567-dirty"},
        kernel_log={"server": [], "client": []},
    )


def test_report_is_json_with_all_that_was_measured() -> None:
    report = json.loads(json.dumps(a_report()))
    assert report["accel"] == "tcg"
    assert report["problems"] == []
    assert len(report["runs"]) == len(RUNS) + len(OPEN_RUNS)
    for run in report["runs"]:
        assert HdrHistogram.decode(run["histogram"]).get_total_count() == 39
        assert run["load_average"] == [1.0, 2.25]
        assert run["client_cpu_seconds"] == 0.25


def test_caveats() -> None:
    quiet, busy = [a_run("sockets")], [dataclasses.replace(a_run("sockets"), load_average=(1, 5.3))]
    (portable,) = caveats("kvm", 0.1, quiet)
    assert "belong to one machine" in portable
    assert "1.24" in portable
    assert "2.53" in portable
    assert "only ratios" in caveats("tcg", 0.1, quiet)[0]
    assert "load average 3.5 at the start" in caveats("kvm", 3.5, quiet)[1]
    assert "up to 5.3 during the runs" in caveats("kvm", 0.1, busy)[1]


def test_page_has_everything_inside() -> None:
    page = render_html(a_report(), b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_page_says_what_was_run() -> None:
    page = render_html(a_report(), b"")
    for said in ("a &lt;fast&gt; one", "1234567-dirty", "0.1.0, source version ABCDEF0123",
                 "TCG, emulated in software", "absolute times and rates mean nothing",
                 "belong to one machine", "1.0 to 2.2"):  # fmt: skip
        assert said in page, said
    assert not re.search(r">[^<]*[a-z]_[a-z][^<]*<", page.split("</style>")[1]), "raw keys"


def test_page_has_no_latency_of_a_saturated_server() -> None:
    page = render_html(a_report(), b"")
    (row,) = re.findall(r"<tr>(?:(?!</tr>).)*saturated in 1 of 2 rounds.*?</tr>", page)
    assert "95% of the peak" in row
    assert "950 / s" in row
    assert page.count("none: not both kept up") == 1


def test_page_shows_problems() -> None:
    page = render_html(a_report() | {"problems": ["a <bad> thing"]}, b"")
    assert "a &lt;bad&gt; thing" in page


@pytest.mark.parametrize("runs", [RUNS, [*RUNS, *OPEN_RUNS], [a_run("sockets"), a_run("stackmap")]])
def test_picture_is_a_png(runs: list[Run], tmp_path: Path) -> None:
    plot_latency(runs, loads(runs), "title", "caveat", tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=n", "-c", "user.email=e"]
    command = ["git", "-C", str(folder), *name, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    clean = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert describe_commit(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert describe_commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / "installed").mkdir()
    assert describe_commit(tmp_path / "installed") == UNKNOWN, "somebody else's checkout"


def test_no_commit_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_commit(tmp_path) == UNKNOWN
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_commit(Path(__file__).parents[2]) == UNKNOWN, "without git"


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


class LocalHost:
    """This machine as a host, whose processor time is made up."""

    def __init__(self, cpu_seconds: float) -> None:
        self._step = cpu_seconds
        self._cpu = 0.0

    def popen(self, argv: list[str]) -> LocalProcess:
        return LocalProcess(argv)

    def vcpu_cpu_seconds(self) -> float:
        self._cpu += self._step
        return self._cpu


class LocalHosts:
    """Server and client on this machine."""

    def __init__(self) -> None:
        self._server, self._client = LocalHost(0.25), LocalHost(0.125)

    @property
    def server(self) -> LocalHost:
        return self._server

    @property
    def client(self) -> LocalHost:
        return self._client


@pytest.fixture
def plan() -> Plan:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return Plan("127.0.0.1", port=port, warmup=0.1, seconds=0.3, open_seconds=0.2, patience=20.0)


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
    run = measure(LocalHosts(), plan, Step(4, 1, "sockets"))
    assert (run.backend, run.connections, run.round, run.errors) == ("sockets", 4, 1, 0)
    assert (run.load, run.offered) == (None, None)
    assert run.requests > 0
    assert (run.server_cpu_seconds, run.client_cpu_seconds) == (0.25, 0.125)
    assert run.observed_seconds > 0
    assert run.requests_per_cpu_second == pytest.approx(run.requests / 0.25)
    assert all(load >= 0 for load in run.load_average)


@pytest.mark.usefixtures("stand_in")
def test_measure_at_a_rate(plan: Plan) -> None:
    run = measure(LocalHosts(), plan, Step(4, 0, "sockets", 0.5), 500.0)
    assert (run.load, run.offered, run.requests, run.errors) == (0.5, 500.0, 100, 0)


def test_a_server_that_dies_is_named(stand_in: Path, plan: Plan) -> None:
    stand_in.write_text("#!/bin/sh\necho listening on; sleep 0.2; echo alas; exit 3\n")
    with (
        pytest.raises(ServerError, match=r"ended with 3: (?s:.*)alas"),
        serving(LocalHost(0.1), plan, "stackmap") as process,
    ):
        process.wait(20)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("backend", "tunings"), [("sockets", "on\noff\n"), ("stackmap", "")])
def test_the_nic_is_tuned_for_sockets_only(
    backend: str, tunings: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "tunings"
    log.touch()

    def tuning(nic: str, *, tuned: bool) -> list[str]:
        assert nic == plan.nic
        return ["sh", "-c", f"echo {'on' if tuned else 'off'} >>{log}"]

    monkeypatch.setattr(experiment, "tuning", tuning)
    with serving(LocalHost(0.1), dataclasses.replace(plan, tuned=True), backend):
        assert log.read_text() == tunings[:3]
    assert log.read_text() == tunings


def test_a_nic_that_cannot_be_tuned_is_named(plan: Plan) -> None:
    tuned = dataclasses.replace(plan, tuned=True, nic="no/such/nic")
    with (
        pytest.raises(ServerError, match=r"no/such/nic cannot be tuned: (?s:.+)"),
        serving(LocalHost(0.1), tuned, "sockets"),
    ):
        pass


def test_a_load_without_result_is_named(stand_in: Path, plan: Plan) -> None:
    stand_in.write_text("#!/bin/sh\necho listening on; exec sleep 60\n")
    with pytest.raises((LoadError, TimeoutError), match="Connection refused") as caught:
        measure(LocalHosts(), plan, Step(1, 0, "sockets"))
    (evidence,) = caught.value.__notes__
    assert "== server ==" in evidence
    assert "== client ==" in evidence
    assert "TCP:" in evidence, "what ss says"
