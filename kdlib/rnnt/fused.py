"""From encoder and predictor through the joiner to the losses of the lattice, a few nodes at a time.

The logits of all kept nodes, (N, T, R, V), are the largest tensor of a transducer's training, and their gradient is as
large again. Here they exist only for as many nodes as fit a small buffer. The first pass over the nodes keeps two
log-probabilities of each, which is all that the lattice asks for; once the lattice has said how often each node is
visited, the second pass computes the logits again, now with their gradient, and sends it through the joiner. Padding
is never computed. Both passes are part of the forward call, as in fused cross-entropies: it leaves the gradients of
am, lm and the joiner's parameters, which ``backward`` only scales.

Source of the loss: Kuang et al. 2022, arXiv 2206.13236; of recomputing instead of keeping: Chen et al. 2016, arXiv
1604.06174.

Dimensions: N utterances, T frames, U labels, R nodes kept a frame, V tokens, C channels, M nodes of a chunk.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from kdlib.rnnt import checks
from kdlib.rnnt.lattice import LatticeResult, summable
from kdlib.rnnt.native import broken_utterances, first_derivative_only, kernels_for, sharp_score, without_broken
from kdlib.rnnt.nodes import LOGITS_AT_ONCE, Lattice, Nodes, NodeTerm, Side, check_side, check_weights, contiguous, prepare

# The logits of so many chunks are kept, which the second pass need not compute again.
CHUNKS_KEPT = 3


class FusedLosses(NamedTuple):
    """``total``, a scalar that can be differentiated; detached, ``rnnt`` (N,) in nats and ``terms`` (K,), unscaled."""

    total: Tensor
    rnnt: Tensor
    terms: Tensor


class _Output:
    """A joiner's output layer. Its logits lie in a few buffers, which are taken in turn.

    It computes in the dtype of the hidden layer, so in half precision where autocast made that so. Gradients are formed
    before a loss scale can reach them, so float16 would lose the small ones: use bfloat16.
    """

    def __init__(self, layer: nn.Linear, rows: int):
        self.layer, self.rows = layer, rows
        self.buffers: Dict[int, Tensor] = {}
        self.kept: Dict[int, Tensor] = {}

    def logits(self, chunk: int, hidden: Tensor) -> Tensor:
        """(M, C) to (M, V), in float32 or float64, which is what the sums of log-probabilities need."""
        weight, bias = self.layer.weight.detach().to(hidden.dtype), self.layer.bias
        slot = chunk % CHUNKS_KEPT
        if slot not in self.buffers:
            self.buffers[slot] = hidden.new_empty(self.rows, weight.shape[0])
        logits = torch.mm(hidden, weight.t(), out=self.buffers[slot][: len(hidden)])
        if bias is not None:
            logits += bias.detach()
        self.kept.pop(chunk - CHUNKS_KEPT, None)
        self.kept[chunk] = logits
        return summable(logits)


def _arcs(side: Side, output: _Output, lattice: Lattice) -> Tuple[Tensor, Tensor, Tensor]:
    """The first pass: the normaliser of each place (N * T * R,) and the arcs' log-probabilities (N, T, R)."""
    columns = None
    for i, nodes in enumerate(lattice.chunks()):
        logits = output.logits(i, side.joiner.hidden(*nodes.inputs(side)))
        if columns is None:
            columns = logits.new_zeros(3, lattice.shape.numel())
        wanted = torch.ones_like(nodes.place, dtype=torch.bool)
        parts = kernels_for(logits).log_softmax_at(logits, nodes.labels, lattice.blank, wanted)
        for column, part in zip(columns, parts):
            column.index_copy_(0, nodes.place, part)
    normaliser, label_arcs, blank_arcs = columns
    infinite = torch.isposinf(normaliser).view(lattice.shape[0], -1).any(1)
    checks.refuse_utterances(infinite, "the joiner's logits", "are +inf at a node of the lattice")
    return normaliser, label_arcs.view(lattice.shape), blank_arcs.view(lattice.shape)


def _score(normaliser: Tensor, arcs: Sequence[Tensor], lattice: Lattice, occupancies: bool) -> LatticeResult:
    label_arcs, blank_arcs = arcs
    if lattice.penalty is not None:
        label_arcs = label_arcs + lattice.penalty.to(label_arcs.dtype)
    places = (lattice.starts, lattice.boundary, lattice.modified, lattice.labels)
    result = sharp_score(label_arcs, blank_arcs, places, occupancies, lattice.sharpness)
    return without_broken(result, broken_utterances(normaliser, lattice.shape[0]))


