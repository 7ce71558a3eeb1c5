"""Made-up speech for benchmarks: training cuts of any durations with features and transcripts, and no corpus needed."""

import math
import random
import tracemalloc
from pathlib import Path
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
from lhotse import CutSet, LilcomChunkyWriter, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from kdlib.config import FbankConfig, LangConfig
from kdlib.cuts import load_cuts
from kdlib.errors import RecipeError
from kdlib.features import fbank_extractor
from kdlib.files import write_audio
from kdlib.lang import Lang, train_lang

POOL = 150  # different utterances; a training hears each of them many times
SYLLABLE = 0.12  # seconds


class MadeUpSpeech(NamedTuple):
    """Training cuts, and what they weigh."""

    lang: Lang
    cuts: CutSet
    features_per_hour: float  # bytes on disk of an hour's features
    bytes_per_cut: float  # in memory, once read; of all speeds


def read_durations(words: str) -> Tuple[List[float], List[float]]:
    """``0:1.5 50:6 100:20``: half of the utterances take 1.5 to 6 s. Returns the per cent and the seconds.

    Raises:
        RecipeError: it reads otherwise, or does not rise from 0 to 100 per cent and from above 0 to finite
            seconds.
    """
    try:
        percent, seconds = (list(column) for column in zip(*(map(float, word.split(":")) for word in words.split())))
    except ValueError:
        raise RecipeError(f"--seconds '{words}' is not understood: write it as '0:1.5 50:6 100:20'") from None
    finite = all(map(math.isfinite, percent + seconds))  # nan passes for sorted
    rises = percent == sorted(percent) and seconds == sorted(seconds) and [percent[0], percent[-1]] == [0, 100]
    if not (finite and rises and seconds[0] > 0):
        raise RecipeError(f"--seconds '{words}' must rise from 0 to 100 per cent, and from above 0 seconds to a finite "
                          "number of them")
    return percent, seconds


def make_sound(seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Noise, weaker towards high frequencies and rising and falling as syllables do, over a quiet ground; (samples,)."""
    count = int(seconds * rate)
    levels = rng.uniform(-60, -15, math.ceil(seconds / SYLLABLE) + 2)
    level = np.interp(np.arange(count) / (rate * SYLLABLE), np.arange(len(levels)), levels)
    steps = np.cumsum(rng.standard_normal(count + 64))
    return (10 ** (level / 20) * (steps[64:] - steps[:-64]) / 8 + 1e-4 * rng.standard_normal(count)).clip(-1, 1)


def repeat(speeds: Sequence[Sequence[Cut]], turns: int) -> CutSet:
    """The cuts of one speed after those of another, so many turns in all, each cut under an id of its own."""
    return CutSet.from_cuts(fastcopy(cut, id=f"{cut.id}-{turn}") for turn in range(turns) for cut in speeds[turn % len(speeds)])


def weigh(cuts: Sequence[Cut], speed_factors: Sequence[float], turns: int, folder: Path) -> float:
    """Bytes that a training cut takes in memory, one of some thousands: the mean of these cuts and of the same at other speeds,
    which also hold how their audio is made, as those of stage 2."""
    speeds = [cuts, *([fastcopy(cut.drop_features().perturb_speed(factor), features=cut.features) for cut in cuts]
                      for factor in speed_factors)]
    path = folder / "weighed.jsonl.gz"
    repeat(speeds, len(speeds) * math.ceil(turns / len(speeds))).to_file(path)
    tracemalloc.start()
    read = load_cuts(path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / len(read)


def make_speech(folder: Path, fbank: FbankConfig, vocab_size: int, seconds: float, durations: str,
                tokens_per_second: float) -> MadeUpSpeech:
    """At least ``seconds`` of utterances in ``folder``, with ``durations`` as of :func:`read_durations`.

    They share the audio and the features of a pool, and their transcripts are words of a made-up language, whose tokens
    (``folder/lang``) are BPE.
    """
    rng, words_rng = np.random.default_rng(0), random.Random(0)
    words = ["".join(words_rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=words_rng.randint(2, 8)))
             for _ in range(4 * vocab_size)]
    lang = train_lang(words, LangConfig("bpe", vocab_size), folder / "lang")
    lengths = [len(lang.encode(word)) for word in words]
    pool = []
    for number, duration in enumerate(np.interp(np.linspace(0, 100, POOL), *read_durations(durations))):
        path = folder / "audio" / f"{number}.flac"
        write_audio(path, make_sound(duration, fbank.sampling_rate, rng), fbank.sampling_rate)
        recording = Recording.from_file(path)
        text, tokens = [], 0
        while tokens < tokens_per_second * duration:
            chosen = rng.integers(len(words))
            text.append(words[chosen])
            tokens += lengths[chosen]
        cut = recording.to_cut()
        cut.supervisions = [SupervisionSegment(recording.id, recording.id, 0.0, recording.duration, text=" ".join(text),
                                               speaker="none", language="English")]
        pool.append(cut)
    pool = list(CutSet.from_cuts(pool).compute_and_store_features(fbank_extractor(fbank), folder / "features",
                                                                  storage_type=LilcomChunkyWriter, progress_bar=False))
    pooled = sum(cut.duration for cut in pool)
    on_disk = sum(path.stat().st_size for path in {Path(cut.features.storage_path) for cut in pool})
    path, turns = folder / "cuts.jsonl.gz", math.ceil(seconds / pooled)
    repeat([pool], turns).to_file(path)
    cuts = load_cuts(path)  # before they are weighed, since the first call imports what is no cut's
    return MadeUpSpeech(lang, cuts, 3600 * on_disk / pooled, weigh(pool, fbank.speed_factors, turns, folder))
