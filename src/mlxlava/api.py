"""The public functions: load a lamp and play it, train one, score one.

    lamp = mlxlava.load("lava")
    for frame in lamp.frames(fps=30): ...

    trained = mlxlava.train("lamp.mov", minutes=70)
    print(mlxlava.score(trained.run, "lamp.mov")["headline"])

The commands of the same names call these.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.rollout.from_picture import find_state, start_picture
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.seamless import Loop
from mlxlava.rollout.weights import Weights, find_weights, load_weights

if TYPE_CHECKING:
    from mlxlava.backend import Tree
    from mlxlava.footage.dataset import Footage
    from mlxlava.training.callbacks import Callbacks
    from mlxlava.training.run import Run

Frame = npt.NDArray[np.uint8]
State = npt.NDArray[np.float32]
Sources = str | Path | Sequence[str | Path] | None

_PICTURE_DRIFT = 5_000  # learned steps of the drift curve in the picture of a score


# --- playing ---


class LavaLamp:
    """A learned lamp.

    Attributes:
        weights: what was learned, with its recipe and its card.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.weights.recipe.data.size

    @property
    def step_fps(self) -> float:
        """Learned steps in a second of true time; any frame rate is drawn from states in between."""
        return self.weights.step_fps

    def frames(
        self,
        fps: float = 30.0,
        seed: int = 0,
        speed: float = 1.0,
        seconds: float | None = None,
        start: State | None = None,
        seamless: bool = False,
    ) -> Iterator[Frame]:
        """Frames one after the other, as fast as they are asked for.

        Args:
            fps: frames a second of play time.
            seed: which lamp; the same seed gives the same one.
            speed: how much faster than true time the lamp moves.
            seconds: play time; for ever when None.
            start: state (Z,) to begin with, from ``from_picture``.
            seamless: end where it begins, so that the clip can be repeated; needs ``seconds``.

        Yields:
            uint8 (H, W, 3).

        Raises:
            UserError: fps, speed or seconds are not positive and finite, the start is no state of this lamp,
                or a loop cannot be made.
        """
        _require_positive("frames: fps", fps)
        _require_positive("frames: speed", speed)
        if seconds is not None:
            _require_positive("frames: seconds", seconds, "; leave it out to play for ever")
        _require_integer("frames: seed", seed)
        if start is not None:
            start = _as_state(start, self.weights.recipe.generator.state_size)
        count = None if seconds is None else max(1, math.ceil(seconds * fps - 1e-6))
        times = (tick / fps * speed for tick in (itertools.count() if count is None else range(count)))
        if not seamless:
            return (frame for _, frame in Rollout(self.weights, seed, start=start).play(times))
        if count is None:
            raise UserError("frames: a seamless clip has an end; give seconds")
        loop = Loop(self.weights, count / fps * speed, seed, start)
        return (frame for _, frame in loop.play(times))

    def from_picture(self, picture: Frame | str | Path, seed: int = 0) -> State:
        """The state whose frame is nearest to a picture: ``frames(start=…)`` goes on from there.

        Args:
            picture: a file, or uint8 (H, W, 3) of any size; its middle is taken.
            seed: of the random states that are tried first.

        Returns:
            float32 (Z,).

        Raises:
            UserError: the picture is not such an array.
        """
        _require_picture(picture)
        _require_integer("from_picture: seed", seed)
        return find_state(self.weights, start_picture(picture, self.size), seed).state


def load(name_or_path: str | Path | None = None) -> LavaLamp:
    """Load a lamp: shipped weights by name, or a weights or run folder by path.

    Args:
        name_or_path: ``lava`` when None.

    Raises:
        UserError: there are none, or they are damaged.
    """
    return LavaLamp(load_weights(name_or_path))


