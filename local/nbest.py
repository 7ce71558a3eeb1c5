#!/usr/bin/env python3
"""What a teacher hears in training audio: its best hypotheses, for the sequence-level loss and as pseudo-labels.

Writes a Lhotse cut manifest for local/train.py --train-cuts: each cut keeps its transcript and gets the hypotheses as
the field `nbest` of its supervision, a list of [text, log-probability]. A cut without a transcript, or each one with
--pseudo-label, is given the best hypothesis for its transcript; one in which nothing is heard, or is heard with less
confidence than asked for, is left out and counted.

The log-probabilities add up alignments of one token a frame, as a teacher of loss.rnnt_type modified is trained. Those of a
regular one, which may say several in a frame, are not its own, nor always in its order.
"""

import argparse
import math
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import torch
from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut, MixedCut
from tqdm import tqdm

from kdlib.config import DataConfig, DecodeConfig, load_config
from kdlib.cuts import NBEST, describe_skipped, load_cuts, transcript
from kdlib.data import LONGEST_SECONDS, checked, eval_loader
from kdlib.decoding import nbest_search
from kdlib.errors import RecipeError, run_main
from kdlib.files import atomic_path
from kdlib.lang import Lang
from kdlib.shar import REMAKE
from kdlib.training.checkpoint import check_cuts, load_averaged


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the trained teacher")
    parser.add_argument("--cuts", type=Path, required=True, help="cuts with features, such as FBANK/cuts_train.jsonl.gz")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--config", type=Path, required=True, help="conf/decode.yaml: `epoch` and `avg` say which "
                        "model hears, `beam` how many hypotheses are kept")
    parser.add_argument("--output", type=Path, required=True, help="the manifest to write (.jsonl.gz)")
    parser.add_argument("--pseudo-label", action="store_true", help="the best hypothesis in place of each transcript")
    parser.add_argument("--min-confidence", type=float, default=0.0,
                        help="the least posterior, among the n best, of a hypothesis that becomes a transcript (0)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for conf/decode.yaml")
    return parser.parse_intermixed_args()


@torch.no_grad()
def hypotheses(model, cuts: CutSet, lang: Lang, config: DecodeConfig, device) -> Dict[str, List[Tuple[str, float]]]:
    """(text, log-probability) of the best of each cut by its id; one text is one hypothesis, and one may be empty. Of features
    that hold nan or infinity none is a probability: their cuts are left out."""
    found = {}
    loader = eval_loader(cuts, lang, DataConfig(), config.max_duration)
    for batch in checked(tqdm(loader, desc="n best", unit="batch", mininterval=5)):
        encoded, lengths, _ = model.encoder(batch.features.to(device), batch.feature_lengths.to(device))
        spoilt = batch.spoilt()
        for id_, ranked in zip(batch.ids, nbest_search(model, encoded, lengths, config.beam)):
            if id_ in spoilt:
                continue
            texts: Dict[str, float] = {}
            for hypothesis in ranked:
                # The same words in other tokens, of which there may be more spaces, are one hypothesis.
                text = " ".join(lang.decode(list(hypothesis.tokens)).split())
                texts[text] = float(np.logaddexp(texts.get(text, -math.inf), hypothesis.score))
            found[id_] = sorted(texts.items(), key=lambda item: -item[1])
    return found


def label(cut: Cut, nbest: List[Tuple[str, float]], pseudo_label: bool, least: float) -> str:
    """Give the cut its hypotheses and, where it needs one, its transcript; or return why it must be left out.

    That nothing was said is a hypothesis too: where it is the best there are none to learn from, else it counts for the
    confidence in the best.
    """
    heard = [[text, score] for text, score in nbest if text] if nbest[0][0] else []
    text = "" if pseudo_label else transcript(cut).strip()
    if not text:
        if not heard:
            return "nothing heard"
        text, best = heard[0]
        if 1 / sum(math.exp(score - best) for _, score in nbest) < least:
            return f"confidence below {least:g}"
    if not cut.supervisions:
        cut.supervisions = [SupervisionSegment(cut.id, cut.recording_id if cut.has_recording else cut.id, 0.0, cut.duration)]
    supervision = cut.supervisions[0]
    supervision.text = text
    supervision.custom = {**(supervision.custom or {}), NBEST: heard}
    return ""


def check_output(output: Path, cuts: Path) -> None:
    """A RecipeError, before anything is decoded, where no manifest can be written or it would take the place of the cuts."""
    if not output.name.endswith(".jsonl.gz"):
        raise RecipeError(f"--output {output}: the manifest is called something.jsonl.gz, which is how Lhotse knows its form")
    if output.is_dir():
        raise RecipeError(f"--output {output} is a folder: name a file in it")
    if output.exists() and output.samefile(cuts):
        raise RecipeError(f"--output {output} is the file that --cuts names: give it a name of its own")


def main():
    args = get_args()
    if not 0 <= args.min_confidence <= 1:
        raise RecipeError(f"--min-confidence {args.min_confidence}: a posterior lies between 0 and 1")
    config = load_config(DecodeConfig, args.config, args.overrides)
    lang = Lang(args.lang)
    cuts = load_cuts(args.cuts)
    check_output(args.output, args.cuts)
    usable, skipped = [], {}
    for cut in cuts:
        reason = "" if cut.has_features else "no features"
        if cut.duration > LONGEST_SECONDS:
            reason = f"longer than {LONGEST_SECONDS:g} s"
        if reason:
            skipped.setdefault(reason, []).append(cut.id)
        else:
            if isinstance(cut, MixedCut):  # whose supervisions are copies: what is put into them is lost
                raise RecipeError(f"{args.cuts}: cut {cut.id} is mixed of several, or padded, and cannot be labelled: store "
                                  "its features as one cut's, with Lhotse's compute_and_store_features(mix_eagerly=True)")
            if args.pseudo_label and len(cut.supervisions) > 1:  # what is heard becomes the transcript of all
                cut.supervisions = []
            usable.append(cut)
    if not usable:
        raise RecipeError("; ".join([f"{args.cuts} holds no cut that can be heard: run stage 2, or cut them shorter",
                                     *describe_skipped(skipped)]))
    usable = CutSet.from_cuts(usable)
    model, _, _ = load_averaged(args.exp, config.epoch, config.avg, tokens=lang.tokens)
    check_cuts(args.exp, model, usable, args.cuts.parent)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = hypotheses(model.to(device), usable, lang, config, device)
    kept = []
    for cut in usable:
        reason = "features that hold nan or infinity"
        if cut.id in found:
            reason = label(cut, found[cut.id], args.pseudo_label, args.min_confidence)
        if reason:
            skipped.setdefault(reason, []).append(cut.id)
        else:
            kept.append(cut)
    for line in describe_skipped(skipped):
        print(line)
    if not kept:
        raise RecipeError(f"{args.exp} hears nothing in {args.cuts}: is it trained?" if found else
                          f"no cut of {args.cuts} has features that are numbers: mend their audio, and {REMAKE}")
    with atomic_path(args.output) as temporary:
        CutSet.from_cuts(kept).to_file(temporary)
    count = sum(len(cut.supervisions[0].custom[NBEST]) for cut in kept)
    print(f"{len(kept)} cuts with {count} hypotheses ({count / len(kept):.1f} each) -> {args.output}")


if __name__ == "__main__":
    run_main(main)
