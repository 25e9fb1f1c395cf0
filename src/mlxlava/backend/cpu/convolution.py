"""MLX operations for convolutions on the CPU, written in C++ (convolution.cpp); float32, channels last.

MLX's own CPU back end writes out every patch before its matrix product. The convolutions here work on small
tiles that stay in the processor's cache, and multiply less often than a kernel has taps (Winograd). The C++
is compiled when a convolution is first needed.

The operations are MLX primitives, as in MLX's "Custom Extensions". Only their bindings differ: they use
ctypes. Bindings of nanobind would need Python's headers, and the very version of nanobind that MLX was built
with.
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

from mlxlava.backend import mlx_package_folder, mx, on_gpu_path, processor_name
from mlxlava.backend.cpu import native
from mlxlava.console import say


class ConvolutionKind(enum.IntEnum):
    """Which convolution.

    Attributes:
        CONV4_STRIDE2: 4×4 of stride 2, padded by one: (N, 2H, 2W, I), (O, 4, 4, I) → (N, H, W, O).
        CONV4_TRANSPOSED: the gradient of CONV4_STRIDE2 with respect to its feature maps, a transposed
            convolution: (N, H, W, O), (O, 4, 4, I) → (N, 2H, 2W, I).
        CONV3: 3×3, padded by one: (N, H, W, I), (O, 3, 3, I) → (N, H, W, O).
        CONV3_SHUFFLE: CONV3 with a bias, leaky ReLU and pixel shuffle, for playing. Its results have the
            shape (N, 2H, 2W, O / 4).
    """

    CONV4_STRIDE2 = 0
    CONV4_TRANSPOSED = 1
    CONV3 = 2
    CONV3_SHUFFLE = 3


class Algorithm(enum.IntEnum):
    """How a convolution is computed. The numbers are those of ``Algorithm`` in convolution.cpp.

    Attributes:
        WINOGRAD_2X2: tiles of 2×2 results.
        WINOGRAD_4X4: tiles of 4×4 results.
        IM2COL: one matrix product of patches with all taps.
        COL2IM: one matrix product of pixels with all taps; the results are added up.
    """

    WINOGRAD_2X2 = 0
    WINOGRAD_4X4 = 1
    IM2COL = 2
    COL2IM = 3


def is_available() -> bool:
    """Whether the convolutions of this file can be used; otherwise MLX's own are used."""
    return not on_gpu_path() and _load_library() is not None


def convolve(kind: ConvolutionKind, x: mx.array, weight: mx.array) -> mx.array:
    """A convolution of a kind; :class:`ConvolutionKind` has the shapes."""
    algorithm = choose_algorithm(kind, x.shape, weight.shape[_output_channel_axis(kind)])
    outputs = weight.shape[_output_channel_axis(kind)]
    return convolve_transformed(kind, algorithm, x, transform_filter(kind, algorithm, weight), outputs)


