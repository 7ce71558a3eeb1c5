"""The compiled kernels against those in plain torch, and the functions without Numba."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlib import rnnt
from kdlib.config import ModelConfig
from kdlib.joiner import Joiner
from kdlib.rnnt import cpu, plain

pytestmark = pytest.mark.both

MANY = settings(max_examples=80)
DTYPES = st.sampled_from([torch.float32, torch.float64])
TOLERANCE = {torch.float32: dict(rtol=1e-5, atol=1e-6), torch.float64: dict(rtol=1e-12, atol=1e-13)}


def make_rows(seed, rows, tokens, dtype, scale):
    """Logits (M, V) with a few infinities and nans, labels, and which rows are wanted."""
    torch.manual_seed(seed)
    logits = scale * torch.randn(rows, tokens, dtype=dtype)
    for value in (-math.inf, math.inf, math.nan, -math.nan):  # a nan has a sign, too
        if torch.rand(()) < 0.4:
            logits[torch.randint(rows, ()), torch.randint(tokens, ())] = value
    if torch.rand(()) < 0.5:
        logits[torch.randint(rows, ())] = -math.inf
    return logits, torch.randint(tokens, (rows,)), torch.rand(rows) < 0.8


def assert_close(got, want, dtype):
    for one, other in zip(got, want):
        assert one.dtype == other.dtype == dtype
        torch.testing.assert_close(one, other, equal_nan=True, **TOLERANCE[dtype])


@MANY
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), tokens=st.integers(2, 600), dtype=DTYPES,
       scale=st.sampled_from([0.1, 3.0, 60.0]))
def test_log_probabilities(seed, rows, tokens, dtype, scale):
    logits, labels, wanted = make_rows(seed, rows, tokens, dtype, scale)
    got, want = (kernels.log_softmax_at(logits, labels, seed % tokens, wanted) for kernels in (cpu, plain))
    assert_close(got, want, dtype)


@MANY
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), tokens=st.integers(2, 600), dtype=DTYPES,
       how=st.sampled_from(["apart", "in place", "added"]))
def test_logit_gradients(seed, rows, tokens, dtype, how):
    logits, labels, wanted = make_rows(seed, rows, tokens, dtype, 3.0)
    blank = seed % tokens
    normaliser = plain.log_softmax_at(logits, labels, blank, torch.ones_like(wanted))[0]
    # As the lattice has it: a row with a nan or +inf has no weight, nor have those outside.
    wanted &= torch.isfinite(normaliser) & torch.isfinite(logits.amax(1))
    weights = [torch.randn(rows, dtype=dtype) * wanted for _ in range(2)]
    results = []
    for kernels in (cpu, plain):
        source = logits.clone()
        out = source if how == "in place" else torch.full_like(logits, 0.25)
        kernels.logit_gradient(source, labels, blank, normaliser, *weights, out=out, add=how == "added")
        results.append(out)
    assert_close(results[:1], results[1:], dtype)
    assert torch.equal(results[0][~wanted], torch.full_like(logits, 0.25 if how == "added" else 0.0)[~wanted])


@MANY
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), frames=st.integers(1, 9), labels=st.integers(0, 7),
       kept=st.integers(1, 8), modified=st.booleans(), dtype=DTYPES, begins=st.booleans(), occupancies=st.booleans())
def test_lattices(seed, count, frames, labels, kept, modified, dtype, begins, occupancies):
    torch.manual_seed(seed)
    kept = min(kept, labels + 1)
    starts = torch.randint(0, labels + 2 - kept, (count, frames))  # a band may move back
    if seed % 3:
        starts = starts.sort(dim=1).values
        starts[:, 0], starts[:, -1] = 0, labels + 1 - kept
    boundary = torch.tensor([[0, 0, labels, frames]]).repeat(count, 1)
    for n in range(1, count):
        boundary[n, 2], boundary[n, 3] = torch.randint(labels + 1, ()), torch.randint(1, frames + 1, ())
        if begins:
            boundary[n, 0] = torch.randint(int(boundary[n, 2]) + 1, ())
            boundary[n, 1] = torch.randint(int(boundary[n, 3]) + 1, ())  # no frame at all, too
    arcs = [-3 * torch.rand(count, frames, kept, dtype=dtype) for _ in range(2)]
    if torch.rand(()) < 0.3:
        arcs[torch.randint(2, ())].view(-1)[torch.randint(arcs[0].numel(), ())] = -math.inf
    got, want = (
        kernels.score_lattice(*arcs, starts, boundary, modified, occupancies) for kernels in (cpu, plain))
    torch.testing.assert_close(got.score, want.score, rtol=1e-12, atol=1e-12, equal_nan=True)
    for one, other in zip(got[1:], want[1:]):
        if occupancies:
            assert one.dtype == other.dtype == dtype
            torch.testing.assert_close(one, other, **TOLERANCE[dtype])
        else:
            assert one is None and other is None


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match="the columns have 3, 2"):
        cpu.kl_divergence(torch.zeros(3, 4), torch.zeros(2, 4), 1.0)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("kernels", [cpu, plain])
def test_a_nan_on_a_path(kernels, modified):
    torch.manual_seed(2)
    label_arcs, blank_arcs = -torch.rand(2, 4, 3), -torch.rand(2, 4, 3)
    label_arcs[1, 1, 0] = blank_arcs[1, 1, 0] = math.nan
    starts, boundary = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[0, 0, 2, 4], [0, 0, 2, 4]])
    score, *posteriors = kernels.score_lattice(label_arcs, blank_arcs, starts, boundary, modified, True)
    assert torch.isfinite(score[0]) and score[1].isnan()
    for posterior in posteriors:
        assert posterior[0].sum() > 0 and posterior[1].abs().sum() == 0


def test_without_numba(monkeypatch):
    """The same results from the functions, by plain torch."""
    torch.manual_seed(0)
    lm, am = torch.randn(2, 4, 9, requires_grad=True), torch.randn(2, 6, 9, requires_grad=True)
    symbols, boundary = torch.randint(1, 9, (2, 3)), torch.tensor([[0, 0, 3, 6], [0, 0, 1, 4]])
    joiner = Joiner(ModelConfig(joiner_dim=9), 9)

    def everything():
        simple, grads = rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, 0.2, 0.1, boundary, return_grad=True,
                                                backend="native")
        ranges = rnnt.get_rnnt_prune_ranges(*grads, boundary, 3, backend="native")
        logits = joiner(*rnnt.do_rnnt_pruning(am, lm, ranges, backend="native"))
        pruned = rnnt.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, backend="native")
        fused = rnnt.rnnt_loss_fused(joiner, am, lm, symbols, ranges, 0, boundary)
        return [simple, pruned, fused, *grads, *torch.autograd.grad(simple + pruned + 2 * fused, (lm, am))]

    compiled = everything()
    monkeypatch.setattr(cpu, "available", lambda: False)
    for one, other in zip(compiled, everything()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_numba_that_cannot_be_imported(monkeypatch, tmp_path):
    """Missing: silently; broken: with a warning that says why."""
    cpu.available.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "numba", None)
        assert not cpu.available()
        (tmp_path / "numba.py").write_text("raise ImportError('needs another NumPy')")
        monkeypatch.delitem(sys.modules, "numba")
        monkeypatch.syspath_prepend(tmp_path)
        cpu.available.cache_clear()
        with pytest.warns(UserWarning, match="needs another NumPy"):
            assert not cpu.available()
    finally:
        monkeypatch.undo()
        cpu.available.cache_clear()


def test_what_numba_keeps_and_cannot_be_read(tmp_path):
    """As a power cut leaves it: named, with a remedy."""
    code = """
import torch
from kdlib.errors import run_main
from kdlib.rnnt import cpu
rows = torch.zeros(3, 4)
run_main(lambda: cpu.kl_divergence(rows, rows, 1.0))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment).returncode == 0
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(b"")
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.startswith(f"error: {tmp_path}") and ended.stderr.count("\n") == 1
    assert "remove it, free some space, or name another folder in NUMBA_CACHE_DIR" in ended.stderr


@pytest.mark.parametrize("threads", [1, 3])
def test_threads(threads):
    """The rows are dealt out to as many threads as torch has, to the same result."""
    torch.manual_seed(1)
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = cpu.log_softmax_at(logits, labels, 0, torch.ones(50, dtype=torch.bool))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got[1], logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1))