# --- training ---


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run, and how the training of it ended.

    Attributes:
        run: folder of the run; ``load`` and ``score`` take it.
        step: training steps made, in all.
        seconds: time spent on training, in all.
        signal: number of the signal that ended it, for example of Ctrl-C; None if none did.
    """

    run: Path
    step: int
    seconds: float
    signal: int | None


def train(
    footage: Sources = None,
    recipe: str | Path | Recipe = "lava",
    *,
    run: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    memory: float | None = None,
    init: str | Path | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callbacks] = (),
    command: str = "mlxlava.train(…)",
) -> TrainedRun:
    """Learn a lamp from footage.

    Progress is shown on stderr. The first Ctrl-C, SIGTERM or SIGHUP saves the run and ends the training;
    ``resume`` goes on exactly where it stopped.

    Args:
        footage: videos, folders of images, or one folder of prepared footage; the built-in lamp when None.
        recipe: name of a recipe, a TOML or JSON file, or a recipe.
        run: folder to make; the first free one of ``runs/RECIPE-001`` … when None.
        settings: settings of the recipe to change, for example ``{"data.size": (128, 128)}``.
        steps: training steps in all; the recipe's when None.
        minutes: stop after so many minutes.
        memory: GB (10⁹ bytes) for MLX's arrays: batches are split so that a step fits. If None, a GPU's
            memory is the limit.
        init: weights whose generator and state step to start from. If their frames are 2, 4, 8 … times
            smaller, the lamp grows from them: it has their networks and new layers; of a run it also has the
            encoder and the discriminator (settings: ``growth``).
        tensorboard: also write events for TensorBoard.
        callbacks: told of steps, previews and checkpoints.
        command: what began the run, for its config and its model card.

    Raises:
        UserError: a setting is wrong, footage cannot be read, a step does not fit into memory, or the folder
            holds something else.
        DeviceFailed: MLX's device failed, for example for lack of memory (``mlxlava.failures``).
        Diverged: a loss or a weight is not finite any more (``mlxlava.training.failures``).
        ProcessLost: another process that trained this run is gone (``mlxlava.training.failures``).
    """
    from mlxlava.training.run import begin, next_folder

    _require_training_options("train", steps, minutes, memory, tensorboard)
    _mute_other_processes()
    changes = dict(settings or {})
    if steps is not None:
        changes |= {"training.steps": steps, "training.epochs": 0}
    base = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    warm = None
    if init is not None:
        base, warm = _start_from(init, base, override(base, changes).data.size)
    chosen = override(base, changes)
    name = recipe.name if isinstance(recipe, Recipe) else Path(recipe).stem
    ready = begin(
        next_folder(name) if run is None else Path(run),
        chosen,
        _as_sources(footage),
        warm=warm,
        memory=memory,
        command=command,
    )
    return _train(ready, minutes, memory, tensorboard, callbacks)


def resume(
    run: str | Path | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    memory: float | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callbacks] = (),
) -> TrainedRun:
    """Go on with a run that was stopped. It learns what it would have learned without the stop.

    Args:
        run: its folder; the latest one in ``runs/`` when None.
        steps: training steps in all from now on; as many as before when None.
        minutes, memory, tensorboard, callbacks: as of ``train``.

    Raises:
        UserError: there is no such run, its footage has changed, or another process trains it. The run stays
            as it was.
        DeviceFailed, Diverged, ProcessLost: as ``train``.
    """
    from mlxlava.training.run import latest_folder
    from mlxlava.training.run import resume as take_up

    _require_training_options("resume", steps, minutes, memory, tensorboard)
    _mute_other_processes()
    ready = take_up(latest_folder() if run is None else Path(run), steps=steps, memory=memory)
    return _train(ready, minutes, memory, tensorboard, callbacks)


def _start_from(init: str | Path, recipe: Recipe, size: tuple[int, int]) -> tuple[Recipe, Tree]:
    """The recipe and the arrays of a lamp that starts from other weights, or that grows from smaller ones."""
    from mlxlava.training.growth import grown_recipe, learned_arrays

    weights = load_weights(init)
    if size == weights.recipe.data.size or size[0] <= weights.recipe.data.size[0]:
        return recipe, weights.arrays
    learned = learned_arrays(find_weights(init), weights.arrays)
    return grown_recipe(recipe, weights.recipe, learned, size), learned


def _train(
    ready: Run,
    minutes: float | None,
    memory: float | None,
    tensorboard: bool,
    callbacks: Sequence[Callbacks],
) -> TrainedRun:
    """Train a run that is ready, while the machine stays awake."""
    from mlxlava.awake import keep_awake
    from mlxlava.backend import has_slow_blas
    from mlxlava.console import say
    from mlxlava.training.loop import train as train_run

    folder, footage = ready.folder, ready.footage
    say(f"train: {folder}: {len(footage.frames)} frames, {footage.step_fps:g} learned steps a second")
    if has_slow_blas():
        say('train: this will be many times slower than it could be; install "mlxlava[cpu]" and g++')
    with keep_awake():
        outcome = train_run(
            folder,
            ready.recipe,
            footage,
            minutes=minutes,
            memory=memory,
            tensorboard=tensorboard,
            callbacks=callbacks,
        )
    return TrainedRun(folder, outcome.step, outcome.seconds, outcome.signal)


def _mute_other_processes() -> None:
    """Of the processes that mlx.launch has started, let only the first one report on stderr."""
    if "MLX_RANK" in os.environ:
        from mlxlava.backend.ranks import rank
        from mlxlava.console import mute

        if rank():
            mute()


# --- judging ---


def score(
    weights: str | Path | None = None,
    footage: str | Path | None = None,
    *,
    held_out: str | Path | None = None,
    frames: int = 16_384,
    seed: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Score a learned lamp against real footage: pictures, motion, memory. Needs the extra ``score``.

    Progress is shown on stderr.

    Args:
        weights: shipped weights by name, or a weights or run folder; ``lava`` when None.
        footage: what it was trained on; may be None if that was the built-in lamp.
        held_out: footage of the same lamp that it was not trained on. If None, every second of eight blocks
            of the footage is held out; the built-in lamp is rendered again from another seed.
        frames: frames to draw, at most.
        seed: which lamps.
        picture: PNG file to write: measures, clips, and the drift over 5,000 learned steps.

    Returns:
        What ``mlxlava score --json`` prints. ``headline`` has two numbers, image and motion: how many times
        farther from real footage the lamp is than real footage is from itself; 1 is best. ``measures`` has
        every measure with its interval and its floor. With a picture, ``drift`` has what ``drift`` returns.

    Raises:
        UserError: weights or footage cannot be read, the footage is too short or nothing moves in it, or
            fewer than 64 frames are asked for.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import split_for_drift
    from mlxlava.evaluation.real_footage import open_real_footage
    from mlxlava.evaluation.score import draw_clips, split_footage
    from mlxlava.evaluation.score import score as judge

    target = None if picture is None else Path(picture)
    report.require(target)
    learned = load_weights(weights)
    real = open_real_footage(learned, footage, held_out)
    clips = split_footage(*real, frames=frames)
    with progress("score") as update:
        result, reference, drawn = judge(learned, clips, seed=seed, update=update)
        result = {**_names(weights, footage, real), **result}
        if target is None:
            return result
        result["drift"], ages = follow(
            learned, *split_for_drift(*real), _PICTURE_DRIFT, seed=seed, update=update
        )
    size = learned.recipe.data.size
    shown = [one for one, _ in zip(clips.clips(1, size), range(2), strict=False)]
    report.picture(
        target,
        drift=result["drift"],
        ages=ages,
        clips=(shown, list(draw_clips(learned, 2, clips.length, seed))),
        features=(reference.reference, reference.held_out, drawn),
        step_fps=learned.step_fps,
    )
    return result


def drift(
    weights: str | Path | None = None,
    footage: str | Path | None = None,
    *,
    held_out: str | Path | None = None,
    frames: int = 100_000,
    seed: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Follow a learned lamp over a long roll-out: do pictures, motion and state stay what they are?

    Needs the extra ``score``. Progress is shown on stderr. Ctrl-C ends it early: ``interrupted_at``
    says when.

    Args:
        weights, footage, held_out, seed: as of ``score``.
        frames: learned steps to roll, at least 1000.
        picture: PNG file to write.

    Returns:
        What ``mlxlava drift --json`` prints.

    Raises:
        UserError: as ``score``, or fewer than 1000 frames are asked for.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import split_for_drift
    from mlxlava.evaluation.real_footage import open_real_footage

    target = None if picture is None else Path(picture)
    report.require(target)
    learned = load_weights(weights)
    real = open_real_footage(learned, footage, held_out)
    windows, long = split_for_drift(*real)
    with progress("drift") as update:
        result, ages = follow(learned, windows, long, frames, seed=seed, update=update)
    result = {**_names(weights, footage, real), **result}
    if target is not None and ages:
        report.picture(target, drift=result, ages=ages, step_fps=learned.step_fps)
    return result


def _names(
    weights: str | Path | None, footage: str | Path | None, real: tuple[Footage, Footage | None]
) -> dict[str, Any]:
    """What was judged, and by what: names, and the hashes of the footage's content and settings."""
    return {
        "weights": str(weights or "lava"),
        "footage": str(footage or "the built-in lamp"),
        "footage_keys": [each.key for each in real if each is not None],
    }


