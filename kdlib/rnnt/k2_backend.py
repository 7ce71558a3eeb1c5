"""The same four functions by k2 itself. k2 is imported on the first question for it, never before."""

from functools import lru_cache
from typing import Optional, Tuple

import torch
from torch import Tensor

from kdlib.rnnt.lattice import delay_offsets, reduce_loss


@lru_cache(maxsize=None)
def load() -> Tuple[Optional[object], str]:
    """(the k2 module, "") or (None, why it cannot be imported); asked once a process.

    Any exception counts as "cannot": k2 is a binary tied to one torch and one Python, and what a mismatch raises
    depends on which of them differs.
    """
    try:
        import k2

        k2.rnnt_loss_pruned  # a half-installed k2 imports as an empty namespace
    except Exception as error:  # noqa: BLE001
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
    return k2, ""


def refusal(labels: int, frames: int, tensor: Tensor) -> str:
    """Why k2 cannot take a batch of this shape and device ("" where it can).

    k2 1.23.4 asserts at least one label in the batch, and no fewer frames than labels, both counted with padding.
    """
    if labels < 1:
        return "k2 1.23.4 takes no batch in which no utterance has a label"
    if frames < labels:
        return f"k2 1.23.4 takes no batch with fewer frames ({frames}) than labels ({labels})"
    module, _ = load()
    if tensor.is_cuda and not getattr(module, "with_cuda", False):
        return "this k2 was built without CUDA"
    return ""


def finite(*tensors: Tensor) -> bool:
    """Whether all numbers are: of others k2 1.23.4 may give a finite loss and a gradient of nan. A sum tells, in one
    reading; one that overflows for large numbers sends these to native, which computes the same."""
    return bool(torch.isfinite(sum(tensor.detach().sum(dtype=_wide(tensor)) for tensor in tensors)))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)  # float16 has few numbers above the logits


def rnnt_loss_smoothed(**arguments):
    return load()[0].rnnt_loss_smoothed(**arguments)


def get_rnnt_prune_ranges(**arguments) -> Tensor:
    return load()[0].get_rnnt_prune_ranges(**arguments)


def do_rnnt_pruning(**arguments) -> Tuple[Tensor, Tensor]:
    return load()[0].do_rnnt_pruning(**arguments)


def rnnt_loss_pruned(
    logits: Tensor,
    boundary: Tensor,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str,
    sharpness: float,
    **lattice,
) -> Tensor:
    k2, lattice = load()[0], dict(lattice, logits=logits, boundary=boundary, rnnt_type=rnnt_type)
    if sharpness == 1.0:
        return k2.rnnt_loss_pruned(**lattice, delay_penalty=delay_penalty, reduction=reduction)
    # k2's loss has no such option, so its two parts stand here, and between them what it adds to the labels' arcs.
    label_arcs, blank_arcs = k2.get_rnnt_logprobs_pruned(**lattice)
    if delay_penalty > 0.0:
        frames = label_arcs.shape[2] - (rnnt_type == "regular")
        offsets = delay_offsets(boundary, frames, logits) * delay_penalty
        label_arcs[:, :, :frames] += offsets.unsqueeze(1).to(logits.dtype)
    score = k2.mutual_information_recursion(label_arcs * sharpness, blank_arcs * sharpness, boundary)
    return reduce_loss(-score / sharpness, reduction)
