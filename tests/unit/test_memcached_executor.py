"""The memcached server's commands as messages, and the service that executes them, in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stackmap.codec import memcached as mc
from stackmap.memcached import Store
from stackmap.memcached.executor import MAX_REPLY, Executor
from stackmap.memcached.service import make_service
from stackmap.service import ResponseClass, Stats

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reports:
    def report(self, words: list[bytes]) -> bytes | Iterator[bytes] | None:
        return iter([b"STAT a 1\r\n", b"END\r\n"]) if words == [b"lines"] else None

    def reset(self) -> None:
        pass


@pytest.fixture
def executor() -> Executor:
    return Executor(Store(64 << 20, clock=lambda: 1000.0), Reports())


def test_requests_and_replies(executor: Executor) -> None:
    stored, silent = mc.Status("STORED"), mc.NoReply()
    for request, reply in (
        (mc.Store("set", b"k", b"7", 5), stored),
        (mc.Get((b"k", b"none"), cas=True), mc.Values((mc.Value(b"k", b"7", 5, 1),))),
        (mc.Store("cas", b"k", b"8", cas=9), mc.Status("EXISTS")),
        (mc.Store("add", b"k", b"8", noreply=True), silent),
        (mc.Count(b"k", 3), mc.Number(10)),
        (mc.Count(b"none", 3), mc.Status("NOT_FOUND")),
        (mc.Store("append", b"k", b"x"), stored),
        (mc.Count(b"k", 3, noreply=True), silent),
        (mc.MetaGet(b"k", {"v": None, "t": None}), mc.Meta("VA", {"t": -1}, b"10x")),
        (mc.MetaSet(b"a b", b"1", {"b": None, "k": None}), mc.Meta("HD", {"k": b"a b", "b": None})),
        (mc.MetaCount(b"a b", {"b": None, "v": None}), mc.Meta("VA", {}, b"2")),
        (mc.MetaDelete(b"k", {"q": None}), silent),
        (mc.MetaGet(b"k"), mc.Meta("EN")),
        (mc.MetaNoop(), mc.Meta("MN")),
        (mc.Command((b"stats", b"lines")), mc.Encoded(b"STAT a 1\r\nEND\r\n")),
        (mc.Command((b"stats", b"none")), mc.Error("ERROR")),
        (mc.Command((b"unknown",)), mc.Error("ERROR")),
        (mc.Command((b"verbosity", b"1", b"noreply")), silent),
    ):
        assert executor.execute(request) == reply, request


def test_a_reply_is_bounded(executor: Executor) -> None:
    value = bytes(1 << 19)
    assert executor.execute(mc.Store("set", b"k", value)) == mc.Status("STORED")
    most = MAX_REPLY // len(value)
    reply = executor.execute(mc.Get((b"k",) * most))
    assert isinstance(reply, mc.Values)
    assert len(reply.items) == most
    reply = executor.execute(mc.Get((b"k",) * (most + 1)))
    assert reply == mc.Error("SERVER_ERROR", "out of memory writing get response")


def test_a_value_that_is_too_large_takes_the_old_one_along(executor: Executor) -> None:
    for refused in (mc.Store("set", b"k", b"", noreply=True), mc.MetaSet(b"k", b"")):
        executor.execute(mc.Store("set", b"k", b"old"))
        request = mc.Invalid(mc.NoReply(), refused, too_large=True)
        assert executor.execute(request) == mc.NoReply()
        assert executor.execute(mc.Get((b"k",))) == mc.Values()


def test_a_command_that_fails_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    def clock() -> float:
        return 1000.0

    class Broken(Store):
        def get(self, key: bytes) -> None:
            raise RuntimeError(f"no {key!r}")

    stats = Stats()
    service = make_service(Executor(Broken(1 << 20, clock), Reports()), stats)

    async def ask(*requests: mc.Request) -> list[mc.Reply]:
        return [await service(request) for request in requests]

    replies = asyncio.run(ask(mc.Get((b"k",)), mc.MetaNoop()))
    assert replies == [mc.Error("SERVER_ERROR", "internal error"), mc.Meta("MN")]
    assert stats.outcomes[ResponseClass.SUCCESS] == 1
    assert stats.outcomes.total() == 2
    assert "no b'k'" in caplog.text
