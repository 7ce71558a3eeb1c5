"""The pruned RNN-T functions wherever torch runs: any device, float32 and float64.

Dimensions: N utterances, T frames, U labels (the longest), R nodes kept a frame, V tokens.
The argument checks are the package's (``kdlib.rnnt``); the functions here trust their arguments.
"""

from types import ModuleType
from typing import Optional, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib.rnnt import cpu, plain
from kdlib.rnnt.lattice import as_ranges, delay_offsets, full_boundary, lattice_nodes

BEST_PATH = 1e4  # a path worse by a thousandth of a nat keeps less than e^-10 beside the best


def kernels_for(tensor: Tensor) -> ModuleType:
    """The fastest kernels that take the tensor."""
    if tensor.is_cuda:
        from kdlib.rnnt import gpu  # which imports Triton

        return gpu if gpu.takes(tensor) else plain
    return cpu if cpu.takes(tensor) else plain


class _WithOccupancies(torch.autograd.Function):
    """The score, with the arc posteriors as its gradient with respect to the arcs."""

    @staticmethod
    def forward(ctx, label_arcs, blank_arcs, score, label_occupancy, blank_occupancy):
        ctx.save_for_backward(label_occupancy, blank_occupancy)
        return score.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        label_occupancy, blank_occupancy = ctx.saved_tensors
        grad = grad.reshape(-1, 1, 1)
        return grad * label_occupancy, grad * blank_occupancy, None, None, None


