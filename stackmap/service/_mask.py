"""Protect work from the cancellation of whoever asked for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ._background import background
from ._filter import AnyFilter
from ._service import call

if TYPE_CHECKING:
    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class MaskCancel(AnyFilter):
    """Lets a request go on to its end when its caller is cancelled, or its connection lost.

    The caller itself is cancelled at once.  The request is then one of the server's background
    tasks, for which a drain waits; see :func:`background`.
    """

    __slots__ = ()

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on in a task of its own."""
        return await asyncio.shield(background(call(service, req), name="masked request"))
