"""Reads damaged files of one kind in a process of its own, and reports the first one that did harm.

    python -m tests.reliability.worker KIND INPUTS SCRATCH SEED COUNT

Every file must be read, or be refused by a ``UserError``. The process is ended by a signal if one takes more
than ten seconds. The file that is being tried lies in SCRATCH/tried, also after a crash.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.errors import UserError
from tests.reliability.inputs import mutate

SECONDS = 10  # that a file may take
MEGABYTES = 1000  # that the process may take beyond what it took before


def _read_weights(folder: Path) -> None:
    from mlxlava.console import print_rows
    from mlxlava.rollout.export import weights_facts
    from mlxlava.rollout.weights import load_weights

    print_rows(weights_facts(load_weights(folder)))


def _read_run(folder: Path) -> None:
    from mlxlava.rollout.export import averaged_weights, model_card
    from mlxlava.training.folder import open_run
    from mlxlava.training.log import open_log
    from mlxlava.training.report import write_report
    from mlxlava.training.run import resume_run

    def resume() -> None:
        run = resume_run(folder)
        step = open_run(folder, run.recipe)[2]
        with open_log(folder, step):
            pass

    for read in (resume, lambda: write_report(folder), lambda: model_card(averaged_weights(folder), "x")):
        _allow_refusal(read)


def _read_footage(folder: Path) -> None:
    from mlxlava.footage.dataset import open_footage

    open_footage(folder).batch(0, 0, 2, 4)


def _read_recipe(folder: Path) -> None:
    from mlxlava.config import load_recipe
    from mlxlava.models.registry import make_discriminator, make_encoder, make_generator
    from mlxlava.models.state_step import make_dynamics
    from mlxlava.training.memory_plan import predict_peak_gb

    for name in ("own.json", "own.toml"):
        recipe = load_recipe(folder / name)
        predict_peak_gb(recipe)
        make_generator(recipe), make_discriminator(recipe), make_encoder(recipe), make_dynamics(recipe)


def _read_score(folder: Path) -> None:
    from mlxlava.paths import read_json
    from mlxlava.rollout.export import averaged_weights, model_card

    run = folder.parents[1] / "inputs" / "run"
    model_card(averaged_weights(run, read_json(folder / "score.json", "export")), "x")


def _read_pictures(folder: Path) -> None:
    from mlxlava.footage.pictures import read_animation, read_picture

    for path in folder.iterdir():
        _allow_refusal(partial(read_picture, path))
        if path.name == "moving.png":
            _allow_refusal(partial(_read_all, read_animation, path))


def _read_all(read: Callable[[Path], Any], path: Path) -> None:
    list(read(path))


def _read_videos(folder: Path) -> None:
    from mlxlava.footage.prepare import prepare

    for path in folder.iterdir():
        _allow_refusal(partial(prepare, [path], folder.parent / "out" / path.name, size=(16, 16)))
    shutil.rmtree(folder.parent / "out", ignore_errors=True)


# What is damaged, and what reads it.
KINDS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], None]]] = {
    "weights": ("weights", ("config.json", "weights.safetensors"), _read_weights),
    "run": ("run", ("config.json", "log.jsonl", "messages.jsonl", "checkpoints/00000002/progress.json",
                    "checkpoints/00000002/state.safetensors", "previews/000002.png"), _read_run),
    "footage": ("footage", ("footage.json", "frames.npy"), _read_footage),
    "recipe": ("recipe", ("own.json", "own.toml"), _read_recipe),
    "score": ("score", ("score.json",), _read_score),
    "pictures": ("pictures", (), _read_pictures),
    "videos": ("videos", (), _read_videos),
}  # fmt: skip


def _allow_refusal(read: Callable[[], Any]) -> None:
    try:
        read()
    except UserError as error:
        text = str(error)
        assert text and len(text) < 10_000


def _peak_megabytes() -> float:
    """The most memory that the process has had. On Linux getrusage would count that of its parent too."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def _forbid_side_effects(scratch: Path) -> None:
    """End the process where it starts another one, opens a connection, unpickles, or writes elsewhere."""
    allowed = tuple(str(path) for path in (scratch, Path(os.environ["XDG_CACHE_HOME"])))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        forbidden = event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "socket.connect",
            "pickle.find_class",
        )
        if event == "open" and isinstance(arguments[0], (str, bytes)) and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            path = os.path.realpath(os.fsdecode(arguments[0]))
            forbidden = bool(writes) and not path.startswith((*allowed, "/dev/", "/proc/"))
        if forbidden:
            os.write(2, f"forbidden: {event} {arguments!r:.300}\n".encode(errors="replace"))
            os.abort()

    sys.addaudithook(watch)


def main(kind: str, inputs: Path, scratch: Path, seed: int, count: int) -> int:
    """Try damaged files; returns 1 at the first one that does harm."""
    source, names, read = KINDS[kind]
    rng = np.random.default_rng(seed)
    tried = scratch / "tried"
    _allow_refusal(lambda: read(shutil.copytree(inputs / source, scratch / "whole", dirs_exist_ok=True)))
    before = _peak_megabytes()
    refused = 0
    _forbid_side_effects(scratch)
    for number in range(count):
        shutil.rmtree(tried, ignore_errors=True)
        shutil.copytree(inputs / source, tried)
        files = [tried / name for name in names] or sorted(tried.iterdir())
        chosen = files[int(rng.integers(len(files)))]
        chosen.write_bytes(mutate(chosen.read_bytes(), rng))
        if not names:
            for other in files:
                if other != chosen:
                    other.unlink()
        signal.alarm(SECONDS)
        try:
            read(tried)
        except UserError:
            refused += 1
        except BaseException:
            print(
                json.dumps({"number": number, "file": chosen.name, "trace": traceback.format_exc()[-2000:]})
            )
            return 1
        signal.alarm(0)
        grown = _peak_megabytes() - before
        if grown > MEGABYTES:
            print(json.dumps({"number": number, "file": chosen.name, "grown": grown}))
            return 1
    print(json.dumps({"tried": count, "refused": refused, "grown": round(grown)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
