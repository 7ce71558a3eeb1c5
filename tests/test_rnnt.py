"""The transducer functions against torchaudio, against every path written out, and against their own definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib import rnnt

TYPES = ("regular", "modified")
QUICK = settings(max_examples=40)


def labels_for(count, labels, tokens, blank):
    symbols = torch.randint(0, tokens - 1, (count, labels))
    return symbols + (symbols >= blank).long()


def all_nodes(count, frames, labels):
    return torch.arange(labels + 1).expand(count, frames, labels + 1)


def every_path(label_arc, blank_arc, labels, frames, modified):
    """Log of the sum over paths, each multiplied out; the arcs are functions of (t, u), None where there is no arc."""
    totals = []

    def walk(t, u, total):
        if t == frames:
            if u == labels:
                totals.append(total)
            return
        arc = blank_arc(t, u)
        if arc is not None:
            walk(t + 1, u, total + arc)
        arc = label_arc(t, u) if u < labels else None
        if arc is not None:
            walk(t + 1 if modified else t, u + 1, total + arc)

    walk(0, 0, torch.zeros((), dtype=torch.float64))
    return torch.stack(totals).logsumexp(0) if totals else torch.tensor(-math.inf, dtype=torch.float64)


def every_path_in_band(logits, symbols, ranges, blank, labels, frames, modified, power=1.0):
    """The same from the logits (T, R, V) of one utterance and its ranges (T, R), each path to the ``power``."""
    log_probs = power * logits.log_softmax(-1)
    places = [{u: r for r, u in enumerate(row)} for row in ranges.tolist()]

    def arc(t, u, token):
        return log_probs[t, places[t][u], token] if u in places[t] else None

    return every_path(
        lambda t, u: arc(t, u, symbols[u]), lambda t, u: arc(t, u, blank), labels, frames, modified
    )


def make_band(frames, labels, kept, step):
    """A random band (T, R) that begins at 0, rises by at most ``step`` and ends with the last label."""
    starts = [0]
    for t in range(1, frames):
        rise = int(torch.randint(0, step + 1, ()))
        least = (labels + 1 - kept) - step * (frames - 1 - t)  # what is still to climb must stay possible
        starts.append(min(max(starts[-1] + rise, least), labels + 1 - kept))
    return torch.tensor(starts)[:, None] + torch.arange(kept)


@QUICK
@given(seed=st.integers(0, 10**6), tokens=st.integers(2, 50), labels=st.integers(1, 8), frames=st.integers(1, 12))
def test_all_nodes_kept_equals_torchaudio(seed, tokens, labels, frames):
    from torchaudio import functional

    torch.manual_seed(seed)
    count, blank = 3, seed % tokens
    symbols = labels_for(count, labels, tokens, blank)
    boundary = torch.zeros(count, 4, dtype=torch.int64)
    boundary[:, 2] = torch.tensor([labels, labels, int(torch.randint(1, labels + 1, ()))])
    boundary[:, 3] = torch.tensor([frames, int(torch.randint(1, frames + 1, ())), frames])
    logits = (3 * torch.randn(count, frames, labels + 1, tokens)).requires_grad_()
    loss = rnnt.rnnt_loss_pruned(
        logits, symbols, all_nodes(count, frames, labels), blank, boundary, reduction="none", backend="native"
    )
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    expected = functional.rnnt_loss(
        logits, symbols.int(), boundary[:, 3].int(), boundary[:, 2].int(), blank=blank, reduction="none"
    )
    (expected_grad,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@QUICK
@given(seed=st.integers(0, 10**6), labels=st.integers(0, 4), frames=st.integers(1, 5), kept=st.integers(1, 5),
       kind=st.sampled_from(TYPES), step=st.integers(0, 2), sharpness=st.sampled_from([1.0, 0.5, 2.0, 30.0]))
def test_pruned_loss_sums_every_path_of_the_band(seed, labels, frames, kept, kind, step, sharpness):
    torch.manual_seed(seed)
    modified = kind == "modified"
    tokens, blank, kept = 4, seed % 4, min(kept, labels + 1)
    symbols = labels_for(1, labels, tokens, blank)
    ranges = make_band(frames, labels, kept, min(step, 1) if modified else step).unsqueeze(0).clamp(min=0)
    logits = torch.randn(1, frames, kept, tokens, dtype=torch.float64, requires_grad=True)
    if ranges[0, -1, -1] + (modified and labels > 0) < labels <= (frames if modified else labels):
        with pytest.raises(ValueError, match="ranges of utterance 0 do not cover its labels"):
            rnnt.rnnt_loss_pruned(logits, symbols, ranges, blank, None, kind, backend="native")
        return
    loss = rnnt.rnnt_loss_pruned(logits, symbols, ranges, blank, None, kind, reduction="sum", sharpness=sharpness,
                                 backend="native")
    expected = -every_path_in_band(logits[0], symbols[0].tolist(), ranges[0], blank, labels, frames, modified,
                                   sharpness) / sharpness
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(loss, logits)
    expected_grad = torch.autograd.grad(expected, logits)[0] if expected.requires_grad else torch.zeros_like(grad)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@QUICK
@given(seed=st.integers(0, 10**6), labels=st.integers(0, 4), frames=st.integers(1, 5), kept=st.integers(1, 5),
       kind=st.sampled_from(TYPES))
def test_occupancies_are_the_posteriors_of_the_arcs(seed, labels, frames, kept, kind):
    """The derivative of the log of the sum over paths with respect to each arc's log-probability."""
    torch.manual_seed(seed)
    modified, tokens, kept = kind == "modified", 4, min(kept, labels + 1)
    labels = min(labels, frames) if modified else labels
    kept = min(kept, labels + 1) if modified else labels + 1
    symbols = labels_for(1, labels, tokens, 0)
    ranges = make_band(frames, labels, kept, 1 if modified else 0)
    logits = torch.randn(1, frames, kept, tokens, dtype=torch.float64, requires_grad=True)
    loss, (label, blank) = rnnt.rnnt_loss_pruned(
        logits, symbols, ranges[None], 0, None, kind, reduction="sum", return_occupancies=True, backend="native")
    assert label.shape == blank.shape == (1, frames, kept) and not label.requires_grad
    log_probs = logits.detach()[0].log_softmax(-1).requires_grad_()
    want = [torch.zeros(frames, kept + 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def arc(kind, t, u, token):
        r = u - int(ranges[t, 0])
        return log_probs[t, r, token].detach() + want[kind][t, r] if 0 <= r < kept else None

    score = every_path(lambda t, u: arc(0, t, u, int(symbols[0, u])), lambda t, u: arc(1, t, u, 0), labels, frames,
                       modified)
    torch.testing.assert_close(loss, -score.detach(), rtol=1e-12, atol=1e-12)
    slopes = torch.autograd.grad(score, want, allow_unused=True) if score.requires_grad else (None, None)  # no path
    for got, expected in zip((label, blank), slopes):
        expected = torch.zeros_like(want[0]) if expected is None else expected
        torch.testing.assert_close(got[0], expected[:, :kept], rtol=1e-10, atol=1e-12)
    loss.backward()  # asking for them leaves the loss differentiable
    assert logits.grad is not None


@pytest.mark.parametrize("kind", TYPES)
def test_a_sharper_loss_adds_the_entropy_of_the_alignments(kind):
    """Renyi's, by its definition on every path's probability among them; and the occupancies are of the sharper paths."""
    torch.manual_seed(8)
    logits = torch.randn(1, 5, 4, 6, dtype=torch.float64)
    symbols, ranges = labels_for(1, 3, 6, 0), all_nodes(1, 5, 3)

    def loss(sharpness):
        return rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, None, kind, reduction="sum", sharpness=sharpness,
                                     return_occupancies=True, backend="native")

    plain, order = loss(1.0)[0], 3.0
    powers = every_path_in_band(logits[0], symbols[0].tolist(), ranges[0], 0, 3, 5, kind == "modified", order)
    entropy = (powers + order * plain) / (1 - order)  # log of the sum of (p / sum of p) ** order
    sharper, (label, blank) = loss(order)
    assert entropy > 0.1
    torch.testing.assert_close(sharper, plain + (order - 1) / order * entropy, rtol=1e-12, atol=1e-12)
    best, (best_label, best_blank) = loss(rnnt.BEST_PATH)
    assert plain < sharper < best
    for got in (best_label, best_blank):
        torch.testing.assert_close(got, got.round(), rtol=0, atol=1e-6)
    torch.testing.assert_close(label.sum(), torch.tensor(3.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", TYPES)
def test_a_wide_lattice_in_a_narrow_band_sums_every_path(kind):
    """Many more labels than kept nodes: the layout that wraps round."""
    torch.manual_seed(1)
    modified = kind == "modified"
    kept = 2 if modified else 3
    frames, labels, tokens = 6, 6, 5
    symbols = labels_for(1, labels, tokens, 0)
    for _ in range(10):
        ranges = make_band(frames, labels, kept, 1 if modified else 2)
        logits = torch.randn(1, frames, kept, tokens, dtype=torch.float64, requires_grad=True)
        loss = rnnt.rnnt_loss_pruned(logits, symbols, ranges[None], 0, None, kind, reduction="sum", backend="native")
        expected = -every_path_in_band(logits[0], symbols[0].tolist(), ranges, 0, labels, frames, modified)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        if math.isfinite(expected.item()):
            got, want = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_a_band_that_moves_back_is_still_summed():
    torch.manual_seed(2)
    starts = torch.tensor([0, 2, 1, 3, 0, 4, 5, 5])
    ranges = starts[:, None] + torch.arange(3)
    labels, tokens = 7, 4
    symbols = labels_for(1, labels, tokens, 0)
    logits = torch.randn(1, 8, 3, tokens, dtype=torch.float64)
    for kind in TYPES:
        loss = rnnt.rnnt_loss_pruned(logits, symbols, ranges[None], 0, None, kind, reduction="sum", backend="native")
        want = -every_path_in_band(logits[0], symbols[0].tolist(), ranges, 0, labels, 8, kind == "modified")
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)


def smoothed_by_definition(lm, am, symbols, blank, lm_scale, am_scale, labels, frames, modified, penalty=0.0):
    """One loss a utterance, from the 4-D joiner and log-softmaxes."""
    joint = (am.unsqueeze(2) + lm.unsqueeze(1)).log_softmax(-1)
    lm_only = lm.log_softmax(-1).unsqueeze(1)
    unigram = lm.softmax(-1).mean(dim=(0, 1)).log()
    am_only = (am + unigram).log_softmax(-1).unsqueeze(2)
    arcs = (1 - lm_scale - am_scale) * joint + lm_scale * lm_only + am_scale * am_only
    losses = []
    for n, (u_end, t_end) in enumerate(zip(labels, frames)):
        y = symbols[n].tolist()
        losses.append(-every_path(
            lambda t, u: arcs[n, t, u, y[u]] + penalty * ((t_end - 1) / 2 - t),
            lambda t, u: arcs[n, t, u, blank], u_end, t_end, modified))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scales", [(0.0, 0.0), (0.25, 0.0), (0.0, 0.3), (0.25, 0.1), (0.6, 0.4)])
def test_smoothed_loss_is_its_definition(kind, scales):
    torch.manual_seed(3)
    blank, labels, frames = 2, (3, 0, 2), (4, 2, 3)
    lm = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    am = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    symbols = labels_for(3, 3, 6, blank)
    boundary = torch.tensor([[0, 0, u, t] for u, t in zip(labels, frames)])
    loss, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
        lm, am, symbols, blank, *scales, boundary, kind, 0.1, "none", return_grad=True, backend="native")
    want = smoothed_by_definition(lm, am, symbols, blank, *scales, labels, frames, kind == "modified", 0.1)
    torch.testing.assert_close(loss, want, rtol=1e-7, atol=1e-9)  # k2 forms the delay penalty in float32
    for got, expected in zip(torch.autograd.grad(loss.sum(), (lm, am)), torch.autograd.grad(want.sum(), (lm, am))):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    assert px_grad.shape == (3, 3, 4 if kind == "modified" else 5) and py_grad.shape == (3, 4, 4)
    # Every path takes each label once, and T_i blanks (less one for each label, where labels take a frame).
    torch.testing.assert_close(px_grad.sum((1, 2)), torch.tensor(labels, dtype=torch.float64))
    blanks = [t - (u if kind == "modified" else 0) for u, t in zip(labels, frames)]
    torch.testing.assert_close(py_grad.sum((1, 2)), torch.tensor(blanks, dtype=torch.float64))


@pytest.mark.parametrize("kind", TYPES)
def test_gradients_by_finite_differences(kind):
    torch.manual_seed(4)
    lm = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    am = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    symbols = labels_for(2, 3, 3, 1)
    boundary = torch.tensor([[0, 0, 3, 5], [1, 1, 2, 4]])
    assert torch.autograd.gradcheck(
        lambda lm, am: rnnt.rnnt_loss_smoothed(
            lm, am, symbols, 1, 0.2, 0.1, boundary, kind, 0.05, "none", backend="native"), (lm, am))
    logits = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    ranges = (torch.tensor([0, 0, 1, 1, 1])[:, None] + torch.arange(3)).expand(2, 5, 3)
    boundary = torch.tensor([[0, 0, 3, 5], [0, 1, 2, 4]])
    assert torch.autograd.gradcheck(
        lambda x: rnnt.rnnt_loss_pruned(x, symbols, ranges, 1, boundary, kind, 0.05, "none", backend="native"), logits)
    assert torch.autograd.gradcheck(
        lambda x: rnnt.rnnt_loss_pruned(x, symbols, ranges, 1, boundary, kind, 0.05, "none", sharpness=3.0,
                                        backend="native"), logits)


@QUICK
@given(seed=st.integers(0, 10**6), labels=st.integers(0, 5), frames=st.integers(1, 7), kind=st.sampled_from(TYPES),
       more_labels=st.integers(0, 3), more_frames=st.integers(0, 4))
def test_padding_and_company_change_nothing(seed, labels, frames, kind, more_labels, more_frames):
    torch.manual_seed(seed)
    tokens = 5
    lm, am = torch.randn(1, labels + 1, tokens).double(), torch.randn(1, frames, tokens).double()
    symbols = labels_for(1, labels, tokens, 0)
    boundary = torch.tensor([[0, 0, labels, frames]])
    # The utterance in a batch of two, padded with zeros as labels and large numbers as scores.
    wide_lm = 50 * torch.randn(2, labels + 1 + more_labels, tokens).double()
    wide_am = 50 * torch.randn(2, frames + more_frames, tokens).double()
    wide_lm[0, : labels + 1], wide_am[0, :frames] = lm[0], am[0]
    wide_symbols = labels_for(2, labels + more_labels, tokens, 0)
    wide_symbols[0, :labels], wide_symbols[0, labels:] = symbols[0], 0
    wide_boundary = torch.tensor([[0, 0, labels, frames], [0, 0, labels + more_labels, frames + more_frames]])

    def both(lm, am, symbols, boundary):
        lm, am = lm.requires_grad_(), am.requires_grad_()
        simple, grads = rnnt.rnnt_loss_smoothed(
            lm, am, symbols, 0, 0.25, 0.0, boundary, kind, 0.01, "none", True, backend="native")
        every = all_nodes(len(am), am.shape[1], lm.shape[1] - 1)
        am_pruned, lm_pruned = rnnt.do_rnnt_pruning(am, lm, every, backend="native")
        pruned = rnnt.rnnt_loss_pruned(
            (am_pruned + lm_pruned).tanh(), symbols, every, 0, boundary, kind, 0.01, "none", backend="native")
        total = simple[0] + pruned[0]
        if not torch.isfinite(total):
            return simple[0], pruned[0], None, None
        return (simple[0], pruned[0], *torch.autograd.grad(total, (lm, am)))

    alone = both(lm, am, symbols, boundary)
    batched = both(wide_lm, wide_am, wide_symbols, wide_boundary)
    for one, other in zip(alone[:2], batched[:2]):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    if alone[2] is not None:
        for one, other in zip(alone[2:], batched[2:]):
            torch.testing.assert_close(one[0], other[0, : one.shape[1]], rtol=1e-6, atol=1e-6)
            assert other[0, one.shape[1]:].abs().sum() == 0 and other[1].abs().sum() == 0


def ranges_by_definition(px_grad, py_grad, labels, frames, kept, modified):
    """One utterance in plain Python: the best window of each frame, then the constraints from the last frame back."""
    total, columns = py_grad.shape
    starts = []
    for t in range(columns):
        worth = [sum(py_grad[u][t].item() for u in range(s, s + kept)) - (px_grad[s - 1][t].item() if s else 0.0)
                 for s in range(total - kept + 1)]
        starts.append(worth.index(max(worth)) if t < frames - 1 else max(labels - kept + 1, 0))
    rise = 1 if modified else kept - 1
    for t in reversed(range(columns - 1)):
        starts[t] = min(starts[t], starts[t + 1])
    for t in reversed(range(columns - 1)):
        starts[t] = max(starts[t], starts[t + 1] - rise)
    return [min(s, rise * t) for t, s in enumerate(starts)]


@QUICK
@given(seed=st.integers(0, 10**6), labels=st.integers(1, 12), frames=st.integers(1, 14), kept=st.integers(2, 6),
       kind=st.sampled_from(TYPES))
def test_prune_ranges(seed, labels, frames, kept, kind):
    torch.manual_seed(seed)
    modified = kind == "modified"
    frames = max(frames, labels) if modified else frames
    px_grad = torch.rand(2, labels, frames + (0 if modified else 1), dtype=torch.float64)
    py_grad = torch.rand(2, labels + 1, frames, dtype=torch.float64)
    u, t = int(torch.randint(0, labels + 1, ())), int(torch.randint(1, frames + 1, ()))
    boundary = torch.tensor([[0, 0, labels, frames], [0, 0, min(u, t), t]])
    ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, kept, backend="native")
    width = ranges.shape[2]
    needed = 1 if modified else -(-labels // frames) + 1
    assert width == min(max(kept, needed), labels + 1) and ranges.dtype == torch.int64
    assert torch.equal(ranges, ranges[:, :, :1] + torch.arange(width))
    for n, (_, _, u_end, t_end) in enumerate(boundary.tolist()):
        starts = ranges[n, :, 0].tolist()
        assert starts == ranges_by_definition(px_grad[n], py_grad[n], u_end, t_end, width, modified)
        assert starts[0] == 0 and all(0 <= b - a < max(width, 2) for a, b in zip(starts, starts[1:]))
        assert ranges[n, t_end - 1, 0] <= u_end <= ranges[n, t_end - 1, -1]  # a path survives


def test_pruning_selects_and_hands_back_the_gradient():
    torch.manual_seed(5)
    am, lm = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 5, 6, requires_grad=True)
    ranges = torch.tensor([[0, 1], [1, 2], [3, 4]]).expand(2, 3, 2)
    am_pruned, lm_pruned = rnnt.do_rnnt_pruning(am, lm, ranges, backend="native")
    assert torch.equal(am_pruned, torch.stack([am, am], dim=2))
    want = torch.stack([lm[n][ranges[n]] for n in range(2)])
    assert torch.equal(lm_pruned, want)
    weight = torch.randn_like(want)
    got = torch.autograd.grad((lm_pruned * weight).sum(), lm)[0]
    torch.testing.assert_close(got, torch.autograd.grad((want * weight).sum(), lm)[0])


