"""The load generator against Debian's memcached, and against a server that lies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import select
import shutil
import socket
import subprocess
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram

from stackmap_testbed.load.__main__ import main
from stackmap_testbed.load.generator import Exchange, Load, LoadPlan, key_of, run_load, value_of
from stackmap_testbed.memcached.conformance import wait_for_listener

MEMCACHED = shutil.which("memcached") or "/usr/bin/memcached"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def memcached() -> Iterator[LoadPlan]:
    if not shutil.which(MEMCACHED):
        pytest.skip("memcached is not installed")
    port = free_port()
    command = [MEMCACHED, "-u", "nobody", "-l", "127.0.0.1", "-p", str(port), "-U", "0"]
    with subprocess.Popen(command) as process:
        wait_for_listener(("127.0.0.1", port))
        yield LoadPlan(host="127.0.0.1", port=port, seconds=0.3, warmup=0.05)
        process.terminate()


Answer = Callable[[bytes], bytes | None]


@contextlib.contextmanager
def fake_server(answer: Answer, **plan: Any) -> Iterator[LoadPlan]:
    """A server that stores everything and answers a GET with ``answer(right reply)``."""
    right = {
        b"get " + key_of(index): b"VALUE %s 0 64\r\n%s\r\nEND\r\n" % (key_of(index), value)
        for index, value in ((index, value_of(index, 64)) for index in range(4))
    }

    def serve(sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as lines, contextlib.suppress(OSError):
            while line := lines.readline():
                words = line.split()
                if words[0] == b"set":
                    lines.read(int(words[4]) + 2)
                    sock.sendall(b"STORED\r\n")
                    continue
                reply = answer(right[line.rstrip()])
                if reply is None:
                    return
                sock.sendall(reply)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],)).start()

    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = threading.Thread(target=accept, args=(listener,))
    acceptor.start()
    try:
        yield dataclasses.replace(
            LoadPlan("127.0.0.1", listener.getsockname()[1], keys=4, warmup=0, timeout=0.2),
            **plan,
        )
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()


@pytest.mark.parametrize("connections", [1, 32])
@pytest.mark.parametrize("value_size", [1, 64, 1_000_000])
def test_closed_loop(memcached: LoadPlan, connections: int, value_size: int) -> None:
    plan = dataclasses.replace(memcached, connections=connections, value_size=value_size)
    result = run_load(plan)
    assert result.requests > 0
    assert result.errors == 0
    assert result.first_wrong is None
    assert 0 < result.latency_us["p50"] <= result.latency_us["p99"] <= result.latency_us["p999"]


def test_mix_of_get_and_set(memcached: LoadPlan) -> None:
    plan = dataclasses.replace(memcached, connections=8, set_share=0.5, value_size=100_000)
    result = run_load(plan)
    assert result.requests > 0
    assert result.errors == 0


def test_count_bounded(memcached: LoadPlan) -> None:
    plan = dataclasses.replace(memcached, connections=7, seconds=None, requests=1000)
    assert run_load(plan).requests == 1000


def test_open_loop_records_exactly_what_was_due(memcached: LoadPlan) -> None:
    """However busy the machine: what was due is sent in the end, and nothing before it is due."""
    plan = dataclasses.replace(memcached, connections=10, rate=1000.0, seconds=0.5, warmup=0.1)
    started = time.monotonic()
    result = run_load(plan)
    assert (result.requests, result.errors, result.rate) == (500, 0, 1000.0)
    assert time.monotonic() - started >= 0.599, "sent before they were due"
    assert result.requests_per_second <= 1200, "counted more than was due until the end"


def test_histogram_is_the_latencies(memcached: LoadPlan) -> None:
    result = run_load(memcached)
    histogram = HdrHistogram.decode(result.histogram)
    assert histogram.get_total_count() == result.requests
    assert histogram.get_value_at_percentile(50) / 1000 == result.latency_us["p50"]


def test_phases_bracket_the_measurement(memcached: LoadPlan) -> None:
    phases: list[str] = []
    run_load(memcached, phases.append)
    assert phases == ["measuring", "measured"]


def test_right_replies_of_the_fake_server_are_no_errors() -> None:
    with fake_server(lambda right: right, requests=100) as plan:
        result = run_load(plan)
    assert (result.requests, result.errors) == (100, 0)


def test_one_wrong_byte_is_an_error() -> None:
    def corrupt(right: bytes) -> bytes:
        wrong = bytearray(right)
        wrong[-20] ^= 1
        return bytes(wrong)

    with fake_server(corrupt, connections=3, requests=100) as plan:
        result = run_load(plan)
    assert (result.requests, result.errors, result.wrong) == (0, 3, 3)
    assert result.first_wrong is not None
    assert f"offset {len('VALUE load:0 0 64..') + 64 + len('..END..') - 20}" in result.first_wrong


def test_a_surplus_byte_is_an_error() -> None:
    with fake_server(lambda right: right + b"x", requests=10) as plan:
        result = run_load(plan)
    assert result.wrong == 1
    assert result.first_wrong is not None
    assert "expected the end, got 0x78" in result.first_wrong


def test_a_closed_connection_is_an_error() -> None:
    with fake_server(lambda _: None, connections=2, requests=10) as plan:
        result = run_load(plan)
    assert (result.requests, result.errors, result.lost) == (0, 2, 2)


def test_an_incomplete_reply_is_an_error() -> None:
    with fake_server(lambda right: right[:-1], connections=2, seconds=0.1) as plan:
        result = run_load(plan)
    assert (result.requests, result.errors, result.unanswered) == (0, 2, 2)


INTERVAL_MS = 10


@dataclasses.dataclass(frozen=True)
class Stall:
    """When the server sleeps, and how many later requests it must hold up at least."""

    reply: int
    milliseconds: int
    warmup: float
    seconds: float

    def lower_bounds(self) -> list[int]:
        """The shortest latencies, in ms, that the requests due since can have.

        The server falls asleep when it has the request, so at the earliest when that was due.
        """
        measured = range(round(self.warmup * 100), round((self.warmup + self.seconds) * 100))
        stalled = self.reply - 1
        awake = stalled * INTERVAL_MS + self.milliseconds
        late = (awake - number * INTERVAL_MS for number in measured if number >= stalled)
        return [bound for bound in late if bound > 0]


@pytest.mark.parametrize(
    "stall",
    [
        pytest.param(Stall(20, 200, warmup=0.0, seconds=1.0), id="in the middle"),
        pytest.param(Stall(40, 300, warmup=0.0, seconds=0.5), id="beyond the end"),
        pytest.param(Stall(15, 300, warmup=0.2, seconds=0.5), id="since the warm-up"),
    ],
)
def test_open_loop_corrects_for_coordinated_omission(stall: Stall) -> None:
    """A stall is seen by every request that was due meanwhile, not only by the one that met it.

    A machine that stands still itself can only make more requests slower.
    """
    answered = 0

    def sleep_once(right: bytes) -> bytes:
        nonlocal answered
        answered += 1
        if answered == stall.reply:
            time.sleep(stall.milliseconds / 1000)
        return right

    with fake_server(
        sleep_once, rate=1000 / INTERVAL_MS, warmup=stall.warmup, seconds=stall.seconds, timeout=30
    ) as plan:
        result = run_load(plan)
    assert (result.requests, result.errors) == (round(stall.seconds * 100), 0)
    slowest = sorted(latencies_ms(result.histogram), reverse=True)
    bounds = stall.lower_bounds()
    assert len(bounds) > 10
    for latency, bound in zip(slowest, bounds, strict=False):
        assert latency >= bound * 0.998, "less what a bucket of the histogram rounds away"


def latencies_ms(histogram: str) -> Iterator[float]:
    for item in HdrHistogram.decode(histogram).get_recorded_iterator():
        for _ in range(item.count_added_in_this_iter_step):
            yield item.value_iterated_to / 1e6


def test_requests_due_but_not_sent_count_as_unanswered() -> None:
    """The server never wakes up in time: the other requests that were due count as well."""
    asleep = threading.Event()

    def sleep(right: bytes) -> bytes:
        asleep.wait(30)
        return right

    with fake_server(sleep, rate=100.0, connections=2, seconds=0.5) as plan:
        result = run_load(plan)
        asleep.set()
    assert (result.requests, result.unanswered, result.errors) == (0, 50, 50)


def test_an_overloaded_server_achieves_less_than_is_offered() -> None:
    def slow(right: bytes) -> bytes:
        time.sleep(0.02)
        return right

    with fake_server(slow, rate=100.0, seconds=0.5, timeout=30) as plan:
        result = run_load(plan)
    assert (result.requests, result.errors) == (50, 0)
    assert result.requests_per_second <= 50


def test_hgrm(memcached: LoadPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--host", memcached.host, "--port", str(memcached.port), "--requests", "50"]
    assert main([*arguments, "--warmup", "0", "--hgrm", str(tmp_path / "latency.hgrm")]) == 0
    text = (tmp_path / "latency.hgrm").read_text()
    assert text.splitlines()[0].split() == ["Value", "Percentile", "TotalCount",
                                            "1/(1-Percentile)"]  # fmt: skip
    assert re.search(r"TotalCount += +50\.000", text)


def test_command_line(memcached: LoadPlan, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--host", memcached.host, "--port", str(memcached.port), "--requests", "50"]
    assert main([*arguments, "--warmup", "0", "--json", "--counters"]) == 0
    measuring, measured, record = capsys.readouterr().out.splitlines()
    assert (measuring, measured) == ("measuring", "measured")
    assert json.loads(record)["requests"] == 50
    assert json.loads(record)["counters"] == {}


def test_command_line_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert main(["--host", "127.0.0.1", "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"error: 127.0.0.1, port {port}: Connection refused; is a memcached server running there?\n"
    )


def test_bytes_of_a_reply_that_may_be_any() -> None:
    exchange = Exchange(b"ask", b"date: 00:00, end", range(6, 11))
    for reply, wrong_at in (
        (b"date: 12:34, end", None),
        (b"date: 00:00, end", None),
        (b"Date: 12:34, end", 0),
        (b"date: 12:34. end", 11),
        (b"date: 12:34, en!", 15),
    ):
        near, far = socket.socketpair()
        with near, far:
            load = Load([near.fileno()], [exchange], array("I", [0]))
            far.sendall(reply)
            load.run(None, 1, record=True)
            load.drain(10)
            result = load.result()
        right = wrong_at is None
        assert (result.requests, result.wrong) == (right, not right), reply
        if not right:
            assert result.wrong_offset == wrong_at


def test_a_window_bounds_what_is_outstanding_and_all_have_their_turn() -> None:
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(10)]
        for pair in pairs:
            for sock in pair:
                stack.enter_context(sock)
        far = [pair[1] for pair in pairs]
        load = Load([near.fileno() for near, _far in pairs], [Exchange(b"ping", b"pong")],
                    array("I", [0]), window=3)  # fmt: skip
        runner = threading.Thread(target=load.run, args=(None, 20), kwargs={"record": True})
        runner.start()
        answered: list[int] = []
        waiting: list[int] = []
        while len(answered) < 20:
            for sock in select.select(far, [], [], 0 if waiting else 10)[0]:
                assert sock.recv(100) == b"ping"
                waiting.append(far.index(sock))
            assert 1 <= len(waiting) <= 3
            far[waiting[0]].sendall(b"pong")
            answered.append(waiting.pop(0))
        runner.join()
        load.drain(10)
        result = load.result()
    assert sorted(answered) == sorted([*range(10), *range(10)])
    assert (result.requests, result.wrong, result.lost, result.unanswered) == (20, 0, 0, 0)
