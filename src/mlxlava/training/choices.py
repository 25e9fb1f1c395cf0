"""What a training chooses by itself for a user's footage: each setting, with the reason.

Only settings that the user has not given are chosen. docs/training.md says what each of them does.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mlxlava.config import Recipe, format_size, load_recipe, override, recipe_names, setting_rows
from mlxlava.console import say
from mlxlava.errors import UserError
from mlxlava.footage.crop import Box, choose_box, fit_box
from mlxlava.footage.dataset import Footage
from mlxlava.footage.look import Look, look
from mlxlava.footage.prepare import source_paths

_MIN_FOOTAGE_SECONDS = 1.0  # of footage
_MIN_SEQ_LEN = 8  # learned steps
_MIN_SEPARATE_CLIPS = 16  # different ones, before a clip is made shorter
_WANTED_PIXELS_PER_STEP = 1.0  # that the fastest wax moves
_MAX_PIXELS_PER_STEP = 4.0  # pixels a learned step
_MIN_FRAMES = 320  # that are left when frames are skipped: ten clips of the usual length
_AREA_RATIO_RANGE = (0.6, 1.25)  # of the recipe's area of a frame: what a chosen shape may have
# Learned steps of footage. In between, the settings for little footage are mixed with the recipe's.
_LITTLE_FOOTAGE_STEPS, _MUCH_FOOTAGE_STEPS = 400, 4000
# Learned steps of footage: with less, what the discriminator sees is shifted and tinted.
_STEPS_BELOW_WHICH_TO_AUGMENT = 3000

# These are known to help with some 300 learned steps (docs/training.md).
_SETTINGS_FOR_LITTLE_FOOTAGE = {"loss.d_start": 0.7, "loss.elbo_weight": 0.01}
# Encoded states of so few moments fill some 16 directions. In 64, most random states would be far from all of
# them, and their pictures would be mixtures.
_STATE_SIZE, _LITTLE_FOOTAGE_STATE_SIZE = "generator.state_size", 16
_STATE_SIZE_UNIT = 4  # sizes of states are multiples of this
_HELD_OUT_SHARE = 0.1  # of footage that is not little: what it loses is hardly missed
_AUGMENTATION_SETTINGS = {"loss.shift": 0.06, "loss.colour": 0.05}

_CHOSEN_SETTINGS = (
    "data.crop",
    "data.size",
    "growth.start_size",
    "data.every_nth",
    "data.seq_len",
    "data.held_out",
    *_SETTINGS_FOR_LITTLE_FOOTAGE,
    _STATE_SIZE,
    *_AUGMENTATION_SETTINGS,
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Attributes:
        setting: its dotted name.
        value: its value, as JSON.
        reason: why, in a clause.
    """

    setting: str
    value: Any
    reason: str


def free_settings(recipe: str | Path | Recipe, changes: Collection[str]) -> frozenset[str]:
    """The settings that may be chosen: those that neither the user nor a recipe of the user has set.

    Args:
        recipe: a recipe, its name or its file.
        changes: settings that the user has given.
    """
    free = set(_CHOSEN_SETTINGS) - set(changes)
    if not isinstance(recipe, Recipe):
        if str(recipe) in recipe_names():
            return frozenset(free)
        recipe = load_recipe(recipe)
    usual = {name: value for name, value, _ in setting_rows(load_recipe("lava"))}
    own = {name for name, value, _ in setting_rows(recipe) if value != usual[name]}
    return frozenset(free - own)


def choose_before_preparing(
    recipe: Recipe, sources: Sequence[str | Path], free: Collection[str]
) -> tuple[Recipe, list[Choice]]:
    """Look at footage, and choose the region, the shape of a frame and the time that a learned step spans.

    What is amiss with the footage is said.

    Args:
        recipe: recipe to change.
        sources: videos, pictures or folders of images; not prepared footage.
        free: settings that may be chosen.

    Returns:
        The recipe with its changes, and what was chosen.

    Raises:
        UserError: a source cannot be read, nothing moves in it, or there is less than a second.
    """
    automatic = "data.crop" in free or recipe.data.crop == "auto"
    looks = [look(path, recipe.data.source_fps or None) for path in source_paths(sources)]
    seconds = sum(each.seconds for each in looks)
    if seconds < _MIN_FOOTAGE_SECONDS:
        raise UserError(
            f"footage: {looks[0].path} is {seconds:.2g} s long; at least a second is needed, better a minute"
        )
    for each in looks:
        if each.region is None:
            raise UserError(f"footage: nothing moves in {each.path}; give footage of a warm lamp")
        for line in each.warnings(cropped=not automatic):
            say(line)
    has_encoder = recipe.encoder.context_frames > 0
    choices: list[Choice] = []
    if has_encoder:
        choices += _choose_shape(recipe, looks, free, automatic)
    recipe = _apply(recipe, choices)
    if automatic:
        choices.append(_choose_crop(recipe, looks))
        recipe = _apply(recipe, choices[-1:])
    if has_encoder and "data.every_nth" in free:
        choices.append(_choose_step(recipe, looks))
        recipe = _apply(recipe, choices[-1:])
    return recipe, choices


