"""Batches from Lhotse cuts: bucketed by duration, augmented reproducibly, resumable in the middle of an epoch."""

import random
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import CutMix, DynamicBucketingSampler, SpecAugment
from lhotse.dataset.collation import collate_features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kdlib.config import DataConfig
from kdlib.conformer import subsampled_length
from kdlib.errors import RecipeError
from kdlib.files import PathLike
from kdlib.lang import Lang


@dataclass
class PlannedBatch:
    """The cuts of one batch, what seeds its augmentation, and how far the training has come (0 to 1)."""

    cuts: CutSet
    seed: int
    progress: float


@dataclass
class Batch:
    """One padded batch.

    features: (N, T0, F) float32; feature_lengths: (N,) int64;
    symbols: (N, U) int64, padded with 0; symbol_lengths: (N,) int64; texts and ids of the utterances;
    seconds: of audio; progress: of the training when the batch ends.
    """

    features: Tensor
    feature_lengths: Tensor
    symbols: Tensor
    symbol_lengths: Tensor
    texts: List[str]
    ids: List[str]
    seconds: float
    progress: float

    def to(self, device) -> "Batch":
        return Batch(self.features.to(device), self.feature_lengths.to(device), self.symbols.to(device),
                     self.symbol_lengths.to(device), self.texts, self.ids, self.seconds, self.progress)


def load_cuts(path: PathLike, remedy: str = "run stage 2 first") -> CutSet:
    """Read a cut manifest whole; a missing, empty or damaged one is a :class:`RecipeError`."""
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path} is missing: {remedy}")
    try:
        cuts = CutSet.from_file(path).to_eager()
    except Exception as error:
        raise RecipeError(f"{path} cannot be read as a Lhotse cut manifest "
                          f"({type(error).__name__}: {error}): {remedy}") from None
    if len(cuts) == 0:
        raise RecipeError(f"{path} holds no cuts: {remedy}")
    return cuts


def select_cuts(cuts: CutSet, lang: Lang, config: DataConfig, modified: bool) -> Tuple[CutSet, Dict[str, List[str]]]:
    """Keep the cuts that a transducer can learn from.

    A path through the ``modified`` lattice consumes one frame a label, so U labels need U frames after subsampling;
    the regular lattice needs one frame.

    Returns:
        the kept cuts, and the ids of the others by reason.
    """
    skipped: Dict[str, List[str]] = {}
    kept = []
    for cut in cuts:
        text = cut.supervisions[0].text if cut.supervisions else None
        if not cut.has_features:
            reason = "no features"
        elif not text or not text.strip():
            reason = "empty transcript"
        elif cut.duration < config.min_seconds:
            reason = f"shorter than {config.min_seconds} s"
        elif cut.duration > config.max_seconds:
            reason = f"longer than {config.max_seconds} s"
        else:
            frames = subsampled_length(cut.num_frames)
            labels = len(lang.encode(text))
            if frames >= max(1, labels if modified else 1):
                kept.append(cut)
                continue
            reason = "too short for its labels"
        skipped.setdefault(reason, []).append(cut.id)
    return CutSet.from_cuts(kept), skipped


def describe_skipped(skipped: Dict[str, List[str]]) -> List[str]:
    """A line for each reason, with the count and the first few ids."""
    return [f"skipped {len(ids)} utterances ({reason}): {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}"
            for reason, ids in sorted(skipped.items())]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under its own random seed and leave the generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class TransducerDataset(Dataset):
    """Planned batches to :class:`Batch`: reads the features, mixes in noise, masks (SpecAugment)."""

    def __init__(self, lang: Lang, config: DataConfig, noise: Optional[CutSet] = None, train: bool = False):
        self.lang = lang
        self.spec_augment_start = config.spec_augment.start
        self.noise = self.spec_augment = None
        if train and noise is not None and config.noise_probability > 0:
            self.noise = CutMix(noise, snr=tuple(config.noise_snr), p=config.noise_probability,
                                preserve_id=True, seed=None, pad_to_longest=False)
        if train and config.spec_augment.enabled:
            s = config.spec_augment
            self.spec_augment = SpecAugment(
                time_warp_factor=s.time_warp, num_feature_masks=s.num_feature_masks,
                features_mask_size=s.feature_mask_size, num_frame_masks=s.num_frame_masks,
                frames_mask_size=s.frame_mask_size, max_frames_mask_fraction=s.max_frames_fraction)

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        with seeded(planned.seed):
            cuts = planned.cuts.sort_by_duration(ascending=False)
            texts = [cut.supervisions[0].text if cut.supervisions else "" for cut in cuts]
            ids = [cut.id for cut in cuts]
            if self.noise is not None:
                cuts = self.noise(cuts)
            features, lengths = collate_features(cuts)
            if self.spec_augment is not None and planned.progress >= self.spec_augment_start:
                features = self.spec_augment(features)
        labels = [self.lang.encode(text) for text in texts]
        symbols = torch.zeros(len(labels), max(1, max(map(len, labels))), dtype=torch.int64)
        for row, label in zip(symbols, labels):
            row[:len(label)] = torch.tensor(label, dtype=torch.int64)
        return Batch(features, lengths.to(torch.int64), symbols, torch.tensor([len(label) for label in labels]),
                     texts, ids, float(sum(cut.duration for cut in planned.cuts)), planned.progress)


