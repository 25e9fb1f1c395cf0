"""The training loop: batches in, log, previews and checkpoints out; stops cleanly and resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import math
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

from mlxlava.backend import (
    Tree,
    describe,
    limit_memory,
    mx,
    named_arrays,
    on_gpu_path,
    peak_memory,
    queue,
    tree_map,
)
from mlxlava.backend.ranks import any_rank, from_first, rank, ranks
from mlxlava.config import Recipe, recipe_to_dict
from mlxlava.console import clock, progress, say
from mlxlava.errors import UserError
from mlxlava.failures import DeviceFailed, explain
from mlxlava.footage.prepared import Footage
from mlxlava.models.sheet import preview, preview_columns
from mlxlava.models.storage import FORMAT, find_non_finite
from mlxlava.paths import checkpoints, latest_checkpoint, names_in, read_json
from mlxlava.training.checkpoint import load_checkpoint, playable, save_checkpoint
from mlxlava.training.first_steps import FirstSteps
from mlxlava.training.plan import memory_for_more_parts
from mlxlava.training.step import Trainer

_LOOKED_AT = 1000  # frames, at most, for G's background
_MOVES = 0.2  # of the largest deviation: pixels that change more are wholly free to
_GRACE = 5.0  # seconds, beyond three steps, that a process waits for others before it gives up


class Diverged(Exception):
    """A loss, a state or a weight is not finite any more; the checkpoints before stay."""


class Alone(Exception):
    """Another process of the run is gone; the checkpoints before stay."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: at which step, after how many seconds of training, and by which signal if any."""

    step: int
    seconds: float
    signal: int | None


def count_steps(recipe: Recipe, footage: Footage) -> int:
    """Training steps that the recipe asks for; an epoch sees as many frames as the footage has."""
    training, data = recipe.training, recipe.data
    if training.steps:
        return training.steps
    clips = len(footage.frames) / data.seq_len
    return max(1, math.ceil(training.epochs * clips / data.batch_size))


