"""Training from features in Lhotse Shar: the batches, resuming, several processes, and what is wrong with the shards."""

import http.server
import importlib.util
import json
import threading
from functools import partial

import pytest
import torch
from made_up import make_noise, settings

from kdlib.batch_plan import Phase
from kdlib.cuts import describe_skipped, feature_statistics, load_cuts, select_cuts, total_seconds
from kdlib.data import TransducerDataset, train_loader
from kdlib.errors import RecipeError
from kdlib.shar import SharCuts, write_index
from kdlib.training.checkpoint import load_checkpoint
from kdlib.training.loop import Trainer
from kdlib.training.parallel import launch
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread", "no_gpu")]


@pytest.fixture(scope="module")
def shar(corpus, tmp_path_factory):
    """The index of the made-up training cuts, written by Lhotse itself in nine shards."""
    folder = tmp_path_factory.mktemp("shar")
    (folder / "train").mkdir()
    corpus[2].to_shar(folder / "train", fields={"features": "numpy"}, shard_size=10)
    write_index(folder / "shar_train.json", [
        {"cuts": f"train/cuts.{n:06d}.jsonl.gz", "features": f"train/features.{n:06d}.tar", "utterances": 10}
        for n in range(9)])
    return folder / "shar_train.json"


def selected(corpus, index) -> SharCuts:
    return select_cuts(SharCuts(index), corpus[1], settings().data, modified=True)[0]


def batches(corpus, cuts, epoch=3, skip=0, workers=0, rank=0, world_size=1, words=("data.shar_buffer=30",), **phase):
    config = settings(f"data.num_workers={workers}", "data.noise_probability=0.5", *words).data
    dataset = TransducerDataset(corpus[1], config, make_noise(corpus[0]), train=True)
    return list(train_loader(cuts, dataset, config, Phase(epoch, seed=1, **phase), skip, rank, world_size))


def test_batches_do_not_depend_on_workers_or_on_where_one_resumes(corpus, shar):
    cuts = selected(corpus, shar)
    whole = batches(corpus, cuts)
    assert sorted(i for b in whole for i in b.ids) == sorted(cut.id for cut in corpus[2])  # each once
    assert [b.progress for b in whole] == sorted(b.progress for b in whole) and whole[-1].progress == pytest.approx(1.0)
    assert all(sum(b.feature_lengths) <= 400 for b in whole) and max(len(b.ids) for b in whole) > 2
    for workers in (1, 2):
        late = batches(corpus, cuts, skip=5, workers=workers)
        assert len(late) == len(whole) - 5
        for a, b in zip(whole[5:], late):
            assert a.ids == b.ids and torch.equal(a.features, b.features) and a.progress == b.progress
    other = batches(corpus, cuts, epoch=4)
    assert [b.ids for b in other] != [b.ids for b in whole]
    assert sorted(i for b in other for i in b.ids) == sorted(i for b in whole for i in b.ids)


@pytest.mark.parametrize("held", [4, 30, 5000])
def test_none_is_lost_however_many_are_held(corpus, shar, held):
    """More buckets than there are full batches for."""
    words = "data.num_buckets=10", "data.max_duration=20", f"data.shar_buffer={held}"
    for epoch in range(1, 6):
        found = [i for batch in batches(corpus, selected(corpus, shar), epoch, words=words) for i in batch.ids]
        assert sorted(found) == sorted(cut.id for cut in corpus[2])


