"""The lamp as a Python object."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mlxlava
from mlxlava.backend import mx
from mlxlava.cli import main
from mlxlava.config import load_recipe, override
from mlxlava.rollout.roll import Rollout
from mlxlava.training.callbacks import Callbacks, StepReport

pytestmark = pytest.mark.device

needs_score = pytest.mark.skipif(
    None in (find_spec("matplotlib"), find_spec("scipy")), reason="needs the extra `score`"
)


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """A UserError of one line that has the words."""
    with pytest.raises(mlxlava.UserError) as caught:
        yield
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for word in words:
        assert word in text


@pytest.fixture(scope="module")
def lamp() -> mlxlava.LavaLamp:
    return mlxlava.load("lava-64")


def test_frames_are_those_that_are_played(lamp: mlxlava.LavaLamp) -> None:
    frames: Iterator[npt.NDArray[np.uint8]] = lamp.frames(fps=10, seed=3, speed=2.0)
    first = list(itertools.islice(frames, 3))
    played = [frame for _, frame in Rollout(lamp.weights, 3).play([0.0, 0.2, 0.4])]
    assert np.array_equal(first, played)
    assert first[0].shape == (*lamp.size, 3) and first[0].dtype == np.uint8
    assert lamp.step_fps == 5
    assert len(list(lamp.frames(fps=4, seconds=1.1))) == 5


def test_a_clip_can_be_seamless_and_start_anywhere(lamp: mlxlava.LavaLamp) -> None:
    start = Rollout(lamp.weights, 5).states[0]
    frames = list(lamp.frames(fps=2, seconds=4, start=start, seamless=True))
    assert len(frames) == 8
    assert np.array_equal(frames[0], next(lamp.frames(start=start)))


def test_mistakes_are_said_at_once(lamp: mlxlava.LavaLamp) -> None:
    for wrong in (0, -1, math.nan, math.inf, "30", None):
        for name in ("fps", "speed"):
            options: dict[str, Any] = {name: wrong}
            with refused(f"frames: {name} must be positive"):
                lamp.frames(**options)
    for seconds in (0, math.nan, math.inf, "1"):
        with refused("seconds must be positive", "leave it out"):
            lamp.frames(seconds=seconds)  # type: ignore[arg-type]
    with refused("seed must be an integer"):
        lamp.frames(seed="one")  # type: ignore[arg-type]
    with pytest.raises(mlxlava.UserError, match="give seconds"):
        lamp.frames(seamless=True)
    with pytest.raises(mlxlava.UserError, match="nowhere"):
        mlxlava.load("nowhere")
    with pytest.raises(AttributeError, match="lode"):
        mlxlava.lode  # type: ignore[attr-defined]  # noqa: B018


def test_a_start_that_is_no_state_is_refused(lamp: mlxlava.LavaLamp) -> None:
    size = lamp.weights.recipe.generator.state_size
    for start in ("photo.png", np.zeros(size - 1), np.zeros((1, size)), np.zeros((64, 64, 3), np.uint8)):
        with refused(f"state of {size} numbers"):
            lamp.frames(start=start)  # type: ignore[arg-type]
    for number in (math.nan, math.inf):
        broken = np.zeros(size, np.float32)
        broken[3] = number
        with refused("not finite"):
            lamp.frames(start=broken)


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        ("photo.png", "not a str"),
        (None, "not a NoneType"),
        (np.zeros((64, 64), np.uint8), "(64, 64)"),
        (np.zeros((64, 64, 1), np.uint8), "(64, 64, 1)"),
        (np.zeros((64, 64, 4), np.uint8), "(64, 64, 4)"),
        (np.zeros((0, 64, 3), np.uint8), "(0, 64, 3)"),
        (np.zeros((64, 64, 3)), "float64"),
        (np.zeros((64, 64, 3), bool), "bool"),
    ],
)
def test_what_is_no_picture_of_bytes_is_refused(lamp: mlxlava.LavaLamp, picture: Any, word: str) -> None:
    with refused("uint8 (H, W, 3)", word):
        lamp.from_picture(picture)


# --- training and judging ---

TINY = {
    "data.size": (16, 16),
    "data.seq_len": 8,
    "data.batch_size": 2,
    "data.lamp_minutes": 1.0,
    "generator.widths": [8, 8],
    "discriminator.widths": [8, 8],
    "dynamics.hidden": [8],
    "discriminator.hidden": [8],
}


@pytest.fixture
def _eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder, and without seconds of g++ for each recipe."""
    monkeypatch.chdir(tmp_path)
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("_eager")
def test_a_lamp_is_trained_resumed_and_played(tmp_path: Path) -> None:
    class Listener(Callbacks):
        def on_step(self, report: StepReport) -> None:
            heard.append(report.step)

    heard: list[int] = []
    done = mlxlava.train(settings=TINY, steps=2, callbacks=[Listener()])
    assert (done.run, done.step, done.signal) == (Path("runs/lava-001"), 2, None)
    assert json.loads((done.run / "config.json").read_text())["command"].startswith("mlxlava.train")
    more = mlxlava.resume(steps=3, callbacks=[Listener()])
    assert (more.run, more.step) == (done.run, 3) and more.seconds > done.seconds
    assert heard == [1, 2, 3]
    assert next(mlxlava.load(done.run).frames()).shape == (16, 16, 3)
    recipe = override(load_recipe("lava"), {**TINY, "training.steps": 1})
    warm = mlxlava.train(recipe=recipe, run=tmp_path / "warm", init=done.run)
    assert warm.step == 1


