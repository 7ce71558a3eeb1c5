"""Native against the real k2: the same losses, gradients, posteriors and ranges on random batches.

Where k2 1.23.4 is wrong or undefined, the case is kept out of the comparison by a test that names it and shows it.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rnnt_cases import TOLERANCE, assert_equal, batches, make, total

from kdlib import rnnt

if rnnt.backend_in_use() != "k2":
    pytest.skip("the real k2 is in the environment of tools/install.sh --k2", allow_module_level=True)

import k2  # noqa: E402

pytestmark = pytest.mark.k2

MANY = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@MANY
@given(case=batches())
def test_smoothed_loss_and_ranges(case):
    lm, am, symbols, boundary = make(case)
    given_boundary = None if case["boundary"] == "none" else boundary
    if given_boundary is None:
        boundary = boundary[:1].expand(len(am), 4).contiguous()
    results = {}
    for backend in ("k2", "native"):
        inputs = lm.clone().requires_grad_(), am.clone().requires_grad_()
        loss, grads = rnnt.rnnt_loss_smoothed(
            *inputs, symbols, case["blank"], case["lm_scale"], case["am_scale"], given_boundary, case["kind"],
            case["penalty"], "none", return_grad=True, backend=backend)
        alone = rnnt.rnnt_loss_smoothed(
            *inputs, symbols, case["blank"], case["lm_scale"], case["am_scale"], given_boundary, case["kind"],
            case["penalty"], case["reduction"], backend=backend)
        results[backend] = (loss, alone, grads, torch.autograd.grad(total(loss), inputs))
    (loss, alone, grads, slopes), (k2_loss, k2_alone, k2_grads, k2_slopes) = results["native"], results["k2"]
    dtype = case["dtype"]
    assert_equal(loss, k2_loss, dtype, "loss")
    assert_equal(alone, k2_alone, dtype, case["reduction"])
    for name, got, want in zip(("lm", "am"), slopes, k2_slopes):
        assert_equal(got, want, dtype, f"gradient of {name}")
    has_path = torch.isfinite(k2_loss)
    for name, got, want in zip(("px_grad", "py_grad"), grads, k2_grads):
        assert got.shape == want.shape
        assert_equal(got[has_path], want[has_path], dtype, name)

    # From one and the same posteriors: from each backend's own, a tie in the last bit may fall either way.
    ranges, k2_ranges = (
        rnnt.get_rnnt_prune_ranges(*k2_grads, boundary, case["kept"], backend=backend) for backend in ("native", "k2"))
    assert torch.equal(ranges, k2_ranges)


@MANY
@given(case=batches())
def test_pruned_loss(case):
    compare_pruned_losses(case)


@settings(max_examples=60)
@given(case=batches(), sharpness=st.sampled_from([0.5, 2.0, 30.0]))
def test_sharper_pruned_loss(case, sharpness):
    """By k2's log-probabilities and its recursion, which in float32 loses too many digits of scores 30 times as large: its
    gradients were off by 1e-4 of the largest where ours were by 1e-6."""
    if sharpness == 30.0:
        case = {**case, "dtype": torch.float64}
    compare_pruned_losses(case, sharpness=sharpness)


def compare_pruned_losses(case, **options):
    lm, am, symbols, boundary = make(case)
    given_boundary = None if case["boundary"] == "none" else boundary
    if given_boundary is None:
        boundary = boundary[:1].expand(len(am), 4).contiguous()
    _, grads = rnnt.rnnt_loss_smoothed(
        lm, am, symbols, case["blank"], boundary=boundary, rnnt_type=case["kind"], return_grad=True, backend="k2")
    ranges = rnnt.get_rnnt_prune_ranges(*grads, boundary, case["kept"], backend="k2")
    results = {}
    for backend in ("k2", "native"):
        inputs = lm.clone().requires_grad_(), am.clone().requires_grad_()
        am_pruned, lm_pruned = rnnt.do_rnnt_pruning(inputs[1], inputs[0], ranges, backend=backend)
        logits = am_pruned + lm_pruned.tanh()
        loss, reduced = (
            rnnt.rnnt_loss_pruned(logits, symbols, ranges, case["blank"], given_boundary, case["kind"],
                                  case["penalty"], reduction, backend=backend, **options)
            for reduction in ("none", case["reduction"]))
        slopes = torch.autograd.grad(total(loss), (logits, *inputs))
        results[backend] = (am_pruned, lm_pruned, loss, reduced, *slopes)
    names = ("pruned am", "pruned lm", "loss", case["reduction"], "gradient of logits", "of lm", "of am")
    for name, got, want in zip(names, results["native"], results["k2"]):
        assert got.shape == want.shape
        assert_equal(got, want, case["dtype"], name)


@settings(max_examples=60)
@given(case=batches())
def test_occupancies(case):
    """With all nodes kept and the simple joiner, they are the posteriors that k2 gives of its smoothed loss."""
    lm, am, symbols, boundary = make(case)
    _, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
        lm, am, symbols, case["blank"], 0.0, 0.0, boundary, case["kind"], return_grad=True, reduction="none", backend="k2")
    ranges = torch.arange(case["labels"] + 1).expand(len(am), case["frames"], -1)
    loss, (label, blank) = rnnt.rnnt_loss_pruned(
        am.unsqueeze(2) + lm.unsqueeze(1), symbols, ranges, case["blank"], boundary, case["kind"], reduction="none",
        return_occupancies=True)
    path = torch.isfinite(loss)
    assert_equal(label[path, :, :-1].transpose(1, 2), px_grad[path, :, :case["frames"]], case["dtype"], "label arcs")
    assert_equal(blank[path].transpose(1, 2), py_grad[path], case["dtype"], "blank arcs")


@pytest.mark.parametrize("kind", ["regular", "modified"])
def test_one_frame(kind):
    for dtype in TOLERANCE:
        torch.manual_seed(0)
        logits, symbols = torch.randn(2, 1, 2, 5, dtype=dtype), torch.tensor([[3], [1]])
        ranges = torch.tensor([[[0, 1]]] * 2)
        boundary = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]])
        results = []
        for backend in ("native", "k2"):
            leaf = logits.clone().requires_grad_()
            loss = rnnt.rnnt_loss_pruned(leaf, symbols, ranges, 0, boundary, kind, reduction="none", backend=backend)
            results.append((loss, torch.autograd.grad(loss.sum(), leaf)[0]))
        for name, got, want in zip(("loss", "gradient"), *results):
            assert_equal(got, want, dtype, name)


def test_k2_is_taken_where_it_can_be():
    assert rnnt.backend_in_use() == rnnt.backend_in_use("k2") == "k2"


def test_k2_refuses_a_batch_without_labels_or_with_fewer_frames_than_labels():
    """k2 1.23.4 asserts U >= 1 and T >= U, padding included; both are good lattices. "auto" then goes native."""
    for labels, frames in ((0, 3), (4, 2)):
        am, lm = torch.randn(2, frames, 5), torch.randn(2, labels + 1, 5)
        symbols = torch.ones(2, labels, dtype=torch.int64)
        with pytest.raises(AssertionError):
            k2.rnnt_loss_smoothed(lm, am, symbols, 0)
        with pytest.raises(ValueError, match="k2 1.23.4 takes no batch"):
            rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, backend="k2")
        assert torch.isfinite(rnnt.rnnt_loss_smoothed(lm, am, symbols, 0))


def test_k2_sends_a_gradient_into_an_utterance_without_a_path():
    """Both say +inf; k2's posteriors of it are ones along arcs that lead nowhere, native's are zero."""
    lm, am = torch.randn(1, 4, 5, requires_grad=True), torch.randn(1, 5, 5, requires_grad=True)
    symbols, boundary = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 0, 3, 2]])
    results = {
        backend: rnnt.rnnt_loss_smoothed(
            lm, am, symbols, 0, 0.0, 0.0, boundary, "modified", return_grad=True, backend=backend)
        for backend in ("k2", "native")
    }
    assert results["k2"][0] == results["native"][0] == math.inf
    assert results["k2"][1][1].abs().sum() > 0
    assert results["native"][1][0].abs().sum() == results["native"][1][1].abs().sum() == 0


@pytest.mark.parametrize("scales", [(0.5, 0.5), (0.25, 0.75), (0.9, 0.1), (1.0, 0.0)])
def test_k2_makes_nan_of_scales_that_add_up_to_one(scales):
    """Without a boundary k2 multiplies the -inf after the last frame by the joint's scale, zero; we always give it one."""
    torch.manual_seed(0)
    lm, am, symbols = torch.randn(1, 3, 5, requires_grad=True), torch.randn(1, 4, 5, requires_grad=True), torch.tensor([[1, 2]])
    boundary = torch.tensor([[0, 0, 2, 4]])
    assert torch.isnan(k2.rnnt_loss_smoothed(lm, am, symbols, 0, *scales))

    def results(function, boundary, **backend):
        loss, posteriors = function(lm, am, symbols, 0, *scales, boundary=boundary, return_grad=True, **backend)
        return loss.detach(), *posteriors, *torch.autograd.grad(loss, (lm, am))

    want = results(k2.rnnt_loss_smoothed, boundary)
    assert torch.isfinite(want[0])
    for backend in ("k2", "auto", "native"):
        for given in (None, boundary):
            for got, expected in zip(results(rnnt.rnnt_loss_smoothed, given, backend=backend), want):
                torch.testing.assert_close(got, expected)


