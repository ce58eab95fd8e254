"""Chains of filters, called in memory: composition, types that change, a whole server."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackmap.codec import Lines, RemoteProtocolError
from stackmap.service import (
    AnyFilter,
    Auth,
    Authenticated,
    ConcurrencyLimit,
    Deadline,
    Filter,
    Framed,
    Hedge,
    LoadShed,
    Logging,
    MaskCancel,
    Peer,
    RateLimit,
    Retry,
    Service,
    SimpleFilter,
    Stats,
    Status,
    Timeout,
    Trace,
    UnauthenticatedError,
    choose,
    close,
    const,
    identity,
    make_service,
    pending,
    per_connection,
    ready,
    status_of,
    wait_ready,
)

from .service_filters import A, B, C, Gate, call, run, settle, upper

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import FrameType


# -- composition -----------------------------------------------------------------------------------


def test_a_chain_applies_its_filters_from_the_outside_in() -> None:
    assert run(call(A.and_then(B).and_then(upper), "x")) == "a(b(XAB))"


def test_composition_is_associative_and_shows_the_whole_chain() -> None:
    chains = [
        A.and_then(B).and_then(C).and_then(upper),
        A.and_then(B.and_then(C)).and_then(upper),
        A.and_then(B.and_then(C.and_then(upper))),
        A.and_then(B).and_then(C.and_then(upper)),
    ]
    for chain in chains:
        assert repr(chain) == "Tag('a').and_then(Tag('b')).and_then(Tag('c')).and_then(upper)"
        assert run(call(chain, "x")) == "a(b(c(XABC)))"


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
    assert [run(call(chain, req)) for req in ("1", "2", "3")] == ["a(1A)", "b(2B)", "3"]
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
        assert run(call(chain, "x")) == "X"
    assert bound == [upper]


def test_functions_become_filters() -> None:
    @Filter.mk
    async def twice(req: str, service: Service[str, str]) -> str:
        return await service(req) + await service(req)

    def plain(req: str, service: Service[str, str]) -> Awaitable[str]:
        return service(req + "!")

    chain = twice.and_then(Filter.mk(plain)).and_then(upper)
    assert run(call(chain, "x")) == "X!X!"
    assert "twice" in repr(chain)
    assert "plain" in repr(chain)


def test_functions_become_services() -> None:
    @make_service
    def length(req: bytes) -> int:
        return len(req)

    @make_service
    def later(req: bytes) -> Awaitable[str]:
        return upper(req.decode())

    assert run(call(length, b"abc")) == 3
    assert run(call(later, b"abc")) == "ABC"
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
        answer = asyncio.create_task(call(service, "x"))
        await settle()
        gates[0].requests["xab"].set_result("done")
        assert await answer == "a(b(done))"
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


# -- types that change -----------------------------------------------------------------------------


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


# -- a whole server in memory ----------------------------------------------------------------------


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
