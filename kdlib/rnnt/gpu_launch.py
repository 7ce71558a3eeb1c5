"""Triton, where it can be imported, and what each kernel of kdlib.rnnt's needs to be defined and launched.

Triton comes with torch on Linux, from torch 2.7 on one that is new enough; without it ``kdlib.rnnt.plain`` does the same
work. With TRITON_INTERPRET=1 in the environment Triton runs kernels on the CPU, which is how they are tested without a GPU.
"""

import contextlib

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    # Older ones cannot move numbers from thread to thread (tl.gather).
    if tuple(int(number) for number in triton.__version__.split(".")[:2]) < (3, 3):
        triton = None
except Exception:  # a binary for another Python or machine fails with whatever it meets first
    triton = tl = None


# The sizes of a batch: Triton would compile a kernel anew for each kind of number, divisible by 16, 1 or other.
OF_A_BATCH = ("rows", "count", "frames", "nodes")


def jit(function):
    """Triton's kernel of a function, where Triton is; compiled once for batches of all sizes."""
    return function if triton is None else triton.jit(function, do_not_specialize=OF_A_BATCH)


def launching_on(tensor: Tensor):
    """The context to launch a kernel in: Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
