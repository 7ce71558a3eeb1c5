"""Batches of Lhotse cuts as tensors: features read, augmented reproducibly, padded; by processes that read ahead."""

import math
import os
import random
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Callable, Iterator, List, Optional, Tuple, Union

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut, MixedCut
from lhotse.dataset import CutMix, SpecAugment
from lhotse.dataset.collation import collate_features
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from kdlib.batch_plan import BucketingSampler, Phase, PlannedBatch, PlannedSampler, SharSampler, plan_batch
from kdlib.config import DataConfig, SpecAugmentConfig
from kdlib.conformer import subsampled_length
from kdlib.cuts import TrainCuts, features_file, nbest_of, require_enough, total_seconds, transcript, unreadable
from kdlib.errors import RecipeError, killed_reader
from kdlib.lang import Lang
from kdlib.shar import REMAKE, SharCuts

# Attention over a whole utterance at once takes memory that grows with the square of its length: some 3 GiB for so many
# seconds. Longer ones are decoded chunk by chunk, and not aligned.
LONGEST_SECONDS = 300.0

SHARED_MEMORY = "/dev/shm"  # by which a process is handed what its workers read
MOST_AHEAD = 8  # batches that each worker may have ready

NOISE = "data.noise"  # the tag of what was mixed in

FLOOR = math.log(torch.finfo(torch.float32).eps)  # below it Lhotse's log-mel filterbank has no feature


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

    def each(self, change: Callable[[Tensor], Tensor]) -> "NBest":
        """With every tensor as ``change`` makes it."""
        return NBest(change(self.symbols), change(self.symbol_lengths), change(self.rows), change(self.log_probs))


