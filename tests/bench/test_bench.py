"""The benchmark suite: floors are counted right, rows and comparisons say what was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from mlxlava.backend import arrays_by_name
from mlxlava.bench import chart, floor, races, suite
from mlxlava.bench.base import QUICK_EFFORT, SuiteState
from mlxlava.bench.harness import Worker, WorkerDied, describe_exit
from mlxlava.bench.measures import resized_recipe
from mlxlava.bench.tables import print_tables
from mlxlava.config import Recipe, load_recipe, override
from mlxlava.errors import UserError
from mlxlava.models.state_step import make_dynamics
from mlxlava.training.step import Trainer

ECHO = "from mlxlava.bench import harness; harness.serve_requests(lambda: lambda text: {body})"


def echo(body: str, **options: Any) -> Worker:
    return Worker(["-c", ECHO.format(body=body)], **options)


def row(
    name: str = "train lava 64x64 seq20 mean", who: str = "mlxlava", median: float = 1.0, **more: Any
) -> dict[str, Any]:
    spread = {"min_s": 0.9 * median, "max_s": 1.1 * median, "repeats": 3}
    return {"name": name, "who": who, "median_s": median, **spread, "peak_process_gb": 2.0, **more}


def result(*rows: dict[str, Any], **machine: str) -> dict[str, Any]:
    about = {"processor": "a", "device": "CPU", "mlx": "1", "time": "2026-01-02T03:04:05+00:00", **machine}
    return {"machine": about, "quick": False, "rows": list(rows)}


# --- floors ---


@pytest.mark.parametrize("name", ["tiny", "tiny_duralava"])
def test_layers_are_those_of_the_networks(name: str, request: pytest.FixtureRequest) -> None:
    recipe: Recipe = request.getfixturevalue(name)
    state = Trainer(recipe, 10).init()

    def kernels(part: str) -> int:
        fixed = {"background", "gate"}
        found = arrays_by_name({key: value for key, value in state[part].items() if key not in fixed})
        return sum(array.size for path, array in found.items() if path.endswith("weight"))

    def counted(layers: list[floor.Layer]) -> int:
        return sum(layer.weight_count for layer in layers)

    assert counted(floor.generator_layers(recipe)) == kernels("generator")
    assert sum(map(counted, floor.discriminator_layers(recipe))) == kernels("discriminator")
    if recipe.encoder.context_frames:
        assert sum(map(counted, floor.encoder_layers(recipe))) == kernels("encoder")
    bases = sum(basis.size for basis in arrays_by_name(make_dynamics(recipe).init_bases()).values())
    # Into a basis and back.
    assert counted(floor.state_step_layers(recipe)) == kernels("dynamics") + 2 * bases


def test_a_step_of_duralava_takes_346_billion_operations() -> None:
    cost = floor.step_cost(load_recipe("duralava"), "plain")
    assert cost.flops == pytest.approx(346e9, rel=0.02)
    assert cost.min_seconds(matmul_rate=1e11, copy_rate=1e12) == pytest.approx(cost.flops / 1e11)
    assert cost.min_seconds(matmul_rate=1e15, copy_rate=1e9) == pytest.approx(cost.bytes / 1e9)


def test_a_convolution_costs_what_it_is() -> None:
    # 3×3, 2 → 5 channels, 4×4 places: two operations for each product
    layer = floor.Layer(2, 5, taps=9, kernel_places=16, input_places=16, output_places=16)
    assert layer.flops == 2 * 9 * 2 * 5 * 16
    assert layer.input_and_output_floats == 16 * (2 + 5)


def test_work_grows_with_pixels_and_with_what_a_step_does() -> None:
    small, large = (
        floor.step_cost(resized_recipe("lava", size, 20, 32), "plain").flops for size in (64, 128)
    )
    assert large == pytest.approx(4 * small, rel=0.1)
    recipe = load_recipe("lava")
    alone, plain, penalty = (floor.step_cost(recipe, kind).flops for kind in ("alone", "plain", "penalty"))
    assert alone < plain < penalty
    longer = floor.step_cost(override(recipe, {"data.seq_len": 200}), "plain").flops
    assert longer < 1.1 * plain  # more states, no more frames


# --- rows ---


def test_kinds_of_steps_are_shared_out_over_a_run() -> None:
    assert sum(races.step_kind_shares(load_recipe("lava")).values()) == pytest.approx(1)
    assert races.step_kind_shares(load_recipe("lava"))["alone"] == 0.4
    assert races.step_kind_shares(load_recipe("duralava")) == {"plain": 1.0}


def test_a_race_gives_a_row_a_kind_their_mean_and_ratios_of_turns() -> None:
    recipe = load_recipe("lava")
    ours = {"alone": [1.0, 1.0], "plain": [2.0, 4.0], "penalty": [3.0, 3.0]}
    theirs = {"alone": [1.0, 1.0], "plain": [1.0, 2.0], "penalty": [3.0, 3.0]}
    peaks = {
        who: {
            kind: {"peak_process_gb": gb} for kind, gb in (("alone", 1.0), ("plain", 2.0), ("penalty", 3.0))
        }
        for who in ("mlxlava", "PyTorch")
    }
    timings = {"mlxlava": ours, "PyTorch": theirs}
    rows = races.train_rows("train x", recipe, timings, peaks, {"matmul": 1e11, "copy": 1e10})
    found = {(one["name"], one["who"]): one for one in rows}
    assert len(rows) == 8
    plain = found["train x plain", "PyTorch"]
    assert plain["median_s"] == 1.5 and plain["mlxlava_ratio"] == 2.0
    assert plain["clips_per_s"] == 24 / 1.5 and plain["frames_per_s"] == 7 * 24 / 1.5
    assert plain["peak_process_gb"] == 2.0 and plain["left_of_16_gb"] == 14.0
    mean = found["train x mean", "mlxlava"]
    assert mean["min_s"] == pytest.approx(0.4 * 1 + 0.6 * (7 / 8 * 2 + 1 / 8 * 3))
    assert mean["floor_s"] > 0 and mean["peak_process_gb"] == 3.0


def test_what_does_not_fit_is_said_and_not_started() -> None:
    session = SuiteState(QUICK_EFFORT, 1.0, Path())
    (one,) = races.train_job("duralava", 256, 200, []).measure(session)
    assert one["who"] == "mlxlava" and "would not fit in 1 GB" in one["note"]


def test_only_picks_by_name_and_a_wrong_one_is_a_users_error() -> None:
    names = [job.name for job in suite.all_jobs(quick=False, with_peer=True)]
    assert len(names) == len(set(names))
    assert sum("peer" in name and "train " in name for name in names) == 7
    with pytest.raises(UserError, match="matches none of: start help"):
        suite.main(only="no such thing")
    with pytest.raises(UserError, match="regular expression"):
        suite.main(only="(")


def test_every_row_is_shown_in_a_table_or_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row("train lava 64x64 seq20 plain", floor_s=0.5, clips_per_s=32.0, frames_per_s=224.0),
        row("train lava 64x64 seq20 plain", who="PyTorch", mlxlava_ratio=0.83),
        row("play live lava 64x64", median=0.25, frames_per_s=1200.0),
        row("rate matmul", per_s=1.5e11),
        {"name": "train lava 256x256 seq200", "who": "mlxlava", "note": "skipped: too large"},
    ]
    print_tables(rows)
    said = capsys.readouterr().out
    for text in ("train lava 64x64 seq20", "PyTorch", "0.83", "2.00", "1200 frames/s", "150 GFLOP/s"):
        assert text in said
    assert "train lava 256x256 seq200, mlxlava: skipped: too large" in said


# --- Ctrl-C ---


def test_ctrl_c_in_a_race_keeps_the_turns_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def turns(name: str, recipe: Any, racing: Any, effort: Any, timings: Any, peaks: Any) -> Any:
        timings["mlxlava"] = {"plain": [1.0, 3.0]}
        peaks["mlxlava"] = {"plain": {"peak_process_gb": 1.0}}
        raise KeyboardInterrupt

    monkeypatch.setattr(races, "race_in_turns", turns)
    session = SuiteState(QUICK_EFFORT, None, Path())
    (one,) = races.train_job("duralava", 64, 20, []).measure(session)
    assert one["median_s"] == 2.0 and session.interrupted


def test_ctrl_c_shows_and_saves_what_was_measured_so_far(tmp_path: Path) -> None:
    """Pressed while mlxlava plays for the second measurement, as a terminal sends it: to all processes."""
    code = """if True:
        import sys
        from pathlib import Path
        from mlxlava.bench import suite
        from mlxlava.cli import main
        suite.RESULTS_FOLDER = Path("saved")
        sys.argv = ["mlxlava", "bench", "--quick", "--save", "--only", "^start help|^play live"]
        main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while "bench 2/2" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted at play live" in errors and "Traceback" not in errors
    result = json.loads(said.splitlines()[-1])
    assert result["interrupted"] and [row["name"] for row in result["rows"]] == ["start help"]
    (saved,) = (tmp_path / "saved").glob("*.json")
    assert json.loads(saved.read_text(encoding="utf-8")) == result


