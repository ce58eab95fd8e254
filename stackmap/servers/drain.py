"""How a bare loop on a port ends its connections: each after its client has the last reply."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from stackmap import Connection, Port

#: Seconds that clients have to take their last replies once the server is told to stop.
GRACE = 5.0
#: Seconds that a client has to hang up after its last reply.
LINGER = 1.0


def drain(
    port: Port,
    turn: Callable[[float], object],
    answered: Callable[[Connection], bool],
    aborted: Callable[[], bool] = lambda: False,
) -> int:
    """Take turns until all clients have hung up, or their time is over; then close the connections.

    Closing at once would reset connections whose clients are sending, and take from them what
    they were answered (RFC 9112, section 9.6).

    Args:
        port: the data path.
        turn: exchanges with the port once, for at most so many seconds, and serves what came.
        answered: whether a connection's client has been sent all that it is to get, and then FIN.
        aborted: whether to wait no longer.

    Returns:
        How many clients were cut off: reset, because they had not been sent all of that in time.
    """
    deadline = time.monotonic() + GRACE
    lingering = False
    while (connections := port.connections) and not aborted():
        now = time.monotonic()
        if not lingering and all(map(answered, connections)):
            lingering = True
            deadline = min(deadline, now + LINGER)
        if now >= deadline:
            break
        turn(deadline - now)
    cut_off = 0
    for connection in port.connections:
        if answered(connection):
            connection.close()
        else:
            cut_off += 1
            connection.abort()
    turn(0.0)
    return cut_off
