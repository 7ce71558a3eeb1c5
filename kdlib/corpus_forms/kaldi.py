"""Kaldi data folders."""

import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

from kdlib.corpus import SLACK
from kdlib.corpus_forms.shared import WHOLE, Part, all_channels, audio_base, is_there, read_text, recording_of, said_role
from kdlib.errors import RecipeError, link_to_nothing
from kdlib.manifests import BadAudio, Skipped

# Commands that do no more than say what a file holds: the file is read in their place. sph2pipe's may be one that only it
# reads. Anything a shell would not take as plain letters is no such command.
_PLAIN = r"(?P<file>[^\s|;&<>()$`'\"\\*?\[\]{}~#!-][^\s|;&<>()$`'\"\\*?\[\]{}~#!]*)"
_READS = [re.compile(rf"(?:[\w./-]*/)?{command} ?\|") for command in (
    rf"flac(?: -[cds]+)+ {_PLAIN}", rf"sox {_PLAIN} -t wav -", rf"cat {_PLAIN}", rf"sph2pipe -f wav {_PLAIN}")]
_MAX_OVERSHOOT = 0.5  # seconds that an end may lie after its recording, as in Kaldi's extract-segments
_DEPTH = 3  # folders, in which wav.scp is looked for to say where it is


def read_kaldi(folder: Path, skipped: Skipped) -> Dict[str, Part]:
    """A Kaldi data folder (wav.scp, text, utt2spk and segments, the last two if there are any), or a folder of such, which are
    not looked for further down. Of several, one without text, as of noise, or without wav.scp is left out and counted in
    ``skipped``.

    No command of wav.scp is run; of the few that do no more than read a file, that file is taken. Raises
    :class:`RecipeError` where there is no such folder.
    """
    if is_there(folder / "wav.scp"):
        return {WHOLE: _read_part(folder, skipped)}
    inside = []
    for path in sorted(folder.glob("[!.]*")):
        # A link to nothing is refused where its name is that of a part; others, such as one to features, are only named.
        if link_to_nothing(path) and not said_role(path.name):
            skipped.add(path.name, "it is a link to what is not there")
        elif not is_there(path) and path.is_dir():
            inside.append(path)
    closed = [path for path in inside if not os.access(path, os.X_OK)]
    parts = [path for path in inside if path not in closed and is_there(path / "wav.scp")]
    if not parts:
        above = sorted({path.parent.parent for depth in range(2, _DEPTH + 1) for path in folder.glob("*/" * depth + "wav.scp")})
        known = f"{above[0]}, whose folders have it" if above else "a Kaldi data folder"
        if len(above) > 1:
            named = ", ".join(map(str, above[:3])) + ", ..." * (len(above) > 3)
            known = f"one of {named}, whose folders have it, or a folder of links to those that you mean"
        raise RecipeError(f"{folder} holds no wav.scp, nor does a folder in it: give {known}")
    for path in inside:
        if path in closed:
            skipped.add(path.name, "it cannot be looked into")
        elif path not in parts and (is_there(path / "text") or is_there(path / "segments")):
            skipped.add(path.name, "it has no wav.scp, so it has no audio")
        elif path not in parts and any(path.glob("*/wav.scp")):  # ESPnet's org has the same utterances again
            skipped.add(path.name, "it has no wav.scp, and those of the folders in it are not read")
    transcribed = [part for part in parts if is_there(part / "text")] or parts
    for part in parts:
        if part not in transcribed:
            skipped.add(part.name, "it has no text, so it has no transcripts")
    return {part.name: _read_part(part, skipped) for part in transcribed}


