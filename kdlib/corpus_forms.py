"""Corpora on disk in the forms that people have them in, read as Lhotse recordings and supervisions.

Four forms: a Kaldi data folder, Lhotse manifests, a table of files and transcripts, and what Lhotse's own recipes prepare.
Each reader returns the corpus by part (one part called ``all`` where there are none); headers of audio files are read, their
samples are not (:func:`kdlib.corpus.checked_cuts` decodes them). Nothing found in a corpus is ever run.
"""

import codecs
import csv
import difflib
import inspect
import io
import logging
import os
import re
import shutil
import tempfile
import unicodedata
import zlib
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy
from tqdm import tqdm

from kdlib.errors import RecipeError, known_failure
from kdlib.files import PathLike, atomic_path, content_digest
from kdlib.manifests import BadAudio, Skipped, read_header

Part = Tuple[RecordingSet, SupervisionSet]
WHOLE = "all"  # the one part of a corpus that is not divided
COLUMNS = {
    "audio": ("audio", "audio path", "audio_path", "audio_file", "audio_filepath", "path", "file", "filename", "file_name",
              "wav", "wav_path"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "spk", "client_id"),
    "start": ("start", "start_time", "begin", "offset"),
    "end": ("end", "end_time", "stop"),
    "duration": ("duration",),
}


# Tabs and bars come first: commas and semicolons stand in transcripts too.
_SEPARATORS = ("\t", "|", ";", ",")


def _text(path: Path) -> str:
    if path.is_dir():
        raise RecipeError(f"{path} is a folder: give the file in it")
    if not path.is_file():
        raise RecipeError(f"{path} is missing: give another folder or file, or make it")
    content = path.read_bytes()
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # as spreadsheets write "Unicode text"
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with "
                          "iconv -f latin1 -t utf-8") from None


def _lines(path: Path) -> List[Tuple[int, str]]:
    """Numbered lines that are not blank."""
    return [(number, line.rstrip("\r")) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]


def _entries(path: Path) -> Iterator[Tuple[int, str, str]]:
    """(line number, first word, the rest) of each line, as Kaldi's files are laid out."""
    for number, line in _lines(path):
        name, rest = (line.split(maxsplit=1) + [""])[:2]
        yield number, name, rest.strip()


def _located(path: str, folder: Path) -> str:
    """A relative path starts from the folder of the file that names it, or from one of the three folders above that."""
    for base in (folder, *folder.resolve().parents[:3]):
        if os.path.exists(base / path):  # which a name that no file can have is not, where Path.exists raises
            return str(base / path)
    return str(folder / path)


def _recording(name: str, path: str) -> Recording:
    """The recording of a file, by its header; :class:`BadAudio` when that cannot be read."""
    try:
        samples, rate, channels = read_header(path)
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name can
        raise BadAudio(f"{path} cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    return Recording(id=name, sources=[AudioSource(type="file", channels=list(range(channels)), source=path)],
                     sampling_rate=rate, num_samples=samples, duration=samples / rate)


def _of_all_channels(recording: Recording) -> Any:
    return recording.channel_ids if len(recording.channel_ids) > 1 else 0


