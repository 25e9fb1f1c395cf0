"""The whole loss: first as formulas, then as functions in the same order.

Symbols::

    x        a real clip of K frames, at the learned steps t of its K frames
    v        context frames: more frames of the same clip, which only the encoder sees
    z        a state, Z numbers; random ones are drawn from N(0, I)
    R(z)     the path of states that the state step R rolls from z; R(z)[t] are those at the steps t
    y        a drawn clip: the generator's pictures G(R(z)[t])
    D(x)     the discriminator's logits of a clip: high where it takes the clip for real
    E(v)     the encoder's guess at the state of a clip: a mean m and a variance s² for each number
    mean     over the clips of a batch, and over all logits of a clip

What is minimised::

    by G, R and E:   elbo_weight · bound  +  A_G  +  feature_matching · F  +  normality · N
    by D:            A_D  +  gamma · (R1 + R2)

where ``elbo_weight``, ``feature_matching``, ``normality`` and ``gamma`` are settings of the recipe. The terms
are:

1. The negative evidence bound, in recipes with an encoder (Kingma and Welling 2014; with states that move,
   Rubanova 2019)::

    bound = mean KL(N(m, s²) ‖ N(0, I))  +  mean ‖y − x‖² / (2 sigma²),    z drawn from N(m, s²)

   The means m are first standardised and whitened over the batch. The squared error is summed over a frame
   and averaged over frames.

2. The adversarial loss, of clips y from random states. D looks at real and drawn clips after the same kind
   of random shift and change of colour (``losses.augment``)::

    relativistic:    A_D = mean softplus(−(D(x) − D(y)))               (Jolicoeur-Martineau 2018;
                     A_G = mean softplus(  D(x) − D(y) )                R3GAN, Huang 2024)
    bce:             A_D = mean softplus(−D(x)) + mean softplus(D(y))  (Goodfellow 2014, not saturating)
                     A_G = mean softplus(−D(y))

3. Gradient penalties on D, with relativistic losses (R1 of Mescheder 2018; R2 of R3GAN)::

    R1 = ½ mean ‖gradient of D(x) with respect to x‖²,    R2 = the same of D(y) with respect to y

   They are computed in every n-th step only, with n times the weight (n is ``loss.penalty_every``).

4. Feature matching F, of clips y from random states: averages over many steps that are as those of real
   clips (training/feature_matching.py).

5. The normality penalty N of the penalised state step: the sum of its terms, each averaged over the steps of
   a roll (``models/state_step.py``). The stationary step needs none.

In two places the gradient that is used is not that of these formulas. The gradient of A_G with respect to
the states is multiplied by ``loss.state_gain`` (training/step.py). And no gradient goes through the running
covariance that whitens the means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from mlxlava.backend import Tree, mx
from mlxlava.backend.ranks import gather
from mlxlava.config import Recipe
from mlxlava.models.encoder import standardise, whiten
from mlxlava.models.normality import epps_pulley_directions
from mlxlava.models.precision import half
from mlxlava.models.registry import (
    Discriminator,
    Generator,
    make_discriminator,
    make_encoder,
    make_generator,
)
from mlxlava.models.state_step import Dynamics, make_dynamics
from mlxlava.training.feature_matching import FeatureMatching
from mlxlava.training.losses import (
    augment,
    cross_entropy,
    gradient_penalty,
    kl_to_normal,
    relativistic,
    relativistic_ratio,
)

Terms = dict[str, mx.array]


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a step learns from. Frames are those of this rank's clips, times those of all ranks' clips.

    Attributes:
        context: Frames that the encoder sees, uint8 (B / ranks, V, H, W, 3).
        frames: Frames to be drawn and judged, uint8 (B / ranks, K, H, W, 3).
        times: Learned steps of ``frames`` in their clips, int32 (B, K).
    """

    context: mx.array
    frames: mx.array
    times: mx.array


@dataclasses.dataclass(frozen=True)
class Clips:
    """Real clips of a micro-batch.

    Attributes:
        frames: float32 (B, K, H, W, 3) in [0, 1].
        times: Learned steps of the frames, int32 (B, K).
        keys: Random keys (B, 2, 2): for the augmentation of each real clip, and of each drawn one.
    """

    frames: mx.array
    times: mx.array
    keys: mx.array


