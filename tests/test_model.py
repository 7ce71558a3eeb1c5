"""The streaming Conformer transducer: what a chunk may see, caches, weights that a student takes from its teacher."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib.compression import evenly_spaced_layers, init_from_teacher, least_missed_layers
from kdlib.config import ModelConfig
from kdlib.conformer import chunk_mask, subsampled_length
from kdlib.errors import RecipeError
from kdlib.transducer import Transducer

pytestmark = pytest.mark.both

VOCAB = 11


def tiny(**changes) -> ModelConfig:
    sizes = dict(num_features=16, subsampling_channels=4, encoder_dim=24, num_layers=3, num_heads=2, head_dim=8,
                 feedforward_dim=32, kernel_size=5, chunk_size=3, left_context=6, predictor_dim=20, joiner_dim=18,
                 dropout=0.0)
    return ModelConfig(**{**sizes, **changes})


def model_of(config: ModelConfig, seed: int = 0) -> Transducer:
    torch.manual_seed(seed)
    return Transducer(config, VOCAB).eval()


@pytest.mark.parametrize("frames", range(40))
def test_subsampled_length_is_what_the_convolutions_make(frames):
    if frames < 7:
        assert subsampled_length(frames) == subsampled_length(torch.tensor([frames])).item() == 0
        return
    model = model_of(tiny())
    assert model.encoder.subsampling(torch.zeros(1, frames, 16)).size(1) == subsampled_length(frames)
    assert subsampled_length(torch.tensor([frames])).tolist() == [subsampled_length(frames)]


@given(frames=st.integers(1, 30), chunk=st.integers(1, 7), left=st.integers(0, 12))
@settings(max_examples=60)
def test_chunk_mask_by_its_definition(frames, chunk, left):
    mask = chunk_mask(frames, chunk, left)
    for query in range(frames):
        start = query // chunk * chunk
        assert mask[query].nonzero().flatten().tolist() == list(range(max(0, start - left), min(frames, start + chunk)))


def test_chunk_mask_full_context_and_all_the_past():
    assert chunk_mask(5, 0, 3).all()
    assert chunk_mask(9, 3, -1)[8].all() and not chunk_mask(9, 3, -1)[0, 3]


@given(st.integers(1, 4), st.integers(0, 10 ** 6))
@settings(max_examples=15)
def test_cutting_the_audio_after_a_chunk_changes_nothing_before(chunks_kept, seed):
    config = tiny()
    model = model_of(config)
    torch.manual_seed(seed)
    audio = torch.randn(1, 4 * config.chunk_size * 6 + 3, 16)
    frames = 4 * config.chunk_size * chunks_kept + 3
    whole, _, _ = model.encoder(audio, torch.tensor([audio.size(1)]))
    part, lengths, _ = model.encoder(audio[:, :frames], torch.tensor([frames]))
    assert lengths.item() == chunks_kept * config.chunk_size
    torch.testing.assert_close(part, whole[:, :lengths.item()], rtol=0, atol=2e-6)


def test_what_comes_after_a_chunk_is_seen_within_it():
    """The counterpart of the test above: it would fail if the encoder ignored its right context inside a chunk."""
    config = tiny()
    model = model_of(config)
    audio = torch.randn(1, 4 * config.chunk_size * 2 + 3, 16)
    other = audio.clone()
    other[:, -3:] += 1.0  # the last frames of the second chunk
    first, _, _ = model.encoder(audio, torch.tensor([audio.size(1)]))
    second, _, _ = model.encoder(other, torch.tensor([audio.size(1)]))
    assert torch.equal(first[:, :config.chunk_size], second[:, :config.chunk_size])
    assert (first - second)[:, config.chunk_size].abs().max() > 1e-4


@pytest.mark.parametrize("chunk,left,kernel", [(3, 6, 5), (2, 1, 3), (4, 4, 9), (1, 8, 2)])
def test_chunk_by_chunk_with_caches_equals_the_masked_full_pass(chunk, left, kernel):
    config = tiny(chunk_size=chunk, left_context=left, kernel_size=kernel)
    encoder = model_of(config).encoder
    audio = torch.randn(3, 4 * chunk * 7 + 3, 16)
    whole, _, _ = encoder(audio, torch.full((3,), audio.size(1)))
    attention, convolution = encoder.initial_caches(3, audio)
    assert attention.shape == (3, left, 3, 2 * 2 * 8) and convolution.shape == (3, kernel - 1, 3, 24)
    for number in range(7):
        begin = 4 * chunk * number
        out, attention, convolution = encoder.streaming_forward(
            audio[:, begin:begin + 4 * chunk + 3], attention, convolution, torch.full((3,), chunk * number))
        torch.testing.assert_close(out, whole[:, chunk * number:chunk * (number + 1)], rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_long_utterance_is_the_same_in_chunks():
    """Three minutes, by attention as sharp as a trained one's: positions must not lose their precision on the way."""
    config = tiny(chunk_size=16, left_context=64)
    encoder = model_of(config).encoder
    for layer in encoder.layers:
        layer.attention.qkv.weight *= 3.0
    chunks = 281
    audio = torch.randn(1, 64 * chunks + 3, 16)
    whole, _, _ = encoder(audio, torch.tensor([audio.size(1)]))
    caches = encoder.initial_caches(1, audio)
    worst = 0.0
    for number in range(chunks):
        out, *caches = encoder.streaming_forward(audio[:, 64 * number:64 * number + 67], *caches, torch.tensor([16 * number]))
        worst = max(worst, float((out - whole[:, 16 * number:16 * (number + 1)]).abs().max()))
    assert worst < 1e-5


