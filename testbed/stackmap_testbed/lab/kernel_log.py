"""Search a kernel's log for what must never be there."""

from __future__ import annotations

import re

_OFFENCES = re.compile(
    r"\bBUG\b|\bWARNING: |\bOops\b|[Gg]eneral protection|Kernel panic|Call Trace|"
    # An exception of any name, for instance "invalid opcode: 0000 [#1] PREEMPT SMP".
    r": [0-9a-f]{4} \[#\d+\]|"
    r"possible (circular|recursive) locking|possible irq lock|suspicious RCU|inconsistent lock|"
    r"bad unlock balance|sleeping function called|scheduling while atomic|"
    r"rcu\S*( detected)? stall|rcu: INFO: .*stall|soft lockup|hard LOCKUP|blocked for more than|"
    r"unreferenced object|memory leak|refcount_t|KASAN|UBSAN|KFENCE|stack segment|"
    r"kernel stack is corrupted|list_(add|del) corruption|[Uu]nable to handle|[Bb]ad page|"
    r"Objects remaining|unregister_netdevice: waiting|"
    # A checker has given up and finds no bugs any more.
    r"ODEBUG disabled|leak detector disabled|Kmemleak disabled|Cannot allocate a kmemleak_object|"
    r"turning off the locking correctness validator|unreliable refcount tracker"
)
#: The leak detector is switched off by the command line or for want of a word there, in the
#: kernel's first moments; what the line has for a time then is zero, or near it.
_HARMLESS = re.compile(
    r"kfence: initialized|KernelAddressSanitizer initialized|leak detector initialized|"
    r"^(\[ *[0-4]\.\d+\] )?kmemleak: Kernel memory leak detector disabled|"
    r"Command line:|command line:"
)


def offending_lines(lines: list[str]) -> list[str]:
    """Return the lines that report a bug, a warning, a stall or a leak."""
    return [line for line in lines if _OFFENCES.search(line) and not _HARMLESS.search(line)]


def parse_record(record: str) -> tuple[int, str]:
    """Split a ``/dev/kmsg`` record into its sequence number and its text with a time stamp."""
    prefix, _, text = record.partition(";")
    fields = prefix.split(",")
    first = text.split("\n", 1)[0]
    return int(fields[1]), f"[{int(fields[2]) / 1e6:12.6f}] {first}"
