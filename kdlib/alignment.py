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
        utterance with more labels than frames, or without any frame, and where several are equally good and the nodes that
        more than half of them visit are no whole path.
    """
    if not lengths.any():  # of such a batch there is no lattice
        return [None if count else [] for count in symbol_lengths.tolist()]
    boundary = rnnt.boundary_of(symbol_lengths, lengths)
    ranges = rnnt.all_nodes(encoder_out, symbols)
    side = model.lattice_side(encoder_out, model.predictor.prefix(symbols))
    arcs = rnnt.arc_log_probs(side, symbols, ranges, model.blank_id, boundary, rnnt_type)
    # Any two nodes that more than half of the best paths visit are on one of these. So if such nodes are as many as a path has,
    # they are a best path; if fewer, none is to be told from the others.
    visited = rnnt.node_posteriors(*arcs, ranges, boundary, rnnt_type, rnnt.BEST_PATH) > 0.5
    whole = visited.sum((1, 2)) == (lengths if rnnt_type == "modified" else lengths + symbol_lengths)
    # A path leaves the node (t, u) for good by its label u, so that label's frame is the last one seen with u labels.
    frame = torch.arange(1, encoder_out.size(1) + 1, device=lengths.device).reshape(1, -1, 1)
    last = (visited * frame).amax(1) - 1
    return [places if found and min(places := row[:count], default=0) >= 0 else None
            for found, row, count in zip(whole.tolist(), last.tolist(), symbol_lengths.tolist())]


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
