"""What a training does when it goes wrong: back to the last good checkpoint, and on in another way.

- A number is not finite, or explodes: the learning rate is halved. After three tries without progress the run
  stops and says why.
- MLX has no memory left: a batch is worked on in more micro-batches, until each has one clip.

Each change is said, and kept in the run's config. So a run that is resumed goes on in the same way. Several
processes that train together stop instead: they cannot agree on what one of them has seen.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path

from mlxlava.backend.ranks import rank_count
from mlxlava.config import Recipe, override
from mlxlava.console import say
from mlxlava.failures import DeviceFailed
from mlxlava.integrity import read_progress
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.training.choices import Choice
from mlxlava.training.failures import Diverged
from mlxlava.training.folder import change_recipe
from mlxlava.training.memory_plan import micro_batch_counts

MAX_TRIES = 3  # with ever lower learning rates, from one checkpoint

_RATE_FACTOR = 0.5
# A term explodes when it is so many times larger than all of its values before.
_EXPLOSION_FACTOR = 1e3
_EXPLOSION_FLOOR = 1.0  # smaller values before count as this one
_VALUES_BEFORE = 100  # so many last values of a term are kept
_MIN_VALUES_BEFORE = 20  # with fewer values, nothing is known about a term


class ExplosionDetector:
    """Finds terms that are suddenly very large, though still finite."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_VALUES_BEFORE))

    def find(self, terms: Mapping[str, float]) -> tuple[str, str] | None:
        """The first term that is not finite or explodes, and words for that; otherwise keep the values."""
        for name, value in terms.items():
            if not math.isfinite(value):
                return name, "is not finite"
            before = self._values[name]
            largest = max(before, default=0.0)
            limit = _EXPLOSION_FACTOR * max(_EXPLOSION_FLOOR, largest)
            if len(before) >= _MIN_VALUES_BEFORE and abs(value) > limit:
                return name, f"has exploded ({value:.3g}, after at most {largest:.3g})"
        for name, value in terms.items():
            self._values[name].append(abs(value))
        return None


class Recovery:
    """Decides how a run goes on after a failure, or that it stops.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._failures: list[Diverged] = []
        self._recipe_before: Recipe | None = None  # before the first try from this checkpoint

    def recipe_for_next_try(self, error: Diverged | DeviceFailed, recipe: Recipe) -> Recipe:
        """The recipe with which to go on from the last good checkpoint. It is written to the run's config.

        Args:
            error: what has ended the last try.
            recipe: the recipe that is in the run's config.

        Raises:
            Diverged, DeviceFailed: nothing is left to try. The config has the recipe from before the tries.
        """
        if rank_count() > 1:
            raise error
        if isinstance(error, Diverged):
            return self._with_lower_rate(error, recipe)
        return self._with_smaller_micro_batches(error, recipe)

    def _with_lower_rate(self, error: Diverged, recipe: Recipe) -> Recipe:
        last = latest_checkpoint_folder(self._run)
        if last is None:
            raise error
        start = read_progress(last)["step"]
        if self._failures and start >= max(each.step for each in self._failures):
            self._failures.clear()  # the tries before have led further than what they were for
        if not self._failures:
            self._recipe_before = recipe
        self._failures.append(error.with_traceback(None))  # its frames would keep the run state in memory
        if len(self._failures) > MAX_TRIES:
            assert self._recipe_before is not None
            change_recipe(self._run, self._recipe_before)
            raise error.after_tries(self._failures[1:], recipe.training.learning_rate) from error
        rate = _RATE_FACTOR * recipe.training.learning_rate
        reason = f"{error.name} {error.what} at step {error.step}"
        say(
            f"train: {reason}; back to step {start}, with half the learning rate, {rate:.3g} "
            f"(try {len(self._failures)} of {MAX_TRIES})"
        )
        lowered = override(recipe, {"training.learning_rate": rate})
        change_recipe(self._run, lowered, [Choice("training.learning_rate", rate, f"halved, since {reason}")])
        return lowered

    def _with_smaller_micro_batches(self, error: DeviceFailed, recipe: Recipe) -> Recipe:
        now = recipe.training.micro_batches
        more = [count for count in micro_batch_counts(recipe.data.batch_size) if count >= 2 * now]
        last = latest_checkpoint_folder(self._run)
        if not error.out_of_memory or not more or last is None:
            raise error
        reason = "there was not enough memory for MLX's arrays"
        say(
            f"train: {reason}; back to step {read_progress(last)['step']}, with a batch worked on in "
            f"{more[0]} micro-batches, not {now}"
        )
        split = override(recipe, {"training.micro_batches": more[0]})
        change_recipe(self._run, split, [Choice("training.micro_batches", more[0], reason)])
        return split
