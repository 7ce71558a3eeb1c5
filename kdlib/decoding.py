"""Decoding of transducers, batched: greedy and modified beam search, all at once or chunk by chunk.

N utterances, T frames, B hypotheses of a beam, V tokens. Results depend neither on what an utterance is batched with nor
on how its frames are cut into chunks.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple, Type

import torch
from torch import Tensor

from kdlib.config import DecodeConfig
from kdlib.transducer import Transducer


@dataclass
class Hypothesis:
    """A label sequence, the frame of each label, and the log-probability (natural) of the paths to it that were seen: of
    the one path of greedy search, of all that a beam has merged."""

    score: float = 0.0
    tokens: Tuple[int, ...] = field(default=())
    frames: Tuple[int, ...] = field(default=())


class Search:
    """What a search knows of an utterance after the frames that it was given, its ``best`` hypothesis above all; the base
    of those below. ``before``: labels that the predictor has read before it, where it is not the first of its stream."""

    best: Hypothesis

    def __init__(self, context_size: int = 2, before: Tuple[int, ...] = ()) -> None:
        self.context_size = context_size  # of the predictor
        self.before = before
        self.num_frames = 0

    @staticmethod
    def advance(searches: List["Search"], model: Transducer, encoder_out: Tensor, lengths: Tensor,
                **options: Any) -> None:
        """Take one chunk further: encoder_out (N, T, C), of which each search hears ``lengths`` (N,) int64 frames."""
        raise NotImplementedError


class GreedySearch(Search):
    """The most probable token at each step."""

    def __init__(self, context_size: int = 2, before: Tuple[int, ...] = ()) -> None:
        super().__init__(context_size, before)
        self.best = Hypothesis()

    @staticmethod
    @torch.no_grad()
    def advance(searches: List["GreedySearch"], model: Transducer, encoder_out: Tensor, lengths: Tensor,
                max_sym_per_frame: int = 1, unk_id: int = 2) -> None:
        """Take each search through its next frames; as :func:`greedy_search`, whose arguments these are."""
        if not searches:
            return
        encoded = model.joiner.encoder_proj(encoder_out)
        contexts = [_context(model, search.before + search.best.tokens) for search in searches]
        context = torch.tensor(contexts, device=encoder_out.device)
        predicted = model.joiner.predictor_proj(model.predictor(context))[:, 0]
        tokens = [list(search.best.tokens) for search in searches]
        frames = [list(search.best.frames) for search in searches]
        scores = torch.tensor([search.best.score for search in searches], dtype=torch.float64, device=encoder_out.device)
        for frame in range(encoder_out.size(1)):
            active = frame < lengths
            for _ in range(max_sym_per_frame):
                logits = model.joiner(encoded[:, frame], predicted)
                token = logits.argmax(-1)
                best = logits.float().log_softmax(-1).gather(-1, token[:, None])[:, 0]
                scores += torch.where(active, best, 0.0)
                active = active & (token != model.blank_id) & (token != unk_id)
                emitting = active.nonzero().squeeze(1)
                if emitting.numel() == 0:
                    break
                for row, symbol in zip(emitting.tolist(), token[emitting].tolist()):
                    tokens[row].append(symbol)
                    frames[row].append(searches[row].num_frames + frame)
                context[emitting] = torch.cat([context[emitting, 1:], token[emitting, None]], dim=1)
                predicted[emitting] = model.joiner.predictor_proj(model.predictor(context[emitting]))[:, 0]
        for search, length, score, symbols, places in zip(searches, lengths.tolist(), scores.tolist(), tokens, frames):
            search.best = Hypothesis(score, tuple(symbols), tuple(places))
            search.num_frames += length


class BeamSearch(Search):
    """Frame-synchronous beam search with at most one token a frame: the best extensions of all hypotheses together, equal
    label sequences merged, as icefall and sherpa-onnx do it."""

    def __init__(self, context_size: int = 2, before: Tuple[int, ...] = ()) -> None:
        super().__init__(context_size, before)
        self.beam: List[Hypothesis] = [Hypothesis()]  # the most probable first

    @property
    def best(self) -> Hypothesis:
        """By log-probability divided by the number of labels, those that stand for the beginning among them."""
        return max(self.beam, key=lambda h: h.score / (len(h.tokens) + self.context_size))

    @staticmethod
    @torch.no_grad()
    def advance(searches: List["BeamSearch"], model: Transducer, encoder_out: Tensor, lengths: Tensor, beam: int = 4,
                unk_id: int = 2) -> None:
        """Take each search through its next frames; as :func:`modified_beam_search`, whose arguments these are."""
        encoded = model.joiner.encoder_proj(encoder_out)
        device = encoder_out.device
        predicted_cache: Dict[Tuple[int, ...], Tensor] = {}
        lengths = lengths.tolist()
        for frame in range(encoder_out.size(1)):
            rows = [row for row, length in enumerate(lengths) if frame < length]
            if not rows:
                break
            beams = [searches[row].beam for row in rows]
            widest = max(map(len, beams))
            owners = [row for row, hyps in zip(rows, beams) for _ in hyps]
            places = [n * widest + i for n, hyps in enumerate(beams) for i in range(len(hyps))]
            contexts = [_context(model, searches[row].before + hyp.tokens) for row, hyps in zip(rows, beams) for hyp in hyps]
            fresh = sorted(set(contexts) - set(predicted_cache))
            if fresh:
                # The predictor sees the last labels only, so that its outputs are few and used again and again.
                outputs = model.joiner.predictor_proj(model.predictor(torch.tensor(fresh, device=device)))[:, 0]
                predicted_cache.update(zip(fresh, outputs))
            logits = model.joiner(encoded[owners, frame], torch.stack([predicted_cache[c] for c in contexts]))
            log_probs = logits.float().log_softmax(-1)
            scores = torch.tensor([hyp.score for hyps in beams for hyp in hyps], dtype=torch.float64, device=device)
            every = scores.new_full((len(rows) * widest, model.vocab_size), float("-inf"))
            every[places] = scores[:, None] + log_probs
            every = every.view(len(rows), -1)
            best, chosen = every.topk(min(beam, every.size(1)), dim=-1)
            for row, values, ids in zip(rows, best.tolist(), chosen.tolist()):
                searches[row]._take(values, ids, model, searches[row].num_frames + frame, unk_id)
        for search, length in zip(searches, lengths):
            search.num_frames += length

    def _take(self, scores: List[float], ids: List[int], model: Transducer, frame: int, unk_id: int) -> None:
        """One frame's best extensions, by log-probability; an id is that of the hypothesis times V plus the token's."""
        merged: Dict[Tuple[int, ...], Hypothesis] = {}
        for score, id_ in zip(scores, ids):
            if score == float("-inf"):
                break
            number, token = divmod(id_, model.vocab_size)
            hyp = self.beam[number]
            tokens, frames = hyp.tokens, hyp.frames
            if token not in (model.blank_id, unk_id):
                tokens, frames = tokens + (token,), frames + (frame,)
            known = merged.get(tokens)  # the likelier path, which came first, says when the labels were heard
            merged[tokens] = Hypothesis(score, tokens, frames) if known is None else \
                Hypothesis(_log_add(known.score, score), tokens, known.frames)
        self.beam = sorted(merged.values(), key=lambda h: (-h.score, h.tokens))


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
    return [list(search.best.tokens) for search in
            _run(GreedySearch, model, encoder_out, lengths, max_sym_per_frame=max_sym_per_frame, unk_id=unk_id)]


def modified_beam_search(model: Transducer, encoder_out: Tensor, lengths: Tensor, beam: int = 4,
                         unk_id: int = 2) -> List[List[int]]:
    """Frame-synchronous beam search with at most one token a frame, equal label sequences merged; ``<unk>`` counts as a
    second blank, as in sherpa-onnx.

    Args:
        encoder_out: (N, T, C).
        lengths: (N,) int64.
        beam: hypotheses kept after each frame.
    Returns:
        The token ids of the best hypothesis of each utterance, by log-probability divided by the label count.
    """
    return [list(search.best.tokens) for search in _run(BeamSearch, model, encoder_out, lengths, beam=beam, unk_id=unk_id)]


def nbest_search(model: Transducer, encoder_out: Tensor, lengths: Tensor, beam: int = 4,
                 unk_id: int = 2) -> List[List[Hypothesis]]:
    """All that :func:`modified_beam_search` has kept at the end.

    Args:
        as there.
    Returns:
        The at most ``beam`` hypotheses of each utterance, the most probable first.
    """
    return [search.beam for search in _run(BeamSearch, model, encoder_out, lengths, beam=beam, unk_id=unk_id)]


def best_hypotheses(model: Transducer, encoder_out: Tensor, lengths: Tensor, config: DecodeConfig) -> List[Hypothesis]:
    """What the search that the config names finds in each utterance, with the frames of its labels.

    Args:
        encoder_out: (N, T, C).
        lengths: (N,) int64.
    """
    kind, options = find_search(config)
    return [search.best for search in _run(kind, model, encoder_out, lengths, **options)]


def find_search(config: DecodeConfig) -> Tuple[Type[Search], Dict[str, Any]]:
    """The search that the config names, and what its ``advance`` is given of the config; a :class:`RecipeError` where it
    needs k2 and that is not there."""
    if config.method == "greedy_search":
        return GreedySearch, {"max_sym_per_frame": config.max_sym_per_frame}
    if config.method == "fast_beam_search":
        from kdlib.fast_beam_search import FastBeamSearch, load_k2

        load_k2()
        return FastBeamSearch, {}
    return BeamSearch, {"beam": config.beam}


def _run(kind: Type[Search], model: Transducer, encoder_out: Tensor, lengths: Tensor, **options: Any) -> List[Any]:
    searches = [kind(model.predictor.context_size) for _ in range(encoder_out.size(0))]
    kind.advance(searches, model, encoder_out, lengths, **options)
    return searches


def _context(model: Transducer, tokens: Tuple[int, ...]) -> Tuple[int, ...]:
    """What the predictor reads after these labels."""
    size = model.predictor.context_size
    return (((-1,) * (size - 1) + (model.blank_id,)) + tokens)[-size:]


def _log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == float("-inf") else high + math.log1p(math.exp(low - high))
