"""Stage 2 on audio of which some cannot be read: the rest goes on, and what was left out is named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

SCRIPT = Path(__file__).resolve().parents[1] / "local" / "prepare_features.py"


@pytest.fixture
def manifests(tmp_path):
    """Eight seconds-long recordings, one cut set."""
    cuts = []
    for number in range(8):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * np.random.RandomState(number).randn(16000), 16000)
        recording = Recording.from_file(path)
        cuts.append(MonoCut(id=f"cut-{number}", start=0, duration=1.0, channel=0, recording=recording, supervisions=[
            SupervisionSegment(id=f"cut-{number}", recording_id=recording.id, start=0, duration=1.0, text="A")]))
    folder = tmp_path / "manifests"
    folder.mkdir()
    CutSet.from_cuts(cuts).to_file(folder / "cuts_train.jsonl.gz")
    (tmp_path / "fbank.yaml").write_text("sampling_rate: 16000\nnum_filters: 23\n")
    return tmp_path


def prepare(folder, *overrides):
    return subprocess.run([sys.executable, str(SCRIPT), "--manifests", str(folder / "manifests"), "--output",
                           str(folder / "fbank"), "--config", str(folder / "fbank.yaml"), "--jobs", "2", *overrides],
                          capture_output=True, text=True)


def test_features_and_speeds(manifests):
    done = prepare(manifests, "speed_factors=[0.9,1.1]")
    assert done.returncode == 0, done.stderr
    cuts = CutSet.from_file(manifests / "fbank" / "cuts_train.jsonl.gz").to_eager()
    assert len(cuts) == 24 and len({cut.id for cut in cuts}) == 24
    features = cuts[0].load_features()
    assert features.shape == (cuts[0].num_frames, 23) and np.isfinite(features).all()
    assert "train: 24 cuts" in done.stdout


def test_a_corrupt_file_in_the_middle_is_left_out_and_named(manifests):
    (manifests / "3.wav").write_bytes((manifests / "3.wav").read_bytes()[:50])
    (manifests / "5.wav").unlink()
    done = prepare(manifests)
    assert done.returncode == 0, done.stderr
    assert "train: skipped 2 of 8 cuts with unreadable audio" in done.stdout
    assert "cut-3: " in done.stdout and "cut-5: " in done.stdout and "Traceback" not in done.stderr
    ids = {cut.id for cut in CutSet.from_file(manifests / "fbank" / "cuts_train.jsonl.gz")}
    assert ids == {f"cut-{n}" for n in (0, 1, 2, 4, 6, 7)}


def test_no_file_can_be_read(manifests):
    for path in manifests.glob("*.wav"):
        path.unlink()
    done = prepare(manifests)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: train: no audio can be read")


def test_another_sampling_rate_is_an_error_that_says_so(manifests):
    done = prepare(manifests, "sampling_rate=8000")
    assert done.returncode == 1
    assert "has 16000 Hz" in done.stderr and "says 8000" in done.stderr and "Traceback" not in done.stderr


def test_old_cuts_do_not_outlive_their_features(manifests):
    assert prepare(manifests).returncode == 0
    for path in manifests.glob("*.wav"):
        path.unlink()
    assert prepare(manifests).returncode == 1
    assert not list((manifests / "fbank").glob("cuts_*"))


def test_before_stage_1(tmp_path):
    (tmp_path / "fbank.yaml").write_text("{}\n")
    done = prepare(tmp_path)
    assert done.returncode == 1 and "holds no cuts_*.jsonl.gz: run stage 1 first" in done.stderr
