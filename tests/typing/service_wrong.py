"""Chains of filters whose types do not line up.

Each line that is ignored must be an error: `make check` has pyright complain of comments that
ignore nothing, and tests/unit/test_service_types.py asks mypy.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true
# pyright: reportUnusedExpression=false, reportUnusedCallResult=false

from __future__ import annotations

from stackmap.codec import Lines
from stackmap.service import (
    Auth,
    ConcurrencyLimit,
    Filter,
    Service,
    SimpleFilter,
    Stats,
    Timeout,
    per_connection,
    serve,
)


class Parse(Filter[bytes, bytes, int, str]):
    async def __call__(self, req: bytes, service: Service[int, str], /) -> bytes:
        return (await service(int(req))).encode()


class Twice(SimpleFilter[int, str]):
    async def __call__(self, req: int, service: Service[int, str], /) -> str:
        return await service(req) + await service(req)


async def hexadecimal(req: int) -> str:
    return hex(req)


async def length(req: bytes) -> int:
    return len(req)


async def find_user(req: bytes) -> str | None:
    return req.decode() or None


def blocking(req: int) -> str:
    return hex(req)


Parse().and_then(length)  # type: ignore[call-overload]  # takes bytes, not int
Parse().and_then(blocking)  # type: ignore[call-overload]  # not asynchronous
Parse().and_then(Parse())  # type: ignore[arg-type]  # takes bytes, not int
Twice().and_then(Parse())  # type: ignore[arg-type]  # takes bytes, not int
Timeout(1).and_then(Parse()).and_then(length)  # type: ignore[call-overload]  # through one for any type
Parse().and_then(Timeout(1)).and_then(length)  # type: ignore[call-overload]  # behind one
Parse().and_then(Stats()).and_then(ConcurrencyLimit(1)).and_then(length)  # type: ignore[call-overload]  # behind two
Stats().and_then(Timeout(1)).and_then(blocking)  # type: ignore[arg-type]  # not asynchronous
Auth[bytes, int, str](find_user).and_then(length)  # type: ignore[arg-type]  # no principal
Auth[int, str, str](find_user)  # type: ignore[arg-type]  # takes bytes, not int
Parse().and_then(per_connection(lambda _peer: length))  # type: ignore[arg-type, return-value]  # another factory
Parse().and_then_if(True, Parse())  # type: ignore[arg-type]  # changes the types
one: Service[bytes, bytes] = Timeout(1).and_then(length)  # type: ignore[arg-type]  # replies are int
two: Service[str, int] = length  # type: ignore[assignment]  # takes bytes, not str
serve(("", 0), hexadecimal, Lines)  # type: ignore[arg-type]  # the codec has bytes
