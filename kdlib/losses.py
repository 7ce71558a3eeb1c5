"""Distillation losses for transducers, and the registry that configs name them by.

Every loss is a plain function of tensors, zero when student and teacher agree and never negative. The teacher's side
gets no gradient. A lattice loss is a mean over the nodes of each utterance, then over the utterances; a frame loss is
a mean over the frames (and channels) of each utterance, then over the utterances. So neither padding, whatever it holds,
nor the batch an utterance stands in, nor its length changes what a weight means. Half precision is computed in float32.
The sequence-level loss alone is a cross-entropy, so not zero where they agree; like the RNN-T loss, which it is, it
counts in nats a frame.

N utterances, T frames, R nodes kept a frame (or U + 1 for the full lattice), V tokens, C channels, M hypotheses.
"""

from dataclasses import dataclass
from typing import Callable, ClassVar, Dict, List, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib import rnnt
from kdlib.errors import RecipeError
from kdlib.rnnt import cpu
from kdlib.rnnt.lattice import summable
from kdlib.rnnt.native import first_derivative_only


def node_weights(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What makes a sum over nodes a mean over those of each utterance, then over the utterances.

    Args:
        mask: (N, T, R) bool, true at the real nodes.
    Returns:
        (N, T, R) of ``dtype``, 1 / (N * nodes of the utterance) where the mask is true, else 0.
    """
    return mask.to(dtype) / (mask.flatten(1).sum(1).clamp(min=1) * mask.size(0)).reshape(-1, 1, 1)


def _one_shape(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"student is {tuple(student.shape)} and teacher {tuple(teacher.shape)}: their shapes must be one")


def _check_nodes(student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    _one_shape(student, teacher)
    if mask.dtype != torch.bool or mask.shape != student.shape[:-1]:
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}: it must be bool {tuple(student.shape[:-1])}")


def _node_mean(per_node: Tensor, mask: Tensor) -> Tensor:
    """(N, T, R) and its bool mask to a scalar."""
    return (per_node.masked_fill(~mask, 0.0) * node_weights(mask, per_node.dtype)).sum()


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) over the last axis of two log-probability tensors; classes of no mass add nothing."""
    # A class that is impossible on both sides is -inf - -inf; its term is zero and so must its gradient be.
    empty = torch.isneginf(teacher)
    difference = teacher.masked_fill(empty, 0.0) - student.masked_fill(empty, 0.0)
    return (teacher.exp() * difference).sum(-1)


class _CompiledKL(torch.autograd.Function):
    """(M, V) logits of both to the divergence (M,); the one tensor of that size that is made is the gradient."""

    @staticmethod
    def forward(ctx, student, teacher, temperature):
        *norms, value = cpu.kl_divergence(student, teacher, temperature)
        ctx.temperature = temperature
        ctx.save_for_backward(student, teacher, *norms)
        return value

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad):
        student, teacher, *norms = ctx.saved_tensors
        return cpu.kl_gradient(student, teacher, norms, grad.contiguous(), ctx.temperature), None, None


def _is_compiled(student: Tensor, teacher: Tensor) -> bool:
    """Whether :func:`lattice_kl_at` leaves such logits to the compiled loops."""
    return cpu.takes(student) and teacher.dtype == student.dtype


