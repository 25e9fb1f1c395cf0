"""Tests whether each measure of the score detects the corruptions of real footage that it should detect.

    python -m benchmarks.corruptions [--minutes 60] [--save]

Three built-in lamps that share no frame: one is the reference, one is held out (the floor), one is
corrupted in grades. Prints Markdown tables: the ratios to the floor at every grade, and the corruptions
that each measure detects (``measures.MEASURES``). Each is checked: without the corruption the measure is at
its floor, it changes monotonically with the grade, and it is far from the floor at the last grade. The exit
status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mlxlava.bench.harness import machine_facts, print_result
from mlxlava.console import progress
from mlxlava.evaluation.features import extract_features
from mlxlava.evaluation.frames import NumpyArray
from mlxlava.evaluation.measures import MEASURES
from mlxlava.evaluation.score import (
    RealClips,
    ReferenceSet,
    compare_with_floors,
    fit_reference,
    split_footage,
)
from mlxlava.footage.prepare import prepare_lamp

Clips = list[NumpyArray]  # of twice the length, so that speed can be doubled


def blur(clip: NumpyArray, grade: float) -> NumpyArray:
    """A Gaussian of ``grade`` pixels."""
    kernel = ImageFilter.GaussianBlur(grade)
    blurred: NumpyArray = np.stack([np.asarray(Image.fromarray(frame).filter(kernel)) for frame in clip])
    return blurred


def noise(clip: NumpyArray, grade: float) -> NumpyArray:
    """Normal noise of ``grade`` grey levels."""
    rng = np.random.default_rng(0)
    noisy = clip + np.float32(grade) * rng.standard_normal(clip.shape, dtype=np.float32)
    rounded: NumpyArray = np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
    return rounded


def colour(clip: NumpyArray, grade: float) -> NumpyArray:
    """Green weaker by a share of ``grade``."""
    shifted = clip.copy()
    shifted[..., 1] = (clip[..., 1] * (1 - grade)).astype(np.uint8)
    return shifted


def frozen(clip: NumpyArray, grade: float) -> NumpyArray:
    """Still for the last share of ``grade`` of the clip."""
    moving = max(1, round(len(clip) * (1 - grade)))
    still: NumpyArray = clip[np.minimum(np.arange(len(clip)), moving - 1)]
    return still


def shuffled(clip: NumpyArray, grade: float) -> NumpyArray:
    """A share of ``grade`` of the frames put in each other's places."""
    rng = np.random.default_rng(0)
    order = np.arange(len(clip))
    moved = rng.choice(len(clip), round(grade * len(clip)), replace=False)
    order[np.sort(moved)] = moved
    mixed: NumpyArray = clip[order]
    return mixed


def faded(clips: Clips, grade: float, length: int, reference: Clips) -> Clips:
    """Wax that fades away: from the first frame to the last, a share of up to ``grade`` of what moves."""
    mean = np.mean([clip.mean(0) for clip in reference], axis=0)
    strength = np.linspace(0, grade, length)[:, None, None, None]
    return [(clip[:length] + strength * (mean - clip[:length]) + 0.5).astype(np.uint8) for clip in clips]


def speckled(clip: NumpyArray, grade: float) -> NumpyArray:
    """``grade`` small drops of wax at a time, each for 16 frames."""
    rng = np.random.default_rng(0)
    changed, (length, height, width, _) = clip.copy(), clip.shape
    wax = np.median(clip[clip[..., 0] >= np.quantile(clip[..., 0], 0.95)], axis=0)
    rows, columns = np.mgrid[:height, :width]
    for start in range(0, length, 16):
        for _ in range(round(grade)):
            row, column = rng.uniform(0.15, 0.8) * height, rng.uniform(0.4, 0.6) * width
            drop = (rows - row) ** 2 + (columns - column) ** 2 < (height / 24) ** 2
            changed[start : start + 16, drop] = wax
    return changed


def _some(change: Callable[[NumpyArray, int], NumpyArray]) -> Callable[[Clips, float, int, Clips], Clips]:
    """A corruption of a share of the clips."""

    def corrupt(clips: Clips, grade: float, length: int, reference: Clips) -> Clips:
        bad = np.zeros(len(clips), bool)
        bad[np.random.default_rng(1).permutation(len(clips))[: round(grade * len(clips))]] = True
        return [
            change(clip, length) if is_bad else clip[:length] for clip, is_bad in zip(clips, bad, strict=True)
        ]

    return corrupt


def _each(change: Callable[[NumpyArray, float], NumpyArray]) -> Callable[[Clips, float, int, Clips], Clips]:
    """A corruption of every clip."""
    return lambda clips, grade, length, reference: [change(clip[:length], grade) for clip in clips]


def replayed(clips: Clips, grade: float, length: int, reference: Clips) -> Clips:
    """A share of ``grade`` of the clips replaced by one of four reference clips."""
    count = round(grade * len(clips))
    return [reference[index % 4] if index < count else clip[:length] for index, clip in enumerate(clips)]


