"""When the words of a transcript are heard: the most probable path of a transducer through its lattice.

N utterances, T frames after subsampling, U labels of the longest utterance.
"""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kdlib import rnnt
from kdlib.conformer import FRAME_MS
from kdlib.lang import Lang
from kdlib.scoring import split_characters
from kdlib.transducer import Transducer

FRAME_SECONDS = FRAME_MS / 1000


@torch.no_grad()
def align_labels(model: Transducer, encoder_out: Tensor, lengths: Tensor, symbols: Tensor, symbol_lengths: Tensor,
                 rnnt_type: str) -> List[Optional[List[int]]]:
    """The frame in which each label leaves on the most probable path of the whole lattice (Graves 2012).

    Args:
        encoder_out: (N, T, C); lengths: (N,) int64.
        symbols: (N, U) int64; symbol_lengths: (N,) int64.
        rnnt_type: regular or modified, as the model was trained.
    Returns:
        The frames of each utterance's labels, rising (strictly, if modified); None where there is no path, as in an
        utterance with more labels than frames, or without any frame, and where none has half the probability.
    """
    if not lengths.any():  # of such a batch there is no lattice
        return [None if count else [] for count in symbol_lengths.tolist()]
    boundary = rnnt.boundary_of(symbol_lengths, lengths)
    ranges = rnnt.all_nodes(encoder_out, symbols)
    side = model.lattice_side(encoder_out, model.predictor.prefix(symbols))
    arcs = rnnt.arc_log_probs(side, symbols, ranges, model.blank_id, boundary, rnnt_type)
    # A path leaves the node (t, u) for good by its label u, so that label's frame is the last one seen with u labels.
    visited = rnnt.node_posteriors(*arcs, ranges, boundary, rnnt_type, rnnt.BEST_PATH) >= 0.5
    frame = torch.arange(1, encoder_out.size(1) + 1, device=lengths.device).reshape(1, -1, 1)
    last = (visited * frame).amax(1) - 1
    return [None if (places := row[:count]) and min(places) < 0 else places
            for row, count in zip(last.tolist(), symbol_lengths.tolist())]


def word_frames(lang: Lang, tokens: Sequence[int], frames: Sequence[int]) -> List[Tuple[str, int, int]]:
    """The words of a label sequence (in Chinese and Japanese its characters), each with the frames of its first and of its
    last label.

    A label belongs to the word that it changes; ``frames`` are those of the labels.
    """
    words: List[Tuple[str, int, int]] = []
    for count, frame in enumerate(frames, start=1):
        now = split_characters(lang.decode(list(tokens[:count])).split())
        for number, word in enumerate(now):
            if number >= len(words):
                words.append((word, frame, frame))
            elif word != words[number][0]:
                words[number] = (word, words[number][1], frame)
        del words[len(now):]
    return words
