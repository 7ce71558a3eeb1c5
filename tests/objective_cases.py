"""A small student, its teacher and a batch for the tests of the training objective."""

import dataclasses

import torch

from kdlib.config import LossConfig, ModelConfig
from kdlib.data import Batch, NBest
from kdlib.training.objective import Objective
from kdlib.transducer import Transducer

SIZES = dict(num_features=16, subsampling_channels=4, encoder_dim=16, num_layers=1, num_heads=2, feedforward_dim=24,
             kernel_size=3, head_dim=8, predictor_dim=12, joiner_dim=10, dropout=0.0, chunk_size=4, left_context=8)


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


def results(objective, batch, update, autocast=False):
    objective.zero_grad(set_to_none=True)  # as older torch does not by itself
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total, parts = objective(batch, update)
    total.backward()
    return total.detach(), parts, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


def outputs(model, batch, layers=()):
    """The encoder's output, its lengths and those of these layers."""
    with torch.no_grad():
        return model.encoder(batch.features, batch.feature_lengths, layers=list(layers))


def with_nbest(batch, labels, rows, log_probs):
    symbols = torch.zeros(len(labels), max(map(len, labels)), dtype=torch.int64)
    for row, label in zip(symbols, labels):
        row[:len(label)] = torch.tensor(label)
    lengths = torch.tensor([len(label) for label in labels])
    return dataclasses.replace(batch, nbest=NBest(symbols, lengths, torch.tensor(rows), torch.tensor(log_probs)))
