"""Seconds of noise with their manifests, and stage 2 on them."""

import pickle
import re
from argparse import Namespace
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from scripts import load, run_script

from kdlib.config import FbankConfig
from kdlib.features import fbank_extractor
from kdlib.manifests import Skipped

SCRIPT = Path(__file__).resolve().parents[1] / "local" / "prepare_features.py"
EXTRACTOR = fbank_extractor(FbankConfig(num_filters=23))


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
    return run_script(SCRIPT, "--manifests", folder / "manifests", "--output", folder / "fbank", "--config",
                      folder / "fbank.yaml", "--jobs", "2", *overrides)


def source(manifests, copies=1):
    """The cuts of the fixture, each so many times."""
    cuts = CutSet.from_file(manifests / "manifests" / "cuts_train.jsonl.gz")
    return CutSet.from_cuts(cut.with_id(f"{cut.id}-{copy}" if copies > 1 else cut.id) for copy in range(copies) for cut in cuts)


def loaded(cuts):
    """The features of each cut by its id."""
    return {cut.id: cut.load_features() for cut in cuts}


class Here:
    """An executor that does the work in this process, and keeps which cuts of :func:`source` each piece took along."""

    def __init__(self):
        self.taken = []

    def submit(self, function, *args, **options):
        self.taken.append(set(re.findall(rb"cut-\d+-\d+", pickle.dumps((args, options)))))
        future = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def extract(cuts, folder, pool=None, skipped=None, shard_size=None):
    """What stage 2 does with a part's cuts, into files or into shards, in this process."""
    script = load(SCRIPT)

    @contextmanager
    def executor(*_):
        yield pool or Here()

    script.executor = executor
    args, skipped = Namespace(jobs=1, dask=None), Skipped() if skipped is None else skipped
    if shard_size is None:
        return script.extract(cuts, folder, EXTRACTOR, args, skipped)
    return script.extract_shards(cuts, "train", folder, folder.name, EXTRACTOR, args, shard_size, skipped)
