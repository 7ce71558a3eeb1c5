"""The argument checks on a CUDA GPU: one Triton kernel looks at all values of a lattice, as ``kdlib.rnnt.checks.look`` does
by some tens of small ones, each of which costs more to start than to run.

N utterances, T frames, U labels, R nodes kept a frame.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from kdlib.rnnt.gpu_launch import jit, launching_on, tl

BLOCK = 1024  # numbers that a program takes at once


@jit
def _wrong_utterances(
    symbols, ranges, boundary, wrong, rows, frames, nodes, tokens, blank,
    COVERED: tl.constexpr, MODIFIED: tl.constexpr, BLOCK: tl.constexpr,
):
    """A program: one utterance, in the order of ``checks.look``. ``rows``: U + 1. What may be None is None, at compile time."""
    n = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    wrong_here = lane < 0
    if boundary is not None:
        u_begin = tl.load(boundary + 4 * n)
        t_begin = tl.load(boundary + 4 * n + 1)
        u_end = tl.load(boundary + 4 * n + 2)
        t_end = tl.load(boundary + 4 * n + 3)
        wrong_here |= (u_begin < 0) | (u_begin > u_end) | (t_begin < 0) | (t_begin > t_end) | (t_end > frames)
        if rows is not None:
            wrong_here |= u_end >= rows
    if symbols is not None:
        labels = rows - 1
        first = 0
        while first < labels:
            u = first + lane
            symbol = tl.load(symbols + n * labels + u, mask=u < labels, other=0)
            bad = (symbol < 0) | ((symbol == blank) & (u >= u_begin) & (u < u_end))
            if tokens is not None:
                bad |= symbol >= tokens
            wrong_here |= (u < labels) & bad
            first += BLOCK
    if ranges is not None:
        size = frames * nodes
        ranges += n * size
        first = 0
        while first < size:
            i = first + lane
            r = i % nodes
            u = tl.load(ranges + i, mask=i < size, other=0)
            bad = (u < 0) | (u != tl.load(ranges + i - r, mask=i < size, other=0) + r)
            if rows is not None:
                bad |= u >= rows
            wrong_here |= (i < size) & bad
            first += BLOCK
    if COVERED:
        last_frame = tl.where(t_end > frames, frames, tl.where(t_end < 1, 1, t_end)) - 1
        lowest = tl.load(ranges + last_frame * nodes)
        highest = lowest + nodes - 1
        has_path = t_end > t_begin
        beyond = u_end > highest
        if MODIFIED:
            has_path &= u_end - u_begin <= t_end - t_begin
            beyond = (u_end > highest + (u_end > u_begin).to(tl.int64)) & (lowest < last_frame)
        wrong_here |= has_path & ((u_end < lowest) | beyond)
    tl.store(wrong + n, tl.max(wrong_here.to(tl.int32), axis=0))


def wrong_utterances(
    symbols: Optional[Tensor],
    ranges: Optional[Tensor],
    boundary: Optional[Tensor],
    frames: int,
    labels: Optional[int],
    tokens: Optional[int],
    blank: int,
    rnnt_type: Optional[str],
) -> Tensor:
    """(N,) uint8: 1 for each utterance that ``kdlib.rnnt.checks.look``, given the same, finds something wrong with."""
    given = [None if tensor is None else tensor.contiguous() for tensor in (symbols, ranges, boundary)]
    like = next(tensor for tensor in given if tensor is not None)
    wrong = torch.empty(len(like), dtype=torch.uint8, device=like.device)
    with launching_on(like):
        _wrong_utterances[(len(like),)](
            *given, wrong, None if labels is None else labels + 1, frames, 0 if ranges is None else ranges.shape[2], tokens,
            blank, COVERED=rnnt_type is not None, MODIFIED=rnnt_type == "modified", BLOCK=BLOCK, num_warps=4,
        )
    return wrong
