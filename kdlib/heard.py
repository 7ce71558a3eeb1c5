"""What utterances have of which audio, and which have the same, by whatever names."""

import os
from bisect import bisect_left
from collections import defaultdict
from typing import Dict, Hashable, Iterable, List, Mapping, Optional, Sequence, Tuple

from lhotse import Recording
from lhotse.cut import Cut, MixedCut

Audio = Tuple[Tuple[str, ...], Tuple[int, ...], int, int]  # files, channels, from and to in milliseconds


def audio_at(recording: Optional[Recording], channels: Sequence[int], start: float, end: float) -> Optional[Audio]:
    """What is heard there, by whatever path a file is named; None where no file or time tells. Times are in seconds."""
    if recording is None or any(source.type != "file" for source in recording.sources):
        return None
    try:
        return (tuple(os.path.realpath(source.source) for source in recording.sources), tuple(channels),
                round(1000 * start), round(1000 * min(end, recording.duration)))
    except (ValueError, OverflowError):  # no number, or a name that no file can have
        return None


def audio_of(cut: Cut) -> Optional[Audio]:
    """What is heard in a cut of :func:`kdlib.corpus.checked_cuts`."""
    tracks = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    return audio_at(tracks[0].recording, [track.channel for track in tracks], tracks[0].start, tracks[0].end)


def joined(audios: Iterable[Optional[Audio]]) -> Dict[Hashable, List[List[int]]]:
    """From where to where, in order, there is any of this audio in each channel of each file."""
    spans = defaultdict(list)
    for files, channels, start, end in filter(None, audios):
        for channel in channels:
            spans[files, channel].append([start, end])
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
    files, channels, start, end = audio
    for channel in channels:
        spans = spans_of.get((files, channel), [])
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

    spans = defaultdict(list)
    for name, audio in audios.items():
        files, channels, start, end = audio or ((name,), (0,), 0, 0)
        for channel in channels:
            spans[files, channel].append((start, end, name))
    for some in spans.values():
        open_: List[Tuple[int, int, str]] = []
        for start, end, name in sorted(some):
            open_ = [span for span in open_ if span[1] > start]
            for other_start, other_end, other in open_:
                if 2 * (min(end, other_end) - start) > min(end - start, other_end - other_start):
                    one, two = sorted((first(name), first(other)))
                    of[two] = one
            open_.append((start, end, name))
    return {name: first(name) for name in of}
