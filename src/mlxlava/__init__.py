"""Learn a lava lamp from footage and play it for ever, in MLX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlxlava.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "CheckReport",
    "LavaLamp",
    "TrainedRun",
    "UserError",
    "__version__",
    "check",
    "drift",
    "export",
    "info",
    "load",
    "plan",
    "report",
    "resume",
    "score",
    "settings",
    "train",
]

if TYPE_CHECKING:
    from mlxlava.api.files import export, info, report, settings
    from mlxlava.api.judging import CheckReport, check, drift, score
    from mlxlava.api.playing import LavaLamp, load
    from mlxlava.api.training import TrainedRun, plan, resume, train
else:
    _FILES = {
        "files": ("export", "info", "report", "settings"),
        "judging": ("CheckReport", "check", "drift", "score"),
        "playing": ("LavaLamp", "load"),
        "training": ("TrainedRun", "plan", "resume", "train"),
    }

    # Late: `import mlxlava` must load neither MLX nor NumPy, which --help does without.
    def __getattr__(name: str) -> Any:
        for file, names in _FILES.items():
            if name in names:
                return getattr(import_module(f"mlxlava.api.{file}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