def test_padding_and_batching_change_nothing():
    model = model_of(tiny())
    audio = torch.randn(2, 90, 16)
    lengths = torch.tensor([90, 51])
    together, frames, _ = model.encoder(audio, lengths)
    alone, _, _ = model.encoder(audio[1:, :51], lengths[1:])
    torch.testing.assert_close(together[1:, :frames[1]], alone, rtol=0, atol=2e-6)


def test_features_are_normalised_by_the_stored_statistics():
    encoder = model_of(tiny()).encoder
    audio, mean, std = torch.randn(1, 40, 16), torch.randn(16), torch.rand(16) + 0.5
    plain = encoder.subsampling(audio)
    encoder.set_feature_statistics(mean, std)
    torch.testing.assert_close(encoder.subsampling(audio * std + mean), plain, rtol=0, atol=1e-5)
    encoder.set_feature_statistics(mean, torch.zeros(16))  # bins that never change
    assert torch.isfinite(encoder.subsampling(audio)).all()


def test_predictor_reads_no_symbol_as_zero_and_sees_two_labels():
    predictor = model_of(tiny()).predictor
    assert predictor.initial_context(2).tolist() == [[-1, 0], [-1, 0]]
    assert torch.equal(predictor.embed(torch.tensor([[-1]])), torch.zeros(1, 1, 20))
    symbols = torch.tensor([[3, 4, 5]])
    states = predictor.prefix(symbols)
    assert states.shape == (1, 4, 20)
    torch.testing.assert_close(states[:, 3:], predictor(torch.tensor([[4, 5]])))
    torch.testing.assert_close(states[:, :1], predictor(torch.tensor([[-1, 0]])))
    blank = predictor.embedding.weight[0] * predictor.conv.weight[:, 0, 1] + predictor.conv.bias
    torch.testing.assert_close(states[0, 0], blank.relu())


def test_the_joiner_adds_what_it_is_given():
    joiner, ours, theirs = model_of(tiny()).joiner, torch.randn(4, 1, 18), torch.randn(3, 18)
    want = (ours + theirs).tanh() @ joiner.out.weight.t() + joiner.out.bias
    torch.testing.assert_close(joiner(ours, theirs), want)


