"""The objective of one batch: the same by all logits and by the fused losses, alone and dealt out to processes."""

import dataclasses

import pytest
import torch

from kdlib import rnnt
from kdlib.config import DistillTerm, LossConfig, ModelConfig
from kdlib.data import Batch
from kdlib.errors import RecipeError
from kdlib.losses import REGISTRY, best_path_weights, collapsed_kl, lattice_kl, lattice_kl_at
from kdlib.training.objective import Objective, loss_with_layers
from kdlib.transducer import Transducer

pytestmark = pytest.mark.both

SIZES = dict(num_features=16, subsampling_channels=4, encoder_dim=16, num_layers=1, num_heads=2, feedforward_dim=24,
             kernel_size=3, head_dim=8, predictor_dim=12, joiner_dim=10, dropout=0.0, chunk_size=4, left_context=8)
TERMS = [DistillTerm(name="pruned_lattice_kl", weight=2.0, temperature=2.0), DistillTerm(name="collapsed_kl", weight=0.5),
         DistillTerm(name="encoder_mse", weight=0.1)]


def make(**loss):
    torch.manual_seed(0)
    teacher = Transducer(ModelConfig(**{**SIZES, "encoder_dim": 20, "joiner_dim": 14}), 13)
    student = Transducer(ModelConfig(**SIZES), 13)
    config = LossConfig(prune_range=3, ctc_weight=0.3, rnnt_backend="native", warmup_updates=10, **loss)
    return Objective(student, config, teacher if config.distill else None)


def make_batch():
    torch.manual_seed(1)
    feature_lengths, symbol_lengths = torch.tensor([90, 61, 40]), torch.tensor([5, 3, 0])
    symbols = torch.randint(1, 13, (3, 5)) * (torch.arange(5) < symbol_lengths[:, None])
    return Batch(torch.randn(3, 90, 16), feature_lengths, symbols, symbol_lengths, ["", "", ""], ["a", "b", "c"], 0.5,
                 200, 6)


def results(objective, batch, update):
    objective.zero_grad()
    total, parts = objective(batch, update)
    total.backward()
    return total.detach(), parts, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("distill", [[], TERMS])
@pytest.mark.parametrize("update", [0, 10])
@pytest.mark.parametrize("kind", ["regular", "modified"])
def test_fused_is_the_same(distill, update, kind):
    outcomes = []
    for fused in ("never", "always"):
        objective = make(distill=distill, fused=fused, rnnt_type=kind, delay_penalty=0.01, ctc_first_updates=5)
        outcomes.append(results(objective, make_batch(), update))
    (total, parts, grads), (other_total, other_parts, other_grads) = outcomes
    torch.testing.assert_close(total, other_total)
    assert parts.keys() == other_parts.keys() and grads.keys() == other_grads.keys()
    assert {term.name for term in distill} < parts.keys()
    for name, part in parts.items():
        torch.testing.assert_close(part, other_parts[name])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=1e-3, atol=1e-6)


EVERY = [DistillTerm(name=name, weight=0.5 + i, temperature=1.5) for i, name in enumerate(sorted(REGISTRY))]


def test_every_loss_of_the_registry_is_zero_where_student_and_teacher_agree():
    objective = make(distill=EVERY)
    objective._teacher = (objective.student.eval(),)
    objective.pairs = [[(0, 0)] if loss.of == "embedding" else [] for _, loss in objective.encoder_terms]
    objective.projections.clear()
    _, parts, _ = results(objective, make_batch(), 10)
    for term in EVERY:
        assert abs(parts[term.name].item()) < 1e-5, term.name


def test_every_loss_of_the_registry_by_its_definition():
    objective, batch = make(distill=EVERY), make_batch()
    student, teacher = objective.student.eval(), objective.teacher
    total, parts, grads = results(objective, batch, 10)
    assert torch.isfinite(total) and all(torch.isfinite(grad).all() for grad in grads.values())

    with torch.no_grad():
        logits, lengths = [], None
        for model in (student, teacher):
            encoded, lengths, _ = model.encoder(batch.features, batch.feature_lengths)
            am = model.joiner.encoder_proj(encoded)
            lm = model.joiner.predictor_proj(model.predictor.prefix(batch.symbols))
            logits.append(model.joiner(am.unsqueeze(2), lm.unsqueeze(1)))
        boundary = torch.zeros(3, 4, dtype=torch.int64)
        boundary[:, 2], boundary[:, 3] = batch.symbol_lengths, lengths
        every = torch.arange(6).expand(3, logits[0].size(1), 6)
        symbols, mask = rnnt.node_symbols(batch.symbols, every, boundary, 0)
        full = lattice_kl(*logits, mask, 1.5)
        collapsed = collapsed_kl(*logits, symbols, mask, 0, 1.5)
        log_probs = logits[1].log_softmax(-1)
        arcs = log_probs.gather(3, symbols.unsqueeze(3)).squeeze(3), log_probs[..., 0]
        weights = best_path_weights(*arcs, every, boundary, mask, "modified")
        best = (lattice_kl_at(*logits, 1.5) * weights).sum()
    torch.testing.assert_close(parts["full_lattice_kl"], full, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["full_collapsed_kl"], collapsed, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["best_path_kl"], best, rtol=1e-4, atol=1e-6)
    assert parts["full_collapsed_kl"] <= parts["full_lattice_kl"]


