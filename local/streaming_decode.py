#!/usr/bin/env python3
"""Decode test sets as they would arrive: chunk by chunk, many streams in one batch, each at its own place."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kdlib.commandline import (TRIED, add_decoding_options, decoding_config, decoding_summary, load_test_sets,
                               search_setting, summary_path, write_test_set)
from kdlib.config import FbankConfig, load_config
from kdlib.conformer import SUBSAMPLING
from kdlib.data import load_features, load_samples, transcript
from kdlib.errors import RecipeError, run_main
from kdlib.features import fbank_extractor
from kdlib.files import write_json
from kdlib.lang import Lang
from kdlib.streaming import StreamingRecogniser
from kdlib.training.checkpoint import load_averaged


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_decoding_options(parser)
    parser.add_argument("--streams", type=int, default=32, help="streams at a time (32)")
    parser.add_argument("--tail", type=float, metavar="SECONDS", help="compute the features from the audio, followed by "
                        "so much silence, as a device does; without it those of stage 2 are read")
    parser.add_argument("--fbank-config", type=Path, help="conf/fbank.yaml, for --tail")
    return parser.parse_args()


def feature_reader(args):
    """A function from a cut to its features (T0, F)."""
    if args.tail is None:
        return load_features
    if args.tail < 0:
        raise RecipeError(f"--tail {args.tail}: give seconds of silence, 0 or more")
    if args.fbank_config is None:
        raise RecipeError("--tail computes features: give --fbank-config conf/fbank.yaml")
    config = load_config(FbankConfig, args.fbank_config)
    extractor = fbank_extractor(config)
    silence = np.zeros((1, int(args.tail * config.sampling_rate)), dtype=np.float32)

    def read(cut):
        samples = np.concatenate([load_samples(cut, config.sampling_rate), silence], axis=1)
        return torch.from_numpy(np.asarray(extractor.extract(samples, config.sampling_rate)))
    return read


def decode(recogniser, cuts, read, num_streams, name):
    """(utterance id, transcript, best hypothesis) of every cut, and the seconds that the recogniser took.

    Each stream is given a chunk's worth of features at a time; where one ends, the next begins in its place."""
    step, results, busy = SUBSAMPLING * recogniser.chunk_size, [], 0.0
    waiting, active = iter(cuts), []
    bar = tqdm(total=len(cuts), desc=name, unit="utterance", mininterval=5)
    while True:
        while len(active) < num_streams and (cut := next(waiting, None)) is not None:
            active.append((cut, list(read(cut).split(step)), recogniser.create_stream()))
        if not active:
            bar.close()
            return results, busy
        begin = time.perf_counter()
        for _, pieces, stream in active:
            if pieces:
                stream.accept(pieces.pop(0))
            elif not stream.ended:
                stream.end()
        ready = [stream for _, _, stream in active if recogniser.ready(stream)]
        if ready:
            recogniser.decode(ready)
        busy += time.perf_counter() - begin
        for cut, _, stream in [item for item in active if item[2].ended and not recogniser.ready(item[2])]:
            results.append((cut.id, transcript(cut), stream.result))
            bar.update()
        active = [item for item in active if not item[2].ended or recogniser.ready(item[2])]


def main():
    args = get_args()
    if args.streams < 1:
        raise RecipeError(f"--streams {args.streams}: give at least 1")
    config = decoding_config(args)
    lang, read = Lang(args.lang), feature_reader(args)
    model, _, which = load_averaged(args.exp, config.epoch, config.avg, tokens=lang.tokens)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        recogniser = StreamingRecogniser(model, args.chunk_size, args.left_context, config)
    except ValueError as error:
        raise RecipeError(f"{args.exp}: {error}; give --chunk-size and --left-context") from None
    test_sets = load_test_sets(args, lang, recogniser.chunk_size)
    setting = (f"streaming-chunk-{recogniser.chunk_size}-left-{recogniser.left_context}-{search_setting(config)}"
               + ("" if args.tail is None else f"-tail-{args.tail:g}"))
    suffix = f"epoch-{which['epoch']}-avg-{which['avg']}-{setting}"
    folder = args.exp / "streaming_decode"
    folder.mkdir(parents=True, exist_ok=True)
    tried = bool(args.overrides) or any(getattr(args, option) is not None for option in (*TRIED, "tail"))
    path = summary_path(folder, [test.name for test in test_sets], suffix, tried)
    parameters = model.parameter_counts()["total"]
    about = {"model": args.exp.name, "parameters": parameters, **which}
    summary = decoding_summary(about, config, recogniser.chunk_size, recogniser.left_context)
    busy = seconds = 0.0
    for test in test_sets:
        results, took = decode(recogniser, test.cuts, read, args.streams, test.name)
        summary["test_sets"][test.name] = write_test_set(args.exp.name, folder, test, setting, suffix, lang, results)
        busy, seconds = busy + took, seconds + sum(cut.duration for cut in test.cuts)
    summary["real_time_factor"] = round(busy / seconds, 5)
    write_json(path, summary)
    print(f"{args.exp.name}: {parameters:,} parameters, real-time factor {busy / seconds:.4f} with {args.streams} streams "
          f"and {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_main(main)
