"""Cuts as Lhotse's manifests or Shar hold them: read, checked, and those chosen that a transducer can learn from."""

import math
import os
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sized, Tuple, Union

import numpy as np
import torch
from lhotse import CutSet, Recording
from lhotse.cut import Cut, MixedCut, MonoCut
from torch import Tensor

from kdlib.config import DataConfig
from kdlib.conformer import subsampled_length
from kdlib.errors import RecipeError, with_its_type
from kdlib.files import PathLike
from kdlib.lang import Lang
from kdlib.manifests import audio_files
from kdlib.shar import REMAKE, SharCuts

TrainCuts = Union[CutSet, SharCuts]

# Of a supervision's custom fields: the teacher's best hypotheses, a list of [text, log-probability].
NBEST = "nbest"

FEWEST = 3  # cuts that a training's sampler makes batches of


def load_cuts(path: PathLike, remedy: str = "run stage 2 first") -> CutSet:
    """Read a cut manifest whole; a missing, empty or damaged one, or an id that several cuts have, is a
    :class:`RecipeError`."""
    path = Path(path)
    if not path.is_file():
        if shar_index(path).is_file():
            raise RecipeError(f"{path} is missing, since stage 2 wrote these features in Shar, which training alone reads: "
                              "run stage 2 with fbank.storage=files")
        raise RecipeError(f"{path} is missing: {remedy}")
    try:
        cuts = CutSet.from_file(path).to_eager()
    except Exception as error:
        raise RecipeError(f"{path} cannot be read as a Lhotse cut manifest ({with_its_type(error)}): {remedy}") from None
    if len(cuts) == 0:
        raise RecipeError(f"{path} holds no cuts: {remedy}")
    # What is heard in a cut, and when its words end, is known by its id.
    twice = [id_ for id_, count in Counter(cuts.ids).items() if count > 1]
    if twice:
        raise RecipeError(f"{path} holds several cuts of one id, such as {twice[0]} ({len(twice)} such ids): give each cut an "
                          "id of its own")
    return cuts


def mixed(cuts: Iterable[Cut]) -> List[Cut]:
    """The cuts, speeds and speakers among each other, in an order that depends on their ids alone.

    For training: its sampler shuffles no more than a buffer of cuts at a time.
    """
    cuts = sorted(cuts, key=lambda cut: cut.id)
    random.Random("train").shuffle(cuts)
    return cuts


def transcript(cut: Cut) -> str:
    """What is said in the cut; empty where it does not say. A :class:`RecipeError` names a cut with several supervisions."""
    segments = cut.supervisions
    if len(segments) > 1:
        raise RecipeError(f"cut {cut.id} has {len(segments)} supervisions, and an utterance has one: cut it into utterances "
                          "with Lhotse's trim_to_supervisions")
    return (segments[0].text or "") if segments else ""


def unreadable(what: str, path: Optional[str], error: Exception, remedy: str) -> RecipeError:
    """The error to raise where ``what`` could not be read, from ``path`` where that is known: a relative one starts from the
    recipe's folder, and is not there for those who stand elsewhere."""
    if path is not None and not os.path.exists(path):
        if not os.path.isabs(path):
            remedy = f"run this in the recipe's folder, where that path starts, or, if it is not there either, {remedy}"
        return RecipeError(f"{what} cannot be read, since there is no {path}: {remedy}")
    return RecipeError(f"{what} cannot be read ({with_its_type(error)}): {remedy}")


def load_samples(cut: Cut, sampling_rate: int) -> np.ndarray:
    """The cut's audio, (1, samples) float32; a :class:`RecipeError` names a cut that has none, or of another rate."""
    if cut.has_recording and cut.sampling_rate != sampling_rate:
        raise RecipeError(f"{cut.id} has audio of {cut.sampling_rate} Hz and the model hears {sampling_rate} Hz: give the "
                          "cuts that the recipe's stage 2 wrote")
    try:
        return cut.load_audio().astype(np.float32)
    except Exception as error:  # each format has exceptions of its own
        raise unreadable(f"the audio of {cut.id}", next(iter(missing_audio(recordings_of([cut]))), None), error,
                         "mend the file, or run stages 1 and 2 again, which leave it out") from None


def recordings_of(cuts: Iterable[Cut]) -> List[Recording]:
    """The different recordings of the cuts, and of those that they are mixed of."""
    tracks = (one for cut in cuts for one in ([track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]))
    return list({cut.recording.id: cut.recording for cut in tracks if cut.has_recording}.values())


def missing_audio(recordings: Iterable[Recording]) -> List[str]:
    """Of each recording whose audio is not all there, a file that is not."""
    missing = ([file for file in sorted(audio_files(recording)) if not os.path.exists(file)] for recording in recordings)
    return [files[0] for files in missing if files]


def load_features(cut: Cut) -> Tensor:
    """The cut's features, (T0, F) float32; a :class:`RecipeError` names a cut whose features cannot be read."""
    try:
        return torch.from_numpy(cut.load_features())
    except Exception as error:  # each storage has exceptions of its own
        raise unreadable(f"the features of {cut.id}", features_file(cut), error, REMAKE) from None


def features_file(cut: Cut) -> Optional[str]:
    """Where the features of a cut are, if in a file of their own."""
    return cut.features.storage_path or None if isinstance(cut, MonoCut) and cut.has_features else None


