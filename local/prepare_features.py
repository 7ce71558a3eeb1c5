#!/usr/bin/env python3
"""Stage 2: Lhotse fbank features of every cut set, the training part also at other speeds."""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Iterable

import torch
from lhotse import CutSet, Fbank, LilcomChunkyWriter
from lhotse.cut import Cut

from kdlib.config import FbankConfig, load_config
from kdlib.data import load_cuts
from kdlib.errors import RecipeError, run_main
from kdlib.features import fbank_extractor
from kdlib.files import atomic_path
from kdlib.processes import end_with_parent


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifests", type=Path, required=True, help="folder with cuts_<part>.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder for the features and their cuts")
    parser.add_argument("--config", type=Path, required=True, help="conf/fbank.yaml")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def readable(cuts: Iterable[Cut]):
    """The cuts whose audio can be decoded; and the ids of the others, each with the reason."""
    kept, broken = [], []
    for cut in cuts:
        try:
            cut.load_audio()
            kept.append(cut)
        except Exception as error:  # every audio backend has exceptions of its own
            broken.append((cut.id, " ".join(str(error).split())[:160]))
    return kept, broken


def start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)  # their threads would fight for the cores, which costs many times what they gain


def report_skipped(part: str, count: int, broken) -> None:
    print(f"{part}: skipped {len(broken)} of {count} cuts with unreadable audio:")
    for name, reason in broken[:10]:
        print(f"  {name}: {reason}")
    if len(broken) == count:
        raise RecipeError(f"{part}: no audio can be read; make the corpus again (stage 0)")


def extract(cuts: CutSet, part: str, output: Path, extractor: Fbank, jobs: int) -> CutSet:
    # More pieces than processes, so that the progress bar moves.
    pieces = max(1, min(len(cuts) // 50, 10 * jobs))
    try:
        with ProcessPoolExecutor(jobs, initializer=start_worker) as pool:
            done = cuts.compute_and_store_features(
                extractor=extractor, storage_path=output / part, num_jobs=pieces, executor=pool,
                storage_type=LilcomChunkyWriter, progress_bar=True).to_eager()
    except Exception:
        # Reading every file twice on every run would be dear; only a run that met a bad file looks for it.
        kept, broken = readable(cuts)
        if not broken:
            raise
        report_skipped(part, len(cuts), broken)
        shutil.rmtree(output / part, ignore_errors=True)
        return extract(CutSet.from_cuts(kept), part, output, extractor, jobs)
    if len(done) < len(cuts):  # Lhotse leaves out what it knows to be unreadable, and does not count it
        there = set(done.ids)
        left_out = [cut for cut in cuts if cut.id not in there]
        reasons = dict(readable(left_out)[1])
        report_skipped(part, len(cuts), [(cut.id, reasons.get(cut.id, "Lhotse left it out")) for cut in left_out])
    return done


def main():
    args = get_args()
    config = load_config(FbankConfig, args.config, args.overrides)
    parts = sorted(args.manifests.glob("cuts_*.jsonl.gz"))
    if not parts:
        raise RecipeError(f"{args.manifests} holds no cuts_*.jsonl.gz: run stage 1 first")
    extractor = fbank_extractor(config)
    torch.set_num_threads(1)  # lhotse warns of forked processes that have more
    args.output.mkdir(parents=True, exist_ok=True)
    for manifest in parts:
        part = manifest.name[len("cuts_"):-len(".jsonl.gz")]
        cuts = load_cuts(manifest, "run stage 1 again")
        wrong = next((c for c in cuts if c.sampling_rate != config.sampling_rate), None)
        if wrong is not None:
            raise RecipeError(f"{manifest}: {wrong.id} has {wrong.sampling_rate} Hz, {args.config} says "
                              f"{config.sampling_rate}: resample the corpus in stage 1 or change the config")
        if part == "train":
            for factor in config.speed_factors:
                cuts = cuts + load_cuts(manifest).perturb_speed(factor)
            cuts = cuts.to_eager()
        # The old cuts go first: after a kill they would stand beside features that are gone or others'.
        (args.output / manifest.name).unlink(missing_ok=True)
        shutil.rmtree(args.output / part, ignore_errors=True)
        cuts = extract(cuts, part, args.output, extractor, args.jobs)
        with atomic_path(args.output / manifest.name) as temporary:
            cuts.to_eager().to_file(temporary)
        hours = sum(c.duration for c in cuts) / 3600
        print(f"{part}: {len(cuts)} cuts, {hours:.2f} h, {config.num_filters} bins -> {args.output / manifest.name}")


if __name__ == "__main__":
    run_main(main)
