"""Mailboxes, turns and questions of actors, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from stackmap.actor import (
    Actor,
    ActorSystem,
    Child,
    Down,
    Overflow,
    Reply,
    Restart,
    Signal,
    Stop,
)
from stackmap.errors import BrokenError, BusyError, ClosedError, WouldBlockError
from stackmap.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")
TEMPORARY = Restart.TEMPORARY


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main())


@dataclass
class Get:
    reply: Reply[list[object]]


class Recorder(Actor[object]):
    """Keeps what it is told; ``Get`` asks for it, and an exception is raised."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def receive(self, message: object) -> None:
        match message:
            case Get(reply):
                reply.send(self.seen.copy())
            case BaseException():
                raise message
            case _:
                self.seen.append(message)

    def on_signal(self, signal: Signal) -> None:
        self.seen.append(signal)


class Slow(Actor[object]):
    """Sleeps for as long as a message says."""

    log: list[object]

    def __init__(self, log: list[object] | None = None) -> None:
        self.log = [] if log is None else log
        self.inside = 0

    async def receive(self, message: object) -> None:
        assert not self.inside, "two messages at a time"
        self.inside += 1
        try:
            if isinstance(message, float):
                await asyncio.sleep(message)
            self.log.append(message)
        finally:
            self.inside -= 1


def test_messages_of_a_sender_stay_in_order() -> None:
    async def main() -> list[object]:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Recorder, capacity=7))
            for number in range(100):
                await actor.tell(number)
            return await actor.ask(Get)

    assert run(main) == list(range(100))


def test_a_full_mailbox_makes_tell_wait_and_tell_nowait_raise() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            log: list[object] = []
            actor = system.spawn(Child(lambda: Slow(log), capacity=2))
            actor.tell_nowait(10.0)
            await asyncio.sleep(1)  # it is being handled
            actor.tell_nowait("a")
            actor.tell_nowait("b")
            with pytest.raises(WouldBlockError, match="full with 2 messages") as raised:
                actor.tell_nowait("c")
            assert raised.value.errno == errno.EAGAIN
            await actor.tell("d")
            assert asyncio.get_running_loop().time() == 10.0
            assert actor.statistics.peak == 2

    run(main)


def test_senders_wait_in_order_and_one_that_gives_up_is_skipped() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            log: list[object] = []
            actor = system.spawn(Child(lambda: Slow(log), capacity=1))
            actor.tell_nowait(1.0)
            await asyncio.sleep(0.5)
            actor.tell_nowait("first")
            waiting = [asyncio.create_task(actor.tell(number)) for number in range(4)]
            await asyncio.sleep(0)
            assert actor.statistics.waiting == 4
            waiting[1].cancel()
            await asyncio.sleep(0)
            assert actor.statistics.waiting == 3
            with pytest.raises(WouldBlockError):
                actor.tell_nowait("overtakes")
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.sleep(1)
            assert log == [1.0, "first", 0, 2, 3]

    run(main)


def test_the_oldest_message_is_dropped_if_the_policy_says_so() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Recorder, capacity=3, overflow=Overflow.DROP_OLDEST))
            for number in range(10):
                await actor.tell(number)
            await actor.ready()
            assert actor.statistics.dropped == 7
            assert await actor.ask(Get) == [7, 8, 9]

    run(main)


def test_a_question_that_is_dropped_fails() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Recorder, capacity=1, overflow=Overflow.DROP_OLDEST))
            question = asyncio.create_task(actor.ask(Get))
            await asyncio.sleep(0)
            assert actor.statistics.depth == 1
            actor.tell_nowait("newer")
            with pytest.raises(WouldBlockError, match="dropped"):
                await question

    run(main)


def test_tell_raises_if_the_policy_is_to_fail() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Recorder, capacity=1, overflow=Overflow.FAIL))
            await actor.tell(1)
            with pytest.raises(WouldBlockError):
                await actor.tell(2)

    run(main)


def test_an_actor_does_not_wait_for_itself() -> None:
    class Selfish(Actor[object]):
        async def receive(self, message: object) -> None:
            for _ in range(3):
                await self.ref.tell(message)

    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Selfish, capacity=2, name="selfish", restart=TEMPORARY))
            await actor.tell(0)
            error = await actor.wait()
            assert isinstance(error, WouldBlockError)
            assert "would wait for room" in str(error)

    run(main)


def test_a_mailbox_needs_a_capacity() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            with pytest.raises(ValueError, match="at least 1, not 0"):
                system.spawn(Child(Recorder, capacity=0))

    run(main)


