"""What went wrong when MLX's device failed, in plain words.

MLX tells all of it as a RuntimeError, whose text comes from Metal, from CUDA or from MLX itself. The texts
are those of MLX's sources: device.cpp, allocator.cpp and compiled.cpp of its Metal back end, utils.cpp and
cublas_utils.cpp of its CUDA back end.
"""

from __future__ import annotations

import dataclasses
import re

# Texts of a device's failures begin so. CUDA's begin with the call: "cudaMalloc(&data, size) failed: …".
_DEVICE = re.compile(
    r"\[METAL\]|\[Metal::|\[metal::|\[malloc\]|\[compile\] Too many|\[conv\] A single unfolding row"
    r"|Failed to (load|compile)|[\w.:>-]+\(.*\) failed( with code)?: ",
    re.DOTALL,
)

# The first pattern that is found says what it was; behind it stand what to do, and whether less work at once
# would help.
_CAUSES = (
    (
        r"OutOfMemory|Insufficient Memory|out of memory|Unable to allocate|OUT_OF_MEMORY|ALLOC_FAILED",
        "there was not enough memory for MLX's arrays",
        "close other programs that take memory, and try again",
        True,
    ),
    (
        r"maximum allowed buffer size|maximum Metal buffer size|Resource limit",
        "an array was larger than this GPU allows, or there were too many of them",
        "work on less at once",
        True,
    ),
    (
        r"Impacting ?Interactivity",
        "macOS stopped the GPU's work, since the display had to wait for it",
        "try again while the display is off or nothing else is shown",
        True,
    ),
    (
        r"Timeout|timed out|CallbackErrorHang|GPU Hang",
        "the GPU's work took longer than the system allows",
        "try again while the GPU has nothing else to do",
        True,
    ),
    (
        r"Innocent ?Victim|SubmissionsIgnored|victim of GPU error",
        "the system reset the GPU because of another error",
        "try again",
        False,
    ),
    (
        r"Too many inputs/outputs|Unable to (build|load)|Failed to (load|compile)|nvrtc",
        "MLX could not make a kernel for this GPU",
        "report it, with the output of mlxlava info",
        False,
    ),
    (r"", "the GPU failed", "try again, and report it if it fails again", True),
)
_LONGEST = 200  # characters of MLX's own text that are shown


@dataclasses.dataclass(frozen=True)
class Failure:
    """A failure of MLX's device.

    Attributes:
        what: what it was, in plain words, with the beginning of MLX's own text.
        advice: what to do about it.
        too_much: whether less work at once would help.
    """

    what: str
    advice: str
    too_much: bool


class DeviceFailed(Exception):
    """MLX's device failed during work that can be gone on with; the text says how (exit 1)."""


def explain(error: BaseException) -> Failure | None:
    """What an error of MLX's device means; None for any other error."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, MemoryError):
        text = f"[malloc] Unable to allocate: {text or 'no memory'}"
    elif not isinstance(error, RuntimeError) or not _DEVICE.match(text):
        return None
    what, advice, too_much = next(cause[1:] for cause in _CAUSES if re.search(cause[0], text))
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    return Failure(f"{what} ({shown})", advice, too_much)
