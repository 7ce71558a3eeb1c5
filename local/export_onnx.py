#!/usr/bin/env python3
"""Export a trained model for sherpa-onnx: encoder, decoder and joiner, float32 and int8, tokens and a model card (stage 9)."""

import argparse
import shutil
from pathlib import Path

from kdlib.config import FbankConfig, load_config
from kdlib.errors import RecipeError, run_main
from kdlib.example_wavs import forget_examples
from kdlib.export import export_onnx, quantise
from kdlib.files import atomic_path, folder_name, read_record, write_json
from kdlib.lang import Lang
from kdlib.model_card import DECODINGS, write_model_card
from kdlib.sherpa import PARTS, seal, seems_byte_bpe, unfit
from kdlib.training.checkpoint import check_features, load_averaged


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--fbank-config", type=Path, required=True, help="conf/fbank.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder for the exported model")
    parser.add_argument("--epoch", type=int, default=-1, help="the epoch to export; the last one unless given")
    parser.add_argument("--avg", type=int, default=-1, help="epochs to average; as the training's config says unless given")
    parser.add_argument("--chunk-size", type=int, help="frames of 40 ms; the model's unless given")
    parser.add_argument("--left-context", type=int, help="frames of 40 ms before the chunk; the model's unless given")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for conf/fbank.yaml")
    return parser.parse_intermixed_args()


def made_from(exp: Path):
    """Names of the models from whose weights, or whose teaching, this one comes."""
    record = exp / "run.json"
    run = read_record(record, f"train {exp} again", "inputs") if record.exists() else {"models": {}}
    if "models" not in run:  # once they stood among the files of data
        return [name for name in run["inputs"] if "." not in name]
    return list(dict.fromkeys(run["models"].values()))


def trained_weights(exp: Path):
    """The digest of the weights that the training came to, by which stage 8 knows whose export this is; None before its end and
    of trainings that did not note it."""
    done = exp / "done.json"
    return read_record(done, f"train {exp} again").get("weights") if done.exists() else None


def forget_decodings(folder: Path):
    """Delete what local/decode_sherpa.py has written of the model that was here before."""
    forget_examples(folder)
    for name, _ in DECODINGS:
        for path in [*(folder / name).glob("*-sherpa-onnx*"), *(folder / name).glob("summary*.json")]:
            path.unlink()
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()


def main():
    args = get_args()
    if (args.output / "run.json").exists() or any(args.output.glob("epoch-*.pt")):
        raise RecipeError(f"--output {args.output} is the folder of a training: give the exported model one of its own")
    lang = Lang(args.lang)
    fbank = load_config(FbankConfig, args.fbank_config, args.overrides)
    model, trained, which = load_averaged(args.exp, args.epoch, args.avg, tokens=lang.tokens)
    chunk = model.config.chunk_size if args.chunk_size is None else args.chunk_size
    left = model.config.left_context if args.left_context is None else args.left_context
    check_features(args.exp, model, fbank.heard(), args.fbank_config)
    if wrong := unfit(fbank.heard()):
        raise RecipeError(f"{args.fbank_config} says what no exported model can have ({wrong}): give the fbank settings of "
                          "its stage 2")
    worst = export_onnx(model, args.output, chunk, left)
    quantise(args.output)
    with atomic_path(args.output / "tokens.txt") as temporary:
        shutil.copyfile(args.lang / "tokens.txt", temporary)
    sizes = {suffix: sum((args.output / f"{part}{suffix}.onnx").stat().st_size for part in PARTS)
             for suffix in ("", ".int8")}
    parameters = model.parameter_counts()["total"]
    name = folder_name(args.exp)
    about = {"model": name, "parameters": parameters, **which, "chunk_size": chunk, "left_context": left,
             **fbank.heard(), "vocab_size": len(lang), "float32_bytes": sizes[""], "int8_bytes": sizes[".int8"],
             "seed": trained.training.seed, "carried_labels": trained.data.carried_labels, "gain": trained.data.gain.range,
             "distillation": dict(zip(trained.loss.distill_names(), (term.weight for term in trained.loss.distill))),
             "made_from": made_from(args.exp), "weights": trained_weights(args.exp)}
    forget_decodings(args.output)
    write_json(args.output / "model.json", seal(args.output, about))  # last: a folder with it is whole
    write_model_card(args.output)
    print(f"{name}: {parameters:,} parameters, {sizes['']:,} bytes in float32, {sizes['.int8']:,} in int8; "
          f"largest difference to torch {worst:.1e} -> {args.output}")
    if seems_byte_bpe(lang.tokens):
        print("warning: sherpa-onnx takes these tokens for bytes written as letters, and the text of its results will be "
              "garbled: make words of the results' tokens instead (docs/deploy.md, Words)")


if __name__ == "__main__":
    run_main(main)
