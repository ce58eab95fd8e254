"""Record one of the kernel's own tracepoints for a while."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guest.commands import sh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRACEFS = Path("/sys/kernel/tracing")


@contextmanager
def traced(event: str) -> Iterator[Callable[[], str]]:
    """Switch a tracepoint on (as in ``napi/napi_poll``); yields what reads the trace so far."""
    if not (TRACEFS / "events").exists():
        sh(f"mount -t tracefs tracefs {TRACEFS}")
    folder = TRACEFS / "instances" / "stackmap-kernel"
    folder.mkdir()
    enable = folder / "events" / event / "enable"
    try:
        enable.write_text("1")
        yield (folder / "trace").read_text
        enable.write_text("0")
    finally:
        folder.rmdir()
