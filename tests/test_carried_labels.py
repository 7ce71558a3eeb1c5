"""An utterance that the predictor begins with the labels of another: in training, and in a stream that goes on."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st
from made_up import settings
from objective_cases import SIZES, make_batch, results, with_nbest
from torch.utils.data import DataLoader

from kdlib.config import DecodeConfig, DistillTerm, LossConfig, ModelConfig
from kdlib.data import TransducerDataset, plan_batch
from kdlib.decoding import find_search
from kdlib.predictor import Predictor
from kdlib.streaming import StreamingRecogniser
from kdlib.training.objective import Objective
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


def test_so_many_utterances_follow_another_of_their_batch(corpus):
    _, lang, train, _ = corpus
    planned = [plan_batch(list(train)[:40], seed=seed, progress=1.0) for seed in range(8)]

    def follows(share, train=True):
        dataset = TransducerDataset(lang, settings(f"data.carried_labels={share}").data, train=train)
        return torch.stack([batch.follows for batch in DataLoader(dataset, sampler=planned, batch_size=None)])

    half = follows(0.5)
    assert half.min() == -1 and half.max() > 30 and 0.35 < (half >= 0).float().mean() < 0.65
    assert torch.equal(half, follows(0.5)) and len({tuple(row) for row in half.tolist()}) == 8
    every, own = follows(1.0), torch.arange(40)
    assert (every >= 0).all() and (every != own).all() and len(((every - own) % 40).unique()) > 30
    alone = plan_batch(list(train)[:1], seed=0, progress=1.0)
    assert TransducerDataset(lang, settings("data.carried_labels=1").data, train=True)[alone].follows.tolist() == [-1]
    assert TransducerDataset(lang, settings("data.carried_labels=0").data, train=True)[planned[0]].follows is None
    assert TransducerDataset(lang, settings("data.carried_labels=1").data)[planned[0]].follows is None  # of a dev set


@pytest.mark.parametrize("follows", [[1, -1, 0], [2, 0, 1], [0, 1, -1]])
@pytest.mark.parametrize("fused", ["never", "always"])
def test_the_losses_are_those_after_the_labels_of_another(monkeypatch, follows, fused):
    """Of the student and, with a predictor of its own, of the teacher; on the references and on the teacher's hypotheses."""
    torch.manual_seed(0)
    student = Transducer(ModelConfig(**SIZES), 13)
    teacher = Transducer(ModelConfig(**{**SIZES, "encoder_dim": 20, "joiner_dim": 14, "context_size": 4}), 13)
    terms = [DistillTerm(name="pruned_lattice_kl"), DistillTerm(name="nbest_rnnt")]
    objective = Objective(student, LossConfig(prune_range=3, rnnt_backend="native", fused=fused, distill=terms), teacher)
    batch = with_nbest(make_batch(), [[3, 4], [5], [1, 2, 6]], [1, 0, 0], [-1.0, -2.0, -0.5])
    carried = dataclasses.replace(batch, follows=torch.tensor(follows))

    def label_by_label(self, symbols, context=None):
        """The predictor's states (N, U + 1, C), from the labels that were read before each."""
        states = []
        for row, own in zip(range(3) if symbols.size(1) == 5 else batch.nbest.rows.tolist(), symbols.tolist()):
            other = follows[row]
            before = batch.symbols[other, :batch.symbol_lengths[other]].tolist() if other >= 0 else []
            read = [-1] * (self.context_size - 1) + [0] + before + own
            windows = [read[begin:begin + self.context_size] for begin in range(len(before), len(before) + len(own) + 1)]
            states.append(self(torch.tensor(windows))[:, 0])
        return torch.stack(states)

    alone, total = results(objective, batch, 10)[0], results(objective, carried, 10)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "prefix", label_by_label)
        want = results(objective, carried, 10)
    for one, other in zip(total, want):
        torch.testing.assert_close(one, other)
    assert (total[0] - alone).abs() > 1e-4


@given(st.integers(0, 999), st.sampled_from(["greedy_search", "modified_beam_search"]), st.integers(0, 9))
@of_hypothesis(deadline=None, max_examples=20)
def test_a_search_goes_on_after_labels_as_if_it_had_found_them(seed, method, cut):
    torch.manual_seed(seed)
    model = Transducer(ModelConfig(**{**SIZES, "context_size": 1 + seed % 3}), 7).eval()
    with torch.no_grad():
        model.joiner.out.weight.normal_(0, 2.0)
        model.joiner.out.bias.zero_()
    kind, options = find_search(DecodeConfig(method, beam=1))
    frames, first, whole = torch.randn(1, 9, 16), kind(model.predictor.context_size), kind(model.predictor.context_size)
    kind.advance([first], model, frames[:, :cut], torch.tensor([cut]), **options)
    kind.advance([whole], model, frames, torch.tensor([9]), **options)
    rest = kind(model.predictor.context_size, first.best.tokens)
    kind.advance([rest], model, frames[:, cut:], torch.tensor([9 - cut]), **options)
    assert first.best.tokens + rest.best.tokens == whole.best.tokens
    assert rest.best.score == pytest.approx(whole.best.score - first.best.score, abs=1e-3)


def test_a_stream_hands_its_search_the_labels_before_it():
    model = Transducer(ModelConfig(**SIZES), 7).eval()
    assert StreamingRecogniser(model).create_stream((3, 4)).search.before == (3, 4)
    assert StreamingRecogniser(model).create_stream().search.before == ()
