"""What a rebuild must not change: the stored figures of the golden tests, and a comparison with a commit.

    python tools/golden.py --renew help        what was changed on purpose is stored anew
    python tools/golden.py --formats v2        a run, weights and footage in today's formats, kept for ever
    python tools/golden.py --against COMMIT    this tree and a commit, byte by byte, on this machine

Nothing here depends on how the package is laid out: it runs commands and reads files. The checkpoint format
is safetensors, which is read here in a few lines, so that a fault of the package cannot hide itself.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/golden"
FORMATS = GOLDEN / "formats"

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# --- the command line ---

# Several commands one after the other in one process: most of a small command's time is Python's start.
_CALLS = """
import contextlib, io, json, runpy, sys
said = []
for arguments in json.load(sys.stdin):
    sys.argv = ["mlxlava", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module("mlxlava", run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            if ended.code:
                sys.exit(f"mlxlava {' '.join(arguments)} ended with {ended.code}")
    said.append(output.getvalue())
print(json.dumps(said))
"""


class Failed(Exception):
    """A command did not end well; the text is what it said."""


def mlxlava(
    *commands: Sequence[object],
    folder: Path,
    tree: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Run commands in one process.

    Args:
        commands: The arguments of each.
        folder: Where they run.
        tree: The checkout whose package runs; the one that Python finds when None.
        environment: Variables beside those of this process.

    Returns:
        What each wrote to stdout.

    Raises:
        Failed: One of them did not end with 0.
    """
    given = {**os.environ, "COLUMNS": "80", **(environment or {})}
    if tree is not None:
        given["PYTHONPATH"] = str(tree / "src")
    text = json.dumps([[str(argument) for argument in command] for command in commands])
    ended = subprocess.run(
        [sys.executable, "-c", _CALLS], input=text, cwd=folder, env=given, capture_output=True, text=True
    )
    if ended.returncode:
        raise Failed(ended.stderr)
    said: list[str] = json.loads(ended.stdout)
    return said


# --- footage ---


def picture(number: int, side: int) -> npt.NDArray[np.uint8]:
    """A picture of two lumps of wax that rise and sink, uint8 (side, side, 3); whole numbers throughout.

    No cosine and no square root is in it, so it is the same on every machine.
    """
    y, x = np.mgrid[:side, :side] * 64 // side
    red, green, blue = 40 + y, 20 + y // 2, 90 - y
    for lump, (middle, period, radius) in enumerate(((22, 38, 14), (42, 26, 10))):
        phase = (number + 9 * lump) % period
        height = 8 + 96 * min(phase, period - phase) // period
        near = np.maximum(0, radius**2 - (x - middle) ** 2 - (y - height) ** 2) * 160 // radius**2
        red, green, blue = red + near, green + near // 2, blue - near // 4
    frame: npt.NDArray[np.uint8] = np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)
    return frame


def write_pictures(folder: Path, pictures: Iterable[Array]) -> None:
    """A folder of BMP files. No encoder is needed for them, so their bytes are the same on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(pictures):
        height, width, _ = frame.shape
        rows = frame[::-1, :, ::-1].reshape(height, -1)  # from the bottom up, blue first
        data = np.pad(rows, ((0, 0), (0, -3 * width % 4))).tobytes()
        header = struct.pack("<2sIHHI", b"BM", 54 + len(data), 0, 0, 54)
        header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 2835, 2835, 0, 0)
        (folder / f"{number:04d}.bmp").write_bytes(header + data)


# --- tiny runs ---

# The setting names of the first release, on purpose: they must be understood for ever, whatever a setting is
# called later. The same holds for the options.
_SMALL = {
    "data.size": [16, 16],
    "data.seq_len": 6,
    "data.batch_size": 4,
    "generator.state_size": 8,
    "generator.widths": [8, 6],
    "dynamics.hidden": [12],
    "discriminator.widths": [6, 8],
    "discriminator.hidden": [10],
    "training.checkpoint_every": 2,
    "training.keep_checkpoints": 9,
    "training.preview_every": 6,
}
_OWN: dict[str, dict[str, Any]] = {
    # Of six steps the first is without D; every second of the others has gradient penalties.
    "lava": {
        "encoder.views": 3,
        "encoder.widths": [6, 8],
        "encoder.hidden": [10],
        "loss.alone": 0.17,
        "loss.penalty_every": 2,
        # The recipe's own. They are given, since others would be chosen for so little footage.
        "loss.evidence": 0.005,
        "loss.shift": 0.0,
        "loss.colour": 0.0,
    },
    "duralava": {"discriminator.features": 6, "discriminator.state": 5, "data.every_nth": 1},
}
STEPS = 6
PARTS = {"whole": 1, "micro-batches": 2}
RUNS = [f"{recipe}, {parts}" for recipe in _OWN for parts in PARTS]

# Plain gradient descent without update clipping: a weight moves in proportion to its gradient. Adam divides a
# gradient by its own size. A gradient that is nothing but rounding becomes a whole step then, and what one
# machine has stored would say nothing on another. (--against compares on one machine, so there each recipe
# has its own optimiser.) There is no warm-up, since six steps would hardly move anything. Leaky ReLU has a
# kink: rounding switches the gradient of a value that lies near it. Of five seeds and two rates this pair is
# far from any kink. Its tensors are the same within 3e-6 of their RMS on either path, with MLX's own BLAS, on
# one core, and with a rate that is larger by a part in 500,000. With a rate of 0.03 rounding grew to 1e-4 in
# six steps.
_DESCENT = {
    "training.optimizer": "sgd",
    "training.clip": 0,
    "training.warm_up": 0,
    "training.learning_rate": 0.01,
    "training.seed": 1,
}


# What neither recipe uses, compared with --against alone.
_MORE: dict[str, dict[str, Any]] = {
    "lava, other options": {
        "data.drawn_frames": 0,
        "dynamics.learn_rho": True,
        "loss.shift": 0.1,
        "loss.colour": 0.1,
        "loss.state_gain": 0.5,
        "training.carry": True,
        "training.recompute": True,
        "encoder.whitening": 0,
    },
    "lava, float16": {"training.precision": "float16", "training.micro_batches": 2},
    "duralava, other options": {
        "dynamics.penalty": "epps_pulley",
        "training.optimizer": "adam",
        "training.ema": 0.9,
        "training.recompute": True,
    },
    "duralava, float16": {"training.precision": "float16"},
}


def training(name: str, footage: Path, run: Path, *, stored: bool) -> list[object]:
    """The arguments that train a tiny run.

    Args:
        name: One of RUNS, or of those with other options.
        footage: What it learns.
        run: Its folder.
        stored: With plain gradient descent, for figures that are stored; else as the recipe has it, only
            warmed up sooner.
    """
    recipe, parts = name.split(", ")
    settings = {**_SMALL, **_OWN[recipe]}
    settings |= _DESCENT if stored else {"training.warm_up": 2}
    settings |= _MORE[name] if name in _MORE else {"training.micro_batches": PARTS[parts]}
    given = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return ["train", footage, "-o", run, "--recipe", recipe, "--steps", STEPS, *given]


def read_safetensors(path: Path) -> Arrays:
    """The tensors of a file by name."""
    kinds = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8", "BOOL": "?"}
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    arrays = {}
    for name, about in header.items():
        begin, end = (8 + size + offset for offset in about["data_offsets"])
        arrays[name] = np.frombuffer(data[begin:end], kinds[about["dtype"]]).reshape(about["shape"])
    return arrays


def checkpoints(run: Path) -> list[Arrays]:
    """The tensors of each checkpoint of a run, oldest first."""
    folders = sorted({path.parent for path in run.rglob("*.safetensors")})
    if not folders:
        raise Failed(f"{run} has no checkpoint")
    return [
        {
            name: array
            for file in sorted(folder.glob("*.safetensors"))
            for name, array in read_safetensors(file).items()
        }
        for folder in folders
    ]


# --- figures ---

Figures = dict[str, list[float]]


def figures(arrays: Arrays) -> Figures:
    """Mean, RMS, and projection on fixed noise, of every tensor of floats that is not all zeros.

    The projection tells apart what mean and RMS do not: a tensor whose numbers have changed places. It is
    divided by the square root of the count, so it is about as large as the RMS.
    """
    found = {}
    for name, array in sorted(arrays.items()):
        if array.dtype.kind == "f" and array.any():
            flat = array.astype(np.float64).ravel()
            rms = float(np.sqrt(np.mean(flat**2)))
            along = float(flat @ _noise(flat.size)) / flat.size**0.5
            found[name] = [float(f"{value:.9g}") for value in (flat.mean(), rms, along)]
    return found


def _noise(count: int) -> Array:
    """Uniform numbers of variance 1, by a hash of whole numbers, so that no library can change them."""
    bits = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(32)
    noise: Array = ((bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1) * 3**0.5
    return noise


def changes(run: Path) -> tuple[Figures, Figures]:
    """Figures of a run's last checkpoint, and of its change since the first."""
    first, *_, last = checkpoints(run)
    moved = {
        name: array.astype(np.float64) - first[name]
        for name, array in last.items()
        if array.dtype.kind == "f" and name in first
    }
    return figures(last), figures(moved)


def differences(
    stored: Figures, found: Figures, tolerance: float, least: float, *, whole: bool = True
) -> list[str]:
    """What differs, a line a tensor, the worst first.

    A tensor that is called otherwise than when it was stored is looked for by its figures: names may change,
    numbers may not.

    Args:
        stored: What was.
        found: What is.
        tolerance: How far figures may lie apart, in the tensor's RMS.
        least: RMS that is assumed at least: what is smaller is rounding.
        whole: Whether a tensor that was not stored is a difference.
    """

    def apart(name: str, other: str) -> float:
        """How far two tensors lie apart, in tolerances."""
        allowed = tolerance * max(stored[name][1], least)
        return max(abs(a - b) for a, b in zip(stored[name], found[other], strict=True)) / allowed

    # What is rounding alone may be all zeros elsewhere.
    gone = [name for name in stored if name not in found and stored[name][1] > tolerance * least]
    new = [name for name in found if name not in stored and found[name][1] > tolerance * least]
    lines = []
    for name in gone:
        renamed = next((other for other in new if apart(name, other) <= 1), None)
        if renamed is None:
            lines.append((np.inf, f"{name} is not there any more, and no new tensor has its figures"))
        else:
            new.remove(renamed)
    lines += [(np.inf, f"{name} is new") for name in new if whole]
    for name in stored.keys() & found.keys():
        if not (distance := apart(name, name)) <= 1:
            text = f"{name}: {found[name]} in place of {stored[name]}, {distance:.3g} times the tolerance"
            lines.append((distance, text))
    return [text for _, text in sorted(lines, reverse=True)]


# --- what is stored ---

SEEDS = (0, 1, 2)


def lamp_frames() -> dict[str, Array]:
    """Frames of the shipped lamp, uint8 (H, W, 3), by name of their picture; three times side by side."""
    import itertools

    import mlxlava as package

    lamp = package.load("lava-64")
    found = {}
    for seed in SEEDS:
        # 0, 20.3 and 40.6 s: between two learned steps, and a few hundred of them from the start.
        frames = itertools.islice(lamp.frames(fps=1, speed=20.3, seed=seed), 3)
        found[f"lava-{seed}"] = np.concatenate(list(frames), axis=1)
    loop = lamp.frames(fps=1, speed=1.37, seconds=3, seed=SEEDS[-1], seamless=True)
    found["lava-seamless"] = np.concatenate(list(loop), axis=1)
    return found


def built_in_frames(work: Path) -> Array:
    """The built-in lamp at 0, 5 and 10 s, uint8 (64, 192, 3)."""
    file = work / "built-in.raw"
    options = ("--size", 64, "--fps", 0.2, "--frames", 3, "--seed", 3)
    mlxlava(["lamp", *options, "-o", file], folder=work)
    return np.concatenate(list(np.fromfile(file, np.uint8).reshape(3, 64, 64, 3)), axis=1)


def weights_after_training(work: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Figures of all tiny runs after their last step, and of the change since their start."""
    write_pictures(work / "pictures", (picture(number, 16) for number in range(48)))
    footage = work / "footage"
    prepare = ["footage", work / "pictures", "-o", footage, "--size", 16]
    runs = [training(name, footage, work / name, stored=True) for name in RUNS]
    # Not compiled: that gives the same numbers (test_step holds it), and g++ would take seconds a run.
    mlxlava(prepare, *runs, folder=work, environment={"MLX_DISABLE_COMPILE": "1", **(environment or {})})
    found = {}
    for name in RUNS:
        weights, moved = changes(work / name)
        found[name] = {"weights": weights, "change": moved}
    return found


def score(work: Path, tree: Path | None = None) -> dict[str, Any]:
    """What `score --json` says of the shipped weights, without times and names."""
    raw, footage = work / "lamp.raw", work / "scored"
    mlxlava(["lamp", "--size", 64, "--fps", 5, "--frames", 512, "-o", raw], folder=work, tree=tree)
    write_pictures(work / "lamp", np.fromfile(raw, np.uint8).reshape(-1, 64, 64, 3))
    # One thread for NumPy's products: they are so small that a second one only waits.
    (_, text) = mlxlava(
        ["footage", work / "lamp", "-o", footage, "--size", 64],
        ["score", "lava-64", "--footage", footage, "--frames", 256, "--json"],
        folder=work,
        tree=tree,
        environment={"OPENBLAS_NUM_THREADS": "1"},
    )
    said = json.loads(text)
    kept = (
        "clips",
        "clip_length",
        "frames",
        "seed",
        "reference_clips",
        "held_out_clips",
        "measures",
        "headline",
    )
    return {key: said[key] for key in kept}


def keys(work: Path) -> dict[str, str]:
    """The keys by which a run finds its footage again: of pictures, and of the built-in lamp.

    A run cannot be resumed once its key is computed otherwise.
    """
    write_pictures(work / "keyed", (picture(number, 16) for number in range(4)))
    mlxlava(["footage", work / "keyed", "-o", work / "prepared", "--size", 16, "--every-nth", 2], folder=work)
    small = [f"--set={key}={json.dumps(value)}" for key, value in _SMALL.items()]
    widths = ["--set=encoder.widths=[6, 8]", "--set=data.lamp_minutes=0.1", "--steps=1", "--seed=3"]
    mlxlava(["train", "-o", "run", *small, *widths], folder=work, environment={"MLX_DISABLE_COMPILE": "1"})
    return {
        "pictures": json.loads((work / "prepared/footage.json").read_text())["key"],
        "built-in lamp": json.loads((work / "run/config.json").read_text())["footage"]["key"],
    }


def helps(work: Path) -> dict[str, str]:
    """The help of mlxlava itself and of each command, 80 columns wide, by name of the command."""
    (top,) = mlxlava(["--help"], folder=work)
    listed = top.partition("Commands:\n")[2].partition("\n\n")[0]
    commands = [line.split()[0] for line in listed.splitlines()]
    texts = mlxlava(*([command, "--help"] for command in commands), folder=work)
    named = {"mlxlava": top, **dict(zip(commands, texts, strict=True))}
    # However it was started.
    return {name: text.replace("python -m mlxlava", "mlxlava") for name, text in named.items()}


def _renew_frames(work: Path) -> None:
    for name, frames in {**lamp_frames(), "built-in": built_in_frames(work)}.items():
        Image.fromarray(frames).save(GOLDEN / f"{name}.png", optimize=True)


def _renew_weights(work: Path) -> None:
    found = weights_after_training(work)
    text = ",\n".join(
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(
            f" {json.dumps(what)}: {{\n"
            + ",\n".join(f"  {json.dumps(tensor)}: {json.dumps(row)}" for tensor, row in rows.items())
            + "\n }"
            for what, rows in kinds.items()
        )
        + "\n}"
        for name, kinds in found.items()
    )
    (GOLDEN / "weights.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def _renew_score(work: Path) -> None:
    (GOLDEN / "score.json").write_text(json.dumps(score(work), indent=1) + "\n", encoding="utf-8")


def _renew_keys(work: Path) -> None:
    (GOLDEN / "keys.json").write_text(json.dumps(keys(work), indent=1) + "\n", encoding="utf-8")


def _renew_help(work: Path) -> None:
    texts = helps(work)
    folder = GOLDEN / "help"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.txt"):
        file.unlink()
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


RENEWED = {
    "frames": _renew_frames,
    "weights": _renew_weights,
    "score": _renew_score,
    "keys": _renew_keys,
    "help": _renew_help,
}

# --- formats ---

_PLACE = "@WORK@"  # stands in stored files for the folder that they lie in
_SMALLEST = {
    "data.size": [16, 16],
    "data.seq_len": 4,
    "data.batch_size": 2,
    "generator.state_size": 4,
    "generator.widths": [2, 2],
    "dynamics.hidden": [2],
    "discriminator.widths": [2, 2],
    "discriminator.hidden": [2],
    "training.checkpoint_every": 2,
    "training.keep_checkpoints": 1,
    "training.preview_every": 2,
    "training.warm_up": 0,
}
_SMALLEST_OWN: dict[str, dict[str, Any]] = {
    "lava": {
        "generator.last_width": 2,
        "dynamics.couplings": 2,
        "encoder.views": 2,
        "encoder.widths": [2, 2],
        "encoder.hidden": [2],
        "loss.alone": 0.5,
        "loss.penalty_every": 1,
    },
    "duralava": {
        "discriminator.features": 2,
        "discriminator.state": 2,
        "data.every_nth": 1,
    },
}
_TEXTS = (".json", ".jsonl", ".md")
FIXTURE_RUNS = tuple(_SMALLEST_OWN)
FIXTURE_WEIGHTS = ("weights", "half")
_FIXTURE_STEPS = 2


def write_formats(name: str) -> None:
    """Write a run of each recipe, weights (float32 and half) and prepared footage, as small as they go.

    Beside them lies what they must give when they are opened: frames, and figures after one more step.
    They are never written again: what was released once must be opened for ever. They are packed, since
    the headers of hundreds of tiny tensors are most of it.

    Raises:
        Failed: There are fixtures of this name.
    """
    archive = FORMATS / f"{name}.zip"
    if archive.exists():
        raise Failed(f"{archive} is there already, and stays as it is; give another name")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve() / "work"
        work.mkdir()
        _write_fixture_pictures(work)
        mlxlava(["footage", work / "pictures", "-o", work / "footage", "--size", 16], folder=work)
        # lava learns from prepared footage, whose pace export looks for; duralava from the pictures.
        for recipe, source in zip(FIXTURE_RUNS, ("footage", "pictures"), strict=True):
            settings = {**_SMALLEST, **_SMALLEST_OWN[recipe]}
            given = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
            steps = ["--steps", _FIXTURE_STEPS, "--recipe", recipe, *given]
            mlxlava(["train", work / source, "-o", work / recipe, *steps], folder=work)
        for weights, options in zip(FIXTURE_WEIGHTS, ([], ["--half"]), strict=True):
            mlxlava(["export", work / "lava", "-o", work / weights, *options], folder=work)
        # One picture of each kind is enough.
        shutil.rmtree(work / "duralava/previews")
        (work / "half/sample.png").unlink()
        files = sorted(path for path in work.rglob("*") if path.is_file() and path.suffix != ".bmp")
        packed = {str(path.relative_to(work)): _impersonal(path, work) for path in files}
        for part in (*FIXTURE_RUNS, *FIXTURE_WEIGHTS):
            picture = io.BytesIO()
            Image.fromarray(drawn(work / part, work)).save(picture, "png", optimize=True)
            packed[f"{part}.png"] = picture.getvalue()
        resumed = {recipe: _resumed(work / recipe, work) for recipe in FIXTURE_RUNS}
        packed["resumed.json"] = json.dumps(resumed).encode()
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for path, data in packed.items():
            file.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)


def _resumed(run: Path, work: Path) -> Figures:
    """Figures of a run after one more step, without what depends on rounding.

    Adam divides a gradient by its own size. Where that is nothing but rounding (a bias before a
    normalisation) it becomes a whole step, which is another one with another BLAS.
    """
    found = []
    for number, environment in enumerate(({}, {"MLXLAVA_BLAS": "0", "MLXLAVA_GPU_PATH": "1"})):
        copy = work / f"{run.name}-{number}"
        shutil.copytree(run, copy)
        resume(copy, work, environment)
        found.append(figures(checkpoints(copy)[-1]))
    one, other = found
    return {
        name: row
        for name, row in one.items()
        if name in other and np.allclose(row, other[name], rtol=0, atol=1e-5 * max(row[1], 1e-2))
    }


def _write_fixture_pictures(work: Path) -> None:
    write_pictures(work / "pictures", (picture(3 * number, 16) for number in range(12)))


def _impersonal(file: Path, work: Path) -> bytes:
    """What is in a file, without this machine's folders where it is a text."""
    data = file.read_bytes()
    if file.suffix not in _TEXTS:
        return data
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    text = data.decode("utf-8").replace(str(work), _PLACE).replace(cache, "/home/someone/.cache")
    return re.sub(r"/[^ \"]*(?=/lib\w+\.so)", "/usr/lib", text).encode("utf-8")


def open_formats(version: str, work: Path) -> None:
    """Unpack fixtures into a folder as if they had been made there, with the pictures they learned from."""
    with zipfile.ZipFile(FORMATS / f"{version}.zip") as archive:
        archive.extractall(work)
    _write_fixture_pictures(work)
    for file in work.rglob("*"):
        if file.suffix in _TEXTS:
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(_PLACE, str(work)), encoding="utf-8")


def drawing(weights: Path, file: Path) -> list[object]:
    """The arguments that draw three frames with weights or a run, for :func:`read_drawn`."""
    return ["loop", "--weights", weights, "--fps", 7, "--frames", 3, "-o", file]


def read_drawn(file: Path) -> Array:
    """Three frames side by side, uint8 (16, 48, 3)."""
    return np.concatenate(list(np.fromfile(file, np.uint8).reshape(3, 16, 16, 3)), axis=1)


def drawn(weights: Path, work: Path) -> Array:
    """Three frames that weights or a run draw, uint8 (16, 48, 3)."""
    file = work / "drawn.raw"
    mlxlava(drawing(weights, file), folder=work)
    return read_drawn(file)


def resume(run: Path, work: Path, environment: Mapping[str, str] | None = None) -> None:
    """Train a run of the fixtures on by one step."""
    mlxlava(
        ["train", "--resume", "-o", run, "--steps", _FIXTURE_STEPS + 1],
        folder=work,
        environment={"MLX_DISABLE_COMPILE": "1", **(environment or {})},
    )


# --- against a commit ---


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A checkout of a commit, for a while."""
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        tree = Path(name).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _made(tree: Path, work: Path, real_sizes: bool) -> Iterator[tuple[str, Arrays]]:
    """What a tree makes, by name: frames, and the final checkpoints of runs."""
    work.mkdir()
    write_pictures(work / "start", [picture(7, 64)])
    playing = {
        **{f"lava, seed {seed}": ["--seed", seed, "--fps", 0.37, "--frames", 6] for seed in SEEDS},
        "lava, 30 frames a second": ["--fps", 30, "--frames", 40],
        "lava, seamless": ["--seamless", "--fps", 7, "--seconds", 3],
        "lava, from a picture": ["--from", "start/0000.bmp", "--frames", 3],
    }
    for name, options in playing.items():
        mlxlava(["loop", "--weights", "lava-64", *options, "-o", "frames.raw"], folder=work, tree=tree)
        yield f"frames: {name}", {"frames": np.fromfile(work / "frames.raw", np.uint8)}
    mlxlava(["lamp", "--size", 64, "--frames", 20, "-o", "frames.raw"], folder=work, tree=tree)
    yield "frames: the built-in lamp", {"frames": np.fromfile(work / "frames.raw", np.uint8)}

    for side in (16, 64) if real_sizes else (16,):
        write_pictures(work / f"pictures{side}", (picture(number, side) for number in range(48)))
        footage = work / f"footage{side}"
        mlxlava(["footage", f"pictures{side}", "-o", footage, "--size", side], folder=work, tree=tree)
        yield f"footage: {side}×{side}", {"frames": np.load(footage / "frames.npy")}
    for name in (*RUNS, *_MORE):
        run = work / name
        mlxlava(training(name, work / "footage16", run, stored=False), folder=work, tree=tree)
        yield f"six steps: {name}", checkpoints(run)[-1]
    mlxlava(["export", work / RUNS[0], "-o", "exported"], folder=work, tree=tree)
    yield "export", checkpoints(work / "exported")[-1]
    yield "score", _flat(score(work, tree))
    for name in RUNS if real_sizes else ():
        recipe, parts = name.split(", ")
        run = work / f"real {name}"
        # Of four steps D joins in after the second.
        settings = [f"--set=training.micro_batches={PARTS[parts]}", "--set=training.warm_up=2"]
        settings += ["--set=loss.penalty_every=2", "--set=loss.alone=0.5"] if recipe == "lava" else []
        settings += ["--set=data.every_nth=1"]
        options = ["--recipe", recipe, "--steps", 4, *settings]
        mlxlava(["train", work / "footage64", "-o", run, *options], folder=work, tree=tree)
        yield f"four steps of real size: {name}", checkpoints(run)[-1]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Numbers of nested tables by their dotted names."""
    found: Arrays = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = np.asarray(value)
    return found


def compare(one: Arrays, other: Arrays) -> list[str]:
    """How the second differs from the first, a line a tensor, the largest difference first; none if equal.

    A tensor that has only been renamed is found by its contents.
    """
    lines: list[tuple[float, str]] = []
    gone = [name for name in one if name not in other]
    new = [name for name in other if name not in one]
    for name in gone:
        renamed = next((candidate for candidate in new if _equal(one[name], other[candidate])), None)
        if renamed is None:
            lines.append((np.inf, f"{name} is not there any more"))
        else:
            new.remove(renamed)
    lines += [(np.inf, f"{name} is new") for name in new]
    for name in sorted(one.keys() & other.keys()):
        a, b = one[name], other[name]
        if _equal(a, b):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append((np.inf, f"{name} is {b.dtype}{list(b.shape)}, not {a.dtype}{list(a.shape)}"))
            continue
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
        rms = float(np.sqrt(np.mean(a.astype(np.float64) ** 2)))
        much = f"{np.count_nonzero(a != b)} of {a.size} numbers, by {apart.max():.3g} at most"
        lines.append(
            (float(apart.max()) / max(rms, 1e-30), f"{name} differs in {much}; its RMS is {rms:.3g}")
        )
    return [text for _, text in sorted(lines, key=lambda line: -line[0])]


def _equal(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def against(commit: str, real_sizes: bool) -> bool:
    """Print what a commit and this tree make alike, and what not; whether all is equal."""
    # Now and then oneDNN's products for AVX-512 are rounded otherwise when arrays lie elsewhere in memory.
    # Eight starts of one run that differed in nothing but what Python had imported before gave two results.
    # Those for AVX2 gave one. A user's own choice of instructions is kept.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    same = True
    with checked_out(commit) as tree, tempfile.TemporaryDirectory(prefix="golden-") as name:
        work = Path(name).resolve()
        pairs = zip(
            _made(tree, work / "theirs", real_sizes), _made(ROOT, work / "ours", real_sizes), strict=True
        )
        for (what, theirs), (_, ours) in pairs:
            found = compare(theirs, ours)
            print(f"{'differs' if found else 'equal  '}  {what}", flush=True)
            for line in found[:5]:
                print(f"         {line}", flush=True)
            if len(found) > 5:
                print(f"         and {len(found) - 5} more", flush=True)
            same = same and not found
    return same


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--renew", choices=[*RENEWED, "all"], help="store anew what was changed on purpose")
    what.add_argument("--formats", metavar="NAME", help="write tests/golden/formats/NAME.zip")
    what.add_argument("--against", metavar="COMMIT", help="compare with a commit; exit 1 on any difference")
    parser.add_argument(
        "--real-sizes", action="store_true", help="with --against: also four steps of the recipes as they are"
    )
    given = parser.parse_args()
    try:
        if given.against:
            sys.exit(0 if against(given.against, given.real_sizes) else 1)
        if given.formats:
            write_formats(given.formats)
            return
        GOLDEN.mkdir(exist_ok=True)
        for name in RENEWED if given.renew == "all" else [given.renew]:
            with tempfile.TemporaryDirectory() as work:
                RENEWED[name](Path(work).resolve())
    except Failed as error:
        sys.exit(f"golden: {error}")


if __name__ == "__main__":
    main()
