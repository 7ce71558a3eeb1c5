"""From a corpus on disk to checked cuts of its parts: train, dev and test sets, held out where the corpus has none."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import Cut

from kdlib.corpus import checked_cuts, write_cuts
from kdlib.corpus_forms import Part, read_manifests
from kdlib.errors import RecipeError
from kdlib.files import PathLike
from kdlib.manifests import Skipped, normalise_text

# Fewer groups than this are too few to hold some out: what is left would be another corpus.
_LEAST_GROUPS = 10


def part_roles(names: Iterable[str]) -> Dict[str, List[str]]:
    """The parts of a corpus that make train and dev, and each test set; by the words in their names.

    >>> part_roles(["train-clean-5", "dev-clean-2", "test-other"])
    {'train': ['train-clean-5'], 'dev': ['dev-clean-2'], 'test-other': ['test-other']}
    """
    roles: Dict[str, List[str]] = {"train": [], "dev": []}
    for name in names:
        words = re.findall("[a-z]+", name.lower())
        if any(word.startswith(("test", "eval")) or word == "tst" for word in words):
            roles[re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")] = [name]
        elif any(word.startswith("dev") or word in ("val", "valid", "validation", "cv") for word in words):
            roles["dev"].append(name)
        else:
            roles["train"].append(name)
    return {role: parts for role, parts in roles.items() if parts}


def _place(name: str) -> str:
    """What names are put in order by: the same on every machine, and nothing to do with what they are called."""
    return hashlib.sha256(name.encode()).hexdigest()


def hold_out(cuts: Sequence[Cut], shares: Mapping[str, float]) -> Tuple[Dict[str, List[Cut]], str]:
    """Deal cuts out: to each part its share of the hours, to ``train`` the rest; and what the parts have no two of.

    Whole speakers go to a part, so that a test set has none that training hears; where there are fewer than ten, or the
    speaker of a cut is not known, whole recordings; where these are too few, utterances. Which ones depends on a hash of
    their names alone.

    Raises:
        RecipeError: there are fewer cuts than parts.
    """
    if len(cuts) <= len(shares):
        raise RecipeError(f"{len(cuts)} utterances that can be used are too few to hold {', '.join(shares)} out of them: "
                          "mend the corpus (see what was skipped above) or add to it")
    ways: List[Tuple[str, Callable[[Cut], Optional[str]]]] = [
        ("speaker", lambda cut: cut.supervisions[0].speaker),
        ("recording", lambda cut: cut.supervisions[0].recording_id), ("utterance", lambda cut: cut.id)]
    for by, key in ways:
        groups: Dict[Optional[str], List[Cut]] = defaultdict(list)
        for cut in cuts:
            groups[key(cut)].append(cut)
        if by != "utterance" and (None in groups or not _LEAST_GROUPS <= len(groups) < len(cuts)):
            continue
        dealt = _deal(groups, shares, strict=by != "utterance")
        if dealt is not None:
            return dealt, by
    raise AssertionError("utterances can always be dealt out")


def _deal(groups: Mapping[str, List[Cut]], shares: Mapping[str, float], strict: bool) -> Optional[Dict[str, List[Cut]]]:
    """Groups to parts, in the order of their hashes; None where ``strict`` and a part would miss its share by half."""
    seconds = {name: sum(cut.duration for cut in group) for name, group in groups.items()}
    total = sum(seconds.values())
    left = sorted(groups, key=_place)
    dealt: Dict[str, List[Cut]] = {"train": []}
    for part, share in shares.items():
        taken: List[str] = []
        got = 0.0
        for name in left:
            if got >= 0.9 * share * total and taken:
                break
            if got + seconds[name] <= 1.5 * share * total or not strict and not taken:
                taken.append(name)
                got += seconds[name]
        if strict and got < 0.5 * share * total:
            return None
        left = [name for name in left if name not in set(taken)]
        dealt[part] = [cut for name in taken for cut in groups[name]]
    dealt["train"] = [cut for name in left for cut in groups[name]]
    return dealt


def subset(part: Part, hours: float) -> Part:
    """About so many hours of a part's utterances, chosen by a hash of their ids, and their recordings; all for 0."""
    recordings, supervisions = part
    if hours <= 0:
        return part
    chosen, seconds = [], 0.0
    for segment in sorted(supervisions, key=lambda segment: _place(segment.id)):
        if seconds >= hours * 3600:
            break
        chosen.append(segment)
        seconds += max(segment.duration, 0.0)
    named = {segment.recording_id for segment in chosen}
    return (RecordingSet.from_recordings(r for r in recordings if r.id in named), SupervisionSet.from_segments(chosen))


def prepare_parts(corpus: PathLike, output: PathLike, parts: Mapping[str, Sequence[str]], held_out: Mapping[str, float],
                  sampling_rate: int, normalise: Callable[[Optional[str]], str] = normalise_text, hours: float = 0.0,
                  jobs: int = 1) -> None:
    """Write the checked cuts of every part (stage 1 of a recipe): ``parts`` says which of the corpus's make each.

    Args:
        corpus: folder of Lhotse manifests that stage 0 wrote.
        held_out: parts that get a share of train's hours (see :func:`hold_out`).
        hours: use only so much of train, and a quarter of it of each other part; 0 for all.
    Raises:
        RecipeError: a part is not there, or nothing in it can be used.
    """
    there = read_manifests(Path(corpus), Skipped())
    for role, names in parts.items():
        skipped = Skipped()
        wanted = hours if role == "train" else hours / 4
        cuts = []
        for name in names:
            if name not in there:
                raise RecipeError(f"{corpus} holds no part {name}, which makes {role}: it holds {', '.join(sorted(there))}")
            cuts += checked_cuts(*subset(there[name], wanted / len(names)), sampling_rate, skipped, normalise, jobs)
        skipped.report(f"{corpus}, {role}")
        dealt = {role: cuts}
        if role == "train" and held_out:
            dealt, by = hold_out(cuts, held_out)
            print(f"{', '.join(held_out)}: held out of train by {by}")
        for part, some in dealt.items():
            write_cuts(output, part, CutSet.from_cuts(sorted(some, key=lambda cut: cut.id)))
