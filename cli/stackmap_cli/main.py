"""The ``stackmap`` command: its groups, and where their errors become sentences."""

from __future__ import annotations

from importlib import import_module

import click

from stackmap import __version__

from .click_errors import HELP, SentenceGroup, examples

#: The module that has each command.
_MODULES = {
    "bind": "nic",
    "conns": "show",
    "lab": "lab",
    "ports": "show",
    "serve": "serve",
    "stats": "show",
    "unbind": "nic",
}


class _ImportingGroup(SentenceGroup):
    """Imports the module of a command when it is used: all of them take twice as long as one."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Return the names in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command, or None for a name that is none."""
        if cmd_name not in _MODULES:
            return None
        module = import_module(f".{_MODULES[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(
    cls=_ImportingGroup,
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


if __name__ == "__main__":
    main(prog_name="stackmap")
