"""From a picture to a state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlxlava.config import Recipe
from mlxlava.errors import UserError
from mlxlava.rollout.from_picture import crop_to_frame, find_state
from mlxlava.rollout.roll import Rollout
from mlxlava.rollout.weights import Weights, load_weights
from mlxlava.training.checkpoint import playable_arrays
from mlxlava.training.step import Trainer

pytestmark = pytest.mark.device


def test_a_frame_that_the_lamp_drew_is_found_again() -> None:
    lamp = load_weights("lava-64")
    rollout = Rollout(lamp, seed=77)
    picture, other = rollout.draw(np.concatenate([rollout.states, Rollout(lamp, seed=78).states]))
    told: list[tuple[int, int]] = []
    found = find_state(lamp, picture, on_progress=lambda done, total: told.append((done, total)))
    assert found.error < 5  # grey levels
    assert found.error < np.sqrt(np.mean((picture.astype(float) - other) ** 2)) / 5
    assert 5.5 < np.linalg.norm(found.state) < 10.5
    assert told[-1][0] == told[-1][1]
    goes_on = dict(Rollout(lamp, start=found.state).play([0.0, 2.0]))
    assert np.array_equal(goes_on[0.0], found.frame)
    assert not np.array_equal(goes_on[2.0], found.frame)


@pytest.mark.parametrize("recipe", ["tiny", "tiny_duralava"])
def test_any_lamp_can_start_from_any_picture(recipe: str, request: pytest.FixtureRequest) -> None:
    small: Recipe = request.getfixturevalue(recipe)
    lamp = Weights(small, 5.0, playable_arrays(Trainer(small, 6).init()), {})
    picture = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    found = find_state(lamp, crop_to_frame(picture, (16, 16)))
    assert found.state.shape == (8,) and np.isfinite(found.state).all()
    assert np.linalg.norm(found.state) < 5  # 8 numbers: 2.8 ± 0.7
    assert dict(Rollout(lamp, start=found.state).play([0.0, 1.0]))[0.0].shape == (16, 16, 3)


def test_the_middle_of_a_picture_is_taken_upright(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200
    wide[:, 40:60, 0] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    seen = crop_to_frame(tmp_path / "wide.png", (16, 16))
    assert seen.shape == (16, 16, 3) and seen.min() == 200
    assert (seen[:, :8, 0] == 255).all() and (seen[:, 8:, 0] == 200).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(crop_to_frame(tmp_path / "turned.png", (16, 16)), seen[::-1, ::-1])


def test_sixteen_bits_of_grey_are_read_as_eight(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "g8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "g16.png")
    eight, sixteen = (crop_to_frame(tmp_path / f"g{bits}.png", (16, 16)) for bits in (8, 16))
    assert np.array_equal(sixteen, eight)


def test_a_file_and_its_pixels_start_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    for size in ((16, 16), (48, 96)):
        seen = crop_to_frame(pixels, size)
        assert seen.shape == (*size, 3)
        assert np.array_equal(crop_to_frame(str(tmp_path / "picture.png"), size), seen)


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    for name, words in (("notes.png", "not a picture"), ("nowhere.png", "No such file"), ("", "cannot read")):
        with pytest.raises(UserError, match=words) as caught:
            crop_to_frame(tmp_path / name, (16, 16))
        assert "\n" not in str(caught.value)


def test_a_damaged_or_huge_picture_is_told_in_one_line(damaged_picture: Path) -> None:
    words = r"broken PNG|truncated|more than 178 megapixels"
    with pytest.raises(UserError, match=rf"^picture: cannot read .*({words}).*; give another") as caught:
        crop_to_frame(damaged_picture, (16, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 4), (0, 16, 3)])
def test_an_array_that_is_no_picture_is_said(shape: tuple[int, ...]) -> None:
    for array in (np.zeros(shape, np.uint8), np.zeros((16, 16, 3), np.float32)):
        with pytest.raises(UserError, match=r"uint8 of shape \(H, W, 3\)"):
            crop_to_frame(array, (16, 16))  # type: ignore[arg-type]
