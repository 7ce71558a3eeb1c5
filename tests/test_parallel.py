"""Processes that train together end together."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

import pytest
import torch
from scripts import alive, run, wait_for

from kdlib.errors import RecipeError
from kdlib.processes import usable_cores
from kdlib.training.parallel import launch, require_devices, sum_gradients

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("no_gpu")]

WAITS = """
import os, signal, sys, time
from kdlib.training.parallel import launch

def work(rank, device):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as if it waited deep in NCCL
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(600)

launch(work, 2)
"""


def test_gradients_are_summed_and_what_no_process_has_stays_without(tmp_path):
    """Of the others the sum, though some process lacks one; frozen parameters are passed over."""
    def work(rank, device):
        both, one, none, frozen = (torch.nn.Parameter(torch.ones(2, 3), requires_grad=n < 3) for n in range(4))
        both.grad = torch.full((2, 3), 1.0 + rank)
        if rank == 1:
            one.grad = torch.tensor([[1.0, float("inf"), 0.0]] * 2)
        sum_gradients([both, frozen, none, one])
        torch.save([p.grad for p in (both, one, none, frozen)], tmp_path / f"{rank}.pt")

    launch(work, 2)
    for rank in range(2):
        both, one, none, frozen = torch.load(tmp_path / f"{rank}.pt")
        assert both.tolist() == [[3.0] * 3] * 2 and one.tolist() == [[1.0, float("inf"), 0.0]] * 2
        assert none is None and frozen is None


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_any_process_ends_all_and_is_told(failing):
    def work(rank, device):
        if rank == failing:
            raise RecipeError(f"the remedy of rank {rank}")
        time.sleep(600)

    with pytest.raises(RecipeError, match=f"the remedy of rank {failing}"):
        launch(work, 2)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_defect_or_an_interrupt_of_any_process_ends_all(failing):
    """The traceback is of the defect, not of what the others then miss."""
    def work(rank, device, error):
        if rank == failing:
            raise error
        torch.distributed.all_reduce(torch.ones(1))

    with pytest.raises(RuntimeError, match="in work\n.*raise error\nIndexError: of this rank"):
        launch(partial(work, error=IndexError("of this rank")), 2)
    with pytest.raises(KeyboardInterrupt):
        launch(partial(work, error=KeyboardInterrupt()), 2)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_is_killed_or_out_of_memory_is_told(failing):
    """As the kernel kills one, and as torch says it."""
    def killed(rank, device):
        if rank == failing:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.all_reduce(torch.ones(1))  # fails, since the other is no more

    def full(rank, device):
        if rank == failing:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        time.sleep(600)

    with pytest.raises(RecipeError, match=f"process {failing} was killed, .* set training.micro_batches higher or data.num"):
        launch(killed, 2)
    with pytest.raises(RecipeError, match="out of memory .*9 bytes.*: set training.micro_batches of a training higher"):
        launch(full, 2)


@pytest.mark.parametrize("name", ["a?b", "a#b"])
def test_the_folder_for_temporary_files_may_have_any_name(tmp_path, monkeypatch, name):
    """Even one that means something else in a URL."""
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    def work(rank, device):
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert not (tmp_path / "a").exists()  # what a URL would lead to
        (tmp_path / str(rank)).write_text(str(total.item()))

    launch(work, 2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2.0", "2.0"]


SPAWNS = """
import os, sys
from pathlib import Path
import torch
from kdlib.training import parallel

def work(rank, device):
    torch.distributed.all_reduce(torch.ones(1))
    Path(sys.argv[1], f"{rank}").write_text(" ".join(path.name for path in Path(os.environ["TMPDIR"]).glob("*/*")))

if __name__ == "__main__":
    parallel.training_device = lambda rank, world_size: torch.device("cuda")  # in this process alone
    parallel.launch(work, 2)
"""


def test_what_spawned_processes_are_given_goes_once_they_have_read_it(tmp_path, monkeypatch):
    """So that a training that is killed leaves no such file, which holds models and cuts."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "program.py").write_text(SPAWNS)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine may have one GPU
    done = run(sys.executable, tmp_path / "program.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["store", "store"]


def test_threads_are_as_many_as_the_environment_allows(monkeypatch):
    before, found = torch.get_num_threads(), []
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        launch(lambda rank, device: found.append(torch.get_num_threads()), 1)
        for other in ("0", "x", "4096"):
            monkeypatch.setenv("OMP_NUM_THREADS", other)
            launch(lambda rank, device: found.append(torch.get_num_threads()), 1)
    finally:
        torch.set_num_threads(before)
    assert found == [1] + 3 * [usable_cores()]


def test_no_training_on_the_cpu_beside_too_few_gpus_or_in_a_precision_that_they_lack(monkeypatch):
    require_devices(64, "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_devices(2, "float32")
    with pytest.raises(RecipeError, match="--world-size 3: there are 2 GPUs"):
        require_devices(3, "float32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (8, 0))
    require_devices(2, "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: ((8, 0), (7, 5))[number])
    require_devices(1, "bfloat16")
    with pytest.raises(RecipeError, match="training.precision=bfloat16: a GPU here has none"):
        require_devices(2, "bfloat16")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_killing_the_launcher_leaves_no_process_behind(tmp_path, how):
    launcher = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)], stderr=subprocess.DEVNULL,
                                # a shell has its background jobs deaf to SIGINT
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler
                                                                 if how == signal.SIGINT else signal.SIG_IGN))
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    processes = [int(name) for name in os.listdir(tmp_path)]
    assert len(processes) == 2 and all(map(alive, processes))
    launcher.send_signal(how)
    wait_for(lambda: not any(map(alive, [launcher.pid, *processes])))
    launcher.wait()
