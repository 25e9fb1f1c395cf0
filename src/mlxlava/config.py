"""Every setting with its default and its help text; reading and writing settings as TOML and JSON.

A recipe says what to train and how. It is a frozen tree of dataclasses, and is always passed as a whole. The
TOML files in ``recipes/`` and the ``config.json`` of runs and weights hold the same keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mlxlava.errors import UserError
from mlxlava.schema import read_bytes, read_object, show, table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES_FOLDER = Path(__file__).parent / "recipes"
SCREENS = (
    "auto",
    "window",
    "terminal",
    "web",
    "none",
)  # here, because --help names them and should import no player


_MAX_SIDE = 8192  # pixels of a frame's side
_MAX_FRAME_PIXELS = 2**24
_MAX_LIST_LENGTH = 32  # entries of a setting
_MAX_TEXT = 1000  # characters of a setting
_MAX_BASES = 2**24  # numbers in the fixed bases of a state step; 4 of 2048² are made in 10 s
_MAX_FIRST_MAP = 2**24  # numbers in the coarsest map of a network, or in the layer behind it
_MAX_RECIPE_BYTES = 2**20
_MAX_ANCESTORS = 8  # recipes that a recipe extends, one after the other


class _Interval:
    """Bounds of a setting, written as in mathematics: ``[0, 1)`` has 0 and not 1."""

    def __init__(self, text: str) -> None:
        self.text = text
        low, high = text[1:-1].split(", ")
        self._low, self._high = (2.0**53 if edge == "2**53" else float(edge) for edge in (low, high))

    def __contains__(self, value: float) -> bool:
        above = self._low <= value if self.text[0] == "[" else self._low < value
        return above and (value <= self._high if self.text[-1] == "]" else value < self._high)


def _setting(default: Any, help: str, choices: Sequence[str] = (), within: str = "") -> Any:
    """A setting. ``within`` bounds a number, or each number of a list."""
    about = {"help": help, "choices": tuple(choices), "within": _Interval(within) if within else None}
    return dataclasses.field(default=default, metadata=about)


WATCH_SCREENS = ("window", "web")  # for train --watch: its progress needs the terminal


@dataclasses.dataclass(frozen=True)
class Data:
    """Settings of footage, clips and batches."""

    size: tuple[int, int] = _setting(
        (64, 64), "height and width of a frame; multiples of 16", within="[1, 8192]"
    )
    every_nth: int = _setting(
        1, "keep every n-th frame of the footage; a kept frame is a learned step", within="[1, 1e6]"
    )
    source_fps: float = _setting(
        0.0, "true frames a second of the footage; 0: what its files tell", within="[0, 1e6]"
    )
    crop: str = _setting(
        "centre",
        "centre, auto (the lamp, found by what moves) or X,Y,W,H in pixels; @WxH: of a picture of that size",
    )
    seq_len: int = _setting(32, "learned steps a clip spans", within="[1, 1e5]")
    batch_size: int = _setting(24, "clips a training step looks at", within="[1, 65536]")
    drawn_frames: int = _setting(
        3, "frames of each clip that are drawn and judged; 0 for all of them", within="[0, 1e5]"
    )
    lamp_minutes: float = _setting(
        60.0, "minutes of the built-in lamp to learn when no footage is given", within="(0, 1e5]"
    )
    lamp_fps: float = _setting(
        5.0, "frames a second of the built-in lamp when it is learned", within="(0, 1000]"
    )
    lamp_theme: str = _setting("classic", "colour theme of the built-in lamp when it is learned")
    held_out: float = _setting(
        0.0,
        "share of the footage, at its end, that is not learned from; the lamp is scored on it",
        within="[0, 0.5]",
    )


@dataclasses.dataclass(frozen=True)
class Generator:
    """Settings of the generator: state → frame."""

    kind: str = _setting(
        "shuffle",
        "shuffle: 3×3 convolutions and pixel shuffle, no normalisation; "
        "transposed: 4×4 transposed convolutions and BatchNorm",
        ("shuffle", "transposed"),
    )
    state_size: int = _setting(64, "numbers in a state; even", within="[4, 2048]")
    widths: tuple[int, ...] = _setting(
        (256, 128, 64, 32),
        "channels before each doubling of the resolution, coarsest first",
        within="[1, 16384]",
    )
    last_width: int = _setting(
        16, "shuffle: channels at full resolution, before the last convolution", within="[1, 16384]"
    )
    background: bool = _setting(
        False,
        "shuffle: a frame is the footage's mean plus a change, and still parts of the footage do not change",
    )
    upsampler_widths: tuple[int, ...] = _setting(
        (),
        "of a lamp that has grown: channels before each doubling of its pictures in the upsampling network",
        within="[1, 16384]",
    )


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """Settings of the state step: state → next state."""

    kind: str = _setting(
        "stationary",
        "stationary: coupled rotations, N(0, I) for any weights; "
        "penalised: an MLP kept near N(0, I) by penalties and re-standardisation",
        ("stationary", "penalised"),
    )
    hidden: tuple[int, ...] = _setting((128,), "widths of the hidden layers", within="[1, 16384]")
    penalty: str = _setting(
        "moments",
        "penalised: moments: four of all numbers pooled; "
        "epps_pulley: along axes and random directions, and the covariance",
        ("moments", "epps_pulley"),
    )
    couplings: int = _setting(
        4, "stationary: coupling layers; an even number moves both halves alike", within="[1, 1000]"
    )
    rho: float = _setting(
        0.9999, "stationary: share of the state kept a learned step; 1 adds no noise", within="(0, 1]"
    )
    learn_rho: bool = _setting(
        False, "stationary: learn a rho for each number of the state, from this one on"
    )
    angle: float = _setting(
        0.05, "stationary: standard deviation of the first rotation angles, radians", within="[-100, 100]"
    )


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Settings of the encoder, which training alone uses: frames of a real clip → its state."""

    context_frames: int = _setting(
        0, "frames of a clip that are encoded, evenly spaced; 0 for no encoder", within="[0, 1e5]"
    )
    widths: tuple[int, ...] = _setting(
        (32, 64, 128, 256), "channels after each halving of the resolution", within="[1, 16384]"
    )
    hidden: tuple[int, ...] = _setting(
        (256,), "widths of the hidden layers that look at all frames", within="[1, 16384]"
    )
    size: tuple[int, int] = _setting(
        (0, 0),
        "height and width to which frames are averaged down for the encoder; 0x0 for those of a frame",
        within="[0, 8192]",
    )
    whitening: float = _setting(
        0.0,
        "numbers of encoded states are made uncorrelated, as those are of the states that are played; what "
        "is added to their variances of 1 so that directions with less stay narrow; 0 for no whitening",
        within="[0, 1e6]",
    )
    whitening_decay: float = _setting(
        0.98, "whitening: decay of the running covariance, a training step", within="[0, 1)"
    )


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """Settings of the discriminator: frames of a clip → logits."""

    kind: str = _setting(
        "frames",
        "frames: a few frames and their gaps, one logit a clip; "
        "recurrent: every frame in turn, a logit a step",
        ("frames", "recurrent"),
    )
    widths: tuple[int, ...] = _setting(
        (64, 128, 256), "channels after each halving of the resolution", within="[1, 16384]"
    )
    features: int = _setting(128, "recurrent: numbers that describe one frame", within="[1, 16384]")
    state: int = _setting(128, "recurrent: numbers remembered between frames", within="[1, 16384]")
    hidden: tuple[int, ...] = _setting(
        (256,), "widths of the hidden layers that look at several frames", within="[1, 16384]"
    )


