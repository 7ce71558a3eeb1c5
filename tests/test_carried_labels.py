"""An utterance that the predictor begins with the labels of another: in training, and in a stream that goes on."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import settings as of_hypothesis
from hypothesis import strategies as st
from made_up import settings
from objective_cases import SIZES, make_batch, results, with_nbest

from kdlib.batch_plan import plan_batch
from kdlib.config import DecodeConfig, DistillTerm, LossConfig, ModelConfig
from kdlib.data import TransducerDataset
from kdlib.decoding import find_search
from kdlib.predictor import Predictor
from kdlib.streaming import StreamingRecogniser
from kdlib.training.objective import Objective
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


def planned(corpus, share, seed=0, number=40, shares=1, last=()):
    """The shares of a batch of so many of the corpus's utterances."""
    return [plan_batch(list(corpus[2])[:number], seed, 1.0, one, shares, share, last) for one in range(shares)]


def test_so_many_utterances_go_on_after_another_of_their_batch(corpus):
    def before(share, seed=0):
        return planned(corpus, share, seed)[0].before

    half = [before(0.5, seed) for seed in range(8)]
    assert 0.35 < sum(bool(text) for texts in half for text in texts) / 320 < 0.65
    assert half[0] == before(0.5) and len({tuple(texts) for texts in half}) == 8
    texts = {cut.supervisions[0].text for cut in list(corpus[2])[:40]}
    assert set(before(1)) <= texts and len(set(before(1))) > 10 and not any(before(0))


def test_no_utterance_goes_on_after_its_copy_at_another_speed(corpus):
    cuts = [dataclasses.replace(cut, supervisions=[dataclasses.replace(cut.supervisions[0], text=f"{number}")])
            for number, cut in enumerate(list(corpus[2])[:3])]
    copies = [cut.with_id(f"{cut.id}_sp{speed}") for cut in cuts for speed in (0.9, 1.1)]
    found = set()
    for seed in range(20):
        plan = plan_batch([*cuts, *copies], seed, 1.0, carried_labels=1.0)
        found |= {(cut.supervisions[0].text, before) for cut, before in zip(plan.cuts, plan.before)}
    assert found == {(one, other) for one in "012" for other in "012" if one != other}
    assert plan_batch([cuts[0], copies[0]], 1, 1.0, carried_labels=1.0).before == ["", ""]


def test_the_labels_are_of_the_whole_batch_however_it_is_shared_out(corpus):
    """And never an utterance's own, so that one alone goes on after one of the batch before."""
    [whole] = planned(corpus, 0.5)
    of = {cut.id: before for cut, before in zip(whole.cuts, whole.before)}
    for shares in (2, 4, 40):
        assert of == {cut.id: before for plan in planned(corpus, 0.5, shares=shares)
                      for cut, before in zip(plan.cuts, plan.before)}
    first, other = list(corpus[2])[:2]
    own, others = (cut.supervisions[0].text for cut in (first, other))
    assert own != others
    for seed in range(9):
        [pair] = planned(corpus, 1, seed, number=2)
        assert pair.before == [cut.supervisions[0].text for cut in reversed(list(pair.cuts))]
        assert planned(corpus, 1, seed, number=1, last=[first, other])[0].before == [others]
    for last in ([], [first]):
        assert planned(corpus, 1, number=1, last=last)[0].before == [""]


def test_a_batch_has_the_labels_of_the_transcripts(corpus):
    _, lang, _, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    [plan] = planned(corpus, 0.5)
    batch = dataset[plan]
    for labels, length, text in zip(batch.before.tolist(), batch.before_lengths.tolist(), plan.before):
        assert labels[:length] == lang.encode(text) and not any(labels[length:])
    assert 0 < (batch.before_lengths == 0).sum() < 40
    moved = batch.to("meta")
    assert moved.before.is_meta and moved.before_lengths.is_meta
    [plan] = planned(corpus, 0)
    assert dataset[plan].before is None and dataset[plan].before_lengths is None


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
    carried = dataclasses.replace(batch, before=batch.symbols[follows], before_lengths=torch.tensor(
        [batch.symbol_lengths[row] if row >= 0 else 0 for row in follows]))

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
@of_hypothesis(max_examples=20)
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
