"""From a corpus on disk to checked cuts of its parts: train, dev and test sets, held out where the corpus has none."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Callable, Dict, Hashable, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from lhotse import CutSet, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.utils import fastcopy, to_list

from kdlib.config import DataConfig
from kdlib.corpus import checked_cuts, normalised, usable_part, write_cuts
from kdlib.corpus_forms import Part, named_apart, plain_name, read_manifests
from kdlib.corpus_forms.shared import said_role
from kdlib.errors import RecipeError
from kdlib.files import PathLike, read_record, write_json
from kdlib.heard import Audio, audio_at, audios_of, heard_together, joined, known_files, mostly_in
from kdlib.manifests import Skipped, SkippedFile, normalise_text, remove_sets
from kdlib.options import require_not_negative, require_positive

# Fewer groups than this are too few to hold some out: what is left would be another corpus.
_LEAST_GROUPS = 10
# A tenth of the hours for each part that the corpus has none of, and never more than that many.
_SHARE, _MOST_HOURS = 0.1, 2.0
_LIMITS = DataConfig()  # which a recipe may set otherwise, and then training counts and names what they leave out


def trainable(cuts: Iterable[Cut]) -> List[Cut]:
    """Those of the cuts that are neither too short nor too long for training."""
    return [cut for cut in cuts if _LIMITS.wrong_length(cut.duration) is None]


def untrainable(cuts: Iterable[Cut]) -> Dict[str, List[str]]:
    """The ids of the others, by what is wrong with their length ("longer than 30 s")."""
    found: Dict[str, List[str]] = {}
    for cut in cuts:
        reason = _LIMITS.wrong_length(cut.duration)
        if reason is not None:
            found.setdefault(reason, []).append(cut.id)
    return found


def _counted(found: Mapping[str, Sequence[str]]) -> str:
    return " and ".join(f"{len(ids)} {reason}" for reason, ids in sorted(found.items()))


def check_trainable(cuts: Sequence[Cut], role: str, source: str) -> None:
    """See that training takes one of the cuts of train, or of dev for its loss, where there are any, at least.

    Raises:
        RecipeError: it takes none; the message says how many are too short or too long, and the remedy.
    """
    if cuts and not trainable(cuts):
        use = "used for the dev loss" if role == "dev" else "trained on"
        raise RecipeError(f"{source} has no utterance that can be {use}: of {len(cuts)} there are "
                          f"{_counted(untrainable(cuts))}; cut long recordings into utterances")


def part_roles(names: Iterable[str]) -> Dict[str, List[str]]:
    """The parts of a corpus that make train and dev, and each test set; by the words in their names
    (:func:`kdlib.corpus_forms.shared.said_role`). Where no name says anything, all make train. What is called
    ``invalidated``, as the clips are that Common Voice's listeners refused, makes nothing.

    >>> part_roles(["train-clean-5", "dev-clean-2", "test-other"])
    {'train': ['train-clean-5'], 'dev': ['dev-clean-2'], 'test-other': ['test-other']}

    Raises:
        RecipeError: two test sets would be called the same, or some names say what their parts are for and others do not.
    """
    said = {name: said_role(name) for name in names if not re.search("invalidated", name, re.IGNORECASE)}
    unclear = [name for name, role in said.items() if role is None]
    if unclear and len(unclear) < len(said):
        raise RecipeError(f"the part{'s' * (len(unclear) > 1)} {', '.join(unclear)} might be for training or for a test, "
                          f"beside {', '.join(name for name in said if name not in unclear)}: rename what they come from, so "
                          "that each name says train, dev or test, or take it out (parts that Lhotse prepares are files once "
                          "'lhotse prepare' wrote them, which --manifests reads)")
    roles = {role: [name for name, some in said.items() if (some or "train") == role] for role in ("train", "dev", "test")}
    named = named_apart(roles.pop("test"), "the corpus",
                        lambda name: re.sub("[-.]+", "-", plain_name(name.lower())).strip("-"))
    return {**{role: parts for role, parts in roles.items() if parts}, **{role: [name] for name, role in named.items()}}


def describe_roles(names: Sequence[str], roles: Mapping[str, Sequence[str]]) -> List[str]:
    """A line for each role that says which of a corpus's parts make it, and one of those that make none; nothing of a corpus
    of one part."""
    if len(names) < 2:
        return []
    left = [name for name in names if not any(name in parts for parts in roles.values())]
    return [*(f"{role} is made of {', '.join(parts)}" for role, parts in roles.items()),
            *([f"left out: {', '.join(left)}"] if left else [])]


def check_apart(parts: Mapping[str, Part], roles: Mapping[str, Sequence[str]],
                normalise: Callable[[Optional[str]], str] = normalise_text) -> None:
    """See that no utterance of train or dev is in another role's parts too, under its id or as the same audio under another
    (the same channels and milliseconds of a file or a copy of it), and that none of the others lies mostly within train's
    audio; test sets may share theirs. Of utterances whose transcript is empty once it is normalised only the ids count.

    Raises:
        RecipeError: one is; the message names it, the parts and the remedy.
    """
    if len(roles) < 2:
        return
    known = known_files(recording for names in roles.values() for name in names for recording in parts[name][0])
    placed = [(role, name, list(_ids_and_audio(parts[name], known, normalise)))
              for role, names in roles.items() for name in names]
    remedy = "take it out of one of them, or leave out a part, since results on what training has heard mean nothing"
    first: Dict[Hashable, Tuple[str, str, str]] = {}
    for role, name, utterances in placed:
        for id_, audio in utterances:
            for kind, key in enumerate((id_, audio)):
                other_role, other, other_id = first.setdefault(key, (role, name, id_))
                if key is None or other_role == role or not {role, other_role} & {"train", "dev"}:
                    continue
                here, there = ({keys[kind] for keys in _ids_and_audio(parts[part], known, normalise)} for part in (name, other))
                both = f"({len(here & there - {None})} of theirs are in both)"
                if key == id_:
                    raise RecipeError(f"the utterance {id_} is in the part {other}, which makes {other_role}, and in {name}, "
                                      f"which makes {role} {both}: {remedy}; if they are two utterances, give each an id of "
                                      "its own")
                raise RecipeError(f"the utterance {other_id} of the part {other}, which makes {other_role}, is the same audio "
                                  f"as {id_} of {name}, which makes {role} {both}: {remedy}")
    trained = joined(audio for role, _, utterances in placed if role == "train" for _, audio in utterances)
    for role, name, utterances in placed:
        # Of less than training takes nothing is said.
        within = [id_ for id_, audio in utterances if role != "train" and audio is not None
                  and audio[2] - audio[1] >= 1000 * _LIMITS.min_seconds and mostly_in(audio, trained)]
        if within:
            raise RecipeError(f"the utterance {within[0]} of the part {name}, which makes {role}, lies mostly within audio of "
                              f"train ({len(within)} of its {len(utterances)} do): {remedy}")


def _ids_and_audio(part: Part, known: Mapping[str, str],
                   normalise: Callable[[Optional[str]], str]) -> Iterator[Tuple[str, Optional[Audio]]]:
    """Each utterance's id and what is heard in it; nothing without a transcript, since nobody trains on it or is tested."""
    recordings = {recording.id: recording for recording in part[0]}
    for segment in part[1]:
        recording = recordings.get(segment.recording_id) if normalised(segment, normalise) else None
        yield segment.id, audio_at(recording, to_list(segment.channel), segment.start, segment.end, known)


