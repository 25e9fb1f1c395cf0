"""Videos, folders of pictures or the built-in lamp → prepared footage (its folder: see dataset.py).

Frames are written one by one, so memory does not grow with the length. If the same sources were prepared
before with the same settings, that footage is opened again.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import math
import struct
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlxlava.config import check_size, format_size
from mlxlava.errors import UserError
from mlxlava.footage import simulated_lamp
from mlxlava.footage.cuts import CutFinder
from mlxlava.footage.dataset import FOOTAGE_FORMAT_VERSION, Footage, is_prepared, read_footage
from mlxlava.footage.pictures import list_pictures
from mlxlava.footage.source import OddityCounts, Source, describe_oddities, open_source
from mlxlava.footage.timing import TimeGrid
from mlxlava.paths import atomic_folder, cache_folder, is_system_file, is_taken, require_space
from mlxlava.resize import resize

LAMP_COUNT = 4  # different lamps in the built-in footage, so that a model cannot memorise one lamp

_NPY_HEADER_BYTES = 128  # bytes of the header of frames.npy
_VIDEO_READER_VERSION = 2  # version of the reader of videos; it is part of the key of their footage
_MAX_RATE_DIFFERENCE = 0.01  # rates with a smaller relative difference count as equal

OnProgress = Callable[[int, "int | None"], None]
OnWarning = Callable[[str], None]


def prepare(
    sources: Sequence[str | Path],
    out: Path | None,
    *,
    size: tuple[int, int],
    crop: str = "centre",
    every_nth: int = 1,
    source_fps: float | None = None,
    on_progress: OnProgress | None = None,
    on_warning: OnWarning | None = None,
) -> Footage:
    """Turn videos and folders of images into prepared footage, or reopen it if it was prepared before.

    The sources are hashed each time, so footage is reused only while they are unchanged. A single
    source that is prepared footage already is opened as it is. If it is 2, 3 … times as large, it is
    averaged down.

    Frames are kept at evenly spaced times, by the time stamps of the file. Irregularities of a source are
    reported: frames that are repeated, left out, out of order or damaged, holes, changes of size. No clip
    crosses a hole or a change of size. If sources have different rates, frames are kept at the lowest rate.

    Args:
        sources: videos, pictures, and folders of images (taken in natural order).
        out: folder to write. None for a folder in the user's cache, named by a hash of sources and settings.
        size: height and width of the prepared frames, multiples of 16.
        crop: ``centre``, ``auto`` (the lamp of each source, found by its motion) or ``X,Y,W,H`` in pixels.
        every_nth: keep every n-th frame of each source.
        source_fps: true frames per second, if the files have no rate, or have the rate of a time-lapse.
        on_progress: called with the frames kept so far and the expected number, if known.
        on_warning: called with one line for each irregularity that does not prevent the use of a source.

    Raises:
        UserError: the sources cannot be used or the folder cannot be written.
    """
    check_size(size)
    if every_nth < 1:
        raise UserError(f"footage: every-nth must be at least 1, not {every_nth}")
    if source_fps is not None and not 0 < source_fps < math.inf:
        raise UserError(f"footage: --source-fps must be a positive number, not {source_fps}")
    paths = source_paths(sources)
    if is_prepared(paths[0]):  # then it is the only one
        return _open_prepared(paths[0], size, out, on_progress)
    try:
        hashes = [_hash_source(path) for path in paths]
    except OSError as error:
        raise UserError(f"footage: cannot read {error.filename}: {error.strerror}") from error
    settings = {"size": list(size), "crop": crop.replace(" ", ""), "every_nth": every_nth}
    if source_fps is not None:
        settings["source_fps"] = source_fps
    # The reader of pictures has not changed since the first version, except for cases that failed before.
    reader = {} if all(path.is_dir() for path in paths) else {"reader": _VIDEO_READER_VERSION}
    key = _hash_settings({"sources": hashes, **settings, **reader})

    def write(frames: IO[bytes]) -> dict[str, Any]:
        opened = [open_source(path, size, crop, source_fps) for path in paths]
        expected = sum((source.expected or 0) / every_nth for source in opened)
        _require_space(Path(frames.name), expected, size)
        read = _read_sources(opened, lambda frame: frames.write(frame.tobytes()), every_nth, on_progress)
        for entry, digest in zip(read["sources"], hashes, strict=True):
            entry["sha256"] = digest
        return {**settings, **read}

    footage, about = _reopen_or_write(out, key, write)
    if on_warning:
        for text in [*_assumed_rate_warnings(about), *about["warnings"]]:
            on_warning(text)
    return footage


def _open_prepared(
    path: Path, size: tuple[int, int], out: Path | None, on_progress: OnProgress | None
) -> Footage:
    """Open prepared footage; if it is 2, 3 … times as large as ``size``, average it down.

    Raises:
        UserError: it has another size.
    """
    footage, about = read_footage(path)
    times = footage.size[0] // size[0]
    if times > 1 and footage.size == (times * size[0], times * size[1]):
        return _average_down(footage, about, size, out, on_progress)
    if footage.size != size:
        found, wanted = format_size(footage.size, "x"), format_size(size, "x")
        raise UserError(
            f"footage: {path} is {found}, not {wanted}; "
            f"give --size {found} or prepare the original files again"
        )
    return footage


def _average_down(
    footage: Footage,
    about: dict[str, Any],
    size: tuple[int, int],
    out: Path | None,
    on_progress: OnProgress | None,
) -> Footage:
    """Make prepared footage smaller by a whole factor, or reopen it if that was done before."""
    smaller = {**about, "size": list(size)}

    def write(frames: IO[bytes]) -> dict[str, Any]:
        for number, frame in enumerate(footage.frames):
            frames.write(resize(frame, size).tobytes())
            if on_progress:
                on_progress(number + 1, len(footage.frames))
        return smaller

    key = _hash_settings({"averaged_down": smaller})
    smaller["key"] = key
    return _reopen_or_write(out, key, write)[0]


def source_paths(sources: Sequence[str | Path]) -> list[Path]:
    """The paths of sources.

    Raises:
        UserError: one of them does not exist, is a pipe or a device, or is prepared footage beside others.
    """
    if not sources:
        raise UserError("footage: nothing given; give a video file or a folder of images")
    paths = [Path(source).expanduser() for source in sources]
    for path in paths:
        if not path.exists():
            raise UserError(f"footage: {path} does not exist; give a video file or a folder of images")
        if is_system_file(path.name):  # in some shells * also matches hidden files
            raise UserError(f"footage: {path} was made by the system and is no footage; leave it out")
        if not path.is_dir() and not path.is_file():  # a pipe can be read only once, but files are read twice
            raise UserError(f"footage: {path} is a pipe or a device; write it to a file first, and give that")
        if is_prepared(path) and len(paths) > 1:
            raise UserError(f"footage: {path} is prepared already; give it alone, or the original files")
    return paths


def _assumed_rate_warnings(about: dict[str, Any]) -> list[str]:
    """A warning for each source whose rate is unknown."""
    return [
        f"footage: {source['path']}: nothing tells its rate; taken as {source['fps']:g} frames a second; "
        "give the true one with --source-fps"
        for source in about["sources"]
        if source.get("fps_assumed") and source["frames"] > 1
    ]


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
    """Render the built-in lamp as prepared footage, or reopen it if it was rendered before.

    There are four lamps, each for a quarter of the time. Only the frames that are kept are rendered, at
    ``fps / every_nth``.

    Args:
        out: folder to write; None for one in the user's cache.
        size: height and width in pixels, multiples of 16.
        minutes: total length of all four lamps.
        fps: frames a second before ``every_nth``.
        every_nth: keep every n-th frame.
        seed: seed of the lamps.
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
    each = max(1, round(minutes * 60 * fps / every_nth / LAMP_COUNT))

    def write(frames: IO[bytes]) -> dict[str, Any]:
        _require_space(Path(frames.name), LAMP_COUNT * each, size)
        for number in range(LAMP_COUNT):
            stream = simulated_lamp.frames(
                size, fps=fps / every_nth, seed=LAMP_COUNT * seed + number, theme=theme
            )
            for index in range(each):
                frames.write(next(stream).tobytes())
                if on_progress:
                    on_progress(number * each + index + 1, LAMP_COUNT * each)
        source = {
            "path": "built-in lamp",
            "version": simulated_lamp.LAMP_VERSION,
            "frames": LAMP_COUNT * each,
            **recipe,
        }
        cuts = [number * each for number in range(1, LAMP_COUNT)]
        return {**settings, "sources": [source], "fps": fps, "cuts": cuts, "frames": LAMP_COUNT * each}

    return _reopen_or_write(
        out, _hash_settings({"lamp": simulated_lamp.LAMP_VERSION, **settings, **recipe}), write
    )[0]


