"""One call of ``train``: its time, and the report of each step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxlava.backend import mx, peak_memory_gb
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.failures import Diverged


class TrainingSession:
    """The time of one call of :func:`train`, and the step that is still to be reported.

    Attributes:
        pending: Number and terms of the last step, if it has not been reported yet.
    """

    def __init__(
        self, run: Path, batch_size: int, step: int, total: int, seconds: float, minutes: float | None
    ) -> None:
        """``step`` and ``seconds`` are the steps and the time of earlier sessions."""
        self.pending: tuple[int, Mapping[str, mx.array]] | None = None
        self._run, self._batch_size, self._total = run, batch_size, total
        self._first_step, self._seconds_before = step, seconds
        self._limit = math.inf if minutes is None else 60 * minutes
        self._began = time.monotonic()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this session began."""
        return time.monotonic() - self._began

    @property
    def total_seconds(self) -> float:
        """Seconds of training, including earlier sessions."""
        return self._seconds_before + self.elapsed_seconds

    @property
    def is_over(self) -> bool:
        """Whether the session has used up its minutes."""
        return self.elapsed_seconds >= self._limit

    def report_pending_step(self, listeners: Sequence[Callbacks]) -> None:
        """Report the pending step, if there is one. This waits until the device has computed the step.

        Raises:
            Diverged: a term of the step is not finite.
        """
        if self.pending is None:
            return
        step, arrays = self.pending
        self.pending = None
        terms = {name: float(array) for name, array in arrays.items()}
        for name, value in terms.items():
            if not math.isfinite(value):
                raise Diverged(self._run, name, step)
        pace = (step - self._first_step) / self.elapsed_seconds
        report = StepReport(
            step=step,
            total_steps=self._total,
            seconds=self.total_seconds,
            session_seconds=self.elapsed_seconds,
            seconds_left=min((self._total - step) / pace, max(0.0, self._limit - self.elapsed_seconds)),
            clips_per_second=pace * self._batch_size,
            terms=terms,
            peaks_gb=peak_memory_gb(),
        )
        for each in listeners:
            each.on_step(report)
