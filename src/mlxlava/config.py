"""Every setting with its default and its help text; reading and writing settings as TOML and JSON.

A recipe says what to train and how. It is a frozen tree of dataclasses, and is always passed as a whole. The
TOML files in ``recipes/`` and the ``config.json`` of runs and weights hold the same keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mlxlava.errors import UserError

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


def _setting(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices)})


WATCH_SCREENS = ("window", "web")  # for train --watch: its progress needs the terminal


@dataclasses.dataclass(frozen=True)
class Data:
    """Settings of footage, clips and batches."""

    size: tuple[int, int] = _setting((64, 64), "height and width of a frame; multiples of 16")
    every_nth: int = _setting(1, "keep every n-th frame of the footage; a kept frame is a learned step")
    source_fps: float = _setting(0.0, "true frames a second of the footage; 0: what its files tell")
    crop: str = _setting(
        "centre",
        "centre, auto (the lamp, found by what moves) or X,Y,W,H in pixels; @WxH: of a picture of that size",
    )
    seq_len: int = _setting(32, "learned steps a clip spans")
    batch_size: int = _setting(24, "clips a training step looks at")
    drawn_frames: int = _setting(3, "frames of each clip that are drawn and judged; 0 for all of them")
    lamp_minutes: float = _setting(60.0, "minutes of the built-in lamp to learn when no footage is given")
    lamp_fps: float = _setting(5.0, "frames a second of the built-in lamp when it is learned")
    lamp_theme: str = _setting("classic", "colour theme of the built-in lamp when it is learned")


@dataclasses.dataclass(frozen=True)
class Generator:
    """Settings of the generator: state → frame."""

    kind: str = _setting(
        "shuffle",
        "shuffle: 3×3 convolutions and pixel shuffle, no normalisation; "
        "transposed: 4×4 transposed convolutions and BatchNorm",
        ("shuffle", "transposed"),
    )
    state_size: int = _setting(64, "numbers in a state; even")
    widths: tuple[int, ...] = _setting(
        (256, 128, 64, 32), "channels before each doubling of the resolution, coarsest first"
    )
    last_width: int = _setting(16, "shuffle: channels at full resolution, before the last convolution")
    background: bool = _setting(
        False,
        "shuffle: a frame is the footage's mean plus a change, and still parts of the footage do not change",
    )
    upsampler_widths: tuple[int, ...] = _setting(
        (),
        "of a lamp that has grown: channels before each doubling of its pictures in the upsampling network",
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
    hidden: tuple[int, ...] = _setting((128,), "widths of the hidden layers")
    penalty: str = _setting(
        "moments",
        "penalised: moments: four of all numbers pooled; "
        "epps_pulley: along axes and random directions, and the covariance",
        ("moments", "epps_pulley"),
    )
    couplings: int = _setting(4, "stationary: coupling layers; an even number moves both halves alike")
    rho: float = _setting(0.9999, "stationary: share of the state kept a learned step; 1 adds no noise")
    learn_rho: bool = _setting(
        False, "stationary: learn a rho for each number of the state, from this one on"
    )
    angle: float = _setting(0.05, "stationary: standard deviation of the first rotation angles, radians")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Settings of the encoder, which training alone uses: frames of a real clip → its state."""

    context_frames: int = _setting(0, "frames of a clip that are encoded, evenly spaced; 0 for no encoder")
    widths: tuple[int, ...] = _setting((32, 64, 128, 256), "channels after each halving of the resolution")
    hidden: tuple[int, ...] = _setting((256,), "widths of the hidden layers that look at all frames")
    size: tuple[int, int] = _setting(
        (0, 0), "height and width to which frames are averaged down for the encoder; 0x0 for those of a frame"
    )
    whitening: float = _setting(
        0.0,
        "numbers of encoded states are made uncorrelated, as those are of the states that are played; what "
        "is added to their variances of 1 so that directions with less stay narrow; 0 for no whitening",
    )
    whitening_decay: float = _setting(0.98, "whitening: decay of the running covariance, a training step")


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """Settings of the discriminator: frames of a clip → logits."""

    kind: str = _setting(
        "frames",
        "frames: a few frames and their gaps, one logit a clip; "
        "recurrent: every frame in turn, a logit a step",
        ("frames", "recurrent"),
    )
    widths: tuple[int, ...] = _setting((64, 128, 256), "channels after each halving of the resolution")
    features: int = _setting(128, "recurrent: numbers that describe one frame")
    state: int = _setting(128, "recurrent: numbers remembered between frames")
    hidden: tuple[int, ...] = _setting((256,), "widths of the hidden layers that look at several frames")


