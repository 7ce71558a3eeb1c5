"""What the dataclasses of settings ask of their values, and the words in which they refuse one."""

import math
from typing import Any, Sequence

from kdlib.errors import RecipeError


def require(holds: bool, key: str, value: Any, wanted: str) -> None:
    """A :class:`RecipeError` unless it ``holds``: ``key`` (section.name) is ``value``; it must be ``wanted``."""
    if not holds:
        raise RecipeError(f"{key} is {value!r}; it must be {wanted}")


def require_above_0(section: Any, name: str, *keys: str) -> None:
    """:func:`require` of each of the ``keys`` of the section ``name`` that it is above 0."""
    for key in keys:
        require(getattr(section, key) > 0, f"{name}.{key}", getattr(section, key), "above 0")


def require_amounts(section: Any, name: str, *keys: str, most: float = math.inf) -> None:
    """:func:`require` of each of them that it is finite, and from 0 to ``most``."""
    for key in keys:
        value = getattr(section, key)
        require(0 <= value <= most and value < math.inf, f"{name}.{key}", value,
                "0 or more, and finite" if most == math.inf else f"from 0 to {most:g}")


def require_range(key: str, values: Sequence[float], what: str) -> None:
    """:func:`require` that there are two finite ``values``, the lesser first; ``what`` is wanted."""
    require(len(values) == 2 and -math.inf < values[0] <= values[1] < math.inf, key, values, what)
