"""Learn a lava lamp from footage and play it for ever, in MLX."""

__version__ = "0.1.0"
