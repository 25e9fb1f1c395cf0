"""Files of every kind that is read, and ways to damage them at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

import mlxlava
from mlxlava.config import Recipe, recipe_to_dict
from mlxlava.footage.dataset import Footage
from mlxlava.integrity import DIGESTS_FILE

_NASTY_VALUES: tuple[Any, ...] = (
    *(None, True, "", "a\0b", "\x1b[2J", "\udcff", "x" * 5000, [], [[]], {}, -1, 0, 1, 2**31, 2**32, 2**63),
    *(2**64, 10**400, -(2**63), 1e308, -1e308, 1e-320, float("nan"), float("inf"), "lava", [1] * 50),
)
_NASTY_BYTES = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b"\x80" + b"\0" * 7,
    b"[" * 5000,
    b"9" * 5000,
)


def make_inputs(folder: Path, recipe: Recipe, footage: Footage) -> None:
    """Make a run, weights, footage, recipes, a score, pictures and videos, all small and whole."""
    shutil.copytree(footage.path, folder / "footage")
    mlxlava.train(folder / "footage", recipe, run=folder / "run", steps=2)
    mlxlava.export(folder / "run", folder / "weights")
    for digests in folder.rglob(
        DIGESTS_FILE
    ):  # a stranger would give the right ones, so that none would help
        digests.unlink()
    (folder / "recipe").mkdir()
    (folder / "recipe" / "own.json").write_text(json.dumps({**recipe_to_dict(recipe), "extends": "lava"}))
    (folder / "recipe" / "own.toml").write_text('extends = "lava"\n[data]\nsize = [16, 16]\nseq_len = 6\n')
    _write_score(folder / "score")
    _write_pictures(folder / "pictures")
    _write_videos(folder / "videos")


def _write_score(folder: Path) -> None:
    folder.mkdir()
    measure = {"value": 1.0, "floor": 0.5, "ratio": 2.0}
    score = {"headline": {"image": 2.0, "motion": 1.5}, "clips": 4, "clip_length": 8, "seed": 0}
    (folder / "score.json").write_text(json.dumps({**score, "measures": {"image.frechet": measure}}))


def _write_pictures(folder: Path) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for suffix in ("png", "jpg", "webp", "bmp", "tif", "avif"):
        image.save(folder / f"a.{suffix}")
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "turned.jpg", exif=Image.Exif())
    image.save(folder / "moving.png", save_all=True, append_images=[image.rotate(90), image.rotate(180)])


def _write_videos(folder: Path) -> None:
    folder.mkdir()
    for name, codec in (
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mjpeg"),
    ):
        with av.open(str(folder / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=10)
            stream.width, stream.height = 32, 16
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(8):
                pixels = np.full((16, 32, 3), 20 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file: cut it, change bytes, or repeat, move or insert some. Of JSON, values may change."""
    if data[:1] in (b"{", b"[") and rng.random() < 0.6:
        return _mutate_json(data, rng)
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        at, end = sorted(int(each) for each in rng.integers(0, len(changed) + 1, 2))
        end = min(end, at + 64)
        kind = rng.integers(6)
        if kind == 0:
            changed[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            changed[at:end] = _NASTY_BYTES[int(rng.integers(len(_NASTY_BYTES)))]
        elif kind == 2:
            changed[at:at] = changed[at:end]
        elif kind == 3:
            del changed[at:end]
        elif kind == 4:
            changed[at:end] = rng.bytes(end - at)
        elif rng.random() < 0.3:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


def _mutate_json(data: bytes, rng: np.random.Generator) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:  # a file of lines
        lines = data.splitlines(keepends=True)
        at = int(rng.integers(len(lines)))
        return b"".join([*lines[:at], _mutate_json(lines[at], rng) + b"\n", *lines[at + 1 :]])
    places: list[tuple[Any, Any]] = []

    def collect(branch: Any) -> None:
        keys = (
            branch.keys()
            if isinstance(branch, dict)
            else range(len(branch))
            if isinstance(branch, list)
            else ()
        )
        for key in list(keys):
            places.append((branch, key))
            collect(branch[key])

    collect(value)
    for _ in range(int(rng.integers(1, 4))):
        branch, key = places[int(rng.integers(len(places)))]
        if isinstance(branch, dict) and rng.random() < 0.3:
            branch.pop(key, None)
        elif isinstance(branch, dict) or key < len(branch):
            branch[key] = _NASTY_VALUES[int(rng.integers(len(_NASTY_VALUES)))]
    text = json.dumps(value)
    return text.replace("Infinity", "1e999").encode() if rng.random() < 0.5 else text.encode()


Reader = Callable[[Path], object]
