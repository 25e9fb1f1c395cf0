"""What settings that save memory cost: time of a step and peak of MLX's arrays, beside the recipe as it is.

    MLXLAVA_CORES=1 python -m benchmarks.settings

`lava` with 8 clips and gradient penalties; ratios are medians of turns. Peaks are of processes of their own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from mlxlava.backend import mx
from mlxlava.config import load_recipe, override
from mlxlava.console import print_table
from mlxlava.training.step import Trainer

_TURNS = 5
_CLIPS = {"data.batch_size": 8, "loss.d_start": 0.0}
_SETTINGS: list[dict[str, Any]] = [
    {},
    {"training.micro_batches": 4},
    {"training.recompute": True},
    {"training.precision": "float16"},
    {"training.precision": "bfloat16"},
]


class _Candidate:
    """The recipe with settings of its own, and the times of its steps."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        recipe = override(load_recipe("lava"), {**_CLIPS, **settings})
        count = recipe.encoder.context_frames + recipe.data.drawn_frames
        rng = np.random.default_rng(0)
        self.frames = mx.array(rng.integers(0, 256, (8, count, *recipe.data.size, 3), dtype=np.uint8))
        self.times = mx.array(np.tile(np.arange(count, dtype=np.int32), (8, 1)))
        self.trainer = Trainer(recipe, 10)
        self.state = self.trainer.init()
        self.seconds: list[float] = []

    def step(self) -> None:
        began = time.perf_counter()
        self.state, terms = self.trainer(self.state, self.frames, self.times, 0)  # step 0 has penalties
        mx.eval(self.state, terms)
        self.seconds.append(time.perf_counter() - began)

    def peak(self) -> float:
        command = [
            *(sys.executable, "-m", "benchmarks.memory", "--child"),
            "lava",
            json.dumps({**_CLIPS, **self.settings}),
        ]
        return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Print a line for each setting."""
    candidates = [_Candidate(settings) for settings in _SETTINGS]
    for turn in range(_TURNS + 1):
        for candidate in candidates:
            candidate.step()
        print(f"turn {turn} of {_TURNS}", file=sys.stderr, flush=True)
    plain, rows = candidates[0].seconds[1:], []
    for candidate in candidates:
        ratio = statistics.median(a / b for a, b in zip(candidate.seconds[1:], plain, strict=True))
        setting = ", ".join(f"{key}={value}" for key, value in candidate.settings.items()) or "as it is"
        rows.append((setting, f"{ratio:.2f} ×", f"{candidate.peak():.2f}"))
    print_table(
        "Settings that save memory", ("setting", "time of a step", "arrays, GB"), rows, left_aligned=1
    )


if __name__ == "__main__":
    main()