def shar_index(path: PathLike) -> Path:
    """Where the index stands if the features of a part are in Shar; ``path`` is that of its cuts if they are not."""
    path = Path(path)
    return path.with_name(path.name.replace("cuts_", "shar_", 1).replace(".jsonl.gz", ".json"))


def nbest_of(cut: Cut) -> List[Tuple[str, float]]:
    """(text, log-probability) of the teacher's hypotheses that the cut carries; an empty list where it has none.
    Raises :class:`RecipeError` where they are something else."""
    found = ((cut.supervisions[0].custom or {}).get(NBEST) or []) if cut.supervisions else []
    if not isinstance(found, list) or not all(isinstance(item, list) and list(map(type, item)) == [str, float]
                                              and math.isfinite(item[1]) for item in found):
        raise RecipeError(f"cut {cut.id}: the field {NBEST} of its supervision is no list of [text, log-probability], each "
                          "of these finite: make the manifest anew with local/nbest.py")
    return found


def has_nbest(cuts: TrainCuts) -> bool:
    """Whether any of the cuts carries hypotheses."""
    return any(nbest_of(cut) for cut in (cuts.described() if isinstance(cuts, SharCuts) else cuts))


def unusable(cut: Cut, lang: Lang, config: DataConfig, modified: bool) -> Optional[str]:
    """Why a transducer cannot learn from the cut, or None; see :func:`select_cuts`."""
    text = transcript(cut)
    nbest_of(cut)
    if not cut.has_features:
        return "no features"
    if not text.strip():
        return "empty transcript"
    reason = config.wrong_length(cut.duration)
    if reason is not None:
        return reason
    labels = lang.encode(text)
    if lang.blank_id in labels:
        return "the blank, which is no label, in its transcript"
    return None if subsampled_length(cut.num_frames) >= (max(1, len(labels)) if modified else 1) else "too short for its labels"


def select_cuts(cuts: TrainCuts, lang: Lang, config: DataConfig, modified: bool) -> Tuple[TrainCuts, Dict[str, List[str]]]:
    """Keep the cuts that a transducer can learn from.

    A path through the ``modified`` lattice consumes one frame a label, so U labels need U frames after subsampling;
    the regular lattice needs one frame.

    Returns:
        the kept cuts, and the ids of the others by reason.
    Raises:
        RecipeError: a cut has several supervisions, or what stands where its hypotheses do is something else.
    """
    reason_of = partial(unusable, lang=lang, config=config, modified=modified)
    if isinstance(cuts, SharCuts):
        return cuts.select(reason_of)
    skipped: Dict[str, List[str]] = {}
    kept = []
    for cut in cuts:
        reason = reason_of(cut)
        if reason is None:
            kept.append(cut)
        else:
            skipped.setdefault(reason, []).append(cut.id)
    return CutSet.from_cuts(kept), skipped


def _too_many_words(cut: Cut, most: int) -> Optional[str]:
    return None if len(cut.supervisions[0].text.split()) <= most else f"more than {most} words"


def short_cuts(cuts: TrainCuts, most: int) -> TrainCuts:
    """The cuts of at most so many words, for the curriculum; a :class:`RecipeError` where they are too few for batches."""
    if isinstance(cuts, SharCuts):
        short = cuts.select(partial(_too_many_words, most=most))[0]
    else:
        short = cuts.filter(lambda cut: _too_many_words(cut, most) is None).to_eager()
    if len(short) < FEWEST:
        raise RecipeError(f"{len(short)} training utterances have at most {most} words, too few for data.curriculum: raise "
                          "data.curriculum.max_words or set data.curriculum.updates=0")
    return short


def require_enough(cuts: Sized) -> None:
    """Refuse, with a :class:`RecipeError`, cuts that are too few for batches."""
    if len(cuts) < FEWEST:
        raise RecipeError(f"{len(cuts)} training utterances are too few to make batches of: use more data")


def total_seconds(cuts: TrainCuts) -> float:
    """How much audio the cuts hold."""
    return cuts.seconds if isinstance(cuts, SharCuts) else sum(cut.duration for cut in cuts)


def cut_of_other_bins(cuts: Iterable[Cut], bins: int) -> Optional[Cut]:
    """The first of the cuts whose features have another number of bins; None where no cut's have."""
    return next((cut for cut in cuts if cut.has_features and cut.num_features != bins), None)


def describe_skipped(skipped: Dict[str, List[str]]) -> List[str]:
    """A line for each reason, with the count and the first few ids."""
    return [f"skipped {len(ids)} utterances ({reason}): {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}"
            for reason, ids in sorted(skipped.items())]


def feature_statistics(cuts: TrainCuts, max_cuts: int = 300) -> Tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature bin, each (F,) float32, over evenly chosen cuts.

    Raises:
        RecipeError: the features of one of them cannot be read, or are not all numbers.
    """
    if isinstance(cuts, SharCuts):
        chosen = list(cuts.some(max_cuts))
    else:
        every = list(cuts)
        chosen = every[::max(1, len(every) // max_cuts)]
    features = [load_features(cut) for cut in chosen]
    for cut, part in zip(chosen, features):
        if not bool(torch.isfinite(part).all()):
            raise RecipeError(f"the features of {cut.id} hold nan or infinity, with which nothing can be learned: mend its "
                              f"audio, and {REMAKE}")
    frames = torch.cat(features)
    return frames.mean(0), frames.std(0)
