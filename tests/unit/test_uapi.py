"""The kernel's interface is the same for 32-bit programs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "kmod" / "uapi" / "stackmap.h"
NAMES = re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)


def sizes(bits: int) -> dict[str, int]:
    """The sizes of all structures in a program of so many bits."""
    source = f'#include "{HEADER}"\n' + "".join(
        f"const unsigned int size_of_{name} = sizeof(struct {name});\n" for name in NAMES
    )
    command = ["gcc", f"-m{bits}", "-I/usr/include/x86_64-linux-gnu", "-xc", "-S", "-o-", "-"]
    code = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^size_of_(\w+):\n\s+\.long\s+(\d+)", code, re.MULTILINE)
    return {name: int(size) for name, size in found}


def test_structures_are_as_large_in_32_bits() -> None:
    assert sizes(32) == sizes(64)
    assert set(sizes(64)) == set(NAMES)
    assert "sm_req_register" in NAMES
