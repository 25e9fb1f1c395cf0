"""Train a lamp, continue a run, and predict what fits into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxlava.api.arguments import require_integer, require_positive
from mlxlava.api.training_start import TrainingStart, find_training_start
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.paths import is_run
from mlxlava.rollout.weights import load_weights, training_history
from mlxlava.training.memory_plan import PlanRow, plan_rows
from mlxlava.training.outcome import TrainedRun

if TYPE_CHECKING:
    from mlxlava.training.callbacks import Callbacks
    from mlxlava.training.run import Run

Sources = str | Path | Sequence[str | Path] | None


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

    For footage of yours, these settings are chosen unless you give them: the region, the shape of a frame,
    the time that a learned step spans, the length of clips, and what helps where there is little footage.
    Each choice is said with its reason, and is in the run's config. The built-in lamp keeps the recipe's.

    Progress is shown on stderr. The first Ctrl-C, SIGTERM or SIGHUP saves the run and ends the training;
    ``resume`` continues exactly where it stopped.

    Args:
        footage: videos, folders of images, or one folder of prepared footage, whose size is taken if
            ``settings`` name none; the built-in lamp when None.
        recipe: name of a recipe, a TOML or JSON file, or a recipe.
        run: folder to make; when None, the first of ``runs/RECIPE-001``, ``runs/RECIPE-002`` … that is free.
        settings: settings of the recipe to change, for example ``{"data.size": (128, 128)}``.
        steps: number of training steps; the number of the recipe when None. Of a recipe in two stages, these
            are the steps of the second one.
        minutes: the run is finished after so many minutes, preparing included: its number of steps follows
            from the speed of steps, which is measured again and again. Time asleep does not count.
        memory: GB (10⁹ bytes) for MLX's arrays. Batches are split so that a step fits. If None, the memory of
            a GPU is the limit.
        init: weights whose generator and state step to start from. If their frames are 2, 4, 8 … times
            smaller, the lamp grows: its networks stay as they are, and an upsampling network learns to
            enlarge its pictures. The settings of ``growth`` say more.
        tensorboard: whether to write events for TensorBoard.
        callbacks: objects that are told of steps, previews and checkpoints.
        command: command that began the run, for its config and its model card.

    Raises:
        UserError: a setting is wrong, footage cannot be read, a step does not fit into memory, or the folder
            holds something else.
        DeviceFailed: MLX's device failed, for example for lack of memory (``mlxlava.failures``).
        Diverged: a loss or a weight is not finite any more (``mlxlava.training.failures``).
        ProcessLost: another process that trained this run is gone (``mlxlava.training.failures``).
    """
    from mlxlava.training.folder import require_free_folder

    began = time.monotonic()
    _require_training_options("train", steps, minutes, memory, tensorboard)
    _mute_other_processes()
    options: dict[str, Any] = {"memory": memory, "tensorboard": tensorboard, "callbacks": callbacks}
    start = find_training_start(recipe, _as_sources(footage), settings, steps=steps, init=init)
    name = recipe.name if isinstance(recipe, Recipe) else Path(recipe).stem
    with contextlib.ExitStack() as stack:
        folder = _lock_new_folder(stack, None if run is None else Path(run), name)
        require_free_folder(folder)
        return _begin_and_train(folder, start, init is None, minutes, command, began, options)


def _lock_new_folder(stack: contextlib.ExitStack, run: Path | None, name: str) -> Path:
    """Lock the folder of a new run; when ``run`` is None, the first of ``runs/name-001`` … that is free."""
    from mlxlava.backend.ranks import max_over_ranks, rank_count
    from mlxlava.training.lock import RunIsLocked, lock_new_run
    from mlxlava.training.run import next_run_folder

    while True:
        folder = next_run_folder(name) if run is None else run
        max_over_ranks(0)  # each process has found the same folder before the first one makes it
        try:
            stack.enter_context(lock_new_run(folder))
            return folder
        except RunIsLocked:  # by a process that has made the same folder at the same moment
            if run is not None or rank_count() > 1:
                raise


