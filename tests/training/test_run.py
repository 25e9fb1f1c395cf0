"""A run: it resumes exactly, stops cleanly, and never loses what is good."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlxlava.backend import Tree, arrays_by_name, mx, use_gpu_path
from mlxlava.config import Recipe, override, recipe_from_dict
from mlxlava.errors import UserError
from mlxlava.failures import DeviceFailed
from mlxlava.footage.dataset import Footage
from mlxlava.paths import checkpoint_folders, latest_checkpoint_folder
from mlxlava.rollout.weights import load_weights
from mlxlava.training.callbacks import Callbacks, StepReport
from mlxlava.training.checkpoint import load_checkpoint
from mlxlava.training.failures import Diverged, ProcessLost
from mlxlava.training.folder import make_run_folder
from mlxlava.training.loop import train
from mlxlava.training.memory_guard import MAX_SHARE_OF_LIMIT, MemoryGuard
from mlxlava.training.memory_plan import predict_peak_gb
from mlxlava.training.outcome import TrainedRun
from mlxlava.training.step import Trainer
from tests.conftest import EAGER

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("eager")]


def begin(run: Path, recipe: Recipe, footage: Footage) -> None:
    make_run_folder(run, recipe, footage, ["lamp.mov"], "mlxlava train lamp.mov", None)


def go(run: Path, recipe: Recipe, footage: Footage, **options: Any) -> TrainedRun:
    return train(run, recipe, footage, **options)


def state_of(run: Path, recipe: Recipe) -> Tree:
    latest = latest_checkpoint_folder(run)
    assert latest is not None
    return load_checkpoint(latest, Trainer(recipe, recipe.training.steps).init())[0]


def assert_equal(one: Tree, other: Tree) -> None:
    left, right = arrays_by_name(one), arrays_by_name(other)
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert np.array_equal(np.array(array), np.array(right[name])), name


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["tiny", "tiny_duralava"])
def test_a_resumed_run_gives_the_weights_of_an_unbroken_one(
    kind: str, request: pytest.FixtureRequest, footage: Footage, tmp_path: Path
) -> None:
    recipe = request.getfixturevalue(kind)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    begin(whole, recipe, footage)
    assert go(whole, recipe, footage).step == 6

    begin(broken, recipe, footage)
    with stopping_at(broken, 3):
        go(broken, recipe, footage)
    assert log_of(broken)[-1]["step"] == 3
    assert go(broken, recipe, footage).step == 6

    assert_equal(state_of(whole, recipe), state_of(broken, recipe))
    timed = ("seconds", "clips_per_second", "peak_mlx_gb", "peak_process_gb")
    for one, other in zip(log_of(whole), log_of(broken), strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


@contextlib.contextmanager
def stopping_at(run: Path, step: int) -> Iterator[None]:
    """Ctrl-C as soon as a step's batch is asked for; the step that runs is finished."""
    original = Footage.batch

    def batch(self: Footage, seed: int, index: int, *rest: Any) -> Any:
        if index == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, seed, index, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Footage, "batch", batch)
        yield


