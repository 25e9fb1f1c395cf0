"""The player's library of learned lamps (that of built-in lamps: footage/simulated_lamp.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlxlava.console import progress, say
from mlxlava.normality import pooled_moments
from mlxlava.paths import shipped_weights_folders
from mlxlava.playback.session import FrameSource
from mlxlava.rollout.from_picture import crop_to_frame, find_state
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.seamless import SeamlessLoop
from mlxlava.rollout.weights import Weights, load_weights

# Above this fraction of the lamp's own motion, the steering of a closed path becomes visible.
_VISIBLE_STEERING_SHARE = 0.5


class WeightsLibrary:
    """Learned lamps: first the lamp that was asked for, then the lamps that come with the package.

    Args:
        name: name of shipped weights, a folder of weights, or a run; the shipped ``lava`` when None.
        picture: a picture; the first lamp that is opened starts from its state.

    Attributes:
        names: names of lamps that can be opened.
        period: seconds of the lamp's time after which every lamp begins again; None for lamps without an end.

    Raises:
        UserError: the weights or the picture cannot be read.
    """

    def __init__(self, name: str | None, picture: Path | None = None) -> None:
        first = name or "lava"
        # The first lamp is read now, so that an error is reported before a screen is opened.
        self._weights = {first: load_weights(first)}
        self.names: Sequence[str] = list(
            dict.fromkeys([first, *(path.name for path in shipped_weights_folders())])
        )
        self._picture = picture
        self.period: float | None = None

    def open(self, name: str, seed: int) -> FrameSource:
        """Open the lamp of a name and a seed, at its beginning."""
        if name not in self._weights:
            self._weights[name] = load_weights(name)
        weights, start = self._weights[name], None
        if self._picture is not None:
            start, self._picture = _state_of_picture(self._picture, weights, seed), None
        if self.period is not None:
            loop = _make_loop(weights, self.period, seed, start)
            return FrameSource(loop.play, loop.size)
        rollout = Rollout(weights, seed, start=start)
        return FrameSource(
            rollout.play, rollout.size, lambda: pooled_moments(rollout.states[:1]), rollout.play_in_batches
        )


def _state_of_picture(picture: Path, weights: Weights, seed: int) -> npt.NDArray[np.float32]:
    """Find the state (Z,) whose frame is nearest to a picture, and print the difference that is left."""
    frame = crop_to_frame(picture, weights.recipe.data.size)
    with progress("from") as update:
        found = find_state(weights, frame, seed, lambda done, total: update(done, total, "nearer"))
    say(f"from: the nearest frame differs from {picture} by {found.error:.1f} of 255 grey levels")
    return found.state


def _make_loop(
    weights: Weights, period: float, seed: int, start: npt.NDArray[np.float32] | None
) -> SeamlessLoop:
    """Make a seamless loop, and print how strongly it had to be steered."""
    with progress("seamless") as update:
        loop = SeamlessLoop(weights, period, seed, start, lambda done, total: update(done, total, "closing"))
    advice = "; a longer or a faster clip needs less" if loop.steering > _VISIBLE_STEERING_SHARE else ""
    say(f"seamless: closed by steering that is {loop.steering:.0%} of the lamp's own motion{advice}")
    return loop
