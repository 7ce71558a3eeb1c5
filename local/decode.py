#!/usr/bin/env python3
"""Decode test sets with a trained model and count its errors (stages 5, 6 and 7)."""

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from kdlib.config import DataConfig, DecodeConfig, load_config
from kdlib.data import checked, eval_loader, load_cuts
from kdlib.decoding import greedy_search, modified_beam_search
from kdlib.errors import run_main
from kdlib.files import write_json
from kdlib.lang import Lang
from kdlib.scoring import write_results
from kdlib.training.checkpoint import load_averaged

FRAME_MS = 40.0


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--fbank", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--config", type=Path, required=True, help="conf/decode.yaml")
    parser.add_argument("--test-sets", required=True, help="names, separated by spaces")
    parser.add_argument("--epoch", type=int, help="the last one unless given")
    parser.add_argument("--avg", type=int, help="epochs to average; as the training's config says unless given")
    parser.add_argument("--method", help="greedy_search or modified_beam_search")
    parser.add_argument("--beam", type=int, help="hypotheses of modified_beam_search")
    parser.add_argument("--chunk-size", type=int, help="frames of 40 ms, 0 for full context; the model's unless given")
    parser.add_argument("--left-context", type=int, help="frames of 40 ms, -1 for all; the model's unless given")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


@torch.no_grad()
def decode(model, loader, lang: Lang, config: DecodeConfig, device, name: str):
    """(utterance id, reference words, hypothesis words) of every utterance; one too short for a frame has no words."""
    results = []
    for batch in checked(tqdm(loader, desc=name, unit="batch", mininterval=5)):
        encoded, lengths, _ = model.encoder(batch.features.to(device), batch.feature_lengths.to(device))
        if config.method == "greedy_search":
            tokens = greedy_search(model, encoded, lengths, config.max_sym_per_frame)
        else:
            tokens = modified_beam_search(model, encoded, lengths, config.beam)
        for id_, text, ids in zip(batch.ids, batch.texts, tokens):
            results.append((id_, text.split(), lang.decode(ids).split()))
    return results


def main():
    args = get_args()
    options = {"epoch": args.epoch, "avg": args.avg, "method": args.method, "beam": args.beam}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    config = load_config(DecodeConfig, args.config, given + args.overrides)
    lang = Lang(args.lang)
    model, _, which = load_averaged(args.exp, config.epoch, config.avg, tokens=lang.tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.config.chunk_size = model.config.chunk_size if args.chunk_size is None else args.chunk_size
    model.config.left_context = model.config.left_context if args.left_context is None else args.left_context
    greedy = config.method == "greedy_search"
    setting = config.method + (f"-max-sym-{config.max_sym_per_frame}" if greedy else f"-beam-{config.beam}")
    suffix = f"epoch-{which['epoch']}-avg-{which['avg']}-{setting}"
    folder = args.exp / "decode"
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"model": args.exp.name, "parameters": model.parameter_counts()["total"], **which,
               "method": config.method, "max_sym_per_frame": config.max_sym_per_frame if greedy else 1,
               "chunk_ms": model.config.chunk_size * FRAME_MS,
               "left_context_ms": model.config.left_context * FRAME_MS, "test_sets": {}}
    begin = time.monotonic()
    for name in args.test_sets.split():
        cuts = load_cuts(args.fbank / f"cuts_{name}.jsonl.gz")
        loader = eval_loader(cuts, lang, DataConfig(), config.max_duration)
        counts = write_results(folder, name, setting, suffix, decode(model, loader, lang, config, device, name))
        summary["test_sets"][name] = counts
        print(f"{args.exp.name} {name}: WER {counts['wer']:.2f} % ({counts['errors']} errors in {counts['words']} words) "
              f"-> {folder}/errs-{name}-{suffix}.txt")
    summary["seconds"] = round(time.monotonic() - begin, 1)
    write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    run_main(main)
