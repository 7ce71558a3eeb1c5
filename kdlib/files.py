"""Files that are either whole or absent."""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, Iterator, List, Union

from kdlib.errors import DISK_FAILED, DISK_FULL, RecipeError

PathLike = Union[str, Path]

# It can be read only by setting it, for the whole process: once, before there are threads that make files.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """An OSError of the block names ``path``, which the user knows, and no temporary file, or none at all."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends without an error.

    The temporary name keeps the suffixes of ``path``, since writers such as Lhotse choose the format by them. On an
    error the temporary file is removed and whatever stood at ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix="".join(path.suffixes[-2:]))
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    except OSError as error:
        # A failed write does not know its file; tell the one that the user knows.
        if error.errno in DISK_FULL or error.errno in DISK_FAILED and error.filename is None:
            error.filename = str(path)
        raise
    else:
        # mkstemp makes private files; give the result the permissions that the user's umask asks for. A file system whose
        # files all have those of its mount may refuse.
        with suppress(PermissionError):
            os.chmod(temporary, 0o666 & ~_UMASK)
        with naming(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def folder_name(folder: PathLike) -> str:
    """The last part of a folder's path; of ``.`` and ``..`` that of the folder they stand for."""
    return os.path.basename(os.path.abspath(folder))


def write_text(path: PathLike, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def update_file(path: PathLike, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically, unless it stands there already: whoever goes by the time of a file must not
    take it for a new one."""
    path = Path(path)
    if not path.is_file() or path.read_bytes() != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def write_audio(path: PathLike, samples: Any, rate: int) -> None:
    """Write mono ``samples``, a float array (samples,) with full scale at 1.0, with 16 bits at ``rate`` Hz in the format that
    the suffix of ``path`` names (``.flac``, ``.wav``), as :func:`update_file` does: audio that is made again and is the same
    stays as it is. Not by soundfile, whose errors neither say that the disk is full nor name the file."""
    import soundfile

    with BytesIO() as audio:
        soundfile.write(audio, samples, rate, format=Path(path).suffix[1:].upper(), subtype="PCM_16")
        update_file(path, audio.getvalue())


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def content_digest(path: PathLike) -> str:
    """SHA-256 of what a file says: the bytes of a gzip file hold the time of its writing too."""
    content = Path(path).read_bytes()
    return hashlib.sha256(gzip.decompress(content) if Path(path).suffix == ".gz" else content).hexdigest()


def keep_same(path: PathLike, new: PathLike) -> None:
    """Where ``new``, which is to take the place of ``path``, says what that says, make it ``path`` to the byte and the time:
    so that nothing that goes by these is done again."""
    try:
        same = content_digest(path) == content_digest(new)
    except (OSError, EOFError, zlib.error):  # there is none, or a damaged one
        return
    if same:
        shutil.copy2(path, new)


def remove_unfinished(folder: PathLike) -> None:
    """Remove what :func:`atomic_path`, or who else takes names like its, left half written in a folder when it was killed."""
    for half in Path(folder).glob(".tmp-*"):
        if half.is_dir():
            shutil.rmtree(half)
        else:
            half.unlink()


def read_lines(path: PathLike, remedy: str) -> List[str]:
    """The lines of a text, which end in ``\\n`` or ``\\r\\n`` alone: whatever else divides lines (U+2028, U+0085, a vertical
    tab) may stand in a token. Raises :class:`RecipeError` naming the file and ``remedy`` when it is not UTF-8."""
    try:
        lines = Path(path).read_bytes().decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}): {remedy}") from None
    return lines if lines[-1] else lines[:-1]


def read_json(path: PathLike, remedy: str) -> Any:
    """Read JSON; raise :class:`RecipeError` naming the file and ``remedy`` when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path} is missing: {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:  # the last of brackets within brackets
        raise RecipeError(f"{path} is not valid JSON ({error}): {remedy}") from None


def read_record(path: PathLike, remedy: str, *keys: str) -> Dict[str, Any]:
    """Read a JSON object as :func:`read_json` does; one without ``keys``, or anything else, is an error too."""
    record = read_json(path, remedy)
    if not isinstance(record, dict):
        raise RecipeError(f"{path} is not what this project writes there: {remedy}")
    missing = [key for key in keys if key not in record]
    if missing:
        raise RecipeError(f"{path} says nothing of {', '.join(missing)}: {remedy}")
    return record
