"""The lattice on a CUDA GPU, in Triton: the kernels of ``kdlib.rnnt.gpu.score_lattice``.

It is bound by the length of its chain of dependent sums, so it has no logarithm in it: a probability is kept as m * 2^e,
two float64 numbers with m from 1 to 2 and e whole, which neither under- nor overflows and is as exact as float64.

N utterances, T frames, R nodes kept a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdlib.rnnt.gpu_launch import jit, launching_on, tl, triton
from kdlib.rnnt.lattice import LatticeResult

# The lanes of the lattice's scan: at least one to each thread of a warp.
LEAST_LANES = 32

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
def _carry(m, e):
    """m from 1 to 4 to one from 1 to 2."""
    over = m >= 2.0
    return tl.where(over, m * 0.5, m), tl.where(over, e + 1.0, e)


@jit
def _times(m1, e1, m2, e2):
    return _carry(m1 * m2, e1 + e2)


@jit
def _plus(m1, e1, m2, e2):
    first = e1 >= e2
    # 2^-|e1 - e2| from its bits. Below 2^-1000 nothing is left of the smaller number.
    exponent = tl.where(tl.abs(e1 - e2) < 1000.0, tl.abs(e1 - e2), 1000.0).to(tl.int64)
    scale = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    m = tl.where(first, m1, m2) + tl.where(first, m2, m1) * scale
    return _carry(m, tl.where(first, e1, e2))


@jit
def _then(am1, ae1, bm1, be1, am2, ae2, bm2, be2):
    """One map x -> a * x + b after another."""
    am, ae = _times(am1, ae1, am2, ae2)
    m, e = _times(am2, ae2, bm1, be1)
    bm, be = _plus(m, e, bm2, be2)
    return am, ae, bm, be


@jit
def _from_before(
    arcs, mantissas, exponents, exists, t, r, u, before, step, back, shift, u_begin, u_end, nodes,
):
    """What reaches the nodes (t, r) from the frame that was done before, over the arcs of one kind: the numbers there,
    and the logs of the arcs. It only loads, so that a caller can wait for all its loads together.

    ``before`` is the r of the nodes' label count u in that frame; the arcs come from ``shift`` labels less.
    In the first step they come from one node, (t_begin - 1, u_begin) with a blank arc of weight 1 to the start or,
    backward, the terminal node (t_end, u_end).
    """
    from_u, from_r = u - shift, before - shift
    known = exists & (step > 0) & (from_r >= 0) & (from_r < nodes) & (from_u >= u_begin) & (from_u <= u_end)
    first = exists & (step == 0) & (from_u == tl.where(back, u_end, u_begin)) & (back | (shift == 0))
    there = (tl.where(back, t + 1, t - 1)) * nodes + from_r
    m = tl.load(mantissas + there, mask=known, other=0.0)
    e = tl.load(exponents + there, mask=known, other=-1e200)
    # An arc lies where it leaves from.
    arc = tl.load(arcs + tl.where(back, t * nodes + r, there), mask=known | (first & back), other=0.0)
    return tl.where(first, 1.0, m), tl.where(first, 0.0, e), arc


@jit
def _over(m, e, arc):
    arc_m, arc_e = _number(arc.to(tl.float64))
    return _times(m, e, arc_m, arc_e)


@jit
def _lattice(
    label_arcs, blank_arcs, starts, boundary, mantissas, exponents, score, frames, nodes,
    MODIFIED: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program: the forward variable of one utterance, and its score, or the backward variable.

    ``mantissas``, ``exponents``: (1 or 2, N, T, R) float64, written in the frames of the utterance.
    """
    n, back = tl.program_id(0).to(tl.int64), tl.program_id(1) == 1
    u_begin = tl.load(boundary + 4 * n).to(tl.int32)
    t_begin = tl.load(boundary + 4 * n + 1).to(tl.int32)
    u_end = tl.load(boundary + 4 * n + 2).to(tl.int32)
    t_end = tl.load(boundary + 4 * n + 3).to(tl.int32)
    label_arcs += n * frames * nodes
    blank_arcs += n * frames * nodes
    starts += n * frames
    own = (tl.program_id(1) * tl.num_programs(0) + n) * frames * nodes
    mantissas += own
    exponents += own

    lane = tl.arange(0, BLOCK)
    r = tl.where(back, nodes - 1 - lane, lane)  # so that what a node depends on lies in lanes before its own
    way = tl.where(back, -1, 1)
    steps = t_end - t_begin
    first_before = u_begin
    step = 0
    while step < steps:
        t = tl.where(back, t_end - 1 - step, t_begin + step)
        first = tl.load(starts + t).to(tl.int32)
        u = first + r
        exists = (lane < nodes) & (u >= u_begin) & (u <= u_end)
        before = u - first_before
        blank_m, blank_e, blank = _from_before(
            blank_arcs, mantissas, exponents, exists, t, r, u, before, step, back, 0, u_begin, u_end, nodes
        )
        if MODIFIED:
            label_m, label_e, label = _from_before(
                label_arcs, mantissas, exponents, exists, t, r, u, before, step, back, way, u_begin, u_end, nodes
            )
            m, e = _over(blank_m, blank_e, blank)
            label_m, label_e = _over(label_m, label_e, label)
            m, e = _plus(m, e, label_m, label_e)
        else:
            # x[r] = m[r] + label[r] * x[r - 1] along the frame
            linked = exists & (r - way >= 0) & (r - way < nodes) & (u - way >= u_begin) & (u - way <= u_end)
            label = tl.load(label_arcs + t * nodes + tl.where(back, r, r - 1), mask=linked, other=float("-inf"))
            m, e = _over(blank_m, blank_e, blank)
            label_m, label_e = _number(label.to(tl.float64))
            _, _, m, e = tl.associative_scan((label_m, label_e, m, e), 0, _then)
        tl.store(mantissas + t * nodes + r, m, mask=lane < nodes)
        tl.store(exponents + t * nodes + r, e, mask=lane < nodes)
        tl.debug_barrier()  # other threads read them in the next step
        first_before = first
        step += 1

    # The terminal node, in the first lane: forward, it is one more frame of one node.
    u = u_end + 0 * lane
    exists = (lane == 0) & (back == 0)
    before = u - first_before
    blank_m, blank_e, blank = _from_before(
        blank_arcs, mantissas, exponents, exists, t_end, lane, u, before, steps, back, 0, u_begin, u_end, nodes
    )
    m, e = _over(blank_m, blank_e, blank)
    if MODIFIED:
        label_m, label_e, label = _from_before(
            label_arcs, mantissas, exponents, exists, t_end, lane, u, before, steps, back, 1, u_begin, u_end, nodes
        )
        label_m, label_e = _over(label_m, label_e, label)
        m, e = _plus(m, e, label_m, label_e)
    tl.store(score + n + lane, _logarithm(m, e), mask=exists)


