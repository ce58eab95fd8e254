"""How many retries a client may cause."""

from __future__ import annotations

import asyncio
import collections

#: What a retry costs.  Whole numbers do not drift.
RETRY = 1000


class RetryBudget:
    """A share of the requests may be sent again, so that retries cannot multiply an overload.

    A token bucket, as of Finagle and tower: each request puts in ``percent`` of a token, each retry
    takes one out, and what is put in is worth nothing after ``ttl``.  Below a floor, retries are
    always allowed, so that a client with few requests can retry at all.  One budget may be shared.

    Args:
        ttl: seconds for which a request counts.
        min_per_second: retries per second that need no requests.
        percent: retries per 100 requests.
    """

    def __init__(
        self, *, ttl: float = 10.0, min_per_second: float = 10.0, percent: float = 20.0
    ) -> None:
        if ttl <= 0 or min_per_second < 0 or percent < 0:
            raise ValueError("a budget needs ttl > 0, min_per_second >= 0 and percent >= 0")
        self._ttl = ttl
        self._deposit = round(percent / 100 * RETRY)
        self._floor = round(min_per_second * ttl * RETRY)
        self._step = ttl / 10
        #: The time, and the tokens put in less those taken, of each tenth of the ttl.
        self._steps: collections.deque[tuple[int, int]] = collections.deque()
        self._balance = 0
        self._step_now = 0
        self._in_step = 0

    def __repr__(self) -> str:
        return (
            f"RetryBudget(ttl={self._ttl}, "
            f"min_per_second={self._floor / RETRY / self._ttl:g}, "
            f"percent={self._deposit / RETRY * 100:g})"
        )

    @property
    def balance(self) -> float:
        """How many retries are allowed now."""
        self._expire()
        return (self._floor + self._balance) / RETRY

    def deposit(self) -> None:
        """Count a request, not a retry."""
        self._expire()
        self._add(self._deposit)

    def withdraw(self) -> bool:
        """Take a retry out; False if there is none."""
        if self.balance < 1:
            return False
        self._add(-RETRY)
        return True

    def _add(self, tokens: int) -> None:
        self._in_step += tokens
        self._balance += tokens

    def _expire(self) -> None:
        step = int(asyncio.get_running_loop().time() / self._step)
        if step == self._step_now:
            return
        steps = self._steps
        steps.append((self._step_now, self._in_step))
        self._step_now = step
        self._in_step = 0
        while steps and steps[0][0] <= step - 10:
            self._balance -= steps.popleft()[1]
