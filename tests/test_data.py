"""What a training reads: its batches, which utterances make them, noise and masks, and what cannot be read."""

import errno
import math
import os
import random
import re
import signal
import time
from dataclasses import replace
from itertools import islice, zip_longest
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.testing.dummies import dummy_features
from lhotse.utils import fastcopy
from made_up import make_cuts, make_noise, settings
from torch.utils.data import DataLoader, IterableDataset

from kdlib.batch_plan import Phase, plan_batch
from kdlib.config import DataConfig, FbankConfig, SpecAugmentConfig
from kdlib.cuts import describe_skipped, feature_statistics, load_cuts, mixed, select_cuts, transcript
from kdlib.data import FLOOR, _spec_augment, TransducerDataset, checked, eval_loader, seeded, train_loader
from kdlib.errors import RecipeError, known_failure
from kdlib.features import fbank_extractor, with_features
from kdlib.training.loop import Trainer
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


class Deadly(IterableDataset):
    """Kills the process that reads it."""

    def __iter__(self):
        yield os.getpid()
        os.kill(os.getpid(), signal.SIGKILL)


class Slow(Deadly):
    def __iter__(self):
        yield os.getpid()
        time.sleep(600)


class CutOff:
    """A loader whose process was killed while it handed a batch over."""

    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield 1
        raise self.error


@pytest.mark.parametrize("killed", ["reading", "at an update", ConnectionResetError(errno.ECONNRESET, "reset"), EOFError()])
def test_a_reading_process_that_is_killed_is_told(killed):
    """Wherever the process that trains is then."""
    if isinstance(killed, str):
        loader = DataLoader(Deadly() if killed == "reading" else Slow(), batch_size=None, num_workers=1)
    else:
        loader = CutOff(killed)
    with pytest.raises((RecipeError, RuntimeError)) as failure:
        for reader in checked(loader):
            if killed == "at an update":
                os.kill(reader, signal.SIGKILL)
                time.sleep(60)
    assert re.match("a process that reads the data was killed .*: set data.num_workers lower or", known_failure(failure.value))


def test_batches_do_not_depend_on_workers_or_on_where_one_resumes(corpus):
    folder, lang, train, _ = corpus
    config = settings("data.noise_probability=0.5", "data.spec_augment.time_warp=5").data
    dataset = TransducerDataset(lang, config, make_noise(folder), train=True)

    def batches(skip, workers):
        config = settings(f"data.num_workers={workers}").data
        return list(train_loader(train, dataset, config, Phase(3, seed=1, begin=0.5, end=1.0), skip))

    whole, late = batches(0, 0), batches(4, 1)
    clean = list(train_loader(train, TransducerDataset(lang, settings().data, train=True), settings().data,
                              Phase(3, seed=1, begin=0.5, end=1.0)))
    assert not all(torch.equal(a.features, b.features) for a, b in zip(whole, clean))  # there is noise in it
    assert len(late) == len(whole) - 4
    for a, b in zip(whole[4:], late):
        assert a.ids == b.ids and torch.equal(a.features, b.features) and a.progress == b.progress
    assert [b.progress for b in whole] == sorted(b.progress for b in whole) and whole[-1].progress == 1.0
    assert sorted(i for b in whole for i in b.ids) == sorted(c.id for c in train)


