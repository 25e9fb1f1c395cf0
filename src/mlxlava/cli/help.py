"""Help: an example below each command's options, and the nearest command to a mistyped one."""

from __future__ import annotations

import click

from mlxlava.config import did_you_mean
from mlxlava.errors import UserError


def example(command: str, what: str) -> str:
    """The last lines of a command's help: one command that works, and what it does.

    Args:
        command: the command line. ``tests/cli/test_examples.py`` runs it.
        what: what it does, in a few words.
    """
    return f"\b\nExample: {what}\n  {command}"  # \b keeps click from filling the lines


class CommandGroup(click.Group):
    """A group of commands that names the nearest one. Click does so from 8.4 on; older ones are allowed."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names.

        Raises:
            UserError: there is no such command.
        """
        name = args[0]
        is_command = name.startswith("-") or self.get_command(ctx, name) is not None
        if not is_command and not ctx.resilient_parsing:
            raise UserError(f"no command {name!r}; {did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)
