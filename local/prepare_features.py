#!/usr/bin/env python3
"""Stage 2: Lhotse fbank features of every cut set, the training part also at other speeds.

Several machines that share a disk may each make a part (--part 1/4 and so on); stage 2 of run.sh, which is this command
without --part, then joins what they made. With --dask the work goes to a Dask cluster.
"""

import argparse
import shutil
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Callable, Iterator, List, Sequence, Set

import torch
from lhotse import CutSet, Fbank
from lhotse.cut import Cut
from tqdm import tqdm

from kdlib.config import FbankConfig, config_to_dict, load_config
from kdlib.cuts import load_cuts, missing_audio, mixed, recordings_of, shar_index
from kdlib.errors import DISK_FULL, RecipeError, run_main
from kdlib.features import fbank_extractor, raise_for_machine, write_features
from kdlib.files import atomic_path, content_digest, write_json
from kdlib.manifests import Skipped, SkippedFile, too_many_gone
from kdlib.options import require_positive
from kdlib.processes import executor, usable_cores
from kdlib.shar import read_index, write_index, write_shard
from kdlib.shares import (JOINED, check_stored, finish_joining, finish_share, finished_shares, parse_part, refuse_joined,
                          share_folder)

MOST_PIECES = 160  # of a cut set, each with a file of features: some for every core, and a progress bar that moves


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifests", type=Path, required=True, help="folder with cuts_<part>.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder for the features and their cuts")
    parser.add_argument("--config", type=Path, required=True, help="conf/fbank.yaml")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes (the number of cores)")
    parser.add_argument("--part", type=parse_part, metavar="K/N", help="do the K-th of N parts of each cut set")
    parser.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler, whose workers stand in this same folder; or "
                        "'local', for a cluster of JOBS processes on this machine")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for conf/fbank.yaml")
    args = parser.parse_intermixed_args()
    require_positive(jobs=args.jobs)
    return args


@contextmanager
def machine_failures(storage: Path) -> Iterator[None]:
    """What says nothing of the audio, met while features are made in ``storage``, ends the stage with one line."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in DISK_FULL:
            error.filename = str(storage)
        raise_for_machine(error, str(storage))
        raise


def in_pieces(work: Callable, pieces: Sequence[tuple], storage: Path, args, skipped: Skipped) -> list:
    """Do ``work`` for the arguments of each piece, which gives what was made and the cuts that are left out."""
    with machine_failures(storage), executor(args.jobs, args.dask) as pool:
        futures = [pool.submit(work, *piece) for piece in pieces]
        done = [future.result() for future in tqdm(futures, desc="Extracting features, in pieces")]
    for item in (item for _, broken in done for item in broken):
        skipped.add(*item)
    return [made for made, _ in done]


def extract(cuts: CutSet, storage: Path, extractor: Fbank, args, skipped: Skipped) -> CutSet:
    everything = list(cuts)
    # The same pieces for any number of processes: what was trained on these features is trained anew where they lie elsewhere.
    count = max(1, min(len(everything) // 50, MOST_PIECES))
    pieces = [(everything[number::count], storage / f"feats-{number}" if count > 1 else storage, extractor)
              for number in range(count)]
    return CutSet.from_cuts(chain.from_iterable(in_pieces(write_features, pieces, storage, args, skipped)))


def in_order(cuts: CutSet, part: str) -> List[Cut]:
    """The cuts as training or decoding is to meet them, in whatever order processes and machines were done with them."""
    return mixed(cuts) if part == "train" else sorted(cuts, key=lambda cut: cut.id)


def extract_shards(cuts: CutSet, part: str, storage: Path, name: str, extractor: Fbank, args, size: int,
                   skipped: Skipped) -> List[dict]:
    """The same into shards of ``size`` cuts, whatever their order was: neighbours in a shard stay near in training."""
    ordered = in_order(cuts, part)
    pieces = [(ordered[first:first + size], storage, name, number, extractor)
              for number, first in enumerate(range(0, len(ordered), size))]
    return in_pieces(write_shard, pieces, storage, args, skipped)


def read_part(manifest: Path, part: str, args, config: FbankConfig) -> CutSet:
    """The cuts of a part, or this machine's share of them; those of training also at other speeds."""
    cuts = load_cuts(manifest, "run stage 1 again")
    wrong = next((c for c in cuts if c.sampling_rate != config.sampling_rate), None)
    if wrong is not None:
        raise RecipeError(f"{manifest}: {wrong.id} has {wrong.sampling_rate} Hz, and fbank.sampling_rate "
                          f"is {config.sampling_rate}: resample the corpus in stage 1 or change the setting")
    if args.part:
        number, count = args.part
        cuts = CutSet.from_cuts(list(cuts)[number - 1::count])
    require_there(cuts, manifest)
    perturbed = [cuts.perturb_speed(factor) for factor in (config.speed_factors if part == "train" else [])]
    return CutSet.from_cuts(cut for one in [cuts, *perturbed] for cut in one)


