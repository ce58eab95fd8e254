"""Supervisors: strategies, intensity, order of starts and stops, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from stackmap.actor import (
    Actor,
    ActorRef,
    ActorSystem,
    Child,
    Restart,
    RestartIntensityError,
    Strategy,
    Supervisor,
)
from stackmap.errors import ClosedError
from stackmap.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main())


class Worker(Actor[str]):
    """Logs its life; fails, or ends, when told so."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def on_start(self) -> None:
        self.log.append(f"+{self.name}")

    async def receive(self, message: str) -> None:
        match message:
            case "fail":
                raise ValueError(self.name)
            case "end":
                self.stop()
            case "sleep":
                await asyncio.sleep(1)
            case _:
                self.log.append(f"{self.name}:{message}")

    def on_stop(self, reason: BaseException | None) -> None:
        self.log.append(f"-{self.name}" + "!" * (reason is not None))


def worker(name: str, log: list[str], **options: Any) -> Child[str]:
    return Child(lambda: Worker(name, log), capacity=9, name=name, **options)


def find(system: ActorSystem, name: str) -> ActorRef[str]:
    ref = system.whereis(name)
    assert ref is not None
    return ref


def supervise(strategy: Strategy, log: list[str], **options: Any) -> Child[Any]:
    children = [worker(name, log) for name in "abc"]
    return Child(
        lambda: Supervisor(children, strategy=strategy, **options),
        capacity=1,
        name="supervisor",
        shutdown=None,
    )


async def settle() -> None:
    await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.ONE_FOR_ONE, ["-b!", "+b"]),
        (Strategy.ONE_FOR_ALL, ["-b!", "-c", "-a", "+a", "+b", "+c"]),
        (Strategy.REST_FOR_ONE, ["-b!", "-c", "+b", "+c"]),
    ],
)
def test_strategies(strategy: Strategy, expected: list[str]) -> None:
    async def main() -> None:
        log: list[str] = []
        async with ActorSystem() as system:
            await system.spawn(supervise(strategy, log)).ready()
            assert log == ["+a", "+b", "+c"]
            log.clear()
            refs = [find(system, name) for name in "abc"]
            for ref in refs:
                ref.tell_nowait("before")
            find(system, "b").tell_nowait("fail")
            for ref in refs:
                ref.tell_nowait("after")
            await settle()
            assert [entry for entry in log if entry[0] in "+-"] == expected
            for name in "abc":  # nothing is lost, and addresses stay
                assert [entry for entry in log if entry[0] == name] == [
                    f"{name}:before",
                    f"{name}:after",
                ]
            assert [find(system, name) for name in "abc"] == refs
            log.clear()
        assert log == ["-c", "-b", "-a"]

    run(main)


def test_a_sibling_in_a_long_handler_is_waited_for() -> None:
    async def main() -> None:
        log: list[str] = []
        async with ActorSystem() as system:
            await system.spawn(supervise(Strategy.ONE_FOR_ALL, log)).ready()
            log.clear()
            find(system, "c").tell_nowait("sleep")
            await settle()
            find(system, "b").tell_nowait("fail")
            await settle()
            assert log == ["-b!"]
            await asyncio.sleep(1)
            assert log == ["-b!", "-c", "-a", "+a", "+b", "+c"]

    run(main)


def test_two_failures_at_once_restart_the_group_once_or_give_up() -> None:
    async def main(intensity: int) -> list[str]:
        log: list[str] = []
        async with ActorSystem(intensity=0) as system:
            supervisor = system.spawn(supervise(Strategy.ONE_FOR_ALL, log, intensity=intensity))
            await supervisor.ready()
            log.clear()
            find(system, "a").tell_nowait("fail")
            find(system, "b").tell_nowait("fail")
            await settle()
            assert supervisor.alive
            await settle()
            return sorted(log)

    assert run(lambda: main(2)) == sorted(["-a!", "-b!", "-c", "+a", "+b", "+c"])
    with pytest.raises(RestartIntensityError):
        run(lambda: main(1))


@pytest.mark.parametrize(
    ("restart", "ends", "fails"),
    [
        (Restart.PERMANENT, True, True),
        (Restart.TRANSIENT, False, True),
        (Restart.TEMPORARY, False, False),
    ],
)
def test_which_ends_are_answered_with_a_restart(restart: Restart, ends: bool, fails: bool) -> None:
    async def main() -> None:
        for message, restarted in (("end", ends), ("fail", fails)):
            log: list[str] = []
            async with ActorSystem() as system:
                ref = system.spawn(worker("a", log, restart=restart))
                await ref.tell(message)
                await ref.tell("next")
                await settle()
                assert ref.alive is restarted
                assert ("a:next" in log) is (restarted or message == "end")

    run(main)


