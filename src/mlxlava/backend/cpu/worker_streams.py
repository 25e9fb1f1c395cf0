"""Worker streams: on a Linux CPU, one MLX stream for each core.

They compute the chunks of a batch in parallel.

In MLX's CPU back end a stream has one thread. Only BLAS could use more threads, and these would idle in a
busy loop while everything else runs on one thread. So BLAS gets one thread, and the chunks are spread over
the worker streams (docs/decisions/025-worker-streams.md). On a GPU and on macOS there is one stream, that of
the device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mlxlava.backend.device import mx, on_cpu, on_gpu_path
from mlxlava.cores import core_limit

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

_MAX_CHUNK_PIXELS = 2**20  # pixels of a chunk: 256 frames of 64×64


def _make_streams() -> list[Any]:
    """A stream for each core that may be used; none where one stream is enough (GPU, macOS, one core)."""
    if not on_cpu() or sys.platform == "darwin":
        return []
    cores = len(os.sched_getaffinity(0))
    cores = min(cores, core_limit() or cores)
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(cores)] if cores > 1 else []


_WORKER_STREAMS = _make_streams()


def worker_streams() -> Sequence[Any]:
    """The worker streams, to be given to ``mx.stream`` in turns; the device where there are none."""
    return _WORKER_STREAMS if _WORKER_STREAMS and not on_gpu_path() else [mx.default_device()]


def map_chunks(function: Callable[[Chunk], Result], chunks: Sequence[Chunk]) -> list[Result]:
    """Apply ``function`` to each chunk. The chunks, and their gradients, are spread over the worker streams.

    Only the graph is built here. MLX lets a stream wait for another stream whose results it needs.
    """
    if not _WORKER_STREAMS or on_gpu_path() or len(chunks) == 1:
        return [function(chunk) for chunk in chunks]
    results = []
    for index, chunk in enumerate(chunks):
        with mx.stream(_WORKER_STREAMS[index % len(_WORKER_STREAMS)]):
            results.append(function(chunk))
    return results


def bind_to_current_stream(function: Callable[..., Result]) -> Callable[..., Result]:
    """Make ``function`` compute on the stream that is current now, whenever it is called.

    This is for gradients. MLX calls them later, when another stream may be current. Bound to its stream, the
    gradient of a chunk is computed on the same core as the chunk.
    """
    stream = mx.default_stream(mx.default_device())

    def call(*arguments: Any) -> Result:
        with mx.stream(stream):
            return function(*arguments)

    return call


def chunk_count(items: int, pixels: int) -> int:
    """The best number of chunks for ``items`` of ``pixels`` each. Each chunk has at least one item.

    On a CPU the arrays of a chunk should stay in the cache from one operation to the next. Small chunks also
    keep down the memory that MLX takes before it is needed. A GPU works on the whole batch at once.
    """
    if on_gpu_path():
        return 1
    streams = max(len(_WORKER_STREAMS), 1)
    wanted = -(-items * pixels // _MAX_CHUNK_PIXELS)
    return max(1, min(items, -(-wanted // streams) * streams))
