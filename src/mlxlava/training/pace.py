"""How long training steps take: the time that is left, and how many steps fit into it.

Steps without the discriminator are several times as fast as steps with it, and gradient penalties make every
few steps slower. So each kind of step has its own time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlxlava.backend import Tree, mx
from mlxlava.console import format_duration, say
from mlxlava.training.memory_guard import MemoryGuard
from mlxlava.training.schedule import Schedule, d_start
from mlxlava.training.step import StepKind
from mlxlava.training.trainer import AnyTrainer

# A gap this long, and so many times as long as a step, is not work: the machine slept, or the process was
# stopped. (time.monotonic() stands still while a Mac or a Linux machine sleeps, but not in all cases, and not
# while a process is stopped.)
_MIN_PAUSE_SECONDS, _MIN_PAUSE_STEPS = 120.0, 20.0
_STEP_TIME_DECAY = 0.9  # of the running mean of the time of a step
_STEP_TIME_RATIO_WITH_D = 3.0  # how many times slower steps with D are, as long as none was made


class AwakeClock:
    """Seconds in which this process has worked: pauses do not count."""

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        """``now`` is time.monotonic when None."""
        self._now, self._paused = now or time.monotonic, 0.0

    def seconds(self) -> float:
        """Seconds since some time, without pauses."""
        return self._now() - self._paused

    def leave_out_pause(self, seconds: float, usual: float) -> float:
        """Leave out what a step took too long, if it can only have been a pause.

        Args:
            seconds: what the step has just taken.
            usual: what such a step takes.

        Returns:
            Seconds that were left out; mostly 0.
        """
        if seconds <= max(_MIN_PAUSE_SECONDS, _MIN_PAUSE_STEPS * usual):
            return 0.0
        self._paused += seconds - usual
        return seconds - usual


class Pace:
    """Measured times of the kinds of steps of a trainer."""

    def __init__(self, trainer: AnyTrainer) -> None:
        self._recipe, self._d_start = trainer.recipe, d_start(trainer.recipe)
        self._seconds: dict[StepKind, float] = {}
        self._other = 0.0  # seconds a step for checkpoints and previews

    def note(self, kind: StepKind, seconds: float) -> None:
        """Take note of how long a step took."""
        before = self._seconds.get(kind)
        self._seconds[kind] = (
            seconds if before is None else _STEP_TIME_DECAY * before + (1 - _STEP_TIME_DECAY) * seconds
        )

    def note_other_work(self, seconds: float, steps: int) -> None:
        """Take note of all the time of this session that was spent on other things than its ``steps``."""
        self._other = seconds / max(steps, 1)

    def step_seconds(self, kind: StepKind) -> float:
        """Seconds that a step of a kind takes, measured or guessed from other kinds."""
        if kind in self._seconds:
            return self._seconds[kind]
        if not self._seconds:
            return 0.0
        known, seconds = max(self._seconds.items())
        return seconds * (_STEP_TIME_RATIO_WITH_D if kind.adversarial > known.adversarial else 1.0)

    def mean_step_seconds_with_d(self) -> float:
        """Seconds of a step with D on average, other work included."""
        every = self._recipe.loss.penalty_every
        penalised = self._recipe.loss.kind == "relativistic" and self._recipe.loss.gamma > 0
        mean = self.step_seconds(StepKind(True, False)) if not penalised or every > 1 else 0.0
        if penalised:
            mean += (self.step_seconds(StepKind(True, True)) - mean) / every
        return mean + self._other

    def step_seconds_without_d(self) -> float:
        """Seconds of a step without D, other work included."""
        return self.step_seconds(StepKind(False, False)) + self._other

    def seconds_left(self, schedule: Schedule, step: int) -> float:
        """Seconds until the run's last step, from ``step`` on."""
        joins = min(schedule.first_step_at(self._d_start), schedule.total_steps)
        alone = max(0, joins - step)
        together = max(0, schedule.total_steps - max(step, joins))
        return alone * self.step_seconds_without_d() + together * self.mean_step_seconds_with_d()

    def describe(self, schedule: Schedule, step: int) -> str:
        """How long the steps from ``step`` on take each, in a clause."""
        joins = min(schedule.first_step_at(self._d_start), schedule.total_steps)
        if step >= joins:
            each = (
                self.mean_step_seconds_with_d()
                if joins < schedule.total_steps
                else self.step_seconds_without_d()
            )
            return f"{each:.2g} s a step"
        alone = f"{self.step_seconds_without_d():.2g} s a step"
        if joins == schedule.total_steps:
            return alone
        return (
            f"{alone}, {self.mean_step_seconds_with_d():.2g} s from step {joins} on, with the discriminator"
        )

    def total_steps_within(self, seconds: float, schedule: Schedule, step: int) -> int:
        """Number of training steps in all with which the run ends in ``seconds``, from ``step`` on."""
        joins, progress = schedule.first_step_at(self._d_start), schedule.progress(step)
        if step >= min(joins, schedule.total_steps):
            left = seconds / max(
                self.mean_step_seconds_with_d() if self._d_start < 1 else self.step_seconds_without_d(), 1e-9
            )
        else:  # a share of the steps without D, which are faster
            share = (self._d_start - progress) / (1 - progress)
            mean = share * self.step_seconds_without_d() + (1 - share) * self.mean_step_seconds_with_d()
            left = seconds / max(mean, 1e-9)
        return step + max(1, int(left))


