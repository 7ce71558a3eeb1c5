#!/usr/bin/env python3
"""Decode test sets with a trained model and count its errors (stages 5, 6 and 7)."""

import argparse
import time

import torch
from tqdm import tqdm

from kdlib.commandline import add_decoding_options, decoding_config, decoding_summary, search_setting, write_test_set
from kdlib.config import DataConfig, DecodeConfig
from kdlib.data import checked, eval_loader, load_cuts
from kdlib.decoding import best_hypotheses
from kdlib.errors import run_main
from kdlib.files import write_json
from kdlib.lang import Lang
from kdlib.training.checkpoint import load_averaged


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_decoding_options(parser)
    return parser.parse_args()


@torch.no_grad()
def decode(model, loader, config: DecodeConfig, device, name: str):
    """(utterance id, transcript, best hypothesis) of every utterance; one too short for a frame has no labels."""
    results = []
    for batch in checked(tqdm(loader, desc=name, unit="batch", mininterval=5)):
        encoded, lengths, _ = model.encoder(batch.features.to(device), batch.feature_lengths.to(device))
        results += zip(batch.ids, batch.texts, best_hypotheses(model, encoded, lengths, config))
    return results


def main():
    args = get_args()
    config = decoding_config(args)
    lang = Lang(args.lang)
    model, _, which = load_averaged(args.exp, config.epoch, config.avg, tokens=lang.tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.config.chunk_size = model.config.chunk_size if args.chunk_size is None else args.chunk_size
    model.config.left_context = model.config.left_context if args.left_context is None else args.left_context
    setting, own_chunks = search_setting(config), (args.chunk_size, args.left_context) == (None, None)
    if not own_chunks:
        setting = f"chunk-{model.config.chunk_size}-left-{model.config.left_context}-{setting}"
    suffix = f"epoch-{which['epoch']}-avg-{which['avg']}-{setting}"
    folder = args.exp / "decode"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model": args.exp.name, "parameters": model.parameter_counts()["total"], **which}
    summary = decoding_summary(about, config, model.config.chunk_size, model.config.left_context)
    begin = time.monotonic()
    for name in args.test_sets.split():
        cuts = load_cuts(args.fbank / f"cuts_{name}.jsonl.gz")
        loader = eval_loader(cuts, lang, DataConfig(), config.max_duration)
        results = decode(model, loader, config, device, name)
        summary["test_sets"][name] = write_test_set(args, folder, name, setting, suffix, lang, cuts, results,
                                                    model.config.chunk_size)
    summary["seconds"] = round(time.monotonic() - begin, 1)
    # The recipe's tables are made from summary.json: what else is tried leaves it alone.
    write_json(folder / ("summary.json" if own_chunks else f"summary-{suffix}.json"), summary)


if __name__ == "__main__":
    run_main(main)
