"""What a message between actors costs: ``python -m tests.actor_cost``.

A token goes around a ring of participants, or many messages go to one: by a direct call, by
``call_soon()``, through ``asyncio.Queue`` to a task, and to an actor whose handler is plain or
async.
The figure is nanoseconds for each message, the median of rounds that take turns; on a busy or
emulated machine only the ratios say anything.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from stackmap.actor import Actor, ActorRef, ActorSystem, Child

HOPS = 20_000
ROUNDS = 9
#: Messages that are sent to one receiver before it has a turn.
BURST = 50

Measure = Callable[[], Coroutine[Any, Any, float]]


class _Receiver:
    """The function that a direct call calls."""

    def __init__(self) -> None:
        self.left = HOPS

    def receive(self, message: object) -> None:  # noqa: ARG002
        self.left -= 1


async def direct_call() -> float:
    """The cost of calling a method."""
    receiver = _Receiver()
    begin = time.perf_counter()
    for _ in range(HOPS):
        receiver.receive(1)
    return time.perf_counter() - begin


async def ring_of_callbacks() -> float:
    """A token that ``call_soon()`` passes on: the least that a hop through the loop costs."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = HOPS

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            done.set_result(None)

    begin = time.perf_counter()
    loop.call_soon(step)
    await done
    return time.perf_counter() - begin


async def ring_of_queues() -> float:
    """A token between two tasks, each with a bounded ``asyncio.Queue``."""
    queues: list[asyncio.Queue[int]] = [asyncio.Queue(100), asyncio.Queue(100)]

    async def participant(own: asyncio.Queue[int], other: asyncio.Queue[int]) -> None:
        while True:
            left = await own.get()
            other.put_nowait(left - 1)
            if left <= 1:
                return

    begin = time.perf_counter()
    queues[0].put_nowait(HOPS)
    await asyncio.gather(participant(queues[0], queues[1]), participant(queues[1], queues[0]))
    return time.perf_counter() - begin


async def burst_to_a_queue() -> float:
    """Bursts to one task."""
    queue: asyncio.Queue[int] = asyncio.Queue(BURST)

    async def receiver() -> None:
        for _ in range(HOPS):
            await queue.get()

    task = asyncio.create_task(receiver())
    begin = time.perf_counter()
    for _ in range(HOPS // BURST):
        for number in range(BURST):
            queue.put_nowait(number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await task
    return time.perf_counter() - begin


class _Token(Actor[int]):
    """Passes the token on with a plain handler."""

    other: ActorRef[int]

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done

    def itself(self) -> _Token:
        """Stand for a function that makes it."""
        return self

    def receive(self, message: int) -> None:
        if message:
            self.other.tell_nowait(message - 1)
        else:
            self.done.set_result(None)


class _AsyncToken(_Token):
    async def receive(self, message: int) -> None:  # type: ignore[override]
        if message:
            self.other.tell_nowait(message - 1)
        else:
            self.done.set_result(None)


async def _ring_of_actors(kind: type[_Token]) -> float:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    actors = [kind(done), kind(done)]
    async with ActorSystem() as system:
        refs = [system.spawn(Child(each.itself, capacity=100)) for each in actors]
        for actor, other in zip(actors, reversed(refs), strict=True):
            actor.other = other
        for ref in refs:
            await ref.ready()
        begin = time.perf_counter()
        refs[0].tell_nowait(HOPS)
        await done
        return time.perf_counter() - begin


async def ring_of_plain_actors() -> float:
    """A token between two actors with plain handlers."""
    return await _ring_of_actors(_Token)


async def ring_of_async_actors() -> float:
    """A token between two actors with async handlers."""
    return await _ring_of_actors(_AsyncToken)


class _Sink(Actor[int]):
    def __init__(self) -> None:
        self.left = HOPS

    def receive(self, message: int) -> None:  # noqa: ARG002
        self.left -= 1


class _AsyncSink(_Sink):
    async def receive(self, message: int) -> None:  # type: ignore[override] # noqa: ARG002
        self.left -= 1


async def _burst_to_an_actor(kind: type[_Sink]) -> float:
    async with ActorSystem() as system:
        ref = system.spawn(Child(kind, capacity=BURST))
        await ref.ready()
        ref.tell_nowait(0)  # the first awaitable gets it its task
        await asyncio.sleep(0)
        begin = time.perf_counter()
        for _ in range(HOPS // BURST):
            for number in range(BURST):
                ref.tell_nowait(number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return time.perf_counter() - begin


async def burst_to_a_plain_actor() -> float:
    """Bursts to an actor with a plain handler."""
    return await _burst_to_an_actor(_Sink)


async def burst_to_an_async_actor() -> float:
    """Bursts to an actor with an async handler."""
    return await _burst_to_an_actor(_AsyncSink)


MEASURES: dict[str, tuple[Measure, ...]] = {
    "one message, the receiver idle": (
        direct_call,
        ring_of_callbacks,
        ring_of_queues,
        ring_of_plain_actors,
        ring_of_async_actors,
    ),
    f"{BURST} messages at a time": (
        direct_call,
        burst_to_a_queue,
        burst_to_a_plain_actor,
        burst_to_an_async_actor,
    ),
}


def main() -> None:
    """Measure, and print a table for each case."""
    print(f"Python {sys.version.split()[0]}, {ROUNDS} rounds of {HOPS} messages")
    for case, measures in MEASURES.items():
        rounds: dict[Measure, list[float]] = {measure: [] for measure in measures}
        for _ in range(ROUNDS):
            for measure in measures:
                rounds[measure].append(asyncio.run(measure()))
        medians = {m: statistics.median(times) / HOPS * 1e9 for m, times in rounds.items()}
        queue = next(ns for m, ns in medians.items() if "queue" in m.__name__)
        print(f"\n{case:34} {'ns':>8} {'of a call':>10} {'of a queue':>11}")
        for measure, ns in medians.items():
            of_call, of_queue = ns / medians[direct_call], ns / queue
            name = measure.__name__.replace("_", " ")
            print(f"  {name:32} {ns:8.0f} {of_call:10.1f} {of_queue:11.2f}")


if __name__ == "__main__":
    main()
