"""Argument checks of the transducer functions: a ValueError that names the argument, and the utterance where one is
at fault.

What has to look at values gives a ``Finding``, and ``raise_findings`` asks of all of a call at once whether there is
one: on a GPU each such question waits for all the work before it. There one kernel looks first, and these only where it
has found something.
"""

import math
import numbers
from typing import Callable, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

RNNT_TYPES = ("regular", "modified")
REDUCTIONS = ("none", "mean", "sum")


class Finding(NamedTuple):
    """``bad`` (N,) bool: the utterances at fault; ``message`` makes the words, which is called only where there are."""

    bad: Tensor
    message: Callable[[], str]


def require(condition: bool, message: str) -> None:
    """A ValueError of ``message`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def raise_findings(findings: Sequence[Finding]) -> None:
    """A ValueError of the first that has found something."""
    if findings and bool(torch.stack([finding.bad for finding in findings]).cpu().any()):
        raise ValueError(next(finding.message() for finding in findings if bool(finding.bad.any())))


def _utterances(bad: Tensor) -> str:
    return ", ".join(str(n) for n in bad.nonzero().flatten().tolist()[:8])


def refuse_utterances(bad: Tensor, name: str, complaint: str) -> None:
    """``bad`` (N,) bool; a ValueError "<name> of utterance 1, 4 <complaint>" where one is."""
    raise_findings([_finding(bad, name, complaint)])


def _finding(bad: Tensor, name: str, complaint: str) -> Finding:
    return Finding(bad, lambda: f"{name} of utterance {_utterances(bad)} {complaint}")


def check_options(rnnt_type: str, reduction: str, delay_penalty: float) -> None:
    """Those that all losses take."""
    require(rnnt_type in RNNT_TYPES, f"rnnt_type {rnnt_type!r} is not supported: use one of {', '.join(RNNT_TYPES)}")
    require(reduction in REDUCTIONS, f"reduction {reduction!r} is not known: use one of {', '.join(REDUCTIONS)}")
    check_scale("delay_penalty", delay_penalty)


def check_scale(name: str, value: float) -> None:
    """A number of Python's or NumPy's, finite and not negative."""
    require(
        isinstance(value, numbers.Real) and 0.0 <= value < math.inf,
        f"{name} must be a number, finite and not negative, not {describe(value)}",
    )


def check_sharpness(value: float) -> None:
    """As :func:`check_scale`, and above 0."""
    check_scale("sharpness", value)
    require(value > 0.0, "sharpness must be above 0")


def check_whole(name: str, value: int) -> None:
    """A whole number, and no truth value."""
    require(
        isinstance(value, numbers.Integral) and not isinstance(value, bool),
        f"{name} must be an int, not {value!r} of type {type(value).__name__}",
    )


def describe(value: object) -> str:
    """What an argument is, for a message: a tensor by its dtype and shape."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def check_float(name: str, tensor: Tensor, dimensions: int) -> None:
    """A floating tensor of so many dimensions, not empty."""
    require(
        isinstance(tensor, Tensor) and tensor.dim() == dimensions and tensor.is_floating_point(),
        f"{name} must be a floating tensor of {dimensions} dimensions, not {describe(tensor)}",
    )
    require(tensor.numel() > 0, f"{name} is empty: {tuple(tensor.shape)}")


def check_alike(names: Sequence[str], tensors: Sequence[Tensor], dtype: bool = True) -> None:
    """Tensors on the device of the first one and, with ``dtype``, of its dtype."""
    for name, tensor in zip(names, tensors):
        require(isinstance(tensor, Tensor), f"{name} must be a tensor, not {describe(tensor)}")
        require(
            tensor.device == tensors[0].device,
            f"{name} lies on {tensor.device}, {names[0]} on {tensors[0].device}: move them to one device",
        )
        require(
            not dtype or tensor.dtype == tensors[0].dtype,
            f"{name} is {tensor.dtype}, {names[0]} is {tensors[0].dtype}: give both one dtype",
        )


def boundary_on(device: torch.device, boundary: Optional[Tensor]) -> Optional[Tensor]:
    """The boundary on ``device``, None where there is none."""
    require(
        boundary is None or isinstance(boundary, Tensor), f"boundary must be int64 (N, 4), not {describe(boundary)}"
    )
    return None if boundary is None else boundary.to(device)


def kernel_for(device: torch.device) -> Optional[Callable[..., Tensor]]:
    """What does the work of ``look`` by one kernel, where the device has such."""
    if device.type != "cuda":
        return None
    from kdlib.rnnt import gpu, gpu_checks  # which import Triton

    return gpu_checks.wrong_utterances if gpu.runs_on(device) else None