def choose_algorithm(kind: ConvolutionKind, shape: tuple[int, ...], outputs: int) -> int:
    """The number of the fastest algorithm (:class:`Algorithm`) for feature maps of this shape."""
    count, height, width, inputs = shape
    halved = 2 if kind == ConvolutionKind.CONV4_STRIDE2 else 1
    return int(
        _load_library().mlxlava_algorithm(kind, count, height // halved, width // halved, inputs, outputs)
    )


def transform_filter(kind: ConvolutionKind, algorithm: int, weight: mx.array) -> mx.array:
    """Transform a weight for an algorithm. :func:`convolve_transformed` takes the result, a flat array."""
    return call_operation(_load_library(), "transform_filter", kind, algorithm, weight)


def convolve_transformed(
    kind: ConvolutionKind,
    algorithm: int,
    x: mx.array,
    transformed: mx.array,
    outputs: int,
    bias: mx.array | None = None,
) -> mx.array:
    """A convolution with a transformed filter for O = ``outputs`` channels; CONV3_SHUFFLE has a bias (O,)."""
    return call_operation(_load_library(), "convolve", kind, algorithm, x, transformed, outputs, bias)


def weight_gradient(kind: ConvolutionKind, x: mx.array, y: mx.array) -> mx.array:
    """The gradient of CONV4_STRIDE2 or CONV3 with respect to its weight.

    Args:
        kind: CONV4_STRIDE2 or CONV3.
        x: Feature maps that the convolution was applied to.
        y: Gradient with respect to the results of the convolution.
    """
    count, height, width, outputs = y.shape
    algorithm = _load_library().mlxlava_algorithm(kind, count, height, width, x.shape[3], outputs)
    return call_operation(_load_library(), "weight_gradient", kind, algorithm, x, y)


def _output_channel_axis(kind: ConvolutionKind) -> int:
    return 3 if kind == ConvolutionKind.CONV4_TRANSPOSED else 0


def call_operation(library: Any, name: str, *arguments: Any) -> mx.array:
    """Call an operation of the library. Arrays are passed as addresses of the C++ objects inside MLX's."""
    result = mx.array(0.0)
    given = [
        _address_of_cpp_array(each) if isinstance(each, mx.array) else each for each in (*arguments, result)
    ]
    error = getattr(library, f"mlxlava_{name}")(*given)
    if error:
        raise ValueError(error.decode())
    return result


# nanobind puts the C++ object behind its own header, which is two numbers of four bytes.
_NANOBIND_HEADER_BYTES = object.__basicsize__ + 8


def _address_of_cpp_array(array: mx.array) -> int:
    return id(array) + _NANOBIND_HEADER_BYTES


# An operation reads the C++ object inside an mx.array, and is itself an object that MLX calls. Both must have
# the memory layout of MLX's own objects. So the operations are used only with these versions of MLX, with
# which the tests of convolutions were run.
TESTED_MLX_VERSIONS = ("0.32.2", "0.32.3", "0.32.4")

_TEST_TIMEOUT_SECONDS = 120  # the self-test takes two


class _LibraryUnusable(Exception):
    """The library cannot be used. The text says why, as a line for stderr."""


@functools.cache
def _load_library() -> Any:
    """The library, or None where MLX's own operations are used. On Linux a line on stderr then says why."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return open_library(_build_and_test())
    except _LibraryUnusable as error:
        say(f"mlxlava: {error}")
        return None


def _build_and_test() -> Path:
    """The file of the library. It is built and tested unless that was done before."""
    version = str(mx.__version__)  # type: ignore[attr-defined]  # MLX's stubs leave it out
    if version not in TESTED_MLX_VERSIONS:
        raise _LibraryUnusable(
            f"MLX {version} is {_describe_untested_version(version)}, so MLX's own are used; they are slower"
        )
    if not _has_known_array_layout():
        raise _LibraryUnusable(
            "MLX's arrays are not laid out as expected, so MLX's own convolutions are used"
        )
    try:
        path = _build_library(version)
    except (OSError, subprocess.CalledProcessError) as error:
        said = [line for line in str(getattr(error, "stderr", "")).splitlines() if "error" in line]
        why = [*said, error][0]
        raise _LibraryUnusable(f"convolutions will be many times slower, since g++ failed: {why}") from error
    slower = "so MLX's own are used; they are slower"
    try:
        wrong = native.run_library_test_once(path, lambda: _test_in_child_process(path))
    except OSError as error:
        raise _LibraryUnusable(f"the fast convolutions could not be tested ({error}), {slower}") from error
    if wrong:
        again = f"to test them again, delete {path}"
        raise _LibraryUnusable(f"the fast convolutions failed their test here ({wrong}), {slower}; {again}")
    return path


def _test_in_child_process(path: Path) -> str:
    """Test a library in a child process, since a wrong library may crash. Returns what is wrong, or "".

    Raises:
        OSError: The child could not be started, or was ended from outside. Then nothing is known of the
            library.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("no Python is at hand to test them with")
    # The child imports what this process would, and nothing else that lies in the working folder.
    code = "import sys; sys.path[:] = sys.argv[2:]; "
    code += "from mlxlava.backend.cpu.convolution_self_test import check_library; check_library(sys.argv[1])"
    try:
        ended = native.run_command(
            [sys.executable, "-c", code, str(path), *sys.path], timeout=_TEST_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {_TEST_TIMEOUT_SECONDS} s"
    if ended.returncode in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL):
        raise OSError("the test was ended from outside")
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}"
    said = ended.stderr.strip().splitlines() or ["it failed"]
    return said[-1].removeprefix("ValueError: ") if ended.returncode else ""


def _describe_untested_version(version: str) -> str:
    """Say whether an untested MLX version is newer or older than the tested versions."""
    numbers, first, last = (
        [int(number) for number in re.findall(r"\d+", text)[:3]]
        for text in (version, TESTED_MLX_VERSIONS[0], TESTED_MLX_VERSIONS[-1])
    )
    which = "newer than" if numbers > last else "older than" if numbers < first else "not one of"
    tested = f"{TESTED_MLX_VERSIONS[0]} to {TESTED_MLX_VERSIONS[-1]}"
    return f"{which} what the fast convolutions were tested with ({tested})"


def _has_known_array_layout() -> bool:
    probe = mx.array(0.0)
    return (
        mx.array.__basicsize__ >= _NANOBIND_HEADER_BYTES + 16
        and ctypes.c_int32.from_address(id(probe) + object.__basicsize__).value == _NANOBIND_HEADER_BYTES
    )


def _build_library(version: str) -> Path:
    root = mlx_package_folder()
    source = (
        importlib.resources.files("mlxlava.backend.cpu")
        .joinpath("convolution.cpp")
        .read_text(encoding="utf-8")
    )
    options = ["-std=c++20", "-march=native", "-fno-math-errno", f"-I{root / 'include'}"]
    options += [f"-L{root / 'lib'}", "-lmlx", f"-Wl,-rpath,{root / 'lib'}"]
    of = [version, processor_name(), _instruction_sets()]
    for file in (Path(str(mx.__file__)), root / "lib" / "libmlx.so"):
        status = file.stat()  # another build of the same version is tested anew
        of += [str(status.st_size), str(status.st_mtime_ns)]
    announce = "mlxlava: compiling convolutions for this machine, once"
    return native.build_library("convolution", source, options, " ".join(of), announce)


def _instruction_sets() -> str:
    """Instruction sets of the processor: virtual machines with the same processor name may differ in them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2]
    return ""


def open_library(path: Path) -> ctypes.PyDLL:
    """Load a library, and declare the arguments of its functions."""
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
