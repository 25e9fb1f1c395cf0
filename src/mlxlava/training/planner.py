"""Decides how many steps a run makes, so that it is finished when its minutes are over."""

from __future__ import annotations

import math
from pathlib import Path

from mlxlava.backend.ranks import max_over_ranks, rank
from mlxlava.console import say
from mlxlava.training.choices import Choice
from mlxlava.training.folder import change_schedule
from mlxlava.training.memory_guard import MemoryGuard
from mlxlava.training.pace import Pace, describe_length
from mlxlava.training.schedule import d_start
from mlxlava.training.session import TrainingSession

_DECISIONS_PER_RUN = 40  # in the minutes of a run
_MIN_CHANGE_OF_LENGTH = 0.005  # of the steps that are left: less is not worth a decision
_LONG_RUN_STEPS = 100  # steps: of a run that has so many to make, it is said how long that takes


class Planner:
    """Decides on the first rank, for all ranks, from the time that is left and the pace of steps.

    A decision is kept in the run's config, and said if it is the first one of a session.
    """

    def __init__(self, run: Path, guard: MemoryGuard, pace: Pace, session: TrainingSession) -> None:
        self._run, self._guard, self._pace, self._session = run, guard, pace, session
        self._first_step, self._other_seconds = 0, 0.0
        self._last_save = 0.0  # seconds that the checkpoint and the preview at the end will take
        self._decided_at = -math.inf

    def needs_times(self, step: int, lengthen: bool) -> bool:
        """Whether the times of steps must be known before the first step of this session, ``step``."""
        left = self._guard.trainer.total_steps - step
        return left >= _LONG_RUN_STEPS or (self._is_due() and (lengthen or left > 0))

    def begin(self, step: int, lengthen: bool) -> None:
        """Decide before the first step of this session, and say how long the run takes.

        ``lengthen`` says that the run has been given more minutes than it had.
        """
        self._first_step = step
        if not self.needs_times(step, lengthen):
            return
        if self._is_due():
            self._decide(step, lengthen)
        say(f"train: {describe_length(self._pace, self._guard.trainer.schedule, step)}")

    def after_step(self, step: int) -> None:
        """Decide again, if it is time to."""
        if self._guard.trainer.schedule.minutes is None or step >= self._guard.trainer.total_steps:
            return
        if self._is_due():
            self._decide(step, False)

    def note_other_work(self, seconds: float, step: int) -> None:
        """Take note of the time that a checkpoint and a preview took."""
        self._other_seconds += seconds
        self._last_save = max(self._last_save, seconds)
        self._pace.note_other_work(self._other_seconds, step - self._first_step)

    def _is_due(self) -> bool:
        """Whether to decide now. All ranks do it together."""
        minutes = self._guard.trainer.schedule.minutes
        if minutes is None:
            return False
        due = self._session.total_seconds - self._decided_at >= 60 * minutes / _DECISIONS_PER_RUN
        return bool(max_over_ranks(rank() == 0 and due))

    def _decide(self, step: int, lengthen: bool) -> None:
        trainer, pace = self._guard.trainer, self._pace
        schedule = trainer.schedule
        assert schedule.minutes is not None
        self._decided_at = self._session.total_seconds
        left = max(0.0, 60 * schedule.minutes - self._decided_at - self._last_save)
        total = pace.total_steps_within(left, schedule, step)
        total = max_over_ranks(total if rank() == 0 else 0)
        small = _MIN_CHANGE_OF_LENGTH * (schedule.total_steps - step)
        if abs(total - schedule.total_steps) <= small and step > self._first_step:
            return
        if lengthen:
            trainer.schedule = schedule.lengthen(step, total, d_start(trainer.recipe))
        else:
            trainer.schedule = schedule.with_decision(step, total)
        speeds = pace.describe(trainer.schedule, step)
        reason = f"the run is finished after {schedule.minutes:.3g} minutes; {speeds}"
        change_schedule(self._run, trainer.schedule, [Choice("training.steps", total, reason)])
        if step == self._first_step:
            say(f"train: training.steps = {total}: {reason}")