def _begin_and_train(
    folder: Path,
    start: TrainingStart,
    may_grow: bool,
    minutes: float | None,
    command: str,
    began: float,
    options: Mapping[str, Any],
) -> TrainedRun:
    """Begin a run in a folder that is locked, and train it.

    ``may_grow`` is whether the recipe may have two stages. ``began`` is when this session did
    (time.monotonic()). ``options`` are those of ``training.loop.train``. Everything else: see :func:`train`.
    """
    from mlxlava.training.choices import Choice, choose_before_preparing, say_choices
    from mlxlava.training.loop import train as train_run
    from mlxlava.training.run import absolute_paths, begin_run
    from mlxlava.training.stages import SecondStagePlan, begin_first_stage

    memory = options["memory"]
    chosen, choices = start.recipe, list[Choice]()
    if start.sources and not start.is_prepared:
        chosen, choices = choose_before_preparing(chosen, start.sources, start.free)
        say_choices(choices)
    if may_grow and chosen.growth.start_recipe:
        plan = SecondStagePlan(
            chosen, absolute_paths(start.sources), memory, command, sorted(start.free), choices, minutes
        )
        small = begin_first_stage(folder, plan)
        return _train_in_two_stages(folder, small, began, False, options)
    ready = begin_run(
        folder,
        chosen,
        start.sources,
        initial_arrays=start.initial_arrays,
        memory=memory,
        command=command,
        free=start.free,
        choices=choices,
        minutes=minutes,
        initial_history=start.initial_history,
    )
    spent = time.monotonic() - began
    return train_run(ready.folder, ready.recipe, ready.footage, spent=spent, **options)


def resume(
    run: str | Path | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    memory: float | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callbacks] = (),
) -> TrainedRun:
    """Continue a run that was stopped. The result is the same as without the stop.

    Args:
        run: folder of the run; the latest run in ``runs/`` when None.
        steps: new number of training steps of the whole run; the old number when None.
        minutes: the run is finished after so many minutes from now; when None, after those that it was given.
        memory, tensorboard, callbacks: the same as in :func:`train`.

    Raises:
        UserError: there is no such run, its footage has changed, or another process trains it. The run stays
            as it was.
        DeviceFailed, Diverged, ProcessLost: for the same reasons as in :func:`train`.
    """
    from mlxlava.training.lock import lock_run
    from mlxlava.training.run import latest_run_folder

    began = time.monotonic()
    _require_training_options("resume", steps, minutes, memory, tensorboard)
    _mute_other_processes()
    options: dict[str, Any] = {"memory": memory, "tensorboard": tensorboard, "callbacks": callbacks}
    folder = latest_run_folder() if run is None else Path(run)
    with lock_run(folder) if is_run(folder) else contextlib.nullcontext():
        return _resume_and_train(folder, steps, minutes, began, options)


def _resume_and_train(
    folder: Path, steps: int | None, minutes: float | None, began: float, options: Mapping[str, Any]
) -> TrainedRun:
    """Continue a run whose folder is locked. Arguments: see :func:`_begin_and_train` and :func:`resume`."""
    from mlxlava.training.loop import train as train_run
    from mlxlava.training.run import resume_run
    from mlxlava.training.stages import is_in_first_stage, resume_first_stage

    memory = options["memory"]
    if is_in_first_stage(folder):
        if steps is not None:
            raise UserError("resume: a lamp that has not grown yet keeps its steps; leave --steps out")
        small = resume_first_stage(folder, memory, minutes)
        return _train_in_two_stages(folder, small, began, minutes is not None, options)
    ready = resume_run(folder, steps=steps, minutes=minutes, memory=memory)
    spent = time.monotonic() - began
    longer = minutes is not None
    return train_run(ready.folder, ready.recipe, ready.footage, spent=spent, lengthen=longer, **options)