def read_csv(path: Path, skipped: Skipped) -> Dict[str, Part]:
    """A table of audio path, text and (if there is one) speaker, separated by commas, semicolons, tabs or bars.

    A first row that names the columns may order them otherwise and hold more: with ``start`` and ``end`` or ``duration``, in
    seconds, a row is of that much of its file. Relative paths start from the table. Between
    commas and semicolons a cell may be quoted, as spreadsheets write it, and then hold separators and line ends; between
    tabs and bars a quote is a character like others, but for the pair around a whole cell, inside which it is doubled.

    A row that cannot be read, or has not as many columns as the first row that names them (without one: as most rows), is
    left out and counted in ``skipped``.
    """
    lines = list(io.StringIO(_text(path), newline=""))
    named = re.fullmatch(r"sep=(.)\s*", lines[0], re.IGNORECASE) if lines else None  # for Excel
    if named:
        lines[0] = "\n"

    def is_audio(cell: str) -> bool:
        return bool(cell.strip()) and os.path.isfile(_located(cell.strip(), path.parent))

    # Between separators that divide as many rows, audio decides.
    separator = named[1] if named else max(_SEPARATORS, key=lambda some: _agreement(lines, some, is_audio))
    readable = [row for _, row in _rows(lines, separator, is_audio) if not isinstance(row, str)]
    if not readable:
        raise RecipeError(f"{path} holds no rows: each is an audio path, its text and its speaker")
    header = readable[0]
    place = {name: _column(header, name) for name in COLUMNS}
    if place["audio"] is None or place["text"] is None:
        known = [title.strip() for title in header if title.strip().lower() in (*COLUMNS["audio"], *COLUMNS["text"])]
        if known and not any(map(is_audio, header)):
            lacks = "audio" if place["audio"] is None else "text"
            raise RecipeError(f"{path}: the first row names a column {known[0]}, but none of the {lacks}: call that one "
                              f"{lacks} (or {', '.join(COLUMNS[lacks][1:4])})")
        place, header = {"audio": 0, "text": 1, "speaker": 2, "start": None, "end": None, "duration": None}, None
        columns, usual = Counter(map(len, readable)).most_common(1)[0][0], "most rows have"
    else:
        columns, usual = len(header), "the first row has"
        if (place["start"] is None) != (place["end"] is None) and (place["start"] is None or place["duration"] is None):
            raise RecipeError(f"{path}: the first row names where utterances "
                              + ("end, but not where they start: add a column start" if place["start"] is None else
                                 "start, but not where they end: add a column end or duration"))
    recordings, segments = {}, []
    for number, row in tqdm(list(_rows(lines, separator, is_audio, columns)), desc="headers", unit="file", mininterval=5):
        where = f"{path}, line {number}"
        if row == header:
            header = None
            continue
        if isinstance(row, str):
            skipped.add(where, row)
            continue
        if len(row) != columns:
            skipped.add(where, f"it has {len(row)} columns, where {usual} {columns}")
            continue
        if columns < 2 or not row[place["audio"]].strip():
            skipped.add(where, f"it has {columns} columns, and no audio path with its text")
            continue
        file = row[place["audio"]].strip()
        name = re.sub(r"[\s/\\]+", "-", os.path.splitext(Path(file))[0]).strip("-") or file
        located = _located(file, path.parent)
        if name in recordings and os.path.normpath(recordings[name].sources[0].source) != os.path.normpath(located):
            skipped.add(where, f"{file} would have the id {name}, which is that of {recordings[name].sources[0].source}: "
                               "rename one of the files")
            continue
        if name not in recordings:
            try:
                recordings[name] = _recording(name, located)
            except BadAudio as error:
                skipped.add(name, str(error))
                continue
        speaker = row[place["speaker"]].strip() if place["speaker"] is not None and columns > place["speaker"] else ""
        audio, id_, start, end = recordings[name], name, 0.0, recordings[name].duration
        if place["start"] is not None:
            try:
                start = float(row[place["start"]])
                end = float(row[place["end"]]) if place["end"] is not None else start + float(row[place["duration"]])
                id_ = f"{name}-{round(1000 * start):07d}"
            except (ValueError, OverflowError):
                skipped.add(where, "its times are no numbers of seconds")
                continue
        segments.append(SupervisionSegment(id=id_, recording_id=name, start=start, duration=end - start,
                                           channel=_of_all_channels(audio), text=row[place["text"]],
                                           speaker=speaker or None))
    return {WHOLE: (RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(segments))}


def _rows(lines: List[str], separator: str, is_audio: Callable[[str], bool],
          columns: int = 0) -> Iterator[Tuple[int, Union[List[str], str]]]:
    """Each row that is not blank, by the number of its first line; of one that cannot be read the reason in place of it.

    A quote that nothing closes runs on through the rows after it, until another does not fit, or until there are not
    ``columns`` (if they are known), or a row that it took in has a cell of its own that ``is_audio``. These rows are then
    read again, without the one of the quote.
    """
    place = 0

    def rest() -> Iterator[str]:
        nonlocal place
        while place < len(lines):
            place += 1
            yield lines[place - 1]

    while place < len(lines):
        first = place
        if not lines[first].strip():
            place += 1
        elif separator in "\t|":
            place += 1
            yield place, [_unquoted(cell) for cell in lines[first].rstrip("\r\n").split(separator)]
        else:
            try:
                row = next(csv.reader(rest(), delimiter=separator, strict=True))
                if columns and len(row) != columns and place > first + 1:
                    raise csv.Error(f"the row goes on to line {place}, and has {len(row)} columns")
                if any(is_audio(cell) for line in lines[first + 1:place] for cell in line.rstrip().split(separator)):
                    raise csv.Error(f"the row goes on to line {place}, over rows with audio of their own")
                yield first + 1, row
            except csv.Error as error:
                place = first + 1
                yield place, f"its quotes do not fit ({error}): close the one that is open, or double those inside a cell"


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if re.fullmatch('"(?:[^"]|"")*"', cell) else cell


