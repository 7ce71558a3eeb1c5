"""Stage 0: make the spoken commands: plan every utterance, let shards of them be spoken side by side, list them."""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Dict, Iterator, List

from tqdm import tqdm

import grammar
import kdlib.audio
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_json, write_json, write_text
from kdlib.options import require_positive
from sounds import TEST_MAKERS, TRAIN_MAKERS
from voices import voices_of

SHARD_UTTERANCES = 400
DEV_UTTERANCES = 300
NOISE_SECONDS = 10.0
_PARTS = grammar.PARTS + ("noise",)


def utterances(part: str, seed: int) -> Iterator[Dict]:
    """Yield a part's utterances without end: text, voice, rate (words a minute) and pitch (espeak-ng's 0 to 100)."""
    rng = random.Random(f"voices-{part}-{seed}")
    voices = voices_of(part.split("-")[0])
    kinds = list(TEST_MAKERS) + ["babble"]
    for index, text in enumerate(grammar.Sentences(part, seed)):
        if index % len(voices) == 0:
            rng.shuffle(voices)
        utterance = {"id": f"{part}-{index:06d}", "text": text, "voice": voices[index % len(voices)],
                     "rate": rng.randint(115, 165), "pitch": rng.randint(35, 65)}
        if part == "test-other":
            utterance["noise"] = kinds[index % len(kinds)]
        yield utterance


def expected_seconds(utterance: Dict) -> float:
    """Estimate an utterance's duration from its letters and rate (a straight line fitted to 4,700 of them)."""
    return 1.17 + 8.92 * len(utterance["text"]) / utterance["rate"]


