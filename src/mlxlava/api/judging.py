"""Judge a lamp against real footage, and this machine against what it should compute."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxlava.rollout.weights import load_weights

if TYPE_CHECKING:
    from mlxlava.checks.base import Result
    from mlxlava.footage.dataset import Footage

_PICTURE_DRIFT = 5_000  # learned steps of the drift curve in the picture of a score


def score(
    weights: str | Path | None = None,
    footage: str | Path | None = None,
    *,
    held_out: str | Path | None = None,
    frames: int = 16_384,
    seed: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Score a learned lamp against real footage: pictures, motion, memory. Needs the extra ``score``.

    Progress is shown on stderr.

    Args:
        weights: shipped weights by name, or a weights or run folder; ``lava`` when None.
        footage: what it was trained on; may be None if that was the built-in lamp.
        held_out: footage of the same lamp that it was not trained on. If None, every second of eight blocks
            of the footage is held out; the built-in lamp is rendered again from another seed.
        frames: frames to draw, at most.
        seed: which lamps.
        picture: PNG file to write: measures, clips, and the drift over 5,000 learned steps.

    Returns:
        What ``mlxlava score --json`` prints. ``headline`` has two numbers, image and motion: how many times
        farther from real footage the lamp is than real footage is from itself; 1 is best. ``measures`` has
        every measure with its interval and its floor. With a picture, ``drift`` has what ``drift`` returns.

    Raises:
        UserError: weights or footage cannot be read, the footage is too short or nothing moves in it, or
            fewer than 64 frames are asked for.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import split_for_drift
    from mlxlava.evaluation.real_footage import open_real_footage
    from mlxlava.evaluation.score import draw_clips, split_footage
    from mlxlava.evaluation.score import score as judge

    target = None if picture is None else Path(picture)
    report.require(target)
    learned = load_weights(weights)
    real = open_real_footage(learned, footage, held_out)
    clips = split_footage(*real, frames=frames)
    with progress("score") as update:
        result, reference, drawn = judge(learned, clips, seed=seed, update=update)
        result = {**_names(weights, footage, real), **result}
        if target is None:
            return result
        result["drift"], ages = follow(
            learned, *split_for_drift(*real), _PICTURE_DRIFT, seed=seed, update=update
        )
    size = learned.recipe.data.size
    shown = [one for one, _ in zip(clips.clips(1, size), range(2), strict=False)]
    report.picture(
        target,
        drift=result["drift"],
        ages=ages,
        clips=(shown, list(draw_clips(learned, 2, clips.length, seed))),
        features=(reference.reference, reference.held_out, drawn),
        step_fps=learned.step_fps,
    )
    return result


def drift(
    weights: str | Path | None = None,
    footage: str | Path | None = None,
    *,
    held_out: str | Path | None = None,
    frames: int = 100_000,
    seed: int = 0,
    picture: str | Path | None = None,
) -> dict[str, Any]:
    """Follow a learned lamp over a long roll-out: do pictures, motion and state stay what they are?

    Needs the extra ``score``. Progress is shown on stderr. Ctrl-C ends it early: ``interrupted_at``
    says when.

    Args:
        weights, footage, held_out, seed: as of ``score``.
        frames: learned steps to roll, at least 1000.
        picture: PNG file to write.

    Returns:
        What ``mlxlava drift --json`` prints.

    Raises:
        UserError: as ``score``, or fewer than 1000 frames are asked for.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import split_for_drift
    from mlxlava.evaluation.real_footage import open_real_footage

    target = None if picture is None else Path(picture)
    report.require(target)
    learned = load_weights(weights)
    real = open_real_footage(learned, footage, held_out)
    windows, long = split_for_drift(*real)
    with progress("drift") as update:
        result, ages = follow(learned, windows, long, frames, seed=seed, update=update)
    result = {**_names(weights, footage, real), **result}
    if target is not None and ages:
        report.picture(target, drift=result, ages=ages, step_fps=learned.step_fps)
    return result


def _names(
    weights: str | Path | None, footage: str | Path | None, real: tuple[Footage, Footage | None]
) -> dict[str, Any]:
    """What was judged, and by what: names, and the hashes of the footage's content and settings."""
    return {
        "weights": str(weights or "lava"),
        "footage": str(footage or "the built-in lamp"),
        "footage_keys": [each.key for each in real if each is not None],
    }


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What ``check`` has found.

    Attributes:
        about: versions and the machine.
        results: of each check its group, name, what was found and allowed, whether that is ``ok``, and what
            it means where it is not.
        seconds: that the checks took.
    """

    about: dict[str, str]
    results: list[Result]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every check has found what is allowed."""
        return all(each.ok for each in self.results)


def check(only: str = "", *, on_group: Callable[[str, Sequence[Result]], None] | None = None) -> CheckReport:
    """Check that this machine computes what it should, within minutes.

    What the GPU computes is compared with what the CPU does. Progress is shown on stderr. A check that fails
    or raises an error is a result, and the others are made.

    Args:
        only: regular expression; checks whose group or name it matches are made.
        on_group: called with the name and the results of each group of checks, once it is done.

    Raises:
        UserError: ``only`` is no pattern or matches nothing.
    """
    from mlxlava.checks import about, run

    began, results = time.monotonic(), []
    for group, found in run(only):
        results += found
        if on_group is not None:
            on_group(group, found)
    return CheckReport(about(), results, time.monotonic() - began)
