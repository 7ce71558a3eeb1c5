"""Corpora on disk in the forms that people have them in, read as Lhotse recordings and supervisions.

Four forms: a Kaldi data folder, Lhotse manifests, a table of files and transcripts, and what Lhotse's own recipes prepare.
Each reader returns the corpus by part (one part called ``all`` where there are none); headers of audio files are read, their
samples are not (:func:`kdlib.corpus.checked_cuts` decodes them). Nothing found in a corpus is ever run.
"""

import argparse
import os
import re
import unicodedata
from numbers import Integral
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import get_audio_duration_mismatch_tolerance
from lhotse.utils import fastcopy, to_list

from kdlib.corpus_forms.kaldi import read_kaldi
from kdlib.corpus_forms.lhotse_recipes import read_lhotse
from kdlib.corpus_forms.manifests import read_manifests
from kdlib.corpus_forms.shared import Part
from kdlib.corpus_forms.table import read_csv
from kdlib.errors import RecipeError
from kdlib.files import PathLike, atomic_path, keep_same, update_file
from kdlib.manifests import Skipped, audio_files, too_many_gone


FORMS = ("kaldi", "manifests", "csv", "lhotse")


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """One option for each form of a corpus, of which one is to be given, and --corpus-dir."""
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--kaldi", metavar="DIR", help="wav.scp, text, utt2spk, segments; or a folder of such folders")
    form.add_argument("--manifests", metavar="DIR", help="Lhotse's recordings_*.jsonl.gz and supervisions_*.jsonl.gz")
    form.add_argument("--csv", metavar="FILE", help="audio path, text, speaker; a first row or keys of JSON may name columns")
    form.add_argument("--lhotse", metavar="NAME", help="a corpus that Lhotse prepares; with --corpus-dir")
    parser.add_argument("--corpus-dir", type=Path, help="folder of the corpus that Lhotse is to prepare")


def chosen_corpus(args: argparse.Namespace) -> Tuple[str, str]:
    """(form, source) of the options of :func:`add_corpus_options`, as :func:`read_corpus` takes them; :class:`RecipeError`
    where the source is empty."""
    form = next(name for name in FORMS if getattr(args, name) is not None)
    if not getattr(args, form):
        raise RecipeError(f"--{form} is empty: say where the corpus is")
    return form, getattr(args, form)


def read_corpus(form: str, source: str, skipped: Skipped, corpus_dir: Optional[PathLike] = None,
                jobs: int = 1) -> Dict[str, Part]:
    """The corpus by part; ``form`` is kaldi, manifests, csv or lhotse, ``source`` the folder, the file or Lhotse's name.

    Raises:
        RecipeError: the source is missing or something else, or it holds commands, or ``corpus_dir`` is not for its form.
    """
    if form == "lhotse":
        if corpus_dir is None:
            raise RecipeError(f"--lhotse {source} needs the corpus's folder as --corpus-dir")
        parts = read_lhotse(source, Path(corpus_dir), jobs, skipped)
    elif corpus_dir is not None:
        raise RecipeError(f"--corpus-dir is for --lhotse alone: what --{form} names says itself where its audio is")
    else:
        parts = {"kaldi": read_kaldi, "manifests": read_manifests, "csv": read_csv}[form](Path(source), skipped)
    names = named_apart(parts, source)
    return {names[name]: _of_known_speakers(names[name], _sound(part, skipped)) for name, part in parts.items()}


def plain_name(name: str) -> str:
    """``name`` of letters and digits of any script, dots and dashes: it becomes part of files' names, and run.sh splits
    lists of such names at spaces."""
    name = unicodedata.normalize("NFC", name)  # as file systems write one name in two ways
    return re.sub(" +", "-", "".join(c if c in ".-" or unicodedata.category(c)[0] in "LMN" else " " for c in name))


def named_apart(names: Iterable[str], source: str, naming: Callable[[str], str] = plain_name) -> Dict[str, str]:
    """Each of ``names`` with what ``naming`` makes of it; :class:`RecipeError` where it makes the same of two."""
    made: Dict[str, str] = {}
    for name in names:
        short = naming(name)
        if short in made.values():
            other = next(key for key, value in made.items() if value == short)
            raise RecipeError(f"the parts {other} and {name} of {source} would both be called {short!r}: rename one of them")
        made[name] = short
    return made


def _sound(part: Part, skipped: Skipped) -> Part:
    """Ids, texts and speakers as strings: JSON has numbers too, and Lhotse keeps them. What holds something else still is
    left out and counted: Lhotse reads it, and would fail over it later."""
    kept: Tuple[List, List] = ([], [])
    for place, (manifest, problem) in enumerate(zip(part, (_recording_problem, _supervision_problem))):
        for item in manifest:
            reason = problem(item)
            if reason is None:
                kept[place].append(item)
            else:
                skipped.add(str(item.id), reason)
    return (RecordingSet.from_recordings(fastcopy(r, id=str(r.id)) for r in kept[0]), SupervisionSet.from_segments(
        fastcopy(s, id=str(s.id), recording_id=str(s.recording_id), text=_string(s.text), speaker=_speaker(s.speaker))
        for s in kept[1]))


