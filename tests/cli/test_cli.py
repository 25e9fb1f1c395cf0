"""The commands as a user meets them: help, good endings, and one clear line for every mistake."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from mlxlava.backend import mx, on_gpu_path, use_gpu_path
from mlxlava.cli import cli, main
from mlxlava.config import Recipe, recipe_from_dict
from mlxlava.footage import simulated_lamp
from mlxlava.playback.writers import WRITER_OF_FORMAT, open_writer
from mlxlava.training.memory_plan import gigabytes_for_more_micro_batches
from mlxlava.training.step import Trainer
from tests.conftest import run_command

ROOT = Path(__file__).parents[2]
FOOTAGE_SIZE = (64, 64)
TINY = (
    "--set=generator.widths=[8, 8]",
    "--set=discriminator.widths=[8, 8]",
    "--set=dynamics.hidden=[8]",
    "--set=discriminator.hidden=[8]",
    "--size=16",
    "--seq-len=8",
    "--batch-size=2",
)

Run = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("eager")

needs_score = pytest.mark.skipif(
    None in (find_spec("matplotlib"), find_spec("scipy")), reason="needs the extra `score`"
)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Runs `mlxlava …` in tmp_path; gives the exit status and what was said on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def call(*arguments: str) -> tuple[int, str]:
        status, _, err = run_command(monkeypatch, capsys, *arguments)
        return status, err

    return call


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the built-in lamp as a video."""
    path = tmp_path_factory.mktemp("video") / "lamp.mp4"
    frames = simulated_lamp.frames(FOOTAGE_SIZE, fps=10)
    with open_writer(str(path), size=FOOTAGE_SIZE, fps=10) as writer:
        for _ in range(40):
            writer.write(next(frames))
    return path


def refuses(outcome: tuple[int, str], *words: str) -> None:
    """Exit 2, and one line on stderr, after those of progress and of choices, that has the words."""
    status, said = outcome
    *before, line = said.strip().splitlines()
    assert status == 2, said
    assert line.startswith("mlxlava: "), said
    assert all(re.match(r"footage +\d+%|train: [a-z_.]+ = ", text) for text in before), said
    for word in words:
        assert word in line, said


# --- every command ---


def test_every_command_and_option_has_help() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.opts}"


def test_the_help_names_every_format() -> None:
    (option,) = (each for each in cli.commands["loop"].params if each.name == "format")
    assert isinstance(option, click.Option) and option.help is not None
    assert option.help.partition(";")[0].split(", ") == list(WRITER_OF_FORMAT)


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, errors = run_command(monkeypatch, capsys)
    assert status == 0 and not errors
    assert "Commands:\n" in said and "\n  loop " in said


def test_a_mistyped_command_or_option_is_one_line(run: Run) -> None:
    refuses(run("lop"), "lop", "did you mean loop?")
    refuses(run("loop", "--sead", "3"), "--sead", "--seed")
    refuses(run("loop", "--weights", "lawa"), "lawa", "did you mean lava?")
    refuses(run("train", "--recipe", "duralaba"), "did you mean duralava?")
    refuses(run("train", "--set", "batch_size=3"), "did you mean data.batch_size?")


def test_a_mistyped_run_is_one_line_that_names_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs/evening").mkdir(parents=True)
    (tmp_path / "runs/evening/log.jsonl").touch()
    refuses(run("loop", "--weights", "runs/evenign"), "did you mean runs/evening?")


# --- train and footage ---


def test_training_on_a_video_gives_a_lamp_that_plays(run: Run, video: Path, tmp_path: Path) -> None:
    status, said = run("train", str(video), "-o", "mine", "--steps", "2", *TINY)
    assert status == 0, said
    status, said = run("train", "--resume", "-o", "mine", "--steps", "3")
    assert status == 0, said
    assert "step 3" in said
    assert "falls to 0 at step 3" in said
    recipe = json.loads((tmp_path / "mine/config.json").read_text())["recipe"]
    assert recipe["loss"]["d_start"] == 0.7
    assert len((tmp_path / "mine/log.jsonl").read_text().splitlines()) == 3
    assert run("export", "mine", "-o", "weights")[0] == 0
    assert "mine" not in json.loads((tmp_path / "weights/config.json").read_text())["footage"]["sources"]
    assert run("loop", "--weights", "weights", "--frames", "5", "-o", "played.gif")[0] == 0
    assert iio.imread(tmp_path / "played.gif").shape == (5, 16, 16, 3)