class PlannedSampler(Sampler):
    """Gives a Lhotse sampler's batches their seeds and the training's progress; skips those already trained on.

    The seed depends on the epoch and the batch's number alone, so a resumed training sees what an uninterrupted one
    would have seen, however many workers read.
    """

    def __init__(self, sampler, seed: int, epoch: int, skip: int, begin: float, end: float, seconds: float,
                 limit: Optional[int] = None):
        self.sampler = sampler
        self.seed, self.epoch, self.skip, self.limit = seed, epoch, skip, limit
        self.begin, self.end, self.seconds = begin, end, seconds

    def __iter__(self) -> Iterator[PlannedBatch]:
        consumed = 0.0
        number = 0
        while True:
            for cuts in self.sampler:
                consumed += sum(cut.duration for cut in cuts)
                part = (number + 1) / self.limit if self.limit else min(1.0, consumed / self.seconds)
                if number >= self.skip:
                    seed = (self.seed * 1000003 + self.epoch) * 1000003 + number
                    yield PlannedBatch(cuts, seed % 2 ** 63, self.begin + part * (self.end - self.begin))
                number += 1
                if self.limit and number >= self.limit:
                    return
            if not self.limit:
                return
            # A phase of a fixed number of updates goes round its cuts again, in a new order.
            self.sampler.set_epoch(self.sampler.epoch + 1)


def train_loader(cuts: CutSet, dataset: TransducerDataset, config: DataConfig, seed: int, epoch: int, skip: int,
                 begin: float, end: float, limit: Optional[int] = None) -> DataLoader:
    """Batches of one epoch, from batch ``skip`` on.

    Args:
        begin, end: the training's progress, 0 to 1, before and after the epoch.
        limit: end after that many batches, going round ``cuts`` as often as it takes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it advises lazy manifests; these are checked whole, so read
        sampler = DynamicBucketingSampler(cuts, max_duration=config.max_duration, shuffle=True, seed=seed,
                                          num_buckets=min(config.num_buckets, max(2, len(cuts) // 20)))
    # A fixed-length phase counts its rounds from 1000 on, away from the epochs' own shuffles.
    sampler.set_epoch(1000 if limit else epoch)
    planned = PlannedSampler(sampler, seed, epoch, skip, begin, end, sum(c.duration for c in cuts), limit)
    workers = config.num_workers
    return DataLoader(dataset, sampler=planned, batch_size=None, num_workers=workers,
                      **({"prefetch_factor": 8} if workers else {}))


def eval_loader(cuts: CutSet, lang: Lang, config: DataConfig, max_duration: float) -> DataLoader:
    """Every cut once, in batches of similar durations, without augmentation."""
    ordered = cuts.sort_by_duration(ascending=False)
    batches: List[PlannedBatch] = []
    batch: List = []
    for cut in ordered:
        # Sorted by duration, the first cut is the longest: the batch costs its length times the count.
        if batch and batch[0].duration * (len(batch) + 1) > max_duration:
            batches.append(PlannedBatch(CutSet.from_cuts(batch), 0, 1.0))
            batch = []
        batch.append(cut)
    if batch:
        batches.append(PlannedBatch(CutSet.from_cuts(batch), 0, 1.0))
    return DataLoader(TransducerDataset(lang, config), sampler=batches, batch_size=None, num_workers=0)


def feature_statistics(cuts: CutSet, max_cuts: int = 300) -> Tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature bin, each (F,) float32, over evenly chosen cuts."""
    every = list(cuts)
    step = max(1, len(every) // max_cuts)
    frames = torch.cat([torch.from_numpy(cut.load_features()) for cut in every[::step]])
    return frames.mean(0), frames.std(0)
