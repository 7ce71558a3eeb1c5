"""Stage 2: the features of recipes, in files and in shards, made by one machine or by several."""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, fastcopy
from lhotse.cut import MixedCut, MixTrack
from recorded_noise import Here, extract, loaded, manifests, prepare, source  # noqa: F401
from scripts import refused

from kdlib.config import FbankConfig
from kdlib.errors import RecipeError
from kdlib.features import fbank_extractor
from kdlib.files import content_digest, read_json
from kdlib.processes import executor
from kdlib.shar import SharCuts, write_shard
from kdlib.shares import finish_share, finished_shares, parse_part, share_folder


def test_features_and_speeds(manifests):
    shutil.copy(manifests / "manifests" / "cuts_train.jsonl.gz", manifests / "manifests" / "cuts_dev.jsonl.gz")
    done = prepare(manifests, "speed_factors=[0.9,1.1]")
    assert done.returncode == 0, done.stderr
    cuts = CutSet.from_file(manifests / "fbank" / "cuts_train.jsonl.gz").to_eager()
    assert len(cuts) == 24 and len({cut.id for cut in cuts}) == 24
    assert sorted(round(cut.duration, 2) for cut in cuts) == [0.91] * 8 + [1.0] * 8 + [1.11] * 8
    dev = CutSet.from_file(manifests / "fbank" / "cuts_dev.jsonl.gz")  # and what is tested is left as it is
    assert [(cut.id, cut.duration) for cut in dev] == [(f"cut-{number}", 1.0) for number in range(8)]
    features = cuts[0].load_features()
    assert features.shape == (cuts[0].num_frames, 23) and np.isfinite(features).all()
    assert "train: 24 cuts" in done.stdout
    assert read_json(manifests / "fbank" / "fbank.json", "") == {"sampling_rate": 16000, "num_filters": 23,
                                                                 "low_freq": 20.0, "high_freq": -400.0}


@pytest.mark.parametrize("pitch, without", [(100, {"low_freq": 1000.0}), (7000, {"high_freq": -3000.0})])
def test_the_bins_lie_between_the_frequencies_of_the_config(pitch, without):
    tone = np.sin(2 * np.pi * pitch * np.arange(16000, dtype=np.float32) / 16000)
    loudest = [fbank_extractor(FbankConfig(num_filters=23, **options)).extract(tone, 16000)[20:80].max()
               for options in ({}, without)]
    assert loudest[0] > loudest[1] + 5


def test_the_order_is_the_same_however_many_processes_and_machines_there_are(manifests):
    """So that a seed means the same batches everywhere; training cuts are mixed, others are in the order of their ids."""
    cuts = list(CutSet.from_file(manifests / "manifests" / "cuts_train.jsonl.gz"))
    many = CutSet.from_cuts(fastcopy(cut, id=f"{number:03d}") for number, cut in enumerate(cuts * 75))  # a dozen pieces
    for part in ("train", "dev"):
        many.to_file(manifests / "manifests" / f"cuts_{part}.jsonl.gz")

    def orders():
        return [[cut.id for cut in CutSet.from_file(manifests / "fbank" / f"cuts_{part}.jsonl.gz")]
                for part in ("train", "dev")]

    found, written = [], []
    for jobs in ("1", "3"):
        done = prepare(manifests, "--jobs", jobs)
        assert done.returncode == 0, done.stderr
        found.append(orders())
        written.append([content_digest(manifests / "fbank" / f"cuts_{part}.jsonl.gz") for part in ("train", "dev")])
    assert written[0] == written[1]  # else what was trained on them would be trained anew
    for part in ("2/3", "1/3", "3/3"):
        assert prepare(manifests, "--part", part).returncode == 0
    assert prepare(manifests).returncode == 0
    train, dev = orders()
    assert found == [[train, dev]] * 2
    assert dev == sorted(dev) and len(dev) == 600 and train != sorted(train) and sorted(train) == dev


def test_another_sampling_rate_is_an_error_that_says_so(manifests):
    done = prepare(manifests, "sampling_rate=8000")
    assert done.returncode == 1
    assert "has 16000 Hz, and fbank.sampling_rate is 8000: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("rate", [0, 11025, 22050])
