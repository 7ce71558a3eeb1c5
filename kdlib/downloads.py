"""Corpora that Lhotse downloads: what breaks off goes on with the next call, and whatever fails is one error."""

import gzip
import http.client
import socket
import tarfile
import urllib.request
import zlib
from pathlib import Path
from typing import Callable, Tuple

from kdlib.errors import RecipeError, in_one_line, known_failure

SILENCE = 60.0  # seconds without a byte after which a server is given up; Lhotse would wait for ever
NETWORK_FAILED = (OSError, http.client.HTTPException)  # of a download, where known_failure knows nothing of the error
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)  # what unpacking an archive raises


def describe_failure(error: BaseException) -> str:
    """What a network error says, in one line."""
    return in_one_line(getattr(error, "reason", None) or error) or type(error).__name__


def fetch_and_unpack(download: Callable[[], object], archive: Callable[[], Tuple[str, Path]], remedy: str) -> None:
    """Call Lhotse's ``download``, which goes on with an archive that is there in part, and unpacks it when it has it.

    Args:
        archive: the address of the archive at hand and the file that it is fetched to; asked where unpacking fails.
        remedy: ends the message: what to do, which is to call this again or to do without.
    Raises:
        RecipeError: the server, the network or the archive is at fault. One that broke off stays, for the next call to go on
            with: a connection may end early and not seem to. A damaged one is removed.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        try:
            download()
        except DAMAGED as error:
            url, file = archive()
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
            if file.stat().st_size < size:
                raise RecipeError(f"{url} broke off after {file.stat().st_size:,} of {size:,} bytes, which are kept: check the "
                                  f"network and {remedy}") from None
            file.unlink()
            reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
            raise RecipeError(f"{file} is damaged ({reason}) and was removed: {remedy}") from None
    except (*NETWORK_FAILED, ValueError) as error:  # the last of an address of no known kind
        if known_failure(error):  # a full disk, for one
            raise
        url, file = archive()
        raise RecipeError(f"{file.name} cannot be downloaded from {url} ({describe_failure(error)}): check the network and "
                          f"{remedy}") from None
    finally:
        socket.setdefaulttimeout(before)
