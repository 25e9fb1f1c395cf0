"""Optimisers, update clipping, and averages of weights."""

from __future__ import annotations

from typing import Any

from mlxlava.backend import Tree, mx, optim, tree_map
from mlxlava.config import Training


def make_optimizer(training: Training, learning_rate: float, betas: tuple[float, float]) -> optim.Optimizer:
    """The optimiser that a recipe names. Its learning rate is set anew for each step (schedule.py)."""
    if training.optimizer == "sgd":
        return optim.SGD(learning_rate)
    return optim.Adam(learning_rate, betas=list(betas), bias_correction=True)


def optimize(
    optimizer: optim.Optimizer, state: Tree, weights: Tree, gradients: Tree, rate: mx.array, clipping: float
) -> tuple[Tree, Tree]:
    """One step of an optimiser, with clipped updates.

    Args:
        optimizer: The optimiser.
        state: Its state before the step; it is not changed.
        weights: Weights before the step.
        gradients: Gradients with respect to the weights.
        rate: Learning rate of this step.
        clipping: Longest update of a tensor, in learning rates; 0 for no limit (:func:`clip_updates`).

    Returns:
        The weights and the optimiser's state after the step.
    """
    optimizer.state = tree_map(lambda array: array, state)  # a copy, since the optimiser changes its tree
    optimizer.state["learning_rate"] = rate
    after: Tree = optimizer.apply_gradients(gradients, weights)
    if clipping:
        after = clip_updates(weights, after, clipping * optimizer.learning_rate)
    return after, optimizer.state


def clip_updates(old: Tree, new: Tree, limit: mx.array) -> Tree:
    """Shorten the steps of tensors that moved too far (update clipping: Shazeer and Stern 2018, section 6).

    If a gradient suddenly grows, Adam without a first moment moves a tensor by up to 1 / sqrt(1 − beta2)
    learning rates. A discriminator that moves so far between two gradient penalties diverges.

    Args:
        old: Weights before the step.
        new: Weights after it.
        limit: Longest step, as the RMS over the numbers of a tensor.
    """

    def clip(old: mx.array, new: mx.array) -> mx.array:
        change = new - old
        length = mx.sqrt((change * change).mean())
        return old + change * (limit / mx.maximum(length, limit))

    clipped: Tree = tree_map(clip, old, new)
    return clipped


def decayed_average(old: Any, new: Any, decay: float | mx.array) -> Any:
    """decay · old + (1 − decay) · new, array by array."""
    return tree_map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def ema_decay(decay: float, steps: mx.array) -> mx.array:
    """The decay of averaged weights after ``steps`` steps: (1 + n) / (10 + n), at most ``decay``.

    So an average of few steps soon forgets the random start (the rule of TensorFlow's
    ExponentialMovingAverage).
    """
    return mx.minimum(decay, (1 + steps) / (10 + steps))
