"""Cuts of any corpus that Lhotse can describe: every utterance checked, mono, at one rate."""

import hashlib
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple, Union

from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.cut import Cut, MixedCut, MixTrack
from lhotse.utils import fastcopy, to_list
from tqdm import tqdm

from kdlib.files import PathLike, write_audio
from kdlib.manifests import AudioFormat, BadAudio, Skipped, audio_files, check_audio, normalise_text, write_sets
from kdlib.processes import end_with_parent

# Seconds by which times may miss what they belong to: transcripts' times are rounded, and so are encoders' frames.
SLACK = 0.025
SHORTEST = 0.1  # seconds of an utterance
Checked = Union[AudioFormat, str]


def usable_part(recordings: RecordingSet, supervisions: SupervisionSet, skipped: Skipped,
                normalise: Callable[[Optional[str]], str] = normalise_text,
                seen: Optional[Set[str]] = None) -> Tuple[RecordingSet, SupervisionSet]:
    """What can be used of a part as far as its manifests tell: utterances as they are, and their recordings.

    Left out and counted in ``skipped`` with its reason is a supervision whose recording is missing, or has the id of another
    file too, a recording without supervision, a transcript that is empty once it is normalised, a second utterance of one id
    (after one with a transcript), times outside the recording, an utterance shorter than ``SHORTEST``. ``seen`` has the ids
    of utterances elsewhere, and gets these: one set for several calls keeps them apart.
    """
    by_id, said = _usable(recordings, supervisions, skipped, normalise, set() if seen is None else seen)
    named = {segment.recording_id for segment, _ in said}
    return (RecordingSet.from_recordings(recording for name, recording in by_id.items() if name in named),
            SupervisionSet.from_segments(segment for segment, _ in said))


def checked_cuts(recordings: RecordingSet, supervisions: SupervisionSet, sampling_rate: int, skipped: Skipped,
                 normalise: Callable[[Optional[str]], str] = normalise_text, jobs: int = 1) -> CutSet:
    """One mono cut for each supervision, with its id and its normalised transcript, sorted by id.

    ``normalise`` gets the transcript in Unicode's composed form (NFC), so that a letter is one letter however it was typed,
    and what it returns is composed too, since upper() takes some letters apart.

    The audio is at ``sampling_rate`` (Hz): other rates are resampled by Lhotse when it is loaded. A supervision of one
    channel gets that channel, one of several gets their mean (a Lhotse MixedCut, until :func:`write_cuts` writes it).

    What cannot be used is left out and counted in ``skipped`` with its reason: what :func:`usable_part` leaves out, and
    audio that is missing, damaged, cut short or other than its recording says (every file is decoded once, by ``jobs``
    processes), that can be decoded from its start alone, or that only a command or an address would give.
    """
    by_id, usable = _usable(recordings, supervisions, skipped, normalise, set())
    files = {file for segment, _ in usable for file in audio_files(by_id[segment.recording_id])}
    checked = _check_files(sorted(files), jobs)
    resampled: Dict[str, Recording] = {}
    cuts = []
    for segment, text in sorted(usable, key=lambda item: item[0].id):
        recording = by_id[segment.recording_id]
        reason = _audio_problem(recording, checked)
        if reason is not None:
            skipped.add(segment.id, reason)
            continue
        if recording.id not in resampled:
            resampled[recording.id] = recording.resample(sampling_rate)
        cuts.append(_cut(resampled[recording.id], segment, text))
    return CutSet.from_cuts(cuts)


