"""The commands that play: loop, lamp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxlava.cli.completion import complete_weights
from mlxlava.cli.help import example
from mlxlava.cli.options import SIZE_TYPE, NumberRange, combine_options, debug_option, positive_number
from mlxlava.config import SCREENS


def _parse_window_id(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    from mlxlava.playback.screens.foreign_window import parse_window_id

    return None if text is None else parse_window_id(text, "--window-id")


playing_options = combine_options(
    click.option(
        "-o", "target", metavar="FILE|-", type=click.Path(), help="File to write, or - for a pipe on stdout."
    ),
    click.option(
        "--format", metavar="NAME", help="mp4, webm, gif, apng, webp, y4m, raw; by the ending of FILE."
    ),
    click.option("--forever", is_flag=True, help="Until Ctrl-C, or until nobody reads any more."),
    click.option("--seconds", type=positive_number(10**8), help="Play time; 10 for a file."),
    click.option("--frames", type=click.IntRange(1, 10**9), help="Play time in frames."),
    click.option(
        "--fps",
        # A file's rate is a fraction with a denominator of at most 1001.
        type=NumberRange(0.001, 1000),
        help="Frames a second; 30 when not given, in a window the display's rate.",
    ),
    click.option(
        "--speed",
        # At 1000, thirty frames a second are 170 learned steps of the shipped lamp apart.
        type=positive_number(1000),
        default=1.0,
        show_default=True,
        help="How much faster than true time the lamp moves.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Which lamp."
    ),
    click.option(
        "--scale",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        help="Enlarge the pictures of a file by this factor.",
    ),
    click.option(
        "--quality", type=click.IntRange(0, 100), help="Of mp4, webm, gif and webp files; 75 when not given."
    ),
    click.option(
        "--screen", type=click.Choice(SCREENS), help="Where to show; auto without -o, none with it."
    ),
    click.option(
        "--host", metavar="ADDRESS", help="Where --screen web listens; 0.0.0.0 opens it to the network."
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        help="Port of --screen web; the first free one from 8765 on when not given, any free one with 0.",
    ),
    click.option(
        "--window-id",
        metavar="NUMBER",
        callback=_parse_window_id,
        help="X window to play in, as xscreensaver gives it; also XSCREENSAVER_WINDOW.",
    ),
)


@click.command(
    epilog=example(
        "mlxlava loop --seed 7 --seconds 10 -o lava.mp4", "ten seconds of another lamp, as a video"
    )
)
@click.option(
    "--weights",
    "name",
    metavar="NAME|PATH",
    shell_complete=complete_weights,
    help="Shipped weights, a folder of weights, or a run.",
)
@click.option(
    "--from",
    "picture",
    metavar="PICTURE",
    type=click.Path(path_type=Path),
    help="Go on from the state whose frame is nearest to a picture.",
)
@click.option("--seamless", is_flag=True, help="A clip whose end meets its start, to be played in a loop.")
@playing_options
@debug_option
def loop(name: str | None, seed: int, picture: Path | None, seamless: bool, **playing: Any) -> None:
    """Play a learned lamp: in a window, in the terminal, on a web page, or into a file or a pipe."""
    from mlxlava.playback.options import PlaybackOptions
    from mlxlava.playback.player import play_lamp
    from mlxlava.rollout.library import WeightsLibrary

    library = WeightsLibrary(name, picture)
    options = PlaybackOptions(**playing).resolve()
    if seamless:
        library.period = options.loop_period
    play_lamp(library, options, library.names[0], seed)


@click.command(epilog=example("mlxlava lamp --seconds 60 -o lamp.mp4", "a minute of it, as a video"))
@click.option("--size", type=SIZE_TYPE, default="256", help="Height and width; 256 when not given.")
@click.option("--theme", metavar="NAME", default="classic", show_default=True, help="Colours.")
@playing_options
@debug_option
def lamp(size: tuple[int, int], theme: str, seed: int, **playing: Any) -> None:
    """Play the built-in lamp, which is simulated: train learns it when no footage is given."""
    from mlxlava.footage.simulated_lamp import ThemeLibrary
    from mlxlava.playback.options import PlaybackOptions
    from mlxlava.playback.player import play_lamp

    options = PlaybackOptions(name="lamp.mp4", **playing).resolve()
    options.require_room(size)  # before the lamp is made, which takes seconds if it is large
    play_lamp(ThemeLibrary(size), options, theme, seed)
