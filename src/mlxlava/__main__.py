"""``python -m mlxlava``."""

from mlxlava.cli import main

main()
