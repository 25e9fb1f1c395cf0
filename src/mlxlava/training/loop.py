"""The training loop: read a batch, make a step, report it, and now and then save."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mlxlava.awake import keep_awake
from mlxlava.backend import limit_memory, mx, start_computing
from mlxlava.backend.ranks import max_over_ranks, rank
from mlxlava.config import Recipe
from mlxlava.console import progress
from mlxlava.errors import UserError
from mlxlava.failures import DeviceFailed
from mlxlava.footage.dataset import Footage
from mlxlava.integrity import read_progress
from mlxlava.models.array_files import find_non_finite
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.training.batches import clips_of_this_rank, read_batch, read_batches
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
    OtherProcessesTimeout,
    StateBeforeCompiling,
    StopRequest,
    catch_stop_signals,
    stop_if_compiler_was_interrupted,
    watch_for_lost_processes,
)
from mlxlava.training.step import StepKind
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
                return _Attempt(run, recipe, footage, request, spent, limit).train(
                    lengthen, tensorboard, callbacks
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


class _Attempt:
    """:func:`train` from the latest checkpoint, until the run or this session ends, or something goes wrong.

    Args:
        run: Folder of the run.
        recipe: The run's recipe.
        footage: The run's footage.
        request: Says when to stop.
        spent: Seconds of this session that have passed before.
        limit: Memory in GB that MLX may use.
    """

    def __init__(
        self, run: Path, recipe: Recipe, footage: Footage, request: StopRequest, spent: float, limit: float
    ) -> None:
        self._run, self._recipe, self._footage, self._request = run, recipe, footage, request
        self._clips = clips_of_this_rank(recipe)
        trainer, self._state, self._step, seconds = open_run(run, recipe)
        self._saved_step = self._step
        self._guard = MemoryGuard(recipe, trainer, limit)
        self._before_compiling = StateBeforeCompiling()
        self._clock, self._pace = AwakeClock(), Pace(trainer)
        self._timer = StepTimer(self._clock, self._pace)
        self._session = TrainingSession(run, recipe.data.batch_size, self._step, seconds, spent, self._clock)
        self._planner = Planner(run, self._guard, self._pace, self._session)
        self._listeners: list[Callbacks] = []

    def train(self, lengthen: bool, tensorboard: bool, callbacks: Sequence[Callbacks]) -> TrainedRun:
        """Make steps. Arguments: see :func:`train`."""
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            self._listeners = _open_listeners(stack, self._run, self._step, tensorboard, callbacks)
            reader = enter(ThreadPoolExecutor(1))
            batches = read_batches(self._recipe, self._footage, self._clips, self._step, reader)
            watchdog = enter(watch_for_lost_processes(self._run))
            enter(explain_failures(self._run, lambda: self._guard.recipe, lambda: self._step))
            with stop_if_compiler_was_interrupted(self._request):
                self._begin(lengthen)
                while self._step < self._guard.trainer.total_steps and not self._is_stopped():
                    self._make_step(batches, watchdog)
            self._state = self._before_compiling.state_to_save(self._state)
            self._report_pending_step()
            if self._step != self._saved_step:
                self._save()
        total, seconds = self._guard.trainer.total_steps, self._session.total_seconds
        return TrainedRun(self._run, self._step, total, seconds, self._request.signal)

    def _begin(self, lengthen: bool) -> None:
        """Decide on the number of steps, if that depends on their times, and begin the first step."""
        if self._planner.needs_times(self._step, lengthen):
            batch = read_batch(self._recipe, self._footage, self._clips, self._step)
            time_step_kinds(self._guard, self._pace, self._state, batch, self._step, self._is_stopped)
        if not self._is_stopped():
            self._planner.begin(self._step, lengthen)
        self._session.begin_steps()
        self._pass_state_to_listeners()

    def _make_step(
        self, batches: Iterator[tuple[mx.array, mx.array]], watchdog: OtherProcessesTimeout
    ) -> None:
        """Make a step and report the one before; save and draw a preview, if these are due."""
        self._timer.begin_step()
        kind = self._guard.trainer.kind_of_step(self._step)
        batch = next(batches)
        self._guard.before_step(self._step, self._state, *batch)
        self._before_compiling.before_step(kind, self._state)
        self._state, terms = self._guard.trainer(self._state, *batch, self._step)
        self._guard.after_step(self._step, self._state, terms)
        start_computing(self._state, terms)
        self._before_compiling.after_step()
        self._step += 1
        # The terms of the previous step are read only now, so that the device always has a step to work on.
        self._report_pending_step()
        self._session.pending = (self._step, terms)
        watchdog.note_step_time(self._timer.after_step(kind))
        self._planner.after_step(self._step)
        self._save_and_preview_if_due(kind)
        self._pass_state_to_listeners()

    def _save_and_preview_if_due(self, kind: StepKind) -> None:
        """Write a checkpoint and draw a preview after a step of a kind, if they are due."""
        step, training = self._step, self._recipe.training
        split_further = self._guard.recipe is not self._recipe
        saves = step % training.checkpoint_every == 0 or split_further
        previews = step % training.preview_every == 0 or step == self._guard.trainer.total_steps
        if not (saves or previews):
            return
        self._report_pending_step()
        self._timer.after_waiting(kind)
        began = self._clock.seconds()
        require_run_folder(self._run)
        if saves:
            self._save()
        if split_further:
            # A run that is resumed from this checkpoint keeps the smaller micro-batches.
            self._recipe = self._guard.recipe
            change_recipe(self._run, self._recipe)
        if previews and rank() == 0:
            sheet = draw_preview(self._guard.trainer, self._state, self._footage)
            for each in self._listeners:
                each.on_preview(step, sheet, np.array(self._state.get("carried", [])))
        self._planner.note_other_work(self._clock.seconds() - began, step)

    def _report_pending_step(self) -> None:
        schedule = self._guard.trainer.schedule
        seconds_left = self._pace.seconds_left(schedule, self._step)
        self._session.report_pending_step(self._listeners, schedule.total_steps, seconds_left)

    def _is_stopped(self) -> bool:
        """Whether a signal came, to any process. All processes ask together."""
        return bool(max_over_ranks(self._request.signal is not None))

    def _pass_state_to_listeners(self) -> None:
        for each in self._listeners:
            each.on_state(self._run, self._step, self._state)

    def _save(self) -> None:
        """Write a checkpoint on the first rank. Every rank raises Diverged if a number is not finite."""
        if (name := find_non_finite(self._state)) is not None:
            raise Diverged(self._run, name, self._step)
        if rank() == 0:
            require_run_folder(self._run)
            progress_made = {"step": self._step, "seconds": self._session.total_seconds}
            kept = self._recipe.training.keep_checkpoints
            folder = save_checkpoint(self._run, self._state, progress_made, kept)
            for each in self._listeners:
                each.on_checkpoint(self._step, folder)
        self._saved_step = self._step


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