class _Gradients:
    """Sums of the gradients of am, lm and the joiner's parameters: summed, as autograd's would be, in float32 where they
    are half precision, in which a sum of many small parts stands still."""

    def __init__(self, side: Side):
        self.side = side
        self.am, self.lm = (summable(torch.zeros_like(x)) for x in side[1:])  # contiguous, as the sides are
        # None for a parameter that the joiner does not use, as autograd would have it.
        self.by_parameter: Dict[Tensor, Optional[Tensor]] = dict.fromkeys(side.joiner.parameters())
        outer = (side.joiner.out.weight, side.joiner.out.bias)
        self.by_parameter.update((p, summable(torch.zeros_like(p))) for p in outer if p is not None and p.requires_grad)
        self.inner = [p for p in self.by_parameter if p.requires_grad and all(p is not other for other in outer)]

    def add(self, nodes: Nodes, am: Tensor, lm: Tensor, hidden: Tensor, slope: Tensor) -> None:
        """Send the gradient ``slope`` (M, V) of the logits back to what they were computed from."""
        weight, bias = self.side.joiner.out.weight, self.side.joiner.out.bias
        slope = slope.to(hidden.dtype)
        if weight.requires_grad and self.by_parameter[weight].dtype == hidden.dtype:
            self.by_parameter[weight].addmm_(slope.t(), hidden.detach())
        elif weight.requires_grad:
            self.by_parameter[weight].add_(slope.t() @ hidden.detach())
        if bias is not None and bias.requires_grad:
            self.by_parameter[bias].add_(slope.sum(0))
        with torch.autocast(hidden.device.type, enabled=False):  # the hidden layer's dtype is the one to keep
            slope = slope @ weight.detach().to(hidden.dtype)
        by_am, by_lm, *parts = torch.autograd.grad(hidden, [am, lm, *self.inner], slope, allow_unused=True)
        for total, part, index in ((self.am, by_am, nodes.frame), (self.lm, by_lm, nodes.history)):
            if part is not None:
                total.flatten(0, 1).index_add_(0, index, part.to(total.dtype))
        for parameter, part in zip(self.inner, parts):
            if part is not None:
                total = self.by_parameter[parameter]
                # A copy: what autograd gives may be one number that stands for many.
                self.by_parameter[parameter] = summable(part.clone()) if total is None else total.add_(part)

    def all(self) -> List[Optional[Tensor]]:
        totals = {self.side.am: self.am, self.side.lm: self.lm, **self.by_parameter}
        return [None if total is None else total.to(x.dtype) for x, total in totals.items()]


def _term(term: NodeTerm, logits: Tensor, teacher_logits: Tensor, nodes: Nodes) -> Tensor:
    """The part of a term's value that the nodes have."""
    per_node = term.per_node(logits, teacher_logits, nodes.labels)
    checks.require(
        per_node.shape == nodes.labels.shape,
        f"terms: per_node must return {tuple(nodes.labels.shape)}, one number a node, not {tuple(per_node.shape)}",
    )
    return (per_node * term.weights.reshape(-1)[nodes.place]).sum()


