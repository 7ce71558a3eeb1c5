"""Batches from Lhotse cuts: bucketed by duration, augmented reproducibly, resumable in the middle of an epoch."""

import random
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import CutMix, DynamicBucketingSampler, SpecAugment
from lhotse.dataset.collation import collate_features
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from kdlib.config import DataConfig
from kdlib.conformer import subsampled_length
from kdlib.errors import RecipeError
from kdlib.files import PathLike
from kdlib.lang import Lang


@dataclass
class PlannedBatch:
    """One process's share of a batch, what seeds its augmentation, and how far the training has come (0 to 1)."""

    cuts: CutSet
    seed: int
    progress: float
    total_frames: int
    total_utterances: int


def plan_batch(cuts: Iterable[Cut], seed: int, progress: float, rank: int = 0, world_size: int = 1) -> PlannedBatch:
    """Deal the cuts of a batch out, so that each process gets as many and as long ones as the others."""
    cuts = sorted(cuts, key=lambda cut: -cut.duration)
    return PlannedBatch(CutSet.from_cuts(cuts[rank::world_size]), seed, progress,
                        sum(subsampled_length(cut.num_frames) for cut in cuts), len(cuts))


# Of a supervision's custom fields: the teacher's best hypotheses, a list of [text, log-probability].
NBEST = "nbest"


@dataclass
class NBest:
    """The teacher's hypotheses of a batch's utterances, the best of each first.

    symbols: (M, U) int64, padded with 0; symbol_lengths: (M,) int64; rows: (M,) int64, whose utterance each is of;
    log_probs: (M,) float32, nats.
    """

    symbols: Tensor
    symbol_lengths: Tensor
    rows: Tensor
    log_probs: Tensor

    def to(self, device) -> "NBest":
        return NBest(self.symbols.to(device), self.symbol_lengths.to(device), self.rows.to(device),
                     self.log_probs.to(device))


@dataclass
class Batch:
    """One process's share of a batch, padded; it may be empty.

    features: (N, T0, F) float32; feature_lengths: (N,) int64;
    symbols: (N, U) int64, padded with 0; symbol_lengths: (N,) int64; texts and ids of the utterances;
    progress: of the training when the batch ends; total_frames (after subsampling) and total_utterances: of the whole
    batch, over all processes; nbest: where the cuts have any.
    """

    features: Tensor
    feature_lengths: Tensor
    symbols: Tensor
    symbol_lengths: Tensor
    texts: List[str]
    ids: List[str]
    progress: float
    total_frames: int
    total_utterances: int
    nbest: Optional[NBest] = None

    def to(self, device) -> "Batch":
        return replace(self, features=self.features.to(device), feature_lengths=self.feature_lengths.to(device),
                       symbols=self.symbols.to(device), symbol_lengths=self.symbol_lengths.to(device),
                       nbest=None if self.nbest is None else self.nbest.to(device))


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


def nbest_of(cut: Cut) -> List[Tuple[str, float]]:
    """(text, log-probability) of the teacher's hypotheses that the cut carries; an empty list where it has none."""
    found = ((cut.supervisions[0].custom or {}).get(NBEST) or []) if cut.supervisions else []
    if not isinstance(found, list) or not all(isinstance(item, list) and list(map(type, item)) == [str, float]
                                              for item in found):
        raise RecipeError(f"cut {cut.id}: the field {NBEST} of its supervision is no list of [text, log-probability]: "
                          "make the manifest anew with local/nbest.py")
    return found


def has_nbest(cuts: Iterable[Cut]) -> bool:
    """Whether any of the cuts carries hypotheses."""
    return any(nbest_of(cut) for cut in cuts)


def select_cuts(cuts: CutSet, lang: Lang, config: DataConfig, modified: bool) -> Tuple[CutSet, Dict[str, List[str]]]:
    """Keep the cuts that a transducer can learn from.

    A path through the ``modified`` lattice consumes one frame a label, so U labels need U frames after subsampling;
    the regular lattice needs one frame.

    Returns:
        the kept cuts, and the ids of the others by reason.
    Raises:
        RecipeError: what stands where a cut's hypotheses do is something else.
    """
    skipped: Dict[str, List[str]] = {}
    kept = []
    for cut in cuts:
        text = cut.supervisions[0].text if cut.supervisions else None
        nbest_of(cut)
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