def _usable(recordings: RecordingSet, supervisions: SupervisionSet, skipped: Skipped,
            normalise: Callable[[Optional[str]], str],
            seen: Set[str]) -> Tuple[Dict[str, Recording], List[Tuple[SupervisionSegment, str]]]:
    """The recordings by id, and the utterances with their normalised transcripts: see :func:`usable_part`."""
    by_id: Dict[str, Recording] = {}
    doubled: Set[str] = set()
    for recording in recordings:
        other = by_id.get(recording.id)
        if other is None:
            by_id[recording.id] = recording
        elif other.sources == recording.sources:
            skipped.add(recording.id, "a second recording of this id")
        else:
            skipped.add(recording.id, "two files have this id, and nothing tells which of them a transcript is of")
            doubled.add(recording.id)
    by_id = {name: recording for name, recording in by_id.items() if name not in doubled}
    named, usable = set(), []
    for segment in supervisions:
        named.add(segment.recording_id)
        text = normalised(segment, normalise)
        if segment.id in seen:
            reason: Optional[str] = "a second utterance of this id"
        elif segment.recording_id in doubled:
            reason = f"two files have the id of its recording, {segment.recording_id}"
        else:
            reason = _problem(segment, by_id.get(segment.recording_id), text)
        if text:  # what says nothing takes no id from another row of its file
            seen.add(segment.id)
        if reason is None:
            usable.append((segment, text))
        else:
            skipped.add(segment.id, reason)
    for name in sorted(by_id.keys() - named):
        skipped.add(name, "the recording has no transcript")
    return by_id, usable


def normalised(segment: SupervisionSegment, normalise: Callable[[Optional[str]], str]) -> str:
    """Its transcript as :func:`checked_cuts` has it."""
    return _composed(normalise(_composed(segment.text)))


def _composed(text: Optional[str]) -> str:
    """In NFC."""
    return unicodedata.normalize("NFC", text or "")


def _problem(segment: SupervisionSegment, recording: Optional[Recording], text: str) -> Optional[str]:
    """Why the utterance cannot be used, as far as the manifests tell, or None."""
    if recording is None:
        return f"its recording {segment.recording_id} is missing"
    if not text:
        return "its transcript is empty"
    if not all(isinstance(time, (int, float)) for time in (segment.start, segment.duration)):
        return f"its times, {segment.start!r} and {segment.duration!r}, are no numbers"
    # Written so that times that are no numbers fail too.
    if not (segment.start >= -SLACK and segment.end <= recording.duration + SLACK):
        return (f"its times, {segment.start:.3f} to {segment.end:.3f} s, lie outside its recording of "
                f"{recording.duration:.3f} s")
    if not min(segment.end, recording.duration) - max(segment.start, 0.0) >= SHORTEST:
        return f"it is shorter than {SHORTEST} s"
    if not to_list(segment.channel):
        return "it names no channel"
    if not set(to_list(segment.channel)) <= set(recording.channel_ids):
        return f"its recording has no channel {segment.channel}, but {recording.channel_ids}"
    return None


def _check_file(path: str) -> Checked:
    try:
        return check_audio(path)
    except BadAudio as error:
        return str(error)
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name can
        return f"{path} cannot be opened ({getattr(error, 'strerror', None) or error})"


def _check_files(paths: List[str], jobs: int) -> Dict[str, Checked]:
    """What is in each file, or why it cannot be used."""
    bar = {"total": len(paths), "desc": "decode", "unit": "file", "mininterval": 5}
    if jobs <= 1 or len(paths) < 2:
        return dict(zip(paths, list(tqdm(map(_check_file, paths), **bar))))
    found: List[Checked] = []
    with tqdm(**bar) as progress:
        while len(found) < len(paths):
            try:
                with ProcessPoolExecutor(jobs, initializer=end_with_parent) as pool:
                    for result in pool.map(_check_file, paths[len(found):], chunksize=8):
                        found.append(result)
                        progress.update()
            except BrokenProcessPool:  # over one of the next files, which are now looked at in a process each
                for path in paths[len(found):len(found) + 8 * jobs]:
                    found.append(_check_apart(path))
                    progress.update()
    return dict(zip(paths, found))


def _check_apart(path: str) -> Checked:
    with ProcessPoolExecutor(1, initializer=end_with_parent) as pool:
        try:
            return pool.submit(_check_file, path).result()
        except BrokenProcessPool:
            return f"{path} ends the process that decodes it, by a fault of its decoder or for want of memory: write it again"


