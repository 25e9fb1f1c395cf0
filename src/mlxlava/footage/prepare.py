"""Videos, folders of pictures or the built-in lamp → prepared footage (its folder: see dataset.py).

Frames are written one by one, so memory does not grow with the length. Footage that was prepared before,
from the same sources with the same settings, is opened again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mlxlava.config import check_size, format_size
from mlxlava.errors import UserError
from mlxlava.footage import lamp
from mlxlava.footage.crop import Box, choose_box
from mlxlava.footage.cuts import CutFinder
from mlxlava.footage.dataset import FORMAT, Footage, open_footage, read_footage
from mlxlava.footage.pictures import common_size, pictures_in, read_picture
from mlxlava.footage.video import UNKNOWN_FPS, VideoDecoder, sample_runs
from mlxlava.paths import atomic_folder, cache_folder, is_system_file, is_taken
from mlxlava.resize import resize

LAMPS = 4  # different lamps in the built-in footage, so that a model cannot memorise a single one

_HEADER = 128  # bytes of the header of frames.npy
_AUTO_PICTURES = 64  # of a folder, looked at for what moves

OnProgress = Callable[[int, "int | None"], None]
OnWarning = Callable[[str], None]


def prepare(
    sources: Sequence[str | Path],
    out: Path | None,
    *,
    size: tuple[int, int],
    crop: str = "centre",
    every_nth: int = 1,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Footage:
    """Turn videos and folders of images into prepared footage, or reopen it if that was done before.

    The sources are hashed each time, so footage is reused only while they are unchanged. A single
    source that is prepared footage already is opened as it is.

    Args:
        sources: video files that ffmpeg reads, and folders of images (taken in natural order).
        out: folder to write; None for one in the user's cache, named after sources and settings.
        size: height and width of the prepared frames, multiples of 16.
        crop: ``centre``, ``auto`` (the moving region, found for each source) or ``X,Y,W,H`` in pixels.
        every_nth: keep every n-th frame of each source.
        on_progress: called with the frames kept so far and the expected number, if known.
        on_warning: called with one line for what is odd but usable.

    Raises:
        UserError: the sources cannot be used or the folder cannot be written.
    """
    check_size(size)
    if every_nth < 1:
        raise UserError(f"footage: every-nth must be at least 1, not {every_nth}")
    if not sources:
        raise UserError("footage: nothing given; give a video file or a folder of images")
    paths = [Path(source).expanduser() for source in sources]
    for path in paths:
        if not path.exists():
            raise UserError(f"footage: {path} does not exist; give a video file or a folder of images")
        if is_system_file(path.name):  # in some shells * matches hidden files too
            raise UserError(f"footage: {path} was made by the system and is no footage; leave it out")
    prepared = [path for path in paths if (path / "footage.json").is_file()]
    if prepared and len(paths) > 1:
        raise UserError(f"footage: {prepared[0]} is prepared already; give it alone, or the original files")
    if prepared:
        footage = open_footage(prepared[0])
        if footage.size != size:
            found, wanted = format_size(footage.size, "x"), format_size(size, "x")
            raise UserError(
                f"footage: {prepared[0]} is {found}, not {wanted}; "
                f"give --size {found} or prepare the original files again"
            )
        return footage

    try:
        hashes = [_hash_source(path) for path in paths]
    except OSError as error:
        raise UserError(f"footage: cannot read {error.filename}: {error.strerror}") from error
    settings = {"size": list(size), "crop": crop.replace(" ", ""), "every_nth": every_nth}
    key = _key({"sources": hashes, **settings})
    warn = on_warning or (lambda text: None)

    def write(frames: IO[bytes]) -> dict[str, Any]:
        parts = [_inspect(path, digest, size, crop) for path, digest in zip(paths, hashes, strict=True)]

        def keep(frame: np.ndarray) -> None:
            frames.write(frame.tobytes())

        return {**settings, **_read_sources(parts, keep, size, every_nth, on_progress)}

    footage, about = _reuse_or_write(out, key, write)
    for text in about["warnings"]:
        warn(text)
    return footage


def prepare_lamp(
    out: Path | None,
    *,
    size: tuple[int, int],
    minutes: float,
    fps: float,
    every_nth: int,
    seed: int,
    theme: str,
    on_progress: OnProgress | None = None,
) -> Footage:
    """Render the built-in lamp as prepared footage, or reopen it if that was done before.

    There are four lamps, each for a quarter of the time. Only the frames that are kept are rendered, at
    ``fps / every_nth``.

    Args:
        out: folder to write; None for one in the user's cache.
        size: height and width in pixels, multiples of 16.
        minutes: length of all four lamps together.
        fps: frames a second before ``every_nth``.
        every_nth: keep every n-th frame.
        seed: other seeds give other lamps.
        theme: colour theme of the lamp.
        on_progress: called with the frames rendered and their number.

    Raises:
        UserError: the settings make no frame or the folder cannot be written.
    """
    check_size(size)
    if not (minutes > 0 and fps > 0 and every_nth >= 1):
        raise UserError("footage: the built-in lamp needs positive minutes, frames a second and every-nth")
    settings = {"size": list(size), "crop": "none", "every_nth": every_nth}
    recipe = {"minutes": minutes, "fps": fps, "seed": seed, "theme": theme}
    each = max(1, round(minutes * 60 * fps / every_nth / LAMPS))

    def write(frames: IO[bytes]) -> dict[str, Any]:
        for number in range(LAMPS):
            stream = lamp.frames(size, fps=fps / every_nth, seed=LAMPS * seed + number, theme=theme)
            for index in range(each):
                frames.write(next(stream).tobytes())
                if on_progress:
                    on_progress(number * each + index + 1, LAMPS * each)
        source = {"path": "built-in lamp", "version": lamp.VERSION, "frames": LAMPS * each, **recipe}
        cuts = [number * each for number in range(1, LAMPS)]
        return {**settings, "sources": [source], "fps": fps, "cuts": cuts, "frames": LAMPS * each}

    return _reuse_or_write(out, _key({"lamp": lamp.VERSION, **settings, **recipe}), write)[0]


def _key(inputs: dict[str, Any]) -> str:
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reuse_or_write(
    out: Path | None, key: str, write: Callable[[IO[bytes]], dict[str, Any]]
) -> tuple[Footage, dict[str, Any]]:
    """Open the folder if it holds the footage of this key; else write it."""
    path = (out or cache_folder() / "footage" / key).expanduser().resolve()
    found = _matching(path, key)
    if found:
        return found
    if out and is_taken(path) and not (path / "footage.json").is_file():
        raise UserError(f"footage: {path} exists and is no prepared footage; give another -o")
    advice = "free some space or give another -o"

    def is_write_error(error: Exception) -> bool:
        return isinstance(error, OSError)

    # The cache folder holds libraries as well, which no other user may replace: hence private.
    with atomic_folder(path, "footage", is_write_error, advice=advice, private=out is None) as draft:
        with (draft / "frames.npy").open("wb") as frames:
            frames.write(bytes(_HEADER))
            about = write(frames)
            frames.seek(0)
            frames.write(_npy_header((about["frames"], *about["size"], 3)))
        about = {"format": FORMAT, "key": key, "warnings": [], **about}
        (draft / "footage.json").write_bytes(json.dumps(about, indent=2).encode())
    return read_footage(path)


def _matching(path: Path, key: str) -> tuple[Footage, dict[str, Any]] | None:
    """The footage in a folder, if it is undamaged and made from the same sources and settings."""
    with contextlib.suppress(UserError):
        footage, about = read_footage(path)
        if about.get("key") == key:
            return footage, about
    return None


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """A .npy header of fixed length: it is written last, when the number of frames is known."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    length = _HEADER - 10  # without the magic string, the version and the length itself
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source that can be read, and what is known about it."""

    path: Path
    sha256: str
    fps: float
    expected: int | None  # frames, where that is known
    box: Box
    pictures: tuple[Path, ...]  # empty for a video
    warnings: tuple[str, ...]


def _hash_source(path: Path) -> str:
    """SHA-256 of a video, or of the names and contents of a folder's images."""
    total = hashlib.sha256()
    for file in pictures_in(path) if path.is_dir() else [path]:
        if path.is_dir():
            total.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _inspect(path: Path, sha256: str, size: tuple[int, int], crop: str) -> _Source:
    """Check that a source yields frames, and choose the region to take from each."""
    pictures: tuple[Path, ...] = ()
    if path.is_dir():
        pictures = tuple(pictures_in(path))
        fps, picture = UNKNOWN_FPS, common_size(pictures)
        expected: int | None = len(pictures)
        some = pictures[:: max(1, len(pictures) // _AUTO_PICTURES)]
        runs: Iterator[Iterator[Image.Image]] = iter([map(read_picture, some)])
    else:
        with VideoDecoder(path) as video:
            first = next(iter(video), None)
            if first is None or video.is_text():
                why = "is a text file, not a video" if video.is_text() else video.why_nothing()
                raise UserError(f"footage: {path} {why}; give a video file or a folder of images")
            fps, expected, picture = video.fps(), video.expected_frames(), first.size
        runs = sample_runs(path)
    box, moving = choose_box(crop, picture, size, runs, path)
    warnings = () if moving else (f"footage: nothing moves in {path}, so --crop auto took the centre",)
    return _Source(path, sha256, fps, expected, box, pictures, warnings)


def _read_sources(
    sources: Sequence[_Source],
    keep: Callable[[np.ndarray], None],
    size: tuple[int, int],
    every_nth: int,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Give every n-th frame of all sources to ``keep``; returns what footage.json says about them."""
    warnings = [text for source in sources for text in source.warnings]
    fps = sources[0].fps
    for source in sources[1:]:
        if abs(source.fps - fps) > 0.01 * fps:
            warnings.append(
                f"footage: {source.path} has {source.fps:g} frames a second, the first source {fps:g}; "
                f"taken as {fps:g}"
            )
    known = [math.ceil(source.expected / every_nth) for source in sources if source.expected is not None]
    total = sum(known) if len(known) == len(sources) else None
    kept, cuts, entries = 0, [], []
    for source in sources:
        start, finder = kept, CutFinder()
        decoded = 0
        for image in _source_frames(source, warnings):
            frame = resize(image, size, source.box)
            finder.add(frame)
            if decoded % every_nth == 0:
                keep(frame)
                kept += 1
                if on_progress:
                    on_progress(kept, total if total is None else max(total, kept))
            decoded += 1
        # A cut at decoded frame c begins a segment at the first kept frame from c on.
        inside = (start + -(-cut // every_nth) for cut in finder.cuts())
        cuts += [start, *(cut for cut in inside if cut < kept)]
        entries.append(
            {
                "path": str(source.path.resolve()),
                "sha256": source.sha256,
                "frames": kept - start,
                "decoded_frames": decoded,
                "fps": source.fps,
                "fps_assumed": bool(source.pictures),
                "crop": list(source.box),
            }
        )
    if on_progress:
        on_progress(kept, kept)
    rising = sorted(set(cuts) - {0})
    return {"sources": entries, "fps": fps, "frames": kept, "cuts": rising, "warnings": warnings}


def _source_frames(source: _Source, warnings: list[str]) -> Iterator[Image.Image]:
    """All frames of a source; what ffmpeg complains of is added to the warnings."""
    if source.pictures:
        yield from map(read_picture, source.pictures)
        return
    count = 0
    with VideoDecoder(source.path) as video:
        for image in video:
            yield image
            count += 1
        if complaints := video.complaints():
            warnings.append(
                f"footage: {source.path} is damaged or cut short ({complaints[0]}); "
                f"used the {count} frames that decode"
            )
