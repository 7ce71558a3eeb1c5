"""The layouts of LibriSpeech (its parts, and what of a part is there) and of MUSAN."""

import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Set, Tuple

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH

from kdlib.errors import RecipeError

PARTS = (*LIBRISPEECH, *MINI_LIBRISPEECH)
MUSAN_PARTS = ("music", "speech", "noise")


class PartState(NamedTuple):
    """What is there of a part: its transcribed utterances and chapters, and the files or chapters that it lacks."""

    utterances: int
    chapters: int
    lacks: List[str]

    @property
    def whole(self) -> bool:
        return self.utterances > 0 and not self.lacks


def split_names(words: str) -> List[str]:
    """The parts that ``words`` names, blanks between them; a RecipeError for none, an unknown one or one named twice."""
    names = words.split()
    for name in names:
        if name not in PARTS:
            raise RecipeError(f"{name} is no part of LibriSpeech: choose --parts, --dev-parts and --test-sets from "
                              f"{', '.join(PARTS)}")
        if names.count(name) > 1:
            raise RecipeError(f"{name} is named twice: a part is for training, for the dev loss or for testing")
    return names


def read_transcript(path: Path) -> List[Tuple[str, str]]:
    """(utterance id, transcript) of each line of a ``*.trans.txt``; the transcript is empty where there is none."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.split(maxsplit=1) for line in text.split("\n")]  # splitlines() would cut at other separators, too
    return [(words[0], words[1] if len(words) > 1 else "") for words in lines if words]


def sounds(musan: Path, part: str) -> List[Path]:
    """The files of a part of MUSAN. Folders may be links, which a search through all that is below would not follow."""
    return sorted((musan / part).glob("*/*.wav"))


def listed_chapters(root: Path) -> Dict[str, Set[str]]:
    """The chapters, as reader/chapter, that the corpus's own CHAPTERS.TXT says each part has; empty without that file."""
    chapters: Dict[str, Set[str]] = {}
    if (root / "CHAPTERS.TXT").is_file():
        for line in (root / "CHAPTERS.TXT").read_text(encoding="utf-8", errors="replace").splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if not line.startswith(";") and len(cells) > 3:
                chapters.setdefault(cells[3], set()).add(f"{cells[1]}/{cells[0]}")
    return chapters


def look_at(part: Path, listed: Set[str]) -> PartState:
    """What is in the folder of a part; ``listed`` are the chapters that it should have, as far as is known."""
    there, lacks, utterances = set(), [], 0
    for folder in sorted(path for path in part.glob("*/*") if path.is_dir()):
        chapter = f"{folder.parent.name}/{folder.name}"
        there.add(chapter)
        files = {entry.name for entry in os.scandir(folder) if entry.is_file()}  # a link to nothing is none
        transcript = folder / f"{folder.parent.name}-{folder.name}.trans.txt"
        if transcript.name not in files:
            lacks.append(f"{part.name}/{chapter}/{transcript.name}")
            continue
        ids = [name for name, _ in read_transcript(transcript)]
        utterances += len(ids)
        # Put together as words: an id may be anything, an absolute path too.
        lacks += [f"{part.name}/{chapter}/{id_}.flac" for id_ in ids if f"{id_}.flac" not in files]
    return PartState(utterances, len(there), [f"{part.name}/{name}" for name in sorted(listed - there)] + lacks)
