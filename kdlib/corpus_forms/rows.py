"""The rows of a table as they stand in its file: cells between separators, or objects of JSON."""

import csv
import io
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple, Union

from kdlib.errors import RecipeError

# Where in its file a row is, as "line 3", with its cells, or with the reason why it cannot be read.
Row = Tuple[str, Union[List[str], str]]
# Tabs and bars come first: commas and semicolons stand in transcripts too.
_SEPARATORS = ("\t", "|", ";", ",")
_HALF = re.compile("[\ud800-\udfff]")  # of a character, as JSON may have it


def is_json(text: str) -> bool:
    """Whether a file begins as objects of JSON do, on lines or in an array (or as an array of arrays)."""
    return re.match(r'\s*(\[\s*[\[{]|\{\s*["}])', text) is not None


def json_rows(path: Path, text: str, used: Callable[[List[str]], List[Optional[int]]]) -> List[Row]:
    """A row of all keys, in the order in which they come, and one of each object: on a line each, as NeMo and Hugging Face have
    them, or in one array.

    A key that an object lacks, or has as null, is an empty cell; numbers stand as they are written. A key of which all values
    are nested gets "(nested)" after its name; where only some are, their rows cannot be read if the place of the key is among
    those that are ``used`` of all keys, and else their cells are empty.

    Raises:
        RecipeError: broken JSON, or something that is no object, or one object that holds others, or half of a character in a
            key.
    """
    decoder = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
    objects, number = [], 1
    remedy = "write one whole object on each line, or one array of them"
    try:
        if text.lstrip().startswith("["):
            objects = [(f"item {place}", found) for place, found in enumerate(decoder.decode(text), 1)]
        else:
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    objects.append((f"line {number}", decoder.decode(line)))
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}, line {number + error.lineno - 1}: broken JSON ({error.msg}): {remedy}") from None
    except RecursionError:
        raise RecipeError(f"{path}, line {number}: JSON that is nested too deep: {remedy}") from None
    for where, found in objects:
        if not isinstance(found, dict):
            raise RecipeError(f"{path}, {where}: JSON, but no object: {remedy}")
        half = next((key for key in found if _HALF.search(key)), None)
        if half is not None:
            raise RecipeError(f"{path}, {where}: its key {ascii(half)} holds half of a character, which no file can: rename it")
    if len(objects) == 1 and objects[0][1] and all(map(_is_nested, objects[0][1].values())):
        raise RecipeError(f"{path} is one object, which holds others: {remedy}")
    keys = list(dict.fromkeys(key for _, found in objects for key in found))
    plain = {key for _, found in objects for key, value in found.items() if value is not None and not _is_nested(value)}
    nested = {key for _, found in objects for key, value in found.items() if _is_nested(value)} - plain
    titles = [f"{key} (nested)" if key in nested else key for key in keys]
    needed = [keys[place] for place in used(titles) if place is not None]
    rows: List[Row] = [("keys", titles)]
    for where, found in objects:
        cells = ["" if _is_nested(found.get(key)) else _cell(found.get(key)) for key in keys]
        mixed = [key for key in needed if _is_nested(found.get(key))]
        if mixed:
            rows.append((where, f"its {mixed[0]} is nested, and a single value in other rows"))
        elif _HALF.search("".join(cells)):
            rows.append((where, "it holds half of a character (\\ud800 to \\udfff), which no file can"))
        else:
            rows.append((where, cells))
    return rows


def _is_nested(value: object) -> bool:
    return isinstance(value, (dict, list))


def _cell(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value).lower()  # true, not Python's True


def separated_rows(text: str, is_audio: Callable[[str], bool]) -> Callable[[int], Iterator[Row]]:
    """A function that gives each row of cells that is not blank, by the number of its first line.

    Its argument is how many columns there are, 0 where that is not known. A quote that nothing closes runs on through the rows
    after it, until another does not fit, or until there are not that many columns, or a row that it took in has a cell of its
    own that ``is_audio``. These rows are then read again, without the one of the quote.
    """
    lines = list(io.StringIO(text, newline=""))
    named = re.fullmatch(r"sep=(.)\s*", lines[0], re.IGNORECASE) if lines else None  # for Excel
    if named:
        lines[0] = "\n"
    # Between separators that divide as many rows, audio decides.
    separator = named[1] if named else max(_SEPARATORS, key=lambda some: _agreement(lines, some, is_audio))
    return lambda columns: _rows(lines, separator, is_audio, columns)


def _rows(lines: List[str], separator: str, is_audio: Callable[[str], bool], columns: int) -> Iterator[Row]:
    place = 0

    def rest() -> Iterator[str]:
        nonlocal place
        while place < len(lines):
            place += 1
            yield lines[place - 1]

    while place < len(lines):
        first = place
        if not lines[first].strip():
            place += 1
        elif separator in "\t|":
            place += 1
            yield f"line {place}", [_unquoted(cell) for cell in lines[first].rstrip("\r\n").split(separator)]
        else:
            try:
                row = next(csv.reader(rest(), delimiter=separator, strict=True))
                if columns and len(row) != columns and place > first + 1:
                    raise csv.Error(f"the row goes on to line {place}, and has {len(row)} columns")
                if any(is_audio(cell) for line in lines[first + 1:place] for cell in line.rstrip().split(separator)):
                    raise csv.Error(f"the row goes on to line {place}, over rows with audio of their own")
                yield f"line {first + 1}", row
            except csv.Error as error:
                place = first + 1
                yield f"line {place}", f"its quotes do not fit ({error}): close the one that is open, or double those in a cell"


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if re.fullmatch('"(?:[^"]|"")*"', cell) else cell


def _agreement(lines: List[str], separator: str, is_audio: Callable[[str], bool]) -> Tuple[int, int]:
    """How many of the first rows have the same number of columns, if that is more than one; and a cell that ``is_audio``."""
    rows = [row for _, row in islice(_rows(lines, separator, is_audio, 0), 20) if len(row) > 1 and not isinstance(row, str)]
    return max(Counter(map(len, rows)).values(), default=0), sum(any(map(is_audio, row)) for row in rows)
