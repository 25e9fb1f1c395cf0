"""Predicted against measured peaks of the training step, for a dozen and more configurations.

    python -m benchmarks.memory
    MLXLAVA_GPU_PATH=1 python -m benchmarks.memory    # a few of them, with the code for GPUs

Each configuration is stepped in a process of its own (``mx.get_peak_memory``). The last line is JSON. The
exit status is 1 where a prediction of ``mlxlava plan`` is more than 15 % off, or an estimate for GPUs is too
low. What the code for GPUs takes on a CPU is only a hint. There MLX's convolutions write out patches in all
passes. On Metal they do so only for the gradient with respect to the weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from mlxlava.bench.harness import machine_facts
from mlxlava.config import load_recipe, override
from mlxlava.console import print_table
from mlxlava.training.memory_plan import predict_peak_gb

_TOLERANCE = 0.15

# Recipe and settings: sizes, lengths, batches and micro-batches, as a user or `train --memory` changes them.
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
    ("lava", {"data.size": [128, 128], "data.batch_size": 32, "training.micro_batches": 8}),
    ("lava", {"data.size": [256, 256], "data.batch_size": 32, "training.micro_batches": 16}),
    ("lava", {"data.size": [128, 128], "data.batch_size": 32}),
    ("lava", {"data.size": [256, 256], "data.batch_size": 16}),
    ("duralava", {"data.batch_size": 8}),
    ("duralava", {"data.batch_size": 16}),
    ("duralava", {}),
    ("duralava", {"training.micro_batches": 4}),
    ("duralava", {"data.seq_len": 40, "data.batch_size": 8}),
    ("duralava", {"data.seq_len": 200, "data.batch_size": 2}),
    ("duralava", {"data.seq_len": 200, "data.batch_size": 8}),
    ("duralava", {"data.size": [128, 128], "data.batch_size": 4}),
    ("duralava", {"data.size": [128, 128], "data.batch_size": 8, "training.micro_batches": 4}),
    ("duralava", {"training.recompute": True, "data.batch_size": 16}),
    ("duralava", {"data.size": [128, 128], "training.recompute": True, "data.batch_size": 8}),
    ("duralava", {"data.size": [256, 256], "training.micro_batches": 16}),
    ("duralava", {"data.size": [128, 128]}),
    ("duralava", {"data.seq_len": 200}),
]

# With the code for GPUs: MLX's convolutions are slow on a CPU.
ON_GPU_PATH: list[tuple[str, dict[str, Any]]] = [
    ("lava", {"data.batch_size": 8}),
    ("lava", {}),
    ("lava", {"training.micro_batches": 6}),
    ("lava", {"data.size": [128, 128], "data.batch_size": 8}),
    ("duralava", {"data.batch_size": 8}),
    ("duralava", {"data.batch_size": 8, "training.micro_batches": 2}),
]


def measure(name: str, settings: dict[str, Any]) -> float:
    """MLX's peak, GB, of the step that takes most."""
    import numpy as np

    from mlxlava.backend import mx
    from mlxlava.training.step import Trainer

    recipe = override(load_recipe(name), {"loss.d_start": 0.0, **settings})
    data, context = recipe.data, recipe.encoder.context_frames
    count = data.drawn_frames or data.seq_len
    shape = (data.batch_size, context + count, *data.size, 3)
    frames = mx.array(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    times = mx.array(
        np.tile(np.r_[np.arange(context), np.arange(count)].astype(np.int32), (data.batch_size, 1))
    )
    trainer = Trainer(recipe, 10)
    state = trainer.init()
    for _ in range(2):
        state, terms = trainer(state, frames, times, 0)  # step 0 has penalties
        mx.eval(state, terms)
    return mx.get_peak_memory() / 1e9


def main() -> None:
    """Measure each configuration, print a table, and fail if a prediction is too far off."""
    from mlxlava.backend import on_gpu_path

    gpu = on_gpu_path()
    rows, results, worst = [], [], 0.0
    for name, settings in ON_GPU_PATH if gpu else CONFIGURATIONS:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", name, json.dumps(settings)]
        peak = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        predicted = predict_peak_gb(override(load_recipe(name), settings), gpu=gpu)
        off = predicted / peak - 1
        worst = max(worst, -off if gpu else abs(off))
        results.append({"recipe": name, "settings": settings, "peak_gb": peak, "predicted_gb": predicted})
        changed = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in settings.items())
        rows.append((name, changed or "as it is", f"{peak:.3f}", f"{predicted:.3f}", f"{off:+.1%}"))
        print(*rows[-1], file=sys.stderr, flush=True)
    columns = ("recipe", "changed", "measured, GB", "estimated, GB" if gpu else "predicted, GB", "off")
    print_table("Peak of MLX's arrays in a step", columns, rows, left_aligned=2)
    print(json.dumps({"benchmark": "memory", "machine": machine_facts(), "results": results}))
    if worst > (0 if gpu else _TOLERANCE):
        sys.exit(f"memory: a prediction is {worst:.0%} off")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(measure(sys.argv[2], json.loads(sys.argv[3])))
    else:
        main()
