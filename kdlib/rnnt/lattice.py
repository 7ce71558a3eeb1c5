"""Forward-backward over a transducer lattice, or over the band of it that pruning keeps.

A lattice node (t, u) is frame t with u labels emitted. Two arcs leave it: the blank, to (t+1, u), and the next label,
to (t, u+1) in a `regular` lattice or (t+1, u+1) in a `modified` one. A path runs from (t_begin, u_begin) to the
terminal node (t_end, u_end); the score of an utterance is the log of the sum over its paths (Graves 2012,
arXiv 1211.3711, section 2.4; the band after Kuang et al. 2022, arXiv 2206.13236, section 3).

Dimensions: N utterances, T frames, R nodes kept a frame, U labels, W slots, D steps.

How it is laid out. The recursion advances over steps d = t + u (regular; the anti-diagonals) or d = t (modified), and
all nodes of one step are computed together. On one step the nodes of a band of R have at most R different,
consecutive u, so node (t, u) is kept in slot u mod R: the blank arc then stays in its slot, the label arc moves to the
next one, for every utterance alike, and no step needs an index. A band as wide as the lattice is the same thing
without the wrap. The backward variable is the same recursion on the lattice turned round, so both run as one batch of
2N, which halves the number of calls into torch; these calls are what it costs.

The arithmetic is float64 whatever the arcs are: a score of a few hundred nats leaves float32 four digits for the
occupancies, and beside the logits the lattice is small.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlib.rnnt.checks import describe

NEG_INF = float("-inf")


class LatticeResult(NamedTuple):
    """``score`` (N,) float64; the posteriors of the arcs (N, T, R), of the arcs' dtype, or None where not asked for."""

    score: Tensor
    label_occupancy: Optional[Tensor]
    blank_occupancy: Optional[Tensor]


class _Band(NamedTuple):
    """Where the arcs of each node live: steps and slots from the start, from the end, and which arcs exist."""

    steps: int
    slots: int
    wraps: bool
    step: Tensor  # (N, T, R) int64
    slot: Tensor  # (N, T, R) int64
    steps_left: Tensor  # (N, T, R) int64, to the terminal node
    slot_from_end: Tensor  # (N, T, R) int64
    label_exists: Tensor  # (N, T, R) bool
    blank_exists: Tensor  # (N, T, R) bool
    last_step: Tensor  # (N,) int64
    last_slot: Tensor  # (N,) int64