class _PrunedScore(torch.autograd.Function):
    """From logits (N, T, R, V) to scores (N,): softmax, lattice and their gradient together.

    The one tensor of the logits' size that is made is their gradient, in the backward pass.
    """

    @staticmethod
    def forward(ctx, logits, labels, blank, wanted, starts, boundary, modified, penalty, occupancies):
        logits = logits.contiguous()
        kernels = kernels_for(logits)
        flat = logits.view(-1, logits.shape[3])
        normaliser, *arcs = kernels.log_softmax_at(flat, labels.reshape(-1), blank, wanted.reshape(-1))
        label_arcs, blank_arcs = (arc.view(labels.shape) for arc in arcs)
        if penalty is not None:
            label_arcs = label_arcs + penalty
        result = kernels.score_lattice(label_arcs, blank_arcs, starts, boundary, modified, occupancies)
        score = result.score.to(logits.dtype)
        if not occupancies:
            return score, None, None
        label_occupancy, blank_occupancy = result[1:]
        ctx.blank = blank
        ctx.save_for_backward(logits, labels, normaliser, label_occupancy, blank_occupancy)
        ctx.mark_non_differentiable(label_occupancy, blank_occupancy)
        return score, label_occupancy, blank_occupancy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *_):
        logits, labels, normaliser, label_occupancy, blank_occupancy = ctx.saved_tensors
        grad = grad.reshape(-1, 1, 1)
        out = torch.empty_like(logits)
        kernels_for(logits).logit_gradient(
            logits.view(-1, logits.shape[3]),
            labels.reshape(-1),
            ctx.blank,
            normaliser,
            (label_occupancy * grad).view(-1),
            (blank_occupancy * grad).view(-1),
            out=out.view(-1, logits.shape[3]),
        )
        return (out,) + (None,) * 8


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """(N,) losses to what ``reduction`` (none, mean, sum) names."""
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def smoothed_arcs(
    lm: Tensor, am: Tensor, symbols: Tensor, blank: int, lm_scale: float, am_scale: float
) -> Tuple[Tensor, Tensor]:
    """Log-probabilities (N, T, U+1) of the label and the blank at every node, differentiable.

    Each is (1 - lm_scale - am_scale) * joint + lm_scale * lm-only + am_scale * am-only, arc by arc, the joint
    normalised by log(exp(am) . exp(lm)^T) and the am-only part against the mean over all histories of the batch of
    softmax(lm) (Kuang et al. 2022, sections 3.1 and 4). At u = U the label arc is not meaningful.
    """
    joint_scale = 1.0 - lm_scale - am_scale
    tiny, lowest = torch.finfo(am.dtype).tiny, torch.finfo(am.dtype).min
    am_max = am.detach().amax(dim=2, keepdim=True).clamp_(min=lowest)  # (N, T, 1)
    lm_max = lm.detach().amax(dim=2, keepdim=True).clamp_(min=lowest)  # (N, U+1, 1)
    am_exp, lm_exp = (am - am_max).exp(), (lm - lm_max).exp()

    next_symbols = F.pad(symbols, (0, 1), value=blank)  # (N, U+1)
    index = next_symbols.unsqueeze(1).expand(-1, am.shape[1], -1)
    label_am = am.gather(2, index)  # (N, T, U+1)
    label_lm = lm.gather(2, next_symbols.unsqueeze(2)).transpose(1, 2)  # (N, 1, U+1)
    blank_am = am[:, :, blank].unsqueeze(2)  # (N, T, 1)
    blank_lm = lm[:, :, blank].unsqueeze(1)  # (N, 1, U+1)

    # A term whose scale is zero is left out rather than multiplied: its -inf times zero would be nan.
    label_arcs, blank_arcs = [], []
    if joint_scale != 0.0:
        normaliser = (am_exp @ lm_exp.transpose(1, 2) + tiny).log() + am_max + lm_max.transpose(1, 2)
        label_arcs.append((label_am + label_lm - normaliser) * joint_scale)
        blank_arcs.append((blank_am + blank_lm - normaliser) * joint_scale)
    if lm_scale != 0.0 or am_scale != 0.0:
        lm_sum = lm_exp.sum(dim=2, keepdim=True).clamp(min=tiny)  # (N, U+1, 1)
    if lm_scale != 0.0:
        lm_normaliser = (lm_sum.log() + lm_max).transpose(1, 2)  # (N, 1, U+1)
        label_arcs.append((label_lm - lm_normaliser) * lm_scale)
        blank_arcs.append((blank_lm - lm_normaliser) * lm_scale)
    if am_scale != 0.0:
        unigram = (lm_exp / lm_sum).mean(dim=(0, 1)) + tiny  # (V,)
        am_normaliser = (am_exp @ unigram).clamp(min=tiny).log().unsqueeze(2) + am_max  # (N, T, 1)
        log_unigram = unigram.log()
        label_arcs.append((label_am + log_unigram[next_symbols].unsqueeze(1) - am_normaliser) * am_scale)
        blank_arcs.append((blank_am + log_unigram[blank] - am_normaliser) * am_scale)
    shape = label_am.shape
    return sum(label_arcs).expand(shape), sum(blank_arcs).expand(shape)


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float,
    am_only_scale: float,
    boundary: Optional[Tensor],
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    return_grad: bool,
):
    """See ``kdlib.rnnt.rnnt_loss_smoothed``."""
    count, frames, _ = am.shape
    modified = rnnt_type == "modified"
    label_arcs, blank_arcs = smoothed_arcs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
    if delay_penalty > 0.0:
        penalty = delay_offsets(boundary, frames, am) * delay_penalty
        label_arcs = label_arcs + penalty.unsqueeze(2).to(am.dtype)

    bounds = full_boundary(count, symbols.shape[1], frames, am.device) if boundary is None else boundary
    starts = torch.zeros((count, frames), dtype=torch.int64, device=am.device)
    with_grad = torch.is_grad_enabled() and label_arcs.requires_grad
    with torch.no_grad():
        score, label_occupancy, blank_occupancy = kernels_for(am).score_lattice(
            label_arcs, blank_arcs, starts, bounds, modified, occupancies=with_grad or return_grad
        )
        score = score.to(am.dtype)
    if with_grad:
        score = _WithOccupancies.apply(label_arcs, blank_arcs, score, label_occupancy, blank_occupancy)
    loss = reduce_loss(-score, reduction)
    if not return_grad:
        return loss
    px_grad = label_occupancy[:, :, :-1].transpose(1, 2)  # (N, U, T)
    if not modified:
        px_grad = F.pad(px_grad, (0, 1))  # the column after the last frame, where no label can be emitted
    return loss, (px_grad.contiguous(), blank_occupancy.transpose(1, 2).contiguous())