def test_one_message_at_a_time_also_where_handlers_await() -> None:
    async def main() -> None:
        log: list[object] = []
        async with ActorSystem() as system:
            actor = system.spawn(Child(lambda: Slow(log), capacity=100, shutdown=None))
            for number in range(50):
                actor.tell_nowait(number / 10)
        assert log == [number / 10 for number in range(50)]

    run(main)


def test_signals_go_ahead_of_messages() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            watched = system.spawn(Child(Recorder, capacity=1))
            await watched.ready()
            watched.stop()
            await watched.wait()

            class Watcher(Recorder):
                def on_start(self) -> None:
                    self.ref.tell_nowait("message")
                    self.watch(watched)

            actor = system.spawn(Child(Watcher, capacity=10))
            await actor.ready()
            assert await actor.ask(Get) == [Down(watched, None), "message"]

    run(main)


def test_a_busy_actor_leaves_others_their_turns() -> None:
    class Busy(Actor[int]):
        handled = 0

        def receive(self, message: int) -> None:
            Busy.handled += 1
            self.ref.tell_nowait(message)  # for ever

    class BusyAsync(Actor[int]):
        async def receive(self, message: int) -> None:
            self.ref.tell_nowait(message)

    async def main() -> None:
        async with ActorSystem(grace=1.0) as system:
            for make in (Busy, BusyAsync):
                actor = system.spawn(Child(make, capacity=2))
                await actor.tell(1)
            other = system.spawn(Child(Recorder, capacity=10))
            assert await other.ask(Get) == []
            before = Busy.handled
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert 0 < Busy.handled - before <= 3 * 64

    run(main)


def test_a_plain_actor_has_no_task_and_one_that_awaits_has_one() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            recorder = system.spawn(Child(Recorder, capacity=4))
            slow = system.spawn(Child(Slow, capacity=4))
            for number in range(20):
                await recorder.tell(number)
                await slow.tell(number)
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert slow.name in names
            assert recorder.name not in names

    run(main)


def test_asking() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Slow, capacity=2))
            with pytest.raises(TimeoutError):
                await actor.ask(Get, timeout=3.0)
            assert asyncio.get_running_loop().time() == 3.0

            recorder = system.spawn(Child(Recorder, capacity=2, name="recorder"))
            question: asyncio.Task[object] = asyncio.create_task(
                recorder.ask(lambda reply: (reply, RuntimeError()))
            )
            await asyncio.sleep(1)
            assert not question.done()
            recorder.tell_nowait(KeyError("broken"))
            with pytest.raises(BrokenError, match="recorder failed before it answered") as raised:
                await question
            assert isinstance(raised.value.__cause__, KeyError)
            recorder.stop()
            with pytest.raises(ClosedError, match="recorder has ended"):
                await recorder.ask(Get)

    run(main)


def test_questions_that_still_wait_survive_a_restart() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            recorder = system.spawn(Child(Recorder, capacity=10))
            await recorder.ready()
            recorder.tell_nowait(KeyError("broken"))
            assert await recorder.ask(Get, timeout=1.0) == []
            assert recorder.statistics.restarts == 1

    run(main)


def test_a_question_fails_when_the_actor_stops_with_it() -> None:
    class Hoarder(Actor[Get]):
        def receive(self, message: Get) -> None:
            """Never answers."""

    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Hoarder, capacity=1))
            question = asyncio.create_task(actor.ask(Get))
            await asyncio.sleep(1)
            actor.stop()
            with pytest.raises(ClosedError):
                await question

    run(main)


def test_stopping_drains_the_mailbox_and_then_nothing_is_delivered() -> None:
    log: list[object] = []

    class Stopping(Slow):
        def on_signal(self, signal: Signal) -> None:
            self.log.append(signal)

        def on_stop(self, reason: BaseException | None) -> None:
            self.log.append(("stopped", reason))

    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(lambda: Stopping(log), capacity=3))
            for message in (1.0, "a", "b"):
                await actor.tell(message)
            await asyncio.sleep(0.5)
            actor.stop()
            await actor.tell("dead letter")
            assert await actor.wait() is None
            assert not actor.alive
            actor.tell_nowait("another")
            assert system.dead_letters == 2

    run(main)
    assert log == [1.0, Stop(5.0), "a", "b", ("stopped", None)]


def test_the_deadline_cancels_the_handler_and_drops_the_rest() -> None:
    log: list[object] = []

    class Stopping(Slow):
        def on_stop(self, reason: BaseException | None) -> None:
            self.log.append(type(reason))

    async def main() -> None:
        async with ActorSystem() as system:
            actor = system.spawn(Child(lambda: Stopping(log), capacity=9, name="slow"))
            for message in (1.0, 100.0, "never"):
                await actor.tell(message)
            await actor.ready()
            actor.stop(deadline=10.0)
            error = await actor.wait()
            assert asyncio.get_running_loop().time() == 10.0
            assert isinstance(error, TimeoutError)
            assert str(error) == "slow did not stop within 10 s"
            assert actor.statistics.dropped == 1
            assert system.killed == 1

    run(main)
    assert log == [1.0, TimeoutError]


