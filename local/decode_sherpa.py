#!/usr/bin/env python3
"""Decode test sets with sherpa-onnx, streaming, from an exported folder alone (stage 9)."""

import argparse
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kdlib.commandline import decoding_summary, named_test_sets, own_suffix, summary_path
from kdlib.config import DecodeConfig
from kdlib.cuts import load_cuts, load_samples, transcript
from kdlib.errors import RecipeError, run_main
from kdlib.example_wavs import write_examples
from kdlib.files import write_json
from kdlib.model_card import write_model_card
from kdlib.scoring import describe_errors, read_takes, write_results
from kdlib.sherpa import METHODS, chosen_beam, hear, make_recognizer, read_model


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of local/export_onnx.py")
    parser.add_argument("--int8", action="store_true", help="the quantised files")
    parser.add_argument("--cuts", type=Path, required=True, help="folder with cuts_<test set>.jsonl.gz and their audio")
    parser.add_argument("--test-sets", required=True, help="names, separated by spaces")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="the search (greedy_search)")
    parser.add_argument("--beam", type=int, help="hypotheses of modified_beam_search (4)")
    parser.add_argument("--gain", type=float, default=0.0, help="dB by which the audio is made louder or, below 0, quieter (0)")
    return parser.parse_args()


def main():
    args = get_args()
    test_sets = named_test_sets(args.test_sets)
    if not abs(args.gain) <= 100:
        raise RecipeError(f"--gain {args.gain}: give dB, from -100 to 100")
    beam = chosen_beam(args.method, args.beam)
    about = read_model(args.model, args.int8)
    kind, rate = ".int8" if args.int8 else "", about["sampling_rate"]
    recognizer = make_recognizer(args.model, about, args.int8, args.method, beam)
    folder = args.model / ("decode-int8" if args.int8 else "decode")
    folder.mkdir(parents=True, exist_ok=True)
    greedy = args.method == METHODS[0]
    setting = f"sherpa-onnx{kind}-{args.method}" + ("" if greedy else f"-beam-{beam}")
    setting += f"-gain-{args.gain:g}" if args.gain else ""
    suffix = own_suffix(folder, setting)
    path = summary_path(folder, test_sets, suffix, tried=not greedy or args.gain != 0)
    config = DecodeConfig(method=args.method, beam=beam)
    summary = decoding_summary(about, config, about["chunk_size"], about["left_context"])
    loaded = [(name, load_cuts(args.cuts / f"cuts_{name}.jsonl.gz")) for name in test_sets]
    if greedy and not args.int8 and path.name == "summary.json":  # they travel with the model, and a trial does not
        examples = write_examples(args.model, loaded[0][1], recognizer)
        print(f"{about['model']}: examples of {test_sets[0]} -> {examples}")
    begin, audio_seconds, busy = time.monotonic(), 0.0, 0.0
    for name, cuts in loaded:
        results = []
        for cut in tqdm(cuts, desc=name, unit="utterance", mininterval=5):
            samples = load_samples(cut, rate)[0]
            if args.gain:  # clipped, as a microphone's amplifier would
                samples = np.clip(samples * np.float32(10 ** (args.gain / 20)), -1, 1)
            start = time.perf_counter()
            heard = hear(recognizer, about, samples)
            busy += time.perf_counter() - start
            audio_seconds += cut.duration
            results.append((cut.id, transcript(cut).split(), heard))
        counts = write_results(folder, name, setting, suffix, results, read_takes(cuts))
        summary["test_sets"][name] = counts
        print(f"{about['model']}{kind} {name}: {describe_errors(counts, ' by sherpa-onnx')} "
              f"-> {folder}/errs-{name}-{suffix}.txt")
    summary["seconds"] = round(time.monotonic() - begin, 1)
    summary["digest"] = about["digest"]  # which of the exports that this folder has held
    summary["real_time_factor"] = round(busy / audio_seconds, 5)
    write_json(path, summary)
    write_model_card(args.model)
    print(f"{about['model']}{kind}: real-time factor {busy / audio_seconds:.4f} on one thread, "
          f"{about['int8_bytes' if args.int8 else 'float32_bytes']:,} bytes")


if __name__ == "__main__":
    run_main(main)
