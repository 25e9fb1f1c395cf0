"""Learn a lava lamp from footage and play it for ever, in MLX."""

from typing import TYPE_CHECKING, Any

from mlxlava.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "LavaLamp",
    "TrainedRun",
    "UserError",
    "__version__",
    "drift",
    "load",
    "resume",
    "score",
    "train",
]

if TYPE_CHECKING:
    from mlxlava.api import LavaLamp, TrainedRun, drift, load, resume, score, train
else:
    # Late: `import mlxlava` must load neither MLX nor NumPy, which --help does without.
    def __getattr__(name: str) -> Any:
        if name in __all__:
            from mlxlava import api

            return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