def test_a_rate_without_whole_frames_is_refused(rate):
    """Lhotse stores no features of them."""
    with pytest.raises(RecipeError, match=f"fbank.sampling_rate is {rate}; it must be a multiple of 100 Hz"):
        FbankConfig(sampling_rate=rate)


@pytest.mark.parametrize("factor", [0.0, -0.9, 1000.0, float("inf"), float("nan")])
def test_a_speed_that_cannot_be_is_refused(factor):
    with pytest.raises(RecipeError, match=r"fbank.speed_factors is \[0.9, .* from 0.1 to 10"):
        FbankConfig(speed_factors=[0.9, factor])


@pytest.mark.parametrize("factors, wanted", [([0.9, 1.0, 1.1], "without 1: the speed 1 is there already"),
                                             ([0.9, 1.1, 0.9], "a list of different numbers")])
def test_a_speed_that_would_be_there_twice_is_refused(factors, wanted):
    with pytest.raises(RecipeError, match=f"fbank.speed_factors is .*; it must be {wanted}"):
        FbankConfig(speed_factors=factors)
    assert FbankConfig(speed_factors=[0.9, 1.1]).speed_factors == [0.9, 1.1]


@pytest.mark.parametrize("options, refused, wanted", [
    (dict(high_freq=8001.0), "high_freq", "at most 8000 Hz, half of fbank.sampling_rate"),
    (dict(sampling_rate=8000, high_freq=7600.0), "high_freq", "at most 4000 Hz"),
    (dict(high_freq=-8000.0), "high_freq", "from 0 to above -8000, counted down from there"),
    (dict(high_freq=float("nan")), "high_freq", "at most 8000 Hz"),
    (dict(low_freq=-1.0), "low_freq", "from 0 to below the highest frequency, 7600 Hz"),
    (dict(low_freq=7600.0), "low_freq", "from 0 to below the highest frequency, 7600 Hz"),
    (dict(low_freq=3000.0, high_freq=2000.0), "low_freq", "below the highest frequency, 2000 Hz"),
    (dict(low_freq=float("nan")), "low_freq", "below the highest frequency"),
    (dict(num_filters=6), "num_filters", "at least 7, the fewest that a model takes"),
])
def test_bins_that_cannot_be_are_refused(options, refused, wanted):
    with pytest.raises(RecipeError, match=f"fbank.{refused} is {options[refused]}; it must be .*{wanted}"):
        FbankConfig(**options)


@pytest.mark.parametrize("high", [8000.0, 0.0, -7999.0])
def test_the_widest_and_the_narrowest_bins_that_can_be(high):
    extractor = fbank_extractor(FbankConfig(num_filters=7, low_freq=0.0, high_freq=high))
    assert extractor.extract(np.zeros(16000, np.float32), 16000).shape == (100, 7)


def test_old_cuts_do_not_outlive_their_features(manifests):
    assert prepare(manifests).returncode == 0
    for path in manifests.glob("*.wav"):
        path.unlink()
    assert prepare(manifests).returncode == 1
    assert not list((manifests / "fbank").glob("cuts_*"))


def test_old_features_go_with_their_cuts(manifests):
    """Be they of one piece or of several, of all or of a share that nobody joined; those of other parts stay."""
    fbank, cuts = manifests / "fbank", list(source(manifests, 15))
    few, many = CutSet.from_cuts(cuts[:8]), CutSet.from_cuts(cuts)

    def files(train, *words):
        train.to_file(manifests / "manifests" / "cuts_train.jsonl.gz")
        few.to_file(manifests / "manifests" / "cuts_train-2.jsonl.gz")
        done = prepare(manifests, *words)
        assert done.returncode == 0, done.stderr
        assert words or len(loaded(CutSet.from_file(fbank / "cuts_train-2.jsonl.gz"))) == 8
        return sorted(str(path.relative_to(fbank)) for path in fbank.rglob("*.lca"))

    assert files(few) == ["train-2.lca", "train.lca"]
    assert files(many) == ["train-2.lca", "train/feats-0.lca", "train/feats-1.lca"]
    assert files(few, "--part", "3/4") == ["train-2.lca", "train-2/3-of-4.lca", "train/3-of-4.lca", "train/feats-0.lca",
                                           "train/feats-1.lca"]
    shutil.rmtree(fbank / "parts")
    files(few, "--part", "1/2")
    files(few, "--part", "2/2")
    assert files(few) == ["train-2/1-of-2.lca", "train-2/2-of-2.lca", "train/1-of-2.lca", "train/2-of-2.lca"]
    assert files(few) == ["train-2.lca", "train.lca"]


