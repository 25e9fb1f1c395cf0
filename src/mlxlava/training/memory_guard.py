"""Keeps training steps on a GPU within the memory limit: it measures memory and splits batches further.

The memory of a step on a GPU is only an estimate (memory_plan.py). So it is measured when a kind of step runs
for the first time. If it comes near the limit, batches are cut into more micro-batches from then on.
"""

from __future__ import annotations

from mlxlava.backend import Tree, mx, on_gpu_path, peak_held_memory_gb
from mlxlava.backend.ranks import max_over_ranks, rank_count
from mlxlava.config import Recipe, override
from mlxlava.console import say
from mlxlava.training.memory_plan import micro_batch_counts, predict_peak_gb
from mlxlava.training.step import StepKind, Terms
from mlxlava.training.trainer import AnyTrainer, make_trainer

# If a step took more than this share of the limit, later steps get more micro-batches. Near the limit MLX
# waits for memory in every step, and later steps may take a little more memory than the first one of their
# kind.
MAX_SHARE_OF_LIMIT = 0.9

_COMPILING_MESSAGES = {
    (False, False): "the first step takes longer",
    (True, False): "the first step with the discriminator takes longer",
    (True, True): "the first step with gradient penalties takes longer",
}


class MemoryGuard:
    """Measures the first step of each kind, and makes a trainer with more micro-batches if one took too much.

    It does so where the code for GPUs is used. On CPUs it does nothing. Measuring does not change a step:
    state, batch and keys are the same.

    Attributes:
        trainer: the trainer for the next step.
        recipe: recipe of the trainer; another object once the number of micro-batches has changed.
    """

    def __init__(self, recipe: Recipe, trainer: AnyTrainer, limit: float) -> None:
        """``limit`` is the memory in GB that MLX may use."""
        self.recipe, self.trainer = recipe, trainer
        self._limit = limit
        # The processes of a run exchange their measurements. So either all of them measure, or none does.
        self._measures = bool(max_over_ranks(on_gpu_path()))
        self._said: set[StepKind] = set()
        self._warned = False
        self._measured: set[StepKind] = set()

    def before_step(
        self, index: int, state: Tree, frames: mx.array, times: mx.array, kind: StepKind | None = None
    ) -> None:
        """Prepare to measure step number ``index``, if it is the first one of its kind.

        ``kind`` is its kind, if it is not the one that belongs to its number.
        """
        kind = kind or self.trainer.kind_of_step(index)
        if not self._measures or kind in self._measured:
            return
        if on_gpu_path() and kind not in self._said:
            say(f"train: compiling kernels; {_COMPILING_MESSAGES[kind]}")
            self._said.add(kind)
        mx.eval(state, frames, times)
        mx.clear_cache()  # buffers that other kinds of steps have left do not count
        mx.reset_peak_memory()

    def after_step(self, index: int, state: Tree, terms: Terms, kind: StepKind | None = None) -> None:
        """Evaluate and measure step number ``index``, if it is the first one of its kind."""
        kind = kind or self.trainer.kind_of_step(index)
        if not self._measures or kind in self._measured:
            return
        mx.eval(state, terms)
        self._measured.add(kind)
        self._split_further_if_needed(peak_held_memory_gb())

    def _split_further_if_needed(self, held_gb: float) -> None:
        """Use more micro-batches if a step held too much memory (GB), here or in another process."""
        now = self.recipe.training.micro_batches
        counts = micro_batch_counts(self.recipe.data.batch_size // rank_count(), now)
        wanted = max_over_ranks(self._micro_batches_that_fit(held_gb, counts))
        too_much = f"train: a step took {held_gb:.2f} GB of the {self._limit:.2f} GB for MLX"
        if wanted > now:
            self.recipe = override(self.recipe, {"training.micro_batches": wanted})
            self.trainer = make_trainer(self.recipe, self.trainer.schedule)
            self._measured.clear()
            say(f"{too_much}; from now on a batch is worked on in {wanted} micro-batches, not {now}")
        elif held_gb > MAX_SHARE_OF_LIMIT * self._limit and not self._warned:
            self._warned = True
            say(
                f"{too_much}, with one clip at a time already; if memory runs out, begin a new run with a "
                "smaller --size"
            )

    def _micro_batches_that_fit(self, held_gb: float, counts: list[int]) -> int:
        """The first of ``counts`` that should fit, if a step with ``counts[0]`` held ``held_gb`` GB."""
        if held_gb <= MAX_SHARE_OF_LIMIT * self._limit:
            return counts[0]

        def predicted(count: int) -> float:
            tried = override(self.recipe, {"training.micro_batches": count})
            return predict_peak_gb(tried, rank_count(), gpu=True)

        # Other kinds of steps, which come later, take more memory. So a measurement does not lower a
        # prediction.
        off = max(1.0, held_gb / predicted(counts[0]))
        fitting = (
            count for count in counts[1:] if off * predicted(count) <= MAX_SHARE_OF_LIMIT * self._limit
        )
        return next(fitting, counts[-1])
