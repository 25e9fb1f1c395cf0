"""How many cores of the CPU may be used."""

from __future__ import annotations

import os

# Environment variable: how many cores of a CPU to use. By default all that the process may use.
CORES_ENV_VAR = "MLXLAVA_CORES"


def core_limit() -> int | None:
    """The number of cores in ``MLXLAVA_CORES``; None if it is not set, or is no number above 0."""
    text = os.environ.get(CORES_ENV_VAR, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None
