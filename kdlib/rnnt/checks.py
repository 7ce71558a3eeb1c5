"""Argument checks of the transducer functions: a ValueError that names the argument, and the utterance where one is
at fault."""

from typing import Optional, Sequence

import torch
from torch import Tensor

RNNT_TYPES = ("regular", "modified")
REDUCTIONS = ("none", "mean", "sum")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _utterances(bad: Tensor) -> str:
    return ", ".join(str(n) for n in bad.nonzero().flatten().tolist()[:8])


def require_utterances(good: Tensor, name: str, complaint: str) -> None:
    """``good`` (N,) bool; a ValueError "<name> of utterance 1, 4 <complaint>" where it is not all true."""
    if not bool(good.all()):
        raise ValueError(f"{name} of utterance {_utterances(~good)} {complaint}")


def check_options(rnnt_type: str, reduction: str, delay_penalty: float) -> None:
    require(rnnt_type in RNNT_TYPES, f"rnnt_type {rnnt_type!r} is not supported: use one of {', '.join(RNNT_TYPES)}")
    require(reduction in REDUCTIONS, f"reduction {reduction!r} is not known: use one of {', '.join(REDUCTIONS)}")
    require(delay_penalty >= 0.0, f"delay_penalty must not be negative, not {delay_penalty}")


def check_float(name: str, tensor: Tensor, dimensions: int) -> None:
    require(
        tensor.dim() == dimensions and tensor.is_floating_point(),
        f"{name} must be a floating tensor of {dimensions} dimensions, not {tensor.dtype} {tuple(tensor.shape)}",
    )
    require(tensor.numel() > 0, f"{name} is empty: {tuple(tensor.shape)}")


def check_alike(names: Sequence[str], tensors: Sequence[Tensor], dtype: bool = True) -> None:
    for name, tensor in zip(names[1:], tensors[1:]):
        require(
            tensor.device == tensors[0].device,
            f"{name} lies on {tensor.device}, {names[0]} on {tensors[0].device}: move them to one device",
        )
        require(
            not dtype or tensor.dtype == tensors[0].dtype,
            f"{name} is {tensor.dtype}, {names[0]} is {tensors[0].dtype}: give both one dtype",
        )


def check_boundary(boundary: Optional[Tensor], count: int, labels: int, frames: int) -> None:
    if boundary is None:
        return
    require(
        boundary.dtype == torch.int64 and boundary.shape == (count, 4),
        f"boundary must be int64 ({count}, 4), not {boundary.dtype} {tuple(boundary.shape)}",
    )
    u_begin, t_begin, u_end, t_end = boundary.unbind(1)
    bad = (u_begin < 0) | (u_begin > u_end) | (u_end > labels) | (t_begin < 0) | (t_begin > t_end) | (t_end > frames)
    if bool(bad.any()):
        raise ValueError(
            f"boundary of utterance {_utterances(bad)} lies outside the tensors ({labels} labels, {frames} frames): "
            f"{boundary[bad][0].tolist()} as [s_begin, t_begin, s_end, t_end]"
        )


def check_symbols(symbols: Tensor, boundary: Optional[Tensor], count: int, tokens: int, blank: int) -> None:
    require(
        symbols.dim() == 2 and symbols.shape[0] == count and symbols.dtype == torch.int64,
        f"symbols must be int64 ({count}, U), not {symbols.dtype} {tuple(symbols.shape)}",
    )
    require(0 <= blank < tokens, f"termination_symbol {blank} lies outside the vocabulary of {tokens}")
    inside = ((symbols >= 0) & (symbols < tokens)).all(dim=1)
    require_utterances(inside, "symbols", f"lie outside the vocabulary of {tokens} tokens")
    is_blank = symbols == blank
    if boundary is not None:
        u = torch.arange(symbols.shape[1], device=symbols.device)
        is_blank = is_blank & (u >= boundary[:, 0:1]) & (u < boundary[:, 2:3])
    complaint = f"contain the termination symbol {blank}, which is no label"
    require_utterances(~is_blank.any(dim=1), "symbols", complaint)


def check_ranges(ranges: Tensor, count: int, frames: int, labels: int) -> None:
    require(
        ranges.dtype == torch.int64 and ranges.dim() == 3 and ranges.shape[:2] == (count, frames),
        f"ranges must be int64 ({count}, {frames}, R), not {ranges.dtype} {tuple(ranges.shape)}",
    )
    kept = ranges.shape[2]
    require(1 <= kept <= labels + 1, f"ranges keeps {kept} nodes a frame of the {labels + 1} that there are")
    steps = torch.arange(kept, device=ranges.device)
    good = (ranges == ranges[:, :, :1] + steps) & (ranges >= 0) & (ranges <= labels)
    complaint = f"are not consecutive label counts between 0 and {labels}"
    require_utterances(good.flatten(1).all(dim=1), "ranges", complaint)


def check_coverage(ranges: Tensor, boundary: Tensor, modified: bool) -> None:
    """The kept nodes hold the last one of each utterance, where the lattice has a path to it at all."""
    u_end, t_end = boundary[:, 2], boundary[:, 3]
    first = ranges[:, :, 0].gather(1, (t_end - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    last = first + ranges.shape[2] - 1
    reach = last + (u_end > 0).long() if modified else last  # a modified lattice's last arc may be a label
    has_path = (t_end > boundary[:, 1]) & (u_end <= t_end if modified else t_end > 0)
    bad = has_path & ((u_end < first) | (u_end > reach))
    if bool(bad.any()):
        n = int(bad.nonzero()[0])
        raise ValueError(
            f"ranges of utterance {_utterances(bad)} do not cover its labels: at its last frame they keep "
            f"{int(first[n])} to {int(last[n])} of {int(u_end[n])} labels"
        )


def check_lattice(
    symbols: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    count: int,
    frames: int,
    labels: int,
    tokens: int,
    blank: int,
    rnnt_type: str,
) -> None:
    """Everything about a pruned lattice but its logits."""
    check_ranges(ranges, count, frames, labels)
    check_boundary(boundary, count, labels, frames)
    check_symbols(symbols, boundary, count, tokens, blank)
    require(symbols.shape[1] == labels, f"symbols has {symbols.shape[1]} labels, lm is for {labels}")
    check_coverage(ranges, boundary, rnnt_type == "modified")


def check_no_infinity(name: str, tensor: Tensor, mask: Tensor) -> None:
    """No +inf in the last dimension of ``tensor`` where ``mask`` is true."""
    bad = torch.isposinf(tensor.detach()).any(-1) & mask
    require_utterances(~bad.flatten(1).any(1), name, "is +inf at a node of its lattice")
