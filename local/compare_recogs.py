#!/usr/bin/env python3
"""How many utterances two decodings of a test set hear alike, and which they do not.

    local/compare_recogs.py exp/export/stage3/decode/recogs-test-sherpa-onnx-greedy_search.txt \\
        exp/stage3/streaming_decode/recogs-test-epoch-12-avg-3-streaming-chunk-16-left-64-greedy_search-max-sym-1-tail-sherpa-onnx.txt

says, for instance, whether sherpa-onnx hears in float32 what our own streams hear.
"""

import argparse
from pathlib import Path

from kdlib.errors import RecipeError, run_main
from kdlib.scoring import read_recogs


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recogs", type=Path, nargs=2, help="two files recogs-*.txt of one test set")
    return parser.parse_args()


def main():
    args = get_args()
    one, other = ({id_: (ref, hyp) for id_, ref, hyp in read_recogs(path)} for path in args.recogs)
    alone = sorted(one.keys() ^ other.keys())
    if alone or not one:
        raise RecipeError(f"{args.recogs[0]} and {args.recogs[1]} are not of one test set ("
                          + (f"{alone[0]} is in one of them alone)" if alone else "they are empty)"))
    differing = [id_ for id_ in sorted(one) if one[id_][1] != other[id_][1]]
    for id_ in differing:
        print(f"{id_}\n  reference: {' '.join(one[id_][0])}")
        for path, heard in zip(args.recogs, (one, other)):
            print(f"  {' '.join(heard[id_][1])}  <- {path.name}")
    same = len(one) - len(differing)
    print(f"{same} of {len(one)} utterances are heard alike ({100 * same / len(one):.2f} %)")


if __name__ == "__main__":
    run_main(main)