def _agreement(lines: List[str], separator: str, is_audio: Callable[[str], bool]) -> Tuple[int, int]:
    """How many of the first rows have the same number of columns, if that is more than one; and a cell that ``is_audio``."""
    rows = [row for _, row in islice(_rows(lines, separator, is_audio), 20) if len(row) > 1 and not isinstance(row, str)]
    return max(Counter(map(len, rows)).values(), default=0), sum(any(map(is_audio, row)) for row in rows)


def _column(header: List[str], name: str) -> Optional[int]:
    found = [place for place, title in enumerate(header) if title.strip().lower() in COLUMNS[name]]
    return found[0] if found else None


def read_kaldi(folder: Path, skipped: Skipped) -> Dict[str, Part]:
    """A Kaldi data folder (wav.scp, text, utt2spk and segments, the last two if there are any), or a folder of such."""
    if (folder / "wav.scp").is_file():
        return {WHOLE: _kaldi_part(folder, skipped)}
    parts = sorted(path.parent for path in folder.glob("*/wav.scp"))
    if not parts:
        raise RecipeError(f"{folder} holds no wav.scp, nor does a folder in it: give a Kaldi data folder")
    return {part.name: _kaldi_part(part, skipped) for part in parts}


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


def _kaldi_part(folder: Path, skipped: Skipped) -> Part:
    recordings: Dict[str, Recording] = {}
    bad = set()
    files = list(_entries(folder / "wav.scp"))
    for number, name, path in files:
        if path.endswith("|") or path.startswith("|"):
            raise RecipeError(f"{folder / 'wav.scp'}, line {number} ({name}) holds a command, which is never run: write the "
                              "audio to files (Kaldi's wav-copy does) and name those instead")
    for number, name, path in tqdm(files, desc="headers", unit="file", mininterval=5):
        try:
            if name in recordings:
                skipped.add(name, f"{folder / 'wav.scp'}, line {number}: a second recording of this id")
            else:
                recordings[name] = _recording(name, _located(path, folder))
        except BadAudio as error:
            skipped.add(name, str(error))
            bad.add(name)
    texts: Dict[str, str] = {}
    for number, name, text in _entries(folder / "text"):
        if name in texts:
            skipped.add(name, f"{folder / 'text'}, line {number}: a second transcript of this id")
        texts.setdefault(name, text)
    speakers = {}
    if (folder / "utt2spk").is_file():
        speakers = {name: speaker for _, name, speaker in _entries(folder / "utt2spk")}
    if (folder / "segments").is_file():
        times = list(_kaldi_segments(folder / "segments", recordings, skipped))
    else:  # an utterance is a whole recording
        times = [(name, name, 0.0, recordings[name].duration) for name in texts if name in recordings]
    for name in sorted(texts.keys() - {name for name, *_ in times} - bad):
        skipped.add(name, f"{folder / 'text'} has its transcript, but there is no audio of it")
    segments = [SupervisionSegment(id=name, recording_id=of, start=start, duration=end - start,
                                   channel=_of_all_channels(recordings[of]) if of in recordings else 0,
                                   text=texts.get(name), speaker=speakers.get(name)) for name, of, start, end in times]
    return RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(segments)


def _kaldi_segments(path: Path, recordings: Dict[str, Recording],
                    skipped: Skipped) -> Iterator[Tuple[str, str, float, float]]:
    """(utterance, recording, start, end) of each line."""
    for number, line in _lines(path):
        try:
            name, of, start, end = line.split()
            begin, finish = float(start), float(end)
        except ValueError:
            skipped.add(f"{path}, line {number}", "it is not: utterance, recording, start, end")
            continue
        if finish < 0 and of in recordings:  # as Kaldi writes the end of the recording
            finish = recordings[of].duration
        yield name, of, begin, finish


