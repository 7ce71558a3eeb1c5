"""Work that several machines share: each does its part, in a folder of its own, and one joins them."""

import argparse
import re
import shutil
from pathlib import Path
from typing import Any, Iterable, List, Tuple

from lhotse import CutSet

from kdlib.cuts import shar_index
from kdlib.errors import RecipeError
from kdlib.files import PathLike, read_json, write_json
from kdlib.shar import read_index

JOINED = "joined.json"  # beside what was joined
_FOLDER, _DONE = "parts", "done.json"


def parse_part(text: str) -> Tuple[int, int]:
    """(2, 4) of "2/4", for argparse, whose ArgumentTypeError it raises of anything else."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no part: give K/N with K from 1 to N, such as 2/4")
    return int(match[1]), int(match[2])


def share_folder(output: PathLike, part: Tuple[int, int]) -> Path:
    """The folder that this part leaves what is to be joined in; it is not finished from here on."""
    folder = Path(output) / _FOLDER / "{}-of-{}".format(*part)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DONE).unlink(missing_ok=True)
    return folder


def finish_share(folder: PathLike, made_of: Any) -> None:
    """Say that a part is done, and of what (JSON) it was made."""
    write_json(Path(folder) / _DONE, made_of)


def finished_shares(output: PathLike, made_of: Any) -> List[Path]:
    """The folders of all parts, to be joined; an empty list where nobody began to make parts.

    Raises:
        RecipeError: a part is missing or was made of something else.
    """
    folder = Path(output) / _FOLDER
    found = {path.name: path for path in folder.glob("*-of-*")}
    if not found:
        return []
    remedy = f"make it with --part, or remove {folder} to do all of it here"
    counts = {name.rpartition("-")[2] for name in found}
    if len(counts) > 1:
        raise RecipeError(f"{folder} holds parts of {' and of '.join(sorted(counts))}: remove those that are not to be "
                          "joined")
    shares = []
    for number in range(1, int(counts.pop()) + 1):
        share = folder / f"{number}-of-{next(iter(found)).rpartition('-')[2]}"
        if read_json(share / _DONE, remedy) != made_of:
            raise RecipeError(f"{share} was made of other manifests or with other settings: {remedy}")
        shares.append(share)
    return shares


def finish_joining(output: PathLike, made_of: Any) -> None:
    """Say that the parts are joined, and of what (JSON) they were made, and remove what was to be joined."""
    write_json(Path(output) / JOINED, made_of)
    shutil.rmtree(Path(output) / _FOLDER)


def refuse_joined(output: PathLike, made_of: Any) -> None:
    """See that no part is made again, as by a job that runs a second time, of what is joined: its beginning would remove that.

    Raises:
        RecipeError: the parts are joined, and were made of the same; the message says how to make them anew.
    """
    path = Path(output) / JOINED
    if path.is_file() and read_json(path, "remove it") == made_of:
        raise RecipeError(f"the parts in {output} are made of these manifests with these settings, and joined: remove {path} "
                          "to make them anew")


def check_stored(shares: Iterable[Path], names: Iterable[str], output: PathLike) -> None:
    """See that the features of all shares lie here too, as on a disk of each machine's own they do not.

    Args:
        names: of the files of cuts (cuts_dev.jsonl.gz) in each share, or in place of which an index of shards is.
        output: the folder that shards are named from.
    Raises:
        RecipeError: some do not; the message names the share.
    """
    for share in shares:
        for name in names:
            if shar_index(share / name).exists():
                files = {Path(output) / shard[key] for shard in read_index(shar_index(share / name), some=False)
                         for key in ("cuts", "features")}
            else:
                files = {cut.features.storage_path for cut in CutSet.from_file(share / name) or ()}
            lost = sorted(str(file) for file in files if not Path(file).exists())
            if lost:
                part, _, of = share.name.partition("-of-")
                raise RecipeError(f"share {part} of {of} is lost: {lost[0]} is missing; make it with --part {part}/{of}, or "
                                  "copy here what it made")
