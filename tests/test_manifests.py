"""Files of audio that cannot be used: named where audio is checked, before anything is made of it."""

import struct

import numpy as np
import pytest
import soundfile
from skipping import listed

from kdlib.audio_header import cut_short
from kdlib.manifests import BadAudio, Skipped, SkippedFile, check_audio, normalise_text, read_audio, read_header

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


@pytest.mark.parametrize("level, said", [(32768, "samples of 1[0-9]{4}, where 1 is full scale: .* volume=1/32768 -c:a"),
                                         (20, None)])
def test_float_samples_in_the_range_of_integers(tmp_path, level, said):
    """As scipy writes them: the features would be those of other audio than a device gives. Somewhat above 1 is clipping."""
    soundfile.write(tmp_path / "a.wav", level * NOISE, RATE, subtype="FLOAT")
    for check in (check_audio, lambda path: read_audio(path, RATE)):
        if said:
            with pytest.raises(BadAudio, match=said):
                check(tmp_path / "a.wav")
        else:
            check(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.sph", "A.SPH"])
def test_sphere_is_refused_where_lhotse_would_call_a_shell(tmp_path, name):
    soundfile.write(tmp_path / name, NOISE, RATE, format="NIST", subtype="PCM_16")
    for check in (check_audio, read_header, lambda path: read_audio(path, RATE)):
        with pytest.raises(BadAudio, match=f"{name} is NIST SPHERE, .* convert it to WAV or FLAC"):
            check(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "a.wav")  # under this name Lhotse reads it as libsndfile does
    assert check_audio(tmp_path / "a.wav").samples == 5 * RATE


def test_a_sound_mp3_is_checked_without_a_word_of_the_decoder(tmp_path, capfd):
    time = np.arange(15 * 22050) / 22050  # several blocks
    noise = np.random.default_rng(22050).standard_normal(len(time)) * np.sin(np.pi * time) ** 8
    soundfile.write(tmp_path / "a.mp3", np.sin(2 * np.pi * 440 * time) * 0.3 + noise * 0.1, 22050)
    assert check_audio(tmp_path / "a.mp3") == (len(time), 22050, 1)
    assert capfd.readouterr().err == ""


def test_raw_samples_tell_no_rate(tmp_path):
    for name in ("a.raw", "A.RAW", "a.vox", "a.gsm", "a.au", "a.snd"):  # by any name that libsndfile goes by
        (tmp_path / name).write_bytes(bytes(32000))
        for check in (check_audio, read_header, lambda path: read_audio(path, RATE)):
            with pytest.raises(BadAudio, match=f"{name} is by its name samples without a header, .*: convert it"):
                check(tmp_path / name)


def test_flac_that_was_written_to_a_pipe(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE, RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    for check in (check_audio, read_header, lambda path: read_audio(path, RATE)):
        with pytest.raises(BadAudio, match=r"a.flac does not tell its length in its header: write it again \(sox"):
            check(path)


@pytest.mark.parametrize("kind, subtype", [("wav", "GSM610"), ("au", "G721_32"), ("wav", "NMS_ADPCM_16"), ("xi", "DPCM_16")])
def test_what_can_be_decoded_from_its_start_alone_is_refused(tmp_path, kind, subtype):
    """Whole, too: Lhotse reads no such file."""
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, NOISE, RATE, format=kind, subtype=subtype)
    for check in (check_audio, read_header, lambda path: read_audio(path, RATE)):
        with pytest.raises(BadAudio, match=r"can be decoded from its start alone: convert it \(sox"):
            check(path)


@pytest.mark.parametrize("kind, subtype", [("wav", "PCM_16"), ("wav", "MS_ADPCM"), ("flac", "PCM_16"), ("ogg", "VORBIS")])
def test_what_can_be_decoded_from_anywhere(tmp_path, kind, subtype):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, NOISE, RATE, format=kind, subtype=subtype)
    assert check_audio(path).samples >= 5 * RATE


FORMATS = [("wav", "PCM_16"), ("wav", "IMA_ADPCM"), ("wavex", "PCM_24"), ("rf64", "PCM_16"), ("w64", "PCM_16"),
           ("aiff", "PCM_16"), ("caf", "PCM_16"), ("au", "PCM_16"), ("voc", "PCM_16"), ("nist", "PCM_16"),
           ("ogg", "VORBIS"), ("ogg", "OPUS")]


@pytest.mark.parametrize("kind, subtype", FORMATS)
def test_what_is_cut_short_and_what_is_whole(tmp_path, kind, subtype):
    path = tmp_path / "a"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 2))
    soundfile.write(path, samples, 16000, format=kind, subtype=subtype)
    assert cut_short(path) is None
    content = path.read_bytes()
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(content[:int(len(content) * share)])
        assert f"{path.stat().st_size} " in cut_short(path)
        with pytest.raises(BadAudio, match="is cut short: "):
            check_audio(path)
    for length in (*range(5, 80), 100, 500):  # in the middle of a header
        path.write_bytes(content[:length])
        cut_short(path)


