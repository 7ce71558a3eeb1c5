"""nan and infinities in the transducer functions: what they do to their utterance, and that they do nothing else."""

import math

import pytest
import torch

from kdlib import rnnt
from kdlib.rnnt import cpu, fused, native, plain

pytestmark = pytest.mark.both

TYPES = ("regular", "modified")


@pytest.fixture(params=[cpu, plain], ids=["compiled", "plain"])
def kernels(request, monkeypatch):
    """Each of the kernels that take tensors on the CPU."""
    for module in (native, fused):
        monkeypatch.setattr(module, "kernels_for", lambda tensor: request.param)


def make(seed=0):
    """Logits of all nodes, symbols, ranges: 2 utterances, 4 frames, 3 labels, 5 tokens, blank 0."""
    torch.manual_seed(seed)
    return torch.randn(2, 4, 4, 5), torch.randint(1, 5, (2, 3)), torch.arange(4).expand(2, 4, 4)


def pruned(logits, symbols, ranges, kind, boundary=None):
    """Loss, occupancies (N, T, R) and gradient."""
    logits = logits.clone().requires_grad_()
    loss, occupancies = rnnt.rnnt_loss_pruned(
        logits, symbols, ranges, 0, boundary, kind, 0.01, "none", return_occupancies=True, backend="native")
    return loss.detach(), sum(occupancies), torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize("kind", TYPES)
def test_plus_infinity_is_found_wherever_it_is(kernels, kind):
    logits, symbols, ranges = make()
    for place in torch.randperm(logits.numel())[:60].tolist():
        bad = logits.clone()
        bad.view(-1)[place] = math.inf
        with pytest.raises(ValueError, match=f"logits of utterance {place // logits[0].numel()} is .inf"):
            rnnt.rnnt_loss_pruned(bad, symbols, ranges, 0, None, kind, backend="native")


# In a modified lattice of 4 frames and 3 labels, (1, 2) cannot be reached and nothing leads from (2, 0) to the end.
@pytest.mark.parametrize("node", [(0, 0), (1, 1), (1, 2), (2, 0), (3, 3)])
@pytest.mark.parametrize("kind", TYPES)
def test_nan_at_any_node_makes_the_loss_nan_and_the_gradient_zero(kernels, kind, node):
    logits, symbols, ranges = make()
    clean = pruned(logits, symbols, ranges, kind)
    logits[(0, *node, 3)] = math.nan
    for result, want in zip(pruned(logits, symbols, ranges, kind), clean):
        assert torch.equal(result[1], want[1])
    loss, occupancy, grad = pruned(logits, symbols, ranges, kind)
    assert loss[0].isnan() and occupancy[0].abs().sum() == 0 and grad[0].abs().sum() == 0


def test_nan_in_a_band_of_dead_ends_does_the_same_by_all_kernels(kernels):
    """The lattices disagree about a nan that no path meets, and its functions must not: (1, 0) leads to no kept node."""
    torch.manual_seed(7)
    logits, symbols = torch.randn(2, 5, 2, 5), torch.randint(1, 5, (2, 3))
    ranges = (torch.tensor([0, 0, 2, 2, 2]).view(1, 5, 1) + torch.arange(2)).expand(2, 5, 2)
    arcs, boundary = [-torch.rand(2, 5, 2) for _ in range(2)], torch.tensor([[0, 0, 3, 5]] * 2)
    clean, nodes = pruned(logits, symbols, ranges, "modified"), rnnt.node_posteriors(*arcs, ranges, boundary, "modified")
    assert torch.isfinite(clean[0]).all() and clean[1][0, 1, 0] == 0
    for t in range(5):
        for r in range(2):
            bad = logits.clone()
            bad[0, t, r, 3] = math.nan
            loss, occupancy, grad = pruned(bad, symbols, ranges, "modified")
            assert loss[0].isnan() and not occupancy[0].any() and not grad[0].any()
            assert all(torch.equal(got[1], want[1]) for got, want in zip((loss, occupancy, grad), clean))
            for number in range(2):
                spoilt = [arc.clone() for arc in arcs]
                spoilt[number][0, t, r] = math.nan
                got = rnnt.node_posteriors(*spoilt, ranges, boundary, "modified")
                assert not got[0].any() and torch.equal(got[1], nodes[1])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outside_the_boundary_logits_may_be_anything(kernels, kind, value):
    logits, symbols, ranges = make(1)
    boundary = torch.tensor([[0, 0, 3, 4], [1, 1, 2, 3]])
    clean = pruned(logits, symbols, ranges, kind, boundary)
    logits[1, 0], logits[1, 3], logits[1, :, 0], logits[1, :, 3] = value, value, value, value
    for got, want in zip(pruned(logits, symbols, ranges, kind, boundary), clean):
        assert torch.equal(got, want)


