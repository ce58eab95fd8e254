"""A key/value server of lines, complete, as actors: what ``test_actor_server.py`` runs.

Commands are ``get KEY``, ``set KEY VALUE``, ``del KEY``, ``watch KEY`` (every later value is
pushed), ``count``, ``quit``, and ``crash``, which breaks the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stackmap.actor import (
    Actor,
    ActorRef,
    Buffer,
    Child,
    ConnectionActor,
    Down,
    Listener,
    Reply,
    Signal,
    Strategy,
    Supervisor,
)
from stackmap.codec import Lines

if TYPE_CHECKING:
    import socket


@dataclass(slots=True)
class Get:
    key: bytes
    reply: Reply[bytes | None]


@dataclass(slots=True)
class Set:
    key: bytes
    value: bytes
    reply: Reply[None]


@dataclass(slots=True)
class Delete:
    key: bytes
    reply: Reply[bool]


@dataclass(slots=True)
class Count:
    reply: Reply[int]


@dataclass(slots=True)
class Subscribe:
    key: bytes
    watcher: ActorRef[Changed]


@dataclass(slots=True)
class Crash:
    pass


@dataclass(slots=True)
class Changed:
    key: bytes
    value: bytes


Request = Get | Set | Delete | Count | Subscribe | Crash


class Store(Actor[Request]):
    """The data, which nobody else touches."""

    def __init__(self) -> None:
        self.items: dict[bytes, bytes] = {}
        self.watchers: dict[bytes, set[ActorRef[Changed]]] = {}

    def receive(self, message: Request) -> None:
        match message:
            case Get(key, reply):
                reply.send(self.items.get(key))
            case Set(key, value, reply):
                self.items[key] = value
                for watcher in self.watchers.get(key, ()):
                    watcher.tell_nowait(Changed(key, value))
                reply.send(None)
            case Delete(key, reply):
                reply.send(self.items.pop(key, None) is not None)
            case Count(count):
                count.send(len(self.items))
            case Subscribe(key, watcher):
                self.watchers.setdefault(key, set()).add(watcher)
                self.watch(watcher)
            case Crash():
                raise RuntimeError("the store is broken")

    def on_signal(self, signal: Signal) -> None:
        match signal:
            case Down(ref):
                for watchers in self.watchers.values():
                    watchers.discard(ref)


class Session(ConnectionActor[Changed, bytes, Buffer]):
    """One client."""

    def __init__(self, store: ActorRef[Request]) -> None:
        self.store = store

    def connected(self) -> None:
        self.stream.active(True)

    async def received(self, message: bytes) -> None:
        match message.split(b" ", 2):
            case [b"get", key]:
                value: bytes | None = await self.store.ask(lambda reply: Get(key, reply))
                self.send(b"none" if value is None else b"value " + value)
            case [b"set", key, value]:
                await self.store.ask(lambda reply: Set(key, value, reply))
                self.send(b"ok")
            case [b"del", key]:
                found: bool = await self.store.ask(lambda reply: Delete(key, reply))
                self.send(b"ok" if found else b"none")
            case [b"count"]:
                count: int = await self.store.ask(Count)
                self.send(b"%d" % count)
            case [b"watch", key]:
                await self.store.tell(Subscribe(key, self.ref))
                self.send(b"ok")
            case [b"crash"]:
                await self.store.tell(Crash())
            case [b"quit"]:
                self.stop()
            case _:
                self.send(b"error")

    def receive(self, message: Changed) -> None:
        self.send(b"changed %b %b" % (message.key, message.value))


def key_value_server(sock: socket.socket, **options: Any) -> Child[Any]:
    """The store, and a listener that is restarted with it."""

    class Server(Supervisor[Any]):
        def __init__(self) -> None:
            super().__init__(
                [
                    Child(Store, capacity=1000, name="store"),
                    Child(self.make_listener, capacity=1, name="listener"),
                ],
                strategy=Strategy.REST_FOR_ONE,
            )

        def make_listener(self) -> Listener[bytes, Buffer]:
            return Listener(self.make_session, sock, capacity=100, codec=Lines, **options)

        def make_session(self) -> Session:
            store = self.system.whereis("store")
            assert store is not None
            return Session(store)

    return Child(Server, capacity=1, name="server", shutdown=None)