@jit
def _visits(arcs, mantissas, exponents, i, to, lands, ends, m, e, score):
    """The posteriors of arcs that lead to the nodes ``to`` or, where ``ends``, to the terminal node."""
    to_m = tl.where(ends, 1.0, tl.load(mantissas + to, mask=lands, other=0.0))
    to_e = tl.where(ends, 0.0, tl.load(exponents + to, mask=lands, other=-1e200))
    arc = tl.load(arcs + i, mask=lands | ends, other=float("-inf")).to(tl.float64)
    posterior = m * to_m * tl.exp((e + to_e) * 0.6931471805599453 + arc - score)
    return tl.where(posterior > 0, tl.where(posterior < 1, posterior, 1.0), 0.0)  # 0 where it is nan


@jit
def _posteriors(
    label_arcs, blank_arcs, starts, boundary, mantissas, exponents, score, label_posterior, blank_posterior,
    count, frames, nodes, MODIFIED: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program: BLOCK nodes, from the variables that ``_lattice`` has left."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.cast(count, tl.int64) * frames * nodes
    exists = i < size
    frame = i // nodes
    r, t, n = i % nodes, frame % frames, frame // frames
    u_begin = tl.load(boundary + 4 * n, mask=exists, other=0)
    t_begin = tl.load(boundary + 4 * n + 1, mask=exists, other=0)
    u_end = tl.load(boundary + 4 * n + 2, mask=exists, other=0)
    t_end = tl.load(boundary + 4 * n + 3, mask=exists, other=0)
    total = tl.load(score + n, mask=exists, other=0.0)
    u = tl.load(starts + frame, mask=exists, other=0) + r
    inside = exists & (t >= t_begin) & (t < t_end) & (u >= u_begin) & (u <= u_end)
    inside &= tl.abs(total) < float("inf")  # a path, and no nan on it
    m = tl.load(mantissas + i, mask=inside, other=0.0)
    e = tl.load(exponents + i, mask=inside, other=-1e200)

    last = t + 1 == t_end
    after = u - tl.load(starts + frame + 1, mask=inside & (t + 1 < t_end), other=0)  # r in the next frame
    next_frame = (frame + 1) * nodes
    if MODIFIED:
        label_to = next_frame + after + 1
        label_lands = inside & (u < u_end) & (t + 1 < t_end) & (after + 1 >= 0) & (after + 1 < nodes)
        label_ends = inside & last & (u + 1 == u_end)
    else:
        label_to = i + 1
        label_lands = inside & (u < u_end) & (r + 1 < nodes)
        label_ends = inside & (u < u_begin)  # never
    blank_lands = inside & (t + 1 < t_end) & (after >= 0) & (after < nodes)
    blank_ends = inside & last & (u == u_end)
    mantissas += size
    exponents += size
    by_label = _visits(label_arcs, mantissas, exponents, i, label_to, label_lands, label_ends, m, e, total)
    by_blank = _visits(
        blank_arcs, mantissas, exponents, i, next_frame + after, blank_lands, blank_ends, m, e, total
    )
    tl.store(label_posterior + i, by_label, mask=exists)
    tl.store(blank_posterior + i, by_blank, mask=exists)


def score_lattice(
    label_arcs: Tensor, blank_arcs: Tensor, starts: Tensor, boundary: Tensor, modified: bool, occupancies: bool
) -> LatticeResult:
    """See ``kdlib.rnnt.lattice.score_lattice``."""
    label_arcs, blank_arcs = label_arcs.detach().contiguous(), blank_arcs.detach().contiguous()
    starts, boundary = starts.contiguous(), boundary.contiguous()
    count, frames, nodes = label_arcs.shape
    directions = 2 if occupancies else 1
    score = label_arcs.new_empty(count, dtype=torch.float64)
    variables = label_arcs.new_empty((2, directions, count, frames, nodes), dtype=torch.float64)
    block = max(triton.next_power_of_2(nodes), LEAST_LANES)
    with launching_on(label_arcs):
        _lattice[(count, directions)](
            label_arcs, blank_arcs, starts, boundary, *variables, score, frames, nodes,
            MODIFIED=modified, BLOCK=block, num_warps=min(max(block // 128, 1), 16), num_stages=1,
        )
        if not occupancies:
            return LatticeResult(score, None, None)
        posteriors = tuple(torch.empty_like(label_arcs) for _ in range(2))
        _posteriors[(triton.cdiv(label_arcs.numel(), 256),)](
            label_arcs, blank_arcs, starts, boundary, *variables, score, *posteriors, count, frames, nodes,
            MODIFIED=modified, BLOCK=256, num_warps=4,
        )
    return LatticeResult(score, *posteriors)
