"""The lattice on a CUDA GPU, in Triton: the kernels of ``kdlib.rnnt.gpu.score_lattice``.

It is bound by the length of its chain of dependent sums, so the chain has no logarithm and no exponential in it: a
probability is kept as m * 2^e, two float64 numbers with m of 1 or more and e whole, which neither under- nor overflows and
is as exact as float64. ``_arriving`` makes such numbers of all arcs, ``_lattice`` is the chain, and ``_posteriors`` takes
its sums from both ends together.

The chain is a wave. In a regular lattice the nodes of one t + u follow from those of the t + u before, so one step does
them all (Graves 2012, arXiv 1211.3711); in a modified one, whose arcs all lead to the next frame, a step is a frame. Each
label count has a lane, which keeps the sum of its last node in registers: of the two arcs to its next node the blank comes
from there, the label from the lane before. The terminal node is a node as others are, the only one that frame t_end keeps.

N utterances, T frames, R nodes kept a frame.
"""

from __future__ import annotations

from typing import Dict, Optional

import torch
from torch import Tensor

from kdlib.rnnt.gpu_launch import jit, launching_on, tl, triton
from kdlib.rnnt.lattice import LatticeResult

# The least lanes: two to each thread of a warp.
LEAST_LANES = 64

# Numbers m * 2^e. Zero is m = 0, with an e below that of every other number; nan is m = nan, whatever e is.


@jit
def _number(log):
    """e^log, float64; nan for +inf, too."""
    e = tl.floor(log * 1.4426950408889634)
    e = tl.where(tl.abs(e) < 1e200, e, -1e200)
    # log(2) in two parts, of which e times the first is exact. The bounds matter where log has no digits after the
    # point left.
    rest = log - e * 0.693359375 - e * -2.1219444005471377e-4
    rest = tl.where(rest > 1.0, 1.0, tl.where(rest < -1.0, -1.0, rest))
    m = tl.where(log < 1e200, tl.exp(rest), float("nan"))
    return tl.where(log == float("-inf"), 0.0, m), e


@jit
def _logarithm(m, e):
    return tl.log(m) + e * 0.6931471805599453


@jit
def _plus(m1, e1, m2, e2):
    first = e1 >= e2
    difference = tl.abs(e1 - e2)
    # 2^-difference from its bits: the last ones of 2^52 + x are the whole number x. Below 2^-1000 nothing is left of the
    # smaller number.
    exponent = (4503599627370496.0 + 1023.0 - difference).to(tl.int64, bitcast=True)
    scale = tl.where(difference < 1000.0, (exponent << 52).to(tl.float64, bitcast=True), 0.0)
    return tl.where(first, m1, m2) + tl.where(first, m2, m1) * scale, tl.where(first, e1, e2)


@jit
def _smaller(m, e):
    """The same number, with an m below 2^256 if it was below 2^512."""
    over = m >= 1.157920892373162e77
    return tl.where(over, m * 8.636168555094445e-78, m), tl.where(over, e + 256.0, e)


# A lattice is (starts, bounds, nodes): where the utterance's starts lie, its boundary, and R.


@jit
def _bounds(boundary, n):
    """u_begin, t_begin, u_end, t_end"""
    boundary += 4 * n
    return (
        tl.load(boundary).to(tl.int32), tl.load(boundary + 1).to(tl.int32),
        tl.load(boundary + 2).to(tl.int32), tl.load(boundary + 3).to(tl.int32),
    )


@jit
def _within(x, end):
    """0 <= x < end: without its sign a negative number is a large one."""
    return x.to(tl.uint32) < tl.cast(end, tl.uint32)


@jit
def _first(lattice, t):
    """The label counts of the first nodes that the frames t keep."""
    starts, bounds, _ = lattice
    return tl.load(starts + t, mask=_within(t, bounds[3]), other=bounds[2]).to(tl.int32)


@jit
def _find(lattice, t, u):
    """The places t * R + r of the nodes (t, u), and which of them there are."""
    _, bounds, nodes = lattice
    r = u - _first(lattice, t)
    inside = _within(u - bounds[0], bounds[2] - bounds[0] + 1) & _within(t - bounds[1], bounds[3] - bounds[1] + 1)
    return t * nodes + r, inside & _within(r, nodes)


@jit
def _arc(arcs, lattice, place, exists, from_t, from_u, back):
    """The number of the arcs from the nodes (from_t, from_u) or, backward, to them; zero where there is none."""
    from_place, from_exists = _find(lattice, from_t, from_u)
    # An arc lies where it leaves from.
    log = tl.load(arcs + tl.where(back, place, from_place), mask=exists & from_exists, other=float("-inf"))
    return _number(log.to(tl.float64))


