"""The address of an actor: send to it, ask it, stop it, or wait for its end."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ._statistics import ActorStatistics

Msg = TypeVar("Msg")
Msg_contra = TypeVar("Msg_contra", contravariant=True)
T = TypeVar("T")


class Reply(Generic[T]):
    """Where the answer to a question goes: a field of the message that asks.

    It may be kept, and answered later or by another actor.
    """

    __slots__ = ("_future", "message")

    def __init__(self, future: asyncio.Future[T]) -> None:
        self._future = future
        #: The message that carries this.
        self.message: object = None

    def __repr__(self) -> str:
        return f"<Reply, {'answered' if self._future.done() else 'open'}>"

    @property
    def done(self) -> bool:
        """It was answered, or nobody waits for it any more."""
        return self._future.done()

    def send(self, answer: T) -> None:
        """Answer.  The first answer counts; it is ignored if nobody waits any more."""
        if not self._future.done():
            self._future.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Have the one who asks get an exception."""
        if not self._future.done():
            self._future.set_exception(error)


class ActorRef(abc.ABC, Generic[Msg_contra]):
    """An actor's address.  It stays the same when the actor is restarted.

    All methods are for the thread of the actor's event loop.

    Attributes:
        name: as in the registry, or made from the class and a number.
    """

    __slots__ = ("__weakref__", "name")

    name: str

    @abc.abstractmethod
    async def tell(self, message: Msg_contra, /) -> None:
        """Send a message, and wait for room in the mailbox if its policy is to block.

        Delivery is at most once, and in order for each sender.  To an actor that has ended,
        nothing is delivered: the message is counted as a dead letter.  If this is cancelled, the
        message may have been delivered.

        Raises:
            WouldBlockError: the mailbox is full, and its policy is to fail; or the sender is the
                actor itself, which would wait for itself for ever.
        """

    @abc.abstractmethod
    def tell_nowait(self, message: Msg_contra, /) -> None:
        """Send a message; see :meth:`tell`.

        Raises:
            WouldBlockError: the mailbox is full, and its policy is not to drop.
        """

    @abc.abstractmethod
    async def ask(
        self,
        make: Callable[[Reply[T]], Msg_contra],
        /,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 (it covers two waits)
    ) -> T:
        """Send a question, and wait for the answer.

        ::

            value = await store.ask(lambda reply: Get(b"key", reply), timeout=1.0)

        Args:
            make: makes the message from where the answer is to go.
            timeout: seconds for all of it, waiting for room in the mailbox included; None waits for
                ever.

        Raises:
            TimeoutError: there was no answer in time.
            ClosedError: ``ESHUTDOWN``, the actor has ended, or ends before it answers.
            BrokenError: ``ECONNABORTED``, the actor failed before it answered; the cause is why.
            WouldBlockError: as of :meth:`tell`, or the question was dropped for newer messages.
        """

    @abc.abstractmethod
    def stop(self, deadline: float | None = None) -> None:
        """Have the actor handle what is in its mailbox, and end.  It is not restarted.  Idempotent.

        Args:
            deadline: seconds after which the handler that runs is cancelled, and the rest of the
                mailbox is dropped; by default what the actor was spawned with.
        """

    @abc.abstractmethod
    async def ready(self) -> None:
        """Wait until ``on_start()`` has returned.

        Raises:
            ClosedError: ``ESHUTDOWN``, the actor ended before that; the cause is why.
        """

    @abc.abstractmethod
    async def wait(self) -> BaseException | None:
        """Wait for the actor's end; return its reason, None if it stopped in order."""

    @property
    @abc.abstractmethod
    def alive(self) -> bool:
        """It has not ended.  An actor that is being restarted is alive."""

    @property
    @abc.abstractmethod
    def statistics(self) -> ActorStatistics:
        """Counters since it was spawned."""
