"""The three that must agree: the specification, the header, and the Python client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from cffi import FFI

from stackmap import PortStats, inspect

KMOD = Path(__file__).parents[2] / "kmod"
SPEC = yaml.safe_load((KMOD / "stackmap.yaml").read_text())
HEADER = (KMOD / "uapi" / "stackmap_netlink.h").read_text()
SETS = {found["name"]: found for found in SPEC["attribute-sets"]}
CLIENT: dict[str, Any] = {
    "port": inspect.PortMessage,
    "ring": inspect.RingMessage,
    "conn": inspect.ConnMessage,
    "counters": inspect.CountersNest,
}
PYROUTE2_TYPES = {
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "string": "asciiz",
    "binary": "cdata",
    "flag": "flag",
    "pad": "none",
}


def constant(text: str) -> str:
    return text.upper().replace("-", "_")


@pytest.fixture(scope="module")
def header() -> dict[str, int]:
    """Every constant of the header's enums."""
    ffi = FFI()
    ffi.cdef(re.sub(r"^#.*$", "", HEADER, flags=re.MULTILINE))
    return {
        name: getattr(ffi.dlopen(None), name)
        for name in re.findall(r"^\t(_*SM_\w+)", HEADER, re.MULTILINE)
    }


def numbered(prefix: str, names: list[str]) -> dict[str, int]:
    """The constants that ynl-gen would make of a list, with their limits."""
    numbers = {constant(prefix + name): i for i, name in enumerate(names, 1)}
    return numbers | {
        f"__{constant(prefix)}MAX": len(names) + 1,
        f"{constant(prefix)}MAX": len(names),
    }


def test_the_header_is_what_the_specification_says(header: dict[str, int]) -> None:
    operations = SPEC["operations"]
    expected = numbered(operations["name-prefix"], [op["name"] for op in operations["list"]])
    for found in SETS.values():
        names = [attribute["name"] for attribute in found["attributes"]]
        expected |= numbered(found["name-prefix"], names)
    (flags,) = SPEC["definitions"]
    expected |= {
        constant(flags["name-prefix"] + entry["name"]): 1 << i
        for i, entry in enumerate(flags["entries"])
    }
    assert header == expected


def test_the_family_has_one_name_and_version() -> None:
    assert f'#define {constant(SPEC["c-family-name"])}\t\t"{SPEC["name"]}"\n' in HEADER
    assert f"#define {constant(SPEC['c-version-name'])}\t\t1\n" in HEADER
    assert SPEC["name"] == inspect.FAMILY


@pytest.mark.parametrize("name", SETS)
def test_the_client_knows_every_attribute(name: str) -> None:
    found, client = SETS[name], CLIENT[name]
    expected = [(constant(found["name-prefix"] + "unspec"), "none")]
    for attribute in found["attributes"]:
        kind = attribute["type"]
        if kind == "nest":
            kind = attribute["nested-attributes"]
            assert getattr(client, kind) is CLIENT[kind]
        elif attribute.get("byte-order") == "big-endian":
            kind = kind.replace("u", "be")
        else:
            kind = PYROUTE2_TYPES[kind]
        expected.append((constant(found["name-prefix"] + attribute["name"]), kind))
    assert list(client.nla_map) == expected


def test_the_client_knows_every_command(header: dict[str, int]) -> None:
    for operation in SPEC["operations"]["list"]:
        number = header[constant(SPEC["operations"]["name-prefix"] + operation["name"])]
        assert number == getattr(inspect, constant(operation["name"]))
        assert inspect.ANSWERS[number] is CLIENT[operation["attribute-set"]]
        attributes = [
            attribute["name"] for attribute in SETS[operation["attribute-set"]]["attributes"]
        ]
        assert operation["dump"]["reply"]["attributes"] == attributes


def test_the_client_knows_every_flag(header: dict[str, int]) -> None:
    for entry in SPEC["definitions"][0]["entries"]:
        number = header[constant(SPEC["definitions"][0]["name-prefix"] + entry["name"])]
        assert number == getattr(inspect, constant(entry["name"]))


def test_the_dataclass_has_every_counter() -> None:
    names = [attribute["name"].replace("-", "_") for attribute in SETS["counters"]["attributes"]]
    assert ["pad", *inspect.Counters.__slots__] == names


def test_a_counter_has_one_name() -> None:
    """A port's own counters are called what netlink, and so the CLI, calls them."""
    counted = {name for name in PortStats.__slots__ if not name.startswith("socket_")}
    assert counted <= {*inspect.Counters.__slots__, *inspect.PortInfo.__slots__}
