"""Sends what a callback has written and then waits for, without going back to the loop.

What callbacks write is sent once a turn.  A callback that writes and then blocks until its peer has
answered, for instance in a thread that it starts and joins, would wait for ever: the standard
library's transport sends at once.  So a thread looks every few milliseconds whether the loop is
still in the same turn, and sends.  It sleeps while the loop waits, and is woken by the first turn
after that: an idle loop costs nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._selector import PortSelector

#: Seconds that a turn may take before what it has written so far is sent.
TURN_MAX = 0.005


class Watchdog:
    """The thread that watches over the turns of one loop.

    Attributes:
        flushes: how often it has found a turn too long.
    """

    def __init__(self, selector: PortSelector) -> None:
        self._selector = selector
        self._turn_began = threading.Event()
        self._turn_began.set()  # the loop is in one
        self._stopped = threading.Event()
        self.flushes = 0
        self._thread = threading.Thread(
            target=self._watch, name="stackmap.aio watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, before the port is closed."""
        self._stopped.set()
        self._turn_began.set()
        self._thread.join()

    def _watch(self) -> None:
        selector, stopped = self._selector, self._stopped
        while True:
            self._turn_began.wait()
            selector.turn_begins = None
            turn = selector.turns
            while not stopped.wait(TURN_MAX):
                if selector.waiting:
                    # In this order: a turn that begins meanwhile sets it again.
                    self._turn_began.clear()
                    selector.turn_begins = self._turn_began.set
                    if self._selector.waiting:
                        break
                    selector.turn_begins = None
                elif turn == selector.turns:
                    self.flushes += 1
                    selector.port.flush_from_outside()
                turn = selector.turns
            if stopped.is_set():
                return