# --- wrong arguments ---


def _require_positive(what: str, value: object, advice: str = "") -> None:
    if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise UserError(f"{what} must be positive and finite, not {value!r}{advice}")


def _require_integer(what: str, value: object) -> None:
    if not isinstance(value, numbers.Integral):
        raise UserError(f"{what} must be an integer, not {value!r}")


def _require_training_options(
    what: str, steps: object, minutes: object, memory: object, tensorboard: bool
) -> None:
    """Refuse limits that are not positive, and TensorBoard where it is not installed."""
    if steps is not None:
        _require_integer(f"{what}: steps", steps)
        _require_positive(f"{what}: steps", steps)
    if minutes is not None:
        _require_positive(f"{what}: minutes", minutes, "; leave it out for no limit")
    if memory is not None:
        _require_positive(f"{what}: memory", memory)
    if tensorboard:
        from mlxlava.training.tensorboard import require_tensorboard

        require_tensorboard()


def _require_picture(picture: object) -> None:
    """Refuse what is no RGB picture of bytes, and say how to make one of it."""
    wanted = "from_picture: the picture must be a NumPy array, uint8 (H, W, 3)"
    if not isinstance(picture, np.ndarray):
        raise UserError(
            f"{wanted}, not a {type(picture).__name__}; "
            "read a file with numpy.asarray(PIL.Image.open(path).convert('RGB'))"
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UserError(f"{wanted}, not of shape {picture.shape}; convert('RGB') of Pillow makes one")
    if picture.dtype != np.uint8:
        raise UserError(f"{wanted}, not {picture.dtype}; scale it to 0 … 255 and take astype('uint8')")


def _as_state(start: object, size: int) -> State:
    """A start as float32 (Z,)."""
    wanted = f"frames: start must be a state of {size} numbers, as from_picture gives"
    try:
        state = np.asarray(start, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"{wanted}, not a {type(start).__name__}") from None
    if state.shape != (size,):
        raise UserError(f"{wanted}, not of shape {state.shape}")
    if not np.isfinite(state).all():
        raise UserError("frames: start holds numbers that are not finite")
    return state


def _as_sources(footage: Sources) -> list[str | Path]:
    if footage is None:
        return []
    return [footage] if isinstance(footage, (str, Path)) else list(footage)
