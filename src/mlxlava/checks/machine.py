"""Checks of the machine: system, MLX, compiler, memory, and writing and reading each file format."""

from __future__ import annotations

import itertools
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence

from mlxlava.backend import (
    PRELOADED_BLAS,
    has_slow_blas,
    memory_budget_gb,
    mx,
    on_cpu,
    operations_of_graph,
    use_gpu_path,
)
from mlxlava.backend.cpu import convolution
from mlxlava.checks.base import Check, fail_without_compiler, on_checked_device
from mlxlava.config import load_recipe
from mlxlava.footage.prepare import prepare
from mlxlava.footage.simulated_lamp import frames as lamp_frames
from mlxlava.playback.writers import WRITER_OF_FORMAT, open_writer
from mlxlava.training.memory_plan import predict_peak_gb

_FRAME_SIZE = (16, 16)
_FRAME_COUNT = 8
# Allowed mean difference in grey levels. Pictures as small as a block of the encoder lose most.
_MAX_DIFFERENCES_GREY_LEVELS = {
    "mp4": 20.0,
    "webm": 20.0,
    "gif": 10.0,
    "apng": 0.0,
    "webp": 20.0,
    "y4m": 2.0,
    "raw": 0.0,
}


def machine_checks() -> list[Check]:
    """Checks of the machine and of what the package needs on it."""
    checks = [_system_check(), _device_check(), _compiled_function_check()]
    if sys.platform.startswith("linux") and on_cpu():
        checks += [_blas_check(), _convolutions_check()]
    return [*checks, _memory_check(), *map(_file_format_check, WRITER_OF_FORMAT)]


def _system_check() -> Check:
    if sys.platform == "darwin":
        release = platform.mac_ver()[0]
        ok = platform.machine() == "arm64" and int(release.partition(".")[0] or 0) >= 14
        return Check(
            "system",
            "macOS 14, arm",
            "MLX needs an Apple silicon Mac, macOS 14 or newer, and a Python for arm64.",
            lambda: (f"macOS {release}, {platform.machine()}", ok),
        )
    return Check(
        "system",
        "Linux, macOS",
        "mlxlava was made for macOS on Apple silicon and for Linux. Nobody has tried it here.",
        lambda: (f"{platform.system()}, {platform.machine()}", sys.platform.startswith("linux")),
    )


def _device_check() -> Check:
    return Check(
        "MLX and its device",
        "a GPU" if sys.platform == "darwin" else "any device",
        "MLX does not see this Mac's GPU. Training and playing will be many times slower.",
        lambda: (
            f"{version('mlx')} on a {'CPU' if on_cpu() else 'GPU'}",
            sys.platform != "darwin" or not on_cpu(),
        ),
    )


def _compiled_function_check() -> Check:
    def measure() -> tuple[str, bool]:
        x = mx.array(np.linspace(-2, 2, 100, dtype=np.float32))
        with on_checked_device():
            y = mx.compile(lambda x: mx.tanh(x) * x + 1.25)(x)
            fused = any(kernel.is_fused for kernel in operations_of_graph({"y": y}))
            right = np.allclose(np.array(y), np.tanh(np.array(x)) * np.array(x) + 1.25, atol=1e-5)
        return "right" if fused and right else "not compiled" if right else "wrong", fused and bool(right)

    meaning = "Training steps are compiled functions. They will be slower, or wrong, on this machine."
    return fail_without_compiler(Check("compiled function", "right", meaning, measure))


def _blas_check() -> Check:
    return Check(
        "library for matrix products",
        "a fast one",
        'Everything will be many times slower. Install "mlxlava[cpu]" and g++.',
        lambda: (PRELOADED_BLAS[0] if PRELOADED_BLAS else "MLX's reference", not has_slow_blas()),
    )


def _convolutions_check() -> Check:
    def measure() -> tuple[str, bool]:
        with use_gpu_path(False):
            built = convolution.is_available()
        return "compiled here" if built else "MLX's own", built

    meaning = (
        "The package's convolutions in C++ cannot be used, so MLX's own are. Training and playing will be "
        "many times slower."
    )
    return fail_without_compiler(Check("convolutions of the CPU", "compiled here", meaning, measure))


def _memory_check() -> Check:
    needed = predict_peak_gb(load_recipe("lava"), gpu=not on_cpu())
    return Check(
        "memory for MLX",
        f"≥ {needed:.1f} GB",
        "A training step of lava does not fit as it is. Train with --memory, which splits its batch.",
        lambda: (f"{memory_budget_gb():.1f} GB", memory_budget_gb() >= needed),
    )


def _file_format_check(name: str) -> Check:
    limit = _MAX_DIFFERENCES_GREY_LEVELS[name]

    def measure() -> tuple[str, bool]:
        frames = np.stack(list(itertools.islice(lamp_frames(_FRAME_SIZE, fps=10), _FRAME_COUNT)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"lamp.{name}"
            with open_writer(str(path), size=_FRAME_SIZE, fps=10) as writer:
                for frame in frames:
                    writer.write(frame)
            read = _read_frames(path)
        if read.shape != frames.shape:
            return f"{len(read)} of {_FRAME_COUNT} frames", False
        off = float(np.abs(read.astype(int) - frames).mean())
        return f"{off:.1f} levels off", off <= limit

    return Check(
        f"{name} file, written and read",
        f"≤ {limit:g}",
        f"A lamp cannot be written as {name}. Choose another format, or install imageio-ffmpeg again.",
        measure,
    )


def _read_frames(path: Path) -> npt.NDArray[np.uint8]:
    """The frames of a file (N, H, W, 3)."""
    if path.suffix == ".raw":
        return np.fromfile(path, np.uint8).reshape(-1, *_FRAME_SIZE, 3)
    if path.suffix in (".gif", ".apng", ".webp"):
        with Image.open(path, formats=("GIF", "PNG", "WEBP")) as image:
            return np.stack([np.asarray(each.convert("RGB")) for each in ImageSequence.Iterator(image)])
    return np.array(prepare([path], path.with_name("frames"), size=_FRAME_SIZE).frames)
