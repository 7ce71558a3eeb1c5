#!/usr/bin/env python3
"""Decode test sets with a trained model and count its errors (stages 5, 6 and 7)."""

import argparse
import time

import torch
from tqdm import tqdm

from kdlib.commandline import (TRIED, add_decoding_options, check_search, decoding_config, decoding_summary,
                               load_test_sets, own_suffix, search_setting, summary_path, write_test_set)
from kdlib.config import DataConfig, DecodeConfig
from kdlib.data import LONGEST_SECONDS, checked, eval_loader, warn_of_spoilt
from kdlib.decoding import best_hypotheses
from kdlib.errors import RecipeError, run_main
from kdlib.files import folder_name, write_json
from kdlib.lang import Lang
from kdlib.planning import FRAMES_A_SECOND
from kdlib.streaming import StreamingRecogniser
from kdlib.training.checkpoint import check_cuts, load_averaged



def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_decoding_options(parser)
    return parser.parse_intermixed_args()


@torch.no_grad()
def decode(model, loader, config: DecodeConfig, device, name: str):
    """(utterance id, transcript, best hypothesis) of every utterance, and the seconds that the model took; an utterance
    too short for a frame has no labels."""
    results, busy, spoilt = [], 0.0, []
    for batch in checked(tqdm(loader, desc=name, unit="batch", mininterval=5)):
        spoilt += batch.spoilt()
        begin = time.perf_counter()
        if batch.features.size(1) > LONGEST_SECONDS * FRAMES_A_SECOND:
            hypotheses = decode_in_chunks(model, batch, config)
        else:
            encoded, lengths, _ = model.encoder(batch.features.to(device), batch.feature_lengths.to(device))
            hypotheses = best_hypotheses(model, encoded, lengths, config)
        busy += time.perf_counter() - begin
        results += zip(batch.ids, batch.texts, hypotheses)
    warn_of_spoilt(spoilt)
    return results, busy


def decode_in_chunks(model, batch, config: DecodeConfig):
    """The best hypotheses of utterances that are too long for a pass over all frames at once: the same, by streaming."""
    try:
        recogniser = StreamingRecogniser(model, config=config)
    except ValueError:
        raise RecipeError(f"{batch.ids[0]} is longer than {LONGEST_SECONDS:g} s, too long to be heard whole: give "
                          "--chunk-size and --left-context, or cut it") from None
    streams = []
    for features, length in zip(batch.features, batch.feature_lengths.tolist()):
        stream = recogniser.create_stream()
        for piece in features[:length].split(FRAMES_A_SECOND):
            stream.accept(piece)
            recogniser.run([stream])
        stream.end()
        recogniser.run([stream])
        streams.append(stream)
    return [stream.result for stream in streams]


def main():
    args = get_args()
    config = decoding_config(args)
    lang = Lang(args.lang)
    model, trained, which = load_averaged(args.exp, config.epoch, config.avg, tokens=lang.tokens)
    check_search(config, trained, args.exp)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    model.config.chunk_size = model.config.chunk_size if args.chunk_size is None else args.chunk_size
    model.config.left_context = model.config.left_context if args.left_context is None else args.left_context
    test_sets = load_test_sets(args, lang, model.config.chunk_size)
    check_cuts(args.exp, model, (cut for test in test_sets for cut in test.cuts), args.fbank)
    setting = search_setting(config)
    if (args.chunk_size, args.left_context) != (None, None):
        setting = f"chunk-{model.config.chunk_size}-left-{model.config.left_context}-{setting}"
    folder = args.exp / "decode"
    folder.mkdir(parents=True, exist_ok=True)
    suffix = own_suffix(folder, f"epoch-{which['epoch']}-avg-{which['avg']}-{setting}")
    tried = bool(args.overrides) or any(getattr(args, option) is not None for option in TRIED)
    path = summary_path(folder, [test.name for test in test_sets], suffix, tried)
    name = folder_name(args.exp)
    about = {"model": name, "parameters": model.parameter_counts()["total"], **which}
    summary = decoding_summary(about, config, model.config.chunk_size, model.config.left_context)
    begin, busy, audio_seconds = time.monotonic(), 0.0, 0.0
    for test in test_sets:
        loader = eval_loader(test.cuts, lang, DataConfig(), config.max_duration)
        results, took = decode(model, loader, config, device, test.name)
        busy, audio_seconds = busy + took, audio_seconds + sum(cut.duration for cut in test.cuts)
        summary["test_sets"][test.name] = write_test_set(name, folder, test, setting, suffix, lang, results)
    summary["seconds"] = round(time.monotonic() - begin, 1)
    summary["real_time_factor"] = round(busy / audio_seconds, 5)
    write_json(path, summary)
    print(f"{name}: {about['parameters']:,} parameters, real-time factor {busy / audio_seconds:.4f} in batches of "
          f"{config.max_duration:g} s and {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_main(main)
