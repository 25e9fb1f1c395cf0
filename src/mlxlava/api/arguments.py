"""Checks of arguments: a wrong one is refused at once, in one line that says what is right."""

from __future__ import annotations

import math
import numbers

from mlxlava.errors import UserError


def require_positive(what: str, value: object, advice: str = "") -> None:
    """Raise UserError unless a value is a positive and finite number."""
    if not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise UserError(f"{what} must be positive and finite, not {value!r}{advice}")


def require_integer(what: str, value: object) -> None:
    """Raise UserError unless a value is an integer."""
    if not isinstance(value, numbers.Integral):
        raise UserError(f"{what} must be an integer, not {value!r}")