@jit
def _arriving(
    label_arcs, blank_arcs, starts, boundary, variables, count, frames, nodes, MODIFIED: tl.constexpr, BLOCK: tl.constexpr
):
    """A program: BLOCK places in one direction, and the two arcs by which ``_lattice`` comes to the node of each.

    ``variables``: (1 or 2, N, T + 2, R, 4) float64, m and e of the blank and of the label; zero where there is no node, as
    in the last frame.
    """
    back = tl.program_id(1) == 1
    way = tl.where(back, -1, 1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.cast(count, tl.int64) * (frames + 2) * nodes
    n = tl.minimum(i // nodes // (frames + 2), count - 1)
    t = (i // nodes - n * (frames + 2)).to(tl.int32)
    bounds = _bounds(boundary, n)
    lattice = starts + n * frames, bounds, nodes
    u = _first(lattice, t) + (i % nodes).to(tl.int32)
    place, exists = _find(lattice, t, u)
    first = n * frames * nodes
    blank_m, blank_e = _arc(blank_arcs + first, lattice, place, exists, t - way, u, back)
    label_t = t - way if MODIFIED else t
    label_m, label_e = _arc(label_arcs + first, lattice, place, exists, label_t, u - way, back)
    # To where a direction begins, a blank of weight 1 leads.
    begins = exists & (t == tl.where(back, bounds[3], bounds[1])) & (u == tl.where(back, bounds[2], bounds[0]))
    variables += 4 * (tl.program_id(1) * size + i)
    tl.store(variables, tl.where(begins, 1.0, blank_m), mask=i < size)
    tl.store(variables + 1, tl.where(begins, 0.0, blank_e), mask=i < size)
    tl.store(variables + 2, label_m, mask=i < size)
    tl.store(variables + 3, label_e, mask=i < size)


@jit
def _ahead(variables, lattice, back, lane, step, nowhere, MODIFIED: tl.constexpr):
    """What a step of the lanes needs from memory: the places of their nodes, and the arcs that lead to these."""
    bounds = lattice[1]
    way = tl.where(back, -1, 1)
    t = tl.where(back, bounds[3], bounds[1]) + way * (step if MODIFIED else step - lane)
    u = tl.where(back, bounds[2], bounds[0]) + way * lane
    place, exists = _find(lattice, t, u)
    place = tl.where(exists, place, nowhere)
    blank = variables + 4 * place.to(tl.int64)[:, None] + tl.arange(0, 2)[None, :]
    return place, tl.load(blank), tl.load(blank + 2)


@jit
def _both_ahead(variables, lattice, back, even, step, nowhere, MODIFIED: tl.constexpr):
    return (
        _ahead(variables, lattice, back, even, step, nowhere, MODIFIED),
        _ahead(variables, lattice, back, even + 1, step, nowhere, MODIFIED),
    )


@jit
def _step(variables, own, before, ahead, nowhere):
    """The lanes' next numbers, from their own and those of the lanes before."""
    place, blank, label = ahead
    blank_m, blank_e = tl.split(blank)
    label_m, label_e = tl.split(label)
    m, e = _plus(own[0] * blank_m, own[1] + blank_e, before[0] * label_m, before[1] + label_e)
    m = tl.where(place < nowhere, m, 0.0)  # not nan
    variable = variables + 4 * place.to(tl.int64)[:, None] + tl.arange(0, 2)[None, :]
    tl.store(variable, tl.join(m, e), mask=(place < nowhere)[:, None])
    return m, e


@jit
def _lattice(
    starts, boundary, variables, score, frames, nodes, MODIFIED: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr
):
    """A program: the forward variable of one utterance, and its score, or the backward variable.

    ``variables``: as ``_arriving`` leaves them; the variable of a node takes the place of its blank.
    ``BLOCK``: the lanes, more than there are label counts. A thread has an even lane and the odd one after it, which so has
    the lane before at hand.
    """
    n, back = tl.program_id(0).to(tl.int64), tl.program_id(1) == 1
    bounds = _bounds(boundary, n)
    lattice = starts + n * frames, bounds, nodes
    nowhere = (frames + 1) * nodes
    variables += 4 * (tl.program_id(1) * tl.num_programs(0) + n) * (frames + 2) * nodes
    thread = tl.arange(0, BLOCK // 2)
    thread_before = (thread + BLOCK // 2 - 1) % (BLOCK // 2)  # the first lane has the last one, without a node, before it
    zero = tl.zeros([BLOCK // 2], tl.float64), tl.full([BLOCK // 2], -1e200, tl.float64)
    even, odd = (tl.where(thread == 0, 1.0, zero[0]), tl.where(thread == 0, 0.0, zero[1])), zero
    # To wait for memory takes longer than a step, so it is asked some steps ahead.
    ahead = ()
    for i in tl.static_range(AHEAD):
        ahead += (_both_ahead(variables, lattice, back, 2 * thread, i, nowhere, MODIFIED),)
    steps = bounds[3] - bounds[1] + 1
    if not MODIFIED:
        steps += bounds[2] - bounds[0]
    asked = AHEAD
    while asked < steps + AHEAD:
        for _ in tl.static_range(4):
            before = tl.gather(odd[0], thread_before, 0), tl.gather(odd[1], thread_before, 0)
            odd = _step(variables, odd, even, ahead[0][1], nowhere)
            even = _step(variables, even, before, ahead[0][0], nowhere)
            ahead = ahead[1:] + (_both_ahead(variables, lattice, back, 2 * thread, asked, nowhere, MODIFIED),)
            asked += 1
        # In four steps m has grown to 2^8 times what it was at most.
        even, odd = _smaller(even[0], even[1]), _smaller(odd[0], odd[1])

    tl.debug_barrier()  # another thread may have written the terminal node
    end = variables + 4 * bounds[3].to(tl.int64) * nodes
    tl.store(score + n, _logarithm(tl.load(end), tl.load(end + 1)), mask=back == 0)


@jit
def _visits(arc, variables, lattice, t, u, inside, m, e, score):
    """The posteriors of arcs that lead to the nodes (t, u) from nodes with the variable (m, e)."""
    place, exists = _find(lattice, t, u)
    lands = inside & exists
    to = variables + 4 * place.to(tl.int64)
    to_m, to_e = tl.load(to, mask=lands, other=0.0), tl.load(to + 1, mask=lands, other=-1e200)
    log = tl.load(arc, mask=lands, other=float("-inf")).to(tl.float64)
    posterior = m * to_m * tl.exp((e + to_e) * 0.6931471805599453 + log - score)
    return tl.where(posterior > 0, tl.where(posterior < 1, posterior, 1.0), 0.0)  # 0 where it is nan


@jit
def _posteriors(
    label_arcs, blank_arcs, starts, boundary, variables, score, label_posterior, blank_posterior,
    count, frames, nodes, MODIFIED: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program: BLOCK nodes, from the variables that ``_lattice`` has left."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = tl.minimum(i // nodes // frames, count - 1)
    t = (i // nodes - n * frames).to(tl.int32)
    bounds = _bounds(boundary, n)
    lattice = starts + n * frames, bounds, nodes
    total = tl.load(score + n)
    u = _first(lattice, t) + (i % nodes).to(tl.int32)
    place, inside = _find(lattice, t, u)
    inside &= (t < bounds[3]) & (tl.abs(total) < float("inf"))  # a path, and no nan on it
    forward = variables + 4 * n * (frames + 2) * nodes
    backward = forward + 4 * tl.cast(count, tl.int64) * (frames + 2) * nodes
    own = forward + 4 * place.to(tl.int64)
    m, e = tl.load(own, mask=inside, other=0.0), tl.load(own + 1, mask=inside, other=-1e200)
    label_t = t + 1 if MODIFIED else t
    by_label = _visits(label_arcs + i, backward, lattice, label_t, u + 1, inside, m, e, total)
    by_blank = _visits(blank_arcs + i, backward, lattice, t + 1, u, inside, m, e, total)
    tl.store(label_posterior + i, by_label, mask=t < frames)
    tl.store(blank_posterior + i, by_blank, mask=t < frames)


def _shape(lanes: int) -> Dict[str, int]:
    """How ``_lattice`` runs: where a thread has more than two lanes, its registers hold fewer steps ahead."""
    return dict(BLOCK=lanes, AHEAD=min(max(4096 // lanes, 1), 4), num_warps=min(lanes // 64, 16))


def score_lattice(
    label_arcs: Tensor,
    blank_arcs: Tensor,
    starts: Tensor,
    boundary: Tensor,
    modified: bool,
    occupancies: bool,
    labels: Optional[int] = None,
) -> LatticeResult:
    """See ``kdlib.rnnt.lattice.score_lattice``."""
    label_arcs, blank_arcs = label_arcs.detach().contiguous(), blank_arcs.detach().contiguous()
    starts, boundary = starts.contiguous(), boundary.contiguous()
    count, frames, nodes = label_arcs.shape
    directions = 2 if occupancies else 1
    labels = int(boundary[:, 2].max()) if labels is None else labels
    lanes = max(triton.next_power_of_2(labels + 2), LEAST_LANES)
    score = label_arcs.new_empty(count, dtype=torch.float64)
    variables = label_arcs.new_empty((directions, count, frames + 2, nodes, 4), dtype=torch.float64)
    with launching_on(label_arcs):
        _arriving[(triton.cdiv(variables[0].numel(), 4 * 256), directions)](
            label_arcs, blank_arcs, starts, boundary, variables, count, frames, nodes,
            MODIFIED=modified, BLOCK=256, num_warps=4,
        )
        _lattice[(count, directions)](
            starts, boundary, variables, score, frames, nodes, MODIFIED=modified, num_stages=1, **_shape(lanes)
        )
        if not occupancies:
            return LatticeResult(score, None, None)
        posteriors = tuple(torch.empty_like(label_arcs) for _ in range(2))
        _posteriors[(triton.cdiv(label_arcs.numel(), 256),)](
            label_arcs, blank_arcs, starts, boundary, variables, score, *posteriors, count, frames, nodes,
            MODIFIED=modified, BLOCK=256, num_warps=4,
        )
    return LatticeResult(score, *posteriors)
