"""Stage 1: Lhotse manifests of LibriSpeech's parts, every recording checked, and of MUSAN's sounds.

Leaves cuts_train and cuts_dev, each of one or more parts together, cuts_<part> of each test set, and cuts_noise. The dev
part may be held out of train, by speaker.

LibriSpeech is written in A to Z, apostrophe and space. A transcript with any other character is damaged; it is named and
counted. Training leaves it out, since each such character would become a token. Dev and test keep it, so that they are the
same utterances for everybody; a character that no token holds counts as an error (stage 3 counts these too).
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Dict, List, Tuple

from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.recipes.librispeech import parse_utterance

from kdlib.corpus import checked_cuts, write_cuts
from kdlib.corpus_parts import describe_holding, hold_out
from kdlib.errors import RecipeError, in_one_line, run_main
from kdlib.files import read_record
from kdlib.manifests import (BadAudio, Skipped, SkippedFile, describe, read_audio, read_header, remove_sets,
                             write_manifests)
from kdlib.options import require_not_negative, require_positive
from parts import MUSAN_PARTS, PARTS, read_transcript, sounds, split_names

SAMPLING_RATE = 16000
ALPHABET = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
HELD_OUT, SHARE = "held-out", 0.05  # in place of dev parts, and of train's hours
REMEDY = "run stage 0 (run.sh --stage 0), which finds or downloads the corpus"


def read_utterance(part: Path, line: Tuple[Path, str, str]):
    """Lhotse's ``(Recording, SupervisionSegment)`` of an utterance of a transcript; or why there is none."""
    transcript, id_, text = line
    audio = transcript.parent / f"{id_}.flac"
    if "/" in id_:
        return "its id is no name of a file"
    if not text:
        return "its transcript is empty"
    try:
        read_header(audio)  # of what is wrong Lhotse tells at length how it tried
        return parse_utterance(part, f"{id_} {text}", {}) or f"{audio} does not stand where its name says"
    except BadAudio as error:
        return str(error)
    except Exception as error:  # each audio backend has exceptions of its own
        return f"{audio} cannot be read ({in_one_line(error) or type(error).__name__})"


