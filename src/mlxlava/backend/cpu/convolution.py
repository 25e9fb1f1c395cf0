"""MLX operations for convolutions on the CPU, written in C++ (convolution.cpp); float32, channels last.

MLX's own CPU back end writes out every patch before its matrix product. These make tiles of results from less
products than taps, of which none leaves the processor's cache, and are built when they are first asked for.
They are MLX primitives like any other, as in MLX's "Custom Extensions"; only their bindings are ctypes, since
nanobind's would have to be of the very version that MLX was built with, and need Python's headers.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import importlib.resources
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlxlava.backend import mx, mx_folder, on_gpu_path, processor
from mlxlava.backend.cpu import native
from mlxlava.console import say


class Kind(enum.IntEnum):
    """Which convolution.

    Attributes:
        CONV4_STRIDE2: 4×4 of stride 2, padded by one: (N, 2H, 2W, I), (O, 4, 4, I) → (N, H, W, O).
        CONV4_TRANSPOSED: its gradient with respect to the feature maps, a transposed convolution:
            (N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).
        CONV3: 3×3, padded by one: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O).
        CONV3_SHUFFLE: the same with a bias, leaky ReLU and pixel shuffle, for playing: → (N, 2H, 2W, O / 4).
    """

    CONV4_STRIDE2 = 0
    CONV4_TRANSPOSED = 1
    CONV3 = 2
    CONV3_SHUFFLE = 3


def available() -> bool:
    """Whether convolutions can be made here; else MLX's own have to do."""
    return not on_gpu_path() and _library() is not None


def convolve(kind: Kind, x: mx.array, weight: mx.array) -> mx.array:
    """A convolution, see :class:`Kind`."""
    algorithm = choose_algorithm(kind, x.shape, weight.shape[_outputs(kind)])
    outputs = weight.shape[_outputs(kind)]
    return convolve_transformed(kind, algorithm, x, transform_filter(kind, algorithm, weight), outputs)


