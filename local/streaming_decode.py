#!/usr/bin/env python3
"""Decode test sets as they would arrive: chunk by chunk, many streams in one batch, each at its own place.

With --tail sherpa-onnx the words are those of local/decode_sherpa.py; local/compare_recogs.py shows whether they are.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kdlib.commandline import (TRIED, add_decoding_options, check_search, decoding_config, decoding_summary,
                               load_test_sets, own_suffix, search_setting, summary_path, write_test_set)
from kdlib.config import FbankConfig, load_config
from kdlib.conformer import SUBSAMPLING
from kdlib.cuts import load_features, load_samples, transcript
from kdlib.data import warn_of_spoilt
from kdlib.errors import RecipeError, run_main
from kdlib.features import fbank_extractor
from kdlib.files import folder_name, write_json
from kdlib.lang import Lang
from kdlib.options import require_positive
from kdlib.sherpa import tail
from kdlib.streaming import StreamingRecogniser
from kdlib.training.checkpoint import check_cuts, check_features, load_averaged

RUNTIME = "sherpa-onnx"  # whose tail and chunks
MOST_TAIL = 60  # seconds
WINDOW_MS = 25  # of a feature frame: of less audio there is none


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_decoding_options(parser)
    parser.add_argument("--streams", type=int, default=32, help="streams at a time (32)")
    parser.add_argument("--tail", metavar="SECONDS", help="compute the features from the audio, followed by so much "
                        f"silence, as a device does; '{RUNTIME}': by what local/decode_sherpa.py gives it, of which it runs "
                        "whole chunks alone; without it the features of stage 2 are read. In the real-time factor the work on "
                        "the silence counts and its seconds do not, as in local/decode_sherpa.py")
    parser.add_argument("--carry-labels", action="store_true", help="the predictor begins each utterance with the last labels "
                        "of the transcript before it in the test set, as it does in a stream that goes on: after an endpoint's "
                        "reset() with greedy search, where there are no endpoints with any")
    parser.add_argument("--fbank-config", type=Path, help="conf/fbank.yaml, for --tail")
    return parser.parse_intermixed_args()


def seconds_of_tail(text: str) -> float:
    """The seconds of silence that ``--tail`` gives."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST_TAIL:
        raise RecipeError(f"--tail {text}: give seconds of silence, from 0 to {MOST_TAIL}, or {RUNTIME}")
    return seconds


