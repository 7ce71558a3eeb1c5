"""Stage 1: Lhotse manifests of AISHELL-1, with every recording checked."""

import argparse
from pathlib import Path
from typing import Dict, List, Set

import soundfile
from lhotse import RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.recipes import prepare_aishell

from kdlib.corpus import checked_cuts, write_cuts
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_json
from kdlib.manifests import Skipped

PARTS = ("train", "dev", "test")
SAMPLING_RATE = 16000
_REMEDY = "run stage 0 (run.sh --stage 0), which finds or downloads the corpus"


def transcribed(path: Path, skipped: Skipped) -> Set[str]:
    """The ids that have a line in the transcripts; a second line of an id is skipped and counted (the last one holds)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise RecipeError(f"{path} is missing: {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}): unpack data_aishell.tgz again") from None
    found: Set[str] = set()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            raise RecipeError(f"{path}, line {number} is blank, which Lhotse does not take: remove the line")
        if words[0] in found:
            skipped.add(words[0], f"{path}, line {number} is a second one of this id, and the one that counts")
        found.add(words[0])
    return found


def match(data: Path) -> Dict[str, Skipped]:
    """What has only audio or only a transcript, neither of which Lhotse's recipe reports: by part, "" for no part."""
    skipped = {part: Skipped() for part in ("", *PARTS)}
    lines = transcribed(data / "transcript" / "aishell_transcript_v0.8.txt", skipped[""])
    heard: Set[str] = set()
    for part in PARTS:
        ids = {path.stem for path in (data / "wav" / part).rglob("*.wav")}
        for name in sorted(ids - lines):
            skipped[part].add(name, "its recording has no line in the transcripts")
        heard |= ids
    for name in sorted(lines - heard):
        skipped[""].add(name, "its transcript has no recording")
    return skipped


def read_corpus(data: Path) -> Dict[str, Dict]:
    """Lhotse's manifests by part; RecipeError where it cannot read a file, which it then does not name."""
    try:
        return prepare_aishell(data.parent)
    except Exception as error:
        for path in sorted((data / "wav").rglob("*.wav")):
            try:
                soundfile.info(str(path))
            except (soundfile.SoundFileError, RuntimeError, OSError) as reason:
                raise RecipeError(f"{path} cannot be read ({str(reason).splitlines()[0]}): unpack it again, or remove it "
                                  "to leave it out") from None
        raise RecipeError(f"Lhotse cannot read {data} as AISHELL-1 ({type(error).__name__}: "
                          f"{' '.join(str(error).split())}): unpack data_aishell.tgz again") from None


def evenly(segments: SupervisionSet, hours: float) -> List[SupervisionSegment]:
    """So many hours of the utterances, evenly spaced in the order of their ids, so of all speakers; 0 for all."""
    ordered = sorted(segments, key=lambda segment: segment.id)
    wanted, total = hours * 3600, sum(segment.duration for segment in ordered)
    if not wanted or total <= wanted:
        return ordered
    count = max(1, round(len(ordered) * wanted / total))
    return [ordered[place * len(ordered) // count] for place in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus.json"), help="what stage 0 left")
    parser.add_argument("--output", type=Path, default=Path("data/manifests"), help="folder of the manifests")
    parser.add_argument("--hours", type=float, default=0, help="hours of training speech, chosen evenly; 0 for all")
    parser.add_argument("--test-hours", type=float, default=0, help="the same of dev and of test")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    options = parser.parse_args()
    for name in ("hours", "test_hours"):
        if not getattr(options, name) >= 0:
            raise RecipeError(f"--{name.replace('_', '-')} {getattr(options, name)} is not 0 or more")
    data = Path(read_json(options.corpus, _REMEDY)["data_aishell"])
    skipped = match(data)
    skipped[""].report(str(data / "transcript"))
    manifests = read_corpus(data)
    for part in PARTS:
        segments = evenly(manifests[part]["supervisions"], options.hours if part == "train" else options.test_hours)
        names = {segment.recording_id for segment in segments}
        recordings = RecordingSet.from_recordings(r for r in manifests[part]["recordings"] if r.id in names)
        cuts = checked_cuts(recordings, SupervisionSet.from_segments(segments), SAMPLING_RATE, skipped[part],
                            jobs=options.jobs)
        skipped[part].report(f"{data / 'wav' / part}")
        write_cuts(options.output, part, cuts)


if __name__ == "__main__":
    run_main(main)