def _differentiate(
    student: Side,
    teacher: Optional[Side],
    output: _Output,
    lattice: Lattice,
    normaliser: Optional[Tensor],
    arc_weights: Sequence[Tensor],
    terms: Sequence[NodeTerm],
    gradients: Optional[_Gradients],
) -> List[Tensor]:
    """The second pass: the values of the terms and, with ``gradients``, the gradients of everything.

    Without arc weights the RNN-T loss counts for nothing, and there was no first pass.
    """
    learning = gradients is not None
    if arc_weights:
        label_weight, blank_weight = (weight.reshape(-1) for weight in arc_weights)
    # Older torch takes autocast's copies of weights that the first pass has made, without a way back to the weights.
    torch.clear_autocast_cache()
    chunks = fewer = lattice.chunks()
    if arc_weights and not terms and len(chunks) > CHUNKS_KEPT:
        # What less than a hundredth of the resolution of the numbers goes through, beside what goes through the rest of the
        # utterance, has no gradient worth computing.
        sizes = torch.stack((label_weight, blank_weight)).abs().sum(0).view(lattice.shape[0], -1)
        least = torch.finfo(sizes.dtype).eps / 100 * sizes.amax(1, keepdim=True)
        fewer = lattice.chunks_of((sizes > least).flatten())
    values = [student.am.new_zeros(()) for _ in terms]
    teacher_output = _Output(teacher.joiner.out, lattice.at_once) if terms else None
    # Backwards, since the first pass has left the logits of its last chunks.
    for i, chunk in reversed(list(enumerate(chunks))):
        logits = output.kept.pop(i, None)
        if logits is None:
            chunk = fewer[i]
        am, lm = chunk.inputs(student)
        with torch.set_grad_enabled(learning):
            hidden = student.joiner.hidden(am.requires_grad_(learning), lm.requires_grad_(learning))
        logits = slope = output.logits(i, hidden.detach()) if logits is None else summable(logits)
        if terms:
            teacher_logits = teacher_output.logits(0, teacher.joiner.hidden(*chunk.inputs(teacher))).to(logits.dtype)
            leaf = logits.detach().requires_grad_(learning)
            with torch.set_grad_enabled(learning):
                losses = [_term(term, leaf, teacher_logits, chunk) for term in terms]
                together = sum(term.scale * loss for term, loss in zip(terms, losses))
            values = [value + loss.detach() for value, loss in zip(values, losses)]
            if learning:
                # A term may be a constant to the student.
                depends = together.requires_grad
                slope = torch.autograd.grad(together, leaf)[0].contiguous() if depends else torch.zeros_like(leaf)
        if arc_weights:
            kernels_for(logits).logit_gradient(
                logits,
                chunk.labels,
                lattice.blank,
                normaliser[chunk.place],
                label_weight[chunk.place],
                blank_weight[chunk.place],
                out=slope,
                add=bool(terms),
            )
        if learning:
            gradients.add(chunk, am, lm, hidden, slope)
    return values


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, lattice, weight, terms, learning, *differentiable):
        output = _Output(student.joiner.out, lattice.at_once)
        gradients = _Gradients(student) if learning else None
        normaliser, arc_weights, rnnt = None, (), student.am.new_zeros(len(student.am))
        if _counts(weight) or not terms:
            normaliser, *arcs = _arcs(student, output, lattice)
            result = _score(normaliser, arcs, lattice, occupancies=learning)
            rnnt = -result.score.to(normaliser.dtype)
            per_arc = weight[:, None, None].to(normaliser.dtype) if isinstance(weight, Tensor) else weight
            arc_weights = [-per_arc * occupancy for occupancy in result[1:]] if learning else ()
        values = []
        if learning or terms:
            values = _differentiate(student, teacher, output, lattice, normaliser, arc_weights, terms, gradients)
        ctx.gradients = gradients.all() if learning else None
        # No loss, not even an infinite one, counts where it has no weight.
        if isinstance(weight, Tensor):
            total = torch.where(weight != 0, weight * rnnt, torch.zeros_like(rnnt)).sum()
        else:
            total = (weight * rnnt if weight != 0 else torch.zeros_like(rnnt)).sum()
        total = total + sum(term.scale * value for term, value in zip(terms, values))
        values = torch.stack(values) if values else rnnt.new_empty(0)
        ctx.mark_non_differentiable(rnnt, values)
        return total, rnnt, values

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad, *_):
        if ctx.gradients is None:
            raise RuntimeError("the fused losses can be differentiated once only: their gradients are scaled in place")
        gradients, ctx.gradients = ctx.gradients, None
        return (None,) * 6 + tuple(None if total is None else total.mul_(grad) for total in gradients)


def _counts(weight: Union[float, Tensor]) -> bool:
    """Whether the RNN-T loss is a part of the total."""
    return isinstance(weight, Tensor) or weight != 0.0


