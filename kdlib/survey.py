"""What somebody should know of a corpus before training on it: hours, durations, odd characters, overlaps, speakers."""

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.utils import to_list

from kdlib.corpus_parts import trainable, untrainable
from kdlib.scoring import UNSPACED, is_unspaced

_EDGES = (0.0, 0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 25, 30)  # seconds
_BAR = 40
# Below this part of the transcripts a symbol, and below this part of the letters a script, is a stray one.
_RARE_SYMBOL, _RARE_SCRIPT = 0.05, 0.01
_OVERLAP = 0.025  # seconds; less is rounding
_SHOWN = 10  # odd characters
_UNSPACED_SCRIPTS = {name: re.compile(f"[{ranges}]") for name, ranges in UNSPACED.items()}


def histogram(durations: Sequence[float]) -> List[str]:
    """A line with a bar for each range of seconds from the shortest utterance's to the longest's."""
    counts = Counter(sum(1 for edge in _EDGES[1:] if seconds >= edge) for seconds in durations)
    lines = []
    for place in range(min(counts), max(counts) + 1):
        end = f"{_EDGES[place + 1]:g}" if place + 1 < len(_EDGES) else ""
        bar = "#" * -(-_BAR * counts[place] // max(counts.values()))
        lines.append(f"{_EDGES[place]:>5g} - {end:>3} s  {counts[place]:>8,}  {bar}".rstrip())
    return lines


def _script(letter: str) -> str:
    """As Unicode names it, but for marks that are named otherwise (々 is called IDEOGRAPHIC, not CJK)."""
    named = unicodedata.name(letter, "?").split()[0].split("-")[0]
    return next((name for name, letters in _UNSPACED_SCRIPTS.items() if letters.match(letter)), named)


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or character == "〇"  # a hanzi, zero, which Unicode has as a number


def _letters(texts: Iterable[str]) -> Dict[str, int]:
    return {character: count for character, count in Counter("".join(texts)).items()
            if _is_letter(character) and unicodedata.category(character)[0] != "M"}


def scripts(texts: Iterable[str]) -> Counter:
    """How many letters there are of each script, as Unicode names it: LATIN, CJK, ..."""
    found: Counter = Counter()
    for letter, count in _letters(texts).items():
        found[_script(letter)] += count
    return found


def unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters are of a script without spaces between words."""
    letters = _letters(texts)
    return sum(count for letter, count in letters.items() if is_unspaced(letter)) > 0.5 * sum(letters.values())


def odd_characters(texts: Mapping[str, str]) -> Dict[str, Tuple[int, List[str]]]:
    """Characters that seem not to belong to transcripts: how often each occurs, and the ids of the texts it is in.

    ``texts`` are transcripts by id. Odd are symbols and digits that stand in few of them (where digits are common, they are
    the way that the corpus writes), letters of a script that is rare in it, and, however many there are, characters
    that nobody sees (Unicode's categories C). The plain apostrophe is a letter here, and a mark of no letters' script
    (a combining accent) a symbol.
    """
    found = scripts(texts.values())
    rare = {name for name, count in found.items() if count < _RARE_SCRIPT * sum(found.values())}
    odd = {}
    for character, ids in _where(texts):
        if _is_letter(character) and _script(character) in found:
            strange = _script(character) in rare
        else:
            strange = len(ids) < _RARE_SYMBOL * len(texts) or unicodedata.category(character)[0] == "C"
        if strange:
            odd[character] = sum(texts[name].count(character) for name in ids), ids
    return odd


def common_punctuation(texts: Mapping[str, str]) -> Dict[str, int]:
    """In how many transcripts each symbol stands that is no odd character: it becomes a token, and is scored."""
    return {character: len(ids) for character, ids in _where(texts)
            if unicodedata.category(character)[0] in "PS" and len(ids) >= _RARE_SYMBOL * len(texts)}


def _where(texts: Mapping[str, str]) -> List[Tuple[str, List[str]]]:
    """The ids of the texts that each character but white space and the apostrophe is in, the commonest first."""
    where: Dict[str, List[str]] = defaultdict(list)
    for name, text in texts.items():
        for character in set(text) - {"'"}:
            if not character.isspace():
                where[character].append(name)
    return sorted(where.items(), key=lambda item: (-len(item[1]), item[0]))


def overlapping(supervisions: Iterable[SupervisionSegment]) -> List[Tuple[str, str]]:
    """Pairs of ids whose times overlap in one channel of one recording, of utterances of one part: each that overlaps any
    stands in one at least, not every two that do, who may be very many where several speak at once."""
    by_channel = defaultdict(list)
    for segment in supervisions:
        for channel in to_list(segment.channel):
            by_channel[segment.recording_id, channel].append(segment)
    pairs = []
    for segments in by_channel.values():
        segments.sort(key=lambda segment: segment.start)
        last = segments[0]
        for segment in segments[1:]:
            if segment.start < last.end - _OVERLAP and segment.id != last.id:  # a second one of an id is left out anyway
                pairs.append((last.id, segment.id))
            if segment.end > last.end:
                last = segment
    return sorted(set(pairs))


def rates(recordings: Iterable[Recording]) -> Counter:
    """How many recordings there are of each (rate in Hz, channels); one that several parts have is one."""
    return Counter((recording.sampling_rate, recording.num_channels) for recording in _different(recordings))


def seconds_of_rates(recordings: Iterable[Recording]) -> Counter:
    """How many seconds there are of each (rate in Hz, channels)."""
    found: Counter = Counter()
    for recording in _different(recordings):
        found[recording.sampling_rate, recording.num_channels] += recording.duration
    return found


def _different(recordings: Iterable[Recording]) -> Iterable[Recording]:
    return {(recording.id, *(str(source.source) for source in recording.sources)): recording
            for recording in recordings}.values()


@dataclass
class Speech:
    """What a part of a corpus comes to."""

    utterances: int
    hours: float
    words: int
    speakers: frozenset

    @classmethod
    def of(cls, cuts: Sequence[Cut]) -> "Speech":
        """Of cuts with one supervision each."""
        return cls(len(cuts), sum(cut.duration for cut in cuts) / 3600,
                   sum(len(cut.supervisions[0].text.split()) for cut in cuts),
                   frozenset(cut.supervisions[0].speaker for cut in cuts) - {None})

    def __str__(self) -> str:
        return (f"{self.utterances:,} utterances, {self.hours:.2f} h, {self.words:,} words, "
                f"{len(self.speakers) or 'unknown'} speakers")


def shared_speakers(parts: Mapping[str, Sequence[Cut]]) -> Dict[str, List[str]]:
    """The speakers of each other part that train hears too."""
    heard = Speech.of(parts.get("train", ())).speakers
    shared = {part: sorted(heard & Speech.of(cuts).speakers) for part, cuts in parts.items() if part != "train"}
    return {part: names for part, names in shared.items() if names}


def describe_survey(corpus: Iterable[Tuple[Iterable[Recording], Iterable[SupervisionSegment]]],
                    parts: Mapping[str, Sequence[Cut]]) -> List[str]:
    """The lines to print: ``corpus`` is its own parts, ``parts`` their checked cuts (at least one in all).

    Test sets may share utterances: but for the lines of the parts, each counts once.
    """
    corpus = list(corpus)
    cuts = list({(cut.id, cut.duration, cut.supervisions[0].text): cut for some in parts.values() for cut in some}.values())
    lines = [f"{part}: {Speech.of(some)}" for part, some in parts.items()]
    lines += ["", "durations:", *histogram([cut.duration for cut in cuts]), ""]
    # Those of test sets are decoded all the same.
    for reason, ids in sorted(untrainable([*parts.get("train", ()), *parts.get("dev", ())]).items(), reverse=True):
        lines.append(f"{len(ids)} utterances {reason}, which training leaves out: {_first(ids)}")
    found = rates(recording for recordings, _ in corpus for recording in recordings)
    lines.append("audio: " + "; ".join(f"{count:,} recordings of {rate} Hz, {channels} channel{'s' * (channels > 1)}"
                                       for (rate, channels), count in found.most_common()))
    kept = {cut.id for cut in cuts}
    pairs = list(dict.fromkeys(pair for _, supervisions in corpus
                               for pair in overlapping(segment for segment in supervisions if segment.id in kept)))
    if pairs:
        lines.append(f"{len({id_ for pair in pairs for id_ in pair})} utterances overlap others in their recording: "
                     + _first([f"{a} and {b}" for a, b in pairs]))
    texts = {cut.id: cut.supervisions[0].text for cut in cuts}
    odd = odd_characters(texts)
    for character, (count, ids) in list(odd.items())[:_SHOWN]:
        lines.append(f"odd character {character!r} ({unicodedata.name(character, 'no name')}): {count} times in "
                     f"{len(ids)} transcripts, {_first(ids)}")
    if len(odd) > _SHOWN:
        lines.append(f"... and {len(odd) - _SHOWN} more odd characters")
    written = [segment.text or "" for _, some in corpus for segment in some if segment.id in kept]
    if sum("ı" in text for text in written) > _RARE_SYMBOL * len(written) and any("i" in text for text in written):
        lines.append("ı and i (Turkish has both) become one letter, I, in capitals, which the recipe writes: let its "
                     'normalise return " ".join(text.replace("I", "ı").replace("İ", "i").lower().split())')
    merged = _told_apart_by_sharp_s(written)
    if merged:
        lines.append(f"in capitals, which the recipe writes, ß is SS, so that {_first(merged)} become one word: where they are "
                     'two, let its normalise return " ".join(text.lower().split())')
    common = common_punctuation(texts)
    if common:
        lines.append("punctuation, which becomes tokens and is scored unless the recipe's normalise takes it out: "
                     + ", ".join(f"{character!r} in {100 * count / len(texts):.0f}%" for character, count in common.items())
                     + " of the transcripts")
    # What training leaves out it does not hear.
    for part, names in shared_speakers({**parts, "train": trainable(parts.get("train", ()))}).items():
        lines.append(f"{len(names)} speakers of {part} are in train too: {_first(names)}")
    return lines


def _told_apart_by_sharp_s(texts: Iterable[str]) -> List[str]:
    """Pairs of words of German ("maße and masse") that have ß and ss in one place."""
    words = {word for text in texts for word in re.findall(r"\w+", text.lower())}
    return [f"{word} and {other}" for word, other in sorted((word, word.replace("ß", "ss")) for word in words)
            if other != word and other in words]


def _first(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (" ..." if len(names) > shown else "")
