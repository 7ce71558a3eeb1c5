"""The Conformer against its definition, written out frame by frame; where it drops out, and what it begins with."""

import math

import pytest
import torch
from test_model import model_of, tiny
from torch.nn import functional as F

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


def feed_forward(block, x):
    return block.down(F.silu(block.up(block.norm(x))))


def attention(block, x, chunk, left):
    """Each frame sees its chunk and what stands up to ``left`` frames before it; positions are angles in the plane."""
    heads, width, frames = block.num_heads, block.head_dim, len(x)
    query, key, value = block.qkv(block.norm(x)).view(frames, 3, heads, width).unbind(1)
    speed = torch.tensor([10000.0 ** (-2 * d / width) for d in range(width // 2)], dtype=torch.float64)
    query, key = (torch.complex(part[..., :width // 2], part[..., width // 2:]) for part in (query, key))
    rows = []
    for t in range(frames):
        begin = t // chunk * chunk if chunk else 0
        seen = range(max(0, begin - left), min(frames, begin + chunk) if chunk else frames)
        of_heads = []
        for h in range(heads):
            turns = [torch.polar(torch.ones_like(speed), (t - s) * speed) for s in seen]
            scores = torch.stack([(query[t, h] * turn * key[s, h].conj()).sum().real for s, turn in zip(seen, turns)])
            weight = (scores / math.sqrt(width)).softmax(0)
            of_heads.append(sum(w * value[s, h] for w, s in zip(weight, seen)))
        rows.append(block.out(torch.cat(of_heads)))
    return torch.stack(rows)


def convolution(block, x):
    """Each frame is mixed with those before it, and silence before the first."""
    gated, gate = block.gated(block.norm(x)).chunk(2, dim=-1)
    inner = gated * torch.sigmoid(gate)
    taps = block.depthwise.weight[:, 0].t()  # (kernel_size, C), the last for the frame itself
    rows = [sum(tap * inner[t - past] for past, tap in enumerate(taps.flip(0)) if t >= past) + block.depthwise.bias
            for t in range(len(x))]
    return block.out(F.silu(block.inner_norm(torch.stack(rows))))


def written_out(encoder, features, chunk, left):
    """The output of each layer (T, C) for the features (T0, F) of one utterance."""
    front = encoder.subsampling
    x = (features - front.mean) * front.inverse_std
    for conv in (front.conv1, front.conv2):
        x = F.relu(F.conv2d(x if x.dim() == 3 else x[None], conv.weight, conv.bias, stride=2))
    x = front.out(torch.stack([x[:, t].flatten() for t in range(x.size(1))]))
    outputs = []
    for layer in encoder.layers:
        x = x + feed_forward(layer.feed_forward1, x) / 2
        x = x + attention(layer.attention, x, chunk, left)
        x = x + convolution(layer.convolution, x)
        x = layer.norm(x + feed_forward(layer.feed_forward2, x) / 2)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("chunk, left", [(None, None), (4, 0), (2, 3), (0, 5)])
@torch.no_grad()
def test_the_encoder_by_its_definition(chunk, left):
    """Of an utterance and of a shorter one padded to its length, which ends within a chunk."""
    encoder = model_of(tiny(num_layers=2)).encoder.double()
    for name, parameter in encoder.named_parameters():  # the norms and the biases are no longer the identity
        parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    encoder.set_feature_statistics(torch.randn(16), torch.rand(16) + 0.5)
    audio = torch.randn(2, 50, 16, dtype=torch.float64)
    outputs, lengths, (second, first) = encoder(audio, torch.tensor([50, 35]), chunk, left, layers=(1, 0))
    assert lengths.tolist() == [11, 8] and torch.equal(second, outputs)
    for row, (features, length) in enumerate(zip((audio[0], audio[1, :35]), lengths)):
        want = written_out(encoder, features, *((3, 6) if chunk is None else (chunk, left)))
        for got, layer in zip((first, second), want):
            torch.testing.assert_close(got[row, :length], layer)


@torch.no_grad()
def test_an_encoder_that_runs_a_part_of_its_layers():
    encoder, run = model_of(tiny(num_layers=3)).encoder, []
    audio, lengths = torch.randn(2, 50, 16), torch.tensor([50, 35])
    _, frames, (first, second) = encoder(audio, lengths, layers=(0, 1))
    for number, layer in enumerate(encoder.layers):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    part, same_frames, (again,) = encoder(audio, lengths, layers=(0,), depth=2)
    assert torch.equal(part, second) and torch.equal(again, first) and torch.equal(same_frames, frames)
    assert run == [0, 1]


def test_every_dropout_takes_part_in_a_training():
    encoder = model_of(tiny(dropout=0.1)).encoder.train()
    every = {name: module for name, module in encoder.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert len(every) == 1 + 4 * 3 and all(module.p == 0.1 for module in every.values())
    asked = set()
    for name, module in every.items():
        module.register_forward_hook(lambda *_, name=name: asked.add(name))
    encoder(torch.randn(1, 40, 16), torch.tensor([40]))
    assert asked == set(every)


def test_a_new_subsampling_keeps_the_variance_of_its_features():
    model = model_of(tiny(num_features=80, subsampling_channels=32, encoder_dim=96))
    out = model.encoder.subsampling(torch.randn(4, 100, 80))
    assert 0.75 < out.std().item() < 1.33  # torch's own initialisation: a tenth
