"""Files of audio that cannot be used: named where audio is checked, before anything is made of it."""

import numpy as np
import pytest
import soundfile

from kdlib.manifests import BadAudio, check_audio, read_audio, read_header

RATE = 16000
NOISE = 0.1 * np.random.default_rng(1).standard_normal(5 * RATE)  # longer than a block


def test_a_whole_file_says_what_is_in_it(tmp_path):
    soundfile.write(tmp_path / "a.wav", NOISE, RATE, subtype="FLOAT")
    assert check_audio(tmp_path / "a.wav") == read_header(tmp_path / "a.wav") == (5 * RATE, RATE, 1)
    assert len(read_audio(tmp_path / "a.wav", RATE)) == 5 * RATE


@pytest.mark.parametrize("place", [0, 5 * RATE - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_finite_number(tmp_path, place, value):
    samples = NOISE.copy()
    samples[place] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    for check in (check_audio, lambda path: read_audio(path, RATE)):
        with pytest.raises(BadAudio, match="a.wav holds samples that are no finite numbers"):
            check(tmp_path / "a.wav")


def test_in_any_channel(tmp_path):
    samples = np.stack([NOISE, NOISE], axis=1)
    samples[100, 1] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(BadAudio, match="no finite numbers"):
        check_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.sph", "A.SPH"])
def test_sphere_is_refused_where_lhotse_would_call_a_shell(tmp_path, name):
    soundfile.write(tmp_path / name, NOISE, RATE, format="NIST", subtype="PCM_16")
    for check in (check_audio, read_header, lambda path: read_audio(path, RATE)):
        with pytest.raises(BadAudio, match=f"{name} is NIST SPHERE, .* convert it to WAV or FLAC"):
            check(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "a.wav")  # under this name Lhotse reads it as libsndfile does
    assert check_audio(tmp_path / "a.wav").samples == 5 * RATE
