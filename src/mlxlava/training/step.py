"""The training step: one compiled, pure function of (everything that changes, batch, key)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxlava.backend import Tree, mx, named_arrays, optim, tree_map
from mlxlava.backend.ranks import gather, rank, ranks, sum_over_ranks
from mlxlava.config import Recipe, Training
from mlxlava.models.encoder import standardise, whiten
from mlxlava.models.normality import (
    epps_pulley_directions,
    moments,
)
from mlxlava.models.precision import half
from mlxlava.models.registry import Discriminator, Generator, make_discriminator, make_encoder, make_generator
from mlxlava.models.state_step import Dynamics, make_dynamics
from mlxlava.training.losses import (
    augment,
    cross_entropy,
    gradient_penalty,
    kl_to_normal,
    relativistic,
    relativistic_ratio,
)

Terms = dict[str, mx.array]
Kind = tuple[bool, bool]  # whether the discriminator judges, and whether with gradient penalties

_STATS_DECAY = 0.99  # of the running BatchNorm statistics that are played (TensorFlow's default)


class Trainer:
    """The networks of a recipe and the step that trains them.

    Everything that changes is in one tree, the run state:

    - ``generator``, ``dynamics``, ``discriminator`` and, where the recipe has one, ``encoder``: weights
    - ``stats``: BatchNorm statistics and fixed bases, ``generator`` and ``dynamics``
    - ``ema``: averaged weights of ``generator`` and ``dynamics``, the ones that are played
    - ``optimizer``: of ``model`` (generator, dynamics, encoder) and of ``discriminator``
    - ``carried``: last states of the batch before (B, Z)
    - ``encoded_covariance``, where the recipe whitens: running covariance (Z, Z) of encoded means
    - ``step``: training steps made
    """

    def __init__(self, recipe: Recipe, total_steps: int, *, compiled: bool = True) -> None:
        self.recipe, self.total_steps = recipe, total_steps
        training = recipe.training
        precise = (training.precision, training.loss_scale)
        self.generator: Generator = half(make_generator(recipe), *precise)
        self.dynamics: Dynamics = make_dynamics(recipe)
        # Gradients of gradients are taken in float32: half.scale is right for the first ones only.
        self._exact: Discriminator = make_discriminator(recipe)
        self.discriminator: Discriminator = half(self._exact, *precise)
        self.encoder = make_encoder(recipe)
        self._optimizers = {
            "model": _make_optimizer(training, total_steps, training.learning_rate, training.betas),
            "discriminator": _make_optimizer(
                training, total_steps, training.d_rate * training.learning_rate, training.d_betas
            ),
        }
        self._rank = rank()
        self._alone = round(recipe.loss.alone * total_steps)  # steps without D
        self._penalised = recipe.loss.kind == "relativistic" and recipe.loss.gamma > 0
        self._bases: Tree | None = None  # of the state step; they do not change
        wrap: Callable[[Any], Any] = mx.compile if compiled else lambda function: function
        # A trace each: the discriminator is most of the work, its gradient penalties double that, and most
        # steps go without them.
        self._steps = {
            kind: wrap(self._make_step(*kind)) for kind in ((False, False), (True, False), (True, True))
        }

    def init(self) -> Tree:
        """The run state at step 0; a function of the recipe's seed."""
        recipe = self.recipe
        keys = mx.random.split(mx.random.key(recipe.training.seed), 5)
        played = {"generator": self.generator.init(keys[0]), "dynamics": self.dynamics.init(keys[1])}
        model = {**played, "encoder": self.encoder.init(keys[4])} if self.encoder else played
        discriminator = self.discriminator.init(keys[2])
        states: Tree = {}
        for part, weights in (("model", model), ("discriminator", discriminator)):
            self._optimizers[part].init(weights)
            states[part] = self._optimizers[part].state
        state = {
            **model,
            "discriminator": discriminator,
            "stats": {"generator": self.generator.init_stats(), "dynamics": self.dynamics.init_stats()},
            "ema": tree_map(mx.array, played),
            "optimizer": states,
            "carried": mx.random.normal((recipe.data.batch_size, recipe.generator.state_size), key=keys[3]),
            "step": mx.array(0, mx.int32),
        }
        if recipe.encoder.whitening:
            state["encoded_covariance"] = mx.eye(recipe.generator.state_size)
        mx.eval(state)
        return state

    def __call__(self, state: Tree, frames: mx.array, times: mx.array, index: int) -> tuple[Tree, Terms]:
        """One training step.

        Args:
            state: Run state.
            frames: This rank's real clips, uint8 (B / ranks, V + K, H, W, 3): V for the encoder, K to be
                drawn and judged.
            times: Learned step of each frame in its clip, int32 (B, V + K), of all ranks' clips.
            index: Number of this step; with the recipe's seed it fixes all randomness.

        Returns:
            The next run state and the named terms (scalars), neither evaluated yet.
        """
        key = mx.random.key((self.recipe.training.seed << 32) + index)
        return self.step_of(state, frames, times, key, *self.kind_of(index))

    def kind_of(self, index: int) -> Kind:
        """The kind of step that number ``index`` is."""
        adversarial = index >= self._alone
        return adversarial, adversarial and self._penalised and index % self.recipe.loss.penalty_every == 0

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of step that the recipe has: with the discriminator or not, with its penalties or not."""
        kinds = [(False, False)] if self._alone > 0 else []
        if self._alone < self.total_steps:
            if not self._penalised or self.recipe.loss.penalty_every > 1:
                kinds.append((True, False))
            if self._penalised:
                kinds.append((True, True))
        return kinds

    def step_of(
        self, state: Tree, frames: mx.array, times: mx.array, key: mx.array, adversarial: bool, penalty: bool
    ) -> tuple[Tree, Terms]:
        """A training step of a kind, with a key of its own; otherwise as a call."""
        if self._bases is None:
            self._bases = self.dynamics.prepare(state["stats"]["dynamics"])
        new, terms = self._steps[adversarial, penalty](state, frames, times, key, self._bases)
        return new, terms

    def _make_step(
        self, adversarial: bool, penalty: bool
    ) -> Callable[[Tree, mx.array, mx.array, mx.array, Tree], tuple[Tree, Terms]]:
        recipe = self.recipe
        views = recipe.encoder.views

        def step(
            state: Tree, frames: mx.array, times: mx.array, key: mx.array, bases: Tree
        ) -> tuple[Tree, Terms]:
            viewed, real, times = frames[:, :views], frames[:, views:], times[:, views:]
            states_key, judge_key = mx.random.split(key)

            # States are few numbers, so all of the batch's are rolled together. Drawing and judging is what
            # takes memory: it is differentiated part by part, and hands back its gradient by the states as
            # a constant. So the parts together give what the whole batch gives (but for BatchNorm).
            def surrogate(moving: Tree) -> tuple[mx.array, Any]:
                states, path, loss, terms, covariance = self._states(
                    moving, state, bases, viewed, times, adversarial, states_key
                )
                pictures = self._pictures(state, states, real, times, adversarial, penalty, judge_key)
                terms |= pictures.pop("terms") | _observe(path)
                kept = (terms, pictures, path[:, -1], covariance)
                return loss + (states * pictures.pop("by_states")).sum(), kept

            moving: Tree = {part: state[part] for part in ("dynamics", "encoder") if part in state}
            (_, (terms, gradients, last, covariance)), by_moving = mx.value_and_grad(surrogate)(moving)
            if self.encoder:  # each rank has encoded its own clips
                by_moving["encoder"] = sum_over_ranks(by_moving["encoder"])
            stats = gradients.pop("stats")
            gradients |= by_moving
            new = self._update(state, gradients, stats, last)
            if recipe.encoder.whitening:
                decay = recipe.encoder.whitening_decay
                new["encoded_covariance"] = _average(state["encoded_covariance"], covariance, decay)
            if recipe.training.precision == "float16":
                new, terms["skipped"] = _unless_overflown(gradients, state, new)
            return new, terms

        return step

    def _states(
        self,
        moving: Tree,
        state: Tree,
        bases: Tree,
        viewed: mx.array,
        times: mx.array,
        adversarial: bool,
        key: mx.array,
    ) -> tuple[mx.array, mx.array, mx.array, Terms, mx.array]:
        """The states of the frames to be drawn (N, K, Z): of encoded clips, then of random ones, B each.

        Also the paths (B, T, Z) of the last B, what the loss has to say of states alone, its terms, and the
        covariance (Z, Z) of the encoded means.
        """
        recipe = self.recipe
        start_key, reset_key, law_key, direction_key, roll_key = mx.random.split(key, 5)
        starts, terms, loss = [], {}, mx.array(0.0)
        shape = (len(times), recipe.generator.state_size)
        covariance = mx.array(0.0)
        if self.encoder:
            encoded, terms["kl"], covariance = self._encode(moving["encoder"], state, viewed, law_key)
            starts.append(encoded)
            loss = loss + recipe.loss.evidence * terms["kl"]
            # To watch, not to minimise: are encoded states like the random ones that are played?
            terms["normality_encoded"] = mx.stop_gradient(epps_pulley_directions(encoded, direction_key))
        if adversarial:
            start = mx.random.normal(shape, key=start_key)
            if recipe.training.carry:
                reset = mx.random.bernoulli(recipe.training.reset_probability, (len(times), 1), key=reset_key)
                start = mx.where(reset, start, state["carried"])
            starts.append(start)
        steps = recipe.data.seq_len
        path, penalties = self.dynamics.roll(
            moving["dynamics"],
            bases,
            mx.concatenate(starts),
            roll_key,
            steps,
            before=steps // 2 if self.dynamics.reversible else 0,
        )
        if penalties:
            terms |= penalties
            loss = loss + recipe.loss.normality * sum(penalties.values())
        states = path
        if times.shape[1] != steps:
            times = mx.concatenate([times] * len(starts))
            states = mx.take_along_axis(path, times[:, :, None], axis=1)
        return states, path[-shape[0] :], loss, terms, covariance

    def encode(self, state: Tree, viewed: mx.array, key: mx.array) -> mx.array:
        """States (B, Z) of clips, drawn from the laws of their frames, uint8 (B, V, H, W, 3).

        The laws are standardised over these clips, of which there should be many.
        """
        return self._encode(state["encoder"], state, viewed, key)[0]

    def _encode(
        self, weights: Tree, state: Tree, viewed: mx.array, key: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """States (B, Z), their KL divergence from N(0, I), and the covariance (Z, Z) of their means."""
        assert self.encoder is not None
        still = state["generator"].get("background")
        centre = 0.5 if still is None else mx.sigmoid(mx.stop_gradient(still))
        mean, log_variance = self.encoder(weights, viewed.astype(mx.float32) / 255 - centre)
        mean, log_variance = standardise(gather(mean), gather(log_variance))
        ridge, covariance = self.recipe.encoder.whitening, mx.array(0.0)
        if ridge:
            mean, covariance = whiten(mean, log_variance, state["encoded_covariance"], ridge)
        states = mean + mx.exp(0.5 * log_variance) * mx.random.normal(mean.shape, key=key)
        return states, kl_to_normal(mean, log_variance), covariance

    def _pictures(
        self,
        state: Tree,
        states: mx.array,
        real: mx.array,
        times: mx.array,
        adversarial: bool,
        penalty: bool,
        key: mx.array,
    ) -> Tree:
        """Draw the frames of states and judge them beside real ones, one part of the batch after the other.

        Args:
            state: Run state.
            states: (N, K, Z), N a multiple of B.
            real: This rank's real clips, uint8 (B / ranks, K, H, W, 3).
            times: (B, K).
            adversarial: Whether D judges.
            penalty: Whether with gradient penalties.
            key: For what D's frames are changed by, clip by clip.

        Returns:
            Gradients ``generator``, ``discriminator`` (None without D) and ``by_states`` (N, K, Z) of the
            mean over all clips of all ranks, the ``stats`` of G and the ``terms``.
        """
        parts, batch = self.recipe.training.micro_batches, len(times)
        count = len(real) // parts
        sets = mx.stop_gradient(states).reshape(-1, batch, *states.shape[1:])
        keys = mx.random.split(key, 2 * batch).reshape(batch, 2, 2)  # a real and a drawn clip's
        total: Tree = {}
        by_states: list[mx.array] = []
        for part in range(parts):
            mine = slice(part * count, (part + 1) * count)
            rows = slice(self._rank * len(real) + mine.start, self._rank * len(real) + mine.stop)
            chosen, clips = sets[:, rows].flatten(0, 1), real[mine]
            if part:  # the memory of the part before is free then
                done = {"total": total, "by_states": by_states[-1]}
                chosen, clips = _after(chosen, done), _after(clips, done)
            clips = clips.astype(mx.float32) / 255

            def loss(generator: Tree, chosen: mx.array, clips: mx.array, rows: slice) -> tuple[mx.array, Any]:
                return self._part(
                    generator,
                    state["discriminator"],
                    chosen,
                    clips,
                    times[rows],
                    adversarial,
                    penalty,
                    keys[rows],
                )

            (_, rest), (by_weights, by_chosen) = mx.value_and_grad(loss, (0, 1))(
                state["generator"], chosen, clips, rows
            )
            by_states.append(by_chosen.reshape(len(sets), count, *states.shape[1:]))
            more = {"generator": by_weights, **rest}
            total = _add(total, more) if part else more
        share = 1 / (parts * ranks())
        total = sum_over_ranks(tree_map(lambda array: share * array, total))
        of_rank = mx.concatenate(by_states, axis=1).swapaxes(0, 1)
        of_all = share * gather(of_rank).swapaxes(0, 1)  # (N / B, B, K, Z)
        if adversarial:  # the last set is what D has judged
            of_all = mx.concatenate([of_all[:-1], self.recipe.loss.state_gain * of_all[-1:]])
        return {**total, "by_states": of_all.reshape(states.shape)}

    def _part(
        self,
        generator: Tree,
        discriminator: Tree,
        states: mx.array,
        real: mx.array,
        times: mx.array,
        adversarial: bool,
        penalty: bool,
        keys: mx.array,
    ) -> tuple[mx.array, Tree]:
        """What one part of the batch has to say: G's loss; and D's gradient, the statistics, the terms.

        The forward pass of G is shared: D is judged and differentiated on the frames inside G's own
        differentiation, and hands back its gradient by them as a constant.
        """
        recipe, terms = self.recipe, Terms()
        draw = mx.checkpoint(self.generator) if recipe.training.recompute else self.generator
        drawn, stats = draw(generator, states.flatten(0, 1))  # (N, K, Z) -> (N K, H, W, 3)
        drawn = shown = drawn.reshape(*states.shape[:2], *drawn.shape[1:])
        loss = mx.array(0.0)
        rest: Tree = {"stats": stats, "terms": terms}
        if self.encoder:
            again, drawn = drawn[: len(real)], drawn[len(real) :]
            terms["reconstruction"] = ((again - real) ** 2).sum((2, 3, 4)).mean()
            loss = loss + recipe.loss.evidence * terms["reconstruction"] / (2 * recipe.loss.sigma**2)
            shown = drawn if adversarial else again
        if adversarial:
            judged, rest["discriminator"], by_frames = self._judge(
                discriminator, real, drawn, times, penalty, keys
            )
            terms |= judged
            loss = loss + (drawn * by_frames).sum()
        terms["motion_real"] = mx.abs(real[:, 1:] - real[:, :-1]).mean()
        terms["motion_drawn"] = mx.abs(shown[:, 1:] - shown[:, :-1]).mean()
        rest["terms"] = terms
        return loss, rest

    def _judge(
        self, weights: Tree, real: mx.array, drawn: mx.array, times: mx.array, penalty: bool, keys: mx.array
    ) -> tuple[Terms, Tree, mx.array]:
        """Terms, D's gradient by its weights, G's gradient by the drawn frames (no gradient flows on).

        ``keys`` (B, 2, 2): one for each real and each drawn clip.
        """
        drawn = mx.stop_gradient(drawn)
        loss = self.recipe.loss
        if loss.kind == "bce":
            terms, gradient, by_frames = self._judge_apart(weights, real, drawn, times)
            return terms, gradient, mx.stop_gradient(by_frames)

        def look(clips: mx.array, keys: mx.array) -> mx.array:
            return augment(clips, keys, loss.shift, loss.colour)

        both_keys = keys.swapaxes(0, 1).flatten(0, 1)  # (2 B, 2): of real clips, then of drawn ones
        terms, gradient, by_frames = self._judge_pairs(
            lambda weights, clips, times: self.discriminator(weights, look(clips, both_keys), times),
            weights,
            real,
            drawn,
            times,
        )
        if penalty:

            def both(weights: Tree) -> tuple[mx.array, Any]:
                r1 = gradient_penalty(
                    lambda clips: self._exact(weights, look(clips, keys[:, 0]), times), real
                )
                r2 = gradient_penalty(
                    lambda clips: self._exact(weights, look(clips, keys[:, 1]), times), drawn
                )
                return loss.gamma * loss.penalty_every * (r1 + r2), (r1, r2)

            (_, (r1, r2)), extra = mx.value_and_grad(both)(weights)
            terms |= {"r1": r1, "r2": r2}
            gradient = _add(gradient, extra)
        return terms, gradient, mx.stop_gradient(by_frames)

    def _judge_pairs(
        self,
        judge: Callable[[Tree, mx.array, mx.array], mx.array],
        weights: Tree,
        real: mx.array,
        drawn: mx.array,
        times: mx.array,
    ) -> tuple[Terms, Tree, mx.array]:
        """Relativistic pairs: real and drawn clips in one call of D, one backward pass for D and for G."""

        def loss(weights: Tree, drawn: mx.array) -> tuple[mx.array, Any]:
            logits = judge(weights, mx.concatenate([real, drawn]), mx.concatenate([times, times]))
            on_real, on_drawn = mx.split(logits, 2)
            loss_d, loss_g = relativistic(on_real, on_drawn)
            return loss_d, (loss_g, on_real, on_drawn)

        (loss_d, (loss_g, on_real, on_drawn)), (gradient, by_frames) = mx.value_and_grad(loss, (0, 1))(
            weights, drawn
        )
        ratio = relativistic_ratio(on_real, on_drawn)
        terms = {
            "loss_d": loss_d,
            "loss_g": loss_g,
            "logit_real": on_real.mean(),
            "logit_drawn": on_drawn.mean(),
        }
        return terms, gradient, by_frames * ratio[:, None, None, None, None]

    def _judge_apart(
        self, weights: Tree, real: mx.array, drawn: mx.array, times: mx.array
    ) -> tuple[Terms, Tree, mx.array]:
        """Cross-entropy: real frames in one call of D, drawn ones in another, for BatchNorm's statistics.

        The second is begun when the memory of the first is free. Drawn frames go forward once, and back
        twice: by the weights for D's loss, by the frames for G's.
        """

        def loss_on_real(weights: Tree) -> tuple[mx.array, Any]:
            logits = self.discriminator(weights, real, times)
            return cross_entropy(logits, True), logits.mean()

        def losses_on_drawn(weights: Tree, drawn: mx.array) -> tuple[mx.array, Any]:
            for_d, for_g = self.discriminator(weights, (mx.stop_gradient(drawn), drawn), times)
            loss_d, loss_g = cross_entropy(for_d, False), cross_entropy(for_g, True)
            return loss_d + loss_g, (loss_d, loss_g, for_d.mean())

        (loss_real, on_real), by_real = mx.value_and_grad(loss_on_real)(weights)
        drawn = _after(drawn, by_real)
        (_, (loss_drawn, loss_g, on_drawn)), (by_drawn, by_frames) = mx.value_and_grad(
            losses_on_drawn, (0, 1)
        )(weights, drawn)
        terms = {
            "loss_d": loss_real + loss_drawn,
            "loss_g": loss_g,
            "logit_real": on_real,
            "logit_drawn": on_drawn,
        }
        return terms, _add(by_real, by_drawn), by_frames

    def _update(self, state: Tree, gradients: Tree, stats: Tree, last: mx.array) -> Tree:
        """The next run state from the gradients by part; a part without one stays as it is."""
        count = state["step"] + 1
        optimizers = dict(state["optimizer"])
        model: Tree = {part: state[part] for part in ("generator", "dynamics", "encoder") if part in state}
        moved: Tree = {"discriminator": state["discriminator"]}
        for part, weights, grads in (
            ("model", model, {part: gradients[part] for part in model}),
            ("discriminator", state["discriminator"], gradients.get("discriminator")),
        ):
            if grads is None:
                continue
            optimizer = self._optimizers[part]
            optimizer.state = tree_map(lambda array: array, state["optimizer"][part])  # it changes its tree
            moved[part] = self._clip(
                weights, optimizer.apply_gradients(grads, weights), optimizer.learning_rate
            )
            optimizers[part] = optimizer.state
        share = self.recipe.training.r_rate
        if share != 1:
            moved["model"]["dynamics"] = _average(model["dynamics"], moved["model"]["dynamics"], 1 - share)
        # A young average forgets its random start: decay (1 + n) / (10 + n) at first (TensorFlow's rule).
        decay = mx.minimum(self.recipe.training.ema, (1 + count) / (10 + count))
        kept = state["stats"]["generator"]
        return {
            **moved["model"],
            "discriminator": moved["discriminator"],
            "stats": {
                "generator": _average(kept, stats, _STATS_DECAY),
                "dynamics": state["stats"]["dynamics"],
            },
            "ema": _average(state["ema"], {part: moved["model"][part] for part in state["ema"]}, decay),
            "optimizer": optimizers,
            "carried": last,
            "step": count,
        }

    def _clip(self, old: Tree, new: Tree, rate: mx.array) -> Tree:
        """Shorten the steps of tensors that moved too far (update clipping: Shazeer & Stern 2018, section 6).

        Adam without a first moment moves a tensor up to 1 / sqrt(1 - beta2) learning rates when its
        gradient grows suddenly; a discriminator that does so between two gradient penalties runs away.
        """
        if not self.recipe.training.clip:
            return new
        limit = self.recipe.training.clip * rate

        def shorten(old: mx.array, new: mx.array) -> mx.array:
            change = new - old
            length = mx.sqrt((change * change).mean())
            return old + change * (limit / mx.maximum(length, limit))

        shortened: Tree = tree_map(shorten, old, new)
        return shortened


def _unless_overflown(gradients: Tree, old: Tree, new: Tree) -> tuple[Tree, mx.array]:
    """The new run state, or, where a gradient has left float16's range, the old one; and 1 in that case."""
    overflown = mx.array(False)
    for gradient in named_arrays(gradients).values():
        overflown = overflown | mx.logical_not(mx.isfinite(gradient)).any()
    kept: Tree = tree_map(lambda a, b: mx.where(overflown, a, b), old, new)
    return {**kept, "step": new["step"]}, overflown.astype(mx.float32)