def _lower_monotone(values: Tensor) -> Tensor:
    """The largest non-decreasing sequence along the last dimension that nowhere exceeds ``values``."""
    return values.flip(-1).cummin(dim=-1).values.flip(-1)


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """See ``kdlib.rnnt.get_rnnt_prune_ranges``; here 1 <= s_range <= U + 1."""
    modified = px_grad.shape[2] == py_grad.shape[2]
    frames = py_grad.shape[2]
    # Occupation kept by a window that starts at u: the blanks inside, less the label arc that enters at u, whose
    # source it would cut off.
    kept = py_grad.unfold(1, s_range, 1).transpose(2, 3).sum(dim=2)  # (N, U+2-R, T)
    entering = F.pad(px_grad, (0, 0, 1, 0))[:, : kept.shape[1], :frames]
    starts = (kept - entering).argmax(dim=1)  # (N, T)

    # The last frame, and the padding after it, must hold the last label.
    t = torch.arange(frames, device=starts.device)
    last_start = (boundary[:, 2:3] - s_range + 1).clamp(min=0)
    starts = torch.where(t < boundary[:, 3:4] - 1, starts, last_start)

    # Monotone; then no step longer than a path can take inside the band, beginning at zero. The second is the first
    # on the distance to the steepest line.
    starts = _lower_monotone(starts)
    steepest = t * (1 if modified else s_range - 1)
    starts = steepest - _lower_monotone(steepest - starts).clamp(min=0)
    return as_ranges(starts, s_range)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> Tuple[Tensor, Tensor]:
    """See ``kdlib.rnnt.do_rnnt_pruning``."""
    count, frames, kept = ranges.shape
    histories = lm.shape[1]
    offsets = torch.arange(count, device=ranges.device).reshape(count, 1, 1) * histories
    # An embedding look-up: its gradient is (N, U+1, C), where that of a gather over the frames is (N, T, U+1, C).
    lm_pruned = F.embedding(ranges + offsets, lm.reshape(count * histories, -1))
    return am.unsqueeze(2).expand(-1, -1, kept, -1), lm_pruned


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor],
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    return_occupancies: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """See ``kdlib.rnnt.rnnt_loss_pruned``."""
    count, frames, _, _ = logits.shape
    bounds = full_boundary(count, symbols.shape[1], frames, logits.device) if boundary is None else boundary
    labels, mask = lattice_nodes(symbols, ranges, bounds, termination_symbol)
    penalty = None
    if delay_penalty > 0.0:
        penalty = (delay_offsets(boundary, frames, logits) * delay_penalty).unsqueeze(2).to(logits.dtype)
    occupancies = return_occupancies or (torch.is_grad_enabled() and logits.requires_grad)
    score, label_occupancy, blank_occupancy = _PrunedScore.apply(
        logits, labels, termination_symbol, mask, ranges[:, :, 0], bounds, rnnt_type == "modified", penalty, occupancies
    )
    loss = reduce_loss(-score, reduction)
    return (loss, (label_occupancy, blank_occupancy)) if return_occupancies else loss


@torch.no_grad()
def node_posteriors(
    label_arcs: Tensor,
    blank_arcs: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    rnnt_type: str = "regular",
    sharpness: float = 1.0,
) -> Tensor:
    """How often a path visits each kept node.

    Args:
      label_arcs, blank_arcs: (N, T, R) float, log-probabilities, from ``arc_log_probs``.
      ranges, boundary, rnnt_type: as in ``rnnt_loss_pruned``.
      sharpness: what the log-probabilities are multiplied by first. With a large one, such as ``BEST_PATH``, all but
        the best path vanish: the posteriors are then 1 on its nodes and 0 elsewhere (equally good paths share).

    Returns:
      (N, T, R), dtype of the arcs; 0 for an utterance without a path.
    """
    arcs = (label_arcs.double() * sharpness, blank_arcs.double() * sharpness)
    result = kernels_for(arcs[0]).score_lattice(*arcs, ranges[:, :, 0], boundary, rnnt_type == "modified", True)
    return (result.label_occupancy + result.blank_occupancy).to(label_arcs.dtype)
