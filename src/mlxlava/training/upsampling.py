"""The training of the upsampling network U, with which a lamp grows.

U learns from real frames alone::

    x        a real frame
    s(x)     x made small (means of blocks), blurred at random and with noise
    U(s(x))  the frame of full size that U makes of it

    loss = mean ‖U(s(x)) − x‖²,    summed over a frame

The generator and the state step of the small lamp do not learn. Blur and noise differ from frame to frame
(conditioning augmentation: Ho 2022, section 4). The generator's pictures are a little softer than real ones,
and so U learns to give soft pictures crisp edges too.

A pixel's neighbours at full size follow almost entirely from the small picture, so the squared error does
not blur. That is why no discriminator is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxlava.backend import Tree, mx, tree_map
from mlxlava.backend.ranks import rank, rank_count, sum_over_ranks
from mlxlava.config import Recipe
from mlxlava.models.generator import to_uint8_frames
from mlxlava.models.layers import average_pool_to_size
from mlxlava.models.precision import network_in_precision
from mlxlava.models.registry import make_generator, make_upsampler
from mlxlava.models.state_step import make_dynamics
from mlxlava.training.objective import Terms, reconstruction_error
from mlxlava.training.optimizers import decayed_average, ema_decay, make_optimizer, optimize
from mlxlava.training.schedule import Schedule, learning_rates
from mlxlava.training.step import StepKind, add_trees, compute_after, skip_if_overflown


class UpsamplerTrainer:
    """The training step of the upsampling network. It is used like ``training.step.Trainer``.

    The run state has these entries:

    - ``generator``: weights of the small lamp's generator, which rest, and of U under ``upsampler``
    - ``dynamics``, ``stats``: weights and statistics of the small lamp, which rest
    - ``ema``: averaged weights of ``generator`` and ``dynamics``; these are played
    - ``optimizer``: state of the optimiser ``upsampler``
    - ``step``: number of training steps made
    """

    def __init__(self, recipe: Recipe, steps: int | Schedule, *, compiled: bool = True) -> None:
        """``steps`` are the training steps of the whole run, or the run's schedule."""
        self.recipe = recipe
        # It may be replaced: the learning rate is an argument of the compiled step, which stays as it is.
        self.schedule = Schedule.of_steps(steps) if isinstance(steps, int) else steps
        training = recipe.training
        upsampler = make_upsampler(recipe)
        self._upsampler = network_in_precision(upsampler, training.precision, training.loss_scale)
        self._optimizer = make_optimizer(training, training.learning_rate, training.betas)
        self._first_clip = rank() * recipe.data.batch_size // rank_count()
        wrap: Callable[[Any], Any] = mx.compile if compiled else lambda function: function
        self._step = wrap(self._updated)

    @property
    def total_steps(self) -> int:
        """Training steps of the whole run."""
        return self.schedule.total_steps

    @property
    def first_step_with_d(self) -> int:
        """The number of steps in all: no discriminator joins in."""
        return self.total_steps

    def init(self) -> Tree:
        """The run state at step 0. It depends only on the recipe."""
        recipe = self.recipe
        generator, dynamics = make_generator(recipe), make_dynamics(recipe)
        keys = mx.random.split(mx.random.key(recipe.training.seed), 5)
        played = {"generator": generator.init(keys[0]), "dynamics": dynamics.init(keys[1])}
        self._optimizer.init(played["generator"]["upsampler"])
        state = {
            **played,
            "stats": {"generator": generator.init_stats(), "dynamics": dynamics.init_bases()},
            "ema": tree_map(mx.array, played),
            "optimizer": {"upsampler": self._optimizer.state},
            "step": mx.array(0, mx.int32),
        }
        mx.eval(state)
        return state

    def __call__(
        self, state: Tree, frames: mx.array, times: mx.array, index: int, *, kind: StepKind | None = None
    ) -> tuple[Tree, Terms]:
        """One training step.

        Args:
            state: Run state.
            frames: This rank's real clips, uint8 (B / ranks, K, H, W, 3).
            times: Not used.
            index: Number of this step. All random numbers depend only on it and on the recipe's seed.
            kind: Not used: there is only one.

        Returns:
            The next run state, and the named terms (scalars). They are not evaluated yet.
        """
        key = mx.random.key((self.recipe.training.seed << 32) + index)
        # What rests does not pass through the step, so that it is not copied.
        changing = {
            "upsampler": state["generator"]["upsampler"],
            "ema": state["ema"]["generator"]["upsampler"],
            "optimizer": state["optimizer"]["upsampler"],
            "step": state["step"],
        }
        rate, _ = learning_rates(self.recipe, self.schedule, index)
        new, terms = self._step(changing, frames, key, mx.array(rate))
        after = {
            **state,
            "generator": {**state["generator"], "upsampler": new["upsampler"]},
            "ema": {**state["ema"], "generator": {**state["ema"]["generator"], "upsampler": new["ema"]}},
            "optimizer": {"upsampler": new["optimizer"]},
            "step": new["step"],
        }
        return after, terms

    def kind_of_step(self, index: int) -> StepKind:
        """The kind of every step: no discriminator judges."""
        return StepKind(False, False)

    @property
    def step_kinds(self) -> list[StepKind]:
        """The only kind of step."""
        return [self.kind_of_step(0)]

    def loss(self, weights: Tree, real: mx.array, blur: mx.array, noise: mx.array) -> tuple[mx.array, Terms]:
        """The squared error of enlarged frames, summed over a frame and averaged over frames.

        Args:
            weights: Weights of U.
            real: Real clips (B, K, H, W, 3) in [0, 1].
            blur: How much each frame is blurred, (B, K); see :func:`blur_pictures`.
            noise: Noise (B, K, h, w, 3) that is added to the small pictures.

        Returns:
            The loss and the named terms.
        """
        pictures = average_pool_to_size(real, self._upsampler.input_size).flatten(0, 1)
        pictures = blur_pictures(pictures, blur.flatten()) + noise.flatten(0, 1)
        drawn = self._upsampler(weights, pictures).reshape(real.shape)
        error = reconstruction_error(drawn, real)
        motion = {
            f"motion_{name}": mx.abs(clips[:, 1:] - clips[:, :-1]).mean()
            for name, clips in (("real", real), ("drawn", drawn))
            if clips.shape[1] > 1
        }
        return error, {"reconstruction": error, **motion}

    def enlarge(self, state: Tree, frames: mx.array) -> mx.array:
        """Real frames made small and enlarged again by the averaged weights, uint8 (N, H, W, 3)."""
        pictures = average_pool_to_size(frames.astype(mx.float32) / 255, self._upsampler.input_size)
        return to_uint8_frames(self._upsampler(state["ema"]["generator"]["upsampler"], pictures))

    def _updated(self, state: Tree, frames: mx.array, key: mx.array, rate: mx.array) -> tuple[Tree, Terms]:
        """A step; every array that it changes is in ``state``."""
        training = self.recipe.training
        averages = self._average_micro_batches(state["upsampler"], frames, key)
        gradients, terms = averages["gradients"], averages["terms"]
        count = state["step"] + 1
        before, clipping = state["upsampler"], training.update_clipping
        weights, optimizer_state = optimize(
            self._optimizer, state["optimizer"], before, gradients, rate, clipping
        )
        new: Tree = {
            "upsampler": weights,
            "ema": decayed_average(state["ema"], weights, ema_decay(training.ema, count)),
            "optimizer": optimizer_state,
            "step": count,
        }
        if training.precision == "float16":
            new, terms["skipped"] = skip_if_overflown(gradients, state, new)
        return new, terms

    def _average_micro_batches(self, weights: Tree, frames: mx.array, key: mx.array) -> Tree:
        """The ``gradients`` with respect to the weights of U, and the ``terms``, over the clips of all ranks.

        The frames of one micro-batch after the other are drawn, so that their memory is free again.
        """
        growth, micro_batches = self.recipe.growth, self.recipe.training.micro_batches
        of_rank, drawn_frames = frames.shape[:2]
        blur_key, noise_key = mx.random.split(key)
        shape = (self.recipe.data.batch_size, drawn_frames)
        blur = mx.random.uniform(0, growth.blur, shape, key=blur_key)
        noise = growth.noise * mx.random.normal((*shape, *self._upsampler.input_size, 3), key=noise_key)
        differentiate = mx.value_and_grad(self.loss)
        count = of_rank // micro_batches
        total: Tree = {}
        for start in range(0, of_rank, count):
            rows = slice(self._first_clip + start, self._first_clip + start + count)
            real = frames[start : start + count]
            if total:
                real = compute_after(real, total)
            real = real.astype(mx.float32) / 255
            (_, terms), gradients = differentiate(weights, real, blur[rows], noise[rows])
            one = {"gradients": gradients, "terms": terms}
            total = add_trees(total, one) if total else one
        weight = 1 / (micro_batches * rank_count())
        averages: Tree = sum_over_ranks(tree_map(lambda array: weight * array, total))
        return averages


def blur_pictures(pictures: mx.array, blur: mx.array) -> mx.array:
    """Blur pictures by the kernel (b, 1 − 2 b, b) along both axes.

    Args:
        pictures: Pictures (N, h, w, 3).
        blur: b of each picture (N,), from 0 (not blurred) to 1 / 4.
    """
    share = blur[:, None, None, None]
    padded = mx.pad(pictures, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    rows = share * (padded[:, :-2] + padded[:, 2:]) + (1 - 2 * share) * padded[:, 1:-1]
    return share * (rows[:, :, :-2] + rows[:, :, 2:]) + (1 - 2 * share) * rows[:, :, 1:-1]
