"""The one exception that recipes show to people, and how scripts show it."""

import codecs
import errno
import locale
import multiprocessing
import os
import sys
from contextlib import suppress
from typing import Callable, Optional, Union

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FAILED = (errno.EFBIG, errno.EIO, errno.ESTALE)


class RecipeError(Exception):
    """Something the user can mend: the message names the thing and the remedy."""


def in_one_line(error: BaseException, most: int = 200) -> str:
    """What an exception of some library says, to stand in a message of our own: without line breaks, ``most`` characters."""
    return " ".join(str(error).split())[:most]


def with_its_type(error: BaseException, most: int = 200) -> str:
    """:func:`in_one_line` after the exception's type, for libraries whose messages alone say little (``KeyError: 'id'``)."""
    return f"{type(error).__name__}: {in_one_line(error, most)}"


def link_to_nothing(path: Union[str, os.PathLike]) -> Optional[str]:
    """What to tell the user where ``path`` is a link to what is not there (a disk that is not mounted, for one), or None."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which is not there"
    return None


def killed_reader(error: BaseException) -> str:
    """What to tell the user of the error that a killed process, which read the data of a training, leaves in it."""
    return (f"a process that reads the data was killed ({with_its_type(error)}), most likely for want of memory: set "
            "data.num_workers lower or training.micro_batches higher, and run the same command again")


def known_failure(error: BaseException) -> Optional[str]:
    """What to tell the user of an error that is no defect of the program, or None."""
    if isinstance(error, RecipeError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return (f"out of memory ({in_one_line(error, 120)}): set training.micro_batches of a training higher, "
                "decode.max_duration (by hand max_duration) of decoding lower, and run the same command again")
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # whatever it was doing, torch raises it
        return killed_reader(error)
    if isinstance(error, OSError):
        if error.errno in DISK_FULL:
            full = "no space left on the disk" if error.errno == errno.ENOSPC else "the quota of the disk is used up"
            return f"{full} while writing {error.filename or 'a file'}; free some space and run the same command again"
        dangling = link_to_nothing(error.filename) if isinstance(error.filename, (str, os.PathLike)) else None
        if error.errno == errno.EEXIST and dangling:
            return f"{dangling}: make or mount that, or name another"
        if error.errno == errno.EEXIST:  # only making a folder says so
            return f"{error.filename} is a file: a folder is to stand there; name another"
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.EPERM,
                           errno.ENAMETOOLONG, errno.ELOOP, *DISK_FAILED) and error.filename is not None:
            return dangling if error.errno == errno.ENOENT and dangling else f"{error.filename}: {error.strerror}"
    return None


def _need_utf8(main: Callable[[], object]) -> None:
    """Start the program again in Python's UTF-8 mode where the locale has another encoding: Lhotse opens manifests in the
    locale's, by which every letter beyond ASCII is read as others or as none.

    Raises:
        RecipeError: ``main`` is not what this process was started for, or UTF-8 mode is refused to it (``python -E``).
    """
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name == "utf-8":
        return
    own = main.__module__ == "__main__" and multiprocessing.parent_process() is None
    if own and os.environ.get("PYTHONUTF8") != "1":  # else this is the second start
        with suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    raise RecipeError(f"Python takes text for {encoding} here, and transcripts are UTF-8: set the environment variable "
                      "PYTHONUTF8 to 1 (and call Python without -E, -I and -X utf8=0), or LC_ALL to a locale of UTF-8")


def run_main(main: Callable[[], object]) -> None:
    """Run a script's ``main``, with UTF-8 for the encoding of text, and end the process; a known failure is one line on stderr.

    An unexpected exception keeps its traceback, since that is a defect to report.
    """
    try:
        _need_utf8(main)
        with suppress(AttributeError):  # there is no standard output, or something stands in for it
            sys.stdout.reconfigure(errors="surrogateescape")  # the name of a file may be any bytes
        main()
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = known_failure(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
