"""tools/transcribe.py with a runtime that is stood in for: the samples that it is given, and its tokens as words."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from scripts import load

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]
TRANSCRIBE = Path(__file__).resolve().parents[1] / "tools" / "transcribe.py"


class EveryThird:
    """Stands in for sherpa-onnx: a chunk at a time, a word with the last frame of each, and with each third one a segment ends,
    so that nothing is left to hear again."""

    def __init__(self, chunk):
        self.chunk, self.heard = chunk, []

    def create_stream(self):
        stream = SimpleNamespace(samples=np.zeros(0), words=0, input_finished=lambda: None)
        stream.accept_waveform = lambda rate, more: setattr(stream, "samples", np.concatenate([stream.samples, more]))
        return stream

    def is_ready(self, stream):
        return len(stream.samples) > self.chunk

    def decode_stream(self, stream):
        self.heard.append(stream.samples[:self.chunk])
        stream.samples, stream.words = stream.samples[self.chunk:], stream.words + 1

    def is_endpoint(self, stream):
        return stream.words == 3

    def tokens(self, stream):
        return [f" w{number}" for number in range(stream.words)]

    def timestamps(self, stream):
        return [0.64 * number + 0.6 for number in range(stream.words)]


ABOUT = {"sampling_rate": 16000, "chunk_size": 16}


def hear(recognizer, rate, blocks, **options):
    """What tools/transcribe.py does with a runtime that is stood in for."""
    options = SimpleNamespace(**{"live": False, "timestamps": False, "method": "greedy_search", **options})
    load(TRANSCRIBE).transcribe(recognizer, ABOUT, "a.wav", rate, blocks, options)


def test_a_new_segment_begins_where_the_last_one_ended(capsys):
    recognizer = EveryThird(10240)
    audio = np.random.default_rng(0).standard_normal(80000).astype(np.float32)
    hear(recognizer, 16000, iter(np.split(audio, [12345, 50000])), timestamps=True)
    np.testing.assert_allclose(np.concatenate(recognizer.heard)[:len(audio)], audio, atol=1e-6)
    times = [float(word[1:-1]) for word in capsys.readouterr().out.split()[1::2]]
    assert times == pytest.approx([0.64 * number + 0.6 for number in range(len(recognizer.heard))], abs=0.006)
    assert len(times) > 6


def test_segments_at_a_rate_of_no_whole_frames(monkeypatch, capsys):
    """At 22050 Hz the runtime's frames are 220 samples apart, not 220.5: what it has not seen goes to the next segment."""
    monkeypatch.setitem(ABOUT, "sampling_rate", 22050)
    recognizer = EveryThird(64 * 220)
    audio = np.random.default_rng(0).standard_normal(200000).astype(np.float32)
    hear(recognizer, 22050, iter([audio]))
    np.testing.assert_array_equal(np.concatenate(recognizer.heard)[:len(audio)], audio)


@pytest.mark.parametrize("rate, frame", [(22050, 220), (11025, 110), (16000, 160)])
def test_times_at_a_rate_of_no_whole_frames(monkeypatch, capsys, rate, frame):
    """The runtime's clock counts 10 ms for each frame: in 100 seconds of one segment it would be 0.23 ahead."""
    monkeypatch.setitem(ABOUT, "sampling_rate", rate)
    recognizer = EveryThird(64 * frame)
    recognizer.is_endpoint = lambda stream: False
    hear(recognizer, rate, iter([np.zeros(100 * rate, np.float32)]), timestamps=True)
    times = [float(word[1:-1]) for word in capsys.readouterr().out.split()[1::2]]
    assert times == pytest.approx([(64 * number + 60) * frame / rate for number in range(len(times))], abs=0.006)
    assert times[-1] > 98


def given(path):
    """The samples that a file gives to the runtime, without the silence after them."""
    recognizer = EveryThird(10240)
    hear(recognizer, *load(TRANSCRIBE).file_blocks(path))
    return np.concatenate(recognizer.heard)