def check_lattice(
    symbols: Optional[Tensor],
    ranges: Optional[Tensor],
    boundary: Optional[Tensor],
    count: int,
    frames: int,
    labels: Optional[int],
    tokens: Optional[int] = None,
    blank: int = 0,
    rnnt_type: Optional[str] = None,
) -> None:
    """Everything about a lattice but its logits. A tensor that is None is none of the call's; symbols come with a boundary.

    ``labels``, ``tokens``: None where it is not known how many there are room for; ``rnnt_type``: None where the ranges need
    not cover the labels.
    """
    room = "" if labels is None else f" of the {labels + 1} that there are"
    if ranges is not None:
        require(
            ranges.dtype == torch.int64 and ranges.dim() == 3 and ranges.shape[:2] == (count, frames),
            f"ranges must be int64 ({count}, {frames}, R), not {describe(ranges)}",
        )
        kept = ranges.shape[2]
        require(kept >= 1 and (labels is None or kept <= labels + 1), f"ranges keeps {kept} nodes a frame{room}")
    if boundary is not None:
        require(
            boundary.dtype == torch.int64 and boundary.shape == (count, 4),
            f"boundary must be int64 ({count}, 4), not {describe(boundary)}",
        )
    if symbols is not None:
        require(
            symbols.dim() == 2 and symbols.shape[0] == count and symbols.dtype == torch.int64,
            f"symbols must be int64 ({count}, U), not {describe(symbols)}",
        )
        check_whole("termination_symbol", blank)
        require(tokens is not None or blank >= 0, f"termination_symbol {blank} is negative")
        require(
            tokens is None or 0 <= blank < tokens,
            f"termination_symbol {blank} lies outside the vocabulary of {tokens}",
        )
        require(symbols.shape[1] == labels, f"symbols has {symbols.shape[1]} labels, lm is for {labels}")

    values = (symbols, ranges, boundary, frames, labels, tokens, blank, rnnt_type)
    kernel = kernel_for(next(tensor for tensor in values[:3] if tensor is not None).device)
    if kernel is None or bool(kernel(*values).cpu().any()):
        raise_findings(look(*values))


def look(
    symbols: Optional[Tensor],
    ranges: Optional[Tensor],
    boundary: Optional[Tensor],
    frames: int,
    labels: Optional[int],
    tokens: Optional[int],
    blank: int,
    rnnt_type: Optional[str],
) -> List[Finding]:
    """The part of ``check_lattice`` that looks at values."""
    findings = []
    if ranges is not None:
        findings += _look_at_ranges(ranges, labels)
    if boundary is not None:
        findings += _look_at_boundary(boundary, labels, frames)
    if symbols is not None:
        findings += _look_at_symbols(symbols, boundary, tokens, blank)
    if rnnt_type is not None:
        findings += _look_at_coverage(ranges, boundary, rnnt_type == "modified")
    return findings


def _look_at_ranges(ranges: Tensor, labels: Optional[int]) -> List[Finding]:
    bad = (ranges != ranges[:, :, :1] + torch.arange(ranges.shape[2], device=ranges.device)) | (ranges < 0)
    bounds = "of 0 or more"
    if labels is not None:
        bad, bounds = bad | (ranges > labels), f"between 0 and {labels}"
    return [_finding(bad.flatten(1).any(dim=1), "ranges", f"are not consecutive label counts {bounds}")]


def _look_at_boundary(boundary: Tensor, labels: Optional[int], frames: int) -> List[Finding]:
    u_begin, t_begin, u_end, t_end = boundary.unbind(1)
    bad = (u_begin < 0) | (u_begin > u_end) | (t_begin < 0) | (t_begin > t_end) | (t_end > frames)
    room = f"{frames} frames"
    if labels is not None:
        bad, room = bad | (u_end > labels), f"{labels} labels, {room}"
    return [Finding(bad, lambda: (
        f"boundary of utterance {_utterances(bad)} lies outside the tensors ({room}): "
        f"{boundary[bad][0].tolist()} as [s_begin, t_begin, s_end, t_end]"
    ))]


def _look_at_symbols(symbols: Tensor, boundary: Tensor, tokens: Optional[int], blank: int) -> List[Finding]:
    outside, complaint = symbols < 0, "are negative"
    if tokens is not None:
        outside, complaint = outside | (symbols >= tokens), f"lie outside the vocabulary of {tokens} tokens"
    u = torch.arange(symbols.shape[1], device=symbols.device)
    is_blank = (symbols == blank) & (u >= boundary[:, 0:1]) & (u < boundary[:, 2:3])
    return [
        _finding(outside.any(dim=1), "symbols", complaint),
        _finding(is_blank.any(dim=1), "symbols", f"contain the termination symbol {blank}, which is no label"),
    ]


def _look_at_coverage(ranges: Tensor, boundary: Tensor, modified: bool) -> List[Finding]:
    """The kept nodes hold the last one of each utterance, where the lattice has a path to it at all.

    A modified band that has climbed as steeply as it can from label 0 is let pass, though it may be too late for an
    utterance that begins at a later label: ``get_rnnt_prune_ranges``, which takes the begins as zero, makes such, as
    k2 does. For the same reason the first node is not looked for. The loss is then +inf, in k2 as well.
    """
    u_begin, t_begin, u_end, t_end = boundary.unbind(1)
    # The boundary may be at fault itself, which is said first, but what is looked at must exist.
    last_frame = (t_end - 1).clamp(min=0, max=ranges.shape[1] - 1)
    first = ranges[:, :, 0].gather(1, last_frame.unsqueeze(1)).squeeze(1)
    last = first + ranges.shape[2] - 1
    has_path, beyond = t_end > t_begin, u_end > last
    if modified:  # whose last arc may be a label
        has_path = has_path & (u_end - u_begin <= t_end - t_begin)
        beyond = (u_end > last + (u_end > u_begin).long()) & (first < last_frame)
    bad = has_path & ((u_end < first) | beyond)

    def message() -> str:
        n = int(bad.nonzero()[0])
        return (
            f"ranges of utterance {_utterances(bad)} do not cover its labels: at its last frame they keep "
            f"{int(first[n])} to {int(last[n])} of {int(u_end[n])} labels"
        )

    return [Finding(bad, message)]


def check_no_infinity(name: str, tensor: Tensor, mask: Tensor) -> None:
    """No +inf in the last dimension of ``tensor`` where ``mask`` is true."""
    bad = torch.isposinf(tensor.detach()).any(-1) & mask
    refuse_utterances(bad.flatten(1).any(1), name, "is +inf at a node of its lattice")
