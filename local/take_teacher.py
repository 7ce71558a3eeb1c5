#!/usr/bin/env python3
"""Stage 4 with --teacher: take a teacher that another run has trained, once it fits this run's tokens and features."""

import argparse
import shutil
from pathlib import Path

from kdlib.errors import run_main
from kdlib.files import atomic_path, read_record, remove_unfinished
from kdlib.lang import Lang
from kdlib.training.checkpoint import check_features, load_averaged, set_aside


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", type=Path, required=True, dest="source", help="folder of the finished teacher")
    parser.add_argument("--fbank", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--exp", type=Path, required=True, help="folder for the teacher in this run")
    return parser.parse_args()


def main():
    args = get_args()
    model, _, which = load_averaged(args.source, tokens=Lang(args.lang).tokens)
    made_as = args.fbank / "fbank.json"
    read_record(args.source / "run.json", "give the folder of a training that local/train.py made")
    check_features(args.source, model, read_record(made_as, "run stage 2 again"), made_as)
    epochs = [f"epoch-{which['epoch'] - back}.pt" for back in range(which["avg"])]
    there = [args.exp / name for name in ("run.json", "done.json")]
    if any(path.exists() and path.read_bytes() != (args.source / path.name).read_bytes() for path in there):
        print(f"{args.exp} held another teacher, which is now in {set_aside(args.exp)}")
    remove_unfinished(args.exp)
    # done.json comes last: a folder with it is whole.
    for name in ("run.json", "config.yaml", *epochs, "done.json"):
        with atomic_path(args.exp / name) as temporary:
            shutil.copyfile(args.source / name, temporary)
    print(f"teacher: {model.parameter_counts()['total']:,} parameters, {which['updates']:,} updates, from {args.source}")


if __name__ == "__main__":
    run_main(main)
