"""Adversarial losses, gradient penalties, augmentation and KL divergence: pure functions."""

from __future__ import annotations

from collections.abc import Callable

from mlxlava.backend import mx


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, mx.array(0.0))


def relativistic_losses(real: mx.array, drawn: mx.array) -> tuple[mx.array, mx.array]:
    """Relativistic pairing losses of D and of G (Jolicoeur-Martineau 2018; R3GAN, Huang 2024, eq. 2).

    Args:
        real: Logits of real clips (B,).
        drawn: Logits of drawn clips (B,); clip b is paired with real clip b.
    """
    margin = real - drawn
    return _softplus(-margin).mean(), _softplus(margin).mean()


def relativistic_gradient_ratio(real: mx.array, drawn: mx.array) -> mx.array:
    """The gradient of G's loss divided by the gradient of D's loss, for each drawn clip's logit: (B,).

    With m = real − drawn, d softplus(−m)/d drawn = sigmoid(−m) and d softplus(m)/d drawn = −sigmoid(m); their
    ratio is −exp(m). m is limited to ±60, so that the ratio is finite. Beyond 60, D's gradient underflows
    anyway.
    """
    return -mx.exp(mx.clip(real - drawn, -60, 60))


def cross_entropy(logits: mx.array, real: bool) -> mx.array:
    """Binary cross-entropy with all frames labelled as real, or all as drawn; a mean (Goodfellow 2014).

    D's loss has real frames labelled as real, and drawn frames labelled as drawn. G's loss (the one that does
    not saturate) has drawn frames labelled as real.
    """
    return _softplus(-logits if real else logits).mean()


def gradient_penalty(judge: Callable[[mx.array], mx.array], frames: mx.array) -> mx.array:
    """½ · mean over clips of ‖∇ logit‖² (R1 on real clips, R2 on drawn ones; Mescheder 2018, R3GAN).

    Args:
        judge: Clips (B, …) → logits (B,). Its convolutions should have ``weight_gradient_first`` False, since
            the gradient here is only with respect to the clips.
        frames: Clips (B, …).
    """
    gradient: mx.array = mx.grad(lambda x: judge(x).sum())(frames)
    return 0.5 * (gradient * gradient).sum() / frames.shape[0]


def augment(clips: mx.array, keys: mx.array, shift: float, colour: float) -> mx.array:
    """Random shifts and changes of colour, equal in all frames of a clip (Zhao 2020, DiffAugment).

    Real and drawn clips are changed in the same way. So D cannot memorise the real clips where these are few.
    Motion does not change. The augmentation is differentiable with respect to the frames.

    Args:
        clips: Frames (B, K, H, W, C) in [0, 1].
        keys: Random keys (B, 2), one for each clip, so that its change does not depend on other clips.
        shift: Largest shift in either direction, as a share of height and width. Edge pixels are repeated.
        colour: Largest change of brightness. The largest change of contrast is twice that.
    """
    batch, _, height, width, _ = clips.shape

    def draw(key: mx.array) -> mx.array:
        return mx.random.uniform(-1, 1, (4,), key=key)

    amounts = mx.vmap(draw)(keys) if shift or colour else keys
    if shift:
        for axis, side in ((2, height), (3, width)):
            offset = mx.round(round(shift * side) * amounts[:, axis - 2 : axis - 1]).astype(mx.int32)
            at = mx.clip(mx.arange(side) + offset, 0, side - 1)
            shape = [batch, 1, 1, 1, 1]
            shape[axis] = side
            clips = mx.take_along_axis(clips, at.reshape(shape), axis=axis)
    if colour:
        brightness, contrast = (amounts[:, n].reshape(-1, 1, 1, 1, 1) for n in (2, 3))
        clips = (clips - 0.5) * (1 + 2 * colour * contrast) + 0.5 + colour * brightness
    return clips


def kl_to_normal(mean: mx.array, log_variance: mx.array) -> mx.array:
    """KL(N(mean, variance) ‖ N(0, I)), nats; mean over the rows of (B, Z) (Kingma 2014, appendix B)."""
    return 0.5 * (mx.exp(log_variance) + mean * mean - 1 - log_variance).sum(-1).mean()
