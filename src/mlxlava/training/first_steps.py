"""The first training steps on a GPU: kernels are compiled and memory is measured.

The memory of a step on a GPU is only an estimate (plan.py). So it is measured when a kind of step runs for
the first time. If it came near the limit, batches are cut into more micro-batches from then on.
"""

from __future__ import annotations

from mlxlava.backend import Tree, held_memory, mx, on_gpu_path
from mlxlava.backend.ranks import any_rank, ranks
from mlxlava.config import Recipe, override
from mlxlava.console import say
from mlxlava.training.plan import micro_batch_counts, predict
from mlxlava.training.step import Kind, Terms, Trainer

# Above this share of the limit a step is made with more micro-batches. Near the limit MLX waits for memory in
# every step, and later steps may take a little more than the first one of their kind.
SHARE = 0.9

_COMPILES = {
    (False, False): "the first step takes longer",
    (True, False): "the first step with the discriminator takes longer",
    (True, True): "the first step with gradient penalties takes longer",
}


class FirstSteps:
    """Measures the first steps of a trainer where the code for GPUs is used; elsewhere it does nothing.

    Measuring does not change a step: state, batch and keys are the same. After a step that took too much, the
    number of micro-batches changes, and the trainer with it.

    Attributes:
        trainer: the trainer of the next step.
        recipe: its recipe; another object once its number of micro-batches has changed.
    """

    def __init__(self, recipe: Recipe, trainer: Trainer, limit: float) -> None:
        """``limit``: GB that MLX may take."""
        self.recipe, self.trainer = recipe, trainer
        self._limit = limit
        # All processes of a run wait for one another's numbers: either all of them measure, or none does.
        self._measures = bool(any_rank(on_gpu_path()))
        self._said: set[Kind] = set()
        self._warned = False
        self._measured: set[Kind] = set()

    def before_step(self, index: int, state: Tree, frames: mx.array, times: mx.array) -> None:
        """Prepare to measure step number ``index``, if it is the first one of its kind."""
        kind = self.trainer.kind_of(index)
        if not self._measures or kind in self._measured:
            return
        if on_gpu_path() and kind not in self._said:
            say(f"train: compiling kernels; {_COMPILES[kind]}")
            self._said.add(kind)
        mx.eval(state, frames, times)
        mx.clear_cache()  # buffers that other kinds of steps have left are not this one's
        mx.reset_peak_memory()

    def after_step(self, index: int, state: Tree, terms: Terms) -> None:
        """Evaluate and measure step number ``index``, if it is the first one of its kind."""
        kind = self.trainer.kind_of(index)
        if not self._measures or kind in self._measured:
            return
        mx.eval(state, terms)
        self._measured.add(kind)
        self._react(held_memory())

    def _react(self, held: float) -> None:
        """Use more micro-batches if a step held too much memory (GB), here or in another process."""
        now = self.recipe.training.micro_batches
        counts = micro_batch_counts(self.recipe.data.batch_size // ranks(), now)
        wanted = any_rank(self._count_for(held, counts))
        too_much = f"train: a step took {held:.2f} GB of the {self._limit:.2f} GB for MLX"
        if wanted > now:
            self.recipe = override(self.recipe, {"training.micro_batches": wanted})
            self.trainer = Trainer(self.recipe, self.trainer.total_steps)
            self._measured.clear()
            say(f"{too_much}; from now on a batch is worked on in {wanted} micro-batches, not {now}")
        elif held > SHARE * self._limit and not self._warned:
            self._warned = True
            say(
                f"{too_much}, with one clip at a time already; if memory runs out, begin a new run with a "
                "smaller --size"
            )

    def _count_for(self, held: float, counts: list[int]) -> int:
        """The first of ``counts`` of micro-batches that should fit; with ``counts[0]`` it held so many GB."""
        if held <= SHARE * self._limit:
            return counts[0]

        def predicted(count: int) -> float:
            tried = override(self.recipe, {"training.micro_batches": count})
            return predict(tried, ranks(), gpu=True)

        # Steps that are still to come take more than the first kind does: a prediction is not made smaller.
        off = max(1.0, held / predicted(counts[0]))
        fitting = (count for count in counts[1:] if off * predicted(count) <= SHARE * self._limit)
        return next(fitting, counts[-1])
