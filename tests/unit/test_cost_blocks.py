"""Counts by block of code: what the plugin keeps, and to whom instructions are attributed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stackmap_testbed.cost import blocks
from stackmap_testbed.cost.blocks import (
    Block,
    events,
    read_maps,
    read_sections,
    read_symbols,
    split,
    total,
)
from stackmap_testbed.cost.echo import EchoError
from stackmap_testbed.cost.models import Cost, Server, measure, row, summary
from stackmap_testbed.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = Path(blocks.__file__).parent
#: What makes the plugin's functions callable from here.
SOURCE = """
#include "_blocks.h"
int begin(void) { return blocks_begin(); }
void *add(uint64_t address, uint32_t instructions, uint64_t repeated)
{
	return blocks_add(address, instructions, repeated);
}
int repeats(const unsigned char *code, size_t size) { return repeats_itself(code, size); }
void execute(unsigned int processor, void *block) { block_executed(processor, block); }
int write_to(const char *path)
{
	FILE *file = fopen(path, "a");
	int failed = blocks_write(file);

	return fclose(file) || failed;
}
"""


@pytest.fixture
def counter(tmp_path: Path) -> Any:
    """The plugin's counts, without QEMU."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", f"-I{HEADER}"]
    subprocess.run([*command, "-o", library, source], check=True)
    counter: Any = ctypes.CDLL(str(library))
    counter.add.restype = ctypes.c_void_p
    counter.add.argtypes = [ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64]
    counter.execute.argtypes = [ctypes.c_uint, ctypes.c_void_p]
    assert counter.begin() == 0
    return counter


def written(counter: Any, path: Path) -> list[Block]:
    """What was executed since the last call."""
    assert counter.write_to(str(path).encode()) == 0
    return read_sections(path.read_bytes())[-1]


def test_each_processor_has_its_counts(counter: Any, tmp_path: Path) -> None:
    first, second = counter.add(0x1000, 5, 0), counter.add(0x2000, 7, 0)
    for processor, block in ((0, first), (1, first), (1, second), (1, second)):
        counter.execute(processor, block)
    found = written(counter, tmp_path / "blocks")
    assert found == [
        Block(0x1000, 0, 5, 1, 0),
        Block(0x1000, 1, 5, 1, 0),
        Block(0x2000, 1, 7, 2, 0),
    ]
    assert total(found) == 5 + 5 + 14


def test_a_section_has_what_came_after_the_one_before(counter: Any, tmp_path: Path) -> None:
    block = counter.add(0x1000, 5, 0)
    counter.execute(0, block)
    assert written(counter, tmp_path / "blocks") == [Block(0x1000, 0, 5, 1, 0)]
    assert written(counter, tmp_path / "blocks") == []
    counter.execute(0, block)
    counter.execute(0, block)
    assert written(counter, tmp_path / "blocks") == [Block(0x1000, 0, 5, 2, 0)]


def test_a_string_instruction_counts_once(counter: Any, tmp_path: Path) -> None:
    """It ends a block, and is repeated in one of its own, where interrupts and others come in."""
    before, again = counter.add(0x1000, 3, 0x1008), counter.add(0x1008, 1, 0x1008)
    other = counter.add(0x2000, 9, 0)
    for processor, block in (
        (0, before),  # the first iteration
        (0, again),
        (1, other),  # on another processor: nothing to this one
        (0, again),
        (0, other),  # an interrupt: the instruction begins anew
        (0, again),
        (0, again),
    ):
        counter.execute(processor, block)
    found = written(counter, tmp_path / "blocks")
    assert found == [
        Block(0x1000, 0, 3, 1, 0),
        Block(0x1008, 0, 1, 1, 3),
        Block(0x2000, 0, 9, 1, 0),
        Block(0x2000, 1, 9, 1, 0),
    ]
    assert total(found) == 3 + 4 + 9 + 9


@pytest.mark.parametrize(
    ("code", "repeats"),
    [
        ("f3 a4", True),  # rep movsb
        ("f3 48 ab", True),  # rep stosq
        ("66 f3 a5", True),  # rep movsw
        ("f2 ae", True),  # repne scasb
        ("f3 6d", True),  # rep insl
        ("a4", False),  # movsb
        ("f3 90", False),  # pause
        ("f3 c3", False),  # rep ret
        ("f3 0f b8 c0", False),  # popcnt
        ("f3 0f 1e fa", False),  # endbr64
        ("48 ab", False),  # stosq
        ("f3", False),
    ],
)
def test_what_repeats_itself(counter: Any, code: str, repeats: bool) -> None:
    data = bytes.fromhex(code)
    assert bool(counter.repeats(data, ctypes.c_size_t(len(data)))) is repeats


