"""Runs commands; scripts in processes that find torch and Lhotse imported, which alone takes seconds; or loads one."""

import importlib.util
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pytest

SERVER = multiprocessing.get_context("forkserver")
# The last is what the optimizers of torch 2 import when the first of them is made.
SERVER.set_forkserver_preload(["kdlib.comparison", "kdlib.decoding", "kdlib.training.loop", "numba",
                               *(["torch._dynamo"] if int(version("torch").split(".")[0]) >= 2 else [])])
ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds until a test gives up: a loaded machine may take long, and nothing is measured by it
# What only the tests see.
HIDDEN = ["", *(str(ROOT / folder) for folder in ("tests", "tools"))]


def run_script(path, *words, cwd=None) -> subprocess.CompletedProcess:
    """What ``python path words...`` prints and how it ends."""
    arguments = [str(path), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(arguments, str(cwd or os.getcwd()), dict(os.environ), outputs))
        process.start()
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, *(output.read_text() for output in outputs))


def run(*command, **options) -> subprocess.CompletedProcess:
    """What a command prints, with nothing on its standard input, and how it ends."""
    return subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=PATIENCE, **options)


def wait_for(condition) -> None:
    """Until it holds; fails where it does not come to."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(process: int) -> bool:
    """Whether a process is at work; one that has ended is not, though its parent has not asked for how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before, or while, it is read
        return False


def locale_of(encoding, folder) -> dict:
    """The environment of a program where the locale's encoding is 'ascii', or 'latin-1', of which one is made in ``folder``;
    where that cannot be, the test is skipped."""
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    usual["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if encoding == "ascii":  # Python by itself makes a UTF-8 one of it
        return {**usual, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    name = "de_DE.ISO-8859-1"
    words = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(Path(folder) / name)]
    if not shutil.which("localedef") or run(*words).returncode:
        pytest.skip(f"there is no locale of {encoding} here, nor can one be made by localedef")
    return {**usual, "LC_ALL": name, "LOCPATH": str(folder)}


def refused(ended: subprocess.CompletedProcess) -> str:
    """The one line of a script that was refused: no stack trace, exit status 1."""
    assert ended.returncode == 1, ended.stdout
    lines = ended.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in ended.stderr, ended.stderr
    return lines[-1]


def load(path):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(arguments, cwd, environment, outputs) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.argv = arguments
    sys.path[:] = [str(Path(arguments[0]).parent), *(place for place in sys.path if place not in HIDDEN)]
    runpy.run_path(arguments[0], run_name="__main__")