def lattice_kl_at(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """:func:`lattice_kl` node by node: logits (..., V) of both to (...).

    Raises:
        ValueError: student and teacher differ in shape.
        RuntimeError: its gradient is asked for with create_graph, where the divergence is computed by compiled loops (on
            the CPU).
    """
    _one_shape(student, teacher)
    student, teacher = summable(student), summable(teacher.detach())
    if _is_compiled(student, teacher):
        tokens = student.size(-1)
        rows = (x.reshape(-1, tokens).contiguous() for x in (student, teacher))
        return temperature ** 2 * _CompiledKL.apply(*rows, temperature).view(student.shape[:-1])
    teacher = F.log_softmax(teacher / temperature, dim=-1)
    student = F.log_softmax(student / temperature, dim=-1)
    return temperature ** 2 * _kl(teacher, student)


def _real_nodes(logits: Tensor, mask: Tensor) -> Tensor:
    """(N, T, R, V) logits with zeros in padding: what stands there would come back in the gradient as 0 * nan."""
    return logits.masked_fill(~mask.unsqueeze(-1), 0.0)


def lattice_kl(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """KL over the whole vocabulary at every node: the full lattice (R = U + 1), or the pruned one.

    On the nodes that the student's pruned RNN-T keeps, the ranges indexing both models (after Kuang et al. 2022,
    arXiv 2206.13236). The loss is times ``temperature`` squared, so that its gradient does not fade with it.

    Args:
        student, teacher: (N, T, R, V) logits.
        mask: (N, T, R) bool, true at the nodes with t < T_i and u <= U_i.
    Returns:
        A scalar, in nats a node.
    Raises:
        ValueError: the shapes of student, teacher and mask are not of one lattice.
    """
    _check_nodes(student, teacher, mask)
    student, teacher = summable(student), summable(teacher)
    if not _is_compiled(student, teacher):  # the compiled loops take each row by itself and need no copy without padding
        student, teacher = _real_nodes(student, mask), _real_nodes(teacher, mask)
    return _node_mean(lattice_kl_at(student, teacher, temperature), mask)


def _collapse(log_probs: Tensor, next_symbols: Tensor, blank_id: int) -> Tensor:
    """(..., V) to (..., 3): the next label, blank, and all the rest; where the next label is blank, it has no class."""
    index = next_symbols.unsqueeze(-1)
    label = log_probs.gather(-1, index)
    label = label.masked_fill(index == blank_id, float("-inf"))
    blank = log_probs[..., blank_id:blank_id + 1]
    # The rest by a masked logsumexp: 1 - p_y - p_b would lose everything near certainty.
    taken = torch.zeros_like(log_probs, dtype=torch.bool).scatter_(-1, index, True)
    taken[..., blank_id] = True
    rest = log_probs.masked_fill(taken, float("-inf"))
    # Nothing is left of two tokens at the inner nodes, nor where all else is impossible: logsumexp has no gradient there.
    nothing = torch.isneginf(rest).all(-1, keepdim=True)
    rest = rest.masked_fill(nothing, 0.0).logsumexp(-1, keepdim=True).masked_fill(nothing, float("-inf"))
    return torch.cat([label, blank, rest], dim=-1)


def collapsed_kl_at(student: Tensor, teacher: Tensor, next_symbols: Tensor, blank_id: int = 0,
                    temperature: float = 1.0) -> Tensor:
    """:func:`collapsed_kl` node by node: logits (..., V) of both and next labels (...) to (...).

    Raises:
        ValueError: student and teacher differ in shape.
    """
    _one_shape(student, teacher)
    teacher, student = (_collapse(F.log_softmax(summable(logits) / temperature, dim=-1), next_symbols, blank_id)
                        for logits in (teacher.detach(), student))
    return temperature ** 2 * _kl(teacher, student)


def collapsed_kl(student: Tensor, teacher: Tensor, next_symbols: Tensor, mask: Tensor, blank_id: int = 0,
                 temperature: float = 1.0) -> Tensor:
    """KL over three classes a node: the next label, blank, the rest (Panchapagesan et al. 2021, arXiv 2011.06110).

    Args:
        student, teacher: (N, T, R, V) logits.
        next_symbols: (N, T, R) int64, the label y_{u+1} of each node; ``blank_id`` where u = U_i, which leaves two
            classes there.
        mask: (N, T, R) bool.
    Returns:
        A scalar, in nats a node, times ``temperature`` squared; never above :func:`lattice_kl` of the same nodes.
    Raises:
        ValueError: the shapes of student, teacher and mask are not of one lattice.
    """
    _check_nodes(student, teacher, mask)
    student, teacher = _real_nodes(student, mask), _real_nodes(teacher, mask)
    return _node_mean(collapsed_kl_at(student, teacher, next_symbols, blank_id, temperature), mask)


def best_path_weights(label_arcs: Tensor, blank_arcs: Tensor, ranges: Tensor, boundary: Tensor, mask: Tensor,
                      rnnt_type: str) -> Tensor:
    """Weights that leave the nodes of the best alignment alone (Yang, Li and Woodland 2021, arXiv 2110.03334).

    Args:
        label_arcs, blank_arcs: (N, T, R), the teacher's, from :func:`kdlib.rnnt.arc_log_probs`.
        ranges, boundary, rnnt_type: of the lattice; mask: (N, T, R) bool, its real nodes.
    Returns:
        (N, T, R) float32, 1 / (N * nodes of the path) on the path, else 0; an utterance without a path has the weights
        of :func:`node_weights`.
    """
    return _normalised(rnnt.node_posteriors(label_arcs, blank_arcs, ranges, boundary, rnnt_type, rnnt.BEST_PATH), mask)


def occupancy_weights(label_arcs: Tensor, blank_arcs: Tensor, ranges: Tensor, boundary: Tensor, mask: Tensor,
                      rnnt_type: str) -> Tensor:
    """Weights in proportion to how often the teacher's paths visit each node; otherwise :func:`best_path_weights`."""
    return _normalised(rnnt.node_posteriors(label_arcs, blank_arcs, ranges, boundary, rnnt_type), mask)


def _normalised(posteriors: Tensor, mask: Tensor) -> Tensor:
    posteriors = posteriors.double().masked_fill(~mask, 0.0)
    total = posteriors.flatten(1).sum(1).reshape(-1, 1, 1)
    weights = posteriors / (total.clamp(min=1e-30) * mask.size(0))
    return torch.where(total > 0, weights, node_weights(mask, torch.float64)).float()


def _frame_mean(per_frame: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor,
                lengths: Tensor) -> Tensor:
    """Mean over the frames of each utterance, then over utterances, of a function of both sides (N, T, C) to (N, T) that is
    zero where they agree, as in padding they are made to."""
    _one_shape(student, teacher)
    if lengths.shape != student.shape[:1]:
        raise ValueError(f"lengths is {tuple(lengths.shape)}: it must be {tuple(student.shape[:1])}")
    padding = torch.arange(student.size(1), device=student.device) >= lengths.unsqueeze(1)
    student, teacher = (summable(side).masked_fill(padding.unsqueeze(-1), 0.0) for side in (student, teacher.detach()))
    return (per_frame(student, teacher).sum(1) / lengths.clamp(min=1)).mean()


def encoder_mse(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    """Mean squared difference of two encoders' outputs.

    Args:
        student, teacher: (N, T, C) of one width (project the student's first where widths differ).
        lengths: (N,) int64 frames.
    Returns:
        A scalar.
    Raises:
        ValueError: student and teacher differ in shape, or there is not one length for each utterance.
    """
    return _frame_mean(lambda ours, theirs: (ours - theirs).square().mean(-1), student, teacher, lengths)


def encoder_l1(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    """Mean absolute difference of two encoders' outputs; otherwise as :func:`encoder_mse`."""
    return _frame_mean(lambda ours, theirs: (ours - theirs).abs().mean(-1), student, teacher, lengths)


def encoder_cosine(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    """1 - the cosine of each frame's two vectors, from 0 to 2, two zeros being alike; otherwise as :func:`encoder_mse`."""
    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        alike = (ours == theirs).all(-1)
        return (1 - F.cosine_similarity(ours, theirs, dim=-1)).clamp(min=0).masked_fill(alike, 0.0)

    return _frame_mean(distance, student, teacher, lengths)


def encoder_logits_kl(student: Tensor, teacher: Tensor, lengths: Tensor, temperature: float = 1.0) -> Tensor:
    """KL of two encoders' token distributions, frame by frame (CoDERT: Swaminathan et al. 2021, arXiv 2106.07734).

    Args:
        student, teacher: (N, T, V) logits of the encoders' side of the simple joiners.
        lengths: (N,) int64 frames.
    Returns:
        A scalar, in nats a frame, times ``temperature`` squared.
    Raises:
        ValueError: student and teacher differ in shape, or there is not one length for each utterance.
    """
    return _frame_mean(lambda ours, theirs: lattice_kl_at(ours, theirs, temperature), student, teacher, lengths)


def shifted(student: Tensor, teacher: Tensor, lengths: Tensor, shift: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Set teacher frame t - ``shift`` against student frame t: above 0 the student learns to emit later than its teacher,
    below 0 earlier.

    Args:
        student, teacher: (N, T, ...); lengths: (N,) int64; shift: frames.
    Returns:
        the overlapping parts of both, (N, T - abs(shift), ...), and their lengths; an utterance of ``abs(shift)`` frames
        or fewer keeps none.
    """
    if shift < 0:
        teacher, student, lengths = shifted(teacher, student, lengths, -shift)
        return student, teacher, lengths
    shift = min(shift, student.size(1))
    return student[:, shift:], teacher[:, :student.size(1) - shift], (lengths - shift).clamp(min=0)


def matched_layers(student_layers: int, teacher_layers: int) -> List[Tuple[int, int]]:
    """(student's, teacher's) layer numbers from 0: the i-th of L_s, counted from 1, goes with round(i * L_t / L_s)."""
    return [(i, max(1, round((i + 1) * teacher_layers / student_layers)) - 1) for i in range(student_layers)]


@dataclass(frozen=True)
class LatticeLoss:
    """A weighted sum over lattice nodes.

    at_nodes: a loss of each node, from logits (..., V) of student and teacher, next labels (...), blank, temperature.
    nodes: "pruned", those that the student's pruned RNN-T keeps, or "all".
    weighting: "mean" over the nodes of each utterance, then over the utterances; or "best_path" or "occupancy", by the
        teacher's alignments.
    """

    settings: ClassVar[Tuple[str, ...]] = ("temperature",)  # of a term in a config, beside weight and schedule
    at_nodes: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
    nodes: str = "pruned"
    weighting: str = "mean"


def nbest_posterior(log_probs: Tensor, rows: Tensor, num: int, temperature: float = 1.0) -> Tensor:
    """The teacher's posterior of each of its n best hypotheses: what they weigh in the sequence-level loss.

    p(h | x) over the n best of an utterance, from log p(h, x) / temperature; those of an utterance add up to one.

    Args:
        log_probs: (M,) float, the hypotheses' log-probabilities in nats.
        rows: (M,) int64, the utterance of each, from 0 to ``num`` - 1.
        num: N.
    Returns:
        (M,) float.
    """
    scaled = log_probs.detach() / temperature
    best = scaled.new_full((num,), float("-inf")).scatter_reduce(0, rows, scaled, "amax")
    likelihoods = (scaled - best[rows]).exp()
    return likelihoods / likelihoods.new_zeros(num).index_add(0, rows, likelihoods)[rows]


@dataclass(frozen=True)
class SequenceLoss:
    """The RNN-T loss on the teacher's n best hypotheses, each weighted by ``posterior``."""

    settings: ClassVar[Tuple[str, ...]] = ("temperature",)
    posterior: Callable[[Tensor, Tensor, int, float], Tensor]


@dataclass(frozen=True)
class EncoderLoss:
    """A mean over frames, of (student's, teacher's, lengths, temperature).

    of: "embedding", the outputs (N, T, C) of encoder layers; or "logits", (N, T, V) of the simple joiners' side.
    """

    between: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    of: str = "embedding"

    @property
    def settings(self) -> Tuple[str, ...]:
        """Those of a term in a config, beside weight and schedule."""
        return ("shift", "layers") if self.of == "embedding" else ("temperature", "shift")


def _whole(student: Tensor, teacher: Tensor, labels: Tensor, blank_id: int, temperature: float) -> Tensor:
    return lattice_kl_at(student, teacher, temperature)


def _without_temperature(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> EncoderLoss:
    return EncoderLoss(lambda student, teacher, lengths, temperature: loss(student, teacher, lengths))


Loss = Union[LatticeLoss, EncoderLoss, SequenceLoss]
REGISTRY: Dict[str, Loss] = {
    "full_lattice_kl": LatticeLoss(_whole, nodes="all"),
    "pruned_lattice_kl": LatticeLoss(_whole),
    "full_collapsed_kl": LatticeLoss(collapsed_kl_at, nodes="all"),
    "collapsed_kl": LatticeLoss(collapsed_kl_at),
    "best_path_kl": LatticeLoss(_whole, nodes="all", weighting="best_path"),
    "occupancy_kl": LatticeLoss(_whole, weighting="occupancy"),
    "encoder_logits_kl": EncoderLoss(encoder_logits_kl, of="logits"),
    "encoder_mse": _without_temperature(encoder_mse),
    "encoder_l1": _without_temperature(encoder_l1),
    "encoder_cosine": _without_temperature(encoder_cosine),
    "nbest_rnnt": SequenceLoss(nbest_posterior),
}


def find_loss(name: str) -> Loss:
    """The loss of that name; an unknown one is a :class:`RecipeError` that lists the known ones."""
    if name not in REGISTRY:
        wrong = f"unknown loss '{name}'" if name else "a loss without a name"
        raise RecipeError(f"loss.distill: {wrong}; known are {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]
