"""Digit strings: which takes follow each other, and the samples that they make."""

import random
from typing import Dict, Iterator, List, Sequence

import numpy as np

from kdlib.audio import change_speed, normalise_level, tilt
from takes import SAMPLING_RATE, WORDS, Take

_LEVEL = -25.0
_FADE = SAMPLING_RATE // 200


class _Cycle:
    """Deals out a list in a random order, again and again, so that all items are used equally often."""

    def __init__(self, items: Sequence, rng: random.Random):
        self._items, self._rng, self._left = list(items), rng, []

    def __call__(self):
        if not self._left:
            self._left = self._items[:]
            self._rng.shuffle(self._left)
        return self._left.pop()


def plan(part: str, takes: Sequence[Take], short: float, seed: int) -> Iterator[Dict]:
    """Yield strings of ``part`` without end: an id, the words, one speaker, and that speaker's takes in order.

    The lengths are 3 to 7 digits, but 1 or 2 for a share ``short`` of the strings.
    """
    rng = random.Random(f"{part}-{seed}")
    by_speaker: Dict[str, Dict[int, List[Take]]] = {}
    for take in takes:
        by_speaker.setdefault(take.speaker, {}).setdefault(take.digit, []).append(take)
    cycles = {speaker: {digit: _Cycle(of_digit, rng) for digit, of_digit in digits.items()}
              for speaker, digits in by_speaker.items()}
    speakers = _Cycle(sorted(cycles), rng)
    number = 0
    while True:
        speaker = speakers()
        length = rng.randint(1, 2) if rng.random() < short else rng.randint(3, 7)
        digits = [rng.choice(sorted(cycles[speaker])) for _ in range(length)]
        yield {"id": f"{part}-{number:06d}", "speaker": speaker, "text": " ".join(WORDS[digit] for digit in digits),
               "takes": [cycles[speaker][digit]() for digit in digits]}
        number += 1


def expected_seconds(string: Dict, durations: Dict[Take, float]) -> float:
    """Return about how long the string will be: its takes, the mean gaps between them and at the ends."""
    return sum(durations[take] for take in string["takes"]) + 0.125 * (len(string["takes"]) - 1) + 0.85


def floor_level(samples: np.ndarray) -> float:
    """Return the level of the quietest twentieth of a take's 10 ms frames, in dBFS, between -80 and -45."""
    width = SAMPLING_RATE // 100
    frames = samples[: len(samples) // width * width].reshape(-1, width)
    powers = np.mean(np.square(frames, dtype=np.float64), axis=1) if len(frames) else np.zeros(1)
    return float(np.clip(10.0 * np.log10(np.percentile(powers, 5) + 1e-10), -80.0, -45.0))


def _end(shortest: float, longest: float, rng: np.random.Generator) -> float:
    """Seconds before or after the takes of a string."""
    return rng.uniform(shortest, 1.5 if rng.random() < 0.3 else longest)


def join(takes: List[np.ndarray], spread: float, rng: np.random.Generator) -> np.ndarray:
    """Return the takes one after the other, shape (samples,), float32, 8 kHz.

    Each take is brought to about the same level (the speakers' differ by 20 dB). Between the takes are 0 to 0.25 s, before
    them mostly 0.05 to 0.15 s and after them 0.3 to 0.5 s, filled with noise at the level of the takes' own quietest frames;
    three ends in ten are up to 1.5 s long, so that a recogniser waits for the speech and keeps still after it.

    A ``spread`` above zero makes another voice of the speaker: one speed in 1 +- spread for all takes, which moves pitch and
    formants with it, and a random spectral tilt of up to 3 dB an octave.
    """
    if spread > 0:
        speed, slope = rng.uniform(1.0 - spread, 1.0 + spread), rng.uniform(-3.0, 3.0)
        takes = [tilt(change_speed(take, speed), SAMPLING_RATE, slope) for take in takes]
    takes = [normalise_level(take, _LEVEL + rng.uniform(-2.0, 2.0)) for take in takes]
    starts, position = [], int(_end(0.05, 0.15, rng) * SAMPLING_RATE)
    for take in takes:
        starts.append(position)
        position += len(take) + int(rng.uniform(0.0, 0.25) * SAMPLING_RATE)
    count = starts[-1] + len(takes[-1]) + int(_end(0.3, 0.5, rng) * SAMPLING_RATE)
    floor = np.mean([floor_level(take) for take in takes])
    background = rng.standard_normal(count) * 10.0 ** (floor / 20.0)
    string = background.copy()
    for start, take in zip(starts, takes):
        # Cross-fade over 5 ms at both ends: the takes are cut tightly and would click.
        fade = min(_FADE, len(take) // 2)
        weight = np.ones(len(take))
        weight[:fade] = np.linspace(0.0, 1.0, fade, endpoint=False)
        weight[len(take) - fade:] = weight[:fade][::-1]
        stretch = slice(start, start + len(take))
        string[stretch] = weight * take + (1.0 - weight) * background[stretch]
    return normalise_level(string, _LEVEL + rng.uniform(-3.0, 3.0))