def test_processes_share_the_batches_of_one(corpus, shar):
    cuts = selected(corpus, shar)
    whole = batches(corpus, cuts)
    shares = [batches(corpus, cuts, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [len(whole), len(whole)]
    for batch, *parts in zip(whole, *shares):
        assert sorted(batch.ids) == sorted(i for part in parts for i in part.ids)
        assert {part.total_frames for part in parts} == {batch.total_frames}


def test_a_phase_of_so_many_updates_goes_round(corpus, shar):
    cuts = selected(corpus, shar)
    once = len(batches(corpus, cuts))
    made = batches(corpus, cuts, updates=2 * once + 3)
    assert len(made) == 2 * once + 3 and [b.ids for b in made[:5]] != [b.ids for b in made[once:once + 5]]


def test_the_features_are_those_of_the_cuts(corpus, shar):
    cuts = selected(corpus, shar)
    assert len(cuts) == len(corpus[2]) == 90 and total_seconds(cuts) == pytest.approx(total_seconds(corpus[2]))
    there = {cut.id: cut for cut in cuts}
    for cut in corpus[2]:
        assert (there[cut.id].load_features() == cut.load_features()).all()
        assert there[cut.id].supervisions[0].text == cut.supervisions[0].text
    for a, b in zip(feature_statistics(cuts), feature_statistics(corpus[2])):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)


def test_what_cannot_be_learnt_from_is_counted_and_left_out(corpus, shar):
    cuts, skipped = select_cuts(SharCuts(shar), corpus[1], settings("data.max_seconds=0.6").data, modified=True)
    short = [cut for cut in corpus[2] if cut.duration <= 0.6]
    assert 0 < len(short) < 90 and len(cuts) == len(short) and {cut.id for cut in cuts} == {cut.id for cut in short}
    assert f"skipped {90 - len(short)} utterances (longer than 0.6 s)" in describe_skipped(skipped)[0]


def train(corpus, index, exp, *overrides, rank=0, device=torch.device("cpu")):
    config = settings("data.curriculum.updates=4", "data.curriculum.max_words=1", "data.shar_buffer=30", *overrides)
    torch.manual_seed(1)
    exp.mkdir(exist_ok=True)
    model = Transducer(config.model, len(corpus[1]))
    return Trainer(config, exp, corpus[1], model, selected(corpus, index), corpus[3], None, None, device, rank).train()


def test_resuming_gives_what_an_uninterrupted_training_gives(corpus, shar, tmp_path, monkeypatch):
    done = train(corpus, shar, tmp_path / "whole")
    update, calls = Trainer._update, []

    def dies(self, batch):
        calls.append(1)
        if len(calls) in (3, 13):
            raise RuntimeError("killed")
        return update(self, batch)

    monkeypatch.setattr(Trainer, "_update", dies)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            train(corpus, shar, tmp_path / "resumed")
    assert train(corpus, shar, tmp_path / "resumed")["updates"] == done["updates"] > 20
    losses = [load_checkpoint(tmp_path / name / "epoch-2.pt", "") for name in ("whole", "resumed")]
    for name, value in losses[0]["model"].items():
        assert torch.equal(value, losses[1]["model"][name]), name


def test_two_processes_train_what_one_trains(corpus, shar, tmp_path):
    words = ("model.dropout=0", "data.spec_augment.enabled=false", "training.num_epochs=1", "data.max_duration=1.5",
             "optim.learning_rate=1e-3")
    for name, processes in (("one", 1), ("two", 2)):
        launch(partial(_work, corpus, shar, tmp_path / name, words), processes)
    one, two = (load_checkpoint(tmp_path / name / "epoch-1.pt", "")["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)


def _work(corpus, index, exp, words, rank, device):
    train(corpus, index, exp, *words, rank=rank, device=device)


def copy(index, tmp_path, change):
    """An index of the same shards, changed."""
    content = json.loads(index.read_text())
    for shard in content["shards"]:
        for key in ("cuts", "features"):
            target = tmp_path / shard[key]
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((index.parent / shard[key]).read_bytes())
    change(content["shards"])
    (tmp_path / index.name).write_text(json.dumps(content))
    return tmp_path / index.name


def test_the_shards_may_be_elsewhere(corpus, shar, tmp_path):
    elsewhere = copy(shar, tmp_path, lambda shards: None)
    alone = tmp_path / "index" / shar.name
    alone.parent.mkdir()
    elsewhere.rename(alone)
    assert len(list(SharCuts(alone, str(tmp_path)))) == 90
    with pytest.raises(RecipeError, match="train/cuts.000000.jsonl.gz .*cannot be read"):
        list(SharCuts(alone))


def test_an_object_store(corpus, shar):
    pytest.importorskip("smart_open")  # which is not in the environment with k2
    handler = partial(SilentHandler, directory=str(shar.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            cuts = SharCuts(shar, url)
            there = {cut.id: cut.load_features() for cut in cuts}
            with pytest.raises(RecipeError, match=f"{url}/none/.*cannot be read"):
                list(SharCuts(shar, f"{url}/none"))
        finally:
            server.shutdown()
    assert len(there) == 90
    for cut in corpus[2]:
        assert (there[cut.id] == cut.load_features()).all()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_an_object_store_without_its_package(shar, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "smart_open" else find_spec(name))
    with pytest.raises(RecipeError, match="s3://bucket/fbank is read by the package smart_open, which is missing"):
        SharCuts(shar, "s3://bucket/fbank")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_was_cut_short_is_named(corpus, shar, tmp_path, workers):
    index = copy(shar, tmp_path, lambda shards: None)
    tar = tmp_path / "train" / "features.000004.tar"
    tar.write_bytes(tar.read_bytes()[:tar.stat().st_size // 2])
    with pytest.raises(RecipeError, match="features.000004.tar cannot be read .*: run stage 2 again"):
        train(corpus, index, tmp_path / "exp", f"data.num_workers={workers}")


def spoil(key, value):
    return lambda shards: shards[3].update({key: value})


@pytest.mark.parametrize("change", [spoil("features", "pipe:touch run"), spoil("cuts", "../../secret.jsonl.gz"),
                                    spoil("cuts", "/etc/cuts.jsonl.gz"), spoil("utterances", "ten"), lambda s: s.clear()])
def test_an_index_that_says_something_else(shar, tmp_path, change):
    with pytest.raises(RecipeError, match="shar_train.json is not an index of Shar features"):
        SharCuts(copy(shar, tmp_path, change))
    assert not (tmp_path / "run").exists()


def test_an_index_whose_counts_are_wrong(shar, tmp_path):
    with pytest.raises(RecipeError, match="it holds 10 utterances of 11"):
        list(SharCuts(copy(shar, tmp_path, spoil("utterances", 11))))


def test_other_readers_are_told(shar):
    with pytest.raises(RecipeError, match="wrote these features in Shar, which training alone reads"):
        load_cuts(shar.with_name("cuts_train.jsonl.gz"))
    with pytest.raises(RecipeError, match="shar_dev.json is missing: run stage 2"):
        SharCuts(shar.with_name("shar_dev.json"))
