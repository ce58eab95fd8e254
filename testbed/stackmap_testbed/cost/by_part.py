"""A server's cost by part, from the figures that :mod:`stackmap_testbed.cost.models` finds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackmap_testbed.cost.blocks import PARTS, part_of_file
from stackmap_testbed.cost.kernel_parts import OTHER, PREFIXES, part_of
from stackmap_testbed.lab.errors import LabError

_KERNEL = "kernel"
_MODULE = "module"
#: User mode, the module and the parts of the kernel, in the order of tables and drawings.
ALL_PARTS = (*(part for part in PARTS if part != _KERNEL), *PREFIXES, OTHER)
#: A server on rings is compared with one that has one of these in its name, instead of ``rings``.
_SOCKETS = ("epoll", "sockets")


@dataclass(frozen=True)
class Profile:
    """The cost of a request to one server.

    Attributes:
        server: its name.
        source: where the figures are from, if others are from elsewhere.
        size: of messages, in bytes.
        connections: how many.
        parts: instructions per request by ``ALL_PARTS``; they add up to all.
        functions: the same by function of the kernel and by file of user mode, in each part.  What
            takes less than one instruction per request has no name; the kernel's is in ``OTHER``.
    """

    server: str
    source: str
    size: int
    connections: int
    parts: dict[str, float]
    functions: dict[str, dict[str, float]]

    @property
    def instructions(self) -> float:
        """All instructions per request."""
        return sum(self.parts.values())


def _profile(
    server: str, source: str, size: int, connections: int, found: dict[str, Any]
) -> Profile:
    functions: dict[str, dict[str, float]] = {part: {} for part in ALL_PARTS}
    for name, executed in found["files"].items():
        functions[part_of_file(name)][name] = executed
    for name, executed in found["functions"].items():
        part = _MODULE if name.endswith("[stackmap]") else part_of(name)
        functions[part][name] = executed
    parts = {part: float(found["parts"].get(part, 0)) for part in ALL_PARTS}
    for part in PREFIXES:
        parts[part] = sum(functions[part].values())
    parts[OTHER] = found["parts"][_KERNEL] - sum(parts[part] for part in PREFIXES)
    return Profile(server, source, size, connections, parts, functions)


def profiles(figures: dict[str, Any], source: str = "") -> list[Profile]:
    """The profile of each server, size and number of connections.

    Args:
        figures: as :func:`stackmap_testbed.cost.models.run` returns them.
        source: where they are from, if others are from elsewhere.
    """
    return [
        _profile(server, source, int(size), int(connections), found)
        for server, sizes in figures["servers"].items()
        for size, numbers in sizes.items()
        for connections, found in numbers.items()
    ]


def read_profiles(paths: Sequence[Path]) -> list[Profile]:
    """The profiles in files of figures; if there are several, each has its file as source.

    Raises:
        LabError: a file cannot be read, or has no figures by function.
    """
    found = []
    common = os.path.commonpath([path.resolve().parent for path in paths])
    for path in paths:
        source = path.resolve().relative_to(common).with_suffix("") if len(paths) > 1 else ""
        try:
            figures = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"{path} cannot be read: {error}") from error
        try:
            found += profiles(figures, str(source))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"{path} has no figures by function ({error!r}): take a file that `make profile`, "
                "`make bench-models` or `make bench-connections` wrote"
            ) from error
    return found


def heading(profile: Profile) -> str:
    """The title of a table or a drawing of profiles like this one."""
    plural = "" if profile.connections == 1 else "s"
    return f"{profile.size} bytes, {profile.connections} connection{plural}"


def partner(profile: Profile, among: Sequence[Profile]) -> Profile | None:
    """The profile on sockets that one on rings is compared with.

    It has the same name, but for ``epoll`` or ``sockets`` in place of ``rings``.
    """
    names = [
        profile.server.replace("rings", word) for word in _SOCKETS if "rings" in profile.server
    ]
    return next(
        (each for each in among if each.server in names and each.source == profile.source), None
    )


def beside(among: Sequence[Profile]) -> list[tuple[Profile, Profile | None]]:
    """Each profile, with that on sockets if it is on rings and there is one to compare it with."""
    pairs = [(profile, partner(profile, among)) for profile in among]
    taken = [sockets for _, sockets in pairs]
    return [(profile, sockets) for profile, sockets in pairs if profile not in taken]
