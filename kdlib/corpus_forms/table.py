"""A table of audio files and their transcripts, as programs and hands write them."""

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple, Union

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

from kdlib.corpus_forms.rows import Row, is_json, json_rows, separated_rows
from kdlib.corpus_forms.shared import WHOLE, Part, all_channels, audio_base, on_disk, read_text, recording_of, said_role
from kdlib.errors import RecipeError
from kdlib.manifests import BadAudio, Skipped, normalise_text
from kdlib.scoring import is_unspaced

COLUMNS = {  # the best first, where a table has several of them
    "audio": ("audio", "audio path", "audio_path", "audio_file", "audio_filepath", "path", "file", "filename", "file_name",
              "wav", "wav_path"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "start": ("start", "start_time", "begin", "offset"),
    "end": ("end", "end_time", "stop"),
    "duration": ("duration",),
    "channel": ("channel",),
    "part": ("split", "subset", "set", "part"),
}
_NOTHING = ("nan", "NaN", "NULL")  # as programs write a cell without a value


def read_csv(path: Path, skipped: Skipped) -> Dict[str, Part]:
    """A table of audio path, text and (if there is one) speaker, separated by commas, semicolons, tabs or bars. Where no first
    row names them they stand in this order, and which is taken for what is printed.

    A first row that names the columns may order them otherwise and hold more: with ``start`` and ``end`` or ``duration``, in
    seconds, a row is of that much of its file, and with ``channel``, of which the first is 0, of that one where there are
    several; a ``split`` says which part of the corpus it is in, where any of its values says train, dev or test. Relative
    paths start where ``audio_base`` says. Between commas and semicolons a cell may be quoted, as spreadsheets write it, and
    then hold separators and line ends; between tabs and bars a quote is a character like others, but for the pair around a
    whole cell, inside which it is doubled.

    JSON is read too, objects on a line each or in one array: their keys are the names of the columns, and what is nested in
    them has no use. A start that an object lacks is 0 where ends are durations, as NeMo takes it.

    A row that cannot be read, or has not as many columns as the first row that names them (without one: as most rows), is
    left out and counted in ``skipped``; so are all rows of one file that have other texts, where nothing tells their times.

    Raises:
        RecipeError: the table is missing, empty, no text or broken JSON, or its first row names columns, but none of audio or
            none of text, two of one name, or half of a time, or channels of which none is 0; or without such a row the audio
            is not in the first column, or the second seems to hold speakers; or most rows, or all of a part, share their file,
            but not its text, with others, and nothing tells their times.
    """
    content = read_text(path)

    def is_audio(cell: str) -> bool:
        return bool(cell.strip()) and os.path.isfile(audio_base([cell.strip()], path.parent) / cell.strip())

    objects = json_rows(path, content, lambda keys: [_column(keys, name) for name in COLUMNS]) if is_json(content) else []
    read: Callable[[int], Iterable[Row]] = (lambda _: objects) if objects else separated_rows(content, is_audio)
    readable = [row for _, row in read(0) if not isinstance(row, str)]
    if not readable:
        raise RecipeError(f"{path} holds no rows: each is an audio path, its text and its speaker")
    header, columns, usual = _layout(path, readable, bool(objects), is_audio)
    numbered = list(read(columns))
    sound = [row for _, row in numbered if not isinstance(row, str) and len(row) == columns and row != header]
    place = _by_position(path, sound) if header is None else {name: _column(header, name) for name in COLUMNS}
    rows = _Rows(path, sound, place, columns, usual, "" if header is None else _column_of_parts(path, header, place, sound),
                 starts_lack=bool(objects) and place["end"] is None)
    parts: Dict[str, List[SupervisionSegment]] = {}
    for where, row in tqdm(numbered, desc="headers", unit="file", mininterval=5):
        if row == header:
            header = None
            continue
        try:
            part, segment = rows.segment(row)
        except _Unusable as error:
            skipped.add(error.name or f"{path}, {where}", str(error))
        else:
            parts.setdefault(part, []).append(segment)
    if place["start"] is None:
        parts = _of_one_text(path, parts, skipped)
    return {part: (RecordingSet.from_recordings(rows.recordings[name]
                                                for name in dict.fromkeys(segment.recording_id for segment in segments)),
                   SupervisionSet.from_segments(segments)) for part, segments in (parts or {WHOLE: []}).items()}


def _layout(path: Path, rows: List[List[str]], are_objects: bool,
            is_audio: Callable[[str], bool]) -> Tuple[Optional[List[str]], int, str]:
    """The first row where it names the columns, else None; how many columns a row is to have; and who says so."""
    header = rows[0]
    place = {name: _column(header, name) for name in COLUMNS}
    lacks = [name for name in ("audio", "text") if place[name] is None]
    if lacks and are_objects:
        raise RecipeError(f"{path}: its objects have the keys {_first(header)}, but none of the "
                          f"{' or the '.join(lacks)}: {_as_named(lacks, 'let keys')}")
    if lacks:
        columns = Counter(map(len, rows)).most_common(1)[0][0]
        _check_no_header(path, rows, lacks, columns, is_audio)
        return None, columns, "most rows have"
    _check_choice(path, header, place)
    if (place["start"] is None) != (place["end"] is None) and (place["start"] is None or place["duration"] is None):
        raise RecipeError(f"{path} names where utterances "
                          + ("end, but not where they start: add a column start" if place["start"] is None else
                             "start, but not where they end: add a column end or duration"))
    return header, len(header), "the first row has"


def _column_of_parts(path: Path, header: List[str], place: Mapping[str, Optional[int]], rows: List[List[str]]) -> str:
    """The name of the column that says which part a row is in; "" where there is none, or it says something else."""
    split = header[place["part"]].strip() if place["part"] is not None else ""
    if split and not any(said_role(row[place["part"]]) for row in rows):
        print(f"{path}: the column {split} makes no parts, since none of its values says train, dev or test")
        return ""
    return split


class _Unusable(Exception):
    """Why a row is left out; ``name``, of its audio, where that is at fault and not the row."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


class _Rows:
    """The rows of a table, as segments of the recordings that they name.

    ``sound`` are those with all columns; ``split`` names the column of parts, if there is one; a start may lack, which is 0
    then, where ``starts_lack``.
    """

    def __init__(self, path: Path, sound: List[List[str]], place: Mapping[str, Optional[int]], columns: int, usual: str,
                 split: str, starts_lack: bool) -> None:
        self.path, self.place, self.columns, self.usual = path, place, columns, usual
        self.split, self.starts_lack = split, starts_lack
        files = [row[place["audio"]].strip() for row in sound]
        self.base = audio_base(files, path.parent)
        folders = [os.path.dirname(file) for file in files if os.path.isabs(file)]
        self.top = os.path.commonpath(folders) if folders else ""
        self.channels = {_channel(row[place["channel"]]) for row in sound} if place["channel"] is not None else set()
        self.ends: Dict[str, float] = {}
        self.recordings: Dict[str, Recording] = {}

    def segment(self, row: Union[List[str], str]) -> Tuple[str, SupervisionSegment]:
        """The part that a row is in, and what it says of its recording; :class:`_Unusable` where that is nothing."""
        self._check(row)
        part = _value(row[self.place["part"]]) if self.split else WHOLE
        if not part:
            raise _Unusable(f"its cell of the column {self.split} has no value")
        text = row[self.place["text"]]
        if text.strip() in _NOTHING:
            raise _Unusable(f"its text is {text.strip()}, which tables hold where there is none")
        name = self._recording(row[self.place["audio"]].strip())
        audio = self.recordings[name]
        speaker = _value(row[self.place["speaker"]]) if self.place["speaker"] is not None else ""
        id_, channel = name, all_channels(audio)
        if self.channels and audio.num_channels > 1:
            channel = self._channel(row[self.place["channel"]].strip())
            id_ = f"{name}-{channel}"
        start, end = 0.0, audio.duration
        if self.place["start"] is not None:
            start, end, id_ = self._times(row, id_)
        return part, SupervisionSegment(id=id_, recording_id=name, start=start, duration=end - start, channel=channel, text=text,
                                        speaker=speaker or None)

    def _check(self, row: Union[List[str], str]) -> None:
        if isinstance(row, str):
            raise _Unusable(row)
        if len(row) != self.columns:
            raise _Unusable(f"it has {len(row)} columns, where {self.usual} {self.columns}")
        if self.columns < 2 or not row[self.place["audio"]].strip():
            raise _Unusable(f"it has {self.columns} columns, and no audio path with its text")

    def _recording(self, file: str) -> str:
        """The id of a file, whose header is read at its first row."""
        # Where the corpus stands is no part of an id: what is held out goes by them.
        within = os.path.relpath(file, self.top) if os.path.isabs(file) else Path(file)
        name = re.sub(r"[\s/\\]+", "-", os.path.splitext(within)[0]).strip("-") or file
        located = on_disk(str(self.base / file))
        if name in self.recordings:
            there = self.recordings[name].sources[0].source
            if os.path.normpath(there) != os.path.normpath(located):
                raise _Unusable(f"{file} would have the id {name}, which is that of {there}: rename one of the files")
            return name
        try:
            self.recordings[name] = recording_of(name, located)
        except BadAudio as error:
            raise _Unusable(str(error), name) from None
        return name

    def _channel(self, cell: str) -> int:
        if 0 not in self.channels:
            raise RecipeError(f"{self.path}: no cell of the column channel is 0, and the first channel is: number them from 0")
        channel = _channel(cell)
        if channel is None:
            raise _Unusable(f"its channel is {cell!r}, and channels are numbers, the first being 0")
        return channel

    def _times(self, row: List[str], id_: str) -> Tuple[float, float, str]:
        """Start and end in seconds, and the id with them."""
        place = self.place
        try:
            start = float(row[place["start"]] or ("0" if self.starts_lack else ""))
            end = float(row[place["end"]]) if place["end"] is not None else start + float(row[place["duration"]])
            id_ = f"{id_}-{round(1000 * start):07d}"
            if self.ends.setdefault(id_, end) != end:
                id_ = f"{id_}-{round(1000 * end):07d}"
        except (ValueError, OverflowError):
            raise _Unusable("its times are no numbers of seconds") from None
        return start, end, id_


def _of_one_text(path: Path, parts: Dict[str, List[SupervisionSegment]],
                 skipped: Skipped) -> Dict[str, List[SupervisionSegment]]:
    """The parts of a table of whole files without the rows of a file (or channel of one) that has several texts: the whole of
    it would be heard with the words of one. Refuse a table of which most is so, since its rows are of parts of files, or all
    of a part, in whose place speech of training would be held out."""
    texts: Dict[str, Set[str]] = {}
    rows = [segment for segments in parts.values() for segment in segments]
    for segment in rows:
        texts.setdefault(segment.id, set()).add(_letters(segment.text))
    for several in texts.values():
        several.discard("")  # says nothing of another row's
    doubtful = [segment for segment in rows if len(texts[segment.id]) > 1]
    kept = {part: [segment for segment in segments if len(texts[segment.id]) < 2] for part, segments in parts.items()}
    untold = "with other texts, and no columns start and end (or duration) tell which part of it a row is of"
    empty = next((part for part, segments in kept.items() if not segments), None)
    if len(doubtful) > 0.5 * len(rows) or empty is not None:
        lost = f"all rows of the part {empty}" if len(doubtful) <= 0.5 * len(rows) else f"{len(doubtful)} of {len(rows)} rows"
        raise RecipeError(f"{path}: {lost} name a file that other rows name {untold}: name those columns so, in seconds, or "
                          "leave one row of each file")
    for segment in doubtful:
        skipped.add(segment.id, f"other rows name its file {untold}")
    return kept


def _letters(text: str) -> str:
    """A text without what two writings of the same words may differ in: case, spaces and punctuation."""
    plain = normalise_text(text)
    return "".join(letter for letter in plain if unicodedata.category(letter)[0] not in "PZ") or plain


def _value(cell: str) -> str:
    """What a cell says; nothing where it says that it has no value."""
    return "" if cell.strip() in _NOTHING else cell.strip()


def _channel(cell: str) -> Optional[int]:
    """Its number, which programs may write as 1.0; None where it is none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 60 else f"{cell[:57]}...")


