"""What a training step launches on a GPU: kernels of its compiled graph, counted and not computed.

    python -m benchmarks.kernels

Fusing does not depend on the device, so this needs no GPU. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from mlxlava.backend import mx, operations_of_graph, use_gpu_path
from mlxlava.config import load_recipe, override
from mlxlava.console import print_table
from mlxlava.training.step import Trainer

_CASES: list[tuple[str, dict[str, Any]]] = [
    ("lava", {}),
    ("lava", {"data.seq_len": 64}),
    ("lava", {"data.seq_len": 200}),
    ("lava", {"data.size": [128, 128]}),
    ("lava", {"training.precision": "float16"}),
    ("duralava", {}),
    ("duralava", {"data.seq_len": 200}),
]
_KINDS = {(False, False): "without D", (True, False): "with D", (True, True): "with penalties"}


def count(name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of step of a recipe."""
    recipe = override(load_recipe(name), settings)
    data = recipe.data
    frames = recipe.encoder.context_frames + (data.drawn_frames or data.seq_len)
    trainer = Trainer(recipe, 10)
    state = trainer.init()
    clips = mx.zeros((data.batch_size, frames, *data.size, 3), mx.uint8)
    times = mx.zeros((data.batch_size, frames), mx.int32)
    rows = []
    for kind in trainer.step_kinds:
        found = operations_of_graph(trainer(state, clips, times, 0, kind=kind))
        fused = [kernel for kernel in found if kernel.is_fused]
        names = Counter(kernel.name for kernel in found)
        rows.append(
            {
                "recipe": name,
                "settings": settings,
                "kind": _KINDS[kind],
                "kernels": sum(kernel.is_launched for kernel in found),
                "fused": len(fused),
                "distinct_fused": len({kernel.name for kernel in fused}),
                "widest": max(kernel.buffers for kernel in fused),
                "products": names["Matmul"] + names["AddMM"],
                "convolutions": names["Convolution"],
            }
        )
    return rows


def main() -> None:
    """Count every case, print a table and JSON."""
    results = []
    for name, settings in _CASES:
        with use_gpu_path():
            results += count(name, settings)
        print(name, settings, file=sys.stderr, flush=True)
    shown = ("kernels", "fused", "distinct_fused", "widest", "products", "convolutions")
    rows = []
    for row in results:
        changed = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in row["settings"].items())
        rows.append((row["recipe"], changed or "as it is", row["kind"], *(str(row[key]) for key in shown)))
    columns = (
        "recipe",
        "changed",
        "step",
        "kernels",
        "fused",
        "distinct",
        "most buffers",
        "products",
        "convolutions",
    )
    print_table("Kernels of a compiled step on a GPU", columns, rows, left_aligned=3)
    print(json.dumps({"benchmark": "kernels", "results": results}))


if __name__ == "__main__":
    main()
