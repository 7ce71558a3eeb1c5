"""Lhotse manifests of checked recordings: what stage 1 of every recipe does alike."""

import os
import re
import shutil
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from kdlib.audio_header import UNKNOWN_LENGTH, cut_short, unread
from kdlib.errors import RecipeError
from kdlib.files import PathLike, atomic_path, keep_same, update_file

_LOUDEST = 100.0  # what encoders and mixes leave above full scale, which is 1, is far less


class BadAudio(Exception):
    """A recording that cannot be used; the message says why."""


class SkippedFile:
    """``skipped.txt`` in the folder of a stage's manifests, of all that the stage left out: for each item a line of where it
    was, its name and the reason, with tabs between them. Where nothing was left out, there is no file."""

    def __init__(self, folder: PathLike):
        self.path = Path(folder) / "skipped.txt"
        self._lines: List[str] = []

    def add(self, where: str, items: Sequence[Tuple[str, str]]) -> None:
        """Write these after what was added before; what an earlier run left there goes with the first call."""
        self._lines += ["\t".join(re.sub(r"[\t\r\n]", " ", cell) for cell in (where, *item)) for item in items]
        if self._lines:
            # Names of files may be of any bytes.
            update_file(self.path, "".join(f"{line}\n" for line in self._lines).encode("utf-8", "surrogateescape"))
        else:
            self.path.unlink(missing_ok=True)

    def read(self) -> Iterator[Tuple[str, str, str]]:
        """(where, name, reason) of each line of the file as it is; nothing where there is none."""
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]:
                where, name, reason = line.split("\t")
                yield where, name, reason


SHOWN = 10  # of what was left out, by name on the screen


class Skipped:
    """What was left out, and why: every item is counted, the first ones are named, and all stand in ``file``, if there is
    one."""

    def __init__(self, file: Optional[SkippedFile] = None):
        self._file = file
        self._items: List[Tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, name: str, reason: str) -> None:
        """Count one item."""
        self._items.append((name, reason))

    @property
    def reasons(self) -> List[str]:
        """Why each item was left out."""
        return [reason for _, reason in self._items]

    def report(self, where: str) -> None:
        """Print a line for each of the first items and one with the total, and list all in the file; print nothing when
        nothing was left out."""
        for name, reason in self._items[:SHOWN]:
            print(f"skipped {name}: {reason}")
        if self._file is not None:
            self._file.add(where, self._items)
        if self._items:
            print(f"skipped {len(self._items)} in all of {where}" + (f", see {self._file.path}" if self._file else ""))


class AudioFormat(NamedTuple):
    """What is in a file of audio: samples of each channel, samples a second, channels."""

    samples: int
    rate: int
    channels: int


@contextmanager
def _opened(path: Path):
    """The soundfile of ``path``; whatever is wrong with it, opened or read in the block, is a :class:`BadAudio`."""
    import soundfile

    if not path.is_file():
        raise BadAudio(f"{path} is no file" if path.exists() else f"{path} is missing")
    if path.stat().st_size == 0:
        raise BadAudio(f"{path} is empty")
    if path.suffix.lower() == ".sph":
        # libsndfile may read it, but Lhotse makes a shell command of its name, for a program that is seldom there.
        raise BadAudio(f"{path} is NIST SPHERE, which recipes do not read: convert it to WAV or FLAC (sox does)")
    headerless = (f"{path} is by its name samples without a header, whose rate nothing tells: convert it to WAV "
                  "(sox -r 16000 -e signed -b 16 -c 1 a.raw a.wav, with its own numbers), or rename it")
    if path.suffix.lower() == ".raw":  # which soundfile goes by, whatever is in the file
        raise BadAudio(headerless)
    try:
        found = cut_short(path)
        if found:
            raise BadAudio(f"{path} is cut short: {found}")
        with soundfile.SoundFile(path) as audio:
            if audio.format == "RAW":  # libsndfile takes .vox, .gsm, .au and .snd for samples of 8 kHz without a header
                raise BadAudio(headerless)
            if audio.frames == UNKNOWN_LENGTH:
                raise BadAudio(f"{path} does not tell its length in its header: write it again (sox a.flac b.flac)")
            if not audio.seekable():  # Lhotse reads no such file, not even whole
                raise BadAudio(f"{path} ({audio.subtype_info}) can be decoded from its start alone: convert it (sox a.wav "
                               "-e signed -b 16 b.wav, or ffmpeg -i a.wav -c:a pcm_s16le b.wav)")
            yield audio
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise BadAudio(f"{path} cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})") from None


