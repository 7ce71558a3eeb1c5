"""Background sounds for the noisy test and for the augmentation of training.

Each maker returns ``count`` samples at ``rate`` Hz. The test and the training draw from different makers and seeds; both
know babble, spoken by their own voices.
"""

from typing import Callable, Dict, List

import numpy as np

from kdlib.audio import band_limit, coloured_noise, fit_length, normalise_level

Maker = Callable[[int, int, np.random.Generator], np.ndarray]


def white(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A hiss."""
    return coloured_noise(count, 0.0, rng)


def pink(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Pink noise: rain, wind in trees."""
    return coloured_noise(count, 1.0, rng)


def rumble(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Traffic: noise that falls steeply with the frequency and swells slowly."""
    noise = coloured_noise(count, rng.uniform(1.3, 1.8), rng)
    time = np.arange(count) / rate
    return noise * (1.0 + 0.6 * np.sin(2 * np.pi * (rng.uniform(0.1, 0.5) * time + rng.uniform())))


def fan(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Air through a fan: band-limited noise with the beat of the blades."""
    noise = band_limit(coloured_noise(count, 0.5, rng), rate, rng.uniform(80, 300), rng.uniform(2000, 6000))
    time = np.arange(count) / rate
    return noise * (1.0 + 0.4 * np.sin(2 * np.pi * rng.uniform(8, 30) * time))


def clatter(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Dishes: short decaying rings at random moments over a faint pink floor."""
    sound = 0.05 * coloured_noise(count, 1.0, rng)
    for start in rng.integers(0, max(count, 1), size=max(int(3 * count / rate), 1)):
        length = min(int(rng.uniform(0.03, 0.25) * rate), count - start)
        time = np.arange(length) / rate
        rings = sum(np.sin(2 * np.pi * rng.uniform(600, 6000) * time) for _ in range(3))
        sound[start: start + length] += rings * np.exp(-time * rng.uniform(15, 60)) * rng.uniform(0.3, 1.0)
    return sound


def hum(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum: 50 or 60 Hz with harmonics, and a little hiss."""
    time = np.arange(count) / rate
    base = rng.choice([50.0, 60.0])
    tones = sum(rng.uniform(0.3, 1.0) / k ** 0.7 * np.sin(2 * np.pi * (base * k * time + rng.uniform()))
                for k in range(1, 20))
    return tones + 0.2 * coloured_noise(count, 1.0, rng)


def music(count: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of plucked tones with a beat, in a random key and tempo."""
    sound = np.zeros(count)
    root, beat = rng.uniform(110, 220), rng.uniform(0.25, 0.6)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    for start in range(0, count, max(int(beat * rate), 1)):
        length = min(int(2 * beat * rate), count - start)
        time = np.arange(length) / rate
        for step in rng.choice(scale, size=3, replace=False):
            pitch = root * 2.0 ** (step / 12.0)
            sound[start: start + length] += np.exp(-4 * time) * sum(
                np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6))
        tick = min(length, int(0.03 * rate))
        sound[start: start + tick] += rng.standard_normal(tick) * np.exp(-np.arange(tick) / (0.006 * rate))
    return sound


TEST_MAKERS: Dict[str, Maker] = {"white": white, "pink": pink, "hum": hum, "music": music}
TRAIN_MAKERS: Dict[str, Maker] = {"rumble": rumble, "fan": fan, "clatter": clatter}


def babble(speech: List[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Four to seven people at once: each repeats some of the recordings in ``speech`` in an own order."""
    total = np.zeros(count)
    for _ in range(int(rng.integers(4, 8))):
        talk = np.concatenate([speech[i] for i in rng.permutation(len(speech))])
        total += fit_length(talk, count, rng) * rng.uniform(0.5, 1.0)
    return normalise_level(total, -20.0)


def make(kind: str, makers: Dict[str, Maker], speech: List[np.ndarray], count: int, rate: int,
         rng: np.random.Generator) -> np.ndarray:
    """Return ``count`` float32 samples of ``kind``: ``babble`` of ``speech`` or one of ``makers``.

    They have -20 dBFS, or less where a sample would exceed 0.95.
    """
    if kind == "babble":
        return babble(speech, count, rng)
    return normalise_level(makers[kind](count, rate, rng), -20.0)
