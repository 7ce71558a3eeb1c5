"""The fused losses against the same losses by way of all logits; the memory that they leave unused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdlib import rnnt
from kdlib.config import ModelConfig
from kdlib.joiner import Joiner
from kdlib.losses import collapsed_kl, collapsed_kl_at, lattice_kl, lattice_kl_at, node_weights
from kdlib.rnnt import fused

pytestmark = pytest.mark.both

TYPES = ("regular", "modified")


def make_batch(seed, count=3, frames=7, labels=4, tokens=11, kept=3, channels=5, dtype=torch.float64):
    """A student's and a teacher's side, and the lattice's arguments, of utterances of different lengths."""
    torch.manual_seed(seed)
    sides = []
    for width in (channels, channels + 2):
        joiner = Joiner(ModelConfig(joiner_dim=width), tokens).to(dtype)
        am, lm = torch.randn(count, frames, width, dtype=dtype), torch.randn(count, labels + 1, width, dtype=dtype)
        sides.append(rnnt.Side(joiner, am.requires_grad_(), lm.requires_grad_()))
    blank = seed % tokens
    symbols = torch.randint(0, tokens - 1, (count, labels))
    symbols += (symbols >= blank).long()
    boundary = torch.tensor([[0, 0, labels, frames]]).repeat(count, 1)
    for n in range(1, count):
        boundary[n, 3] = torch.randint(1, frames + 1, ())
        boundary[n, 2] = torch.randint(0, min(labels, int(boundary[n, 3])) + 1, ())
    px_grad = torch.rand(count, labels, frames, dtype=dtype)
    py_grad = torch.rand(count, labels + 1, frames, dtype=dtype)
    ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, kept, backend="native")
    return *sides, dict(symbols=symbols, ranges=ranges, termination_symbol=blank, boundary=boundary)


def all_logits(side, ranges):
    return side.joiner(*rnnt.do_rnnt_pruning(side.am, side.lm, ranges, backend="native"))


def gradients(loss, side):
    return torch.autograd.grad(loss, [side.am, side.lm, side.joiner.out.weight, side.joiner.out.bias])


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(TYPES), at_once=st.sampled_from([1, 33, 10**6]),
       penalty=st.sampled_from([0.0, 0.1]), count=st.integers(1, 4), tokens=st.integers(2, 30),
       labels=st.integers(0, 5), frames=st.integers(5, 9), terms=st.booleans(), sharpness=st.sampled_from([1.0, 2.5]))
