"""The filterbank features of recipes: what training reads, and what a device computes."""

from typing import Iterable, List, Tuple

import numpy as np
from lhotse import Fbank
from lhotse import FbankConfig as LhotseFbankConfig
from lhotse.cut import Cut
from lhotse.features.io import MemoryRawWriter

from kdlib.config import FbankConfig
from kdlib.errors import in_one_line


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


def without_features(cuts: Iterable[Cut], extractor: Fbank) -> List[Tuple[str, str]]:
    """The ids of the cuts of which :func:`with_features` makes nothing, each with the reason."""
    broken = []
    for cut in cuts:
        try:
            with_features(cut, extractor)
        except Exception as error:  # every audio backend has exceptions of its own
            broken.append((cut.id, in_one_line(error)))
    return broken