def test_a_wav_file_of_the_other_byte_order_that_lacks_its_end(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 16000, endian="BIG")
    content = path.read_bytes()
    assert content[:4] == b"RIFX" and cut_short(path) is None
    path.write_bytes(content[:50_000])
    assert cut_short(path) == f"50000 of {len(content)} bytes"


def test_an_ogg_file_that_ends_with_a_page_but_not_the_last(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 96000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:content.rfind(b"OggS")])
    assert cut_short(path) == f"{path.stat().st_size} bytes, and the last page is not the end of the stream"


def wav(riff, data, sound, more=b""):
    """A WAV file of one channel whose header says these sizes."""
    return (struct.pack("<4sI4s4sIHHIIHH", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
            + struct.pack("<4sI", b"data", data) + sound + more)


SOUND = np.random.default_rng(0).integers(-3000, 3000, 5000).astype("<i2").tobytes()


@pytest.mark.parametrize("content, said", [
    (wav(1036, 1000, bytes(1000)), None),
    (wav(1044, 1000, bytes(1000)), None),  # the size of the file, not of what follows
    (wav(1036, 999, bytes(999)), None),  # without the byte that fills up
    (wav(1036, 2000, bytes(1000)), "1044 of 2044 bytes"),
    (wav(36, 0, b""), None),
    (wav(46, 0, b"", b"LIST" + struct.pack("<I", 2) + b"ab"), None),
    (wav(36, 0, bytes(1000)), "its header tells of no sound, and 1000 bytes follow: the recorder did not end in peace"),
    (wav(0, 0, bytes(1000)), "its header tells of no sound, and 1000 bytes follow: the recorder did not end in peace"),
    (wav(0, 0, b""), None),
    (wav(0xFFFFFFFF, 0xFFFFFFFF, bytes(1000)), None),  # streamed
    (wav(0x7FFFF024, 0x7FFFF000, bytes(1000)), None),  # by sox
    (wav(10036, 1000, SOUND), "its header tells of 1000 bytes of sound, and 9000 follow that belong to nothing"),
    (wav(1036, 999, SOUND), "its header tells of 999 bytes of sound, and 9001 follow"),
    (wav(6044, 1000, bytes(1000), b"LIST" + struct.pack("<I", 6000) + SOUND[:6000]), None),
    (wav(6044, 999, bytes(1000), b"LIST" + struct.pack("<I", 6000) + SOUND[:6000]), None),
    (wav(6044, 999, bytes(999), b"LIST" + struct.pack("<I", 6000) + SOUND[:6000]), None),  # again without that byte
    (wav(1036, 1000, bytes(1000), b"ID3\4" + SOUND), None),
    (wav(1036, 999, bytes(1000), b"ID3\4" + SOUND), None),
    (wav(1036, 1000, bytes(1000), b"APETAGEX" + SOUND), None),
    (wav(1036, 1000, bytes(1000), b"<?xml version=" + SOUND), None),
    (wav(1136, 1000, bytes(1100), b"LIST" + struct.pack("<I", 5000) + SOUND), None),
    (wav(1036, 1000, bytes(1000), SOUND[:4000]), None),  # as of some block that was not emptied
    (wav(1036, 1000, bytes(10000)), None),  # room that was never filled
])
def test_what_a_wav_file_says_of_itself(tmp_path, content, said):
    (tmp_path / "a.wav").write_bytes(content)
    found = cut_short(tmp_path / "a.wav")
    assert found is None if said is None else found.startswith(said)


def test_georgian_has_no_capitals():
    """Those that Unicode has for it stand in no transcript, and on few devices."""
    assert normalise_text(" გამარჯობა  abc ") == "გამარჯობა ABC" == normalise_text("ᲒᲐᲛᲐᲠᲯᲝᲑᲐ ABC")


def leave_out(folder, **items):
    """What a stage does that leaves out these items, (name, reason) each, of several sources."""
    file = SkippedFile(folder)
    for where, some in items.items():
        skipped = Skipped(file)
        for name, reason in some:
            skipped.add(name, reason)
        skipped.report(where)


def test_all_that_was_left_out_stands_in_a_file(tmp_path, capsys):
    """Not the first ones alone."""
    empty = [(f"u{number}", "its transcript is empty") for number in range(25)]
    leave_out(tmp_path, train=[*empty, ("a\tb", "two\nlines"), ("\udcff.wav", "x")], dev=[], test=empty[:1])
    assert listed(tmp_path) == [*(("train", *item) for item in empty), ("train", "a b", "two lines"),
                                ("train", "\udcff.wav", "x"), ("test", *empty[0])]
    printed = capsys.readouterr().out.splitlines()
    assert printed[9:11] == ["skipped u9: its transcript is empty", f"skipped 27 in all of train, see {tmp_path}/skipped.txt"]
    leave_out(tmp_path, train=[], dev=[])
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_the_file_is_a_new_one_when_it_says_something_new(tmp_path):
    times = []
    for reason in ("is missing", "is missing", "is empty"):
        leave_out(tmp_path, corpus=[("a", reason)])
        times.append((tmp_path / "skipped.txt").stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]