def usable_parts(parts: Mapping[str, Part], names: Sequence[str], skipped: Skipped,
                 normalise: Callable[[Optional[str]], str] = normalise_text) -> Dict[str, Part]:
    """Of the parts ``names``, which make one role, what can be used as far as their manifests tell
    (:func:`kdlib.corpus.usable_part`).

    The second utterance of an id is left out and counted in ``skipped`` wherever the first is. A recording with the id of
    another file's in a part before gets one of its own, from the name of its part.
    """
    seen: Set[str] = set()
    taken = {recording.id for name in names for recording in parts[name][0]}
    sources: Dict[str, List[AudioSource]] = {}
    usable: Dict[str, Part] = {}
    for name in names:
        recordings, supervisions = parts[name]
        own: Dict[str, str] = {}
        for recording in recordings:
            id_ = recording.id
            if id_ in sources and sources[id_] != recording.sources and id_ not in own:
                own[id_] = f"{name}-{id_}"
                while own[id_] in taken:
                    own[id_] = f"{name}-{own[id_]}"
                taken.add(own[id_])
        for recording in recordings:
            sources.setdefault(recording.id, recording.sources)
        if own:
            recordings = RecordingSet.from_recordings(fastcopy(r, id=own.get(r.id, r.id)) for r in recordings)
            supervisions = SupervisionSet.from_segments(
                fastcopy(s, recording_id=own.get(s.recording_id, s.recording_id)) for s in supervisions)
        usable[name] = usable_part(recordings, supervisions, skipped, normalise, seen=seen)
    return usable