def test_an_incomplete_section_is_refused(counter: Any, tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    counter.execute(0, counter.add(0x1000, 5, 0))
    written(counter, path)
    with pytest.raises(ValueError, match="1 bytes of a section are missing"):
        read_sections(path.read_bytes()[:-1])


MAPS = """\
555555554000-555555600000 r--p 00000000 00:12 77 /usr/bin/python3.11
555555600000-555555800000 r-xp 000ac000 00:12 77 /usr/bin/python3.11
7ffff0000000-7ffff0001000 rwxp 00000000 00:00 0
7ffff7000000-7ffff7100000 r-xp 00000000 00:12 78 /venv/_fast.cpython-311-x86_64-linux-gnu.so
7ffff7800000-7ffff7900000 r-xp 00000000 00:12 79 /usr/lib/libc.so.6
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""
SYMBOLS = """\
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000100 t tcp_ack
ffffffff81000180 d some_data
ffffffff81000200 T do_idle
ffffffff81000400 T __switch_to
ffffffff81000500 T common_interrupt
ffffffffc0000000 t sm_tx_sync	[stackmap]
ffffffffc0000400 t start_xmit	[virtio_net]
ffffffffc0000500 t vp_notify	[virtio_pci]
ffffffffc0000600 t virtnet_poll	[virtio_net]
ffffffffc0000700 t virtnet_poll_tx	[virtio_net]
"""


def test_code_in_user_mode_is_found_by_its_file() -> None:
    ranges = read_maps(MAPS)
    assert ranges.find(0x555555600000) == "python3.11"
    assert ranges.find(0x7FFFF0000000) == "anonymous memory"
    assert ranges.find(0x7FFFF7100000 - 1) == "_fast.cpython-311-x86_64-linux-gnu.so"
    assert ranges.find(0x7FFFF7100000) is None
    assert ranges.find(0x555555554000) is None, "it is not executable"


def test_code_of_the_kernel_is_found_by_its_function() -> None:
    ranges = read_symbols(SYMBOLS)
    assert ranges.find(0xFFFFFFFF81000000) == "_text"
    assert ranges.find(0xFFFFFFFF81000190) == "tcp_ack"
    assert ranges.find(0xFFFFFFFFC00003FF) == "sm_tx_sync [stackmap]"
    assert ranges.find(0xFFFFFFFF80000000) is None


def test_all_of_one_processor_is_attributed() -> None:
    section = [
        Block(0x555555600010, 1, 10, 3, 0),  # Python
        Block(0x7FFFF7000010, 1, 4, 2, 0),  # an extension
        Block(0x7FFFF7800010, 1, 2, 5, 900),  # the C library, and what it repeats
        Block(0x123, 1, 1, 7, 0),  # nobody's
        Block(0xFFFFFFFF81000104, 1, 6, 1, 0),  # TCP
        Block(0xFFFFFFFF81000204, 1, 5, 1, 0),  # sleep
        Block(0xFFFFFFFFC0000004, 1, 8, 2, 0),  # the module
        Block(0xFFFFFFFFC0000404, 1, 3, 1, 0),  # another module
        Block(0x555555600010, 0, 10, 99, 0),  # the other processor
    ]
    found = split(section, 1, read_maps(MAPS), read_symbols(SYMBOLS))
    assert found.parts == {
        "python": 30, "extension": 8, "other C": 17, "module": 16, "kernel": 14,
    }  # fmt: skip
    assert (found.sleeping, found.repetitions) == (5, 900)
    assert sum(found.parts.values()) == sum(
        block.executed for block in section if block.processor == 1
    )
    assert found.files["unknown"] == 7
    assert found.functions["start_xmit [virtio_net]"] == 3


def test_an_event_is_an_entry_into_its_function() -> None:
    section = [
        Block(0xFFFFFFFFC0000600, 1, 4, 3, 0),  # polls for received packets
        Block(0xFFFFFFFFC0000600, 1, 2, 5, 0),  # and their beginning, translated again
        Block(0xFFFFFFFFC0000604, 1, 6, 50, 0),  # and their rest
        Block(0xFFFFFFFFC0000600, 0, 4, 7, 0),  # on the other processor
        Block(0xFFFFFFFFC0000700, 1, 4, 1, 0),  # a poll for sent packets
        Block(0xFFFFFFFF81000400, 1, 9, 2, 0),  # switches: the function is no module's
    ]
    assert events(section, 1, read_symbols(SYMBOLS), "virtio-net") == {
        "doorbells": 0, "interrupts": 0, "polls": 9, "switches": 2,
    }  # fmt: skip


def test_events_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(LabError, match="no function vp_notify"):
        events([], 1, read_symbols(SYMBOLS.replace("vp_notify", "another")), "virtio-net")


def test_a_doorbell_that_is_no_function_is_not_counted() -> None:
    symbols = read_symbols(f"{SYMBOLS}ffffffffc0000900 t vmxnet3_poll_rx_only [vmxnet3]\n")
    found = events([Block(0xFFFFFFFFC0000900, 1, 4, 3, 0)], 1, symbols, "vmxnet3")
    assert found == {"interrupts": 0, "polls": 3, "switches": 0}


class Machine:
    """What a guest and its counter say to a measurement."""

    pid = 5

    def __init__(self, report: str, marks: Sequence[int], sections: Sequence[list[Block]]) -> None:
        self._report = report
        self._marks: list[list[int]] = [[], list(marks)]
        self._sections: list[list[list[Block]]] = [[], list(sections)]

    def popen(self, *_arguments: Any, **_options: Any) -> Any:
        return self

    def wait_for_output(self, *_arguments: Any, **_options: Any) -> None:
        pass

    kill = wait = wait_for_output

    def run(self, command: Sequence[str], **_options: Any) -> Any:
        text = MAPS if command[0] == "cat" else self._report
        return subprocess.CompletedProcess(command, 0, text)

    def marks(self) -> list[int]:
        return self._marks.pop(0)

    def sections(self) -> list[list[Block]]:
        return self._sections.pop(0)


REPORT = '{"bytes": 64, "connections": 16, "requests": 10, "errors": 0, "p99_ns": 40000}\n'
SECTION = [
    Block(0x555555600010, 1, 10, 28, 5),
    Block(0xFFFFFFFF81000500, 1, 5, 4, 0),
    Block(0x555555600010, 0, 10, 7, 0),
]


def measured(machine: Any) -> Any:
    return measure(machine, machine, read_symbols(SYMBOLS), Server(["x"]), 1)


def test_a_measurement_is_what_was_executed_between_its_marks() -> None:
    warm_up = [Block(0x1, 1, 1, 1000, 0)]
    costs = measured(Machine(REPORT, [1000, 1375], [warm_up, SECTION]))
    (cost,) = costs[64, 16]
    assert (cost.instructions, cost.repetitions, cost.client) == (30, 0.5, 7)
    assert cost.p99_us == 40
    found = summary(costs[64, 16])
    assert (found["parts"]["python"], found["parts"]["kernel"]) == (28, 2)
    assert found["events"] == {"doorbells": 0, "interrupts": 0.4, "polls": 0, "switches": 0}
    assert "python3.11" in found["files"]
    assert row("x", 64, 16, found).split()[3:10] == [
        "0.03", "0.03", "0.00", "0.00", "0.00", "0.00", "0.00",
    ]  # fmt: skip
    assert row("x", 64, 16, found).split()[10:14] == ["0.00", "0.40", "0.00", "0.00"]


def test_a_repeat_that_stands_out_does_not_count() -> None:
    def cost(instructions: float) -> Cost:
        parts = {"python": instructions, "kernel": 0.0}
        return Cost(instructions, parts, 0, 0, 0, 0, {}, {}, {})

    found = summary([cost(100), cost(900), cost(110)])
    assert (found["instructions"], found["parts"]["python"]) == (110, 110)
    assert found["spread"] == pytest.approx(800 / 110, abs=1e-4)


def test_processors_whose_counts_do_not_add_up_are_refused() -> None:
    with pytest.raises(EchoError, match="processors executed 375 instructions of 376"):
        measured(Machine(REPORT, [1000, 1376], [[], SECTION]))


def test_markers_without_a_measurement_are_refused() -> None:
    with pytest.raises(EchoError, match="3 markers were met for 1"):
        measured(Machine(REPORT, [1, 2, 3], [[], SECTION, []]))
