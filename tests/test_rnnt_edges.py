"""The transducer functions at their edges: infinities, no path, reductions, bad arguments, a k2 that is not there."""

import math
import subprocess
import sys

import pytest
import torch

from kdlib import rnnt
from kdlib.errors import RecipeError

TYPES = ("regular", "modified")


def test_importing_needs_neither_k2_nor_torchaudio():
    code = "import sys, kdlib.rnnt; print([m for m in ('k2', '_k2', 'torchaudio', 'lhotse') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", TYPES)
def test_no_path_is_infinite_and_leaves_the_others_alone(kind):
    torch.manual_seed(6)
    logits = torch.randn(3, 4, 2, 5)
    symbols = torch.randint(1, 5, (3, 4))
    ranges = torch.tensor([0, 1, 2, 3])[:, None] + torch.arange(2)
    blocked = torch.tensor([0, 0, 0, 3])[:, None] + torch.arange(2)  # no arc leads into its last frame
    ranges = torch.stack([ranges, blocked, ranges])
    logits[0, :, :, 4] = -math.inf  # a token that nobody may say
    symbols[symbols == 4] = 3
    logits[2, 0] = -math.inf  # one way through the first frame
    logits[2, 0, 0, symbols[2, 0]] = 0.0
    logits[2, 0, 1, 0] = 0.0
    logits.requires_grad_()
    loss = rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, None, kind, reduction="none", backend="native")
    assert loss[1] == math.inf and torch.isfinite(loss[[0, 2]]).all()
    (grad,) = torch.autograd.grad(loss[[0, 2]].sum(), logits, retain_graph=True)
    assert torch.isfinite(grad).all() and grad[0].abs().sum() > 0 and grad[2].abs().sum() > 0
    assert torch.autograd.grad(loss[1], logits)[0].abs().sum() == 0


@pytest.mark.parametrize("kind", TYPES)
def test_minus_infinity_is_never_nan(kind):
    """A token that nobody may say, and padding of nothing but -inf."""
    torch.manual_seed(9)
    lm, am = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    lm[:, :, 5], am[:, :, 5] = -math.inf, -math.inf
    am[1, 3:], lm[1, 3:] = -math.inf, -math.inf
    symbols, boundary = torch.randint(1, 5, (2, 3)), torch.tensor([[0, 0, 3, 5], [0, 0, 2, 3]])
    lm, am = lm.requires_grad_(), am.requires_grad_()
    loss = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, kind, backend="native")
    pruned = rnnt.rnnt_loss_pruned(
        am.unsqueeze(2) + lm.unsqueeze(1), symbols, torch.arange(4).expand(2, 5, 4), 0, boundary, kind, backend="native")
    assert torch.isfinite(loss) and torch.isfinite(pruned)
    for grad in (*torch.autograd.grad(loss, (lm, am)), *torch.autograd.grad(pruned, (lm, am))):
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0
    am = am.detach().clone()
    am[0, 2] = -math.inf
    assert rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, kind, backend="native") == math.inf


@pytest.mark.parametrize("scales", [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4), (0.1, 0.9)])
def test_scales_that_add_up_to_one_but_for_rounding(scales):
    """The joint, whose scale is then 0, does not count, also where a label is excluded by -inf."""
    torch.manual_seed(10)
    lm, am, symbols = torch.randn(2, 3, 5), torch.randn(2, 4, 5), torch.tensor([[1, 2], [3, 1]])
    lm[0, :, 2], am[0, :, 2] = -math.inf, -math.inf
    loss = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, *scales, reduction="none", backend="native")
    assert loss[0] == math.inf and torch.isfinite(loss[1])