def smoothed(lm, am, symbols, scales, boundary, kind):
    lm, am = lm.clone().requires_grad_(), am.clone().requires_grad_()
    loss, posteriors = rnnt.rnnt_loss_smoothed(
        lm, am, symbols, 0, *scales, boundary, kind, 0.0, "none", return_grad=True, backend="native")
    return [loss.detach(), *posteriors, *torch.autograd.grad(loss.sum(), (lm, am))]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scales", [(0.0, 0.0), (0.25, 0.0), (0.2, 0.1)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outside_the_boundary_lm_and_am_may_be_anything(kernels, kind, scales, value):
    """Losses and all gradients are those of zeros in the same place, into which no gradient goes."""
    torch.manual_seed(2)
    lm, am, symbols = torch.randn(2, 4, 6), torch.randn(2, 5, 6), torch.randint(1, 6, (2, 3))
    boundary = torch.tensor([[0, 0, 3, 5], [0, 1, 2, 3]])
    lm[1, 3], am[1, 3:], am[1, 0] = 0.0, 0.0, 0.0
    clean = smoothed(lm, am, symbols, scales, boundary, kind)
    clean[3][1, 3] = 0.0  # by way of the mean of softmax(lm)
    lm[1, 3, 2], am[1, 3:], am[1, 0, 0] = value, value, value
    for got, want in zip(smoothed(lm, am, symbols, scales, boundary, kind), clean):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("where", ["lm", "am"])
@pytest.mark.parametrize("scales", [(0.25, 0.0), (0.2, 0.1)])
def test_nan_in_lm_or_am_stays_in_its_utterance(kernels, kind, where, scales):
    torch.manual_seed(3)
    lm, am, symbols = torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.randint(1, 6, (2, 3))
    bad = dict(lm=lm, am=am)[where]
    bad[0, 2] = 0.0  # what the vector counts as in the mean of softmax(lm)
    clean = smoothed(lm, am, symbols, scales, None, kind)
    bad[0, 2, 5] = math.nan
    results = smoothed(lm, am, symbols, scales, None, kind)
    assert results[0][0].isnan() and not any(posterior[0].any() for posterior in results[1:3])
    for got, want in zip(results[:3], clean[:3]):
        torch.testing.assert_close(got[1], want[1], rtol=0, atol=0)
    for grad in results[3:]:
        assert torch.isfinite(grad).all() and (scales[1] > 0 or grad[0].abs().sum() == 0)
    if scales[1] == 0:
        for got, want in zip(results[3:], clean[3:]):
            torch.testing.assert_close(got[1], want[1], rtol=0, atol=0)
    bad[0, 2, 5] = math.inf
    with pytest.raises(ValueError, match=f"{where} of utterance 0 is .inf"):
        smoothed(lm, am, symbols, scales, None, kind)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_posteriors_of_arcs_that_are_not_finite(kernels, value):
    """Zero for the utterance, wherever the node lies; what lies outside an utterance is not looked at."""
    torch.manual_seed(4)
    arcs = [-torch.rand(2, 4, 4) for _ in range(2)]
    ranges, boundary = torch.arange(4).expand(2, 4, 4), torch.tensor([[0, 0, 3, 4], [0, 0, 2, 3]])
    clean = rnnt.node_posteriors(*arcs, ranges, boundary, "modified")
    assert clean[1].sum() == pytest.approx(3, abs=1e-5)  # one node a frame
    for arc in arcs:
        arc[1, 3], arc[1, :, 3] = value, value
    torch.testing.assert_close(rnnt.node_posteriors(*arcs, ranges, boundary, "modified"), clean)
    for node in ((1, 2), (2, 0), (1, 1)):
        bad = [arc.clone() for arc in arcs]
        bad[1][(0, *node)] = value
        got = rnnt.node_posteriors(*bad, ranges, boundary, "modified")
        assert got[0].abs().sum() == 0 and torch.equal(got[1], clean[1])


def test_of_am_that_does_not_count_the_gradient_is_zero():
    """With the lm-only part alone; -inf in am, too, leaves it zero."""
    torch.manual_seed(5)
    lm, am, symbols = torch.randn(2, 3, 5), torch.randn(2, 4, 5), torch.randint(1, 5, (2, 2))
    am[0, 1, 0] = -math.inf
    am.requires_grad_()
    for kind in TYPES:
        loss = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 1.0, 0.0, None, kind, backend="native")
        assert torch.isfinite(loss)
        assert torch.equal(torch.autograd.grad(loss, am)[0], torch.zeros_like(am))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scales", [(0.0, 0.0), (0.25, 0.0), (0.2, 0.1)])
def test_where_am_and_lm_meet_in_nothing_but_minus_infinity_there_is_no_path(kernels, kind, scales):
    """A frame and a history of nothing but -inf: the loss is +inf wherever they meet, and the other utterance's a number."""
    for dtype in (torch.float32, torch.float64):
        for t, u in ((0, 0), (1, 0), (1, 1), (3, 2)):
            torch.manual_seed(6)
            lm, am = torch.randn(2, 3, 5, dtype=dtype), torch.randn(2, 4, 5, dtype=dtype)
            symbols = torch.randint(1, 5, (2, 2))
            am[0, t], lm[0, u] = -math.inf, -math.inf
            loss, *others = smoothed(lm, am, symbols, scales, None, kind)
            assert loss[0] == math.inf and torch.isfinite(loss[1])
            assert all(torch.isfinite(x).all() for x in others)
            assert not any(posterior[0].any() for posterior in others[:2])
