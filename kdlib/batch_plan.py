"""What each batch of a training holds, in which order the batches come, and what is drawn for their utterances."""

import queue
import random
import re
from dataclasses import dataclass
from typing import Iterable, Iterator, List, Sequence

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling import dynamic_bucketing
from torch.utils.data import Sampler

from kdlib.conformer import subsampled_length
from kdlib.cuts import transcript


@dataclass
class PlannedBatch:
    """One share of a batch, what seeds its augmentation, and how far the training has come (0 to 1)."""

    cuts: CutSet
    seed: int
    progress: float
    total_frames: int
    total_utterances: int
    before: List[str]  # of each cut: the transcript whose last labels the predictor begins with


def plan_batch(cuts: Iterable[Cut], seed: int, progress: float, share: int = 0, shares: int = 1, carried_labels: float = 0.0,
               last: Sequence[Cut] = ()) -> PlannedBatch:
    """Deal the cuts of a batch out, so that each share holds as many and as long ones as the others.

    Args:
      seed: of the whole batch.
      carried_labels: the part of the utterances that go on after another; the same ones however many shares there are.
      last: the batch before, after which one utterance alone goes on.
    """
    cuts = sorted(cuts, key=lambda cut: -cut.duration)
    return PlannedBatch(CutSet.from_cuts(cuts[share::shares]), (seed * 1009 + share) % 2 ** 63, progress,
                        sum(subsampled_length(cut.num_frames) for cut in cuts), len(cuts),
                        _draw_before(cuts, seed, carried_labels, last)[share::shares])


def _draw_before(cuts: Sequence[Cut], seed: int, carried_labels: float, last: Sequence[Cut]) -> List[str]:
    draw, found = random.Random(seed), [""] * len(cuts)
    if len(cuts) == 1:
        cuts = [*cuts, *(cut for cut in last if cut.id != cuts[0].id)]
    for number in range(len(found) if len(cuts) > 1 else 0):
        if draw.random() < carried_labels:
            # After another, not after itself or its copy at another speed: its own last labels would tell how it ends.
            first = draw.randrange(len(cuts) - 1)
            first += first >= number
            others = (cut for cut in [*cuts[first:], *cuts[:first]] if _of_any_speed(cut) != _of_any_speed(cuts[number]))
            found[number] = next(map(transcript, others), "")
    return found


def _of_any_speed(cut: Cut) -> str:
    """Its id, without what Lhotse adds at another speed."""
    return re.sub(r"_sp[0-9.]+$", "", cut.id)


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
    """Lhotse's batches of utterances of about one length, so many seconds together; for what is in memory."""


class _Bucket(queue.Queue):
    """Lhotse takes a bucket for empty by its truth. Those that it makes are always true, so that near an epoch's end, and in
    the middle where a buffer holds little, it draws an empty one, and ends the epoch with utterances left over."""

    def __bool__(self) -> bool:
        return self.qsize() > 0


dynamic_bucketing.Queue = _Bucket


class SharSampler(BucketingSampler):
    """The order of the shards follows the sampler's epoch."""

    def set_epoch(self, epoch: int) -> None:
        """As Lhotse's, for the shards too."""
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

    def __init__(self, sampler, phase: Phase, skip: int, seconds: float, rank: int, world_size: int, micro_batches: int,
                 carried_labels: float):
        self.sampler, self.phase, self.skip, self.seconds = sampler, phase, skip, seconds
        self.carried_labels = carried_labels
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
                                     self.carried_labels, last)
                number, last = number + 1, list(cuts)
                if number == phase.updates:
                    return
            if not phase.updates:
                return
            # A phase of a fixed number of updates goes round its cuts again, in a new order.
            self.sampler.set_epoch(self.sampler.epoch + 1)
