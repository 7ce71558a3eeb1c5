"""The filterbank features of recipes: what training reads, and what a device computes."""

import errno
import os
import re
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Tuple

import numpy as np
from lhotse import Fbank, LilcomChunkyWriter, fastcopy
from lhotse import FbankConfig as LhotseFbankConfig
from lhotse.cut import Cut
from lhotse.features.io import MemoryRawWriter

from kdlib.config import FbankConfig
from kdlib.errors import RecipeError, in_one_line
from kdlib.files import PathLike

# What reading a file says of the machine or of its disks at that time, and not of the file.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY,
            errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED,
            errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)


def fbank_extractor(config: FbankConfig) -> Fbank:
    """Lhotse's log-mel filterbank, without dither and without snipped edges: as sherpa-onnx computes it."""
    return Fbank(LhotseFbankConfig(sampling_rate=config.sampling_rate, num_filters=config.num_filters,
                                   low_freq=config.low_freq, high_freq=config.high_freq, dither=0.0, snip_edges=False))


def with_features(cut: Cut, extractor: Fbank) -> Cut:
    """The cut with its features in memory.

    Raises ValueError where these are not finite, as where samples are not, or lie far beyond full scale: they can be neither
    compressed nor learned from. Audio that cannot be read raises whatever its backend does.
    """
    done = cut.compute_and_store_features(extractor, MemoryRawWriter())
    if not np.isfinite(done.load_features()).all():
        raise ValueError("its features are no finite numbers: look at its samples")
    return done


def raise_for_machine(error: BaseException, what: str) -> None:
    """Raise a :class:`RecipeError` where ``error``, met at ``what``, says nothing of the audio: memory was short, or the
    machine or a disk failed. Else do nothing."""
    # Lhotse puts the errors of those that decode audio into the text of its own.
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in ("<class 'MemoryError'>", "DefaultCPUAllocator")):
        raise RecipeError(f"out of memory at {what}: give fewer --jobs, and run the same command again") from error
    if not isinstance(error, OSError):
        return
    # Others it raises anew with more text, in which alone their number then is.
    in_text = re.match(r"\[Errno (\d+)\]", str(error))
    number = error.errno or (int(in_text[1]) if in_text else 0)
    if number in _PASSING:
        raise RecipeError(f"{error.filename or what}: {os.strerror(number)}: this is the machine or a disk and no fault "
                          "of the audio; mend it (or remove a file that its disk has lost), and run the same command "
                          "again") from error


def _read_plainly(cut: Cut) -> None:
    """Read the cut's files without decoding them: what decodes audio seldom says why a file could not be read."""
    recording = getattr(cut, "recording", None)  # cuts that are mixed of others have none
    for source in recording.sources if recording is not None else ():
        if source.type == "file":
            with open(source.source, "rb") as file:
                while file.read(1 << 20):
                    pass


def _features_or_reason(cut: Cut, extractor: Fbank) -> Tuple[Optional[Cut], str]:
    """:func:`with_features` of the cut; or None and the reason, where a second try, too, makes nothing of its audio."""
    reason = ""
    for last in (False, True):  # the first may meet what passes, as on a network share
        try:
            return with_features(cut, extractor), ""
        except Exception as error:  # every audio backend has exceptions of its own
            reason = in_one_line(error) or type(error).__name__
            if last:
                raise_for_machine(error, cut.id)
    try:
        _read_plainly(cut)
    except OSError as error:
        raise_for_machine(error, cut.id)
    return None, reason


def with_features_where_read(cuts: Iterable[Cut], extractor: Fbank, broken: List[Tuple[str, str]]) -> Iterator[Cut]:
    """The cuts with their features in memory, without those of whose audio a second try, too, makes nothing: their ids go
    to ``broken``, each with the reason.

    Raises:
        RecipeError: that is no fault of the audio, see :func:`raise_for_machine`.
    """
    for cut in cuts:
        done, reason = _features_or_reason(cut, extractor)
        if done is None:
            broken.append((cut.id, reason))
        else:
            yield done


def write_features(cuts: Iterable[Cut], path: PathLike, extractor: Fbank) -> Tuple[List[Cut], List[Tuple[str, str]]]:
    """Extract the features of some cuts and write them, in that order, into the file ``path``.lca.

    Returns the cuts with their features, and those of whose audio there are none, each with the reason.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    broken: List[Tuple[str, str]] = []
    with LilcomChunkyWriter(path) as writer:
        return [fastcopy(cut, features=cut.features.copy_feats(writer))
                for cut in with_features_where_read(cuts, extractor, broken)], broken