def read_audio(path: PathLike, rate: int) -> np.ndarray:
    """Read a whole mono file of ``rate`` Hz as float32, shape (samples,).

    Raises :class:`BadAudio` when the file is missing, empty, cut short, damaged, NIST SPHERE or raw, not mono or of
    another rate, does not tell its length, can be decoded from its start alone, or holds samples that are no finite numbers
    or far above full scale.
    """
    path = Path(path)
    with _opened(path) as audio:
        if audio.samplerate != rate or audio.channels != 1:
            raise BadAudio(f"{path} has {audio.channels} channels at {audio.samplerate} Hz instead of one at {rate}")
        samples = audio.read(dtype="float32")
        _check_count(path, len(samples), audio.frames)
        _check_range(path, samples)
    return samples


def read_header(path: PathLike) -> AudioFormat:
    """What a file says of itself, undecoded; :class:`BadAudio` when it is missing, empty, cut short, NIST SPHERE, raw
    or no audio, does not tell its length, or can be decoded from its start alone."""
    with _opened(Path(path)) as audio:
        _check_count(Path(path), audio.frames, audio.frames)
        return AudioFormat(audio.frames, audio.samplerate, audio.channels)


def check_audio(path: PathLike) -> AudioFormat:
    """Decode a whole file, of any rate and number of channels, a block at a time; return what is in it.

    Raises :class:`BadAudio` when the file is missing, empty, cut short, damaged, NIST SPHERE or raw, does not tell its
    length, can be decoded from its start alone, or holds samples that are no finite numbers or far above full scale.
    """
    path = Path(path)
    with _opened(path) as audio:
        audio.seekable = lambda: False  # else soundfile seeks after each block, and libmpg123 writes of errors in sound MP3
        block = np.empty((1 << 16, audio.channels), np.float32)
        samples = 0
        while True:
            count = len(audio.read(out=block))
            if count == 0:
                break
            _check_range(path, block[:count])
            samples += count
        _check_count(path, samples, audio.frames)
        return AudioFormat(samples, audio.samplerate, audio.channels)


def _check_count(path: Path, samples: int, expected: int) -> None:
    wrong = unread(path, samples, expected)
    if wrong:
        raise BadAudio(f"{path} {wrong}")
    if not (samples and expected):
        raise BadAudio(f"{path} holds no sound")


def _check_range(path: Path, samples: np.ndarray) -> None:
    """Files of floating-point samples may hold NaN or infinity, of which come features that are no numbers; or samples in the
    range of integers, whose features are those of no other file, nor of what a device hears."""
    peak = float(np.abs(samples).max(initial=0.0))
    if not np.isfinite(peak):
        raise BadAudio(f"{path} holds samples that are no finite numbers")
    if peak > _LOUDEST:
        raise BadAudio(f"{path} holds samples of {peak:.0f}, where 1 is full scale: scale them (those of 16 bits with ffmpeg "
                       "-i a.wav -af volume=1/32768 -c:a pcm_s16le b.wav)")


def normalise_text(text: Optional[str]) -> str:
    """Return ``text`` as upper-case words separated by one space, in Unicode's composed form (NFC), which upper() undoes for
    some letters; empty for ``None`` or white space. Georgian is written without capitals, and stays so."""
    upper = re.sub("[\u1c90-\u1cbf]+", lambda match: match[0].lower(), str(text or "").upper())
    return " ".join(unicodedata.normalize("NFC", upper).split())


def describe(name: str, path: PathLike, samples: int, rate: int, text: Optional[str], speaker: Optional[str] = None,
             custom: Optional[dict] = None, language: str = "English", channels: int = 1):
    """Return a Lhotse ``(Recording, SupervisionSegment)`` of one file; the supervision spans all of its first channel.

    Without ``text`` (a noise) the second is ``None``. ``path`` is kept as it is given, relative or not.
    """
    from lhotse import Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    recording = Recording(id=name, sources=[AudioSource(type="file", channels=list(range(channels)), source=str(path))],
                          sampling_rate=rate, num_samples=samples, duration=samples / rate)
    if text is None:
        return recording, None
    return recording, SupervisionSegment(id=name, recording_id=name, start=0.0, duration=recording.duration, channel=0,
                                         text=text, speaker=speaker, language=language, custom=custom)


