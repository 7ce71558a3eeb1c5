"""Batched decoding of transducers: greedy and modified beam search.

N utterances, T frames, B hypotheses of a beam, V tokens. Results never depend on what an utterance is batched with.
"""

import math
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

import torch
from torch import Tensor

from kdlib.transducer import Transducer


@torch.no_grad()
def greedy_search(model: Transducer, encoder_out: Tensor, lengths: Tensor, max_sym_per_frame: int = 1,
                  unk_id: int = 2) -> List[List[int]]:
    """The most probable token at each step; ``<unk>`` counts as blank, as in sherpa-onnx.

    Args:
        encoder_out: (N, T, C).
        lengths: (N,) int64.
        max_sym_per_frame: after so many tokens the next frame is taken; sherpa-onnx allows 1.
    Returns:
        The token ids of each utterance.
    """
    encoded = model.joiner.encoder_proj(encoder_out)
    num, num_frames = encoder_out.size(0), encoder_out.size(1)
    context = model.predictor.initial_context(num, encoder_out.device)
    predicted = model.joiner.predictor_proj(model.predictor(context))[:, 0]
    results: List[List[int]] = [[] for _ in range(num)]
    for frame in range(num_frames):
        active = frame < lengths
        for _ in range(max_sym_per_frame):
            token = model.joiner(encoded[:, frame], predicted).argmax(-1)
            active = active & (token != model.blank_id) & (token != unk_id)
            emitting = active.nonzero().squeeze(1)
            if emitting.numel() == 0:
                break
            for row, symbol in zip(emitting.tolist(), token[emitting].tolist()):
                results[row].append(symbol)
            context[emitting] = torch.cat([context[emitting, 1:], token[emitting, None]], dim=1)
            predicted[emitting] = model.joiner.predictor_proj(model.predictor(context[emitting]))[:, 0]
    return results


@dataclass
class Hypothesis:
    """A label sequence and the log-probability (natural) of all the paths to it that the beam has seen."""

    score: float
    tokens: Tuple[int, ...] = field(default=())


@torch.no_grad()
def modified_beam_search(model: Transducer, encoder_out: Tensor, lengths: Tensor, beam: int = 4,
                         unk_id: int = 2) -> List[List[int]]:
    """Frame-synchronous beam search with at most one token a frame, equal label sequences merged.

    Args:
        encoder_out: (N, T, C).
        lengths: (N,) int64.
        beam: hypotheses kept after each frame.
    Returns:
        The token ids of the best hypothesis of each utterance, by log-probability divided by the label count.
    """
    size = model.predictor.initial_context(1).size(1)
    return [list(max(hyps, key=lambda h: h.score / (len(h.tokens) + size)).tokens)
            for hyps in nbest_search(model, encoder_out, lengths, beam, unk_id)]


@torch.no_grad()
def nbest_search(model: Transducer, encoder_out: Tensor, lengths: Tensor, beam: int = 4,
                 unk_id: int = 2) -> List[List[Hypothesis]]:
    """All that :func:`modified_beam_search` has kept at the end.

    Args:
        as there.
    Returns:
        The at most ``beam`` hypotheses of each utterance, the most probable first.
    """
    encoded = model.joiner.encoder_proj(encoder_out)
    num, device = encoder_out.size(0), encoder_out.device
    start = tuple(model.predictor.initial_context(1)[0].tolist())
    size = len(start)
    beams: List[List[Hypothesis]] = [[Hypothesis(0.0)] for _ in range(num)]
    predicted_cache: Dict[Tuple[int, ...], Tensor] = {}
    for frame in range(encoder_out.size(1)):
        rows = [n for n in range(num) if frame < lengths[n]]
        if not rows:
            break
        owners = [n for n in rows for _ in beams[n]]
        contexts = [(start + hyp.tokens)[-size:] for n in rows for hyp in beams[n]]
        fresh = sorted(set(contexts) - set(predicted_cache))
        if fresh:
            # The predictor sees the last labels only, so that its outputs are few and used again and again.
            outputs = model.joiner.predictor_proj(model.predictor(torch.tensor(fresh, device=device)))[:, 0]
            predicted_cache.update(zip(fresh, outputs))
        logits = model.joiner(encoded[owners, frame], torch.stack([predicted_cache[c] for c in contexts]))
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, unk_id] = float("-inf")
        # No hypothesis can place more than `beam` extensions, blank aside.
        blank = log_probs[:, model.blank_id].tolist()
        log_probs[:, model.blank_id] = float("-inf")
        best, tokens = log_probs.topk(min(beam, model.vocab_size - 1), dim=-1)
        best, tokens = best.tolist(), tokens.tolist()
        item = 0
        for n in rows:
            merged: Dict[Tuple[int, ...], float] = {}
            for hyp in beams[n]:
                candidates = [(hyp.tokens, hyp.score + blank[item])]
                candidates += [(hyp.tokens + (token,), hyp.score + value)
                               for token, value in zip(tokens[item], best[item]) if value > float("-inf")]
                for labels, score in candidates:
                    merged[labels] = _log_add(merged[labels], score) if labels in merged else score
                item += 1
            ranked = sorted(merged.items(), key=lambda pair: (-pair[1], pair[0]))[:beam]
            beams[n] = [Hypothesis(score, labels) for labels, score in ranked]
    return beams


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == float("-inf") else high + math.log1p(math.exp(low - high))
