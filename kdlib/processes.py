"""Helper processes that do not outlive the one that needs their work."""

import ctypes
import multiprocessing
import os
import signal


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
