"""The pruned RNN-T loss: four functions with the names, arguments, shapes and results of k2 1.23.4's.

    simple_loss, (px_grad, py_grad) = rnnt_loss_smoothed(lm, am, symbols, blank, boundary=boundary, return_grad=True)
    ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range=5)
    am_pruned, lm_pruned = do_rnnt_pruning(encoder_out, predictor_out, ranges)
    pruned_loss = rnnt_loss_pruned(joiner(am_pruned, lm_pruned), symbols, ranges, blank, boundary)

Each takes one keyword more, ``backend``: "k2" (k2 itself), "native" (ours: compiled for the CPU, in Triton for a GPU, in
plain torch elsewhere; float32 and float64) or "auto": k2 where it can be imported and takes the batch, native elsewhere.
Both give the same numbers. Half precision is computed in float32. What is said below of nan and +inf holds of native, to
which "auto" leaves any batch that is not finite; k2 itself may return a finite loss with nan for its gradient.

Source: Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", 2022, arXiv 2206.13236; the transducer:
Graves, "Sequence transduction with recurrent neural networks", 2012, arXiv 1211.3711.

Dimensions, by this project's letters: N utterances, T frames, U labels of the longest utterance (k2's S), R nodes kept
a frame, V tokens, C channels. A lattice node (t, u) is frame t with u labels emitted.
"""

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from kdlib.errors import RecipeError
from kdlib.rnnt import checks, k2_backend, native
from kdlib.rnnt.fused import (
    FusedLosses,
    NodeTerm,
    Side,
    arc_log_probs,
    fused_pays,
    lattice_losses_fused,
    rnnt_loss_fused,
)
from kdlib.rnnt.lattice import all_nodes, boundary_of, full_boundary, lattice_nodes, summable
from kdlib.rnnt.native import BEST_PATH

BACKENDS = ("auto", "k2", "native")

__all__ = [
    "BACKENDS",
    "BEST_PATH",
    "FusedLosses",
    "NodeTerm",
    "Side",
    "all_nodes",
    "arc_log_probs",
    "backend_in_use",
    "boundary_of",
    "do_rnnt_pruning",
    "fused_pays",
    "get_rnnt_prune_ranges",
    "lattice_losses_fused",
    "node_posteriors",
    "node_symbols",
    "rnnt_loss_fused",
    "rnnt_loss_pruned",
    "rnnt_loss_smoothed",
]


def _check_backend(backend: str) -> None:
    checks.require(backend in BACKENDS, f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}")


def backend_in_use(backend: str = "auto") -> str:
    """The backend that ``backend`` means in this process: "k2" or "native".

    Raises:
      ValueError: for an unknown name. RecipeError: "k2" is asked for and cannot be imported.
    """
    _check_backend(backend)
    if backend == "native":
        return "native"
    module, reason = k2_backend.load()
    if module is not None:
        return "k2"
    if backend == "k2":
        raise RecipeError(
            f"the backend 'k2' was asked for, but k2 cannot be imported ({reason}); make its environment with "
            "tools/install.sh --k2 and use that, or choose the backend 'auto' or 'native'"
        )
    return "native"


def _implementation(backend: str, labels: int, frames: int, *tensors: Tensor):
    """The module to compute with. ``auto`` leaves to native what k2 refuses, and what is not finite."""
    if backend_in_use(backend) == "native":
        return native
    refusal = k2_backend.refusal(labels, frames, tensors[0])
    checks.require(backend != "k2" or not refusal, f"{refusal}; use the backend 'auto' or 'native'")
    if refusal or (backend == "auto" and not k2_backend.finite(*tensors)):
        return native
    return k2_backend