@dataclasses.dataclass(frozen=True)
class Loss:
    """Settings of the loss of G, R and D."""

    kind: str = _setting(
        "relativistic",
        "relativistic: pairing loss with gradient penalties; bce: cross-entropy, non-saturating for G",
        ("relativistic", "bce"),
    )
    gamma: float = _setting(1.0, "weight of the gradient penalties on real and on drawn clips")
    penalty_every: int = _setting(8, "training steps between gradient penalties (weighted up to match)")
    normality: float = _setting(0.0, "penalised dynamics: weight of the normality penalty")
    elbo_weight: float = _setting(
        0.0, "weight of the negative evidence lower bound: real clips are encoded, rolled and drawn again"
    )
    sigma: float = _setting(0.1, "evidence lower bound: standard deviation of a pixel about the drawn one")
    shift: float = _setting(0.0, "farthest that clips are moved before D sees them, in heights and widths")
    colour: float = _setting(
        0.0, "largest change of brightness of what D sees; its contrast changes by up to twice that"
    )
    state_gain: float = _setting(
        1.0, "factor on D's gradient by the states, which is what R learns from D; G's part stays as it is"
    )
    feature_matching: float = _setting(
        0.0, "weight of feature matching: average colours, spreads and changes as in real clips; 0 for none"
    )
    d_start: float = _setting(0.0, "fraction of the training steps before the discriminator joins in")


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of optimisers, schedules, checkpoints and memory."""

    optimizer: str = _setting("adam", "adam or sgd", ("adam", "sgd"))
    learning_rate: float = _setting(4e-4, "step size at the start, for G, R and D")
    betas: tuple[float, float] = _setting((0.0, 0.99), "adam: decay of the two moments, for G, R and E")
    d_betas: tuple[float, float] = _setting((0.0, 0.99), "adam: decay of the two moments, for D")
    r_rate: float = _setting(1.0, "learning rate of R, in learning_rate")
    d_rate: float = _setting(1.0, "learning rate of D, in learning_rate")
    update_clipping: float = _setting(
        0.0, "longest step of a tensor, in learning rates per weight (RMS); 0 for no limit"
    )
    schedule: str = _setting("constant", "constant, or cosine: to 0 at the last step", ("constant", "cosine"))
    warm_up: int = _setting(0, "training steps in which the learning rate rises to its full size")
    steps: int = _setting(20000, "training steps; 0 to count them from epochs")
    epochs: int = _setting(0, "passes over the footage; 0 to count by steps")
    ema: float = _setting(0.998, "decay of the averaged weights that are played")
    carried_states: bool = _setting(False, "start clips from the last states of the batch before")
    reset_probability: float = _setting(0.5, "carried_states: chance that one is replaced by noise")
    preview_every: int = _setting(100, "steps between preview sheets")
    checkpoint_every: int = _setting(200, "steps between checkpoints")
    keep_checkpoints: int = _setting(3, "checkpoints kept")
    micro_batches: int = _setting(
        1, "parts of a batch that are drawn and judged one after the other: less memory, the same result"
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
    loss_scale: float = _setting(1024.0, "float16: factor that keeps small gradients from vanishing")
    seed: int = _setting(0, "seed of weights, clips and states")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Settings of a lamp that grows from a lamp of smaller pictures (``train --init SMALL --size …``)."""

    start_recipe: str = _setting(
        "", "recipe of the smaller lamp that is learned first, in the folder small of the run; empty for none"
    )
    start_size: tuple[int, int] = _setting((64, 32), "height and width of the smaller lamp's frames")
    start_steps: int = _setting(0, "training steps of the smaller lamp; 0 for those of its recipe")
    steps: int = _setting(1500, "training steps of the upsampling network, which enlarges the pictures")
    learning_rate: float = _setting(2e-3, "learning rate of the upsampling network")
    frames: int = _setting(12, "real frames in a training step of the upsampling network, about")
    width: int = _setting(32, "channels before each doubling in the upsampling network")
    blur: float = _setting(
        0.25, "largest blur of the small pictures that it learns from: share of each neighbour of a pixel"
    )
    noise: float = _setting(0.01, "noise of these pictures: a standard deviation, with white = 1")


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
    _require(data.seq_len >= 1, "data.seq_len must be at least 1")
    _require(data.batch_size >= 1, "data.batch_size must be at least 1")
    _require(data.every_nth >= 1, "data.every_nth must be at least 1")
    _require(0 <= data.source_fps < math.inf, "data.source_fps must be positive, or 0 for what files tell")
    _require(0 <= data.drawn_frames <= data.seq_len, "data.drawn_frames must lie in 0 … data.seq_len")
    _require(data.lamp_minutes > 0 and data.lamp_fps > 0, "data.lamp_minutes and lamp_fps must be positive")


