"""What `mlxlava info` tells of a machine, for a report of a fault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlxlava.machine import EXTRA_PACKAGES, PACKAGES, machine_facts, shorten_home

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_a_report_has_what_is_asked_for_first() -> None:
    facts = machine_facts()
    assert {
        "mlxlava",
        "python",
        "system",
        "mlx",
        "device",
        "memory budget",
        "cache",
        "weights",
    } <= facts.keys()
    assert "numpy 2" in facts["packages"] or "numpy 1" in facts["packages"]
    assert facts["ffmpeg"] and not facts["ffmpeg"].startswith("none")


@pytest.mark.skipif(not PYPROJECT.is_file(), reason="needs a checkout")
def test_it_names_every_package_that_a_user_may_have() -> None:
    text = re.sub(r"^\s*#.*$", "", PYPROJECT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    tables = text.partition("\ndependencies = [")[2].partition("\ndev = [")[0]
    named = {re.split(r"[>=<;\[ ]", each)[0] for each in re.findall(r'"([^"]+)"', tables)}
    backends = {"mlx", "onednn-cpu-gomp", "scipy-openblas32"}  # device and BLAS tell of them
    assert named - backends - {"tomli"} == {*PACKAGES, *EXTRA_PACKAGES}


def test_variables_that_change_what_is_computed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")  # 0 is what the package sets
    monkeypatch.setenv("MLXLAVA_CORES", "1")
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 1 192.0.2.8 22")
    monkeypatch.setenv("A_PASSWORD", "secret")
    told = machine_facts()["variables"]
    assert "MLX_ENABLE_TF32=1" in told and "MLXLAVA_CORES=1" in told and "SSH_CONNECTION=set" in told
    assert "192.0.2" not in told and "secret" not in told


def test_the_users_name_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert shorten_home(tmp_path / "src/mlxlava") == "~/src/mlxlava"
    assert shorten_home(Path("/opt/mlxlava")) == "/opt/mlxlava"
    assert not [text for text in machine_facts().values() if str(tmp_path) in text]


def test_it_works_where_mlx_cannot_be_loaded() -> None:
    code = "import sys; sys.modules['mlx.core'] = None; import mlxlava.cli; mlxlava.cli.main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "info"], capture_output=True, text=True, env={**os.environ}
    )
    assert ended.returncode == 0, ended.stderr
    assert "cannot be loaded" in ended.stdout and "weights" in ended.stdout
