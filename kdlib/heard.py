"""What utterances have of which audio, and which have the same, by whatever names."""

import hashlib
import os
import stat
from bisect import bisect_left
from collections import defaultdict
from typing import Callable, Dict, Hashable, Iterable, List, Mapping, Optional, Sequence, Tuple

from lhotse import Recording
from lhotse.audio import AudioSource
from lhotse.augmentation import AudioTransform, Speed, Tempo
from lhotse.cut import Cut, MixedCut

from kdlib.manifests import AudioFormat, BadAudio, audio_files, read_header

# In which channels of which files it is heard, by what these are known by and their places in it; from and to in milliseconds.
Audio = Tuple[Tuple[Tuple[str, int], ...], int, int]
_GLANCE = 4096  # bytes


def known_files(recordings: Iterable[Recording]) -> Dict[str, str]:
    """What each file of the recordings is known by: its real path, or of copies, byte for byte, the first one's. Files whose
    header cannot be read, as failed downloads, are no copies of each other. A name that no file can have is left out."""
    paths: Dict[str, str] = {}
    for recording in recordings:
        for file in audio_files(recording):
            if file not in paths:
                try:
                    paths[file] = os.path.realpath(file)
                except ValueError:
                    continue
    alike = [sorted({*paths.values()})]
    # Files are read where their sizes are the same, and whole where what is in their middle is too: of clips cut to one length
    # there may be a million.
    for look in (_size, _middle, _digest, _header):
        alike = [some for group in alike for some in _alike(group, look)]
    first = {path: group[0] for group in alike for path in group}
    return {file: first.get(path, path) for file, path in paths.items()}


def _alike(files: Iterable[str], look: Callable[[str], Optional[Hashable]]) -> List[List[str]]:
    """Those of which it shows the same, together, where there are several; none of which it shows nothing."""
    found: Dict[Optional[Hashable], List[str]] = defaultdict(list)
    for file in files:
        try:
            found[look(file)].append(file)
        except OSError:  # it is missing or cannot be read, which whoever decodes it says
            continue
    return [some for shown, some in found.items() if shown is not None and len(some) > 1]


def _size(file: str) -> Optional[int]:
    """Of what holds anything, and is no pipe, which nobody may write to."""
    status = os.stat(file)
    return status.st_size or None if stat.S_ISREG(status.st_mode) else None


def _middle(file: str) -> bytes:
    with open(file, "rb") as opened:
        opened.seek(os.path.getsize(file) // 2)
        return opened.read(_GLANCE)


def _digest(file: str) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        for block in iter(lambda: opened.read(1 << 20), b""):
            digest.update(block)
    return digest.digest()


def _header(file: str) -> Optional[AudioFormat]:
    try:
        return read_header(file)
    except BadAudio:
        return None


def audio_at(recording: Optional[Recording], channels: Sequence[int], start: float, end: float,
             known: Mapping[str, str]) -> Optional[Audio]:
    """What is heard there, of files that are ``known`` (:func:`known_files`); None where no file or time tells. Times are in
    seconds of the recording, which may be perturbed in speed."""
    if recording is None or not channels:
        return None
    try:
        sources = [_source(recording, channel) for channel in channels]
        speed = _speed(recording)
        return (tuple((known[source.source], source.channels.index(channel)) for source, channel in zip(sources, channels)),
                round(1000 * start * speed), round(1000 * min(end, recording.duration) * speed))
    except (KeyError, ValueError, OverflowError):  # a name that no file can have, no channel of it in a file, no number
        return None


def _source(recording: Recording, channel: int) -> AudioSource:
    """The file that the channel is in; ValueError where there is none."""
    for source in recording.sources:
        if source.type == "file" and channel in source.channels:
            return source
    raise ValueError(channel)


def _speed(recording: Recording) -> float:
    """Seconds of its files in a second of the recording."""
    speed = 1.0
    for transform in recording.transforms or ():
        if isinstance(transform, dict):
            transform = AudioTransform.from_dict(transform)
        if isinstance(transform, (Speed, Tempo)):
            speed *= transform.factor
    return speed


def audios_of(cuts: Iterable[Cut]) -> Dict[str, Optional[Audio]]:
    """What is heard in each cut of :func:`kdlib.corpus.checked_cuts`, by its id."""
    tracks = {cut.id: [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut] for cut in cuts}
    known = known_files(some[0].recording for some in tracks.values())
    return {name: audio_at(some[0].recording, [track.channel for track in some], some[0].start, some[0].end, known)
            for name, some in tracks.items()}


def joined(audios: Iterable[Optional[Audio]]) -> Dict[Hashable, List[List[int]]]:
    """From where to where, in order, there is any of this audio in each channel of each file."""
    spans = defaultdict(list)
    for places, start, end in filter(None, audios):
        for place in places:
            spans[place].append([start, end])
    for key, some in spans.items():
        spans[key] = []
        for start, end in sorted(some):
            if spans[key] and start <= spans[key][-1][1]:
                spans[key][-1][1] = max(spans[key][-1][1], end)
            else:
                spans[key].append([start, end])
    return spans


def mostly_in(audio: Optional[Audio], spans_of: Mapping[Hashable, List[List[int]]]) -> bool:
    """Whether more than half of it, in one channel, is in the audio that :func:`joined` told; no where nothing tells of it."""
    if audio is None:
        return False
    places, start, end = audio
    for place in places:
        spans = spans_of.get(place, [])
        near = spans[max(0, bisect_left(spans, [start]) - 1):bisect_left(spans, [end])]
        if 2 * sum(max(0, min(end, finish) - max(start, begin)) for begin, finish in near) > end - start:
            return True
    return False


def heard_together(audios: Mapping[str, Optional[Audio]]) -> Dict[str, str]:
    """Of the ids of cuts, with what is heard in each, each one with the first one of its group. Two that share more than half
    of the shorter one's audio are of one group, and so all windows are that slide over a recording."""
    of = {name: name for name in audios}

    def first(name: str) -> str:
        while of[name] != name:
            of[name] = name = of[of[name]]
        return name

    def join(name: str, other: str) -> None:
        one, two = sorted((first(name), first(other)))
        of[two] = one

    spans = defaultdict(list)
    same: Dict[Audio, str] = {}
    for name, audio in audios.items():
        if audio is not None and same.setdefault(audio, name) != name:
            join(same[audio], name)  # and no span of its own: copies may be so many that comparing all pairs takes minutes
            continue
        places, start, end = audio or (((name, 0),), 0, 0)
        for place in places:
            spans[place].append((start, end, name))
    for some in spans.values():
        open_: List[Tuple[int, int, str]] = []
        for start, end, name in sorted(some):
            open_ = [span for span in open_ if span[1] > start]
            for other_start, other_end, other in open_:
                if 2 * (min(end, other_end) - start) > min(end - start, other_end - other_start):
                    join(other, name)
            open_.append((start, end, name))
    return {name: first(name) for name in of}
