"""Back-pressure of a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def watch_transmit_slots(transport: asyncio.Transport) -> None:
    """On rings, have the protocol paused while no transmit slot is free for its connection.

    Bytes wait in such a connection's queue only if they found no free slot, or TCP takes no more;
    so with the lowest limit ``pause_writing()`` tells of that at once.  An ordinary transport keeps
    its limits: all that it cannot send at once waits there.
    """
    if transport.get_extra_info("stackmap.connection") is not None:
        # With 0, asyncio's transport of TLS would pause the protocol when nothing waits.
        transport.set_write_buffer_limits(high=1)
