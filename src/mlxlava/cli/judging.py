"""The commands that judge weights and machines: score, drift, check."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxlava.cli.options import debug, options
from mlxlava.errors import UserError

if TYPE_CHECKING:
    from mlxlava.footage.prepared import Footage
    from mlxlava.rollout.weights import Weights


_SHORT_DRIFT = 5_000  # learned steps of the drift curve in the picture of a score

_judging = options(
    click.argument("name", metavar="WEIGHTS"),
    click.option(
        "--footage",
        "source",
        metavar="FOOTAGE",
        help="What they were trained on; may be left out for the built-in lamp.",
    ),
    click.option(
        "--held-out", metavar="FOOTAGE", help="Footage of the same lamp that they were not trained on."
    ),
)
_showing = options(
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Which lamps."
    ),
    click.option(
        "-o", "target", metavar="FILE.png", type=click.Path(path_type=Path), help="Picture to write."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables."),
)


@click.command()
@_judging
@click.option(
    "--frames", type=click.IntRange(1), default=16384, show_default=True, help="Frames to draw, at most."
)
@_showing
@debug
def score(
    name: str,
    source: str | None,
    held_out: str | None,
    frames: int,
    seed: int,
    target: Path | None,
    as_json: bool,
) -> None:
    """Score learned lamps against real footage: pictures, motion, memory.

    Every figure stands beside what real footage scores against real footage of the same lamp.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import parts
    from mlxlava.evaluation.score import draw_clips, part
    from mlxlava.evaluation.score import score as judge
    from mlxlava.rollout.weights import load_weights

    report.require(target)
    weights = load_weights(name)
    real = _real_footage(weights, source, held_out)
    clips = part(*real, frames=frames)
    with progress("score") as update:
        result, scene, drawn = judge(weights, clips, seed=seed, update=update)
        if target is not None:
            drift_result, ages = follow(weights, *parts(*real), _SHORT_DRIFT, seed=seed, update=update)
    result = {"weights": name, **_sources(source, real), **result}
    if target is not None:
        result["drift"] = drift_result
        size = weights.recipe.data.size
        shown = [one for one, _ in zip(clips.clips(1, size), range(2), strict=False)]
        report.picture(
            target,
            drift=drift_result,
            ages=ages,
            clips=(shown, list(draw_clips(weights, 2, clips.length, seed))),
            described=(scene.reference, scene.held_out, drawn),
            step_fps=weights.step_fps,
        )
    print(json.dumps(result)) if as_json else report.score_table(result)


@click.command()
@_judging
@click.option(
    "--frames", type=click.IntRange(1), default=100_000, show_default=True, help="Learned steps to roll."
)
@_showing
@debug
def drift(
    name: str,
    source: str | None,
    held_out: str | None,
    frames: int,
    seed: int,
    target: Path | None,
    as_json: bool,
) -> None:
    """Follow learned lamps over a long roll-out: do pictures, motion and state stay what they are?

    32 lamps are rolled side by side; frames are drawn in windows at 1, 2 and 5 times powers of ten.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import parts
    from mlxlava.rollout.weights import load_weights

    report.require(target)
    weights = load_weights(name)
    footages = _real_footage(weights, source, held_out)
    real = parts(*footages)
    with progress("drift") as update:
        result, ages = follow(weights, *real, frames, seed=seed, update=update)
    result = {"weights": name, **_sources(source, footages), **result}
    if target is not None and ages:
        report.picture(target, drift=result, ages=ages, step_fps=weights.step_fps)
    print(json.dumps(result)) if as_json else report.drift_table(result)
    if result["interrupted_at"] is not None:
        raise KeyboardInterrupt


def _real_footage(
    weights: Weights, source: str | None, held_out: str | None
) -> tuple[Footage, Footage | None]:
    """Footage to judge by: training footage, and held-out footage where there is some.

    The built-in lamp is rendered anew from another seed to be held out.
    """
    from mlxlava.footage.from_settings import prepare_from_settings

    data, seed = weights.recipe.data, weights.recipe.training.seed
    if source is not None:
        return _at_true_speed(weights, source), _at_true_speed(weights, held_out) if held_out else None
    learned = weights.about.get("footage", {}).get("sources", [])
    if learned:
        raise UserError(f"score: these weights learned from {', '.join(learned)}; give it with --footage")
    if held_out is not None:
        raise UserError("score: --held-out needs --footage")
    return prepare_from_settings([], data, seed=seed), prepare_from_settings([], data, seed=seed + 1)


def _sources(source: str | None, real: tuple[Footage, Footage | None]) -> dict[str, Any]:
    """What was scored against: its name, and the hashes of content and settings."""
    return {
        "footage": source or "the built-in lamp",
        "footage_keys": [footage.key for footage in real if footage is not None],
    }


def _at_true_speed(weights: Weights, source: str) -> Footage:
    """Footage whose frames are one learned step apart, at the size of the weights where it can be."""
    from mlxlava.console import say
    from mlxlava.footage.from_settings import prepare_from_settings
    from mlxlava.footage.prepared import open_footage

    data = weights.recipe.data
    if (Path(source) / "footage.json").is_file():
        found = open_footage(source)
        if found.size != data.size:
            hxw = "×".join(map(str, found.size)), "×".join(map(str, data.size))
            say(f"score: {source} is {hxw[0]}; it is resized to the {hxw[1]} of the weights")
    else:
        found = prepare_from_settings([source], data)
        every = max(1, round(found.fps / weights.step_fps))
        if every != found.every_nth:
            say(f"score: every {every}. frame of {source} is taken: {weights.step_fps:g} steps a second")
            found = prepare_from_settings([source], dataclasses.replace(data, every_nth=every))
    if not 0.95 < found.step_fps / weights.step_fps < 1.05:
        say(
            f"score: {source} has {found.step_fps:g} steps a second and the weights {weights.step_fps:g}: "
            "measures of motion compare different speeds"
        )
    return found


@click.command()
@click.option(
    "--only", metavar="PATTERN", default="", help="Checks whose group or name this pattern matches."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables: for a report.")
@debug
def check(only: str, as_json: bool) -> None:
    """Check that this machine computes what it should.

    To be run first on a new machine, above all on a Mac. What the GPU computes is compared with what the CPU
    does. The exit status is 1 if a check fails; what that means stands below its line.
    """
    from mlxlava.check import about, run, table
    from mlxlava.console import table as print_rows

    began, results, rows = time.monotonic(), [], about()
    if not as_json:
        print_rows(rows)
        click.echo(f"\n{table.heading()}")
    for group, found in run(only):
        results += found
        if not as_json:
            click.echo(f"{table.lines(group, found)}\n")
    seconds = time.monotonic() - began
    click.echo(table.as_json(rows, results, seconds) if as_json else table.summary(results, seconds))
    if not all(each.ok for each in results):
        sys.exit(1)
