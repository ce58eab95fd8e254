"""Unload the module from a guest."""

from __future__ import annotations

#: A command for the guest's shell.  A socket that was attached holds the module until TCP destroys
#: it, and TCP keeps a closed one until its peer has acknowledged everything, or two minutes here.
UNLOAD = (
    "(for n in $(seq 600); do rmmod stackmap 2>/dev/null && exit; sleep 0.2; done;"
    " echo used by $(cat /sys/module/stackmap/refcnt) >&2; rmmod stackmap)"
)
#: Seconds within which the command ends.
UNLOAD_SECONDS = 300.0