class StepTimer:
    """Times the steps of the training loop for a :class:`Pace`.

    The device works on a step while the loop prepares the next one. So the time between two steps belongs to
    the kind of the earlier step.
    """

    def __init__(self, clock: AwakeClock, pace: Pace) -> None:
        self._clock, self._pace = clock, pace
        self._began = 0.0
        self._previous: StepKind | None = None

    def begin_step(self) -> None:
        """Called before a step."""
        self._began = self._clock.seconds()

    def after_step(self, kind: StepKind) -> float:
        """Called when a step of a kind was queued. Returns the seconds that it took, without pauses."""
        took = self._clock.seconds() - self._began
        if pause := self._clock.leave_out_pause(took, self._pace.step_seconds(self._previous or kind)):
            say(f"train: {format_duration(pause)} passed without work; they do not count")
            took -= pause
        if self._previous is not None:
            self._pace.note(self._previous, took)
        self._previous = kind
        return took

    def after_waiting(self, kind: StepKind) -> None:
        """Called when the last step, of a kind, was waited for."""
        self._pace.note(kind, self._clock.seconds() - self._began)
        self._previous = None


def time_step_kinds(
    guard: MemoryGuard,
    pace: Pace,
    state: Tree,
    batch: tuple[mx.array, mx.array],
    step: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Time the kinds of steps that are still to come, without training. It takes about six steps.

    Each kind is compiled here, which counts as no step's time, and then timed once. ``is_stopped`` says
    whether the training is to stop, so that no more has to be compiled; all processes must agree on it.
    """
    trainer = guard.trainer
    joined = step >= min(trainer.first_step_with_d, trainer.total_steps)
    kinds = [kind for kind in trainer.step_kinds if kind.adversarial or not joined] or trainer.step_kinds
    for kind in kinds:
        if is_stopped():
            return
        guard.before_step(step, state, *batch, kind)
        new, terms = guard.trainer(state, *batch, step, kind=kind)
        mx.eval(new, terms)
        guard.after_step(step, new, terms, kind)
        began = time.monotonic()
        new, terms = guard.trainer(state, *batch, step, kind=kind)
        mx.eval(new, terms)
        pace.note(kind, time.monotonic() - began)
        del new, terms


def describe_length(pace: Pace, schedule: Schedule, step: int) -> str:
    """How long a run takes from ``step`` on, in a line."""
    left = format_duration(pace.seconds_left(schedule, step))
    return f"{schedule.total_steps - step} steps take about {left} ({pace.describe(schedule, step)})"