@pytest.mark.parametrize("blank", [0, 4])
def test_a_new_model_says_blank_nine_times_in_ten(blank):
    """Of every output layer; of the simple joiner both sides together."""
    model = Transducer(tiny(), VOCAB, blank)
    simple = model.simple_am(torch.zeros(24)) + model.simple_lm(torch.zeros(20))
    for logits in (model.joiner.out(torch.zeros(18)), model.ctc(torch.zeros(24)), simple):
        assert logits.softmax(-1)[blank].item() == pytest.approx(0.9, abs=0.01)


def test_parameter_count_leaves_training_heads_out():
    with_head, without = model_of(tiny()), model_of(tiny(ctc_head=False))
    assert with_head.parameter_counts() == without.parameter_counts()
    counts = with_head.parameter_counts()
    everything = sum(p.numel() for p in with_head.parameters())
    heads = sum(p.numel() for name, p in with_head.named_parameters() if name.startswith(("simple", "ctc")))
    assert counts["total"] == everything - heads == counts["encoder"] + counts["predictor"] + counts["joiner"]


@pytest.mark.parametrize("teacher,student,expected", [(6, 3, [0, 2, 5]), (4, 4, [0, 1, 2, 3]), (12, 2, [0, 11]),
                                                      (5, 3, [0, 2, 4]), (4, 1, [3]), (12, 4, [0, 4, 7, 11])])
def test_layers_are_evenly_spaced_first_and_last_kept(teacher, student, expected):
    assert evenly_spaced_layers(teacher, student) == expected


@pytest.mark.parametrize("student", [0, 5])
def test_impossible_layer_counts(student):
    with pytest.raises(RecipeError, match=f"a student of {student} layers cannot start from a teacher of 4"):
        evenly_spaced_layers(4, student)


def test_student_of_the_same_size_is_its_teacher():
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(), seed=2)
    teacher.encoder.set_feature_statistics(torch.randn(16), torch.rand(16) + 0.5)
    assert init_from_teacher(student, teacher) == [0, 1, 2]
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name


def test_fewer_layers_are_copied_whole():
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(num_layers=2), seed=2)
    assert init_from_teacher(student, teacher) == [0, 2]
    for name, value in teacher.encoder.layers[2].state_dict().items():
        assert torch.equal(value, student.encoder.layers[1].state_dict()[name]), name


