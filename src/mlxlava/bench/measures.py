"""What is measured, one thing to a process: ``suite.py`` starts this module and asks.

    python -m mlxlava.bench.measures train '{"recipe": "lava", "size": 64, "seq_len": 20, "batch_size": 32}'

Then a line on stdin for each measurement (what it says depends on what is measured), and a line of JSON
with ``seconds``, ``cpu_seconds`` and more on stdout.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlxlava.bench.harness import Answer, serve
from mlxlava.config import Recipe, load_recipe, override

Answering = Callable[[str], Answer]

TOTAL_STEPS = 10**6  # of the run that training steps are taken from
PLAY_FPS = 30.0
STEP_FPS = 15.0  # learned steps a second: every other frame is drawn from a state in between


def sized(recipe: str, size: int, seq_len: int, batch_size: int) -> Recipe:
    """A recipe that comes with the package, for frames, clips and batches of another size."""
    settings = {"data.size": [size, size], "data.seq_len": seq_len, "data.batch_size": batch_size}
    return override(load_recipe(recipe), settings)


def random_batch(recipe: Recipe) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Frames (B, V + K, H, W, 3) and their times (B, V + K), as training takes them, of noise."""
    data, views = recipe.data, recipe.encoder.context_frames  # frames to encode come first
    count = data.drawn_frames or data.seq_len
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (data.batch_size, views + count, *data.size, 3), dtype=np.uint8)
    steps = np.tile(np.arange(data.seq_len, dtype=np.int32), (data.batch_size, 1))
    times = np.sort(rng.permuted(steps, axis=1)[:, :count], axis=1)
    seen = np.linspace(0, data.seq_len - 1, views, dtype=np.int32)
    return frames, np.concatenate([np.tile(seen, (data.batch_size, 1)), times], axis=1)


def _peaks() -> Answer:
    from mlxlava.backend import peak_memory

    peaks = peak_memory()
    return {"peak_arrays_gb": peaks["mlx"], "peak_process_gb": peaks["process"]}


def train(recipe: str, size: int, seq_len: int, batch_size: int) -> Answering:
    """Training steps; asked for ``alone``, ``plain`` or ``penalty``."""
    from mlxlava.backend import mx
    from mlxlava.training.step import Trainer

    settings = sized(recipe, size, seq_len, batch_size)
    frames, times = random_batch(settings)
    trainer = Trainer(settings, TOTAL_STEPS)
    state = trainer.init()
    every = settings.loss.penalty_every
    # The number of a step decides what is in it (step.py).
    late = round(0.9 * TOTAL_STEPS) // every * every
    number = {"alone": 1, "plain": late + 1, "penalty": late}

    def step(kind: str) -> Answer:
        nonlocal state
        began = time.perf_counter()
        state, terms = trainer(state, mx.array(frames), mx.array(times), number[kind])
        mx.eval(state, terms)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, **_peaks()}

    return step


def _rollout(recipe: str, size: int) -> Any:
    """A roll-out of fresh weights; they take as long as learned ones."""
    from mlxlava.rollout.roll import Rollout
    from mlxlava.rollout.weights import Weights
    from mlxlava.training.checkpoint import playable
    from mlxlava.training.step import Trainer

    settings = sized(recipe, size, 20, 4)
    weights = Weights(settings, STEP_FPS, playable(Trainer(settings, 1).init()), {})
    return Rollout(weights, seed=0)


def _clock() -> Iterator[float]:
    return (frame / PLAY_FPS for frame in itertools.count())


def live(recipe: str, size: int) -> Answering:
    """Frames one at a time, as a screen shows them; asked for a number of them."""
    return _played(_rollout(recipe, size).play(_clock()))


def batched(recipe: str, size: int) -> Answering:
    """Frames many at a time, as for a file but without encoding; asked for a number of them."""
    return _played(_rollout(recipe, size).film(_clock()))


def _played(frames: Iterator[Any]) -> Answering:
    from mlxlava.backend import resident_memory

    def answer(count: str) -> Answer:
        began = time.perf_counter()
        for _ in range(int(count)):
            next(frames)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "resident_gb": resident_memory(), **_peaks()}

    return answer


def prepare(video: str, size: int) -> Answering:
    """A video made into footage for training, each time anew."""
    from mlxlava.footage.prepare import prepare as prepare_footage

    def answer(request: str) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            footage = prepare_footage([video], Path(folder) / "footage", size=(size, size))
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "frames": len(footage.frames), **_peaks()}

    return answer


def score(frames: int) -> Answering:
    """The shipped weights scored on the built-in lamp, which is drawn before the clock starts."""
    from mlxlava.evaluation.score import score as judge
    from mlxlava.evaluation.score import split_footage
    from mlxlava.footage.prepare import prepare_lamp
    from mlxlava.rollout.weights import load_weights

    weights = load_weights(None)
    # Twice the frames: every second block of them is held out.
    minutes = 2.5 * frames / weights.step_fps / 60
    footage = prepare_lamp(
        None,
        size=weights.recipe.data.size,
        minutes=minutes,
        fps=weights.step_fps,
        every_nth=1,
        seed=0,
        theme=weights.recipe.data.lamp_theme,
    )
    real = split_footage(footage, None, frames)

    def answer(request: str) -> Answer:
        began = time.perf_counter()
        result = judge(weights, real)[0]
        return {"seconds": time.perf_counter() - began, "frames": result["frames"], **_peaks()}

    return answer


def rates(side: int, floats: int) -> Answering:
    """What MLX reaches at its best: large matrix products, and sums that read and write.

    Both on all cores, as training is: one chunk for each worker stream.
    """
    from mlxlava.backend import mx
    from mlxlava.backend.cpu.worker_streams import map_chunks, worker_streams

    streams = len(worker_streams())
    b = mx.random.normal((side, side))
    rows = [mx.random.normal((side, side)) for _ in range(streams)]
    pieces = [mx.zeros((floats,)) for _ in range(streams)]
    mx.eval(rows, b, pieces)

    def answer(request: str) -> Answer:
        began = time.perf_counter()
        if request == "matmul":
            mx.eval(map_chunks(lambda chunk: chunk @ b, rows))
        else:
            mx.eval(map_chunks(lambda chunk: chunk + 1, pieces))
        return {"seconds": time.perf_counter() - began}

    return answer


MEASURES: dict[str, Callable[..., Answering]] = {
    measure.__name__: measure for measure in (train, live, batched, prepare, score, rates)
}


def with_processor_time(answer: Answering) -> Answering:
    """Add ``cpu_seconds``, which all threads spent on it: other work on the machine changes that less."""

    def timed(request: str) -> Answer:
        began = time.process_time()
        found = answer(request)
        return {**found, "cpu_seconds": time.process_time() - began}

    return timed


if __name__ == "__main__":
    kind, arguments = sys.argv[1:]
    serve(lambda: with_processor_time(MEASURES[kind](**json.loads(arguments))))
