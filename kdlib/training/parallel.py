"""Data-parallel training on one machine: a process for each GPU, or a few single-threaded ones on a CPU.

On two cores, two processes of one thread each train a small model as fast as one of two threads, and much faster where other
work shares the cores: threads wait for each other at every small operation, processes once an update. A model of tens of
millions of parameters, alone on its machine, is faster in one process, where no gradients have to be added up.
"""

import os
import pickle
import signal
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Callable, Iterable, Optional

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kdlib.errors import RecipeError, known_failure
from kdlib.files import naming
from kdlib.processes import end_with_parent, usable_cores

MAX_CPU_PROCESSES = 4
WORK = "work"  # the file of what spawned processes do
INTERRUPTED = 130  # the exit status of a process that was, as a shell has it


def default_world_size() -> int:
    """A process for each GPU; without one, a process for each core that this one may use, up to four."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(MAX_CPU_PROCESSES, usable_cores())


def require_devices(world_size: int, precision: str) -> None:
    """Refuse to train on the CPU beside GPUs, of which there are too few, or in a precision that they do not have.

    Raises:
        RecipeError
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < count < world_size:
        raise RecipeError(f"--world-size {world_size}: there are {count} GPUs, for as many processes; to train on the CPU hide "
                          "them with CUDA_VISIBLE_DEVICES=")
    # torch's is_bf16_supported is true of what it only emulates, too.
    if precision == "bfloat16" and any(torch.cuda.get_device_capability(i) < (8, 0) for i in range(min(count, world_size))):
        raise RecipeError("training.precision=bfloat16: a GPU here has none; leave it at float32")


def launch(work: Callable[[int, torch.device], None], world_size: int) -> None:
    """Run ``work(rank, device)`` in ``world_size`` processes that can talk to each other; one runs in this process.

    An error in any of them ends them all.

    Raises:
        RecipeError: the one that a process raised; of several, that of the lowest rank.
    """
    if world_size == 1:
        torch.set_num_threads(_threads(1))
        work(0, training_device(0, 1))
        return
    # Forking spares each process the seconds of the imports; CUDA cannot be used in a forked process.
    method = "spawn" if training_device(0, world_size).type == "cuda" else "fork"
    if method == "fork":
        torch.optim.AdamW([torch.zeros(1)])  # the first optimizer of a process has torch import what it had put off
    # All processes are on this machine: its name need not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        if method == "spawn":
            # Through one file. Otherwise each tensor would be a file in shared memory: a process may open only some hundreds
            # of files, and a container may have little such memory. And all processes draw the same numbers, as forked ones
            # do.
            with naming(Path(folder, WORK)), open(Path(folder, WORK), "wb") as file:
                pickle.dump((work, torch.get_rng_state()), file)
            work = None
        try:
            context = mp.start_processes(_process, args=(work, world_size, folder), nprocs=world_size, join=False,
                                         start_method=method)
            while not context.join():
                pass
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:  # maybe of one that misses the other
            told = sorted(Path(folder).glob("error-*"))
            if told:
                raise RecipeError(_told(told[0])) from None
            ended = [process.exitcode for process in context.processes]
            if INTERRUPTED in ended:
                raise KeyboardInterrupt from None
            if -signal.SIGKILL in ended:
                raise RecipeError(f"process {ended.index(-signal.SIGKILL)} was killed, most likely for want of memory: set "
                                  "training.micro_batches higher or data.num_workers lower, and run the same command again"
                                  ) from None
            faults = sorted(Path(folder).glob("fault-*"), key=lambda path: path.stat().st_mtime_ns)
            if faults:
                raise RuntimeError(_told(faults[0])) from error
            raise
        except BaseException:
            for process in mp.active_children():  # one that waits for another, deep in NCCL, does not hear Ctrl-C
                process.kill()
            raise


def _told(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _threads(world_size: int) -> int:
    """A process's share of the cores, or fewer where OMP_NUM_THREADS says so."""
    share, wanted = max(1, usable_cores() // world_size), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wanted)) if wanted.isdecimal() and int(wanted) > 0 else share


def training_device(rank: int, world_size: int) -> torch.device:
    """A GPU for each process, or the CPU for all."""
    if torch.cuda.is_available() and world_size <= torch.cuda.device_count():
        return torch.device("cuda", rank)
    return torch.device("cpu")


def _process(rank: int, work: Optional[Callable[[int, torch.device], None]], world_size: int, folder: str) -> None:
    # In place of torch's own way, a SIGINT, to which a shell's background jobs are born deaf.
    end_with_parent()
    spawned = work is None
    if spawned:
        with open(Path(folder, WORK), "rb") as file:
            work, state = pickle.load(file)
        torch.set_rng_state(state)
    device = training_device(rank, world_size)
    if device.type == "cpu":
        torch.set_num_threads(_threads(world_size))
    else:
        torch.cuda.set_device(device)
    # The others wait while rank 0 computes the dev loss and writes; one that ended is seen by the process that started it.
    wait = timedelta(days=1)
    store = dist.FileStore(str(Path(folder, "store")), world_size)  # not by its URL, in which ? and # have a meaning
    store.set_timeout(wait)
    if spawned and store.add("read", 1) == world_size:  # not at the end, which a training that is killed does not come to
        Path(folder, WORK).unlink(missing_ok=True)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world_size,
                            timeout=wait)
    # A process that fails ends at once, and not by way of Python's end, where NCCL may wait for the others, who wait for it.
    try:
        work(rank, device)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except Exception as error:
        try:
            message = known_failure(error)
            kind, text = ("fault", traceback.format_exc()) if message is None else ("error", message)
            Path(folder, f"{kind}-{rank}").write_text(text, encoding="utf-8", errors="surrogateescape")
            sys.stdout.flush()
        finally:
            os._exit(1)
    dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every parameter's gradient by its sum over the processes. One that some lack counts as zero there; what none has
    is left without, as in a single process: an optimizer would let the weight decay, were it zero."""
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    here = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    flat = torch.cat([*here, here[0].new_tensor([float(p.grad is not None) for p in parameters])])
    dist.all_reduce(flat)
    *parts, has = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for p, part, count in zip(parameters, parts, has.tolist()):
        p.grad = part.view_as(p) if count else None