def test_before_stage_1(tmp_path):
    (tmp_path / "fbank.yaml").write_text("{}\n")
    done = prepare(tmp_path)
    assert done.returncode == 1 and "holds no cuts_*.jsonl.gz: run stage 1 first" in done.stderr


def test_features_in_shards_are_those_in_files(manifests):
    """Of training alone; unreadable audio is left out of them too, and the old features do not outlive the new ones."""
    (manifests / "5.wav").unlink()
    shutil.copy(manifests / "manifests" / "cuts_train.jsonl.gz", manifests / "manifests" / "cuts_dev.jsonl.gz")
    fbank = manifests / "fbank"
    assert prepare(manifests, "speed_factors=[0.9]").returncode == 0
    expected = loaded(CutSet.from_file(fbank / "cuts_train.jsonl.gz"))
    done = prepare(manifests, "speed_factors=[0.9]", "storage=shar", "shard_size=3")
    assert done.returncode == 0, done.stderr
    assert "skipped 2 in all of train, see " in done.stdout and "train: 14 cuts, 23 bins" in done.stdout
    assert not (fbank / "cuts_train.jsonl.gz").exists() and (fbank / "cuts_dev.jsonl.gz").exists()
    found = loaded(SharCuts(fbank / "shar_train.json"))
    assert set(found) == set(expected) and len(found) == 14
    assert list(found)[:8] != sorted(found)[:8]  # neighbours of the manifest are apart
    for name, features in expected.items():
        np.testing.assert_allclose(found[name], features, atol=0.1)  # both are compressed with a loss


def test_the_index_of_other_features_or_transcripts_is_another(manifests):
    """Though it names the same files: a training goes by it."""
    cuts = list(CutSet.from_file(manifests / "manifests" / "cuts_train.jsonl.gz"))[:3]
    corrected = [fastcopy(cuts[0], supervisions=[fastcopy(cuts[0].supervisions[0], text="B")]), *cuts[1:]]
    entries = []
    for heard, options in ((cuts, {}), (cuts, {}), (corrected, {}), (cuts[::-1], {}), (cuts, {"low_freq": 100.0})):
        extractor = fbank_extractor(FbankConfig(num_filters=23, **options))
        entries.append(write_shard(heard, manifests / str(len(entries)), "train", 0, extractor)[0])
    assert entries[0] == entries[1] and len({entry["digest"] for entry in entries}) == 4
    assert len({json.dumps({**entry, "digest": ""}) for entry in entries}) == 1


def test_parts_that_machines_share_are_joined(manifests):
    shutil.copy(manifests / "manifests" / "cuts_train.jsonl.gz", manifests / "manifests" / "cuts_dev.jsonl.gz")
    words = ("storage=shar", "shard_size=2")
    fbank = manifests / "fbank"
    for part in ("2/2", "1/2"):
        done = prepare(manifests, *words, "--part", part)
        assert done.returncode == 0, done.stderr
    assert not list(fbank.glob("*.json*"))
    done = prepare(manifests, *words)
    assert done.returncode == 0 and "train: 8 cuts" in done.stdout and "dev: 8 cuts" in done.stdout, done.stderr
    for cuts in (SharCuts(fbank / "shar_train.json"), CutSet.from_file(fbank / "cuts_dev.jsonl.gz")):
        found = loaded(cuts)
        assert set(found) == {f"cut-{number}" for number in range(8)} and all(f.shape == (100, 23) for f in found.values())
    assert not (fbank / "parts").exists()  # the next run extracts anew


