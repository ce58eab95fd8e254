"""Chains of filters, called in memory; time is virtual."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackmap.codec import Lines, RemoteProtocolError
from stackmap.service import (
    AnyFilter,
    Auth,
    Authenticated,
    Backoff,
    ConcurrencyLimit,
    Deadline,
    DeadlineExceededError,
    Filter,
    Framed,
    Hedge,
    LoadShed,
    Logging,
    MaskCancel,
    Monitor,
    NotConnectedError,
    Peer,
    Percentile,
    RateLimit,
    RejectedError,
    Rescue,
    ResponseClass,
    Retry,
    RetryBudget,
    Service,
    SimpleFilter,
    Span,
    Stats,
    Status,
    Timeout,
    Trace,
    UnauthenticatedError,
    background,
    choose,
    close,
    const,
    current_deadline,
    current_span,
    identity,
    make_service,
    pending,
    per_connection,
    ready,
    status_of,
    wait_ready,
)
from stackmap.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from types import FrameType


T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main)


async def upper(req: str) -> str:
    return req.upper()


class Tag(SimpleFilter[str, str]):
    """Shows where a request has been."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"Tag({self._name!r})"

    async def __call__(self, req: str, service: Service[str, str], /) -> str:
        return f"{self._name}({await service(req + self._name)})"


A, B, C = Tag("a"), Tag("b"), Tag("c")


