#!/usr/bin/env python3
"""Stage 2: Lhotse fbank features of every cut set, the training part also at other speeds."""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from lhotse import CutSet, Fbank, FbankConfig as LhotseFbankConfig, LilcomChunkyWriter

from kdlib.config import FbankConfig, load_config
from kdlib.data import load_cuts
from kdlib.errors import RecipeError, run_main
from kdlib.files import atomic_path


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifests", type=Path, required=True, help="folder with cuts_<part>.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder for the features and their cuts")
    parser.add_argument("--config", type=Path, required=True, help="conf/fbank.yaml")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def readable(cuts: CutSet, sampling_rate: int, part: str):
    """Leave out the cuts whose audio cannot be decoded: named and counted, the rest goes on."""
    kept, broken = [], []
    for cut in cuts:
        if cut.sampling_rate != sampling_rate:
            raise RecipeError(f"{part}: {cut.id} has {cut.sampling_rate} Hz, conf/fbank.yaml says {sampling_rate}: "
                              "resample the corpus in stage 1 or change the config")
        try:
            cut.load_audio()
            kept.append(cut)
        except Exception as error:  # every audio backend has exceptions of its own
            broken.append((cut.id, " ".join(str(error).split())[:160]))
    return kept, broken


def extract(cuts: CutSet, part: str, output: Path, extractor: Fbank, jobs: int) -> CutSet:
    # More pieces than processes, so that the progress bar moves.
    pieces = max(1, min(len(cuts) // 50, 10 * jobs))
    try:
        # One thread a process: their threads would fight for the cores, which costs many times what they gain.
        with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return cuts.compute_and_store_features(
                extractor=extractor, storage_path=output / part, num_jobs=pieces, executor=pool,
                storage_type=LilcomChunkyWriter, progress_bar=True)
    except Exception as failure:
        # Reading every file twice on every run would be dear; only a run that met a bad file looks for it.
        kept, broken = readable(cuts, extractor.config.sampling_rate, part)
        if not broken:
            raise
        print(f"{part}: skipped {len(broken)} of {len(cuts)} cuts with unreadable audio ({type(failure).__name__}):")
        for name, reason in broken[:10]:
            print(f"  {name}: {reason}")
        if not kept:
            raise RecipeError(f"{part}: no audio can be read; make the corpus again (stage 0)") from None
        shutil.rmtree(output / part, ignore_errors=True)
        return extract(CutSet.from_cuts(kept), part, output, extractor, jobs)


def main():
    args = get_args()
    config = load_config(FbankConfig, args.config, args.overrides)
    parts = sorted(args.manifests.glob("cuts_*.jsonl.gz"))
    if not parts:
        raise RecipeError(f"{args.manifests} holds no cuts_*.jsonl.gz: run stage 1 first")
    extractor = Fbank(LhotseFbankConfig(sampling_rate=config.sampling_rate, num_filters=config.num_filters,
                                        low_freq=config.low_freq, high_freq=config.high_freq, dither=0.0,
                                        snip_edges=False))
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
        shutil.rmtree(args.output / part, ignore_errors=True)  # what a killed run left
        cuts = extract(cuts, part, args.output, extractor, args.jobs)
        with atomic_path(args.output / manifest.name) as temporary:
            cuts.to_eager().to_file(temporary)
        hours = sum(c.duration for c in cuts) / 3600
        print(f"{part}: {len(cuts)} cuts, {hours:.2f} h, {config.num_filters} bins -> {args.output / manifest.name}")


if __name__ == "__main__":
    run_main(main)