def choose_for_footage(
    recipe: Recipe, footage: Footage, free: Collection[str]
) -> tuple[Recipe, list[Choice]]:
    """Choose the length of clips and the settings for little footage, once the footage is prepared.

    Raises:
        UserError: no piece of the footage without a cut is long enough.
    """
    if not recipe.encoder.context_frames:
        return recipe, []
    choices = []
    if "data.seq_len" in free:
        choices += _choose_length(recipe, footage)
    else:
        footage.require_clip(recipe.data.seq_len)
    wanted = _settings_for_amount(recipe, len(footage.frames))
    choices += [choice for choice in wanted if choice.setting in free]
    return _apply(recipe, choices), choices


def _settings_for_amount(recipe: Recipe, count: int) -> list[Choice]:
    """What helps with ``count`` learned steps of footage: other settings for a few, a hold-out for many."""
    if count >= _MUCH_FOOTAGE_STEPS:
        return [
            Choice("data.held_out", _HELD_OUT_SHARE, "the score needs footage that the lamp has not seen")
        ]
    reason = f"there are only {count} learned steps of footage"
    choices = []
    if recipe.loss.d_start > 0:
        share = math.log(_MUCH_FOOTAGE_STEPS / count) / math.log(_MUCH_FOOTAGE_STEPS / _LITTLE_FOOTAGE_STEPS)
        usual_values = {name: value for name, value, _ in setting_rows(recipe)}

        def mix(setting: str, for_little: float) -> float:
            usual = usual_values[setting]
            return float(usual * (for_little / usual) ** min(1, share))

        for setting, for_little in _SETTINGS_FOR_LITTLE_FOOTAGE.items():
            choices.append(Choice(setting, float(f"{mix(setting, for_little):.2g}"), reason))
        size = mix(_STATE_SIZE, _LITTLE_FOOTAGE_STATE_SIZE)
        choices.append(Choice(_STATE_SIZE, _STATE_SIZE_UNIT * round(size / _STATE_SIZE_UNIT), reason))
    if count < _STEPS_BELOW_WHICH_TO_AUGMENT and recipe.loss.kind == "relativistic":
        choices += [Choice(setting, value, reason) for setting, value in _AUGMENTATION_SETTINGS.items()]
    return choices


def say_choices(choices: Sequence[Choice]) -> None:
    """Print a line for each choice."""
    for choice in choices:
        value = format_size(choice.value, "x") if isinstance(choice.value, list) else choice.value
        say(f"train: {choice.setting} = {value}: {choice.reason}")


def _apply(recipe: Recipe, choices: Sequence[Choice]) -> Recipe:
    return override(recipe, {choice.setting: choice.value for choice in choices})


def _choose_shape(
    recipe: Recipe, looks: Sequence[Look], free: Collection[str], automatic: bool
) -> list[Choice]:
    """The shape of a frame, and of the smaller lamp that is learned first, if there is one.

    It is that of the lamp, or of the crop that was given if ``automatic`` is false.
    """
    if "data.size" not in free or (not automatic and recipe.data.crop in ("centre", "center")):
        return []
    if automatic:
        regions = [each.region.lamps[0] for each in looks if each.region]
    else:
        given = recipe.data.crop
        regions = [choose_box(given, each.picture, recipe.data.size, (), each.path)[0] for each in looks]
    # Of several sources, the geometric mean of their shapes.
    aspect = math.exp(sum(math.log(height / width) for *_, width, height in regions) / len(regions))
    factor, start = 1, recipe
    if recipe.growth.start_recipe:
        if "growth.start_size" not in free:
            return []
        factor = recipe.data.size[0] // recipe.growth.start_size[0]
        start = override(load_recipe(recipe.growth.start_recipe), {"data.size": recipe.growth.start_size})
    small = _frame_size_of_aspect(start, aspect)
    size = [factor * side for side in small]
    reason = f"the {'lamp' if automatic else 'crop'} is {aspect:.2g} times as high as wide"
    choices = [Choice("data.size", size, reason)] if tuple(size) != recipe.data.size else []
    if recipe.growth.start_recipe and tuple(small) != recipe.growth.start_size:
        choices.append(Choice("growth.start_size", list(small), reason))
    return choices


