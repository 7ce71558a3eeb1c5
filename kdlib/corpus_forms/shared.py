"""What the forms have in common: their parts, files of text, and recordings by their headers."""

import codecs
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, Iterable, Optional, Tuple

from lhotse import Recording, RecordingSet, SupervisionSet
from lhotse.audio import AudioSource

from kdlib.errors import RecipeError, link_to_nothing
from kdlib.manifests import BadAudio, read_header

Part = Tuple[RecordingSet, SupervisionSet]
WHOLE = "all"  # the one part of a corpus that is not divided
# The words of names that say what a part is for, whole (devices are no dev set), alone or one after the other (evaltest);
# and the abbreviations, which say it where none of these words does: some are languages too (et-train).
_FOR = (("test", "tests|testing|testset|test|tst|evaluation|eval|unseen|heldout|holdout"),
        ("dev", "development|devset|dev|validation|validate|valid|val"),
        ("train", "training|trainset|train|trn"))
_SHORT_FOR = (("test", "tt|et"), ("dev", "cv|dt"), ("train", "tr"))


def read_text(path: Path) -> str:
    """What a file of UTF-8, or of UTF-16 with its mark, says; :class:`RecipeError` where it is missing or something else."""
    if path.is_dir():
        raise RecipeError(f"{path} is a folder: give the file in it")
    if not path.is_file():
        raise RecipeError(f"{path} is missing: give another folder or file, or make it")
    content = path.read_bytes()
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # as spreadsheets write "Unicode text"
        return content.decode("utf-16", errors="replace")
    if content.count(0) > 0.2 * len(content):  # each second byte of Latin letters
        raise RecipeError(f"{path} is UTF-16 without the mark that says so, or no text: convert it, for example with "
                          "iconv -f utf-16le -t utf-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with "
                          "iconv -f latin1 -t utf-8") from None


def said_role(name: str) -> Optional[str]:
    """Whether a part's name says test, dev or train (of several the first of these), or None where it says none of them.

    >>> [said_role(name) for name in ("train_dev", "TrainTest", "si_et_05", "train_no_dev", "devices")]
    ['dev', 'test', 'test', 'train', None]
    """
    spaced = re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()
    spaced = re.sub(r"\b(held|hold)[\W_]+out\b", "heldout", re.sub(r"[\W\d_]+", " ", spaced))
    words = re.sub(r"(?<=\w )no \w+", "", spaced).split()  # but no-train is Norwegian
    everything = "|".join(known for _, known in _FOR) + "|set|clean|other"
    for role, known in (*_FOR, *_SHORT_FOR):
        if any(re.fullmatch(f"({everything})*({known})({everything})*", word) for word in words):
            return role
    return None


def is_there(path: Path) -> bool:
    """Whether a file that need not be there is; :class:`RecipeError` for a link to nothing, which is no file left out."""
    dangling = link_to_nothing(path)
    if dangling:
        raise RecipeError(f"{dangling}: copy what it leads to, or remove it")
    return path.is_file()


def on_disk(path: str) -> str:
    """``path``; where nothing is there, what is there by the same name in Unicode's other form (composed or decomposed: a Mac
    may write one and whoever types the other, and they look alike), if anything is."""
    if path.isascii() or os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    folder = on_disk(folder)
    names = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return next(filter(os.path.exists, (os.path.join(folder, some) for some in names)), path)


def audio_base(paths: Iterable[str], folder: Path) -> Path:
    """Where the relative ones of ``paths``, all that a file in ``folder`` names, start: there, or in the nearest of
    the three folders above it under which there is one of them; ``folder`` where there is none.

    Each from where it is found would take the file of another corpus in place of one that is missing.
    """
    relative = [path for path in paths if path and not os.path.isabs(path)]
    for base in (folder, *folder.resolve().parents[:3]):
        if any(os.path.isfile(on_disk(str(base / path))) for path in relative):  # which a name that no file can have is not
            return base
    return folder


def recording_of(name: str, path: str) -> Recording:
    """The recording of a file, by its header and the name that it has (:func:`on_disk`); :class:`BadAudio` when that cannot be
    read."""
    path = on_disk(path)
    try:
        samples, rate, channels = read_header(path)
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name can
        raise BadAudio(f"{path} cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    return Recording(id=name, sources=[AudioSource(type="file", channels=list(range(channels)), source=path)],
                     sampling_rate=rate, num_samples=samples, duration=samples / rate)


def all_channels(recording: Recording) -> Any:
    """What a supervision of everything in a recording has as its channel: one number, or the list of several."""
    return recording.channel_ids if len(recording.channel_ids) > 1 else 0
