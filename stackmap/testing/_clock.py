"""An event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors

#: An empty loop watches its own wake-up pipe, and nothing else.
_FILES_OF_AN_EMPTY_LOOP = 1


class NothingToDoError(RuntimeError):
    """The program waits for ever: no callback is ready, no timer is set, no file is watched."""


class VirtualClock(asyncio.SelectorEventLoop):
    """An event loop for tests: ``asyncio.Runner(loop_factory=VirtualClock)``.

    Its clock begins at 0.0 and stands still while anything runs.  When nothing is ready, it jumps
    to the next timer, so a test of a minute's timeout takes no time and has one outcome.  trio's
    ``MockClock`` with ``autojump_threshold`` is the model.

    Files may be watched too, with real sockets for instance: what is readable then goes ahead of
    any timer.  How long a peer outside of the loop takes is not known to the clock, however, so
    timers of such tests should only be those that are to expire.

    Raises:
        NothingToDoError: by ``run_forever()`` and what calls it, see there.
    """

    def __init__(self) -> None:
        self._virtual_time = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_time

    def advance(self, seconds: float) -> None:
        """Move the clock on by hand; timers that are due by then run in the loop's next turn.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"the clock cannot go back by {-seconds} s")
        self._virtual_time += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock on where it would wait."""

    def __init__(self, loop: VirtualClock) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.advance(max(timeout, 0.0))
            return []
        if len(self.get_map()) <= _FILES_OF_AN_EMPTY_LOOP:
            raise NothingToDoError(
                "every task waits, and nothing can wake one: no timer is set, no file is watched"
            )
        return super().select(None)