@pytest.mark.usefixtures("_eager")
def test_mistakes_of_training_are_refused(tmp_path: Path) -> None:
    with refused("nowhere.mov"):
        mlxlava.train("nowhere.mov")
    with refused("a.mov"):
        mlxlava.train(["a.mov", "b.mov"])
    with refused("lava"):
        mlxlava.train(recipe="lawa")
    with refused("data.sise"):
        mlxlava.train(settings={"data.sise": 64})
    with refused("nowhere"):
        mlxlava.train(settings=TINY, init="nowhere")
    with refused("steps must be positive"):
        mlxlava.train(steps=0)
    with refused("minutes must be positive"):
        mlxlava.train(minutes=math.nan)
    with refused("memory must be positive"):
        mlxlava.train(memory=-1)
    with refused("runs/"):
        mlxlava.resume()
    with refused("nowhere"):
        mlxlava.resume("nowhere")
    assert list(tmp_path.iterdir()) == []


@needs_score
@pytest.mark.usefixtures("_eager")
def test_a_score_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(mlxlava.train(settings=TINY, steps=1).run)
    found = mlxlava.score(run, frames=64, seed=3)
    assert found["weights"] == run and found["seed"] == 3
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["mlxlava", "score", run, "--frames=64", "--seed=3", "--json"])
    main()
    printed = json.loads(capsys.readouterr().out)
    for each in (found, printed):
        each.pop("seconds")
    assert json.loads(json.dumps(found)) == printed


@pytest.mark.slow
@needs_score
@pytest.mark.usefixtures("_eager")
def test_drift_is_followed_and_mistakes_are_refused() -> None:
    run = mlxlava.train(settings=TINY, steps=1).run
    found = mlxlava.drift(run, frames=1000)
    assert [row["frames"] for row in found["windows"]] == [1000]
    assert found["footage"] == "the built-in lamp"
    with refused("nowhere.mp4"):
        mlxlava.score(run, "nowhere.mp4")
    with refused("--footage"):
        mlxlava.score(run, held_out=run)
    with refused("missing"):
        mlxlava.score(run, picture="missing/score.png")
    with refused("at least 1000"):
        mlxlava.drift(run, frames=10)
    with refused("nowhere"):
        mlxlava.score("nowhere")


# --- what fits, what there is, what works ---


def test_a_plan_has_a_row_for_each_size_length_and_batch() -> None:
    small, large = mlxlava.plan(sizes=[(64, 64), (1024, 1024)], seq_lens=[20], batch_sizes=[8], memory=2)
    assert small.fitted == small.recipe and small.recipe.data.size == (64, 64)
    assert small.peak < 2 < large.peak and large.fitted is None
    assert len(mlxlava.plan("duralava", memory=8)) == 3 * 2 * 3
    (whole,) = mlxlava.plan(sizes=[(64, 64)], seq_lens=[20], batch_sizes=[32], memory=8)
    (half,) = mlxlava.plan(
        sizes=[(64, 64)], seq_lens=[20], batch_sizes=[32], memory=8, settings={"data.drawn_frames": 2}
    )
    assert half.peak < whole.peak
    with refused("plan: memory must be positive"):
        mlxlava.plan(memory=0)
    with refused("data.sise"):
        mlxlava.plan(settings={"data.sise": 64})


def test_machines_weights_and_recipes_are_described() -> None:
    machine = mlxlava.info()
    assert machine["mlxlava"].startswith(f"{mlxlava.__version__} (") and "lava" in machine["weights"]
    assert ("BLAS" in machine) == (sys.platform == "linux" and machine["device"].startswith("CPU"))
    assert mlxlava.info("lava")["picture"] == "256×128"
    values = {name: value for name, value, _ in mlxlava.settings("lava")}
    assert values["data.size"] == (64, 64)
    assert all(text for _, _, text in mlxlava.settings(load_recipe("duralava")))
    with refused("nowhere"):
        mlxlava.info("nowhere")
    with refused("lava"):
        mlxlava.settings("lawa")


