"""What no rebuild may change: frames, trained weights, scores, help texts, and files of every release.

Nothing here knows how the package is laid out: commands run, files are read, and `mlxlava.load` is called.
tools/golden.py has made what is stored in tests/golden, and says how to renew what was changed on purpose.
"""

from __future__ import annotations

import difflib
import json
import platform
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlxlava
from tests.conftest import load_tool

TOOL = Path(__file__).parents[2] / "tools/golden.py"


golden = load_tool("golden")

needs_score = pytest.mark.skipif(
    None in (find_spec("matplotlib"), find_spec("scipy")), reason="needs the extra `score`"
)

# What is stored was computed on a CPU with Linux x86-64. There rounding was measured, and the tolerances are
# a few times that. On others (Metal, ARM) nothing was measured, so they are a hundred times as wide.
MEASURED = sys.platform == "linux" and platform.machine() == "x86_64"
SLACK = 1.0 if MEASURED else 100.0

GREY_LEVELS = 1  # the most that was seen: one level, in one of 1,000 numbers
# In a tensor's RMS. The most that was seen between the two paths, with MLX's own BLAS and on one core: 3e-6,
# and 2e-5 of what a tensor changes by, most of which is the rounding of the weight itself.
WEIGHTS, CHANGE = 1e-5, 1e-4
# What is smaller is rounding: of a layer before a normalisation the bias has no gradient but that.
LEAST_WEIGHTS, LEAST_CHANGE = 1e-2, 1e-3
# One step of Adam, which divides small gradients by themselves.
RESUMED = 1e-4
# In a figure and its interval. The most that was seen: 2e-4, with MLX's own BLAS.
SCORE = 1e-3

# The code for GPUs, on a CPU (today's name of the switch, on purpose), and the device's own.
PATHS = {"device": {}, "GPU path": {"MLXLAVA_GPU_PATH": "1"}}


def stored(name: str) -> Any:
    return json.loads((golden.GOLDEN / name).read_text(encoding="utf-8"))


def assert_alike(found: np.ndarray, file: Path | Any, levels: int = GREY_LEVELS) -> None:
    """The picture is the stored one, within grey levels."""
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= levels


# --- frames ---


@pytest.fixture(scope="module")
def frames() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = golden.lamp_frames()
    return found


@pytest.mark.parametrize("name", [*(f"lava-{seed}" for seed in golden.SEEDS), "lava-seamless"])
def test_the_shipped_lamp_draws_what_it_drew(name: str, frames: dict[str, np.ndarray]) -> None:
    assert_alike(frames[name], golden.GOLDEN / f"{name}.png")


def test_the_built_in_lamp_looks_as_it_did(tmp_path: Path) -> None:
    assert_alike(golden.built_in_frames(tmp_path), golden.GOLDEN / "built-in.png")


# --- training ---