def test_footage_that_cannot_be_read_is_one_line(run: Run, tmp_path: Path) -> None:
    refuses(run("train", "nowhere.mov"), "nowhere.mov")
    (tmp_path / "notes.mp4").write_text("no video\n" * 50)
    refuses(run("train", "notes.mp4"), "notes.mp4")
    (tmp_path / "empty").mkdir()
    refuses(run("train", "empty"), "empty")
    (tmp_path / "mixed").mkdir()
    for number, side in enumerate((32, 48)):
        Image.fromarray(np.zeros((side, 32, 3), np.uint8)).save(tmp_path / f"mixed/{number}.png")
    refuses(run("train", "mixed"), "32")
    assert not (tmp_path / "runs").exists()


def test_a_truncated_video_is_used_as_far_as_it_goes(run: Run, tmp_path: Path) -> None:
    # Matroska can be read from the front; an mp4 without its end has no index at all.
    frames = simulated_lamp.frames(FOOTAGE_SIZE, fps=10)
    with open_writer("whole.webm", size=FOOTAGE_SIZE, fps=10) as writer:
        for _ in range(40):
            writer.write(next(frames))
    whole = (tmp_path / "whole.webm").read_bytes()
    (tmp_path / "cut.webm").write_bytes(whole[: len(whole) * 2 // 3])
    status, said = run("footage", "cut.webm", "-o", "data", "--size", "16")
    assert status == 0, said
    assert "cut.webm" in said
    count = len(np.load(tmp_path / "data/frames.npy", mmap_mode="r"))
    assert 0 < count < 40


def test_footage_shorter_than_a_clip_says_how_many_frames_are_needed(run: Run, video: Path) -> None:
    refuses(run("train", str(video), "--seq-len", "200"), "200", "40")


def test_settings_that_do_not_exist_or_do_not_fit_are_one_line(run: Run, video: Path) -> None:
    refuses(run("train", "--size", "70"), "70", "16")
    refuses(run("train", "--set", "generator.withs=[8]"), "generator.withs", "widths")
    refuses(run("train", "--recipe", "lawa"), "lava")
    refuses(run("train", str(video), "--crop", "500,0,64,64"), "crop")
    refuses(run("train", "--resume", "-o", "nothing"), "nothing")


def test_a_run_is_not_overwritten_nor_changed_by_resuming(run: Run, video: Path) -> None:
    assert run("train", str(video), "-o", "mine", "--steps", "1", *TINY)[0] == 0
    refuses(run("train", str(video), "-o", "mine", "--steps", "1", *TINY), "--resume")
    refuses(run("train", "--resume", "-o", "mine", "--batch-size", "3"), "--batch-size")


def config_of(run: Path) -> str:
    return (run / "config.json").read_text(encoding="utf-8")


def test_a_run_that_cannot_be_resumed_stays_as_it_was(run: Run, video: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(video, tmp_path / "own.mp4"))
    mine = tmp_path / "mine"
    assert run("train", "own.mp4", "-o", "mine", "--steps", "1", *TINY)[0] == 0
    before, resume = config_of(mine), ("train", "--resume", "-o", "mine", "--steps", "5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
        refuses(run(*resume, "--tensorboard"), "mlxlava[tensorboard]")
    with (mine / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refuses(run(*resume), "another process")
    kept = {path: path.read_bytes() for path in mine.glob("checkpoints/*/state.safetensors")}
    for path, whole in kept.items():
        path.write_bytes(whole[: len(whole) // 2])
    refuses(run(*resume), "state.safetensors")
    for path, whole in kept.items():
        path.write_bytes(whole)
    shutil.move(mine / "checkpoints", tmp_path / "aside")
    refuses(run(*resume), "no checkpoint")
    shutil.move(tmp_path / "aside", mine / "checkpoints")
    own.unlink()
    prepared = Path(json.loads(before)["footage"]["prepared"])
    shutil.move(prepared, tmp_path / "prepared")
    refuses(run(*resume), "own.mp4", "does not exist")
    with open_writer(str(own), size=FOOTAGE_SIZE, fps=10) as sink:
        for _ in range(40):
            sink.write(np.zeros((*FOOTAGE_SIZE, 3), np.uint8))
    refuses(run(*resume), "footage of mine has changed")
    assert config_of(mine) == before
    assert not [path for path in mine.iterdir() if path.name.endswith(".tmp")]


def test_a_run_goes_on_with_the_footage_that_it_began_with(run: Run, video: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(video, tmp_path / "own.mp4"))
    assert run("train", "own.mp4", "-o", "mine", "--steps", "1", *TINY)[0] == 0
    # As if an older version had prepared it, whose keys were others.
    config = json.loads(config_of(tmp_path / "mine"))
    footage = Path(config["footage"]["prepared"]) / "footage.json"
    about = json.loads(footage.read_text())
    footage.write_text(json.dumps({**about, "key": "older"}))
    config["footage"]["key"] = "older"
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    own.unlink()
    status, said = run("train", "--resume", "-o", "mine", "--steps", "2")
    assert (status, "is at step 2" in said) == (0, True), said


def test_without_a_name_a_run_takes_the_next_and_resumes_the_latest(
    run: Run, video: Path, tmp_path: Path
) -> None:
    refuses(run("train", "--resume"), "no run in runs/")
    for number in ("001", "002"):
        assert f"runs/lava-{number} is at step 1" in run("train", str(video), "--steps", "1", *TINY)[1]
    assert "runs/lava-002 is at step 2" in run("train", "--resume", "--steps", "2")[1]


def test_a_mac_stays_awake_while_it_trains(
    run: Run, video: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[str, bool]] = []
    trained = Path("mine/checkpoints/00000001")

    @contextlib.contextmanager
    def keep_awake() -> Iterator[None]:
        seen.append(("awake", trained.exists()))
        yield
        seen.append(("may sleep", trained.exists()))

    monkeypatch.setattr("mlxlava.training.loop.keep_awake", keep_awake)
    assert run("train", str(video), "-o", "mine", "--steps", "1", *TINY)[0] == 0
    assert seen == [("awake", False), ("may sleep", True)]


def recipe_of(run: Path) -> Recipe:
    return recipe_from_dict(json.loads((run / "config.json").read_text())["recipe"])


def parts_of(run: Path) -> int:
    return recipe_of(run).training.micro_batches


def test_a_run_goes_on_with_less_memory(run: Run, video: Path, tmp_path: Path) -> None:
    assert run("train", str(video), "-o", "mine", "--steps", "1", *TINY)[0] == 0
    less = gigabytes_for_more_micro_batches(recipe_of(tmp_path / "mine"), gpu=on_gpu_path())
    status, said = run("train", "--resume", "-o", "mine", "--steps", "2", "--memory", str(less))
    assert status == 0, said
    assert "train: a step in 2 micro-batches: about 0.1" in said and f"of {less:g} GB" in said
    assert parts_of(tmp_path / "mine") == 2
    refuses(run("train", "--resume", "-o", "mine", "--memory", "0.01"), "0.01 GB are given")
    assert run("train", "--resume", "-o", "mine", "--steps", "3")[0] == 0
    assert parts_of(tmp_path / "mine") == 2


def test_on_a_gpu_a_step_is_made_to_fit_without_being_asked(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(name: str, budget: float) -> tuple[int, str]:
        monkeypatch.setattr("mlxlava.training.run.memory_budget_gb", lambda: budget)
        return run("train", str(video), "--steps", "1", *TINY, "-o", name)

    with use_gpu_path():
        status, said = train("large", 8.0)
        assert status == 0 and "part" not in said
        less = gigabytes_for_more_micro_batches(recipe_of(tmp_path / "large"), gpu=True)
        assert less is not None
        status, said = train("small", less)
        assert status == 0, said
        assert "train: a step in 2 micro-batches: about 0.1" in said and f"of {less:g} GB, estimated" in said
        refuses(train("tiny", 0.01), "estimated", "0.01 GB are given", "larger --memory")
    assert [parts_of(tmp_path / name) for name in ("large", "small")] == [1, 2]
    with use_gpu_path(False):
        assert "part" not in train("cpu", 0.01)[1]
    assert parts_of(tmp_path / "cpu") == 1


def test_a_plan_for_a_gpu_says_that_it_is_estimated(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def planned(gpu: bool) -> str:
        with pytest.MonkeyPatch.context() as patch, use_gpu_path(gpu):
            patch.setattr(sys, "argv", ["mlxlava", "plan", "--memory", "10.3", "--size", "256"])
            main()
        return capsys.readouterr().out

    assert "estimated" in planned(True)
    assert "estimated" not in planned(False)


def out_of_memory(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError(
        "[METAL] Command buffer execution failed: Insufficient Memory "
        "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
    )


def fails(outcome: tuple[int, str], *words: str) -> None:
    """Exit 1, and one line at the end that has the words."""
    status, said = outcome
    *_, line = said.strip().splitlines()
    assert status == 1, said
    assert line.startswith("mlxlava: ") and "Traceback" not in said, said
    for word in ("not enough memory", "[METAL]", *words):
        assert word in line, said


def test_a_gpu_that_fails_in_training_is_one_line(
    run: Run, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "__call__", out_of_memory)
    outcome = run("train", str(video), "-o", "mine", "--steps", "2", *TINY)
    fails(outcome, "at step 1", "mine/checkpoints/00000000", "--resume -o mine")
    assert "micro-batches" in outcome[1]  # it has tried with smaller ones


@pytest.mark.parametrize(
    "command", [("loop", "--frames", "2", "-o", "a.gif"), ("score", "lava"), ("drift", "lava")]
)
def test_a_gpu_that_fails_elsewhere_is_one_line(
    command: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mx, "eval", out_of_memory)
    fails(run(*command), "close other programs")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_ours_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Any:
        raise RuntimeError("[matmul] shapes do not fit")

    monkeypatch.setattr("mlxlava.api.judging.load_weights", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run("score", "lava")
    monkeypatch.setattr("mlxlava.api.judging.load_weights", out_of_memory)
    with pytest.raises(RuntimeError, match="METAL"):
        run("score", "lava", "--debug")


# --- play ---


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the shipped lamp, to be spoiled."""
    return Path(shutil.copytree(ROOT / "weights/lava", tmp_path / "weights"))


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "apng", "webp"])
def test_the_shipped_lamp_plays_into_every_format(run: Run, tmp_path: Path, ending: str) -> None:
    name = f"lava.{ending}"
    assert run("loop", "--seconds", "1", "--fps", "12", "--scale", "2", "-o", name)[0] == 0
    if ending in ("mp4", "webm"):
        frames = iio.imread(tmp_path / name)
    else:
        with Image.open(tmp_path / name) as image:
            count = getattr(image, "n_frames", 1)
            frames = np.stack([np.asarray(_seek(image, n).convert("RGB")) for n in range(count)])
    assert frames.shape == (12, 512, 256, 3)
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.05


def _seek(image: Image.Image, number: int) -> Image.Image:
    image.seek(number)
    return image


def test_a_seamless_clip_has_all_its_frames_and_says_what_it_cost(run: Run, tmp_path: Path) -> None:
    status, said = run(
        "loop", "--seamless", "--seconds", "4", "--fps", "5", "--speed", "2", "-o", "lava.apng"
    )
    assert status == 0, said
    assert re.search(r"seamless: closed by steering that is \d+%", said)
    frames = np.stack(list(iio.imiter(tmp_path / "lava.apng", plugin="pillow"))).astype(float)
    assert len(frames) == 20
    change = np.abs(np.diff(np.concatenate([frames, frames[:1]]), axis=0)).mean((1, 2, 3))
    assert change[:-1].min() * 0.8 < change[-1] < change[:-1].max() * 1.2


@pytest.mark.parametrize(("fps", "speed"), [("240", "0.05"), ("1", "50")])
def test_the_slowest_and_the_fastest(fps: str, speed: str, run: Run, tmp_path: Path) -> None:
    status, said = run("loop", "--fps", fps, "--speed", speed, "--frames", "4", "-o", "lava.raw")
    assert status == 0, said
    frames = np.fromfile(tmp_path / "lava.raw", np.uint8).reshape(4, 256, 128, 3).astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean()
    assert change < 0.02 if fps == "240" else change > 1


def test_a_lamp_goes_on_from_a_picture(run: Run, video: Path, tmp_path: Path) -> None:
    assert run("train", str(video), "-o", "mine", "--steps", "1", *TINY)[0] == 0
    Image.fromarray(next(simulated_lamp.frames((64, 64), fps=5))).save(tmp_path / "photo.png")
    status, said = run("loop", "--weights", "mine", "--from", "photo.png", "--frames", "2", "-o", "a.gif")
    assert status == 0, said
    assert re.search(r"from: the nearest frame differs from photo.png by \d+\.\d of 255", said)
    (tmp_path / "notes.txt").write_text("no picture")
    status, said = run("loop", "--from", "notes.txt", "--frames", "2", "-o", "b.gif")
    assert status == 2 and "notes.txt is not a picture" in said
    assert not (tmp_path / "b.gif").exists()


def test_without_a_terminal_ten_seconds_are_written_and_said(run: Run, tmp_path: Path) -> None:
    status, said = run("loop", "--fps", "2")
    assert status == 0
    assert "lava.mp4" in said
    assert len(iio.imread(tmp_path / "lava.mp4")) == 20


def test_nowhere_to_play_is_one_line(run: Run) -> None:
    refuses(run("loop", "--forever"), "--forever", "-o")
    refuses(run("loop", "--screen", "terminal"), "terminal")
    refuses(run("loop", "--seconds", "1", "--frames", "3", "-o", "a.mp4"), "--seconds")


def test_output_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    refuses(run("loop", "-o", "lava.mp5"), "mp5", "mp4")
    refuses(run("loop", "-o", "lava.mp4", "--format", "avi"), "avi")
    refuses(run("loop", "-o", "missing/lava.mp4"), "missing")
    refuses(run("loop", "-o", "-"), "--format")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        (("loop", "--speed", "1e6"), "1000"),
        (("loop", "--seconds", "1e308"), "100000000"),
        (("loop", "--fps", "0.0001"), "0.001"),
        (("lamp", "--seconds", "inf"), "100000000"),
        (("lamp", "--speed", "nan"), "nan"),
        (("train", "--minutes", "nan"), "nan"),
        (("plan", "--memory", "inf"), "1000000"),
    ],
)
def test_numbers_that_nobody_means_are_one_line_with_the_limit(
    command: tuple[str, ...], limit: str, run: Run
) -> None:
    refuses(run(*command), command[1], limit)


def test_a_large_lamp_that_cannot_be_written_is_refused_before_it_is_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_lamp, "SimulatedLamp", lambda *_, **__: pytest.fail("made"))
    refuses(run("lamp", "--size", "4096", "--scale", "64", "-o", "a.mp4"), "262144x262144", "--scale")
    refuses(run("lamp", "--size", "4096", "--seconds", "1e8", "-o", "a.raw"), "GB are free", "mp4")


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.argv = ['mlxlava', 'lamp', '--size', '128', '--seconds', '5', '-o', 'a.y4m'];"
        "from mlxlava.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "cannot write a.y4m" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_damaged_are_one_line(run: Run, weights: Path) -> None:
    refuses(run("loop", "--weights", "lawa"), "lawa", "lava")
    file = weights / "weights.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refuses(run("loop", "--weights", str(weights)), "weights.safetensors")
    file.unlink()
    refuses(run("loop", "--weights", str(weights)), "missing")


@needs_score
def test_weights_that_are_not_finite_are_one_line(run: Run, weights: Path) -> None:
    (weights / "SHA256SUMS").unlink()
    file = weights / "weights.safetensors"
    arrays: Any = mx.load(str(file))
    mx.eval(arrays)  # they are read when they are needed, and the file is about to be written over
    arrays["generator.out.bias"] = arrays["generator.out.bias"] + float("nan")
    mx.save_safetensors(str(file), arrays)
    for command in ("score", "drift"):
        refuses(run(command, str(weights)), "generator.out.bias contains numbers that are not finite")


def test_weights_of_another_recipe_are_one_line(run: Run, weights: Path) -> None:
    (weights / "SHA256SUMS").unlink()
    config = json.loads((weights / "config.json").read_text())
    config["recipe"]["dynamics"]["couplings"] += 1
    (weights / "config.json").write_text(json.dumps(config))
    refuses(run("loop", "--weights", str(weights)), "does not have dynamics.coupling4")


# --- judging ---


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A small run, and 100 s of the built-in lamp that it was trained on."""
    folder = tmp_path_factory.mktemp("judged")
    name, source = str(folder / "run"), str(folder / "lamp.mp4")
    for command in (
        ("lamp", "--size", "32", "--fps", "5", "--seconds", "100", "-o", source),
        ("train", source, "-o", name, "--steps", "2", *TINY),
    ):
        cli.main(command, standalone_mode=False)
    return name, source


@needs_score
def test_score_draws_a_picture(run: Run, judged: tuple[str, str], tmp_path: Path) -> None:
    name, source = judged
    assert run("score", name, "--footage", source, "--frames", "64", "-o", "score.png")[0] == 0
    assert iio.imread(tmp_path / "score.png").shape[2] in (3, 4)


@needs_score
def test_drift_prints_json(
    judged: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("drift", judged[0], "--footage", judged[1], "--frames", "2000", "--json")
    status, printed, said = run_command(monkeypatch, capsys, *command)
    assert status == 0, said
    assert [row["frames"] for row in json.loads(printed)["windows"]] == [1000, 2000]


@needs_score
def test_footage_of_another_size_or_rate_is_said(run: Run, judged: tuple[str, str]) -> None:
    name, source = judged
    score = ("score", name, "--frames", "64", "--footage")
    assert run("footage", source, "-o", "large", "--size", "32")[0] == 0
    status, said = run(*score, "large", "--json")
    assert status == 0, said
    assert "large is 32×32; it is resized to the 16×16 of the weights" in said
    assert run("footage", source, "-o", "slow", "--size", "16", "--every-nth", "2")[0] == 0
    assert "measures of motion compare different speeds" in run(*score, "slow")[1]


@needs_score
def test_what_cannot_be_scored_is_one_line(run: Run, judged: tuple[str, str], tmp_path: Path) -> None:
    name, source = judged
    refuses(run("score", name), "lamp.mp4", "--footage")
    refuses(run("score", name, "--footage", "nowhere.mp4"), "nowhere.mp4")
    refuses(run("score", name, "--footage", source, "-o", "missing/score.png"), "missing")
    refuses(run("score", name, "--footage", source, "--frames", "10"), "at least 64")
    refuses(run("drift", name, "--footage", source, "--frames", "10"), "at least 1000")
    assert run("lamp", "--size", "16", "--fps", "5", "--seconds", "5", "-o", "short.mp4")[0] == 0
    refuses(run("score", name, "--footage", "short.mp4"), "25 learned steps", "128 steps")
    (tmp_path / "still").mkdir()
    for number in range(150):
        Image.new("RGB", (16, 16), (90, 40, 20)).save(tmp_path / f"still/{number}.png")
    assert run("footage", "still", "-o", "prepared", "--size", "16")[0] == 0
    status, said = run("score", name, "--footage", "prepared")
    assert status == 2
    assert said.splitlines()[-1] == (
        "mlxlava: score: nothing changes in this footage, so there is no motion to score"
    )


# --- the rest ---


def test_info_shows_the_machine_and_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, shown in ((), r"mlxlava +\d+\.\d+"), (("lava",), r"picture +256×128"):
        status, out, err = run_command(monkeypatch, capsys, "info", *arguments)
        assert (status, err) == (0, "") and re.search(shown, out), out


def test_the_built_in_lamp_plays_into_a_file(run: Run, tmp_path: Path) -> None:
    assert run("lamp", "--size", "32x48", "--frames", "5", "-o", "lamp.gif")[0] == 0
    assert iio.imread(tmp_path / "lamp.gif").shape == (5, 32, 48, 3)
