"""Completion in the shell: the values that options can have, and the command that installs it.

The scripts for the shells are click's. A shell runs ``mlxlava`` with a variable set, each time that Tab is
pressed; so nothing here may load MLX.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from mlxlava.cli.help import example
from mlxlava.cli.options import debug_option
from mlxlava.config import load_recipe, recipe_names, setting_rows
from mlxlava.errors import UserError
from mlxlava.paths import append_lines, known_lamps, write_text_atomically

COMPLETION_VARIABLE = "_MLXLAVA_COMPLETE"  # the scripts set it
SHELLS = ("bash", "zsh", "fish")

# zsh has ``compdef`` only after compinit, which a fresh .zshrc does not call.
_BEFORE_SCRIPT = {"zsh": "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }\n"}

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def complete_names(names: Callable[[], Iterable[str]], or_files: bool = True) -> Complete:
    """Make a function that completes names, and files if none of the names fits.

    Args:
        names: gives the names; called when Tab is pressed.
        or_files: whether the value may be a file or a folder as well.
    """

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        fitting = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return fitting or ([CompletionItem(incomplete, type="file")] if or_files else [])

    return complete


def _setting_names() -> list[str]:
    return [f"{name}=" for name, _, _ in setting_rows(load_recipe("lava"))]


complete_weights = complete_names(known_lamps)
complete_recipes = complete_names(recipe_names)
complete_settings = complete_names(_setting_names, or_files=False)


@click.command(epilog=example("mlxlava completion", "for the shell that you use"))
# A metavar of our own, here and for the commands: those of click differ from version to version.
@click.argument("shell", required=False, metavar="[SHELL]", type=click.Choice(SHELLS))
@click.option("--show", is_flag=True, help="Print the script, and install nothing.")
@debug_option
def completion(shell: str | None, show: bool) -> None:
    """Install completion: Tab then completes commands, options, weights, recipes and settings.

    SHELL is bash, zsh or fish; that of $SHELL when not given. For bash and zsh one line is added to the file
    that the shell reads when it starts. bash has to be 4.4 or newer; that of macOS is older.
    """
    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if chosen not in SHELLS:
        raise UserError(f"completion: $SHELL is {chosen or 'not set'}; name a shell: {', '.join(SHELLS)}")
    script = _script(chosen)
    if show:
        click.echo(script, nl=False)
    else:
        _install(chosen, script)


def _script(shell: str) -> str:
    """The script that tells a shell how to complete ``mlxlava``."""
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    group = click.get_current_context().find_root().command
    return _BEFORE_SCRIPT.get(shell, "") + kind(group, {}, "mlxlava", COMPLETION_VARIABLE).source()


def _install(shell: str, script: str) -> None:
    """Write the script for this user, and have the shell read it when it starts.

    Raises:
        UserError: there is no home folder, or a file cannot be written.
    """
    from mlxlava.console import say

    try:
        home = Path.home()
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
        path = config / "fish/completions/mlxlava.fish" if shell == "fish" else data / f"mlxlava/{shell}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, script)
        if shell == "fish":  # fish reads that folder by itself
            say(f"completion: {path}: open a new shell; to undo it, remove that file")
            return
        start = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
        line = f"[ -f {shlex.quote(str(path))} ] && . {shlex.quote(str(path))}  # mlxlava completion"
        if not start.exists() or line not in start.read_text("utf-8", "surrogateescape").splitlines():
            # Appended, and not replaced: the file may be a link into a folder of settings.
            append_lines(start, [line])
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise UserError(f"completion: {error}; --show prints the script") from error
    say(f"completion: {start} reads {path} now: open a new shell; to undo it, remove its line from {start}")
