"""MLX operations for convolutions on the CPU, written in C++ (convolution.cpp); float32, channels last.

MLX's own CPU back end writes out every patch before its matrix product. These make tiles of results from less
products than taps, of which none leaves the processor's cache, and are built when they are first asked for.
They are MLX primitives like any other, as in MLX's "Custom Extensions"; only their bindings are ctypes, since
nanobind's would have to be of the very version that MLX was built with, and need Python's headers.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import importlib.metadata
import importlib.resources
import subprocess
import sys
from typing import Any

from mlxlava import native
from mlxlava.backend import mx, mx_folder, on_gpu_path, processor
from mlxlava.console import say


class Kind(enum.IntEnum):
    """What is convolved, and with what.

    Attributes:
        DOWN: 4×4 of stride 2, padded by one: (N, 2H, 2W, I), (O, 4, 4, I) → (N, H, W, O).
        UP: its gradient by the planes: (N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).
        KEEP: 3×3, padded by one: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O).
        GROW: the same with a bias, leaky ReLU and pixel shuffle, for playing: → (N, 2H, 2W, O / 4).
    """

    DOWN = 0
    UP = 1
    KEEP = 2
    GROW = 3


def available() -> bool:
    """Whether convolutions can be made here; else MLX's own have to do."""
    return not on_gpu_path() and _library() is not None


def convolve(kind: Kind, x: mx.array, weight: mx.array) -> mx.array:
    """A convolution, see :class:`Kind`."""
    way = choose(kind, x.shape, weight.shape[_outputs(kind)])
    return convolve_weighed(kind, way, x, weigh(kind, way, weight), weight.shape[_outputs(kind)])


def choose(kind: Kind, shape: tuple[int, ...], outputs: int) -> int:
    """The fastest way for planes of this shape: ``Way`` of convolution.cpp."""
    count, height, width, inputs = shape
    halved = 2 if kind == Kind.DOWN else 1
    return int(_library().mlxlava_way(kind, count, height // halved, width // halved, inputs, outputs))


def weigh(kind: Kind, way: int, weight: mx.array) -> mx.array:
    """A weight as :func:`convolve_weighed` takes it, flat."""
    return _call("weigh", kind, way, weight)


def convolve_weighed(
    kind: Kind, way: int, x: mx.array, weighed: mx.array, outputs: int, bias: mx.array | None = None
) -> mx.array:
    """A convolution with a weight (of ``outputs``) that was prepared for this way; GROW has a bias (O,)."""
    return _call("convolve", kind, way, x, weighed, outputs, bias)


def by_weight(kind: Kind, x: mx.array, y: mx.array) -> mx.array:
    """The gradient of DOWN or KEEP by its weight, from its planes and the gradient by its results."""
    count, height, width, outputs = y.shape
    return _call("learn", kind, _library().mlxlava_way(kind, count, height, width, x.shape[3], outputs), x, y)


def _outputs(kind: Kind) -> int:
    return 3 if kind == Kind.UP else 0


def _call(name: str, *arguments: Any) -> mx.array:
    """An operation of the library; arrays are passed as they lie in MLX's Python objects."""
    result = mx.array(0.0)
    given = [_inside(each) if isinstance(each, mx.array) else each for each in (*arguments, result)]
    error = getattr(_library(), f"mlxlava_{name}")(*given)
    if error:
        raise ValueError(error.decode())
    return result


# nanobind puts the C++ object behind its own header, which is two numbers of four bytes.
_HEADER = object.__basicsize__ + 8


def _inside(array: mx.array) -> int:
    return id(array) + _HEADER


@functools.cache
def _library() -> Any:
    """The library, or None where it cannot be built or MLX's objects look otherwise than expected."""
    if not sys.platform.startswith("linux") or mx.array.__basicsize__ < _HEADER + 16:
        return None
    probe = mx.array(0.0)
    if ctypes.c_int32.from_address(id(probe) + object.__basicsize__).value != _HEADER:
        return None
    root = mx_folder()
    source = importlib.resources.files("mlxlava").joinpath("convolution.cpp").read_text(encoding="utf-8")
    options = ["-std=c++20", "-march=native", "-fno-math-errno", f"-I{root / 'include'}"]
    options += [f"-L{root / 'lib'}", "-lmlx", f"-Wl,-rpath,{root / 'lib'}"]
    of = f"{importlib.metadata.version('mlx')} {processor()}"
    try:
        if not native.built("convolution", source, options, of).is_file():
            say("mlxlava: compiling convolutions for this machine, once")
        library = ctypes.PyDLL(str(native.build("convolution", source, options, of)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = [line for line in str(getattr(error, "stderr", "")).splitlines() if "error" in line]
        say(f"mlxlava: convolutions will be many times slower, since g++ failed: {[*said, error][0]}")
        return None
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.mlxlava_way.argtypes = [number] * 6
    for name, arguments in (
        ("weigh", [number, number, pointer, pointer]),
        ("convolve", [number, number, pointer, pointer, number, pointer, pointer]),
        ("learn", [number, number, pointer, pointer, pointer]),
    ):
        function = getattr(library, f"mlxlava_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_char_p
    return library