def _padded(labels: List[List[int]]) -> Tuple[Tensor, Tensor]:
    """Label sequences as (N, U) int64, padded with 0, and their lengths (N,) int64."""
    symbols = torch.zeros(len(labels), max(1, max(map(len, labels))), dtype=torch.int64)
    for row, label in zip(symbols, labels):
        row[:len(label)] = torch.tensor(label, dtype=torch.int64)
    return symbols, torch.tensor([len(label) for label in labels])


class TransducerDataset(Dataset):
    """Planned batches to :class:`Batch`: reads the features, mixes in noise, masks (SpecAugment)."""

    def __init__(self, lang: Lang, config: DataConfig, noise: Optional[CutSet] = None, train: bool = False):
        self.lang = lang
        self.config = config
        self.noise = noise if train and config.noise_probability > 0 else None
        self.spec_augment = None
        if train and config.spec_augment.enabled:
            s = config.spec_augment
            self.spec_augment = SpecAugment(
                time_warp_factor=s.time_warp, num_feature_masks=s.num_feature_masks,
                features_mask_size=s.feature_mask_size, num_frame_masks=s.num_frame_masks,
                frames_mask_size=s.frame_mask_size, max_frames_mask_fraction=s.max_frames_fraction)

    def __getitem__(self, planned: PlannedBatch) -> Union[Batch, RecipeError]:
        """The batch; or what is wrong with its features: as a value, since a worker's exceptions become tracebacks."""
        if len(planned.cuts) == 0:
            nothing = torch.zeros(0, 0, dtype=torch.int64)
            return Batch(torch.zeros(0, 0, 0), nothing.flatten(), nothing, nothing.flatten(), [], [],
                         planned.progress, planned.total_frames, planned.total_utterances)
        cuts = planned.cuts
        texts = [(cut.supervisions[0].text or "") if cut.supervisions else "" for cut in cuts]
        ids = [cut.id for cut in cuts]
        with seeded(planned.seed):
            if self.noise is not None:
                cuts = CutMix(self.noise, snr=tuple(self.config.noise_snr), p=self.config.noise_probability,
                              preserve_id=True, pad_to_longest=False, random_mix_offset=True,
                              seed=random.Random(planned.seed))(cuts)
            try:
                features, lengths = collate_features(cuts)
            except Exception as error:  # each storage has exceptions of its own
                reason = " ".join(str(error).split())[:200]
                return RecipeError(f"the features of {ids[0]} or of another utterance in its batch cannot be read "
                                   f"({type(error).__name__}: {reason}): run stage 2 again with --force")
            if self.spec_augment is not None and planned.progress >= self.config.spec_augment.start:
                features = self.spec_augment(features)
        # The subsampling needs seven frames even to say that there is nothing.
        features = F.pad(features, (0, 0, 0, max(0, 7 - features.size(1))))
        return Batch(features, lengths.to(torch.int64), *_padded([self.lang.encode(text) for text in texts]), texts, ids,
                     planned.progress, planned.total_frames, planned.total_utterances,
                     self._nbest(planned.cuts, lengths))

    def _nbest(self, cuts: CutSet, lengths: Tensor) -> Optional[NBest]:
        """The hypotheses that fit into their utterance's frames (lengths before subsampling)."""
        labels, rows, log_probs = [], [], []
        for row, (cut, length) in enumerate(zip(cuts, lengths.tolist())):
            for text, log_prob in nbest_of(cut):
                tokens = self.lang.encode(text)
                if len(tokens) <= subsampled_length(length):
                    labels.append(tokens), rows.append(row), log_probs.append(log_prob)
        if not labels:
            return None
        return NBest(*_padded(labels), torch.tensor(rows), torch.tensor(log_probs))


@dataclass
class Phase:
    """A part of the training: once through the cuts, or that many ``updates``, round and round if it takes that.

    ``begin`` and ``end``: the training's progress before and after it, 0 to 1.
    """

    epoch: int
    seed: int
    begin: float = 0.0
    end: float = 1.0
    updates: int = 0


