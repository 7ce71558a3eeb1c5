"""Plain signal processing of mono speech: levels, noise, rooms, bands and speed.

Legend: every signal is a one-dimensional float32 array of shape (samples,), full scale at 1.0; rates are in Hz; levels
are in dB relative to full scale (dBFS) as root mean square. Randomness comes only from the generator that is passed.
"""

from fractions import Fraction
from math import gcd
from typing import Optional

import numpy as np

_TINY = 1e-10


def power(samples: np.ndarray) -> float:
    """Return the mean square of ``samples``; 0.0 for an empty signal."""
    return float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0


def level(samples: np.ndarray) -> float:
    """Return the level of ``samples`` in dBFS; silence gives -100."""
    return 10.0 * np.log10(max(power(samples), _TINY))


def normalise_level(samples: np.ndarray, target: float, peak: float = 0.95) -> np.ndarray:
    """Scale ``samples`` to ``target`` dBFS, or to less where a sample would exceed ``peak``; silence stays silence."""
    now = power(samples)
    if now < _TINY:
        return samples.astype(np.float32)
    gain = 10.0 ** (target / 20.0) / np.sqrt(now)
    gain = min(gain, peak / float(np.abs(samples).max()))
    return (samples * gain).astype(np.float32)


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sampling rate with a polyphase filter; ceil(samples * to_rate / from_rate) samples."""
    from scipy.signal import resample_poly

    if from_rate == to_rate:
        return samples.astype(np.float32)
    divisor = gcd(from_rate, to_rate)
    return resample_poly(samples, to_rate // divisor, from_rate // divisor).astype(np.float32)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play ``samples`` ``factor`` times as fast: duration falls and pitch and formants rise by the factor.

    The factor is rounded to the nearest fraction with a denominator of at most 100. Raises ValueError when it is not
    positive.
    """
    if factor <= 0:
        raise ValueError(f"speed factor {factor} is not positive")
    ratio = Fraction(factor).limit_denominator(100)
    return resample(samples, ratio.numerator, ratio.denominator)


def trim_silence(samples: np.ndarray, rate: int, below: float = 45.0) -> np.ndarray:
    """Cut the ends off where the 10 ms frames lie more than ``below`` dB under the loudest frame."""
    width = max(rate // 100, 1)
    frames = len(samples) // width
    if frames == 0:
        return samples
    powers = np.mean(np.square(samples[: frames * width].reshape(frames, width), dtype=np.float64), axis=1)
    loud = np.nonzero(powers > max(powers.max() * 10.0 ** (-below / 10.0), _TINY))[0]
    if len(loud) == 0:
        return samples[:0]
    last = len(samples) if loud[-1] == frames - 1 else (loud[-1] + 1) * width
    return samples[loud[0] * width: last]


def coloured_noise(count: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Return ``count`` samples of Gaussian noise with power falling as 1/f**exponent, at 0 dBFS.

    0 is white, 1 is pink, 2 is brown noise.
    """
    # A power of two is made and the rest cut off: the transform is slow at lengths with large prime factors.
    length = 1 << max(count - 1, 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(length))
    index = np.arange(len(spectrum), dtype=np.float64)
    index[0] = 1.0
    spectrum *= index ** (-exponent / 2.0)
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, length)[:count]
    return (noise / np.sqrt(max(power(noise), _TINY))).astype(np.float32)


def fit_length(samples: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``count`` samples: a random stretch of a longer signal, a shorter one repeated from a random start;
    ValueError of an empty one."""
    if len(samples) == 0:
        raise ValueError("an empty signal cannot be stretched")
    start = int(rng.integers(len(samples) - count + 1 if len(samples) >= count else len(samples)))
    return np.take(samples, np.arange(start, start + count), mode="wrap")


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Add ``noise`` to ``speech`` so that the ratio of their mean powers is ``snr`` dB; ValueError where their
    shapes differ."""
    if speech.shape != noise.shape:
        raise ValueError(f"speech has shape {speech.shape}, noise {noise.shape}")
    gain = np.sqrt(power(speech) / max(power(noise), _TINY)) * 10.0 ** (-snr / 20.0)
    return (speech + gain * noise).astype(np.float32)


def room_response(rate: int, reverberation_time: float, direct_ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return a made-up room impulse response: a direct pulse, then noise that decays exponentially.

    ``reverberation_time`` is the RT60 in seconds (the tail falls by 60 dB in it), ``direct_ratio`` the energy of the
    direct pulse over that of the tail in dB. The tail starts 2 ms after the pulse (Polack's model of late
    reverberation, J.-D. Polack, 1988).
    """
    count = max(int(reverberation_time * rate), 2)
    time = np.arange(count) / rate
    tail = rng.standard_normal(count) * 10.0 ** (-3.0 * time / reverberation_time)
    tail[: max(int(0.002 * rate), 1)] = 0.0
    energy = float(np.sum(tail**2))
    if energy > 0:
        tail *= 10.0 ** (-direct_ratio / 20.0) / np.sqrt(energy)
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve with a room response; the length stays (what rings after the end is cut), and so does the power."""
    from scipy.signal import fftconvolve

    wet = fftconvolve(samples, response)[: len(samples)]
    return (wet * np.sqrt(power(samples) / max(power(wet), _TINY))).astype(np.float32)


def band_limit(samples: np.ndarray, rate: int, low: Optional[float] = None, high: Optional[float] = None) -> np.ndarray:
    """Keep what lies between ``low`` and ``high`` Hz with a Butterworth filter of order 6; ``None`` leaves a side open.

    Raises ValueError when an edge is not between 0 and half the rate.
    """
    from scipy.signal import butter, sosfilt

    for edge in (low, high):
        if edge is not None and not 0 < edge < rate / 2:
            raise ValueError(f"band edge {edge} Hz is not between 0 and {rate / 2} Hz")
    filtered = samples
    if low is not None:
        filtered = sosfilt(butter(6, low, "highpass", fs=rate, output="sos"), filtered)
    if high is not None:
        filtered = sosfilt(butter(6, high, "lowpass", fs=rate, output="sos"), filtered)
    return filtered.astype(np.float32)


def tilt(samples: np.ndarray, rate: int, slope: float) -> np.ndarray:
    """Raise what lies above 1 kHz by ``slope`` dB an octave and lower what lies below likewise: another microphone.

    Below 100 Hz the gain stays that of 100 Hz.
    """
    spectrum = np.fft.rfft(samples)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(samples), 1.0 / rate), 100.0) / 1000.0)
    return np.fft.irfft(spectrum * 10.0 ** (slope * octaves / 20.0), len(samples)).astype(np.float32)