def checked_role(parts: Mapping[str, Part], names: Sequence[str], sampling_rate: int, skipped: Skipped,
                 normalise: Callable[[Optional[str]], str] = normalise_text, jobs: int = 1) -> List[Cut]:
    """The cuts (:func:`kdlib.corpus.checked_cuts`) of what can be used of the parts ``names`` together
    (:func:`usable_parts`)."""
    return _checked(usable_parts(parts, names, skipped, normalise), sampling_rate, skipped, normalise, jobs)


def _checked(parts: Mapping[str, Part], sampling_rate: int, skipped: Skipped, normalise: Callable[[Optional[str]], str],
             jobs: int) -> List[Cut]:
    return [cut for part in parts.values() for cut in checked_cuts(*part, sampling_rate, skipped, normalise, jobs)]


def _place(name: str) -> str:
    """What names are put in order by: the same on every machine, and nothing to do with what they are called."""
    return hashlib.sha256(name.encode()).hexdigest()


def hold_out(cuts: Sequence[Cut], shares: Mapping[str, float],
             skipped: Optional[Skipped] = None) -> Tuple[Dict[str, List[Cut]], str]:
    """Deal cuts out: to each part its share of the hours, to ``train`` the rest; and what the parts have no two of.

    Whole speakers go to a part, so that a test set has none that training hears; where there are fewer than ten, whole
    recordings; where these are too few, utterances. Which ones depends on a hash of their names alone. The hours are those
    that training takes (:func:`trainable`): utterances of other lengths go to ``train``, where they do no harm and are
    named, and so do those of unknown speakers where the others go by speaker. The same audio under several ids goes where
    the first of them does, and by utterance so do those that overlap for the most part, so that no test is of what was
    trained on. By speaker and by recording an utterance of a part that lies mostly within audio of ``train``, as where people
    speak at once, is left out and counted in ``skipped``; where that or the groups themselves leave a part less than half of
    its share, the next way is taken.

    Raises:
        RecipeError: of what training takes there are no more utterances, each counted once, than parts to hold out.
    """
    usable, other = trainable(cuts), untrainable(cuts)
    audios = audios_of(usable)
    first = {audios[cut.id] or cut.id: cut for cut in sorted(usable, key=lambda cut: cut.id, reverse=True)}
    together = heard_together(audios)
    count = len(set(together.values()))
    if count <= len(shares):
        raise RecipeError(f"{count} utterances that can be used{', overlapping ones taken as one,' * (count < len(first))} are "
                          f"too few to hold {', '.join(shares)} out of them"
                          + (f" (besides, there are {_counted(other)})" if other else "")
                          + ": mend the corpus (see what was skipped above) or add to it")
    wrong_length = {name for names in other.values() for name in names}
    total = sum(cut.duration for cut in usable)
    ways: List[Tuple[str, Callable[[Cut], Optional[str]]]] = [
        ("speaker", speaker_of), ("recording", lambda cut: cut.supervisions[0].recording_id),
        ("utterance", lambda cut: together[cut.id])]
    for by, key in ways:
        groups: Dict[str, List[Cut]] = defaultdict(list)
        train = [cut for cut in cuts if cut.id in wrong_length]
        for cut in usable:
            name = key(first[audios[cut.id] or cut.id])
            if name is None:
                train.append(cut)
            else:
                groups[name].append(cut)
        # Recordings of one utterance each are dealt out as utterances.
        if by != "utterance" and len(groups) < _LEAST_GROUPS or by == "recording" and len(groups) == len(first):
            continue
        dealt = _deal(groups, shares, total, strict=by != "utterance")
        dealt["train"] += train
        if by == "utterance":
            return dealt, by
        heard = joined(audios[cut.id] for cut in dealt["train"] if cut.id in audios)
        within = {cut.id: part for part in shares for cut in dealt[part] if mostly_in(audios[cut.id], heard)}
        dealt = {part: [cut for cut in some if cut.id not in within] for part, some in dealt.items()}
        if all(sum(cut.duration for cut in dealt[part]) >= 0.5 * share * total for part, share in shares.items()):
            for name, part in within.items() if skipped is not None else ():
                skipped.add(name, f"it would be in {part}, and lies mostly within audio of train")
            return dealt, by
    raise AssertionError("utterances can always be dealt out")


