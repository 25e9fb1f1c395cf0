"""A lamp as ONNX: onnxruntime computes what MLX does, for any number of lamps, and the example plays it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlxlava
from mlxlava.backend import mx
from mlxlava.config import Recipe, override
from mlxlava.errors import UserError
from mlxlava.exporting.graphs import (
    IR_VERSION,
    ONNX_OPSET,
    make_generator_graph,
    make_step_graph,
    write_graphs,
)
from mlxlava.exporting.portable import make_portable
from mlxlava.models.registry import make_generator
from mlxlava.models.state_step import fixed_bases, make_dynamics
from mlxlava.rollout.weights import Weights
from tests.exporting.lamps import fresh_weights, grown_weights

onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `dev`")

pytestmark = pytest.mark.device

TOLERANCE = 1e-5
GROWN_TOLERANCE = 3e-5  # of a large lamp that has grown: MLX's own rounding on a CPU is 1.4e-5 there


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def steps_differ(weights: Weights, session: Any) -> float:
    """Largest difference between MLX's step and the graph's, for five shares of a step."""
    dynamics, size = make_dynamics(weights.recipe), weights.recipe.generator.state_size
    bases = dynamics.basis_changes(fixed_bases(weights.arrays))
    states, noise = normal(5, size), normal(5, size, seed=1)
    dt = np.array([[0], [0.25], [0.5], [0.9], [1]], np.float32)
    expected = dynamics.step(
        weights.arrays["dynamics"], bases, mx.array(states), mx.array(noise), mx.array(dt)
    )
    if dynamics.keeps_norm:
        norms = mx.linalg.norm(mx.array(states), axis=-1, keepdims=True)
        expected = expected * norms / mx.linalg.norm(expected, axis=-1, keepdims=True)
    (found,) = session.run(None, {"state": states, "noise": noise, "dt": dt})
    return float(np.abs(found - np.array(expected)).max())


@pytest.fixture(scope="module", params=["lava", "lava-64"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, Path]:
    """A shipped lamp, and its folder."""
    folder = tmp_path_factory.mktemp("onnx") / "lamp"
    return mlxlava.export(request.param, onnx=folder), folder


def test_the_generator_draws_what_mlx_draws(written: tuple[Weights, Path]) -> None:
    weights, folder = written
    session = onnxruntime.InferenceSession(folder / "generator.onnx")
    tolerance = GROWN_TOLERANCE if weights.recipe.generator.upsampler_widths else TOLERANCE
    for count in (1, 3):
        states = normal(count, 64)
        expected, _ = make_generator(weights.recipe)(weights.arrays["generator"], mx.array(states))
        (found,) = session.run(None, {"state": states})
        assert found.shape == (count, *weights.recipe.data.size, 3)
        assert np.abs(found - np.array(expected)).max() < tolerance


@pytest.mark.parametrize("background", [True, False])
def test_a_lamp_that_has_grown_is_drawn_by_both_networks(tiny: Recipe, background: bool) -> None:
    small = override(tiny, {"generator.widths": [8], "generator.background": background})
    weights = grown_weights(small, [6, 5])
    model = make_generator_graph(make_portable(weights))
    states = normal(3, weights.recipe.generator.state_size)
    expected, _ = make_generator(weights.recipe)(weights.arrays["generator"], mx.array(states))
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"state": states})
    assert np.ptp(found, axis=0).max() > 0.1
    assert found.shape == (3, *weights.recipe.data.size, 3)
    assert np.abs(found - np.array(expected)).max() < TOLERANCE


def test_the_state_step_goes_where_mlx_goes(written: tuple[Weights, Path]) -> None:
    weights, folder = written
    assert steps_differ(weights, onnxruntime.InferenceSession(folder / "state_step.onnx")) < TOLERANCE


def test_the_files_say_what_they_are(written: tuple[Weights, Path]) -> None:
    weights, folder = written
    for name in ("generator", "state_step"):
        model = onnx.load(folder / f"{name}.onnx")
        assert [(one.domain, one.version) for one in model.opset_import] == [("", ONNX_OPSET)]
        assert model.ir_version == IR_VERSION
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert float(facts["step_fps"]) == weights.step_fps
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"opset {ONNX_OPSET}" in card and "python play.py" in card and "the built-in lamp" in card


def test_the_example_plays_without_mlxlava(tiny: Recipe, tmp_path: Path) -> None:
    weights = fresh_weights(tiny)
    write_graphs(make_portable(weights), tmp_path / "lamp", weights)
    example = tmp_path / "lamp/play.py"
    lines = example.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines[lines.index("import sys") :] if line]) <= 22
    # An import of mlxlava would fail.
    code = "import runpy, sys; sys.modules['mlxlava'] = None; runpy.run_path(sys.argv.pop(1))"
    subprocess.run([sys.executable, "-c", code, str(example), "4"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "lamp.gif") as image:
        assert image.size == (16, 16)
        assert image.n_frames > 150  # type: ignore[attr-defined]  # frames that are alike are joined


@pytest.mark.parametrize(
    "changes",
    [
        {"dynamics.rho": 1.0},
        {"dynamics.learn_rho": True, "dynamics.rho": 0.98},
        {"dynamics.hidden": [12, 9], "dynamics.couplings": 3},
    ],
)
def test_every_kind_of_stationary_step_is_written(tiny: Recipe, changes: dict[str, object]) -> None:
    weights = fresh_weights(override(tiny, changes))
    model = make_step_graph(make_portable(weights))
    assert steps_differ(weights, onnxruntime.InferenceSession(model.SerializeToString())) < TOLERANCE


def test_weights_that_have_no_such_form_are_named_with_the_reason(tiny_duralava: Recipe) -> None:
    with pytest.raises(
        UserError, match=r"^export: runs/old cannot .*penalised.*'duralava'.*32 lamps"
    ) as error:
        make_portable(fresh_weights(tiny_duralava), "runs/old")
    mixed = override(tiny_duralava, {"dynamics.kind": "stationary", "generator.state_size": 8})
    with pytest.raises(UserError, match=r"^export: runs/old cannot .*transposed.*'duralava'"):
        make_portable(fresh_weights(mixed), "runs/old")
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_left_alone_and_an_older_one_replaced(
    tiny: Recipe, tmp_path: Path
) -> None:
    weights = fresh_weights(tiny)
    lamp = make_portable(weights)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something that is not a lamp"):
        write_graphs(lamp, tmp_path, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    folder = tmp_path / "lamp"
    for _ in range(2):
        write_graphs(lamp, folder, weights)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "generator.onnx",
        "play.py",
        "state_step.onnx",
    ]


def test_without_the_package_the_extra_is_named(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    weights = fresh_weights(tiny)
    with pytest.raises(UserError, match=r"mlxlava\[onnx\]"):
        write_graphs(make_portable(weights), tmp_path / "lamp", weights)
    assert not (tmp_path / "lamp").exists()
