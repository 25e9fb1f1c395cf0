"""The variable that limits how many cores are used."""

from __future__ import annotations

import pytest

from mlxlava.cores import CORES_ENV_VAR, core_limit


@pytest.mark.parametrize(("text", "limit"), [("2", 2), ("", None), ("0", None), ("-1", None), ("many", None)])
def test_only_a_number_above_0_is_a_limit(
    text: str, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CORES_ENV_VAR, text)
    assert core_limit() == limit
    monkeypatch.delenv(CORES_ENV_VAR)
    assert core_limit() is None