def _finite(loss: Tensor) -> bool:
    """Asked on the host, which waits for the loss anyway: a GPU would start five kernels for it."""
    return bool(torch.isfinite(loss.detach().cpu()).all())


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
    return_grad: bool = False,
    *,
    backend: str = "auto",
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """RNN-T loss of the simple joiner, logit(t, u, v) = am(t, v) + lm(u, v), smoothed; no 4-D tensor is made.

    The log-probability of each arc is (1 - l - a) * joint + l * lm-only + a * am-only, with l and a the two scales;
    the am-only part is taken against the mean of softmax(lm) over all positions of the batch, padding included (so
    with a > 0 a loss depends a little on the batch it is in, as k2's does). Kuang et al. 2022, section 3.

    Where am and lm are sure of different tokens, each by more than 700 nats, the joint's normaliser falls below the numbers
    of float64: native's loss is then too large, as k2's in float64 is, and its gradient lacks the normaliser's part. For k2 in
    float32, and so for "auto" where k2 is, 87 nats are enough.

    Where lm excludes a token in all histories of the batch, by more than 80 nats in float32 or 700 in float64, and a > 0, k2's
    loss is too small and may have nan for its gradient. Native's is right; "auto" leaves such a batch, as it is finite, to k2.

    Args:
      lm: (N, U+1, V) float, unnormalised log-probabilities of the predictor's side.
      am: (N, T, V), dtype of lm, the encoder's side.
      symbols: (N, U) int64, the labels, padded with any token.
      termination_symbol: the blank.
      lm_only_scale, am_only_scale: l and a.
      boundary: (N, 4) int64, rows [s_begin, t_begin, s_end, t_end]; None means [0, 0, U, T].
      rnnt_type: "regular", or "modified" where a label, too, leads to the next frame.
      delay_penalty: added to each label arc as delay_penalty * ((t_end - 1) / 2 - t), which rewards early labels.
      reduction: "none", "mean" over utterances or "sum".
      return_grad: whether to return the arc posteriors as well.
      backend: "auto", "k2" or "native".

    Returns:
      The loss, in nats: (N,) for "none", else a scalar. An utterance without a path has loss +inf, one with a nan
      within its boundary loss nan (in native both have zero gradient); the others are what they are without it. In
      native the vectors of lm and am that hold a nan, or outside the boundary +inf, count as zeros, which with a > 0
      shows in the mean of softmax(lm). With return_grad: (loss, (px_grad, py_grad)), the posteriors of the label arcs,
      (N, U, T+1) (regular) or (N, U, T) (modified), and of the blank arcs, (N, U+1, T); no gradient flows through them.

    Raises:
      ValueError: an argument does not fit (+inf within the boundary does not); it is named. RecipeError: backend "k2"
        without k2. RuntimeError: in native, where a gradient is asked for with create_graph.
    """
    checks.check_options(rnnt_type, reduction, delay_penalty)
    checks.check_scale("lm_only_scale", lm_only_scale)
    checks.check_scale("am_only_scale", am_only_scale)
    checks.check_float("am", am, 3)
    checks.check_float("lm", lm, 3)
    boundary = checks.boundary_on(am.device, boundary)
    count, frames, tokens = am.shape
    labels = lm.shape[1] - 1
    checks.require(
        lm.shape[0] == count and lm.shape[2] == tokens,
        f"lm {tuple(lm.shape)} and am {tuple(am.shape)} must agree in their first and last dimension",
    )
    checks.check_alike(("am", "lm"), (am, lm))
    checks.check_alike(("am", "symbols"), (am, symbols), dtype=False)
    if boundary is None:
        boundary = full_boundary(count, labels, frames, am.device)
    checks.check_lattice(symbols, None, boundary, count, frames, labels, tokens, termination_symbol)
    with torch.autocast(am.device.type, enabled=False):
        result = _implementation(backend, labels, frames, am, lm).rnnt_loss_smoothed(
            lm=summable(lm),
            am=summable(am),
            symbols=symbols,
            termination_symbol=termination_symbol,
            lm_only_scale=lm_only_scale,
            am_only_scale=am_only_scale,
            boundary=boundary,
            rnnt_type=rnnt_type,
            delay_penalty=delay_penalty,
            reduction=reduction,
            return_grad=return_grad,
        )
    loss = result[0] if return_grad else result
    if not _finite(loss):
        u_begin, t_begin, u_end, t_end = boundary.unsqueeze(2).unbind(1)
        t, u = torch.arange(frames, device=am.device), torch.arange(labels + 1, device=am.device)
        checks.check_no_infinity("am", am, (t >= t_begin) & (t < t_end))
        checks.check_no_infinity("lm", lm, (u >= u_begin) & (u <= u_end))
    return result


