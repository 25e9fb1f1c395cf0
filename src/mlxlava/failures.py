"""Explains failures of MLX's device in plain words.

MLX reports them as a RuntimeError, whose text comes from Metal, from CUDA or from MLX itself. The patterns
here were taken from MLX's sources: device.cpp, allocator.cpp and compiled.cpp of its Metal back end,
utils.cpp and cublas_utils.cpp of its CUDA back end.
"""

from __future__ import annotations

import dataclasses
import re

# Texts of a device's failures begin with one of these patterns. Those of CUDA begin with the call:
# "cudaMalloc(&data, size) failed: …".
_DEVICE_FAILURE_PATTERN = re.compile(
    r"\[METAL\]|\[Metal::|\[metal::|\[malloc\]|\[compile\] Too many|\[conv\] A single unfolding row"
    r"|Failed to (load|compile)|[\w.:>-]+\(.*\) failed( with code)?: ",
    re.DOTALL,
)

_MAX_TEXT_CHARACTERS = 200  # characters of MLX's own text that are shown


@dataclasses.dataclass(frozen=True)
class _Cause:
    """A cause of failures, in plain words.

    Attributes:
        pattern: what is found in MLX's text.
        what: the cause.
        advice: what the user can do.
        less_work_helps: whether less work at once would help.
        out_of_memory: whether it is a lack of memory.
    """

    pattern: str
    what: str
    advice: str
    less_work_helps: bool = True
    out_of_memory: bool = False


_CAUSES = (  # the first whose pattern is found counts
    _Cause(
        r"OutOfMemory|Insufficient Memory|out of memory|Unable to allocate|OUT_OF_MEMORY|ALLOC_FAILED",
        "there was not enough memory for MLX's arrays",
        "close other programs that take memory, and try again",
        out_of_memory=True,
    ),
    _Cause(
        r"maximum allowed buffer size|maximum Metal buffer size|Resource limit",
        "an array was larger than this GPU allows, or there were too many of them",
        "work on less at once",
        out_of_memory=True,
    ),
    _Cause(
        r"Impacting ?Interactivity",
        "macOS stopped the GPU's work, since the display had to wait for it",
        "try again while the display is off or nothing else is shown",
    ),
    _Cause(
        r"Timeout|timed out|CallbackErrorHang|GPU Hang",
        "the GPU's work took longer than the system allows",
        "try again while the GPU has nothing else to do",
    ),
    _Cause(
        r"Innocent ?Victim|SubmissionsIgnored|victim of GPU error",
        "the system reset the GPU because of another error",
        "try again",
        less_work_helps=False,
    ),
    _Cause(
        r"Too many inputs/outputs|Unable to (build|load)|Failed to (load|compile)|nvrtc",
        "MLX could not make a kernel for this GPU",
        "report it, with the output of mlxlava info",
        less_work_helps=False,
    ),
    _Cause(r"", "the GPU failed", "try again, and report it if it fails again"),
)


@dataclasses.dataclass(frozen=True)
class DeviceFailureExplanation:
    """A failure of MLX's device.

    Attributes:
        what: the cause in plain words, with the beginning of MLX's own text.
        advice: what the user can do.
        less_work_helps: whether less work at once would help.
        out_of_memory: whether the cause was a lack of memory.
    """

    what: str
    advice: str
    less_work_helps: bool
    out_of_memory: bool = False


class DeviceFailed(Exception):
    """MLX's device failed during work that can be continued. The text says how (exit status 1).

    Attributes:
        out_of_memory: whether the cause was a lack of memory.
    """

    def __init__(self, text: str, *, out_of_memory: bool = False) -> None:
        super().__init__(text)
        self.out_of_memory = out_of_memory


# What MLX says when a kernel cannot be compiled on a Linux CPU, also when Ctrl-C has ended its compiler.
_COMPILER_FAILURE_PATTERN = re.compile(r"Could not load C\+\+|\[Compile::eval_cpu\]|Failed to compile")


def is_compiler_failure(error: BaseException) -> bool:
    """Whether an error is that MLX could not compile a kernel."""
    return isinstance(error, RuntimeError) and _COMPILER_FAILURE_PATTERN.search(str(error)) is not None


def explain_device_failure(error: BaseException) -> DeviceFailureExplanation | None:
    """Explain an error of MLX's device. Returns None for any other error."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, MemoryError):
        text = f"[malloc] Unable to allocate: {text or 'no memory'}"
    elif not isinstance(error, RuntimeError) or not _DEVICE_FAILURE_PATTERN.match(text):
        return None
    cause = next(each for each in _CAUSES if re.search(each.pattern, text))
    shown = text if len(text) <= _MAX_TEXT_CHARACTERS else text[:_MAX_TEXT_CHARACTERS] + " …"
    return DeviceFailureExplanation(
        f"{cause.what} ({shown})", cause.advice, cause.less_work_helps, cause.out_of_memory
    )
