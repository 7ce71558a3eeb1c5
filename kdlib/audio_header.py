"""What a file of audio says of its own length, for files that were cut short: libsndfile reads those without a word."""

import re
import struct
from pathlib import Path
from typing import BinaryIO, Optional, Tuple

UNKNOWN_LENGTH = 2 ** 63 - 1  # libsndfile's count of the samples of FLAC from a pipe, which it cannot read to the end
_OGG_PAGE = 65307  # the most bytes of one
# Whoever streams into a pipe cannot know the size: all ones, or (sox) about 2 GiB stand for it, and 0 as well.
_UNKNOWN = 0x7FFFF000
_PADDING = 4096  # bytes that may follow the sound of a WAV file and be nothing, as to the end of a block
# Of MP3, which is layer III: kbit/s by the four bits of a frame's header, in MPEG 1 and in MPEG 2 and 2.5; samples a second.
_KBITS = {True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
          False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)}
_RATES = {3: (44100, 48000, 32000, 0), 2: (22050, 24000, 16000, 0), 0: (11025, 12000, 8000, 0), 1: (0,) * 4}
MP3_SLACK = 2 * 1152  # samples: a decoder may make a frame or two less than there are


def cut_short(path: Path) -> Optional[str]:
    """What is there of a WAV, RF64, W64, AIFF, CAF, AU, VOC, NIST or Ogg file that lacks its end, such as ``800 of 32044
    bytes``, to be read after "is cut short:"; None where nothing is known to be missing."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head, promised, at_least = file.read(40), 0, ""
        if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
            order = ">" if head[:4] == b"RIFX" else "<"
            place, count = _wav_data(file, size, order)
            # Recorders write the sizes in the end: until then both may be 0, or the first that of the header alone.
            if count == 0 and struct.unpack(order + "I", head[4:8])[0] in (0, place - 8) and place < size - 8:
                return (f"its header tells of no sound, and {size - place} bytes follow: the recorder did not end in peace "
                        "(sox --ignore-length reads it)")
            if count and _more_sound(file, place + count, size, order):
                return (f"its header tells of {count} bytes of sound, and {size - place - count} follow that belong to nothing "
                        "(if they are sound, sox --ignore-length reads them)")
            promised = place + count if count < _UNKNOWN or head[:4] == b"RF64" else 0
        elif head[:4] == b"riff" and head[24:28] == b"wave":  # W64
            promised = struct.unpack("<Q", head[16:24])[0]
        elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            promised = _known(struct.unpack(">I", head[4:8])[0]) + 8
        elif head[:4] == b"caff":
            promised = _caf_end(file, size)
        elif head[:4] == b".snd" and len(head) >= 12:
            start, count = struct.unpack(">II", head[4:12])
            promised = start + _known(count)
        elif head[:19] == b"Creative Voice File" and len(head) >= 22:
            promised = _voc_end(file, struct.unpack("<H", head[20:22])[0], size)
        elif head[:7] == b"NIST_1A":
            promised = _nist_end(file)
        elif head[:4] == b"OggS":
            second = _second_stream(file, size)
            if second:
                return (f"another stream begins after {second} bytes, and the first alone is read: convert it (ffmpeg -i a.ogg "
                        "b.wav)")
            file.seek(max(0, size - _OGG_PAGE))
            start, data = file.tell(), file.read()
            promised, at_least = start + _end_of_last_page(data), "at least "
            if promised <= size and not data[data.rfind(b"OggS") + 5] & 4:
                return f"{size} bytes, and the last page is not the end of the stream"
    # Some programs leave out the byte that fills a last chunk of odd length.
    if 8 < promised and promised > size + 1:
        return f"{size} of {at_least}{promised} bytes"
    return None


def unread(path: Path, samples: int, expected: int, slack: int = 0) -> Optional[str]:
    """What is wrong with a file of which libsndfile has read so many of the ``expected`` samples (of each channel), to be read
    after its name; None where no more than ``slack`` are missing."""
    held = uncounted_samples(path)
    if held is None:
        return f"is cut short: {samples} of {expected} samples" if samples < expected - slack else None
    if samples < held - MP3_SLACK:
        return f"does not count its frames, and {samples} of its {held} samples can be read: convert it (sox a.mp3 b.wav)"
    return None


def uncounted_samples(path: Path) -> Optional[int]:
    """The samples of each channel in the frames of an MP3 file that does not count them itself, in a first frame that holds
    Xing, Info or VBRI in place of sound; 0 where they cannot be counted here, None of any other file.

    libsndfile guesses the length of such a file by the size of its first frame and of the whole, tags among it, and reads no
    further than that.
    """
    with open(path, "rb") as file:
        place, head = 0, file.read(10)
        while head[:3] == b"ID3" and len(head) == 10:
            place += 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0))) + (10 if head[5] & 0x10 else 0)
            file.seek(place)
            head = file.read(10)
        frame = head + file.read(38)
        if _mp3_frame(frame) == (0, 0):  # of another layer, or with bytes between a tag and the sound; FLAC may have tags, too
            return 0 if (place or frame[:2] >= b"\xff\xe0") and frame[:4] != b"fLaC" else None
        found = re.search(rb"(?:Xing|Info)(....)|VBRI", frame[4:], re.DOTALL)
        if found and (found[1] is None or found[1][3] & 1):
            return None
        return _mp3_samples(file, place, path.stat().st_size)


def _mp3_frame(head: bytes) -> Tuple[int, int]:
    """Bytes and samples of the frame of MP3 that begins with these; zeros where none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0, 0
    version = head[1] >> 3 & 3
    samples, kbits, rate = 1152 if version == 3 else 576, _KBITS[version == 3][head[2] >> 4], _RATES[version][head[2] >> 2 & 3]
    return (samples * 125 * kbits // rate + (head[2] >> 1 & 1), samples) if kbits and rate else (0, 0)


def _mp3_samples(file: BinaryIO, place: int, size: int) -> int:
    """The samples in the whole frames that follow one another from there."""
    count = 0
    while True:
        file.seek(place)
        length, samples = _mp3_frame(file.read(4))
        if length == 0 or place + length > size:
            return count
        place, count = place + length, count + samples


def _known(count: int) -> int:
    return count if count < _UNKNOWN else 0


def _wav_data(file: BinaryIO, size: int, order: str) -> Tuple[int, int]:
    """Where the sound of a WAV or RF64 file begins, and its bytes by the header of its chunk; what the whole file says of
    itself, which programs get wrong, only where there is no such chunk. ``order``: of the bytes, as struct has it."""
    file.seek(4)
    whole = struct.unpack(order + "I", file.read(4))[0]
    long, place = 0, 12
    while place + 8 <= size:
        file.seek(place)
        name, count = struct.unpack(order + "4sI", file.read(8))
        if name == b"data":
            return place + 8, long if count == 0xFFFFFFFF and long else count
        if name == b"ds64" and place + 24 <= size:
            _, long = struct.unpack("<QQ", file.read(16))
        place += 8 + count + count % 2
    return 8, whole


def _more_sound(file: BinaryIO, place: int, size: int, order: str) -> bool:
    """Whether what follows the sound of a WAV file seems to be sound too: it is more than padding, and neither a chunk (four
    printable characters, and a length that the file holds) nor a tag."""
    file.seek(place)
    more = file.read(_PADDING + 1)
    filled = len(more) - len(more.lstrip(b"\0"))  # up to the end of a block, or by the byte that makes it even
    chunks = (more[skip:skip + 8] for skip in (0, 1, filled) if skip + 8 <= len(more))
    tagged = re.match(rb"\0*(ID3|APETAGEX|<\?xml)", more)
    return len(more) > _PADDING and filled < len(more) and not tagged and not any(
        re.match(b"[ -~]{4}", chunk) and place + struct.unpack(order + "I", chunk[4:])[0] <= size for chunk in chunks)


def _caf_end(file: BinaryIO, size: int) -> int:
    """Where the sound of a CAF file ends: a chunk has a name and eight bytes that count what follows; 0 where the recorder
    did not know (-1)."""
    place = 8
    while place + 12 <= size:
        file.seek(place)
        name, count = struct.unpack(">4sq", file.read(12))
        if name == b"data" or count < 0:
            return place + 12 + count if count >= 0 else 0
        place += 12 + count
    return place


def _voc_end(file: BinaryIO, place: int, size: int) -> int:
    """Where the last block ends: a type, and three bytes that count what follows; type 0 ends the file."""
    while place + 4 <= size:
        file.seek(place)
        kind, *count = file.read(4)
        if kind == 0:
            break
        place += 4 + int.from_bytes(bytes(count), "little")
    return place


def _nist_end(file: BinaryIO) -> int:
    """The bytes of header and samples by the header's own count; 0 where these are compressed."""
    file.seek(0)
    header = file.read(16)
    length = int(header.split()[1]) if len(header.split()) > 1 and header.split()[1].isdigit() else 0
    file.seek(0)
    text = file.read(min(length, 1 << 16)).decode("latin-1")
    found = {key: re.search(rf"^{key} -\w+ (\S+)", text, re.MULTILINE)
             for key in ("sample_count", "channel_count", "sample_n_bytes", "sample_coding")}
    if found["sample_coding"] and "," in found["sample_coding"][1]:  # pcm,embedded-shorten-v2.00
        return 0
    numbers = [int(found[key][1]) if found[key] and found[key][1].isdigit() else default
               for key, default in (("sample_count", 0), ("channel_count", 1), ("sample_n_bytes", 0))]
    return length + numbers[0] * numbers[1] * numbers[2]


def _second_stream(file: BinaryIO, size: int) -> int:
    """Where an Ogg stream begins that follows another, as where files were joined; 0 where none does. Streams that run side
    by side begin before all else."""
    place, begun = 0, False
    while place + 27 <= size:
        file.seek(place)
        head = file.read(27 + 255)
        if head[:4] != b"OggS":
            break
        if begun and head[5] & 2:
            return place
        begun = not head[5] & 2
        place += 27 + head[26] + sum(head[27:27 + head[26]])
    return 0


def _end_of_last_page(data: bytes) -> int:
    """Where the last Ogg page that begins in ``data`` ends, by its header: beyond ``data`` where it was cut."""
    start = data.rfind(b"OggS")
    segments = data[start + 26] if 0 <= start < len(data) - 26 else 1
    table = start + 27
    return 0 if start < 0 else table + segments + sum(data[table:table + segments])