def feature_reader(args, model, chunk_size):
    """A function from a cut to its features (T0, F), and the ``tail`` of a :class:`kdlib.latency.LatencyMeter`."""
    if args.tail is None:
        return load_features, 0.0
    seconds = 0.0 if args.tail == RUNTIME else seconds_of_tail(args.tail)
    if args.fbank_config is None:
        raise RecipeError("--tail computes features: give --fbank-config conf/fbank.yaml")
    config = load_config(FbankConfig, args.fbank_config)
    check_features(args.exp, model, config.heard(), args.fbank_config)
    rate, extractor = config.sampling_rate, fbank_extractor(config)
    silence = np.zeros(int(seconds * rate), dtype=np.float32)
    if args.tail == RUNTIME:
        silence = tail({"chunk_size": chunk_size}, rate)

    def read(cut):
        samples = np.concatenate([load_samples(cut, rate), silence[None]], axis=1)
        samples = np.pad(samples, ((0, 0), (0, max(0, WINDOW_MS * rate // 1000 - samples.shape[1]))))
        features = torch.from_numpy(np.asarray(extractor.extract(samples, rate)))
        # sherpa-onnx runs a chunk when more than its frames are there, our streams when these are.
        return features[:-1] if args.tail == RUNTIME else features
    return read, math.inf if args.tail == RUNTIME else seconds


def decode(recogniser, cuts, read, num_streams, name, whole_chunks=False, lang=None):
    """(utterance id, transcript, best hypothesis) of every cut, and the seconds that the recogniser took.

    ``whole_chunks``: what is left at the end of a stream and is no whole chunk is not run. ``lang``: a stream begins with the
    labels of the transcript before its own, by these tokens; None: with none.

    Each stream is given a chunk's worth of features at a time; where one ends, the next begins in its place."""
    step, results, busy, spoilt = SUBSAMPLING * recogniser.chunk_size, [], 0.0, []
    waiting, active, before = iter(cuts), [], ()
    bar = tqdm(total=len(cuts), desc=name, unit="utterance", mininterval=5)
    while True:
        while len(active) < num_streams and (cut := next(waiting, None)) is not None:
            features = read(cut)
            if not features.isfinite().all():
                spoilt.append(cut.id)
            active.append((cut, list(features.split(step)), recogniser.create_stream(before)))
            before = () if lang is None else tuple(lang.encode(transcript(cut)))
        if not active:
            break
        begin = time.perf_counter()
        for _, pieces, stream in active:
            if pieces:
                stream.accept(pieces.pop(0))
            elif not stream.ended and not whole_chunks:
                stream.end()
        ready = [stream for _, _, stream in active if recogniser.ready(stream)]
        if ready:
            recogniser.decode(ready)
        busy += time.perf_counter() - begin
        going = []
        for cut, pieces, stream in active:
            if pieces or recogniser.ready(stream) or not (stream.ended or whole_chunks):
                going.append((cut, pieces, stream))
            else:
                results.append((cut.id, transcript(cut), stream.result))
                bar.update()
        active = going
    bar.close()
    warn_of_spoilt(spoilt)
    return results, busy


def main():
    args = get_args()
    require_positive(streams=args.streams)
    config = decoding_config(args)
    lang = Lang(args.lang)
    model, trained, which = load_averaged(args.exp, config.epoch, config.avg, tokens=lang.tokens)
    check_search(config, trained, args.exp)
    if args.carry_labels and config.method == "fast_beam_search":
        raise RecipeError("--carry-labels: a search of k2's begins without labels: give --method greedy_search or "
                          "modified_beam_search")
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        recogniser = StreamingRecogniser(model, args.chunk_size, args.left_context, config)
    except ValueError as error:
        raise RecipeError(f"{args.exp}: {error}; give --chunk-size and --left-context") from None
    read, tail_seconds = feature_reader(args, model, recogniser.chunk_size)
    test_sets = load_test_sets(args, lang, recogniser.chunk_size)
    for test in test_sets:
        if test.meter is not None:
            test.meter.tail = tail_seconds
    if args.tail is None:  # else the features of the cuts are not read
        check_cuts(args.exp, model, (cut for test in test_sets for cut in test.cuts), args.fbank)
    setting = (f"streaming-chunk-{recogniser.chunk_size}-left-{recogniser.left_context}-{search_setting(config)}"
               + ("" if args.tail is None else f"-tail-{args.tail}") + ("-carried-labels" if args.carry_labels else ""))
    folder = args.exp / "streaming_decode"
    folder.mkdir(parents=True, exist_ok=True)
    suffix = own_suffix(folder, f"epoch-{which['epoch']}-avg-{which['avg']}-{setting}")
    tried = bool(args.overrides) or args.carry_labels or any(getattr(args, option) is not None for option in (*TRIED, "tail"))
    path = summary_path(folder, [test.name for test in test_sets], suffix, tried)
    parameters = model.parameter_counts()["total"]
    name = folder_name(args.exp)
    about = {"model": name, "parameters": parameters, **which}
    summary = decoding_summary(about, config, recogniser.chunk_size, recogniser.left_context)
    busy = seconds = 0.0
    for test in test_sets:
        results, took = decode(recogniser, test.cuts, read, args.streams, test.name, args.tail == RUNTIME,
                               lang if args.carry_labels else None)
        summary["test_sets"][test.name] = write_test_set(name, folder, test, setting, suffix, lang, results)
        busy, seconds = busy + took, seconds + sum(cut.duration for cut in test.cuts)
    summary["real_time_factor"] = round(busy / seconds, 5)
    write_json(path, summary)
    print(f"{name}: {parameters:,} parameters, real-time factor {busy / seconds:.4f} with {args.streams} streams "
          f"and {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run_main(main)
