"""The handle that call_soon() of the event loop returns."""

from __future__ import annotations

from asyncio import events, format_helpers

from stackmap._fast import usual_run


class Callback(events.Handle):
    """A handle that C makes and runs (``stackmap/_fast_callback.c``)."""

    __slots__ = ()

    @usual_run
    def _run(self) -> None:
        super()._run()

    def _failed(self, error: BaseException) -> None:
        """Report what the callback has raised, as the base class does."""
        name = format_helpers._format_callback_source(self._callback, self._args)  # type: ignore[attr-defined]
        message = f"Exception in callback {name}"
        context = {"message": message, "exception": error, "handle": self}
        self._loop.call_exception_handler(context)  # type: ignore[attr-defined]
