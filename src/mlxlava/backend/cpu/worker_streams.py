"""Worker streams: on a Linux CPU one MLX stream for each core, on which chunks of a batch are computed.

MLX's CPU back end gives a stream one thread for all that it does. Only BLAS would take more, and then its
threads spin while everything else runs on one. So BLAS gets one thread, and the chunks take turns on the
worker streams (docs/decisions.md, "Side by side"). On a GPU and on macOS there is one stream, the device's.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mlxlava.backend.device import mx, on_cpu, on_gpu_path

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

# How many of a CPU's cores to use; all that the process may use when it is not set.
CORES_SWITCH = "MLXLAVA_CORES"

_CHUNK_PIXELS = 2**20  # of frames: 256 of 64×64


def _make_streams() -> list[Any]:
    """A stream for each core that may be used; none where one stream does (GPU, macOS, one core)."""
    if not on_cpu() or sys.platform == "darwin":
        return []
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(KeyError, ValueError):
        cores = min(cores, int(os.environ[CORES_SWITCH]))
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(cores)] if cores > 1 else []


_STREAMS = _make_streams()


def worker_streams() -> Sequence[Any]:
    """For ``mx.stream``, to be taken in turns: the worker streams; where there are none, the device."""
    return _STREAMS if _STREAMS and not on_gpu_path() else [mx.default_device()]


def map_chunks(function: Callable[[Chunk], Result], chunks: Sequence[Chunk]) -> list[Result]:
    """``function`` of each chunk; the chunks take turns on the worker streams, gradients included.

    Only the graph is built here. MLX lets a stream wait for another one whose results it needs.
    """
    if not _STREAMS or on_gpu_path() or len(chunks) == 1:
        return [function(chunk) for chunk in chunks]
    results = []
    for index, chunk in enumerate(chunks):
        with mx.stream(_STREAMS[index % len(_STREAMS)]):
            results.append(function(chunk))
    return results


def on_current_stream(function: Callable[..., Result]) -> Callable[..., Result]:
    """``function``, which computes on the stream that is current now, whenever it is called.

    For gradients: MLX asks for them later, when another stream may be the current one. So the chunks of a
    batch stay on the same cores in the backward pass.
    """
    stream = mx.default_stream(mx.default_device())

    def call(*arguments: Any) -> Result:
        with mx.stream(stream):
            return function(*arguments)

    return call


def chunk_count(items: int, pixels: int) -> int:
    """In how many chunks ``items`` of ``pixels`` each are best worked on; each chunk has one at least.

    On the CPU a chunk's arrays should stay in the cache from one pass to the next, and memory that is taken
    ahead of its use is in proportion to a chunk. A GPU wants all at once.
    """
    if on_gpu_path():
        return 1
    streams = max(len(_STREAMS), 1)
    wanted = -(-items * pixels // _CHUNK_PIXELS)
    return max(1, min(items, -(-wanted // streams) * streams))
