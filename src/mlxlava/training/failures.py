"""How a run may fail: numbers that are not finite, a device that fails, a process that is gone.

Each message is one line. It names the last checkpoint and says how to go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlxlava.backend import on_gpu_path
from mlxlava.backend.ranks import rank_count
from mlxlava.config import Recipe
from mlxlava.failures import DeviceFailed, explain_device_failure
from mlxlava.paths import latest_checkpoint_folder
from mlxlava.training.memory_plan import gigabytes_for_more_micro_batches


class Diverged(Exception):
    """A loss, a state or a weight is not finite any more, or has exploded; earlier checkpoints are kept.

    Attributes:
        name: what it was.
        step: the training step at which it was seen.
        what: what is wrong with it, in words.
    """

    def __init__(self, run: Path, name: str, step: int, what: str = "is not finite", tries: str = "") -> None:
        """``tries`` is a clause about tries that were made to go on."""
        self.name, self.step, self.what, self._run = name, step, what, run
        last = latest_checkpoint_folder(run)
        kept = f"the last good checkpoint is {last}" if last else "there is no good checkpoint"
        advice = "other settings or footage" if tries else "a lower training.learning_rate"
        super().__init__(
            f"train: {name} {what} at step {step}, so the run stopped; {kept}{tries}; "
            f"start again from it with --init {run} and {advice}"
        )

    def after_tries(self, failures: Sequence[Diverged], last_rate: float) -> Diverged:
        """The same failure, with what was tried in vain.

        Args:
            failures: the failures of the tries.
            last_rate: the learning rate of the last try, the lowest one.
        """
        ends = ", ".join(f"{each.name} {each.what} at step {each.step}" for each in failures)
        tries = (
            f"; {len(failures)} tries from there, with learning rates down to {last_rate:.3g}, ended alike "
            f"({ends}), so the learning rate is hardly the cause"
        )
        return Diverged(self._run, self.name, self.step, self.what, tries)


class ProcessLost(Exception):
    """Another process of the run is gone; earlier checkpoints are kept."""

    def __init__(self, run: Path) -> None:
        last = latest_checkpoint_folder(run)
        kept = f"go on from {last} with --resume" if last else "the first process has the checkpoints"
        super().__init__(f"train: another process of this run is gone, so it stopped; {kept}")


@contextlib.contextmanager
def explain_failures(run: Path, recipe: Callable[[], Recipe], step: Callable[[], int]) -> Iterator[None]:
    """Turn a failure of MLX's device into a line that says what it was and how to go on.

    Args:
        run: Folder of the run.
        recipe: Returns the recipe with its present number of micro-batches.
        step: Returns the number of training steps made so far.

    Raises:
        DeviceFailed: instead of MLX's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        failure = explain_device_failure(error)
        if failure is None:
            raise
        last = latest_checkpoint_folder(run)
        if last is None:
            raise DeviceFailed(
                f"train: {failure.what} at step {step() + 1}; the first process has the checkpoints, "
                "and all of them are needed to go on with --resume"
            ) from error
        less = (
            gigabytes_for_more_micro_batches(recipe(), rank_count(), gpu=on_gpu_path())
            if failure.less_work_helps
            else None
        )
        how = f" --memory {less:g}, which works on fewer clips at a time" if less else f"; {failure.advice}"
        raise DeviceFailed(
            f"train: {failure.what} at step {step() + 1}; the last checkpoint is {last}; "
            f"go on: mlxlava train --resume -o {run}{how}",
            out_of_memory=failure.out_of_memory,
        ) from error
