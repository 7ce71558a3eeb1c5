"""The pruned RNN-T functions wherever torch runs, in float32 and float64: on any device that has float64, in which the
lattice is summed (Apple's MPS has not).

Dimensions: N utterances, T frames, U labels (the longest), R nodes kept a frame, V tokens.
The argument checks are the package's (``kdlib.rnnt``); the functions here trust their arguments.
"""

import functools
import math
from types import ModuleType
from typing import Callable, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib.rnnt import cpu, plain
from kdlib.rnnt.lattice import (LatticeResult, as_ranges, delay_offsets, inside_boundary, lattice_nodes, reduce_loss,
                                summable)

BEST_PATH = 1e4  # a path worse by a thousandth of a nat keeps less than e^-10 beside the best
# Where am and lm are sure of different tokens, float32 has no digits left of the product of their probabilities; nor has it of
# the mean probability of a token that lm excludes in all histories, and the gradient of that one's logarithm overflows.
DROWNED = 1e-20


def kernels_for(tensor: Tensor) -> ModuleType:
    """The fastest kernels that take the tensor."""
    if tensor.is_cuda:
        from kdlib.rnnt import gpu  # which imports Triton

        return gpu if gpu.takes(tensor) else plain
    return cpu if cpu.takes(tensor) else plain


def first_derivative_only(backward: Callable) -> Callable:
    """Decorates the backward of an autograd.Function that computes its gradient by hand.

    torch's once_differentiable lets a gradient that was asked for with create_graph pass where the incoming one needs
    no gradient, as that of a scalar loss: what the function was given then counts as constant, and second derivatives
    are wrong without a word.
    """

    @functools.wraps(backward)
    def checked(ctx, *grads):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the transducer's losses have first derivatives only: their gradient cannot be taken with "
                "create_graph=True"
            )
        return backward(ctx, *grads)

    return checked


def broken_utterances(normaliser: Tensor, count: int) -> Tensor:
    """(N,) bool: whether a normaliser (N * T * R,) of the utterance is nan or +inf, so one of its logits is."""
    return ~(normaliser < float("inf")).view(count, -1).all(1)


def sharp_score(
    label_arcs: Tensor, blank_arcs: Tensor, lattice: tuple, occupancies: bool, sharpness: float
) -> LatticeResult:
    """The lattice (starts, boundary, modified, labels) of paths' probabilities to the power of ``sharpness``, and the score
    to that of its inverse, so that the occupancies are the score's gradient."""
    if sharpness != 1.0:
        label_arcs, blank_arcs = label_arcs * sharpness, blank_arcs * sharpness
    *places, labels = lattice
    result = kernels_for(label_arcs).score_lattice(label_arcs, blank_arcs, *places, occupancies, labels)
    return result if sharpness == 1.0 else result._replace(score=result.score / sharpness)


def without_broken(result: LatticeResult, broken: Tensor) -> LatticeResult:
    """The result with score nan and posteriors 0 for the utterances that are ``broken`` (N,) bool.

    What a lattice makes of a nan depends on whether a path meets it, and of +inf may be a number.
    """
    score = result.score.masked_fill_(broken, float("nan"))
    if result.label_occupancy is None:
        return LatticeResult(score, None, None)
    rows = broken.view(-1, 1, 1)
    return LatticeResult(score, *(occupancy.masked_fill_(rows, 0.0) for occupancy in result[1:]))


class _WithOccupancies(torch.autograd.Function):
    """The score, with the arc posteriors as its gradient with respect to the arcs."""

    @staticmethod
    def forward(ctx, label_arcs, blank_arcs, score, label_occupancy, blank_occupancy):
        ctx.save_for_backward(label_occupancy, blank_occupancy)
        return score.clone()

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        label_occupancy, blank_occupancy = ctx.saved_tensors
        grad = grad.reshape(-1, 1, 1)
        return grad * label_occupancy, grad * blank_occupancy, None, None, None


class _PrunedScore(torch.autograd.Function):
    """From logits (N, T, R, V) to scores (N,): softmax, lattice and their gradient together.

    The one tensor of the logits' size that is made is their gradient, in the backward pass. Logits of half precision come
    here as a copy in float32, and their gradient is converted back.
    """

    @staticmethod
    def forward(ctx, logits, labels, blank, wanted, lattice, penalty, occupancies, sharpness):
        logits = logits.contiguous()
        kernels = kernels_for(logits)
        flat = logits.view(-1, logits.shape[3])
        normaliser, *arcs = kernels.log_softmax_at(flat, labels.reshape(-1), blank, wanted.reshape(-1))
        label_arcs, blank_arcs = (arc.view(labels.shape) for arc in arcs)
        if penalty is not None:
            label_arcs = label_arcs + penalty
        result = sharp_score(label_arcs, blank_arcs, lattice, occupancies, sharpness)
        result = without_broken(result, broken_utterances(normaliser, len(labels)))
        score = result.score.to(logits.dtype)
        if not occupancies:
            return score, None, None
        label_occupancy, blank_occupancy = result[1:]
        ctx.blank = blank
        ctx.save_for_backward(logits, labels, normaliser, label_occupancy, blank_occupancy)
        ctx.mark_non_differentiable(label_occupancy, blank_occupancy)
        return score, label_occupancy, blank_occupancy

    @staticmethod
    @first_derivative_only
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
        return (out,) + (None,) * 7


