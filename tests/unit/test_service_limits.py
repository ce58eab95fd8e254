"""Filters that limit what is let through; time is virtual."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackmap.service import (
    ConcurrencyLimit,
    LoadShed,
    Percentile,
    RateLimit,
    RejectedError,
    Retry,
    RetryBudget,
    const,
    ready,
    wait_ready,
)

from .service_filters import Gate, call, run, settle


def test_a_limit_lets_some_through_has_some_wait_and_rejects_the_rest() -> None:
    async def main() -> None:
        gate = Gate()
        limit = ConcurrencyLimit(2, 2)
        chain = limit.and_then(gate)
        tasks = [asyncio.create_task(call(chain, number)) for number in range(5)]
        await settle()
        assert sorted(gate.requests) == [0, 1]
        assert (limit.running, limit.waiting) == (2, 2)
        with pytest.raises(RejectedError, match="2 requests are in progress and 2 wait"):
            await tasks[4]
        gate.requests[1].set_result("one")
        await settle()
        assert sorted(gate.requests) == [0, 1, 2]
        for number in (0, 2, 3):
            gate.requests[number].set_result(number)
            await settle()
        assert await asyncio.gather(*tasks[:4]) == [0, "one", 2, 3]
        assert (limit.running, limit.waiting) == (0, 0)

    run(main())


def test_a_request_that_is_cancelled_while_it_waits_gives_its_place_back() -> None:
    async def main() -> None:
        gate = Gate()
        limit = ConcurrencyLimit(1, 2)
        chain = limit.and_then(gate)
        first, second, third = (asyncio.create_task(call(chain, i)) for i in range(3))
        await settle()
        second.cancel()
        await settle()
        assert limit.waiting == 1
        gate.requests[0].set_result(0)
        await asyncio.sleep(0)
        assert first.done()
        third.cancel()  # it has got the place, but has not run yet
        await settle()
        assert (limit.running, limit.waiting) == (0, 0)
        assert list(gate.requests) == [0]

    run(main())


@given(
    st.integers(1, 3),
    st.integers(0, 2),
    st.lists(st.tuples(st.sampled_from("bec"), st.integers(0, 9)), max_size=40),
)
def test_a_limit_never_lets_too_many_through_and_forgets_none(
    concurrent: int, waiters: int, steps: list[tuple[str, int]]
) -> None:
    async def main() -> None:
        gate = Gate()
        limit = ConcurrencyLimit(concurrent, waiters)
        chain = limit.and_then(gate)
        tasks: list[asyncio.Task[Any]] = []
        for number, (what, which) in enumerate(steps):
            if what == "b":
                tasks.append(asyncio.create_task(call(chain, number)))
            elif tasks and what == "e":
                live = [future for future in gate.requests.values() if not future.done()]
                if live:
                    live[which % len(live)].set_result(None)
            elif tasks:
                tasks[which % len(tasks)].cancel()
            if which % 2:
                await settle()
            assert limit.running <= concurrent
            assert limit.waiting <= waiters
        while not all(task.done() for task in tasks):
            for future in gate.requests.values():
                if not future.done():
                    future.set_result(None)
            await settle()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (limit.running, limit.waiting) == (0, 0)
        assert ready(chain) is None

    run(main())


def test_a_full_limit_is_not_ready_and_wakes_as_many_as_it_has_room_for() -> None:
    async def main() -> None:
        gate = Gate()
        chain = ConcurrencyLimit(1).and_then(gate)
        first = asyncio.create_task(call(chain, "first"))
        await settle()
        begun: list[int] = []

        async def when_ready(number: int) -> None:
            await wait_ready(chain)
            begun.append(number)
            await chain(number)

        others = [asyncio.create_task(when_ready(number)) for number in range(3)]
        await settle()
        assert begun == []
        gate.requests["first"].set_result(None)
        await settle()
        assert begun == [0]
        others[0].cancel()
        await settle()
        assert begun == [0, 1]
        gate.requests[1].set_result(None)
        await settle()
        gate.requests[2].set_result(None)
        await asyncio.gather(first, *others[1:])

    run(main())


def test_a_woken_waiter_that_has_gone_delays_nobody() -> None:
    async def main() -> None:
        gate = Gate()
        chain = ConcurrencyLimit(1).and_then(gate)
        first = asyncio.create_task(call(chain, "first"))
        await settle()
        gone, waiting = ready(chain), asyncio.create_task(wait_ready(chain))
        await settle()
        gate.requests["first"].set_result(None)
        await first
        await settle()
        assert gone is not None
        assert gone.done()
        assert waiting.done()

    run(main())


def test_load_shed_rejects_what_would_have_to_wait() -> None:
    async def main() -> None:
        gate = Gate()
        chain = LoadShed().and_then(ConcurrencyLimit(1)).and_then(gate)
        first = asyncio.create_task(call(chain, "first"))
        await settle()
        assert ready(chain) is None
        for _ in range(100):
            with pytest.raises(RejectedError, match="overloaded"):
                await chain("second")
        gate.requests["first"].set_result("ok")
        assert await first == "ok"
        second = asyncio.create_task(call(chain, "second"))
        await settle()
        gate.requests["second"].set_result("ok")
        assert await second == "ok"

    run(main())


def test_a_rate_limit_lets_a_burst_through_and_then_its_rate() -> None:
    async def main() -> None:
        chain = RateLimit(10, 5).and_then(const("ok"))

        async def served(attempts: int) -> int:
            count = 0
            for _ in range(attempts):
                with contextlib.suppress(RejectedError):
                    count += await chain("x") == "ok"
            return count

        assert await served(9) == 5
        await asyncio.sleep(0.2)
        assert await served(9) == 2
        await asyncio.sleep(60)
        assert await served(9) == 5

    run(main())


def test_an_empty_rate_limit_is_not_ready_until_there_is_a_token() -> None:
    async def main() -> None:
        chain = RateLimit(10, 2).and_then(const("ok"))
        times = []

        async def when_ready() -> None:
            while True:
                await wait_ready(chain)
                with contextlib.suppress(RejectedError):
                    await chain("x")
                    times.append(round(asyncio.get_running_loop().time(), 6))
                    return

        await asyncio.gather(*(when_ready() for _ in range(5)))
        assert times == [0, 0, 0.1, 0.2, 0.3]

    run(main())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConcurrencyLimit(0),
        lambda: ConcurrencyLimit(1, -1),
        lambda: RateLimit(0),
        lambda: RateLimit(1, 0),
        lambda: Retry(0),
        lambda: RetryBudget(ttl=0),
        lambda: Percentile(100, 1),
    ],
)
def test_arguments_that_mean_nothing_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()