def test_the_same_numbers(seed, kind, at_once, penalty, count, tokens, labels, frames, terms, sharpness):
    student, teacher, lattice = make_batch(seed, count, frames, labels, tokens, 2)
    options = dict(rnnt_type=kind, delay_penalty=penalty, sharpness=sharpness)
    next_symbols, mask = rnnt.node_symbols(lattice["symbols"], lattice["ranges"], lattice["boundary"],
                                           lattice["termination_symbol"])
    logits, target = all_logits(student, lattice["ranges"]), all_logits(teacher, lattice["ranges"])
    each = rnnt.rnnt_loss_pruned(logits, **lattice, **options, reduction="none", backend="native")
    want, kds, given_terms = 0.7 * each.sum(), [], ()
    if terms:
        blank = lattice["termination_symbol"]
        kds = [lattice_kl(logits, target, mask, 2.0), collapsed_kl(logits, target, next_symbols, mask, blank)]
        want = want + 3.0 * kds[0] + 5.0 * kds[1]
        weights = node_weights(mask, torch.float64)
        given_terms = [rnnt.NodeTerm(lambda s, t, y: lattice_kl_at(s, t, 2.0), weights, 3.0),
                       rnnt.NodeTerm(lambda s, t, y: collapsed_kl_at(s, t, y, blank), weights, 5.0)]
    got = rnnt.lattice_losses_fused(*student, **lattice, **options, weight=0.7, teacher=teacher, terms=given_terms,
                                    logits_at_once=at_once)
    torch.testing.assert_close(got.total, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.rnnt, each, rtol=1e-10, atol=1e-12)
    assert got.terms.tolist() == pytest.approx([kd.item() for kd in kds], rel=1e-9, abs=1e-12)
    for one, other in zip(gradients(3 * got.total, student), gradients(3 * want, student)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert teacher.am.grad is None and teacher.joiner.out.weight.grad is None
    with torch.no_grad():
        alone = rnnt.lattice_losses_fused(*student, **lattice, **options, weight=0.7, teacher=teacher,
                                          terms=given_terms, logits_at_once=at_once)
    torch.testing.assert_close(alone.total, want.detach(), rtol=1e-10, atol=1e-12)


def test_a_weight_for_each_utterance():
    student, _, lattice = make_batch(11, 3, 7, 3, 9, 2)
    weight = torch.tensor([0.2, 0.0, 1.5], dtype=torch.float64)
    logits = all_logits(student, lattice["ranges"])
    want = (weight * rnnt.rnnt_loss_pruned(logits, **lattice, reduction="none", backend="native")).sum()
    got = rnnt.lattice_losses_fused(*student, **lattice, weight=weight).total
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    for one, other in zip(gradients(got, student), gradients(want, student)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="weight must be a number or"):
        rnnt.lattice_losses_fused(*student, **lattice, weight=weight[:2])


def test_gradients_by_finite_differences():
    student, teacher, lattice = make_batch(5, tokens=4, channels=3)
    _, mask = rnnt.node_symbols(*(lattice[key] for key in ("symbols", "ranges", "boundary", "termination_symbol")))
    terms = [rnnt.NodeTerm(lambda s, t, y: lattice_kl_at(s, t), node_weights(mask, torch.float64), 2.0)]
    def total():
        return rnnt.lattice_losses_fused(*student, **lattice, teacher=teacher, terms=terms).total

    sources = [student.am, student.lm, student.joiner.out.weight, student.joiner.out.bias]
    for source, slope in zip(sources, gradients(total(), student)):
        flat, step = source.detach().view(-1), 1e-5
        for i in torch.randperm(len(flat))[:12].tolist():
            old = flat[i].item()
            ends = []
            for flat[i] in (old + step, old - step):
                ends.append(total().item())
            flat[i] = old
            assert slope.flatten()[i].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("reduction, sharpness", [("none", 1.0), ("mean", 1.0), ("sum", 2.0)])
def test_the_loss_alone_is_the_pruned_loss(reduction, sharpness):
    student, _, lattice = make_batch(6, dtype=torch.float32)
    options = dict(reduction=reduction, sharpness=sharpness)
    want = rnnt.rnnt_loss_pruned(all_logits(student, lattice["ranges"]), **lattice, **options, backend="native")
    with torch.set_grad_enabled(reduction != "none"):
        got = rnnt.rnnt_loss_fused(*student, **lattice, **options)
    torch.testing.assert_close(got, want.detach() if reduction == "none" else want)
    if reduction != "none":
        got.backward()
        assert student.joiner.encoder_proj.weight.grad is None  # not used by the joiner itself
        grads = [x.grad.clone() for x in (student.am, student.lm, student.joiner.out.weight)]
        for x in (student.am, student.lm, student.joiner.out.weight):
            x.grad = None
        want.backward()
        for one, x in zip(grads, (student.am, student.lm, student.joiner.out.weight)):
            torch.testing.assert_close(one, x.grad, rtol=1e-4, atol=1e-6)
    else:
        with pytest.raises(ValueError, match="reduction 'none' has no gradient"):
            rnnt.rnnt_loss_fused(*student, **lattice, reduction="none")


def test_an_utterance_of_little_weight_learns_the_same_in_any_chunks():
    student, _, lattice = make_batch(6, dtype=torch.float32)
    weight = torch.tensor([1.0, 1e-9, 1.0])
    whole, chunked = (torch.autograd.grad(
        rnnt.lattice_losses_fused(*student, **lattice, weight=weight, logits_at_once=most).total, student.am)[0][1]
        for most in (None, 4 * 11))
    assert whole.abs().max() > 0
    torch.testing.assert_close(chunked / weight[1], whole / weight[1], rtol=1e-4, atol=1e-6)


def test_frozen_parts_and_no_bias():
    student, _, lattice = make_batch(7)
    student.joiner.out = torch.nn.Linear(5, 11, bias=False).double()
    student.joiner.out.weight.requires_grad_(False)
    student.joiner.encoder_proj.requires_grad_(False)
    side = student._replace(lm=student.lm.detach())
    got, want = (
        torch.autograd.grad(loss, side.am)[0]
        for loss in (rnnt.rnnt_loss_fused(*side, **lattice),
                     rnnt.rnnt_loss_pruned(all_logits(side, lattice["ranges"]), **lattice, backend="native")))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_a_term_that_is_constant_to_the_student():
    student, teacher, lattice = make_batch(8)
    _, mask = rnnt.node_symbols(*(lattice[key] for key in ("symbols", "ranges", "boundary", "termination_symbol")))
    term = rnnt.NodeTerm(lambda s, t, y: t.sum(-1), node_weights(mask, torch.float64), 3.0)
    plain, more = (rnnt.lattice_losses_fused(*student, **lattice, teacher=teacher, terms=terms)
                   for terms in ((), (term,)))
    torch.testing.assert_close(more.total, plain.total + 3.0 * more.terms[0])
    for one, other in zip(gradients(more.total, student), gradients(plain.total, student)):
        torch.testing.assert_close(one, other)


def test_nodes_that_few_paths_visit_count_in_many_chunks():
    student, _, lattice = make_batch(9, frames=20, labels=8, dtype=torch.float32)
    few, whole = (rnnt.lattice_losses_fused(*student, **lattice, logits_at_once=most).total for most in (22, None))
    for one, other in zip(gradients(few, student), gradients(whole, student)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_half_precision_of_the_joiner():
    student, _, lattice = make_batch(8, dtype=torch.float32)
    side = rnnt.Side(student.joiner, student.am, student.lm)
    whole = rnnt.rnnt_loss_fused(*side, **lattice)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = rnnt.rnnt_loss_fused(student.joiner, side.am.bfloat16(), side.lm.bfloat16(), **lattice)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, whole, rtol=0.05, atol=0.05)
    want = gradients(whole, side)
    for one, other in zip(gradients(halves, side), want):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.2, atol=0.02)
    # Where nothing made the hidden layer half precise, it stays as it is.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = rnnt.rnnt_loss_fused(student.joiner, side.am, side.lm, **lattice)
    for one, other in zip(gradients(same, side), want):
        torch.testing.assert_close(one, other)


