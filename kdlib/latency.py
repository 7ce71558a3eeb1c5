"""How late a streaming recogniser is: emission delay and time to first token.

The terms are those of Shangguan et al., "Dissecting user-perceived latency of on-device E2E speech recognition", 2021,
arXiv 2104.02207.
"""

import math
from itertools import groupby
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from lhotse.cut import Cut

from kdlib.alignment import FRAME_SECONDS, word_frames
from kdlib.conformer import chunk_frames
from kdlib.cuts import load_cuts
from kdlib.decoding import Hypothesis
from kdlib.files import PathLike
from kdlib.lang import Lang
from kdlib.scoring import align_words

Word = Tuple[str, float]  # and the seconds at which it ends, or was emitted


def chunk_seconds(chunk_size: int) -> float:
    """The algorithmic latency: how much audio a chunk wants before its first frame can be computed, in seconds."""
    return 0.01 * chunk_frames(chunk_size)


def shown_at(frame: int, chunk_size: int, duration: float) -> float:
    """When what is emitted in a frame (after subsampling) can be shown at the earliest, in seconds from the beginning of
    the audio: when its chunk has come, or all of the audio with any silence after it, of ``duration`` seconds; infinity
    where a last short chunk is not run. ``chunk_size`` 0 is full context."""
    if chunk_size == 0:
        return duration
    return min(duration, frame // chunk_size * chunk_size * FRAME_SECONDS + chunk_seconds(chunk_size))


def emission_delays(reference: Sequence[Word], recognised: Sequence[Word]) -> List[float]:
    """Seconds from the end of each word in the audio to its emission; of the words that were recognised rightly. Of one
    word several times in a row, not as often in the one as in the other, those that are nearest in time are taken."""
    hyp_ends, ref_ends, delays = iter(recognised), iter(reference), []
    pairs = align_words([word for word, _ in reference], [word for word, _ in recognised])
    # The alignment knows no times: which of a run of one word are its hits and which its gaps is chosen here.
    for words, group in groupby(pairs, lambda pair: set(pair) - {None}):
        run = list(group)
        ended = [next(ref_ends)[1] for ref, _ in run if ref is not None]
        emitted = [next(hyp_ends)[1] for _, hyp in run if hyp is not None]
        if len(words) > 1:  # a substitution
            continue
        if len(ended) > len(emitted):
            ended = _nearest(emitted, ended)
        else:
            emitted = _nearest(ended, emitted)
        delays += [at - end for end, at in zip(ended, emitted)]
    return delays


def _nearest(few: Sequence[float], many: Sequence[float]) -> List[float]:
    """As many of ``many`` as there are ``few``, in their order and together the nearest to these."""
    best: List[Tuple[float, List[float]]] = [(0.0, [])] + [(math.inf, [])] * len(few)  # to the first so many, and its distance
    for time in many:
        for count in range(len(few), 0, -1):
            distance, chosen = best[count - 1]
            best[count] = min(best[count], (distance + abs(time - few[count - 1]), chosen + [time]))
    return best[-1][1]


class LatencyMeter:
    """Gathers what a decoding summary keeps of a test set's latency.

    Args:
        alignment: cuts with word alignments, from ``local/align.py``.
        lang: of the model; chunk_size: with which it is decoded.

    ``tail``, 0 unless set: the seconds of silence that follow each utterance before its last short chunk is run; infinity
    where that is not run.
    """

    def __init__(self, alignment: PathLike, lang: Lang, chunk_size: int):
        self.cuts: Dict[str, Cut] = {cut.id: cut for cut in load_cuts(alignment, "make it with local/align.py")}
        self.lang, self.chunk_size, self.tail = lang, chunk_size, 0.0
        self.delays: List[float] = []
        self.first_tokens: List[float] = []

    def add(self, id_: str, hypothesis: Hypothesis) -> None:
        """What was recognised of an utterance; one that is not aligned does not count."""
        cut = self.cuts.get(id_)
        words = (cut.supervisions[0].alignment or {}).get("word") if cut is not None and cut.supervisions else None
        if words is None or not hypothesis.frames:
            return
        reference = [(item.symbol, item.end) for item in words]
        recognised = [(word, (last + 1) * FRAME_SECONDS)
                      for word, _, last in word_frames(self.lang, hypothesis.tokens, hypothesis.frames)]
        self.delays += emission_delays(reference, recognised)
        self.first_tokens.append(shown_at(hypothesis.frames[0], self.chunk_size, cut.duration + self.tail))

    def summary(self) -> Dict[str, Any]:
        """How many words were timed, mean and 90th percentile of their emission delay, and the mean time to first token
        from the beginning of the audio, in milliseconds (None of nothing)."""
        def in_ms(values: List[float], statistic: Callable[[List[float]], Any]) -> Optional[float]:
            return round(1000 * float(statistic(values)), 1) if values else None

        return {"words": len(self.delays), "delay_ms": in_ms(self.delays, np.mean),
                "delay_p90_ms": in_ms(self.delays, lambda values: np.percentile(values, 90)),
                "first_token_ms": in_ms(self.first_tokens, np.mean)}
