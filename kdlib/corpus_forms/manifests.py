"""Lhotse manifests."""

import re
from pathlib import Path
from typing import Any, Dict, Mapping, Set

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy

from kdlib.corpus_forms.shared import WHOLE, Part, audio_base, is_there, on_disk
from kdlib.errors import RecipeError, with_its_type
from kdlib.manifests import Skipped

_NAME = r"(?P<prefix>(?:.+?_)??){}(?P<part>(?:_.+)?)(?P<suffix>\.jsonl(?:\.gz)?)"


def read_manifests(folder: Path, skipped: Skipped) -> Dict[str, Part]:
    """Lhotse manifests: each [PREFIX_]recordings[_PART].jsonl.gz with the supervisions of the same name. One without the other
    is left out and counted in ``skipped``. Raises :class:`RecipeError` where there is no pair, two of one part, or a damaged
    one."""
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder: give the one of recordings_*.jsonl.gz and supervisions_*.jsonl.gz")
    parts: Dict[str, Part] = {}
    paired: Set[Path] = set()
    for path in sorted(folder.glob("*.jsonl*")):
        # What begins so has no prefix: a part may be called recordings too.
        match = re.fullmatch(_NAME.format("recordings"), path.name)
        if not match or path.name.startswith("supervisions"):
            continue
        others = [folder / f"{match['prefix']}supervisions{match['part']}{suffix}"
                  for suffix in (match["suffix"], *{".jsonl", ".jsonl.gz"} - {match["suffix"]})]
        paired.update(others)
        other = next((some for some in others if is_there(some)), None)
        if other is None:
            skipped.add(path.name, f"{others[0].name} is not beside it, so it has no transcripts")
            continue
        part = match["part"].strip("_") or WHOLE
        if part in parts:
            part = match["prefix"] + part
        if part in parts:
            raise RecipeError(f"{folder} has the part {part} twice, the second time in {path.name}: take one of them away")
        recordings = _manifest(path, RecordingSet, Recording)
        base = audio_base((s.source for r in recordings for s in r.sources if _names_file(s)), folder)
        recordings = RecordingSet.from_recordings(_with_files(r, base) for r in recordings)
        parts[part] = recordings, _manifest(other, SupervisionSet, SupervisionSegment)
    alone = {path.name: path.name.replace("supervisions", "recordings", 1) for path in sorted(folder.glob("*.jsonl*"))
             if re.fullmatch(_NAME.format("supervisions"), path.name) and not path.name.startswith("recordings")
             and path not in paired}
    if not parts:
        raise RecipeError(f"{folder} holds no recordings_*.jsonl.gz with supervisions_*.jsonl.gz: {_remedy(folder, alone)}")
    for name, wanted in alone.items():
        skipped.add(name, f"{wanted} is not beside it, so it has no audio")
    return parts


def _remedy(folder: Path, alone: Mapping[str, str]) -> str:
    """For a folder without a pair of manifests, where supervisions stand ``alone`` without the recordings of those names."""
    json = sorted(path.name for path in folder.glob("*recordings*.json*") if ".jsonl" not in path.name)
    cuts = sorted(folder.glob("*cuts*.jsonl*"))
    if json:
        return f"write {json[0]} and its like as these (lhotse copy {json[0]} {json[0].partition('.')[0]}.jsonl.gz)"
    if alone:
        name, wanted = next(iter(alone.items()))
        return f"{name} needs {wanted} beside it"
    if cuts:
        return (f"it holds cuts: take them apart (lhotse cut decompose {cuts[0]} PART, with a folder for each part), and give "
                "a folder of what that writes, each recordings.jsonl.gz and supervisions.jsonl.gz with _PART in its name")
    return "give a folder of Lhotse manifests"


def _manifest(path: Path, kind: Any, item: type) -> Any:
    """The whole set of ``kind`` in a file; :class:`RecipeError` where it is damaged or holds anything but ``item``."""
    try:
        found = kind.from_file(path)
        found = kind() if found is None else found.to_eager()  # Lhotse makes None of an empty file
    except Exception as error:  # whatever Lhotse meets in a file that is damaged or something else
        raise RecipeError(f"{path} cannot be read as a Lhotse manifest ({with_its_type(error)}): make it again") \
            from None
    other = next((type(some).__name__ for some in found if not isinstance(some, item)), None)
    if other is not None:
        raise RecipeError(f"{path} holds a {other} where its name says {item.__name__}s: are two files swapped?")
    return found


def _names_file(source: AudioSource) -> bool:
    return source.type == "file" and isinstance(source.source, str)


def _with_files(recording: Recording, base: Path) -> Recording:
    return fastcopy(recording, sources=[
        fastcopy(s, source=on_disk(str(base / s.source))) if _names_file(s) else s for s in recording.sources])