@dataclasses.dataclass(frozen=True)
class Loss:
    """Settings of the loss of G, R and D."""

    kind: str = _setting(
        "relativistic",
        "relativistic: pairing loss with gradient penalties; bce: cross-entropy, non-saturating for G",
        ("relativistic", "bce"),
    )
    gamma: float = _setting(
        1.0, "weight of the gradient penalties on real and on drawn clips", within="[0, 1e9]"
    )
    penalty_every: int = _setting(
        8, "training steps between gradient penalties (weighted up to match)", within="[1, 1e9]"
    )
    normality: float = _setting(0.0, "penalised dynamics: weight of the normality penalty", within="[0, 1e9]")
    elbo_weight: float = _setting(
        0.0,
        "weight of the negative evidence lower bound: real clips are encoded, rolled and drawn again",
        within="[0, 1e9]",
    )
    sigma: float = _setting(
        0.1, "evidence lower bound: standard deviation of a pixel about the drawn one", within="(0, 1e6]"
    )
    shift: float = _setting(
        0.0, "farthest that clips are moved before D sees them, in heights and widths", within="[0, 0.5)"
    )
    colour: float = _setting(
        0.0,
        "largest change of brightness of what D sees; its contrast changes by up to twice that",
        within="[0, 0.5)",
    )
    state_gain: float = _setting(
        1.0,
        "factor on D's gradient by the states, which is what R learns from D; G's part stays as it is",
        within="[0, 1e9]",
    )
    feature_matching: float = _setting(
        0.0,
        "weight of feature matching: average colours, spreads and changes as in real clips; 0 for none",
        within="[0, 1e9]",
    )
    d_start: float = _setting(
        0.0, "fraction of the training steps before the discriminator joins in", within="[0, 1]"
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of optimisers, schedules, checkpoints and memory."""

    optimizer: str = _setting("adam", "adam or sgd", ("adam", "sgd"))
    learning_rate: float = _setting(4e-4, "step size at the start, for G, R and D", within="(0, 1e38]")
    betas: tuple[float, float] = _setting(
        (0.0, 0.99), "adam: decay of the two moments, for G, R and E", within="[0, 1)"
    )
    d_betas: tuple[float, float] = _setting(
        (0.0, 0.99), "adam: decay of the two moments, for D", within="[0, 1)"
    )
    r_rate: float = _setting(1.0, "learning rate of R, in learning_rate", within="(0, 1e6]")
    d_rate: float = _setting(1.0, "learning rate of D, in learning_rate", within="(0, 1e6]")
    update_clipping: float = _setting(
        0.0, "longest step of a tensor, in learning rates per weight (RMS); 0 for no limit", within="[0, 1e9]"
    )
    schedule: str = _setting("constant", "constant, or cosine: to 0 at the last step", ("constant", "cosine"))
    warm_up: int = _setting(
        0, "training steps in which the learning rate rises to its full size", within="[0, 1e9]"
    )
    steps: int = _setting(20000, "training steps; 0 to count them from epochs", within="[0, 1e9]")
    epochs: int = _setting(0, "passes over the footage; 0 to count by steps", within="[0, 1e6]")
    ema: float = _setting(0.998, "decay of the averaged weights that are played", within="[0, 1)")
    carried_states: bool = _setting(False, "start clips from the last states of the batch before")
    reset_probability: float = _setting(
        0.5, "carried_states: chance that one is replaced by noise", within="[0, 1]"
    )
    preview_every: int = _setting(100, "steps between preview sheets", within="[1, 1e9]")
    checkpoint_every: int = _setting(200, "steps between checkpoints", within="[1, 1e9]")
    keep_checkpoints: int = _setting(3, "checkpoints kept", within="[1, 1e6]")
    micro_batches: int = _setting(
        1,
        "parts of a batch that are drawn and judged one after the other: less memory, the same result",
        within="[1, 65536]",
    )
    recompute: bool = _setting(
        False,
        "draw frames again in the backward pass, rather than keep G's layers: less memory, more time",
    )
    precision: str = _setting(
        "float32",
        "what G and D compute in; weights, states and E stay float32",
        ("float32", "float16", "bfloat16"),
    )
    loss_scale: float = _setting(
        1024.0, "float16: factor that keeps small gradients from vanishing", within="(0, 1e9]"
    )
    seed: int = _setting(0, "seed of weights, clips and states", within="[0, 2**53]")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Settings of a lamp that grows from a lamp of smaller pictures (``train --init SMALL --size …``)."""

    start_recipe: str = _setting(
        "", "recipe of the smaller lamp that is learned first, in the folder small of the run; empty for none"
    )
    start_size: tuple[int, int] = _setting(
        (64, 32), "height and width of the smaller lamp's frames", within="[16, 8192]"
    )
    start_steps: int = _setting(
        0, "training steps of the smaller lamp; 0 for those of its recipe", within="[0, 1e9]"
    )
    steps: int = _setting(
        1500, "training steps of the upsampling network, which enlarges the pictures", within="[1, 1e9]"
    )
    learning_rate: float = _setting(2e-3, "learning rate of the upsampling network", within="(0, 1e6]")
    frames: int = _setting(
        12, "real frames in a training step of the upsampling network, about", within="[1, 65536]"
    )
    width: int = _setting(32, "channels before each doubling in the upsampling network", within="[1, 16384]")
    blur: float = _setting(
        0.25,
        "largest blur of the small pictures that it learns from: share of each neighbour of a pixel",
        within="[0, 0.25]",
    )
    noise: float = _setting(
        0.01, "noise of these pictures: a standard deviation, with white = 1", within="[0, 1)"
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to train and how: all settings."""

    name: str = _setting("lava", "what the recipe is called")
    data: Data = dataclasses.field(default_factory=Data)
    generator: Generator = dataclasses.field(default_factory=Generator)
    dynamics: Dynamics = dataclasses.field(default_factory=Dynamics)
    discriminator: Discriminator = dataclasses.field(default_factory=Discriminator)
    encoder: Encoder = dataclasses.field(default_factory=Encoder)
    loss: Loss = dataclasses.field(default_factory=Loss)
    training: Training = dataclasses.field(default_factory=Training)
    growth: Growth = dataclasses.field(default_factory=Growth)

    @property
    def encoder_input_size(self) -> tuple[int, int]:
        """Height and width of the frames that the encoder sees."""
        return self.encoder.size if any(self.encoder.size) else self.data.size

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the generator draws, before they are upsampled."""
        factor: int = 2 ** len(self.generator.upsampler_widths)
        height, width = self.data.size
        return height // factor, width // factor

    def __post_init__(self) -> None:
        _check_recipe(self)


# Old names of settings, with their present names. Older files of runs and weights have the old names.
RENAMED_SETTINGS = {
    "encoder.views": "encoder.context_frames",
    "loss.alone": "loss.d_start",
    "loss.evidence": "loss.elbo_weight",
    "training.carry": "training.carried_states",
    "training.clip": "training.update_clipping",
}
# Settings that are gone. They are ignored in older files of runs and weights, where they change no picture.
_REMOVED_SETTINGS = ("growth.factor", "growth.rest", "growth.rest_steps")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(f"recipe: {message}")


def _check_recipe(recipe: Recipe) -> None:
    """Raise UserError for settings from which no network or batch can be built."""
    for check in (
        _check_ranges,
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


def _check_ranges(recipe: Recipe) -> None:
    """Each number lies within its bounds, and no list is longer than a network could be deep."""
    for path, value, field in _settings(recipe):
        values = value if isinstance(value, (tuple, list)) else (value,)
        _require(len(values) <= _MAX_LIST_LENGTH, f"{path} must have at most {_MAX_LIST_LENGTH} entries")
        if isinstance(value, str):
            _require(len(value) <= _MAX_TEXT, f"{path} has more than {_MAX_TEXT} characters")
        bounds = field.metadata["within"]
        for each in values if bounds else ():
            _require(each in bounds, f"{path} must lie in {bounds and bounds.text}, not {show(each)}")


def _check_data(recipe: Recipe) -> None:
    data = recipe.data
    check_size(data.size)
    _require(0 <= data.drawn_frames <= data.seq_len, "data.drawn_frames must lie in 0 … data.seq_len")


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
        0 <= context_frames <= data.seq_len and context_frames != 1,
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
        loss.d_start == 0 or (0 < loss.d_start <= 1 and loss.elbo_weight > 0),
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
        training.micro_batches >= 1 and recipe.data.batch_size % training.micro_batches == 0,
        "training.micro_batches must divide data.batch_size",
    )


def check_size(size: tuple[int, int]) -> None:
    """Raise UserError unless a frame size is made of positive multiples of 16."""
    if len(size) != 2 or any(side <= 0 or side % 16 for side in size):
        text = format_size(size, "x")
        raise UserError(f"size: {text} is not made of multiples of 16; give for example 64 or 128x64 (HxW)")
    if max(size) > _MAX_SIDE or math.prod(size) > _MAX_FRAME_PIXELS:
        raise UserError(
            f"size: {format_size(size, 'x')} is too large; sides have at most {_MAX_SIDE} pixels, "
            f"and a frame {_MAX_FRAME_PIXELS} in all"
        )


def parse_size(text: str) -> tuple[int, int]:
    """Read ``N`` or ``HxW`` as (height, width)."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"size: cannot read {text!r}; give N or HxW, for example 64 or 128x64")
    if any(len(part.strip()) > 9 for part in parts):  # Python refuses to read numbers of 4300 digits
        raise UserError(f"size: {show(text)} is too large; sides have at most {_MAX_SIDE} pixels")
    size = (int(parts[0]), int(parts[-1]))
    check_size(size)
    return size


def format_size(size: Sequence[int], sign: str = "×") -> str:
    """Height and width as ``H×W``. ``parse_size`` reads it; with the sign ``x`` it is easier to type."""
    return sign.join(map(str, size))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A clause for a message: the known word nearest to ``word``, or all known words."""
    close = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _did_you_mean_setting(path: str, known: Sequence[str]) -> str:
    """A clause for a message: settings of the same name elsewhere, the nearest setting, or ``known``."""
    names = [name for name, _, _ in setting_rows(Recipe())]
    section, _, key = path.rpartition(".")
    found = [name for name in names if name.endswith(f".{key}")]
    if not found:
        found = difflib.get_close_matches(path, names, n=1, cutoff=0.75)
    if not found:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        found = [f"{section}.{name}".lstrip(".") for name in near]
    return f"did you mean {' or '.join(found)}?" if found else f"known: {', '.join(known)}"


def _convert_value(value: Any, kind: Any, where: str) -> Any:
    """Check the type of a value. Lists become tuples."""
    origin = get_origin(kind)
    if origin is tuple:
        args = get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise UserError(f"recipe: {where} must be a list")
        if args[-1] is Ellipsis:
            return tuple(_convert_value(item, args[0], where) for item in value)
        if len(value) != len(args):
            raise UserError(f"recipe: {where} must hold {len(args)} numbers")
        return tuple(_convert_value(item, arg, where) for item, arg in zip(value, args, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # A whole number may be too large for a float.
        return float(value) if value.bit_length() <= 1000 else math.copysign(math.inf, value)
    if type(value) is not kind:
        raise UserError(f"recipe: {where} must be {kind.__name__}, not {show(value)}")
    return value


def _build_section(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = RENAMED_SETTINGS.get(f"{where}{key}", f"{where}{key}")
        key = path.removeprefix(where)
        if path in _REMOVED_SETTINGS:
            continue
        if key not in fields:
            raise UserError(f"recipe: unknown key {show(path)}; {_did_you_mean_setting(path, list(fields))}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UserError(f"recipe: {path} must be a table of settings")
            arguments[key] = _build_section(typing.cast(type, kind), value, f"{path}.")
            continue
        arguments[key] = _convert_value(value, kind, path)
        choices = fields[key].metadata.get("choices", ())
        if choices and arguments[key] not in choices:
            raise UserError(f"recipe: {path} = {show(value)}; {did_you_mean(str(value), choices)}")
    return cls(**arguments)


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested tables; a missing key takes its default, an unknown one is an error."""
    if not isinstance(values, Mapping):
        raise UserError(f"recipe: it must be a table of settings, not {show(values)}")
    return typing.cast(Recipe, _build_section(Recipe, values))


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested tables of plain values, for JSON or TOML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(recipe)))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("[!.]*.toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (one that comes with the package) or from a TOML or JSON file."""
    return _load_recipe(name_or_path, 0)


def _load_recipe(name_or_path: str | Path, ancestors: int) -> Recipe:
    """``load_recipe`` of a recipe that so many others extend."""
    name = str(name_or_path)
    path = RECIPES_FOLDER / f"{name}.toml" if name in recipe_names() else Path(name_or_path)
    if not path.is_file():
        raise UserError(f"recipe: no recipe or file named {name!r}; {did_you_mean(name, recipe_names())}")
    if ancestors > _MAX_ANCESTORS:
        raise UserError(f"recipe: {path} extends another one, and so on, more than {_MAX_ANCESTORS} times")
    values = _read_recipe_file(path)
    parent = values.pop("extends", None)
    for section, changes in values.items():
        for key in changes if isinstance(changes, dict) else ():
            _current_setting_name(f"{section}.{key}")
    if parent is None:
        return recipe_from_dict({"name": path.stem, **values})
    if not isinstance(parent, str) or "\0" in parent:
        raise UserError(f"recipe: {path}: extends must name a recipe, not {show(parent)}")
    inherited = recipe_to_dict(_load_recipe(parent, ancestors + 1))
    for section, changes in values.items():
        old = inherited.get(section, {})
        both = isinstance(changes, dict) and isinstance(old, dict)
        inherited[section] = {**old, **changes} if both else changes
    return recipe_from_dict({**inherited, "name": values.get("name", path.stem)})


def _read_recipe_file(path: Path) -> dict[str, Any]:
    """The tables of a TOML or JSON file."""
    if path.suffix == ".json":
        found: dict[str, Any] = read_object(path, "recipe", table())
        return found
    data = read_bytes(path, "recipe", _MAX_RECIPE_BYTES)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise UserError(f"recipe: cannot read {path}: it is nested too deeply") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of more than 4300 digits
        raise UserError(f"recipe: cannot read {path}: {error}") from error


def override(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with dotted settings replaced, for example ``{"data.seq_len": 20}``."""
    values = recipe_to_dict(recipe)
    for path, value in settings.items():
        *sections, key = path.split(".")
        table = values
        for section in sections:
            if not isinstance(table.get(section), dict):
                advice = _did_you_mean_setting(path, _section_names())
                raise UserError(f"recipe: unknown section {section!r}; {advice}")
            table = table[section]
        if isinstance(table.get(key), dict):
            raise UserError(f"recipe: {path} is a section; name a setting in it")
        table[key] = value
    return recipe_from_dict(values)


def _section_names() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe) if f.default_factory is not dataclasses.MISSING]


def _current_setting_name(path: str) -> str:
    """The present name of a setting that a user names. Prints a line if the user gave an old name."""
    name = RENAMED_SETTINGS.get(path, path)
    if name != path:
        print(f"mlxlava: the setting {path} is called {name} now", file=sys.stderr)
    return name


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``section.key=value`` pairs; a value is TOML (``4e-4``, ``[64, 128]``), else a bare word."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found or not key.strip():
            raise UserError(
                f"--set: cannot read {pair!r}; give section.key=value, for example data.seq_len=20"
            )
        name = _current_setting_name(key.strip())
        try:
            settings[name] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            settings[name] = text.strip()
    return settings


def setting_rows(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted name, value, help), in the order of the dataclasses."""
    return [(path, value, field.metadata["help"]) for path, value, field in _settings(recipe)]


def _settings(recipe: Recipe) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every setting in a section: its dotted name, its value and its field."""
    for name in _section_names():
        section = getattr(recipe, name)
        for field in dataclasses.fields(section):
            yield f"{name}.{field.name}", getattr(section, field.name), field