def test_k2_drowns_tokens_of_which_am_and_lm_are_sure_in_turn():
    """In float32, where the one is surer by 90 nats of one token and the other as much of another."""
    results = {}
    for dtype in (torch.float32, torch.float64):
        am, lm = torch.zeros(1, 3, 4, dtype=dtype), torch.zeros(1, 2, 4, dtype=dtype)
        am[:, :, 1], lm[:, :, 2] = 90.0, 90.0
        lm.requires_grad_()
        for backend in ("k2", "native"):
            loss = rnnt.rnnt_loss_smoothed(lm, am, torch.tensor([[3]]), 0, 0.25, 0.0, backend=backend)
            results[backend, dtype] = (loss.detach(), *torch.autograd.grad(loss, lm))
    right = results["k2", torch.float64]
    assert_equal(right[0], results["native", torch.float64][0], torch.float64, "loss")
    for one, other, wrong in zip(results["native", torch.float32], right, results["k2", torch.float32]):
        assert_equal(one.double(), other, torch.float32, "native")
        assert (wrong - other).abs().max() > 0.1


def test_k2_does_not_widen_ranges_that_leave_no_path():
    """An utterance of U > (R - 1) T has no path in k2 1.23.4's ranges; here R is raised, with either backend."""
    px_grad, py_grad = torch.rand(2, 6, 7), torch.rand(2, 7, 6)
    boundary = torch.tensor([[0, 0, 6, 6], [0, 0, 5, 2]])
    assert k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 2)[1, 1].max() < 5
    native, by_k2 = (
        rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 2, backend=backend) for backend in ("native", "k2"))
    assert torch.equal(native, by_k2) and native.shape == (2, 6, 4) and native[1, 1].max() == 5


