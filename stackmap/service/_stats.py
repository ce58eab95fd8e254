"""Counters of outcomes, and latencies."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING, Any, TypeVar

from ._classify import ResponseClass, classify
from ._filter import AnyFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._classify import ResponseClassifier
    from ._service import Service

try:
    from hdrh import histogram as hdr  # pyright: ignore[reportMissingTypeStubs]
except ImportError:
    hdr = None

Req = TypeVar("Req")
Rep = TypeVar("Rep")

#: Latencies that are collected before they are put into the histogram, which costs more than a
#: request does: most of a batch are few different numbers of microseconds.
BATCH = 1024
#: Latencies are recorded from a microsecond to an hour, with three digits.
MAX_MICROSECONDS = 3600 * 10**6
DIGITS = 3


class Stats(AnyFilter):
    """Counts requests by outcome, and keeps their latencies in an HDR histogram.

    Put it outside of limits, so that what they reject is counted, and what waits is measured.
    Outcomes that the classifier ignores are counted as such, and their latencies are not kept.

    Args:
        classifier: tells the outcome.
        clock: seconds, as of ``time.perf_counter()``.

    Attributes:
        outcomes: how many requests had which outcome.
        errors: how many failed with which class of exception, by its name.
        in_progress: requests that have no outcome yet.
    """

    def __init__(
        self,
        *,
        classifier: ResponseClassifier = classify,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._classifier = classifier
        self._clock = clock
        self.outcomes: collections.Counter[ResponseClass] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.in_progress = 0
        self._batch: list[int] = []
        self._histogram: Any = None
        if hdr is not None:
            self._histogram = hdr.HdrHistogram(1, MAX_MICROSECONDS, DIGITS)

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on, and measure it."""
        clock = self._clock
        self.in_progress += 1
        begun = clock()
        try:
            reply = await service(req)
        except BaseException as error:
            self.errors[type(error).__name__] += 1
            self._count(self._classifier(req, None, error), clock() - begun)
            raise
        self._count(self._classifier(req, reply, None), clock() - begun)
        return reply

    def _count(self, outcome: ResponseClass, seconds: float) -> None:
        self.in_progress -= 1
        self.outcomes[outcome] += 1
        if outcome is not ResponseClass.IGNORED:
            batch = self._batch
            batch.append(int(seconds * 1e6))
            if len(batch) >= BATCH:
                self._record()

    def _record(self) -> None:
        """Put what was collected into the histogram."""
        if self._histogram is not None:
            for value, count in collections.Counter(self._batch).items():
                self._histogram.record_value(min(max(value, 1), MAX_MICROSECONDS), count)
        self._batch.clear()

    @property
    def latencies(self) -> Any:
        """The latencies so far, in microseconds, as an ``hdrh.histogram.HdrHistogram``.

        It can be encoded, and merged with those of other processes.

        Raises:
            RuntimeError: the package hdrhistogram is not installed; requests are counted all the
                same.
        """
        if self._histogram is None:
            raise RuntimeError("latencies are not kept: install the Python package hdrhistogram")
        self._record()
        return self._histogram

    def percentile(self, percent: float) -> float:
        """The latency, in seconds, that so many percent of the requests did not exceed.

        Raises:
            RuntimeError: as of :attr:`latencies`.
        """
        microseconds: int = self.latencies.get_value_at_percentile(percent)
        return microseconds / 1e6
