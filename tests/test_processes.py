"""Files and helper processes: permissions, and workers that end with their owner."""

import os
import signal
import subprocess
import sys
import time

import pytest
from scripts import alive, wait_for

from kdlib.errors import RecipeError
from kdlib.processes import executor

POOL = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from kdlib.processes import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux ends them")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_a_killed_owner(tmp_path, method):
    (tmp_path / "pool.py").write_text(POOL)
    owner = subprocess.Popen([sys.executable, tmp_path / "pool.py", method], stdout=subprocess.PIPE, text=True)
    worker = int(owner.stdout.readline())
    assert alive(worker)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_for(lambda: not alive(worker))


def test_written_files_have_the_permissions_of_the_users_umask(tmp_path):
    code = ("import os, sys; os.umask(0o027); from kdlib.files import write_text; write_text(sys.argv[1], 'x'); "
            "print(os.umask(0))")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert int(done.stdout) == 0o027


def test_a_process_that_is_ended_is_one_error():
    with pytest.raises(RecipeError, match="^a process that did part of the work was ended, .*: give fewer --jobs"):
        with executor(1) as pool:
            pool.submit(os._exit, 1).result()


def test_an_error_is_said_before_all_other_work_is_done():
    with pytest.raises(ZeroDivisionError):
        with executor(1) as pool:
            first, *others = [pool.submit(divmod, 1, 0), *(pool.submit(time.sleep, 0.01) for _ in range(500))]
            first.result()
    assert others[-1].cancelled()
