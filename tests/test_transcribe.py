"""tools/transcribe.py as a command: files, standard input and the microphone, and what it cannot read."""

import fcntl
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from scripts import load
from untrained import LOCAL, own_words, script

from kdlib.errors import RecipeError
from kdlib.files import write_json
from kdlib.manifests import BadAudio, check_audio
from kdlib.sherpa import decode_ready, make_recognizer, read_model, seal, tail, words

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]
TRANSCRIBE = LOCAL.parent / "tools" / "transcribe.py"
START = ("import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
         f"sys.path.insert(0, {str(TRANSCRIBE.parent)!r}); "  # as Python does where the script itself is run
         f"runpy.run_path({str(TRANSCRIBE)!r}, run_name='__main__')")


def transcribe(exported, *words, code=0, start=START, **options):
    """Lines of standard output, and the errors; torch cannot be imported meanwhile."""
    done = subprocess.run([sys.executable, "-c", start, "transcribe.py", "--model", str(exported), *map(str, words)],
                          capture_output=True, **options)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout.decode().splitlines(), done.stderr.decode()


def test_transcribe_says_what_the_test_set_said(finished, exported):
    folder, _, _, cuts = finished
    files = [folder / f"{cut.id}.wav" for cut in cuts]
    for method in ("modified_beam_search", "greedy_search"):
        own = own_words(finished, method)
        want = [f"{file}: {' '.join(own[cut.id])}".rstrip(" ") for file, cut in zip(files, cuts)]
        for options in ([], ["--live"]):
            lines = [line.rstrip(" ") for line in transcribe(exported, *files, "--method", method, *options)[0]]
            if method != "greedy_search":  # where it has revised its words, those of the last line are right
                lines = list({line.split(":")[0]: line for line in lines}.values())
            assert lines == want
    for line, cut in zip(transcribe(exported, *files, "--timestamps")[0], cuts):
        times = [float(word[1:-1]) for word in line.split(": ")[-1].split()[::2]] if own[cut.id] else []
        assert times == sorted(times) and all(0 <= time <= cut.duration + 0.3 for time in times)
    raw, rate = soundfile.read(str(files[3]), dtype="int16")
    assert transcribe(exported, "-", input=raw.tobytes())[0][0].split(":", 1)[1] == want[3].split(":", 1)[1]


def test_transcribe_reads_what_there_is(finished, exported, tmp_path):
    """Two channels, nothing, samples that are no numbers, one channel of two, and two that cancel."""
    samples, _ = soundfile.read(str(finished[0] / "noise-3.wav"))
    broken = samples.copy()
    broken[100:200] = np.nan
    files = [tmp_path / f"{name}.wav" for name in ("stereo", "empty", "nan", "one", "inverse")]
    pairs = [np.stack([samples, factor * samples], 1) for factor in (1, 0, -0.95)]
    for file, audio in zip(files, (pairs[0], samples[:0], broken, *pairs[1:])):
        soundfile.write(str(file), audio, 16000, subtype="FLOAT")
    lines, errors = transcribe(exported, *files)
    assert [line.split(":")[0] for line in lines] == [str(file) for file in files]
    original = transcribe(exported, finished[0] / "noise-3.wav")[0][0].split(":", 1)[1]
    assert lines[0].split(":", 1)[1] == original and len(original) > 5
    assert f"warning: {files[1]} is empty" in errors
    assert f"warning: {files[2]}: 100 samples are not finite" in errors
    assert f"warning: {files[4]}: its channels cancel each other in their mean, which is heard: give one of them" in errors
    assert len(errors.splitlines()) == 3


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_audio_of_another_rate_is_heard_as_the_runtime_hears_it(exported, tmp_path, rate):
    samples = np.random.default_rng(rate).standard_normal(4 * rate) * 0.02 * (1 + np.sin(np.arange(4 * rate) * 18 / rate))
    soundfile.write(str(tmp_path / "other.wav"), samples, rate)
    about = read_model(exported)
    recognizer = make_recognizer(exported, about)
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, soundfile.read(str(tmp_path / "other.wav"), dtype="float32")[0])
    stream.accept_waveform(rate, tail(about, rate))
    stream.input_finished()
    while decode_ready(recognizer, stream):
        pass
    lines, errors = transcribe(exported, tmp_path / "other.wav")
    assert lines[0].split(": ", 1)[1].split() == words(recognizer, stream) and len(lines[0]) > 40 and errors == ""


