"""The kernels on the CPU: compiled loops over torch's own memory, on as many threads as torch uses.

Numba compiles them on first use, which takes some seconds, and keeps the result beside the source (or in
NUMBA_CACHE_DIR). Without Numba ``kdlib.rnnt.plain`` does the same work.
"""

import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor

from kdlib.errors import RecipeError, with_its_type
from kdlib.rnnt.lattice import LatticeResult

# In float32, smaller posteriors are zero: beside the 1 that those of a frame add up to they are nothing, but their
# products are denormal numbers, with which the matrix multiplications that follow take several times as long.
LEAST_LOG_POSTERIOR = -46.0


@lru_cache(maxsize=None)
def available() -> bool:
    """Whether Numba and the loops can be imported, asked once; where Numba is there and fails, a warning says why."""
    try:
        import numba  # noqa: F401

        from kdlib.rnnt import compiled  # noqa: F401  # which needs a folder to keep what it compiles
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return False
        reason = str(error)
    except Exception as error:  # a numpy or llvmlite that it was not built for fails with whatever it meets first
        reason = f"{type(error).__name__}: {error}"
    else:
        return True
    warnings.warn(f"Numba cannot be used ({reason}): the transducer's losses are computed by slower loops")
    return False


def takes(tensor: Tensor) -> bool:
    """Whether the compiled loops compute with such a tensor."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) and available()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: one that was forked off has none of its parent's."""
    return ThreadPoolExecutor(threads)


def _call(loop: str, arguments: Sequence[object]) -> None:
    """Call the compiled loop; Numba reads or writes what it keeps at the first call with these dtypes."""
    from kdlib.rnnt import compiled

    function = getattr(compiled, loop)
    try:
        function(*arguments)
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"{function.stats.cache_path}, where Numba keeps the compiled loops of the transducer's losses, cannot be used "
            f"({with_its_type(error)}): remove it, free some space, or name another folder in NUMBA_CACHE_DIR"
        ) from None


def _run(loop: str, columns: Sequence[Tensor], options: Sequence[object], parts: int) -> None:
    """Call the compiled loop on ``parts`` runs of rows of the columns, on as many threads as torch uses.

    Threads of our own, which the compiled code frees of Python's lock, rather than Numba's: those cannot be used in a
    process that was forked after their first use.
    """
    rows = len(columns[0])
    if any(len(column) != rows for column in columns):  # compiled code looks at no bounds
        raise ValueError(f"{loop}: the columns have {', '.join(str(len(column)) for column in columns)} rows")
    arrays = [column.detach().numpy() for column in columns]
    bounds = [rows * i // parts for i in range(parts + 1)]
    threads = torch.get_num_threads()
    jobs = [[array[first:last] for array in arrays] for first, last in zip(bounds, bounds[1:]) if first < last]
    if threads == 1 or len(jobs) <= 1:
        for job in jobs:
            _call(loop, [*job, *options])
        return
    futures = [_pool(os.getpid(), threads).submit(_call, loop, [*job, *options]) for job in jobs[1:]]
    _call(loop, [*jobs[0], *options])
    for future in futures:
        future.result()


def log_softmax_at(logits: Tensor, labels: Tensor, blank: int, wanted: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """See ``kdlib.rnnt.plain.log_softmax_at``."""
    results = tuple(logits.new_empty(logits.shape[0]) for _ in range(3))
    _run("log_softmax_at", (logits, labels, wanted, *results), (blank,), torch.get_num_threads())
    return results


def logit_gradient(
    logits: Tensor,
    labels: Tensor,
    blank: int,
    normaliser: Tensor,
    label_weight: Tensor,
    blank_weight: Tensor,
    out: Tensor,
    add: bool = False,
) -> None:
    """See ``kdlib.rnnt.plain.logit_gradient``."""
    columns = (logits, labels, normaliser, label_weight, blank_weight, out)
    in_place = out.data_ptr() == logits.data_ptr()
    _run("logit_gradient", columns, (blank, in_place, add), torch.get_num_threads())


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tuple[Tensor, Tensor, Tensor]:
    """KL(teacher || student) of each row at a temperature.

    Args:
      student, teacher: (M, V) logits of one dtype, contiguous.

    Returns:
      (M,): the log-sum-exps of student and teacher at that temperature, as ``kl_gradient`` wants them; the divergence.
    """
    results = tuple(student.new_empty(student.shape[0]) for _ in range(3))
    _run("kl_divergence", (student, teacher, *results), (1.0 / temperature,), torch.get_num_threads())
    return results


def kl_gradient(
    student: Tensor, teacher: Tensor, norms: Sequence[Tensor], weight: Tensor, temperature: float
) -> Tensor:
    """(M, V), the gradient of the sum of ``weight`` (M,) times the divergence, with respect to the student."""
    out = torch.empty_like(student)
    columns = (student, teacher, *norms, weight, out)
    _run("kl_gradient", columns, (1.0 / temperature,), torch.get_num_threads())
    return out


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
    count = label_arcs.shape[0]
    shapes = (blank_arcs.shape, starts.shape, boundary.shape)
    if shapes != (label_arcs.shape, label_arcs.shape[:2], (count, 4)):  # compiled code looks at no bounds
        raise ValueError(
            f"score_lattice: blank_arcs, starts and boundary of {', '.join(str(tuple(shape)) for shape in shapes)} do not "
            f"go with label_arcs {tuple(label_arcs.shape)}"
        )
    score = label_arcs.new_empty(count, dtype=torch.float64)
    alpha = torch.empty_like(label_arcs, dtype=torch.float64)  # room to work in
    posteriors = [label_arcs.new_empty(label_arcs.shape if occupancies else (count, 0, 0)) for _ in range(2)]
    least = LEAST_LOG_POSTERIOR if label_arcs.dtype == torch.float32 else float("-inf")
    columns = (label_arcs, blank_arcs, starts.contiguous(), boundary.contiguous(), alpha, score, *posteriors)
    _run("lattice", columns, (modified, least, occupancies), count)
    return LatticeResult(score, *(posteriors if occupancies else (None, None)))