def test_units_that_do_nothing_are_the_ones_cut():
    """Silence some units of every kind in the teacher: a student of just the other units computes the same."""
    config = tiny()
    teacher = model_of(config, seed=1)
    with torch.no_grad():
        for number, layer in enumerate(teacher.encoder.layers):
            for block in (layer.feed_forward1, layer.feed_forward2):
                dead = torch.arange(number, 32, 4)
                block.up.weight[dead] = 0
                block.up.bias[dead] = 0
                block.down.weight[:, dead] = 0
            attention, width = layer.attention, config.head_dim
            dead_head = number % 2
            rows = slice(dead_head * width, (dead_head + 1) * width)
            for part in range(3):
                attention.qkv.weight[part * 2 * width:][rows] = 0
                attention.qkv.bias[part * 2 * width:][rows] = 0
            attention.out.weight[:, rows] = 0
        subsampling = teacher.encoder.subsampling
        subsampling.conv1.weight[1] = 0
        subsampling.conv2.weight[:, 1] = 0
        subsampling.conv2.weight[2] = 0
        subsampling.out.weight[:, 2 * 3:3 * 3] = 0  # of 16 bins three are left
        teacher.joiner.out.weight[:, 4:10] = 0
        teacher.joiner.encoder_proj.weight[4:10] = 0
        teacher.joiner.predictor_proj.weight[4:10] = 0
        teacher.predictor.embedding.weight[:, 2:6] = 0
        teacher.predictor.conv.weight[2:6] = 0
        teacher.predictor.conv.bias[2:6] = 0
        teacher.joiner.predictor_proj.weight[:, 2:6] = 0
        teacher.simple_lm.weight[:, 2:6] = 0
    student = model_of(tiny(feedforward_dim=24, num_heads=1, joiner_dim=12, predictor_dim=16, subsampling_channels=3), seed=2)
    init_from_teacher(student, teacher)
    audio, lengths = torch.randn(2, 60, 16), torch.tensor([60, 60])
    symbols = torch.tensor([[1, 2, 3], [4, 5, 6]])
    outputs = []
    for model in (teacher, student):
        encoded, _, _ = model.encoder(audio, lengths)
        predicted = model.predictor.prefix(symbols)
        outputs.append(model.joiner(model.joiner.encoder_proj(encoded)[:, :, None],
                                    model.joiner.predictor_proj(predicted)[:, None]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-5)


def test_narrower_everything_runs_and_keeps_the_last_taps():
    teacher = model_of(tiny(), seed=1)
    student = model_of(tiny(num_layers=1, encoder_dim=16, num_heads=1, feedforward_dim=16, kernel_size=3,
                            predictor_dim=12, joiner_dim=10, subsampling_channels=3), seed=2)
    init_from_teacher(student, teacher)
    out, _, _ = student.encoder(torch.randn(1, 40, 16), torch.tensor([40]))
    assert torch.isfinite(out).all() and out.shape[-1] == 16
    taps = teacher.encoder.layers[2].convolution.depthwise.weight[:, 0, -3:]
    kept = student.encoder.layers[0].convolution.depthwise.weight[:, 0]
    assert all(any(torch.equal(row, tap) for tap in taps) for row in kept)


def taken(ours, theirs):
    """Which rows of a teacher's tensor a student's are, by their content."""
    equal = (ours.flatten(1)[:, None] == theirs.flatten(1)[None]).all(-1)
    assert (equal.sum(1) == 1).all()
    return equal.nonzero()[:, 1]


def test_one_choice_of_units_runs_through_every_tensor():
    """Both halves of the gate are of the channels that the convolution keeps, and all is of the same residual width."""
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(encoder_dim=16), seed=2)
    with torch.no_grad():
        for parameter in teacher.parameters():  # the norms' too
            parameter.normal_()
    init_from_teacher(student, teacher)
    width = taken(student.simple_am.weight.t(), teacher.simple_am.weight.t())
    assert torch.equal(student.encoder.subsampling.out.weight, teacher.encoder.subsampling.out.weight[width])
    assert torch.equal(student.joiner.encoder_proj.weight, teacher.joiner.encoder_proj.weight[:, width])
    for ours, theirs in zip(student.encoder.layers, teacher.encoder.layers):
        channels = taken(ours.convolution.depthwise.weight, theirs.convolution.depthwise.weight)
        halves = torch.cat([channels, 24 + channels])
        for norm in ("inner_norm.weight", "inner_norm.bias", "depthwise.bias"):
            assert torch.equal(ours.convolution.get_parameter(norm), theirs.convolution.get_parameter(norm)[channels])
        assert torch.equal(ours.convolution.gated.weight, theirs.convolution.gated.weight[halves][:, width])
        assert torch.equal(ours.convolution.gated.bias, theirs.convolution.gated.bias[halves])
        assert torch.equal(ours.convolution.out.weight, theirs.convolution.out.weight[width][:, channels])
        assert torch.equal(ours.attention.qkv.weight, theirs.attention.qkv.weight[:, width])
        assert torch.equal(ours.attention.out.weight, theirs.attention.out.weight[width])
        assert torch.equal(ours.feed_forward1.down.weight, theirs.feed_forward1.down.weight[width])
        assert torch.equal(ours.norm.weight, theirs.norm.weight[width])


def test_each_tensor_counts_alike_in_the_choice_of_units():
    """A large one says a little for the first half of the units, two small ones say much for the second."""
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(joiner_dim=9), seed=2)
    with torch.no_grad():
        joiner = teacher.joiner
        joiner.encoder_proj.weight.fill_(100.0)
        joiner.encoder_proj.weight[:9] = 101.0
        joiner.predictor_proj.weight[:9] *= 0.3
        joiner.out.weight[:, :9] *= 0.3
        for bias in (joiner.encoder_proj.bias, joiner.predictor_proj.bias):
            bias.fill_(1.0)
    init_from_teacher(student, teacher)
    assert torch.equal(student.joiner.out.weight, teacher.joiner.out.weight[:, 9:])