@pytest.mark.parametrize("rate", [1000, 8000, 15999, 16000, 44100, 48000, 768000])
def test_blocks_at_another_rate_are_one_sound(rate):
    """Of any length each, a tone stays that tone, and as long as it was."""
    tool = load(TRANSCRIBE)
    tone = np.sin(np.arange(rate, dtype=np.float64) / rate * 2 * np.pi * 300).astype(np.float32)
    bounds = np.sort(np.random.default_rng(rate).integers(0, rate, 20))
    blocks = [np.concatenate(list(tool.resampled(pieces, rate, 16000, tool.Heard())))
              for pieces in ([tone], np.split(tone, bounds), [*np.split(tone[:40], 40), tone[40:]])]
    assert all(len(block) == 16000 for block in blocks)
    want = np.sin(np.arange(16000) / 16000 * 2 * np.pi * 300)
    for block in blocks:
        np.testing.assert_allclose(block, blocks[0], atol=1e-5)
        np.testing.assert_allclose(block[300:-300], want[300:-300], atol=0.02)


@pytest.mark.parametrize("rate", [22050, 44100])
def test_an_mp3_is_decoded_as_one_sound(tmp_path, capfd, rate):
    """Block by block as when read whole, and without a message of the decoder's."""
    time = np.arange(5 * rate) / rate
    noise = np.random.default_rng(rate).standard_normal(len(time)) * np.sin(np.pi * time) ** 8
    soundfile.write(str(tmp_path / "a.mp3"), np.sin(2 * np.pi * 440 * time) * 0.3 + noise * 0.1, rate)
    found, blocks = load(TRANSCRIBE).file_blocks(tmp_path / "a.mp3")
    whole, _ = soundfile.read(str(tmp_path / "a.mp3"), dtype="float32")
    np.testing.assert_allclose(np.concatenate(list(blocks)), whole, atol=1e-6)
    assert found == rate and capfd.readouterr().err == ""


