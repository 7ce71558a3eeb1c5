"""k2's fast beam search against every path of small lattices, all at once and in pieces."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_latency import model_of

from kdlib.config import DecodeConfig
from kdlib.decoding import best_hypotheses, find_search
from kdlib.errors import RecipeError

EVERYTHING = {"beam": 1000.0, "max_contexts": 10000, "max_states": 100000}
pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def best_path(model, encoder_out):
    """(score, tokens, frames) of the best of all paths of at most one token a frame, <unk> a second blank; (T, C)."""
    encoded = model.joiner.encoder_proj(encoder_out)
    best = (-float("inf"), (), ())
    for path in itertools.product(range(5), repeat=len(encoded)):
        context, score = (-1, 0), 0.0
        for frame, token in zip(encoded, path):
            predicted = model.joiner.predictor_proj(model.predictor(torch.tensor([context])))[0, 0]
            score += float(model.joiner(frame, predicted).log_softmax(-1)[token])
            context = (*context, token)[-2:] if token not in (0, 2) else context
        found = (score, tuple(t for t in path if t not in (0, 2)), tuple(n for n, t in enumerate(path) if t not in (0, 2)))
        best = max(best, found) if path else (0.0, (), ())
    return best


@pytest.mark.k2
@given(st.integers(0, 999), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.data())
@settings(max_examples=25)
def test_it_finds_the_best_of_all_paths(seed, lengths, data):
    model = model_of(seed)
    encoded = torch.randn(len(lengths), max(*lengths, 1), 8)
    kind, _ = find_search(DecodeConfig("fast_beam_search"))
    searches = [kind(2) for _ in lengths]
    done = 0
    while done < encoded.size(1):  # in pieces, and looked at in between or not
        step = data.draw(st.integers(1, 4))
        counts = (torch.tensor(lengths) - done).clamp(0, step)
        kind.advance(searches, model, encoded[:, done:done + step], counts, **EVERYTHING)
        done += step
        if data.draw(st.booleans()):
            assert len(searches[0].best.tokens) <= min(done, lengths[0])
    for row, (search, length) in enumerate(zip(searches, lengths)):
        score, tokens, frames = best_path(model, encoded[row, :length])
        assert (search.best.tokens, search.best.frames) == (tokens, frames)
        assert search.best.score == pytest.approx(score, abs=1e-4)


@pytest.mark.k2
def test_decoding_takes_it_by_its_name():
    model = model_of(3)
    encoded = torch.randn(2, 6, 8)
    found = best_hypotheses(model, encoded, torch.tensor([6, 4]), DecodeConfig("fast_beam_search"))
    assert [hypothesis.tokens for hypothesis in found] == [best_path(model, encoded[0])[1],
                                                           best_path(model, encoded[1, :4])[1]]


def test_without_k2_an_error_says_what_to_do(monkeypatch):
    from kdlib.rnnt import k2_backend

    monkeypatch.setattr(k2_backend, "load", lambda: (None, "ImportError: no k2"))
    with pytest.raises(RecipeError, match="fast_beam_search needs k2.*modified_beam_search"):
        find_search(DecodeConfig("fast_beam_search"))