def test_a_handler_that_ignores_its_cancellation_is_cancelled_again() -> None:
    class Stubborn(Actor[object]):
        async def receive(self, _message: object) -> None:
            for _ in range(3):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1000)
            await asyncio.sleep(1000)

    async def main() -> float:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Stubborn, capacity=9, shutdown=2.0))
            await actor.tell(0)
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    assert run(main) == 1 + 2 + 3


def test_watching() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            watched = [
                system.spawn(Child(Recorder, capacity=2, restart=TEMPORARY)) for _ in range(3)
            ]

            class Watcher(Recorder):
                def on_start(self) -> None:
                    for ref in watched:
                        self.watch(ref)
                        self.watch(ref)
                    self.unwatch(watched[2])

            actor = system.spawn(Child(Watcher, capacity=2))
            await actor.ready()
            failure = ValueError("failed")
            watched[0].tell_nowait(failure)
            watched[2].stop()
            await watched[2].wait()
            watched[1].stop()
            await watched[1].wait()
            assert await watched[0].wait() is failure
            assert await actor.ask(Get) == [Down(watched[0], failure), Down(watched[1], None)]

    run(main)


def test_names_are_registered_until_the_end() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            assert system.whereis("a") is None
            actor = system.spawn(Child(Recorder, capacity=2, name="a"))
            assert system.whereis("a") is actor
            with pytest.raises(BusyError, match="registered as 'a' already"):
                system.spawn(Child(Recorder, capacity=2, name="a"))
            actor.tell_nowait(ValueError("restart"))
            await actor.ask(Get)
            assert system.whereis("a") is actor
            actor.stop()
            await actor.wait()
            assert system.whereis("a") is None

    run(main)


def test_statistics_and_the_tree() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            slow = system.spawn(Child(Slow, capacity=5, name="slow"))
            for message in (2.0, 3.0, "x"):
                await slow.tell(message)
            await asyncio.sleep(4)
            statistics = slow.statistics
            assert (statistics.depth, statistics.peak, statistics.capacity) == (1, 3, 5)
            await asyncio.sleep(4)
            statistics = slow.statistics
            assert (statistics.handled, statistics.busy) == (3, 5.0)
            header, *rows = system.tree().splitlines()
            assert header.split()[:4] == ["ACTOR", "CLASS", "STATE", "MAILBOX"]
            assert [row.split() for row in rows] == [
                ["system", "Supervisor", "running", "0/1", "0", "0", "0", "0.000s", "0"],
                ["slow", "Slow", "running", "0/5", "3", "3", "0", "5.000s", "0"],
            ]
            assert rows[1].startswith("  slow")

    run(main)


def test_an_actor_that_was_not_spawned_has_no_address() -> None:
    with pytest.raises(RuntimeError, match="Recorder was not spawned"):
        Recorder().ref  # noqa: B018


def test_one_object_is_one_actor() -> None:
    async def main() -> None:
        recorder = Recorder()
        async with ActorSystem() as system:
            first = system.spawn(Child(lambda: recorder, capacity=1, name="first"))
            second = system.spawn(Child(lambda: recorder, capacity=1))
            await first.ready()
            with pytest.raises(ClosedError) as raised:
                await second.ready()
            assert "first is run by the same object" in str(raised.value.__cause__)

    run(main)


def test_a_handler_may_be_async_in_any_method() -> None:
    log: list[str] = []

    class Async(Actor[str]):
        async def on_start(self) -> None:
            await asyncio.sleep(1)
            log.append("start")

        def receive(self, message: str) -> Awaitable[None] | None:
            log.append(message)
            return asyncio.sleep(1) if message == "sleep" else None

        async def on_signal(self, signal: Signal) -> None:
            await asyncio.sleep(1)
            log.append(type(signal).__name__)

        async def on_stop(self, reason: BaseException | None) -> None:
            await asyncio.sleep(1)
            log.append(f"stop {reason}")

    async def main() -> float:
        async with ActorSystem() as system:
            actor = system.spawn(Child(Async, capacity=4))
            for message in ("plain", "sleep", "plain"):
                await actor.tell(message)
            await asyncio.sleep(2.5)
        return asyncio.get_running_loop().time()

    assert run(main) == 4.5
    assert log == ["start", "plain", "sleep", "plain", "Stop", "stop None"]
