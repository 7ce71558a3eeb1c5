"""Stage 1: make digit strings of the takes and their Lhotse manifests.

The official split is kept: takes 0 to 4 of all six speakers are the test, and no take stands in two parts. One speaker
(--unseen-speaker) is left out of training and dev altogether; that speaker's other takes make the part test-unseen, and
the official test is harder by that speaker. The default, theo, was chosen with a small
classifier of single digits, trained on takes 5 to 49 of five speakers and tested on those of the sixth; the errors, the
mean of two runs: theo 12.7%, yweweler 13.5%, jackson 15.5%, george 25.8%, nicolas 29.1%, lucas 50.1%. These are the very
takes of test-unseen, and the two best are as good as equal: test-unseen is about the mildest case of an unseen speaker,
not the average, and --unseen-speaker, also of run.sh, chooses another.
"""

import argparse
import hashlib
import json
import multiprocessing
import re
import shutil
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Dict, List

import numpy as np
from tqdm import tqdm

from kdlib.errors import RecipeError, run_main
from kdlib.files import read_record, remove_unfinished, write_audio
from kdlib.manifests import BadAudio, Skipped, SkippedFile, describe, read_audio, remove_sets, write_manifests
from kdlib.options import require_not_negative, require_positive
from kdlib.processes import end_with_parent
from strings import expected_seconds, join, plan
from takes import SAMPLING_RATE, SPEAKERS, Take, split

DEV_STRINGS = 150
_SHORT = 0.2
_samples: Dict[Take, np.ndarray] = {}


def read_takes(recordings: Path, skipped: Skipped) -> Dict[Take, np.ndarray]:
    """Read every take that can be read; the others are skipped by name."""
    takes = {}
    for take in (take for part in split("").values() for take in part):
        try:
            takes[take] = read_audio(recordings / take.file_name, SAMPLING_RATE)
        except BadAudio as error:
            skipped.add(take.file_name, str(error))
    return takes


def plan_part(part: str, takes: List[Take], durations: Dict[Take, float], options: argparse.Namespace) -> List[Dict]:
    """Return as many strings of ``part`` as the options ask for."""
    strings: List[Dict] = []
    done = 0.0
    target = {"train": options.hours * 3600, "dev": min(DEV_STRINGS, max(options.test_words // 5, 1))}
    for string in plan(part, takes, _SHORT if part == "train" else 0.0, options.seed):
        if done >= target.get(part, options.test_words):
            break
        strings.append(string)
        if part == "train":
            done += expected_seconds(string, durations)
        else:
            done += 1 if part == "dev" else len(string["takes"])
    return strings


def _start_worker(samples: Dict[Take, np.ndarray]) -> None:
    end_with_parent()
    _samples.update(samples)


def render(string: Dict, folder: Path, spread: float, seed: int) -> int:
    """Write one string as FLAC; return its samples. The result depends on nothing but the string and the seed."""
    rng = np.random.default_rng([seed, zlib.crc32(string["id"].encode())])
    samples = join([_samples[take] for take in string["takes"]], spread, rng)
    write_audio(folder / f"{string['id']}.flac", samples, SAMPLING_RATE)
    return len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description="Digit strings and their Lhotse manifests.")
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus.json"),
                        help="what stage 0 left (data/corpus.json)")
    parser.add_argument("--output", type=Path, default=Path("data/manifests"),
                        help="folder of the manifests (data/manifests)")
    parser.add_argument("--strings", type=Path, default=Path("data/strings"), help="folder of the audio (data/strings)")
    parser.add_argument("--hours", type=float, default=3.4, help="hours of training strings (3.4)")
    parser.add_argument("--test-words", type=int, default=2100, help="reference digits in each test set, at least (2100)")
    parser.add_argument("--unseen-speaker", default="theo", choices=SPEAKERS + ("none",),
                        help="whose takes training never hears (theo)")
    parser.add_argument("--voice-spread", type=float, default=0.12,
                        help="training strings are spoken this much faster or slower, pitch included; 0 for not at all "
                             "(0.12)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of the strings (1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once; the result does not depend on it (2)")
    options = parser.parse_args()
    require_positive(hours=options.hours, test_words=options.test_words, jobs=options.jobs)
    require_not_negative(seed=options.seed)
    if not 0 <= options.voice_spread < 0.5:
        raise RecipeError(f"--voice-spread {options.voice_spread} is not between 0 and 0.5")

    remedy = "run stage 0 (run.sh --stage 0), which finds or downloads the dataset"
    recordings = Path(read_record(options.corpus, remedy, "recordings")["recordings"])
    if not recordings.is_dir():
        raise RecipeError(f"{recordings}, named in {options.corpus}, is no folder any more: {remedy}")
    skipped = Skipped(SkippedFile(options.output))
    samples = read_takes(recordings, skipped)
    print(f"read {recordings}: {len(samples)} takes")
    skipped.report(str(recordings))

    unseen = "" if options.unseen_speaker == "none" else options.unseen_speaker
    durations = {take: len(x) / SAMPLING_RATE for take, x in samples.items()}
    planned = {}
    for part, takes in split(unseen).items():
        usable = [take for take in takes if take in samples]
        if not usable:
            raise RecipeError(f"no take of the part {part} in {recordings} can be read: {remedy}")
        planned[part] = plan_part(part, usable, durations, options)
    # A folder of its own for each plan: manifests of an earlier run stay right until the new ones replace them.
    settings = json.dumps([options.seed, options.voice_spread, planned])
    home = options.strings / hashlib.sha256(settings.encode()).hexdigest()[:12]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker,
                             initargs=(samples,)) as pool:
        for part, strings in planned.items():
            folder = home / part
            remove_unfinished(folder)
            spread = options.voice_spread if part == "train" else 0.0
            work = partial(render, folder=folder, spread=spread, seed=options.seed)
            counts = list(tqdm(pool.map(work, strings, chunksize=50), total=len(strings), desc=part, unit="string"))
            write_manifests(options.output, part, [
                describe(string["id"], folder / f"{string['id']}.flac", count, SAMPLING_RATE, string["text"],
                         string["speaker"], {"takes": [take.file_name for take in string["takes"]]})
                for string, count in zip(strings, counts)])
    if not unseen:
        remove_sets(options.output, "test-unseen")
    for other in options.strings.iterdir():
        if other != home and re.fullmatch("[0-9a-f]{12}", other.name):
            shutil.rmtree(other, ignore_errors=True)


if __name__ == "__main__":
    run_main(main)
