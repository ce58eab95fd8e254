"""Makes what the kernel does for the module fail, once at a time.

``/proc/thread-self/fail-nth`` counts what this thread does of a kind, and fails the nth.  Only what
has code of the module on the stack is counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_DEBUGFS = Path("/sys/kernel/debug")
#: Allocations of objects, of pages, and copies from and to user space.
KINDS = ("failslab", "fail_page_alloc", "fail_usercopy")
#: Allocations that may sleep, and single pages, are spared unless one says otherwise.
_SETTINGS = {
    "failslab/cache-filter": "N",
    "failslab/ignore-gfp-wait": "N",
    "fail_page_alloc/ignore-gfp-wait": "N",
    "fail_page_alloc/ignore-gfp-highmem": "N",
    "fail_page_alloc/min-order": "0",
}
_DEEPEST = 32
_NOWHERE = (1, 2)
_PAGE = 4096


def _code() -> list[tuple[int, str, str]]:
    """All functions: address, name, and the module that has it."""
    found = []
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, kind, name, *module = line.split()
        if kind in "tT":
            found.append((int(address, 16), name, "".join(module)))
    return sorted(found)


def module_text() -> tuple[int, int]:
    """Where the module's code is."""
    addresses = [address for address, _name, module in _code() if module == "[stackmap]"]
    return addresses[0], addresses[-1] + _PAGE


def function_text(wanted: str) -> tuple[int, int]:
    """Where one of the kernel's functions is."""
    code = _code()
    (number,) = (n for n, (_address, name, _module) in enumerate(code) if name == wanted)
    return code[number][0], code[number + 1][0]


def module_memory() -> dict[str, int]:
    """How many bytes the module has, by the line of it that asked for them."""
    memory = {}
    for line in Path("/proc/allocinfo").read_text().splitlines():
        if "[stackmap]" in line:
            size, _calls, place, *_rest = line.split()
            if int(size):
                memory[place] = int(size)
    return memory


@dataclass
class Strike:
    """One call during which something was to fail."""

    #: Whether it did.
    hit: bool
    #: The call's exception.
    error: OSError | None


class Faults:
    """Failures of one kind on demand, in this thread's calls."""

    def __init__(self, wanted: str) -> None:
        self.kind = wanted
        # The count of allocations has records of its own, and warns when it cannot have one.
        spared_start, spared_end = function_text("alloc_slab_obj_exts")
        for kind in KINDS:
            start, end = module_text() if kind == wanted else _NOWHERE
            self._set(f"{kind}/verbose", "0")
            self._set(f"{kind}/stacktrace-depth", str(_DEEPEST))
            self._set(f"{kind}/require-start", hex(start))
            self._set(f"{kind}/require-end", hex(end))
            self._set(f"{kind}/reject-start", hex(spared_start))
            self._set(f"{kind}/reject-end", hex(spared_end))
        for name, value in _SETTINGS.items():
            self._set(name, value)
        self._fd = os.open("/proc/thread-self/fail-nth", os.O_RDWR | os.O_CLOEXEC)

    def _set(self, name: str, value: str) -> None:
        (_DEBUGFS / name).write_text(value)

    def strike(self, nth: int, call: Callable[[], object]) -> Strike:
        """Make a call of which the nth attempt of this kind fails."""
        error = None
        os.pwrite(self._fd, str(nth).encode(), 0)
        try:
            call()
        except OSError as raised:
            error = raised
        left = int(os.pread(self._fd, 20, 0).rstrip(b"\n\0"))
        os.pwrite(self._fd, b"0", 0)
        return Strike(left == 0, error)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
