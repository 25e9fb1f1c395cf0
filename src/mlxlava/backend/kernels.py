"""What a graph will launch: its operations, counted before any of them is computed.

Fusing does not depend on the device, so a graph that was compiled on a CPU has the kernels
that it has on Metal.
"""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

from mlxlava.backend.device import mx, named_arrays

# Metal gives a kernel 31 buffers, of which a fused one may need three for strides, shape and rank (MLX,
# backend/metal/compiled.cpp): "Too many inputs/outputs fused in the Metal Compiled primitive" beyond.
MOST_BUFFERS = 28

# They change how an array is looked at, or wait for others, and launch nothing.
_FREE = frozenset(
    [
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Contiguous",
        "Copy",
        "CustomTransforms",
        "Depends",
        "ExpandDims",
        "Flatten",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    ]
)
_NODE = re.compile(r'^\{ (\d+) \[label ="([^"]*)"')
_EDGE = re.compile(r'^(?:"[^"]*" -> (\d+)|(\d+) -> "[^"]*")$')


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operation of a graph.

    Attributes:
        name: of MLX's primitive; that of a fused kernel begins with ``Compiled``.
        buffers: arrays that go in and come out.
    """

    name: str
    buffers: int

    @property
    def fused(self) -> bool:
        """Whether ``mx.compile`` made it of several operations."""
        return self.name.startswith("Compiled")

    @property
    def launched(self) -> bool:
        """Whether the device has anything to compute for it."""
        return self.name not in _FREE


def kernels(tree: Any) -> list[Kernel]:
    """The operations that give the arrays of ``tree``, which must not have been evaluated yet."""
    text = io.StringIO()
    mx.export_to_dot(text, *named_arrays(tree).values())
    names: dict[str, str] = {}
    buffers: dict[str, int] = {}
    for line in text.getvalue().splitlines():
        if node := _NODE.match(line):
            names[node[1]] = node[2]
        elif edge := _EDGE.match(line):
            key = edge[1] or edge[2]
            buffers[key] = buffers.get(key, 0) + 1
    return [Kernel(name, buffers.get(key, 0)) for key, name in names.items()]
