"""The training step: differentiate the objective, share forward passes, update the weights.

A step is one compiled, pure function of the run state, a batch and a random key. The loss is in objective.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from mlxlava.backend import Tree, arrays_by_name, mx, tree_map
from mlxlava.backend.ranks import gather_rows, rank, rank_count, sum_over_ranks
from mlxlava.config import Recipe
from mlxlava.models.normality import moments
from mlxlava.models.state_step import fixed_bases
from mlxlava.training import feature_matching
from mlxlava.training.objective import Batch, Clips, Objective, Terms
from mlxlava.training.optimizers import decayed_average, ema_decay, make_optimizer, optimize
from mlxlava.training.schedule import Schedule, learning_rates

_STATS_DECAY = 0.99  # decay of the running BatchNorm statistics that are played (TensorFlow's default)


class StepKind(NamedTuple):
    """What a training step does in addition to reconstructing clips.

    Attributes:
        adversarial: Whether the discriminator judges clips.
        penalised: Whether the gradient penalties of the discriminator are computed.
    """

    adversarial: bool
    penalised: bool


_STEP_KINDS = (StepKind(False, False), StepKind(True, False), StepKind(True, True))


class Trainer:
    """The networks of a recipe and the step that trains them.

    All arrays that change are in one tree, the run state:

    - ``generator``, ``dynamics``, ``discriminator`` and, where the recipe has one, ``encoder``: weights
    - ``stats``: BatchNorm statistics (``generator``) and the state step's fixed bases (``dynamics``)
    - ``ema``: averaged weights of ``generator`` and ``dynamics``; these are played
    - ``optimizer``: states of the optimisers ``model`` (generator, dynamics, encoder) and ``discriminator``
    - ``carried``: last state of each clip of the previous batch (B, Z)
    - ``encoded_covariance``, where the recipe whitens: running covariance (Z, Z) of encoded means
    - ``features``, where the recipe matches features: running sums (training/feature_matching.py)
    - ``step``: number of training steps made
    """

    def __init__(self, recipe: Recipe, steps: int | Schedule, *, compiled: bool = True) -> None:
        """``steps`` are the training steps of the whole run, or the run's schedule."""
        self.recipe = recipe
        # It may be replaced: learning rates are arguments of the compiled steps, which stay as they are.
        self.schedule = Schedule.of_steps(steps) if isinstance(steps, int) else steps
        self._objective = Objective(recipe)
        training = recipe.training
        d_learning_rate = training.d_rate * training.learning_rate
        self._optimizers = {
            "model": make_optimizer(training, training.learning_rate, training.betas),
            "discriminator": make_optimizer(training, d_learning_rate, training.d_betas),
        }
        self._rank = rank()
        self._has_penalties = recipe.loss.kind == "relativistic" and recipe.loss.gamma > 0
        self._bases: Tree | None = None  # changes of basis of the state step; they are constant
        wrap: Callable[[Any], Any] = mx.compile if compiled else lambda function: function
        # Each kind is compiled by itself. The discriminator is most of the work, and its gradient penalties
        # double that work, but most steps have no penalties.
        self._steps = {kind: wrap(self._make_step_function(kind)) for kind in _STEP_KINDS}

    @property
    def total_steps(self) -> int:
        """Training steps of the whole run."""
        return self.schedule.total_steps

    @property
    def first_step_with_d(self) -> int:
        """The step at which the discriminator joins in; the number of steps in all if it never does."""
        return self.schedule.first_step_at(self.recipe.loss.d_start)

    def init(self) -> Tree:
        """The run state at step 0. It depends only on the recipe."""
        recipe, objective = self.recipe, self._objective
        keys = mx.random.split(mx.random.key(recipe.training.seed), 5)
        played = {
            "generator": objective.generator.init(keys[0]),
            "dynamics": objective.dynamics.init(keys[1]),
        }
        model = {**played, "encoder": objective.encoder.init(keys[4])} if objective.encoder else played
        discriminator = objective.discriminator.init(keys[2])
        optimizer_states: Tree = {}
        for name, weights in (("model", model), ("discriminator", discriminator)):
            self._optimizers[name].init(weights)
            optimizer_states[name] = self._optimizers[name].state
        state = {
            **model,
            "discriminator": discriminator,
            "stats": {
                "generator": objective.generator.init_stats(),
                "dynamics": objective.dynamics.init_bases(),
            },
            "ema": tree_map(mx.array, played),
            "optimizer": optimizer_states,
            "carried": mx.random.normal((recipe.data.batch_size, recipe.generator.state_size), key=keys[3]),
            "step": mx.array(0, mx.int32),
        }
        if recipe.encoder.whitening:
            state["encoded_covariance"] = mx.eye(recipe.generator.state_size)
        if objective.feature_matching:
            state["features"] = objective.feature_matching.init_sums()
        mx.eval(state)
        return state

    def __call__(
        self, state: Tree, frames: mx.array, times: mx.array, index: int, *, kind: StepKind | None = None
    ) -> tuple[Tree, Terms]:
        """One training step.

        Args:
            state: Run state.
            frames: This rank's real clips, uint8 (B / ranks, V + K, H, W, 3): V context frames for the
                encoder, then K frames to be drawn and judged.
            times: Learned step of each frame in its clip, int32 (B, V + K), for the clips of all ranks.
            index: Number of this step. All random numbers depend only on it and on the recipe's seed.
            kind: Kind of the step; when None, the kind that belongs to its number.

        Returns:
            The next run state, and the named terms (scalars). They are not evaluated yet.
        """
        if self._bases is None:
            self._bases = self._objective.dynamics.basis_changes(fixed_bases(state))
        key = mx.random.key((self.recipe.training.seed << 32) + index)
        step = self._steps[self.kind_of_step(index) if kind is None else kind]
        rates = mx.array(learning_rates(self.recipe, self.schedule, index))
        new, terms = step(state, frames, times, key, self._bases, rates)
        return new, terms

    def kind_of_step(self, index: int) -> StepKind:
        """The kind of step number ``index``."""
        adversarial = index >= self.first_step_with_d
        due = index % self.recipe.loss.penalty_every == 0
        return StepKind(adversarial, adversarial and self._has_penalties and due)

    @property
    def step_kinds(self) -> list[StepKind]:
        """The kinds of step that occur in a run of the recipe, in the order in which they first occur."""
        kinds = [StepKind(False, False)] if self.first_step_with_d > 0 else []
        if self.first_step_with_d < self.total_steps:
            if not self._has_penalties or self.recipe.loss.penalty_every > 1:
                kinds.append(StepKind(True, False))
            if self._has_penalties:
                kinds.append(StepKind(True, True))
        return kinds

    def encode(self, state: Tree, context: mx.array, key: mx.array) -> mx.array:
        """Encode clips: context frames, uint8 (B, V, H, W, 3) → states (B, Z).

        The states are standardised over the given clips. So there should be many clips.
        """
        return self._objective.encode(state["encoder"], state, context, key).states

    def encode_and_roll(self, state: Tree, context: mx.array, key: mx.array) -> mx.array:
        """The states of encoded clips at all their learned steps, (B, T, Z), by the averaged state step.

        Arguments: see :meth:`encode`. As in training, the encoded state is the one in the middle of a clip if
        the state step can go backwards, and the first one if it cannot.
        """
        dynamics, steps = self._objective.dynamics, self.recipe.data.seq_len
        encode_key, roll_key = mx.random.split(key)
        path, _ = dynamics.roll(
            state["ema"]["dynamics"],
            dynamics.basis_changes(fixed_bases(state)),
            self.encode(state, context, encode_key),
            roll_key,
            steps,
            position=steps // 2 if dynamics.reversible else 0,
        )
        return path

    def _make_step_function(
        self, kind: StepKind
    ) -> Callable[[Tree, mx.array, mx.array, mx.array, Tree, mx.array], tuple[Tree, Terms]]:
        """Make the function that computes a step of a kind."""
        recipe, context = self.recipe, self.recipe.encoder.context_frames

        def step(
            state: Tree, frames: mx.array, times: mx.array, key: mx.array, bases: Tree, rates: mx.array
        ) -> tuple[Tree, Terms]:
            batch = Batch(frames[:, :context], frames[:, context:], times[:, context:])
            weights: Tree = {name: state[name] for name in ("dynamics", "encoder") if name in state}
            # The run state is bound here and not passed as an argument. It holds the same dictionaries as the
            # weights, and as an argument it would make MLX lose the gradient.
            loss = partial(self._loss, state=state, batch=batch, bases=bases, kind=kind, key=key)
            (_, (rolled, drawn)), gradients = mx.value_and_grad(loss)(weights)
            if "encoder" in gradients:  # each rank has encoded its own clips
                gradients["encoder"] = sum_over_ranks(gradients["encoder"])
            gradients = drawn["gradients"] | gradients
            terms: Terms = rolled["terms"] | drawn["terms"] | _state_statistics(rolled["path"])

            new = self._update(state, gradients, rates)
            stats = state["stats"]["generator"]
            new["stats"] = {
                **state["stats"],
                "generator": decayed_average(stats, drawn["stats"], _STATS_DECAY),
            }
            new["carried"] = rolled["path"][:, -1]
            if drawn["features"]:
                new["features"] = feature_matching.add_step_to_sums(state["features"], drawn["features"])
            if recipe.encoder.whitening:
                new["encoded_covariance"] = decayed_average(
                    state["encoded_covariance"], rolled["covariance"], recipe.encoder.whitening_decay
                )
            if recipe.training.precision == "float16":
                new, terms["skipped"] = skip_if_overflown(gradients, state, new)
            return new, terms

        return step

    def _loss(
        self,
        weights: Tree,
        state: Tree,
        batch: Batch,
        bases: Tree,
        kind: StepKind,
        key: mx.array,
    ) -> tuple[mx.array, tuple[Tree, Tree]]:
        """The loss as a function of the weights of R and E. The loss of the frames is differentiated in here.

        Drawing and judging frames takes most of a step's memory. So it is done for one micro-batch after the
        other. Without BatchNorm, this gives the same gradients as the whole batch.

        Args:
            weights: Weights of R and E.
            state: Run state.
            batch: Real clips of the step.
            bases: Changes of basis of the state step.
            kind: Kind of the step.
            key: Random key.

        Returns:
            A number whose gradient with respect to ``weights`` is the gradient of the loss. Then the trees
            that ``Objective.state_loss`` and :meth:`_average_micro_batches` return.
        """
        states_key, frames_key = mx.random.split(key)
        of_states, rolled = self._objective.state_loss(
            weights, state, batch, bases, kind.adversarial, states_key
        )
        states = rolled["states"]
        total: Tree = {}
        state_gradients: list[mx.array] = []
        for number in range(self.recipe.training.micro_batches):
            done = {"total": total, "states": state_gradients[-1]} if number else {}
            chosen, clips = self._micro_batch(number, states, batch, frames_key, done)
            one, gradient = self._differentiate_micro_batch(state, chosen, clips, kind)
            state_gradients.append(gradient)
            total = add_trees(total, one) if number else one
        drawn = self._average_micro_batches(total, state_gradients, batch, kind)
        # The gradient of this sum with respect to the states is the gradient of the loss of the frames. So
        # the sum passes that gradient on to R and E.
        of_frames = (states * drawn["gradients"].pop("states")).sum()
        return of_states + of_frames, (rolled, drawn)

    def _micro_batch(
        self, number: int, states: mx.array, batch: Batch, key: mx.array, wait_for: Tree
    ) -> tuple[mx.array, Clips]:
        """The states and the real clips of a micro-batch of this rank.

        Args:
            number: Number of the micro-batch, from 0.
            states: States (N, K, Z) of all clips; N is B or 2 B. No gradient goes through them.
            batch: Real clips of the step.
            key: Random key for the augmentation of clips.
            wait_for: Results of the micro-batch before. The micro-batch starts only when they are computed,
                so that their memory is free.
        """
        batch_size, of_rank = len(batch.times), len(batch.frames)
        count = of_rank // self.recipe.training.micro_batches
        start = number * count
        rows = slice(self._rank * of_rank + start, self._rank * of_rank + start + count)
        # (N, K, Z) -> (N / B, B, K, Z): encoded states, random states, or both
        sets = mx.stop_gradient(states).reshape(-1, batch_size, *states.shape[1:])
        chosen, frames = sets[:, rows].flatten(0, 1), batch.frames[start : start + count]
        if wait_for:
            chosen, frames = compute_after(chosen, wait_for), compute_after(frames, wait_for)
        keys = mx.random.split(key, 2 * batch_size).reshape(batch_size, 2, 2)
        return chosen, Clips(frames.astype(mx.float32) / 255, batch.times[rows], keys[rows])

    def _average_micro_batches(
        self, total: Tree, state_gradients: list[mx.array], batch: Batch, kind: StepKind
    ) -> Tree:
        """Average over all clips of all ranks, from the results of this rank's micro-batches.

        Args:
            total: Sum of the trees that :meth:`_differentiate_micro_batch` returns for the micro-batches.
            state_gradients: For each micro-batch, the gradient with respect to its states.
            batch: Real clips of the step.
            kind: Kind of the step.

        Returns:
            The same tree as averages. Its ``gradients`` now also have ``states`` (N, K, Z): the gradient with
            respect to the states of all clips.
        """
        micro_batches = self.recipe.training.micro_batches
        weight = 1 / (micro_batches * rank_count())
        averages: Tree = sum_over_ranks(tree_map(lambda array: weight * array, total))
        count = len(batch.frames) // micro_batches
        # (N / B · clips, K, Z) each -> (N / B, B / ranks, K, Z)
        sets = [each.reshape(-1, count, *each.shape[1:]) for each in state_gradients]
        of_rank = mx.concatenate(sets, axis=1).swapaxes(0, 1)
        gradient = weight * gather_rows(of_rank).swapaxes(0, 1)  # (N / B, B, K, Z)
        if kind.adversarial:  # D has judged the last set
            gradient = mx.concatenate([gradient[:-1], self.recipe.loss.state_gain * gradient[-1:]])
        averages["gradients"]["states"] = gradient.flatten(0, 1)
        return averages

    def _differentiate_micro_batch(
        self, state: Tree, states: mx.array, clips: Clips, kind: StepKind
    ) -> tuple[Tree, mx.array]:
        """Differentiate the loss of the frames of a micro-batch.

        G draws once and D judges once, for the losses of both. The penalties need passes of their own.

        Args:
            state: Run state.
            states: States (N, K, Z) of the micro-batch; N is once or twice the number of clips.
            clips: Real clips of the micro-batch.
            kind: Kind of the step.

        Returns:
            A tree and an array. The tree has ``gradients`` with respect to the weights of ``generator`` and,
            if D judges, of ``discriminator``; ``stats``, the BatchNorm statistics of G; ``features`` for the
            sums of feature matching; and the named ``terms``. The array is the gradient with respect to the
            states.
        """
        objective, terms, d_gradients = self._objective, Terms(), []
        weights = {"generator": state["generator"]}
        if kind.adversarial:
            weights["discriminator"] = state["discriminator"]
        if kind.adversarial and self.recipe.loss.kind == "bce":
            (_, terms), gradient = mx.value_and_grad(objective.real_loss)(state["discriminator"], clips)
            d_gradients.append(gradient)
            states = compute_after(states, gradient)  # draw only when the memory of this pass is free
        (_, drawn), (gradients, state_gradient) = mx.value_and_grad(objective.frame_loss, (0, 1))(
            weights, states, clips, state.get("features", {})
        )
        for name, term in drawn["terms"].items():
            terms[name] = terms[name] + term if name in terms else term
        if kind.penalised:  # start only when the memory of the passes above is free
            done = {"gradients": gradients, "states": state_gradient}
            judged, real = compute_after(drawn["drawn"], done), compute_after(clips.frames, done)
            (_, more), gradient = mx.value_and_grad(objective.gradient_penalties)(
                state["discriminator"], judged, dataclasses.replace(clips, frames=real)
            )
            d_gradients.append(gradient)
            terms |= more
        for gradient in d_gradients:
            gradients["discriminator"] = add_trees(gradients["discriminator"], gradient)
        result = {
            "gradients": gradients,
            "stats": drawn["stats"],
            "features": drawn["features"],
            "terms": terms,
        }
        return result, state_gradient

    def _update(self, state: Tree, gradients: Tree, rates: mx.array) -> Tree:
        """The run state after the optimisers' steps, with clipped updates, averaged weights and a new count.

        A network without gradients stays as it is. ``rates`` are the learning rates of this step: of the
        model, and of D.
        """
        training = self.recipe.training
        count = state["step"] + 1
        new, optimizer_states = dict(state), dict(state["optimizer"])

        def updated(name: str, rate: mx.array, weights: Tree, gradients: Tree) -> Tree:
            before = state["optimizer"][name]
            after, optimizer_states[name] = optimize(
                self._optimizers[name], before, weights, gradients, rate, training.update_clipping
            )
            return after

        model: Tree = {
            name: state[name] for name in ("generator", "dynamics", "encoder") if name in gradients
        }
        new |= updated("model", rates[0], model, {name: gradients[name] for name in model})
        if training.r_rate != 1 and "dynamics" in gradients:
            new["dynamics"] = decayed_average(state["dynamics"], new["dynamics"], 1 - training.r_rate)
        if "discriminator" in gradients:
            new["discriminator"] = updated(
                "discriminator", rates[1], state["discriminator"], gradients["discriminator"]
            )
        played = {name: new[name] for name in state["ema"]}
        new["ema"] = decayed_average(state["ema"], played, ema_decay(training.ema, count))
        return {**new, "optimizer": optimizer_states, "step": count}


def skip_if_overflown(gradients: Tree, old: Tree, new: Tree) -> tuple[Tree, mx.array]:
    """The old run state and 1 if a gradient has left the range of float16; otherwise the new one and 0."""
    overflown = mx.array(False)
    for gradient in arrays_by_name(gradients).values():
        overflown = overflown | mx.logical_not(mx.isfinite(gradient)).any()
    chosen: Tree = tree_map(lambda a, b: mx.where(overflown, a, b), old, new)
    return {**chosen, "step": new["step"]}, overflown.astype(mx.float32)


def compute_after(array: mx.array, wait_for: Tree) -> mx.array:
    """``array``, to be computed only after all arrays of ``wait_for``."""
    later: list[mx.array] = mx.depends([array], list(arrays_by_name(wait_for).values()))
    return later[0]


def add_trees(one: Tree, other: Tree) -> Tree:
    """The sum of two trees, array by array."""
    total: Tree = tree_map(lambda a, b: a + b, one, other)
    return total


def _state_statistics(path: mx.array) -> Terms:
    """Statistics of the last states of paths (B, T, Z), for the log: moments, and the spread of lamps."""
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