def held_out_shares(hours: float, parts: Iterable[str]) -> Dict[str, float]:
    """What of so many hours of training speech is held out for each of the parts that the corpus lacks."""
    return {part: round(min(_SHARE, _MOST_HOURS / max(hours, 0.01)), 4) for part in parts}


def speaker_of(cut: Cut) -> Optional[str]:
    """Who speaks, or None where that is not known."""
    return cut.supervisions[0].speaker or None


def describe_holding(shares: Iterable[str], by: str, train: Iterable[Cut]) -> str:
    """What to say of how :func:`hold_out` dealt out ``shares``: by what, and why not by speaker, or who besides is in
    train."""
    parts = list(shares)
    said = f"{' and '.join(parts)} {'are' if len(parts) > 1 else 'is'} held out of train by {by}"
    if by != "speaker":
        return f"{said}: there are too few known speakers, or one says too much, or others speak at once, to hold some out"
    unknown = sum(speaker_of(cut) is None for cut in train)
    return said + (f"; {unknown} utterances whose speakers are not known are in train" if unknown else "")


def _deal(groups: Mapping[str, List[Cut]], shares: Mapping[str, float], total: float,
          strict: bool) -> Dict[str, List[Cut]]:
    """Groups to parts, in the order of their hashes; where ``strict``, none to a part that gets half as much again as its
    share of ``total`` seconds by it, though it be the first."""
    seconds = {name: sum(cut.duration for cut in group) for name, group in groups.items()}
    left = sorted(groups, key=_place)
    dealt: Dict[str, List[Cut]] = {"train": []}
    for part, share in shares.items():
        taken: List[str] = []
        got = 0.0
        most = len(left) - len(shares) + len(dealt) - 1  # one is left for each part after this, and for train
        for name in left:
            if taken and (got >= 0.9 * share * total or len(taken) >= most):
                break
            if got + seconds[name] <= 1.5 * share * total or not strict and not taken:
                taken.append(name)
                got += seconds[name]
        left = [name for name in left if name not in set(taken)]
        dealt[part] = [cut for name in taken for cut in groups[name]]
    dealt["train"] = [cut for name in left for cut in groups[name]]
    return dealt


def subset(part: Part, hours: float) -> Part:
    """About so many hours of a part's utterances, chosen by a hash of their ids, and their recordings; all for 0. They are
    of a length that training takes, where any is."""
    recordings, supervisions = part
    if hours <= 0:
        return part
    chosen, seconds = [], 0.0
    for segment in sorted(_of_usual_length(supervisions), key=lambda segment: _place(segment.id)):
        if seconds >= hours * 3600:
            break
        chosen.append(segment)
        seconds += segment.duration
    named = {segment.recording_id for segment in chosen}
    return (RecordingSet.from_recordings(r for r in recordings if r.id in named), SupervisionSet.from_segments(chosen))


def _of_usual_length(supervisions: Iterable[SupervisionSegment]) -> List[SupervisionSegment]:
    """Those of a length that training takes; all where there is none."""
    everything = list(supervisions)
    return [segment for segment in everything if _LIMITS.wrong_length(segment.duration) is None] or everything


