"""Spans: which part of a request took how long, across services."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ._filter import AnyFilter
from ._service import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Span:
    """A part of the work for a request, as of Dapper (Google, 2010) and W3C's Trace Context.

    Attributes:
        name: of the part.
        trace_id: 32 hexadecimal digits, the same for all spans of a request.
        span_id: 16 hexadecimal digits.
        parent_id: of the span that this one is a part of; None if there is none.
        begun: when it began, a time of the running loop's clock.
        seconds: how long it took; None while it goes on.
        error: what it failed with; None if it did not.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    begun: float
    seconds: float | None = None
    error: BaseException | None = None


_span: contextvars.ContextVar[Span | None] = contextvars.ContextVar("stackmap_span", default=None)


def current_span() -> Span | None:
    """The innermost span that the running code is a part of."""
    return _span.get()


def _log_span(span: Span) -> None:
    log.debug(
        "trace %s span %s of %s: %s, %.3f ms%s",
        span.trace_id,
        span.span_id,
        span.parent_id or "none",
        span.name,
        (span.seconds or 0) * 1e3,
        f", {span.error!r}" if span.error is not None else "",
    )


class Trace(AnyFilter):
    """Measures what is behind it as a span of the request's trace.

    Args:
        name: of the span.
        report: is called with each span when it has ended; by default it is logged (debug).
        extract: returns the trace's and the parent span's identifier that came with a request, or
            None; it is asked where a trace begins.
    """

    def __init__(
        self,
        name: str,
        report: Callable[[Span], object] = _log_span,
        *,
        extract: Callable[[Any], tuple[str, str] | None] | None = None,
    ) -> None:
        self._name = name
        self._report = report
        self._extract = extract

    def __repr__(self) -> str:
        report = "" if self._report is _log_span else f", {describe(self._report)}"
        return f"Trace({self._name!r}{report})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on in a span."""
        time = asyncio.get_running_loop().time
        parent = _span.get()
        trace_id: str
        parent_id: str | None
        if parent is not None:
            trace_id, parent_id = parent.trace_id, parent.span_id
        elif self._extract is not None and (came := self._extract(req)) is not None:
            trace_id, parent_id = came
        else:
            trace_id, parent_id = f"{random.getrandbits(128):032x}", None
        span = Span(self._name, trace_id, f"{random.getrandbits(64):016x}", parent_id, time())
        token = _span.set(span)
        try:
            return await service(req)
        except BaseException as error:
            span.error = error
            raise
        finally:
            _span.reset(token)
            span.seconds = time() - span.begun
            self._report(span)
