"""Time each kind of training step of recipes on this device, on random frames, and its peak of MLX's arrays.

    python -m benchmarks.step_times lava duralava
    python -m benchmarks.step_times lava --set 'data.size=[64,32]' --set data.batch_size=64

Medians of nine steps, after the first, which compiles, and three more. It is meant for a GPU that is lent for
minutes; ``mlxlava bench`` measures more, and takes longer. One line of JSON for each recipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from mlxlava.backend import mx
from mlxlava.config import Recipe, load_recipe, override, parse_settings
from mlxlava.training.step import StepKind, Trainer

_WARM_UP_STEPS, _STEPS = 3, 9


def measure(recipe: Recipe) -> dict[str, Any]:
    """Milliseconds of each kind of step, seconds of the first one, and the peak of arrays in GB."""
    data, context = recipe.data, recipe.encoder.context_frames
    drawn = data.drawn_frames or data.seq_len
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (data.batch_size, context + drawn, *data.size, 3), dtype=np.uint8)
    moments = np.linspace(0, data.seq_len - 1, drawn).astype(np.int32)
    times = np.tile(np.concatenate([moments[:1].repeat(context), moments]), (data.batch_size, 1))
    mx.reset_peak_memory()
    kinds = {
        _name(kind): _time_kind(recipe, kind, mx.array(frames), mx.array(times)) for kind in _kinds(recipe)
    }
    return {"kinds": kinds, "peak_gb": round(mx.get_peak_memory() / 1e9, 3)}


def _kinds(recipe: Recipe) -> list[StepKind]:
    return Trainer(recipe, 1000).step_kinds


def _name(kind: StepKind) -> str:
    return "with penalties" if kind.penalised else "with D" if kind.adversarial else "without D"


def _time_kind(recipe: Recipe, kind: StepKind, frames: mx.array, times: mx.array) -> dict[str, float]:
    trainer = Trainer(recipe, 1000)
    state, seconds = trainer.init(), []
    for index in range(1 + _WARM_UP_STEPS + _STEPS):
        began = time.perf_counter()
        state, terms = trainer(state, frames, times, index, kind=kind)
        mx.eval(state, terms)
        seconds.append(time.perf_counter() - began)
    return {
        "ms": round(1000 * statistics.median(seconds[-_STEPS:]), 1),
        "first_s": round(seconds[0], 1),
    }


def main() -> None:
    """Measure the recipes that are named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", help="names or files of recipes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings, for all")
    options = parser.parse_args()
    for name in options.recipes:
        recipe = override(load_recipe(name), parse_settings(options.set))
        print(json.dumps({"recipe": name, "settings": options.set, **measure(recipe)}), flush=True)


if __name__ == "__main__":
    main()
