#!/usr/bin/env python3
"""Teacher and students on the device's terms: one thread, one stream, as the audio comes.

    tools/bench_streaming.py --recipe egs/voice_commands

takes the models that stage 9 has exported, in float32 and int8 through sherpa-onnx and in float32 through our own torch
streams, and prints for each the real-time factor, the peak memory of its process, the bytes on disk and the word error
rate, with ratios to the first model's float32 files. A row of sherpa-onnx's features alone, without any model, shows what is
the same for all of them: no model can be more times faster than it. Each row is measured in processes of its own, in turn,
so that what else the machine does meets all of them; the medians are shown.
"""

import environment  # noqa: F401  first, since the rest needs what it finds

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kdlib.errors import RecipeError, run_main
from kdlib.files import write_text
from kdlib.options import require_positive
from kdlib.sherpa import decode_ready, make_recognizer, read_model, tail, words
import peak_memory

# Torch and lhotse are imported where they are used: a process that measures sherpa-onnx holds neither.

RUNTIMES = ("sherpa-onnx float32", "sherpa-onnx int8", "torch float32")
FEATURES = "sherpa-onnx features"  # of the first model, and no more


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="folder of a recipe that has run to stage 9")
    parser.add_argument("--exp", type=Path, help="its models, where they are not in RECIPE/exp")
    parser.add_argument("--data", type=Path, help="its data, where it is not in RECIPE/data")
    parser.add_argument("--models", nargs="+", help="exported models, the one to compare with first (teacher and the last)")
    parser.add_argument("--test-set", help="of which the audio is (the first one that the models were decoded on)")
    parser.add_argument("--utterances", type=int, default=100, help="how many of it (100)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row (3)")
    parser.add_argument("--output", type=Path, help="a file for the table in Markdown")
    parser.add_argument("--measure", nargs=3, metavar=("MODEL", "RUNTIME", "AUDIO"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.recipe.is_dir():
        raise RecipeError(f"{args.recipe} is no folder: give a recipe's, such as egs/voice_commands")
    args.recipe = args.recipe.resolve()
    args.output = args.output and args.output.absolute()  # since main goes to another folder
    args.exp, args.data = ((given or args.recipe / name).resolve() for given, name in ((args.exp, "exp"), (args.data, "data")))
    if not (args.exp / "export").is_dir():
        raise RecipeError(f"{args.exp / 'export'} is missing: run stage 9 of the recipe")
    require_positive(repeats=args.repeats, utterances=args.utterances)
    args.models = args.models or ["teacher", *last_stage(args.exp / "export")]
    if args.test_set is None:
        from kdlib.comparison import read_summary  # here, since what it takes would be measured too

        folder = args.exp / "export" / args.models[0]
        summary = read_summary(folder / "decode" / "summary.json", read_model(folder)["model"],
                               f"run local/decode_sherpa.py --model {folder}, or give --test-set")
        args.test_set = next(iter(summary["test_sets"]))
    return args


def last_stage(folder):
    """The name of the last student of the stages in the folder, if there is any; the tenth comes after the ninth."""
    numbers = [int(path.name[5:]) for path in folder.glob("stage*") if path.name[5:].isdecimal()]
    return [f"stage{max(numbers)}"] if numbers else []


def sherpa_stream(folder, about, int8, features_alone=False):
    """A function from samples to words, run as a device would: a tenth of a second at a time. ``features_alone``: the audio is
    taken, for which sherpa-onnx computes its features, and no chunk of it is run."""
    recognizer, rate = make_recognizer(folder, about, int8), about["sampling_rate"]

    def recognise(samples):
        stream = recognizer.create_stream()
        for piece in np.array_split(samples, max(1, len(samples) * 10 // rate)):
            stream.accept_waveform(rate, piece)
            while not features_alone and decode_ready(recognizer, stream):
                pass
        stream.accept_waveform(rate, tail(about, rate))
        stream.input_finished()  # else the last frames of features are held back, and with them the last chunk
        while not features_alone and decode_ready(recognizer, stream):
            pass
        return words(recognizer, stream)
    return recognise


def torch_stream(exp, lang_folder, about):
    """The same by our own streams; the features are computed for the whole utterance, which favours torch a little."""
    import torch

    from kdlib.config import FbankConfig
    from kdlib.features import fbank_extractor
    from kdlib.lang import Lang
    from kdlib.streaming import StreamingRecogniser
    from kdlib.training.checkpoint import load_averaged

    torch.set_num_threads(1)
    lang, rate = Lang(lang_folder), about["sampling_rate"]
    model, _, _ = load_averaged(exp, about["epoch"], about["avg"], tokens=lang.tokens)
    recogniser = StreamingRecogniser(model, about["chunk_size"], about["left_context"])
    extractor = fbank_extractor(FbankConfig(rate, about["num_filters"], about["low_freq"], about["high_freq"]))

    def recognise(samples):
        stream = recogniser.create_stream()
        stream.accept(torch.from_numpy(np.asarray(extractor.extract(np.concatenate([samples, tail(about, rate)])[None], rate))))
        recogniser.run([stream])
        return lang.decode(list(stream.result.tokens)).split()
    return recognise


def write_audio(args, path):
    """The utterances as one file of arrays; returns (id, words) of each."""
    from kdlib.cuts import load_cuts, load_samples, transcript

    rates = {model: read_model(args.exp / "export" / model)["sampling_rate"] for model in args.models}
    if len(set(rates.values())) > 1:
        raise RecipeError(f"the models hear audio of different rates ({rates}): give those of one rate with --models")
    cuts = list(load_cuts(args.data / "fbank" / f"cuts_{args.test_set}.jsonl.gz"))[:args.utterances]
    np.savez(path, *(load_samples(cut, rates[args.models[0]])[0] for cut in cuts))
    return [(cut.id, transcript(cut).split()) for cut in cuts]


def measure(args, model, runtime, audio_path):
    """One row's figures, in this process."""
    folder, int8 = args.exp / "export" / model, runtime.endswith("int8")
    about = read_model(folder, int8)  # reads the files of this row alone: those of another would count as its memory
    if runtime == "torch float32":
        recognise = torch_stream(args.exp / about["model"], args.data / "lang", about)
    else:
        recognise = sherpa_stream(folder, about, int8, runtime == FEATURES)
    heard, took, seconds = [], 0.0, 0.0
    with np.load(audio_path) as arrays:
        recognise(arrays[arrays.files[0]])
        for name in arrays.files:
            samples = arrays[name]  # one utterance at a time: all of them would count as the row's memory
            begin = time.perf_counter()
            heard.append(recognise(samples))
            took += time.perf_counter() - begin
            seconds += len(samples) / about["sampling_rate"]
    return {"rtf": took / seconds, "heard": heard, "memory": peak_memory.most() / 2**20}


def main():
    args = get_args()
    os.chdir(args.recipe)  # where the paths of its manifests start
    if args.measure:
        print(json.dumps(measure(args, *args.measure)))
        return
    rows = [*((model, runtime) for runtime in RUNTIMES for model in args.models), (args.models[0], FEATURES)]
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "audio.npz"
        texts = write_audio(args, audio)
        found = run_rows(args, rows, audio)
    text = table(args, rows, texts, found)
    print(text)
    if args.output:
        write_text(args.output, text)


def run_rows(args, rows, audio):
    """The figures of each row's repeats, the rows in turn."""
    found = {row: [] for row in rows}
    for _ in range(args.repeats):
        for row in rows:
            command = [sys.executable, str(Path(__file__).resolve()), "--recipe", str(args.recipe), "--exp", str(args.exp),
                       "--data", str(args.data), "--models", *args.models, "--test-set", args.test_set, "--utterances",
                       str(args.utterances), "--measure", *row, str(audio)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RecipeError(f"{' '.join(row)}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
            found[row].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def table(args, rows, texts, found):
    from kdlib.report import describe_machine, markdown_table, name_processor
    from kdlib.scoring import by_characters, count_errors

    cells, first = [], None
    for model, runtime in rows:
        figures = {key: statistics.median(one[key] for one in found[model, runtime]) for key in ("rtf", "memory")}
        heard = found[model, runtime][0]["heard"]
        results = [(id_, words, got) for (id_, words), got in zip(texts, heard)]
        wer = count_errors(by_characters(results) or results).wer
        about = read_model(args.exp / "export" / model)
        size = about["int8_bytes" if runtime.endswith("int8") else "float32_bytes"]
        first = first or {**figures, "size": size}
        no_model = runtime == FEATURES
        no_files = no_model or runtime.startswith("torch")
        cells.append(["" if no_model else model, runtime, f"{figures['rtf']:.4f}", f"{first['rtf'] / figures['rtf']:.2f}",
                      f"{figures['memory']:.0f}", "" if no_files else f"{size:,}",
                      "" if no_files else f"{first['size'] / size:.2f}", "" if no_model else f"{wer:.2f}"])
    header = ["Model", "Runtime", "Real-time factor", "times faster", "MiB", "Bytes", "times smaller",
              "CER" if by_characters(results) else "WER"]
    return (f"{len(texts)} utterances of {args.test_set}, one stream, one thread; "
            f"{name_processor(describe_machine())}. Medians of {args.repeats}; faster and smaller than {args.models[0]} in "
            f"{RUNTIMES[0]}. MiB: the most that the process held, runtime included.\n\n"
            + markdown_table(header, cells))


if __name__ == "__main__":
    run_main(main)
