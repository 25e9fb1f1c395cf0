"""What a report of a fault has to say of a machine: versions, device, memory, and what is set.

It works where MLX cannot be loaded, since that is when it is needed most.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlxlava import __version__
from mlxlava.errors import UserError
from mlxlava.paths import cache_folder, shipped_weights_folders

# What pyproject.toml requires, and what its extras for users require. MLX has lines of its own.
# The names are here, since the metadata of an editable installation may be older than the source.
PACKAGES = ("av", "click", "imageio-ffmpeg", "numpy", "pillow", "rich")
EXTRA_PACKAGES = ("onnx", "matplotlib", "scipy", "tensorboardX", "textual-image", "aiohttp", "pygame-ce")
# Variables that change what the package or MLX does. Their values are no secrets.
_VARIABLES = re.compile(r"MLXLAVA_\w+|MLX_\w+|SDL_VIDEODRIVER|CUDA_VISIBLE_DEVICES|TMUX|SSH_CONNECTION")
_ONLY_WHETHER_SET = ("TMUX", "SSH_CONNECTION")  # they hold names and addresses
_SET_BY_US = (
    "MLX_ENABLE_TF32=0",
    "MLX_CONV_WINOGRAD_WORKING_SET=1",
)  # by backend/device.py, when it is loaded
_SECONDS_FOR_A_VERSION = 10.0


def machine_facts() -> dict[str, str]:
    """Names and texts that describe this machine, for ``mlxlava info`` and ``mlxlava check``.

    The home folder is written as ``~``, so that a report does not tell the user's name.
    """
    return {
        "mlxlava": f"{__version__} ({shorten_home(Path(__file__).parent)})",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        **_device_facts(),
        "packages": ", ".join(map(_name_with_version, PACKAGES)),
        "extras": ", ".join(map(_name_with_version, EXTRA_PACKAGES)),
        "ffmpeg": _ffmpeg_version(),
        **_compiler_facts(),
        "terminal": _describe_terminal(),
        "display": _describe_display(),
        "variables": " ".join(_set_variables()) or "none",
        "cache": _describe_cache(),
        "weights": ", ".join(path.name for path in shipped_weights_folders()) or "none",
    }


def shorten_home(path: Path) -> str:
    """The path, with the home folder as ``~``."""
    with contextlib.suppress(RuntimeError, ValueError):  # no home folder; not below it
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


def _device_facts() -> dict[str, str]:
    """MLX, the device and its memory; or why MLX cannot be loaded."""
    try:
        from mlxlava.backend import device_facts, memory_budget_gb
    except (UserError, OSError) as error:  # OSError: a library that the loader refuses
        return {"mlx": f"{_version('mlx')}, cannot be loaded: {error}"}
    return {**device_facts(), "memory budget": f"{memory_budget_gb():.1f} GB"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _name_with_version(package: str) -> str:
    return f"{package} {_version(package)}"


def _ffmpeg_version() -> str:
    """The version of the FFmpeg that writes files: imageio-ffmpeg's own, unless a variable names another."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_version())
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"none: {error}"


def _compiler_facts() -> dict[str, str]:
    """The compiler, on Linux, where ``mx.compile`` and our convolutions need one."""
    if not sys.platform.startswith("linux"):
        return {}
    try:
        ended = subprocess.run(
            ["g++", "--version"], capture_output=True, text=True, check=True, timeout=_SECONDS_FOR_A_VERSION
        )
        return {"compiler": ended.stdout.partition("\n")[0]}
    except (OSError, subprocess.SubprocessError):
        return {"compiler": "no g++"}


def _describe_terminal() -> str:
    names = (os.environ.get(name) for name in ("TERM", "TERM_PROGRAM", "LC_TERMINAL", "COLORTERM"))
    return ", ".join(name for name in names if name) or "none"


def _describe_display() -> str:
    if sys.platform == "darwin":
        return "the Mac's own"
    return " ".join(name for name in ("WAYLAND_DISPLAY", "DISPLAY") if os.environ.get(name)) or "none"


def _set_variables() -> list[str]:
    found = [
        f"{name}={'set' if name in _ONLY_WHETHER_SET else value}"
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name)
    ]
    return [each for each in found if each not in _SET_BY_US]


def _describe_cache() -> str:
    try:
        return shorten_home(cache_folder())
    except UserError as error:
        return str(error)
