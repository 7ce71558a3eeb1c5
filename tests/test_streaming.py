"""Streams against the masked full pass: the same encoder outputs and the same words, whatever arrives when."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.config import DecodeConfig, ModelConfig
from kdlib.decoding import best_hypotheses, greedy_search, modified_beam_search
from kdlib.streaming import StreamingRecogniser
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]

VOCAB = 7


def model_of(seed: int) -> Transducer:
    torch.manual_seed(seed)
    model = Transducer(ModelConfig(num_features=16, subsampling_channels=4, encoder_dim=24, num_layers=2, num_heads=2,
                                   head_dim=8, feedforward_dim=32, kernel_size=5, chunk_size=4, left_context=8,
                                   predictor_dim=20, context_size=1 + seed % 3, joiner_dim=18), VOCAB).eval()
    with torch.no_grad():  # outputs that differ from frame to frame and prefer blank a little
        model.joiner.out.weight.normal_(0, 2.0)
        model.joiner.out.bias.zero_()
        model.joiner.out.bias[0] = 1.0
    return model


@given(st.data())
@settings(max_examples=30)
def test_streams_hear_what_the_full_pass_hears(data):
    model = model_of(data.draw(st.integers(0, 99)))
    chunk = data.draw(st.sampled_from([2, 4, 8, 16]))
    left = data.draw(st.integers(0, 20))
    lengths = data.draw(st.lists(st.integers(0, 150), min_size=1, max_size=4))
    # A beam of 20 is wider than what a young stream has to choose from.
    method, search, options = data.draw(st.sampled_from([("greedy_search", greedy_search, {}),
                                                         ("modified_beam_search", modified_beam_search, {"beam": 4}),
                                                         ("modified_beam_search", modified_beam_search, {"beam": 20})]))
    audio = [torch.randn(length, 16) for length in lengths]
    recogniser = StreamingRecogniser(model, chunk, left, DecodeConfig(method, **options))
    streams = [recogniser.create_stream() for _ in audio]
    places = [0] * len(audio)
    while not all(stream.ended for stream in streams):  # pieces of any length, in any order
        number = data.draw(st.sampled_from([n for n, stream in enumerate(streams) if not stream.ended]))
        step = data.draw(st.integers(1, 90))
        if places[number] >= lengths[number]:
            streams[number].end()
        else:
            streams[number].accept(audio[number][places[number]:places[number] + step])
            places[number] += step
        if data.draw(st.booleans()):
            recogniser.run(streams)
    recogniser.run(streams)

    for features, stream in zip(audio, streams):
        padded = torch.nn.functional.pad(features, (0, 0, 0, max(0, 7 - len(features))))
        encoded, frames, _ = model.encoder(padded[None], torch.tensor([len(features)]), chunk, left)
        assert list(stream.result.tokens) == search(model, encoded, frames, **options)[0]
        (whole,) = best_hypotheses(model, encoded, frames, DecodeConfig(method, **options))
        assert stream.result.frames == whole.frames and stream.result.score == pytest.approx(whole.score, abs=1e-3)
        assert stream.search.num_frames == frames.item()
        assert len(stream.result.frames) == len(stream.result.tokens)
        assert list(stream.result.frames) == sorted(stream.result.frames) and \
            all(0 <= frame < frames.item() for frame in stream.result.frames)


@pytest.mark.parametrize("milliseconds", [80, 160, 320, 640])
@pytest.mark.parametrize("left", [0, 5, 64])
def test_encoder_outputs_chunk_by_chunk(milliseconds, left):
    model, chunk = model_of(1), milliseconds // 40
    lengths = [203, 7, 64 + 3, 150]
    outputs = [[] for _ in lengths]
    recogniser = StreamingRecogniser(model, chunk, left)
    recogniser.search = type("Keeps", (recogniser.search,), {"advance": staticmethod(
        lambda searches, model, encoded, counts, **options: keep(searches, encoded, counts))})

    def keep(searches, encoded, counts):
        for search, rows, count in zip(searches, encoded, counts.tolist()):
            outputs[owners[search]].append(rows[:count])
            search.num_frames += count

    audio = [torch.randn(length, 16) for length in lengths]
    streams = [recogniser.create_stream() for _ in audio]
    owners = {stream.search: number for number, stream in enumerate(streams)}
    for features, stream in zip(audio, streams):
        stream.accept(features)
        stream.end()
    recogniser.run(streams)
    for features, got in zip(audio, outputs):
        want, _, _ = model.encoder(features[None], torch.tensor([len(features)]), chunk, left)
        torch.testing.assert_close(torch.cat(got), want[0], rtol=0, atol=1e-4)


def test_what_a_stream_refuses():
    recogniser = StreamingRecogniser(model_of(0))
    stream = recogniser.create_stream()
    stream.end()
    assert not recogniser.ready(stream) and stream.result.tokens == ()
    with pytest.raises(ValueError, match="the stream has ended"):
        stream.accept(torch.zeros(1, 16))
    with pytest.raises(ValueError, match="a stream has no chunk to run"):
        recogniser.decode([stream])
    recogniser.decode([])
    young, same = recogniser.create_stream(), recogniser.create_stream()
    features = torch.randn(40, 16)
    young.accept(features[:18])
    with pytest.raises(ValueError, match="a stream has no chunk to run"):
        recogniser.decode([young])
    young.accept(features[18:19])
    assert recogniser.ready(young)  # no sooner and no later
    young.accept(features[19:])  # what it had is not lost
    same.accept(features)
    recogniser.run([young, same])
    assert young.result.tokens == same.result.tokens and young.search.num_frames == 8
    short = recogniser.create_stream()
    short.accept(features[:6])
    short.end()
    assert not recogniser.ready(short)  # the subsampling makes nothing of them
    with pytest.raises(ValueError, match="streams need chunks: chunk_size is 0"):
        StreamingRecogniser(model_of(0), chunk_size=0)
    with pytest.raises(ValueError, match="streams need chunks: chunk_size is 4, left_context -1"):
        StreamingRecogniser(model_of(0), left_context=-1)