def _require_space(file: Path, frames: float, size: tuple[int, int]) -> None:
    """Raise UserError where the frames to be written into a file are more than its disk has room for."""
    require_space(
        file.parent,
        frames * math.prod(size) * 3,
        f"footage: {frames:.0f} frames of {format_size(size)}",
        "give less footage or fewer minutes, a smaller --size or a larger --every-nth",
    )


def _hash_settings(inputs: dict[str, Any]) -> str:
    text = json.dumps({"format": FOOTAGE_FORMAT_VERSION, **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _reopen_or_write(
    out: Path | None, key: str, write: Callable[[IO[bytes]], dict[str, Any]]
) -> tuple[Footage, dict[str, Any]]:
    """Open the folder if it holds the footage with this key; else write it."""
    path = (out or cache_folder() / "footage" / key).expanduser().resolve()
    with contextlib.suppress(UserError):  # there is none, or it is damaged
        footage, about = read_footage(path)
        if footage.key == key:
            return footage, about
    if out and is_taken(path) and not is_prepared(path):
        raise UserError(f"footage: {path} exists and is not prepared footage; give another -o")
    advice = "free some space or give another -o"

    def is_write_error(error: Exception) -> bool:
        return isinstance(error, OSError)

    # The cache is private, since it also holds libraries, which other users must not replace.
    with atomic_folder(path, "footage", is_write_error, advice=advice, private=out is None) as draft:
        with (draft / "frames.npy").open("wb") as frames:
            frames.write(bytes(_NPY_HEADER_BYTES))
            about = write(frames)
            frames.seek(0)
            frames.write(_npy_header((about["frames"], *about["size"], 3)))
        about = {"format": FOOTAGE_FORMAT_VERSION, "key": key, "warnings": [], **about}
        (draft / "footage.json").write_bytes(json.dumps(about, indent=2).encode())
    return read_footage(path)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """A .npy header of fixed length. It is written last, when the number of frames is known."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    length = _NPY_HEADER_BYTES - 10  # without the magic string, the version and the length itself
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def _hash_source(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's images."""
    total = hashlib.sha256()
    for file in list_pictures(path) if path.is_dir() else [path]:
        if path.is_dir():
            total.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _read_sources(
    sources: Sequence[Source],
    keep: Callable[[np.ndarray], object],
    every_nth: int,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Call ``keep`` with the frames of all sources. Returns their entries for footage.json."""
    fps, warnings = sources[0].fps, []
    slowest = min(source.fps for source in sources)
    if any(abs(source.fps - fps) > _MAX_RATE_DIFFERENCE * fps for source in sources):
        fps = slowest
        rates = ", ".join(f"{source.path} has {source.fps:.4g}" for source in sources)
        warnings.append(f"footage: rates differ ({rates} frames a second); {fps:.4g} of each are taken")
    # Sources of about the same rate keep their own. So 29.97 and 30 together repeat no frame.
    rates_kept = [
        source.fps if abs(source.fps - fps) <= _MAX_RATE_DIFFERENCE * fps else fps for source in sources
    ]
    known = [
        math.ceil(source.expected * rate / source.fps / every_nth)
        for source, rate in zip(sources, rates_kept, strict=True)
        if source.expected is not None
    ]
    total = sum(known) if len(known) == len(sources) else None
    kept, cuts, entries = 0, [], []

    def take(frame: np.ndarray) -> None:
        nonlocal kept
        keep(frame)
        kept += 1
        if on_progress:
            on_progress(kept, total if total is None else max(total, kept))

    for source, rate in zip(sources, rates_kept, strict=True):
        start = kept
        counts = OddityCounts()
        problems: list[str] = []
        inside = _read_source(source, every_nth / rate, take, counts, problems)
        if kept == start:
            raise UserError(f"footage: {source.path}: no frame of it decodes; give another file")
        cuts += [start, *(start + cut for cut in inside if start + cut < kept)]
        warnings += describe_oddities(source, counts, problems)
        entries.append(_describe_source(source, kept - start, counts))
    if on_progress:
        on_progress(kept, kept)
    rising = sorted(set(cuts) - {0})
    return {"sources": entries, "fps": fps, "frames": kept, "cuts": rising, "warnings": warnings}


def _read_source(
    source: Source,
    period: float,
    take: Callable[[np.ndarray], None],
    counts: OddityCounts,
    problems: list[str],
) -> list[int]:
    """Call ``take`` with the frames nearest to evenly spaced times. Returns the cuts between these frames."""
    finder, begins = CutFinder(), []
    origins = array("q")  # for each kept frame, its number among all frames
    grid, every_frame = TimeGrid(period), TimeGrid(1 / source.fps)
    before: np.ndarray | None = None

    def take_before(times: int, of_every_frame: int) -> None:
        assert before is not None
        counts.repeated += max(of_every_frame - 1, 0)
        counts.left_out += of_every_frame == 0
        for _ in range(times):
            take(before)
            origins.append(counts.decoded - 2)

    for moment in source.timed_frames(counts, problems):
        if moment.begins:
            begins.append(counts.decoded - 1)
            take_before(grid.finish(1 / source.fps), every_frame.finish(1 / source.fps))
        times, of_every_frame = grid.add_stamp(moment.stamp), every_frame.add_stamp(moment.stamp)
        if before is not None and not moment.begins:
            take_before(times, of_every_frame)
        finder.add_frame(moment.frame)
        before = moment.frame
    if before is not None:
        counts.decoded += 1  # take_before expects one more frame
        take_before(grid.finish(1 / source.fps), every_frame.finish(1 / source.fps))
        counts.decoded -= 1
    return [bisect.bisect_left(origins, cut) for cut in sorted({*finder.cuts(), *begins})]


def _describe_source(source: Source, frames: int, counts: OddityCounts) -> dict[str, Any]:
    """The entry of a source in footage.json."""
    entry: dict[str, Any] = {
        "path": str(source.path.resolve()),
        "sha256": "",
        "frames": frames,
        "decoded_frames": counts.decoded,
        "fps": source.fps,
        "fps_assumed": source.rate == "assumed",
        "crop": list(source.box),
    }
    if source.timing is not None:
        odd = {name: count for name, count in vars(counts).items() if name != "decoded"}
        entry["odd"] = {"uneven": source.timing.uneven, **odd}
    return entry