def sound(rate):
    """Three seconds of tones below 4 kHz that swell and fade: the same sound at any rate."""
    time = np.arange(3 * rate) / rate
    return sum(np.sin(2 * np.pi * tone * time) for tone in (310, 1270, 2900)) * np.sin(np.pi * time / 3) ** 2 * 0.25


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_any_rate_gives_the_runtime_the_same_sound(tmp_path, rate):
    soundfile.write(str(tmp_path / "a.wav"), np.stack([sound(rate), sound(rate)], 1), rate, subtype="FLOAT")
    samples = given(tmp_path / "a.wav")
    np.testing.assert_allclose(samples[:48000], sound(16000), atol=2e-3)
    assert not np.abs(samples[48100:]).max() > 2e-3  # then silence


def test_silence_clipping_and_no_numbers_as_the_runtime_gets_them(tmp_path):
    clipped, broken = np.sign(sound(16000)), sound(16000)
    broken[100:200], broken[300] = np.nan, np.inf
    for name, audio in {"silent": np.zeros(48000), "clipped": clipped, "broken": broken}.items():
        soundfile.write(str(tmp_path / f"{name}.wav"), audio, 16000, subtype="FLOAT")
    assert not given(tmp_path / "silent.wav").any()
    np.testing.assert_allclose(given(tmp_path / "clipped.wav")[:48000], clipped, atol=1e-6)
    broken[100:200] = broken[300] = 0.0
    np.testing.assert_allclose(given(tmp_path / "broken.wav")[:48000], broken, atol=1e-6)


class Says(EveryThird):
    """A token a chunk, those that it was told; and what was printed before each."""

    def __init__(self, tokens, printed):
        super().__init__(10240)
        self.said, self.printed, self.shown = tokens, printed, [""]

    def decode_stream(self, stream):
        super().decode_stream(stream)
        self.shown.append(self.shown[-1] + self.printed())

    def is_endpoint(self, stream):
        return False

    def tokens(self, stream):
        return self.said[:stream.words]


@pytest.mark.parametrize("tokens, text, early, timed", [
    ("我 们 说 HE LLO 再 见", " 我们说HELLO再见", " 我们", " [0.60] 我 [1.24] 们 [1.88] 说 [2.52] HELLO [3.80] 再 [4.44] 见"),
    ("▁你好 吗 ▁O K ▁ か な", " 你好吗 OK かな", " 你好吗", " [0.60] 你 [0.60] 好 [1.24] 吗 [1.88] OK [3.16] か [4.44] な"),
])
def test_characters_that_no_blank_divides_are_words(capsys, tokens, text, early, timed):
    for options, want in (({}, text), ({"live": True}, text), ({"timestamps": True}, timed)):
        recognizer = Says(tokens.split(), lambda: capsys.readouterr().out)
        hear(recognizer, 16000, iter([np.zeros(10240 * 7, dtype=np.float32)]), **options)
        assert recognizer.shown[-1] + capsys.readouterr().out == f"a.wav:{want}\n"
        if "live" in options:
            assert recognizer.shown[4] == f"a.wav:{early}"  # of three tokens: the last word may go on


class Revises(Says):
    """The whole text after each chunk, as a beam search has it: of other words than before, now and then."""

    def tokens(self, stream):
        return [f"▁{word}" for word in self.said[min(stream.words, len(self.said)) - 1].split()] if stream.words else []


@pytest.mark.parametrize("said, printed", [
    (["I", "I SC", "I SCREAM", "I SCREAM FOR", "ICE CREAM FOR", "ICE CREAM FOR ME", "ICE CREAM FOR ME"],
     ["a.wav: I SCREAM", "a.wav: ICE CREAM FOR ME"]),  # shown, and revised
    (["A", "A B C D", "A C D", "A C D", "A C D E", "A C D E F", "A C D E F"], ["a.wav: A C D E F"]),  # B was not there twice
    (["A", "A B", "A B C", "A B C", "A B", "A", "A"], ["a.wav: A B", "a.wav: A"]),  # there was nothing after all
])
def test_words_that_a_beam_search_revises(capsys, said, printed):
    blocks = [np.zeros(10240 * 7, dtype=np.float32)]
    for options in ({}, {"live": True}):
        recognizer = Revises(said, lambda: capsys.readouterr().out)
        hear(recognizer, 16000, iter(blocks), method="modified_beam_search", **options)
        lines = (recognizer.shown[-1] + capsys.readouterr().out).splitlines()
        assert lines == (printed if options else printed[-1:])