def test_a_lamp_stands_there_from_the_first_step(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    """G's background starts at the mean of the footage, and moves where the footage does."""
    begin(tmp_path, tiny, footage)
    state = state_of(tmp_path, tiny)
    mean = footage.frames.mean(0) / 255
    for tree in (state, state["ema"]):
        background = np.array(mx.sigmoid(tree["generator"]["background"]))
        assert np.abs(background - mean).max() < 1.5 / 255
        still = footage.frames.std(0) == 0
        gate = np.array(tree["generator"]["gate"])
        assert still.any() and (gate[still] == 0).all() and (gate[~still] > 0).all() and gate.max() == 1


def test_the_log_has_every_term_and_previews_show_lamps(
    tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    begin(tmp_path, tiny, footage)
    go(tmp_path, tiny, footage)
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for name in ("seconds", "loss_d", "loss_g", "state_mean", "state_spread", "clips_per_second"):
        assert name in lines[-1]
    assert "r1" in lines[2] and "r1" not in lines[3]
    sheet = Image.open(tmp_path / "previews/000004.png")
    # A row of real frames, the same drawn again, and four lamps, at six times; below three lines of text.
    rows, text = 16 + 16 + (4 * 18 - 2), 3 * 16
    assert sheet.size == (6 * 18 - 2, rows + text)
    pixels = np.asarray(sheet)
    assert np.array_equal(pixels[16:32, :16], footage.frames[footage.clip_starts(6)[0]])
    for top in (0, 32, 64):
        band = pixels[top : top + 16]
        assert band.max() > 180 > 60 > np.median(band)  # light letters on a dark ground
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["00000002", "00000004", "00000006"]


def test_log_lines_beyond_the_checkpoint_are_dropped_on_resume(
    tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    begin(tmp_path, tiny, footage)
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 9, "loss')
    go(tmp_path, tiny, footage)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("settings", [{"training.learning_rate": 1e30, "training.update_clipping": 0.0}])
def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(
    tiny: Recipe, footage: Footage, tmp_path: Path, settings: dict[str, Any]
) -> None:
    recipe = override(tiny, settings)
    begin(tmp_path, recipe, footage)
    with pytest.raises(Diverged, match=r"not finite at step \d.*00000000"):
        go(tmp_path, recipe, footage)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["00000000"]
    load_weights(tmp_path)


def test_a_run_starts_warm_from_other_weights(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    begin(tmp_path / "old", tiny, footage)
    go(tmp_path / "old", tiny, footage)
    old = load_weights(tmp_path / "old")
    make_run_folder(tmp_path / "new", tiny, footage, [], "", old.arrays)
    new = load_weights(tmp_path / "new")
    for name in ("background", "gate"):  # those are of the new footage
        assert np.allclose(old.arrays["generator"].pop(name), new.arrays["generator"].pop(name), atol=1e-5)
    assert_equal(new.arrays, old.arrays)

    wider = override(tiny, {"generator.widths": [10, 6]})
    with pytest.raises(UserError, match="--init has another generator"):
        make_run_folder(tmp_path / "wider", wider, footage, [], "", old.arrays)
    assert not (tmp_path / "wider").exists()


# --- on a GPU ---


def by_hand(recipe: Recipe, footage: Footage, parts: list[int]) -> Tree:
    """The run state after a step in each number of parts, with nothing but the trainer."""
    data, total = recipe.data, recipe.training.steps
    trainers = {
        count: Trainer(override(recipe, {"training.micro_batches": count}), total) for count in set(parts)
    }
    run = trainers[parts[0]].init()
    for index, count in enumerate(parts):
        frames, times = footage.batch(
            0, index, data.batch_size, data.seq_len, data.drawn_frames, recipe.encoder.context_frames
        )
        run, _ = trainers[count](run, mx.array(frames), mx.array(times), index)
        mx.eval(run)
    return run


@pytest.fixture
def plain(tiny: Recipe) -> Recipe:
    """Without a background, which a run takes from its footage and a trainer by itself does not."""
    return override(tiny, {"generator.background": False})


def test_measuring_the_first_steps_changes_nothing(
    plain: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with use_gpu_path():
        begin(tmp_path, plain, footage)
        before = (tmp_path / "config.json").read_bytes()
        go(tmp_path, plain, footage)
        assert_equal(state_of(tmp_path, plain), by_hand(plain, footage, [1] * 6))
    assert (tmp_path / "config.json").read_bytes() == before
    said = capsys.readouterr().err
    assert said.count("compiling kernels") == 3  # a line for each kind of step, and nothing of parts
    assert said.index("the first step takes") < said.index("with the discriminator takes")
    assert "gradient penalties takes longer" in said and "micro-batch" not in said


def test_nothing_is_measured_or_said_on_a_cpu(
    plain: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with use_gpu_path(False):
        begin(tmp_path, plain, footage)
        go(tmp_path, plain, footage, memory=1e-6)
    said = capsys.readouterr().err
    assert "compiling" not in said and "micro-batch" not in said


@pytest.mark.slow
def test_a_step_that_takes_too_much_makes_the_parts_smaller(
    plain: Recipe, footage: Footage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four clips, and a limit below what any step takes: from the first one on they are alone."""
    run, recipe = tmp_path / "run", override(plain, {"training.checkpoint_every": 100})
    with use_gpu_path():
        begin(run, recipe, footage)
        with stopping_at(run, 4):
            go(run, recipe, footage, memory=1e-4)
        said = capsys.readouterr().err
        assert said.count("from now on a batch is worked on in 4 micro-batches, not 1") == 1
        assert said.count("with one clip at a time already") == 1
        # A checkpoint of the step after which they changed, so that resuming goes on the same.
        assert [int(path.name) for path in checkpoint_folders(run)] == [0, 1, 4]
        changed = recipe_from_dict(json.loads((run / "config.json").read_text())["recipe"])
        assert changed == override(recipe, {"training.micro_batches": 4})
        assert not list(run.glob("*.tmp")) and not list(run.glob(".*.tmp"))
        go(run, changed, footage)
        assert_equal(state_of(run, recipe), by_hand(recipe, footage, [1, 4, 4, 4, 4, 4]))
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("wanted", [2, 4])
def test_the_next_smaller_parts_that_should_fit_are_taken(
    wanted: int, plain: Recipe, footage: Footage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step took so much more than predicted that, by as much more, just ``wanted`` parts fit."""
    fits = predict_peak_gb(override(plain, {"training.micro_batches": wanted}), gpu=True)
    off = 1.5
    limit = 1.001 * off * fits / MAX_SHARE_OF_LIMIT
    monkeypatch.setattr(
        "mlxlava.training.memory_guard.peak_held_memory_gb", lambda: off * predict_peak_gb(plain, gpu=True)
    )
    frames, times = footage.batch(0, 0, 4, 6, 3, 3)
    with use_gpu_path():
        trainer = Trainer(plain, 6)
        steps = MemoryGuard(plain, trainer, limit)
        batch = (mx.array(frames), mx.array(times))
        state = trainer.init()
        steps.before_step(0, state, *batch)
        steps.after_step(0, *trainer(state, *batch, 0))
    assert steps.recipe == override(plain, {"training.micro_batches": wanted})


@pytest.mark.parametrize("kind", ["tiny", "tiny_duralava"])
def test_the_kinds_of_steps_are_those_of_the_trainer(
    kind: str, request: pytest.FixtureRequest, footage: Footage, tmp_path: Path
) -> None:
    recipe = request.getfixturevalue(kind)
    begin(tmp_path, recipe, footage)
    go(tmp_path, recipe, footage)
    for line in log_of(tmp_path):
        assert Trainer(recipe, 6).kind_of_step(line["step"] - 1) == ("loss_d" in line, "r1" in line)


METAL = "[METAL] Command buffer execution failed: "
OUT_OF_MEMORY = METAL + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
FAILURES = {
    OUT_OF_MEMORY: "not enough memory",
    METAL + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).": (
        "display had to wait"
    ),
    METAL + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout).": "longer than",
    "[malloc] Unable to allocate 5435817984 bytes.": "not enough memory",
    "[metal::malloc] Attempting to allocate 9999999999 bytes which is greater than the maximum allowed "
    "buffer size of 5726623061 bytes.": "an array was larger",
    "[compile] Too many inputs/outputs fused in the Metal Compiled primitive which exhausted the available "
    "argument buffers for the kernel.": "could not make a kernel",
    "[metal::Device] Unable to build metal library from source\nprogram_source:1:1: error": (
        "could not make a kernel"
    ),
    "cudaMallocAsync(&data, size, stream) failed: out of memory": "not enough memory",
    "cudaStreamSynchronize(stream) failed: an illegal memory access was encountered": "the GPU failed",
    "cublasLtMatmul(handle, desc) failed with code: 13.": "the GPU failed",
}


@contextlib.contextmanager
def failing_at(step: int, text: str) -> Iterator[None]:
    """A trainer that raises in a step what MLX raises."""
    original = Trainer.__call__

    def call(self: Trainer, state: Tree, frames: mx.array, times: mx.array, index: int) -> Any:
        if index == step:
            raise RuntimeError(text)
        return original(self, state, frames, times, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__call__", call)
        yield


def micro_batches_of(run: Path) -> int:
    return recipe_from_dict(json.loads((run / "config.json").read_text())["recipe"]).training.micro_batches


@pytest.mark.parametrize("text", FAILURES)
def test_a_failure_of_the_gpu_says_what_it_was_and_what_helps(
    text: str, tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    begin(tmp_path, tiny, footage)
    with failing_at(0, text), pytest.raises(DeviceFailed) as raised:
        go(tmp_path, tiny, footage)
    said = str(raised.value)
    assert FAILURES[text] in said and text.split()[0] in said and "\n" not in said
    if any(cause in said for cause in ("not enough memory", "an array was larger")):
        assert micro_batches_of(tmp_path) == 4 and "--memory" not in said  # one clip at a time was tried too
    else:
        advises_less = re.search(r"--memory 0\.\d+", said) is not None and "fewer clips" in said
        assert micro_batches_of(tmp_path) == 1 and ("kernel" in said) != advises_less


@pytest.mark.parametrize(
    ("text", "parts"), [(OUT_OF_MEMORY, 4), ("cublasLtMatmul(handle, desc) failed with code: 13.", 1)]
)
def test_after_a_failure_of_the_gpu_a_run_goes_on_from_its_last_checkpoint(
    text: str, parts: int, tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    begin(tmp_path, tiny, footage)
    with failing_at(3, text), pytest.raises(DeviceFailed) as raised:
        go(tmp_path, tiny, footage)
    said = str(raised.value)
    assert f"at step 4; the last checkpoint is {tmp_path}/checkpoints/00000002" in said
    assert f"mlxlava train --resume -o {tmp_path}" in said
    assert micro_batches_of(tmp_path) == parts
    assert go(tmp_path, tiny, footage).step == 6


def test_it_is_not_another_process_that_is_gone(
    tiny: Recipe, footage: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of two processes: what the GPU says is told apart from what the connection says."""
    begin(tmp_path, tiny, footage)
    monkeypatch.setattr("mlxlava.training.signals.rank_count", lambda: 2)
    with failing_at(0, OUT_OF_MEMORY), pytest.raises(DeviceFailed):
        go(tmp_path, tiny, footage)
    with failing_at(0, "[ring] connection to a peer was lost"), pytest.raises(ProcessLost):
        go(tmp_path, tiny, footage)


def test_an_error_of_ours_is_not_explained_away(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    begin(tmp_path, tiny, footage)
    with failing_at(0, "[matmul] Last dimension of first input"), pytest.raises(RuntimeError, match="matmul"):
        go(tmp_path, tiny, footage)


def test_a_run_is_trained_by_one_process_at_a_time(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    begin(tmp_path, tiny, footage)
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            go(tmp_path, tiny, footage)
    assert go(tmp_path, tiny, footage).step == 6


def test_a_folder_that_is_taken_is_not_written_to(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    begin(tmp_path / "run", tiny, footage)
    with pytest.raises(UserError, match="--resume"):
        begin(tmp_path / "run", tiny, footage)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").touch()
    with pytest.raises(UserError, match="not a run"):
        begin(tmp_path / "photos", tiny, footage)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen/.DS_Store").touch()  # the Finder's: the folder was only looked at
    begin(tmp_path / "seen", tiny, footage)
    assert checkpoint_folders(tmp_path / "seen")


def test_tensorboard_gets_scalars_previews_and_states(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    begin(tmp_path, tiny, footage)
    go(tmp_path, tiny, footage, tensorboard=True)
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for tag in (b"loss/loss_d", b"preview", b"states"):
        assert tag in events


def test_callbacks_are_told_of_steps_previews_and_checkpoints(
    tiny: Recipe, footage: Footage, tmp_path: Path
) -> None:
    heard: list[tuple[str, int]] = []

    class Listener(Callbacks):
        def on_step(self, report: StepReport) -> None:
            assert report.total_steps == 6 and report.terms["motion_real"] > 0
            heard.append(("step", report.step))

        def on_checkpoint(self, step: int, folder: Path) -> None:
            assert load_checkpoint(folder, Trainer(tiny, 6).init())[1]["step"] == step
            heard.append(("checkpoint", step))

        def on_preview(self, step: int, sheet: np.ndarray, states: np.ndarray) -> None:
            assert np.array_equal(sheet, np.asarray(Image.open(tmp_path / f"previews/{step:06d}.png")))
            assert states.shape == (4, 8)
            heard.append(("preview", step))

    begin(tmp_path, tiny, footage)
    go(tmp_path, tiny, footage, callbacks=[Listener()])
    assert heard == [
        *(("step", 1), ("step", 2), ("checkpoint", 2)),
        *(("step", 3), ("step", 4), ("checkpoint", 4), ("preview", 4)),
        *(("step", 5), ("step", 6), ("checkpoint", 6), ("preview", 6)),
    ]


def test_the_log_is_never_behind_a_checkpoint(tiny: Recipe, footage: Footage, tmp_path: Path) -> None:
    """A process may be killed at any time: what a checkpoint holds has been logged before."""

    class Listener(Callbacks):
        def on_checkpoint(self, step: int, folder: Path) -> None:
            assert log_of(tmp_path)[-1]["step"] == step

    begin(tmp_path, tiny, footage)
    go(tmp_path, tiny, footage, callbacks=[Listener()])


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    tiny = [
        "generator.widths=[8, 8]",
        "discriminator.widths=[8, 8]",
        "data.lamp_minutes=1",
        "training.preview_every=2",
    ]
    command = [sys.executable, "-m", "mlxlava", "train", "-o", "run", "--size", "16", "--steps", "100000"]
    command += [word for setting in tiny for word in ("--set", setting)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **EAGER}, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 120
    while not (tmp_path / "run/previews/000002.png").exists() and time.monotonic() < give_up:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume -o run" in said
    latest = latest_checkpoint_folder(tmp_path / "run")
    assert latest is not None and int(latest.name) >= 2


def test_a_run_is_saved_when_its_terminal_is_gone(tmp_path: Path) -> None:
    settings = ["generator.widths=[8, 8]", "discriminator.widths=[8, 8]", "data.lamp_minutes=1"]
    command = [sys.executable, "-m", "mlxlava", "train", "-o", str(tmp_path / "run"), "--size", "16"]
    command += [word for setting in settings for word in ("--set", setting)]
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        os.execve(command[0], command, {**os.environ, **EAGER})
    shown, give_up = b"", time.monotonic() + 120
    while b"step 3/" not in shown and time.monotonic() < give_up:
        shown += os.read(terminal, 4096)
    os.close(terminal)  # as if the window was closed: SIGHUP, and nothing can be printed any more
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    latest = latest_checkpoint_folder(tmp_path / "run")
    assert latest is not None and int(latest.name) >= 3