def summable(x: Tensor) -> Tensor:
    """In float32, or in float64 where it is: sums need no less, and gradients that are sums."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def full_boundary(count: int, labels: int, frames: int, device: torch.device) -> Tensor:
    """The boundary (N, 4) int64 that stands for "no padding": rows of [0, 0, labels, frames]."""
    return torch.tensor([[0, 0, labels, frames]] * count, dtype=torch.int64, device=device)


def _lay_out(starts: Tensor, kept: int, boundary: Tensor, modified: bool) -> _Band:
    count, frames = starts.shape
    device = starts.device
    u_begin, t_begin, u_end, t_end = (column.reshape(count, 1, 1) for column in boundary.unbind(1))
    t = torch.arange(frames, device=device).reshape(1, frames, 1)
    r = torch.arange(kept, device=device).reshape(1, 1, kept)
    u = starts.unsqueeze(2) + r

    # The band of the frame that the arc leads to; beyond the last frame only the terminal node exists.
    next_first = torch.cat((starts[:, 1:], starts[:, -1:]), dim=1).unsqueeze(2)
    into_end = t + 1 == t_end
    exists = (t >= t_begin) & (t < t_end) & (u >= u_begin) & (u <= u_end)
    if modified:
        # The other nodes of the first frame cannot be reached, and one of them may share the start's slot.
        exists = exists & ((t > t_begin) | (u == u_begin))
        label_lands = torch.where(into_end, u + 1 == u_end, (u + 1 >= next_first) & (u + 1 < next_first + kept))
    else:
        label_lands = r + 1 < kept
    blank_lands = torch.where(into_end, u == u_end, (u >= next_first) & (u < next_first + kept))

    width = max(int(starts.max()) + kept, int(u_end.max()) + 1)
    # Slots need consecutive u on an anti-diagonal, which holds where the band never moves back. A wrap costs one more
    # call a step, which only a lattice much wider than its band repays.
    narrow = width > 2 * kept and (modified or bool((starts[:, 1:] >= starts[:, :-1]).all()))
    slots = kept if narrow else width
    label_steps = 0 if modified else 1
    step = (t - t_begin) + label_steps * (u - u_begin)
    last_step = (t_end - t_begin) + label_steps * (u_end - u_begin)
    return _Band(
        steps=max(int(last_step.max()), 0),
        slots=slots,
        wraps=narrow,
        step=step,
        slot=(u - u_begin).remainder(slots),
        steps_left=last_step - step,
        slot_from_end=(u_end - u).remainder(slots),
        label_exists=exists & (u < u_end) & label_lands,
        blank_exists=exists & blank_lands,
        last_step=last_step.reshape(count),
        last_slot=(u_end - u_begin).remainder(slots).reshape(count),
    )


def _recurse(arcs: Tensor, wraps: bool) -> Tensor:
    """Run the recursion; ``arcs`` (D, 2, M, W) [label, blank] by destination, overwritten with source + arc.

    Returns (D + 1, M, W + 1): the variable in columns 1 to W, after a column that holds the wrap (or -inf).
    """
    steps, _, rows, slots = arcs.shape
    state = arcs.new_full((steps + 1, rows, slots + 1), NEG_INF)
    state[0, :, 1] = 0.0
    if wraps and slots == 1:
        state[0, :, 0] = 0.0
    # [label, blank] sources of each slot: the slot before it and the slot itself, as one overlapping view.
    sources = state.as_strided((steps + 1, 2, rows, slots), (rows * (slots + 1), 1, slots + 1, 1)).unbind(0)
    targets = state[1:, :, 1:].unbind(0)
    first, last = state[1:, :, 0].unbind(0), state[1:, :, slots].unbind(0)
    by_label, by_blank = arcs[:, 0].unbind(0), arcs[:, 1].unbind(0)
    for d, both in enumerate(arcs.unbind(0)):
        torch.add(sources[d], both, out=both)
        torch.logaddexp(by_label[d], by_blank[d], out=targets[d])
        if wraps:
            first[d].copy_(last[d])
    return state


def score_lattice(
    label_arcs: Tensor,
    blank_arcs: Tensor,
    starts: Tensor,
    boundary: Tensor,
    modified: bool,
    occupancies: bool,
    labels: Optional[int] = None,
) -> LatticeResult:
    """Score of each utterance and, where asked for, the posterior of each arc. No autograd.

    Args:
      label_arcs: (N, T, R) float, log weight of the label arc that leaves node (t, starts[t] + r).
      blank_arcs: (N, T, R) float, the same for the blank arc.
      starts: (N, T) int64, labels emitted at the first kept node of each frame.
      boundary: (N, 4) int64, [u_begin, t_begin, u_end, t_end]; arcs outside are not looked at.
      modified: whether a label, too, leads to the next frame.
      occupancies: whether to compute the posteriors (this runs the backward recursion as well).
      labels: no utterance's boundary holds more labels; where it is None the host has to wait for a GPU to say that.

    Returns:
      LatticeResult. An utterance without a path has score -inf, one with a nan on a path score nan; both have zero
      occupancies. A nan on an arc of no path, which cannot be reached or leads to a dead end, may make the score nan in one
      kernel and not in another, and the occupancies wrong: callers set both themselves (``native.without_broken``).
    """
    count, frames, kept = label_arcs.shape
    band = _lay_out(starts, kept, boundary, modified)
    rows = 2 * count if occupancies else count
    row = torch.arange(count, device=starts.device).reshape(count, 1, 1)
    size = band.steps * 2 * rows * band.slots

    def place(exists: Tensor, step: Tensor, kind: int, row: Tensor, slot: Tensor) -> Tensor:
        flat = ((step * 2 + kind) * rows + row) * band.slots + slot
        return torch.where(exists, flat, size).reshape(-1)  # arcs that do not exist share a spare cell at the end

    # Forward: an arc lies where it leads to. Backward (the lattice turned round): it lies where it comes from.
    labels_to = place(band.label_exists, band.step, 0, row, (band.slot + 1).remainder(band.slots))
    blanks_to = place(band.blank_exists, band.step, 1, row, band.slot)
    label_weights = label_arcs.detach().double().reshape(-1)
    blank_weights = blank_arcs.detach().double().reshape(-1)
    cells = torch.full((size + 1,), NEG_INF, dtype=torch.float64, device=starts.device)
    cells.scatter_(0, labels_to, label_weights)
    cells.scatter_(0, blanks_to, blank_weights)
    if occupancies:
        labels_from = place(band.label_exists, band.steps_left - 1, 0, row + count, band.slot_from_end)
        blanks_from = place(band.blank_exists, band.steps_left - 1, 1, row + count, band.slot_from_end)
        cells.scatter_(0, labels_from, label_weights)
        cells.scatter_(0, blanks_from, blank_weights)
    cells[size] = NEG_INF

    state = _recurse(cells[:size].view(band.steps, 2, rows, band.slots), band.wraps)
    score = state[band.last_step, row.reshape(count), 1 + band.last_slot]
    u_begin, t_begin, u_end, t_end = boundary.unbind(1)
    # Of no frames there is a path to where it began alone, whatever shares its slot.
    score = score.masked_fill((t_begin == t_end) & (u_begin != u_end), NEG_INF)
    if not occupancies:
        return LatticeResult(score, None, None)

    alive = band.label_exists | band.blank_exists
    node = (band.step * rows + row) * (band.slots + 1) + 1 + band.slot
    alpha = state.view(-1)[torch.where(alive, node, 0).reshape(-1)]
    alpha = (alpha.view(count, -1) - score.unsqueeze(1)).view(-1)
    no_path = ~torch.isfinite(score).reshape(count, 1, 1)
    return LatticeResult(score, *(
        (alpha + cells[place]).exp_().view(count, frames, kept).masked_fill_(no_path, 0.0).to(label_arcs.dtype)
        for place in (labels_from, blanks_from)))


def inside_boundary(ranges: Tensor, boundary: Tensor) -> Tensor:
    """(N, T, R) bool: which kept nodes of ranges (N, T, R) lie within the boundary (N, 4)."""
    u_begin, t_begin, u_end, t_end = boundary.reshape(-1, 4, 1, 1).unbind(1)
    t = torch.arange(ranges.shape[1], device=ranges.device).reshape(1, -1, 1)
    return (t >= t_begin) & (t < t_end) & (ranges >= u_begin) & (ranges <= u_end)


def lattice_nodes(symbols: Tensor, ranges: Tensor, boundary: Tensor, blank: int) -> Tuple[Tensor, Tensor]:
    """See ``kdlib.rnnt.node_symbols``; the boundary is given."""
    count, frames, kept = ranges.shape
    labels = F.pad(symbols, (0, 1), value=blank).gather(1, ranges.reshape(count, -1)).view(count, frames, kept)
    labels = labels.masked_fill(ranges >= boundary[:, 2].reshape(count, 1, 1), blank)
    return labels, inside_boundary(ranges, boundary)


def boundary_of(symbol_lengths: Tensor, lengths: Tensor) -> Tensor:
    """The boundary (N, 4) int64 of utterances that begin at 0: their labels and frames, (N,) int64 each.

    A length that is negative or more than there is room for is an error of the function that is given the boundary.

    Raises:
      ValueError: the lengths are not int64 (N,) on one device.
    """
    for name, tensor in (("lengths", lengths), ("symbol_lengths", symbol_lengths)):
        good = isinstance(tensor, Tensor) and tensor.dtype == torch.int64 and tensor.dim() == 1
        if not good or tensor.shape != lengths.shape:
            count = "N" if tensor is lengths else len(lengths)
            raise ValueError(f"{name} must be int64 ({count},), not {describe(tensor)}")
    if symbol_lengths.device != lengths.device:
        raise ValueError(f"symbol_lengths lie on {symbol_lengths.device}, lengths on {lengths.device}")
    begin = torch.zeros_like(lengths)
    return torch.stack([begin, begin, symbol_lengths, lengths], dim=1)


def all_nodes(encoder_out: Tensor, symbols: Tensor) -> Tensor:
    """Ranges that keep every node of the lattice of (N, T, C) and (N, U): (N, T, U+1) int64.

    Raises:
      ValueError: the two are not of one batch.
    """
    tensors = isinstance(encoder_out, Tensor) and isinstance(symbols, Tensor)
    if not tensors or (encoder_out.dim(), symbols.dim()) != (3, 2) or len(encoder_out) != len(symbols):
        raise ValueError(f"encoder_out and symbols must be (N, T, C) and (N, U), not {describe(encoder_out)} and "
                         f"{describe(symbols)}")
    return torch.arange(symbols.size(1) + 1, device=symbols.device).expand(*encoder_out.shape[:2], -1)


def as_ranges(starts: Tensor, kept: int) -> Tensor:
    """(N, T) first labels to (N, T, R) label counts of the kept nodes."""
    return starts.unsqueeze(2) + torch.arange(kept, device=starts.device)


def delay_offsets(boundary: Tensor, frames: int, like: Tensor) -> Tensor:
    """(N, T): how far each frame lies before the middle of its utterance, in frames.

    The middle is formed in torch's default float type, as k2 forms it, so that float64 results agree to all their digits.
    """
    return (boundary[:, 3:4] - 1) / 2 - torch.arange(frames, device=like.device)


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """(N,) losses to what ``reduction`` (none, mean, sum) names."""
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss
