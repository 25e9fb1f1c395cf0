"""`mlxlava check`: a machine that is right passes, and each thing that may break is found and explained."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mlxlava
from mlxlava import checks
from mlxlava.backend import mx, on_gpu_path
from mlxlava.checks import arithmetic, convolutions, training
from mlxlava.checks.base import Check, Result
from mlxlava.rollout import drawing, roll
from mlxlava.training import objective
from tests.conftest import run_command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `mlxlava check …`; gives the exit status, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, "check", *arguments)

    return call


def results(only: str) -> list[Result]:
    found = mlxlava.check(only).results
    assert found
    return found


@pytest.mark.parametrize(
    "only",
    [
        "^the machine",
        "^matrix products",
        "random bits|normal numbers|norms",
        "duralava, (generator|discriminator)",
        "4 frames",
        "(lava|duralava), (eager|in two micro-batches|recomputed|float16: cosine)",
        "kernel: lava, 32 learned steps",
        "^half precision",
        "duralava.*what grows",
    ],
)
def test_a_machine_that_is_right_passes(only: str) -> None:
    for each in results(only):
        assert each.ok, each
        assert each.name and each.found and each.allowed
        assert each.meaning.endswith((".", "g++")), "what a failure means is said in sentences"


def test_json_says_everything(run: Run) -> None:
    status, said, _ = run("--json", "--only", "^matrix|apng")
    found = json.loads(said)
    assert status == 0 and found["ok"] is True and found["seconds"] > 0
    assert {"mlxlava", "python", "system", "mlx", "device", "processor"} <= found["about"].keys()
    assert "numpy" in found["about"]["packages"]
    assert len(found["results"]) == 2
    for each in found["results"]:
        assert each.keys() == {"group", "name", "found", "allowed", "ok", "meaning"}


@pytest.mark.slow
def test_a_table_fits_into_80_columns(run: Run) -> None:
    status, said, _ = run("--only", "^the machine|^matrix|convolutions.*encoder|float16")
    assert status == 0
    table = said.split("\n\n", 1)[1]  # below the machine, whose name may be long
    assert max(map(len, table.splitlines())) <= 80
    assert "float16 BatchNorm" in table
    assert re.match(r"\d+ checks, all ok; \d+ s$", table.splitlines()[-1])


# --- what breaks is found ---


def rounded_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that computes products in TF32, which has as many digits as float16."""
    exact = mx.array.__matmul__

    def product(one: mx.array, other: mx.array) -> mx.array:
        coarse = [each.astype(mx.float16).astype(mx.float32) for each in (one, other)]
        return exact(*coarse)

    monkeypatch.setattr(mx.array, "__matmul__", product)


