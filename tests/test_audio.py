"""kdlib.audio: levels, noise, rooms, bands and speed against what the signals must show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib import audio

RATE = 16000


def tone(frequency: float, seconds: float = 1.0, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def peak_frequency(samples: np.ndarray) -> float:
    return np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples)


@settings(max_examples=25)
@given(snr=st.floats(-10, 30), gain=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_mixing_gives_the_snr_that_was_asked_for(snr, gain, seed):
    rng = np.random.default_rng(seed)
    speech = tone(300) * gain
    mixed = audio.mix_at_snr(speech, audio.coloured_noise(len(speech), 1.0, rng), snr)
    noise = mixed.astype(np.float64) - speech
    measured = 10 * np.log10(np.mean(speech.astype(np.float64) ** 2) / np.mean(noise**2))
    assert measured == pytest.approx(snr, abs=0.05)


def test_mixing_refuses_other_lengths():
    with pytest.raises(ValueError, match="shape"):
        audio.mix_at_snr(tone(300), tone(300)[:-1], 5.0)


@settings(max_examples=25)
@given(gain=st.floats(1e-3, 1.0), target=st.floats(-40, -15))
def test_normalised_level(gain, target):
    assert audio.level(audio.normalise_level(tone(300) * gain, target)) == pytest.approx(target, abs=0.01)


def test_normalising_never_clips_and_keeps_silence():
    click = np.zeros(RATE, dtype=np.float32)
    click[100] = 0.5
    assert np.abs(audio.normalise_level(click, -20.0)).max() <= 0.95 + 1e-6
    assert not audio.normalise_level(np.zeros(100, dtype=np.float32), -20.0).any()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_as_its_exponent_says(exponent):
    noise = audio.coloured_noise(1 << 17, exponent, np.random.default_rng(0))
    powers = np.abs(np.fft.rfft(noise)) ** 2
    # Mean power in octaves: their slope against the octave's number, in octaves of power, is minus the exponent.
    octaves = [np.log2(powers[1 << k: 2 << k].mean()) for k in range(6, 15)]
    assert np.polyfit(np.arange(len(octaves)), octaves, 1)[0] == pytest.approx(-exponent, abs=0.1)
    assert audio.level(noise) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_moves_duration_and_pitch(factor):
    changed = audio.change_speed(tone(440), factor)
    assert len(changed) == pytest.approx(RATE / factor, abs=2)
    assert peak_frequency(changed) == pytest.approx(440 * factor, abs=2)


def test_resampling_keeps_the_pitch():
    resampled = audio.resample(np.sin(2 * np.pi * 440 * np.arange(22050) / 22050).astype(np.float32), 22050, RATE)
    assert len(resampled) == RATE and resampled.dtype == np.float32
    assert peak_frequency(resampled) == pytest.approx(440, abs=1)


def test_band_limits_pass_the_inside_only():
    for frequency, passes in ((100, False), (1000, True), (6000, False)):
        change = audio.level(audio.band_limit(tone(frequency), RATE, 300, 3400)) - audio.level(tone(frequency))
        assert (change > -1) if passes else (change < -20)
    with pytest.raises(ValueError, match="8000"):
        audio.band_limit(tone(100), RATE, None, 9000)


def test_room_response_decays_by_60_db_in_its_reverberation_time():
    response = audio.room_response(RATE, 0.4, 3.0, np.random.default_rng(1)).astype(np.float64)
    assert response[0] == 1.0
    assert 10 * np.log10(1.0 / np.sum(response[1:] ** 2)) == pytest.approx(3.0, abs=0.01)
    early, late = (np.mean(response[int(t * RATE): int((t + 0.05) * RATE)] ** 2) for t in (0.01, 0.31))
    assert 10 * np.log10(early / late) == pytest.approx(45.0, abs=3.0)  # 0.3 s of 0.4 s for 60 dB


def test_reverberation_keeps_length_power_and_a_dry_room():
    speech = tone(500) * np.hanning(RATE).astype(np.float32)
    wet = audio.reverberate(speech, audio.room_response(RATE, 0.3, 0.0, np.random.default_rng(2)))
    assert wet.shape == speech.shape and audio.level(wet) == pytest.approx(audio.level(speech), abs=0.01)
    np.testing.assert_allclose(audio.reverberate(speech, np.array([1.0, 0.0])), speech, atol=1e-5)


def test_trimming_keeps_the_sound_and_drops_the_silence():
    speech = np.concatenate([np.zeros(1600), tone(300), np.zeros(3200)]).astype(np.float32)
    np.testing.assert_array_equal(audio.trim_silence(speech, RATE), tone(300))
    assert len(audio.trim_silence(np.zeros(RATE, dtype=np.float32), RATE)) == 0


@settings(max_examples=25)
@given(length=st.integers(1, 50), count=st.integers(1, 120), seed=st.integers(0, 99))
def test_fitted_length_is_a_stretch_of_the_repeated_signal(length, count, seed):
    signal = np.arange(length, dtype=np.float32)
    fitted = audio.fit_length(signal, count, np.random.default_rng(seed))
    assert len(fitted) == count
    assert all((b - a) % length == (1 % length) for a, b in zip(fitted, fitted[1:]))


def test_tilt_is_in_db_an_octave_around_1_khz():
    for frequency, octaves in ((500, -1), (1000, 0), (4000, 2)):
        change = audio.level(audio.tilt(tone(frequency), RATE, 3.0)) - audio.level(tone(frequency))
        assert change == pytest.approx(3.0 * octaves, abs=0.1)
