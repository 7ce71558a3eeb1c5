"""The objective of one batch: the same by all logits and by the fused losses, alone and dealt out to processes."""

import dataclasses

import pytest
import torch

from kdlib.config import DistillTerm, LossConfig, ModelConfig
from kdlib.data import Batch
from kdlib.training.objective import Objective
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


def test_the_total_is_the_weighted_sum_of_its_parts():
    objective, batch = make(distill=TERMS), make_batch()
    frames = int(objective.student.encoder(batch.features, batch.feature_lengths)[1].sum())
    batch = dataclasses.replace(batch, total_frames=frames, total_utterances=3)
    total, parts, _ = results(objective, batch, 10)
    want = (0.5 * parts["simple"] + parts["pruned"] + 0.3 * parts["ctc"] + 2.0 * parts["pruned_lattice_kl"]
            + 0.5 * parts["collapsed_kl"] + 0.1 * parts["encoder_mse"])
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(parts["total"], want)
