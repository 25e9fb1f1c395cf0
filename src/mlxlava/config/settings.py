"""Every setting of a recipe, with its default, its help text and its bounds.

A recipe is a frozen tree of dataclasses: sections, and settings in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mlxlava.config.checks import check_combinations, check_ranges

# Here, because --help names them and should import no player.
SCREENS = ("auto", "window", "terminal", "web", "none")
WATCH_SCREENS = ("window", "web")  # for train --watch: its progress needs the terminal


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
        check_ranges(setting_fields(self))
        check_combinations(self)


def section_names() -> list[str]:
    """The names of the sections of a recipe."""
    return [f.name for f in dataclasses.fields(Recipe) if f.default_factory is not dataclasses.MISSING]


def setting_rows(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted name, value, help), in the order of the dataclasses."""
    return [(path, value, field.metadata["help"]) for path, value, field in setting_fields(recipe)]


def setting_fields(recipe: Recipe) -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Every setting in a section: its dotted name, its value and its field."""
    for name in section_names():
        section = getattr(recipe, name)
        for field in dataclasses.fields(section):
            yield f"{name}.{field.name}", getattr(section, field.name), field
