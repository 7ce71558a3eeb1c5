"""Speak one shard of the corpus; synthesize.py starts a process of its own for each.

espeak-ng's samples depend on all that the process said before, so a shard is always spoken whole, in the same order, by
a fresh process: then it does not matter how many shards run at once or which were there from an earlier run.
"""

import argparse
import json
import zlib
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

import sounds
from espeak import Synthesizer
from kdlib.audio import (band_limit, change_speed, coloured_noise, level, mix_at_snr, normalise_level, resample,
                         reverberate, room_response, trim_silence)
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_json, remove_unfinished, write_audio, write_text
from kdlib.processes import end_with_parent

RATE = 16000
_SPEECH_LEVEL = -25.0


def say(synthesizer: Synthesizer, utterance: Dict) -> np.ndarray:
    """Return one utterance's words at 16 kHz, without silence at its ends, at -25 dBFS."""
    spoken = synthesizer(utterance["text"].lower(), utterance["voice"], utterance["rate"], utterance["pitch"], volume=25)
    spoken = trim_silence(resample(spoken, synthesizer.rate, RATE), RATE)
    if len(spoken) < RATE // 10:
        raise RecipeError(f"espeak-ng says nothing for {utterance['text']!r} with voice {utterance['voice']}: "
                          "the installed espeakng-loader lacks this voice's data, reinstall it")
    return normalise_level(spoken, _SPEECH_LEVEL)


def pad(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add room tone before and after, a faint pink floor under all of it, and vary the level by 6 dB.

    Mostly 0.1 to 0.25 s before and 0.3 to 0.45 s after, as an endpointer cuts; three ends in ten are up to 1.5 s long,
    so that a recogniser of this corpus waits for the speech and keeps still after it.
    """
    before, after = (int(rng.uniform(low, 1.5 if rng.random() < 0.3 else low + 0.15) * RATE) for low in (0.1, 0.3))
    # The speech alone sets the level, however much silence is around it.
    padded = np.pad(normalise_level(speech, _SPEECH_LEVEL + rng.uniform(-3.0, 3.0)), (before, after))
    floor = coloured_noise(len(padded), 1.0, rng) * 10.0 ** (rng.uniform(-75.0, -60.0) / 20.0)
    return (padded + floor).astype(np.float32)


def into_room(speech: np.ndarray, rng: np.random.Generator, conditions: Dict) -> np.ndarray:
    """Return ``speech`` in a random room, which is noted in ``conditions``."""
    conditions["rt60"] = round(float(rng.uniform(0.15, 0.5)), 3)
    conditions["direct_ratio"] = round(float(rng.uniform(0.0, 8.0)), 2)
    return reverberate(speech, room_response(RATE, conditions["rt60"], conditions["direct_ratio"], rng))


def vary(speech: np.ndarray, rng: np.random.Generator) -> Tuple[np.ndarray, Dict]:
    """Return a training utterance at another speed, in a room, through a channel, each by chance; and what was done.

    The speeds are more voices to the recogniser than espeak-ng has. A channel's limits are drawn from a range, not from
    the test's; noise is left to the training, which mixes in other noise each time.
    """
    conditions: Dict = {}
    if rng.random() < 0.6:
        conditions["speed"] = round(float(rng.uniform(0.88, 1.14)), 2)
        speech = change_speed(speech, conditions["speed"])
    if rng.random() < 0.25:
        speech = into_room(speech, rng, conditions)
    if rng.random() < 0.2:
        low = round(float(rng.uniform(100, 350))) if rng.random() < 0.5 else None
        conditions["band"] = [low, round(float(rng.uniform(2800, 6500)))]
        speech = band_limit(speech, RATE, *conditions["band"])
    return normalise_level(speech, _SPEECH_LEVEL), conditions


def disturb(speech: np.ndarray, crowd: List[np.ndarray], kind: str,
            rng: np.random.Generator) -> Tuple[np.ndarray, Dict]:
    """Return ``speech`` in a room, with noise of ``kind``, through a narrow channel; and what was done to it.

    The ratio of speech to noise is that of the result: both pass the channel before they are mixed.
    """
    conditions: Dict = {"noise": kind, "snr": round(float(rng.uniform(5.0, 15.0)), 2)}
    conditions["speed"] = round(float(rng.uniform(0.9, 1.1)), 2)
    speech = change_speed(speech, conditions["speed"])
    if rng.random() < 0.6:
        speech = into_room(speech, rng, conditions)
    noise = sounds.make(kind, sounds.TEST_MAKERS, crowd, len(speech), RATE, rng)
    if rng.random() < 0.5:
        low, high = [(300, 3400), (None, 3000), (None, 4500), (200, 5500)][int(rng.integers(4))]
        conditions["band"] = [low, high]
        speech, noise = band_limit(speech, RATE, low, high), band_limit(noise, RATE, low, high)
    mixed = mix_at_snr(speech, noise, conditions["snr"])
    return normalise_level(mixed, level(speech)), conditions


def render(shard: Dict, corpus: Path) -> None:
    """Write the shard's FLAC files under ``corpus``, then its list, whose presence says that the shard is whole."""
    synthesizer = Synthesizer(shard["seed"])
    crowd = [say(synthesizer, utterance) for utterance in shard["crowd"]]
    folder = Path(shard["part"]) / shard["name"]
    remove_unfinished(corpus / folder)
    lines = []
    for item in shard["items"]:
        rng = np.random.default_rng([shard["seed"], zlib.crc32(item["id"].encode())])
        entry = dict(item, audio=(folder / f"{item['id']}.flac").as_posix())
        if shard["part"] == "noise":
            samples = sounds.make(item["noise"], sounds.TRAIN_MAKERS, crowd, int(item["seconds"] * RATE), RATE, rng)
        else:
            samples = say(synthesizer, item)
            if shard["part"] == "train":
                samples, entry["conditions"] = vary(samples, rng)
            samples = pad(samples, rng)
            if "noise" in item:
                samples, entry["conditions"] = disturb(samples, crowd, entry.pop("noise"), rng)
        write_audio(corpus / entry["audio"], samples, RATE)
        entry["duration"] = len(samples) / RATE
        lines.append(json.dumps(entry, sort_keys=True))
    write_text(corpus / shard["list"], "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speak one shard of the corpus (started by synthesize.py).")
    parser.add_argument("shard", type=Path, help="the shard's plan, a JSON file")
    parser.add_argument("--corpus", type=Path, required=True, help="the corpus's folder")
    options = parser.parse_args()
    end_with_parent()
    render(read_json(options.shard, "run synthesize.py, which writes it"), options.corpus)


if __name__ == "__main__":
    run_main(main)