def write_manifests(folder: PathLike, part: str, described: Sequence[tuple]) -> None:
    """Validate what :func:`describe` returned and write it as Lhotse manifests.

    Leaves in ``folder`` what :func:`write_sets` does: one MonoCut a recording, with the recording's id. Prints what was
    written. Raises :class:`RecipeError` when ``described`` is empty or not valid.
    """
    from lhotse import RecordingSet, SupervisionSet

    cuts = []
    for recording, segment in described:
        cut = recording.to_cut()
        cut.supervisions = [segment] if segment is not None else []
        cuts.append(cut)
    write_sets(folder, part, RecordingSet.from_recordings(recording for recording, _ in described),
               SupervisionSet.from_segments(segment for _, segment in described if segment is not None), cuts)
    words = sum(len(segment.text.split()) for _, segment in described if segment is not None)
    hours = sum(recording.duration for recording, _ in described) / 3600
    print(f"wrote {Path(folder) / f'cuts_{part}.jsonl.gz'}: {len(cuts)} recordings, {hours:.2f} h, {words} words")


def write_sets(folder: PathLike, part: str, recordings, supervisions, cuts: Sequence) -> None:
    """Validate a Lhotse RecordingSet, SupervisionSet and list of cuts that belong together, and write them to ``folder``.

    Leaves ``recordings_<part>``, ``supervisions_<part>`` (when there are any) and ``cuts_<part>.jsonl.gz``, each whole
    or not at all, and ``audio_<part>.txt``, a list of the files of audio as they were. While that is what it was, a manifest
    that would say what it says already is left as it is, so that no later stage runs again for it. Raises
    :class:`RecipeError` when there are no cuts or something is not valid.
    """
    from lhotse import CutSet, validate
    from lhotse.qa import validate_recordings_and_supervisions

    if not cuts:
        raise RecipeError(f"the part {part} has no recording that can be used: see what was skipped above, "
                          "then run stage 0 again or mend the corpus")
    cut_set = CutSet.from_cuts(cuts)
    sets = {"recordings": recordings, "cuts": cut_set}
    try:
        if len(supervisions):
            sets["supervisions"] = supervisions
            validate_recordings_and_supervisions(recordings, supervisions)
        else:
            validate(recordings)
        validate(cut_set)
    except AssertionError as error:
        raise RecipeError(f"the manifests of {part} are not valid: {error}") from None
    listed, audio = Path(folder) / f"audio_{part}.txt", _list_audio(recordings)
    same_audio = listed.is_file() and listed.read_bytes() == audio
    for kind, manifest in sets.items():
        path = Path(folder) / f"{kind}_{part}.jsonl.gz"
        with atomic_path(path) as temporary:
            manifest.to_file(temporary)
            if same_audio:
                keep_same(path, temporary)
    update_file(listed, audio)  # last: after a kill before this the manifests are written again


def remove_sets(folder: PathLike, part: str) -> None:
    """Remove what :func:`write_sets` left of a part, and :func:`kdlib.corpus.write_cuts` of its mixed channels, if
    anything."""
    shutil.rmtree(Path(folder) / f"mixed_{part}", ignore_errors=True)
    for name in (f"audio_{part}.txt", *(f"{kind}_{part}.jsonl.gz" for kind in ("recordings", "supervisions", "cuts"))):
        (Path(folder) / name).unlink(missing_ok=True)


def too_many_gone(gone: int, there: int) -> bool:
    """Whether so many of the files that were there look as if a disk were not mounted: single ones may go, up to ten of a part
    or one in twenty."""
    return gone > max(10, 0.05 * there)


def audio_files(recording) -> Set[str]:
    """The files that a Lhotse Recording reads."""
    return {source.source for source in recording.sources if source.type == "file"}


def _list_audio(recordings) -> bytes:
    """A line of each file of audio: its state and its name. Of the audio manifests tell no more than the length, and times
    alone do not tell a file that another took the place of by a rename of its folder or a link that leads elsewhere."""
    files = {file for recording in recordings for file in audio_files(recording)}
    return "".join(f"{_state(file)}\t{file}\n" for file in sorted(files)).encode("utf-8", "surrogateescape")


def _state(file: str) -> str:
    """The size, when it was written, and when it was put where it is, which tells of a file that was given an old time."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
