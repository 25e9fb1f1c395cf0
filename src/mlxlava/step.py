"""The training step: one compiled, pure function of (everything that changes, batch, key)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxlava.backend import mx, named_arrays, optim, tree_map
from mlxlava.config import Recipe, Training
from mlxlava.conv import without_weights
from mlxlava.dynamics import Dynamics, make_dynamics
from mlxlava.losses import (
    augment,
    cross_entropy,
    epps_pulley_directions,
    gradient_penalty,
    kl_to_normal,
    moments,
    relativistic,
    relativistic_ratio,
)
from mlxlava.nets import Discriminator, Encoder, Generator, Tree, make_discriminator, make_generator

Terms = dict[str, mx.array]

_STATS_DECAY = 0.99  # of the running BatchNorm statistics that are played (TensorFlow's default)


class Trainer:
    """The networks of a recipe and the step that trains them.

    Everything that changes is in one tree, the run state:

    - ``generator``, ``dynamics``, ``discriminator`` and, where the recipe has one, ``encoder``: weights
    - ``stats``: BatchNorm statistics and fixed bases, ``generator`` and ``dynamics``
    - ``ema``: averaged weights of ``generator`` and ``dynamics``, the ones that are played
    - ``optimizer``: of ``model`` (generator, dynamics, encoder) and of ``discriminator``
    - ``carried``: last states of the batch before (B, Z)
    - ``step``: training steps made
    """

    def __init__(self, recipe: Recipe, total_steps: int, *, compiled: bool = True) -> None:
        self.recipe = recipe
        self.generator: Generator = make_generator(recipe)
        self.dynamics: Dynamics = make_dynamics(recipe)
        self.discriminator: Discriminator = make_discriminator(recipe)
        self.encoder = Encoder(recipe) if recipe.encoder.views else None
        training = recipe.training
        self._optimizers = {
            "model": _make_optimizer(training, total_steps, training.learning_rate, training.betas),
            "discriminator": _make_optimizer(
                training, total_steps, training.d_rate * training.learning_rate, training.d_betas
            ),
        }
        self._alone = round(recipe.loss.alone * total_steps)  # steps without D
        self._penalised = recipe.loss.kind == "relativistic" and recipe.loss.gamma > 0
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
        mx.eval(state)
        return state

    def __call__(self, state: Tree, frames: mx.array, times: mx.array, index: int) -> tuple[Tree, Terms]:
        """One training step.

        Args:
            state: Run state.
            frames: Real clips, uint8 (B, V + K, H, W, 3): V for the encoder, K to be drawn and judged.
            times: Learned step of each frame in its clip, int32 (B, V + K).
            index: Number of this step; with the recipe's seed it fixes all randomness.

        Returns:
            The next run state and the named terms (scalars), neither evaluated yet.
        """
        key = mx.random.key((self.recipe.training.seed << 32) + index)
        loss = self.recipe.loss
        adversarial = index >= self._alone
        penalty = adversarial and self._penalised and index % loss.penalty_every == 0
        new, terms = self._steps[adversarial, penalty](state, frames, times, key)
        return new, terms

    def _make_step(
        self, adversarial: bool, penalty: bool
    ) -> Callable[[Tree, mx.array, mx.array, mx.array], tuple[Tree, Terms]]:
        recipe = self.recipe
        views = recipe.encoder.views

        def step(state: Tree, frames: mx.array, times: mx.array, key: mx.array) -> tuple[Tree, Terms]:
            clips = frames.astype(mx.float32) / 255
            viewed, real, times = clips[:, :views], clips[:, views:], times[:, views:]
            starts_key, roll_key, judge_key = mx.random.split(key, 3)
            model: Tree = {
                part: state[part] for part in ("generator", "dynamics", "encoder") if part in state
            }

            # The forward pass of G is shared: D is judged and differentiated on the frames inside
            # G's own differentiation, and hands back its gradient by them as a constant.
            def surrogate(model: Tree) -> tuple[mx.array, Any]:
                loss, terms, gradient = mx.array(0.0), {}, None
                starts, terms_of_law = self._starts(model, state, viewed, adversarial, starts_key)
                drawn, stats, path, penalties = self._draw(model, state, starts, times, roll_key)
                if self.encoder:
                    again, drawn = drawn[: len(real)], drawn[len(real) :]
                    terms = {**terms_of_law, "reconstruction": ((again - real) ** 2).sum((2, 3, 4)).mean()}
                    nats = terms["reconstruction"] / (2 * recipe.loss.sigma**2) + terms["kl"]
                    loss = loss + recipe.loss.evidence * nats
                if adversarial:
                    judged, gradient, by_frames = self._judge(
                        state["discriminator"], real, drawn, times, penalty, judge_key
                    )
                    terms |= judged
                    loss = loss + (drawn * by_frames).sum()
                if penalties:
                    terms |= penalties
                    loss = loss + recipe.loss.normality * sum(penalties.values())
                terms |= _observe(real, drawn if adversarial else again, path[-len(real) :])
                return loss, (terms, gradient, stats, path[-len(real) :, -1])

            (_, (terms, gradient, stats, last)), model_gradient = mx.value_and_grad(surrogate)(model)
            return self._update(state, model, model_gradient, gradient, stats, last), terms

        return step

    def _starts(
        self, model: Tree, state: Tree, viewed: mx.array, adversarial: bool, key: mx.array
    ) -> tuple[mx.array, Terms]:
        """States that clips are rolled from: of encoded real clips, then random ones; and the former's KL."""
        recipe = self.recipe
        start_key, reset_key, law_key, direction_key = mx.random.split(key, 4)
        starts, terms = [], {}
        if self.encoder:
            still = model["generator"].get("background")
            centre = 0.5 if still is None else mx.sigmoid(mx.stop_gradient(still))
            mean, log_variance = self.encoder(model["encoder"], viewed - centre)
            noise = mx.random.normal(mean.shape, key=law_key)
            encoded = mean + mx.exp(0.5 * log_variance) * noise
            starts.append(encoded)
            # To watch, not to minimise: are encoded states like the random ones that are played?
            terms = {
                "kl": kl_to_normal(mean, log_variance),
                "normality_encoded": mx.stop_gradient(epps_pulley_directions(encoded, direction_key)),
            }
        if adversarial:
            start = mx.random.normal((len(viewed), recipe.generator.state_size), key=start_key)
            if recipe.training.carry:
                reset = mx.random.bernoulli(
                    recipe.training.reset_probability, (len(viewed), 1), key=reset_key
                )
                start = mx.where(reset, start, state["carried"])
            starts.append(start)
        return mx.concatenate(starts), terms

    def _draw(
        self, model: Tree, state: Tree, starts: mx.array, times: mx.array, key: mx.array
    ) -> tuple[mx.array, Tree, mx.array, Terms]:
        """Roll the states of all clips, then draw the frames that are asked for in one call of G.

        ``starts`` (N, Z) with N a multiple of B, ``times`` (B, K): frames (N, K, H, W, 3), and the path.
        """
        recipe = self.recipe
        count = times.shape[1]
        steps = recipe.data.seq_len
        path, penalties = self.dynamics.roll(
            model["dynamics"],
            state["stats"]["dynamics"],
            starts,
            key,
            steps,
            before=steps // 2 if self.dynamics.reversible else 0,
        )
        states = path
        if count != recipe.data.seq_len:
            times = mx.concatenate([times] * (len(starts) // len(times)))
            states = mx.take_along_axis(path, times[:, :, None], axis=1)
        drawn, stats = self.generator(model["generator"], states.flatten(0, 1))  # (N, K, Z) -> (N K, H, W, 3)
        return drawn.reshape(len(starts), count, *drawn.shape[1:]), stats, path, penalties

    def _judge(
        self, weights: Tree, real: mx.array, drawn: mx.array, times: mx.array, penalty: bool, key: mx.array
    ) -> tuple[Terms, Tree, mx.array]:
        """Terms, D's gradient by its weights, G's gradient by the drawn frames (no gradient flows on)."""
        drawn = mx.stop_gradient(drawn)
        loss = self.recipe.loss
        if loss.kind == "bce":
            terms, gradient, by_frames = self._judge_apart(weights, real, drawn, times)
            return terms, gradient, mx.stop_gradient(by_frames)
        keys = mx.random.split(key, 2)

        def logits(weights: Tree, clips: mx.array, times: mx.array, key: mx.array) -> mx.array:
            return self.discriminator(weights, augment(clips, key, loss.shift, loss.colour), times)

        terms, gradient, by_frames = self._judge_pairs(
            lambda weights, clips, times: logits(weights, clips, times, keys[0]), weights, real, drawn, times
        )
        if penalty:

            def both(weights: Tree) -> tuple[mx.array, Any]:
                r1 = gradient_penalty(lambda clips: logits(weights, clips, times, keys[0]), real)
                r2 = gradient_penalty(lambda clips: logits(weights, clips, times, keys[1]), drawn)
                return loss.gamma * loss.penalty_every * (r1 + r2), (r1, r2)

            (_, (r1, r2)), extra = mx.value_and_grad(both)(weights)
            terms |= {"r1": r1, "r2": r2}
            gradient = tree_map(lambda a, b: a + b, gradient, extra)
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

        Three passes, each begun when the memory of the one before is free: real frames by weights, drawn
        frames by weights, drawn frames by frames.
        """

        def loss_on_real(weights: Tree) -> tuple[mx.array, Any]:
            logits = self.discriminator(weights, real, times)
            return cross_entropy(logits, True), logits.mean()

        def loss_on_drawn(weights: Tree) -> tuple[mx.array, Any]:
            logits = self.discriminator(weights, drawn, times)
            return cross_entropy(logits, False), logits.mean()

        def loss_of_g(drawn: mx.array) -> mx.array:
            return cross_entropy(self.discriminator(weights, drawn, times), True)

        (loss_real, on_real), by_real = mx.value_and_grad(loss_on_real)(weights)
        drawn = _after(drawn, by_real)
        (loss_drawn, on_drawn), by_drawn = mx.value_and_grad(loss_on_drawn)(weights)
        drawn = _after(drawn, by_drawn)
        with without_weights():
            loss_g, by_frames = mx.value_and_grad(loss_of_g)(drawn)
        terms = {
            "loss_d": loss_real + loss_drawn,
            "loss_g": loss_g,
            "logit_real": on_real,
            "logit_drawn": on_drawn,
        }
        return terms, tree_map(lambda a, b: a + b, by_real, by_drawn), by_frames

    def _update(
        self,
        state: Tree,
        model: Tree,
        model_gradient: Tree,
        gradient: Tree | None,
        stats: Tree,
        last: mx.array,
    ) -> Tree:
        """The next run state from the gradients; None leaves D as it is."""
        count = state["step"] + 1
        optimizers = dict(state["optimizer"])
        moved: Tree = {"discriminator": state["discriminator"]}
        for part, weights, grads in (
            ("model", model, model_gradient),
            ("discriminator", state["discriminator"], gradient),
        ):
            if grads is None:
                continue
            optimizer = self._optimizers[part]
            optimizer.state = state["optimizer"][part]
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


def _after(array: mx.array, done: Tree) -> mx.array:
    """``array``, which is computed once all of ``done`` is."""
    later: list[mx.array] = mx.depends([array], list(named_arrays(done).values()))
    return later[0]


def _average(old: Tree, new: Tree, decay: float | mx.array) -> Tree:
    """decay · old + (1 − decay) · new, array by array."""
    mixed: Tree = tree_map(lambda a, b: decay * a + (1 - decay) * b, old, new)
    return mixed


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


def _observe(real: mx.array, drawn: mx.array, path: mx.array) -> Terms:
    """What to watch: the moments of the last states, the spread between lamps, and how much moves."""
    last = path[:, -1]
    mean, std, skew, kurtosis = moments(last)
    return {
        "state_mean": mean,
        "state_std": std,
        "state_skew": skew,
        "state_kurtosis": kurtosis,
        # 1 when lamps are independent, 0 when they have collapsed onto one another
        "state_spread": mx.sqrt(last.var(axis=0).mean()),
        "motion_real": mx.abs(real[:, 1:] - real[:, :-1]).mean(),
        "motion_drawn": mx.abs(drawn[:, 1:] - drawn[:, :-1]).mean(),
    }