def get_rnnt_prune_ranges(
    px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int, *, backend: str = "auto"
) -> Tensor:
    """The nodes to keep of each frame: R consecutive label counts that hold the most of the posterior.

    The first kept count never decreases over the frames, begins at 0, rises by less than R a frame (by at most 1 in a
    modified lattice, which is told by the shape of px_grad), and at the last frame the band holds the last label.
    Kuang et al. 2022, section 3.2.

    Args:
      px_grad, py_grad: (N, U, T+1) or (N, U, T), and (N, U+1, T), from ``rnnt_loss_smoothed(return_grad=True)``.
      boundary: (N, 4) int64, rows [s_begin, t_begin, s_end, t_end]; the begins are taken as zero.
      s_range: R wanted; at least 2, or 1 in a modified lattice. It is lowered to U + 1 where that is less, and raised
        in a regular lattice until (R - 1) * T_i >= U_i for every utterance, since less leaves it no path. (k2 1.23.4
        does not raise it; newer ones do. Here both backends do.) An utterance without frames has no path whatever R
        is, and does not raise it.

    Returns:
      (N, T, R) int64, on the device of px_grad. R is what it came to.

    Raises:
      ValueError: an argument does not fit; it is named. RecipeError: backend "k2" without k2.
    """
    checks.require(
        all(isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point() for x in (px_grad, py_grad))
        and py_grad.shape[:2] == (px_grad.shape[0], px_grad.shape[1] + 1)
        and px_grad.shape[2] - py_grad.shape[2] in (0, 1),
        f"px_grad, {checks.describe(px_grad)}, and py_grad, {checks.describe(py_grad)}, must be floating tensors (N, U, T+1) "
        "or (N, U, T), and (N, U+1, T)",
    )
    count, labels, columns = px_grad.shape
    frames = py_grad.shape[2]
    modified = columns == frames
    checks.require(count > 0 and frames > 0, f"py_grad is empty: {tuple(py_grad.shape)}")
    checks.check_alike(("px_grad", "py_grad"), (px_grad, py_grad))
    boundary = checks.boundary_on(px_grad.device, boundary)
    if boundary is None:
        boundary = full_boundary(count, labels, frames, px_grad.device)
    checks.check_lattice(None, None, boundary, count, frames, labels)
    least = 1 if modified else 2
    checks.check_whole("s_range", s_range)
    checks.require(s_range >= least, f"s_range must be at least {least}, not {s_range}")
    if not modified:
        climbs = [-(-u_end // t_end) for _, t_begin, u_end, t_end in boundary.tolist() if t_end > t_begin]
        s_range = max([s_range] + [climb + 1 for climb in climbs])
    s_range = min(s_range, labels + 1)
    return _implementation(backend, labels, frames, px_grad).get_rnnt_prune_ranges(
        px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=s_range
    )


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor, *, backend: str = "auto") -> Tuple[Tensor, Tensor]:
    """Encoder and predictor outputs at the kept nodes.

    Args:
      am: (N, T, C1) float, encoder output.
      lm: (N, U+1, C2) float, predictor output; this is a mere selection, so its dtype need not be that of am.
      ranges: (N, T, R) int64, from ``get_rnnt_prune_ranges``.

    Returns:
      (N, T, R, C1), a view of am, and (N, T, R, C2).

    Raises:
      ValueError: an argument does not fit; it is named. RecipeError: backend "k2" without k2.
    """
    checks.check_float("am", am, 3)
    checks.check_float("lm", lm, 3)
    checks.require(lm.shape[0] == am.shape[0], f"lm {tuple(lm.shape)} and am {tuple(am.shape)} differ in utterances")
    checks.check_alike(("am", "lm", "ranges"), (am, lm, ranges), dtype=False)
    checks.check_lattice(None, ranges, None, am.shape[0], am.shape[1], lm.shape[1] - 1)
    # Only a selection, alike in both; the shape limits of the lattice functions do not apply.
    implementation = native if backend_in_use(backend) == "native" else k2_backend
    return implementation.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: Optional[str] = "mean",
    *,
    sharpness: float = 1.0,
    return_occupancies: bool = False,
    backend: str = "auto",
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """RNN-T loss over the kept nodes; with R = U + 1 it is the full RNN-T loss.

    Kuang et al. 2022, section 3.2; Graves 2012, section 2.4.

    Args:
      logits: (N, T, R, V) float, joiner output at the kept nodes, not normalised. In half precision they cost three
        tensors of their size, a copy in float32, its gradient, and that in half precision, where else it is the gradient
        alone (``rnnt_loss_fused`` has no such tensors).
      symbols: (N, U) int64, the labels, padded with any token.
      ranges: (N, T, R) int64, from ``get_rnnt_prune_ranges``.
      termination_symbol: the blank.
      boundary, rnnt_type, delay_penalty, reduction, backend: as in ``rnnt_loss_smoothed``.
      sharpness: a in -1/a log(sum over the paths of p(path)^a), which is the RNN-T loss where a is 1, and with a above 1
        that loss plus (a - 1)/a times the paths' Renyi entropy of order a: of alignments that are equally good together
        it prefers one that is good alone, as greedy search does (entropy regularisation of alignments: Variani et al.
        2022, arXiv 2212.12442).
      return_occupancies: whether to return the arc posteriors as well; they are always computed natively, since
        k2 does not give them here.

    Returns:
      The loss, in nats: (N,) for "none", else a scalar. An utterance without a path in the band has loss +inf, one
      with a nan at a kept node within its boundary loss nan, whether a path visits it or not (in native both have zero
      gradient); the others are what they are without it. With return_occupancies: (loss, (label, blank)), (N, T, R)
      each, the posteriors of the arcs that leave each kept node, 0 outside the lattice; their sum is the posterior of
      the node. No gradient flows through them.

    Raises:
      ValueError: an argument does not fit (+inf at such a node does not); it is named. RecipeError: backend "k2" without
        k2. RuntimeError: in native, where a gradient is asked for with create_graph.
    """
    checks.check_options(rnnt_type, reduction, delay_penalty)
    checks.check_sharpness(sharpness)
    checks.check_float("logits", logits, 4)
    boundary = checks.boundary_on(logits.device, boundary)
    count, frames, kept, tokens = logits.shape
    checks.check_alike(("logits", "symbols", "ranges"), (logits, symbols, ranges), dtype=False)
    checks.require(symbols.dim() == 2, f"symbols must be int64 ({count}, U), not {tuple(symbols.shape)}")
    labels = symbols.shape[1]
    if boundary is None:
        boundary = full_boundary(count, labels, frames, logits.device)
    checks.check_lattice(symbols, ranges, boundary, count, frames, labels, tokens, termination_symbol, rnnt_type)
    checks.require(ranges.shape[2] == kept, f"ranges keeps {ranges.shape[2]} nodes a frame, logits has {kept}")
    arguments = dict(
        logits=summable(logits),
        symbols=symbols,
        ranges=ranges,
        termination_symbol=termination_symbol,
        boundary=boundary,
        rnnt_type=rnnt_type,
        delay_penalty=delay_penalty,
        reduction=reduction,
        sharpness=sharpness,
    )
    with torch.autocast(logits.device.type, enabled=False):
        if return_occupancies:
            _check_backend(backend)
            checks.require(backend != "k2", "return_occupancies: k2 has nothing of the kind; use the backend 'native'")
            loss, occupancies = native.rnnt_loss_pruned(**arguments, return_occupancies=True)
        else:
            loss = _implementation(backend, labels, frames, logits).rnnt_loss_pruned(**arguments)
    if not _finite(loss):
        _, mask = lattice_nodes(symbols, ranges, boundary, termination_symbol)
        checks.check_no_infinity("logits", logits, mask)
    return (loss, occupancies) if return_occupancies else loss


def node_symbols(
    symbols: Tensor, ranges: Tensor, boundary: Optional[Tensor], termination_symbol: int
) -> Tuple[Tensor, Tensor]:
    """The next label of each kept node, and which nodes are real, for losses over the lattice.

    Args:
      symbols: (N, U) int64, the labels.
      ranges: (N, T, R) int64, the label counts u of the kept nodes.
      boundary: (N, 4) int64 or None, as in ``rnnt_loss_smoothed``.
      termination_symbol: the blank.

    Returns:
      next_symbols: (N, T, R) int64, y_{u+1}; the termination symbol where u >= U_i, so always a valid token.
      mask: (N, T, R) bool, whether t < T_i and u <= U_i (and not before the boundary's begin).

    Raises:
      ValueError: an argument does not fit; it is named.
    """
    checks.check_alike(("ranges", "symbols"), (ranges, symbols), dtype=False)
    checks.require(ranges.dim() == 3, f"ranges must be int64 (N, T, R), not {checks.describe(ranges)}")
    checks.require(symbols.dim() == 2, f"symbols must be int64 (N, U), not {checks.describe(symbols)}")
    count, frames, labels = ranges.shape[0], ranges.shape[1], symbols.shape[1]
    checks.require(ranges.numel() > 0, f"ranges is empty: {tuple(ranges.shape)}")
    boundary = checks.boundary_on(ranges.device, boundary)
    if boundary is None:
        boundary = full_boundary(count, labels, frames, ranges.device)
    checks.check_lattice(symbols, ranges, boundary, count, frames, labels, None, termination_symbol)
    return lattice_nodes(symbols, ranges, boundary, termination_symbol)


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
      label_arcs, blank_arcs: (N, T, R) float, of one dtype, log-probabilities, from ``arc_log_probs``.
      ranges, rnnt_type: as in ``rnnt_loss_pruned``; boundary: (N, 4) int64, which tells how many labels there are.
      sharpness: what the log-probabilities are multiplied by first. With a large one, such as ``BEST_PATH``, all but
        the best path vanish: the posteriors are then 1 on its nodes and 0 elsewhere (equally good paths share).

    Returns:
      (N, T, R), dtype of the arcs; 0 for an utterance without a path, or with a nan or +inf within its boundary. No
      gradient flows through them.

    Raises:
      ValueError: an argument does not fit; it is named.
    """
    checks.check_options(rnnt_type, "sum", 0.0)
    checks.check_sharpness(sharpness)
    checks.check_float("label_arcs", label_arcs, 3)
    checks.check_alike(("label_arcs", "blank_arcs"), (label_arcs, blank_arcs))
    checks.require(
        blank_arcs.shape == label_arcs.shape,
        f"blank_arcs {tuple(blank_arcs.shape)} and label_arcs {tuple(label_arcs.shape)} must be of one shape",
    )
    checks.check_alike(("label_arcs", "ranges"), (label_arcs, ranges), dtype=False)
    checks.require(isinstance(boundary, Tensor), f"boundary must be int64 (N, 4), not {checks.describe(boundary)}")
    count, frames, kept = label_arcs.shape
    boundary = boundary.to(label_arcs.device)
    checks.require(
        ranges.dim() != 3 or ranges.shape[2] == kept,
        f"ranges keeps {ranges.shape[-1]} nodes a frame, label_arcs has {kept}",
    )
    checks.check_lattice(None, ranges, boundary, count, frames, None, rnnt_type=rnnt_type)
    return native.node_posteriors(label_arcs, blank_arcs, ranges, boundary, rnnt_type, sharpness)