def test_fewer_frames_than_labels():
    torch.manual_seed(7)
    lm, am = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 2, 4, requires_grad=True)
    symbols, boundary = labels_for(2, 5, 4, 0), torch.tensor([[0, 0, 5, 2], [0, 0, 1, 2]])
    loss = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.0, 0.0, boundary, reduction="none", backend="native")
    want = smoothed_by_definition(lm.double(), am.double(), symbols, 0, 0.0, 0.0, (5, 1), (2, 2), False)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    loss = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.2, 0.1, boundary, "modified", reduction="none",
                                   backend="native")
    assert loss[0] == math.inf and torch.isfinite(loss[1])
    for grad in torch.autograd.grad(loss[1], (lm, am)):
        assert torch.isfinite(grad).all()


def test_node_symbols():
    symbols = torch.tensor([[5, 6, 7], [8, 0, 0]])
    ranges = torch.tensor([[[0, 1], [1, 2], [2, 3]]]).expand(2, 3, 2)
    labels, mask = rnnt.node_symbols(symbols, ranges, torch.tensor([[0, 0, 3, 3], [0, 0, 1, 2]]), 1)
    assert labels.tolist() == [[[5, 6], [6, 7], [7, 1]], [[8, 1], [1, 1], [1, 1]]]
    assert mask.tolist() == [[[True, True]] * 3, [[True, True], [True, False], [False, False]]]
    labels, mask = rnnt.node_symbols(symbols, ranges, None, 1)
    assert labels[1].tolist() == [[8, 0], [0, 0], [0, 1]] and mask.all()
