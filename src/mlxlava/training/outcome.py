"""The result of a training."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run, and how the training of it ended.

    Attributes:
        run: folder of the run; ``load`` and ``score`` take it.
        step: number of training steps made in all sessions.
        total_steps: number of training steps of the whole run.
        seconds: time spent on training in all sessions.
        signal: number of the signal that stopped the training, for example of Ctrl-C; None if no signal did.
    """

    run: Path
    step: int
    total_steps: int
    seconds: float
    signal: int | None
