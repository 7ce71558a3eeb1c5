"""Processes that train together end together."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kdlib.errors import RecipeError
from kdlib.training.parallel import launch

pytestmark = pytest.mark.both

WAITS = """
import os, sys, time
from kdlib.training.parallel import launch

def work(rank, device):
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(600)

launch(work, 2)
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_any_process_ends_all_and_is_told(failing):
    def work(rank, device):
        if rank == failing:
            raise RecipeError(f"the remedy of rank {rank}")
        time.sleep(600)

    with pytest.raises(RecipeError, match=f"the remedy of rank {failing}"):
        launch(work, 2)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killing_the_launcher_leaves_no_process_behind(tmp_path, how):
    launcher = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path)], stderr=subprocess.DEVNULL,
                                # as a shell starts its background jobs
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    deadline = time.monotonic() + 120
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = [int(name) for name in os.listdir(tmp_path)]
    assert len(processes) == 2 and all(map(alive, processes))
    launcher.send_signal(how)
    launcher.wait()
    while any(map(alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, processes))