@dataclass
class Batch:
    """One share of a batch, padded; it may be empty.

    features: (N, T0, F) float32; feature_lengths: (N,) int64;
    symbols: (N, U) int64, padded with 0; symbol_lengths: (N,) int64; texts and ids of the utterances;
    progress: of the training when the batch ends; total_frames (after subsampling) and total_utterances: of the whole
    batch, over all shares; nbest: where the cuts have any; before: (N, B) int64, padded with 0, the labels after whose last
    the predictor begins, and before_lengths: (N,) int64, 0 where it begins anew; None where it does with all.
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
    before: Optional[Tensor] = None
    before_lengths: Optional[Tensor] = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """With every tensor as ``change`` makes it."""
        return replace(self, features=change(self.features), feature_lengths=change(self.feature_lengths),
                       symbols=change(self.symbols), symbol_lengths=change(self.symbol_lengths),
                       nbest=None if self.nbest is None else self.nbest.each(change),
                       before=None if self.before is None else change(self.before),
                       before_lengths=None if self.before_lengths is None else change(self.before_lengths))

    def spoilt(self) -> List[str]:
        """Ids of the utterances whose features are not finite."""
        return [id_ for id_, row in zip(self.ids, self.features) if not bool(row.isfinite().all())]

    def to(self, device) -> "Batch":
        """From pinned memory it is copied while the GPU computes."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """What a DataLoader that pins memory calls."""
        return self.each(Tensor.pin_memory)


def describe_spoilt(ids: List[str]) -> str:
    """What to say of the utterances that :meth:`Batch.spoilt` found, by the first few ids."""
    return f"the features of {', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''} hold nan or infinity"


def warn_of_spoilt(ids: List[str]) -> None:
    """Say of which of the utterances that were decoded :meth:`Batch.spoilt` found the features so, if of any."""
    if ids:
        print(f"warning: {describe_spoilt(ids)}, so what is heard there tells nothing: mend their audio, and {REMAKE}")


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


def _spec_augment(s: SpecAugmentConfig, frames: int, bins: int) -> SpecAugment:
    """For features (1, frames, bins). Lhotse's masks are of fewer bins or frames than their size, which must be 1 or
    more, as must the number of frame masks: where there is room for none, one of size 1 masks nothing."""
    most = s.max_frames_fraction * frames
    count = min(s.num_frame_masks, math.ceil(most / s.frame_mask_size))
    count, size, fraction = (count, s.frame_mask_size, s.max_frames_fraction) if 0 < count <= most else (1, 1, 1.0)
    return SpecAugment(time_warp_factor=s.time_warp, num_feature_masks=s.num_feature_masks,
                       features_mask_size=min(s.feature_mask_size, bins), num_frame_masks=count, frames_mask_size=size,
                       max_frames_mask_fraction=fraction)


def _set_mean_ratio(cuts: CutSet) -> CutSet:
    """Make the ratio at which CutMix's noise was mixed in one of mean powers. Lhotse takes it for one of energies added up
    over frames, by which a noise shorter than its utterance would be the louder the shorter it is."""
    for cut in cuts:
        for track in cut.tracks[1:] if isinstance(cut, MixedCut) else ():
            if track.tag == NOISE:
                track.snr += 10 * math.log10(cut.tracks[0].cut.num_frames / max(1, track.cut.num_frames))
    return cuts


class TransducerDataset(Dataset):
    """Planned batches to :class:`Batch`: reads the features, mixes in noise, sets the level, masks (SpecAugment)."""

    def __init__(self, lang: Lang, config: DataConfig, noise: Optional[CutSet] = None, train: bool = False):
        self.lang = lang
        self.config = config
        self.noise = noise if train and config.noise_probability > 0 else None
        self.gain = config.gain if train and any(config.gain.range) else None
        self.masks = train and config.spec_augment.enabled

    def __getitem__(self, planned: PlannedBatch) -> Union[Batch, RecipeError]:
        """The batch; or what is wrong with its features: as a value, since a worker's exceptions become tracebacks."""
        if len(planned.cuts) == 0:
            nothing = torch.zeros(0, 0, dtype=torch.int64)
            return Batch(torch.zeros(0, 0, 0), nothing.flatten(), nothing, nothing.flatten(), [], [],
                         planned.progress, planned.total_frames, planned.total_utterances)
        cuts = planned.cuts
        texts = [transcript(cut) for cut in cuts]
        ids = [cut.id for cut in cuts]
        with seeded(planned.seed):
            if self.noise is not None:
                # By numbers of its own: were they those of the gains and masks, noise would tell the first utterance's.
                draw = random.Random(f"noise {planned.seed}")
                cuts = _set_mean_ratio(CutMix(
                    self.noise, snr=tuple(self.config.noise_snr), p=self.config.noise_probability, preserve_id=True,
                    pad_to_longest=False, random_mix_offset=True, seed=draw, tag=NOISE)(cuts))
            try:
                features, lengths = collate_features(cuts)
            except Exception as error:  # each storage has exceptions of its own
                return unreadable(f"the features of {ids[0]} or of another utterance in its batch",
                                  features_file(planned.cuts[0]), error, REMAKE)
            if self.gain is not None and planned.progress >= self.gain.start:
                # Of log-mel energies a gain is a sum: the features of the louder or quieter audio, but for what was, or now
                # is, at their floor.
                for row, length in zip(features, lengths.tolist()):
                    row[:length] = (row[:length] + random.uniform(*self.gain.range) * math.log(10) / 10).clamp_(min=FLOOR)
            if self.masks and planned.progress >= self.config.spec_augment.start:
                # Each without its padding, which would be masked in its place and counted in how much is masked.
                for row, length in zip(features, lengths.tolist()):
                    row[:length] = _spec_augment(self.config.spec_augment, length, row.size(1))(row[None, :length])[0]
        # The subsampling needs seven frames even to say that there is nothing.
        features = F.pad(features, (0, 0, 0, max(0, 7 - features.size(1))))
        before = [self.lang.encode(text) for text in planned.before]
        return Batch(features, lengths.to(torch.int64), *_padded([self.lang.encode(text) for text in texts]), texts, ids,
                     planned.progress, planned.total_frames, planned.total_utterances,
                     self._nbest(planned.cuts, lengths), *(_padded(before) if any(before) else (None, None)))

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


