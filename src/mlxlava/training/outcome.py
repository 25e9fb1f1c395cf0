"""What a training returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run, and how the training of it ended.

    Attributes:
        run: folder of the run; ``load`` and ``score`` take it.
        step: training steps made, in all.
        seconds: time spent on training, in all.
        signal: number of the signal that ended it, for example of Ctrl-C; None if none did.
    """

    run: Path
    step: int
    seconds: float
    signal: int | None
