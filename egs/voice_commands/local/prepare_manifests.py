"""Stage 1: Lhotse manifests of the spoken commands, with every recording checked."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from grammar import PARTS
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_record
from kdlib.manifests import BadAudio, Skipped, SkippedFile, describe, normalise_text, read_audio, write_manifests
from kdlib.options import require_positive

_REMEDY = "the corpus is not there or half made: run stage 0 (run.sh --stage 0)"


def read_entries(path: Path, skipped: Skipped) -> List[Dict]:
    """Read a part's list; lines that are damaged or repeat an id are skipped."""
    if not path.is_file():
        raise RecipeError(f"{path} is missing: {_REMEDY}")
    entries, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            entry = json.loads(line)
            name = entry["id"], entry["audio"], float(entry["duration"])
        except (ValueError, KeyError, TypeError):
            skipped.add(f"{path}:{number}", "not a line of this list")
            continue
        if name[0] in seen:
            skipped.add(entry["id"], "the id occurs twice")
            continue
        seen.add(entry["id"])
        entries.append(entry)
    return entries


def check(entry: Dict, corpus: Path, rate: int, noise: bool) -> Tuple[int, Optional[str]]:
    """Return (samples, None) of a recording that can be used, or (0, reason)."""
    if not noise and not normalise_text(entry.get("text")):
        return 0, "its transcript is empty"
    try:
        samples = len(read_audio(corpus / entry["audio"], rate))
    except BadAudio as error:
        return 0, str(error)
    if abs(samples - entry["duration"] * rate) > 0.5:
        return 0, f"{corpus / entry['audio']} has {samples / rate:.3f} s instead of {entry['duration']:.3f} s"
    return samples, None


def main() -> None:
    parser = argparse.ArgumentParser(description="Lhotse manifests of the spoken commands.")
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"), help="what stage 0 made (data/corpus)")
    parser.add_argument("--output", type=Path, default=Path("data/manifests"),
                        help="folder of the manifests (data/manifests)")
    parser.add_argument("--jobs", type=int, default=2, help="files checked at once (2)")
    options = parser.parse_args()
    require_positive(jobs=options.jobs)
    about = read_record(options.corpus / "corpus.json", _REMEDY, "sampling_rate")
    rate = about["sampling_rate"]
    file = SkippedFile(options.output)
    for part in PARTS + ("noise",):
        noise = part == "noise"
        skipped = Skipped(file)
        metadata = options.corpus / part / "metadata.jsonl"
        entries = read_entries(metadata, skipped)
        print(f"read {metadata}: {len(entries)} recordings")
        with ThreadPoolExecutor(options.jobs) as pool:
            checked = list(pool.map(lambda entry: check(entry, options.corpus, rate, noise), entries))
        described = []
        for entry, (samples, reason) in zip(entries, checked):
            if reason is not None:
                skipped.add(entry["id"], reason)
                continue
            custom = {"noise": entry["noise"]} if noise else entry.get("conditions")
            described.append(describe(entry["id"], options.corpus / entry["audio"], samples, rate,
                                      None if noise else normalise_text(entry["text"]), entry.get("voice"), custom))
        skipped.report(str(metadata))
        write_manifests(options.output, part, described)


if __name__ == "__main__":
    run_main(main)
