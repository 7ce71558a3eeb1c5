"""Greedy and beam search against plain references on small random models."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.config import DecodeConfig, ModelConfig
from kdlib.decoding import best_hypotheses, greedy_search, modified_beam_search, nbest_search
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]

VOCAB, UNK = 5, 2


def model_of(seed: int) -> Transducer:
    """Of a predictor that sees one to three labels, and with its blank at one of three places, all by the seed."""
    torch.manual_seed(seed)
    config = ModelConfig(num_features=16, encoder_dim=8, num_layers=1, num_heads=1, head_dim=4, feedforward_dim=8,
                         predictor_dim=8, context_size=1 + seed % 3, joiner_dim=8)
    model = Transducer(config, VOCAB, blank_id=(0, 3, 4, 0)[seed % 4])
    with torch.no_grad():  # random outputs that prefer blank a little, so that all things happen
        model.joiner.out.weight.normal_(0, 2.0)
        model.joiner.out.bias.zero_()
        model.joiner.out.bias[model.blank_id] = 0.5
    return model.eval()


def log_probs(model, frame, tokens):
    """(V,) of one encoder frame (C,) after the labels so far."""
    size = model.config.context_size
    context = torch.tensor([([-1] * (size - 1) + [model.blank_id] + list(tokens))[-size:]])
    predicted = model.joiner.predictor_proj(model.predictor(context))[0, 0]
    return model.joiner(model.joiner.encoder_proj(frame), predicted).log_softmax(-1)


@given(st.integers(0, 10 ** 6), st.integers(1, 3))
@settings(max_examples=25)
def test_greedy_search_frame_by_frame(seed, cap):
    model = model_of(seed)
    frames, lengths = torch.randn(3, 9, 8), torch.tensor([9, 1, 6])
    results = greedy_search(model, frames, lengths, max_sym_per_frame=cap, unk_id=UNK)
    for row, length, result in zip(frames, lengths, results):
        tokens, score = [], 0.0
        for frame in row[:length]:
            for _ in range(cap):
                found = log_probs(model, frame, tokens).detach()
                best = int(found.argmax())
                score += float(found[best])
                if best in (model.blank_id, UNK):
                    break
                tokens.append(best)
        assert result == tokens
        config = DecodeConfig("greedy_search", max_sym_per_frame=cap)
        hypothesis, = best_hypotheses(model, row[None], length[None], config)
        assert list(hypothesis.tokens) == tokens and hypothesis.score == pytest.approx(score, abs=1e-4)


@given(st.integers(0, 10 ** 6))
@settings(max_examples=15)
def test_a_beam_that_holds_everything_finds_the_best_label_sequence(seed):
    model = model_of(seed)
    frames = torch.randn(1, 4, 8)
    totals = {}
    with torch.no_grad():
        for path in itertools.product(range(VOCAB), repeat=4):  # one symbol or a blank at each frame
            tokens, score = [], 0.0
            for frame, symbol in zip(frames[0], path):
                score += float(log_probs(model, frame, tokens)[symbol])
                if symbol not in (model.blank_id, UNK):
                    tokens.append(symbol)
            totals.setdefault(tuple(tokens), []).append(score)
    totals = {tokens: float(torch.tensor(scores, dtype=torch.float64).logsumexp(0)) for tokens, scores in totals.items()}
    ranked = nbest_search(model, frames, torch.tensor([4]), beam=1000, unk_id=UNK)[0]
    assert {hyp.tokens: hyp.score for hyp in ranked} == pytest.approx(totals, abs=1e-4)
    assert [hyp.score for hyp in ranked] == sorted((hyp.score for hyp in ranked), reverse=True)
    means = {tokens: total / (len(tokens) + model.config.context_size) for tokens, total in totals.items()}
    best = max(means, key=means.__getitem__)
    found = tuple(modified_beam_search(model, frames, torch.tensor([4]), beam=1000, unk_id=UNK)[0])
    # Two sequences may be equally good to float32.
    assert found == best or means[found] == pytest.approx(means[best], abs=1e-5)


@given(st.integers(0, 10 ** 6))
@settings(max_examples=15)
def test_where_paths_meet_the_likelier_one_says_when_labels_were_heard(seed):
    """Whether the last label of a sequence came in this frame or before: by the likelier of the two ways to it."""
    model = model_of(seed)
    frames = torch.randn(1, 4, 8)
    with torch.no_grad():
        beam = {(): (0.0, ())}  # of each label sequence its log-probability, and the frames of its labels
        for place, frame in enumerate(frames[0]):
            found = {}
            for tokens, (score, heard) in beam.items():
                for token, more in enumerate(log_probs(model, frame, tokens).double().tolist()):
                    new = token not in (model.blank_id, UNK)
                    found.setdefault(tokens + (token,) * new, []).append((score + more, heard + (place,) * new))
            beam = {tokens: (float(torch.tensor([score for score, _ in ways], dtype=torch.float64).logsumexp(0)), max(ways)[1])
                    for tokens, ways in found.items()}
    ranked = nbest_search(model, frames, torch.tensor([4]), beam=1000, unk_id=UNK)[0]
    wrong = [hyp for hyp in ranked if hyp.frames != beam[hyp.tokens][1]]
    assert len(ranked) == 1 + 3 + 9 + 27 + 81 and len(wrong) <= 1  # two ways may be equally good to float32


@pytest.mark.parametrize("method", [greedy_search, modified_beam_search])
def test_batching_changes_nothing(method):
    model = model_of(3)
    frames, lengths = torch.randn(4, 12, 8), torch.tensor([12, 3, 7, 0])
    together = method(model, frames, lengths)
    alone = [method(model, frames[n:n + 1, :max(1, lengths[n])], lengths[n:n + 1])[0] for n in range(4)]
    assert together == alone and together[3] == []
    assert method(model, frames[:0], lengths[:0]) == []
