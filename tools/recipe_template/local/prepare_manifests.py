#!/usr/bin/env python3
"""Stage 1: checked cuts of @name@, for training, dev and test."""

import argparse
from pathlib import Path

from kdlib.config import FbankConfig, load_config
from kdlib.corpus_parts import prepare_parts
from kdlib.errors import run_main
from kdlib.manifests import normalise_text

# Which of the corpus's own parts make each; and what gets a share of train's hours because the corpus has none.
PARTS = @parts@
HELD_OUT = @held_out@


def normalise(text):
    """A transcript as it is trained on and scored; one that becomes empty is left out."""
    return normalise_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of stage 0's manifests")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cuts")
    parser.add_argument("--config", type=Path, required=True, help="conf/fbank.yaml, for the sampling rate")
    parser.add_argument("--hours", type=float, default=0.0, help="hours of train, a quarter of them of each other; 0: all (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for conf/fbank.yaml")
    args = parser.parse_intermixed_args()
    rate = load_config(FbankConfig, args.config, args.overrides).sampling_rate
    prepare_parts(args.corpus, args.output, PARTS, HELD_OUT, rate, normalise, args.hours, args.jobs)


if __name__ == "__main__":
    run_main(main)
