"""Filters that tell what happens: statistics, traces, logs, failures; time is virtual."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from stackmap.service import (
    Logging,
    Monitor,
    RejectedError,
    Rescue,
    ResponseClass,
    Span,
    Stats,
    Trace,
    current_span,
    pending,
)

from .service_filters import Scripted, call, run, settle, upper


def test_stats_count_by_outcome_and_keep_latencies() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        stats = Stats(clock=loop.time)
        chain = stats.and_then(Scripted(0.25, RejectedError(), ValueError(), "ok", 0.5))
        for _ in range(5):
            with contextlib.suppress(RejectedError, ValueError):
                await chain("x")
        task = asyncio.create_task(call(stats.and_then(pending), "x"))
        await settle()
        assert stats.in_progress == 1
        task.cancel()
        await settle()
        assert stats.in_progress == 0
        assert stats.outcomes == {
            ResponseClass.SUCCESS: 3,
            ResponseClass.RETRYABLE_FAILURE: 1,
            ResponseClass.NON_RETRYABLE_FAILURE: 1,
            ResponseClass.IGNORED: 1,
        }
        assert stats.errors == {"RejectedError": 1, "ValueError": 1, "CancelledError": 1}
        assert stats.latencies.get_total_count() == 5
        assert stats.percentile(100) == pytest.approx(0.5, rel=0.001)
        assert stats.percentile(80) == pytest.approx(0.25, rel=0.001)

    run(main())


def test_stats_lose_no_latency_between_batches() -> None:
    async def main() -> None:
        stats = Stats(clock=asyncio.get_running_loop().time)
        chain = stats.and_then(Scripted(0.001))
        for _ in range(3000):
            await chain("x")
        assert stats.latencies.get_total_count() == 3000
        assert stats.percentile(50) == pytest.approx(0.001, rel=0.01)

    run(main())


def test_stats_count_without_hdrhistogram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stackmap.service._stats.hdr", None)

    async def main() -> None:
        stats = Stats()
        chain = stats.and_then(upper)
        for _ in range(3000):
            await chain("x")
        assert stats.outcomes[ResponseClass.SUCCESS] == 3000
        with pytest.raises(RuntimeError, match="install"):
            stats.percentile(50)

    run(main())


def test_trace_reports_nested_spans() -> None:
    async def main() -> None:
        spans: list[Span] = []
        chain = Trace("outer", spans.append).and_then(Trace("inner", spans.append))
        assert await chain.and_then(Scripted(0.5))("x") == 0.5
        inner, outer = spans
        assert (inner.name, outer.name) == ("inner", "outer")
        assert inner.trace_id == outer.trace_id
        assert (inner.parent_id, outer.parent_id) == (outer.span_id, None)
        assert (inner.seconds, inner.error) == (0.5, None)
        error = ValueError()
        with pytest.raises(ValueError):
            await chain.and_then(Scripted(error))("x")
        assert spans[3].error is error
        assert spans[3].trace_id != outer.trace_id
        assert current_span() is None
        extracting = Trace("x", spans.append, extract=lambda _req: ("f" * 32, "e" * 16))
        await extracting.and_then(upper)("x")
        assert (spans[4].trace_id, spans[4].parent_id) == ("f" * 32, "e" * 16)

    run(main())


def test_spans_are_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "stackmap.service"):
        run(call(Trace("lookup").and_then(upper), "x"))
    assert "of none: lookup," in caplog.text


def test_logging_writes_a_line_a_request(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test")
    with caplog.at_level(logging.INFO):
        run(call(Logging(logger).and_then(Scripted(0.5)), "secret"))
        with pytest.raises(ValueError):
            run(call(Logging(logger, show=str).and_then(Scripted(ValueError("no"))), "get a"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "- str: ok, 500.000 ms"),
        ("WARNING", "- get a: ValueError('no'), 0.000 ms"),
    ]


def test_monitor_reports_and_rescue_replies() -> None:
    async def main() -> None:
        seen: list[tuple[Any, Exception]] = []
        error = ValueError("bad")
        failing = Monitor(lambda *what: seen.append(what)).and_then(Scripted(error))
        with pytest.raises(ValueError):
            await failing("x")
        assert seen == [("x", error)]
        rescue = Rescue[str, str](ValueError, lambda caught: f"ERROR {caught}")
        assert await rescue.and_then(failing)("y") == "ERROR bad"
        with pytest.raises(KeyError):
            await rescue.and_then(Scripted(KeyError()))("x")
        both = Rescue[str, str]((ValueError, KeyError), str)
        assert repr(both).startswith("Rescue((ValueError, KeyError), ")

    run(main())