class LayeredJoiner(nn.Module):
    """A joiner with parameters before its output layer."""

    def __init__(self, channels, tokens):
        super().__init__()
        self.inner, self.out = nn.Linear(channels, channels), nn.Linear(channels, tokens)

    def hidden(self, am, lm):
        return torch.tanh(self.inner(am + lm))

    def forward(self, am, lm):
        return self.out(self.hidden(am, lm))


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_half_precision_before_the_output_layer(kept):
    """Of all parameters, as by way of all logits: with weights that autocast makes half precise, and that are so."""
    student, _, lattice = make_batch(15, dtype=torch.float32)
    joiner = LayeredJoiner(5, 11).to(kept)
    am, lm = (x.detach().to(kept).requires_grad_() for x in (student.am, student.lm))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = rnnt.rnnt_loss_fused(joiner, am, lm, **lattice)
        want = rnnt.rnnt_loss_pruned(all_logits(rnnt.Side(joiner, am, lm), lattice["ranges"]), **lattice, backend="native")
    inputs = [am, lm, *joiner.parameters()]
    for one, other, x in zip(*(torch.autograd.grad(loss, inputs) for loss in (got, want)), inputs):
        assert one.dtype == x.dtype and one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.03)


def test_half_precision_of_long_sums():
    """A thousand frames say the same: no part of a sum may be lost beside what is there already."""
    frames, half = 1000, torch.bfloat16
    joiner = Joiner(ModelConfig(joiner_dim=1), 2)
    joiner.hidden = lambda am, lm: am + lm
    with torch.no_grad():
        joiner.out.weight.copy_(torch.tensor([[1.0], [0.0]]))
        joiner.out.bias.zero_()
    joiner.to(half)
    am, lm = torch.zeros(1, frames, 1, dtype=half), torch.zeros(1, 1, 1, dtype=half, requires_grad=True)
    symbols, ranges = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, frames, 1, dtype=torch.long)
    rnnt.lattice_losses_fused(joiner, am, lm, symbols, ranges, 0, logits_at_once=2).total.backward()
    assert lm.grad.item() == -frames / 2 and joiner.out.bias.grad.tolist() == [-frames / 2, frames / 2]
    lm.grad = None
    rnnt.do_rnnt_pruning(am, lm, ranges)[1].sum().backward()
    assert lm.grad.item() == frames


def test_nan_stays_in_its_utterance():
    student, _, lattice = make_batch(9)
    clean = rnnt.lattice_losses_fused(*student, **lattice).rnnt.detach()
    am = student.am.detach().clone()
    am[1, 0] = math.nan
    each = rnnt.lattice_losses_fused(student.joiner, am, student.lm, **lattice).rnnt
    assert each[1].isnan() and torch.equal(each[[0, 2]], clean[[0, 2]])


