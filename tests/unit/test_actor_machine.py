"""Random programs of sends, failures, restarts and stops: nothing is lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from stackmap.actor import Actor, ActorRef, ActorSystem, Child, Overflow, Restart, Strategy
from stackmap.actor import Supervisor as ActorSupervisor
from stackmap.errors import WouldBlockError
from stackmap.testing import VirtualClock

#: Turns of the loop after which all that can happen has happened.
TURNS = 60
Message = int | str


@dataclass
class Expected:
    """The model of one actor."""

    ref: ActorRef[Message] | None = None
    overflow: Overflow = Overflow.BLOCK
    capacity: int = 1
    #: Accepted, in order, but for what is to fail.
    accepted: list[Message] = field(default_factory=list)
    handled: list[Message] = field(default_factory=list)
    failed: int = 0
    waiting: list[tuple[Message, asyncio.Task[None]]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False
    inside: bool = False


class Machine(RuleBasedStateMachine):
    """Drives three actors under a supervisor."""

    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("stackmap.actor")
        self.level = self.log.level
        self.log.setLevel(logging.CRITICAL)  # failures are the point
        self.loop = VirtualClock()
        self.numbers = 0
        self.actors: list[Expected] = []
        self.system: ActorSystem

    def turns(self, count: int = TURNS) -> None:
        async def wait() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    @initialize(
        strategy=st.sampled_from(Strategy),
        kinds=st.lists(
            st.tuples(st.sampled_from(Overflow), st.integers(1, 4), st.booleans()),
            min_size=3,
            max_size=3,
        ),
    )
    def begin(self, strategy: Strategy, kinds: list[tuple[Overflow, int, bool]]) -> None:
        children: list[Child[Any]] = []
        for index, (overflow, capacity, plain) in enumerate(kinds):
            expected = Expected(overflow=overflow, capacity=capacity)
            self.actors.append(expected)
            make = plain_actor(expected) if plain else async_actor(expected)
            children.append(
                Child(make, capacity, name=str(index), overflow=overflow, shutdown=None)
            )

        async def start() -> None:
            self.system = ActorSystem()
            await self.system.__aenter__()
            supervisor: Child[Any] = Child(
                lambda: ActorSupervisor(children, strategy=strategy, intensity=10**9),
                capacity=1,
                restart=Restart.TEMPORARY,
                shutdown=None,
            )
            await self.system.spawn(supervisor).ready()
            for index, expected in enumerate(self.actors):
                expected.ref = self.system.whereis(str(index))

        self.loop.run_until_complete(start())

    def message(self, kind: str) -> Message:
        self.numbers += 1
        return self.numbers if kind == "number" else f"{kind}-{self.numbers}"

    @rule(
        index=st.integers(0, 2),
        kinds=st.lists(
            st.sampled_from(["number", "number", "fail", "block"]), min_size=1, max_size=6
        ),
    )
    def tell_nowait(self, index: int, kinds: list[str]) -> None:
        expected = self.actors[index]
        assert expected.ref is not None

        async def tell() -> None:
            assert expected.ref is not None
            for kind in kinds:
                message = self.message(kind)
                full = expected.ref.statistics.depth == expected.capacity
                try:
                    expected.ref.tell_nowait(message)
                except WouldBlockError:
                    assert full
                    assert not expected.stopped
                    assert expected.overflow is not Overflow.DROP_OLDEST
                else:
                    if not expected.stopped:
                        assert not full or expected.overflow is Overflow.DROP_OLDEST
                        expected.accepted.append(message)

        self.loop.run_until_complete(tell())

    @rule(index=st.integers(0, 2), kind=st.sampled_from(["number", "fail", "block"]))
    def tell(self, index: int, kind: str) -> None:
        expected = self.actors[index]
        assert expected.ref is not None
        if expected.overflow is not Overflow.BLOCK or expected.stopped:
            return
        message = self.message(kind)
        task = self.loop.create_task(expected.ref.tell(message))
        self.turns(1)
        expected.accepted.append(message)
        if not task.done():
            expected.waiting.append((message, task))

    @precondition(lambda self: any(actor.waiting for actor in self.actors))
    @rule(index=st.integers(0, 2))
    def give_up(self, index: int) -> None:
        expected = self.actors[index]
        cell: Any = expected.ref
        for message, task in expected.waiting[:]:
            if not task.done():
                # One that has just been let in stays there: its sender has not had a turn yet.
                let_in = all(each != message for each, _admitted in cell.mailbox.waiting)
                task.cancel()
                self.turns(1)
                assert task.cancelled()
                expected.waiting.remove((message, task))
                if not let_in:
                    expected.accepted.remove(message)
                return

    @rule(index=st.integers(0, 2))
    def release(self, index: int) -> None:
        self.actors[index].gate.set()

    @rule(count=st.integers(1, TURNS))
    def run(self, count: int) -> None:
        self.turns(count)

    @rule(index=st.integers(0, 2))
    def stop(self, index: int) -> None:
        expected = self.actors[index]
        assert expected.ref is not None
        if expected.stopped:
            return
        alive_between_lives = expected.ref.statistics.state == "down"
        depth = expected.ref.statistics.depth
        expected.stopped = True
        expected.ref.stop()
        for message, task in expected.waiting:
            if not task.done():
                expected.accepted.remove(message)
        if alive_between_lives and depth:
            del expected.accepted[-depth:]  # there is nobody to drain it
        self.turns(2)
        assert all(task.done() for _message, task in expected.waiting)

    @invariant()
    def bounded_and_in_order(self) -> None:
        for expected in self.actors:
            assert expected.ref is not None
            statistics = expected.ref.statistics
            assert statistics.depth <= statistics.peak <= expected.capacity
            numbers = [message for message in expected.accepted if isinstance(message, int)]
            handled = [message for message in expected.handled if isinstance(message, int)]
            if expected.overflow is Overflow.DROP_OLDEST:
                rest = iter(numbers)
                assert all(message in rest for message in handled), "in order, and at most once"
            else:
                assert handled == numbers[: len(handled)]

    def teardown(self) -> None:
        try:
            if self.actors:
                self.end()
        finally:
            self.loop.close()
            self.log.setLevel(self.level)

    def end(self) -> None:
        """Let everything be handled, and compare."""
        for _ in range(200):
            for expected in self.actors:
                expected.gate.set()
            self.turns()
            if not any(actor.inside or self.depth(actor) for actor in self.actors):
                break
        for expected in self.actors:
            assert expected.ref is not None
            missing = len(expected.accepted) - len(expected.handled)
            if expected.stopped and str(expected.handled[-1:]).startswith("['fail"):
                assert missing >= expected.ref.statistics.dropped, "it failed while it drained"
            else:
                assert missing == expected.ref.statistics.dropped
            assert all(task.done() for _message, task in expected.waiting)
        self.loop.run_until_complete(self.system.__aexit__(None, None, None))

    def depth(self, expected: Expected) -> int:
        assert expected.ref is not None
        return expected.ref.statistics.depth


def plain_actor(expected: Expected) -> Any:
    class Plain(Actor[Message]):
        def receive(self, message: Message) -> None:
            assert not expected.inside
            expected.handled.append(message)
            if str(message).startswith("fail"):
                raise ValueError(message)

    return Plain


def async_actor(expected: Expected) -> Any:
    class Async(Actor[Message]):
        async def receive(self, message: Message) -> None:
            assert not expected.inside, "one message at a time"
            expected.inside = True
            try:
                expected.handled.append(message)
                if str(message).startswith("block"):
                    expected.gate.clear()
                    await expected.gate.wait()
                elif str(message).startswith("fail"):
                    await asyncio.sleep(0)
                    raise ValueError(message)
            finally:
                expected.inside = False

    return Async


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=30)
