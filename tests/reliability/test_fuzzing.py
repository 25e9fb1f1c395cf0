"""Damaged files of every kind are read, or refused. ``MLXLAVA_RELIABILITY=20`` tries 14,000 of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxlava.config import Recipe
from mlxlava.footage.dataset import Footage
from tests.reliability.inputs import make_inputs
from tests.reliability.worker import KINDS, SECONDS

_COUNT = int(100 * float(os.environ.get("MLXLAVA_RELIABILITY", "1")))  # damaged files of each kind
_SEED = int(os.environ.get("MLXLAVA_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny: Recipe, footage: Footage) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "inputs"
    folder.mkdir()
    make_inputs(folder, tiny, footage)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_does_no_harm(inputs: Path, kind: str) -> None:
    scratch = inputs.parent / kind
    scratch.mkdir()
    command = [sys.executable, "-m", "tests.reliability.worker", kind, str(inputs), str(scratch)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(inputs.parent / "cache")}
    ended = subprocess.run(
        [*command, str(_SEED), str(_COUNT)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=SECONDS * _COUNT + 120,
    )
    assert ended.returncode == 0, (
        f"{ended.stdout[-3000:]}{ended.stderr[-2000:]}; the file is in {scratch}/tried"
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    print(kind, found)
    assert found["tried"] == _COUNT
