"""What is wrong with a key of a config, in words that say what to write in its place."""

from dataclasses import fields, is_dataclass
from typing import Any, Callable, Optional, Tuple

from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

FAULTS = (OmegaConfBaseException, TypeError, ValueError)


def merge_layer(known: Any, layer: Any) -> Any:
    """``known`` with the values of ``layer``; one of :data:`FAULTS` where they do not fit or refer to nothing."""
    merged = OmegaConf.merge(known, layer)
    OmegaConf.to_container(merged, resolve=True)
    return merged


def what_is_wrong(known: Any, layer: Any) -> str:
    """Which key of ``layer`` it is that ``known`` cannot be merged with, and what is wrong with it."""
    layer = OmegaConf.to_container(layer) if OmegaConf.is_config(layer) else layer
    path, part, around = _innermost(known, "", layer, lambda inner: inner)
    where = f"key '{path}'" if path else "all of it"
    found = _kind(part)
    fitting = [_kind(empty) for empty in ({}, []) if _fault(known, around(empty)) is None]
    if len(fitting) == 1 and found not in fitting:  # where both fit, anything does
        wanted = f"{fitting[0]}, given whole" + (", such as [a, b]" if fitting == ["a list"] else "")
        return f"{where} is {found}, {str(part)[:80]}; it must be {wanted}"
    error = _fault(known, around(part))
    return f"{where}: {str(error).splitlines()[0]}{_known_keys(error)}"


def _fault(known: Any, layer: Any) -> Optional[Exception]:
    try:
        merge_layer(known, layer)
    except FAULTS as error:
        return error
    return None


def _innermost(known: Any, path: str, part: Any, around: Callable[[Any], Any]) -> Tuple[str, Any, Callable[[Any], Any]]:
    """The path to what cannot be merged in ``part``, which cannot; it; and what makes a layer of that place alone.

    It is tried out, since OmegaConf's errors do not tell the place of a list's item or of a section that may be left out.
    """
    if isinstance(part, (dict, list)) and _fault(known, around(type(part)())) is None:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            def inside(inner: Any, key: Any = key) -> Any:
                return around({key: inner} if isinstance(part, dict) else [inner])

            if _fault(known, inside(value)) is not None:
                below = f"{path}[{key}]" if isinstance(part, list) else f"{path}.{key}" if path else str(key)
                return _innermost(known, below, value, inside)
    return path, part, around


def _kind(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a value"


def _known_keys(error: Optional[Exception]) -> str:
    """The keys of the section that an unknown key was looked for in, as the end of a message; of other errors nothing."""
    section = getattr(error, "object_type", None)
    if not isinstance(error, (ConfigAttributeError, ConfigKeyError)) or not is_dataclass(section):
        return ""
    return "; known keys there: " + ", ".join(f.name for f in fields(section))
