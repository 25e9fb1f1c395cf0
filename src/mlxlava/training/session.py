"""One call of ``train``: its time, and the report of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxlava.backend import mx, peak_memory_gb
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.failures import Diverged
from mlxlava.training.pace import AwakeClock
from mlxlava.training.recovery import ExplosionDetector


class TrainingSession:
    """The time of one call of :func:`train`, and the step that is still to be reported.

    Attributes:
        pending: Number and terms of the last step, if it has not been reported yet.
    """

    def __init__(
        self, run: Path, batch_size: int, step: int, seconds: float, spent: float, clock: AwakeClock
    ) -> None:
        """Begin.

        Args:
            run: Folder of the run.
            batch_size: Clips of a step.
            step: Steps that earlier sessions have made.
            seconds: Time that they took.
            spent: Time that this session took already, before its first step.
            clock: Gives the time.
        """
        self.pending: tuple[int, Mapping[str, mx.array]] | None = None
        self._run, self._batch_size = run, batch_size
        self._first_step, self._seconds_before = step, seconds
        self._clock, self._detector = clock, ExplosionDetector()
        self._began = clock.seconds() - spent
        self._first_began = clock.seconds()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this session began, pauses left out."""
        return self._clock.seconds() - self._began

    @property
    def total_seconds(self) -> float:
        """Seconds of training, including earlier sessions."""
        return self._seconds_before + self.elapsed_seconds

    def begin_steps(self) -> None:
        """The first step begins now. What was done before does not count for the pace."""
        self._first_began = self._clock.seconds()

    @property
    def seconds_of_steps(self) -> float:
        """Seconds since the first step of this session began."""
        return self._clock.seconds() - self._first_began

    def report_pending_step(
        self, listeners: Sequence[Callbacks], total_steps: int, seconds_left: float
    ) -> None:
        """Report the pending step, if there is one. This waits until the device has computed the step.

        Args:
            listeners: Objects to report to.
            total_steps: Training steps of the whole run.
            seconds_left: Time until the last one.

        Raises:
            Diverged: a term of the step is not finite, or has exploded.
        """
        if self.pending is None:
            return
        step, arrays = self.pending
        self.pending = None
        terms = {name: float(array) for name, array in arrays.items()}
        if found := self._detector.find(terms):
            raise Diverged(self._run, found[0], step, found[1])
        pace = (step - self._first_step) / max(self.seconds_of_steps, 1e-9)
        report = StepReport(
            step=step,
            total_steps=total_steps,
            seconds=self.total_seconds,
            session_seconds=self.elapsed_seconds,
            seconds_left=seconds_left,
            clips_per_second=pace * self._batch_size,
            terms=terms,
            peaks_gb=peak_memory_gb(),
        )
        for each in listeners:
            each.on_step(report)
