"""Turn the project's own errors into the one sentence a command ends with."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from stackmap.errors import StackmapError

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Settings of a group, which its commands inherit.
HELP = {"help_option_names": ["-h", "--help"]}


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    try:
        yield
    except StackmapError as error:
        raise click.ClickException(str(error)) from error


class SentenceCommand(click.Command):
    """A command that ends with exit code 1 and a sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            ClickException: it failed for a reason that a person can put right.
        """
        with _in_a_sentence():
            return super().invoke(ctx)


class SentenceGroup(click.Group):
    """A group of such commands."""

    command_class = SentenceCommand


def examples(*lines: str) -> str:
    """The end of a command's help: what to type, as it is."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