def _audio_problem(recording: Recording, checked: Dict[str, Checked]) -> Optional[str]:
    """Why the recording's audio cannot be used, or None."""
    if not recording.sources:
        return "its recording names no audio"
    for source in recording.sources:
        if source.type in ("command", "url"):
            return f"its audio is no file but a {source.type} ({source.source}), which recipes never follow: save it first"
        if source.type != "file":
            return f"its audio is no file but of type {source.type!r}: save it to a file and name that"
        found = checked[source.source]
        if isinstance(found, str):
            return found
        # Of a recording with transforms (resampled, for example) the manifest tells the end, not what is in the file.
        if recording.transforms or source.source.endswith(".opus"):  # Opus decodes to any rate that is asked for
            continue
        if found.rate != recording.sampling_rate:
            return f"{source.source} has {found.rate} Hz where its manifest says {recording.sampling_rate}"
        if abs(found.samples - recording.num_samples) > SLACK * found.rate:
            return (f"{source.source} has {found.samples / found.rate:.3f} s where its manifest says "
                    f"{recording.num_samples / recording.sampling_rate:.3f}")
        if found.channels < len(source.channels):
            return f"{source.source} has {found.channels} channels where its manifest says {len(source.channels)}"
    return None


def _cut(recording: Recording, segment: SupervisionSegment, text: str) -> Cut:
    segment = segment.trim(recording.duration)
    channels = to_list(segment.channel)
    tracks = []
    for channel in channels:
        cut = MonoCut(id=segment.id, start=segment.start, duration=segment.duration, channel=channel, recording=recording)
        if not tracks:
            cut.supervisions = [fastcopy(segment, start=0.0, channel=channel, text=text)]
        tracks.append(cut)
    if len(tracks) == 1:
        return tracks[0]
    quiet = recording.perturb_volume(1.0 / len(channels), affix_id=False)  # a mix is a sum
    return MixedCut(id=segment.id, tracks=[MixTrack(fastcopy(cut, recording=quiet)) for cut in tracks])


def _written_mix(cut: MixedCut, path: Path) -> MonoCut:
    """The same utterance with its mix in a file of its own, which the features' cuts go on naming."""
    write_audio(path, cut.load_audio()[0], cut.sampling_rate)
    recording = Recording.from_file(path, recording_id=f"{cut.id}-mixed")
    whole = recording.to_cut()
    segment = fastcopy(cut.supervisions[0], recording_id=recording.id, channel=0, duration=recording.duration)
    return fastcopy(whole, id=cut.id, supervisions=[segment])


def write_cuts(folder: PathLike, part: str, cuts: Iterable[Cut]) -> None:
    """Validate the cuts of :func:`checked_cuts` and write them to ``folder`` as Lhotse manifests.

    Leaves ``recordings_<part>``, ``supervisions_<part>`` and ``cuts_<part>.jsonl.gz``, each whole or not at all, and
    the audio of mixed channels in ``mixed_<part>/``. Prints what was written. Raises
    :class:`~kdlib.errors.RecipeError` when there are no cuts or something is not valid.
    """
    folder = Path(folder)
    mixed = folder / f"mixed_{part}"
    mono = [_written_mix(cut, mixed / f"{hashlib.sha256(cut.id.encode()).hexdigest()[:16]}.flac")
            if isinstance(cut, MixedCut) else cut for cut in cuts]
    recordings = {cut.recording_id: cut.recording for cut in mono}
    segments = [segment.with_offset(cut.start) for cut in mono for segment in cut.supervisions]
    write_sets(folder, part, RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(segments),
               mono)
    for stale in {*mixed.glob("*.flac")} - {Path(cut.recording.sources[0].source) for cut in mono}:
        stale.unlink()
    words = sum(len(segment.text.split()) for segment in segments)
    speakers = {segment.speaker for segment in segments} - {None}
    print(f"wrote {folder / f'cuts_{part}.jsonl.gz'}: {len(mono)} utterances, "
          f"{sum(cut.duration for cut in mono) / 3600:.2f} h, {words} words, {len(speakers)} speakers")
