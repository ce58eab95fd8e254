"""Filters that time decides: timeouts, deadlines, retries, hedging; time is virtual."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from stackmap.service import (
    Backoff,
    Deadline,
    DeadlineExceededError,
    Filter,
    Hedge,
    MaskCancel,
    NotConnectedError,
    Percentile,
    RejectedError,
    ResponseClass,
    Retry,
    RetryBudget,
    Service,
    Timeout,
    background,
    current_deadline,
    pending,
)

from .service_filters import Scripted, call, run, settle, upper

# -- timeouts and deadlines ------------------------------------------------------------------------


def test_timeout_raises_at_its_own_scope_only() -> None:
    async def main() -> None:
        inner, outer = Timeout(2), Timeout(1)
        seen: list[BaseException] = []

        @Filter.mk
        async def spy(req: str, service: Service[str, str]) -> str:
            try:
                return await service(req)
            except BaseException as error:
                seen.append(error)
                raise

        with pytest.raises(TimeoutError):
            await outer.and_then(spy).and_then(inner).and_then(pending)("x")
        assert [type(error) for error in seen] == [asyncio.CancelledError]
        assert asyncio.get_running_loop().time() == 1
        own = TimeoutError("of the service itself")
        with pytest.raises(TimeoutError, match="itself"):
            await outer.and_then(Scripted(own))("x")

    run(main())


def test_timeout_lets_cancellation_pass() -> None:
    async def main() -> None:
        task = asyncio.create_task(call(Timeout(1).and_then(pending), "x"))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_the_earlier_deadline_counts() -> None:
    async def report(_req: str) -> float | None:
        return current_deadline()

    async def main() -> None:
        assert await Deadline(5).and_then(Deadline(3)).and_then(report)("x") == 3
        assert await Deadline(3).and_then(Deadline(5)).and_then(report)("x") == 3
        assert current_deadline() is None

    run(main())


def test_after_its_deadline_a_request_fails_before_work() -> None:
    async def main() -> None:
        service = Scripted(1)

        @Filter.mk
        async def slow(req: str, inner: Service[str, int]) -> int:
            await asyncio.sleep(3)
            return await inner(req)

        chain = Deadline(2).and_then(slow).and_then(Deadline(9)).and_then(service)
        with pytest.raises(DeadlineExceededError, match=r"1\.000 s ago") as caught:
            await chain("x")
        assert isinstance(caught.value, TimeoutError)
        assert service.calls == []

    run(main())


def test_timeout_cuts_at_the_deadline_if_that_is_earlier() -> None:
    async def main() -> None:
        for seconds, end in ((7, 2.0), (1, 1.0)):
            begun = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                await Deadline(2).and_then(Timeout(seconds)).and_then(pending)("x")
            assert asyncio.get_running_loop().time() - begun == end

    run(main())


# -- retries ---------------------------------------------------------------------------------------


def test_retry_sends_rejected_requests_again() -> None:
    async def main() -> None:
        service = Scripted(RejectedError(), NotConnectedError(), "ok")
        retry = Retry(3, backoff=lambda retries: 10.0 * (retries + 1))
        assert await retry.and_then(service)("x") == "ok"
        assert service.calls == [0, 10, 30]

    run(main())


@pytest.mark.parametrize(
    "error", [ValueError(), TimeoutError(), DeadlineExceededError(), asyncio.CancelledError()]
)
def test_retry_sends_nothing_else_again(error: BaseException) -> None:
    async def main() -> None:
        service = Scripted(error)
        with pytest.raises(type(error)):
            await Retry(3).and_then(service)("x")
        assert len(service.calls) == 1

    run(main())


def test_retry_gives_up_with_the_last_outcome() -> None:
    async def main() -> None:
        service = Scripted(RejectedError("1"), RejectedError("2"), RejectedError("3"))
        with pytest.raises(RejectedError, match="2"):
            await Retry(2).and_then(service)("x")
        with pytest.raises(RejectedError, match="3"):
            await Deadline(5).and_then(Retry(2, backoff=lambda _: 5.0)).and_then(service)("x")
        assert len(service.calls) == 3

    run(main())


def test_a_classifier_can_judge_replies() -> None:
    def busy(_req: Any, rep: Any, _error: BaseException | None) -> ResponseClass:
        return ResponseClass.RETRYABLE_FAILURE if rep == "busy" else ResponseClass.SUCCESS

    async def main() -> None:
        service = Scripted("busy", "ok")
        assert await Retry(classifier=busy).and_then(service)("x") == "ok"
        assert await Retry(1, classifier=busy).and_then(Scripted("busy"))("x") == "busy"

    run(main())


def test_a_budget_bounds_retries_to_a_share_of_the_requests() -> None:
    async def main() -> None:
        budget = RetryBudget(ttl=10, min_per_second=1, percent=20)
        retry = Retry(2, budget=budget, backoff=lambda _: 0.0)
        service = Scripted(RejectedError())
        chain = retry.and_then(service)
        for _ in range(1000):
            with pytest.raises(RejectedError):
                await chain("x")
        assert len(service.calls) == 1000 + 200 + 10  # 20 %, and one per second of the ttl

    run(main())


def test_deposits_in_a_retry_budget_expire() -> None:
    async def main() -> None:
        budget = RetryBudget(ttl=10, min_per_second=0, percent=100)
        for _ in range(5):
            budget.deposit()
            await asyncio.sleep(1)
        assert budget.balance == 5
        assert [budget.withdraw() for _ in range(3)] == [True, True, True]
        await asyncio.sleep(9.5)
        assert budget.balance <= 0
        assert not budget.withdraw()
        await asyncio.sleep(10)
        assert budget.balance == 0

    run(main())


def test_backoff_grows_to_its_bound() -> None:
    waits = Backoff(0.1, factor=2, most=1, random=lambda: 1.0)
    assert [waits(retries) for retries in (0, 1, 2, 3, 4, 10**6)] == [0.1, 0.2, 0.4, 0.8, 1, 1]
    assert Backoff(0.1, random=lambda: 0.5)(0) == 0.05


# -- hedging ---------------------------------------------------------------------------------------


def test_hedge_sends_a_second_request_when_the_first_is_late() -> None:
    async def main() -> None:
        service = Scripted(9.0, 1.0)
        assert await Hedge(2, lambda _req: True).and_then(service)("x") == 1.0
        assert service.calls == [0, 2]
        assert service.cancelled == 1
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_hedge_leaves_alone_what_is_in_time_or_not_idempotent() -> None:
    async def main() -> None:
        service = Scripted(1.0, 9.0, 3.0)
        chain = Hedge(2, lambda req: req == "get").and_then(service)
        assert await chain("get") == 1.0
        assert await chain("set") == 9.0
        assert len(service.calls) == 2

    run(main())


def test_hedge_returns_a_failure_only_if_both_fail() -> None:
    async def main() -> None:
        class Both:
            def __init__(self, *errors: Exception | None) -> None:
                self.errors = list(errors)

            async def __call__(self, _req: str, /) -> str:
                error = self.errors.pop(0)
                await asyncio.sleep(3)
                if error is not None:
                    raise error
                return "ok"

        hedge = Hedge(2, lambda _req: True)
        assert await hedge.and_then(Both(ValueError(), None))("x") == "ok"
        with pytest.raises(ValueError, match="first"):
            await hedge.and_then(Both(ValueError("first"), ValueError("second")))("x")

    run(main())


def test_hedge_is_cancelled_with_both_requests() -> None:
    async def main() -> None:
        service = Scripted(99.0)
        task = asyncio.create_task(call(Hedge(2, lambda _req: True).and_then(service), "x"))
        await asyncio.sleep(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.cancelled == 2

    run(main())


def test_hedge_keeps_to_its_budget() -> None:
    async def main() -> None:
        service = Scripted(3.0)
        budget = RetryBudget(ttl=60, min_per_second=0, percent=50)
        chain = Hedge(2, lambda _req: True, budget=budget).and_then(service)
        assert [await chain("x") for _ in range(4)] == [3.0] * 4
        assert len(service.calls) == 6

    run(main())


@pytest.mark.parametrize("percent", [50, 90, 95])
def test_the_estimate_of_a_percentile_comes_near(percent: float) -> None:
    estimate = Percentile(percent, 1.0)
    generator = random.Random(percent)
    for _ in range(5000):
        estimate.add(generator.uniform(0.010, 0.020))
    assert 0.010 + 0.010 * percent / 100 == pytest.approx(estimate.seconds, rel=0.35)


def test_hedge_learns_its_delay() -> None:
    async def main() -> None:
        delay = Percentile(90, 5.0)
        chain = Hedge(delay, lambda _req: True).and_then(Scripted(0.5))
        for _ in range(1000):
            await chain("x")
        assert 0.4 < delay.seconds < 0.6

    run(main())


# -- work beyond its caller ------------------------------------------------------------------------


def test_mask_cancel_protects_the_work_not_the_caller() -> None:
    async def main() -> None:
        service = Scripted(5.0)
        task = asyncio.create_task(call(MaskCancel().and_then(service), "x"))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.get_running_loop().time() == 1
        (masked,) = asyncio.all_tasks() - {asyncio.current_task()}
        assert await masked == 5.0
        assert service.cancelled == 0
        assert await MaskCancel().and_then(upper)("x") == "X"

    run(main())


def test_background_tasks_are_kept_until_they_end() -> None:
    async def main() -> None:
        task = background(asyncio.sleep(5, "done"), name="later")
        assert task.get_name() == "later"
        assert await task == "done"

    run(main())