# --- processes ---


def test_a_worker_answers_and_ends() -> None:
    with echo("{'said': text}") as worker:
        assert worker("a") == {"said": "a"}
        assert worker("b") == {"said": "b"}


def test_a_worker_that_fails_says_why_in_one_line() -> None:
    with echo("1 / 0") as worker, pytest.raises(WorkerDied, match="ZeroDivisionError: division by zero"):
        worker("a")


def test_a_worker_that_is_killed_or_silent_is_no_crash() -> None:
    with (
        echo("__import__('os').kill(__import__('os').getpid(), 9)") as worker,
        pytest.raises(WorkerDied, match="out of memory"),
    ):
        worker("a")
    with (
        echo("__import__('time').sleep(60)", timeout=0.2) as worker,
        pytest.raises(WorkerDied, match=r"no answer within 0\.2 s"),
    ):
        worker("a")
    assert describe_exit(-11) == "ended by signal 11" and describe_exit(3) == "ended with status 3"


# --- results ---


def test_results_are_named_by_time_and_kind() -> None:
    about = {"time": "2026-01-02T03:04:05+00:00", "device": "CPU"}
    assert suite.result_file_name(about, False).startswith("20260102T030405Z-")
    assert suite.result_file_name(about, True).endswith("-cpu-quick.json")


