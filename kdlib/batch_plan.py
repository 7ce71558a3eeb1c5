"""What each batch of a training holds, in which order the batches come, and what is drawn for their utterances."""

import queue
import random
from dataclasses import dataclass
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling import dynamic_bucketing
from torch.utils.data import Sampler

from kdlib.config import DataConfig
from kdlib.conformer import subsampled_length
from kdlib.cuts import transcript

MOST_SILENCE = 1.5  # seconds before or after an utterance: more than a device puts behind the end, with chunks up to 32


@dataclass
class Surroundings:
    """What training puts around an utterance."""

    silence: Tuple[int, int] = (0, 0)  # digital, before and after it, in feature frames
    before: str = ""  # the transcript whose last labels the predictor begins with


@dataclass
class PlannedBatch:
    """One share of a batch, what seeds its augmentation, and how far the training has come (0 to 1)."""

    cuts: CutSet
    seed: int
    progress: float
    total_frames: int
    total_utterances: int
    around: List[Surroundings]  # of each cut


def plan_batch(cuts: Iterable[Cut], seed: int, progress: float, share: int = 0, shares: int = 1,
               train: Optional[DataConfig] = None, last: Sequence[Cut] = ()) -> PlannedBatch:
    """Deal the cuts of a batch out, so that each share holds as many and as long ones as the others.

    Args:
      seed: of the whole batch.
      train: the config by which what surrounds the utterances is drawn, the same however many shares there are; None
        outside of training, where nothing does.
      last: the batch before, whose labels one utterance alone goes on after.
    """
    cuts = sorted(cuts, key=lambda cut: -cut.duration)
    around = [Surroundings() for _ in cuts] if train is None else _draw_surroundings(cuts, seed, progress, train, last)
    return PlannedBatch(CutSet.from_cuts(cuts[share::shares]), (seed * 1009 + share) % 2 ** 63, progress,
                        sum(subsampled_length(cut.num_frames + sum(one.silence)) for cut, one in zip(cuts, around)),
                        len(cuts), around[share::shares])


def _draw_surroundings(cuts: Sequence[Cut], seed: int, progress: float, config: DataConfig,
                       last: Sequence[Cut]) -> List[Surroundings]:
    draw, found = random.Random(seed), []
    silent = config.silence.probability if progress >= config.silence.start else 0.0
    for number, cut in enumerate(cuts):
        silence = tuple(round(draw.uniform(0.0, MOST_SILENCE) / cut.frame_shift) if draw.random() < silent else 0
                        for _ in range(2))
        # After another, not after itself: its own last labels would tell how it ends.
        others = [*cuts[:number], *cuts[number + 1:]] or last
        carried = draw.random() < config.carried_labels and len(others) > 0
        found.append(Surroundings(silence, transcript(draw.choice(others)) if carried else ""))
    return found


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


class BucketingSampler(DynamicBucketingSampler, _WithoutSource):
    pass


class _Bucket(queue.Queue):
    """Lhotse takes a bucket for empty by its truth. Those that it makes are always true, so that near an epoch's end, and in
    the middle where a buffer holds little, it draws an empty one, and ends the epoch with utterances left over."""

    def __bool__(self) -> bool:
        return self.qsize() > 0


dynamic_bucketing.Queue = _Bucket


class SharSampler(BucketingSampler):
    """The order of the shards follows the sampler's epoch."""

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.cuts[0].epoch = epoch


class PlannedSampler(Sampler):
    """Gives a Lhotse sampler's batches their seeds and the training's progress; skips those already trained on.

    The batches and their seeds depend on the epoch and the batch's number alone, so a resumed training sees what an
    uninterrupted one would have seen, however many workers read; and every process sees its shares of the same batches,
    one after another, as many as ``micro_batches``.

    This holds for Shar features too, at a price: they can only be read from beginning to end, so every process and every
    worker of it reads all shards and keeps its share, and a training that resumes reads again, from the beginning of its
    epoch, what it was trained on before. What does not hold is that the shuffling is of all cuts: it is of the shards'
    order, and of the ``data.shar_buffer`` cuts that are held at a time; so the batches are others than those of the same
    cuts in a manifest.
    """

    def __init__(self, sampler, config: DataConfig, phase: Phase, skip: int, seconds: float, rank: int, world_size: int,
                 micro_batches: int):
        self.sampler, self.config, self.phase, self.skip, self.seconds = sampler, config, phase, skip, seconds
        self.own = range(rank * micro_batches, (rank + 1) * micro_batches)
        self.shares = world_size * micro_batches

    def __iter__(self) -> Iterator[PlannedBatch]:
        phase, number, consumed, last = self.phase, 0, 0.0, []
        while True:
            for cuts in self.sampler:
                consumed += sum(cut.duration for cut in cuts)
                part = (number + 1) / phase.updates if phase.updates else min(1.0, consumed / self.seconds)
                seed = (phase.seed * 1000003 + phase.epoch) * 1000003 + number
                for share in self.own if number >= self.skip else ():
                    yield plan_batch(cuts, seed, phase.begin + part * (phase.end - phase.begin), share, self.shares,
                                     self.config, last)
                number, last = number + 1, list(cuts)
                if number == phase.updates:
                    return
            if not phase.updates:
                return
            # A phase of a fixed number of updates goes round its cuts again, in a new order.
            self.sampler.set_epoch(self.sampler.epoch + 1)
