"""A server as a whole program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from ._server import Server

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_first_signal(
    stop: Callable[[], object],
    add_reader: Callable[[int, Callable[[], object]], object],
    remove_reader: Callable[[int], object],
) -> Generator[None, None, None]:
    """Have the first SIGINT or SIGTERM call ``stop``, and the second one end the process.

    The second signal is left to the kernel, which ends the process at once, whatever it is doing.
    The handlers that there were before are put back at the end.  For the main thread only.

    Args:
        stop: called by the handler, that is between any two instructions of the program.
        add_reader: has the program's wait end when a descriptor can be read, and a function called:
            ``add_reader()`` of an event loop, or ``watch()`` of a port.
        remove_reader: undoes that.
    """

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        stop()

    with _signals_end_waits(add_reader, remove_reader):
        before = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _signals_end_waits(
    add_reader: Callable[[int, Callable[[], object]], object],
    remove_reader: Callable[[int], object],
) -> Generator[None, None, None]:
    """Have each signal end the program's wait, also one that comes just before it.

    Python runs a handler once the system call has returned.  A signal between the interpreter's
    last look and a call that waits does not interrupt that call, so the handler would run after
    the wait, which may be never.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def pass_on() -> None:
        numbers = os.read(reader, 4096)
        if before >= 0:
            with contextlib.suppress(OSError):  # it is full, so that it ends the wait as well
                os.write(before, numbers)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    add_reader(reader, pass_on)
    try:
        yield
    finally:
        remove_reader(reader)
        now = signal.set_wakeup_fd(before)
        if now != writer:  # a handler was added meanwhile, with a descriptor of its own
            signal.set_wakeup_fd(now)
        os.close(reader)
        os.close(writer)


def drain_on_signals(server: Server[Any, Any]) -> contextlib.AbstractContextManager[None]:
    """Have the first SIGINT or SIGTERM drain a server; see :func:`on_first_signal`."""
    return on_first_signal_in_loop(server.start_draining)


def on_first_signal_in_loop(stop: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Have the running event loop call ``stop``; see :func:`on_first_signal`."""
    loop = asyncio.get_running_loop()
    return on_first_signal(
        lambda: loop.call_soon_threadsafe(stop), loop.add_reader, loop.remove_reader
    )


def run(
    server: Server[Any, Any],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Run a server until SIGINT or SIGTERM, then drain it: ``sys.exit(run(serve(...)))``.

    A second signal ends the process at once.

    Args:
        server: as of :func:`serve`.
        loop_factory: makes the event loop, for instance ``stackmap.aio.EventLoop``.

    Returns:
        The exit code: 0 if all that was asked for has been answered, 1 if connections were cut off
        because the time for it was up.

    Raises:
        OSError: it cannot listen on the address.
    """

    async def main() -> int:
        with drain_on_signals(server):
            async with server:
                await server.wait_closed()
        return 1 if server.cut_off else 0

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main())