class Scripted:
    """A service that does what it is told, one step a request."""

    def __init__(self, *steps: object) -> None:
        self.steps = list(steps)
        self.calls: list[float] = []
        self.cancelled = 0

    async def __call__(self, _req: Any, /) -> Any:
        self.calls.append(asyncio.get_running_loop().time())
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, float):
            try:
                await asyncio.sleep(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return step
        if isinstance(step, BaseException):
            raise step
        return step


class Gate:
    """A service that answers when it is told to, and is ready when it is told so."""

    def __init__(self) -> None:
        self.requests: dict[Any, asyncio.Future[Any]] = {}
        self.waiter: asyncio.Future[None] | None = None
        self.closed: float | None = None

    status = Status.BUSY

    async def __call__(self, req: Any, /) -> Any:
        future = self.requests[req] = asyncio.get_running_loop().create_future()
        return await future

    def ready(self) -> asyncio.Future[None] | None:
        return self.waiter

    async def aclose(self, deadline: float | None = None, /) -> None:
        self.closed = deadline


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# -- composition ---------------------------------------------------------------------------------


def test_a_chain_applies_its_filters_from_the_outside_in() -> None:
    assert run(_call(A.and_then(B).and_then(upper), "x")) == "a(b(XAB))"


async def _call(service: Service[Any, Any], req: Any) -> Any:
    return await service(req)


def test_composition_is_associative_and_shows_the_whole_chain() -> None:
    chains = [
        A.and_then(B).and_then(C).and_then(upper),
        A.and_then(B.and_then(C)).and_then(upper),
        A.and_then(B.and_then(C.and_then(upper))),
        A.and_then(B).and_then(C.and_then(upper)),
    ]
    for chain in chains:
        assert repr(chain) == "Tag('a').and_then(Tag('b')).and_then(Tag('c')).and_then(upper)"
        assert run(_call(chain, "x")) == "a(b(c(XABC)))"


def test_the_repr_of_every_filter_is_how_it_is_made() -> None:
    chain = (
        Timeout(0.5)
        .and_then(Deadline(2))
        .and_then(Stats())
        .and_then(ConcurrencyLimit(10, 5))
        .and_then(LoadShed())
        .and_then(RateLimit(100, 10))
        .and_then(MaskCancel())
        .and_then(Retry(4))
        .and_then(Hedge(0.1, bool))
        .and_then(Trace("x"))
        .and_then(Logging(logging.getLogger("log")))
    )
    assert repr(chain.and_then(const(1))) == (
        "Timeout(0.5).and_then(Deadline(2)).and_then(Stats()).and_then(ConcurrencyLimit(10, 5))"
        ".and_then(LoadShed()).and_then(RateLimit(100, 10)).and_then(MaskCancel())"
        ".and_then(Retry(4)).and_then(Hedge(0.1, <class 'bool'>)).and_then(Trace('x'))"
        ".and_then(Logging('log')).and_then(const(1))"
    )


def test_identity_is_left_out() -> None:
    assert identity.and_then(upper) is upper
    assert identity.and_then(A) is A
    assert A.and_then(identity) is A
    assert A.and_then_if(False, B) is A
    assert repr(A.and_then_if(True, B).and_then(upper)).count("Tag") == 2
    assert repr(identity) == "identity"


def test_only_what_can_follow_a_filter_may() -> None:
    with pytest.raises(TypeError, match="not 7"):
        A.and_then(7)  # type: ignore[call-overload]


def test_a_request_costs_a_coroutine_a_filter_and_nothing_else() -> None:
    class Through(AnyFilter):
        async def __call__(self, req: Any, service: Service[Any, Any], /) -> Any:
            return await service(req)

    async def main() -> None:
        chain: Service[str, str] = upper
        for count in range(1, 6):
            chain = Through().and_then(chain)
            calls: list[str] = []

            def note(frame: FrameType, event: str, _arg: Any, calls: list[str] = calls) -> None:
                if event == "call":
                    calls.append(frame.f_code.co_name)

            sys.setprofile(note)
            try:
                await chain("x")
            finally:
                sys.setprofile(None)
            # Of each filter the call that passes the service, and the coroutine.
            assert calls == ["__call__"] * 2 * count + ["upper"]
            assert len(asyncio.all_tasks()) == 1

    run(main())


def test_a_joined_filter_can_be_called_as_any_filter() -> None:
    assert run(_call_filter(A.and_then(B))) == "a(b(XAB))"
    assert run(_call_filter(choose(lambda _req: B))) == "b(XB)"


async def _call_filter(filter: Filter[str, str, str, str]) -> str:
    return await filter("x", upper)


def test_choose_picks_a_filter_for_each_request() -> None:
    chain = choose(lambda req: {"1": A, "2": B}.get(req[0])).and_then(upper)
    assert [run(_call(chain, req)) for req in ("1", "2", "3")] == ["a(1A)", "b(2B)", "3"]
    assert repr(chain).startswith("choose(")


def test_choose_binds_each_filter_once() -> None:
    bound = []

    class Bound(SimpleFilter[str, str]):
        async def __call__(self, req: str, service: Service[str, str], /) -> str:
            return await service(req)

        def bind(self, service: Service[str, str], /) -> Any:
            bound.append(service)
            return super().bind(service)

    one = Bound()
    chain = choose(lambda _req: one).and_then(upper)
    for _ in range(3):
        assert run(_call(chain, "x")) == "X"
    assert bound == [upper]


def test_functions_become_filters() -> None:
    @Filter.mk
    async def twice(req: str, service: Service[str, str]) -> str:
        return await service(req) + await service(req)

    def plain(req: str, service: Service[str, str]) -> Awaitable[str]:
        return service(req + "!")

    chain = twice.and_then(Filter.mk(plain)).and_then(upper)
    assert run(_call(chain, "x")) == "X!X!"
    assert "twice" in repr(chain)
    assert "plain" in repr(chain)


def test_functions_become_services() -> None:
    @make_service
    def length(req: bytes) -> int:
        return len(req)

    @make_service
    def later(req: bytes) -> Awaitable[str]:
        return upper(req.decode())

    assert run(_call(length, b"abc")) == 3
    assert run(_call(later, b"abc")) == "ABC"
    assert make_service(upper) is upper
    assert repr(length) == "test_functions_become_services.length"


def test_what_a_plain_function_raises_is_raised_when_it_is_awaited() -> None:
    def broken(_req: str) -> Awaitable[str]:
        raise ValueError("at once")

    async def main() -> None:
        awaitable = make_service(broken)("x")
        with pytest.raises(ValueError, match="at once"):
            await awaitable
        for chain in (A, MaskCancel(), Hedge(1, lambda _req: True), Filter.mk(_pass_on)):
            awaitable = chain.and_then(broken)("x")
            with pytest.raises(ValueError, match="at once"):
                await awaitable

    run(main())


def _pass_on(req: str, service: Service[str, str]) -> Awaitable[str]:
    return service(req)


def test_a_chain_forwards_status_readiness_and_end() -> None:
    async def main() -> None:
        gate = Gate()
        chain = A.and_then(Timeout(1)).and_then(gate)
        assert chain.status is status_of(chain) is Status.BUSY
        assert status_of(upper) is Status.OPEN
        assert ready(chain) is None
        gate.waiter = asyncio.get_running_loop().create_future()
        assert ready(chain) is gate.waiter
        await close(chain, 7.0)
        assert gate.closed == 7.0
        await close(upper)
        await wait_ready(upper)

    run(main())


def test_wait_ready_waits() -> None:
    async def main() -> None:
        gate = Gate()
        gate.waiter = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(wait_ready(A.and_then(gate)))
        await settle()
        assert not waiting.done()
        waiter, gate.waiter = gate.waiter, None
        waiter.set_result(None)
        await waiting

    run(main())


def test_a_filter_before_a_factory_is_before_each_of_its_services() -> None:
    gates: list[Gate] = []

    def make(_peer: Peer) -> Gate:
        gates.append(Gate())
        return gates[-1]

    factory = A.and_then(B).and_then(per_connection(make))
    assert repr(factory).startswith("Tag('a').and_then(Tag('b')).and_then(per_connection(")
    peer: Any = None

    async def main() -> None:
        service = await factory.make(peer)
        call = asyncio.create_task(_call(service, "x"))
        await settle()
        gates[0].requests["xab"].set_result("done")
        assert await call == "a(b(done))"
        await close(service, 3.0)
        assert gates[0].closed == 3.0
        assert await factory.make(peer) is not service
        assert factory.status is Status.OPEN
        await factory.aclose()

    run(main())


def test_pending_never_answers() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await Timeout(1e6).and_then(pending)("x")

    run(main())


# -- time ----------------------------------------------------------------------------------------


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
        task = asyncio.create_task(_call(Timeout(1).and_then(pending), "x"))
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


# -- retries -------------------------------------------------------------------------------------


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


# -- limits --------------------------------------------------------------------------------------


def test_a_limit_lets_some_through_has_some_wait_and_rejects_the_rest() -> None:
    async def main() -> None:
        gate = Gate()
        limit = ConcurrencyLimit(2, 2)
        chain = limit.and_then(gate)
        tasks = [asyncio.create_task(_call(chain, number)) for number in range(5)]
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
        first, second, third = (asyncio.create_task(_call(chain, i)) for i in range(3))
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
                tasks.append(asyncio.create_task(_call(chain, number)))
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
        first = asyncio.create_task(_call(chain, "first"))
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
        first = asyncio.create_task(_call(chain, "first"))
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
        first = asyncio.create_task(_call(chain, "first"))
        await settle()
        assert ready(chain) is None
        for _ in range(100):
            with pytest.raises(RejectedError, match="overloaded"):
                await chain("second")
        gate.requests["first"].set_result("ok")
        assert await first == "ok"
        second = asyncio.create_task(_call(chain, "second"))
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


# -- hedging -------------------------------------------------------------------------------------


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
        task = asyncio.create_task(_call(Hedge(2, lambda _req: True).and_then(service), "x"))
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


# -- authentication, tracing, logging ------------------------------------------------------------


def test_auth_changes_the_type_of_requests() -> None:
    async def find(req: str) -> int | None:
        return {"alice": 1}.get(req)

    async def greet(req: Authenticated[int, str]) -> str:
        return f"{req.request} is {req.principal}"

    async def main() -> None:
        chain = Auth[str, str, int](find).and_then(greet)
        assert await chain("alice") == "alice is 1"
        with pytest.raises(UnauthenticatedError):
            await chain("bob")

    run(main())


def test_stats_count_by_outcome_and_keep_latencies() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        stats = Stats(clock=loop.time)
        chain = stats.and_then(Scripted(0.25, RejectedError(), ValueError(), "ok", 0.5))
        for _ in range(5):
            with contextlib.suppress(RejectedError, ValueError):
                await chain("x")
        task = asyncio.create_task(_call(stats.and_then(pending), "x"))
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
        run(_call(Trace("lookup").and_then(upper), "x"))
    assert "of none: lookup," in caplog.text


def test_logging_writes_a_line_a_request(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test")
    with caplog.at_level(logging.INFO):
        run(_call(Logging(logger).and_then(Scripted(0.5)), "secret"))
        with pytest.raises(ValueError):
            run(_call(Logging(logger, show=str).and_then(Scripted(ValueError("no"))), "get a"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "- str: ok, 500.000 ms"),
        ("WARNING", "- get a: ValueError('no'), 0.000 ms"),
    ]


def test_mask_cancel_protects_the_work_not_the_caller() -> None:
    async def main() -> None:
        service = Scripted(5.0)
        task = asyncio.create_task(_call(MaskCancel().and_then(service), "x"))
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


# -- a whole server in memory --------------------------------------------------------------------


@given(st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line)), st.data())
def test_a_protocol_as_a_filter(lines: list[bytes], data: st.DataObject) -> None:
    async def reverse(line: bytes) -> bytes | None:
        return line[::-1] if line else None

    async def main() -> None:
        server = Framed(Lines()).and_then(reverse)
        stream = b"".join(line + b"\n" for line in lines)
        out = b""
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            out += await server(stream[:size])
            stream = stream[size:]
        assert out == b"".join(line[::-1] + b"\n" for line in lines if line)

    run(main())


def test_a_protocol_as_a_filter_hangs_up_after_an_error() -> None:
    async def main() -> None:
        server = Framed(Lines(max_length=3)).and_then(const(b"ok"))
        assert await server(b"abc\nabcd\nabc\n") == b"ok\n"
        with pytest.raises(RemoteProtocolError):
            await server(b"abc\n")

    run(main())
