"""The ``stackmap`` command: its groups, and where their errors become sentences."""

from __future__ import annotations

import click

from .lab import lab
from .nic import bind, unbind
from .sentences import SentenceGroup
from .serve import serve
from .show import conns, ports, stats


@click.group(cls=SentenceGroup)
@click.version_option(package_name="stackmap")
def main() -> None:
    """The kernel's TCP with netmap rings as data plane."""


for command in (bind, conns, lab, ports, serve, stats, unbind):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="stackmap")