def _check_dynamics(recipe: Recipe) -> None:
    _require(recipe.generator.state_size >= 4, "generator.state_size must be at least 4")
    if recipe.dynamics.kind != "stationary":
        return
    _require(recipe.generator.state_size % 4 == 0, "generator.state_size must be a multiple of 4")
    _require(0 < recipe.dynamics.rho <= 1, "dynamics.rho must lie in (0, 1]")
    _require(
        recipe.dynamics.rho < 1 or not recipe.dynamics.learn_rho,
        "dynamics.learn_rho needs a dynamics.rho below 1 to start from",
    )
    _require(recipe.dynamics.couplings >= 1, "dynamics.couplings must be at least 1")


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
    _require(0 <= loss.shift < 0.5, "loss.shift must lie in [0, 0.5)")
    _require(0 <= loss.colour < 0.5, "loss.colour must lie in [0, 0.5)")
    _require(loss.feature_matching >= 0, "loss.feature_matching must not be negative")
    _require(loss.sigma > 0, "loss.sigma must be positive")
    _require(loss.state_gain >= 0, "loss.state_gain must not be negative")
    _require(
        (loss.elbo_weight > 0) == (recipe.encoder.context_frames > 0),
        "loss.elbo_weight goes with encoder.context_frames: give both, or 0 for both",
    )
    _require(
        loss.d_start == 0 or (0 < loss.d_start <= 1 and loss.elbo_weight > 0),
        "loss.d_start must lie in [0, 1], and needs loss.elbo_weight: else nothing is learned until then",
    )
    _require(loss.penalty_every >= 1, "loss.penalty_every must be at least 1")


