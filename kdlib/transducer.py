"""The whole model: encoder, predictor, joiner, and the heads that only training uses."""

import math
from typing import Dict

from torch import Tensor, nn

from kdlib import rnnt
from kdlib.config import ModelConfig
from kdlib.conformer import Conformer
from kdlib.joiner import Joiner
from kdlib.predictor import Predictor

BLANK_PRIOR = 0.9
DEPLOYED = ("encoder", "predictor", "joiner")


class Transducer(nn.Module):
    """A streaming Conformer transducer (Graves 2012, arXiv 1211.3711).

    Only ``encoder``, ``predictor`` and ``joiner`` are deployed. ``simple_am`` and ``simple_lm`` are the simple joiner
    of the pruned RNN-T (Kuang et al. 2022, arXiv 2206.13236), ``ctc`` is an auxiliary head; training drops them.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, blank_id: int = 0):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.blank_id = blank_id
        self.encoder = Conformer(config)
        self.predictor = Predictor(config, vocab_size, blank_id)
        self.joiner = Joiner(config, vocab_size)
        self.simple_am = nn.Linear(config.encoder_dim, vocab_size)
        self.simple_lm = nn.Linear(config.predictor_dim, vocab_size)
        self.ctc = nn.Linear(config.encoder_dim, vocab_size) if config.ctc_head else None
        self._start_at_the_prior()

    def _start_at_the_prior(self) -> None:
        """Let every output layer begin by saying 'blank' nine times in ten.

        It is what training learns first in any case; learnt from scratch, it bends the whole encoder towards a constant
        output, out of which it then takes hundreds of updates to come.
        """
        # Of the simple joiner, whose logits are a sum, the predictor's side: it is also smoothed in alone.
        for layer in (self.joiner.out, self.simple_lm, self.ctc):
            if layer is not None:
                nn.init.zeros_(layer.bias)
                odds = BLANK_PRIOR / (1 - BLANK_PRIOR) * self.vocab_size
                nn.init.constant_(layer.bias[self.blank_id], math.log(odds))
        nn.init.zeros_(self.simple_am.bias)

    def lattice_side(self, encoder_out: Tensor, predictor_out: Tensor) -> rnnt.Side:
        """The joiner and its two projected inputs, (N, T, C) and (N, U+1, C), as :mod:`kdlib.rnnt` wants them."""
        return rnnt.Side(self.joiner, self.joiner.encoder_proj(encoder_out), self.joiner.predictor_proj(predictor_out))

    def parameter_counts(self) -> Dict[str, int]:
        """Parameters of each deployed part and, under ``total``, of all three."""
        counts = {name: sum(p.numel() for p in getattr(self, name).parameters()) for name in DEPLOYED}
        counts["total"] = sum(counts.values())
        return counts
