"""What tests of compiled code share: a cache folder of their own, and processes of Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mlxlava"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Files that are made can be written to by everyone, unless the code that makes them sees to it."""
    before = os.umask(0)
    yield
    os.umask(before)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process; an empty value stands for a variable that is not set."""
    merged = {name: value for name, value in {**os.environ, **environment}.items() if value}
    return subprocess.run([sys.executable, "-c", code], env=merged, capture_output=True, text=True)
