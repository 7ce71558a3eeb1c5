"""What is wrong with a key of a config, in words that say what to write in its place."""

from dataclasses import fields, is_dataclass
from typing import Any, List

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError


def misplaced(known: Any, layer: Any) -> str:
    """Which key of ``layer`` it is that ``known`` cannot be merged with, and what is wrong with it."""
    layer = OmegaConf.to_container(layer) if OmegaConf.is_config(layer) else layer
    path: List[str] = []
    while isinstance(layer, dict):
        for key, value in layer.items():
            try:
                OmegaConf.merge(known, {key: value})
            except (OmegaConfBaseException, TypeError, ValueError):
                break
        else:
            break
        path, layer = [*path, str(key)], value
        known = OmegaConf.create({}) if OmegaConf.is_missing(known, key) else known[key]
        if not OmegaConf.is_dict(known):
            break
    found, wanted = ("a mapping" if isinstance(x, dict) or OmegaConf.is_dict(x) else
                     "a list" if isinstance(x, list) or OmegaConf.is_list(x) else "a value" for x in (layer, known))
    where = f"key '{'.'.join(path)}'" if path else "all of it"
    if found == wanted or wanted == "a value":  # below a list, or in a section that may be left out
        return f"{where}, {str(layer)[:80]}, has a list, a mapping or a value in the place of another of these"
    return f"{where} is {found}, {str(layer)[:80]}; it must be {wanted}, given whole"


def known_keys(error: Exception) -> str:
    """The keys of the section that an unknown key was looked for in, as the end of a message; of other errors nothing."""
    section = getattr(error, "object_type", None)
    if isinstance(error, ValidationError) or not is_dataclass(section):
        return ""
    return "; known keys there: " + ", ".join(f.name for f in fields(section))