def _check_no_header(path: Path, rows: List[List[str]], lacks: List[str], columns: int,
                     is_audio: Callable[[str], bool]) -> None:
    """Refuse a table that cannot be read by position: its first row seems to name columns, though not those it lacks of audio
    and text, or the audio is not first. A row of audio that is missing is none that names columns, whatever is said in it."""
    first, sample = rows[0], rows[1:101]
    files = Counter(place for row in sample for place, cell in enumerate(row) if is_audio(cell))
    fullest, count = next(iter(files.most_common(1)), (0, 0))
    endings = {_ending(row[0]) for row in sample} - {""}
    ending = _ending(first[0])
    is_row = any(map(is_audio, first)) or ending in endings or not first[0].strip() and endings
    known = [title.strip() for title in first if any(title.strip().lower() in names for names in COLUMNS.values())]
    unknown = f", {_shown(', '.join(first))}, names no column that is known, and"
    if known and not is_row:
        why = f" names a column {known[0]}, but none of the {' or the '.join(lacks)}"
    elif not files[0] and count > 0.5 * len(sample):
        why = f"{unknown} files stand in column {fullest + 1}, not in the first"
    elif (len(first) == columns and not is_row and not ending and files[0]
          and all(_ending(row[0]) for row in sample if is_audio(row[0]))):
        why = f"{unknown} no file, though the rows after it do"
    else:
        return
    raise RecipeError(f"{path}: the first row{why}: {_as_named(lacks, 'let a first row')}")