def read_part(part: Path, most: int, jobs: int, skipped: Skipped) -> Tuple[List[Recording], List[SupervisionSegment]]:
    """All utterances of a part, or ``most`` of them, evenly spaced; what cannot be used is counted."""
    lines = [(path, *line) for path in sorted(part.glob("*/*/*.trans.txt")) for line in read_transcript(path)]
    if not lines:
        raise RecipeError(f"{part} holds no transcript (*.trans.txt): {REMEDY}")
    transcribed = {id_ for _, id_, _ in lines}
    for audio in sorted(part.glob("*/*/*.flac")):
        if audio.stem not in transcribed:
            skipped.add(audio.stem, f"{audio} has no transcript")
    if 0 < most < len(lines):
        lines = [lines[number * len(lines) // most] for number in range(most)]
    recordings: List[Recording] = []
    segments: List[SupervisionSegment] = []
    with ThreadPoolExecutor(jobs) as pool:
        for (_, id_, _), found in zip(lines, pool.map(partial(read_utterance, part), lines)):
            if isinstance(found, str):
                skipped.add(id_, found)
            else:
                recordings.append(found[0])
                segments.append(found[1])
    print(f"read {part}: {len(lines)} utterances")
    return recordings, segments


def within_alphabet(name: str, cuts: CutSet, skipped: Skipped) -> CutSet:
    """The cuts of a set without those whose transcripts hold other characters, in training; dev and test keep them."""
    odd = {cut.id: "".join(sorted(set(cut.supervisions[0].text) - ALPHABET)) for cut in cuts}
    odd = {id_: f"its transcript holds {characters}, and LibriSpeech's only A to Z and apostrophes"
           for id_, characters in odd.items() if characters}
    if name == "train":
        for id_, reason in odd.items():
            skipped.add(id_, reason)
        return CutSet.from_cuts(cut for cut in cuts if cut.id not in odd)
    for id_, reason in list(odd.items())[:10]:
        print(f"kept {id_}: {reason}")
    if odd:
        print(f"kept {len(odd)} in all of {name}, whose characters without a token count as errors")
    return cuts


def write_noise(musan: Path, output: Path, jobs: int, file: SkippedFile) -> None:
    """MUSAN's sounds, each a cut by its file's name; a second one of a name is skipped."""
    def check(path: Path):
        try:
            return len(read_audio(path, SAMPLING_RATE))
        except BadAudio as error:
            return str(error)

    skipped, described = Skipped(file), []
    first: Dict[str, Path] = {}  # of each name
    paths = sorted(path for part in MUSAN_PARTS for path in sounds(musan, part))
    with ThreadPoolExecutor(jobs) as pool:
        for path, found in zip(paths, pool.map(check, paths)):
            if isinstance(found, str):
                skipped.add(path.stem, found)
            elif path.stem in first:
                skipped.add(path.stem, f"{path} is a second sound of this name, which {first[path.stem]} has: rename one of "
                                       "them")
            else:
                first[path.stem] = path
                described.append(describe(path.stem, path, found, SAMPLING_RATE, None))
    skipped.report(str(musan))
    write_manifests(output, "noise", described)


def main() -> None:
    parser = argparse.ArgumentParser(description="Lhotse manifests of LibriSpeech.")
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus.json"),
                        help="what stage 0 left (data/corpus.json)")
    parser.add_argument("--train-parts", required=True, help="parts to train on, separated by spaces")
    parser.add_argument("--dev-parts", required=True, help="parts for the dev loss, or held-out")
    parser.add_argument("--test-sets", required=True, help="parts to test on")
    parser.add_argument("--max-utterances", type=int, default=0, help="of each part, evenly spaced; 0 for all (0)")
    parser.add_argument("--output", type=Path, default=Path("data/manifests"),
                        help="folder of the manifests (data/manifests)")
    parser.add_argument("--jobs", type=int, default=2, help="processes or threads at once (2)")
    options = parser.parse_args()
    require_positive(jobs=options.jobs)
    require_not_negative(max_utterances=options.max_utterances)
    corpus = read_record(options.corpus, REMEDY, "librispeech", "musan")
    root = Path(corpus["librispeech"])
    dev_parts = [] if options.dev_parts == HELD_OUT else options.dev_parts.split()
    split_names(" ".join([options.train_parts, *dev_parts, options.test_sets]))
    wanted = {"train": options.train_parts.split(), **({"dev": dev_parts} if dev_parts else {}),
              **{part: [part] for part in options.test_sets.split()}}
    homes: Dict[str, str] = {}  # the part of each utterance
    file = SkippedFile(options.output)
    for name, parts in wanted.items():
        skipped = Skipped(file)
        recordings: List[Recording] = []
        segments: List[SupervisionSegment] = []
        for part in parts:
            if not (root / part).is_dir():
                raise RecipeError(f"{root / part} is no folder: {REMEDY}")
            read = read_part(root / part, options.max_utterances, options.jobs, skipped)
            twice = next((segment.id for segment in read[1] if segment.id in homes), None)
            if twice is not None:
                raise RecipeError(f"{twice} stands in {homes[twice]} and in {part}: choose parts that share no utterance "
                                  "(train-clean-5 is of train-clean-100, dev-clean-2 of dev-clean)")
            homes.update((segment.id, part) for segment in read[1])
            recordings += read[0]
            segments += read[1]
        cuts = checked_cuts(RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(segments), SAMPLING_RATE,
                            skipped, jobs=options.jobs)
        cuts = within_alphabet(name, cuts, skipped)
        skipped.report(" and ".join(str(root / part) for part in parts))
        if name == "train" and not dev_parts:
            dealt, by = hold_out(list(cuts), {"dev": SHARE})
            print(describe_holding(["dev"], by, dealt["train"]))
            cuts = CutSet.from_cuts(sorted(dealt["train"], key=lambda cut: cut.id))
            write_cuts(options.output, "dev", CutSet.from_cuts(sorted(dealt["dev"], key=lambda cut: cut.id)))
        write_cuts(options.output, name, cuts)
    if corpus["musan"]:
        write_noise(Path(corpus["musan"]), options.output, options.jobs, file)
    for other in {"noise", *PARTS} - {*wanted, "noise" if corpus["musan"] else ""}:
        remove_sets(options.output, other)  # of an earlier choice of parts


if __name__ == "__main__":
    run_main(main)
