"""Turn the project's own errors into the one sentence a command ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stackmap._errors import StackmapError

if TYPE_CHECKING:
    from click import Context


class SentenceGroup(click.Group):
    """A group whose commands end with exit code 1 and a sentence instead of a traceback."""

    def invoke(self, ctx: Context) -> Any:
        """Run the command.

        Raises:
            ClickException: it failed for a reason that a person can put right.
        """
        try:
            return super().invoke(ctx)
        except StackmapError as error:
            raise click.ClickException(str(error)) from error