class Encoded(NamedTuple):
    """Encoded clips.

    Attributes:
        states: (B, Z), drawn from N(m, s²).
        kl: The KL divergence of the bound, in nats.
        covariance: (Z, Z), of the means in this batch; zero without whitening.
    """

    states: mx.array
    kl: mx.array
    covariance: mx.array


class Objective:
    """The networks of a recipe and their loss.

    Attributes:
        generator: G, in the recipe's precision.
        dynamics: R.
        encoder: E, or None.
        feature_matching: The loss of that name, or None.
        discriminator: D, in the recipe's precision.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        training = recipe.training
        precision = (training.precision, training.loss_scale)
        self.generator: Generator = half(make_generator(recipe), *precision)
        self.dynamics: Dynamics = make_dynamics(recipe)
        self.encoder = make_encoder(recipe)
        self.feature_matching = FeatureMatching(recipe) if recipe.loss.feature_matching else None
        # Gradients of gradients are taken in float32: loss scaling is right for first gradients only.
        self._exact_discriminator: Discriminator = make_discriminator(recipe)
        self.discriminator: Discriminator = half(self._exact_discriminator, *precision)

    # The loss in two pieces: what the states alone decide, and what is decided by the frames drawn from them.

    def state_loss(
        self, weights: Tree, state: Tree, batch: Batch, bases: Tree, adversarial: bool, key: mx.array
    ) -> tuple[mx.array, Tree]:
        """KL divergence and normality penalty, and the states of the frames to be drawn.

        Args:
            weights: Of ``dynamics`` and, where there is one, ``encoder``.
            state: Run state (training/step.py); no gradient is taken with respect to it.
            batch: The batch.
            bases: Of the state step.
            adversarial: Whether D judges in this step.
            key: Random key.

        Returns:
            The weighted loss, and a tree of: ``states`` (N, K, Z), those of encoded clips and then those of
            random ones, B clips each; ``path`` (B, T, Z), the whole paths of the last B clips;
            ``covariance`` (Z, Z) of the encoded means; ``terms``.
        """
        start_key, reset_key, sample_key, directions_key, roll_key = mx.random.split(key, 5)
        count, steps = len(batch.times), self.recipe.data.seq_len
        loss, covariance = mx.array(0.0), mx.array(0.0)
        starts: list[mx.array] = []
        terms: Terms = {}
        if self.encoder:
            encoded = self.encode(weights["encoder"], state, batch.context, sample_key)
            starts.append(encoded.states)
            covariance, terms["kl"] = encoded.covariance, encoded.kl
            loss = loss + self.recipe.loss.elbo_weight * encoded.kl
            # Only observed: are encoded states distributed like the random ones that lamps are played from?
            distance = epps_pulley_directions(encoded.states, directions_key)
            terms["normality_encoded"] = mx.stop_gradient(distance)
        if adversarial:
            starts.append(self.random_states(state["carried"], count, start_key, reset_key))
        path, penalties = self.dynamics.roll(
            weights["dynamics"],
            bases,
            mx.concatenate(starts),
            roll_key,
            steps,
            position=steps // 2 if self.dynamics.reversible else 0,
        )
        if penalties:
            terms |= penalties
            loss = loss + self.recipe.loss.normality * sum(penalties.values())
        states = path
        if batch.times.shape[1] != steps:
            times = mx.concatenate([batch.times] * len(starts))
            states = mx.take_along_axis(path, times[:, :, None], axis=1)
        return loss, {"states": states, "path": path[-count:], "covariance": covariance, "terms": terms}

    def frame_loss(self, weights: Tree, states: mx.array, clips: Clips, sums: Tree) -> tuple[mx.array, Tree]:
        """Reconstruction error, adversarial loss and feature matching of frames that are drawn from states.

        The gradient with respect to D's weights is that of A_D, the one with respect to all else that of A_G.
        Of ``bce`` losses A_D is that of the drawn clips only; :meth:`real_loss` has the rest.

        Args:
            weights: Of ``generator`` and, where it judges, ``discriminator``.
            states: (N, K, Z), as :meth:`state_loss` gives them, of the clips of a micro-batch.
            clips: Those clips.
            sums: Of feature matching, from the run state; empty without it.

        Returns:
            The loss, and a tree of: ``drawn`` (B, K, H, W, 3), the frames that D has judged, without
            gradient; ``stats``, G's BatchNorm statistics; ``features``, what is added to ``sums``; ``terms``.
        """
        recipe, terms = self.recipe, Terms()
        features: Tree = {}
        draw = mx.checkpoint(self.generator) if recipe.training.recompute else self.generator
        drawn, stats = draw(weights["generator"], states.flatten(0, 1))  # (N, K, Z) -> (N K, H, W, 3)
        drawn = observed = drawn.reshape(*states.shape[:2], *drawn.shape[1:])
        loss = mx.array(0.0)
        if self.encoder:
            count = len(clips.frames)
            reconstructed, drawn = drawn[:count], drawn[count:]
            observed = drawn if "discriminator" in weights else reconstructed
            terms["reconstruction"] = reconstruction_error(reconstructed, clips.frames)
            loss = loss + recipe.loss.elbo_weight * terms["reconstruction"] / (2 * recipe.loss.sigma**2)
        if "discriminator" in weights:
            adversarial = self.relativistic if recipe.loss.kind == "relativistic" else self.drawn_loss
            more, terms_of_d = adversarial(weights["discriminator"], drawn, clips)
            loss, terms = loss + more, terms | terms_of_d
            if self.feature_matching:
                more, features = self.feature_matching.loss(sums, clips.frames, drawn, clips.times)
                loss = loss + recipe.loss.feature_matching * more
                terms["feature_error"] = self.feature_matching.error(sums)
        terms["motion_real"] = mx.abs(clips.frames[:, 1:] - clips.frames[:, :-1]).mean()
        terms["motion_drawn"] = mx.abs(observed[:, 1:] - observed[:, :-1]).mean()
        return loss, {
            "drawn": mx.stop_gradient(drawn),
            "stats": stats,
            "features": features,
            "terms": terms,
        }

    # 1. The evidence bound

    def encode(self, weights: Tree, state: Tree, context: mx.array, key: mx.array) -> Encoded:
        """States of clips, from their context frames, uint8 (B / ranks, V, H, W, 3).

        Each rank encodes its own clips; the states are those of all ranks.
        """
        assert self.encoder is not None
        background = state["generator"].get("background")
        centre = 0.5 if background is None else mx.sigmoid(mx.stop_gradient(background))
        frames = average_down(context.astype(mx.float32) / 255 - centre, self.encoder.size)
        mean, log_variance = self.encoder(weights, frames)
        mean, log_variance = standardise(gather(mean), gather(log_variance))
        ridge, covariance = self.recipe.encoder.whitening, mx.array(0.0)
        if ridge:
            mean, covariance = whiten(mean, log_variance, state["encoded_covariance"], ridge)
        states = mean + mx.exp(0.5 * log_variance) * mx.random.normal(mean.shape, key=key)
        return Encoded(states, kl_to_normal(mean, log_variance), covariance)

    # 2. The adversarial loss

    def random_states(
        self, carried: mx.array, count: int, start_key: mx.array, reset_key: mx.array
    ) -> mx.array:
        """States (B, Z) to roll from: N(0, I), or, if the recipe says so, some of ``carried`` (B, Z)."""
        training = self.recipe.training
        start = mx.random.normal((count, self.recipe.generator.state_size), key=start_key)
        if training.carried_states:
            reset = mx.random.bernoulli(training.reset_probability, (count, 1), key=reset_key)
            start = mx.where(reset, start, carried)
        return start

    def relativistic(self, weights: Tree, drawn: mx.array, clips: Clips) -> tuple[mx.array, Terms]:
        """A_D of pairs, whose gradient with respect to drawn frames (B, K, H, W, 3) is that of A_G.

        D judges real and drawn clips in one call, and one backward pass serves both losses: with respect to
        the frames of a drawn clip, their gradients differ by one factor.
        """
        logits: list[mx.array] = []
        drawn = multiply_gradient(drawn, lambda: relativistic_ratio(*logits)[:, None, None, None, None])
        both = mx.concatenate([clips.frames, drawn])
        keys = clips.keys.swapaxes(0, 1).flatten(0, 1)  # (2 B, 2): of real clips, then of drawn ones
        times = mx.concatenate([clips.times, clips.times])
        logits += mx.split(self.discriminator(weights, self._augment(both, keys), times), 2)
        on_real, on_drawn = logits
        loss_d, loss_g = relativistic(on_real, on_drawn)
        return loss_d, {
            "loss_d": loss_d,
            "loss_g": loss_g,
            "logit_real": on_real.mean(),
            "logit_drawn": on_drawn.mean(),
        }

    def real_loss(self, weights: Tree, clips: Clips) -> tuple[mx.array, Terms]:
        """The cross-entropy of real clips, in A_D.

        Real clips are judged in a call of their own, since BatchNorm takes its statistics over a call.
        """
        logits = self.discriminator(weights, clips.frames, clips.times)
        loss = cross_entropy(logits, True)
        return loss, {"loss_d": loss, "logit_real": logits.mean()}

    def drawn_loss(self, weights: Tree, drawn: mx.array, clips: Clips) -> tuple[mx.array, Terms]:
        """The cross-entropy of drawn clips (B, K, H, W, 3), in A_D and in A_G.

        D judges them once. The gradient with respect to its weights is that of A_D, the one with respect to
        the frames that of A_G.
        """
        for_d, for_g = self.discriminator(weights, (mx.stop_gradient(drawn), drawn), clips.times)
        loss_d, loss_g = cross_entropy(for_d, False), cross_entropy(for_g, True)
        return loss_d + loss_g, {"loss_d": loss_d, "loss_g": loss_g, "logit_drawn": for_d.mean()}

    def _augment(self, clips: mx.array, keys: mx.array) -> mx.array:
        return augment(clips, keys, self.recipe.loss.shift, self.recipe.loss.colour)

    # 3. Gradient penalties

    def penalties(self, weights: Tree, drawn: mx.array, clips: Clips) -> tuple[mx.array, Terms]:
        """R1 and R2 of real and drawn clips (B, K, H, W, 3): their weighted sum, and the terms."""

        def penalty(frames: mx.array, keys: mx.array) -> mx.array:
            def judge(frames: mx.array) -> mx.array:
                logits: mx.array = self._exact_discriminator(
                    weights, self._augment(frames, keys), clips.times, weight_gradient_first=False
                )
                return logits

            return gradient_penalty(judge, frames)

        r1, r2 = penalty(clips.frames, clips.keys[:, 0]), penalty(drawn, clips.keys[:, 1])
        loss = self.recipe.loss
        return loss.gamma * loss.penalty_every * (r1 + r2), {"r1": r1, "r2": r2}


def reconstruction_error(drawn: mx.array, real: mx.array) -> mx.array:
    """‖y − x‖² of clips (B, K, H, W, 3): summed over a frame, averaged over frames."""
    return ((drawn - real) ** 2).sum((2, 3, 4)).mean()


def average_down(frames: mx.array, size: tuple[int, int]) -> mx.array:
    """Frames (…, H, W, C) → (…, h, w, C): means of blocks, for a ``size`` that divides theirs."""
    *rest, height, width, channels = frames.shape
    if (height, width) == size:
        return frames
    blocks = frames.reshape(*rest, size[0], height // size[0], size[1], width // size[1], channels)
    return blocks.mean((-4, -2))


def multiply_gradient(array: mx.array, factor: Callable[[], mx.array]) -> mx.array:
    """``array``, whose gradient is multiplied by a factor (gradient reversal: Ganin and Lempitsky 2015).

    Args:
        array: Any array.
        factor: Called in the backward pass. So it may give what was computed from ``array``.
    """
    function: Any = mx.custom_function(lambda array: array)

    def multiplied(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent * factor()

    function.vjp(multiplied)
    result: mx.array = function(array)
    return result
