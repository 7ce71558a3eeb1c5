"""What a file of audio says of its own length, for files that were cut short: libsndfile reads those without a word."""

import struct
from pathlib import Path
from typing import Optional

_OGG_PAGE = 65307  # the most bytes of one


def cut_short(path: Path) -> Optional[str]:
    """What is there of a WAV, AIFF or Ogg file that lacks its end, such as ``800 of 32044 bytes``; None where nothing is
    known to be missing."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head, promised, at_least = file.read(12), 0, ""
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            promised = struct.unpack("<I", head[4:8])[0] + 8
        elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
            promised = struct.unpack(">I", head[4:8])[0] + 8
        elif head[:4] == b"OggS":
            file.seek(max(0, size - _OGG_PAGE))
            promised, at_least = file.tell() + _end_of_last_page(file.read()), "at least "
    # Whoever streams into a pipe cannot know the size: 0, all ones, or (sox) about 2 GiB stand for it. Some programs leave
    # out the byte that fills a last chunk of odd length.
    if 8 < promised < 0x7FFFF008 and promised > size + 1:
        return f"{size} of {at_least}{promised} bytes"
    return None


def _end_of_last_page(data: bytes) -> int:
    """Where the last Ogg page that begins in ``data`` ends, by its header: beyond ``data`` where it was cut."""
    start = data.rfind(b"OggS")
    segments = data[start + 26] if 0 <= start < len(data) - 26 else 1
    table = start + 27
    return 0 if start < 0 else table + segments + sum(data[table:table + segments])