def with_value(value, where):
    """A batch with one bad number, and the same batch without it."""
    torch.manual_seed(1)
    lm, am, symbols = torch.randn(2, 4, 5), torch.randn(2, 5, 5), torch.randint(1, 5, (2, 3))
    logits = am.unsqueeze(2) + lm.unsqueeze(1).tanh()
    clean = dict(lm=lm.clone(), am=am.clone(), logits=logits.clone())
    dict(lm=lm[0, 1], am=am[0, 1], logits=logits[0, 1, 1])[where][3] = value
    return dict(lm=lm, am=am, logits=logits), clean, symbols


def losses_of(tensors, symbols, backend):
    lm, am, logits = (tensors[name].clone().requires_grad_() for name in ("lm", "am", "logits"))
    ranges = torch.arange(4).expand(2, 5, 4)
    simple = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, reduction="none", backend=backend)
    pruned = rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, reduction="none", backend=backend)
    return simple, pruned, *torch.autograd.grad(simple.sum() + pruned.sum(), (lm, am, logits))


def test_k2_gives_a_finite_loss_for_a_nan_and_a_gradient_of_nan():
    bad, _, symbols = with_value(math.nan, "logits")
    _, pruned, *_, grad = losses_of(bad, symbols, "k2")
    assert torch.isfinite(pruned).all() and grad[0].isnan().any() and torch.isfinite(grad[1]).all()


def test_k2_carries_a_nan_of_lm_into_other_utterances():
    bad, _, symbols = with_value(math.nan, "lm")
    simple, _, lm_grad, am_grad, _ = losses_of(bad, symbols, "k2")
    assert simple.isnan().all() and lm_grad[1].isnan().any() and am_grad[1].isnan().any()


@pytest.mark.parametrize("where", ["lm", "am", "logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_to_native(value, where):
    bad, clean, symbols = with_value(value, where)
    if value == math.inf:
        with pytest.raises(ValueError, match=f"{where} of utterance 0 is .inf"):
            losses_of(bad, symbols, "auto")
        return
    results, want = losses_of(bad, symbols, "auto"), losses_of(clean, symbols, "k2")
    for got, expected in zip(results, want):
        assert torch.isfinite(got[1]).all()
        assert_equal(got[1], expected[1], torch.float32, "the other utterance")
    touched = 1 if where == "logits" else 0
    native = losses_of(bad, symbols, "native")[touched]
    torch.testing.assert_close(results[touched], native, rtol=0, atol=0, equal_nan=True)
    assert results[touched][0].isnan() == math.isnan(value)
    for grad in results[2:]:
        assert torch.isfinite(grad).all()
