#!/usr/bin/env python3
"""Stage 0 of a recipe that tools/new_recipe.py wrote: find the corpus and describe it as Lhotse manifests."""

import argparse
import os
from pathlib import Path

from kdlib.corpus_forms import add_corpus_options, check_still_there, chosen_corpus, read_corpus, write_parts
from kdlib.errors import run_main
from kdlib.manifests import Skipped, SkippedFile
from kdlib.options import require_positive


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_corpus_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder of the manifests")
    parser.add_argument("--jobs", type=int, default=1, help="processes, where Lhotse's recipe uses several (1)")
    args = parser.parse_args()
    require_positive(jobs=args.jobs)
    form, source = chosen_corpus(args)
    if form != "lhotse":
        source = os.path.abspath(source)  # from where the manifests will lie its audio could not be found
    skipped = Skipped(SkippedFile(args.output))
    parts = read_corpus(form, source, skipped, args.corpus_dir, args.jobs)
    check_still_there(args.output, parts)
    write_parts(args.output, parts)
    for part, (recordings, supervisions) in parts.items():
        print(f"{part}: {len(recordings)} recordings, {len(supervisions)} transcripts -> {args.output}")
    skipped.report(source if args.corpus_dir is None else f"{source} in {args.corpus_dir}")


if __name__ == "__main__":
    run_main(main)
