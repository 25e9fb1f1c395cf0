"""The training loop: read a batch, make a step, report it, and now and then save."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mlxlava.awake import keep_awake
from mlxlava.backend import Tree, limit_memory, mx, start_computing
from mlxlava.backend.ranks import max_over_ranks, rank, rank_count
from mlxlava.config import Recipe
from mlxlava.console import progress
from mlxlava.errors import UserError
from mlxlava.failures import DeviceFailed
from mlxlava.footage.dataset import Footage
from mlxlava.integrity import read_progress
from mlxlava.models.array_files import find_non_finite
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.training.callbacks import Callbacks
from mlxlava.training.checkpoint import save_checkpoint
from mlxlava.training.failures import Diverged, explain_failures
from mlxlava.training.folder import change_recipe, open_run, recipe_of_run, schedule_of_run
from mlxlava.training.lock import lock_run, require_run_folder
from mlxlava.training.log import open_log
from mlxlava.training.memory_guard import MemoryGuard
from mlxlava.training.outcome import TrainedRun
from mlxlava.training.pace import AwakeClock, Pace, StepTimer, time_step_kinds
from mlxlava.training.planner import Planner
from mlxlava.training.previews import PreviewWriter, draw_preview
from mlxlava.training.progress import ProgressBar
from mlxlava.training.recovery import Recovery
from mlxlava.training.report import open_report
from mlxlava.training.schedule import Schedule
from mlxlava.training.session import TrainingSession
from mlxlava.training.signals import (
    StateBeforeCompiling,
    StopRequest,
    catch_stop_signals,
    stop_if_compiler_was_interrupted,
    watch_for_lost_processes,
)
from mlxlava.training.tensorboard import open_tensorboard


def train(
    run: Path,
    recipe: Recipe,
    footage: Footage,
    *,
    spent: float = 0.0,
    lengthen: bool = False,
    memory: float | None = None,
    tensorboard: bool = False,
    callbacks: Sequence[Callbacks] = (),
) -> TrainedRun:
    """Train a run from its latest checkpoint to its last step, or until a signal comes.

    If numbers are not finite any more, or if memory runs out, it goes back to the last good checkpoint and on
    in another way (training/recovery.py).

    If the run has minutes, its number of steps is decided here, at first and again and again, so that it is
    finished in time. The weights depend only on the recipe, the footage and those decisions. A run that was
    stopped and resumed gives the same weights as a run that was not stopped, with the same decisions.

    Args:
        run: Folder made by :func:`mlxlava.training.folder.make_run_folder`.
        recipe: The run's recipe.
        footage: The run's footage.
        spent: Seconds of this session that preparing took.
        lengthen: Whether the run was given more minutes than it had.
        memory: GB for MLX's buffers, including its cache; the budget of the device when None.
        tensorboard: Also write events for TensorBoard to ``tensorboard/`` in the run.
        callbacks: Objects that are told of steps, previews and checkpoints.

    Raises:
        DeviceFailed: MLX's device failed, for example for lack of memory.
        Diverged: a loss, a state or a weight is not finite any more, and lower learning rates did not help.
        ProcessLost: another process of the run is gone.
        UserError: a file cannot be read or written.
    """
    limit = limit_memory(memory)
    recovery = Recovery(run)
    with lock_run(run), keep_awake(), catch_stop_signals() as request:
        while True:
            began, before = time.monotonic(), _length_and_time(run)
            try:
                return _train_once(
                    run, recipe, footage, request, spent, lengthen, limit, tensorboard, callbacks
                )
            except (Diverged, DeviceFailed) as error:
                if request.signal is not None:
                    raise
                recipe = recovery.recipe_for_next_try(error, recipe_of_run(run))
            # The next try goes on as a resumed run would. The time of this one counts.
            after = _length_and_time(run)
            spent = max(0.0, before[1] + spent + time.monotonic() - began - after[1])
            lengthen = lengthen and before[0] == after[0]
            gc.collect()  # what the failed step held
            mx.clear_cache()


def _length_and_time(run: Path) -> tuple[Schedule, float]:
    """The schedule of a run, and the seconds that its last checkpoint counts."""
    last, seconds = latest_checkpoint_folder(run) if rank() == 0 else None, 0.0
    with contextlib.suppress(UserError):  # a damaged checkpoint is dealt with where it is opened
        seconds = read_progress(last)["seconds"] if last else 0.0
    return schedule_of_run(run), seconds


def _train_once(
    run: Path,
    recipe: Recipe,
    footage: Footage,
    request: StopRequest,
    spent: float,
    lengthen: bool,
    limit: float,
    tensorboard: bool,
    callbacks: Sequence[Callbacks],
) -> TrainedRun:
    """:func:`train` until something goes wrong. ``limit`` is the memory in GB that MLX may use."""
    clips = clips_of_this_rank(recipe)
    trainer, state, step, seconds = open_run(run, recipe)
    saved = step
    guard = MemoryGuard(recipe, trainer, limit)
    kept = StateBeforeCompiling()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        listeners = _open_listeners(stack, run, step, tensorboard, callbacks)
        batches = _batches(recipe, footage, clips, step, enter(ThreadPoolExecutor(1)))
        watchdog = enter(watch_for_lost_processes(run))
        enter(explain_failures(run, lambda: guard.recipe, lambda: step))
        clock, pace = AwakeClock(), Pace(trainer)
        session = TrainingSession(run, recipe.data.batch_size, step, seconds, spent, clock)
        planner = Planner(run, guard, pace, session)

        def report() -> None:
            schedule = guard.trainer.schedule
            session.report_pending_step(listeners, schedule.total_steps, pace.seconds_left(schedule, step))

        def is_stopped() -> bool:
            return bool(max_over_ranks(request.signal is not None))

        def pass_state_to_listeners() -> None:
            for each in listeners:
                each.on_state(run, step, state)

        with stop_if_compiler_was_interrupted(request):
            if planner.needs_times(step, lengthen):
                batch = _batch_at(recipe, footage, clips, step)
                time_step_kinds(guard, pace, state, batch, step, is_stopped)
            if not is_stopped():
                planner.begin(step, lengthen)
            session.begin_steps()
            timer = StepTimer(clock, pace)
            pass_state_to_listeners()
            while step < guard.trainer.total_steps and not is_stopped():
                timer.begin_step()
                kind = guard.trainer.kind_of_step(step)
                batch = next(batches)
                guard.before_step(step, state, *batch)
                kept.before_step(kind, state)
                state, terms = guard.trainer(state, *batch, step)
                guard.after_step(step, state, terms)
                start_computing(state, terms)
                kept.after_step()
                step += 1
                # The terms of the previous step are read only now, so that the device always has a step to
                # work on.
                report()
                session.pending = (step, terms)
                watchdog.note_step_time(timer.after_step(kind))
                planner.after_step(step)

                split_further = guard.recipe is not recipe
                saves = step % recipe.training.checkpoint_every == 0 or split_further
                shows = step % recipe.training.preview_every == 0 or step == guard.trainer.total_steps
                if saves or shows:
                    report()
                    timer.after_waiting(kind)
                    saving = clock.seconds()
                    require_run_folder(run)
                if saves:
                    _save_checkpoint(run, recipe, state, step, session.total_seconds, listeners)
                    saved = step
                if split_further:
                    # A run that is resumed from this checkpoint keeps the smaller micro-batches.
                    recipe = guard.recipe
                    change_recipe(run, recipe)
                if shows and rank() == 0:
                    sheet = draw_preview(guard.trainer, state, footage)
                    for each in listeners:
                        each.on_preview(step, sheet, np.array(state.get("carried", [])))
                if saves or shows:
                    planner.note_other_work(clock.seconds() - saving, step)
                pass_state_to_listeners()
        state = kept.state_to_save(state)
        report()
        if step != saved:
            _save_checkpoint(run, recipe, state, step, session.total_seconds, listeners)
    total = guard.trainer.total_steps
    return TrainedRun(run, step, total, session.total_seconds, request.signal)


def _open_listeners(
    stack: contextlib.ExitStack, run: Path, step: int, tensorboard: bool, callbacks: Sequence[Callbacks]
) -> list[Callbacks]:
    """Open what is told of the steps. Only the first rank writes files."""
    listeners: list[Callbacks] = []
    if rank() == 0:
        listeners += [stack.enter_context(open_log(run, step)), PreviewWriter(run)]
        listeners.append(stack.enter_context(open_report(run)))
        if tensorboard:
            listeners.append(stack.enter_context(open_tensorboard(run, step)))
        listeners += callbacks
    return [*listeners, ProgressBar(stack.enter_context(progress("train")))]


def clips_of_this_rank(recipe: Recipe) -> slice:
    """Which clips of a batch this process works on.

    Raises:
        UserError: the processes cannot share a batch evenly.
    """
    batch, micro_batches = recipe.data.batch_size, recipe.training.micro_batches
    count, rest = divmod(batch, rank_count())
    if rest or count % micro_batches:
        raise UserError(
            f"train: a batch of {batch} clips cannot be shared by {rank_count()} processes"
            f" of {micro_batches} micro-batches each; give another --batch-size"
        )
    return slice(rank() * count, (rank() + 1) * count)


def _batches(
    recipe: Recipe, footage: Footage, clips: slice, start: int, reader: Executor
) -> Iterator[tuple[mx.array, mx.array]]:
    """Yield frames and times of each batch from step ``start`` on. The next batch is read during a step."""
    data, seed, context = recipe.data, recipe.training.seed, recipe.encoder.context_frames

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        return footage.batch(seed, index, data.batch_size, data.seq_len, data.drawn_frames, context, clips)

    upcoming = reader.submit(read, start)
    while True:
        frames, times = upcoming.result()
        start += 1
        upcoming = reader.submit(read, start)
        yield mx.array(frames), mx.array(times)


def _batch_at(recipe: Recipe, footage: Footage, clips: slice, step: int) -> tuple[mx.array, mx.array]:
    """Frames and times of the batch of a step."""
    with ThreadPoolExecutor(1) as reader:
        return next(_batches(recipe, footage, clips, step, reader))


def _save_checkpoint(
    run: Path, recipe: Recipe, state: Tree, step: int, seconds: float, listeners: Sequence[Callbacks]
) -> None:
    """Write a checkpoint on the first rank. Every rank raises Diverged if a number is not finite."""
    if (name := find_non_finite(state)) is not None:
        raise Diverged(run, name, step)
    if rank() == 0:
        require_run_folder(run)
        kept = recipe.training.keep_checkpoints
        folder = save_checkpoint(run, state, {"step": step, "seconds": seconds}, kept)
        for each in listeners:
            each.on_checkpoint(step, folder)
