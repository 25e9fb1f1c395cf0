"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from mlxlava.config import parse_size

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only for the type checker
    """``N`` or ``HxW``, as (height, width)."""

    name = "N|HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        return value if isinstance(value, tuple) else parse_size(value)


SIZE_TYPE = _SizeType()


class NumberRange(click.FloatRange):
    """A number within bounds. Click alone would also take ``nan``, which no bound excludes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or an error that has the bounds."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number within bounds.", param, ctx)
        return number


def positive_number(most: int = 10**6) -> NumberRange:
    """The type of an option that takes a number above 0, and at most ``most``."""
    return NumberRange(0, most, min_open=True)


def combine_options(*decorators: Decorator) -> Decorator:
    """Combine several options into one decorator. The help shows them in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(decorators):
            function = option(function)
        return function

    return decorate


# main() reads this option from sys.argv, since it also has to work if the other arguments are wrong.
debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show where an error came from."
)

cropping_options = combine_options(
    click.option("--size", type=SIZE_TYPE, help="Height and width of a frame; multiples of 16."),
    click.option(
        "--crop",
        metavar="X,Y,W,H|auto",
        help="Part of the picture. When not given, train finds the lamp, and footage takes the centre.",
    ),
    click.option("--every-nth", type=click.IntRange(1, 10**6), help="Keep every n-th frame."),
    click.option(
        "--source-fps",
        type=positive_number(),
        metavar="F",
        help="True frames a second, where the files tell none or a wrong one.",
    ),
)
