"""The encoder E: a few frames of a clip → mean and variance of its state. Training alone needs it."""

from __future__ import annotations

import math
from itertools import pairwise

from mlxlava.backend import Tree, mx
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.layers import dense, downsample, init_conv, init_dense

_FIRST_LOG_VARIANCE = -3.0  # of an encoded state, before training
# Of inverse_root. Each makes the smallest eigenvalue 9/4 times as large, until it is near one.
_ROOT_ROUNDS = 20


class Encoder:
    """A few frames of a clip, evenly spaced → mean and log variance of its state (training only).

    It makes G and R a latent variable model of clips, the variational autoencoder of Kingma 2014 with a
    state that moves, as in latent ODEs (Rubanova 2019).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.context_frames = recipe.encoder.context_frames
        self.widths = recipe.encoder.widths
        self.hidden = recipe.encoder.hidden
        self.state_size = recipe.generator.state_size
        self.size = recipe.encoder_size
        self.end = tuple(side // 2 ** len(self.widths) for side in self.size)

    def init(self, key: mx.array) -> Tree:
        """Weights; at first variances are small, and the means are spread like N(0, I)."""
        keys = iter(mx.random.split(key, len(self.widths) + len(self.hidden) + 2))
        weights: Tree = {}
        for i, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weights[f"down{i}"] = init_conv(next(keys), 4, inputs, outputs)
        widths = (self.context_frames * math.prod(self.end) * self.widths[-1], *self.hidden)
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            weights[f"hidden{i}"] = init_dense(next(keys), inputs, outputs)
        weights["mean"] = init_dense(next(keys), widths[-1], self.state_size, 1.0)
        weights["log_variance"] = init_dense(next(keys), widths[-1], self.state_size, 0.1)
        weights["log_variance"]["bias"] = mx.full((self.state_size,), _FIRST_LOG_VARIANCE)
        return weights

    def __call__(self, weights: Tree, frames: mx.array) -> tuple[mx.array, mx.array]:
        """Frames about zero (B, V, H, W, 3) → mean and log variance (B, Z), yet to be standardised."""
        x = 4 * frames.flatten(0, 1)  # (B, V, H, W, 3) -> (B V, H, W, 3); to a deviation of about one
        for i in range(len(self.widths)):
            x = downsample(weights[f"down{i}"], x)
        x = x.reshape(len(frames), -1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"hidden{i}"], x))
        return dense(weights["mean"], x), mx.minimum(dense(weights["log_variance"], x), 0)


def standardise(mean: mx.array, log_variance: mx.array) -> tuple[mx.array, mx.array]:
    """Encoded states (B, Z) such that over the batch each number of a state has mean 0 and variance 1.

    The means are standardised, as in Zhu 2020 (BN-VAE), to what the variances leave of that. Without it the
    encoder starts by saying little, and G learns states that are shorter than those it will play.
    """
    left = 1 - mx.exp(log_variance).mean(0)
    return (mean - mean.mean(0)) * mx.sqrt(left / (mean.var(0) + 1e-6)), log_variance


def whiten(
    mean: mx.array, log_variance: mx.array, covariance: mx.array, ridge: float
) -> tuple[mx.array, mx.array]:
    """Means of standardised states (B, Z) made nearly uncorrelated, as the numbers of N(0, I) are.

    Numbers that are standardised one by one may still be strongly correlated. Then states lie in a thin
    ellipsoid, and lamps are played from states outside of it. The means are multiplied by the inverse root of
    their covariance (ZCA whitening; Huang 2018, Decorrelated Batch Normalization). That is a running average,
    since a batch has fewer clips than a state has numbers; no gradient goes through it.

    Args:
        mean: of :func:`standardise`.
        log_variance: of :func:`standardise`.
        covariance: running average (Z, Z) of what this gives.
        ridge: added to the variances, so that directions in which the means hardly differ stay narrow.

    Returns:
        The means, and the covariance (Z, Z) of this batch's, each number divided by its deviation.
    """
    deviation = mx.sqrt(1 - mx.exp(log_variance).mean(0))
    unit = mean / deviation
    batch_covariance = mx.stop_gradient(unit.T @ unit / len(unit))
    root = inverse_root(mx.stop_gradient(covariance) + ridge * mx.eye(len(covariance)))
    return (unit @ root) * deviation, batch_covariance


def inverse_root(matrix: mx.array) -> mx.array:
    """The inverse root of a symmetric positive matrix (Z, Z), by Newton–Schulz steps (Higham 2008, ch. 6).

    It is made of products alone, so it compiles and runs on every device. Condition numbers to 10⁴ are fine.
    """
    size = len(matrix)
    scale = mx.sqrt((matrix * matrix).sum())
    y, z = matrix / scale, mx.eye(size)
    for _ in range(_ROOT_ROUNDS):
        turn = 0.5 * (3 * mx.eye(size) - z @ y)
        y, z = y @ turn, turn @ z
    return z / mx.sqrt(scale)
