"""What the fused losses are given: two models at a lattice, its nodes laid end to end, and the checks of both.

Dimensions: N utterances, T frames, U labels, R nodes kept a frame, V tokens, C channels, M nodes.
"""

import math
import numbers
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from kdlib.rnnt import checks
from kdlib.rnnt.lattice import delay_offsets, full_boundary, lattice_nodes

# Nodes are taken so many at a time that their logits are this many: 16 MiB in float32, enough for the matrix products
# to be efficient; on a GPU more, which starts fewer kernels for what is still a small part of its memory.
LOGITS_AT_ONCE = 2**22
LOGITS_AT_ONCE_CUDA = 2**25


class NodeTerm(NamedTuple):
    """A distillation loss: the sum over the nodes of ``weights`` (N, T, R) float times ``per_node``.

    ``per_node`` takes the logits of M nodes of the student and of the teacher, (M, V) each, and their next labels,
    (M,) int64, blank where there is none; it returns (M,). ``scale`` is the loss's weight in the total. No gradient
    flows into the weights.
    """

    per_node: Callable[[Tensor, Tensor, Tensor], Tensor]
    weights: Tensor
    scale: float = 1.0


class Side(NamedTuple):
    """One model at its lattice.

    ``joiner`` is a module with ``hidden``, of (M, C1) and (M, C2) to (M, C), and its output layer ``out``, an
    nn.Linear of (M, C) to (M, V) without hooks, as ``kdlib.joiner.Joiner``; these two are used, its forward is not, and
    ``hidden`` shares no parameter with ``out``.
    ``am`` is (N, T, C1), ``lm`` (N, U+1, C2), both of one dtype: that of the joiner, or half precision.
    """

    joiner: nn.Module
    am: Tensor
    lm: Tensor


class Nodes(NamedTuple):
    """Lattice nodes laid end to end, (M,) int64 each: their place in (N, T, R), frame, history and next label."""

    place: Tensor
    frame: Tensor
    history: Tensor
    labels: Tensor

    def pick(self, index) -> "Nodes":
        """Those that ``index``, a slice or (M,) int64, chooses."""
        return Nodes(*(column[index] for column in self))

    def inputs(self, side: Side) -> Tuple[Tensor, Tensor]:
        """am (M, C1) and lm (M, C2), detached."""
        return tuple(
            x.detach().flatten(0, 1).index_select(0, index) for x, index in ((side.am, self.frame), (side.lm, self.history))
        )


class Lattice(NamedTuple):
    """All that does not depend on the models."""

    nodes: Nodes  # those that are computed
    at_once: int  # the most nodes of a chunk
    starts: Tensor  # (N, T) int64
    shape: torch.Size  # (N, T, R)
    boundary: Tensor  # (N, 4) int64
    labels: int  # U
    blank: int
    modified: bool
    penalty: Optional[Tensor]  # (N, T, 1)
    sharpness: float

    def chunks(self) -> List[Nodes]:
        """All nodes in order, ``at_once`` at a time."""
        return [self.nodes.pick(slice(i, i + self.at_once)) for i in range(0, len(self.nodes.place), self.at_once)]

    def chunks_of(self, chosen: Tensor) -> List[Nodes]:
        """The nodes of each chunk that are ``chosen`` (N * T * R,) bool. The host waits for the device twice, however
        many chunks there are."""
        index = chosen[self.nodes.place].nonzero().squeeze(1)
        bounds = torch.arange(0, len(self.nodes.place) + self.at_once, self.at_once, device=index.device)
        bounds = torch.searchsorted(index, bounds).tolist()
        return [self.nodes.pick(index[first:last]) for first, last in zip(bounds, bounds[1:])]


def contiguous(side: Side) -> Side:
    """The same, detached, its tensors in the order of their dimensions."""
    return Side(side.joiner, side.am.detach().contiguous(), side.lm.detach().contiguous())


def check_side(name: str, side: Side, like: Side, learns: bool) -> None:
    """A ValueError where a side is not what :class:`Side` says, or not of one batch with ``like``; ``name``, which begins the
    arguments' names, is "" or "the teacher's "; a side that ``learns`` must get its gradients."""
    checks.check_float(f"{name}am", side.am, 3)
    checks.check_float(f"{name}lm", side.lm, 3)
    sizes = like.am.shape[:2], (like.am.shape[0], like.lm.shape[1])
    checks.require(
        (side.am.shape[:2], side.lm.shape[:2]) == sizes,
        f"{name}am {tuple(side.am.shape)} and lm {tuple(side.lm.shape)} are not of one batch with am "
        f"{tuple(like.am.shape)} and lm {tuple(like.lm.shape)}",
    )
    checks.check_alike(("am", f"{name}am"), (like.am, side.am), dtype=False)
    checks.check_alike((f"{name}am", f"{name}lm"), (side.am, side.lm))
    joiner = side.joiner
    checks.require(
        hasattr(joiner, "hidden") and isinstance(getattr(joiner, "out", None), nn.Linear),
        f"{name}joiner: a {type(joiner).__name__} lacks a method hidden(am, lm) or an output layer out, an nn.Linear",
    )
    checks.require(
        not learns or any(parameter is joiner.out.weight for parameter in joiner.parameters()),
        f"{name}joiner: the weight of its output layer out is no parameter of it (a parametrization?): no gradient would "
        "reach it",
    )
    _check_output(name, joiner.out)
    tokens = joiner.out.out_features, like.joiner.out.out_features
    checks.require(tokens[0] == tokens[1], f"{name}joiner has {tokens[0]} tokens, the student's {tokens[1]}")
    for parameter in joiner.parameters():
        checks.check_alike((f"{name}am", f"a parameter of {name}joiner"), (side.am, parameter), dtype=False)
    dtypes = {side.am.dtype, joiner.out.weight.dtype} - {torch.float16, torch.bfloat16}
    checks.require(
        len(dtypes) <= 1, f"{name}am is {side.am.dtype}, {name}joiner is {joiner.out.weight.dtype}: give both one dtype"
    )


