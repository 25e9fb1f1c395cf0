"""What fits: predictions follow what is drawn, and what is chosen fits."""

from __future__ import annotations

import pytest

from mlxlava.config import Recipe, UserError, load_recipe, override
from mlxlava.plan import fit_into, predict, table

LAVA, DURALAVA = load_recipe("lava"), load_recipe("duralava")


def test_it_is_near_what_was_measured() -> None:
    """Two of the peaks that benchmarks/memory.py measures, GB."""
    assert predict(LAVA) == pytest.approx(0.83, rel=0.15)
    assert predict(DURALAVA) == pytest.approx(1.21, rel=0.15)


@pytest.mark.parametrize("recipe", [LAVA, DURALAVA])
def test_more_pictures_take_more_and_parts_take_less(recipe: Recipe) -> None:
    whole = predict(recipe)
    assert predict(override(recipe, {"data.size": [128, 128]})) > 2 * whole
    assert predict(override(recipe, {"data.batch_size": 48})) > whole
    in_parts = override(recipe, {"training.micro_batches": 4})
    assert predict(in_parts) < whole
    assert predict(override(in_parts, {"training.recompute": True})) < predict(in_parts)
    assert predict(recipe, ranks=2) < whole


def test_a_longer_roll_takes_no_more() -> None:
    assert predict(override(LAVA, {"data.seq_len": 200})) == predict(LAVA)


def test_what_fits_is_left_as_it_is() -> None:
    assert fit_into(LAVA, 2.0) == LAVA


@pytest.mark.parametrize("gigabytes", [0.8, 0.6, 0.45])
def test_what_is_chosen_fits_and_learns_from_the_same_batch(gigabytes: float) -> None:
    fitted = fit_into(LAVA, gigabytes)
    assert predict(fitted) <= gigabytes
    assert fitted.training.micro_batches > 1
    assert fitted.data == LAVA.data


def test_batch_norm_sees_as_much_of_the_batch_as_fits() -> None:
    fitted = fit_into(DURALAVA, 1.0)
    assert fitted.training.micro_batches == 2 and not fitted.training.recompute


def test_what_cannot_fit_says_how_much_it_takes() -> None:
    with pytest.raises(UserError, match=r"takes .* GB with one clip at a time, and 0.1 GB are given"):
        fit_into(LAVA, 0.1)


def test_a_row_for_each_size_length_and_batch() -> None:
    rows = table(LAVA, 2.0, [(64, 64), (1024, 1024)], [20], [8, 32])
    assert [(row.recipe.data.size[0], row.recipe.data.batch_size) for row in rows] == [
        (64, 8),
        (64, 32),
        (1024, 8),
        (1024, 32),
    ]
    assert rows[0].fitted == rows[0].recipe
    assert rows[2].fitted is None and rows[2].peak > 2
