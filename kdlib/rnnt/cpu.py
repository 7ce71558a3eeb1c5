"""The kernels on the CPU: compiled loops over torch's own memory, on as many threads as torch uses.

Numba compiles them on first use, which takes some seconds, and keeps the result beside the source (or in
NUMBA_CACHE_DIR). Without Numba ``kdlib.rnnt.plain`` does the same work.
"""

import importlib.util
from functools import lru_cache
from typing import Tuple

import torch
from torch import Tensor

from kdlib.rnnt.lattice import LatticeResult


@lru_cache(maxsize=None)
def available() -> bool:
    """Whether Numba is installed."""
    return importlib.util.find_spec("numba") is not None


def takes(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) and available()


def _loops():
    import numba

    from kdlib.rnnt import compiled

    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    return compiled


def log_softmax_at(logits: Tensor, labels: Tensor, blank: int, wanted: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """See ``kdlib.rnnt.plain.log_softmax_at``."""
    results = [logits.new_empty(logits.shape[0]) for _ in range(3)]
    _loops().log_softmax_at(
        logits.detach().numpy(), labels.numpy(), blank, wanted.numpy(), *(result.numpy() for result in results)
    )
    return tuple(results)


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
    """See ``kdlib.rnnt.plain.logit_gradient``."""
    tensors = (normaliser, label_weight, blank_weight, out)
    _loops().logit_gradient(
        logits.detach().numpy(), labels.numpy(), blank, *(tensor.detach().numpy() for tensor in tensors), add
    )


def score_lattice(
    label_arcs: Tensor, blank_arcs: Tensor, starts: Tensor, boundary: Tensor, modified: bool, occupancies: bool
) -> LatticeResult:
    """See ``kdlib.rnnt.lattice.score_lattice``; the posteriors are of the arcs' dtype."""
    label_arcs, blank_arcs = label_arcs.detach().contiguous(), blank_arcs.detach().contiguous()
    score = label_arcs.new_empty(label_arcs.shape[0], dtype=torch.float64)
    alpha = torch.empty_like(label_arcs, dtype=torch.float64)
    shape = label_arcs.shape if occupancies else (0, 0, 0)
    label_occupancy, blank_occupancy = label_arcs.new_empty(shape), label_arcs.new_empty(shape)
    tensors = (label_arcs, blank_arcs, starts.contiguous(), boundary.contiguous())
    results = (alpha, score, label_occupancy, blank_occupancy)
    _loops().lattice(*(x.numpy() for x in tensors), modified, *(x.numpy() for x in results))
    return LatticeResult(score, label_occupancy, blank_occupancy) if occupancies else LatticeResult(score, None, None)
