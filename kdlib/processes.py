"""Helper processes that do not outlive the one that needs their work."""

import ctypes
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Iterator, Optional

from kdlib.errors import RecipeError, in_one_line

_MEND = "give fewer --jobs; if that does not help, run stage 1 again with --force, which finds a file that ends its decoder"


def end_with_parent() -> None:
    """Have this process ended by SIGTERM when its parent ends, however that ends; call it first in a helper process.

    Without it the workers of a pool whose owner was killed wait for more work for ever. Asks the kernel, which only
    Linux offers; elsewhere it does nothing.
    """
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
    except (AttributeError, OSError):
        return
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before the kernel was asked
        os._exit(1)


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # their threads would fight for the cores, which costs many times what they gain


def _start_worker() -> None:
    end_with_parent()
    _one_thread()


@contextmanager
def executor(jobs: int, dask: Optional[str] = None) -> Iterator[Any]:
    """What takes work with ``submit``: ``jobs`` processes of one thread, or a Dask cluster.

    Args:
        dask: the address of its scheduler; or ``local``, for a cluster of ``jobs`` processes on this machine.
    Raises:
        RecipeError: Dask is not installed, or nothing answers at that address, or a process was ended.
    """
    if not dask:
        try:
            with ProcessPoolExecutor(jobs, initializer=_start_worker) as pool:
                try:
                    yield pool
                except BaseException:
                    pool.shutdown(cancel_futures=True)  # else an error would be said only once all other work is done
                    raise
        except BrokenProcessPool:
            raise RecipeError("a process that did part of the work was ended, as for want of memory or by a fault in what "
                              f"decodes audio: {_MEND}") from None
        return
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise RecipeError("--dask needs the packages dask and distributed: pip install distributed") from None
    try:
        client = Client(n_workers=jobs, threads_per_worker=1) if dask == "local" else Client(dask)
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"--dask {dask}: no Dask scheduler answers there ({in_one_line(error)})") from None
    with client:
        client.run(_one_thread)
        try:
            yield client
        except KilledWorker as error:
            raise RecipeError("Dask's workers were ended over a part of the work, as for want of memory or by a fault in what "
                              f"decodes audio ({in_one_line(error)}): {_MEND}") from None
