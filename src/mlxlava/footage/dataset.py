"""Prepared footage, and the batches of clips that are drawn from it (``Footage.batch``).

Prepared footage is a folder: ``frames.npy`` (uint8, N×H×W×3) and ``footage.json`` (the sources, the crop,
and the cuts, which no clip may cross). prepare.py writes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxlava.errors import UserError
from mlxlava.paths import read_json
from mlxlava.records import FOOTAGE
from mlxlava.schema import Mismatch, show

FOOTAGE_FORMAT_VERSION = 1  # of the folder; it is part of every key


@dataclasses.dataclass(frozen=True)
class Footage:
    """Prepared footage: frames on disk, and the places of its clips.

    Attributes:
        path: the folder.
        frames: uint8 (N, H, W, 3), memory-mapped.
        fps: frames a second before ``every_nth``.
        every_nth: every n-th frame was kept.
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

    def _segment_starts_and_clip_counts(self, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """The first frame of each segment, and the number of clips in it."""
        bounds = np.array([0, *self.cuts, len(self.frames)], dtype=np.int64)
        return bounds[:-1], np.maximum(np.diff(bounds) - seq_len + 1, 0)

    def clip_count(self, seq_len: int) -> int:
        """How many different clips of ``seq_len`` frames there are."""
        return int(self._segment_starts_and_clip_counts(seq_len)[1].sum())

    def clip_starts(self, seq_len: int) -> np.ndarray:
        """First frames of all clips of ``seq_len`` frames, int64, rising."""
        firsts, counts = self._segment_starts_and_clip_counts(seq_len)
        return np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())

    @property
    def longest_piece(self) -> int:
        """Number of frames of the longest piece without a cut."""
        return int(self._segment_starts_and_clip_counts(1)[1].max())

    def split(self, held_out: float) -> tuple[Footage, Footage | None]:
        """The footage without its end, and its end.

        Args:
            held_out: share of the frames that are at the end, in [0, 0.5]; 0 for no end.
        """
        count = len(self.frames) - round(held_out * len(self.frames))
        if count == len(self.frames):
            return self, None
        return self._piece(0, count), self._piece(count, len(self.frames))

    def _piece(self, start: int, stop: int) -> Footage:
        """The frames from ``start`` to ``stop``, with the cuts between them."""
        cuts = tuple(cut - start for cut in self.cuts if start < cut < stop)
        return dataclasses.replace(self, frames=self.frames[start:stop], cuts=cuts)

    def require_clip(self, seq_len: int) -> None:
        """Raise UserError unless there is at least one clip of ``seq_len`` frames."""
        if self.clip_count(seq_len) == 0:
            where = "the longest piece without a cut has" if self.cuts else "there are"
            raise UserError(
                f"footage: a clip needs {seq_len} frames, but {where} {self.longest_piece} "
                f"(every-nth {self.every_nth}); give a smaller --seq-len or --every-nth, or longer footage"
            )

    def batch(
        self,
        seed: int,
        step: int,
        batch_size: int,
        seq_len: int,
        drawn_frames: int = 0,
        context_frames: int = 0,
        rows: slice = slice(None),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a batch of clips. The result depends only on the arguments.

        Args:
            seed: seed of the run.
            step: training step.
            batch_size: number of clips, B. Their starts are drawn uniformly from all valid ones.
            seq_len: learned steps that a clip spans.
            drawn_frames: number of frames of each clip, K (see ``draw_frame_times``); 0 for all.
            context_frames: number of evenly spaced frames of each clip, V. They come before the K frames.
            rows: clips of the batch to read; all by default.

        Returns:
            Frames of the clips in ``rows``, uint8 (rows, V + K, H, W, 3); and the learned step of each frame
            in its clip, for all clips of the batch, int32 (B, V + K).

        Raises:
            UserError: the footage is shorter than one clip.
        """
        self.require_clip(seq_len)
        firsts, counts = self._segment_starts_and_clip_counts(seq_len)
        ends = np.cumsum(counts)
        key = np.array([seed & 0xFFFFFFFFFFFFFFFF, step], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        number = rng.integers(0, ends[-1], batch_size)
        segment = np.searchsorted(ends, number, side="right")
        starts = firsts[segment] + number - (ends - counts)[segment]
        times = draw_frame_times(rng, batch_size, seq_len, drawn_frames)
        if context_frames:
            spaced = np.linspace(0, seq_len - 1, context_frames).round().astype(np.int32)
            times = np.concatenate([np.tile(spaced, (batch_size, 1)), times], axis=1)
        return self.frames[(starts[:, None] + times)[rows]], times


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder of prepared footage, perhaps a damaged one."""
    return (path / "footage.json").is_file()


def open_footage(path: str | Path) -> Footage:
    """Open a folder of prepared footage. Its frames stay on disk.

    Raises:
        UserError: the folder is not prepared footage, or is damaged.
    """
    return read_footage(Path(path))[0]


def reopen_footage(path: str | Path, key: str) -> Footage | None:
    """Open a folder of prepared footage if it is undamaged and has this key; None otherwise."""
    with contextlib.suppress(UserError):
        footage = open_footage(path)
        if footage.key == key:
            return footage
    return None


def size_of_prepared_footage(sources: Sequence[str | Path]) -> tuple[int, int] | None:
    """Height and width of prepared footage; None if the sources are something else.

    Raises:
        UserError: the prepared footage is damaged.
    """
    if len(sources) != 1:
        return None
    path = Path(sources[0]).expanduser()
    return open_footage(path).size if is_prepared(path) else None


def read_footage(path: Path) -> tuple[Footage, dict[str, Any]]:
    """Like ``open_footage``; also returns the contents of ``footage.json``."""
    again = "prepare it again"
    for name in ("footage.json", "frames.npy"):
        if not (path / name).is_file():
            raise UserError(f"footage: {path} is no prepared footage: no {name}")
    about = read_json(path / "footage.json", f"footage: {path} is damaged")
    if about.get("format") != FOOTAGE_FORMAT_VERSION:
        raise UserError(
            f"footage: {path} has format {show(about.get('format'))}, not {FOOTAGE_FORMAT_VERSION}; {again}"
        )
    try:
        about = FOOTAGE(about, "")
        size, cuts = (about["size"][0], about["size"][1]), tuple(about["cuts"])
        frames = _open_frames(path / "frames.npy", (about["frames"], *size, 3))
    except (OSError, Mismatch) as error:
        raise UserError(f"footage: {path} is damaged ({error}); {again}") from error
    if list(cuts) != sorted({cut for cut in cuts if cut < len(frames)}):
        raise UserError(f"footage: {path} is damaged (its cuts do not rise); {again}")
    key = about.get("key", "")
    return Footage(path, frames, float(about["fps"]), about["every_nth"], size, cuts, key), about


def _open_frames(path: Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Open ``frames.npy``, whose shape is known from ``footage.json``; its frames stay on disk.

    The header and the length of the file are compared with the shape first. NumPy alone would also take
    archives, and shapes whose size does not fit into 64 bits.

    Raises:
        OSError: it cannot be read.
        Mismatch: it is something else than ``footage.json`` says.
    """
    wrong = Mismatch("frames.npy is not as footage.json says")
    with path.open("rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise wrong
            found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # a header is a Python expression, whose parsing fails in many ways
            raise wrong from error
        start, length = file.tell(), file.seek(0, 2)
    if found != shape or by_columns or kind != np.uint8 or length != start + math.prod(shape):
        raise wrong
    return np.memmap(path, np.uint8, "r", start, shape)


def draw_frame_times(
    rng: np.random.Generator, batch_size: int, seq_len: int, drawn_frames: int
) -> np.ndarray:
    """Draw the times of the frames that are returned of each clip, in learned steps.

    The span (last − first) is log-uniform over K − 1 … seq_len − 1. So short gaps, which show motion, are as
    common as long ones. The first time is uniform over all places where the span fits. The times between are
    uniform and distinct.

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
    # Of span − 1 random keys, the K − 2 smallest choose K − 2 distinct times between.
    keys = rng.random((batch_size, seq_len - 1))
    keys[np.arange(seq_len - 1) >= (span - 1)[:, None]] = np.inf
    inner = np.sort(np.argsort(keys, axis=1)[:, : drawn_frames - 2], axis=1) + 1
    offsets = np.concatenate([np.zeros((batch_size, 1), np.int64), inner, span[:, None]], axis=1)
    times: np.ndarray = (first[:, None] + offsets).astype(np.int32)
    return times
