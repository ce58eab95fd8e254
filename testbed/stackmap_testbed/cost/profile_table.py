"""The table of profiles in a terminal: parts as rows, servers as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from stackmap_testbed.cost.by_part import ALL_PARTS, Profile, beside, heading


def _rows(group: Sequence[Profile], top: int) -> Iterator[tuple[str, list[float], bool]]:
    """The name of each row, the instructions of each profile, and whether it is a part."""
    yield "all", [each.instructions for each in group], True
    for part in ALL_PARTS:
        numbers = [each.parts[part] for each in group]
        if not any(numbers):
            continue
        yield part, numbers, True
        most: dict[str, float] = {}
        for each in group:
            for name, executed in each.functions[part].items():
                most[name] = max(executed, most.get(name, 0))
        for name in sorted(most, key=lambda name: -most[name])[:top]:
            yield name, [each.functions[part].get(name, 0) for each in group], False


def table(group: Sequence[Profile], top: int) -> Table:
    """A table of profiles of one size and number of connections, in thousands of instructions."""
    shown = Table(title=heading(group[0]), pad_edge=False)
    shown.add_column("", no_wrap=True)
    pairs = beside(group)
    columns: list[Profile] = []
    for profile, sockets in pairs:
        for each in filter(None, (profile, sockets)):
            columns.append(each)
            shown.add_column(escape(f"{each.server}\n{each.source}".strip()), justify="right")
        if sockets:
            shown.add_column("rings -\nsockets", justify="right", style="bold")
    for name, numbers, is_part in _rows(columns, top):
        cells = []
        left = iter(number / 1000 for number in numbers)
        for _, sockets in pairs:
            cost = next(left)
            cells.append(f"{cost:.2f}")
            if sockets:
                other = next(left)
                cells += [f"{other:.2f}", f"{round(cost - other, 2) or 0.0:+.2f}"]
        shown.add_row(
            escape(name if is_part else f"  {name}"), *cells, style="" if is_part else "dim"
        )
    return shown
