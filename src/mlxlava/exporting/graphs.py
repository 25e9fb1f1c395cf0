"""Writes a lamp as two ONNX graphs: the generator, and the state step for any share of a learned step."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlxlava.backend.ops import LEAKY_SLOPE
from mlxlava.config import format_size
from mlxlava.errors import UserError
from mlxlava.exporting.portable import Convolutions, Layer, PortableLamp
from mlxlava.paths import atomic_folder, is_taken
from mlxlava.rollout.export import weights_facts
from mlxlava.rollout.weights import Weights

if TYPE_CHECKING:
    import onnx

# Every runtime of the last years reads these: onnxruntime from 1.12 on.
ONNX_OPSET = 17
IR_VERSION = 8

_GENERATOR, _STEP = "generator.onnx", "state_step.onnx"

_CARD_TEMPLATE = """# {name}

A lava lamp learned by mlxlava, as ONNX, to be played for ever.

| what | value |
|---|---|
{rows}

## How to play it

`{generator}` and `{step}` are this lamp for every program that reads ONNX: opset {opset}, IR {ir}, float32,
any number N of lamps at once. `python play.py` plays them without mlxlava. It needs `onnxruntime` and
`pillow`.

| file | input | output |
|---|---|---|
| `{generator}` | `state` (N, {z}) | `frame` (N, {height}, {width}, 3): red, green, blue from 0 to 1 |
| `{step}` | `state` (N, {z}), `noise` (N, {z}), `dt` (N, 1) | `next_state` (N, {z}) |