SHARES = (0.25, 0.5, 1.0)
CORRUPTIONS: dict[str, tuple[str, tuple[float, ...], Callable[[Clips, float, int, Clips], Clips]]] = {
    "blur": ("sigma, pixels", (0.5, 1.0, 2.0), _each(blur)),
    "noise": ("grey levels", (2.0, 5.0, 15.0), _each(noise)),
    "colour": ("green less", (0.05, 0.1, 0.2), _each(colour)),
    "faded": ("share at the end", (0.3, 0.6, 1.0), faded),
    "speckled": ("drops", (2.0, 4.0, 8.0), _each(speckled)),
    "frozen": ("share of a clip", (0.5, 0.75, 1.0), _each(frozen)),
    "shuffled": ("share of frames", SHARES, _each(shuffled)),
    "reversed": ("share of clips", SHARES, _some(lambda clip, length: clip[:length][::-1])),
    "dropped": ("share of clips", SHARES, _some(lambda clip, length: clip[: 2 * length : 2])),
    "pingpong": (
        "share of clips",
        SHARES,
        _some(lambda clip, length: np.concatenate([clip[: length // 2], clip[: length // 2][::-1]])),
    ),
    "looped": (
        "share of clips",
        SHARES,
        _some(lambda clip, length: clip[np.arange(length) % 10]),  # two seconds at 5 learned steps a second
    ),
    "replayed": ("share of clips", SHARES, replayed),
}


def lamp_clips(minutes: float, size: tuple[int, int] = (64, 64)) -> tuple[RealClips, Clips]:
    """Reference and held-out clips of two lamps, and clips twice as long of a third."""
    lamps = [
        prepare_lamp(None, size=size, minutes=minutes, fps=5.0, every_nth=1, seed=seed, theme="classic")
        for seed in range(3)
    ]
    real = split_footage(lamps[0], lamps[1])
    third = lamps[2].frames
    firsts = [start for start in lamps[2].clip_starts(2 * real.length).tolist() if start % real.length == 0]
    at = np.linspace(0, len(firsts) - 1, len(real)).round().astype(int)
    return real, [np.asarray(third[firsts[i] : firsts[i] + 2 * real.length]) for i in at]


def grades(
    reference_set: ReferenceSet, clips: Clips, names: list[str] | None = None
) -> Iterator[tuple[str, float, Clips]]:
    """Yield the clips without a corruption, and with every corruption at every grade."""
    length = reference_set.real.length
    yield "none", 0.0, [clip[:length] for clip in clips]
    reference = list(reference_set.real.clips(0))
    for name, (_, steps, corrupt) in CORRUPTIONS.items():
        for grade in steps if names is None or name in names else ():
            yield name, grade, corrupt(clips, grade, length, reference)


def _format_ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if abs(ratio) >= 100 else f"{ratio:.2f}"


def broken(floors: dict[str, Any], clean: dict[str, float], values: dict[str, list[float]]) -> list[str]:
    """Claims of measures that do not hold, a line each.

    Args:
        floors: for each measure its floor and the interval of that.
        clean: for each measure its value without a corruption.
        values: by ``corruption/measure``, the values at the rising grades of the corruption.
    """
    wrong = []
    for name, one in MEASURES.items():
        floor, (low, high) = floors[name]["floor"], floors[name]["floor_interval"]
        # Two samples of the same distribution differ by √2 of what the interval of one allows.
        slack = 1.5 * (high - low) / 2
        if abs(clean[name] - floor) > slack:
            wrong.append(f"{name} without corruption is {clean[name]:.4g}, not in {low:.4g} … {high:.4g}")
        for corruption in one.detects:
            path = [clean[name], *values[f"{corruption}/{name}"]]
            steps = np.diff(path)
            if not ((steps > 0).all() or (steps < 0).all()):
                wrong.append(f"{name} does not move monotonically with {corruption}: {np.round(path, 4)}")
            if abs(path[-1] - floor) < slack:
                wrong.append(f"{name} does not see {corruption}: {path[-1]:.4g}, floor {low:.4g}…{high:.4g}")
    return wrong


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of each of the three lamps")
    parser.add_argument("--save", action="store_true", help="append the result to results/corruptions.jsonl")
    args = parser.parse_args()
    real, clips = lamp_clips(args.minutes)
    with progress("corruptions") as update:
        reference_set = fit_reference(real, (64, 64), update)
        floors = compare_with_floors(reference_set, reference_set.held_out, 0, update)
        values: dict[str, list[float]] = {}
        ratios: dict[str, list[str]] = {}
        clean: dict[str, float] = {}
        for corruption, grade, bad in grades(reference_set, clips):
            update(0, None, f"{corruption} {grade:g}")
            other = extract_features(reference_set.fitted, bad)
            for name, one in MEASURES.items():
                value = one.function(reference_set.reference, other)
                row = floors[name]
                floor = row["value"] / row["ratio"]
                clean.setdefault(name, value)
                values.setdefault(f"{corruption}/{name}", []).append(value)
                ratios.setdefault(f"{corruption}/{name}", []).append(_format_ratio(value / floor))
    columns = ["none", *CORRUPTIONS]
    print(f"| measure | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    about = [f"{what}: {', '.join(f'{g:g}' for g in steps)}" for what, steps, _ in CORRUPTIONS.values()]
    print(f"| *grades* | | {' | '.join(about)} |")
    for name, one in MEASURES.items():
        cells = [" ".join(ratios[f"{corruption}/{name}"]) for corruption in columns]
        cells = [f"**{c}**" if column in one.detects else c for column, c in zip(columns, cells, strict=True)]
        print(f"| `{name}` | {' | '.join(cells)} |")
    print("\n| measure | sees | is blind to |\n|---|---|---|")
    for name, one in MEASURES.items():
        print(f"| `{name}` | {', '.join(one.detects)} | {one.cannot_see} |")
    wrong = broken(floors, clean, values)
    print(f"\n{sum(len(one.detects) for one in MEASURES.values())} claims checked, {len(wrong)} broken.")
    for text in wrong:
        print(f"- {text}")
    print_result("corruptions", {"machine": machine_facts(), "floors": floors, "values": values}, args.save)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