def plan_part(part: str, hours: float, test_words: int, noise_minutes: float, seed: int) -> List[Dict]:
    """Return the utterances (or noises) of one part, as many as the options ask for."""
    if part == "noise":
        kinds = list(TRAIN_MAKERS) + ["babble"]
        count = max(round(noise_minutes * 60 / NOISE_SECONDS), 1)
        return [{"id": f"noise-{i:06d}", "noise": kinds[i % len(kinds)], "seconds": NOISE_SECONDS} for i in range(count)]
    items: List[Dict] = []
    done = 0.0
    for item in utterances(part, seed):
        if part == "train":
            full = done >= hours * 3600
            done += expected_seconds(item)
        elif part == "dev":
            full = len(items) >= min(DEV_UTTERANCES, max(test_words // 5, 1))
        else:
            full = done >= test_words
            done += len(item["text"].split())
        if full:
            break
        items.append(item)
    return items


def plan_shards(options: Dict) -> List[Dict]:
    """Cut every part into shards of a fixed size; a shard is all that its process needs to know."""
    shards = []
    for part in _PARTS:
        items = plan_part(part, options["hours"], options["test_words"], options["noise_minutes"], options["seed"])
        crowd: List[Dict] = []
        if part in ("test-other", "noise"):
            # Who babbles: training's voices behind training, held-out ones behind the test.
            stream = utterances("train" if part == "noise" else part, options["seed"] + 1)
            crowd = [next(stream) for _ in range(30)]
        for number, start in enumerate(range(0, len(items), SHARD_UTTERANCES)):
            name = f"{number:04d}"
            key = int.from_bytes(hashlib.sha256(f"{options['seed']}/{part}/{name}".encode()).digest()[:4], "big")
            shards.append({"part": part, "name": name, "seed": key & 0x7FFFFFFF, "crowd": crowd,
                           "list": f".shards/{part}-{name}.jsonl", "items": items[start: start + SHARD_UTTERANCES]})
    return shards


def render_shard(shard: Dict, corpus: Path) -> None:
    """Speak one shard in a process of its own; raises :class:`RecipeError` with that process's last line."""
    plan = corpus / ".shards" / f"{shard['part']}-{shard['name']}.json"
    write_json(plan, shard)
    command = [sys.executable, str(Path(__file__).with_name("render.py")), str(plan), "--corpus", str(corpus)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        reason = lines[-1].replace("error: ", "", 1) if lines else f"it was ended by signal {-ended.returncode}"
        raise RecipeError(f"shard {shard['part']}-{shard['name']} of {corpus} failed: {reason}; finished shards are "
                          "kept, and the same command goes on from them")


def render_all(shards: List[Dict], corpus: Path, jobs: int) -> None:
    """Speak the shards that have no list yet, ``jobs`` at a time."""
    missing = [shard for shard in shards if not (corpus / shard["list"]).exists()]
    if len(missing) < len(shards):
        print(f"{len(shards) - len(missing)} of {len(shards)} shards are there already")
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(render_shard, shard, corpus) for shard in missing]
        try:
            for future in tqdm(as_completed(running), total=len(running), desc="synthesis", unit="shard"):
                future.result()
        except BaseException:
            for future in running:
                future.cancel()
            raise


def write_lists(shards: List[Dict], corpus: Path) -> Dict[str, Dict]:
    """Join the shards' lists to one ``metadata.jsonl`` a part; return what each part holds."""
    parts = {}
    for part in _PARTS:
        text = "".join((corpus / shard["list"]).read_text(encoding="utf-8") for shard in shards if shard["part"] == part)
        write_text(corpus / part / "metadata.jsonl", text)
        entries = [json.loads(line) for line in text.splitlines()]
        parts[part] = {"utterances": len(entries), "hours": round(sum(e["duration"] for e in entries) / 3600, 4),
                       "words": sum(len(e.get("text", "").split()) for e in entries),
                       "voices": len({e["voice"] for e in entries if "voice" in e})}
    return parts


def prepare_folder(corpus: Path, options: Dict) -> None:
    """Make ``corpus`` ready for these options.

    A corpus of other options is removed. A folder that this script did not make is left alone: RecipeError.
    """
    marker = corpus / "options.json"
    if marker.exists():
        remedy = f"remove the folder {corpus} and run stage 0 again"
        if read_json(marker, remedy) == options:
            return
        print(f"{corpus} was made with other options: making it anew")
        (corpus / "corpus.json").unlink(missing_ok=True)
        for name in _PARTS + (".shards",):
            shutil.rmtree(corpus / name, ignore_errors=True)
    elif corpus.exists() and (not corpus.is_dir() or any(corpus.iterdir())):
        raise RecipeError(f"{corpus} holds something that this script did not make: move it, or give another --output")
    write_json(marker, options)


def fingerprint() -> str:
    """Return a digest of the code that decides how the corpus sounds, so that a change of it makes the corpus anew."""
    names = ("espeak.py", "grammar.py", "render.py", "sounds.py", "synthesize.py", "voices.py")
    paths = [Path(__file__).with_name(name) for name in names] + [Path(kdlib.audio.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the spoken commands corpus with espeak-ng.")
    parser.add_argument("--output", type=Path, default=Path("data/corpus"), help="folder of the corpus")
    parser.add_argument("--hours", type=float, default=8.0, help="hours of training speech")
    parser.add_argument("--test-words", type=int, default=4800, help="reference words in each test set, at least")
    parser.add_argument("--noise-minutes", type=float, default=10.0, help="background sounds for augmentation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once; the result does not depend on it")
    options = parser.parse_args()
    require_positive(hours=options.hours, test_words=options.test_words, noise_minutes=options.noise_minutes,
                     jobs=options.jobs)

    wanted = {"hours": options.hours, "test_words": options.test_words, "noise_minutes": options.noise_minutes,
              "seed": options.seed, "code": fingerprint()}
    prepare_folder(options.output, wanted)
    shards = plan_shards(wanted)
    render_all(shards, options.output, options.jobs)
    # Written even where all shards are there already: a list that was damaged or removed is whole again.
    parts = write_lists(shards, options.output)
    write_json(options.output / "corpus.json",
               {"options": wanted, "sampling_rate": 16000, "vocabulary": len(grammar.vocabulary()), "parts": parts})
    for part, holds in parts.items():
        print(f"{options.output}/{part}: {holds['utterances']} recordings, {holds['hours']:.2f} h, "
              f"{holds['words']} words, {holds['voices']} voices")


if __name__ == "__main__":
    run_main(main)
