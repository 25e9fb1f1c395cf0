"""The whole loss: first as formulas, then as functions in the same order.

Symbols::

    x        a real clip of K frames; t are their learned steps
    v        context frames: more frames of the same clip, which only the encoder sees
    z        a state, Z numbers; random ones are drawn from N(0, I)
    R(z)     the path of states that the state step R rolls from z; R(z)[t] are its states at the steps t
    y        a drawn clip: the frames G(R(z)[t]) of the generator
    D(x)     the discriminator's logits of a clip; a high logit means that the clip looks real
    E(v)     the encoder's estimate of the state of a clip: a mean m and a variance s² for each number
    mean     the mean over the clips of a batch, and over all logits of a clip

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

2. The adversarial loss of clips y from random states. Before D sees real and drawn clips, both are shifted
   and changed in colour at random, in the same way (``losses.augment``)::

    relativistic:    A_D = mean softplus(−(D(x) − D(y)))               (Jolicoeur-Martineau 2018;
                     A_G = mean softplus(  D(x) − D(y) )                R3GAN, Huang 2024)
    bce:             A_D = mean softplus(−D(x)) + mean softplus(D(y))  (Goodfellow 2014, not saturating)
                     A_G = mean softplus(−D(y))

3. Gradient penalties on D, with relativistic losses (R1 of Mescheder 2018; R2 of R3GAN)::

    R1 = ½ mean ‖gradient of D(x) with respect to x‖²
    R2 = ½ mean ‖gradient of D(y) with respect to y‖²

   They are computed only in every n-th step, with n times the weight (n is ``loss.penalty_every``).

4. The feature matching loss F of clips y from random states. It is small if averages of drawn clips over many
   steps are those of real clips (training/feature_matching.py).

5. The normality penalty N of the penalised state step. It is the sum of the step's terms, each averaged over
   a path (``models/state_step.py``). The stationary step needs none.

In two places, training does not use the gradient of these formulas. The gradient of A_G with respect to
the states is multiplied by ``loss.state_gain`` (training/step.py). And no gradient goes through the running
covariance that whitens the means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from mlxlava.backend import Tree, mx
from mlxlava.backend.ranks import gather_rows
from mlxlava.config import Recipe
from mlxlava.models.encoder import standardise, whiten
from mlxlava.models.layers import average_pool_to_size
from mlxlava.models.normality import epps_pulley_directions
from mlxlava.models.precision import network_in_precision
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
    relativistic_gradient_ratio,
    relativistic_losses,
)

Terms = dict[str, mx.array]


@dataclasses.dataclass(frozen=True)
class Batch:
    """The real clips of a training step. ``times`` has the clips of all ranks, the frames only this rank's.

    Attributes:
        context: Frames that the encoder sees, uint8 (B / ranks, V, H, W, 3).
        frames: Frames to be drawn and judged, uint8 (B / ranks, K, H, W, 3).
        times: Learned step of each of ``frames`` in its clip, int32 (B, K).
    """

    context: mx.array
    frames: mx.array
    times: mx.array


@dataclasses.dataclass(frozen=True)
class Clips:
    """Real clips of a micro-batch.

    Attributes:
        frames: Frames, float32 (B, K, H, W, 3) in [0, 1].
        times: Learned step of each frame in its clip, int32 (B, K).
        keys: Random keys (B, 2, 2). Each clip has a key for augmenting the real clip, and one for the drawn
            clip.
    """

    frames: mx.array
    times: mx.array
    keys: mx.array


class EncodedClips(NamedTuple):
    """States that the encoder gives for clips.

    Attributes:
        states: States (B, Z), drawn from N(m, s²).
        kl: KL divergence of the evidence bound, in nats.
        covariance: Covariance (Z, Z) of the means of this batch; zero without whitening.
    """

    states: mx.array
    kl: mx.array
    covariance: mx.array


class Objective:
    """The networks of a recipe and their loss.

    Attributes:
        generator: G in the recipe's precision.
        dynamics: The state step R.
        encoder: E, or None if the recipe has no encoder.
        feature_matching: The feature matching loss, or None if the recipe has none.
        discriminator: D in the recipe's precision.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        training = recipe.training
        precision = (training.precision, training.loss_scale)
        self.generator: Generator = network_in_precision(make_generator(recipe), *precision)
        self.dynamics: Dynamics = make_dynamics(recipe)
        self.encoder = make_encoder(recipe)
        self.feature_matching = FeatureMatching(recipe) if recipe.loss.feature_matching else None
        # Gradients of gradients are computed in float32, since loss scaling works for first gradients only.
        self._exact_discriminator: Discriminator = make_discriminator(recipe)
        self.discriminator: Discriminator = network_in_precision(self._exact_discriminator, *precision)

    # The loss has two parts: the terms that depend only on states, and the terms that depend on drawn frames.

    def state_loss(
        self, weights: Tree, state: Tree, batch: Batch, bases: Tree, adversarial: bool, key: mx.array
    ) -> tuple[mx.array, Tree]:
        """The terms of the loss that depend only on states, and the states from which frames will be drawn.

        Args:
            weights: Weights of ``dynamics`` and, if the recipe has an encoder, of ``encoder``.
            state: Run state (training/step.py). No gradient is taken with respect to it.
            batch: Real clips of the step.
            bases: Changes of basis of the state step.
            adversarial: Whether D judges in this step.
            key: Random key.

        Returns:
            The weighted sum of KL divergence and normality penalty; and a tree with these entries. ``states``
            (N, K, Z) are the states of encoded clips, then the states of clips from random states, B clips of
            each. ``path`` (B, T, Z) are the whole paths of the last B clips. ``covariance`` (Z, Z) is the
            covariance of the encoded means. ``terms`` are the named terms.
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
            # This term is only logged: are encoded states distributed like the states that lamps are played
            # from?
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
        """The terms of the loss that depend on frames drawn from states.

        These are reconstruction error, adversarial loss and feature matching. The gradient with respect to
        D's weights is the gradient of A_D. The gradient with respect to everything else is that of A_G. With
        ``bce`` losses, A_D is here only the part of the drawn clips; :meth:`real_loss` has the part of the
        real clips.

        Args:
            weights: Weights of ``generator`` and, if D judges in this step, of ``discriminator``.
            states: States (N, K, Z) from :meth:`state_loss`, for the clips of a micro-batch.
            clips: Real clips of the micro-batch.
            sums: Running sums of feature matching, from the run state; empty without feature matching.

        Returns:
            The loss; and a tree with these entries. ``drawn`` (B, K, H, W, 3) are the frames that D has
            judged, without a gradient. ``stats`` are G's BatchNorm statistics. ``features`` are the features
            to add to ``sums``. ``terms`` are the named terms.
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
            adversarial = self.relativistic_loss if recipe.loss.kind == "relativistic" else self.drawn_loss
            more, terms_of_d = adversarial(weights["discriminator"], drawn, clips)
            loss, terms = loss + more, terms | terms_of_d
            if self.feature_matching:
                more, features = self.feature_matching.loss(sums, clips.frames, drawn, clips.times)
                loss = loss + recipe.loss.feature_matching * more
                terms["feature_error"] = self.feature_matching.error_of_averages(sums)
        terms["motion_real"] = mx.abs(clips.frames[:, 1:] - clips.frames[:, :-1]).mean()
        terms["motion_drawn"] = mx.abs(observed[:, 1:] - observed[:, :-1]).mean()
        return loss, {
            "drawn": mx.stop_gradient(drawn),
            "stats": stats,
            "features": features,
            "terms": terms,
        }

    # 1. The evidence bound

    def encode(self, weights: Tree, state: Tree, context: mx.array, key: mx.array) -> EncodedClips:
        """Encode clips from their context frames, uint8 (B / ranks, V, H, W, 3).

        Each rank encodes its own clips. The result has the states of the clips of all ranks.
        """
        assert self.encoder is not None
        background = state["generator"].get("background")
        centre = 0.5 if background is None else mx.sigmoid(mx.stop_gradient(background))
        frames = average_pool_to_size(context.astype(mx.float32) / 255 - centre, self.encoder.size)
        mean, log_variance = self.encoder(weights, frames)
        mean, log_variance = standardise(gather_rows(mean), gather_rows(log_variance))
        ridge, covariance = self.recipe.encoder.whitening, mx.array(0.0)
        if ridge:
            mean, covariance = whiten(mean, log_variance, state["encoded_covariance"], ridge)
        states = mean + mx.exp(0.5 * log_variance) * mx.random.normal(mean.shape, key=key)
        return EncodedClips(states, kl_to_normal(mean, log_variance), covariance)

    # 2. The adversarial loss

    def random_states(
        self, carried: mx.array, count: int, start_key: mx.array, reset_key: mx.array
    ) -> mx.array:
        """States (B, Z) to roll from: N(0, I), or some of ``carried`` (B, Z) if the recipe says so."""
        training = self.recipe.training
        start = mx.random.normal((count, self.recipe.generator.state_size), key=start_key)
        if training.carried_states:
            reset = mx.random.bernoulli(training.reset_probability, (count, 1), key=reset_key)
            start = mx.where(reset, start, carried)
        return start

    def relativistic_loss(self, weights: Tree, drawn: mx.array, clips: Clips) -> tuple[mx.array, Terms]:
        """The relativistic loss A_D.

        Its gradient with respect to drawn frames (B, K, H, W, 3) is that of A_G.

        D judges real and drawn clips in one call, and one backward pass serves both losses. This is possible
        since the gradients of A_D and of A_G with respect to a drawn clip differ only by a factor.
        """
        logits: list[mx.array] = []
        drawn = multiply_gradient(
            drawn, lambda: relativistic_gradient_ratio(*logits)[:, None, None, None, None]
        )
        both = mx.concatenate([clips.frames, drawn])
        keys = clips.keys.swapaxes(0, 1).flatten(0, 1)  # (2 B, 2): of real clips, then of drawn ones
        times = mx.concatenate([clips.times, clips.times])
        logits += mx.split(self.discriminator(weights, self._augment(both, keys), times), 2)
        on_real, on_drawn = logits
        loss_d, loss_g = relativistic_losses(on_real, on_drawn)
        return loss_d, {
            "loss_d": loss_d,
            "loss_g": loss_g,
            "logit_real": on_real.mean(),
            "logit_drawn": on_drawn.mean(),
        }

    def real_loss(self, weights: Tree, clips: Clips) -> tuple[mx.array, Terms]:
        """The part of the cross-entropy A_D that real clips have.

        Real clips are judged in a call of their own, since BatchNorm computes its statistics over a call.
        """
        logits = self.discriminator(weights, clips.frames, clips.times)
        loss = cross_entropy(logits, True)
        return loss, {"loss_d": loss, "logit_real": logits.mean()}

    def drawn_loss(self, weights: Tree, drawn: mx.array, clips: Clips) -> tuple[mx.array, Terms]:
        """The parts of the cross-entropies A_D and A_G that drawn clips (B, K, H, W, 3) have.

        D judges the clips once. The gradient with respect to D's weights is that of A_D. The gradient with
        respect to the frames is that of A_G.
        """
        for_d, for_g = self.discriminator(weights, (mx.stop_gradient(drawn), drawn), clips.times)
        loss_d, loss_g = cross_entropy(for_d, False), cross_entropy(for_g, True)
        return loss_d + loss_g, {"loss_d": loss_d, "loss_g": loss_g, "logit_drawn": for_d.mean()}

    def _augment(self, clips: mx.array, keys: mx.array) -> mx.array:
        return augment(clips, keys, self.recipe.loss.shift, self.recipe.loss.colour)

    # 3. Gradient penalties

    def gradient_penalties(self, weights: Tree, drawn: mx.array, clips: Clips) -> tuple[mx.array, Terms]:
        """R1 of real clips and R2 of drawn clips (B, K, H, W, 3): their weighted sum, and the terms."""

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


def multiply_gradient(array: mx.array, factor: Callable[[], mx.array]) -> mx.array:
    """The identity, whose gradient is multiplied by a factor (gradient reversal: Ganin and Lempitsky 2015).

    Args:
        array: Any array.
        factor: Returns the factor. It is called in the backward pass, so it may use results computed from
            ``array``.
    """
    function: Any = mx.custom_function(lambda array: array)

    def multiplied(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return cotangent * factor()

    function.vjp(multiplied)
    result: mx.array = function(array)
    return result