def _frame_size_of_aspect(recipe: Recipe, aspect: float) -> tuple[int, int]:
    """Height and width that fit an aspect and the networks of a recipe, with an area like the recipe's."""
    halvings = max(
        len(recipe.generator.widths),
        len(recipe.discriminator.widths) + (recipe.discriminator.kind == "frames"),
        len(recipe.encoder.widths),
    )
    unit = max(16, 2**halvings)
    area = recipe.data.size[0] * recipe.data.size[1]
    sides = range(unit, unit * (int(math.sqrt(area)) // unit * 4 + 2), unit)
    shapes = [
        shape
        for shape in itertools.product(sides, sides)
        if _AREA_RATIO_RANGE[0] <= shape[0] * shape[1] / area <= _AREA_RATIO_RANGE[1]
    ]

    def misfit(shape: tuple[int, int]) -> float:
        height, width = shape
        return abs(math.log(height / width / aspect)) + 0.3 * abs(math.log(height * width / area))

    return min(shapes, key=misfit, default=recipe.data.size)


def _boxes_of_lamps(recipe: Recipe, looks: Sequence[Look]) -> list[Box]:
    boxes: list[Box] = []
    for each in looks:
        assert each.region is not None
        boxes.append(fit_box(each.region.lamps[0], each.picture, recipe.data.size))
    return boxes


def _choose_crop(recipe: Recipe, looks: Sequence[Look]) -> Choice:
    boxes = {
        f"{','.join(map(str, box))}@{each.picture[0]}x{each.picture[1]}"
        for box, each in zip(_boxes_of_lamps(recipe, looks), looks, strict=True)
    }
    region = looks[0].region
    assert region is not None
    reason = (
        "the lamp, as it stands out from what is around it"
        if region.stands_out
        else "what moves, with a margin, as the lamp does not stand out from what is around it"
    )
    if len(boxes) == 1:  # it also holds for footage that is held out
        return Choice("data.crop", boxes.pop(), reason)
    return Choice("data.crop", "auto", f"{reason}; in each source by itself")


def _choose_step(recipe: Recipe, looks: Sequence[Look]) -> Choice:
    """How many frames a learned step spans."""
    fps = min(each.fps for each in looks)
    if recipe.data.crop == "auto":
        boxes = _boxes_of_lamps(recipe, looks)
    else:
        given = recipe.data.crop
        boxes = [choose_box(given, each.picture, recipe.data.size, (), each.path)[0] for each in looks]
    size = recipe.growth.start_size if recipe.growth.start_recipe else recipe.data.size
    pixels_a_second = max(each.speed(box, size) * each.fps for each, box in zip(looks, boxes, strict=True))
    frames = sum(each.seconds for each in looks) * fps
    wanted = max(1, round(_WANTED_PIXELS_PER_STEP * fps / max(pixels_a_second, 1e-3)))
    every = min(wanted, max(1, int(frames) // _MIN_FRAMES))
    reason = (
        f"a learned step is {every / fps:.2g} s, in which the fastest wax moves "
        f"{pixels_a_second * every / fps:.2g} pixels"
    )
    if pixels_a_second * every / fps > _MAX_PIXELS_PER_STEP:
        say(
            f"footage: from frame to frame, things in {looks[0].path} move by {pixels_a_second / fps:.2g} "
            "pixels; that is hard to learn. Is it a time-lapse with few pictures, or cut into short pieces?"
        )
    if every < wanted:
        reason += "; longer steps would leave too few frames"
    return Choice("data.every_nth", every, reason)


def _choose_length(recipe: Recipe, footage: Footage) -> list[Choice]:
    """A shorter clip, where the footage has few pieces as long as the recipe's."""
    usual = recipe.data.seq_len
    least = max(_MIN_SEQ_LEN, recipe.data.drawn_frames, recipe.encoder.context_frames)
    if usual <= least or footage.clip_count(usual) >= _MIN_SEPARATE_CLIPS:
        return []
    lengths = [*range(usual - 4, least, -4), least]
    found = next((length for length in lengths if footage.clip_count(length) >= _MIN_SEPARATE_CLIPS), least)
    if not footage.clip_count(found):
        cuts = len(footage.cuts)
        what = f"it has {cuts} cuts, and the longest piece without one" if cuts else "it"
        raise UserError(
            f"footage: {what} has only {footage.longest_piece} frames, {1 / footage.step_fps:.2g} s apart; "
            f"a clip needs {found}; give longer footage without cuts"
        )
    return [Choice("data.seq_len", found, f"longer clips would be fewer than {_MIN_SEPARATE_CLIPS}")]