def test_only_what_lies_apart_is_told() -> None:
    assert compare.verdict(row(median=1.0), row(median=1.15)) == ""
    assert compare.verdict(row(median=1.0), row(median=1.3)) == "slower"
    assert compare.verdict(row(median=1.0), row(median=0.7)) == "faster"
    # Two single measurements have no spread of their own.
    once, again = ({**row(median=m), "min_s": m, "max_s": m} for m in (1.0, 1.08))
    assert compare.verdict(once, again) == ""


def test_two_results_meet_in_the_rows_they_share() -> None:
    old = result(row(median=2.0), row("gone"), {"name": "x", "who": "mlxlava", "note": "skipped"})
    new = result(row(median=1.0, peak_process_gb=3.0), row("new"), row("x"), mlx="2")
    (line,) = compare.compared(old, new)
    assert line[2:6] == ("2", "1", "0.50", "faster") and line[-1] == "1.50 more"
    assert compare.differences(old, new) == ["mlx: 1 → 2"]


def test_the_last_run_is_held_against_the_one_before_of_its_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("20260101T000000Z-linux-cpu", "20260102T000000Z-darwin-gpu", "20260103T000000Z-linux-cpu")
    for index, name in enumerate(names):
        text = json.dumps(result(row(median=1.0 + index)))
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(compare, "RESULTS_FOLDER", tmp_path)
    compare.main([])
    said = capsys.readouterr().out
    assert f"{names[0]}.json" in said and f"{names[2]}.json" in said
    assert "slower" in said and "1 rows, 1 beyond the spread" in said
    compare.main([str(tmp_path / f"{names[1]}.json")])
    assert f"{names[1]}.json" in capsys.readouterr().out


def test_comparing_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="mlxlava bench --save"):
        compare.chosen([], tmp_path)


def test_the_chart_has_a_line_for_each_recipe_and_contestant(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row(f"train lava {size}x{size} seq20 {kind}") for size in (128, 64) for kind in ("plain", "mean")]
    rows += [row("train duralava 64x64 seq20 plain", who="PyTorch"), row("play live lava 64x64")]
    found = chart.curves_of_result(result(*rows))
    assert found == {
        "lava, sequence 20: mlxlava": [(64, 1.0, 2.0), (128, 1.0, 2.0)],
        "duralava, sequence 20: PyTorch": [(64, 1.0, 2.0)],
    }
    chart.write_chart(result(*rows), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