def start_run(
    run: Path, recipe: Recipe, footage: Footage, sources: list[str], command: str, warm: Tree | None
) -> None:
    """Make the folder of a new run, with its config and its state at step 0; on the first rank only.

    Raises:
        UserError: the folder is a run already or holds something else, the footage is shorter than a
            clip, or ``warm``, the arrays of weights, is of other networks than the recipe.
    """
    if rank():
        return
    if checkpoints(run):
        raise UserError(f"train: {run} is a run already; add --resume to go on, or give another -o")
    if names_in(run) - {"config.json", "checkpoints"}:
        raise UserError(f"train: {run} holds something that is no run; give another -o")
    footage.require(recipe.data.seq_len)
    total = count_steps(recipe, footage)
    state = Trainer(recipe, total).init()
    if warm is not None:
        _warm_start(state, warm)
    if recipe.generator.background:
        _set_background(state, footage)
    config = {
        "format": FORMAT,
        "step_fps": footage.step_fps,
        "recipe": recipe_to_dict(recipe),
        "total_steps": total,
        "footage": {
            "sources": sources,
            "prepared": str(footage.path.resolve()),
            "frames": len(footage.frames),
            "key": footage.key,
        },
        "command": command,
        "machine": {"system": platform.platform(), **describe()},
    }
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"train: cannot write {run}: {error.strerror}") from error
    write_config(run, config)
    save_checkpoint(run, state, {"step": 0, "seconds": 0.0}, recipe.training.keep_checkpoints)


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    """Write the config of a run: the new one whole, or the old one stays.

    Raises:
        UserError: it cannot be written.
    """
    path = run / "config.json"
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise UserError(f"train: cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def change_recipe(run: Path, recipe: Recipe) -> None:
    """Let a run be gone on with by another recipe, one that its checkpoints fit; on the first rank only."""
    if rank() == 0:
        write_config(run, {**read_json(run / "config.json", "run"), "recipe": recipe_to_dict(recipe)})


def _set_background(state: Tree, footage: Footage) -> None:
    """Let G's background be the mean of the footage, and let it move where the footage does.

    Glass and room stand there from the first step, and stay as they are where nothing ever changed.
    """
    every = -(-len(footage.frames) // _LOOKED_AT)
    some = footage.frames[::every].astype(np.float32) / 255
    mean, deviation = some.mean(axis=0, dtype=np.float64), some.std(axis=0, dtype=np.float64)
    mean = np.clip(mean, 1 / 255, 1 - 1 / 255)
    gate = np.minimum(1, deviation / max(_MOVES * float(deviation.max()), 1e-6))
    for tree in (state, state["ema"]):
        tree["generator"]["background"] = mx.array(np.log(mean / (1 - mean)).astype(np.float32))
        tree["generator"]["gate"] = mx.array(gate.astype(np.float32))


def _warm_start(state: Tree, warm: Tree) -> None:
    """Put the G and R of other weights into a new run state."""
    for part in ("generator", "dynamics"):
        have, want = _shapes(warm[part]), _shapes(state[part])
        for name in sorted(want.keys() | have.keys()):
            if have.get(name) != want.get(name):
                raise UserError(
                    f"train: --init has another {part}: {name} is {have.get(name, 'missing')} there and "
                    f"{want.get(name, 'missing')} in the recipe"
                )
        for tree in (state, state["ema"]):
            # Copies: one array at two places of the run state could not be given away by a step.
            tree[part] = _copy(warm[part])
        state["stats"][part] = _copy(warm["stats"][part])


def train(
    run: Path,
    recipe: Recipe,
    footage: Footage,
    *,
    minutes: float | None = None,
    memory: float | None = None,
    tensorboard: bool = False,
) -> Outcome:
    """Train a run on from its latest checkpoint until its steps, its minutes or a signal end it.

    What it learns is a function of the recipe and the footage alone: stopping and going on gives the
    weights that an unbroken run gives.

    Args:
        run: folder made by :func:`start_run`.
        recipe: the run's recipe.
        footage: the run's footage.
        minutes: stop after so many minutes of this call.
        memory: GB for MLX's buffers, its cache included; what suits the device when None.
        tensorboard: also write events to ``tensorboard/`` in the run.

    Raises:
        Alone: another process of the run is gone.
        DeviceFailed: MLX's device failed, for example for lack of memory.
        Diverged: something is not finite any more.
        UserError: something cannot be read or written.
    """
    limit = limit_memory(memory)
    data, training = recipe.data, recipe.training
    share, rest = divmod(data.batch_size, ranks())
    if rest or share % training.micro_batches:
        raise UserError(
            f"train: a batch of {data.batch_size} clips cannot be shared by {ranks()} processes"
            f" of {training.micro_batches} parts each; give another --batch-size"
        )
    mine = slice(rank() * share, (rank() + 1) * share)
    writes = rank() == 0
    trainer, state, start, before = _take_up(run, recipe)
    total = trainer.total_steps
    steps = FirstSteps(recipe, trainer, limit)
    saved, step = start, start
    began = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - began

    def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
        views = recipe.encoder.views
        return footage.batch(
            training.seed, index, data.batch_size, data.seq_len, data.drawn_frames, views, mine
        )

    def save(state: Tree) -> None:
        nonlocal saved
        if (bad := find_non_finite(state)) is not None:
            raise Diverged(_diverged(run, bad, step))
        if writes:
            save_checkpoint(run, state, {"step": step, "seconds": seconds()}, training.keep_checkpoints)
        saved = step

    with contextlib.ExitStack() as stack:
        if writes:
            stack.enter_context(_lock(run))
        log = stack.enter_context(_open_log(run / "log.jsonl", start)) if writes else io.StringIO()
        board = None
        if tensorboard and writes:
            board = stack.enter_context(_open_board(run / "tensorboard", start))
        update = stack.enter_context(progress("train"))
        stop = stack.enter_context(_stop_signals())
        pool = stack.enter_context(ThreadPoolExecutor(1))
        stack.enter_context(_end_when_alone(run, stop))
        stack.enter_context(_tell_failures(run, steps, lambda: step))

        # Terms are read one step late: the device has the next step to work on meanwhile.
        def report(index: int, terms: dict[str, mx.array]) -> None:
            values = {name: float(value) for name, value in terms.items()}
            bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
            if bad is not None:
                raise Diverged(_diverged(run, bad, index + 1))
            pace = (index + 1 - start) / (time.monotonic() - began)
            line = {"step": index + 1, "seconds": round(seconds(), 3), **values}
            line |= {"clips_per_second": pace * data.batch_size}
            line |= {f"peak_{name}_gb": round(value, 3) for name, value in peak_memory().items()}
            log.write(json.dumps(line) + "\n")
            left = (total - index - 1) / pace
            if minutes is not None:
                left = min(left, max(0.0, minutes * 60 - (time.monotonic() - began)))
            gone = time.monotonic() - began
            update(gone, gone + left, _describe(line, total, left))
            if board is not None:
                _show_on_board(board, index + 1, values)

        pending: tuple[int, dict[str, mx.array]] | None = None
        upcoming = pool.submit(batch, start)
        for index in range(start, total):
            over = minutes is not None and time.monotonic() - began >= minutes * 60
            if any_rank(stop.signal is not None or over):
                break
            stepping = time.monotonic()
            frames, times = upcoming.result()
            upcoming = pool.submit(batch, index + 1)
            state, terms = steps(state, mx.array(frames), mx.array(times), index)
            queue(state, terms)
            step = index + 1
            if pending is not None:
                report(*pending)
            pending = (index, terms)
            stop.longest = max(stop.longest, time.monotonic() - stepping)
            # From a checkpoint here on, a run that is gone on with works in the same parts as this one.
            in_other_parts = steps.recipe is not recipe
            keeps = step % training.checkpoint_every == 0 or in_other_parts
            if keeps or step % training.preview_every == 0 or step == total:
                report(*pending)
                pending = None
                log.flush()
                if keeps:
                    save(state)
                if in_other_parts:
                    recipe = steps.recipe
                    change_recipe(run, recipe)
                if writes and (step % training.preview_every == 0 or step == total):
                    sheet = preview(recipe, playable(state), _real_row(recipe, footage))
                    _write_picture(run / "previews" / f"{step:06d}.png", sheet)
                    if board is not None:
                        board.add_image("preview", sheet, step, dataformats="HWC")
                        board.add_histogram("states", np.array(state["carried"]), step)
        if pending is not None:
            report(*pending)
        if step != saved:
            save(state)
    return Outcome(step, seconds(), stop.signal)


def _take_up(run: Path, recipe: Recipe) -> tuple[Trainer, Tree, int, float]:
    """The trainer of a run, its state, step and seconds at the latest checkpoint; the first rank reads."""
    total = step = 0
    seconds, found = 0.0, None
    if rank() == 0:
        total = int(read_json(run / "config.json", "run")["total_steps"])
        found = latest_checkpoint(run)
        if found is None:
            raise UserError(f"train: {run} has no checkpoint to resume from; start it anew with another -o")
    total = int(from_first(mx.array(total)).item())
    trainer = Trainer(recipe, total)
    state = trainer.init()
    if found is not None:
        state, kept = load_checkpoint(found, state)
        step, seconds = int(kept["step"]), float(kept["seconds"])
    state, at = from_first((state, mx.array(step)))
    return trainer, state, int(at.item()), seconds


@contextlib.contextmanager
def _end_when_alone(run: Path, stop: _Stop) -> Iterator[None]:
    """Say it in one line where another process is gone, and end.

    MLX tells it by a RuntimeError, or now and then waits for ever. mlx.launch sends SIGTERM then; a
    process that waits inside MLX cannot run a signal's handler, but a thread can see that it came.
    """
    if ranks() == 1:
        yield
        return

    def sentence() -> str:
        last = latest_checkpoint(run)
        kept = f"go on from {last} with --resume" if last else "the first process has the checkpoints"
        return f"train: another process of this run is gone, so it stopped; {kept}"

    over = threading.Event()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        ours.recv(1)  # a signal's number, or nothing when all is over
        if not over.wait(_GRACE + 3 * stop.longest):
            say(f"mlxlava: {sentence()}")
            os._exit(1)

    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        raise Alone(sentence()) from error
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        theirs.close()


@contextlib.contextmanager
def _tell_failures(run: Path, steps: FirstSteps, step: Callable[[], int]) -> Iterator[None]:
    """Say it in one line where MLX's device failed: what it was, and how to go on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        failure = explain(error)
        if failure is None:
            raise
        last = latest_checkpoint(run)
        if last is None:
            raise DeviceFailed(
                f"train: {failure.what} at step {step() + 1}; the first process has the checkpoints, "
                "and all of them are needed to go on with --resume"
            ) from error
        less = memory_for_more_parts(steps.recipe, ranks(), gpu=on_gpu_path()) if failure.too_much else None
        how = f" --memory {less:g}, which works on fewer clips at a time" if less else f"; {failure.advice}"
        raise DeviceFailed(
            f"train: {failure.what} at step {step() + 1}; the last checkpoint is {last}; "
            f"go on: mlxlava train --resume -o {run}{how}"
        ) from error


@contextlib.contextmanager
def _lock(run: Path) -> Iterator[None]:
    """Hold the run: two processes that train it would write over one another."""
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context((run / "lock").open("w", encoding="utf-8"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = "is being trained by another process; wait for it, or stop it"
            raise UserError(f"train: {run} {what}") from error
        except OSError as error:
            raise UserError(f"train: cannot write {run}: {error.strerror}") from error
        yield


class _Stop:
    """Which signal asked to stop, if any; and how long the longest step took, seconds."""

    signal: int | None = None
    longest = 0.0


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request; the second one acts at once."""
    stop = _Stop()
    old: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()
        say("train: stopping after this step (once more to stop at once, without saving)")

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_IGN:  # nohup
                continue
            old[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


def _diverged(run: Path, name: str, step: int) -> str:
    last = latest_checkpoint(run)
    kept = f"the last good checkpoint is {last}" if last else "there is no good checkpoint"
    return (
        f"train: {name} is not finite at step {step}, so the run stopped; {kept}; "
        f"start again from it with --init {run} and a lower training.learning_rate"
    )


def _describe(line: Mapping[str, Any], total: int, left: float) -> str:
    """The line that stands beside the bar."""
    moved = line["motion_drawn"] / max(line["motion_real"], 1e-9)
    losses = f"D {line['loss_d']:.2f} G {line['loss_g']:.2f} · " if "loss_d" in line else ""
    if "reconstruction" in line:
        losses += f"again {line['reconstruction']:.1f} · "
    return (
        f"step {line['step']}/{total} · {losses}state "
        f"{line['state_mean']:+.2f} ± {line['state_std']:.2f}, spread {line['state_spread']:.2f} · "
        f"motion {moved:.1f}× · {line['clips_per_second']:.1f} clips/s · "
        f"{line['peak_process_gb']:.1f} GB · {clock(left)} left"
    )


# --- log and pictures ---


@contextlib.contextmanager
def _open_log(path: Path, step: int) -> Iterator[io.TextIOWrapper]:
    """The log, to be gone on with after ``step``; what a broken run wrote beyond it is dropped."""
    try:
        kept = []
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError):  # a line that was cut off
                    if json.loads(text)["step"] <= step:
                        kept.append(text + "\n")
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(kept), encoding="utf-8")
        draft.replace(path)
        with path.open("a", encoding="utf-8") as log:
            yield log
    except OSError as error:
        raise UserError(f"train: cannot write {path}: {error.strerror}; the checkpoints are kept") from error


def _real_row(recipe: Recipe, footage: Footage) -> np.ndarray:
    """The real frames (C, H, W, 3) of the first row of a preview."""
    start = footage.clip_starts(recipe.data.seq_len)[0]
    columns, gap = preview_columns(recipe)
    return footage.frames[start : start + columns * gap : gap]


def _write_picture(path: Path, picture: np.ndarray) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise UserError(f"train: cannot write {path}: {error}; the checkpoints are kept") from error


@contextlib.contextmanager
def _open_board(folder: Path, step: int) -> Iterator[Any]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError('train: TensorBoard needs its extra; install "mlxlava[tensorboard]"') from error
    board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    try:
        yield board
    finally:
        board.close()


def _show_on_board(board: Any, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        group = name.partition("_")[0] if "_" in name else "penalty"
        board.add_scalar(f"{group}/{name}", value, step)


def _shapes(tree: Tree) -> dict[str, str]:
    return {name: "×".join(map(str, array.shape)) for name, array in named_arrays(tree).items()}


def _copy(tree: Tree) -> Tree:
    copied: Tree = tree_map(mx.array, tree)
    return copied
