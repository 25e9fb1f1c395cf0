"""Learn a lava lamp from footage and play it for ever, in MLX."""

from typing import TYPE_CHECKING, Any

from mlxlava.errors import UserError

__version__ = "0.1.0"

__all__ = ["LavaLamp", "UserError", "__version__", "load"]

if TYPE_CHECKING:
    from mlxlava.api import LavaLamp, load
else:
    # Late: `import mlxlava` must not load MLX, which --help and the screens do without.
    def __getattr__(name: str) -> Any:
        if name in ("LavaLamp", "load"):
            from mlxlava import api

            return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
