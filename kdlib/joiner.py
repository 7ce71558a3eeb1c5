"""The joiner: projections of both sides, their sum through tanh, and the output layer."""

import torch
from torch import Tensor, nn

from kdlib.config import ModelConfig


class Joiner(nn.Module):
    """Encoder and predictor outputs, projected, to logits over V tokens."""

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.encoder_proj = nn.Linear(config.encoder_dim, config.joiner_dim)
        self.predictor_proj = nn.Linear(config.predictor_dim, config.joiner_dim)
        self.out = nn.Linear(config.joiner_dim, vocab_size)

    def hidden(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Two projected (..., joiner_dim) that broadcast together to what the output layer takes, (..., joiner_dim)."""
        return torch.tanh(encoder + predictor)

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """The same to logits (..., V)."""
        return self.out(self.hidden(encoder, predictor))
