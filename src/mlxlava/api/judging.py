"""Judge a lamp against real footage, and check that this machine computes what it should."""

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

_DRIFT_STEPS_IN_FIGURE = 5_000  # length of the drift curve in the figure of a score, in learned steps


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
        weights: shipped weights by name, a folder of weights, or a run; ``lava`` when None.
        footage: the footage that the lamp was trained on. It may be None if that was the built-in lamp.
        held_out: footage of the same lamp that it was not trained on. If None, it is the end of ``footage``,
            if the lamp was trained without that (``data.held_out``). If it was not, ``footage`` is cut into
            eight blocks, and every second block is held out. The built-in lamp is rendered from another seed
            instead.
        frames: largest number of frames to draw.
        seed: seed of the drawn lamps.
        picture: PNG file to write. It shows clips, spectra, and the drift over 5,000 learned steps.

    Returns:
        The result that ``mlxlava score --json`` prints. ``headline`` has two numbers, for image and for
        motion. Each is the distance of the lamp from real footage, divided by the distance of real footage
        from other real footage; 1 is best. ``measures`` has every measure with its interval and its floor.
        With a picture, ``drift`` has the result of :func:`drift`.

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
    report.require_that_report_can_be_made(target)
    learned = load_weights(weights)
    real = open_real_footage(learned, footage, held_out)
    clips = split_footage(*real, frames=frames)
    with progress("score") as update:
        result, reference, drawn = judge(learned, clips, seed=seed, on_progress=update)
        result = {**_names_and_hashes(weights, footage, real), **result}
        if target is None:
            return result
        result["drift"], window_frames = follow(
            learned, *split_for_drift(*real), _DRIFT_STEPS_IN_FIGURE, seed=seed, on_progress=update
        )
    size = learned.recipe.data.size
    shown = [one for one, _ in zip(clips.clips(1, size), range(2), strict=False)]
    report.write_figure(
        target,
        drift=result["drift"],
        window_frames=window_frames,
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

    Needs the extra ``score``. Progress is shown on stderr. Ctrl-C ends it early; then ``interrupted_at`` is
    the number of steps made.

    Args:
        weights, footage, held_out, seed: the same as in :func:`score`.
        frames: learned steps to roll, at least 1000.
        picture: PNG file to write.

    Returns:
        The result that ``mlxlava drift --json`` prints.

    Raises:
        UserError: for the same reasons as in :func:`score`, or fewer than 1000 frames are asked for.
    """
    from mlxlava.console import progress
    from mlxlava.evaluation import report
    from mlxlava.evaluation.drift import drift as follow
    from mlxlava.evaluation.drift import split_for_drift
    from mlxlava.evaluation.real_footage import open_real_footage

    target = None if picture is None else Path(picture)
    report.require_that_report_can_be_made(target)
    learned = load_weights(weights)
    real = open_real_footage(learned, footage, held_out)
    windows, long = split_for_drift(*real)
    with progress("drift") as update:
        result, window_frames = follow(learned, windows, long, frames, seed=seed, on_progress=update)
    result = {**_names_and_hashes(weights, footage, real), **result}
    if target is not None and window_frames:
        report.write_figure(target, drift=result, window_frames=window_frames, step_fps=learned.step_fps)
    return result


def _names_and_hashes(
    weights: str | Path | None, footage: str | Path | None, real: tuple[Footage, Footage | None]
) -> dict[str, Any]:
    """Names of the weights and the footage, and hashes of the footage's content and settings."""
    return {
        "weights": str(weights or "lava"),
        "footage": str(footage or "the built-in lamp"),
        "footage_keys": [each.key for each in real if each is not None],
    }


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """The results of ``check``.

    Attributes:
        about: versions of packages, and facts about the machine.
        results: for each check its group and name, what was found, what is allowed, whether that is ``ok``,
            and the meaning if it is not.
        seconds: time that the checks took.
    """

    about: dict[str, str]
    results: list[Result]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every check is ok."""
        return all(each.ok for each in self.results)


def check(only: str = "", *, on_group: Callable[[str, Sequence[Result]], None] | None = None) -> CheckReport:
    """Check that this machine computes what it should, within minutes.

    Results of the GPU are compared with results of the CPU. Progress is shown on stderr. A check that fails
    or raises an error gives a result, and the other checks are still made.

    Args:
        only: regular expression; only checks whose group or name it matches are made.
        on_group: called with the name and the results of each group of checks, once it is done.

    Raises:
        UserError: ``only`` is no regular expression or matches nothing.
    """
    from mlxlava.checks import checked_machine_facts, run_checks

    began, results = time.monotonic(), []
    for group, found in run_checks(only):
        results += found
        if on_group is not None:
            on_group(group, found)
    return CheckReport(checked_machine_facts(), results, time.monotonic() - began)
