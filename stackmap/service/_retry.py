"""Send again what failed, where that is safe and affordable."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

from ._budget import RetryBudget
from ._classify import ResponseClass, classify
from ._deadline import current_deadline
from ._filter import AnyFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._classify import ResponseClassifier
    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Backoff:
    """Waits that grow exponentially, at random between zero and their bound ("full jitter").

    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: clients that fail
    together do not come back together.

    Args:
        first: the bound of the first wait, in seconds.
        factor: by which the bound grows.
        most: the largest bound, in seconds.
        random: returns a number between 0 and 1.
    """

    def __init__(
        self,
        first: float = 0.01,
        *,
        factor: float = 2.0,
        most: float = 1.0,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._factor = factor
        self._most = most
        self._random = random

    def __repr__(self) -> str:
        return f"Backoff({self._first}, factor={self._factor}, most={self._most})"

    def __call__(self, retries: int) -> float:
        """How long to wait, in seconds, after so many retries."""
        try:
            bound = self._first * self._factor**retries
        except OverflowError:
            bound = self._most
        return self._random() * min(bound, self._most)


class Retry(AnyFilter):
    """Sends a request again if its outcome is a retryable failure.

    It never retries what was cancelled.  It gives up, with the last outcome, when there were enough
    attempts, the budget is used up, or the wait would last until the request's deadline.

    Args:
        attempts: how often a request is sent at most, the first time included.
        budget: for all requests through this filter, or shared with others; by default its own.
        backoff: returns the seconds to wait after so many retries.
        classifier: tells which outcomes are retryable.
    """

    def __init__(
        self,
        attempts: int = 3,
        *,
        budget: RetryBudget | None = None,
        backoff: Callable[[int], float] | None = None,
        classifier: ResponseClassifier = classify,
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be 1 or more, not {attempts}")
        self._attempts = attempts
        self._budget = RetryBudget() if budget is None else budget
        self._backoff = Backoff() if backoff is None else backoff
        self._classifier = classifier

    def __repr__(self) -> str:
        return f"Retry({self._attempts})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on, perhaps several times."""
        self._budget.deposit()
        retries = 0
        while True:
            try:
                reply = await service(req)
            except Exception as error:
                wait = self._wait(req, None, error, retries)
                if wait is None:
                    raise
            else:
                wait = self._wait(req, reply, None, retries)
                if wait is None:
                    return reply
            retries += 1
            await asyncio.sleep(wait)

    def _wait(
        self, req: object, reply: object, error: Exception | None, retries: int
    ) -> float | None:
        """How long to wait before the next attempt; None if there is none."""
        if self._classifier(req, reply, error) is not ResponseClass.RETRYABLE_FAILURE:
            return None
        if retries + 1 >= self._attempts:
            return None
        wait = self._backoff(retries)
        deadline = current_deadline()
        if deadline is not None and asyncio.get_running_loop().time() + wait >= deadline:
            return None
        return wait if self._budget.withdraw() else None
