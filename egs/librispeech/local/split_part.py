#!/usr/bin/env python3
"""Make training, dev and test parts of the speakers of one part of LibriSpeech: real speech to try the recipe on where only
that part is at hand, in FLAC or, as LibriVox has it, in MP3. --output becomes a tree in the corpus's layout."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import soundfile

from kdlib.errors import RecipeError, run_main
from kdlib.files import write_audio, write_text
from kdlib.options import require_not_negative, require_positive
from parts import PARTS, read_transcript, split_names


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder of the part and of CHAPTERS.TXT")
    parser.add_argument("--part", default="dev-clean", help="the part that is there (dev-clean)")
    parser.add_argument("--speakers", default="train-clean-5=16 dev-clean-2=2 test-clean=2", metavar="'PART=COUNT ...'",
                        help="how many speakers each part gets, in the order of their names (%(default)s)")
    parser.add_argument("--shortest", type=int, default=0, metavar="N",
                        help="take the N shortest utterances of each speaker (all)")
    parser.add_argument("--output", type=Path, required=True, help="a folder without parts")
    parser.add_argument("--jobs", type=int, default=1, help="threads at once (1)")
    args = parser.parse_args()
    require_positive(jobs=args.jobs)
    require_not_negative(shortest=args.shortest)
    return args


def read_shares(words: str) -> Dict[str, int]:
    """``PART=COUNT ...`` as a dictionary; a RecipeError where it is none."""
    pairs = [word.partition("=") for word in words.split()]
    for name, _, count in pairs:
        if not count.isdigit() or count == "0":
            raise RecipeError(f"--speakers {name}: give it a number of speakers, as in {name}=2")
    return dict(zip(split_names(" ".join(name for name, _, _ in pairs)), (int(count) for _, _, count in pairs)))


def read(reader: Callable[[Path], Any], audio: Path) -> Any:
    """What a function of soundfile finds in a file; a RecipeError names one that it cannot read."""
    try:
        return reader(audio)
    except soundfile.LibsndfileError as error:
        raise RecipeError(f"{audio} cannot be read ({error.error_string.rstrip('.')}): copy it again") from None


def utterances(speaker: Path, shortest: int) -> List[Tuple[Path, str]]:
    """(audio file, transcript) of a speaker."""
    found = []
    for transcript in sorted(speaker.glob("*/*.trans.txt")):
        files = {path.stem: path for path in transcript.parent.iterdir()
                 if path.suffix in (".flac", ".mp3") and path.is_file()}  # a link to nothing is none
        for id_, text in read_transcript(transcript):
            audio = files.get(id_)
            if audio is None:
                raise RecipeError(f"{transcript} names {id_}, of which there is no .flac or .mp3 beside it")
            found.append((audio, text))
    if shortest:
        found = sorted(found, key=lambda pair: read(soundfile.info, pair[0]).frames)[:shortest]
    return found


def write_flac(folder: Path, audio: Path) -> None:
    """The utterance as FLAC in its chapter's folder below ``folder``."""
    output = folder / audio.parent.parent.name / audio.parent.name / f"{audio.stem}.flac"
    samples, rate = read(soundfile.read, audio)
    write_audio(output, samples, rate)


def write_part(folder: Path, speakers: List[Path], shortest: int, jobs: int) -> int:
    """The part's audio and transcripts; returns the number of utterances."""
    chosen = [pair for speaker in speakers for pair in utterances(speaker, shortest)]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(partial(write_flac, folder), (audio for audio, _ in chosen)))
    lines: Dict[Path, List[str]] = {}
    for audio, text in sorted(chosen):
        lines.setdefault(audio.parent, []).append(f"{audio.stem} {text}\n")
    for chapter, texts in lines.items():
        name = f"{chapter.parent.name}-{chapter.name}.trans.txt"
        write_text(folder / chapter.parent.name / chapter.name / name, "".join(texts))
    return len(chosen)


def main():
    args = get_args()
    shares = read_shares(args.speakers)
    source = args.corpus_dir / args.part
    if not source.is_dir() or not (args.corpus_dir / "CHAPTERS.TXT").is_file():
        raise RecipeError(f"{args.corpus_dir} does not hold {args.part} and CHAPTERS.TXT: give the folder that does as "
                          "--corpus-dir")
    there = [part for part in PARTS if (args.output / part).exists()]
    if there:
        raise RecipeError(f"{args.output} holds {', '.join(there)} already, of an earlier run or the corpus's own, which "
                          "these parts would mix with: give another --output, or remove what is there")
    speakers = sorted((path for path in source.iterdir() if path.is_dir()), key=lambda path: path.name)
    if len(speakers) < sum(shares.values()):
        raise RecipeError(f"{source} has {len(speakers)} speakers, and --speakers asks for {sum(shares.values())}")
    part_of = {}
    for part, count in shares.items():
        mine, speakers = speakers[:count], speakers[count:]
        number = write_part(args.output / part, mine, args.shortest, args.jobs)
        part_of.update((path.name, part) for path in mine)
        print(f"{part}: {number} utterances of {', '.join(path.name for path in mine)} -> {args.output / part}")
    # The list of chapters, by which stage 0 knows whether a part is whole, says what the parts are now.
    made = {folder.name for folder in args.output.glob("*/*/*") if folder.is_dir()}
    lines = (args.corpus_dir / "CHAPTERS.TXT").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|") for line in lines if not line.startswith(";")]
    kept = ["|".join([*row[:3], f" {part_of[row[1].strip()]} ", *row[4:]]) for row in cells
            if len(row) > 4 and row[0].strip() in made and row[1].strip() in part_of]
    write_text(args.output / "CHAPTERS.TXT", "".join(line + "\n" for line in kept))


if __name__ == "__main__":
    run_main(main)