def _read_part(folder: Path, skipped: Skipped) -> Part:
    recordings: Dict[str, Recording] = {}
    first: Dict[str, str] = {}
    bad, doubled = set(), set()
    entries = list(_entries(folder / "wav.scp"))
    files = [(number, name, _file_of(path)) for number, name, path in entries]
    base = audio_base((path for _, _, path in files), folder)
    for (number, name, entry), (_, _, path) in zip(entries, files):
        where = f"{folder / 'wav.scp'}, line {number} ({name})"
        if path.endswith("|") or path.startswith("|") or (
                path != entry and "sph2pipe -f" in entry and not _is_read(base / path)):
            raise RecipeError(f"{where} holds a command, which is never run: write the audio to files (Kaldi's wav-copy does) "
                              "and name those instead")
        if re.search(r"\.ark:[0-9]+(\[.*\])?$", path):
            raise RecipeError(f"{where} names a place in an archive, {path}, and archives are not read: write the audio to "
                              "files (Kaldi's wav-copy does) and name those instead")
    for number, name, path in tqdm(files, desc="headers", unit="file", mininterval=5):
        try:
            located = os.path.normpath(base / path)
            if first.setdefault(name, located) != located:
                skipped.add(name, f"{folder / 'wav.scp'}, line {number}: two files have this id, and nothing tells which of "
                                  "them a transcript is of")
                doubled.add(name)
            elif name in recordings:
                skipped.add(name, f"{folder / 'wav.scp'}, line {number}: a second recording of this id")
            else:
                recordings[name] = recording_of(name, str(base / path))
        except BadAudio as error:
            skipped.add(name, str(error))
            bad.add(name)
    recordings = {name: recording for name, recording in recordings.items() if name not in doubled}
    texts: Dict[str, str] = {}
    for number, name, text in _entries(folder / "text"):
        if name in texts:
            skipped.add(name, f"{folder / 'text'}, line {number}: a second transcript of this id")
        texts.setdefault(name, text)
    speakers = {}
    if is_there(folder / "utt2spk"):
        speakers = {name: speaker for _, name, speaker in _entries(folder / "utt2spk")}
    if is_there(folder / "segments"):
        times = list(_read_segments(folder / "segments", recordings, skipped))
    else:  # an utterance is a whole recording
        times = [(name, name, 0.0, recordings[name].duration, None) for name in texts if name in recordings]
    for name in sorted(texts.keys() - {name for name, *_ in times} - bad - doubled):
        skipped.add(name, f"{folder / 'text'} has its transcript, but there is no audio of it")
    segments = [SupervisionSegment(id=name, recording_id=of, start=start, duration=end - start,
                                   channel=_channel(recordings.get(of), channel), text=texts.get(name),
                                   speaker=speakers.get(name)) for name, of, start, end, channel in times]
    return RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(segments)


def _file_of(entry: str) -> str:
    """The file that an entry of wav.scp names, or reads by a command that is known; of another command the entry itself."""
    match = next(filter(None, (command.fullmatch(" ".join(entry.split())) for command in _READS)), None)
    return match["file"] if match else entry


def _is_read(path: Path) -> bool:
    try:
        return recording_of("", str(path)) is not None
    except BadAudio:
        return False


def _channel(recording: Optional[Recording], channel: Optional[int]) -> Any:
    """The channel of a supervision: where its line names none, all; where there is but one, that one, which files in
    practice call 0 or 1."""
    if recording is None:
        return 0
    return all_channels(recording) if channel is None or recording.num_channels == 1 else channel


def _read_segments(path: Path, recordings: Dict[str, Recording],
                   skipped: Skipped) -> Iterator[Tuple[str, str, float, float, Optional[int]]]:
    """(utterance, recording, start, end, channel) of each line; the last counts from 0, as in Kaldi's extract-segments,
    and is None where the line has none. An end a little after the recording is cut to that, and counted, as there."""
    over = []
    for number, line in _lines(path):
        try:
            name, of, start, end, *more = line.split()
            begin, finish = float(start), float(end)
            (channel,) = map(int, more) if more else (None,)
        except ValueError:
            skipped.add(f"{path}, line {number}", "it is not: utterance, recording, start, end and perhaps a channel")
            continue
        duration = recordings[of].duration if of in recordings else finish
        if begin < duration and SLACK < finish - duration < _MAX_OVERSHOOT:
            over.append(finish - duration)
            finish = duration
        if finish < 0:  # as Kaldi writes the end of the recording
            finish = duration
        yield name, of, begin, finish, channel
    if over:
        print(f"{path}: {len(over)} utterances end up to {max(over):.2f} s after their recording: they are cut to its end")


def _lines(path: Path) -> List[Tuple[int, str]]:
    """Numbered lines that are not blank."""
    return [(number, line.rstrip("\r")) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]


def _entries(path: Path) -> Iterator[Tuple[int, str, str]]:
    """(line number, first word, the rest) of each line, as Kaldi's files are laid out."""
    for number, line in _lines(path):
        name, rest = (line.split(maxsplit=1) + [""])[:2]
        yield number, name, rest.strip()
