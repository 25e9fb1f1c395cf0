"""Learned lamps by name, as a player opens them (the built-in lamp's are in lamp.py)."""

from __future__ import annotations

from collections.abc import Sequence

from mlxlava.checkpoint import load_weights, shipped_weights
from mlxlava.live import Reel
from mlxlava.normality import moments
from mlxlava.rollout import Rollout


class LearnedLamps:
    """Learned lamps: the one asked for, then those that come with the package.

    Args:
        name: shipped weights, a folder of weights or a run; the shipped ``lava`` when None.

    Raises:
        UserError: they cannot be read.
    """

    def __init__(self, name: str | None) -> None:
        first = name or "lava"
        # The first is read at once: a mistake shall be known before a screen is opened.
        self._weights = {first: load_weights(first)}
        self.names: Sequence[str] = list(dict.fromkeys([first, *(path.name for path in shipped_weights())]))

    def open(self, name: str, seed: int) -> Reel:
        """The lamp of a seed."""
        if name not in self._weights:
            self._weights[name] = load_weights(name)
        rollout = Rollout(self._weights[name], seed)
        return Reel(rollout.play, rollout.size, lambda: moments(rollout.states[:1]), rollout.film)
