"""Options that are numbers: one that cannot be is one line that names it, before anything is read or made."""

import math
from typing import Callable, Optional, Union

from kdlib.errors import RecipeError

Number = Optional[Union[int, float]]


def require_positive(**values: Number) -> None:
    """See that the values of these options, those that are given, are above 0 and finite; RecipeError for the first that is
    not, which ``test_words`` would name as --test-words."""
    _require(values, lambda value: value > 0, "positive")


def require_not_negative(**values: Number) -> None:
    """The same of 0 or more."""
    _require(values, lambda value: value >= 0, "0 or more")


def _require(values: dict, fits: Callable[[float], bool], what: str) -> None:
    for name, value in values.items():
        if value is not None and (value == math.inf or not fits(value)):  # nor does nan fit
            raise RecipeError(f"--{name.replace('_', '-')} {value} is not {'finite' if value == math.inf else what}")