def lattice_losses_fused(
    joiner: nn.Module,
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    *,
    weight: Union[float, Tensor] = 1.0,
    teacher: Optional[Side] = None,
    terms: Sequence[NodeTerm] = (),
    logits_at_once: Optional[int] = None,
    sharpness: float = 1.0,
) -> FusedLosses:
    """The pruned RNN-T loss and losses of distillation at the same nodes, without a tensor (N, T, R, V).

    Args:
      joiner: as ``Side`` has it; each node by itself and without randomness, since it is run twice.
      am: (N, T, C1) float; lm: (N, U+1, C2) float: what ``do_rnnt_pruning`` would be given.
      symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, sharpness: as in ``rnnt_loss_pruned``.
      weight: of the sum over utterances of the RNN-T loss in the total, or (N,) float, one for each utterance, which gets
        no gradient; with 0 and terms that loss is not computed. A loss of no weight adds 0, even where it is +inf or nan.
      teacher: the teacher's joiner, am and lm, which get no gradient; wanted where there are terms.
      terms: the distillation losses.
      logits_at_once: M * V, which sets the memory; None: 2**22, or 2**25 on a GPU.

    Returns:
      FusedLosses: total = weight * sum(rnnt) + sum(scale * term); gradients flow through the total alone, and only once.

    Raises:
      ValueError: an argument does not fit; it is named.
    """
    student = Side(joiner, am, lm)
    check_side("", student, student, learns=True)
    student = contiguous(student)
    check_weights(weight, terms, am, ranges)
    wanted = None
    if terms and not _counts(weight):
        wanted = torch.stack([term.weights != 0 for term in terms]).any(0)
    lattice = prepare(
        student, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, logits_at_once, wanted, sharpness
    )
    checks.require(teacher is not None or not terms, "terms need a teacher")
    if teacher is not None:
        check_side("the teacher's ", teacher, student, learns=False)
        teacher = contiguous(teacher)
    differentiable = (am, lm, *joiner.parameters())
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in differentiable)
    return FusedLosses(*_Fused.apply(student, teacher, lattice, weight, terms, learning, *differentiable))


@torch.no_grad()
def arc_log_probs(
    side: Side,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    logits_at_once: Optional[int] = None,
) -> Tuple[Tensor, Tensor]:
    """Log-probabilities of the label arc and the blank arc of each kept node, without a tensor (N, T, R, V).

    Args: as in ``lattice_losses_fused``.

    Returns:
      Two (N, T, R) float, 0 outside the utterances; no autograd.

    Raises:
      ValueError: an argument does not fit; it is named.
    """
    check_side("", side, side, learns=False)
    side = contiguous(side)
    lattice = prepare(side, symbols, ranges, termination_symbol, boundary, rnnt_type, 0.0, logits_at_once)
    return _arcs(side, _Output(side.joiner.out, lattice.at_once), lattice)[1:]


def rnnt_loss_fused(
    joiner: nn.Module,
    am: Tensor,
    lm: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    *,
    sharpness: float = 1.0,
) -> Tensor:
    """``rnnt_loss_pruned(joiner(*do_rnnt_pruning(am, lm, ranges)), ...)`` without a tensor (N, T, R, V).

    Args: as in ``lattice_losses_fused`` and ``rnnt_loss_pruned``; ``reduction`` is "mean" or "sum", or, where nothing
      is differentiated, "none".

    Returns: as ``rnnt_loss_pruned``.

    Raises:
      ValueError: an argument does not fit; it is named.
    """
    checks.check_float("am", am, 3)  # its size is a divisor
    checks.check_float("lm", lm, 3)
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in (am, lm, *joiner.parameters()))
    checks.require(
        reduction != "none" or not learning,
        "reduction 'none' has no gradient in the fused loss: use 'sum' or 'mean', or rnnt_loss_pruned",
    )
    checks.check_options(rnnt_type, reduction, delay_penalty)
    weight = 1.0 / am.shape[0] if reduction == "mean" else 1.0
    total, each, _ = lattice_losses_fused(
        joiner, am, lm, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, weight=weight,
        sharpness=sharpness,
    )
    return each if reduction == "none" else total


def fused_pays(mask: Tensor, tokens: int, distilling: bool) -> bool:
    """Whether the fused losses are expected to take no more time than a tensor of all logits.

    They compute one matrix product in four again, but none of the padding: they win where enough of the kept nodes are
    no real ones and, beside a distillation loss, of which they compute one in five again, where there are many logits.
    On few logits they never do. Measured by ``tools/bench_rnnt.py --only fused`` (docs/benchmarks.md).

    Args:
      mask: (N, T, R) bool, the real nodes.
      tokens: V.
      distilling: whether there are distillation losses at the nodes.
    """
    logits = mask.numel() * tokens
    if logits < LOGITS_AT_ONCE:
        return False
    return (distilling and logits >= 4 * LOGITS_AT_ONCE) or bool(mask.sum() <= 0.8 * mask.numel())