def test_an_actor_that_others_stop_is_not_restarted() -> None:
    async def main() -> None:
        log: list[str] = []
        async with ActorSystem() as system:
            ref = system.spawn(worker("a", log))
            await ref.ready()
            ref.stop()
            assert await ref.wait() is None
            await settle()
            assert log == ["+a", "-a"]

    run(main)


def test_intensity_counts_within_the_period() -> None:
    async def fail_often() -> None:
        async with ActorSystem(intensity=2, period=10.0) as system:
            ref = system.spawn(worker("a", []))
            for _ in range(5):
                await asyncio.sleep(5.5)
                ref.tell_nowait("fail")
            await asyncio.sleep(5.5)
            assert ref.statistics.restarts == 5
            ref.tell_nowait("fail")
            ref.tell_nowait("fail")
            await asyncio.get_running_loop().create_future()  # is cancelled

    async def main() -> None:
        with pytest.raises(RestartIntensityError, match="more than 2 times within 10 s, a the"):
            await fail_often()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main)


def test_a_supervisor_that_gives_up_is_restarted_by_its_own() -> None:
    async def main() -> None:
        log: list[str] = []
        async with ActorSystem() as system:
            supervisor = system.spawn(supervise(Strategy.ONE_FOR_ONE, log, intensity=0))
            await supervisor.ready()
            old = find(system, "b")
            old.tell_nowait("fail")
            await settle()
            assert log == ["+a", "+b", "+c", "-b!", "-c", "-a", "+a", "+b", "+c"]
            assert not old.alive
            assert find(system, "b").alive
            assert supervisor.statistics.restarts == 1

    run(main)


def test_a_first_start_that_fails_is_not_repeated() -> None:
    class Bad(Actor[str]):
        async def on_start(self) -> None:
            await asyncio.sleep(1)
            raise KeyError("no configuration")

    async def main() -> None:
        log: list[str] = []
        async with ActorSystem(intensity=0) as system:
            ref = system.spawn(Child(Bad, capacity=1))
            with pytest.raises(ClosedError) as raised:
                await ref.ready()
            assert isinstance(raised.value.__cause__, KeyError)
            children: list[Child[Any]] = [worker("a", log), Child(Bad, capacity=1), worker("b", [])]
            supervisor: ActorRef[Any] = system.spawn(
                Child(lambda: Supervisor(children), capacity=1, restart=Restart.TEMPORARY)
            )
            with pytest.raises(ClosedError):
                await supervisor.ready()
            assert log == ["+a", "-a"]

    run(main)


def test_a_restart_whose_start_fails_counts() -> None:
    starts = 0

    class Once(Actor[str]):
        def on_start(self) -> None:
            nonlocal starts
            starts += 1
            if starts > 1:
                raise KeyError("again")

        def receive(self, message: str) -> None:
            raise ValueError(message)

    async def main() -> None:
        async with ActorSystem(intensity=3) as system:
            system.spawn(Child(Once, capacity=1)).tell_nowait("fail")
            await asyncio.sleep(100)

    with pytest.raises(RestartIntensityError):
        run(main)
    assert starts == 4


def test_a_failure_is_logged_once_with_its_context(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            ref = system.spawn(worker("a", []))
            ref.tell_nowait("fail")
            await settle()

    with caplog.at_level(logging.INFO, "stackmap.actor"):
        run(main)
    (record,) = caplog.records
    assert record.getMessage() == (
        "actor a (Worker) failed while it handled 'fail': it is restarted"
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_children_stop_in_reverse_order_each_within_its_deadline() -> None:
    async def main() -> list[str]:
        log: list[str] = []
        async with ActorSystem() as system:
            for name, shutdown in (("a", 0.5), ("b", None), ("c", 0.25)):
                ref = system.spawn(worker(name, log, shutdown=shutdown))
                for _ in range(2):
                    ref.tell_nowait("sleep")
                ref.tell_nowait("done")
            await settle()
            log.clear()
            loop = asyncio.get_running_loop()
            begin = loop.time()
        log.append(f"{loop.time() - begin:.2f}")
        return log

    # b and a have handled all after two seconds; the deadline of a begins only when b has stopped.
    assert run(main) == ["-c!", "a:done", "b:done", "-b", "-a", "2.00"]


def test_a_grace_period_bounds_all() -> None:
    async def main() -> float:
        async with ActorSystem(grace=3.0) as system:
            for name in "abcd":
                ref = system.spawn(worker(name, [], shutdown=None))
                for _ in range(9):
                    ref.tell_nowait("sleep")
            await settle()
        return asyncio.get_running_loop().time()

    assert 3.0 <= run(main) <= 3.1


def test_a_supervisor_that_stops_takes_no_children() -> None:
    async def main() -> None:
        system = ActorSystem()
        async with system:
            pass
        with pytest.raises(ClosedError, match="system has ended"):
            system.spawn(worker("late", []))

    run(main)


def test_wrong_intensities_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 restarts"):
        Supervisor(intensity=-1)
