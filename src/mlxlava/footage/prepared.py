"""Video files, folders of images or the built-in lamp → memory-mapped frames → batches of clips.

Prepared footage is a folder: ``frames.npy`` (uint8, N×H×W×3) and ``footage.json`` (where the frames
come from, how they were cut out, and where no clip may cross). A batch is a pure function of
(seed, step). Nothing here imports MLX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import struct
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

from mlxlava.config import check_size
from mlxlava.errors import UserError
from mlxlava.paths import cache_folder, is_systems_own, is_taken, make_private, names_in

FORMAT = 1
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FOLDER_FPS = 30.0  # a folder of images carries no rate
LAMPS = 4  # different lamps in the built-in footage, so that no single start is learned by heart

# A hard cut: the thumbnails of two neighbouring frames differ by more than this (of 255) …
CUT_CHANGE = 4.0
# … and by this many times what neighbours within half a second usually differ by. In a real lamp at
# 30 fps neighbours were seen to differ by 0.2 and at most 0.8, moments 8 s apart by 6.5 and more;
# a time-lapse differs by much throughout, so the ratio spares it.
CUT_RATIO = 5.0
CUT_WINDOW = 15  # frames looked at on either side

PASSTHROUGH = ("-fps_mode", "passthrough")  # frames as they are, none repeated to keep time

OnProgress = Callable[[int, "int | None"], None]
OnWarning = Callable[[str], None]
Box = tuple[int, int, int, int]  # x, y, width, height in source pixels


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
        if is_systems_own(path.name):  # a shell whose * matches hidden files hands them on
            raise UserError(f"footage: {path} was made by the system and is no footage; leave it out")
    prepared = [path for path in paths if (path / "footage.json").is_file()]
    if prepared and len(paths) > 1:
        raise UserError(f"footage: {prepared[0]} is prepared already; give it alone, or the original files")
    if prepared:
        footage = open_footage(prepared[0])
        if footage.size != size:
            raise UserError(
                f"footage: {prepared[0]} is {_hxw(footage.size)}, not {_hxw(size)}; "
                f"give --size {_hxw(footage.size)} or prepare the original files again"
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
            _write(frames, frame.tobytes())

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

    Four lamps of a quarter of the time each. Only the kept frames are rendered, at ``fps / every_nth``.

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
    from mlxlava.footage import lamp

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
                _write(frames, next(stream).tobytes())
                if on_progress:
                    on_progress(number * each + index + 1, LAMPS * each)
        source = {"path": "built-in lamp", "version": lamp.VERSION, "frames": LAMPS * each, **recipe}
        cuts = [number * each for number in range(1, LAMPS)]
        return {**settings, "sources": [source], "fps": fps, "cuts": cuts, "frames": LAMPS * each}

    return _reuse_or_write(out, _key({"lamp": lamp.VERSION, **settings, **recipe}), write)[0]


def open_footage(path: str | Path) -> Footage:
    """Open a folder of prepared footage; its frames stay on disk.

    Raises:
        UserError: the folder is no prepared footage, or is damaged.
    """
    return _open(Path(path))[0]


def draw_times(rng: np.random.Generator, batch_size: int, seq_len: int, drawn_frames: int) -> np.ndarray:
    """Draw which learned steps of each clip are looked at.

    The span (last − first) is log-uniform over K − 1 … seq_len − 1, so that short gaps, which show
    motion, are as common as long ones; the first time is uniform where the span fits, and the times
    between are distinct and uniform.

    Args:
        rng: source of randomness.
        batch_size: clips, B.
        seq_len: learned steps of a clip.
        drawn_frames: frames of each clip, K; 0 for all.

    Returns:
        int32 (B, K), rising along each row, within 0 … seq_len − 1.

    Raises:
        ValueError: more frames are drawn than a clip has.
    """
    if not 0 <= drawn_frames <= seq_len:
        raise ValueError(f"drawn_frames must lie in 0 … {seq_len}, not {drawn_frames}")
    if drawn_frames in (0, seq_len):
        return np.tile(np.arange(seq_len, dtype=np.int32), (batch_size, 1))
    if drawn_frames == 1:
        return rng.integers(0, seq_len, (batch_size, 1), dtype=np.int32)
    shortest = drawn_frames - 1
    span = np.floor(shortest * (seq_len / shortest) ** rng.random(batch_size)).astype(np.int64)
    span = np.minimum(span, seq_len - 1)
    first = rng.integers(0, seq_len - span)
    # The K − 2 smallest of span − 1 random keys pick that many distinct inner times.
    keys = rng.random((batch_size, seq_len - 1))
    keys[np.arange(seq_len - 1) >= (span - 1)[:, None]] = np.inf
    inner = np.sort(np.argsort(keys, axis=1)[:, : drawn_frames - 2], axis=1) + 1
    offsets = np.concatenate([np.zeros((batch_size, 1), np.int64), inner, span[:, None]], axis=1)
    times: np.ndarray = (first[:, None] + offsets).astype(np.int32)
    return times


@dataclasses.dataclass(frozen=True)
class Footage:
    """Prepared footage: frames on disk and where clips may lie.

    Attributes:
        path: the folder.
        frames: uint8 (N, H, W, 3), memory-mapped.
        fps: frames a second before ``every_nth``.
        every_nth: every how many frames one was kept.
        size: height and width in pixels.
        cuts: rising indices of the frames that begin a new segment; no clip crosses one.
        key: hash of the sources and the settings.
    """

    path: Path
    frames: np.ndarray
    fps: float
    every_nth: int
    size: tuple[int, int]
    cuts: tuple[int, ...]
    key: str = ""

    @property
    def step_fps(self) -> float:
        """Learned steps a second."""
        return self.fps / self.every_nth

    def _segments(self, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """First frame of each segment, and the clips in it."""
        bounds = np.array([0, *self.cuts, len(self.frames)], dtype=np.int64)
        return bounds[:-1], np.maximum(np.diff(bounds) - seq_len + 1, 0)

    def clip_count(self, seq_len: int) -> int:
        """How many different clips of ``seq_len`` frames there are."""
        return int(self._segments(seq_len)[1].sum())

    def clip_starts(self, seq_len: int) -> np.ndarray:
        """First frames of all clips of ``seq_len`` frames, int64, rising."""
        firsts, counts = self._segments(seq_len)
        return np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())

    def require(self, seq_len: int) -> None:
        """Raise UserError unless there is at least one clip of ``seq_len`` frames."""
        if self.clip_count(seq_len) == 0:
            longest = int(self._segments(1)[1].max())
            where = "the longest piece without a cut has" if self.cuts else "there are"
            raise UserError(
                f"footage: a clip needs {seq_len} frames, but {where} {longest} "
                f"(every-nth {self.every_nth}); give a smaller --seq-len or --every-nth, or longer footage"
            )

    def batch(
        self,
        seed: int,
        step: int,
        batch_size: int,
        seq_len: int,
        drawn_frames: int = 0,
        views: int = 0,
        rows: slice = slice(None),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a batch of clips: a pure function of its arguments, whatever was drawn before.

        Args:
            seed: seed of the run.
            step: training step.
            batch_size: clips, B; their starts are uniform among all valid ones.
            seq_len: learned steps that a clip spans.
            drawn_frames: frames of each clip to return, K (see ``draw_times``); 0 for all.
            views: evenly spaced frames of each clip, first to last, that come before those, V.
            rows: clips of the batch to read; all by default.

        Returns:
            Frames of those clips, uint8 (rows, V + K, H, W, 3), and the times in the clip of the whole
            batch's frames, int32 (B, V + K).

        Raises:
            UserError: the footage is shorter than one clip.
        """
        self.require(seq_len)
        firsts, counts = self._segments(seq_len)
        ends = np.cumsum(counts)
        key = np.array([seed & 0xFFFFFFFFFFFFFFFF, step], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        number = rng.integers(0, ends[-1], batch_size)
        segment = np.searchsorted(ends, number, side="right")
        starts = firsts[segment] + number - (ends - counts)[segment]
        times = draw_times(rng, batch_size, seq_len, drawn_frames)
        if views:
            spaced = np.linspace(0, seq_len - 1, views).round().astype(np.int32)
            times = np.concatenate([np.tile(spaced, (batch_size, 1)), times], axis=1)
        return self.frames[(starts[:, None] + times)[rows]], times


# --- the folder on disk -------------------------------------------------------------------------


def _key(inputs: dict[str, Any]) -> str:
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _open(path: Path) -> tuple[Footage, dict[str, Any]]:
    """Open prepared footage, and what its footage.json says."""
    again = "prepare it again"
    try:
        about = json.loads((path / "footage.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(f"footage: {path} has format {about['format']}, not {FORMAT}; {again}")
        frames = np.load(path / "frames.npy", mmap_mode="r")
        size = (int(about["size"][0]), int(about["size"][1]))
        cuts = tuple(int(cut) for cut in about["cuts"])
        fps, every_nth = float(about["fps"]), int(about["every_nth"])
    except FileNotFoundError as error:
        raise UserError(f"footage: {path} is no prepared footage: no {Path(error.filename).name}") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"footage: {path} is damaged ({error}); {again}") from error
    if frames.dtype != np.uint8 or frames.shape != (about.get("frames"), *size, 3) or not len(frames):
        raise UserError(f"footage: {path} is damaged (frames.npy is not as footage.json says); {again}")
    if list(cuts) != sorted({cut for cut in cuts if 0 < cut < len(frames)}) or not (fps > 0 < every_nth):
        raise UserError(f"footage: {path} is damaged (footage.json makes no sense); {again}")
    return Footage(path, frames, fps, every_nth, size, cuts, str(about.get("key", ""))), about


def _reuse_or_write(
    out: Path | None, key: str, write: Callable[[IO[bytes]], dict[str, Any]]
) -> tuple[Footage, dict[str, Any]]:
    """Open the folder if it holds the footage of this key, else write it whole, then move it there."""
    path = (out or cache_folder() / "footage" / key).expanduser().resolve()
    found = _matching(path, key)
    if found:
        return found
    if out and is_taken(path) and not (path / "footage.json").is_file():
        raise UserError(f"footage: {path} exists and is no prepared footage; give another -o")
    partial_path = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        if out is None:
            make_private(path.parent)  # the cache folder holds libraries as well
        partial_path.mkdir(parents=True)
        with (partial_path / "frames.npy").open("wb") as frames:
            _write(frames, bytes(128))
            about = write(frames)
            frames.seek(0)
            _write(frames, _npy_header((about["frames"], *about["size"], 3)))
            _sync(frames)
        with (partial_path / "footage.json").open("wb") as file:
            about = {"format": FORMAT, "key": key, "warnings": [], **about}
            _write(file, json.dumps(about, indent=2).encode())
            _sync(file)
        _move(partial_path, path, key)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"footage: cannot write {path}: {why}; free some space or give another -o") from error
    finally:
        shutil.rmtree(partial_path, ignore_errors=True)
    return _open(path)


def _matching(path: Path, key: str) -> tuple[Footage, dict[str, Any]] | None:
    """The footage in a folder, if it is undamaged and made from the same sources and settings."""
    with contextlib.suppress(UserError):
        footage, about = _open(path)
        if about.get("key") == key:
            return footage, about
    return None


def _move(source: Path, target: Path, key: str) -> None:
    """Put a finished folder in place of an older one, or of nothing."""
    if _matching(target, key):
        return  # another process was quicker, with the same result
    old = source.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        source.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):  # not every system syncs a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """A .npy header of exactly 128 bytes, so that it can be written when the frames are counted."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def _hxw(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- sources ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    """A source that was looked at and can be read."""

    path: Path
    sha256: str
    fps: float
    expected: int | None  # frames, where that is known
    box: Box
    images: tuple[Path, ...]  # empty for a video
    warnings: tuple[str, ...]