def read_manifests(folder: Path, skipped: Skipped) -> Dict[str, Part]:
    """Lhotse manifests: each [PREFIX_]recordings[_PART].jsonl.gz with the supervisions of the same name."""
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder: give the one of recordings_*.jsonl.gz and supervisions_*.jsonl.gz")
    parts: Dict[str, Part] = {}
    for path in sorted(folder.glob("*.jsonl*")):
        match = re.fullmatch(r"(?P<prefix>(?:.+_)?)recordings(?P<part>(?:_.+)?)(?P<suffix>\.jsonl(?:\.gz)?)", path.name)
        if not match:
            continue
        others = [folder / f"{match['prefix']}supervisions{match['part']}{suffix}"
                  for suffix in (match["suffix"], *{".jsonl", ".jsonl.gz"} - {match["suffix"]})]
        other = next((some for some in others if some.is_file()), None)
        if other is None:
            skipped.add(path.name, f"{others[0].name} is not beside it, so it has no transcripts")
            continue
        part = match["part"].strip("_") or WHOLE
        if part in parts:
            part = match["prefix"] + part
        if part in parts:
            raise RecipeError(f"{folder} has the part {part} twice, the second time in {path.name}: take one of them away")
        recordings = RecordingSet.from_recordings(_with_files(r, folder) for r in _manifest(path, RecordingSet, Recording))
        parts[part] = recordings, _manifest(other, SupervisionSet, SupervisionSegment)
    if not parts:
        json = sorted(path.name for path in folder.glob("*recordings*.json*") if ".jsonl" not in path.name)
        raise RecipeError(f"{folder} holds no recordings_*.jsonl.gz with supervisions_*.jsonl.gz: "
                          + (f"write {json[0]} and its like as these (lhotse copy {json[0]} "
                             f"{json[0].partition('.')[0]}.jsonl.gz)" if json else "give a folder of Lhotse manifests"))
    return parts


def _manifest(path: Path, kind: Any, item: type) -> Any:
    """The whole set of ``kind`` in a file; :class:`RecipeError` where it is damaged or holds anything but ``item``."""
    try:
        found = kind.from_file(path)
        found = kind() if found is None else found.to_eager()  # Lhotse makes None of an empty file
    except Exception as error:  # whatever Lhotse meets in a file that is damaged or something else
        raise RecipeError(f"{path} cannot be read as a Lhotse manifest ({type(error).__name__}: "
                          f"{' '.join(str(error).split())[:200]}): make it again") from None
    other = next((type(some).__name__ for some in found if not isinstance(some, item)), None)
    if other is not None:
        raise RecipeError(f"{path} holds a {other} where its name says {item.__name__}s: are two files swapped?")
    return found


def _with_files(recording: Recording, folder: Path) -> Recording:
    return fastcopy(recording, sources=[
        fastcopy(s, source=_located(s.source, folder)) if s.type == "file" and isinstance(s.source, str) else s
        for s in recording.sources])


def read_lhotse(name: str, corpus: Path, jobs: int, skipped: Skipped) -> Dict[str, Part]:
    """What ``lhotse.recipes.prepare_NAME`` finds in the folder ``corpus``."""
    import lhotse.recipes

    known = sorted(key[len("prepare_"):] for key in dir(lhotse.recipes) if key.startswith("prepare_"))
    if name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise RecipeError(f"Lhotse prepares no corpus called {name!r}: it knows {', '.join(near)}")
    prepare = getattr(lhotse.recipes, f"prepare_{name}")
    parameters = inspect.signature(prepare).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in ("corpus_dir", "output_dir")]
    if needed or "corpus_dir" not in parameters:
        raise RecipeError(f"Lhotse's {name} needs more than a folder ({', '.join(needed) or 'nothing'}): prepare it with "
                          f"'lhotse prepare {name.replace('_', '-')}' and give its manifests with --manifests")
    if not corpus.is_dir():
        raise RecipeError(f"{corpus} is no folder: give the corpus's as --corpus-dir")
    with tempfile.TemporaryDirectory() as temporary:
        given: Dict[str, Any] = {"corpus_dir": str(corpus.resolve())}
        if "num_jobs" in parameters:
            given["num_jobs"] = jobs
        if "output_dir" in parameters and parameters["output_dir"].default is inspect.Parameter.empty:
            given["output_dir"] = temporary
        try:
            with _warnings_counted(f"prepare_{name}", skipped):
                prepared = prepare(**given)
        except Exception as error:  # recipes of a hundred corpora, each with exceptions of its own
            if known_failure(error) and not isinstance(error, FileNotFoundError):
                raise
            raise RecipeError(f"Lhotse's prepare_{name} cannot read {corpus} ({type(error).__name__}: "
                              f"{' '.join(str(error).split())[:300]}): is this the folder that it expects, and is it "
                              "whole?") from None
        parts = dict(_flat(prepared, "", skipped))
    if not parts:
        raise RecipeError(f"Lhotse's prepare_{name} found no recordings with supervisions in {corpus}")
    return parts