def _finite_vectors(lm: Tensor, am: Tensor, boundary: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Optional[Tensor]]:
    """The inputs with zeros in place of each vector that holds nan or +inf; the gradient of these is 0.

    They would make the gradient of all that they are multiplied with nan, though no path passes them.

    Returns:
      lm (N, U+1, V), am (N, T, V), the largest of each vector (N, U+1, 1) and (N, T, 1), and which utterances had one
      within the boundary, (N,) bool, or None where none was replaced.
    """
    lm_max, am_max = (x.detach().amax(dim=2, keepdim=True) for x in (lm, am))  # nan, too, is passed on
    if bool((torch.cat((lm_max, am_max), dim=1) < float("inf")).all()):
        return lm, am, lm_max, am_max, None
    lm_bad, am_bad = (~(top < float("inf")) for top in (lm_max, am_max))
    lm, lm_max = lm.masked_fill(lm_bad, 0.0), lm_max.masked_fill(lm_bad, 0.0)
    am, am_max = am.masked_fill(am_bad, 0.0), am_max.masked_fill(am_bad, 0.0)
    u_begin, t_begin, u_end, t_end = boundary.unsqueeze(2).unbind(1)
    u, t = (torch.arange(x.shape[1], device=x.device) for x in (lm, am))
    broken = (lm_bad.squeeze(2) & (u >= u_begin) & (u <= u_end)).any(1)
    broken |= (am_bad.squeeze(2) & (t >= t_begin) & (t < t_end)).any(1)
    return lm, am, lm_max, am_max, broken


def _log_sum(values: Tensor, dims: Tuple[int, ...]) -> Tensor:
    """logsumexp with the dimensions kept, and where all are -inf with a gradient of 0, not of nan as torch's."""
    top = values.detach().amax(dim=dims, keepdim=True)
    total = (values - top.nan_to_num(neginf=0.0)).exp().sum(dim=dims, keepdim=True)
    return total.clamp(min=torch.finfo(values.dtype).tiny).log() + top


