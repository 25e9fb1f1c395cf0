"""Training steps of the peer in PyTorch, in a process of its own that ``mlxlava.bench.races`` starts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mlxlava.bench.harness import Answer, cores_to_use, serve_requests
from mlxlava.bench.measures import AnswerFunction, random_batch, resized_recipe


def peer(
    recipe: str, size: int, seq_len: int, batch_size: int, device: str, channels_last: bool, compiled: bool
) -> AnswerFunction:
    """The peer's training steps, on the same data; asked as ``measures.train`` is."""
    from benchmarks import peer_torch  # late: an error in importing PyTorch is answered as well

    if device == "cpu":
        peer_torch.torch.set_num_threads(cores_to_use())
    frames, times = random_batch(resized_recipe(recipe, size, seq_len, batch_size))
    options: dict[str, Any] = {"size": (size, size), "seq_len": seq_len, "batch_size": batch_size}
    options |= {"device": device, "channels_last": channels_last, "compiled": compiled}
    run: Callable[[str], dict[str, float]]
    if recipe == "duralava":
        step = peer_torch.make_step(**options)

        def run(kind: str) -> dict[str, float]:
            return step(frames)
    else:
        lava_step, drawn = peer_torch.make_lava_step(**options), np.ascontiguousarray(times[:, -3:])

        def run(kind: str) -> dict[str, float]:
            return lava_step(frames, drawn, kind)

    def answer(kind: str) -> Answer:
        began = time.perf_counter()
        run(kind)
        seconds = time.perf_counter() - began
        peaks = {f"peak_{name}_gb": gb for name, gb in peer_torch.peak_memory_gb(device).items()}
        return {"seconds": seconds, **peaks}

    return answer


if __name__ == "__main__":
    serve_requests(lambda: peer(**json.loads(sys.argv[1])))