def on_gpus(wrong: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is wrong in the code for GPUs alone."""
    return lambda *arguments: (wrong if on_gpu_path() else right)(*arguments)


def shifted_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    right = drawing.to_uint8_frames
    monkeypatch.setattr(drawing, "to_uint8_frames", on_gpus(lambda frames: right(frames) + 3, right))


def coarse_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolutions.conv4_stride2
    monkeypatch.setattr(
        convolutions, "conv4_stride2", on_gpus(lambda x, weight: 1.01 * right(x, weight), right)
    )


def wrong_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    right = objective.relativistic_gradient_ratio
    monkeypatch.setattr(
        objective,
        "relativistic_gradient_ratio",
        on_gpus(lambda real, drawn: 1.01 * right(real, drawn), right),
    )


def overflowing_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def batch_norm(weights: Any, parts: list[mx.array]) -> tuple[list[mx.array], Any]:
        (x,) = parts
        count = x.size // x.shape[-1]
        mean, square = x.sum((0, 1, 2)) / count, (x * x).sum((0, 1, 2)) / count
        var = square - mean * mean
        return [(x - mean) * mx.rsqrt(var + 1e-3) * weights["scale"] + weights["bias"]], {"var": var}

    monkeypatch.setattr(convolutions, "batch_norm_leaky_relu", batch_norm)


def wide_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_KERNEL_BUFFERS", 5)


def overflowing_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    right = training.override
    monkeypatch.setattr(
        training,
        "override",
        lambda recipe, settings: right(
            recipe,
            {**settings, "training.loss_scale": 1e9} if "training.precision" in settings else settings,
        ),
    )


def leaking_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    right, kept = roll.start_computing, functools.cache(lambda key: key)
    monkeypatch.setattr(roll, "kept", kept, raising=False)

    def queue(*arrays: Any) -> None:
        kept(object())
        right(*arrays)

    monkeypatch.setattr(roll, "start_computing", queue)


def leaking_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    right, kept = roll.start_computing, []

    def queue(*arrays: Any) -> None:
        kept.append(np.ones(100_000))
        right(*arrays)

    monkeypatch.setattr(roll, "start_computing", queue)


@pytest.mark.parametrize(
    ("broken", "only", "meaning"),
    [
        (rounded_products, "^matrix", "TF32"),
        (shifted_frames, "4 frames", "Lamps do not look here"),
        (coarse_convolutions, "lava, encoder", "not as exact"),
        (wrong_gradients, "tiny.*: lava, eager", "does not learn"),
        (coarse_convolutions, "float16 convolutions", "MLX_CONV_WINOGRAD"),
        (overflowing_sums, "BatchNorm", "overflows in float16"),
        (wide_kernels, "kernel: lava, 32", "fails on a GPU"),
        (overflowing_gradients, "tiny.*: lava, float16", "skipped"),
        (leaking_cache, "duralava: what grows", "play for ever"),
        (leaking_memory, "duralava: what grows", "play for ever"),
    ],
)
def test_what_breaks_is_found_and_explained(
    broken: Callable[[pytest.MonkeyPatch], None],
    only: str,
    meaning: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    broken(monkeypatch)
    status, said, _ = run("--only", only)
    assert status == 1
    assert "FAILED" in said and meaning in " ".join(said.split())
    assert "mlxlava check --json" in said.splitlines()[-1]
    assert max(map(len, said.split("\n\n", 1)[1].splitlines())) <= 80


def test_an_error_is_a_line_and_not_the_end(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def fails() -> tuple[str, bool]:
        raise RuntimeError("[METAL] Command buffer\nexecution failed: Insufficient Memory")

    def cannot_be_made() -> list[Check]:
        raise OSError("no weights")

    good = Check("good", "1", "It is not 1.", lambda: ("1", True))
    groups: dict[str, Callable[[], list[Check]]] = {
        "one": lambda: [Check("bad", "2", "Use less memory.", fails), good],
        "two": cannot_be_made,
        "three": lambda: [good],
    }
    monkeypatch.setattr(checks, "CHECK_GROUPS", groups)
    status, said, _ = run("--json")
    found = json.loads(said)
    assert status == 1 and found["ok"] is False
    assert [each["ok"] for each in found["results"]] == [False, True, False, True]
    bad, _, unmade, _ = found["results"]
    assert bad["found"] == "RuntimeError" and "Insufficient Memory. Use less memory." in bad["meaning"]
    assert unmade["found"] == "OSError" and "no weights" in unmade["meaning"]


def test_control_c_ends_it(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def interrupted() -> tuple[str, bool]:
        raise KeyboardInterrupt

    groups = {"one": lambda: [Check("slow", "1", "It is not 1.", interrupted)]}
    monkeypatch.setattr(checks, "CHECK_GROUPS", groups)
    assert run()[0] == 130


@pytest.mark.parametrize(("only", "words"), [("[", "regular expression"), ("no such check", "random bits")])
def test_a_pattern_without_a_match_is_one_line(run: Run, only: str, words: str) -> None:
    status, _, said = run("--only", only)
    assert status == 2 and len(said.splitlines()) == 1 and words in said


def test_without_a_compiler_the_meaning_names_it(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr("mlxlava.checks.base.lacks_compiler", lambda: True)
    status, said, _ = run("--json", "--only", "compiled function|lava, compiled|in the largest kernel: lava")
    assert status == 1
    for each in json.loads(said)["results"]:
        assert each["found"] == "not compiled" and each["meaning"].startswith("g++ is missing")


@pytest.mark.parametrize("key", [(0, 0), (0, 7), (2**31, 2**32 - 1)])
def test_random_bits_are_computed_as_mlx_does(key: tuple[int, int]) -> None:
    bits = np.array(mx.random.split(mx.random.key((key[0] << 32) + key[1]), 50)).reshape(-1)
    assert np.array_equal(bits, arithmetic.threefry_words(key, 100))


def test_help_needs_no_mlx() -> None:
    code = "from mlxlava.cli import cli; cli.main(['check', '--help'], standalone_mode=False)"
    code += "; import sys; assert 'mlx.core' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--only" in ended.stdout and "--json" in ended.stdout


@pytest.mark.slow
def test_the_whole_check_passes_here() -> None:
    command = [sys.executable, "-m", "mlxlava", "check", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(ended.stdout)
    assert ended.returncode == 0, [each for each in found["results"] if not each["ok"]]
    assert len({each["group"] for each in found["results"]}) == len(checks.CHECK_GROUPS)
