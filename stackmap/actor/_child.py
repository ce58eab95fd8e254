"""How an actor is made, and what becomes of it when it ends."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from ._mailbox import Overflow
from ._ref import Msg

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._actor import Actor


class Restart(enum.Enum):
    """Which ends of an actor its supervisor answers with a restart."""

    #: Every one: a service.
    PERMANENT = "permanent"
    #: Failures.
    TRANSIENT = "transient"
    #: None: a connection.
    TEMPORARY = "temporary"


@dataclass(frozen=True)
class Child(Generic[Msg]):
    """A child specification, as OTP's supervisors have it.

    Attributes:
        make: makes the actor, again for each restart: a class or a function.
        capacity: messages that its mailbox has room for.
        name: to register it under; by default it is not registered.
        overflow: what happens to a message that finds the mailbox full.
        restart: which of its ends it is restarted after.
        shutdown: seconds that it has to stop; 0 cancels it at once, None waits for ever.
    """

    make: Callable[[], Actor[Msg]]
    capacity: int
    name: str | None = None
    overflow: Overflow = Overflow.BLOCK
    restart: Restart = Restart.PERMANENT
    shutdown: float | None = 5.0
