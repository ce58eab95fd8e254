"""Executed blocks of code: read the plugin's records, and find the file or symbol of each."""

from __future__ import annotations

import bisect
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from stackmap_testbed.lab.errors import LabError

_SECTION = struct.Struct("=Q")
_RECORD = struct.Struct("=QIIQQ")
#: The kernel's addresses begin here.
_KERNEL = 1 << 63


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code, as one processor executed it between two markers.

    Attributes:
        address: of its first instruction.
        processor: the processor's number.
        instructions: how many it has.
        times: how often it was executed.
        repetitions: how often the string instruction in it was repeated; to a processor, all
            repetitions are one instruction.
    """

    address: int
    processor: int
    instructions: int
    times: int
    repetitions: int

    @property
    def executed(self) -> int:
        """The instructions executed."""
        return self.instructions * self.times


Section = list[Block]


def read_sections(data: bytes) -> list[Section]:
    """Read records as ``_blocks.h`` has them.

    Raises:
        ValueError: the last section is not complete.
    """
    sections = []
    offset = 0
    while offset < len(data):
        (records,) = _SECTION.unpack_from(data, offset)
        begin, offset = offset + _SECTION.size, offset + _SECTION.size + records * _RECORD.size
        if offset > len(data):
            raise ValueError(f"{offset - len(data)} bytes of a section are missing")
        sections.append([Block(*record) for record in _RECORD.iter_unpack(data[begin:offset])])
    return sections


def total(section: Iterable[Block]) -> int:
    """All that QEMU executed, each repetition as an instruction: what the counter counts."""
    return sum(block.executed + block.repetitions for block in section)


@dataclass
class Ranges:
    """Names of ranges of addresses, which do not overlap."""

    _starts: list[int] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)

    def add(self, start: int, end: int, name: str) -> None:
        """Name a range; ranges are added in ascending order."""
        self._starts.append(start)
        self._ends.append(end)
        self._names.append(name)

    def find(self, address: int) -> str | None:
        """The name of the range that an address is in."""
        at = bisect.bisect_right(self._starts, address) - 1
        return self._names[at] if at >= 0 and address < self._ends[at] else None

    def start(self, name: str) -> int:
        """The first address of a function; the name is without its module.

        Raises:
            LabError: there is none of that name.
        """
        for start, known in zip(self._starts, self._names, strict=True):
            if known.partition(" ")[0] == name:
                return start
        raise LabError(f"this kernel has no function {name}, whose calls are to be counted")


def read_maps(text: str) -> Ranges:
    """The executable mappings of a process, by file, from ``/proc/PID/maps``."""
    ranges = Ranges()
    for line in text.splitlines():
        addresses, permissions, _offset, _device, _inode, *path = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in addresses.split("-"))
        if "x" in permissions and start < _KERNEL:
            ranges.add(start, end, PurePath(path[0]).name if path else "anonymous memory")
    return ranges


def read_symbols(text: str) -> Ranges:
    """The kernel's functions, from ``/proc/kallsyms``; a module's have its name in brackets."""
    found = []
    for line in text.splitlines():
        address, kind, name, *module = line.split()
        if kind in "tTwW":
            found.append((int(address, 16), " ".join([name, *module])))
    found.sort()
    ranges = Ranges()
    for (start, name), (end, _next) in zip(found, [*found[1:], (1 << 64, "")], strict=True):
        if start < end:
            ranges.add(start, end, name)
    return ranges


#: Files of the Python interpreter, by the prefixes of their names.
_PYTHON = ("python3", "_asyncio.", "libpython3")
_EXTENSIONS = ("_fast.", "_ring_c.", "_echo_c.", "loop.cpython")
#: Functions that wait for work, choose the next task and switch to it, by their prefixes.
_SLEEPING = (
    "do_idle",
    "cpu_startup_entry",
    "cpuidle_",
    "default_idle",
    "arch_cpu_idle",
    "call_cpuidle",
    "menu_",
    "ladder_",
    "haltpoll_",
    "tick_nohz_",
    "tick_irq_",
    "nohz_",
    "sched_",
    "schedule",
    "__schedule",
    "pick_next_",
    "put_prev_",
    "set_next_",
    "enqueue_",
    "dequeue_",
    "update_curr",
    "update_load_avg",
    "update_rq_clock",
    "finish_task_switch",
    "prepare_task_switch",
    "__switch_to",
    "switch_mm",
    "switch_fpu",
    "try_to_wake_up",
    "ttwu_",
    "select_task_rq",
    "check_preempt",
    "wakeup_preempt",
    "resched_curr",
)
PARTS = ("python", "extension", "other C", "module", "kernel")
#: The driver tells the NIC that a queue has work; a device interrupts; NAPI, or a task that polls
#: busily, has the driver look at a queue of received or of sent packets; a processor goes from one
#: task to another.
EVENTS = ("doorbells", "interrupts", "polls", "switches")
#: By NIC, the functions of which the kernel calls one for each event.  The driver of vmxnet3 has
#: none for its doorbells.  A veth has neither these nor interrupts; with several of its queues in
#: use it matters how often a processor has nothing to do, and waits for another one's lock.
EVENT_FUNCTIONS = {
    "virtio-net": {
        "vp_notify": "doorbells",
        "common_interrupt": "interrupts",
        "virtnet_poll": "polls",
        "virtnet_poll_tx": "polls",
        "__switch_to": "switches",
    },
    "vmxnet3": {
        "common_interrupt": "interrupts",
        "vmxnet3_poll_rx_only": "polls",
        "__switch_to": "switches",
    },
    "veth": {
        "veth_poll": "polls",
        "__switch_to": "switches",
        "default_idle_call": "sleeps",
        "native_queued_spin_lock_slowpath": "waits",
    },
}


@dataclass(frozen=True)
class Split:
    """Where one processor's instructions were.

    Attributes:
        parts: instructions by ``PARTS``: the interpreter with its built-in modules; compiled
            extensions of event loops, and servers in C; other files in user mode, such as the C
            library; the module stackmap; the rest of the kernel.
        sleeping: the part of ``kernel`` that is idle or switches tasks.
        repetitions: of string instructions, which are not in ``parts``.
        files: user mode, by the file that is mapped.
        functions: the kernel's and its modules', by name.
    """

    parts: dict[str, int]
    sleeping: int
    repetitions: int
    files: dict[str, int]
    functions: dict[str, int]


def split(section: Iterable[Block], processor: int, mapped: Ranges, symbols: Ranges) -> Split:
    """Attribute what a processor executed.

    Args:
        section: what all processors executed.
        processor: which one is wanted.
        mapped: what the only process on it has mapped.
        symbols: the kernel's functions.
    """
    files: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    repetitions = 0
    for block in section:
        if block.processor != processor:
            continue
        repetitions += block.repetitions
        if block.address < _KERNEL:
            files[mapped.find(block.address) or "unknown"] += block.executed
        else:
            functions[symbols.find(block.address) or "unknown"] += block.executed
    parts = dict.fromkeys(PARTS, 0)
    for name, executed in files.items():
        parts[part_of_file(name)] += executed
    for name, executed in functions.items():
        parts["module" if name.endswith("[stackmap]") else "kernel"] += executed
    sleeping = sum(
        executed
        for name, executed in functions.items()
        if name.startswith(_SLEEPING) and not name.endswith("[stackmap]")
    )
    return Split(parts, sleeping, repetitions, dict(files), dict(functions))


def part_of_file(name: str) -> str:
    """The part of ``PARTS`` that a file in user mode belongs to."""
    if name.startswith(_PYTHON):
        return "python"
    return "extension" if name.startswith(_EXTENSIONS) else "other C"


def events(section: Iterable[Block], processor: int, symbols: Ranges, nic: str) -> dict[str, int]:
    """How often those of ``EVENTS`` that the NIC's driver shows happened on a processor.

    That is how often their functions were entered.

    Raises:
        LabError: the kernel has not all of these functions.
    """
    functions = EVENT_FUNCTIONS[nic]
    entries = {symbols.start(function): event for function, event in functions.items()}
    found = dict.fromkeys(functions.values(), 0)
    for block in section:
        if block.processor == processor and block.address in entries:
            found[entries[block.address]] += block.times
    return found
