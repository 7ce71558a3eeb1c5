"""Files are whole or absent, a full disk is told by the name of the file that did not fit, and text is UTF-8 everywhere."""

import errno
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scripts import locale_of, refused, run

from kdlib.errors import RecipeError, known_failure, run_main
from kdlib.files import atomic_path, read_json, read_record, write_audio, write_json, write_text
from kdlib.training.checkpoint import load_checkpoint, save_checkpoint
from kdlib.training.records import Board, TrainLog

CHECKPOINT = {"model": {"w": torch.zeros(3)}, "config": "{}", "tokens": [], "average": {}, "updates": 1}


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "folder" / "cuts.jsonl.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".jsonl.gz")
        temporary.write_bytes(b"1")
        assert not path.exists()
    assert path.read_bytes() == b"1" and os.listdir(path.parent) == [path.name]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(KeyError):
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError
    assert path.read_text() == "[\n  1\n]\n" and os.listdir(tmp_path) == ["a.json"]


FREE = "; free some space and run the same command again"


@pytest.mark.parametrize("code,said", [(errno.ENOSPC, f"no space left on the disk while writing {{}}{FREE}"),
                                       (errno.EDQUOT, f"the quota of the disk is used up while writing {{}}{FREE}"),
                                       (errno.EFBIG, "{}: File too large"), (errno.EIO, "{}: Input/output error"),
                                       (errno.ESTALE, f"{{}}: {os.strerror(errno.ESTALE)}")])
@pytest.mark.parametrize("method,write", [
    ("write_bytes", lambda path: save_checkpoint(path, CHECKPOINT)),
    ("write_text", lambda path: write_text(path, "new")),
])
def test_a_full_or_failing_disk(tmp_path, monkeypatch, capsys, method, write, code, said):
    path = tmp_path / "epoch-1.pt"
    save_checkpoint(path, CHECKPOINT)

    def full(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, full)
        with pytest.raises(SystemExit) as end:
            run_main(lambda: write(path))
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {said.format(path)}\n"
    assert load_checkpoint(path, "")["updates"] == 1 and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_audio_is_whole_or_absent(tmp_path, monkeypatch, suffix):
    path = tmp_path / "strings" / f"a{suffix}"
    write_audio(path, np.array([0.0, 0.5, -0.5, 0.25], np.float32), 8000)
    samples, rate = soundfile.read(path, dtype="float32")
    assert (samples.tolist(), rate, soundfile.info(path).subtype) == ([0.0, 0.5, -0.5, 0.25], 8000, "PCM_16")
    os.utime(path, (1, 1))
    write_audio(path, samples, rate)
    assert path.stat().st_mtime == 1  # the same audio: whoever goes by its time has nothing to do again

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as failure:
        write_audio(path, 2 * samples, rate)
    assert known_failure(failure.value) == f"no space left on the disk while writing {path}{FREE}"
    assert soundfile.read(path, dtype="float32")[0].tolist() == samples.tolist() and os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_full_disk_for_what_a_training_tells(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # the board sets its own
    (tmp_path / "train.log").symlink_to("/dev/full")
    log = TrainLog(tmp_path / "train.log")
    with pytest.raises(OSError) as failure:
        log.handle(logging.makeLogRecord({"msg": "epoch 1"}))
    assert known_failure(failure.value).startswith(f"no space left on the disk while writing {tmp_path}/train.log; ")

    board = Board(tmp_path / "tensorboard", 0)
    board.add("train", {"loss": 1.0}, 1)
    board.writer.flush()
    events = next((tmp_path / "tensorboard").iterdir())
    events.unlink()
    events.symlink_to("/dev/full")
    board.add("train", {"loss": 1.0}, 2)
    with pytest.raises(OSError):
        board.writer.flush()
    with pytest.raises(OSError) as failure:  # what TensorBoard's thread met
        board.add("train", {"loss": 1.0}, 3)
    assert known_failure(failure.value).startswith(f"no space left on the disk while writing {tmp_path}/tensorboard; ")
    assert capfd.readouterr().err == ""


def test_a_resumed_training_is_told_once(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    for update, values in ((0, {1: 5.0, 2: 4.0, 3: 3.0}), (2, {2: 4.5})):
        board = Board(tmp_path, update)
        for step, value in values.items():
            board.add("train", {"loss": value}, step)
        board.close()
        time.sleep(1.1)  # files are read in the order of their names, which tell whole seconds
    told = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in told] == [(1, 5.0), (2, 4.5)]


def test_a_thread_that_fails_otherwise_is_told_as_ever(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    Board(tmp_path, 0).close()

    def fail():
        raise ValueError("a defect")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "ValueError: a defect" in capfd.readouterr().err


def test_brackets_without_end_are_no_json(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200000)
    with pytest.raises(RecipeError, match="a.json is not valid JSON .*: make it again"):
        read_json(tmp_path / "a.json", "make it again")


@pytest.mark.parametrize("content,said", [
    ([], "is not what this project writes there"), ("epoch", "is not what this project writes there"),
    ({"updates": 3}, "says nothing of epoch, seconds: "), ({"seconds": 1.0}, "says nothing of epoch: "),
])
def test_json_of_another_shape_is_named(tmp_path, content, said):
    write_json(tmp_path / "done.json", content)
    with pytest.raises(RecipeError, match=f"done.json {said}.*train it again"):
        read_record(tmp_path / "done.json", "train it again", "epoch", "seconds")
    write_json(tmp_path / "done.json", {"epoch": 2, "seconds": 1.0, "updates": 3})
    assert read_record(tmp_path / "done.json", "train it again", "epoch", "seconds")["updates"] == 3


def test_what_cannot_be_written_is_named_and_not_a_temporary_file(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as failure:
        write_text(tmp_path / "folder", "text")
    assert known_failure(failure.value) == f"{tmp_path}/folder: Is a directory"

    def refused(**_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".tmp-x"))

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(PermissionError) as failure:
        write_text(tmp_path / "a.json", "text")
    assert known_failure(failure.value) == f"{tmp_path}/a.json: Permission denied"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_system_without_permissions(tmp_path, monkeypatch):
    """Of which a mount of Windows's, for one, gives all files the same."""
    def refused(path, _):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "chmod", refused)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and len(list(tmp_path.iterdir())) == 1


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path, said in ((tmp_path / "file" / "a.json", f"{tmp_path}/file is a file: a folder is to stand there"),
                       (tmp_path / ("n" * 300) / "a.json", "File name too long")):
        with pytest.raises(OSError) as failure:
            write_text(path, "text")
        assert said in known_failure(failure.value)
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "loop").symlink_to("loop")
    for path, fails, said in (
            ("link/exp", write_text, "link is a link to disk, which is not there: make or mount that, or name another"),
            ("link", Path.read_text, "link is a link to disk, which is not there"),
            ("loop", Path.read_text, "loop: Too many levels of symbolic links")):
        with pytest.raises(OSError) as failure:
            fails(tmp_path / path, *(["text"] if fails is write_text else []))
        assert known_failure(failure.value) == f"{tmp_path}/{said}"
    assert known_failure(OSError(errno.EROFS, os.strerror(errno.EROFS), "/ro/x")) == "/ro/x: Read-only file system"