def test_cuts_of_a_large_corpus_come_from_all_of_it():
    """Were few of them held at a time, utterances would keep their place and their company in all epochs."""
    features = dummy_features(0, 0.0, 3.0)
    cuts = CutSet.from_cuts(MonoCut(f"cut-{number:05d}", 0.0, 2.0 + number % 97 / 100, 0, features=features)
                            for number in range(30000))
    config = settings("data.max_duration=600", "data.num_buckets=10").data
    planned = train_loader(cuts, None, config, Phase(1, seed=1)).sampler
    first = [cut.id for batch in islice(planned, 20) for cut in batch.cuts]
    assert len(first) > 2000 and max(first) > "cut-29000" and min(first) < "cut-01000"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_reads_in_turn_what_several_read_at_once(corpus, workers):
    folder, lang, train, _ = corpus
    config = settings(f"data.num_workers={workers}").data
    dataset = TransducerDataset(lang, config, train=True)

    def shares(rank, world_size, micro_batches=1):
        return list(train_loader(train, dataset, config, Phase(1, seed=1), 3, rank, world_size, micro_batches))

    alone, several = shares(0, 1, 4), [shares(rank, 2, 2) for rank in (0, 1)]
    assert len(alone) == 2 * len(several[0]) == 2 * len(several[1])
    for number, share in enumerate(alone):
        other = several[number % 4 // 2][number // 4 * 2 + number % 2]
        assert share.ids == other.ids and torch.equal(share.features, other.features)
        assert share.total_utterances == sum(len(part.ids) for part in alone[number // 4 * 4:][:4])


@pytest.mark.parametrize("batches, micro_batches, ahead", [
    (1000, 1, 8), (12.1, 1, 5), (4.1, 1, 1), (3.9, 1, None), (4.6, 4, 5), (2.6, 4, 1), (2.4, 4, None), (0, 1, 8)])
def test_no_more_is_read_ahead_than_the_shared_memory_holds(corpus, monkeypatch, batches, micro_batches, ahead):
    """Were it full, torch would lose a batch and wait for it for ever. One of size 0 has no limit."""
    config = settings("data.num_workers=2").data
    size = 1.25 * config.max_duration * 100 * 16 * 4  # bytes, of 16 bins in float32, with padding
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=batches * size, f_frsize=1))

    def make():
        return train_loader(corpus[2], None, config, Phase(1, seed=1), micro_batches=micro_batches)

    if ahead is None:
        with pytest.raises(RecipeError, match=r"/dev/shm has room for .* --shm-size\), or set data.num_workers=0"):
            make()
    else:
        assert make().prefetch_factor == ahead


def test_batches_of_a_test_set_are_as_large_as_may_be(corpus):
    _, lang, _, dev = corpus
    batches = list(eval_loader(dev, lang, settings().data, 2.0))
    assert sorted(id_ for batch in batches for id_ in batch.ids) == sorted(dev.ids)
    longest = [batch.features.size(1) / 100 for batch in batches]  # of each, in seconds
    assert longest == sorted(longest, reverse=True) and len(batches) > 3
    assert all(seconds * len(batch.ids) <= 2.0 for seconds, batch in zip(longest, batches))
    assert all(seconds * (len(batch.ids) + 1) > 2.0 for seconds, batch in list(zip(longest, batches))[:-1])


def test_a_batch_is_dealt_out_evenly(corpus):
    cuts = list(corpus[2])[:31]
    shares = [plan_batch(cuts, 1, 0.5, rank, 3) for rank in range(3)]
    dealt = [cut for turn in zip_longest(*(share.cuts for share in shares)) for cut in turn if cut is not None]
    assert sorted(cut.id for cut in dealt) == sorted(cut.id for cut in cuts)
    lengths = [cut.duration for cut in dealt]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 1
    frames = sum((cut.num_frames - 3) // 4 for cut in cuts)
    assert {(share.total_frames, share.total_utterances) for share in shares} == {(frames, 31)}


def test_statistics_of_the_features(corpus):
    for most, chosen in ((300, list(corpus[2])), (30, list(corpus[2])[::3])):
        frames = torch.cat([torch.from_numpy(cut.load_features()) for cut in chosen])
        mean = frames.mean(0)
        std = ((frames - mean) ** 2).sum(0).div(len(frames) - 1).sqrt()
        torch.testing.assert_close(feature_statistics(corpus[2], most), (mean, std))


def test_no_two_batches_are_augmented_alike(corpus):
    """Nor the shares of one batch, nor one that comes again in another epoch or from another seed."""
    _, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    seeds = [planned.seed for epoch, seed, rank in ((1, 1, 0), (1, 1, 1), (2, 1, 0), (1, 2, 0))
             for planned in train_loader(train, dataset, settings().data, Phase(epoch, seed), rank=rank, world_size=2).sampler]
    assert len(seeds) > 40 and len(set(seeds)) == len(seeds)


def test_an_epoch_of_so_many_updates(corpus):
    _, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    epochs = [list(train_loader(train, dataset, settings().data, Phase(epoch, seed=1, updates=25))) for epoch in (1, 2)]
    assert [len(batches) for batches in epochs] == [25, 25]  # more than the cuts make once
    assert epochs[0][-1].progress == 1.0 and epochs[0][0].progress == pytest.approx(1 / 25)
    assert [b.ids for b in epochs[0]] != [b.ids for b in epochs[1]]
    assert {i for b in epochs[0] for i in b.ids} == {c.id for c in train}
    once = next(n for n in range(25) if len({i for b in epochs[0][:n] for i in b.ids}) == len(train))
    again = [b.ids for b in epochs[0][once:]]  # the second round, which is not the next epoch
    assert again != [b.ids for b in epochs[1][:25 - once]]


def test_the_seed_of_a_training_orders_its_batches(corpus):
    _, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    first, again, other = (
        [list(planned.cuts.ids) for planned in train_loader(train, dataset, settings().data, Phase(1, seed)).sampler]
        for seed in (1, 1, 2))
    assert first == again != other


def test_how_few_utterances_make_batches(corpus):
    _, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    few, fewer = (CutSet.from_cuts(list(train)[:count]) for count in (3, 2))
    heard = [id_ for batch in train_loader(few, dataset, settings().data, Phase(1, seed=1)) for id_ in batch.ids]
    assert sorted(heard) == sorted(few.ids)
    with pytest.raises(RecipeError, match="2 training utterances are too few to make batches of: use more data"):
        train_loader(fewer, dataset, settings().data, Phase(1, seed=1))


def test_a_seeded_block_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with seeded(3):
        want = draw()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    after = draw(), draw()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    first = draw()
    with seeded(3):
        assert draw() == want
    assert (first, draw()) == after


def test_training_cuts_are_mixed_alike_whatever_their_order(corpus):
    ids = [cut.id for cut in mixed(corpus[2])]
    assert ids == [cut.id for cut in mixed(reversed(list(corpus[2])))] and sorted(ids) == sorted(corpus[2].ids) != ids


def test_utterances_that_cannot_be_learnt_from_are_counted(corpus):
    folder, lang, train, _ = corpus
    cuts = list(train)[:5]
    empty = make_cuts(folder, "empty", 1, 3)[0]
    empty.supervisions[0].text = " "
    long = make_cuts(folder, "labels", 1, 4)[0]
    long.supervisions[0].text = "A B C D " * 5  # more characters than frames after subsampling
    full = make_cuts(folder, "full", 1, 4)[0]
    frames = (full.num_frames - 3) // 4
    full.supervisions[0].text = next("A" * n for n in range(99) if len(lang.encode("A" * n)) == frames)
    bare = make_cuts(folder, "bare", 1, 5)[0]
    bare.features = None
    every = CutSet.from_cuts([*cuts, full, empty, long, bare])
    kept, skipped = select_cuts(every, lang, settings().data, modified=True)
    assert [c.id for c in kept] == [*(c.id for c in cuts), "full-0"]
    assert skipped == {"empty transcript": ["empty-0"], "too short for its labels": ["labels-0"], "no features": ["bare-0"]}
    assert "skipped 1 utterances (empty transcript): empty-0" in describe_skipped(skipped)
    assert describe_skipped({"why": list("abcdef"), "how": list("abcde")}) == [
        "skipped 5 utterances (how): a, b, c, d, e", "skipped 6 utterances (why): a, b, c, d, e ..."]
    kept, _ = select_cuts(CutSet.from_cuts([long]), lang, settings().data, modified=False)
    assert len(kept) == 1  # the regular lattice takes several labels a frame


def test_features_that_are_gone_are_named(corpus, tmp_path):
    cuts = make_cuts(tmp_path, "gone", 30, 5)
    for path in (tmp_path / "gone").rglob("*.npy"):
        path.unlink()
    _, lang, _, dev = corpus
    for workers in (0, 1):
        config = settings(f"data.num_workers={workers}")
        run = Trainer(config, tmp_path, lang, Transducer(config.model, len(lang)), cuts, dev, None, None,
                      torch.device("cpu"))
        with pytest.raises(RecipeError, match=r"the features of gone-.* cannot be read \(.*\): run stage 2 again"):
            run.train()
    for cut in cuts:
        cut.features.storage_path = "data/gone"
    with pytest.raises(RecipeError, match="since there is no data/gone: run this in the recipe's folder, .* run stage 2 again"):
        run.train()


def test_noise_is_as_frequent_and_as_loud_as_the_config_says(corpus):
    folder, lang, train, _ = corpus
    planned = plan_batch(list(train)[:60], seed=1, progress=1.0)
    clean = TransducerDataset(lang, settings().data)[planned].features

    def noise(probability, ratio):
        """The part of the utterances that hold some, and how much the features differ."""
        config = settings(f"data.noise_probability={probability}", f"data.noise_snr=[{ratio},{ratio}]",
                          "data.spec_augment.enabled=false").data
        noisy = TransducerDataset(lang, config, make_noise(folder), train=True)[planned].features
        difference = (noisy - clean).abs().flatten(1)
        return (difference.amax(1) > 1e-3).float().mean().item(), difference.mean().item()

    (some, _), (every, much), (_, little) = noise(0.5, 0.0), noise(1.0, 0.0), noise(1.0, 30.0)
    assert 0.25 < some < 0.75 and every == 1.0 and much > 3 * little > 0
    config = settings("data.noise_probability=1", "data.spec_augment.enabled=false").data
    dataset = TransducerDataset(lang, config, make_noise(folder), train=True)
    assert not torch.equal(*(dataset[replace(planned, seed=seed)].features for seed in (1, 2)))


@pytest.mark.parametrize("seconds", [0.2, 0.7, 2.0])
def test_the_ratio_to_noise_is_one_of_mean_powers_however_short_the_noise(corpus, seconds):
    folder, lang, train, _ = corpus
    planned = plan_batch(list(train)[:40], seed=1, progress=1.0)
    noise = CutSet.from_cuts(cut.truncate(duration=seconds) for cut in make_noise(folder))
    config = settings("data.noise_probability=1", "data.noise_snr=[6,6]", "data.spec_augment.enabled=false").data
    noisy, clean = (TransducerDataset(lang, config, noise, train=train)[planned] for train in (True, False))
    for mixed, alone, length in zip(noisy.features.exp(), clean.features.exp(), clean.feature_lengths):
        added = (mixed - alone)[:length].sum(1)
        power = added[added > 1e-4 * added.max()].mean() / alone[:length].sum(1).mean()  # where there is noise
        assert -10 * power.log10().item() == pytest.approx(6.0, abs=0.5)


def test_noise_is_drawn_from_the_whole_range_and_begins_anywhere(corpus):
    folder, lang, train, _ = corpus
    noise = CutSet.from_cuts([max(make_noise(folder), key=lambda cut: cut.duration)])
    short = [cut for cut in train if cut.duration < noise[0].duration][:40]
    planned = plan_batch(short, seed=1, progress=1.0)

    def features(ratios, planned, train=True):
        config = settings("data.noise_probability=1", f"data.noise_snr={ratios}", "data.spec_augment.enabled=false").data
        return TransducerDataset(lang, config, noise, train=train)[planned].features.exp()

    alone = features([0, 20], planned, train=False)
    ratios = [10 * (clean.sum() / (mixed - clean).sum()).log10().item()
              for mixed, clean in zip(features([0, 20], planned), alone)]
    assert len(ratios) == 40 and -1 < min(ratios) < 5 < 15 < max(ratios) < 21
    first, second = (features([6, 6], replace(planned, seed=seed)) for seed in (1, 2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("gain", [-20.0, 6.0])
def test_with_a_gain_the_features_are_those_of_louder_or_quieter_audio(corpus, tmp_path, gain):
    """Down to the floor: half of the audio is so quiet that much of it has none above."""
    _, lang, _, _ = corpus
    rng = np.random.default_rng(1)
    samples = rng.standard_normal(32000) * np.repeat([0.1, 3e-5], 16000)

    def features(name, samples):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
        cut = Recording.from_file(tmp_path / f"{name}.wav").to_cut()
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0, cut.duration, text="")]
        return plan_batch([with_features(cut, fbank_extractor(FbankConfig()))], seed=1, progress=1.0)

    config = settings(f"data.gain.range=[{gain},{gain}]", "data.spec_augment.enabled=false").data
    given = TransducerDataset(lang, config, train=True)[features("given", samples)].features
    scaled = TransducerDataset(lang, config)[features("scaled", samples * 10 ** (gain / 20))].features
    was = TransducerDataset(lang, config)[features("as it was", samples)].features
    # Of what is at the floor nothing tells how far it was below.
    known = was > FLOOR + 1e-3 if gain > 0 else torch.ones_like(was, dtype=torch.bool)
    assert (was == FLOOR).any() and (was[:, 120:] > FLOOR + 1e-3).any()
    torch.testing.assert_close(given[known], scaled[known], atol=2e-3, rtol=0)


def test_each_utterance_has_a_gain_of_its_own_and_its_noise_the_same(corpus):
    folder, lang, train, _ = corpus
    planned = plan_batch(list(train)[:40], seed=1, progress=1.0)

    def features(*words, train=True):
        config = settings("data.noise_probability=1", "data.noise_snr=[6,6]", "data.spec_augment.enabled=false", *words).data
        return TransducerDataset(lang, config, make_noise(folder), train=train)[planned].features

    plain, changed = features(), features("data.gain.range=[-20,6]")
    gains = []
    for one, other in zip(plain, changed):
        held = other > FLOOR + 1e-3
        gains.append(((other - one)[held] * 10 / math.log(10)).mean().item())
        assert (other - one)[held].std() < 1e-4
    assert -20 <= min(gains) < -17 and 3 < max(gains) <= 6
    assert torch.equal(changed, features("data.gain.range=[-20,6]", "data.gain.start=1"))
    assert torch.equal(features(train=False), features("data.gain.range=[-20,6]", train=False))
    planned.progress = 0.4
    assert torch.equal(plain, features("data.gain.range=[-20,6]", "data.gain.start=0.5"))


def test_whether_an_utterance_has_noise_says_nothing_of_its_gain_or_its_masks(corpus):
    """They were drawn from the same random numbers once: of a batch's first utterance the quiet ones alone had noise."""
    folder, lang, train, _ = corpus
    noise = make_noise(folder)
    masks = "data.spec_augment={num_feature_masks: 2, feature_mask_size: 9, num_frame_masks: 2, max_frames_fraction: 0.3}"

    def dataset(*words, train=True):
        config = settings("data.noise_probability=0.5", "data.noise_snr=[0,5]", *words).data
        return TransducerDataset(lang, config, noise, train)

    off = "data.spec_augment.enabled=false"
    all_kinds = (dataset(train=False), dataset(off), dataset(off, "data.gain.range=[-20,10]"), dataset(masks))
    noisy, gains, masked = [], [], []
    for seed in range(300):
        planned = plan_batch(list(train)[:3], seed=seed, progress=1.0)
        clean, mixed, louder, hidden = (one[planned].features.flatten(1) for one in all_kinds)
        noisy.append((mixed - clean).abs().amax(1) > 1e-3)
        gains.append(((louder - mixed) * (louder > FLOOR + 1e-3)).mean(1))
        masked.append((hidden != mixed).any(1))
    noisy, gains, masked = (torch.stack(rows).double() for rows in (noisy, gains, masked))
    for utterance in range(3):
        for drawn in (gains, masked):  # without a connection the standard deviation of what is found is 0.06
            assert abs(torch.corrcoef(torch.stack([noisy[:, utterance], drawn[:, utterance]]))[0, 1].item()) < 0.25


def test_masks_are_as_many_and_as_wide_as_the_config_says():
    """On average too: Lhotse masks nine utterances of ten."""
    augment = _spec_augment(SpecAugmentConfig(num_feature_masks=2, feature_mask_size=5, num_frame_masks=3, frame_mask_size=30,
                                              max_frames_fraction=0.25), 300, 80)
    features = torch.randn(400, 300, 80)
    with seeded(1):
        changed = augment(features) != features
    frames, bins = changed.all(2), changed.all(1)

    def runs(rows):
        return (rows[:, 1:] & ~rows[:, :-1]).sum(1) + rows[:, 0]

    assert 50 < frames.sum(1).max() <= 75 and runs(frames).max() == 3 and 5 < bins.sum(1).max() <= 10 and runs(bins).max() == 2
    assert 0.8 < changed.flatten(1).any(1).float().mean() < 0.98


@pytest.mark.parametrize("augmented", ["num_frame_masks: 0, num_feature_masks: 0, time_warp: 10",
                                       "num_frame_masks: 2, num_feature_masks: 2, max_frames_fraction: 0.2"])
def test_each_utterance_is_warped_and_masked_as_if_alone(corpus, augmented):
    _, lang, train, _ = corpus
    config = settings(f"data.spec_augment={{{augmented}}}").data
    augment, plain = (TransducerDataset(lang, config, train=train) for train in (True, False))
    planned = plan_batch(list(train)[:40], seed=1, progress=1.0)
    lengths = plain[planned].feature_lengths
    changed = augment[planned].features != plain[planned].features
    inside = torch.arange(changed.size(1)) < lengths.unsqueeze(1)
    assert not changed[~inside].any() and (~inside).any()
    assert changed.flatten(1).any(1).float().mean() > 0.5
    if "fraction" in augmented:
        frames = changed.all(2).sum(1)
        assert frames.any() and (frames <= 0.2 * lengths).all()


def test_features_are_masked_from_where_the_config_says(corpus):
    _, lang, train, _ = corpus
    config = settings("data.spec_augment.start=0.5").data
    learning, other = (TransducerDataset(lang, config, train=train) for train in (True, False))
    for progress, masked in ((0.4, False), (0.5, True)):
        planned = plan_batch(list(train)[:4], seed=1, progress=progress)
        assert torch.equal(learning[planned].features, other[planned].features) != masked


@pytest.mark.parametrize("words, frames_masked, bins_masked", [
    ("num_frame_masks=2 num_feature_masks=2", True, True),
    ("num_frame_masks=0 num_feature_masks=2", False, True),
    ("num_frame_masks=1 num_feature_masks=0", True, False),
    ("num_frame_masks=0 num_feature_masks=0", False, False),
    ("max_frames_fraction=0 num_feature_masks=1", False, True),
    ("max_frames_fraction=0.005 num_feature_masks=0", False, False),  # of these utterances less than a frame
    ("frame_mask_size=1 max_frames_fraction=0.02 num_feature_masks=0", False, False),
    ("num_frame_masks=0 num_feature_masks=1 feature_mask_size=99", False, True),  # of 16 bins
])
def test_masks_of_frames_and_of_bins_and_none(corpus, words, frames_masked, bins_masked):
    _, lang, train, _ = corpus
    config = settings("data.spec_augment.max_frames_fraction=0.3",
                      *(f"data.spec_augment.{word}" for word in words.split())).data
    learning, other = (TransducerDataset(lang, config, train=train) for train in (True, False))
    planned = plan_batch(list(train)[:20], seed=1, progress=1.0)
    changed = learning[planned].features != other[planned].features
    assert changed.all(2).any() == frames_masked and changed.all(1).any() == bins_masked
    assert not changed.flatten(1).all(1).any()  # something is left of each utterance
    assert changed.any() == (frames_masked or bins_masked)


def test_cut_manifests_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="cuts.jsonl.gz is missing: run stage 2"):
        load_cuts(tmp_path / "cuts.jsonl.gz")
    (tmp_path / "cuts.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(RecipeError, match="cuts.jsonl.gz cannot be read as a Lhotse cut manifest"):
        load_cuts(tmp_path / "cuts.jsonl.gz")


def test_cuts_that_share_an_id_are_refused(corpus, tmp_path):
    cuts = list(corpus[3])
    CutSet.from_cuts([*cuts, cuts[5].with_id(cuts[2].id)]).to_file(tmp_path / "cuts.jsonl.gz")
    with pytest.raises(RecipeError, match=rf"cuts.jsonl.gz holds several cuts of one id, such as {cuts[2].id} \(.*: give each"):
        load_cuts(tmp_path / "cuts.jsonl.gz")


def test_a_cut_of_several_utterances_is_refused(corpus):
    """In the process that starts a training: its workers' errors would be tracebacks."""
    cut = corpus[3][1].with_id("long")
    cut.supervisions = [cut.supervisions[0], fastcopy(cut.supervisions[0], id="second", text="B")]
    with pytest.raises(RecipeError, match="cut long has 2 supervisions.*trim_to_supervisions"):
        select_cuts(CutSet.from_cuts([cut]), corpus[1], DataConfig(), False)
    assert [transcript(one) for one in CutSet.from_cuts([cut]).trim_to_supervisions(keep_overlapping=False)] == [
        corpus[3][1].supervisions[0].text, "B"]