def test_tokens_of_which_am_and_lm_are_sure_in_turn():
    """Each by 100 nats, of different ones: in float32 what it is in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        am, lm = torch.zeros(1, 2, 3, dtype=dtype), torch.zeros(1, 1, 3, dtype=dtype)
        am[:, :, 1], lm[:, :, 2] = 100.0, 100.0
        am.requires_grad_(), lm.requires_grad_()
        loss = rnnt.rnnt_loss_smoothed(lm, am, torch.zeros(1, 0, dtype=torch.long), 0, 0.0, 0.0, backend="native")
        results.append([loss.double(), *(grad.double() for grad in torch.autograd.grad(loss, (am, lm)))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert results[1][0].item() == pytest.approx(2 * (100 + math.log(2)))


@pytest.mark.both
@pytest.mark.parametrize("below", [0.0, 60.0, 88.0, 100.0, 1000.0])
@pytest.mark.parametrize("kind", TYPES)
def test_a_token_that_lm_excludes_in_all_histories(kind, below):
    """By so many nats: float32 gives what float64 does, whose gradient is that of the loss."""
    torch.manual_seed(11)
    lm, am = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 40, 5, dtype=torch.float64)
    lm[:, :, 0] -= below  # the blank, which every path is full of
    lm[:, :, 3] -= below / 2
    symbols, boundary = torch.tensor([[1, 3], [2, 1]]), torch.tensor([[0, 0, 2, 40], [0, 0, 1, 30]])

    def loss(lm, am):
        return rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.1, 0.25, boundary, kind, backend="native")

    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [x.to(dtype).requires_grad_() for x in (lm, am)]
        value = loss(*inputs)
        results.append([x.double() for x in (value, *torch.autograd.grad(value, inputs))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-4)


@pytest.mark.both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("below", [1.0, 100.0, 1000.0])
def test_what_paths_cost_that_lm_excludes(dtype, below):
    """One path, of two blanks; am knows nothing, so that all parts of the smoothed arcs are lm's."""
    am, lm = torch.zeros(1, 2, 3, dtype=dtype), torch.zeros(1, 1, 3, dtype=dtype)
    lm[:, :, 0] = -below
    loss = rnnt.rnnt_loss_smoothed(lm, am, torch.zeros(1, 0, dtype=torch.long), 0, 0.1, 0.5, backend="native")
    assert loss.item() == pytest.approx(2 * (below + math.log(2 + math.exp(-below))), rel=1e-6)


@pytest.mark.both
def test_a_token_that_nobody_may_say_with_the_scale_of_am():
    """And padding of nothing but -inf: the loss is what it is of the other tokens alone."""
    torch.manual_seed(12)
    lm, am, symbols = torch.randn(2, 3, 6), torch.randn(2, 5, 6), torch.tensor([[1, 4], [2, 1]])
    am[1, 3:] = -math.inf
    boundary = torch.tensor([[0, 0, 2, 5], [0, 0, 1, 3]])
    losses, grads = [], []
    for tokens in (5, 6):
        some = [x[:, :, :tokens].clone() for x in (lm, am)]
        for x in some:
            x[:, :, 5:] = -math.inf
            x.requires_grad_()
        losses.append(rnnt.rnnt_loss_smoothed(*some, symbols, 0, 0.1, 0.25, boundary, backend="native"))
        grads.append(torch.autograd.grad(losses[-1], some))
    torch.testing.assert_close(*losses)
    for one, other in zip(*grads):
        torch.testing.assert_close(other[:, :, :5], one)
        assert (other[:, :, 5:] == 0).all()


def test_reductions_and_half_precision():
    torch.manual_seed(8)
    logits, symbols, ranges = torch.randn(3, 4, 3, 5), torch.randint(1, 5, (3, 2)), torch.arange(3).expand(3, 4, 3)
    each = rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, reduction="none", backend="native")
    assert each.shape == (3,)
    torch.testing.assert_close(rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, backend="native"), each.mean())
    total = rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, reduction="sum", backend="native")
    torch.testing.assert_close(total, each.sum())
    half = logits.bfloat16().requires_grad_()
    loss = rnnt.rnnt_loss_pruned(half, symbols, ranges, 0, backend="native")
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, each.mean(), rtol=0.05, atol=0.05)


def test_k2_asked_for_and_missing(monkeypatch):
    from kdlib.rnnt import k2_backend

    monkeypatch.setitem(sys.modules, "k2", None)
    k2_backend.load.cache_clear()
    try:
        assert rnnt.backend_in_use() == rnnt.backend_in_use("native") == "native"
        with pytest.raises(RecipeError, match="tools/install.sh --k2"):
            rnnt.backend_in_use("k2")
    finally:
        k2_backend.load.cache_clear()


