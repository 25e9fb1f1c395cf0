"""Writes scalars, preview pictures and histograms of states for TensorBoard, in ``tensorboard/`` of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.errors import UserError
from mlxlava.training.callbacks import Callbacks, StepReport


class TensorBoard(Callbacks):
    """Writes events with a SummaryWriter of tensorboardX."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def on_step(self, report: StepReport) -> None:
        """Write every term as a scalar, in the group that its name begins with."""
        for name, value in report.terms.items():
            group = name.partition("_")[0] if "_" in name else "penalty"
            self._writer.add_scalar(f"{group}/{name}", value, report.step)

    def on_preview(self, step: int, sheet: npt.NDArray[np.uint8], states: npt.NDArray[np.float32]) -> None:
        """Write the picture and a histogram of the states."""
        self._writer.add_image("preview", sheet, step, dataformats="HWC")
        if states.size:
            self._writer.add_histogram("states", states, step)


def require_tensorboard() -> Any:
    """The class SummaryWriter of tensorboardX.

    Raises:
        UserError: tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError('train: TensorBoard needs its extra; install "mlxlava[tensorboard]"') from error
    return SummaryWriter


@contextlib.contextmanager
def open_tensorboard(run: Path, step: int) -> Iterator[TensorBoard]:
    """Open the events of a run to append to them after ``step``. TensorBoard ignores later events.

    Raises:
        UserError: tensorboardX is not installed.
    """
    writer = require_tensorboard()(str(run / "tensorboard"), purge_step=step + 1 if step else None)
    try:
        yield TensorBoard(writer)
    finally:
        writer.close()
