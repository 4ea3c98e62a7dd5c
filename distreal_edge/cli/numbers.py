"""Numbers on the command line, as several verbs read them."""

from __future__ import annotations

import math
from typing import Any, Final

import click

from distreal_edge.errors import ConfigError

__all__ = ["MOST_THREADS", "FiniteRange", "parse_threads"]

MOST_THREADS: Final = 256


class FiniteRange(click.FloatRange):
    """A range of numbers that refuses NaN, which click finds in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail as click's types do."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail("nan is not a number", param, ctx)
        return number


def parse_threads(text: str) -> list[int]:
    """Return the numbers of threads in a text such as "1,2"; raise `ConfigError`."""
    numbers = [number.strip() for number in text.split(",")]
    # The length comes first: Python refuses to read numbers of thousands of digits.
    if not all(
        number.isascii() and number.isdigit() and len(number) <= 3 and 1 <= int(number) <= MOST_THREADS
        for number in numbers
    ):
        raise ConfigError(
            f"--threads {text!r}: write numbers from 1 to {MOST_THREADS} with commas between them, as 1,2"
        )
    return [int(number) for number in numbers]