@pytest.mark.parametrize("storage, file", [("shar", "train/2-of-2/features.000000.tar"), ("files", "train/2-of-2.lca")])
def test_a_share_whose_features_are_lost_is_not_joined(manifests, storage, file):
    for part in ("1/2", "2/2"):
        assert prepare(manifests, f"storage={storage}", "--part", part).returncode == 0
    lost = manifests / "fbank" / file
    lost.rename(manifests / "elsewhere")
    before = sorted((manifests / "fbank").rglob("*"))
    assert re.fullmatch(f"error: share 2 of 2 is lost: .*{file}.* is missing; make it with --part 2/2, or copy here .*",
                        refused(prepare(manifests, f"storage={storage}")))
    assert sorted((manifests / "fbank").rglob("*")) == before
    (manifests / "elsewhere").rename(lost)
    assert prepare(manifests, f"storage={storage}").returncode == 0


def test_no_piece_of_the_work_takes_more_than_its_cuts_along(manifests):
    pool, cuts = Here(), source(manifests, 50)  # eight pieces
    found = extract(cuts, manifests / "fbank" / "train", pool)
    assert [len(taken) for taken in pool.taken] == [50] * 8 and len(set.union(*pool.taken)) == 400
    assert [cut.id for cut in found] == [cut.id for number in range(8) for cut in list(cuts)[number::8]]
    assert [Path(cut.features.storage_path).name for cut in found] == [f"feats-{n}.lca" for n in range(8) for _ in range(50)]


def test_shares_of_other_audio_are_not_joined(manifests):
    """Of the same lengths: stage 1 then says so beside the manifests, in which nothing is otherwise."""
    listed = manifests / "manifests" / "audio_train.txt"
    listed.write_text("1 a.wav\n")
    assert prepare(manifests, "--part", "1/1").returncode == 0
    listed.write_text("2 a.wav\n")
    assert "1-of-1 was made of other manifests or with other settings" in refused(prepare(manifests))


def test_a_machine_that_does_not_see_the_audio_makes_no_share(manifests):
    """As where its disk is not mounted there: the share would count as done, and the corpus as half as large."""
    path = manifests / "manifests" / "cuts_train.jsonl.gz"
    cuts = list(CutSet.from_file(path))
    mixed = [MixedCut(cut.id, [MixTrack(cut)]) for cut in cuts[4:]]  # as of the channels of a recording
    CutSet.from_cuts([*cuts[:4], *mixed]).to_file(path)
    (manifests / "away").mkdir()
    for wav in manifests.glob("*.wav"):
        wav.rename(manifests / "away" / wav.name)
    for words in ([], ["--part", "1/2"]):
        assert re.fullmatch(
            r"error: of the (\d) recordings that .*cuts_train.jsonl.gz names here, \1 are not there, .*/0.wav for one: mount "
            "the disk that they are on, and see that its path is the same on every machine; or, if they are no more, run stage 1 "
            "again", refused(prepare(manifests, *words)))
    assert not (manifests / "fbank" / "parts" / "1-of-2" / "done.json").exists()


def test_a_share_is_not_made_again_of_what_is_joined(manifests):
    """As by a job that runs a second time: it would begin by removing what was joined."""
    for part in ("1/2", "2/2"):
        assert prepare(manifests, "--part", part).returncode == 0
    assert prepare(manifests).returncode == 0
    before = sorted((manifests / "fbank").rglob("*"))
    said = refused(prepare(manifests, "--part", "2/2"))
    assert said == (f"error: the parts in {manifests / 'fbank'} are made of these manifests with these settings, and joined: "
                    f"remove {manifests / 'fbank' / 'joined.json'} to make them anew")
    assert sorted((manifests / "fbank").rglob("*")) == before
    assert prepare(manifests, "--part", "2/2", "num_filters=40").returncode == 0
    assert not (manifests / "fbank" / "joined.json").exists()


