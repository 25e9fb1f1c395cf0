"""What the measurements of the suite share: how much is measured, jobs, and rows of results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

OWN_NAME = "mlxlava"  # in the rows
MEASURE_COMMAND = ("-m", "mlxlava.bench.measures")  # arguments of the interpreter
FRAME_SIDES = (64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        race_seconds: longest time of a training race, without its warm-up. At least one turn is timed.
        race_turns: most turns of a training race.
        repeats: repeats of every other measurement.
        frames_per_repeat: frames that are played in a repeat.
        memory_ages: numbers of frames after which the memory of a roll-out is measured.
        film_seconds: length of a film.
        scored_frames: number of frames to score.
    """

    race_seconds: float = 80.0
    race_turns: int = 7
    repeats: int = 5
    frames_per_repeat: int = 300
    memory_ages: tuple[int, int] = (1_000, 20_000)
    film_seconds: int = 20
    scored_frames: int = 1024


FULL_EFFORT = Effort()
QUICK_EFFORT = Effort(
    race_seconds=12.0,
    race_turns=3,
    repeats=3,
    frames_per_repeat=60,
    memory_ages=(200, 1_000),
    film_seconds=4,
    scored_frames=256,
)


@dataclasses.dataclass
class SuiteState:
    """State that the measurements of one run of the suite share.

    Attributes:
        effort: how much is measured.
        memory_limit: memory in GB that a measurement may take; None for no limit.
        rates: measured rates: FLOP/s of a matrix product and bytes/s of a copy.
        folder: folder for temporary files.
        interrupted: whether Ctrl-C was pressed.
    """

    effort: Effort
    memory_limit: float | None
    folder: Path
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    interrupted: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A measurement: its name, and a function that measures and returns rows."""

    name: str
    measure: Callable[[SuiteState], list[Row]]