A lamp starts from a state of {z} normal numbers. A learned step has `dt` 1 and noise of its own, {z} normal
numbers. It takes {seconds:g} s of true time. A frame between two learned steps is drawn from the state that
a smaller `dt` gives, with the same state and the same noise. States stay normally distributed for ever. The
metadata of both files have `step_fps` and `size`.
"""


def write_graphs(lamp: PortableLamp, folder: Path, weights: Weights) -> None:
    """Write a folder with both graphs, an example that plays them, and a model card that says how.

    Args:
        lamp: the lamp.
        folder: folder to write. An older one of the same kind is replaced.
        weights: the weights that the lamp was made of, for the card.

    Raises:
        UserError: the package ``onnx`` is missing, or the folder holds something else or cannot be written.
    """
    if is_taken(folder) and not (folder / _STEP).is_file():
        raise UserError(f"export: {folder} holds something that is not a lamp as ONNX; give a new folder")
    generator, step = make_generator_graph(lamp), make_step_graph(lamp)
    card = _CARD_TEMPLATE.format(
        name=folder.resolve().name,
        rows="\n".join(f"| {key} | {value} |" for key, value in weights_facts(weights).items()),
        generator=_GENERATOR,
        step=_STEP,
        opset=ONNX_OPSET,
        ir=IR_VERSION,
        z=lamp.state_size,
        height=lamp.size[0],
        width=lamp.size[1],
        seconds=1 / lamp.step_fps,
    )
    with atomic_folder(folder, "export") as draft:
        (draft / _GENERATOR).write_bytes(generator.SerializeToString())
        (draft / _STEP).write_bytes(step.SerializeToString())
        (draft / "README.md").write_text(card, encoding="utf-8")
        example = files("mlxlava.exporting") / "onnx_example" / "play.py"
        (draft / "play.py").write_bytes(example.read_bytes())


def make_generator_graph(lamp: PortableLamp) -> onnx.ModelProto:
    """The generator: ``state`` (N, Z) → ``frame`` (N, H, W, 3) in [0, 1]."""
    graph = _Graph()
    height, width, channels = lamp.base
    x = graph.dense(_channels_first(lamp.dense, lamp.base), "state")
    x = graph.add("LeakyRelu", x, alpha=LEAKY_SLOPE)
    x = graph.add("Reshape", x, graph.constant(np.array([-1, channels, height, width], np.int64)))
    x = graph.convolutions(lamp.convolutions, x)
    if lamp.upsampling is not None:
        x = graph.add("Sub", x, graph.constant(lamp.upsampling.centre.transpose(2, 0, 1)))
        x = graph.add("LeakyRelu", graph.convolution(lamp.upsampling.first, x), alpha=LEAKY_SLOPE)
        x = graph.convolutions(lamp.upsampling.convolutions, x)
    graph.add("Transpose", x, perm=(0, 2, 3, 1), name="frame")
    return graph.model(lamp, "generator", {"state": ("N", lamp.state_size)}, {"frame": ("N", *lamp.size, 3)})


def make_step_graph(lamp: PortableLamp) -> onnx.ModelProto:
    """The state step: ``state``, ``noise`` (N, Z), ``dt`` (N, 1) → ``next_state`` (N, Z)."""
    graph, size = _Graph(), lamp.state_size
    x = "state"
    for change, layers in zip(lamp.changes[:-1], lamp.couplings, strict=True):
        x = graph.add("MatMul", x, graph.constant(change))
        split = graph.constant(np.array([size // 4, size // 4, size - size // 2], np.int64))
        first, second, unchanged = graph.add_many("Split", 3, x, split, axis=-1)
        *hidden, last = layers
        y = unchanged
        for layer in hidden:
            y = graph.add("Tanh", graph.dense(layer, y))
        angles = graph.add("Mul", graph.dense(last, y), "dt")
        cos, sin = graph.add("Cos", angles), graph.add("Sin", angles)
        one = graph.add("Sub", graph.add("Mul", first, cos), graph.add("Mul", second, sin))
        other = graph.add("Add", graph.add("Mul", first, sin), graph.add("Mul", second, cos))
        x = graph.add("Concat", one, other, unchanged, axis=-1)
    x = graph.add("MatMul", x, graph.constant(lamp.changes[-1]))
    if lamp.noise_angle is None:
        # The step keeps norms, but rounding would shrink a state in a million steps.
        norms = [graph.add("ReduceL2", one, axes=(-1,), keepdims=1) for one in ("state", x)]
        graph.add("Mul", x, graph.add("Div", *norms), name="next_state")
    else:
        angle = graph.add("Mul", "dt", graph.constant(lamp.noise_angle.astype(np.float32)))
        old = graph.add("Mul", graph.add("Cos", angle), x)
        graph.add("Add", old, graph.add("Mul", graph.add("Sin", angle), "noise"), name="next_state")
    states = ("N", size)
    inputs: dict[str, _Shape] = {"state": states, "noise": states, "dt": ("N", 1)}
    return graph.model(lamp, "state_step", inputs, {"next_state": states})


_Shape = tuple[str | int, ...]


def _channels_first(dense: Layer, base: tuple[int, int, int]) -> Layer:
    """The layer with its outputs ordered (C, h, w), as ONNX has feature maps, and not (h, w, C)."""
    weight = dense.weight.reshape(*base, -1).transpose(2, 0, 1, 3).reshape(dense.weight.shape)
    return Layer(weight, dense.bias.reshape(base).transpose(2, 0, 1).reshape(-1))


class _Graph:
    """A graph that grows by one operation at a time. Operations and constants are known by their names."""

    def __init__(self) -> None:
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise UserError('export: ONNX needs its extra; install "mlxlava[onnx]"') from error
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, array: np.ndarray) -> str:
        """Add a constant; returns its name."""
        name = f"constant{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operation: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add an operation with one output; returns the output's name."""
        name = name or f"{operation.lower()}{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operation, inputs, [name], **attributes))
        return name

    def add_many(self, operation: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add an operation with several outputs; returns their names."""
        names = [f"{operation.lower()}{len(self._nodes)}_{n}" for n in range(count)]
        self._nodes.append(self._onnx.helper.make_node(operation, inputs, names, **attributes))
        return names

    def dense(self, layer: Layer, x: str) -> str:
        """Add a dense layer."""
        return self.add("Gemm", x, self.constant(layer.weight), self.constant(layer.bias), transB=1)

    def convolution(self, layer: Layer, x: str) -> str:
        """Add a 3×3 convolution that keeps the resolution."""
        kernel = self.constant(layer.weight.transpose(0, 3, 1, 2))  # (O, 3, 3, I) -> (O, I, 3, 3)
        return self.add("Conv", x, kernel, self.constant(layer.bias), pads=(1, 1, 1, 1))

    def convolutions(self, layers: Convolutions, x: str) -> str:
        """Add the convolutions from a feature map to a picture (N, 3, H, W) in [0, 1]."""
        for up in layers.ups:
            # "DCR" orders channels as mlxlava's pixel shuffle does: row, column, channel.
            x = self.add("DepthToSpace", self.convolution(up, x), blocksize=2, mode="DCR")
            x = self.add("LeakyRelu", x, alpha=LEAKY_SLOPE)
        x = self.add("Mul", self.convolution(layers.out, x), self.constant(layers.gate.transpose(2, 0, 1)))
        x = self.add("Add", x, self.constant(layers.background.transpose(2, 0, 1)))
        return self.add("Sigmoid", x)

    def model(
        self, lamp: PortableLamp, name: str, inputs: dict[str, _Shape], outputs: dict[str, _Shape]
    ) -> onnx.ModelProto:
        """The graph as a model, checked by onnx."""
        helper = self._onnx.helper
        values = [
            [helper.make_tensor_value_info(key, self._onnx.TensorProto.FLOAT, shape) for key, shape in each]
            for each in (inputs.items(), outputs.items())
        ]
        model: onnx.ModelProto = helper.make_model(
            helper.make_graph(self._nodes, name, *values, initializer=self._constants),
            opset_imports=[helper.make_opsetid("", ONNX_OPSET)],
            ir_version=IR_VERSION,
            producer_name="mlxlava",
        )
        helper.set_model_props(model, {"step_fps": f"{lamp.step_fps:.9g}", "size": format_size(lamp.size)})
        self._onnx.checker.check_model(model, full_check=True)
        return model
