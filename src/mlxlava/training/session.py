"""One call of ``train``: its time, and the report of each step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxlava.backend import mx, peak_memory
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.failures import Diverged


class Session:
    """The time of one call of :func:`train`, and the step that is still to be reported.

    Attributes:
        pending: Number and terms of a step that was made and not yet reported.
    """

    def __init__(
        self, run: Path, batch_size: int, step: int, total: int, seconds: float, minutes: float | None
    ) -> None:
        """``step`` and ``seconds`` are those at which the session begins."""
        self.pending: tuple[int, Mapping[str, mx.array]] | None = None
        self._run, self._batch_size, self._total = run, batch_size, total
        self._first_step, self._seconds_before = step, seconds
        self._limit = math.inf if minutes is None else 60 * minutes
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of this session."""
        return time.monotonic() - self._began

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier sessions included."""
        return self._seconds_before + self.elapsed

    @property
    def is_over(self) -> bool:
        """Whether the session has had its minutes."""
        return self.elapsed >= self._limit

    def report(self, listeners: Sequence[Callbacks]) -> None:
        """Tell of the pending step, if there is one; this waits until the device has made it.

        Raises:
            Diverged: one of its terms is not finite.
        """
        if self.pending is None:
            return
        step, arrays = self.pending
        self.pending = None
        terms = {name: float(array) for name, array in arrays.items()}
        for name, value in terms.items():
            if not math.isfinite(value):
                raise Diverged(self._run, name, step)
        pace = (step - self._first_step) / self.elapsed
        report = StepReport(
            step=step,
            total_steps=self._total,
            seconds=self.seconds,
            session_seconds=self.elapsed,
            seconds_left=min((self._total - step) / pace, max(0.0, self._limit - self.elapsed)),
            clips_per_second=pace * self._batch_size,
            terms=terms,
            peaks_gb=peak_memory(),
        )
        for each in listeners:
            each.on_step(report)