def allot(hours: Mapping[str, float], wanted: float) -> Dict[str, float]:
    """Of parts that have so many ``hours`` as much of each as makes ``wanted`` together: what a small one lacks, the others
    give.

    >>> allot({"large": 9.0, "small": 0.5}, 3.0)
    {'small': 0.5, 'large': 2.5}
    """
    given: Dict[str, float] = {}
    for name in sorted(hours, key=lambda name: hours[name]):
        given[name] = min(hours[name], (wanted - sum(given.values())) / (len(hours) - len(given)))
    return given


def prepare_parts(corpus: PathLike, output: PathLike, parts: Mapping[str, Sequence[str]], held_out: Mapping[str, float],
                  sampling_rate: int, normalise: Callable[[Optional[str]], str] = normalise_text, hours: float = 0.0,
                  jobs: int = 1) -> None:
    """Write the checked cuts of every part (stage 1 of a recipe): ``parts`` says which of the corpus's make each. What an
    earlier call made of this corpus and this one does not goes.

    Args:
        corpus: folder of Lhotse manifests that stage 0 wrote.
        held_out: parts that get a share of train's hours (see :func:`hold_out`).
        hours: use only so much of what can be used of train, and a quarter of it of each other part; 0 for all. What is held
            out then is as much as of all of train, up to a tenth.
    Raises:
        RecipeError: a part is not there, or is to be held out besides, or nothing in it can be used, or in train or dev by
            training, or two roles share an utterance, or ``hours`` or ``jobs`` cannot be.
    """
    require_not_negative(hours=hours)
    require_positive(jobs=jobs)
    file = SkippedFile(output)
    unread = Skipped(file)
    there = read_manifests(Path(corpus), unread)
    unread.report(str(corpus))
    for role, names in parts.items():
        if role in held_out:
            raise RecipeError(f"{role} is among PARTS, which the corpus has, and among HELD_OUT, which train gives: take it "
                              "out of one of them")
        for name in names:
            if name not in there:
                raise RecipeError(f"{corpus} holds no part {name}, which makes {role}: it holds {', '.join(sorted(there))}")
    check_apart(there, parts, normalise)
    for role, names in parts.items():
        skipped = Skipped(file)
        usable = usable_parts(there, names, skipped, normalise)
        wanted = hours if role == "train" else hours / 4
        whole = {name: sum(segment.duration for segment in _of_usual_length(part[1])) / 3600 for name, part in usable.items()}
        some = {name: subset(usable[name], given) for name, given in allot(whole, wanted).items()}
        cuts = _checked(some, sampling_rate, skipped, normalise, jobs)
        skipped.report(f"{corpus}, {role}")
        if role in ("train", "dev"):
            check_trainable(cuts, role, str(corpus))
        dealt = {role: cuts}
        if role == "train" and held_out:
            shares = dict(held_out)
            if hours:
                used = sum(cut.duration for cut in trainable(cuts)) / 3600
                shares = {part: max(share, min(_SHARE, share * sum(whole.values()) / max(used, 1e-9)))
                          for part, share in held_out.items()}
            apart = Skipped(file)
            dealt, by = hold_out(cuts, shares, apart)
            apart.report(f"{corpus}, held out of {role}")
            print(describe_holding(held_out, by, dealt["train"]))
        for part, some in dealt.items():
            write_cuts(output, part, CutSet.from_cuts(sorted(some, key=lambda cut: cut.id)))
    _remove_what_is_named_no_more(Path(output), str(corpus), {*parts, *held_out})


def _remove_what_is_named_no_more(output: Path, corpus: str, parts: Set[str]) -> None:
    """Of what earlier calls made of this corpus, the parts that are not among ``parts`` now: stage 2 makes features of all cuts
    that it finds, and those of other corpora stand there too."""
    note = output / "parts.json"
    before = read_record(note, "remove it") if note.exists() else {}
    others = {part for other, made in before.items() if other != corpus for part in made}
    for part in sorted({*before.get(corpus, [])} - parts - others):
        remove_sets(output, part)
        print(f"removed the manifests of {part}, which no part of {corpus} makes any more")
    write_json(note, {**before, corpus: sorted(parts)})