@pytest.fixture(scope="module", params=list(PATHS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Figures of the tiny runs."""
    return golden.weights_after_training(tmp_path_factory.mktemp("trained"), PATHS[request.param])


@pytest.mark.parametrize("name", golden.RUNS)
def test_six_steps_give_the_weights_that_they_gave(name: str, trained: Any) -> None:
    expected = stored("weights.json")[name]
    for what, tolerance, least in (
        ("weights", WEIGHTS, LEAST_WEIGHTS),
        ("change", CHANGE, LEAST_CHANGE),
    ):
        found = golden.differences(expected[what], trained[name][what], SLACK * tolerance, least)
        assert not found, f"{what}: {len(found)} tensors differ\n" + "\n".join(found[:10])


def test_footage_is_known_by_the_key_that_it_had(tmp_path: Path) -> None:
    """Runs refuse to go on with footage whose key is another."""
    assert golden.keys(tmp_path) == stored("keys.json")


# --- score ---


@needs_score
def test_the_shipped_weights_score_what_they_scored(tmp_path: Path) -> None:
    found, expected = golden.score(tmp_path), stored("score.json")
    rows, expected_rows = found.pop("measures"), expected.pop("measures")
    headline, expected_headline = found.pop("headline"), expected.pop("headline")
    assert found == expected
    assert rows.keys() == expected_rows.keys()
    tolerance = SCORE * (1 if MEASURED else 10)  # a count may differ by one there
    for name, row in rows.items():
        for figure, interval in (("value", "interval"), ("floor", "floor_interval")):
            value, (low, high) = expected_rows[name][figure], expected_rows[name][interval]
            allowed = tolerance * (abs(value) + (high - low) / 2)
            assert row[figure] == pytest.approx(value, rel=0, abs=allowed), (name, figure)
            assert row[interval] == pytest.approx([low, high], rel=0, abs=allowed), (name, interval)
        # A figure near zero has no ratio that says anything.
        assert (row["ratio"] is None) == (expected_rows[name]["ratio"] is None), name
    assert headline == pytest.approx(expected_headline, rel=tolerance)


# --- help ---


def test_help_texts_are_those_that_are_stored(tmp_path: Path) -> None:
    found = golden.helps(tmp_path)
    expected = {
        file.stem: file.read_text(encoding="utf-8") for file in (golden.GOLDEN / "help").glob("*.txt")
    }
    lines: list[str] = []
    for name in sorted(found.keys() | expected.keys()):
        before, now = (table.get(name, "").splitlines() for table in (expected, found))
        lines += difflib.unified_diff(before, now, f"{name}, stored", f"{name}, now", lineterm="", n=0)
    assert not lines, "\n".join(["on purpose? python tools/golden.py --renew help", *lines])


# --- files of every release ---


def parts(version: str) -> set[str]:
    """What fixtures there are of a version: runs, weights, footage."""
    with zipfile.ZipFile(golden.FORMATS / f"{version}.zip") as archive:
        return {name.partition("/")[0] for name in archive.namelist() if "/" in name}


VERSIONS = sorted(path.stem for path in golden.FORMATS.glob("*.zip"))
OPENED = [(version, part) for version in VERSIONS for part in sorted(parts(version))]
RUNS = [pair for pair in OPENED if pair[1] in golden.FIXTURE_RUNS]
PLAYED = [pair for pair in OPENED if pair[1] != "footage"]


@pytest.fixture
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The fixtures of the version that a test is called with."""
    golden.open_formats(request.getfixturevalue("version"), tmp_path)
    return tmp_path


def test_there_are_fixtures() -> None:
    assert {"v0", "v1"} <= set(VERSIONS)
    assert parts("v1") == {*golden.FIXTURE_RUNS, *golden.FIXTURE_WEIGHTS, "footage"}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, str]]:
    """Of each version and part the folder, where it was played into files, and what `info` says of it.

    One process for all parts of a version: most of a small command's time is Python's start.
    """
    found = {}
    for version in VERSIONS:
        work = tmp_path_factory.mktemp(version)
        golden.open_formats(version, work)
        parts = [part for of, part in PLAYED if of == version]
        commands: list[list[object]] = []
        for part in parts:
            commands.append(["info", work / part])
            commands.append(golden.drawing(work / part, work / f"{part}.raw"))
            commands.append(["loop", "--weights", work / part, "--frames", 2, "-o", f"{part}.gif"])
        said = golden.mlxlava(*commands, folder=work)
        for part, info in zip(parts, said[::3], strict=True):
            found[version, part] = (work, info)
    return found


@pytest.mark.parametrize(("version", "part"), PLAYED)
def test_old_weights_and_runs_play_as_they_did(
    version: str, part: str, played: dict[tuple[str, str], tuple[Path, str]]
) -> None:
    work, _ = played[version, part]
    assert_alike(golden.read_drawn(work / f"{part}.raw"), work / f"{part}.png")
    # The same through Python.
    lamp = mlxlava.load(work / part)
    frames = np.concatenate(list(lamp.frames(fps=7, seconds=3 / 7)), axis=1)
    assert_alike(frames, work / f"{part}.png")


