"""Tune a NIC for a server on sockets that polls it busily: what rings are compared with as well.

A server that looks for packets itself needs no interrupts while it has work.  So ``epoll_wait()``
and ``poll()`` poll the NIC for a while before they sleep, and the NIC's interrupts are put off as
long as somebody polls it (``Documentation/networking/napi.rst`` of Linux).
"""

from __future__ import annotations

#: How long a server polls before it sleeps, in microseconds.
BUSY_USECS = 64
#: How many polls without a packet bring interrupts back, and how long they wait for the next poll.
DEFERRED_POLLS = 100
DEFERRED_NS = 200_000

_SCRIPT = """
sysctl -q net.core.busy_poll=$1
cd /sys/class/net/$4
echo $2 >napi_defer_hard_irqs
echo $3 >gro_flush_timeout
"""


def tuning(nic: str, *, tuned: bool) -> list[str]:
    """The command that tunes a NIC and its host, or sets both back to the kernel's defaults."""
    values = (BUSY_USECS, DEFERRED_POLLS, DEFERRED_NS) if tuned else (0, 0, 0)
    return ["/bin/sh", "-ec", _SCRIPT, "-", *map(str, values), nic]
