"""Failures that nobody handles, and those that somebody does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._filter import AnyFilter, SimpleFilter
from ._service import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._service import Service

Req = TypeVar("Req")
Rep = TypeVar("Rep")


class Monitor(AnyFilter):
    """Reports exceptions, and lets them pass.  The outermost filter.

    Args:
        report: is called with the request and the exception, for instance to send it to a service
            that collects them.  What it raises itself takes the exception's place.
    """

    __slots__ = ("_report",)

    def __init__(self, report: Callable[[Any, Exception], object]) -> None:
        self._report = report

    def __repr__(self) -> str:
        return f"Monitor({describe(self._report)})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on."""
        try:
            return await service(req)
        except Exception as error:
            self._report(req, error)
            raise


class Rescue(SimpleFilter[Req, Rep], Generic[Req, Rep]):
    """Makes replies of exceptions, in the protocol's own words.

    Give the types when you make it: ``Rescue[bytes, bytes](ValueError, lambda error: b"ERROR")``.

    Args:
        errors: the class of exceptions, or a tuple of several.
        reply: returns the reply.
    """

    def __init__(
        self,
        errors: type[Exception] | tuple[type[Exception], ...],
        reply: Callable[[Exception], Rep],
    ) -> None:
        self._errors = errors
        self._reply = reply

    def __repr__(self) -> str:
        errors = self._errors if isinstance(self._errors, tuple) else (self._errors,)
        names = ", ".join(error.__name__ for error in errors)
        return f"Rescue({f'({names})' if len(errors) > 1 else names}, {describe(self._reply)})"

    async def __call__(self, req: Req, service: Service[Req, Rep], /) -> Rep:
        """Pass a request on."""
        try:
            return await service(req)
        except self._errors as error:
            return self._reply(error)