def _as_named(lacks: List[str], let: str) -> str:
    """The remedy where no column has a known name of these."""
    return (("call that one " if len(lacks) == 1 else f"{let} call them ")
            + " and ".join(f"{name} (or {', '.join(COLUMNS[name][1:4])})" for name in lacks))


def _ending(cell: str) -> str:
    return os.path.splitext(cell.strip())[1].lower()


def _by_position(path: Path, rows: List[List[str]]) -> Dict[str, Optional[int]]:
    """The columns of a table whose first row names none; said, since the lists of some programs have another order.

    A third one that is another text in nearly each row, as in LJSpeech's lists, is no speaker, nor is a number with a fraction,
    as of seconds: what is held out by it would be heard in training. Refuse a list with fewer other words before sentences,
    which are its speakers in VITS's.
    """
    place = {**dict.fromkeys(COLUMNS), "audio": 0, "text": 1}
    if not rows or len(rows[0]) < 2:
        return place
    audio, text, *more = map(_shown, rows[0])
    said = f"{path}: the first row names no columns: the audio is the 1st ({audio}), the text the 2nd ({text})"
    if more:
        second, third = ([value for value in (_value(row[column]) for row in rows) if value] for column in (1, 2))
        if (sum(map(_is_sentence, third)) > 0.5 * len(rows) and sum(map(_is_sentence, second)) < 0.1 * len(second)
                and len({*third}) > len({*second})):
            raise RecipeError(f"{path}: the first row names no columns, and the 2nd column ({text}) seems to be the speaker "
                              f"and the 3rd ({more[0]}) the text: let a first row name all columns, these audio, speaker and "
                              "text or, if the 2nd is the text, audio, text and another name")
        if len({*third}) >= 0.9 * len(third) and sum(map(_is_long, third)) > 0.5 * len(third):
            said += f"; the 3rd ({more[0]}) is another text in nearly each row and no speaker: none is known"
        elif sum(bool(re.fullmatch(r"\d+[.,]\d*[1-9]\d*", value)) for value in third) > 0.5 * len(third):
            said += f"; the 3rd ({more[0]}) is a number with a fraction in most rows and no speaker: none is known"
        else:
            place["speaker"] = 2
            said += f", the speaker the 3rd ({more[0]})"
    print(said)
    return place


