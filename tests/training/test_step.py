"""The training step: compiled is eager, and everything moves that should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlxlava.backend import Tree, arrays_by_name, mx
from mlxlava.config import Recipe, override
from mlxlava.footage.dataset import Footage
from mlxlava.training.step import StepKind, Terms, Trainer

pytestmark = pytest.mark.device

KINDS = ["tiny", "tiny_duralava"]


@pytest.fixture(params=KINDS)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    chosen: Recipe = request.getfixturevalue(request.param)
    return chosen


def batch(recipe: Recipe, footage: Footage, index: int) -> tuple[np.ndarray, np.ndarray]:
    data, context = recipe.data, recipe.encoder.context_frames
    return footage.batch(0, index, data.batch_size, data.seq_len, data.drawn_frames, context)


def steps(
    recipe: Recipe, footage: Footage, count: int, *, compiled: bool = False
) -> tuple[list[Tree], list[Terms]]:
    """The run states after 0 … ``count`` steps, and the terms of each step."""
    trainer = Trainer(recipe, 6, compiled=compiled)
    states, terms = [trainer.init()], []
    for index in range(count):
        frames, times = batch(recipe, footage, index)
        state, found = trainer(states[-1], mx.array(frames), mx.array(times), index)
        mx.eval(state, found)
        states.append(state)
        terms.append(found)
    return states, terms


def flat(tree: Tree) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in arrays_by_name(tree).items()}


def test_compiled_equals_eager(recipe: Recipe, footage: Footage) -> None:
    # Two steps: with and without gradient penalties. SGD, since Adam divides rounding by rounding.
    recipe = override(recipe, {"training.optimizer": "sgd", "training.update_clipping": 0.0})
    eager, eager_terms = steps(recipe, footage, 2)
    compiled, compiled_terms = steps(recipe, footage, 2, compiled=True)
    for one, other in zip(eager_terms, compiled_terms, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert np.isclose(one[name].item(), other[name].item(), rtol=1e-3, atol=1e-4), name
    left, right = flat(eager[-1]), flat(compiled[-1])
    for name, array in left.items():
        assert np.allclose(array, right[name], rtol=1e-3, atol=1e-4), name


def test_a_step_is_a_function_of_seed_and_number(recipe: Recipe, footage: Footage) -> None:
    once, again = steps(recipe, footage, 3)[0], steps(recipe, footage, 3)[0]
    other = steps(override(recipe, {"training.seed": 1}), footage, 3)[0]
    left, right = flat(once[-1]), flat(again[-1])
    assert all(np.array_equal(array, right[name]) for name, array in left.items())
    assert not np.array_equal(left["generator.dense.weight"], flat(other[-1])["generator.dense.weight"])


@pytest.mark.parametrize("settings", [{}, {"loss.shift": 0.2, "loss.colour": 0.1}, {"loss.d_start": 1.0}])
def test_parts_of_a_batch_give_what_it_gives_at_once(
    tiny: Recipe, footage: Footage, settings: dict[str, float]
) -> None:
    sgd = {"training.optimizer": "sgd", "training.update_clipping": 0.0, "loss.d_start": 0.0, **settings}
    whole, whole_terms = steps(override(tiny, sgd), footage, 2)
    parts, part_terms = steps(override(tiny, {**sgd, "training.micro_batches": 4}), footage, 2)
    left, right = flat(whole[-1]), flat(parts[-1])
    for name, array in left.items():
        assert np.allclose(array, right[name], rtol=1e-4, atol=1e-6), name
    for one, other in zip(whole_terms, part_terms, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            # The error is divided by variances, and those of shares of dark pixels may be tiny.
            rtol = 1e-2 if name == "feature_error" else 1e-3
            assert np.isclose(one[name].item(), other[name].item(), rtol=rtol, atol=1e-5), name


def test_frames_that_are_drawn_again_give_the_same_step(recipe: Recipe, footage: Footage) -> None:
    sgd = {"training.optimizer": "sgd", "training.update_clipping": 0.0}
    kept = flat(steps(override(recipe, sgd), footage, 2)[0][-1])
    again = flat(steps(override(recipe, {**sgd, "training.recompute": True}), footage, 2)[0][-1])
    for name, array in kept.items():
        assert np.allclose(array, again[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_moves_weights_about_as_float32_does(
    recipe: Recipe, footage: Footage, precision: str
) -> None:
    sgd = {"training.optimizer": "sgd", "training.update_clipping": 0.0, "loss.d_start": 0.0}
    states, _ = steps(override(recipe, sgd), footage, 1)
    halves, terms = steps(override(recipe, {**sgd, "training.precision": precision}), footage, 1)
    assert "skipped" not in terms[0] or terms[0]["skipped"].item() == 0
    first, whole, half = flat(states[0]), flat(states[1]), flat(halves[1])
    for part in ("generator", "dynamics", "discriminator"):
        names = [name for name in whole if name.startswith(f"{part}.")]
        moved, other = (
            np.concatenate([(after[name] - first[name]).ravel() for name in names]) for after in (whole, half)
        )
        assert np.isfinite(other).all() and half[names[0]].dtype == np.float32
        assert moved @ other / np.linalg.norm(moved) / np.linalg.norm(other) > 0.95, part


def test_a_step_that_overflows_is_skipped(tiny: Recipe, footage: Footage) -> None:
    settings = {"training.precision": "float16", "training.loss_scale": 1e9}
    states, terms = steps(override(tiny, settings), footage, 1)
    assert terms[0]["skipped"].item() == 1
    before, after = flat(states[0]), flat(states[1])
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["step"]


# What cannot learn. The background and its gate come from the footage. Encoded states are standardised over
# the batch, and BatchNorm subtracts its batch's mean: either takes away the bias of the layer before it.
# A relativistic loss takes away what is added to both logits of a pair.
FIXED = {
    "lava": {
        "generator.background",
        "generator.gate",
        "encoder.mean.bias",
        "discriminator.single_out.bias",
        "discriminator.out.bias",
    },
    "duralava": {"generator.up0.bias", "discriminator.down1.bias"},
}


@pytest.mark.parametrize(
    ("name", "adversarial", "penalised"),
    [("tiny", False, False), ("tiny", True, False), ("tiny", True, True), ("tiny_duralava", True, False)],
    ids=["evidence bound alone", "with D", "with penalties", "duralava"],
)
def test_every_weight_learns(
    name: str, adversarial: bool, penalised: bool, footage: Footage, request: pytest.FixtureRequest
) -> None:
    """In each kind of step exactly those weights stand still that cannot learn in it."""
    # Gradients as they are: Adam would make steps of rounding, where a gradient is zero.
    gradients = {
        "training.optimizer": "sgd",
        "training.update_clipping": 0.0,
        "training.learning_rate": 1.0,
    }
    recipe = override(request.getfixturevalue(name), gradients)
    trainer = Trainer(recipe, 6, compiled=False)
    assert (adversarial, penalised) in trainer.step_kinds
    frames, times = map(mx.array, batch(recipe, footage, 0))
    state = trainer.init()
    after, _ = trainer(state, frames, times, 1, kind=StepKind(adversarial, penalised))
    old, new = flat(state), flat(after)
    # Rounding moves some by less than 1e-9; the smallest gradients are above 1e-6.
    still = {name for name in old if np.abs(new[name] - old[name]).max() < 1e-7}
    weights = ("generator.", "dynamics.", "encoder.", "discriminator.")
    fixed = set(FIXED[recipe.name])
    if not adversarial:
        fixed |= {name for name in old if name.startswith("discriminator.")}
    assert {name for name in still if name.startswith(weights)} == fixed
    averaged = {name.removeprefix("ema.") for name in still if name.startswith("ema.")}
    assert averaged == {name for name in fixed if f"ema.{name}" in old}
    others = {name for name in still if not name.startswith((*weights, "ema.", "optimizer."))}
    unused = ("stats.dynamics.",) if adversarial else ("stats.dynamics.", "features.")
    assert others == {name for name in old if name.startswith(unused)}


def test_the_average_follows_the_weights(tiny: Recipe, footage: Footage) -> None:
    states, _ = steps(tiny, footage, 2)
    name = "dynamics.coupling0.angles.bias"
    old, new, moved = (flat(states[i]) for i in (0, 1, 1))
    decay = (1 + 1) / (10 + 1)
    expected = decay * old[f"ema.{name}"] + (1 - decay) * new[name]
    assert np.allclose(moved[f"ema.{name}"], expected, atol=1e-6)


def test_penalties_come_every_nth_step(tiny: Recipe, footage: Footage) -> None:
    _, terms = steps(override(tiny, {"loss.penalty_every": 3, "loss.d_start": 0.0}), footage, 5)
    assert ["r1" in found for found in terms] == [True, False, False, True, False]


def test_the_discriminator_joins_in_at_its_step(tiny: Recipe, footage: Footage) -> None:
    states, terms = steps(override(tiny, {"loss.d_start": 0.34}), footage, 3)
    assert ["loss_d" in found for found in terms] == [False, False, True]
    assert all("reconstruction" in found and "kl" in found for found in terms)
    first, before, after = (flat(states[n]["discriminator"]) for n in (0, 2, 3))
    assert all(np.array_equal(array, before[name]) for name, array in first.items())
    still = {f"discriminator.{name}" for name, array in before.items() if np.array_equal(array, after[name])}
    assert still <= FIXED["lava"]  # of those without a gradient, Adam may move some by rounding


def test_clips_are_learned_by_heart_when_there_are_few(tiny: Recipe, footage: Footage) -> None:
    """The evidence bound alone, on one batch: what is encoded, rolled and drawn becomes what was seen."""
    recipe = override(tiny, {"loss.d_start": 1.0, "training.learning_rate": 3e-3})
    trainer = Trainer(recipe, 100)
    frames, times = batch(recipe, footage, 0)
    state, errors = trainer.init(), []
    for index in range(60):
        state, terms = trainer(state, mx.array(frames), mx.array(times), index)
        mx.eval(state, terms)
        errors.append(terms["reconstruction"].item())
    assert np.mean(errors[-5:]) < 0.5 * errors[0]


def test_encoded_states_fill_the_space_that_lamps_are_played_from(tiny: Recipe, footage: Footage) -> None:
    """Eigenvalues of the covariance of encoded states over the footage; of N(0, I) all are one."""
    found = {}
    for whitening in (0.0, 0.01):
        settings = {"loss.d_start": 1.0, "data.batch_size": 24, "encoder.whitening": whitening}
        recipe = override(tiny, settings)
        trainer = Trainer(recipe, 120)
        state = trainer.init()
        for index in range(120):
            frames, times = batch(recipe, footage, index)
            state, _ = trainer(state, mx.array(frames), mx.array(times), index)
            mx.eval(state)
        context = [batch(recipe, footage, 1000 + n)[0][:, : recipe.encoder.context_frames] for n in range(10)]
        states = np.array(trainer.encode(state, mx.array(np.concatenate(context)), mx.random.key(0)))
        found[whitening] = np.linalg.eigvalsh(np.cov(states.T))
    # How many of the eight directions are filled alike (participation ratio): 8 of N(0, I).
    filled = {key: values.sum() ** 2 / (values**2).sum() for key, values in found.items()}
    assert found[0.0][-1] > 2 > found[0.01][-1]
    assert filled[0.01] > 1.5 * filled[0.0]


def test_no_tensor_moves_further_than_the_clip(tiny: Recipe, footage: Footage) -> None:
    states, _ = steps(override(tiny, {"training.update_clipping": 0.5}), footage, 3)
    limit = 0.5 * tiny.training.learning_rate * 1.001
    for before, after in itertools.pairwise(states):
        old, new = flat(before), flat(after)
        for name in old:
            if name.startswith(("generator.", "dynamics.", "discriminator.")):
                assert np.sqrt(((new[name] - old[name]) ** 2).mean()) <= limit + 1e-8, name


def test_states_are_carried_on_or_replaced(tiny_duralava: Recipe, footage: Footage) -> None:
    """With a reset at every batch the carried states have no say; without one they have."""
    for probability, same in ((1.0, True), (0.0, False)):
        recipe = override(tiny_duralava, {"training.reset_probability": probability})
        trainer = Trainer(recipe, 100, compiled=False)
        frames, times = footage.batch(0, 0, 4, 6, 0)
        results = []
        for carried in (mx.zeros((4, 8)), mx.ones((4, 8))):
            state = {**trainer.init(), "carried": carried + mx.arange(4)[:, None]}
            results.append(trainer(state, mx.array(frames), mx.array(times), 0)[0]["carried"])
        assert np.allclose(np.array(results[0]), np.array(results[1])) is same


def test_statistics_of_batch_norm_are_kept_for_playing(tiny_duralava: Recipe, footage: Footage) -> None:
    states, _ = steps(tiny_duralava, footage, 1)
    before, after = (flat(state)["stats.generator.norm0.var"] for state in states)
    assert not np.array_equal(before, after)
    assert np.allclose(before, after, atol=0.05)  # one step moves them by a hundredth
