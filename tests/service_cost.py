"""What filters, and a server's task per connection, cost: ``python -m tests.service_cost``.

Processor time of this process, the best of several rounds, without a network: the transport is one
that answers each write with the next request, in the next turn of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from stackmap.codec import Lines
from stackmap.service import AnyFilter, Service, Timeout, serve
from stackmap.service._connection import ServedConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MESSAGES = 20_000
ROUNDS = 9


class Through(AnyFilter):
    async def __call__(self, req: Any, service: Service[Any, Any], /) -> Any:
        return await service(req)


async def echo(req: bytes) -> bytes:
    return req


async def echo_later(req: bytes) -> bytes:
    await asyncio.sleep(0)
    return req


class Peer(asyncio.Transport):
    """Sends a request for each reply."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        self._left = MESSAGES
        self._done = self._loop.create_future()
        self._loop.call_soon(self._protocol.data_received, b"x\n")
        await self._done

    def write(self, _data: Any) -> None:
        self._left -= 1
        if self._left:
            self._loop.call_soon(self._protocol.data_received, b"x\n")
        else:
            self._done.set_result(None)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def abort(self) -> None:
        pass


class AwaitingProtocol(asyncio.Protocol):
    """The usual way: a task that awaits each message."""

    def __init__(self) -> None:
        self._codec = Lines()
        self._wake: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self.task = asyncio.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._codec.receive(data)
        if self._wake is not None:
            self._wake.set_result(None)
            self._wake = None

    async def _run(self) -> None:
        while True:
            message = self._codec.next_message()
            if message is None:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            else:
                self._transport.writelines(self._codec.send(await echo(message)))


class SpawningProtocol(AwaitingProtocol):
    """The other usual way: a task for each message."""

    def data_received(self, data: bytes) -> None:
        self._codec.receive(data)
        while (message := self._codec.next_message()) is not None:
            self._last = asyncio.get_running_loop().create_task(self._answer(message))

    async def _answer(self, message: bytes) -> None:
        self._transport.writelines(self._codec.send(await echo(message)))


class NothingProtocol(AwaitingProtocol):
    """The cost of the measurement itself."""

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def best(run: Callable[[], Awaitable[object]]) -> float:
    """Microseconds a message."""
    found = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        await run()
        found.append((time.process_time() - begun) / MESSAGES * 1e6)
    return min(found)


async def of_protocol(protocol: Any) -> float:
    peer = Peer(protocol)
    protocol.connection_made(peer)
    await asyncio.sleep(0)
    cost = await best(peer.run)
    protocol.task.cancel()
    return cost


async def of_service(service: Service[bytes, bytes]) -> float:
    return await of_protocol(ServedConnection(serve(("", 0), service, Lines)))


async def main() -> None:
    for count in (0, 1, 5, 10):
        chain: Service[bytes, bytes] = echo
        for _ in range(count):
            chain = Through().and_then(chain)

        async def run(chain: Service[bytes, bytes] = chain) -> None:
            for _ in range(MESSAGES):
                await chain(b"x")

        print(f"a call through {count} filters: {await best(run):.2f} us")
    turn = await of_protocol(NothingProtocol())
    print(f"a turn of the event loop: {turn:.2f} us; the following without it")
    for name, cost in (
        ("served as the connection's task", await of_service(echo)),
        ("  with Timeout", await of_service(Timeout(1).and_then(echo))),
        ("  when the service waits one turn", await of_service(echo_later)),
        ("a task that awaits each message", await of_protocol(AwaitingProtocol())),
        ("a task for each message", await of_protocol(SpawningProtocol())),
    ):
        print(f"{name}: {cost - turn:.2f} us")


if __name__ == "__main__":
    asyncio.run(main())
