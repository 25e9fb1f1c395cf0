"""The command line: parse, dispatch, print.

MLX, NumPy and the parts that play are imported by the commands that need them, not by ``--help``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxlava import __version__
from mlxlava.config import (
    SCREENS,
    Data,
    Recipe,
    check_size,
    describe_settings,
    load_recipe,
    override,
    parse_settings,
    parse_size,
    recipe_from_dict,
    recipe_to_dict,
)
from mlxlava.errors import UserError
from mlxlava.failures import DeviceFailed, explain

if TYPE_CHECKING:
    from mlxlava.footage.prepared import Footage
    from mlxlava.rollout.weights import Weights
    from mlxlava.training.plan import Row

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic only for the type checker
    name = "N|HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        return value if isinstance(value, tuple) else parse_size(value)


SIZE = _Size()


def _options(*options: Decorator) -> Decorator:
    """Several options as one decorator, in this order in the help."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return add


# Read by main() from the arguments, since it must hold for mistakes in the arguments as well.
_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show where an error came from.")

_cutting = _options(
    click.option("--size", type=SIZE, help="Height and width of a frame; multiples of 16."),
    click.option("--crop", metavar="X,Y,W,H|auto", help="Part of the picture; the centre when not given."),
    click.option("--every-nth", type=click.IntRange(1), help="Keep every n-th frame."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@_debug
def cli() -> None:
    """Learn a lava lamp from footage and play it for ever."""


# --- training ---


@cli.command()
@click.argument("sources", nargs=-1, metavar="[FOOTAGE]...")
@click.option("-o", "run", metavar="RUN", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--recipe", metavar="NAME|FILE", help="What to train and how; lava when not given.")
@_cutting
@click.option("--seq-len", type=click.IntRange(1), help="Learned steps a clip spans.")
@click.option("--batch-size", type=click.IntRange(1), help="Clips a training step looks at.")
@click.option("--init", metavar="WEIGHTS", help="Weights whose G and R to start from.")
@click.option("--steps", type=click.IntRange(1), help="Training steps in all.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after so many minutes.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Seed of weights, clips and states.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting of the recipe; mlxlava info --recipe lava lists them.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="Work on a batch in parts so that MLX's arrays stay below this; see mlxlava plan. "
    "On a GPU the device's memory when not given.",
)
@click.option("--resume", is_flag=True, help="Go on with RUN, or with the latest one in runs/.")
@click.option("--tensorboard", is_flag=True, help="Write scalars, previews and states for TensorBoard too.")
@_debug
def train(
    sources: tuple[str, ...],
    run: Path | None,
    init: str | None,
    minutes: float | None,
    resume: bool,
    tensorboard: bool,
    **changes: Any,
) -> None:
    """Learn a lamp: from videos or folders of images, or the built-in lamp.

    Ctrl-C saves; --resume goes on exactly where it stopped.
    """
    _one_speaks()
    if resume:
        run = run or _latest_run()
        recipe, footage = _resume(run, sources, init, changes)
    else:
        run = run or _next_run(changes["recipe"] or "lava")
        recipe = _recipe(changes)
        from mlxlava.backend.ranks import first_rank_first
        from mlxlava.rollout.weights import load_weights
        from mlxlava.training.folder import start_run

        footage = first_rank_first(lambda: _footage(list(sources), recipe.data, seed=recipe.training.seed))
        paths = [str(Path(source).expanduser().resolve()) for source in sources]
        warm = load_weights(init).arrays if init else None
        start_run(run, recipe, footage, paths, "mlxlava " + shlex.join(sys.argv[1:]), warm)

    from mlxlava.awake import keep_awake
    from mlxlava.backend import has_slow_blas
    from mlxlava.console import clock, say
    from mlxlava.training.failures import Diverged, ProcessLost
    from mlxlava.training.loop import train as train_run

    say(f"train: {run}: {len(footage.frames)} frames, {footage.step_fps:g} learned steps a second")
    if has_slow_blas():
        say('train: this will be many times slower than it could be; install "mlxlava[cpu]" and g++')
    try:
        with keep_awake():
            outcome = train_run(
                run, recipe, footage, minutes=minutes, memory=changes.get("memory"), tensorboard=tensorboard
            )
    except (Diverged, ProcessLost) as error:
        say(f"mlxlava: {error}")
        sys.exit(1)
    say(f"train: {run} is at step {outcome.step} after {clock(outcome.seconds)}")
    say(f"train: play it: mlxlava loop --weights {run}")
    if outcome.signal is not None:
        say(f"train: go on: mlxlava train --resume -o {run}")
        sys.exit(128 + outcome.signal)


def _one_speaks() -> None:
    """Of the processes that mlx.launch has started, let the first tell what goes on."""
    if "MLX_RANK" in os.environ:
        from mlxlava.backend.ranks import rank
        from mlxlava.console import mute

        if rank():
            mute()


def _recipe(changes: dict[str, Any]) -> Recipe:
    """The recipe with what the options and ``--set`` change in it."""
    settings = parse_settings(changes["settings"])
    for name in ("size", "crop", "every_nth", "seq_len", "batch_size"):
        if changes[name] is not None:
            settings[f"data.{name}"] = changes[name]
    if changes["seed"] is not None:
        settings["training.seed"] = changes["seed"]
    if changes["steps"] is not None:
        settings |= {"training.steps": changes["steps"], "training.epochs": 0}
    recipe = override(load_recipe(changes["recipe"] or "lava"), settings)
    return _fit(recipe, changes["memory"])


def _fit(recipe: Recipe, gigabytes: float | None) -> Recipe:
    """The recipe, worked on in parts so that a step fits, and says what was chosen.

    Without ``gigabytes`` it fits into what the GPU has for MLX, the smallest one of all processes; what is
    trained on a CPU, or fits as it is, stays as it is then.
    """
    from mlxlava.backend import memory_budget, on_gpu_path
    from mlxlava.backend.ranks import any_rank, ranks
    from mlxlava.console import say
    from mlxlava.training.plan import fit_into, predict

    gpu, asked = on_gpu_path(), gigabytes is not None
    if gigabytes is None:
        if not gpu:
            return recipe
        gigabytes = -any_rank(-int(1000 * memory_budget())) / 1000
    try:
        fitted = fit_into(recipe, gigabytes, ranks(), gpu=gpu)
    except UserError as error:
        raise (
            error if asked else UserError(f"{error}; or try it all the same, with a larger --memory")
        ) from error
    if asked or fitted != recipe:
        training = fitted.training
        again = ", frames recomputed" if training.recompute else ""
        say(
            f"train: a step in {training.micro_batches} part{'s' * (training.micro_batches > 1)}{again}: "
            f"about {predict(fitted, ranks(), gpu=gpu):.2f} of {gigabytes:.3g} GB" + ", estimated" * gpu
        )
    return fitted


def _footage(sources: list[str], data: Data, *, seed: int = 0, folder: Path | None = None) -> Footage:
    """Prepared footage: of the sources, or of the built-in lamp when there are none.

    It goes into the cache when there is no ``folder``.
    """
    from mlxlava.console import progress, say
    from mlxlava.footage.prepared import prepare, prepare_lamp

    with progress("footage") as update:

        def show(done: int, total: int | None) -> None:
            update(done, total, f"{done} frames")

        if sources:
            return prepare(
                sources,
                folder,
                size=data.size,
                crop=data.crop,
                every_nth=data.every_nth,
                on_progress=show,
                on_warning=say,
            )
        return prepare_lamp(
            None,
            size=data.size,
            minutes=data.lamp_minutes,
            fps=data.lamp_fps,
            every_nth=data.every_nth,
            seed=seed,
            theme=data.lamp_theme,
            on_progress=show,
        )


def _resume(
    run: Path, sources: Sequence[str], init: str | None, changes: dict[str, Any]
) -> tuple[Recipe, Footage]:
    """The recipe and footage of a run; only its number of steps and the parts of a batch may change."""
    from mlxlava.backend.ranks import first_rank_first, rank
    from mlxlava.console import say
    from mlxlava.paths import read_json
    from mlxlava.training.folder import write_config

    steps, memory = changes.pop("steps"), changes["memory"]
    changes = {name: value for name, value in changes.items() if name != "memory"}
    given = [name for name, value in changes.items() if value not in (None, ())]
    if given or sources or init:
        what = "footage" if sources else "--" + (given[0] if given else "init").replace("_", "-")
        raise UserError(f"train: --resume goes on as the run began, so {what} cannot be given")
    if not (run / "config.json").is_file():
        raise UserError(f"train: {run} is no run; leave --resume out to begin one")
    config = read_json(run / "config.json", "run")
    try:
        recipe = recipe_from_dict(config["recipe"])
        about = config["footage"]
        paths, key = list(about["sources"]), about["key"]
    except (KeyError, TypeError) as error:
        raise UserError(f"train: {run}/config.json lacks {error}; it is no run") from error
    if steps is not None:
        # D joins in at the step at which it would have.
        alone = min(1.0, recipe.loss.alone * config["total_steps"] / steps)
        recipe = override(recipe, {"loss.alone": alone})
        config |= {"total_steps": steps}
        if recipe.training.schedule != "constant":
            say(f"train: the learning rate falls to 0 at step {steps} from now on")
    recipe = _fit(recipe, memory)
    if rank() == 0 and (steps is not None or recipe_to_dict(recipe) != config["recipe"]):
        write_config(run, {**config, "recipe": recipe_to_dict(recipe)})
    footage = first_rank_first(lambda: _footage(paths, recipe.data, seed=recipe.training.seed))
    if footage.key != key:
        raise UserError(
            f"train: the footage of {run} has changed since it began; begin a new run (--init {run})"
        )
    return recipe, footage


def _next_run(recipe: str) -> Path:
    """runs/lava-001 or the first such folder that is free."""
    name = Path(recipe).stem
    return next(path for n in range(1, 10**6) if not (path := Path("runs") / f"{name}-{n:03d}").exists())


def _latest_run() -> Path:
    """The run in runs/ that was written to last."""
    logs = sorted(Path("runs").glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise UserError("train: there is no run in runs/ to resume; give its folder with -o")
    return logs[-1].parent


# --- playing ---


_playing = _options(
    click.option("-o", "target", metavar="FILE|-", help="File to write, or - for a pipe on stdout."),
    click.option(
        "--format", metavar="NAME", help="mp4, webm, gif, apng, webp, y4m, raw; by the ending of FILE."
    ),
    click.option("--forever", is_flag=True, help="Until Ctrl-C, or until nobody reads any more."),
    click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Play time; 10 for a file."),
    click.option("--frames", type=click.IntRange(1), help="Play time in frames."),
    click.option(
        "--fps",
        type=click.FloatRange(0, 1000, min_open=True),
        help="Frames a second; 30 when not given, in a window the display's rate.",
    ),
    click.option(
        "--speed",
        type=click.FloatRange(0, min_open=True),
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
)


@cli.command()
@click.option(
    "--weights", "name", metavar="NAME|PATH", help="Shipped weights, a folder of weights, or a run."
)
@click.option(
    "--from",
    "picture",
    metavar="PICTURE",
    type=click.Path(path_type=Path),
    help="Go on from the state whose frame is nearest to a picture.",
)
@click.option("--seamless", is_flag=True, help="A clip whose end meets its start, to be played in a loop.")
@_playing
@_debug
def loop(name: str | None, seed: int, picture: Path | None, seamless: bool, **options: Any) -> None:
    """Play a learned lamp: in a window, in the terminal, on a web page, or into a file or a pipe."""
    from mlxlava.playback.player import Programme, run
    from mlxlava.rollout.library import LearnedLamps

    lamps = LearnedLamps(name, picture)
    programme = Programme(**options).settle()
    if seamless:
        lamps.period = programme.period
    run(lamps, programme, lamps.names[0], seed)


@cli.command()
@click.option("--size", type=SIZE, default="256", help="Height and width; 256 when not given.")
@click.option("--theme", metavar="NAME", default="classic", show_default=True, help="Colours.")
@_playing
@_debug
def lamp(size: tuple[int, int], theme: str, seed: int, **options: Any) -> None:
    """Play the built-in lamp, which is drawn by rule: what train learns when no footage is given."""
    from mlxlava.footage.lamp import Themes
    from mlxlava.playback.player import Programme, run

    run(Themes(size), Programme(name="lamp.mp4", **options).settle(), theme, seed)


# --- files and figures ---


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="FOOTAGE...")
@click.option(
    "-o", "folder", required=True, metavar="DATA", type=click.Path(path_type=Path), help="Folder to write."
)
@_cutting
@_debug
def footage(sources: tuple[str, ...], folder: Path, **changes: Any) -> None:
    """Prepare footage for training: videos or folders of images.

    train does the same by itself; DATA can be given to it in place of FOOTAGE.
    """
    from mlxlava.console import say

    data = Data(**{name: value for name, value in changes.items() if value is not None})
    check_size(data.size)
    prepared = _footage(list(sources), data, folder=folder)
    height, width = prepared.frames.shape[1:3]
    say(
        f"footage: {prepared.path}: {len(prepared.frames)} frames of {height}×{width}, "
        f"{prepared.step_fps:g} a second; train: mlxlava train {shlex.quote(str(folder))}"
    )


@cli.command()
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), metavar="GB", help="This machine's when not given."
)
@click.option(
    "--recipe", metavar="NAME|FILE", default="lava", show_default=True, help="What to train and how."
)
@click.option("--size", "sizes", type=SIZE, multiple=True, help="Sizes to plan for; 64, 128 and 256.")
@click.option("--seq-len", "lengths", type=click.IntRange(1), multiple=True, help="Lengths; 20 and 200.")
@click.option("--batch-size", "batches", type=click.IntRange(1), multiple=True, help="Batches; 8, 16 and 32.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting of the recipe.")
@_debug
def plan(
    memory: float | None,
    recipe: str,
    sizes: tuple[tuple[int, int], ...],
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    settings: tuple[str, ...],
) -> None:
    """Show what fits: the memory of a training step by size, sequence and batch.

    MLX's arrays at their peak, predicted; the process takes some 20 % more. What is too large is worked on
    in parts (train --memory GB chooses the same): it takes no longer and learns the same. For GPUs all of it
    is an estimate, which train checks in its first steps.
    """
    from mlxlava.backend import memory_budget, on_gpu_path
    from mlxlava.console import print_table
    from mlxlava.training.plan import table

    gigabytes = memory_budget() if memory is None else memory
    rows = table(
        override(load_recipe(recipe), parse_settings(settings)),
        gigabytes,
        sizes or ((64, 64), (128, 128), (256, 256)),
        lengths or (20, 200),
        batches or (8, 16, 32),
        gpu=on_gpu_path(),
    )
    columns = ("size", "sequence", "batch", "peak, GB", "to fit", "peak then, GB", "headroom, GB")
    title = f"{recipe}, {gigabytes:.1f} GB for MLX"
    if on_gpu_path():
        title += "; estimated, as nothing was measured on a GPU"
    print_table(title, columns, [_planned(row, gigabytes) for row in rows])


def _planned(row: Row, gigabytes: float) -> tuple[str, ...]:
    """A line of the plan's table."""
    data = row.recipe.data
    head = ("×".join(map(str, data.size)), str(data.seq_len), str(data.batch_size), f"{row.peak:.2f}")
    if row.fitted is None or row.fitted_peak is None:
        return (*head, "does not fit", "", "")
    training = row.fitted.training
    parts = "as it is" if training.micro_batches == 1 else f"{training.micro_batches} parts"
    again = ", recomputed" if training.recompute else ""
    return (*head, parts + again, f"{row.fitted_peak:.2f}", f"{gigabytes - row.fitted_peak:.1f}")


@cli.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "-o", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write."
)
@click.option("--half", is_flag=True, help="Store float16: half the size.")
@click.option(
    "--score",
    "scored",
    metavar="FILE.json",
    type=click.Path(path_type=Path),
    help="What score --json printed of the run, for the card.",
)
@_debug
def export(run: Path, folder: Path, half: bool, scored: Path | None) -> None:
    """Write the weights of a run, with a model card and a sample picture."""
    from mlxlava.console import say
    from mlxlava.paths import read_json
    from mlxlava.rollout.export import export as export_run

    score = None if scored is None else read_json(scored, "export")
    weights = export_run(run, folder, half=half, score=score)
    if "pace" not in weights.about:
        say("export: the run's footage is gone, so the lamp's pace is as learned")
    say(f"export: {folder}: step {weights.about['steps']}; play it: mlxlava loop --weights {folder}")


@cli.command()
@click.argument("name", required=False, metavar="[WEIGHTS|RUN]")
@click.option("--recipe", metavar="NAME|FILE", help="Show every setting of a recipe, for train --set.")
@_debug
def info(name: str | None, recipe: str | None) -> None:
    """Show the machine, what weights were learned from and how, or a recipe's settings."""
    from mlxlava.console import table

    if recipe is not None:
        if name is not None:
            raise UserError("info: give weights or --recipe, not both")
        settings = describe_settings(load_recipe(recipe))
        rows = {f"{key} = {json.dumps(value)}": text for key, value, text in settings}
    elif name is None:
        from mlxlava.backend import describe
        from mlxlava.paths import cache_folder
        from mlxlava.rollout.weights import shipped_weights

        rows = {"mlxlava": __version__, "python": platform.python_version(), "system": platform.platform()}
        rows |= describe()
        rows |= {"cache": str(cache_folder())}
        rows |= {"weights": ", ".join(path.name for path in shipped_weights()) or "none"}
    else:
        from mlxlava.rollout.export import describe_weights
        from mlxlava.rollout.weights import load_weights

        rows = describe_weights(load_weights(name))
    table(rows)


# --- judging ---


_SHORT_DRIFT = 5_000  # learned steps of the drift curve in the picture of a score

_judging = _options(
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
_showing = _options(
    click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Which lamps."
    ),
    click.option(
        "-o", "target", metavar="FILE.png", type=click.Path(path_type=Path), help="Picture to write."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables."),
)


@cli.command()
@_judging
@click.option(
    "--frames", type=click.IntRange(1), default=16384, show_default=True, help="Frames to draw, at most."
)
@_showing
@_debug
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


@cli.command()
@_judging
@click.option(
    "--frames", type=click.IntRange(1), default=100_000, show_default=True, help="Learned steps to roll."
)
@_showing
@_debug
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
    data, seed = weights.recipe.data, weights.recipe.training.seed
    if source is not None:
        return _at_true_speed(weights, source), _at_true_speed(weights, held_out) if held_out else None
    learned = weights.about.get("footage", {}).get("sources", [])
    if learned:
        raise UserError(f"score: these weights learned from {', '.join(learned)}; give it with --footage")
    if held_out is not None:
        raise UserError("score: --held-out needs --footage")
    return _footage([], data, seed=seed), _footage([], data, seed=seed + 1)


def _sources(source: str | None, real: tuple[Footage, Footage | None]) -> dict[str, Any]:
    """What was scored against: its name, and the hashes of content and settings."""
    return {
        "footage": source or "the built-in lamp",
        "footage_keys": [footage.key for footage in real if footage is not None],
    }


def _at_true_speed(weights: Weights, source: str) -> Footage:
    """Footage whose frames are one learned step apart, at the size of the weights where it can be."""
    from mlxlava.console import say
    from mlxlava.footage.prepared import open_footage

    data = weights.recipe.data
    if (Path(source) / "footage.json").is_file():
        found = open_footage(source)
        if found.size != data.size:
            hxw = "×".join(map(str, found.size)), "×".join(map(str, data.size))
            say(f"score: {source} is {hxw[0]}; it is resized to the {hxw[1]} of the weights")
    else:
        found = _footage([source], data)
        every = max(1, round(found.fps / weights.step_fps))
        if every != found.every_nth:
            say(f"score: every {every}. frame of {source} is taken: {weights.step_fps:g} steps a second")
            found = _footage([source], dataclasses.replace(data, every_nth=every))
    if not 0.95 < found.step_fps / weights.step_fps < 1.05:
        say(
            f"score: {source} has {found.step_fps:g} steps a second and the weights {weights.step_fps:g}: "
            "measures of motion compare different speeds"
        )
    return found


@cli.command()
@click.option("--quick", is_flag=True, help="Fewer repeats, training at 64×64 alone: under two minutes.")
@click.option("--only", metavar="PATTERN", default="", help="Measurements whose name this pattern matches.")
@click.option(
    "--save", is_flag=True, help="Write the result, and a chart, to the benchmarks' results folder."
)
@click.option(
    "--memory",
    metavar="GB",
    type=click.FloatRange(0, min_open=True),
    help="Skip what would take more; the machine's memory when not given.",
)
@_debug
def bench(quick: bool, only: str, save: bool, memory: float | None) -> None:
    """Measure training, playing, preparing and scoring on this machine.

    Where PyTorch is installed, the same training steps run in it as well.
    """
    sys.path.insert(0, str(_benchmarks()))
    importlib.import_module("suite").main(quick=quick, only=only, save=save, memory=memory)


@cli.command()
@click.option(
    "--only", metavar="PATTERN", default="", help="Checks whose group or name this pattern matches."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables: for a report.")
@_debug
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


def _benchmarks() -> Path:
    """The benchmark suite: beside this file in a wheel, at the top of a checkout."""
    folders = (Path(__file__).parents[1] / "benchmarks", Path(__file__).parents[3] / "benchmarks")
    found = next((folder for folder in folders if (folder / "suite.py").is_file()), None)
    if found is None:
        raise UserError("bench: the benchmark suite is not installed; install the wheel or a checkout")
    return found


# --- errors ---


def main() -> None:
    """Run the command line.

    A user's mistake is one line on stderr and exit status 2, a failure of MLX's device one line and 1.
    """
    try:
        cli.main(standalone_mode=False)
    except (UserError, click.ClickException, KeyboardInterrupt, click.Abort) as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, (KeyboardInterrupt, click.Abort)):
            sys.exit(130)
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"mlxlava: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except (DeviceFailed, RuntimeError, MemoryError) as error:
        failure = explain(error)
        if "--debug" in sys.argv or (failure is None and not isinstance(error, DeviceFailed)):
            raise
        text = f"{failure.what}; {failure.advice}" if failure else str(error)
        print(f"mlxlava: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(1)
