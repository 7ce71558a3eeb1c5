"""Training features in Lhotse Shar: files that are read from beginning to end, from a disk or from an object store.

A *shard* is a file of cuts and a tar file of their features, in the same order. A small index lists them: JSON with
``shards``, a list of ``cuts`` and ``features`` (names of files, relative to the folder of stage 2), ``utterances`` and a
``digest`` of all that the two files say, so that other features are another index.
"""

import hashlib
import importlib.util
import random
import re
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from lhotse import CutSet, Fbank
from lhotse.cut import Cut
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy

from kdlib.errors import RecipeError, with_its_type
from kdlib.features import with_features_where_read
from kdlib.files import PathLike, content_digest, read_json, write_json

Shard = Dict[str, Any]
# Why a cut is left out, or None.
Reason = Callable[[Cut], Optional[str]]
# With the stage to stop at, since --force alone would train all models anew.
REMAKE = "run stage 2 again (this run's run.sh with --stage 2 --stop-stage 2 --force)"
AGAIN = f"{REMAKE}, or copy its folder anew"


def write_shard(cuts: Sequence[Cut], folder: PathLike, name: str, number: int, extractor: Fbank) -> Tuple[
        Shard, List[Tuple[str, str]]]:
    """Extract the features of some cuts and write them, in that order, as shard ``number`` in ``folder``.

    Returns its entry for the index, where its files stand under the folder ``name``, and the cuts of whose audio there are
    no features, each with the reason; these are left out.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    broken: List[Tuple[str, str]] = []
    with SharWriter(str(folder), {"features": "lilcom"}, shard_size=None, shard_suffix=f".{number:06d}",
                    warn_unused_fields=False) as writer:
        for cut in with_features_where_read(cuts, extractor, broken):
            # Shards stand alone: where they are read there need be no audio.
            writer.write(fastcopy(cut, recording=None))
    cuts_file, features_file = f"cuts.{number:06d}.jsonl.gz", f"features.{number:06d}.tar"
    shard = {"cuts": f"{name}/{cuts_file}", "features": f"{name}/{features_file}", "utterances": len(cuts) - len(broken)}
    if shard["utterances"]:  # else there are no such files
        shard["digest"] = _digest(Path(folder) / cuts_file, Path(folder) / features_file)
    return shard, broken


def _digest(cuts: Path, features: Path) -> str:
    """SHA-256 of what the two files of a shard say, without the times that are in them too."""
    digest = hashlib.sha256(content_digest(cuts).encode())
    with tarfile.open(features) as members:
        for member in members:
            digest.update(members.extractfile(member).read())
    return digest.hexdigest()


def write_index(path: PathLike, shards: Sequence[Shard]) -> None:
    """Write an index, atomically; shards without utterances are left out of it."""
    write_json(path, {"shards": [shard for shard in shards if shard["utterances"]]})


def read_index(path: PathLike, some: bool = True) -> List[Shard]:
    """The shards of an index; a :class:`RecipeError` where it is missing or something else, or if ``some`` lists none."""
    content = read_json(path, "run stage 2 first")
    shards = content.get("shards") if isinstance(content, dict) else None
    # Names only: whoever wrote the index decides neither what is run ("pipe:") nor what is read elsewhere.
    if not isinstance(shards, list) or (some and not shards) or not all(
            isinstance(shard, dict) and isinstance(shard.get("utterances"), int)
            and all(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", str(shard.get(key))) for key in ("cuts", "features"))
            for shard in shards):
        raise RecipeError(f"{path} is not an index of Shar features, or lists none: {AGAIN}")
    return shards


class SharCuts:
    """The training cuts of an index, to be gone through from shard to shard.

    It stands where training takes a CutSet, but has no access by place or id. Iterating gives the cuts with their
    features, in an order of shards that depends on ``seed`` and ``epoch`` alone. ``len`` and ``seconds`` (of audio) are
    known once the cuts were selected.

    Args:
        index: an index; root: the folder or the URL (such as s3://bucket/fbank) that the shards are in, the index's folder
            unless given. URLs are opened by smart_open.
    Raises:
        RecipeError: the index or a shard is missing or damaged, or URLs cannot be opened here.
    """

    def __init__(self, index: PathLike, root: str = ""):
        self.index, self.root = Path(index), root or str(Path(index).parent)
        self.shards = read_index(index)
        if "://" in self.root and importlib.util.find_spec("smart_open") is None:
            raise RecipeError(f"{self.root} is read by the package smart_open, which is missing: pip install smart_open, "
                              "with the extra for that store, as in smart_open[s3]")
        self.reasons: List[Reason] = []
        self.seed: Any = None
        self.epoch = 0
        self.seconds = 0.0
        self._len = sum(shard["utterances"] for shard in self.shards)

    def __len__(self) -> int:
        return self._len

    def _copy(self, **changes) -> "SharCuts":
        copy = object.__new__(SharCuts)
        copy.__dict__.update({**self.__dict__, **changes})
        return copy

    def shuffled(self, seed: int) -> "SharCuts":
        """The same cuts with the shards in an order of the seed, another one in each epoch."""
        return self._copy(seed=seed)

    def select(self, reason: Reason) -> Tuple["SharCuts", Dict[str, List[str]]]:
        """Leave out the cuts for which there is a reason; goes once through what all cuts say, without their features.

        ``reason`` must be picklable. Returns the rest, and the ids of the others by reason.
        """
        skipped: Dict[str, List[str]] = {}
        count, seconds = 0, 0.0
        for cut in self.described():
            why = reason(cut)
            if why is None:
                count, seconds = count + 1, seconds + cut.duration
            else:
                skipped.setdefault(why, []).append(cut.id)
        return self._copy(reasons=[*self.reasons, reason], _len=count, seconds=seconds), skipped

    def described(self) -> Iterator[Cut]:
        """The cuts without their features, in the order of the index."""
        return chain.from_iterable(self._read(shard, ("cuts",)) for shard in self.shards)

    def some(self, count: int) -> Iterator[Cut]:
        """About ``count`` cuts with their features, the first ones of up to ten shards, evenly chosen."""
        shards = self.shards[::max(1, len(self.shards) // 10)]
        for shard in shards:
            for _, cut in zip(range(max(1, count // len(shards))), self._read(shard)):
                yield cut

    def __iter__(self) -> Iterator[Cut]:
        order = list(self.shards)
        if self.seed is not None:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return chain.from_iterable(map(self._read, order))

    def _read(self, shard: Shard, fields: Sequence[str] = ("cuts", "features")) -> Iterator[Cut]:
        """The cuts of one shard that nothing speaks against."""
        paths = {field: [f"{self.root.rstrip('/')}/{shard[field]}"] for field in fields}
        count = 0
        try:
            # Without features, plain JSON lines: a Shar reader wants more than one field.
            cuts = CutSet.from_shar(paths) if len(paths) > 1 else CutSet.from_jsonl_lazy(paths["cuts"][0])
            for cut in cuts:
                count += 1
                if all(reason(cut) is None for reason in self.reasons):
                    yield cut
            if count != shard["utterances"]:
                raise ValueError(f"it holds {count} utterances of {shard['utterances']}")
        except RecipeError:
            raise
        except Exception as error:  # each storage has exceptions of its own
            raise RecipeError(f"{' or '.join(path for path, in paths.values())} cannot be read "
                              f"({with_its_type(error)}): {AGAIN}") from None
