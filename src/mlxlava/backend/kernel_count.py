"""The kernels that a graph will launch, listed before any of them is computed.

``mx.compile`` fuses operations in the same way on every device. So a graph that was compiled on a CPU has the
same kernels as on Metal.
"""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

from mlxlava.backend.device import arrays_by_name, mx

# Metal gives a kernel 31 buffers. A fused kernel may need three of them for strides, shape and rank (MLX,
# backend/metal/compiled.cpp). With too many arrays MLX fails: "Too many inputs/outputs fused in the Metal
# Compiled primitive".
MAX_KERNEL_BUFFERS = 28

# These operations only change the view of an array, or only wait for other arrays.
_OPERATIONS_WITHOUT_KERNEL = frozenset(
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
_NODE_LINE_PATTERN = re.compile(r'^\{ (\d+) \[label ="([^"]*)"')
_EDGE_LINE_PATTERN = re.compile(r'^(?:"[^"]*" -> (\d+)|(\d+) -> "[^"]*")$')


@dataclasses.dataclass(frozen=True)
class GraphOperation:
    """An operation of a graph.

    Attributes:
        name: name of MLX's primitive; the name of a fused kernel begins with ``Compiled``.
        buffers: number of arrays that it reads and writes.
    """

    name: str
    buffers: int

    @property
    def is_fused(self) -> bool:
        """Whether ``mx.compile`` has fused several operations into it."""
        return self.name.startswith("Compiled")

    @property
    def is_launched(self) -> bool:
        """Whether the device has to launch a kernel for it."""
        return self.name not in _OPERATIONS_WITHOUT_KERNEL


def operations_of_graph(tree: Any) -> list[GraphOperation]:
    """The operations that compute the arrays of ``tree``. The arrays must not have been evaluated yet."""
    text = io.StringIO()
    mx.export_to_dot(text, *arrays_by_name(tree).values())
    names: dict[str, str] = {}
    buffers: dict[str, int] = {}
    for line in text.getvalue().splitlines():
        if node := _NODE_LINE_PATTERN.match(line):
            names[node[1]] = node[2]
        elif edge := _EDGE_LINE_PATTERN.match(line):
            key = edge[1] or edge[2]
            buffers[key] = buffers.get(key, 0) + 1
    return [GraphOperation(name, buffers.get(key, 0)) for key, name in names.items()]
