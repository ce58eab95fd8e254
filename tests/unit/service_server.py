"""What tests of a server share: its loop, services, and a client that asks once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from .service_peer import RawClient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stackmap.service import Server


ANYWHERE = ("127.0.0.1", 0)
#: More than a server has to do with in any of these tests.
LONG = 60.0


async def upper(req: bytes) -> bytes:
    return req.upper()


async def slow(req: bytes) -> bytes:
    await asyncio.sleep(0)
    return req.upper()


class Held:
    """A service that keeps requests waiting until they are released, and records each outcome."""

    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self.begun: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.changed = asyncio.Event()
        self.closed = 0

    async def __call__(self, req: bytes, /) -> bytes:
        self.begun.append(req)
        future = self.waiting[req] = asyncio.get_running_loop().create_future()
        self.changed.set()
        try:
            reply: bytes = await future
        except asyncio.CancelledError:
            self.cancelled.append(req)
            raise
        finally:
            self.changed.set()
        return reply

    async def has_begun(self, *requests: bytes) -> None:
        await self.until(lambda: set(requests) <= set(self.begun))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def release(self, req: bytes) -> None:
        self.waiting[req].set_result(req.upper())

    async def aclose(self, _deadline: float | None = None, /) -> None:
        self.closed += 1
        self.changed.set()


_new_loop: Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(autouse=True, params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> None:
    """Choose what run() makes: the standard library's loop, or one that shares no code with it."""
    global _new_loop  # noqa: PLW0603 (for run())
    _new_loop = asyncio.SelectorEventLoop if request.param == "asyncio" else uvloop.new_event_loop


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LONG):
            await main

    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(limited())


async def exchange(server: Server[Any, Any], data: bytes) -> bytes:
    """Send data and FIN as a client, and return everything received."""
    with await RawClient.connect(server) as client:
        await client.send(data)
        client.end()
        return await client.rest()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)