def checked(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; raises the :class:`RecipeError` that took a batch's place, or of a worker that was killed while it
    handed one over. Of one that was killed at another time see :func:`kdlib.errors.known_failure`."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:  # of a process that was killed while it handed a batch over
            raise RecipeError(killed_reader(error)) from None
        if isinstance(batch, RecipeError):
            raise batch
        yield batch


class _SequentialBatches(IterableDataset):
    """The planned batches of features that are read in order, in the process that reads them; of several workers each
    leaves the others' batches to them."""

    def __init__(self, dataset: TransducerDataset, planned: PlannedSampler):
        self.dataset, self.planned = dataset, planned

    def __iter__(self) -> Iterator[Union[Batch, RecipeError]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            for number, planned in enumerate(self.planned):
                if number % workers == worker:
                    yield self.dataset[planned]
        except RecipeError as error:  # as a value, like the dataset's own
            yield error


def batches_ahead(cuts: TrainCuts, total: float, config: DataConfig, micro_batches: int) -> int:
    """How many parts of batches each of the workers, of which there is one at least, may have ready of ``total`` seconds of
    cuts. Were the shared memory full, as the 64 MB that Docker gives a container soon are, torch would lose one and wait for
    it for ever.

    Raises:
        RecipeError: there is no room for one of each worker beside what is trained on.
    """
    try:
        memory = os.statvfs(SHARED_MEMORY)
    except OSError:  # it is elsewhere
        return MOST_AHEAD
    if memory.f_blocks == 0:  # it has no limit
        return MOST_AHEAD
    # Of all of it, not of what is free, which other processes of the training may have begun to fill with their shares: each
    # has as many workers, and together they hold whole parts.
    cut = next(cuts.described() if isinstance(cuts, SharCuts) else iter(cuts))
    seconds = min(config.max_duration, total) / micro_batches
    part = seconds / cut.frame_shift * cut.num_features * 4  # bytes, of float32
    room = memory.f_blocks * memory.f_frsize / (1.25 * part)  # parts are padded
    ahead = int((room - 2 * micro_batches) / config.num_workers)  # a batch is held until the next one is there
    if ahead < 1:
        raise RecipeError(f"{SHARED_MEMORY} has room for {room / micro_batches:.1f} batches, too few for data.num_workers="
                          f"{config.num_workers}: give it more (a container's is docker run --shm-size), or set "
                          "data.num_workers=0")
    return min(MOST_AHEAD, ahead)


def train_loader(cuts: TrainCuts, dataset: TransducerDataset, config: DataConfig, phase: Phase, skip: int = 0,
                 rank: int = 0, world_size: int = 1, micro_batches: int = 1) -> DataLoader:
    """Process ``rank``'s shares of the batches of a phase, ``micro_batches`` of each, from batch ``skip`` on."""
    require_enough(cuts)
    # Not told of the processes: each batch is dealt out here, so that their number changes none.
    options = dict(max_duration=config.max_duration, shuffle=True, seed=phase.seed, rank=0, world_size=1)
    buckets = min(config.num_buckets, max(2, len(cuts) // 20))
    if isinstance(cuts, SharCuts):
        bins = estimate_duration_buckets(islice(cuts.described(), 10000), buckets)
        # Synchronised buckets would be drawn otherwise in each worker.
        sampler = SharSampler(cuts.shuffled(phase.seed), duration_bins=bins, buffer_size=config.shar_buffer,
                              sync_buckets=False, **options)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it advises lazy manifests; these are checked whole, so read
            # Of a bucket 5,000 cuts are held at a time: with few of many, utterances would meet the same others in every epoch.
            sampler = BucketingSampler(cuts, num_buckets=buckets, buffer_size=max(20000, 5000 * buckets), **options)
    # A phase that goes round several times shuffles anew each time; a thousand rounds are kept for each.
    sampler.set_epoch(1000 * phase.epoch)
    total = total_seconds(cuts)
    planned = PlannedSampler(sampler, phase, skip, total, rank, world_size, micro_batches, config.carried_labels)
    loading = dict(batch_size=None, num_workers=config.num_workers, pin_memory=torch.cuda.is_available())
    if config.num_workers:
        loading["prefetch_factor"] = batches_ahead(cuts, total, config, micro_batches)
    if isinstance(cuts, SharCuts):
        return DataLoader(_SequentialBatches(dataset, planned), **loading)
    return DataLoader(dataset, sampler=planned, **loading)


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
