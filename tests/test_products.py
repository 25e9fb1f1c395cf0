"""NumPy's products give no warnings, wherever they are made."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest

from mlxlava.products import covariance, matmul

SOURCE = Path(__file__).parents[1] / "src/mlxlava"
PRODUCTS = {"matmul", "dot", "vdot", "inner", "tensordot", "einsum", "cov", "corrcoef", "linalg.multi_dot"}


def test_products_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 7, 3))
    np.testing.assert_array_equal(matmul(x, y), x @ y)
    np.testing.assert_array_equal(covariance(x[0]), np.cov(x[0], rowvar=False))


def test_floating_point_flags_of_a_product_are_no_warnings() -> None:
    """Accelerate leaves flags behind on products that are right; here numbers that overflow set them."""
    large = np.full((20, 20), 1e200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isinf(matmul(large, large)).all()
        covariance(large * np.linspace(-1, 1, 20)[:, None])
        with pytest.raises(RuntimeWarning, match="encountered in matmul"):
            large @ large


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_numpy_multiplies_nowhere_else(path: Path) -> None:
    """On Linux nothing warns, so it is looked for in the source."""
    if path.name == "products.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {f"np.{name}" for name in PRODUCTS}.intersection(called)
    imported = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    operators = {type(node.op) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
    assert ast.MatMult not in operators or "mx" in imported  # MLX multiplies its own arrays
