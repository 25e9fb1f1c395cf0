"""Checks of settings: each by itself, and those that must fit together.

A recipe that passes can be built: networks, batches and losses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mlxlava.config.sizes import check_size
from mlxlava.errors import UserError
from mlxlava.schema import show

if TYPE_CHECKING:
    from mlxlava.config.settings import Recipe

_MAX_LIST_LENGTH = 32  # entries of a setting
_MAX_TEXT = 1000  # characters of a setting
_MAX_BASES = 2**24  # numbers in the fixed bases of a state step; 4 of 2048² are made in 10 s
_MAX_FIRST_MAP = 2**24  # numbers in the coarsest map of a network, or in the layer behind it


def check_ranges(settings: Iterable[tuple[str, Any, dataclasses.Field[Any]]]) -> None:
    """Check each setting by itself: its number lies within its bounds, its list or text is not too long.

    Args:
        settings: name, value and field of each setting.

    Raises:
        UserError: one of them does not.
    """
    for path, value, field in settings:
        values = value if isinstance(value, (tuple, list)) else (value,)
        _require(len(values) <= _MAX_LIST_LENGTH, f"{path} must have at most {_MAX_LIST_LENGTH} entries")
        if isinstance(value, str):
            _require(len(value) <= _MAX_TEXT, f"{path} has more than {_MAX_TEXT} characters")
        bounds = field.metadata["within"]
        if bounds is not None:
            for each in values:
                _require(each in bounds, f"{path} must lie in {bounds.text}, not {show(each)}")


def check_combinations(recipe: Recipe) -> None:
    """Check settings that must fit together. Each has passed ``check_ranges``.

    Raises:
        UserError: no network or batch can be built from them.
    """
    for check in (
        _check_data,
        _check_dynamics,
        _check_encoder,
        _check_loss,
        _check_growth,
        _check_widths,
        _check_discriminator,
        _check_training,
    ):
        check(recipe)


def _check_data(recipe: Recipe) -> None:
    data = recipe.data
    check_size(data.size)
    _require(data.drawn_frames <= data.seq_len, "data.drawn_frames must lie in 0 … data.seq_len")


def _check_dynamics(recipe: Recipe) -> None:
    if recipe.dynamics.kind != "stationary":
        return
    _require(recipe.generator.state_size % 4 == 0, "generator.state_size must be a multiple of 4")
    _require(
        recipe.generator.state_size**2 * recipe.dynamics.couplings <= _MAX_BASES,
        f"generator.state_size² × dynamics.couplings must be at most {_MAX_BASES}",
    )
    _require(
        recipe.dynamics.rho < 1 or not recipe.dynamics.learn_rho,
        "dynamics.learn_rho needs a dynamics.rho below 1 to start from",
    )


def _check_encoder(recipe: Recipe) -> None:
    data, context_frames = recipe.data, recipe.encoder.context_frames
    _require(
        context_frames <= data.seq_len and context_frames != 1,
        "encoder.context_frames must be 0, or lie in 2 … data.seq_len",
    )
    _require(
        context_frames == 0 or data.batch_size > 1,
        "data.batch_size must be at least 2 with an encoder, which standardises states over the batch",
    )
    height, width = recipe.encoder_input_size
    _require(
        data.size[0] % max(1, height) == 0 and data.size[1] * height == data.size[0] * width,
        f"encoder.size must be data.size ({data.size[0]}x{data.size[1]}) or that divided by a whole number",
    )


def _check_loss(recipe: Recipe) -> None:
    loss = recipe.loss
    _require(
        (loss.elbo_weight > 0) == (recipe.encoder.context_frames > 0),
        "loss.elbo_weight goes with encoder.context_frames: give both, or 0 for both",
    )
    _require(
        loss.d_start == 0 or loss.elbo_weight > 0,
        "loss.d_start must lie in [0, 1], and needs loss.elbo_weight: else nothing is learned until then",
    )


def _check_growth(recipe: Recipe) -> None:
    upsampler_widths = recipe.generator.upsampler_widths
    if upsampler_widths:
        factor = 2 ** len(upsampler_widths)
        _require(
            not any(side % factor for side in recipe.data.size),
            f"generator.upsampler_widths has {len(upsampler_widths)} entries, so data.size must be multiples "
            f"of {factor}",
        )


def _check_widths(recipe: Recipe) -> None:
    """Each network halves or doubles its size once for each of its widths."""
    # A discriminator of kind ``frames`` halves the size once more, in the layer that sees several frames
    # together.
    more = 1 if recipe.discriminator.kind == "frames" else 0
    for network, size, widths, halvings in (
        ("generator", recipe.drawn_size, recipe.generator.widths, len(recipe.generator.widths)),
        (
            "discriminator",
            recipe.data.size,
            recipe.discriminator.widths,
            len(recipe.discriminator.widths) + more,
        ),
        ("encoder", recipe.encoder_input_size, recipe.encoder.widths, len(recipe.encoder.widths)),
    ):
        _require(len(widths) >= 1, f"{network}.widths must have an entry")
        factor = 2**halvings
        _require(
            size[0] % factor == 0 and size[1] % factor == 0,
            f"{network}.widths has {len(widths)} entries, so its size must be multiples of {factor}",
        )
        coarsest = size[0] // factor * (size[1] // factor) * max(widths)
        _require(
            coarsest <= _MAX_FIRST_MAP,
            f"the coarsest map of the {network} would have {coarsest} numbers, more than {_MAX_FIRST_MAP}; "
            f"give more or smaller {network}.widths",
        )


def _check_discriminator(recipe: Recipe) -> None:
    data = recipe.data
    if recipe.discriminator.kind == "frames":
        _require(
            recipe.loss.kind == "relativistic", "discriminator.kind frames goes with loss.kind relativistic"
        )
        _require(data.drawn_frames != 1 or data.seq_len == 1, "data.drawn_frames must be 0 or at least 2")
    else:
        _require(recipe.loss.kind == "bce", "discriminator.kind recurrent goes with loss.kind bce")
        _require(
            data.drawn_frames == 0, "discriminator.kind recurrent sees every frame: data.drawn_frames = 0"
        )


def _check_training(recipe: Recipe) -> None:
    training = recipe.training
    _require((training.steps > 0) != (training.epochs > 0), "give one of training.steps and training.epochs")
    _require(
        recipe.data.batch_size % training.micro_batches == 0,
        "training.micro_batches must divide data.batch_size",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"recipe: {message}")
