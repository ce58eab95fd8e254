"""Where the tests' time went: ``python -m tests.durations [FOLDER]``.

Reads the JUnit reports that ``make test`` leaves in ``out/junit``: one for each suite, and one for
each file that a suite has run inside a guest, in a folder of the suite's name.  Prints minutes by
suite and file, and the tests that took longest.  The first test of a suite pays for booting its
guests.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

#: A file of tests that a test runs inside a guest is that test's parameter.
INSIDE = "test_inside["
SLOWEST = 20


def cases(report: Path) -> list[tuple[str, str, float]]:
    """Returns file, test and seconds of each test in a report."""
    found = []
    for case in ET.parse(report).iter("testcase"):
        name = case.attrib["name"]
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        if name.startswith(INSIDE):
            file = "guest/" + name.removeprefix(INSIDE).removesuffix("]")
        found.append((file, name, float(case.attrib["time"])))
    return found


def print_rows(rows: list[tuple[str, ...]]) -> None:
    """Print a table with the numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for *words, number in rows:
        left = [word.ljust(width) for word, width in zip(words, widths, strict=False)]
        print("  ".join([*left, number.rjust(widths[-1])]))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.durations", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("out/junit"))
    folder: Path = parser.parse_args().folder
    files: list[tuple[str, ...]] = [("suite", "file", "minutes")]
    tests: list[tuple[float, str, str]] = []
    for report in sorted(folder.glob("*.xml")):
        suite = report.stem
        seconds: defaultdict[str, float] = defaultdict(float)
        for file, name, time in cases(report):
            seconds[file] += time
            if not name.startswith(INSIDE):
                tests.append((time, suite, f"{file}::{name}"))
        files.append((suite, "all", f"{sum(seconds.values()) / 60:.1f}"))
        ordered = sorted(seconds.items(), key=lambda item: -item[1])
        files += [(suite, file, f"{time / 60:.1f}") for file, time in ordered]
        for inside in (folder / suite).glob("*.xml"):
            tests += [(time, suite, f"{file}::{name}") for file, name, time in cases(inside)]
    print_rows(files)
    print()
    slowest = sorted(tests, reverse=True)[:SLOWEST]
    print_rows([("suite", "test", "seconds"), *((s, t, f"{time:.1f}") for time, s, t in slowest)])


if __name__ == "__main__":
    main()