@contextmanager
def _warnings_counted(who: str, skipped: Skipped) -> Iterator[None]:
    """Lhotse's recipes log what they leave out, and go on: it is named and counted like anything else that is."""
    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            skipped.add(who, " ".join(record.getMessage().split()))

    handler = Counting(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _flat(prepared: Any, path: str, skipped: Skipped) -> Iterator[Tuple[str, Part]]:
    """Recordings and supervisions of a part, of parts, or of parts of parts."""
    if isinstance(prepared, tuple):
        prepared = dict(zip(("recordings", "supervisions"), prepared))
    if not isinstance(prepared, dict):
        return
    if "recordings" not in prepared:
        for key, value in prepared.items():
            yield from _flat(value, f"{path}-{key}" if path else str(key), skipped)
    elif prepared.get("supervisions") is None:
        skipped.add(path or WHOLE, "Lhotse gives this part no supervisions")
    else:
        yield path or WHOLE, (prepared["recordings"].to_eager(), prepared["supervisions"].to_eager())


def read_corpus(form: str, source: str, skipped: Skipped, corpus_dir: Optional[PathLike] = None,
                jobs: int = 1) -> Dict[str, Part]:
    """The corpus by part; ``form`` is kaldi, manifests, csv or lhotse, ``source`` the folder, the file or Lhotse's name.

    Raises:
        RecipeError: the source is missing or something else, or it holds commands.
    """
    if form == "lhotse":
        if corpus_dir is None:
            raise RecipeError(f"--lhotse {source} needs the corpus's folder as --corpus-dir")
        parts = read_lhotse(source, Path(corpus_dir), jobs, skipped)
    else:
        parts = {"kaldi": read_kaldi, "manifests": read_manifests, "csv": read_csv}[form](Path(source), skipped)
    names = named_apart(parts, source)
    return {names[name]: _sound(part, skipped) for name, part in parts.items()}


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
        fastcopy(s, id=str(s.id), recording_id=str(s.recording_id), text=_string(s.text), speaker=_string(s.speaker))
        for s in kept[1]))


def _string(value: Any) -> Optional[str]:
    return None if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _recording_problem(recording: Recording) -> Optional[str]:
    if not recording.sources or any(s.type == "file" and not isinstance(s.source, str) for s in recording.sources):
        return "the recording names no audio"
    for key in ("sampling_rate", "num_samples", "duration"):
        if not _is_number(getattr(recording, key)) or not getattr(recording, key) > 0:
            return f"the recording's {key} is {getattr(recording, key)!r}"
    return None


def _supervision_problem(segment: SupervisionSegment) -> Optional[str]:
    if segment.id is None:
        return f"an utterance of the recording {segment.recording_id} has no id"
    for key in ("start", "duration"):
        if not _is_number(getattr(segment, key)):
            return f"its {key} is {getattr(segment, key)!r}"
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
                _keep_same(path, temporary)
            written.add(path)
    files = {s.source for recordings, _ in parts.values() for r in recordings for s in r.sources if s.type == "file"}
    with atomic_path(folder / "audio.txt") as temporary:
        temporary.write_text("".join(f"{_state(file)}\t{file}\n" for file in sorted(files)), encoding="utf-8",
                             errors="surrogateescape")
        _keep_same(folder / "audio.txt", temporary)
    for stale in {*folder.glob("*.jsonl.gz")} - written:
        stale.unlink()


def _keep_same(path: Path, new: Path) -> None:
    """Where ``new`` says what ``path`` says, make it ``path`` to the byte and the time."""
    try:
        same = content_digest(path) == content_digest(new)
    except (OSError, EOFError, zlib.error):  # there is none, or a damaged one
        return
    if same:
        shutil.copy2(path, new)


def _state(file: str) -> str:
    """Size and time of a file."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"
