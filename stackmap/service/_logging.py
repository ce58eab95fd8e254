"""A line in the log for each request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from ._filter import AnyFilter
from ._peer import current_peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")


def _class_name(req: object) -> str:
    return type(req).__name__


class Logging(AnyFilter):
    """Logs each request: from where it came, what it was, how it ended, how long it took.

    Args:
        logger: where to.
        level: of requests that succeed; failures are logged as warnings.
        show: returns what to write of a request; by default the name of its class, because requests
            may hold what should not be in a log.
    """

    def __init__(
        self,
        logger: logging.Logger,
        level: int = logging.INFO,
        *,
        show: Callable[[Any], str] = _class_name,
    ) -> None:
        self._logger = logger
        self._level = level
        self._show = show

    def __repr__(self) -> str:
        return f"Logging({self._logger.name!r})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on."""
        time = asyncio.get_running_loop().time
        begun = time()
        try:
            reply = await service(req)
        except BaseException as error:
            self._log(logging.WARNING, req, repr(error), time() - begun)
            raise
        self._log(self._level, req, "ok", time() - begun)
        return reply

    def _log(self, level: int, req: object, outcome: str, seconds: float) -> None:
        if self._logger.isEnabledFor(level):
            peer = current_peer()
            self._logger.log(
                level,
                "%s %s: %s, %.3f ms",
                peer.peername if peer else "-",
                self._show(req),
                outcome,
                seconds * 1e3,
            )