@pytest.mark.parametrize(("version", "part"), PLAYED)
def test_old_weights_and_runs_are_described_and_written_to_a_file(
    version: str, part: str, played: dict[tuple[str, str], tuple[Path, str]]
) -> None:
    work, info = played[version, part]
    assert "16×16" in info and "mlxlava train" in info
    with Image.open(work / f"{part}.gif") as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]  # of animated formats only


@pytest.mark.parametrize(("version", "part"), RUNS)
def test_old_runs_go_on_as_they_would_have(version: str, part: str, work: Path) -> None:
    """The footage is found by its key, and no part of the run's state is lost, neither optimiser."""
    golden.resume(work / part, work)
    expected = json.loads((work / "resumed.json").read_text())[part]
    now = golden.figures(golden.checkpoints(work / part)[-1])
    # Encoded means are standardised, so the gradient of this bias is nothing but rounding, and Adam makes
    # whole steps of it.
    for figures in (expected, now):
        for name in [name for name in figures if name.endswith("encoder.mean.bias")]:
            del figures[name]
    found = golden.differences(expected, now, SLACK * RESUMED, LEAST_WEIGHTS, whole=False)
    assert not found, "\n".join(found[:10])
    steps = [json.loads(line)["step"] for line in (work / part / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(("version", "part"), RUNS)
def test_old_runs_are_exported(version: str, part: str, work: Path) -> None:
    golden.mlxlava(
        ["export", work / part, "-o", "new"],
        ["export", work / part, "-o", "new-half", "--half"],
        golden.drawing(work / "new", work / "new.raw"),
        folder=work,
    )
    if (work / "weights").is_dir() and part == "lava":
        for old, new in (("weights", "new"), ("half", "new-half")):
            was, now = (golden.checkpoints(work / name)[-1] for name in (old, new))
            assert not golden.differences(golden.figures(was), golden.figures(now), WEIGHTS, LEAST_WEIGHTS)
            assert {array.dtype for array in was.values()} == {array.dtype for array in now.values()}
    assert_alike(golden.read_drawn(work / "new.raw"), work / f"{part}.png", levels=2)


@pytest.mark.parametrize("version", VERSIONS)
def test_old_footage_is_learned_and_is_what_preparing_gives_today(version: str, work: Path) -> None:
    nets = [f"--set={net}.widths=[4, 4]" for net in ("encoder", "generator", "discriminator")]
    small = ["--steps", 1, "--size", 16, "--seq-len", 4, "--batch-size", 2, *nets]
    golden.mlxlava(
        ["footage", "pictures", "-o", "again", "--size", 16],
        ["train", "footage", "-o", "learned", *small],
        folder=work,
        environment={"MLX_DISABLE_COMPILE": "1"},
    )
    assert (work / "again/frames.npy").read_bytes() == (work / "footage/frames.npy").read_bytes()
    old, new = (json.loads((work / name / "footage.json").read_text()) for name in ("footage", "again"))
    assert {key: new.get(key) for key in old} == old
    assert golden.checkpoints(work / "learned")


# --- the tool itself ---


def test_a_change_is_seen_and_a_new_name_is_not() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(4, 6)).astype(np.float32) for name in ("a", "b", "c")}
    figures = golden.figures(arrays)
    renamed = {"new" if name == "b" else name: array for name, array in arrays.items()}
    assert not golden.differences(figures, golden.figures(renamed), 1e-5, 1e-2)
    assert not golden.compare(arrays, renamed)
    swapped = {**arrays, "a": arrays["a"][::-1]}
    off = {**arrays, "c": arrays["c"] * np.float32(1.0001)}
    gone = {name: arrays[name] for name in ("a", "b")}
    for changed in (swapped, off, gone, {**arrays, "d": arrays["a"] + 1}):
        assert len(golden.differences(figures, golden.figures(changed), 1e-5, 1e-2)) == 1
        assert len(golden.compare(arrays, changed)) == 1
    nothing = {**arrays, "a": np.full_like(arrays["a"], np.nan)}
    assert len(golden.differences(figures, golden.figures(nothing), 1e-5, 1e-2)) == 1
