"""Wait for what nobody announces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], bool], patience: float, pause: float = 0.005) -> bool:
    """Ask until a condition holds; returns whether it did in time.

    Args:
        condition: asked once at least.
        patience: seconds after which it is not asked again.
        pause: seconds between two times; more if asking takes longer than that, because it costs
            the processes that are waited for as much.
    """
    deadline = time.monotonic() + patience
    while True:
        asked = time.monotonic()
        if condition():
            return True
        now = time.monotonic()
        if now >= deadline:
            return False
        time.sleep(max(pause, now - asked))
