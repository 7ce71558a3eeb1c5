#!/usr/bin/env python3
"""Stage 3: tokens of the training transcripts (SentencePiece BPE or characters)."""

import argparse
from collections import Counter
from pathlib import Path

from kdlib.config import LangConfig, load_config
from kdlib.data import load_cuts
from kdlib.errors import run_main
from kdlib.lang import UNK, train_lang


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=Path, required=True, help="training cuts, for their transcripts")
    parser.add_argument("--config", type=Path, required=True, help="conf/lang.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder for bpe.model and tokens.txt")
    parser.add_argument("--count-unknown", type=Path, nargs="+", default=[], metavar="CUTS",
                        help="other cuts, whose characters that no token holds are counted")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    config = load_config(LangConfig, args.config, args.overrides)
    texts = [s.text for cut in load_cuts(args.cuts, "run stage 1 first") for s in cut.supervisions if s.text]
    lang = train_lang(texts, config, args.output)
    words = sum(len(text.split()) for text in texts)
    tokens = sum(len(lang.encode(text)) for text in texts)
    print(f"{len(texts)} transcripts, {len(set(' '.join(texts).split()))} different words, {len(lang)} tokens, "
          f"{tokens / max(1, words):.2f} tokens a word -> {args.output / 'tokens.txt'}")
    for path in args.count_unknown:
        texts = [s.text for cut in load_cuts(path, "run stage 1 first") for s in cut.supervisions if s.text]
        unknown = Counter(character for text in texts for character in lang.unknown(text))
        if unknown:
            print(f"{path}: {sum(unknown.values())} of {sum(map(len, texts))} characters stand in no training transcript "
                  f"and become {UNK}, which counts as an error: "
                  f"{' '.join(character for character, _ in unknown.most_common(10))}{' ...' if len(unknown) > 10 else ''}")


if __name__ == "__main__":
    run_main(main)
