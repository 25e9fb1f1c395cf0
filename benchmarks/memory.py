"""Predicted against measured peaks of the training step, for a dozen and more configurations.

    python benchmarks/memory.py [--fit]

Each configuration is stepped in a process of its own (``mx.get_peak_memory``). The last line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from mlxlava.config import load_recipe, override

# Recipe and settings: sizes, lengths, batches, parts, all that a user or `train --memory` changes.
CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("lava", {}),
    ("lava", {"data.batch_size": 8}),
    ("lava", {"data.batch_size": 32}),
    ("lava", {"data.seq_len": 200}),
    ("lava", {"training.micro_batches": 2}),
    ("lava", {"training.micro_batches": 6}),
    ("lava", {"training.micro_batches": 3, "training.recompute": True}),
    ("lava", {"data.drawn_frames": 6, "data.batch_size": 12}),
    ("lava", {"data.size": [128, 64], "data.batch_size": 12}),
    ("lava", {"data.size": [128, 128], "training.micro_batches": 4}),
    ("lava", {"data.size": [128, 128], "data.batch_size": 8}),
    ("lava", {"data.size": [256, 256], "data.batch_size": 8, "training.micro_batches": 4}),
    ("duralava", {"data.batch_size": 8}),
    ("duralava", {"data.batch_size": 16}),
    ("duralava", {}),
    ("duralava", {"training.micro_batches": 4}),
    ("duralava", {"data.seq_len": 40, "data.batch_size": 8}),
    ("duralava", {"data.size": [128, 128], "data.batch_size": 4}),
    ("duralava", {"data.size": [128, 128], "data.batch_size": 8, "training.micro_batches": 4}),
    ("duralava", {"training.recompute": True, "data.batch_size": 16}),
]


def measure(name: str, settings: dict[str, Any]) -> float:
    """MLX's peak, GB, of the step that takes most."""
    import numpy as np

    from mlxlava.backend import mx
    from mlxlava.step import Trainer

    recipe = override(load_recipe(name), {"loss.alone": 0.0, **settings})
    data, views = recipe.data, recipe.encoder.views
    count = data.drawn_frames or data.seq_len
    shape = (data.batch_size, views + count, *data.size, 3)
    frames = mx.array(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    times = mx.array(
        np.tile(np.r_[np.arange(views), np.arange(count)].astype(np.int32), (data.batch_size, 1))
    )
    trainer = Trainer(recipe, 10)
    state = trainer.init()
    for _ in range(2):
        state, terms = trainer(state, frames, times, 0)  # step 0 has penalties
        mx.eval(state, terms)
    return mx.get_peak_memory() / 1e9


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        for name, settings in CONFIGURATIONS:
            out = subprocess.run(
                [sys.executable, __file__, "--child", name, json.dumps(settings)],
                capture_output=True,
                text=True,
            )
            print(
                json.dumps(
                    [
                        name,
                        settings,
                        json.loads(out.stdout.splitlines()[-1]) if out.returncode == 0 else out.stderr[-300:],
                    ]
                ),
                flush=True,
            )
