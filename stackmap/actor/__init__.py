"""Actors on any event loop of asyncio: state behind a mailbox, connections, supervision.

``docs/actors.md`` has the model, a first program, and what is guaranteed.
"""

from stackmap.codec import Buffer

from ._ack import Ack
from ._actor import Actor
from ._child import Child, Restart
from ._connection import ConnectionActor
from ._listener import Listener
from ._mailbox import Overflow
from ._payload import Payload
from ._ref import ActorRef, Reply
from ._signals import (
    Closed,
    Connected,
    DecodeError,
    Down,
    Passive,
    PeerClosed,
    Signal,
    Stop,
    WriteFailed,
    WritingResumed,
)
from ._statistics import ActorStatistics
from ._stream import Stream
from ._supervisor import RestartIntensityError, Strategy, Supervisor
from ._system import ActorSystem

__all__ = [
    "Ack",
    "Actor",
    "ActorRef",
    "ActorStatistics",
    "ActorSystem",
    "Buffer",
    "Child",
    "Closed",
    "Connected",
    "ConnectionActor",
    "DecodeError",
    "Down",
    "Listener",
    "Overflow",
    "Passive",
    "Payload",
    "PeerClosed",
    "Reply",
    "Restart",
    "RestartIntensityError",
    "Signal",
    "Stop",
    "Strategy",
    "Stream",
    "Supervisor",
    "WriteFailed",
    "WritingResumed",
]
