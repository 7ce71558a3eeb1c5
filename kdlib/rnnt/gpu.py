"""The kernels on a CUDA GPU, in Triton; imported by ``kdlib.rnnt.native`` with the first CUDA tensor.

``log_softmax_at`` reads a logit once, ``logit_gradient`` reads and writes once: memory is what bounds them. The lattice's
kernels are in ``gpu_lattice``, that of the argument checks in ``gpu_checks``.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from typing import Tuple

import torch
from torch import Tensor

from kdlib.rnnt.gpu_lattice import score_lattice  # noqa: F401  # one of the kernels that native takes from here
from kdlib.rnnt.gpu_launch import jit, launching_on, tl, triton

# Elements that a program takes at once: so many of one row, or several rows where V is small.
TILE = 1024
WARPS = 4


@lru_cache(maxsize=None)
def available() -> bool:
    """Whether Triton can be imported and is new enough."""
    return triton is not None


@lru_cache(maxsize=None)
def _launches(device: torch.device) -> bool:
    """Whether kernels can be launched on the device: that needs a C compiler, too, and a GPU that Triton knows."""
    try:
        one = torch.ones(1, dtype=torch.int64, device=device)
        log_softmax_at(torch.zeros(1, 2, device=device), one, 0, one.bool())
    except torch.cuda.OutOfMemoryError:  # says nothing of Triton, so it is raised, which keeps no answer
        raise
    except Exception as error:  # whatever Triton, the compiler or the driver meets first
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"Triton cannot launch a kernel on {device} ({reason}): slower kernels compute the transducer's loss"
        )
        return False
    return True


def runs_on(device: torch.device) -> bool:
    """Whether Triton's kernels run there."""
    if not available():
        return False
    if device.type == "cuda":
        return torch.version.hip is None and _launches(device)
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def takes(tensor: Tensor) -> bool:
    """Whether the kernels compute with such a tensor."""
    return tensor.dtype in (torch.float32, torch.float64) and runs_on(tensor.device)


@jit
def _log_softmax_at(
    logits, labels, wanted, normaliser, label_logp, blank_logp, rows, units, blank,
    VECTOR: tl.constexpr, LOWEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):
    """A program: ROWS rows, BLOCK columns at a time. Each column of the block has a maximum and a sum of its own."""
    tokens = units * VECTOR
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    read = (row < rows) & (tl.load(wanted + row, mask=row < rows, other=0) != 0)
    label = tl.load(labels + row, mask=read, other=0)
    start = logits + row * tokens
    x = tl.load(
        start[:, None] + column[None, :], mask=read[:, None] & (column < tokens)[None, :], other=float("-inf")
    )
    label_logit = tl.load(start + label, mask=read, other=0.0)
    blank_logit = tl.load(start + blank, mask=read, other=0.0)
    # The maxima start at the lowest number rather than -inf, and do not take a nan: their differences are no nan.
    top = tl.where(x > LOWEST, x, LOWEST)
    total = tl.where(x == x, tl.where(x > float("-inf"), 1.0, 0.0), x)
    for i in range(1, BLOCKS):
        x = tl.load(
            start[:, None] + (i * BLOCK + column)[None, :],
            mask=read[:, None] & (i * BLOCK + column < tokens)[None, :],
            other=float("-inf"),
        )
        # One of exp(x - new) and exp(top - new) is 1. Equal infinities have difference 0.
        small = tl.exp(tl.where(x == top, 0.0, -tl.abs(x - top)))
        total = tl.where(x > top, total * small + 1.0, total + small)
        top = tl.where(x > top, x, top)
    highest = tl.max(top, axis=1)
    total *= tl.exp(tl.where(top == highest[:, None], 0.0, top - highest[:, None]))
    total = tl.sum(total, axis=1)
    # A row of nothing but -inf: its log-probabilities are to be -inf, not -inf - -inf.
    result = tl.where(total == 0, 0.0, highest + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(normaliser + row, tl.where(read, result, 0.0), mask=row < rows)
    tl.store(label_logp + row, tl.where(read, label_logit - result, 0.0), mask=row < rows)
    tl.store(blank_logp + row, tl.where(read, blank_logit - result, 0.0), mask=row < rows)


@jit
def _logit_gradient(
    logits, labels, normaliser, label_weight, blank_weight, out, rows, units, blank, blocks,
    VECTOR: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program: one tile of ROWS by BLOCK; ``blocks`` of them side by side."""
    tokens = units * VECTOR
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    exists = row < rows
    by_label = tl.load(label_weight + row, mask=exists, other=0.0)
    by_blank = tl.load(blank_weight + row, mask=exists, other=0.0)
    both = by_label + by_blank
    shift = tl.load(normaliser + row, mask=exists, other=0.0)
    label = tl.load(labels + row, mask=exists, other=0)
    place = row[:, None] * tokens + column[None, :]
    inside = exists[:, None] & (column < tokens)[None, :]
    read = inside & (both != 0)[:, None]
    x = tl.load(logits + place, mask=read, other=float("-inf"))
    slope = tl.where(read, -both[:, None] * tl.exp(x - shift[:, None]), 0.0)
    slope += tl.where(column[None, :] == label[:, None], by_label[:, None], 0.0)
    slope += tl.where((column == blank)[None, :], by_blank[:, None], 0.0)
    if ADD:
        weighs = inside & ((by_label != 0) | (by_blank != 0))[:, None]
        slope += tl.load(out + place, mask=weighs, other=0.0)
        tl.store(out + place, slope, mask=weighs)
    else:
        tl.store(out + place, slope, mask=inside)


def _tile(tokens: int) -> Tuple[int, int]:
    """Rows and columns of a tile."""
    block = min(triton.next_power_of_2(tokens), TILE)
    return TILE // block, block


def _vector(tokens: int) -> int:
    """How many logits are read and written at once: by itself Triton knows no more of a number than that it is divisible by
    16, as a vocabulary of 500 is not, and would take one at a time."""
    return 4 if tokens % 4 == 0 else 1


def log_softmax_at(logits: Tensor, labels: Tensor, blank: int, wanted: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """See ``kdlib.rnnt.plain.log_softmax_at``."""
    logits = logits.detach().contiguous()
    rows, tokens = logits.shape
    results = tuple(logits.new_empty(rows) for _ in range(3))
    tile_rows, block = _tile(tokens)
    vector = _vector(tokens)
    with launching_on(logits):
        _log_softmax_at[(triton.cdiv(rows, tile_rows),)](
            logits, labels.contiguous(), wanted.contiguous().view(torch.uint8), *results, rows, tokens // vector, blank,
            VECTOR=vector, LOWEST=torch.finfo(logits.dtype).min, ROWS=tile_rows, BLOCK=block, BLOCKS=triton.cdiv(tokens, block),
            num_warps=WARPS,
        )
    return results


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
    rows, tokens = logits.shape
    tile_rows, block = _tile(tokens)
    vector = _vector(tokens)
    blocks = triton.cdiv(tokens, block)
    columns = (labels, normaliser, label_weight, blank_weight)
    target = out.detach().contiguous()
    with launching_on(logits):
        _logit_gradient[(triton.cdiv(rows, tile_rows) * blocks,)](
            logits.detach().contiguous(), *(column.detach().contiguous() for column in columns), target,
            rows, tokens // vector, blank, blocks, VECTOR=vector, ADD=add, ROWS=tile_rows, BLOCK=block, num_warps=WARPS,
        )
    if not out.is_contiguous():
        out.copy_(target)