class _WithoutSource(Sampler):
    """Stands in for torch's own base, which up to 1.13 wants a data source that Lhotse's samplers do not give it."""

    def __init__(self) -> None:
        pass


class _BucketingSampler(DynamicBucketingSampler, _WithoutSource):
    pass


class PlannedSampler(Sampler):
    """Gives a Lhotse sampler's batches their seeds and the training's progress; skips those already trained on.

    The batches and their seeds depend on the epoch and the batch's number alone, so a resumed training sees what an
    uninterrupted one would have seen, however many workers read; and every process sees its share of the same batches.
    """

    def __init__(self, sampler, phase: Phase, skip: int, seconds: float, rank: int, world_size: int):
        self.sampler, self.phase, self.skip, self.seconds = sampler, phase, skip, seconds
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[PlannedBatch]:
        phase, number, consumed = self.phase, 0, 0.0
        while True:
            for cuts in self.sampler:
                consumed += sum(cut.duration for cut in cuts)
                part = (number + 1) / phase.updates if phase.updates else min(1.0, consumed / self.seconds)
                if number >= self.skip:
                    seed = ((phase.seed * 1000003 + phase.epoch) * 1000003 + number) * 1009 + self.rank
                    yield plan_batch(cuts, seed % 2 ** 63, phase.begin + part * (phase.end - phase.begin), self.rank,
                                     self.world_size)
                number += 1
                if number == phase.updates:
                    return
            if not phase.updates:
                return
            # A phase of a fixed number of updates goes round its cuts again, in a new order.
            self.sampler.set_epoch(self.sampler.epoch + 1)


def checked(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; raises the :class:`RecipeError` that took a batch's place."""
    for batch in loader:
        if isinstance(batch, RecipeError):
            raise batch
        yield batch


def train_loader(cuts: CutSet, dataset: TransducerDataset, config: DataConfig, phase: Phase, skip: int = 0,
                 rank: int = 0, world_size: int = 1) -> DataLoader:
    """Process ``rank``'s shares of the batches of a phase, from batch ``skip`` on."""
    if len(cuts) <= 2:
        raise RecipeError(f"{len(cuts)} training utterances are too few to make batches of: use more data, or a larger "
                          "data.curriculum.max_words where the curriculum asks for short ones")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it advises lazy manifests; these are checked whole, so read
        # Not told of the processes: each batch is dealt out here, so that their number changes none.
        sampler = _BucketingSampler(cuts, max_duration=config.max_duration, shuffle=True, seed=phase.seed,
                                    num_buckets=min(config.num_buckets, max(2, len(cuts) // 20)), rank=0, world_size=1)
    # A phase that goes round several times shuffles anew each time; a thousand rounds are kept for each.
    sampler.set_epoch(1000 * phase.epoch)
    planned = PlannedSampler(sampler, phase, skip, sum(c.duration for c in cuts), rank, world_size)
    workers = config.num_workers
    return DataLoader(dataset, sampler=planned, batch_size=None, num_workers=workers,
                      **({"prefetch_factor": 8} if workers else {}))


def eval_loader(cuts: CutSet, lang: Lang, config: DataConfig, max_duration: float) -> DataLoader:
    """Every cut once, in batches of similar durations, without augmentation."""
    batches: List[PlannedBatch] = []
    batch: List[Cut] = []
    for cut in cuts.sort_by_duration(ascending=False):
        # Sorted by duration, the first cut is the longest: the batch costs its length times the count.
        if batch and batch[0].duration * (len(batch) + 1) > max_duration:
            batches.append(plan_batch(batch, 0, 1.0))
            batch = []
        batch.append(cut)
    batches.append(plan_batch(batch, 0, 1.0))
    return DataLoader(TransducerDataset(lang, config), sampler=batches, batch_size=None, num_workers=0)


def feature_statistics(cuts: CutSet, max_cuts: int = 300) -> Tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature bin, each (F,) float32, over evenly chosen cuts."""
    every = list(cuts)
    step = max(1, len(every) // max_cuts)
    frames = torch.cat([torch.from_numpy(cut.load_features()) for cut in every[::step]])
    return frames.mean(0), frames.std(0)
