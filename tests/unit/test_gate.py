"""The gate on cost: what it makes of counts, and when it fails."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from stackmap_testbed.cost import baseline, gate
from stackmap_testbed.cost.baseline import Record, judge, read_kept, record, spread
from stackmap_testbed.cost.counting import Counter, build_plugin
from stackmap_testbed.cost.echo import EchoError, per_request, read_report
from stackmap_testbed.lab.errors import LabError

HERE = {"kernel": "6.12.117+deb12-cloud-amd64", "qemu": "7.2.22", "gcc": "12.2.0"}


def figure(ring: int, epoll: int = 60000, here: dict[str, str] = HERE) -> Record:
    return record([ring], [epoll], here)


def test_a_record_has_medians_and_the_worse_spread() -> None:
    found = record([100.0, 101.0, 109.0], [200.0, 202.0, 201.0], HERE)
    assert (found["ring"], found["epoll"]) == (101, 201)
    assert found["spread"] == pytest.approx(9 / 101, abs=1e-4)
    assert found["environment"] == HERE


def test_spread_is_relative_to_the_median() -> None:
    assert spread([95.0, 100.0, 105.0]) == pytest.approx(0.1)
    assert spread([7.0]) == 0


@pytest.mark.parametrize(("ring", "passes"), [(51500, True), (51501, False), (40000, True)])
def test_three_percent_more_than_kept_fails(ring: int, passes: bool) -> None:
    verdict = judge(figure(ring), figure(50000))
    assert verdict.passed is passes
    assert any(f"{ring} instructions" in sentence for sentence in verdict.sentences)


def test_a_failure_says_how_to_keep_the_rise() -> None:
    verdict = judge(figure(55000), figure(50000))
    assert "+10.0%" in verdict.sentences[0]
    assert "make bench-gate UPDATE=1" in verdict.sentences[0]


def test_a_gain_is_worth_keeping() -> None:
    verdict = judge(figure(45000), figure(50000))
    assert verdict.passed
    assert "keep what was gained" in verdict.sentences[0]


@pytest.mark.parametrize("name", ["kernel", "qemu", "gcc"])
def test_another_environment_is_judged_by_its_own_epoll_cost(name: str) -> None:
    there = {**HERE, name: "another"}
    verdict = judge(figure(55000, 66000, there), figure(50000))
    assert verdict.passed
    assert f"{name} {HERE[name]} instead of another" in verdict.sentences[0]
    assert "make bench-gate UPDATE=1" in verdict.sentences[0]


@pytest.mark.parametrize(("ring", "passes"), [(56600, True), (56700, False), (40000, True)])
def test_another_environment_allows_three_percent_of_epoll_cost(ring: int, passes: bool) -> None:
    verdict = judge(figure(ring, 66000, {**HERE, "gcc": "another"}), figure(50000))
    assert verdict.passed is passes
    assert any("of what epoll does" in sentence for sentence in verdict.sentences)


def test_a_failure_elsewhere_says_by_how_much() -> None:
    verdict = judge(figure(55000, here={**HERE, "gcc": "another"}), figure(50000))
    assert "91.7% of what epoll does" in verdict.sentences[0]
    assert "83.3% kept" in verdict.sentences[0]
    assert "+10.0%" in verdict.sentences[0]


def test_a_name_on_one_side_only_is_a_difference() -> None:
    verdict = judge(figure(50000, here={**HERE, "cffi": "2.1.1"}), figure(50000))
    assert verdict.passed
    assert "cffi None instead of 2.1.1" in verdict.sentences[0]


@pytest.mark.parametrize("elsewhere", [{}, {"kernel": "another"}])
def test_rings_must_cost_less_than_epoll_anywhere(elsewhere: dict[str, str]) -> None:
    verdict = judge(figure(50000, 50000, {**HERE, **elsewhere}), figure(50000))
    assert not verdict.passed
    assert "rings must cost less" in verdict.sentences[0]


@pytest.mark.parametrize("elsewhere", [{}, {"kernel": "another"}])
def test_rounds_that_differ_decide_nothing(elsewhere: dict[str, str]) -> None:
    apart = record([50000.0, 51100.0], [60000.0], {**HERE, **elsewhere})
    verdict = judge(apart, figure(50500))
    assert not verdict.passed
    assert "find out what is not repeatable" in verdict.sentences[0]


@pytest.mark.parametrize(
    "text", ["", "{}", '{"ring": 1, "epoll": "many", "environment": {}}', "[]"]
)
def test_a_broken_kept_figure_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text(text)
    with pytest.raises(LabError, match="does not hold kept figures"):
        read_kept(path)


def test_the_kept_figure_is_complete() -> None:
    kept = read_kept()
    assert set(kept["environment"]) == {"kernel", "qemu", "gcc", "python", "cffi"}
    assert kept["ring"] < kept["epoll"]
    assert kept["spread"] < baseline.MAX_SPREAD


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


def test_costs_are_between_two_marks_each() -> None:
    costs = per_request(read_report(report((1, 10, 0), (16, 20, 0))), [1000, 2000, 5000, 6000])
    assert costs == {1: 100.0, 16: 50.0}


def test_costs_of_several_beginnings_are_their_mean() -> None:
    costs = per_request(read_report(report((16, 10, 0), (16, 10, 0))), [1000, 2000, 5000, 8000])
    assert costs == {16: 200.0}


@pytest.mark.parametrize(
    ("text", "marks", "complaint"),
    [
        ("", [], "0 markers were met for 0"),
        (report((1, 10, 0)), [1, 2, 3], "3 markers were met for 1"),
        (report((1, 10, 0)), [], "0 markers were met for 1"),
        (report((1, 9, 1)), [1, 2], "9 replies were right, 1 wrong or missing"),
        (report((1, 0, 0)), [1, 2], "0 replies were right"),
    ],
)
def test_costs_of_a_run_that_went_wrong_are_refused(
    text: str, marks: list[int], complaint: str
) -> None:
    with pytest.raises(EchoError, match=complaint):
        per_request(read_report(text), marks)


def test_the_counts_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    path.write_bytes(struct.pack("=5Q", 2, 100, 230, 0, 0))
    assert Counter(path).marks() == [100, 230]


def test_the_plugin_has_what_qemu_asks_for(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("gcc is not installed")
    plugin = build_plugin(tmp_path)
    names = subprocess.run(
        ["nm", "--dynamic", "--defined-only", plugin], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"qemu_plugin_install", "qemu_plugin_version"} <= set(names)


def test_an_update_is_written_and_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, out = tmp_path / "kept.json", tmp_path / "out" / "bench-gate.json"
    kept.write_text(json.dumps(figure(50000)))
    monkeypatch.setattr(gate, "KEPT", kept)
    monkeypatch.setattr(gate, "run", lambda *_arguments, **_options: figure(55000))
    assert gate.main(["--out", str(out)]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert json.loads(kept.read_text())["ring"] == 50000
    assert gate.main(["--out", str(out), "--update"]) == 0
    assert json.loads(out.read_text()) == json.loads(kept.read_text())
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("measured", "why"),
    [
        (figure(60000), "rings must cost less"),
        (record([50000.0, 51100.0], [60000.0], HERE), "find out what is not repeatable"),
    ],
)
def test_figures_with_errors_are_not_kept(
    measured: Record,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept, out = tmp_path / "kept.json", tmp_path / "bench-gate.json"
    kept.write_text(json.dumps(figure(50000)))
    monkeypatch.setattr(gate, "KEPT", kept)
    monkeypatch.setattr(gate, "run", lambda *_arguments, **_options: measured)
    assert gate.main(["--out", str(out), "--update"]) == 1
    said = capsys.readouterr().out
    assert why in said
    assert "not kept" in said
    assert json.loads(kept.read_text()) == figure(50000)
    assert json.loads(out.read_text()) == measured


def test_an_update_needs_no_figures_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(gate, "KEPT", kept)
    monkeypatch.setattr(gate, "run", lambda *_arguments, **_options: figure(50000))
    assert gate.main(["--out", str(tmp_path / "out.json"), "--update"]) == 0
    assert json.loads(kept.read_text()) == figure(50000)


def test_a_machine_without_what_is_needed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_kernel: str, _module: Path | None, *, keep: bool) -> Record:
        raise LabError("QEMU is not installed")

    monkeypatch.setattr(gate, "run", run)
    assert gate.main([]) == 1
    assert capsys.readouterr().err == "error: QEMU is not installed\n"