def _is_long(cell: str) -> bool:
    """Of several words; in a script without spaces between them, longer than a name."""
    return " " in cell or sum(map(is_unspaced, cell)) > 6


def _is_sentence(cell: str) -> bool:
    """Of three words or more, without those with digits, as dates have; in a script without spaces, longer than most names."""
    words = [word for word in cell.split() if any(map(str.isalpha, word)) and not any(map(str.isdigit, word))]
    return len(words) > 2 or sum(map(is_unspaced, cell)) > 9


def _first(names: List[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _titles(header: List[str]) -> List[str]:
    return [title.strip().lower() for title in header]


def _column(header: List[str], name: str) -> Optional[int]:
    titles = _titles(header)
    return next((titles.index(known) for known in COLUMNS[name] if known in titles), None)


def _check_choice(path: Path, header: List[str], place: Dict[str, Optional[int]]) -> None:
    """Refuse two columns of the name that was chosen; say which was where there was a choice, and which have no use."""
    titles = _titles(header)
    for name, known in COLUMNS.items():
        others = [title for title in titles if title in known and titles.index(title) != place[name]]
        if place[name] is not None and titles.count(titles[place[name]]) > 1:
            raise RecipeError(f"{path} names two columns {titles[place[name]]}: rename or remove the "
                              f"one that is not the {name}")
        if others:
            print(f"{path}: the {name} is the column {titles[place[name]]}, not {' or '.join(dict.fromkeys(others))}")
    unused = {title for title in titles if title and not any(title in known for known in COLUMNS.values())}
    if place["start"] is None or place["end"] is not None:
        unused.update(COLUMNS["duration"])
    named = [title for title in titles if title in unused]
    if named:
        print(f"{path}: not used: the column{'s' * (len(named) > 1)} {_first(named)}")