def test_more_machines_than_cuts(manifests):
    """The second share is empty since its only file cannot be read, the third from the start."""
    cuts = CutSet.from_file(manifests / "manifests" / "cuts_train.jsonl.gz").subset(first=2)
    for part in ("train", "dev"):
        cuts.to_file(manifests / "manifests" / f"cuts_{part}.jsonl.gz")
    (manifests / "1.wav").unlink()
    for part in ("1/3", "2/3", "3/3"):
        done = prepare(manifests, "storage=shar", "--part", part)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("cut-1: ") == (2 if part == "2/3" else 0)
    done = prepare(manifests, "storage=shar")
    assert done.returncode == 0 and "train: 1 cuts" in done.stdout and "dev: 1 cuts" in done.stdout, done.stderr
    for made in (SharCuts(manifests / "fbank" / "shar_train.json"),
                 CutSet.from_file(manifests / "fbank" / "cuts_dev.jsonl.gz")):
        assert set(loaded(made)) == {"cut-0"}


def test_shares_of_which_none_has_a_cut(manifests):
    for path in manifests.glob("*.wav"):
        path.write_bytes(b"")
    assert prepare(manifests, "--part", "1/1").returncode == 0
    done = prepare(manifests)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: train: no audio can be read")
    assert not list((manifests / "fbank").glob("cuts_*"))


def test_parts_that_are_missing_or_of_something_else(tmp_path):
    assert finished_shares(tmp_path, "these settings") == []
    finish_share(share_folder(tmp_path, (2, 2)), "these settings")
    with pytest.raises(RecipeError, match="1-of-2/done.json is missing: make it with --part"):
        finished_shares(tmp_path, "these settings")
    finish_share(share_folder(tmp_path, (1, 2)), "others")
    with pytest.raises(RecipeError, match="1-of-2 was made of other manifests or with other settings"):
        finished_shares(tmp_path, "these settings")
    finish_share(share_folder(tmp_path, (1, 2)), "these settings")
    assert [share.name for share in finished_shares(tmp_path, "these settings")] == ["1-of-2", "2-of-2"]
    share_folder(tmp_path, (2, 2))  # begun again
    with pytest.raises(RecipeError, match="2-of-2/done.json is missing"):
        finished_shares(tmp_path, "these settings")
    share_folder(tmp_path, (2, 3))
    with pytest.raises(RecipeError, match="parts of 2 and of 3"):
        finished_shares(tmp_path, "these settings")
    assert parse_part("2/4") == (2, 4)
    for part in ("0/2", "3/2", "half", "1/2/3"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{part}' is no part: give K/N"):
            parse_part(part)


def test_dask_without_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RecipeError, match="--dask needs the packages dask and distributed: pip install distributed"):
        with executor(1, "local"):
            pass


def test_dask_workers_that_are_ended_are_one_error():
    with pytest.raises(RecipeError, match="Dask's workers were ended over a part of the work, .*: give fewer --jobs"):
        with executor(1, "local") as pool:
            pool.submit(os._exit, 1).result()
    with pytest.raises(RecipeError, match="--dask ucx://none:1: no Dask scheduler answers there"):
        with executor(1, "ucx://none:1"):
            pass


def test_a_dask_cluster(manifests):
    import distributed

    cuts = CutSet.from_file(manifests / "manifests" / "cuts_train.jsonl.gz")
    cuts = CutSet.from_cuts(cut.with_id(f"{cut.id}-{copy}") for cut in cuts for copy in range(15))
    cuts.to_file(manifests / "manifests" / "cuts_train.jsonl.gz")  # enough for two pieces
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        for storage, where in (("files", "local"), ("shar", cluster.scheduler_address)):
            for words in (["--part", "1/1", "--dask", where], []):  # which is then joined as other shares are
                done = prepare(manifests, *words, f"storage={storage}", "shard_size=50")
                assert done.returncode == 0, done.stderr
            fbank = manifests / "fbank"
            made = (SharCuts(fbank / "shar_train.json") if storage == "shar"
                    else CutSet.from_file(fbank / "cuts_train.jsonl.gz"))
            assert set(loaded(made)) == set(cuts.ids)
    done = prepare(manifests, "--dask", "tcp://127.0.0.1:1")
    assert done.returncode == 1 and "no Dask scheduler answers there" in done.stderr
