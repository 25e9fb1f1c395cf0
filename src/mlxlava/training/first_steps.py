"""The first training steps on a GPU: they compile, they are measured, and they may show that less fits.

What a step takes on a GPU is estimated (plan.py). So each kind of step is measured the first time that it
runs, and where it came near to the limit the batch is worked on in more parts from then on.
"""

from __future__ import annotations

from mlxlava.backend import Tree, held_memory, mx, on_gpu_path
from mlxlava.backend.ranks import any_rank, ranks
from mlxlava.config import Recipe, override
from mlxlava.console import say
from mlxlava.training.plan import parts_of, predict
from mlxlava.training.step import Kind, Terms, Trainer

# Share of the limit that a step may take before its parts are made smaller. Near the limit MLX waits for
# memory in every step, and later steps may take a little more than the first one of their kind.
SHARE = 0.9

_COMPILES = {
    (False, False): "the first step takes longer",
    (True, False): "the first step with the discriminator takes longer",
    (True, True): "the first step with gradient penalties takes longer",
}


class FirstSteps:
    """A trainer that measures its first steps where the code for GPUs is taken; elsewhere it only trains.

    A step is the same whether it is measured or not: the same state, batch and keys. What changes after one
    that took too much is the number of parts, and with it the trainer.

    Attributes:
        recipe: the recipe as it is trained from the next step on; another object once its parts were changed.
    """

    def __init__(self, recipe: Recipe, trainer: Trainer, limit: float) -> None:
        """``limit``: GB that MLX may take."""
        self.recipe = recipe
        self._trainer, self._limit = trainer, limit
        # All processes of a run wait for one another's numbers: either all of them measure, or none does.
        self._measures = bool(any_rank(on_gpu_path()))
        self._said: set[Kind] = set()
        self._warned = False
        self._measured: set[Kind] = set()

    def __call__(self, state: Tree, frames: mx.array, times: mx.array, index: int) -> tuple[Tree, Terms]:
        """A step of the trainer (step.py); the first one of each kind is evaluated, others are not yet."""
        kind = self._trainer.kind_of(index)
        if not self._measures or kind in self._measured:
            return self._trainer(state, frames, times, index)
        if on_gpu_path() and kind not in self._said:
            say(f"train: compiling kernels; {_COMPILES[kind]}")
            self._said.add(kind)
        mx.eval(state, frames, times)
        mx.clear_cache()  # buffers that other kinds of steps have left are not this one's
        mx.reset_peak_memory()
        state, terms = self._trainer(state, frames, times, index)
        mx.eval(state, terms)
        self._measured.add(kind)
        self._react(held_memory())
        return state, terms

    def _react(self, held: float) -> None:
        """Make the parts of a batch smaller if a step held too much, GB, here or in another process."""
        now = self.recipe.training.micro_batches
        parts = parts_of(self.recipe.data.batch_size // ranks(), now)
        wanted = any_rank(self._parts_for(held, parts))
        too_much = f"train: a step took {held:.2f} GB of the {self._limit:.2f} GB for MLX"
        if wanted > now:
            self.recipe = override(self.recipe, {"training.micro_batches": wanted})
            self._trainer = Trainer(self.recipe, self._trainer.total_steps)
            self._measured.clear()
            say(f"{too_much}; from now on a batch is worked on in {wanted} parts, not {now}")
        elif held > SHARE * self._limit and not self._warned:
            self._warned = True
            say(
                f"{too_much}, with one clip at a time already; if memory runs out, begin a new run with a "
                "smaller --size"
            )

    def _parts_for(self, held: float, parts: list[int]) -> int:
        """The fewest of ``parts`` that should fit, if the first of them, as it is now, held so many GB."""
        if held <= SHARE * self._limit:
            return parts[0]

        def predicted(count: int) -> float:
            tried = override(self.recipe, {"training.micro_batches": count})
            return predict(tried, ranks(), gpu=True)

        # Steps that are still to come take more than the first kind does: a prediction is not made smaller.
        off = max(1.0, held / predicted(parts[0]))
        fitting = (count for count in parts[1:] if off * predicted(count) <= SHARE * self._limit)
        return next(fitting, parts[-1])