class Ears:
    """A runtime of made-up words, each half a second of its own loudness, which it says 0.3 s after a word began, where the
    stream was given its beginning. A segment ends after a second without one, or with so many chunks as ``longest`` says."""

    FRAME, CHUNK = 640, 16 * 640

    def __init__(self, longest=1000):
        self.longest = longest

    def create_stream(self):
        stream = SimpleNamespace(samples=np.zeros(0, np.float32), taken=0, input_finished=lambda: None)
        stream.accept_waveform = lambda rate, samples: setattr(stream, "samples", np.concatenate([stream.samples, samples]))
        return stream

    def is_ready(self, stream):
        return len(stream.samples) > stream.taken + self.CHUNK

    def decode_stream(self, stream):
        stream.taken += self.CHUNK

    def said(self, stream):
        """(word, samples of the stream when it was said) of each."""
        steps = np.flatnonzero((stream.samples[1:] > 0) & (stream.samples[:-1] == 0)) + 1
        ends = [(f" {stream.samples[step]:.0f}", (step + 4800) // self.FRAME * self.FRAME) for step in steps]
        return [(word, end) for word, end in ends if end < stream.taken]

    def tokens(self, stream):
        return [word for word, _ in self.said(stream)]

    def timestamps(self, stream):
        return [end / 16000 for _, end in self.said(stream)]

    def is_endpoint(self, stream):
        said = self.said(stream)
        return bool(said) and stream.taken - said[-1][1] >= 16000 or stream.taken >= self.longest * self.CHUNK


def heard_by(ears, samples, capsys, **constants):
    """[(word, when it was said)] of transcribe()."""
    tool = load(TRANSCRIBE)
    vars(tool).update(constants)
    about = {"sampling_rate": 16000, "chunk_size": 16}
    args = SimpleNamespace(live=False, timestamps=True, method="greedy_search")
    tool.transcribe(ears, about, "made-up", 16000, iter([samples]), args)
    return [(word, float(when)) for when, word in re.findall(r" \[(\S+)\] (\S+)", capsys.readouterr().out)]


@pytest.mark.parametrize("pause", range(1, 41, 3))
def test_a_word_that_begins_where_a_segment_ends(capsys, pause):
    """Wherever in a chunk that is, it is heard, once, and at its time."""
    pause *= 800
    word, silence = np.ones(8000, np.float32), np.zeros(pause, np.float32)
    samples = np.concatenate([silence, *(part for number in (1, 2, 3, 4) for part in (word * number, silence))])
    heard = heard_by(Ears(), samples, capsys)
    assert [word for word, _ in heard] == ["1", "2", "3", "4"]
    for number, (_, when) in enumerate(heard):
        assert abs(when - (pause + number * (8000 + pause) + 4800) / 16000) <= 0.05


@pytest.mark.parametrize("begin", range(400, 48000, 3200))
def test_a_word_is_not_heard_again_where_the_length_ends_a_segment(capsys, begin):
    samples = np.zeros(64000, np.float32)
    samples[begin:begin + 8000] = 1
    heard = heard_by(Ears(longest=1), samples, capsys)
    assert [word for word, _ in heard] == ["1"] and abs(heard[0][1] - (begin + 4800) / 16000) <= 0.05


class KeenEars(Ears):
    """Takes what is left of a word for a word."""

    def said(self, stream):
        return super().said(SimpleNamespace(samples=np.append(np.float32(0), stream.samples), taken=stream.taken))


@pytest.mark.parametrize("begin", range(800, 16000, 1600))
def test_a_long_segment_ends_in_a_pause(capsys, begin):
    """The length would end it after 19.2 s, wherever that is; after each three words there is a pause, too short by itself."""
    parts = [np.zeros(begin, np.float32)]
    for number in range(1, 81):
        parts += [np.full(8000, number, np.float32), np.zeros(800 if number % 3 else 7200, np.float32)]
    heard = heard_by(KeenEars(longest=30), np.concatenate(parts), capsys, LONG=5)
    assert [word for word, _ in heard] == [str(number) for number in range(1, 81)]


def test_a_long_file_takes_no_more_memory(finished, exported, tmp_path):
    short = finished[0] / "noise-3.wav"
    samples, rate = soundfile.read(str(short), dtype="int16")
    soundfile.write(str(tmp_path / "long.wav"), np.tile(samples, 75), rate)  # five minutes: 19 MB in float32
    start = START + "; print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    peaks = []  # in kB; not by getrusage, which counts what the parent held when it started the process
    for file in (short, tmp_path / "long.wav"):
        lines = transcribe(exported, file, start=start)[0]
        peaks.append(int(lines[1].split()[1]))
    assert len(lines[0]) > 1000 and peaks[1] < peaks[0] + 10000


def test_transcribe_says_what_a_file_lacks(finished, exported, tmp_path):
    """Files that libsndfile reads to where they were cut without a word, and one that it does not."""
    samples, rate = soundfile.read(str(finished[0] / "noise-3.wav"))
    said = {"wav": r"is cut short: \d+ of 128044 bytes", "aiff": r"is cut short: \d+ of 128054 bytes",
            "ogg": r"is cut short: \d+ of at least \d+ bytes", "mp3": r"is cut short: \d+ of 64000 samples",
            "flac": r"is damaged: what follows \d\.00 s cannot be read"}
    whole, cut = [], []
    for kind in said:
        whole.append(tmp_path / f"whole.{kind}")
        cut.append(tmp_path / f"cut.{kind}")
        soundfile.write(str(whole[-1]), samples, rate)
        content = whole[-1].read_bytes()
        cut[-1].write_bytes(content[:len(content) * 3 // 4])
    bare, unended = tmp_path / "bare.wav", tmp_path / "unended.wav"
    content = whole[0].read_bytes()
    bare.write_bytes(content[:44])
    unended.write_bytes(content[:4] + bytes(4) + content[8:40] + bytes(4) + content[44:])  # sizes are written in the end
    assert "error" not in transcribe(exported, *whole)[1]
    lines, errors = transcribe(exported, *cut, bare, unended, code=1)
    assert [line.split(":")[0] for line in lines] == [str(file) for file in [*cut, bare, unended]]
    assert all(len(line.split(":", 1)[1]) > 3 for line in lines[:-2])  # what is there is heard
    for file, reason in zip(cut, said.values()):
        assert re.search(f"error: {re.escape(str(file))} {reason}", errors), (file, errors)
    assert f"{bare} is cut short: 44 of 128044 bytes; none of its sound was read" in errors
    assert f"{unended} is cut short: its header tells of no sound, and 128000 bytes follow" in errors
    assert "7 of 7 could not be transcribed in full" in errors


def uncounted(path, samples, tag, **options):
    """An MP3 without the first frame, which says how many there are; with a tag, as if of a cover."""
    soundfile.write(str(path), samples, 16000, format="MP3", **options)
    content = path.read_bytes()
    second = content.index(content[:2], 4)
    path.write_bytes(b"ID3\x03\0\0" + bytes([0, tag >> 14 & 127, tag >> 7 & 127, tag & 127]) + bytes(tag) + content[second:])
    return path


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_does_not_count_its_frames(exported, tmp_path, mode):
    noise = np.random.default_rng(0).standard_normal(32000) * 0.1
    rising, falling = (np.concatenate(parts) for parts in ([noise * 0, noise, noise], [noise, *([noise * 0] * 6)]))
    whole = uncounted(tmp_path / "whole.mp3", rising, 60000, bitrate_mode=mode)
    assert soundfile.info(str(whole)).frames > len(rising) + 50000  # by the bytes of the tag
    assert "error" not in transcribe(exported, whole)[1]
    assert len(rising) <= check_audio(whole).samples < len(rising) + 3000
    counted = tmp_path / "counted.mp3"
    soundfile.write(str(counted), rising, 16000, format="MP3", bitrate_mode=mode)
    counted.write_bytes(counted.read_bytes()[:-2000])
    if mode == "VARIABLE":  # the first frames are large, and what is beyond the guess is not read
        lacks = uncounted(tmp_path / "lacks.mp3", falling, 0, bitrate_mode=mode)
        said = rf"{lacks} does not count its frames, and \d+ of its 22\d+ samples can be read: convert it"
        assert re.search(said, transcribe(exported, lacks, code=1)[1])
        with pytest.raises(BadAudio, match=said):
            check_audio(lacks)
    assert re.search(rf"{counted} is cut short: \d+ of 96000 samples", transcribe(exported, counted, code=1)[1])
    with pytest.raises(BadAudio, match="is cut short: [0-9]+ of 96000 samples"):
        check_audio(counted)


def test_ogg_files_joined_to_one(finished, exported, tmp_path):
    file = tmp_path / "joined.ogg"
    for kind in ("VORBIS", "OPUS"):
        soundfile.write(str(file), *soundfile.read(str(finished[0] / "noise-3.wav")), format="OGG", subtype=kind)
        first = file.read_bytes()
        file.write_bytes(first + first)
        lines, errors = transcribe(exported, file, code=1)
        assert len(lines[0]) > len(f"{file}: ")  # the first is heard
        assert f"{file} is cut short: another stream begins after {len(first)} bytes, and the first alone is read" in errors
        with pytest.raises(BadAudio, match="another stream begins"):
            check_audio(file)


def test_flac_that_does_not_tell_its_length(finished, exported, tmp_path):
    file = tmp_path / "piped.flac"
    soundfile.write(str(file), *soundfile.read(str(finished[0] / "noise-3.wav")))
    content = bytearray(file.read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO count the samples
    content[22:26] = bytes(4)
    file.write_bytes(content)
    lines, errors = transcribe(exported, file, code=1)
    assert lines == [] and f"error: {file} does not tell its length in its header" in errors and "write it again" in errors


def test_samples_of_another_scale(finished, exported, tmp_path):
    """One sample beyond all bounds costs that sample, and integers in a file of floats are told."""
    samples, rate = soundfile.read(str(finished[0] / "noise-3.wav"), dtype="float32")
    huge, doubled, integers = samples.copy(), np.stack([samples, samples], 1), samples * 32768
    huge[1000] = 1e30
    doubled[1000] = np.inf, -np.inf
    for name, audio in {"huge": huge, "doubled": doubled, "integers": integers}.items():
        soundfile.write(str(tmp_path / f"{name}.wav"), audio, rate, subtype="FLOAT")
    lines, errors = transcribe(exported, *(tmp_path / f"{name}.wav" for name in ("huge", "doubled", "integers")))
    silenced = samples.copy()
    silenced[1000] = 0.0
    soundfile.write(str(tmp_path / "silenced.wav"), silenced, rate, subtype="FLOAT")
    want = transcribe(exported, tmp_path / "silenced.wav")[0][0].split(":", 1)[1]
    assert [line.split(":", 1)[1] for line in lines[:2]] == [want, want]
    assert errors.splitlines() == [
        *(f"warning: {tmp_path / name}.wav: 1 samples are not finite or beyond 65536, and were taken for silence"
          for name in ("huge", "doubled")),
        f"warning: {tmp_path / 'integers'}.wav: samples go up to {np.abs(integers).max():.0f} where 1 is full scale, as if "
        "they were integers: divide them, by 32768 for 16 bit"]


def test_what_standard_input_may_be(finished, exported):
    file = finished[0] / "noise-3.wav"
    raw = soundfile.read(str(file), dtype="int16")[0].tobytes()
    line = transcribe(exported, file)[0][0].replace(str(file), "-")
    lines, errors = transcribe(exported, "-", input=raw + b"x")
    assert lines == [line] and errors == "warning: -: the last byte is half a sample, and was left out\n"
    lines, errors = transcribe(exported, "-", input=b"")
    assert len(lines) == 1 and errors == "warning: -: there was no sound in it\n"
    lines, errors = transcribe(exported, "-", input=raw[:20])  # fewer bytes than are looked at
    assert len(lines) == 1 and errors == ""
    errors = transcribe(exported, "-", code=1, start="import os; os.close(0); import sys; sys.stdin = None; " + START)[1]
    assert "error: -: standard input is closed: pipe raw PCM into it" in errors
    assert "warning: --rate is of raw PCM on '-'" in transcribe(exported, file, "--rate", "8000")[1]


def test_a_pipe_that_does_not_block(monkeypatch):
    """As event loops make them: that nothing is there yet is not the end."""
    tool = load(TRANSCRIBE)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb") as source:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source))
        later = threading.Timer(0.5, lambda: (os.write(writer, b"\0\x40" * 1000), os.close(writer)))
        later.start()
        samples = np.concatenate(list(tool.standard_input(8000)))
        later.join()
    assert samples.tolist() == [0.5] * 1000


def test_files_on_standard_input(monkeypatch):
    """What is there by its first bytes; and samples that begin as the frame of an MP3 would."""
    tool = load(TRANSCRIBE)

    def blocks(content):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content))))
        return np.concatenate(list(tool.standard_input(8000)))

    for kind, name in {"WAV": "WAV", "RF64": "WAV", "FLAC": "FLAC", "OGG": "Ogg", "AIFF": "AIFF", "CAF": "CAF", "W64": "W64",
                       "AU": "AU", "NIST": "NIST SPHERE", "MP3": "MP3"}.items():
        content = io.BytesIO()
        soundfile.write(content, np.sin(np.arange(8000)), 8000, format=kind)
        with pytest.raises(RecipeError, match=rf"this is a file \({name}\), .* \(ffmpeg -i - -f s16le -ac 1 -ar 8000 -\)"):
            blocks(content.getvalue())
    for head, name in {b"RIFX": "WAV", b"ID3\4": "MP3", b"\x1aE\xdf\xa3": "WebM or Matroska",
                       b"\0\0\0\x20ftypM4A ": "MP4"}.items():
        with pytest.raises(RecipeError, match=f"this is a file .{name}."):
            blocks(head + bytes(100))
    assert blocks(b"\xff\xfb" + bytes(98)).tolist() == [-1025 / 32768] + [0.0] * 49


def test_samples_without_a_header(exported, tmp_path):
    """Whatever a file holds that libsndfile knows by its name alone; a header under such a name is heeded."""
    names = ["a.RAW", "a.vox", "a.gsm", "a.au", "a.snd"]
    for name in names:
        (tmp_path / name).write_text("this is no audio at all\n" * 2000)
    soundfile.write(str(tmp_path / "b.au"), np.zeros(16000), 16000)
    shutil.copy(tmp_path / "b.au", tmp_path / "b.vox")
    heard = [tmp_path / "b.au", tmp_path / "b.vox"]
    lines, errors = transcribe(exported, *(tmp_path / name for name in names), *heard, code=1)
    assert [line.split(":")[0] for line in lines] == [str(file) for file in heard]
    for name in names:
        assert re.search(rf"{re.escape(name)} is by its name samples without a header, .*: pipe it into '-', with its own "
                         rf"--rate.* < \S+{re.escape(name)}\), or convert it to WAV", errors), errors


def test_names_of_all_kinds(finished, exported, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.wav"
    shutil.copy(os.fsencode(finished[0] / "noise-1.wav"), name)
    os.mkfifo(tmp_path / "fifo.wav")
    done = subprocess.run([sys.executable, "-c", START, "transcribe.py", "--model", str(exported), name, str(tmp_path),
                           str(tmp_path / "fifo.wav")], capture_output=True)
    assert done.stdout.startswith(name + b": ") and b"Traceback" not in done.stderr
    assert f"error: {tmp_path} is a folder: give the files in it".encode() in done.stderr
    assert f"error: {tmp_path / 'fifo.wav'} is no regular file".encode() in done.stderr


@pytest.mark.parametrize("module, package", [("sherpa_onnx", "sherpa-onnx"), ("soundfile", "soundfile")])
def test_a_package_that_is_not_there(finished, exported, module, package):
    start = f"import sys; sys.modules[{module!r}] = None; " + START
    errors = transcribe(exported, finished[0] / "noise-1.wav", code=1, start=start)[1]
    assert f"the package {package} cannot be imported" in errors and f"pip install {package}" in errors


def test_whoever_reads_may_have_enough(finished, exported):
    command = [sys.executable, "-c", START, "transcribe.py", "--model", exported, finished[0] / "noise-1.wav", "--live"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.wait(60) and running.stderr.read() == b""


MICROPHONE = """
import os, signal, time
import soundfile

class PortAudioError(Exception):
    pass

class InputStream:
    def __init__(self, channels, dtype, samplerate):
        if "HEARD" not in os.environ:
            raise PortAudioError("Error querying device -1")
        self.samples, _ = soundfile.read(os.environ["HEARD"], dtype=dtype)
        assert channels == 1 and samplerate == 16000

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, count):
        if not len(self.samples):
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, while the microphone is silent
            time.sleep(60)
        block, self.samples = self.samples[:count], self.samples[count:]
        return block[:, None], len(self.samples) < int(os.environ.get("LOST", "0"))
"""


@pytest.mark.parametrize("options", [[], ["--live"]])
def test_ctrl_c_ends_the_microphone(finished, exported, tmp_path, options):
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    file = finished[0] / "noise-3.wav"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    lines, errors = transcribe(exported, "mic", *options, env={**os.environ, "PYTHONPATH": path, "HEARD": str(file)})
    assert lines == [transcribe(exported, file)[0][0].replace(str(file), "mic")] and len(lines[0]) > 10 and errors == ""


def test_sound_that_the_microphone_lost(finished, exported, tmp_path):
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "HEARD": str(finished[0] / "noise-3.wav"), "LOST": "4800"}
    errors = transcribe(exported, "mic", env=environment)[1]
    assert errors == ("warning: mic: 3 times sound was lost, since this machine did not keep up: take a smaller model or "
                      "--int8\n")


def test_a_microphone_that_cannot_be_opened(exported, tmp_path):
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "HEARD"}
    errors = transcribe(exported, "mic", code=1, env={**environment, "PYTHONPATH": path})[1]
    assert "error: the microphone cannot be opened at 16000 Hz (Error querying device -1)" in errors


def test_ctrl_c_ends_standard_input(finished, exported):
    file = finished[0] / "noise-3.wav"
    with subprocess.Popen([sys.executable, "-c", START, "transcribe.py", "--model", str(exported), "-"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdin.write(soundfile.read(str(file), dtype="int16")[0].tobytes())
        running.stdin.flush()
        unread = 1
        while unread:  # until all is taken out of the pipe, which stays open
            time.sleep(0.2)
            unread, = struct.unpack("i", fcntl.ioctl(running.stdin.fileno(), termios.FIONREAD, bytes(4)))
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0, running.stderr.read()
        assert running.stdout.read().decode() == transcribe(exported, file)[0][0].replace(str(file), "-") + "\n"


@pytest.mark.parametrize("rate", [0, 999, 999999999999])
def test_rates_that_no_audio_has(exported, tmp_path, rate):
    errors = transcribe(exported, "-", "--rate", rate, code=1, input=b"")[1]
    assert f"error: --rate: {rate} samples a second cannot be taken" in errors
    if 0 < rate < 2 ** 31:
        soundfile.write(str(tmp_path / "slow.wav"), np.zeros(50), rate)
        assert f"slow.wav: {rate} samples a second cannot be taken" in transcribe(exported, tmp_path / "slow.wav", code=1)[1]


def test_transcribe_names_what_it_cannot_read(finished, exported, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "nothing.wav").write_bytes(b"")
    good = finished[0] / "noise-1.wav"
    words = [tmp_path / "text.wav", good, tmp_path / "nothing.wav", tmp_path / "gone.wav"]
    lines, errors = transcribe(exported, *words, code=1)
    assert len(lines) == 1 and lines[0].startswith(f"{good}:")
    assert f"{tmp_path / 'text.wav'} cannot be read as audio" in errors
    assert f"{tmp_path / 'gone.wav'}: there is no such file" in errors and "3 of 4 could not be transcribed" in errors
    assert "model.json is missing" in transcribe(tmp_path, good, code=1)[1]


def test_features_that_the_model_does_not_take(finished, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    about = json.loads((folder / "model.json").read_text())
    write_json(folder / "model.json", seal(folder, {**about, "num_filters": 40}))
    done = script("decode_sherpa.py", "--model", folder, "--cuts", finished[0], "--test-sets", "test")
    assert done.returncode == 1 and "sherpa-onnx cannot run the model (" in done.stderr and "Traceback" not in done.stderr
    assert "error: sherpa-onnx cannot run the model (" in transcribe(folder, finished[0] / "noise-3.wav", code=1)[1]