def test_units_are_chosen_by_their_norm():
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(joiner_dim=9), seed=2)
    with torch.no_grad():
        for layer in (teacher.joiner.encoder_proj, teacher.joiner.predictor_proj):
            layer.bias.fill_(1.0)
            layer.weight.zero_()
            layer.weight[:9, :4] = 1.0  # a norm of 2, and a larger sum
            layer.weight[9:, 0] = 3.0
    init_from_teacher(student, teacher)
    assert torch.equal(student.joiner.out.weight, teacher.joiner.out.weight[:, 9:])


def test_a_head_is_chosen_by_its_own_queries_keys_and_values():
    teacher, student = model_of(tiny(num_heads=3), seed=1), model_of(tiny(num_heads=1), seed=2)
    with torch.no_grad():
        for layer in teacher.encoder.layers:
            each = layer.attention.qkv.weight.view(3, 3, 8, 24)  # of queries, keys and values, three heads
            each[0] *= 2.0
            each[:, 1] *= 1.5
    init_from_teacher(student, teacher)
    for ours, theirs in zip(student.encoder.layers, teacher.encoder.layers):
        assert torch.equal(ours.attention.out.weight, theirs.attention.out.weight[:, 8:16])


def test_a_larger_student_is_refused():
    teacher, student = model_of(tiny()), model_of(tiny(feedforward_dim=40))
    with pytest.raises(RecipeError, match=r"layer 1 feed_forward1 \(40\) is larger than its teacher's \(32\)"):
        init_from_teacher(student, teacher)


@pytest.mark.parametrize("changes", [dict(num_features=24), dict(head_dim=4), dict(context_size=1)])
def test_what_cannot_be_cut_is_refused(changes):
    (name, ours), teacher = *changes.items(), model_of(tiny())
    with pytest.raises(RecipeError, match=f"model.{name} is {ours} in the student and {getattr(tiny(), name)} in its"):
        init_from_teacher(model_of(tiny(**changes)), teacher)
    with pytest.raises(RecipeError, match="the student has 7 tokens, its teacher 11"):
        init_from_teacher(Transducer(tiny(), 7), teacher)


def test_the_first_units_may_be_kept_instead():
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(feedforward_dim=8, joiner_dim=12), seed=2)
    init_from_teacher(student, teacher, units="first")
    ours, theirs = (model.encoder.layers[0].feed_forward1.up.weight for model in (student, teacher))
    assert torch.equal(ours, theirs[:8]) and torch.equal(student.joiner.out.weight, teacher.joiner.out.weight[:, :12])


def test_named_layers_are_taken():
    teacher, student = model_of(tiny(), seed=1), model_of(tiny(num_layers=2), seed=2)
    assert init_from_teacher(student, teacher, [1, 2]) == [1, 2]
    assert torch.equal(student.encoder.layers[0].norm.weight, teacher.encoder.layers[1].norm.weight)
    for layers in ([0], [0, 3], [0, 1, 2], [-1, 0]):
        with pytest.raises(RecipeError, match="cannot start from the layers"):
            init_from_teacher(student, teacher, layers)


def test_the_layers_that_are_missed_least_go():
    worth = {0: 5.0, 1: 0.1, 2: 3.0, 3: 0.2, 4: 4.0}
    asked = []

    def loss_of(kept):
        asked.append(list(kept))
        return -sum(worth[layer] for layer in kept)

    assert least_missed_layers(5, 3, loss_of) == [0, 2, 4]
    assert len(asked) == 5 + 4 and all(kept == sorted(kept) for kept in asked)
    assert least_missed_layers(3, 3, loss_of) == [0, 1, 2]
    with pytest.raises(RecipeError):
        least_missed_layers(3, 4, loss_of)


def test_a_loss_that_is_not_finite_chooses_no_layer():
    assert least_missed_layers(3, 2, lambda kept: 1.0 if kept == [0, 2] else math.nan) == [0, 2]
    with pytest.raises(RecipeError, match="the teacher's loss on the dev set is not finite"):
        least_missed_layers(6, 3, lambda kept: math.nan)
