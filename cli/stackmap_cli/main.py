"""The ``stackmap`` command: its groups, and where their errors become sentences."""

from __future__ import annotations

import click

from stackmap import __version__

from .click_errors import HELP, SentenceGroup, examples
from .lab import lab
from .nic import bind, unbind
from .serve import serve
from .show import conns, ports, stats


@click.group(
    cls=SentenceGroup,
    context_settings=HELP,
    epilog=examples(
        "sudo stackmap bind eth1",
        "stackmap serve memcached --backend stackmap --nic eth1",
        'eval "$(_STACKMAP_COMPLETE=bash_source stackmap)"   # complete with Tab; or zsh_source',
    ),
)
@click.version_option(__version__, prog_name="stackmap")
def main() -> None:
    """The kernel's TCP with netmap rings as data plane."""


for command in (bind, conns, lab, ports, serve, stats, unbind):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="stackmap")
