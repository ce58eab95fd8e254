"""Chains of filters whose types line up: no type checker may complain."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from stackmap.codec import Lines
from stackmap.service import (
    Auth,
    Authenticated,
    Client,
    ClosableService,
    ConcurrencyLimit,
    Deadline,
    Filter,
    Framed,
    Hedge,
    LoadShed,
    Logging,
    MaskCancel,
    Monitor,
    Peer,
    RateLimit,
    Rescue,
    Retry,
    Server,
    Service,
    ServiceFactory,
    SimpleFilter,
    Stats,
    Timeout,
    Trace,
    choose,
    const,
    identity,
    make_service,
    per_connection,
    serve,
)


class Parse(Filter[bytes, bytes, int, str]):
    async def __call__(self, req: bytes, service: Service[int, str], /) -> bytes:
        return (await service(int(req))).encode()


class Twice(SimpleFilter[int, str]):
    async def __call__(self, req: int, service: Service[int, str], /) -> str:
        return await service(req) + await service(req)


class User:
    name = "a user"


async def hexadecimal(req: int) -> str:
    return hex(req)


def future(req: int) -> Awaitable[str]:
    return hexadecimal(req)


async def find_user(req: bytes) -> User | None:
    return User() if req else None


async def greet(req: Authenticated[User, bytes]) -> bytes:
    return req.request + req.principal.name.encode()


parsed: Service[bytes, bytes] = Parse().and_then(hexadecimal)
joined: Filter[bytes, bytes, int, str] = Parse().and_then(Twice())
#: Filters for any type take the types of their neighbours, wherever they stand.
whole: ClosableService[bytes, bytes] = (
    Monitor(print)
    .and_then(Trace("x"))
    .and_then(Logging(logging.getLogger()))
    .and_then(Stats())
    .and_then(LoadShed())
    .and_then(ConcurrencyLimit(1))
    .and_then(Parse())
    .and_then(RateLimit(1))
    .and_then(Retry())
    .and_then(MaskCancel())
    .and_then(Twice())
    .and_then(Hedge(1, bool))
    .and_then(Deadline(1))
    .and_then(Timeout(1))
    .and_then(identity)
    .and_then(future)
)
conditional: Service[bytes, bytes] = (
    Parse().and_then_if(True, Twice()).and_then_if(False, Timeout(1)).and_then(hexadecimal)
)
authenticated: Service[bytes, bytes] = (
    Timeout(1).and_then(Auth[bytes, bytes, User](find_user)).and_then(Stats()).and_then(greet)
)
rescued: Service[int, str] = Rescue[int, str](ValueError, str).and_then(hexadecimal)


@Filter.mk
async def logged(req: int, service: Service[int, str]) -> str:
    return await service(req)


@make_service
def length(req: bytes) -> int:
    return len(req)


def pick(req: int) -> Filter[int, str, int, str] | None:
    return Twice() if req else logged


chosen: Service[int, str] = choose(pick).and_then(hexadecimal)
sized: Service[bytes, int] = Timeout(1).and_then(length)
fixed: Service[int, str] = const("x")
#: A service of more requests and fewer replies is one of fewer and more.
wider: Service[bool, str | None] = hexadecimal


def make(_peer: Peer) -> Service[int, str]:
    return hexadecimal


factory: ServiceFactory[bytes, bytes] = Parse().and_then(Timeout(1)).and_then(per_connection(make))


async def echo(req: bytes) -> bytes | None:
    return req or None


def new_lines() -> Lines:
    return Lines()


codec: Callable[[], Lines] = new_lines
server: Server[bytes, bytes] = serve(("", 0), echo, codec)
framed = Framed(Lines()).and_then(echo)
remote = Client(("", 0), new_lines)
client: Service[bytes, bytes] = Timeout(1).and_then(remote)