@pytest.mark.slow
def test_checks_are_reported_a_group_at_a_time() -> None:
    heard: list[str] = []
    report = mlxlava.check("^random numbers", on_group=lambda group, found: heard.append(group))
    assert report.ok and report.results and report.seconds > 0
    assert heard == ["random numbers and states, against their definition"]
    assert report.about["mlxlava"].startswith(f"{mlxlava.__version__} (")
    with refused("check:", "matches none"):
        mlxlava.check("no such check")


@pytest.mark.usefixtures("_eager")
def test_a_run_is_exported_and_played(tmp_path: Path) -> None:
    run = mlxlava.train(settings=TINY, steps=1).run
    written = mlxlava.export(run, tmp_path / "mine", half=True)
    assert written.about["steps"] == 1
    assert next(mlxlava.load(tmp_path / "mine").frames()).shape == (16, 16, 3)
    with refused("mlxlava score --json"):
        mlxlava.export(run, tmp_path / "other", score={"headline": {}})
    with refused("nowhere"):
        mlxlava.export("nowhere", tmp_path / "other")


def test_a_fresh_process_imports_it_without_mlx_and_plays_it() -> None:
    code = """if True:
        import sys
        import mlxlava
        assert not [name for name in sys.modules if name.partition(".")[0] in ("mlx", "numpy", "click")]
        frames = mlxlava.load("lava-64").frames(fps=30, seed=7)
        print(next(frames).shape, next(frames).dtype)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split("\n")[0] == "(64, 64, 3) uint8", ended.stderr


@pytest.mark.slow
def test_it_is_typed() -> None:
    assert (files("mlxlava") / "py.typed").is_file()
    user = (
        "import mlxlava, numpy.typing\n"
        "for frame in mlxlava.load('lava-64').frames(fps=24.0, seed=1, seconds=1.0):\n"
        "    reveal_type(frame)\n"
        "    pixels: numpy.typing.NDArray[numpy.uint8] = frame\n"
        "mlxlava.load('lava-64').frames(seed='one')\n"
        "reveal_type(mlxlava.train(['a.mov'], minutes=1).run)\n"
        "reveal_type(mlxlava.score('lava'))\n"
    )
    mypy = pytest.importorskip("mypy.api")
    said, _, status = mypy.run(["--strict", "--config-file=", "-c", user])
    assert status == 1, said
    assert 'Revealed type is "numpy.ndarray[' in said, said  # and not Any, which would go with the next line
    assert said.count("error:") == 1 and 'incompatible type "str"; expected "int"' in said, said


@pytest.mark.usefixtures("_eager")
def test_a_training_ends_well_without_the_extra_of_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxlava.api.ending import score_finished_run

    done = mlxlava.train(settings=TINY, steps=1)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert 'install "mlxlava[score]"' in score_finished_run(done.run)


@needs_score
@pytest.mark.usefixtures("_eager")
def test_the_end_of_footage_can_be_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxlava.api.ending import score_finished_run
    from mlxlava.footage.from_settings import prepare_from_settings

    data = override(load_recipe("lava"), {"data.size": (16, 16), "data.lamp_minutes": 1.0}).data
    prepared = prepare_from_settings([], data)
    settings = {**TINY, "data.size": (16, 16), "data.held_out": 0.25}
    done = mlxlava.train(prepared.path, settings=settings, steps=1)
    config = json.loads((done.run / "config.json").read_text())
    assert config["footage"]["frames"] == 225
    assert mlxlava.resume(done.run, steps=2).step == 2
    # The background is the mean of what was learned, not of the whole footage.
    learned = np.asarray(prepared.frames[:225]) / 255
    background = 1 / (1 + np.exp(-np.array(mlxlava.load(done.run).weights.arrays["generator"]["background"])))
    assert np.allclose(background, np.clip(learned.mean(0), 1 / 255, 1 - 1 / 255), atol=1e-3)
    assert "against the end of its footage" in score_finished_run(done.run)
    # Nor does the pace that is set at export know the end.
    lengths = []

    def match_pace(weights: Any, frames: Any, cuts: Any) -> tuple[Any, float]:
        lengths.append(len(frames))
        return weights, 1.0

    monkeypatch.setattr("mlxlava.rollout.export.match_pace", match_pace)
    mlxlava.export(done.run, tmp_path / "mine")
    assert lengths == [225]
    result = mlxlava.score(done.run, prepared.path, frames=64)
    assert "the last 25% of" in capsys.readouterr().err
    assert len(result["held_out_clips"]) == result["clips"]
