"""The outcome of a request, classified for statistics and retries alike."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Any

from ._errors import RejectedError


class ResponseClass(enum.Enum):
    """The outcome of a request."""

    SUCCESS = "success"
    #: It failed, and may be sent again.
    RETRYABLE_FAILURE = "retryable failure"
    NON_RETRYABLE_FAILURE = "non-retryable failure"
    #: It says nothing of the service: the caller gave up.
    IGNORED = "ignored"


#: Takes a request, its reply (None if it failed) and what it failed with (None if it did not).
ResponseClassifier = Callable[[Any, Any, BaseException | None], ResponseClass]


def classify(_req: Any, _rep: Any, error: BaseException | None) -> ResponseClass:
    """Classify without knowing the protocol; the default.

    Replies are successes.  Only what was never begun is safe to send again, that is what was
    rejected.  After a timeout, or when a connection was lost, the progress is unknown.
    """
    if error is None:
        return ResponseClass.SUCCESS
    if isinstance(error, RejectedError):
        return ResponseClass.RETRYABLE_FAILURE
    if isinstance(error, asyncio.CancelledError):
        return ResponseClass.IGNORED
    return ResponseClass.NON_RETRYABLE_FAILURE
