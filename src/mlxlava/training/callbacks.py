"""Callbacks of a training. The log, the progress bar and TensorBoard are callbacks too.

A subclass of :class:`Callbacks` overrides the functions that it needs::

    class Printer(Callbacks):
        def on_step(self, report):
            print(report.step, report.terms["loss_g"])

    train(run, recipe, footage, callbacks=[Printer()])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Tree = dict[str, Any]  # of arrays; the same as backend.Tree, without importing MLX


@dataclasses.dataclass(frozen=True)
class StepReport:
    """Figures of a training step, for callbacks.

    Attributes:
        step: Training steps made so far, in all sessions.
        total_steps: Training steps of the whole run.
        seconds: Time spent on training so far, in all sessions.
        session_seconds: Time spent in this session.
        seconds_left: Estimated time until this session ends.
        clips_per_second: Clips that were learned from, in a second of this session.
        terms: Every term of the loss and every observed statistic, by name.
        peaks_gb: Peak memory in GB: ``mlx`` for MLX's arrays, ``process`` for the whole process.
    """

    step: int
    total_steps: int
    seconds: float
    session_seconds: float
    seconds_left: float
    clips_per_second: float
    terms: Mapping[str, float]
    peaks_gb: Mapping[str, float]


class Callbacks:
    """Functions that a training calls, in its first process only. The functions of this class do nothing."""

    def on_step(self, report: StepReport) -> None:
        """Called once for each step, in order. The next step may be under way already."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Called after a checkpoint was written to ``folder``."""

    def on_state(self, run: Path, step: int, state: Tree) -> None:
        """Called before the first step, and after each step before the next one begins.

        Reading an array waits until the step is computed. Then the device has nothing to work on for a
        moment, so it should be done seldom.

        Args:
            run: Folder of the run.
            step: Training steps made so far.
            state: Run state (training/step.py). The next step reuses its memory, so arrays that are kept must
                be copied.
        """

    def on_preview(self, step: int, sheet: npt.NDArray[np.uint8], states: npt.NDArray[np.float32]) -> None:
        """Called when a preview was drawn.

        Args:
            step: Training steps made so far.
            sheet: Picture (H, W, 3) with real frames and drawn frames.
            states: Last state of each clip of the step, (B, Z); empty while an upsampling network learns.
        """
