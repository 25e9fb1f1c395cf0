"""Adversarial losses, gradient penalties and moments: pure functions."""

from __future__ import annotations

from collections.abc import Callable

from mlxlava.backend import mx


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, mx.array(0.0))


def relativistic(real: mx.array, drawn: mx.array) -> tuple[mx.array, mx.array]:
    """Relativistic pairing losses of D and of G (Jolicoeur-Martineau 2018; R3GAN, Huang 2024, eq. 2).

    Args:
        real: Logits of real clips (B,).
        drawn: Logits of drawn clips (B,); clip b is paired with real clip b.
    """
    margin = real - drawn
    return _softplus(-margin).mean(), _softplus(margin).mean()


def relativistic_ratio(real: mx.array, drawn: mx.array) -> mx.array:
    """The factor (B,) from D's to G's loss gradient by each drawn clip's logit: −exp(real − drawn).

    d softplus(−m)/d drawn = sigmoid(−m) and d softplus(m)/d drawn = −sigmoid(m). The clip keeps
    the factor finite; a margin of 60 means that D's gradient has underflowed anyway.
    """
    return -mx.exp(mx.clip(real - drawn, -60, 60))


def cross_entropy(logits: mx.array, real: bool) -> mx.array:
    """Binary cross-entropy of calling all frames real, or drawn; mean over all logits (Goodfellow 2014).

    D's loss is that of the real frames as real and of the drawn ones as drawn; G's, not saturating, that
    of the drawn ones as real.
    """
    return _softplus(-logits if real else logits).mean()


def gradient_penalty(judge: Callable[[mx.array], mx.array], frames: mx.array) -> mx.array:
    """½ · mean over clips of ‖∇ logit‖² (R1 on real clips, R2 on drawn ones; Mescheder 2018, R3GAN).

    Args:
        judge: Clips (B, …) → logits (B,).
        frames: Clips (B, …).
    """
    gradient: mx.array = mx.grad(lambda x: judge(x).sum())(frames)
    return 0.5 * (gradient * gradient).sum() / frames.shape[0]


def moments(x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Mean, standard deviation, skewness and kurtosis (3 for a normal law) of all numbers of ``x``."""
    mean = x.mean()
    centred = x - mean
    square = centred * centred
    std = mx.sqrt(square.mean() + 1e-8)
    return mean, std, (square * centred).mean() / std**3, (square * square).mean() / std**4