def test_only_a_few_logits_at_a_time(monkeypatch):
    """No tensor that the joiner makes has more rows than one chunk."""
    student, teacher, lattice = make_batch(10, count=4, frames=40, labels=20, kept=5)
    rows = []
    for side in (student, teacher):
        hidden = side.joiner.hidden
        monkeypatch.setattr(side.joiner, "hidden", lambda am, lm, hidden=hidden: rows.append(len(am)) or hidden(am, lm))
    _, mask = rnnt.node_symbols(*(lattice[key] for key in ("symbols", "ranges", "boundary", "termination_symbol")))
    terms = [rnnt.NodeTerm(lambda s, t, y: lattice_kl_at(s, t), node_weights(mask))]
    rnnt.lattice_losses_fused(*student, **lattice, teacher=teacher, terms=terms, logits_at_once=11 * 16)
    nodes = int(mask.sum())
    chunks = -(-nodes // 16)
    # Each node once in the first pass, and once of each model in the second.
    assert max(rows) == 16 and len(rows) == 3 * chunks and sum(rows) == 3 * nodes


def test_inputs_in_another_order_and_gradients_that_are_one_number():
    """(T, N, C) tensors seen as (N, T, C), as many encoders give them; and a term whose gradient autograd expands."""
    student, teacher, lattice = make_batch(13)
    _, mask = rnnt.node_symbols(*(lattice[key] for key in ("symbols", "ranges", "boundary", "termination_symbol")))
    weights = node_weights(mask, torch.float64)
    results = []
    for turned in (False, True):
        am, lm = student.am, student.lm
        if turned:
            am, lm = (x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in (am, lm))
        per_node = (lambda s, t, y: s.sum(-1)) if turned else (lambda s, t, y: (s * torch.ones_like(s)).sum(-1))
        loss = rnnt.lattice_losses_fused(student.joiner, am, lm, **lattice, teacher=teacher, logits_at_once=99,
                                         terms=[rnnt.NodeTerm(per_node, weights)]).total
        results.append(torch.autograd.grad(loss, [am, lm, student.joiner.out.weight]))
    for one, other in zip(*results):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_an_output_layer_whose_weight_is_computed_is_refused():
    student, _, lattice = make_batch(14)
    student.joiner.out = nn.utils.weight_norm(student.joiner.out)
    with pytest.raises(ValueError, match="the weight of its output layer out is no parameter"):
        rnnt.rnnt_loss_fused(*student, **lattice)


def test_differentiated_once_only():
    student, _, lattice = make_batch(11)
    loss = rnnt.rnnt_loss_fused(*student, **lattice)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()


def test_bad_arguments_are_named():
    student, teacher, lattice = make_batch(12)
    for message, change in {
        "terms need a teacher": dict(terms=[rnnt.NodeTerm(lambda s, t, y: 0, torch.ones(lattice["ranges"].shape))]),
        "the teacher's am .* are not of one batch": dict(teacher=teacher._replace(am=teacher.am[:, 1:])),
        "the teacher's joiner has 12 tokens, the student's 11": dict(teacher=teacher._replace(
            joiner=Joiner(ModelConfig(joiner_dim=7), 12))),
        "a term's weights .2, 7, 3. must be as ranges": dict(teacher=teacher, terms=[
            rnnt.NodeTerm(lambda s, t, y: 0, torch.ones(2, 7, 3))]),
        "Identity lacks a method hidden": dict(joiner=nn.Identity()),
        "symbols of utterance 0, 1, 2 lie outside": dict(symbols=lattice["symbols"] + 99),
        "ranges of utterance .* do not cover": dict(ranges=torch.arange(2).expand(3, 7, 2)),
    }.items():
        arguments = {**student._asdict(), **lattice, **change}
        with pytest.raises(ValueError, match=message):
            rnnt.lattice_losses_fused(**arguments)
    with torch.no_grad():
        student.joiner.out.bias[1] = math.inf
    with pytest.raises(ValueError, match="the joiner's logits of utterance 0, 1, 2 are .inf"):
        rnnt.lattice_losses_fused(*student, **lattice)


def test_when_it_pays():
    mask, many = torch.ones(4, 10, 5, dtype=torch.bool), fused.LOGITS_AT_ONCE // 100
    assert not rnnt.fused_pays(mask, 4 * many, distilling=False) and not rnnt.fused_pays(mask, many, distilling=True)
    assert rnnt.fused_pays(mask, 4 * many, distilling=True)
    mask[2:, 5:] = False
    assert rnnt.fused_pays(mask, many, distilling=False)
    assert not rnnt.fused_pays(mask, 30, distilling=True)