def choose_algorithm(kind: Kind, shape: tuple[int, ...], outputs: int) -> int:
    """The fastest algorithm for feature maps of this shape, an :class:`Algorithm`."""
    count, height, width, inputs = shape
    halved = 2 if kind == Kind.CONV4_STRIDE2 else 1
    return int(_library().mlxlava_algorithm(kind, count, height // halved, width // halved, inputs, outputs))


def transform_filter(kind: Kind, algorithm: int, weight: mx.array) -> mx.array:
    """The filter transform of a weight, flat, as :func:`convolve_transformed` takes it."""
    return _call(_library(), "transform_filter", kind, algorithm, weight)


def convolve_transformed(
    kind: Kind, algorithm: int, x: mx.array, transformed: mx.array, outputs: int, bias: mx.array | None = None
) -> mx.array:
    """A convolution with a transformed filter of ``outputs``; CONV3_SHUFFLE has a bias (O,)."""
    return _call(_library(), "convolve", kind, algorithm, x, transformed, outputs, bias)


def weight_gradient(kind: Kind, x: mx.array, y: mx.array) -> mx.array:
    """The gradient of CONV4_STRIDE2 or CONV3 with respect to its weight.

    Args:
        kind: Which of the two.
        x: Its feature maps.
        y: The gradient with respect to its results.
    """
    count, height, width, outputs = y.shape
    algorithm = _library().mlxlava_algorithm(kind, count, height, width, x.shape[3], outputs)
    return _call(_library(), "weight_gradient", kind, algorithm, x, y)


def _outputs(kind: Kind) -> int:
    return 3 if kind == Kind.CONV4_TRANSPOSED else 0


def _call(library: Any, name: str, *arguments: Any) -> mx.array:
    """An operation of the library; arrays are passed as they lie in MLX's Python objects."""
    result = mx.array(0.0)
    given = [_inside(each) if isinstance(each, mx.array) else each for each in (*arguments, result)]
    error = getattr(library, f"mlxlava_{name}")(*given)
    if error:
        raise ValueError(error.decode())
    return result


# nanobind puts the C++ object behind its own header, which is two numbers of four bytes.
_HEADER = object.__basicsize__ + 8


def _inside(array: mx.array) -> int:
    return id(array) + _HEADER


# An operation reads the C++ object inside an mx.array, and is itself an object that MLX calls. Both must be
# laid out as MLX has them. So only versions are used with which the tests of convolutions were run.
TESTED = ("0.32.2", "0.32.3", "0.32.4")


class _Unusable(Exception):
    """Why MLX's own operations are used, as a line for stderr."""


@functools.cache
def _library() -> Any:
    """The library, or None where MLX's own operations are used; on Linux a line then says why."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return _open(_tested())
    except _Unusable as error:
        say(f"mlxlava: {error}")
        return None


def _tested() -> Path:
    """The library's file, built and tested unless that was done before."""
    version = str(mx.__version__)  # type: ignore[attr-defined]  # MLX's stubs leave it out
    if version not in TESTED:
        raise _Unusable(f"MLX {version} is {_compared(version)}, so MLX's own are used; they are slower")
    if not _has_known_header():
        raise _Unusable("MLX's arrays are not laid out as expected, so MLX's own convolutions are used")
    try:
        path = _build(version)
    except (OSError, subprocess.CalledProcessError) as error:
        said = [line for line in str(getattr(error, "stderr", "")).splitlines() if "error" in line]
        why = [*said, error][0]
        raise _Unusable(f"convolutions will be many times slower, since g++ failed: {why}") from error
    slower = "so MLX's own are used; they are slower"
    try:
        wrong = native.failure(path, lambda: _test_apart(path))
    except OSError as error:
        raise _Unusable(f"the fast convolutions could not be tested ({error}), {slower}") from error
    if wrong:
        again = f"to test them again, delete {path}"
        raise _Unusable(f"the fast convolutions failed their test here ({wrong}), {slower}; {again}")
    return path


def _compared(version: str) -> str:
    """How an MLX version stands to those that were tested."""
    numbers, first, last = (
        [int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, TESTED[0], TESTED[-1])
    )
    which = "newer than" if numbers > last else "older than" if numbers < first else "not one of"
    return f"{which} what the fast convolutions were tested with ({TESTED[0]} to {TESTED[-1]})"


def _has_known_header() -> bool:
    probe = mx.array(0.0)
    return (
        mx.array.__basicsize__ >= _HEADER + 16
        and ctypes.c_int32.from_address(id(probe) + object.__basicsize__).value == _HEADER
    )


def _build(version: str) -> Path:
    root = mx_folder()
    source = (
        importlib.resources.files("mlxlava.backend.cpu")
        .joinpath("convolution.cpp")
        .read_text(encoding="utf-8")
    )
    options = ["-std=c++20", "-march=native", "-fno-math-errno", f"-I{root / 'include'}"]
    options += [f"-L{root / 'lib'}", "-lmlx", f"-Wl,-rpath,{root / 'lib'}"]
    of = [version, processor(), _instructions()]
    for file in (Path(str(mx.__file__)), root / "lib" / "libmlx.so"):
        status = file.stat()  # another build of the same version is tested anew
        of += [str(status.st_size), str(status.st_mtime_ns)]
    announce = "mlxlava: compiling convolutions for this machine, once"
    return native.build("convolution", source, options, " ".join(of), announce)


def _instructions() -> str:
    """What the processor can do: of one name, a virtual machine may have less than another."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2]
    return ""


def _open(path: Path) -> ctypes.PyDLL:
    library = ctypes.PyDLL(str(path))
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.mlxlava_algorithm.argtypes = [number] * 6
    for name, arguments in (
        ("transform_filter", [number, number, pointer, pointer]),
        ("convolve", [number, number, pointer, pointer, number, pointer, pointer]),
        ("weight_gradient", [number, number, pointer, pointer, pointer]),
    ):
        function = getattr(library, f"mlxlava_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_char_p
    return library


# --- the self-test ---

_TEST_SECONDS = 120  # it takes two
# Of a sum's largest result; tiles of 4×4 results are within 2e-6.
_TOLERANCE = 1e-4


class Algorithm(enum.IntEnum):
    """How a convolution is computed: ``Algorithm`` of convolution.cpp.

    Attributes:
        WINOGRAD_2X2: tiles of 2×2 results.
        WINOGRAD_4X4: tiles of 4×4 results.
        IM2COL: one product of patches with all taps.
        COL2IM: one product of pixels with all taps, whose results are added up.
    """

    WINOGRAD_2X2 = 0
    WINOGRAD_4X4 = 1
    IM2COL = 2
    COL2IM = 3


# Winograd for all; IM2COL is for few input channels, COL2IM for few output channels.
_ALGORITHMS = {
    Kind.CONV4_STRIDE2: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.IM2COL),
    Kind.CONV4_TRANSPOSED: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.COL2IM),
    Kind.CONV3: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.IM2COL, Algorithm.COL2IM),
    Kind.CONV3_SHUFFLE: (Algorithm.WINOGRAD_2X2, Algorithm.WINOGRAD_4X4, Algorithm.IM2COL),
}


def _test_apart(path: Path) -> str:
    """Test a library in a child process, since a wrong one may crash; what is wrong, or nothing.

    Raises:
        OSError: The child could not be started, or was ended from outside. That says nothing of the library.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("no Python is at hand to test them with")
    # The child imports what this process would, and nothing else that lies in the working folder.
    code = "import sys; sys.path[:] = sys.argv[2:]; from mlxlava.backend.cpu.convolution import self_test; "
    code += "self_test(sys.argv[1])"
    try:
        ended = native.run([sys.executable, "-c", code, str(path), *sys.path], timeout=_TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not end within {_TEST_SECONDS} s"
    if ended.returncode in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL):
        raise OSError("the test was ended from outside")
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}"
    said = ended.stderr.strip().splitlines() or ["it failed"]
    return said[-1].removeprefix("ValueError: ") if ended.returncode else ""


def self_test(path: str) -> None:
    """Compare every operation of a library with MLX's own, by every algorithm; it may crash this process.

    Raises:
        ValueError: One gives other numbers.
    """
    mx.set_default_device(mx.cpu)
    library = _open(Path(path))
    for kind, algorithms in _ALGORITHMS.items():
        for algorithm in algorithms:
            _compare(library, kind, algorithm)


def _compare(library: Any, kind: Kind, algorithm: Algorithm) -> None:
    """Feature maps that no tile fits, with and without edges, and arrays that do not lie in one piece."""
    inputs = 5 if algorithm == Algorithm.IM2COL else 18
    outputs = 3 if algorithm == Algorithm.COL2IM else 20
    side = 4 if kind in (Kind.CONV4_STRIDE2, Kind.CONV4_TRANSPOSED) else 3
    keys = mx.random.split(mx.random.key(10 * kind + algorithm), 3)
    x = mx.random.normal((3, 14, 22, inputs), key=keys[0]).transpose(0, 2, 1, 3)
    weight = mx.random.normal((side, outputs, side, inputs), key=keys[1]).transpose(1, 0, 2, 3)
    bias = mx.random.normal((outputs,), key=keys[2]) if kind == Kind.CONV3_SHUFFLE else None
    laid = weight.transpose(3, 1, 2, 0) if kind == Kind.CONV4_TRANSPOSED else weight

    def fast(x: mx.array, laid: mx.array) -> mx.array:
        transformed = _call(library, "transform_filter", kind, algorithm, laid)
        return _call(library, "convolve", kind, algorithm, x, transformed, outputs, bias)

    results = _reference(kind, x, weight, bias)
    _require_close(f"{kind.name} {algorithm.name}", fast(x, laid), results)
    with mx.stream(mx.new_stream(mx.cpu)):
        _require_close(f"{kind.name} {algorithm.name} compiled", mx.compile(fast)(x, laid), results)
    if kind in (Kind.CONV4_STRIDE2, Kind.CONV3):
        _, (wanted,) = mx.vjp(lambda weight: _reference(kind, x, weight, None), [weight], [results])
        found = _call(library, "weight_gradient", kind, algorithm, x, results)
        _require_close(f"{kind.name} {algorithm.name} weight gradient", found, wanted)


def _reference(kind: Kind, x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """What :class:`Kind` says, in MLX's own operations, of a weight (O, side, side, I)."""
    if kind == Kind.CONV4_TRANSPOSED:
        return mx.conv_transpose2d(x, weight, stride=2, padding=1)
    y = mx.conv2d(x, weight, stride=2 if kind == Kind.CONV4_STRIDE2 else 1, padding=1)
    if bias is None:
        return y
    y = mx.maximum(y + bias, 0.2 * (y + bias))
    count, height, width, channels = y.shape
    y = y.reshape(count, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(count, 2 * height, 2 * width, channels // 4)


def _require_close(what: str, got: mx.array, wanted: mx.array) -> None:
    if got.shape != wanted.shape:
        raise ValueError(f"{what} has shape {got.shape}, not {wanted.shape}")
    error = float(mx.abs(got - wanted).max() / mx.abs(wanted).max())
    if not error <= _TOLERANCE:  # NaN too
        raise ValueError(f"{what} is off by {error:.1e} of its largest number")
