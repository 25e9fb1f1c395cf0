"""The measurements. Each runs in a process of its own, to which races.py or jobs.py sends requests.

    python -m mlxlava.bench.measures train '{"recipe": "lava", "size": 64, "seq_len": 20, "batch_size": 32}'

Each line on stdin is a request; its meaning depends on the measurement. Each answer is a line of JSON on
stdout, with ``seconds``, ``cpu_seconds`` and more.
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

from mlxlava.bench.harness import Answer, serve_requests
from mlxlava.config import Recipe, load_recipe, override

AnswerFunction = Callable[[str], Answer]

STEPS_OF_WHOLE_RUN = 10**6  # steps of the run that the measured training steps belong to
PLAY_FPS = 30.0
STEP_FPS = 15.0  # learned steps per second: every other frame is drawn from a state in between


def resized_recipe(recipe: str, size: int, seq_len: int, batch_size: int) -> Recipe:
    """A recipe of the package, with another size of frames, clips and batches."""
    settings = {"data.size": [size, size], "data.seq_len": seq_len, "data.batch_size": batch_size}
    return override(load_recipe(recipe), settings)


def random_batch(recipe: Recipe) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """A batch of noise for a training step: frames (B, V + K, H, W, 3) and their times (B, V + K)."""
    data, views = recipe.data, recipe.encoder.context_frames  # context frames come first
    count = data.drawn_frames or data.seq_len
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (data.batch_size, views + count, *data.size, 3), dtype=np.uint8)
    steps = np.tile(np.arange(data.seq_len, dtype=np.int32), (data.batch_size, 1))
    times = np.sort(rng.permuted(steps, axis=1)[:, :count], axis=1)
    seen = np.linspace(0, data.seq_len - 1, views, dtype=np.int32)
    return frames, np.concatenate([np.tile(seen, (data.batch_size, 1)), times], axis=1)


def _peak_memory_answer() -> Answer:
    from mlxlava.backend import peak_memory_gb

    peaks = peak_memory_gb()
    return {"peak_arrays_gb": peaks["mlx"], "peak_process_gb": peaks["process"]}


def training_step_timer(recipe: str, size: int, seq_len: int, batch_size: int) -> AnswerFunction:
    """Times a training step. Requests are ``alone``, ``plain`` or ``penalty``: the kind of step."""
    from mlxlava.backend import mx
    from mlxlava.training.step import Trainer

    settings = resized_recipe(recipe, size, seq_len, batch_size)
    frames, times = random_batch(settings)
    trainer = Trainer(settings, STEPS_OF_WHOLE_RUN)
    state = trainer.init()
    every = settings.loss.penalty_every
    # The kind of a step depends on its number (training/step.py).
    late = round(0.9 * STEPS_OF_WHOLE_RUN) // every * every
    number = {"alone": 1, "plain": late + 1, "penalty": late}

    def step(kind: str) -> Answer:
        nonlocal state
        began = time.perf_counter()
        state, terms = trainer(state, mx.array(frames), mx.array(times), number[kind])
        mx.eval(state, terms)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, **_peak_memory_answer()}

    return step


def _rollout_of_untrained_weights(recipe: str, size: int) -> Any:
    """A roll-out of untrained weights. It takes as long as one of trained weights."""
    from mlxlava.rollout.roll import Rollout
    from mlxlava.rollout.weights import Weights
    from mlxlava.training.checkpoint import playable_arrays
    from mlxlava.training.step import Trainer

    settings = resized_recipe(recipe, size, 20, 4)
    weights = Weights(settings, STEP_FPS, playable_arrays(Trainer(settings, 1).init()), {})
    return Rollout(weights, seed=0)


def _endless_frame_times() -> Iterator[float]:
    return (frame / PLAY_FPS for frame in itertools.count())


def live_frame_timer(recipe: str, size: int) -> AnswerFunction:
    """Times frames that are drawn one at a time, as for a screen. A request is a number of frames."""
    return _frame_timer(_rollout_of_untrained_weights(recipe, size).play(_endless_frame_times()))


def batched_frame_timer(recipe: str, size: int) -> AnswerFunction:
    """Times frames that are drawn in batches, as for a file, without encoding. A request is a number."""
    return _frame_timer(_rollout_of_untrained_weights(recipe, size).play_in_batches(_endless_frame_times()))


def _frame_timer(frames: Iterator[Any]) -> AnswerFunction:
    from mlxlava.backend import resident_memory_gb

    def answer(count: str) -> Answer:
        began = time.perf_counter()
        for _ in range(int(count)):
            next(frames)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "resident_gb": resident_memory_gb(), **_peak_memory_answer()}

    return answer


def preparing_timer(video: str, size: int) -> AnswerFunction:
    """Times preparing footage from a video. The request is empty."""
    from mlxlava.footage.prepare import prepare as prepare_footage

    def answer(request: str) -> Answer:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            footage = prepare_footage([video], Path(folder) / "footage", size=(size, size))
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "frames": len(footage.frames), **_peak_memory_answer()}

    return answer


def scoring_timer(frames: int) -> AnswerFunction:
    """Times scoring the shipped weights on the built-in lamp, which is drawn before the clock starts."""
    from mlxlava.evaluation.score import score as judge
    from mlxlava.evaluation.score import split_footage
    from mlxlava.footage.prepare import prepare_lamp
    from mlxlava.rollout.weights import load_weights

    weights = load_weights(None)
    # More than twice the frames are drawn, since every second block is held out.
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
        return {"seconds": time.perf_counter() - began, "frames": result["frames"], **_peak_memory_answer()}

    return answer


def peak_rate_timer(side: int, floats: int) -> AnswerFunction:
    """Times large matrix products, and sums that read and write memory: the best rates of MLX.

    Both use all cores, as training does, with one chunk for each worker stream. Requests are ``matmul`` or
    ``copy``.
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


MEASURES: dict[str, Callable[..., AnswerFunction]] = {
    "train": training_step_timer,
    "live": live_frame_timer,
    "batched": batched_frame_timer,
    "prepare": preparing_timer,
    "score": scoring_timer,
    "rates": peak_rate_timer,
}


def add_processor_time(answer_function: AnswerFunction) -> AnswerFunction:
    """Add ``cpu_seconds`` of all threads to each answer. Other work on the machine changes these less."""

    def timed(request: str) -> Answer:
        began = time.process_time()
        found = answer_function(request)
        return {**found, "cpu_seconds": time.process_time() - began}

    return timed


if __name__ == "__main__":
    kind, arguments = sys.argv[1:]
    serve_requests(lambda: add_processor_time(MEASURES[kind](**json.loads(arguments))))
