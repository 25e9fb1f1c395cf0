"""Makes a new run that begins with the whole state of another one, but with other settings.

Networks, their averages and the moments of the optimisers go on. The learning rate and the sums of feature
matching begin anew. So other settings can be tried from a trained lamp on, without training from nothing.

python tools/fork_run.py runs/old runs/new training.steps=1200 training.learning_rate=5e-4 loss.d_start=0
mlxlava train --resume -o runs/new
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mlxlava.backend import arrays_by_name, mx
from mlxlava.config import override, parse_settings, recipe_from_dict, recipe_to_dict
from mlxlava.models.array_files import fill_tree, load_arrays
from mlxlava.paths import latest_checkpoint_folder, read_json
from mlxlava.training.checkpoint import save_checkpoint
from mlxlava.training.step import Trainer


def main() -> None:
    """Make the run that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="folder of a run that has a checkpoint")
    parser.add_argument("new", type=Path, help="folder of the new run")
    parser.add_argument("settings", nargs="*", help="settings of the new run, as key=value")
    arguments = parser.parse_args()
    config = read_json(arguments.old / "config.json", "run")
    recipe = override(recipe_from_dict(config["recipe"]), parse_settings(arguments.settings))
    state = Trainer(recipe, recipe.training.steps).init()
    checkpoint = latest_checkpoint_folder(arguments.old)
    if checkpoint is None:
        parser.error(f"{arguments.old} has no checkpoint")
    kept = load_arrays(checkpoint / "state.safetensors")
    fresh = arrays_by_name(state)
    state = fill_tree(
        state,
        {
            name: kept[name]
            if name in kept and kept[name].shape == array.shape and not name.startswith("features.")
            else array
            for name, array in fresh.items()
        },
    )
    state["step"] = mx.array(0, mx.int32)
    for optimizer in state["optimizer"].values():
        optimizer["step"] = mx.array(0, optimizer["step"].dtype)
    arguments.new.mkdir(parents=True)
    command = " ".join(
        ("python tools/fork_run.py", str(arguments.old), str(arguments.new), *arguments.settings)
    )
    config |= {"recipe": recipe_to_dict(recipe), "total_steps": recipe.training.steps, "command": command}
    config.pop("schedule", None)
    (arguments.new / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_checkpoint(arguments.new, state, {"step": 0, "seconds": 0.0}, 3)


if __name__ == "__main__":
    main()