def test_an_unknown_failure_is_no_message():
    assert known_failure(ValueError("a defect")) is None


PROGRAM = """
import sys
from multiprocessing import get_context

from kdlib.errors import run_main


def read(path):
    return open(path).read()  # as Lhotse opens manifests


def main():
    with get_context("spawn").Pool(1) as pool:
        print(read(sys.argv[1]) == pool.apply(read, sys.argv[1:2]), read(sys.argv[1]), *sys.argv[1:])


if __name__ == "__main__":
    run_main(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_program_reads_and_writes_utf8_in_every_locale(tmp_path, encoding):
    """However it is called; where it cannot see to it, it says what to set before it reads anything."""
    (tmp_path / "program.py").write_text(PROGRAM)
    name = os.fsencode(tmp_path) + "/ü.txt".encode()
    Path(os.fsdecode(name)).write_text("GRÖSSE 今天", encoding="utf-8")
    options = {"env": locale_of(encoding, tmp_path), "cwd": tmp_path}
    for call in (["program.py"], ["-m", "program"], ["-W", "ignore", "program.py"]):
        done = subprocess.run([sys.executable, *call, name, b"\xff"], capture_output=True, **options)
        assert done.stdout == "True GRÖSSE 今天 ".encode() + name + b" \xff\n", done.stderr.decode()
    for call in (["-X", "utf8=0", "program.py"], ["-c", "import program; program.run_main(program.main)"]):
        done = run(sys.executable, *call, os.fsdecode(name), **options)
        assert "set the environment variable PYTHONUTF8 to 1" in refused(done) and done.stdout == ""
