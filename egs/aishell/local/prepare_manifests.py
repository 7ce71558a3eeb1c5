"""Stage 1: Lhotse manifests of AISHELL-1, with every recording checked.

What cannot be used is skipped, named and counted: a recording that cannot be read, one without a line in the transcripts, a
line without a recording or a text, and what has the id of something before it in its part. One id in two parts is an error.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Tuple, Union

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.recipes.aishell import text_normalize

from kdlib.corpus import checked_cuts, write_cuts
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_record
from kdlib.manifests import BadAudio, Skipped, SkippedFile, describe, read_header
from kdlib.options import require_not_negative, require_positive

PARTS = ("train", "dev", "test")
SAMPLING_RATE = 16000
_REMEDY = "run stage 0 (run.sh --stage 0), which finds or downloads the corpus"


def read_transcripts(path: Path, skipped: Skipped) -> Dict[str, str]:
    """The text of each id, without the spaces between its words; a second line of an id is skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut at other separators, too
    except FileNotFoundError:
        raise RecipeError(f"{path} is missing: {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}): unpack data_aishell.tgz again") from None
    texts: Dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, *words = line.split() or [""]
        if name in texts:
            skipped.add(name, f"{path}, line {number} is a second one of this id")
        elif name:
            texts[name] = text_normalize("".join(words))
    return texts


def find_recordings(data: Path, texts: Dict[str, str], skipped: Dict[str, Skipped]) -> Dict[str, List[Path]]:
    """The transcribed recordings of each part, each id once; a RecipeError for an id that stands in two parts."""
    found: Dict[str, List[Path]] = {}
    first: Dict[str, Tuple[str, Path]] = {}  # where each id stands
    for part in PARTS:
        found[part] = []
        for path in sorted((data / "wav" / part).glob("*/*.wav")):
            there, other = first.setdefault(path.stem, (part, path))
            if there != part:
                raise RecipeError(f"{path.stem} stands in {there} and in {part} ({other} and {path}): remove one of them, "
                                  "so that no test is of what was trained on")
            if other != path:
                skipped[part].add(path.stem, f"{path} is a second recording of this id")
            elif path.stem not in texts:
                skipped[part].add(path.stem, "its recording has no line in the transcripts")
            else:
                found[part].append(path)
    for name in sorted(texts.keys() - first.keys()):
        skipped[""].add(name, "its transcript has no recording")
    return found


def read_utterance(path: Path, text: str) -> Union[Tuple[Recording, SupervisionSegment], str]:
    """The recording of a file and what is said in it; or why there is none."""
    try:
        samples, rate, channels = read_header(path)
    except BadAudio as error:
        return str(error)
    return describe(path.stem, path, samples, rate, text, path.parent.name, language="Chinese", channels=channels)


def read_part(paths: List[Path], texts: Dict[str, str], jobs: int, skipped: Skipped) -> Tuple[
        List[Recording], List[SupervisionSegment]]:
    """What the headers of a part's recordings tell; those that cannot be read are skipped."""
    recordings, segments = [], []
    with ThreadPoolExecutor(jobs) as pool:
        for path, read in zip(paths, pool.map(read_utterance, paths, [texts[path.stem] for path in paths])):
            if isinstance(read, str):
                skipped.add(path.stem, read)
            else:
                recordings.append(read[0])
                segments.append(read[1])
    return recordings, segments


def evenly(segments: List[SupervisionSegment], hours: float) -> List[SupervisionSegment]:
    """So many hours of the utterances, evenly spaced in the order of their ids, so of all speakers; 0 for all.

    Those with an empty transcript are no hours; they stay, to be skipped and told of.
    """
    ordered = sorted((segment for segment in segments if segment.text), key=lambda segment: segment.id)
    empty = [segment for segment in segments if not segment.text]
    wanted, total = hours * 3600, sum(segment.duration for segment in ordered)
    if not wanted or total <= wanted:
        return ordered + empty
    count = max(1, round(len(ordered) * wanted / total))
    return [ordered[place * len(ordered) // count] for place in range(count)] + empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus.json"),
                        help="what stage 0 left (data/corpus.json)")
    parser.add_argument("--output", type=Path, default=Path("data/manifests"),
                        help="folder of the manifests (data/manifests)")
    parser.add_argument("--hours", type=float, default=0, help="hours of training speech, chosen evenly; 0 for all (0)")
    parser.add_argument("--test-hours", type=float, default=0, help="the same of dev and of test (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (2)")
    options = parser.parse_args()
    require_not_negative(hours=options.hours, test_hours=options.test_hours)
    require_positive(jobs=options.jobs)
    data = Path(read_record(options.corpus, _REMEDY, "data_aishell")["data_aishell"])
    file = SkippedFile(options.output)
    skipped = {part: Skipped(file) for part in ("", *PARTS)}
    texts = read_transcripts(data / "transcript" / "aishell_transcript_v0.8.txt", skipped[""])
    found = find_recordings(data, texts, skipped)
    skipped[""].report(str(data / "transcript"))
    for part in PARTS:
        recordings, segments = read_part(found[part], texts, options.jobs, skipped[part])
        segments = evenly(segments, options.hours if part == "train" else options.test_hours)
        names = {segment.recording_id for segment in segments}
        cuts = checked_cuts(RecordingSet.from_recordings(r for r in recordings if r.id in names),
                            SupervisionSet.from_segments(segments), SAMPLING_RATE, skipped[part], jobs=options.jobs)
        skipped[part].report(f"{data / 'wav' / part}")
        write_cuts(options.output, part, cuts)


if __name__ == "__main__":
    run_main(main)
