"""Stage 2 on audio of which some cannot be read: the rest goes on, and what was left out is named."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, LilcomChunkyWriter, Recording
from lhotse.audio import AudioLoadingError
from lhotse.shar import SharWriter
from recorded_noise import extract, loaded, manifests, prepare, source  # noqa: F401
from skipping import Reasons, listed

from kdlib.errors import RecipeError, known_failure
from kdlib.shar import SharCuts

STORAGES = pytest.mark.parametrize("size", [None, 3], ids=["files", "shar"])


def test_a_corrupt_file_in_the_middle_is_left_out_and_named(manifests):
    (manifests / "3.wav").write_bytes((manifests / "3.wav").read_bytes()[:50])
    (manifests / "5.wav").unlink()
    done = prepare(manifests)
    assert done.returncode == 0, done.stderr
    assert f"skipped 2 in all of train, see {manifests}/fbank/skipped.txt" in done.stdout
    assert "skipped cut-3: " in done.stdout and "skipped cut-5: " in done.stdout and "Traceback" not in done.stderr
    ids = {cut.id for cut in CutSet.from_file(manifests / "fbank" / "cuts_train.jsonl.gz")}
    assert ids == {f"cut-{n}" for n in (0, 1, 2, 4, 6, 7)}


def test_all_that_is_left_out_is_listed(manifests):
    """However many there are, in whichever share; once they are mended, nothing is."""
    shutil.copy(manifests / "manifests" / "cuts_train.jsonl.gz", manifests / "manifests" / "cuts_dev.jsonl.gz")
    sound = {path: path.read_bytes() for path in manifests.glob("*.wav") if path.name not in ("2.wav", "5.wav")}
    for path in sound:
        path.unlink()
    expected = sorted((part, f"cut-{path.stem}{speed}") for path in sound
                      for part, speed in (("dev", ""), ("train", ""), ("train", "_sp0.9")))
    for parts in ([], ["--part", "1/2"], ["--part", "2/2"], []):
        done = prepare(manifests, "speed_factors=[0.9]", *parts)
        assert done.returncode == 0, done.stderr
        if not parts:
            assert sorted((part, name) for part, name, _ in listed(manifests / "fbank")) == expected
            assert f"skipped 12 in all of train, see {manifests}/fbank/skipped.txt" in done.stdout
            assert all(".wav" in reason for _, _, reason in listed(manifests / "fbank"))
    for path, content in sound.items():
        path.write_bytes(content)
    assert "skipped" not in prepare(manifests).stdout and listed(manifests / "fbank") == []


@pytest.mark.parametrize("storage", ["files", "shar"])
def test_a_sample_that_is_no_finite_number_is_found_by_stage_2_too(manifests, storage):
    """Such audio can be decoded, but its features can be neither stored nor learned from."""
    for number, value in ((3, np.nan), (4, np.inf), (6, 1e30)):
        samples = 0.1 * np.random.RandomState(3).randn(16000)
        samples[8000] = value
        soundfile.write(manifests / f"{number}.wav", samples, 16000, subtype="FLOAT")
    done = prepare(manifests, f"storage={storage}")
    assert done.returncode == 0, done.stderr
    assert "skipped 3 in all of train" in done.stdout and "Traceback" not in done.stderr
    for number in (3, 4, 6):
        assert f"skipped cut-{number}: its features are no finite numbers" in done.stdout
    fbank = manifests / "fbank"
    made = SharCuts(fbank / "shar_train.json") if storage == "shar" else CutSet.from_file(fbank / "cuts_train.jsonl.gz")
    found = loaded(made)
    assert set(found) == {f"cut-{n}" for n in (0, 1, 2, 5, 7)} and all(np.isfinite(f).all() for f in found.values())


def test_no_file_can_be_read(manifests):
    for path in manifests.glob("*.wav"):
        path.write_bytes(b"")
    done = prepare(manifests)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: train: no audio can be read")


@STORAGES
def test_a_full_disk_is_said_with_what_was_written(manifests, monkeypatch, size):
    def write(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LilcomChunkyWriter if size is None else SharWriter, "write", write)
    with pytest.raises(OSError) as raised:
        extract(source(manifests), manifests / "fbank" / "train", shard_size=size)
    assert known_failure(raised.value).startswith(f"no space left on the disk while writing {manifests}/fbank/train;")


def failing(monkeypatch, name, error, times):
    """Let the audio of a recording fail at its first ``times`` readings."""
    real, failed = Recording.load_audio, []

    def load_audio(self, *args, **options):
        if self.id == name and len(failed) < times:
            failed.append(1)
            raise error
        return real(self, *args, **options)

    monkeypatch.setattr(Recording, "load_audio", load_audio)


@pytest.mark.parametrize("size, copies", [(None, 1), (None, 15), (3, 1)])  # one piece, two, three shards
def test_audio_that_could_not_be_read_once_is_read_again(manifests, monkeypatch, size, copies):
    """Into the very files that there would be had it been read at once."""
    folder, skipped = manifests / "fbank" / "train", Reasons()

    def made():
        found = extract(source(manifests, copies), folder, skipped=skipped, shard_size=size)
        return list(found), {path: path.read_bytes() for path in folder.parent.rglob("*.lca")}

    expected = made()
    failing(monkeypatch, "2", AudioLoadingError("a share was away for a moment"), 1)
    assert made() == expected and skipped.of == {}
    failing(monkeypatch, "2", AudioLoadingError("no audio at all"), 1000)
    made()
    assert set(skipped.of) == {cut.id for cut in source(manifests, copies) if cut.recording_id == "2"}
    assert all(reason.startswith("no audio at all") for reason in skipped.of.values())


MACHINE = [MemoryError(), AudioLoadingError("Details: <class 'MemoryError'>: "),
           *(OSError(n, "says the system") for n in (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EIO, errno.ENOMEM))]


@STORAGES
@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_what_is_no_fault_of_the_audio_ends_the_stage(manifests, monkeypatch, error, size):
    failing(monkeypatch, "2", error, 1000)
    with pytest.raises(RecipeError, match="run the same command again") as raised:
        extract(source(manifests), manifests / "fbank" / "train", shard_size=size)
    assert "\n" not in known_failure(raised.value)


def test_what_decoders_do_not_say_is_seen_by_reading_the_file(manifests, monkeypatch):
    """libsndfile says "System error." where no more files can be opened."""
    failing(monkeypatch, "2", AudioLoadingError("System error."), 1000)
    real, skipped = open, Reasons()

    def too_many(path, *args, **options):
        if Path(path).name == "2.wav":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *args, **options)

    extract(source(manifests), manifests / "train", skipped=skipped)
    assert set(skipped.of) == {"cut-2"}
    monkeypatch.setattr("builtins.open", too_many)
    with pytest.raises(RecipeError, match="2.wav: Too many open files: .* run the same command again"):
        extract(source(manifests), manifests / "train")