def _after(array: mx.array, done: Tree) -> mx.array:
    """``array``, which is computed once all of ``done`` is."""
    later: list[mx.array] = mx.depends([array], list(named_arrays(done).values()))
    return later[0]


def _add(one: Tree, other: Tree) -> Tree:
    """Array by array."""
    total: Tree = tree_map(lambda a, b: a + b, one, other)
    return total


def _average(old: Any, new: Any, decay: float | mx.array) -> Any:
    """decay · old + (1 − decay) · new, array by array."""
    return tree_map(lambda a, b: decay * a + (1 - decay) * b, old, new)


def _make_optimizer(
    training: Training, total_steps: int, learning_rate: float, betas: tuple[float, float]
) -> optim.Optimizer:
    rate: Any = learning_rate
    if training.schedule == "cosine":
        rate = optim.cosine_decay(learning_rate, max(total_steps, 1))
    if training.warm_up:
        full = rate

        def rate(step: mx.array) -> Any:
            share = mx.minimum(1, (step + 1) / training.warm_up)
            return share * (full(step) if callable(full) else full)

    if training.optimizer == "sgd":
        return optim.SGD(rate)
    return optim.Adam(rate, betas=list(betas), bias_correction=True)


def _observe(path: mx.array) -> Terms:
    """What to watch of states: the moments of the last ones of paths (B, T, Z), and the spread of lamps."""
    last = path[:, -1]
    mean, std, skew, kurtosis = moments(last)
    return {
        "state_mean": mean,
        "state_std": std,
        "state_skew": skew,
        "state_kurtosis": kurtosis,
        # 1 when lamps are independent, 0 when they have collapsed onto one another
        "state_spread": mx.sqrt(last.var(axis=0).mean()),
    }
