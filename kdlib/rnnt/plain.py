"""The kernels in plain torch: any device, float32 and float64. ``cpu`` and ``gpu`` hold faster ones of the same names.

M rows (lattice nodes), V tokens.
"""

from typing import Tuple

import torch
from torch import Tensor

from kdlib.rnnt.lattice import score_lattice

__all__ = ["log_softmax_at", "logit_gradient", "score_lattice"]


def log_softmax_at(logits: Tensor, labels: Tensor, blank: int, wanted: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Each row's log-sum-exp, and the log-probabilities of its label and of the blank. No autograd.

    Args:
      logits: (M, V) float, contiguous.
      labels: (M,) int64, contiguous.
      blank: the blank.
      wanted: (M,) bool, contiguous; the results of other rows are 0, whatever they hold.

    Returns:
      Three (M,) of the dtype of logits. A nan in a row gives nan, +inf a normaliser of +inf; a row of nothing but -inf
      gives log-probabilities of -inf.
    """
    logits = logits.detach()
    # A row of nothing but -inf has arcs of -inf, not of -inf - -inf.
    normaliser = logits.logsumexp(dim=1)
    normaliser = normaliser.masked_fill(torch.isneginf(normaliser), 0.0)
    label_logp = logits.gather(1, labels.unsqueeze(1)).squeeze(1) - normaliser
    blank_logp = logits[:, blank] - normaliser
    return tuple(result.masked_fill(~wanted, 0.0) for result in (normaliser, label_logp, blank_logp))


def logit_gradient(
    logits: Tensor,
    labels: Tensor,
    blank: int,
    normaliser: Tensor,
    label_weight: Tensor,
    blank_weight: Tensor,
    out: Tensor,
    add: bool = False,
) -> None:
    """out (+)= the gradient of label_weight * log p(label) + blank_weight * log p(blank), row by row.

    Args:
      logits: (M, V); labels, normaliser: as given to and by ``log_softmax_at``.
      label_weight, blank_weight: (M,), dtype of logits. A row without weight gets zero, whatever it holds.
      out: (M, V), written (or, with ``add``, added to); it may be ``logits`` itself.
    """
    both = label_weight + blank_weight
    normaliser = normaliser.masked_fill(both == 0, float("inf"))
    if add:
        out -= (logits - normaliser.unsqueeze(1)).exp_().mul_(both.unsqueeze(1)).masked_fill_(
            (both == 0).unsqueeze(1), 0.0)
    else:
        torch.sub(logits, normaliser.unsqueeze(1), out=out).exp_().mul_(-both.unsqueeze(1))
        out.masked_fill_((both == 0).unsqueeze(1), 0.0)
    out.scatter_add_(1, labels.unsqueeze(1), label_weight.unsqueeze(1))
    out[:, blank] += blank_weight