def require_there(cuts: CutSet, manifest: Path) -> None:
    """Refuse cuts much of whose audio this machine does not see: left out, it would make a smaller corpus."""
    recordings = recordings_of(cuts)
    gone = missing_audio(recordings)
    if len(gone) == len(recordings) > 1 or too_many_gone(len(gone), len(recordings)):
        raise RecipeError(f"of the {len(recordings)} recordings that {manifest} names here, {len(gone)} are not there, "
                          f"{min(gone)} for one: mount the disk that they are on, and see that its path is the same on every "
                          "machine; or, if they are no more, run stage 1 again")


def remove_old_features(output: Path, name: str, joined: Set[str]) -> None:
    """Remove the features ``name`` of an earlier run, of which there may be one file or a folder with several; of the folder
    the shares that are ``joined`` stay."""
    (output / f"{name}.lca").unlink(missing_ok=True)
    if not joined:
        shutil.rmtree(output / name, ignore_errors=True)
        return
    for old in (output / name).glob("*"):
        if old.name not in joined | {f"{share}.lca" for share in joined}:
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink()


def require_some(count: int, part: str, args) -> None:
    """Nothing at all is an error, but not in the share of one machine, which may be small."""
    if not count and not args.part:
        raise RecipeError(f"{part}: no audio can be read; make the corpus again (stage 0)")


def main():
    args = get_args()
    config = load_config(FbankConfig, args.config, args.overrides)
    manifests = sorted(args.manifests.glob("cuts_*.jsonl.gz"))
    if not manifests:
        raise RecipeError(f"{args.manifests} holds no cuts_*.jsonl.gz: run stage 1 first")
    torch.set_num_threads(1)  # lhotse warns of forked processes that have more
    args.output.mkdir(parents=True, exist_ok=True)
    # Of other audio of the same lengths the manifests say the same, and what stage 1 wrote down of the files does not.
    told = [*manifests, *sorted(args.manifests.glob("audio_*.txt"))]
    made_of = {"config": config_to_dict(config), "manifests": {path.name: content_digest(path) for path in told}}
    shares = [] if args.part else finished_shares(args.output, made_of)
    check_stored(shares, [manifest.name for manifest in manifests], args.output)
    if args.part:
        refuse_joined(args.output, made_of)
    folder = share_folder(args.output, args.part) if args.part else args.output
    for old in (args.output / "fbank.json", args.output / JOINED):
        old.unlink(missing_ok=True)
    listed = SkippedFile(folder)
    for manifest in manifests:
        part = manifest.name[len("cuts_"):-len(".jsonl.gz")]
        shar = part == "train" and config.storage == "shar"
        path, index = folder / manifest.name, shar_index(folder / manifest.name)
        # The old cuts go first: after a kill they would stand beside features that are gone or others'.
        for old in (path, index, args.output / manifest.name, shar_index(args.output / manifest.name)):
            old.unlink(missing_ok=True)
        name = f"{part}/{folder.name}" if args.part else part
        skipped = Skipped(listed)
        for where, *item in (line for share in shares for line in SkippedFile(share).read()):
            if where == part:
                skipped.add(*item)
        remove_old_features(args.output, name, {share.name for share in shares})
        if not shares:
            cuts = read_part(manifest, part, args, config)
        if shar:
            shards = (
                [shard for share in shares for shard in read_index(shar_index(share / manifest.name), some=False)] if shares
                else extract_shards(cuts, part, args.output / name, name, fbank_extractor(config), args, config.shard_size,
                                    skipped))
            skipped.report(part)
            count = sum(shard["utterances"] for shard in shards)
            require_some(count, part, args)
            write_index(index, shards)
            print(f"{part}: {count} cuts, {config.num_filters} bins -> {index}")
            continue
        # There may be fewer cuts than machines: Lhotse reads the file of a share without any as None.
        cuts = (CutSet.from_cuts(cut for share in shares for cut in CutSet.from_file(share / manifest.name) or ())
                if shares else extract(cuts, args.output / name, fbank_extractor(config), args, skipped))
        skipped.report(part)
        require_some(len(cuts), part, args)
        cuts = CutSet.from_cuts(in_order(cuts, part))
        with atomic_path(path) as temporary:
            cuts.to_file(temporary)
        hours = sum(c.duration for c in cuts) / 3600
        print(f"{part}: {len(cuts)} cuts, {hours:.2f} h, {config.num_filters} bins -> {path}")
    if args.part:
        finish_share(folder, made_of)
        return
    write_json(args.output / "fbank.json", config.heard())
    if shares:
        finish_joining(args.output, made_of)


if __name__ == "__main__":
    run_main(main)