def _train_in_two_stages(
    folder: Path, small: Run, began: float, lengthen: bool, options: Mapping[str, Any]
) -> TrainedRun:
    """Train the smaller lamp to its end, and then the lamp that grows from it.

    ``began`` is when this session did (time.monotonic()). ``options`` are those of ``training.loop.train``.
    """
    from mlxlava.training.loop import train as train_run
    from mlxlava.training.stages import begin_second_stage

    spent = time.monotonic() - began
    done = train_run(small.folder, small.recipe, small.footage, spent=spent, lengthen=lengthen, **options)
    if done.step < done.total_steps or done.signal is not None:
        return dataclasses.replace(done, run=folder)
    began = time.monotonic()
    weights = load_weights(small.folder)
    large = begin_second_stage(
        folder, weights.recipe, weights.arrays, options["memory"], training_history(weights)
    )
    return train_run(large.folder, large.recipe, large.footage, spent=time.monotonic() - began, **options)


def _mute_other_processes() -> None:
    """If mlx.launch has started several processes, let only the first one print messages."""
    if "MLX_RANK" in os.environ:
        from mlxlava.backend.ranks import rank
        from mlxlava.console import mute

        if rank():
            mute()


def plan(
    recipe: str | Path | Recipe = "lava",
    *,
    sizes: Sequence[tuple[int, int]] = ((64, 64), (128, 128), (256, 256)),
    seq_lens: Sequence[int] = (20, 200),
    batch_sizes: Sequence[int] = (8, 16, 32),
    settings: Mapping[str, Any] | None = None,
    memory: float | None = None,
) -> list[PlanRow]:
    """Predict the memory of a training step by size, sequence length and batch size.

    On a GPU the predictions are estimates. ``train`` checks them in its first steps.

    Args:
        recipe: name of a recipe, a TOML or JSON file, or a recipe.
        sizes: sizes of frames (height, width).
        seq_lens: lengths of clips in learned steps.
        batch_sizes: numbers of clips of a training step.
        settings: other settings of the recipe to change, for example ``{"training.precision": "float16"}``.
        memory: GB (10⁹ bytes) for MLX's arrays; the memory of this machine when None.

    Returns:
        A row for each size, sequence length and batch size, in that order. ``peak`` is the predicted peak of
        MLX's arrays in GB; the process takes some 20 % more. ``fitted`` is the recipe with micro-batches that
        fit into the memory, and ``fitted_peak`` its peak. Both are None if nothing fits.

    Raises:
        UserError: a setting is wrong, or ``memory`` is not positive.
    """
    from mlxlava.backend import memory_budget_gb, on_gpu_path

    if memory is not None:
        require_positive("plan: memory", memory)
    chosen = override(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), dict(settings or {}))
    gigabytes = memory_budget_gb() if memory is None else memory
    return plan_rows(chosen, gigabytes, sizes, seq_lens, batch_sizes, gpu=on_gpu_path())


def _require_training_options(
    what: str, steps: object, minutes: object, memory: object, tensorboard: bool
) -> None:
    """Raise UserError for limits that are not positive, and for TensorBoard if it is not installed."""
    if steps is not None and minutes is not None:
        raise UserError(f"{what}: give steps or minutes, not both; steps follow from minutes")
    if steps is not None:
        require_integer(f"{what}: steps", steps)
        require_positive(f"{what}: steps", steps)
    if minutes is not None:
        require_positive(f"{what}: minutes", minutes, "; leave it out for no limit")
    if memory is not None:
        require_positive(f"{what}: memory", memory)
    if tensorboard:
        from mlxlava.training.tensorboard import require_tensorboard

        require_tensorboard()


def _as_sources(footage: Sources) -> list[str | Path]:
    if footage is None:
        return []
    return [footage] if isinstance(footage, (str, Path)) else list(footage)
