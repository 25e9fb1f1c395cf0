"""Makes a grown run that draws with another small lamp. Its upsampling network stays.

An upsampling network learns from real frames alone. So it enlarges any small lamp that has learned the same
footage at the same size, and need not be trained again.

python tools/replace_small_lamp.py runs/lava runs/small runs/new
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mlxlava.backend import arrays_by_name
from mlxlava.config import recipe_from_dict
from mlxlava.models.array_files import fill_tree, load_arrays
from mlxlava.paths import latest_checkpoint_folder, read_json
from mlxlava.training.checkpoint import save_checkpoint
from mlxlava.training.folder import write_config
from mlxlava.training.trainer import make_trainer


def main() -> None:
    """Make the run that is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grown", type=Path, help="folder of a run that has grown")
    parser.add_argument("small", type=Path, help="folder of a run of the small lamp")
    parser.add_argument("new", type=Path, help="folder of the new run")
    arguments = parser.parse_args()
    grown_folder, small_folder = (latest_checkpoint_folder(run) for run in (arguments.grown, arguments.small))
    if grown_folder is None or small_folder is None:
        parser.error("a run has no checkpoint")
    grown, small = (load_arrays(folder / "state.safetensors") for folder in (grown_folder, small_folder))
    config = read_json(arguments.grown / "config.json", "run")
    state = make_trainer(recipe_from_dict(config["recipe"]), config["total_steps"]).init()
    for name in arrays_by_name(state):
        played = name.removeprefix("ema.")
        if played.startswith(("generator.", "dynamics.")) and ".upsampler." not in played:
            grown[name] = small[f"ema.{played}"]  # at rest, so the averaged weights stand for both
        elif name.startswith("stats."):
            grown[name] = small[name]
    arguments.new.mkdir(parents=True)
    runs = f"{arguments.grown} {arguments.small} {arguments.new}"
    write_config(arguments.new, config | {"command": f"python tools/replace_small_lamp.py {runs}"})
    progress = read_json(grown_folder / "progress.json", "run")
    save_checkpoint(arguments.new, fill_tree(state, grown), progress, 3)


if __name__ == "__main__":
    main()