BAD = {
    "rnnt_type 'constrained'": dict(rnnt_type="constrained"),
    "reduction 'median'": dict(reduction="median"),
    "backend 'cuda'": dict(backend="cuda"),
    "delay_penalty": dict(delay_penalty=-1.0),
    "termination_symbol 9": dict(termination_symbol=9),
    "boundary must be int64": dict(boundary=torch.zeros(2, 4)),
    r"boundary must be int64 \(N, 4\), not": dict(boundary=[[0, 0, 2, 3]] * 2),
    "boundary of utterance 1 lies outside": dict(boundary=torch.tensor([[0, 0, 2, 3], [0, 0, 2, 9]])),
    "symbols of utterance 0 lie outside": dict(symbols=torch.tensor([[9, 1], [1, 2]])),
    "symbols of utterance 1 contain the termination symbol 0": dict(symbols=torch.tensor([[1, 1], [1, 0]])),
    "ranges of utterance 1 do not cover its labels: at its last frame they keep 0 to 0 of 2 labels": dict(
        ranges=torch.tensor([[[0], [1], [2]], [[0], [0], [0]]]), logits=torch.zeros(2, 3, 1, 4)),
    "logits of utterance 1 is .inf": dict(logits=torch.tensor([0.0, math.inf]).view(2, 1, 1, 1).expand(2, 3, 2, 4)),
    "symbols lies on meta, logits on cpu": dict(symbols=torch.zeros(2, 2, dtype=torch.int64, device="meta")),
    "backend 'cuda!' is not known": dict(backend="cuda!", return_occupancies=True),
    "sharpness must be a number, finite and not negative, not torch.float32": dict(sharpness=torch.tensor(2.0)),
    "return_occupancies: k2 has nothing of the kind": dict(return_occupancies=True, backend="k2"),
    "sharpness must be above 0": dict(sharpness=0.0),
    "sharpness must be a number, finite": dict(sharpness=math.nan),
    "ranges of utterance 1 are not consecutive": dict(ranges=torch.tensor([[[0, 1]] * 3, [[0, 2]] * 3])),
    "ranges must be int64": dict(ranges=torch.zeros(2, 5, 2, dtype=torch.int64)),
    "logits is empty": dict(logits=torch.zeros(0, 3, 2, 4)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    arguments = dict(logits=torch.zeros(2, 3, 2, 4), symbols=torch.tensor([[1, 2], [3, 1]]), termination_symbol=0,
                     ranges=torch.tensor([[[0, 1], [0, 1], [1, 2]]] * 2))
    rnnt.rnnt_loss_pruned(**arguments)
    with pytest.raises(ValueError, match=message):
        rnnt.rnnt_loss_pruned(**{**arguments, **BAD[message]})


def test_bad_arguments_of_the_smoothed_loss():
    lm, am, symbols = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), torch.tensor([[1, 2], [3, 1]])
    infinite = am.clone()
    infinite[1, 2, 0] = math.inf
    for message, change in {
        "lm is torch.float64, am is torch.float32": dict(lm=lm.double()),
        "am is empty": dict(am=am[:, :0]),
        "lm .* and am .* must agree": dict(am=am[:, :, :3]),
        "symbols has 1 labels, lm is for 2": dict(symbols=symbols[:, :1]),
        "am of utterance 1 is .inf": dict(am=infinite),
        "lm of utterance 0, 1 is .inf": dict(lm=torch.full_like(lm, math.inf)),
    }.items():
        with pytest.raises(ValueError, match=message):
            rnnt.rnnt_loss_smoothed(**{**dict(lm=lm, am=am, symbols=symbols, termination_symbol=0), **change})
    # What lies outside an utterance may hold anything.
    infinite[0, 4] = math.inf
    boundary = torch.tensor([[0, 0, 2, 4], [0, 0, 2, 2]])
    assert torch.isfinite(rnnt.rnnt_loss_smoothed(lm, infinite, symbols, 0, 0.1, 0.0, boundary, backend="native"))


@pytest.mark.parametrize("kind", TYPES)
def test_nan_stays_in_its_utterance(kind):
    torch.manual_seed(3)
    logits, symbols, ranges = torch.randn(3, 4, 3, 5), torch.randint(1, 5, (3, 2)), torch.arange(3).expand(3, 4, 3)
    lm, am = torch.randn(3, 3, 5), torch.randn(3, 4, 5)

    def losses(logits, lm, am):
        logits, lm, am = (x.clone().requires_grad_() for x in (logits, lm, am))
        pruned = rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, None, kind, reduction="none", backend="native")
        simple = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, None, kind, reduction="none", backend="native")
        return pruned, simple, torch.autograd.grad(pruned.sum() + simple.sum(), (logits, lm, am))

    clean = losses(logits, lm, am)
    logits[1, 1, 1, 3] = am[1, 0, 2] = math.nan
    pruned, simple, grads = losses(logits, lm, am)
    assert pruned[1].isnan() and simple[1].isnan()
    assert torch.equal(pruned[[0, 2]], clean[0][[0, 2]]) and torch.equal(simple[[0, 2]], clean[1][[0, 2]])
    assert grads[0][1].abs().sum() == 0
    for got, want in zip(grads, clean[2]):
        torch.testing.assert_close(got[[0, 2]], want[[0, 2]], rtol=0, atol=0)