def _of_known_speakers(name: str, part: Part) -> Part:
    """The part without its speakers where nearly every utterance has its own id for one, or has one of its own though
    recordings hold several: so Kaldi's utt2spk stands where nobody knew them, and what is held out by them would be heard in
    training. Recordings of one utterance each may well be of as many speakers."""
    speakers = [segment.speaker for segment in part[1] if segment.speaker is not None]
    made_up = sum(segment.speaker == segment.id for segment in part[1])
    of = {segment.recording_id for segment in part[1]}
    if not speakers:
        return part
    if made_up >= 0.9 * len(speakers):
        print(f"{name}: {made_up} of {len(part[1])} utterances have their own id as their speaker: speakers are taken as "
              "unknown")
    elif len({*speakers}) >= 0.9 * len(part[1]) and len(of) <= 0.5 * len(part[1]):
        print(f"{name}: {len(part[1])} utterances of {len(of)} recordings name {len({*speakers})} speakers, nearly one each: "
              "they are taken as unknown")
    else:
        return part
    return part[0], SupervisionSet.from_segments(fastcopy(segment, speaker=None) for segment in part[1])


def _string(value: Any) -> Optional[str]:
    """Without a value is also what pandas makes of an empty cell, which JSON keeps as NaN."""
    return None if value is None or value != value else str(value)


def _speaker(value: Any) -> Optional[str]:
    """None where there is no name; an accented letter is one letter, however it was typed, or one person would be two."""
    return unicodedata.normalize("NFC", _string(value) or "").strip() or None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_channels(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(channel, Integral) for channel in value)


def _recording_problem(recording: Recording) -> Optional[str]:
    if not recording.sources or any(s.type == "file" and not isinstance(s.source, str) for s in recording.sources):
        return "the recording names no audio"
    for key in ("sampling_rate", "num_samples", "duration"):
        if not _is_number(getattr(recording, key)) or not getattr(recording, key) > 0:
            return f"the recording's {key} is {getattr(recording, key)!r}"
    told = recording.num_samples / recording.sampling_rate
    if abs(told - recording.duration) > get_audio_duration_mismatch_tolerance():  # as Lhotse's validate has it
        return (f"the recording's duration is {recording.duration:.3f} s, but its {recording.num_samples} samples at "
                f"{recording.sampling_rate} Hz are {told:.3f} s: mend its manifest")
    for channels in (recording.channel_ids, *(source.channels for source in recording.sources)):
        if not _are_channels(channels):
            return f"the recording's channels are {channels!r}, not a list of numbers"
    return None


def _supervision_problem(segment: SupervisionSegment) -> Optional[str]:
    if segment.id is None:
        return f"an utterance of the recording {segment.recording_id} has no id"
    for key in ("start", "duration"):
        if not _is_number(getattr(segment, key)):
            return f"its {key} is {getattr(segment, key)!r}"
    if not _are_channels(to_list(segment.channel)):
        return f"its channel is {segment.channel!r}"
    if not isinstance(segment.text, (str, int, float, type(None))):
        return f"its transcript is {segment.text!r}"
    return None


def write_parts(folder: PathLike, parts: Dict[str, Part]) -> None:
    """Write the parts as :func:`read_manifests` reads them, and ``audio.txt``; those of an earlier call go.

    ``audio.txt`` has the size and the time of each file of audio, in place of what the manifests do not tell of it: a file
    that is mended may have the header that it had. A file that would say what it says already is left as it is, so that
    whoever goes by its time does not take it for a new one.
    """
    folder = Path(folder)
    written = {folder / "audio.txt"}
    for part, (recordings, supervisions) in parts.items():
        for kind, manifest in (("supervisions", supervisions), ("recordings", recordings)):
            path = folder / f"{kind}_{part}.jsonl.gz"
            with atomic_path(path) as temporary:
                manifest.to_file(temporary)
                keep_same(path, temporary)
            written.add(path)
    files = {file for recordings, _ in parts.values() for r in recordings for file in audio_files(r)}
    update_file(folder / "audio.txt", "".join(f"{_state(file)}\t{file}\n" for file in sorted(files)).encode(
        "utf-8", "surrogateescape"))
    for stale in {*folder.glob("*.jsonl.gz")} - written:
        stale.unlink()


def check_still_there(folder: PathLike, parts: Dict[str, Part]) -> None:
    """See that the audio which :func:`write_parts` found for ``folder`` is not gone, as when a disk is not mounted: the corpus
    would pass for a smaller one, and all models be trained anew. Single files may go, up to ten of a part or one in twenty.

    Raises:
        RecipeError: more of a part is gone, or all of it.
    """
    folder = Path(folder)
    if not (folder / "audio.txt").is_file():
        return
    lines = (folder / "audio.txt").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    before = {file for state, _, file in (line.partition("\t") for line in lines) if state != "missing"}
    gone = {file for file in before if _state(file) == "missing"}
    if not gone:
        return
    found = {r.id for recordings, _ in parts.values() for r in recordings if not audio_files(r) & gone}
    for part, (recordings, _) in read_manifests(folder, Skipped()).items():
        had = [r for r in recordings if audio_files(r) & before]
        lost = [r for r in had if audio_files(r) & gone and r.id not in found]
        if lost and (len(lost) == len(had) or too_many_gone(len(lost), len(had))):
            raise RecipeError(f"of the {len(had)} recordings of {part} that were there before, {len(lost)} are missing, "
                              f"{sorted(audio_files(lost[0]) & gone)[0]} for one: mount the disk that they are on, or remove "
                              f"{folder} to go on without them")


def _state(file: str) -> str:
    """Size and time of a file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