def _check_growth(recipe: Recipe) -> None:
    growth, upsampler_widths = recipe.growth, recipe.generator.upsampler_widths
    _require(growth.start_steps >= 0, "growth.start_steps must not be negative")
    for name in ("steps", "frames", "width"):
        _require(getattr(growth, name) >= 1, f"growth.{name} must be at least 1")
    _require(growth.learning_rate > 0, "growth.learning_rate must be positive")
    _require(0 <= growth.blur <= 0.25, "growth.blur must lie in [0, 0.25]")
    _require(0 <= growth.noise < 1, "growth.noise must lie in [0, 1)")
    if upsampler_widths:
        _require(min(upsampler_widths) >= 1, "generator.upsampler_widths must be positive numbers")
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
        _require(len(widths) >= 1 and min(widths) >= 1, f"{network}.widths must be positive numbers")
        factor = 2**halvings
        _require(
            size[0] % factor == 0 and size[1] % factor == 0,
            f"{network}.widths has {len(widths)} entries, so its size must be multiples of {factor}",
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
    _require(0 <= training.ema < 1, "training.ema must lie in [0, 1)")
    _require(0 <= training.reset_probability <= 1, "training.reset_probability must lie in [0, 1]")
    _require(training.learning_rate > 0, "training.learning_rate must be positive")
    _require(training.d_rate > 0 and training.r_rate > 0, "training.d_rate and r_rate must be positive")
    _require(training.warm_up >= 0, "training.warm_up must not be negative")
    _require(training.update_clipping >= 0, "training.update_clipping must not be negative")
    _require((training.steps > 0) != (training.epochs > 0), "give one of training.steps and training.epochs")
    _require(training.loss_scale > 0, "training.loss_scale must be positive")
    _require(
        training.micro_batches >= 1 and recipe.data.batch_size % training.micro_batches == 0,
        "training.micro_batches must divide data.batch_size",
    )
    for name in ("preview_every", "checkpoint_every", "keep_checkpoints"):
        _require(getattr(training, name) >= 1, f"training.{name} must be at least 1")


def check_size(size: tuple[int, int]) -> None:
    """Raise UserError unless a frame size is made of positive multiples of 16."""
    if len(size) != 2 or any(side <= 0 or side % 16 for side in size):
        text = format_size(size, "x")
        raise UserError(f"size: {text} is not made of multiples of 16; give for example 64 or 128x64 (HxW)")


def parse_size(text: str) -> tuple[int, int]:
    """Read ``N`` or ``HxW`` as (height, width)."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"size: cannot read {text!r}; give N or HxW, for example 64 or 128x64")
    size = (int(parts[0]), int(parts[-1]))
    check_size(size)
    return size


def format_size(size: Sequence[int], sign: str = "×") -> str:
    """Height and width as ``H×W``. ``parse_size`` reads it; with the sign ``x`` it is easier to type."""
    return sign.join(map(str, size))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A clause for a message: the known word nearest to ``word``, or all known words."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
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
        return float(value)
    if type(value) is not kind:
        raise UserError(f"recipe: {where} must be {kind.__name__}, not {value!r}")
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
            raise UserError(f"recipe: unknown key {path!r}; {_did_you_mean_setting(path, list(fields))}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UserError(f"recipe: {path} must be a table of settings")
            arguments[key] = _build_section(typing.cast(type, kind), value, f"{path}.")
            continue
        arguments[key] = _convert_value(value, kind, path)
        choices = fields[key].metadata.get("choices", ())
        if choices and arguments[key] not in choices:
            raise UserError(f"recipe: {path} = {value!r}; {did_you_mean(str(value), choices)}")
    return cls(**arguments)


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested tables; a missing key takes its default, an unknown one is an error."""
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
    name = str(name_or_path)
    path = RECIPES_FOLDER / f"{name}.toml" if name in recipe_names() else Path(name_or_path)
    if not path.is_file():
        raise UserError(f"recipe: no recipe or file named {name!r}; {did_you_mean(name, recipe_names())}")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe: cannot read {path}: {error}") from error
    parent = values.pop("extends", None)
    for section, table in values.items():
        for key in table if isinstance(table, dict) else ():
            _current_setting_name(f"{section}.{key}")
    if parent is None:
        return recipe_from_dict({"name": path.stem, **values})
    inherited = recipe_to_dict(load_recipe(parent))
    for section, table in values.items():
        inherited[section] = {**inherited.get(section, {}), **table} if isinstance(table, dict) else table
    return recipe_from_dict({**inherited, "name": values.get("name", path.stem)})


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
        except tomllib.TOMLDecodeError:
            settings[name] = text.strip()
    return settings


def setting_rows(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted name, value, help), in the order of the dataclasses."""
    rows: list[tuple[str, Any, str]] = []
    hints = get_type_hints(Recipe)
    for section in _section_names():
        for field in dataclasses.fields(hints[section]):
            value = getattr(getattr(recipe, section), field.name)
            rows.append((f"{section}.{field.name}", value, field.metadata["help"]))
    return rows