def test_pruned_with_all_nodes_is_the_full_lattice():
    names = ("full_lattice_kl", "pruned_lattice_kl", "collapsed_kl", "full_collapsed_kl")
    objective = make(distill=[DistillTerm(name=name) for name in names])
    objective.config.prune_range = 6
    _, parts, _ = results(objective, make_batch(), 10)
    torch.testing.assert_close(parts["full_lattice_kl"], parts["pruned_lattice_kl"])
    torch.testing.assert_close(parts["full_collapsed_kl"], parts["collapsed_kl"])


def test_layers_and_shift():
    terms = [DistillTerm(name="encoder_mse", layers="matched"), DistillTerm(name="encoder_cosine", layers=[[1, 2], [1, 3]])]
    torch.manual_seed(0)
    teacher = Transducer(ModelConfig(**{**SIZES, "encoder_dim": 20, "num_layers": 3}), 13)
    student = Transducer(ModelConfig(**SIZES), 13)
    objective = Objective(student, LossConfig(rnnt_backend="native", distill=terms), teacher)
    assert objective.pairs == [[(0, 2)], [(0, 1), (0, 2)]] and set(objective.projections) == {"0-1", "0-2"}
    _, parts, grads = results(objective, make_batch(), 10)
    assert parts["encoder_cosine"] > 0 and grads["projections.0-1.weight"].abs().sum() > 0
    with pytest.raises(RecipeError, match="the student has 1 layers, its teacher 3"):
        Objective(student, LossConfig(distill=[DistillTerm(name="encoder_mse", layers=[[2, 3]])]), teacher)


def test_schedules_follow_the_updates():
    term = DistillTerm(name="pruned_lattice_kl", weight=4.0, schedule="decay", schedule_updates=100)
    objective, batch = make(distill=[term]), make_batch()
    early, late = (results(objective, batch, update) for update in (50, 100))
    value = early[1]["pruned_lattice_kl"]
    torch.testing.assert_close(early[0] - late[0], 2.0 * value * 3 / 6)


def test_the_total_is_the_weighted_sum_of_its_parts():
    objective, batch = make(distill=TERMS), make_batch()
    frames = int(objective.student.encoder(batch.features, batch.feature_lengths)[1].sum())
    batch = dataclasses.replace(batch, total_frames=frames, total_utterances=3)
    total, parts, _ = results(objective, batch, 10)
    want = (0.5 * parts["simple"] + parts["pruned"] + 0.3 * parts["ctc"] + 2.0 * parts["pruned_lattice_kl"]
            + 0.5 * parts["collapsed_kl"] + 0.1 * parts["encoder_mse"])
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(parts["total"], want)


def test_a_layer_that_does_nothing_is_not_missed():
    torch.manual_seed(0)
    model = Transducer(ModelConfig(**{**SIZES, "num_layers": 3}), 13).eval()
    with torch.no_grad():
        layer = model.encoder.layers[1]  # the identity, up to its norm: what comes out of a layer is normalised already
        for block in (layer.feed_forward1.down, layer.feed_forward2.down, layer.attention.out, layer.convolution.out):
            block.weight.zero_()
            block.bias.zero_()
    config = LossConfig(rnnt_backend="native", prune_range=3)
    losses = {kept: loss_with_layers(model, list(kept), config, [make_batch()])
              for kept in ((0, 1, 2), (0, 2), (1, 2), (0, 1))}
    assert losses[0, 2] == pytest.approx(losses[0, 1, 2], rel=1e-4)
    assert abs(losses[1, 2] - losses[0, 1, 2]) > 10 * abs(losses[0, 2] - losses[0, 1, 2])
    assert len(model.encoder.layers) == 3
