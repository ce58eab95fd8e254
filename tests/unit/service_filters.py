"""What tests of filters share: virtual time, and services that do what they are told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from stackmap.service import (
    Service,
    SimpleFilter,
    Status,
)
from stackmap.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Coroutine


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


async def call(service: Service[Any, Any], req: Any) -> Any:
    return await service(req)
