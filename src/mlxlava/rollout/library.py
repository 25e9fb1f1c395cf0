"""The player's library of learned lamps. (That of the built-in lamp is ``Themes`` in footage/lamp.py.)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlxlava.console import progress, say
from mlxlava.normality import pooled_moments
from mlxlava.playback.session import FrameSource
from mlxlava.rollout.from_picture import find_state, start_picture
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.seamless import Loop
from mlxlava.rollout.weights import Weights, load_weights, shipped_weights

# Steering of a closed path becomes visible above this fraction of the lamp's natural motion.
_VISIBLE_STEERING = 0.5


class WeightsLibrary:
    """Learned lamps: the one that was asked for, then those that come with the package.

    Args:
        name: name of shipped weights, a folder of weights, or a run; the shipped ``lava`` when None.
        picture: a picture from which the first lamp that is opened starts.

    Attributes:
        names: what can be opened.
        period: seconds of the lamp's time after which every lamp begins again; None for lamps that never do.

    Raises:
        UserError: the weights or the picture cannot be read.
    """

    def __init__(self, name: str | None, picture: Path | None = None) -> None:
        first = name or "lava"
        # The first is read now, so that a mistake is reported before a screen is opened.
        self._weights = {first: load_weights(first)}
        self.names: Sequence[str] = list(dict.fromkeys([first, *(path.name for path in shipped_weights())]))
        self._picture = picture
        self.period: float | None = None

    def open(self, name: str, seed: int) -> FrameSource:
        """Open the lamp of a name and a seed, at its beginning."""
        if name not in self._weights:
            self._weights[name] = load_weights(name)
        weights, start = self._weights[name], None
        if self._picture is not None:
            start, self._picture = _state_of(self._picture, weights, seed), None
        if self.period is not None:
            loop = _closed_path(weights, self.period, seed, start)
            return FrameSource(loop.play, loop.size)
        rollout = Rollout(weights, seed, start=start)
        return FrameSource(
            rollout.play, rollout.size, lambda: pooled_moments(rollout.states[:1]), rollout.film
        )


def _state_of(picture: Path, weights: Weights, seed: int) -> npt.NDArray[np.float32]:
    """The state (Z,) whose frame is nearest to a picture. Prints the difference that is left."""
    frame = start_picture(picture, weights.recipe.data.size)
    with progress("from") as update:
        found = find_state(weights, frame, seed, lambda done, total: update(done, total, "nearer"))
    say(f"from: the nearest frame differs from {picture} by {found.error:.1f} of 255 grey levels")
    return found.state


def _closed_path(weights: Weights, period: float, seed: int, start: npt.NDArray[np.float32] | None) -> Loop:
    """A seamless loop. Prints how strongly it had to be steered."""
    with progress("seamless") as update:
        loop = Loop(weights, period, seed, start, lambda done, total: update(done, total, "closing"))
    advice = "; a longer or a faster clip needs less" if loop.steering > _VISIBLE_STEERING else ""
    say(f"seamless: closed by steering that is {loop.steering:.0%} of the lamp's own motion{advice}")
    return loop
