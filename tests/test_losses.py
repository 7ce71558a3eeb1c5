"""The invariants that every distillation loss is held to, in float64, and plain references for their values."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdlib import losses
from kdlib.config import MAX_TEMPERATURE, DistillTerm, LossConfig
from kdlib.errors import RecipeError
from kdlib.losses import REGISTRY, collapsed_kl, encoder_mse, find_loss, lattice_kl, lattice_kl_at

pytestmark = pytest.mark.both

INF = float("inf")
quick = settings(max_examples=40)


def lattice(seed: int, vocab: int = 5, num: int = 2, frames: int = 4, nodes: int = 3):
    """Random logits of both models, next labels (blank at some nodes) and a mask with unequal utterances."""
    generator = torch.Generator().manual_seed(seed)
    shape = num, frames, nodes
    student, teacher = (3 * torch.randn(*shape, vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, vocab, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[:, 0, 0] = True
    return student, teacher, labels, mask


@given(st.integers(0, 10 ** 6), st.integers(2, 7), st.sampled_from([0.5, 1.0, 2.0]))
@quick
def test_collapsed_is_between_zero_and_the_full_divergence(seed, vocab, temperature):
    student, teacher, labels, mask = lattice(seed, vocab)
    full = lattice_kl(student, teacher, mask, temperature)
    collapsed = collapsed_kl(student, teacher, labels, mask, 0, temperature)
    assert -1e-12 <= collapsed <= full + 1e-12


@given(st.integers(0, 10 ** 6), st.integers(2, 7))
@quick
def test_agreement_costs_nothing_and_has_no_gradient(seed, vocab):
    student, _, labels, mask = lattice(seed, vocab)
    student.requires_grad_()
    for value in (lattice_kl(student, student.detach(), mask), collapsed_kl(student, student.detach(), labels, mask)):
        assert abs(value.item()) < 1e-12
        gradient, = torch.autograd.grad(value, student)
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("blank", [0, 3])
def test_values_by_their_definitions(blank):
    student, teacher, labels, mask = lattice(3)
    tau = 2.0
    p, q = (student / tau).softmax(-1), (teacher / tau).softmax(-1)
    full, collapsed = [], []
    for n in range(p.size(0)):
        f, c = [], []
        for t, r in mask[n].nonzero().tolist():
            a, b, y = q[n, t, r], p[n, t, r], int(labels[n, t, r])
            f.append((a * (a / b).log()).sum())
            classes = [a[blank], b[blank]], [1 - a[blank], 1 - b[blank]]
            if y != blank:
                classes = [a[blank], b[blank]], [a[y], b[y]], [1 - a[blank] - a[y], 1 - b[blank] - b[y]]
            c.append(sum(x * (x / z).log() for x, z in classes))
        full.append(torch.stack(f).mean())
        collapsed.append(torch.stack(c).mean())
    torch.testing.assert_close(lattice_kl(student, teacher, mask, tau), tau ** 2 * torch.stack(full).mean())
    torch.testing.assert_close(collapsed_kl(student, teacher, labels, mask, blank, tau),
                               tau ** 2 * torch.stack(collapsed).mean())


@pytest.mark.parametrize("vocab", [2, 3, 5])
def test_gradients_match_finite_differences(vocab):
    student, teacher, labels, mask = lattice(5, vocab)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: lattice_kl(s, teacher, mask, 1.5), (student,))
    assert torch.autograd.gradcheck(lambda s: collapsed_kl(s, teacher, labels, mask, 0, 1.5), (student,))
    encoder = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda e: encoder_mse(e, target, torch.tensor([4, 2])), (encoder,))


def test_the_teacher_gets_no_gradient():
    student, teacher, labels, mask = lattice(7)
    teacher.requires_grad_()
    student.requires_grad_()
    encoder = torch.randn(2, 4, 3, requires_grad=True)
    target = torch.randn(2, 4, 3, requires_grad=True)
    other = lattice_kl_at(student, teacher.float()).sum()  # of two dtypes, which the compiled loops do not take
    (lattice_kl(student, teacher, mask) + collapsed_kl(student, teacher, labels, mask) + other
     + encoder_mse(encoder, target, torch.tensor([4, 2]))).backward()
    assert teacher.grad is None and target.grad is None
    assert student.grad is not None and encoder.grad is not None


@given(st.integers(0, 10 ** 6))
@quick
def test_padding_and_batching_change_nothing(seed):
    student, teacher, labels, mask = lattice(seed)
    lengths = torch.tensor([4, 2])
    encoders = torch.randn(2, 2, 4, 3, dtype=torch.float64)

    def losses(rows, pad):
        def padded(x, axes=(1, 2)):
            x = x[rows]
            for axis in axes:
                shape = list(x.shape)
                shape[axis] = pad
                filler = torch.zeros(shape, dtype=x.dtype) if x.dtype in (torch.bool, torch.int64) else \
                    torch.full(shape, 9.0, dtype=x.dtype)
                x = torch.cat([x, filler], dim=axis)
            return x
        s, t, y, m = padded(student), padded(teacher), padded(labels), padded(mask)
        return torch.stack([lattice_kl(s, t, m), collapsed_kl(s, t, y, m),
                            encoder_mse(padded(encoders[0], (1,)), padded(encoders[1], (1,)), lengths[rows])])

    together, padded = losses([0, 1], 0), losses([0, 1], 3)
    alone = (losses([0], 1) + losses([1], 2)) / 2
    torch.testing.assert_close(together, padded)
    torch.testing.assert_close(together, alone)


def test_near_certainty_keeps_the_rest():
    """1 - p_y - p_b would be 0 in float32 here; the rest's share must still be seen."""
    student = torch.tensor([30.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    teacher = torch.tensor([30.0, 0.0, 5.0, 0.0]).view(1, 1, 1, 4)
    value = collapsed_kl(student, teacher, torch.ones(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.bool))
    assert torch.isfinite(value) and value > 0


def test_registry_names_an_unknown_loss():
    with pytest.raises(RecipeError, match="unknown loss 'kl'; known are best_path_kl, collapsed_kl"):
        find_loss("kl")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_divergence_is_the_plain_one(dtype, monkeypatch):
    torch.manual_seed(1)
    student, teacher = (4 * torch.randn(2, 3, 4, 70, dtype=dtype) for _ in range(2))
    student[0, 0, 0, 5] = teacher[0, 0, 0, 5] = -INF  # no token for either
    teacher[0, 1, 0, 7] = -INF  # for the teacher alone
    student.requires_grad_()
    weight = torch.randn(2, 3, 4, dtype=dtype)

    def both():
        value = lattice_kl_at(student, teacher, 1.7)
        return value, torch.autograd.grad((value * weight).sum(), student)[0]

    compiled = both()
    monkeypatch.setattr(losses.cpu, "available", lambda: False)
    for one, other in zip(compiled, both()):
        tolerance = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(one, other, **tolerance)


def test_second_derivatives_of_the_compiled_divergence_are_refused():
    """What was computed by hand would count as constant, and the second derivative be wrong without a word."""
    torch.manual_seed(1)
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    value = lattice_kl_at(student, teacher).sum()
    with pytest.raises(RuntimeError, match="first derivatives only.* create_graph=True"):
        torch.autograd.grad(value, student, create_graph=True)
    assert torch.autograd.grad(value, student)[0].abs().sum() > 0  # the first is still to be had


def test_what_only_the_student_excludes_is_infinitely_far():
    student, teacher = torch.zeros(1, 3), torch.zeros(1, 3)
    student[0, 1] = -INF
    assert lattice_kl_at(student, teacher).item() == INF


ENCODER_LOSSES = {name: loss for name, loss in REGISTRY.items() if isinstance(loss, losses.EncoderLoss)}


@pytest.mark.parametrize("name", ENCODER_LOSSES)
@given(seed=st.integers(0, 10 ** 6), temperature=st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=20)
def test_invariants_of_the_encoder_losses(name, seed, temperature):
    between = ENCODER_LOSSES[name].between
    torch.manual_seed(seed)
    student, teacher = (torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(2))
    lengths = torch.tensor([5, 3])
    value = between(student, teacher, lengths, temperature)
    assert value >= 0 and abs(between(teacher, teacher, lengths, temperature)) < 1e-12
    # Padding an utterance, and batching it, change nothing.
    student[1, 3:], teacher[1, 3:] = 7.0, -9.0
    torch.testing.assert_close(between(student, teacher, lengths, temperature), value)
    alone = [between(student[n:n + 1, :t], teacher[n:n + 1, :t], lengths[n:n + 1], temperature)
             for n, t in enumerate(lengths.tolist())]
    torch.testing.assert_close(sum(alone) / 2, value)


@pytest.mark.parametrize("name", sorted(ENCODER_LOSSES))
def test_gradients_of_the_encoder_losses(name):
    torch.manual_seed(2)
    student, teacher = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lengths = torch.tensor([4, 2])
    between = ENCODER_LOSSES[name].between
    assert torch.autograd.gradcheck(lambda s: between(s, teacher, lengths, 1.5), (student,))
    between(student, teacher, lengths, 1.5).backward()
    assert teacher.grad is None and student.grad[1, 2:].abs().sum() == 0


@pytest.mark.parametrize("filler", [float("nan"), INF])
@pytest.mark.parametrize("dtype, of_teacher", [(torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16),
                                               (torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_padding_holds_reaches_neither_loss_nor_gradient(filler, dtype, of_teacher, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(losses.cpu, "available", lambda: False)
    student, teacher, labels, mask = lattice(3)
    student, teacher, lengths = student.to(dtype), teacher.to(of_teacher), torch.tensor([4, 2])
    frames = torch.arange(4) < lengths.unsqueeze(1)
    sides = torch.randn(2, 2, 4, 3, dtype=dtype)

    def each(value):
        ours, theirs = (x.masked_fill(~mask.unsqueeze(-1), value).requires_grad_() for x in (student, teacher))
        outputs = [x.masked_fill(~frames.unsqueeze(-1), value).requires_grad_() for x in sides]
        found = [lattice_kl(ours, theirs, mask, 1.5), collapsed_kl(ours, theirs, labels, mask, 0, 1.5)]
        found += [loss.between(*outputs, lengths, 1.5) for loss in ENCODER_LOSSES.values()]
        sum(found).backward()
        return torch.stack(found).detach(), ours.grad, outputs[0].grad

    for got, want in zip(each(filler), each(0.0)):
        assert torch.isfinite(want).all() and torch.equal(got, want)


@given(seed=st.integers(0, 10 ** 6), temperature=st.sampled_from([1.0, 20.0]), close=st.sampled_from([0.01, 0.3]))
@quick
def test_halves_are_computed_in_float32(seed, temperature, close):
    torch.manual_seed(seed)
    student = torch.randn(2, 4, 3, 6).to(torch.bfloat16)
    teacher = (student + close * torch.randn(2, 4, 3, 6)).to(torch.bfloat16)
    labels, mask, lengths = torch.randint(1, 6, (2, 4, 3)), torch.ones(2, 4, 3, dtype=torch.bool), torch.tensor([4, 2])

    def each(s, t):
        found = [lattice_kl(s, t, mask, temperature), collapsed_kl(s, t, labels, mask, 0, temperature)]
        return torch.stack(found + [loss.between(s[:, :, 0], t[:, :, 0], lengths, temperature)
                                    for loss in ENCODER_LOSSES.values()])

    assert torch.equal(each(student, teacher), each(student.float(), teacher.float()))


def test_a_rest_that_is_impossible_has_a_gradient():
    student = torch.tensor([[0.3, -INF, 0.2], [0.3, -INF, 0.2]]).requires_grad_()
    teacher = torch.tensor([[0.1, -INF, 0.9], [0.1, -INF, 0.9]])
    losses.collapsed_kl_at(student, teacher, torch.tensor([2, 1])).sum().backward()
    want = student.detach().softmax(-1) - teacher.softmax(-1)
    torch.testing.assert_close(student.grad, want)


@pytest.mark.parametrize("name", ENCODER_LOSSES)
def test_encoder_losses_refuse_shapes_that_would_broadcast(name):
    with pytest.raises(ValueError, match=r"student is \(3, 4, 5\) and teacher \(1, 4, 5\): their shapes must be one"):
        ENCODER_LOSSES[name].between(torch.zeros(3, 4, 5), torch.zeros(1, 4, 5), torch.tensor([4, 4, 4]), 1.0)


def test_encoder_losses_by_their_definitions():
    student, teacher = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), torch.tensor([[[1.0, 4.0], [0.0, 3.0]]])
    cosine = (1 + 8) / (5 ** 0.5 * 17 ** 0.5)
    p, q = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    values = {name: loss.between(student, teacher, torch.tensor([2]), 2.0).item() for name, loss in ENCODER_LOSSES.items()}
    assert values == pytest.approx({
        "encoder_mse": (4 / 2 + 18 / 2) / 2, "encoder_l1": (2 / 2 + 6 / 2) / 2, "encoder_cosine": ((1 - cosine) + 1) / 2,
        "encoder_logits_kl": 4 * (q * (q / p).log()).sum(-1).mean().item()})


@given(shift=st.integers(0, 7))
def test_a_shift_sets_earlier_teacher_frames_against_the_student(shift):
    frames = torch.arange(5.0).view(1, 5, 1)
    student, teacher, lengths = losses.shifted(frames, frames, torch.tensor([5]), shift)
    assert lengths.item() == max(0, 5 - shift) == student.size(1)
    assert (student - teacher == shift).all()
    # A teacher that says everything `shift` frames earlier agrees with its student.
    late, early = torch.randn(1, 9, 3), torch.zeros(1, 9, 3)
    early[:, :9 - min(shift, 9)] = late[:, min(shift, 9):]
    assert encoder_mse(*losses.shifted(late, early, torch.tensor([9]), shift)) == 0
    assert encoder_mse(*losses.shifted(early, late, torch.tensor([9]), -shift)) == 0


def test_layers_are_matched_as_documented():
    assert losses.matched_layers(3, 6) == [(0, 1), (1, 3), (2, 5)]
    assert losses.matched_layers(4, 4) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert losses.matched_layers(1, 5) == [(0, 4)]
    assert losses.matched_layers(4, 2) == [(0, 0), (1, 0), (2, 1), (3, 1)]  # a student that is deeper


@given(seed=st.integers(0, 10 ** 6), modified=st.booleans(), labels=st.integers(0, 3), frames=st.integers(1, 5))
@quick
def test_weights_of_the_best_path_and_of_the_occupancy(seed, modified, labels, frames):
    """Against all paths of the lattice, written out."""
    torch.manual_seed(seed)
    labels = min(labels, frames) if modified else labels
    label, blank = (torch.randn(1, frames, labels + 1, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    paths = []

    def walk(t, u, score, nodes):
        if t == frames:
            if u == labels:
                paths.append((score, nodes))
            return
        walk(t + 1, u, score + blank[0, t, u], nodes + [(t, u)])
        if u < labels:
            walk(t + 1 if modified else t, u + 1, score + label[0, t, u], nodes + [(t, u)])

    walk(0, 0, torch.zeros((), dtype=torch.float64), [])
    scores = torch.stack([score for score, _ in paths])
    assume(len(paths) == 1 or scores.topk(2).values.diff().abs() > 1e-3)  # nearer ones share the weights (BEST_PATH)
    ranges = torch.arange(labels + 1).expand(1, frames, labels + 1)
    arguments = (label, blank, ranges, torch.tensor([[0, 0, labels, frames]]), torch.ones_like(label, dtype=torch.bool),
                 "modified" if modified else "regular")
    best = paths[int(scores.argmax())][1]
    want = torch.zeros(frames, labels + 1)
    for t, u in best:
        want[t, u] = 1 / len(best)
    torch.testing.assert_close(losses.best_path_weights(*arguments)[0], want, rtol=1e-3, atol=1e-3)
    visits = torch.zeros(frames, labels + 1, dtype=torch.float64)
    for posterior, (_, nodes) in zip(scores.softmax(0), paths):
        for t, u in nodes:
            visits[t, u] += posterior
    torch.testing.assert_close(losses.occupancy_weights(*arguments)[0], (visits / visits.sum()).float())


def test_weights_without_a_path_are_the_plain_ones():
    label, blank = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
    mask, ranges = torch.ones(1, 1, 3, dtype=torch.bool), torch.arange(3).expand(1, 1, 3)
    boundary = torch.tensor([[0, 0, 2, 1]])  # two labels in one frame: not in a modified lattice
    weights = losses.occupancy_weights(label, blank, ranges, boundary, mask, "modified")
    torch.testing.assert_close(weights, losses.node_weights(mask))
    assert not losses.node_weights(~mask).any()  # nothing, and no nan


@given(st.data())
def test_posteriors_of_the_n_best(data):
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
    scores = [data.draw(st.lists(st.floats(-2000, 0), min_size=n, max_size=n)) for n in counts]
    temperature = data.draw(st.floats(0.5, 4))
    rows = torch.tensor([row for row, n in enumerate(counts) for _ in range(n)])
    flat = torch.tensor([score for of_one in scores for score in of_one], dtype=torch.float64)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    got = torch.empty_like(flat)
    got[order] = losses.nbest_posterior(flat[order], rows[order], len(counts), temperature)
    want = [(torch.tensor(of_one, dtype=torch.float64) / temperature).softmax(0) for of_one in scores if of_one]
    torch.testing.assert_close(got, torch.cat(want))


def test_schedules_of_a_weight():
    def weights(**options):
        return [DistillTerm("collapsed_kl", 2.0, **options).weight_at(u) for u in (0, 5, 10, 20)]

    assert weights() == [2, 2, 2, 2]
    assert weights(schedule="warmup", schedule_updates=10) == [0, 1, 2, 2]
    assert weights(schedule="decay", schedule_updates=10) == [2, 1, 0, 0]
    for bad in (dict(schedule="cosine"), dict(schedule="decay", schedule_updates=0),
                dict(schedule="warmup", schedule_updates=-1), dict(temperature=0.0),
                dict(weight=-1.0), dict(layers=[[1]]), dict(layers="all")):
        with pytest.raises(RecipeError, match=f"loss.distill, encoder_mse, .*{list(bad)[-1]}"):
            DistillTerm("encoder_mse", **bad)


def test_a_loss_that_is_named_twice():
    terms = [DistillTerm("encoder_mse"), DistillTerm("encoder_mse", shift=2), DistillTerm("encoder_l1"),
             DistillTerm("encoder_mse", layers="matched")]
    assert LossConfig(distill=terms).distill_names() == ["encoder_mse", "encoder_mse_2", "encoder_l1", "encoder_mse_3"]
    with pytest.raises(RecipeError, match="loss.distill is 'encoder_mse'; it must be named once, or .* other settings"):
        LossConfig(distill=[*terms, DistillTerm("encoder_mse")])


@pytest.mark.parametrize("name, unused", [
    ("encoder_mse", dict(temperature=2.0)), ("encoder_l1", dict(temperature=2.0)), ("encoder_cosine", dict(temperature=0.5)),
    ("encoder_logits_kl", dict(layers="matched")), ("pruned_lattice_kl", dict(shift=1)),
    ("occupancy_kl", dict(layers=[[1, 1]])), ("nbest_rnnt", dict(shift=-1)), ("nbest_rnnt", dict(layers="matched")),
])
def test_a_setting_that_a_loss_has_no_use_for(name, unused):
    with pytest.raises(RecipeError, match=f"loss.distill, {name}, {list(unused)[0]} is .*; it must be left out"):
        DistillTerm(name, **unused)


@pytest.mark.parametrize("term, said", [
    (dict(name="kl"), "unknown loss 'kl'"), (dict(weight=2.0), "a loss without a name; known are best_path_kl"),
    (dict(name="encoder_mse", weight=INF), "weight is inf"),
    (dict(name="encoder_mse", weight=float("nan")), "weight is nan"),
    (dict(name="pruned_lattice_kl", temperature=21.0), "temperature is 21.0; it must be above 0 and at most 20"),
    (dict(name="pruned_lattice_kl", temperature=0.0), "temperature is 0.0; it must be above 0"),
])
def test_terms_that_mean_nothing(term, said):
    with pytest.raises(RecipeError, match=said):
        DistillTerm(**term)


def test_the_hottest_divergence_keeps_its_digits():
    """What bounds the temperature: float32 beside float64."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(64, 500, dtype=torch.float64), 3 * torch.randn(64, 500, dtype=torch.float64)
    want = lattice_kl_at(student, teacher, MAX_TEMPERATURE)
    torch.testing.assert_close(lattice_kl_at(student.float(), teacher.float(), MAX_TEMPERATURE).double(), want, rtol=0.01,
                               atol=0.0)


def test_two_vectors_of_zeros_are_alike():
    zeros, lengths = torch.zeros(1, 3, 4), torch.tensor([3])
    student = zeros.clone().requires_grad_()
    value = losses.encoder_cosine(student, zeros, lengths)
    value.backward()
    assert value.item() == 0.0 and student.grad.abs().sum() == 0.0
    assert losses.encoder_cosine(zeros, torch.ones(1, 3, 4), lengths).item() == 1.0


@pytest.mark.parametrize("shape", [(2, 4, 1, 5), (1, 4, 3, 5), (4, 3, 5), (2, 4, 3, 1), (2, 4, 3, 6)])
def test_a_teacher_of_another_shape_is_refused(shape):
    """What torch would broadcast too: the outputs of another lattice are no target."""
    student, teacher = torch.zeros(2, 4, 3, 5), torch.zeros(shape)
    mask, labels, lengths = torch.ones(2, 4, 3, dtype=torch.bool), torch.ones(2, 4, 3, dtype=torch.int64), torch.tensor([4, 2])
    for loss in (lambda: lattice_kl(student, teacher, mask), lambda: lattice_kl_at(student, teacher),
                 lambda: collapsed_kl(student, teacher, labels, mask),
                 lambda: losses.collapsed_kl_at(student, teacher, labels),
                 *(lambda loss=loss: loss.between(student[:, :, 0], teacher, lengths, 1.0)
                   for loss in ENCODER_LOSSES.values())):
        with pytest.raises(ValueError, match=re.escape(f"teacher {shape}: their shapes must be one")):
            loss()


def test_masks_and_lengths_of_another_batch_are_refused():
    x, labels = torch.zeros(2, 4, 3, 5), torch.ones(2, 4, 3, dtype=torch.int64)
    for mask in (torch.ones(2, 4, 1, dtype=torch.bool), torch.ones(2, 4, 3)):
        for loss in (lambda: lattice_kl(x, x, mask), lambda: collapsed_kl(x, x, labels, mask)):
            with pytest.raises(ValueError, match=r"it must be bool \(2, 4, 3\)"):
                loss()
    for loss in ENCODER_LOSSES.values():
        with pytest.raises(ValueError, match=r"lengths is \(2, 1\): it must be \(2,\)"):
            loss.between(x[:, :, 0], x[:, :, 0], torch.tensor([[4], [2]]), 1.0)


@pytest.mark.parametrize("floor", [torch.finfo(torch.float32).min, -1e37, -1e35, -1e9])
def test_a_token_that_the_teacher_masks_by_a_number_is_excluded(floor):
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    teacher[:, 3] = floor
    both = student.clone()
    both[:2, 3] = floor
    for ours in (student, both):
        want = lattice_kl_at(ours, teacher.masked_fill(teacher == floor, -INF))
        torch.testing.assert_close(lattice_kl_at(ours, teacher), want)
        assert (want > 0.1).all()
