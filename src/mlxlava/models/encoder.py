"""The encoder E: a few frames of a clip → mean and variance of its state. It is used in training only."""

from __future__ import annotations

import math
from itertools import pairwise

from mlxlava.backend import Tree, mx
from mlxlava.backend.ops import leaky_relu
from mlxlava.config import Recipe
from mlxlava.models.layers import conv4_leaky_relu, dense, init_conv, init_dense

_INITIAL_LOG_VARIANCE = -3.0  # log variance of an encoded state before training
# Steps of inverse_square_root. Each makes the smallest eigenvalue 9/4 times as large, until it is near one.
_NEWTON_SCHULZ_STEPS = 20


class Encoder:
    """A few frames of a clip, evenly spaced → mean and log variance of its state (training only).

    With E, the networks G and R are a latent variable model of clips: the variational autoencoder of Kingma
    2014, with a state that moves, as in latent ODEs (Rubanova 2019).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.context_frames = recipe.encoder.context_frames
        self.widths = recipe.encoder.widths
        self.hidden = recipe.encoder.hidden
        self.state_size = recipe.generator.state_size
        self.size = recipe.encoder_input_size
        self.end = tuple(side // 2 ** len(self.widths) for side in self.size)

    def init(self, key: mx.array) -> Tree:
        """Initial weights. At first the variances are small, and the means are spread like N(0, I)."""
        keys = iter(mx.random.split(key, len(self.widths) + len(self.hidden) + 2))
        weights: Tree = {}
        for i, (inputs, outputs) in enumerate(pairwise((3, *self.widths))):
            weights[f"down{i}"] = init_conv(next(keys), 4, inputs, outputs)
        widths = (self.context_frames * math.prod(self.end) * self.widths[-1], *self.hidden)
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            weights[f"hidden{i}"] = init_dense(next(keys), inputs, outputs)
        weights["mean"] = init_dense(next(keys), widths[-1], self.state_size, 1.0)
        weights["log_variance"] = init_dense(next(keys), widths[-1], self.state_size, 0.1)
        weights["log_variance"]["bias"] = mx.full((self.state_size,), _INITIAL_LOG_VARIANCE)
        return weights

    def __call__(self, weights: Tree, frames: mx.array) -> tuple[mx.array, mx.array]:
        """Frames (B, V, H, W, 3), centred at zero → mean and log variance (B, Z), not yet standardised."""
        x = 4 * frames.flatten(0, 1)  # (B, V, H, W, 3) -> (B V, H, W, 3); 4: to a deviation of about one
        for i in range(len(self.widths)):
            x = conv4_leaky_relu(weights[f"down{i}"], x)
        x = x.reshape(len(frames), -1)
        for i in range(len(self.hidden)):
            x = leaky_relu(dense(weights[f"hidden{i}"], x))
        return dense(weights["mean"], x), mx.minimum(dense(weights["log_variance"], x), 0)


def standardise(mean: mx.array, log_variance: mx.array) -> tuple[mx.array, mx.array]:
    """Scale means (B, Z) so that over the batch each number of an encoded state has mean 0 and variance 1.

    The variance of a number is the variance of its means plus the mean of its variances. So the means are
    standardised to 1 minus the mean variance, as in Zhu 2020 (BN-VAE). Without this the encoder's means
    hardly differ at first, and G learns from states that are shorter than those it will be played from.
    """
    left = 1 - mx.exp(log_variance).mean(0)
    return (mean - mean.mean(0)) * mx.sqrt(left / (mean.var(0) + 1e-6)), log_variance


def whiten(
    mean: mx.array, log_variance: mx.array, covariance: mx.array, ridge: float
) -> tuple[mx.array, mx.array]:
    """Make the numbers of standardised means (B, Z) nearly uncorrelated, like the numbers of N(0, I).

    Numbers that are standardised one by one may still be strongly correlated. Then the encoded states lie in
    a thin ellipsoid, but lamps are played from states outside of it. So the means are multiplied by the
    inverse root of their covariance (ZCA whitening; Huang 2018, Decorrelated Batch Normalization). This
    covariance is a running average, since a batch has fewer clips than a state has numbers. No gradient goes
    through it.

    Args:
        mean: Means from :func:`standardise`.
        log_variance: Log variances from :func:`standardise`.
        covariance: Running average (Z, Z) of the covariances that this function returns.
        ridge: Added to the variances, so that directions in which the means hardly differ stay narrow.

    Returns:
        The whitened means; and the covariance (Z, Z) of the means of this batch, each number first divided by
        its deviation.
    """
    deviation = mx.sqrt(1 - mx.exp(log_variance).mean(0))
    unit = mean / deviation
    batch_covariance = mx.stop_gradient(unit.T @ unit / len(unit))
    root = inverse_square_root(mx.stop_gradient(covariance) + ridge * mx.eye(len(covariance)))
    return (unit @ root) * deviation, batch_covariance


def inverse_square_root(matrix: mx.array) -> mx.array:
    """The inverse root of a symmetric positive matrix (Z, Z), by Newton–Schulz steps (Higham 2008, ch. 6).

    It needs only matrix products, so it can be compiled and runs on every device. It is exact enough for
    condition numbers up to 10⁴.
    """
    size = len(matrix)
    scale = mx.sqrt((matrix * matrix).sum())
    y, z = matrix / scale, mx.eye(size)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        turn = 0.5 * (3 * mx.eye(size) - z @ y)
        y, z = y @ turn, turn @ z
    return z / mx.sqrt(scale)