def _check_output(name: str, layer: nn.Linear) -> None:
    """What the layer computes must be what its weight and bias say, since it is not called."""
    plain = type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(layer, hook, None) for hook in hooks)
    checks.require(
        plain and not hooked,
        f"{name}joiner: its output layer out, a {type(layer).__name__}, has {'hooks' if plain else 'a forward of its own'}, "
        "which the fused losses would pass by: use rnnt_loss_pruned",
    )


def check_weights(weight: Union[float, Tensor], terms: Sequence[NodeTerm], am: Tensor, ranges: Tensor) -> None:
    """A ValueError where the weights of the losses do not fit, or would be asked for a gradient."""
    for term in terms:
        checks.check_alike(("am", "a term's weights"), (am, term.weights), dtype=False)
        checks.require(
            term.weights.shape == ranges.shape,
            f"a term's weights {tuple(term.weights.shape)} must be as ranges {tuple(ranges.shape)}",
        )
    if isinstance(weight, Tensor):
        good = weight.shape == am.shape[:1] and weight.device == am.device and weight.is_floating_point()
        got = f"{checks.describe(weight)} on {weight.device}"
        finite = good and bool(torch.isfinite(weight).all())
    else:
        good, got = isinstance(weight, numbers.Real), weight
        finite = good and math.isfinite(weight)
    checks.require(good, f"weight must be a number or float ({am.shape[0]},) on {am.device}, not {got}")
    checks.require(finite, f"weight must be finite, not {weight}")
    given = {"weight": weight, **{f"the weights of term {i}": term.weights for i, term in enumerate(terms)}}
    for name, tensor in given.items():
        checks.require(
            not (torch.is_grad_enabled() and isinstance(tensor, Tensor) and tensor.requires_grad),
            f"{name}: no gradient flows into it, though it requires one: detach it",
        )


def prepare(
    side: Side,
    symbols: Tensor,
    ranges: Tensor,
    blank: int,
    boundary: Optional[Tensor],
    rnnt_type: str,
    delay_penalty: float,
    logits_at_once: Optional[int],
    wanted: Optional[Tensor] = None,
    sharpness: float = 1.0,
) -> Lattice:
    """Check the lattice, and lay out the real nodes in chunks; of them those that are ``wanted`` (N, T, R) bool."""
    checks.check_options(rnnt_type, "sum", delay_penalty)
    checks.check_sharpness(sharpness)
    am, lm = side.am, side.lm
    checks.check_alike(("am", "lm", "symbols", "ranges"), (am, lm, symbols, ranges), dtype=False)
    count, frames, labels = am.shape[0], am.shape[1], lm.shape[1] - 1
    boundary = checks.boundary_on(am.device, boundary)
    boundary = full_boundary(count, labels, frames, am.device) if boundary is None else boundary
    tokens = side.joiner.out.out_features
    checks.check_lattice(symbols, ranges, boundary, count, frames, labels, tokens, blank, rnnt_type)

    next_symbols, mask = lattice_nodes(symbols, ranges, boundary, blank)
    place = (mask if wanted is None else mask & wanted).flatten().nonzero().squeeze(1)
    checks.require(len(place) > 0 or bool(mask.any()), "boundary leaves no frame of any utterance")
    frame = torch.div(place, ranges.shape[2], rounding_mode="floor")
    history = torch.div(frame, frames, rounding_mode="floor") * (labels + 1) + ranges.flatten()[place]
    nodes = Nodes(place, frame, history, next_symbols.flatten()[place])
    if logits_at_once is None:
        logits_at_once = LOGITS_AT_ONCE_CUDA if am.is_cuda else LOGITS_AT_ONCE
    at_once = max(1, min(logits_at_once // tokens, len(place)))
    penalty = (delay_offsets(boundary, frames, am) * delay_penalty).unsqueeze(2) if delay_penalty > 0.0 else None
    return Lattice(
        nodes=nodes,
        at_once=at_once,
        starts=ranges[:, :, 0],
        shape=ranges.shape,
        boundary=boundary,
        labels=labels,
        blank=blank,
        modified=rnnt_type == "modified",
        penalty=penalty,
        sharpness=sharpness,
    )
