"""The stateless predictor (Ghodsi et al. 2020): the last few labels, embedded and mixed by a short convolution."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib.config import ModelConfig


class Predictor(nn.Module):
    """Labels to (N, U, predictor_dim). A label of -1 means 'no symbol' and reads as a zero vector."""

    def __init__(self, config: ModelConfig, vocab_size: int, blank_id: int = 0):
        super().__init__()
        self.blank_id = blank_id
        self.context_size = config.context_size
        self.embedding = nn.Embedding(vocab_size, config.predictor_dim)
        self.conv = nn.Conv1d(config.predictor_dim, config.predictor_dim, config.context_size,
                              groups=config.predictor_dim)

    def embed(self, y: Tensor) -> Tensor:
        """(N, U) int64 labels to (N, U, predictor_dim); zeros for -1."""
        return self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)

    def forward(self, y: Tensor) -> Tensor:
        """(N, context_size + U - 1) int64 labels to (N, U, predictor_dim): output u reads context_size labels."""
        x = self.embed(y).transpose(1, 2)
        return F.relu(self.conv(x)).transpose(1, 2)

    def initial_context(self, num_utterances: int, device=None) -> Tensor:
        """(N, context_size) int64: no symbols, then one blank, as decoders begin."""
        context = torch.full((num_utterances, self.context_size), -1, dtype=torch.int64, device=device)
        context[:, -1] = self.blank_id
        return context

    def context_after(self, symbols: Tensor, lengths: Tensor) -> Tensor:
        """(N, context_size) int64: what is read after the first ``lengths`` (N,) int64 of the symbols (N, U) int64."""
        read = torch.cat([self.initial_context(symbols.size(0), symbols.device), symbols], dim=1)
        return read.gather(1, lengths[:, None] + torch.arange(self.context_size, device=symbols.device))

    def prefix(self, symbols: Tensor, context: Optional[Tensor] = None) -> Tensor:
        """(N, U) int64 symbols to (N, U + 1, predictor_dim): the state before each label and after the last; ``context``
        (N, context_size) int64: what was read before, where that is not the beginning."""
        if context is None:
            context = self.initial_context(symbols.size(0), symbols.device)
        return self(torch.cat([context, symbols], dim=1))
