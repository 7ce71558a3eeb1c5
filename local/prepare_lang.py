#!/usr/bin/env python3
"""Stage 3: tokens of the training transcripts (SentencePiece BPE or characters), or those of another run."""

import argparse
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import List, Tuple

from kdlib.config import LangConfig, load_config
from kdlib.cuts import load_cuts, transcript
from kdlib.errors import RecipeError, run_main
from kdlib.files import atomic_path
from kdlib.lang import UNK, Lang, TooManyTokens, train_lang


def read_texts(cuts: Path) -> List[Tuple[str, str]]:
    """(utterance id, transcript) of all cuts."""
    texts = ((cut, transcript(cut)) for cut in load_cuts(cuts, "run stage 1 first"))
    return [(cut.supervisions[0].id, text) for cut, text in texts if text]


def make_lang(cuts: Path, texts: List[Tuple[str, str]], config: LangConfig, output: Path, proposed: int = 0) -> Lang:
    """The tokens of these transcripts; what SentencePiece refuses is told with what to change.

    A size that was only ``proposed`` for more text shrinks to what this text fills.
    """
    counts = Counter("".join(text for _, text in texts).replace(" ", ""))
    needed = 3 + 1 + len(counts)  # the three symbols, and what stands for a word's beginning
    if texts and config.type in ("bpe", "unigram") and config.vocab_size < needed:
        rarest = sorted(counts, key=lambda character: (counts[character], character))[:5]
        places = [f"'{c}' ({counts[c]} times, first in {next(id_ for id_, text in texts if c in text)})" for c in rarest]
        raise RecipeError(f"{cuts}: the transcripts hold {len(counts)} different characters, for which lang.vocab_size="
                          f"{config.vocab_size} is too small: give lang.vocab_size={needed} or more, or mend the "
                          f"transcripts with the rarest, {', '.join(places)}")
    try:
        return train_lang((text for _, text in texts), config, output)
    except TooManyTokens as error:
        most = error.most
        if config.vocab_size == proposed:
            print(f"the transcripts hold no more than {most} {config.type} tokens, of the {proposed} that were proposed "
                  "for all of the corpus: so many are made")
            return make_lang(cuts, texts, replace(config, vocab_size=most), output)
        raise RecipeError(f"{cuts}: the transcripts hold no more than {most} {config.type} tokens, which lang.vocab_size="
                          f"{config.vocab_size} asks for: give lang.vocab_size={most} or less") from None


def take_lang(folder: Path, output: Path) -> Lang:
    """The tokens of another run, copied."""
    Lang(folder, "give the folder that stage 3 of the teacher's recipe made")
    for name in ("bpe.model", "tokens.txt"):
        with atomic_path(output / name) as temporary:
            shutil.copyfile(folder / name, temporary)
    return Lang(output)


def tell_unknown(lang: Lang, cuts: Path, texts: List[Tuple[str, str]]) -> None:
    """A line about the characters of these transcripts that no token holds, if there are any."""
    unknown = Counter(character for _, text in texts for character in lang.unknown(text))
    if unknown:
        print(f"{cuts}: {sum(unknown.values())} of {sum(len(text) for _, text in texts)} characters are in none of the tokens "
              f"and become {UNK}, which counts as an error: "
              f"{' '.join(character for character, _ in unknown.most_common(10))}{' ...' if len(unknown) > 10 else ''}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=Path, required=True, help="training cuts, for their transcripts")
    parser.add_argument("--config", type=Path, required=True, help="conf/lang.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder for bpe.model and tokens.txt")
    parser.add_argument("--take", type=Path, metavar="LANG", help="take the tokens of this folder, of another run")
    parser.add_argument("--count-unknown", type=Path, nargs="+", default=[], metavar="CUTS",
                        help="other cuts, whose characters that no token holds are counted")
    parser.add_argument("--proposed", type=int, default=0, metavar="SIZE",
                        help="while vocab_size is still this, it is the most: less text makes fewer")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for conf/lang.yaml")
    args = parser.parse_intermixed_args()
    config = load_config(LangConfig, args.config, args.overrides)
    named = read_texts(args.cuts)
    lang = take_lang(args.take, args.output) if args.take else make_lang(args.cuts, named, config, args.output, args.proposed)
    texts = [text for _, text in named]
    words = sum(len(text.split()) for text in texts)
    tokens = sum(len(lang.encode(text)) for text in texts)
    print(f"{len(texts)} transcripts, {len(set(' '.join(texts).split()))} different words, {len(lang)} tokens, "
          f"{tokens / max(1, words):.2f} tokens a word -> {args.output / 'tokens.txt'}")
    tell_unknown(lang, args.cuts, named)
    for path in args.count_unknown:
        tell_unknown(lang, path, read_texts(path))


if __name__ == "__main__":
    run_main(main)