def _hash_source(path: Path) -> str:
    """SHA-256 of a video, or of the names and contents of a folder's images."""
    total = hashlib.sha256()
    for file in _images(path) if path.is_dir() else [path]:
        if path.is_dir():
            total.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _inspect(path: Path, sha256: str, size: tuple[int, int], crop: str) -> _Source:
    """Check that a source yields frames, and choose the region to take from each."""
    images: tuple[Path, ...] = ()
    if path.is_dir():
        images = tuple(_images(path))
        fps, picture = FOLDER_FPS, _common_size(images)
        expected: int | None = len(images)
        runs: Iterator[Iterator[Image.Image]] = iter([_image_frames(images[:: max(1, len(images) // 64)])])
    else:
        with _Decoder(path) as video:
            first = next(iter(video), None)
            if first is None or video.is_text():
                why = "is a text file, not a video" if video.is_text() else video.why_nothing()
                raise UserError(f"footage: {path} {why}; give a video file or a folder of images")
            fps, expected, picture = video.fps(), video.expected(), first.size
        runs = _video_runs(path)
    warnings: tuple[str, ...] = ()
    name = crop.strip().lower()
    if name in ("centre", "center"):
        box = _fit((picture[0] / 2, picture[1] / 2), (0, 0), picture, size)
    elif name == "auto":
        box, moving = _moving_region(runs, picture, size)
        if not moving:
            warnings = (f"footage: nothing moves in {path}, so --crop auto took the centre",)
    else:
        box = _parse_crop(crop, picture, path)
    return _Source(path, sha256, fps, expected, box, images, warnings)


def _read_sources(
    sources: Sequence[_Source],
    keep: Callable[[np.ndarray], None],
    size: tuple[int, int],
    every_nth: int,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Hand on the kept frames of all sources in turn; returns what footage.json says of them."""
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
        start, changes = kept, _Changes()
        decoded = 0
        for image in _source_frames(source, warnings):
            frame = _resize(image, source.box, size)
            changes.add(frame)
            if decoded % every_nth == 0:
                keep(frame)
                kept += 1
                if on_progress:
                    on_progress(kept, total if total is None else max(total, kept))
            decoded += 1
        # A cut at decoded frame c begins a segment at the first kept frame from c on.
        inside = (start + -(-cut // every_nth) for cut in changes.cuts())
        cuts += [start, *(cut for cut in inside if cut < kept)]
        entries.append(
            {
                "path": str(source.path.resolve()),
                "sha256": source.sha256,
                "frames": kept - start,
                "decoded_frames": decoded,
                "fps": source.fps,
                "fps_assumed": bool(source.images),
                "crop": list(source.box),
            }
        )
    if on_progress:
        on_progress(kept, kept)
    rising = sorted(set(cuts) - {0})
    return {"sources": entries, "fps": fps, "frames": kept, "cuts": rising, "warnings": warnings}


def _source_frames(source: _Source, warnings: list[str]) -> Iterator[Image.Image]:
    """All frames of a source; what ffmpeg complains of is added to the warnings."""
    if source.images:
        yield from _image_frames(source.images)
        return
    count = 0
    with _Decoder(source.path) as video:
        for image in video:
            yield image
            count += 1
        if complaints := video.complaints():
            warnings.append(
                f"footage: {source.path} is damaged or cut short ({complaints[0]}); "
                f"used the {count} frames that decode"
            )


def _images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; hidden and other files are left out."""
    names = (name for name in names_in(folder) if not name.startswith("."))
    files = [folder / name for name in names if (folder / name).is_file()]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        what = "has no images (png, jpg, webp, bmp, tif)" if files else "is an empty folder"
        raise UserError(f"footage: {folder} {what}; give a folder of images or the video files themselves")
    return sorted(images, key=lambda file: (_natural(file.name), file.name))


def _natural(name: str) -> list[str | int]:
    """A sort key by which img2 comes before img10."""
    # Texts and numbers alternate, so that no text is ever compared with a number.
    return [int(part) if odd % 2 else part for odd, part in enumerate(re.split("([0-9]+)", name.lower()))]


def _open_image(file: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(file)
        image.load()
        if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip, not scale
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"footage: cannot read the image {file} ({error}); repair or remove it") from error


def _image_frames(files: Iterable[Path]) -> Iterator[Image.Image]:
    return map(_open_image, files)


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    """Width and height that all images share."""

    def measure(file: Path) -> tuple[int, int]:
        try:
            with Image.open(file) as image:  # reads the header only
                turned = image.getexif().get(0x0112, 1) >= 5  # orientations that lie on their side
                return (image.height, image.width) if turned else (image.width, image.height)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"footage: cannot read the image {file} ({error}); repair or remove it"
            ) from error

    first = measure(files[0])
    for file in files[1:]:
        size = measure(file)
        if size != first:
            raise UserError(
                f"footage: images differ in size: {files[0]} is {first[0]}x{first[1]}, "
                f"{file.name} is {size[0]}x{size[1]} (width x height); give images of one size"
            )
    return first


class _Decoder:
    """One run of ffmpeg: frames while they decode, and what its log says.

    Frames come as PPM, whose headers carry the size after rotation, at a constant rate: where a
    video's rate varies, frames are repeated or left out, so that a step is always the same time.
    """

    def __init__(
        self, path: Path, *, input_options: Sequence[str] = (), output_options: Sequence[str] = ()
    ) -> None:
        try:
            program = imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError as error:
            raise UserError(f"footage: {error}") from error
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        command = [program, "-nostdin", "-nostats", "-hide_banner"]
        command += ["-loglevel", "level+info", "-protocol_whitelist", "file,pipe", *input_options]
        # V is video that is no cover picture; pixels that are not square are made so.
        command += ["-i", f"file:{path.resolve()}", "-map", "0:V:0"]
        command += ["-vf", "scale=round(iw*sar):ih", "-pix_fmt", "rgb24"]
        command += [*output_options, "-c:v", "ppm", "-f", "image2pipe", "-"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log
        )

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def __iter__(self) -> Iterator[Image.Image]:
        pipe = self.process.stdout
        assert pipe is not None
        while pipe.readline() == b"P6\n":
            width, height = map(int, pipe.readline().split())
            pipe.readline()
            data = pipe.read(3 * width * height)
            if len(data) < 3 * width * height:
                break
            yield Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)

    def text(self) -> str:
        """The log so far."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), min(size, 1 << 16), 0).decode("utf-8", "replace")

    def fps(self) -> float:
        """Frames a second that ffmpeg puts out; its log has them before the first frame comes."""
        found = re.search(r"Output #0.*?([0-9.]+)(k?) fps", self.text(), re.DOTALL)
        return float(found[1]) * (1000 if found[2] else 1) if found else FOLDER_FPS

    def expected(self) -> int | None:
        """Frames by the length that the file claims."""
        found = re.search(r"Duration: (\d+):(\d+):([0-9.]+)", self.text())
        if not found:
            return None
        return round((int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])) * self.fps())

    def complaints(self) -> list[str]:
        """What ffmpeg calls errors, without its prefixes, once all frames are read."""
        code = self.process.wait()
        lines = [line for line in self.text().splitlines() if "[error]" in line or "[fatal]" in line]
        texts = [re.sub(r"^(\[[^]]*\] )*", "", line).strip() for line in lines]
        return texts or ([f"ffmpeg ended with code {code}"] if code else [])

    def is_text(self) -> bool:
        """Whether ffmpeg draws a text file as if on a terminal; known from the first frame on."""
        return "Input #0, tty" in self.text()

    def why_nothing(self) -> str:
        """Why there is no first frame."""
        complaints = self.complaints()
        if any("matches no streams" in line for line in complaints):
            return "has no video stream"
        return f"cannot be read as a video ({complaints[0] if complaints else 'no frame decodes'})"


# --- pictures -----------------------------------------------------------------------------------


def _resize(image: Image.Image, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Crop and resize to uint8 (H, W, 3): the mean over the source pixels that fall into each."""
    x, y, width, height = box
    reducing = width >= size[1] and height >= size[0]
    how = Image.Resampling.BOX if reducing else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size[1], size[0]), how, box=(x, y, x + width, y + height)))


def _parse_crop(crop: str, picture: tuple[int, int], path: Path) -> Box:
    try:
        x, y, width, height = (int(part) for part in crop.split(","))
    except ValueError:
        raise UserError(
            f"footage: cannot read --crop {crop!r}; give centre, auto or X,Y,W,H in pixels"
        ) from None
    if min(x, y) < 0 or min(width, height) < 1 or x + width > picture[0] or y + height > picture[1]:
        raise UserError(
            f"footage: --crop {crop} does not lie in the picture of {path}, "
            f"which is {picture[0]} wide and {picture[1]} high"
        )
    return x, y, width, height


def _fit(
    middle: tuple[float, float], least: tuple[float, float], picture: tuple[int, int], size: tuple[int, int]
) -> Box:
    """A box of the frame's aspect around a middle point: ``least`` wide and high (0: the largest)."""
    most = min(picture[0] / size[1], picture[1] / size[0])  # source pixels a frame pixel
    scale = min(max(least[0] / size[1], least[1] / size[0]) or most, most)
    width, height = max(1, round(scale * size[1])), max(1, round(scale * size[0]))
    x = min(max(round(middle[0] - width / 2), 0), picture[0] - width)
    y = min(max(round(middle[1] - height / 2), 0), picture[1] - height)
    return x, y, width, height


def _moving_region(
    runs: Iterable[Iterable[Image.Image]], picture: tuple[int, int], size: tuple[int, int]
) -> tuple[Box, bool]:
    """The box around what changes in time, and whether anything does; else the centre.

    The runs are samples of the footage, the cheapest first; one of 16 frames or more will do.
    """
    grid = (max(1, round(picture[0] / max(picture) * 160)), max(1, round(picture[1] / max(picture) * 160)))
    for run in runs:
        count, total, squares = 0, np.zeros(grid[::-1]), np.zeros(grid[::-1])
        for image in run:
            grey = np.asarray(image.convert("L").resize(grid, Image.Resampling.BOX), dtype=np.float64)
            count, total, squares = count + 1, total + grey, squares + grey**2
        if count >= 16:
            break
    spread = np.sqrt(np.maximum(squares / max(count, 1) - (total / max(count, 1)) ** 2, 0))
    # What varies by less than a quarter of the liveliest part, or by under 2 of 255, is noise or glow.
    energy = np.where(spread > max(2.0, 0.25 * float(np.percentile(spread, 99.5))), spread, 0)
    if not energy.any():
        return _fit((picture[0] / 2, picture[1] / 2), (0, 0), picture, size), False
    # 98 % of the change along either axis, so that a speck far off counts for nothing.
    (left, right), (top, bottom) = (_middle(energy.sum(axis=axis)) for axis in (0, 1))
    across, down = picture[0] / grid[0], picture[1] / grid[1]
    least = (1.2 * (right - left) * across, 1.2 * (bottom - top) * down)  # a tenth to spare on either side
    return _fit(((left + right) / 2 * across, (top + bottom) / 2 * down), least, picture, size), True


def _middle(weights: np.ndarray) -> tuple[int, int]:
    """The range of cells that holds all but 1 % of the weight on either side."""
    share = np.cumsum(weights) / weights.sum()
    return int(np.searchsorted(share, 0.01)), int(np.searchsorted(share, 0.99)) + 1


def _video_runs(path: Path) -> Iterator[Iterator[Image.Image]]:
    """The key frames of a video, which decode fast, then all its frames."""
    for skipped in ("nokey", "none"):
        with _Decoder(path, input_options=("-skip_frame", skipped), output_options=PASSTHROUGH) as video:
            yield iter(video)


def find_cuts(changes: np.ndarray) -> list[int]:
    """Find hard cuts; motion, flicker, time-lapse and single flashes are none.

    Args:
        changes: (N, 3), for each frame the mean absolute differences (0 … 255) of its thumbnail to
            the one before it; to that at the same brightness; to the last but one at the same
            brightness. 0 where there is none before.

    Returns:
        Rising indices of the frames that begin a new scene.
    """
    plain, change, skip = np.asarray(changes, dtype=np.float64).reshape(-1, 3).T
    cuts = []
    for at in np.flatnonzero(change > CUT_CHANGE).tolist():
        nearby = np.concatenate([plain[max(1, at - CUT_WINDOW) : at], plain[at + 1 : at + 1 + CUT_WINDOW]])
        # Not the median: a slow source in a faster container repeats most of its frames.
        typical = float(np.percentile(nearby, 85)) if len(nearby) else math.inf
        # The neighbours on either side of a single odd frame are alike.
        before = at < 2 or skip[at] > 0.5 * change[at]
        after = at + 1 >= len(change) or skip[at + 1] > 0.5 * change[at]
        if change[at] > CUT_RATIO * typical and before and after:
            cuts.append(at)
    return cuts


class _Changes:
    """How each frame differs from the two before it: 12 bytes a frame."""

    def __init__(self) -> None:
        self.rows = array("f")
        self.last: list[np.ndarray] = []

    def add(self, frame: np.ndarray) -> None:
        thumbnail = Image.fromarray(frame).resize((16, 16), Image.Resampling.BOX)
        now = np.asarray(thumbnail, dtype=np.float32)
        before = [*([now] * (2 - len(self.last))), *self.last]
        self.rows.append(float(np.abs(now - before[1]).mean()))
        for then in before[::-1]:
            gain = float((now * then).sum() / max(float((then * then).sum()), 1.0))
            self.rows.append(float(np.abs(now - min(max(gain, 0.7), 1.4) * then).mean()))
        self.last = [before[1], now]

    def cuts(self) -> list[int]:
        return find_cuts(np.asarray(self.rows))
