#!/usr/bin/env python3
"""When the words of the test sets end, by a model that hears each utterance whole (stage 5).

Aligns the transcripts with the most probable path of the transducer, with full context, and writes Lhotse cuts whose
supervisions have an alignment "word"; those that cannot be aligned have none. A transducer says where it emits a word's
labels: with the whole utterance before it, at the word. Against these times local/decode.py --alignment measures how late
a streaming model emits.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Tuple, Union

import torch
from lhotse import CutSet
from lhotse.supervision import AlignmentItem
from tqdm import tqdm

from kdlib.alignment import FRAME_SECONDS, align_labels, word_frames
from kdlib.commandline import named_test_sets
from kdlib.config import DataConfig, TrainConfig, load_config
from kdlib.cuts import describe_skipped, load_cuts
from kdlib.data import LONGEST_SECONDS, checked, eval_loader
from kdlib.errors import run_main
from kdlib.files import atomic_path
from kdlib.lang import Lang
from kdlib.training.checkpoint import check_cuts, load_averaged

MAX_DURATION = 60.0  # seconds of a batch, whose whole lattice is computed


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exp", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--fbank", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--test-sets", required=True, help="names, separated by spaces")
    parser.add_argument("--output", type=Path, required=True, help="folder for the aligned cuts")
    parser.add_argument("--epoch", type=int, default=-1, help="the epoch to align with; the last one unless given")
    parser.add_argument("--avg", type=int, default=-1, help="epochs to average; as the training's config says unless given")
    return parser.parse_args()


@torch.no_grad()
def align(model, cuts, lang, rnnt_type, device, name) -> Dict[str, Union[str, List[Tuple[str, int, int]]]]:
    """The words of each cut by its id, each with its first and last frame; or why it cannot be aligned."""
    found: Dict[str, Union[str, List[Tuple[str, int, int]]]] = {}
    for batch in checked(tqdm(eval_loader(cuts, lang, DataConfig(), MAX_DURATION), desc=name, unit="batch", mininterval=5)):
        spoilt, batch = batch.spoilt(), batch.to(device)
        encoded, lengths, _ = model.encoder(batch.features, batch.feature_lengths, 0, -1)
        paths = align_labels(model, encoded, lengths, batch.symbols, batch.symbol_lengths, rnnt_type)
        for id_, symbols, labels, frames, path in zip(batch.ids, batch.symbols.tolist(), batch.symbol_lengths.tolist(),
                                                      lengths.tolist(), paths):
            if id_ in spoilt:
                found[id_] = "features that hold nan or infinity"
            elif path is not None:
                found[id_] = word_frames(lang, symbols, path)
            elif frames < (labels if rnnt_type == "modified" else 1):
                found[id_] = "more labels than frames"
            else:  # where all frames sound the same, as in digital silence
                found[id_] = "no single best path"
    return found


def main():
    args = get_args()
    test_sets = named_test_sets(args.test_sets)
    lang = Lang(args.lang)
    rnnt_type = load_config(TrainConfig, args.exp / "config.yaml").loss.rnnt_type
    model, _, _ = load_averaged(args.exp, args.epoch, args.avg, tokens=lang.tokens)
    cuts_of = {name: load_cuts(args.fbank / f"cuts_{name}.jsonl.gz") for name in test_sets}
    check_cuts(args.exp, model, (cut for cuts in cuts_of.values() for cut in cuts), args.fbank)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, cuts in cuts_of.items():
        short = [cut for cut in cuts if cut.duration <= LONGEST_SECONDS]
        found = align(model, CutSet.from_cuts(short), lang, rnnt_type, device, name) if short else {}
        skipped = defaultdict(list)
        for cut in cuts:
            for segment in cut.supervisions:
                (segment.alignment or {}).pop("word", None)  # somebody else's, in times that may be of the recording
            words = found.get(cut.id, f"longer than {LONGEST_SECONDS:g} s")
            if isinstance(words, str):
                skipped[words].append(cut.id)
            elif cut.supervisions:
                # What a frame stands for ends with it.
                cut.supervisions[0] = cut.supervisions[0].with_alignment("word", [
                    AlignmentItem(word, round(first * FRAME_SECONDS, 3), round((last + 1 - first) * FRAME_SECONDS, 3))
                    for word, first, last in words])
        for line in describe_skipped(skipped):
            print(line)
        path = args.output / f"cuts_{name}.jsonl.gz"
        with atomic_path(path) as temporary:
            cuts.to_file(temporary)
        print(f"{len(cuts) - sum(map(len, skipped.values()))} of {len(cuts)} utterances aligned -> {path}")


if __name__ == "__main__":
    run_main(main)