def smoothed_arcs(
    lm: Tensor,
    am: Tensor,
    lm_max: Tensor,
    am_max: Tensor,
    symbols: Tensor,
    blank: int,
    lm_scale: float,
    am_scale: float,
) -> Tuple[Tensor, Tensor]:
    """Log-probabilities (N, T, U+1) of the label and the blank at every node, differentiable.

    Each is (1 - lm_scale - am_scale) * joint + lm_scale * lm-only + am_scale * am-only, arc by arc, the joint
    normalised by log(exp(am) . exp(lm)^T) and the am-only part against the mean over all histories of the batch of
    softmax(lm) (Kuang et al. 2022, sections 3.1 and 4). At u = U the label arc is not meaningful.
    """
    joint_scale = 1.0 - (lm_scale + am_scale)
    joint_scale = joint_scale if abs(joint_scale) > 1e-12 else 0.0  # 0 but for rounding
    tiny = torch.finfo(am.dtype).tiny
    # Of a vector of nothing but -inf, 0 stands for the largest: -inf less any number remains -inf.
    lm_max, am_max = (top.nan_to_num(neginf=0.0) for top in (lm_max, am_max))  # (N, U+1, 1), (N, T, 1)
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
        product = am_exp @ lm_exp.transpose(1, 2)  # (N, T, U+1)
        if am.dtype == torch.float32 and bool((product < DROWNED).any()):
            product = (am.double() - am_max).exp() @ (lm.double() - lm_max).exp().transpose(1, 2)
        normaliser = (product + torch.finfo(product.dtype).tiny).log().to(am.dtype) + am_max + lm_max.transpose(1, 2)
        label_arcs.append((label_am + label_lm - normaliser) * joint_scale)
        blank_arcs.append((blank_am + blank_lm - normaliser) * joint_scale)
    if lm_scale != 0.0 or am_scale != 0.0:
        lm_sum = lm_exp.sum(dim=2, keepdim=True).clamp(min=tiny)  # (N, U+1, 1)
    if lm_scale != 0.0:
        lm_normaliser = (lm_sum.log() + lm_max).transpose(1, 2)  # (N, 1, U+1)
        label_arcs.append((label_lm - lm_normaliser) * lm_scale)
        blank_arcs.append((blank_lm - lm_normaliser) * lm_scale)
    if am_scale != 0.0:
        unigram = (lm_exp / lm_sum).mean(dim=(0, 1))  # (V,)
        if bool((unigram < DROWNED).any()):
            log_unigram = _log_sum(lm - lm_max - lm_sum.log(), (0, 1)).flatten() - math.log(lm.shape[0] * lm.shape[1])
            # Finite also where all is -inf: the arcs are then -inf, and not nan.
            am_normaliser = _log_sum(am + log_unigram, (2,)).clamp(min=torch.finfo(am.dtype).min)  # (N, T, 1)
        else:
            log_unigram = unigram.log()
            am_normaliser = (am_exp @ unigram).clamp(min=tiny).log().unsqueeze(2) + am_max
        label_arcs.append((label_am + log_unigram[next_symbols].unsqueeze(1) - am_normaliser) * am_scale)
        blank_arcs.append((blank_am + log_unigram[blank] - am_normaliser) * am_scale)
    if joint_scale == 0.0 and am_scale == 0.0:  # nothing of am counts, but its gradient is zero rather than missing
        label_arcs.append(am[:, :, :1].masked_fill(torch.ones_like(am[:1, :1, :1], dtype=torch.bool), 0.0))
    return tuple(sum(arcs[1:], arcs[0]).expand(label_am.shape) for arcs in (label_arcs, blank_arcs))


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float,
    am_only_scale: float,
    boundary: Tensor,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    return_grad: bool,
):
    """See ``kdlib.rnnt.rnnt_loss_smoothed``."""
    count, frames, _ = am.shape
    modified = rnnt_type == "modified"
    lm, am, *maxima, broken = _finite_vectors(lm, am, boundary)
    label_arcs, blank_arcs = smoothed_arcs(lm, am, *maxima, symbols, termination_symbol, lm_only_scale, am_only_scale)
    if delay_penalty > 0.0:
        penalty = delay_offsets(boundary, frames, am) * delay_penalty
        label_arcs = label_arcs + penalty.unsqueeze(2).to(am.dtype)

    starts = torch.zeros((count, frames), dtype=torch.int64, device=am.device)
    with_grad = torch.is_grad_enabled() and label_arcs.requires_grad
    with torch.no_grad():
        result = kernels_for(am).score_lattice(
            label_arcs, blank_arcs, starts, boundary, modified, with_grad or return_grad, symbols.shape[1]
        )
        score, label_occupancy, blank_occupancy = result if broken is None else without_broken(result, broken)
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
    last_start = (boundary[:, 2:3] - (s_range - 1)).clamp(min=0)
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
    offsets = torch.arange(0, count * histories, histories, device=ranges.device).reshape(count, 1, 1)
    # An embedding look-up: its gradient is (N, U+1, C), where that of a gather over the frames is (N, T, U+1, C). It is
    # summed over the frames in the dtype of what is looked up, which half precision is too coarse for.
    lm_pruned = F.embedding(ranges + offsets, summable(lm).reshape(count * histories, -1)).to(lm.dtype)
    return am.unsqueeze(2).expand(-1, -1, kept, -1), lm_pruned


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    return_occupancies: bool = False,
    sharpness: float = 1.0,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """See ``kdlib.rnnt.rnnt_loss_pruned``."""
    count, frames, _, _ = logits.shape
    labels, mask = lattice_nodes(symbols, ranges, boundary, termination_symbol)
    penalty = None
    if delay_penalty > 0.0:
        penalty = (delay_offsets(boundary, frames, logits) * delay_penalty).unsqueeze(2).to(logits.dtype)
    occupancies = return_occupancies or (torch.is_grad_enabled() and logits.requires_grad)
    lattice = (ranges[:, :, 0], boundary, rnnt_type == "modified", symbols.shape[1])
    score, label_occupancy, blank_occupancy = _PrunedScore.apply(
        logits, labels, termination_symbol, mask, lattice, penalty, occupancies, sharpness
    )
    loss = reduce_loss(-score, reduction)
    return (loss, (label_occupancy, blank_occupancy)) if return_occupancies else loss


@torch.no_grad()
def node_posteriors(
    label_arcs: Tensor,
    blank_arcs: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    rnnt_type: str,
    sharpness: float,
) -> Tensor:
    """See ``kdlib.rnnt.node_posteriors``."""
    inside = inside_boundary(ranges, boundary)
    broken = (~((label_arcs < float("inf")) & (blank_arcs < float("inf"))) & inside).flatten(1).any(1)
    lattice = (ranges[:, :, 0], boundary, rnnt_type == "modified", None)
    result = without_broken(sharp_score(label_arcs.double(), blank_arcs.double(), lattice, True, sharpness), broken)
    return (result.label_occupancy + result.blank_occupancy).to(label_arcs.dtype)
