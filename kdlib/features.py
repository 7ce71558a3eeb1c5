"""The filterbank features of recipes: what training reads, and what a device computes."""

from lhotse import Fbank
from lhotse import FbankConfig as LhotseFbankConfig

from kdlib.config import FbankConfig


def fbank_extractor(config: FbankConfig) -> Fbank:
    """Lhotse's log-mel filterbank, without dither and without snipped edges: as sherpa-onnx computes it."""
    return Fbank(LhotseFbankConfig(sampling_rate=config.sampling_rate, num_filters=config.num_filters,
                                   low_freq=config.low_freq, high_freq=config.high_freq, dither=0.0, snip_edges=False))
