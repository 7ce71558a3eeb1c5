"""The Triton kernels: in Triton's interpreter against the plain ones, compiled for a GPU, and (``cuda``) on one.

The interpreter has to be chosen before Triton is imported, so each of the ``check_`` functions runs as a process of its
own, ``python tests/test_rnnt_gpu.py check_...``. On a GPU the same functions run compiled.
"""

import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rnnt import TYPES, all_nodes, every_path_in_band, labels_for, make_band
from torch import nn

from kdlib import rnnt
from kdlib.rnnt import checks, fused, gpu, gpu_checks, gpu_launch, gpu_lattice, native, plain

DTYPES = (torch.float32, torch.float64)
needs_triton = pytest.mark.skipif(not gpu.available(), reason="Triton cannot be imported here")


def close(got, want, rtol=None, atol=None):
    """Equal, to a precision that goes with the dtype; nan is equal to nan."""
    precise = want.dtype == torch.float64
    rtol, atol = rtol or (1e-10 if precise else 1e-5), atol or (1e-11 if precise else 1e-5)
    torch.testing.assert_close(got.cpu(), want, rtol=rtol, atol=atol, equal_nan=True)


def random_logits(rows, tokens, dtype):
    logits = (3 * torch.randn(rows, tokens)).to(dtype)
    logits[torch.rand(rows, tokens) < 0.05] = -math.inf
    logits[:, -1] = 1.0
    return logits


SHAPES = ((1, 2), (1, 600), (600, 2), (7, 3), (33, 17), (20, 257), (3, 1024), (4, 2500))


def check_log_softmax_at(device):
    for seed, (rows, tokens) in enumerate(SHAPES):
        for dtype in DTYPES:
            torch.manual_seed(seed)
            logits, labels, wanted = random_logits(rows, tokens, dtype), torch.randint(0, tokens, (rows,)), None
            wanted = torch.rand(rows) < 0.8
            logits[~wanted, 0] = math.nan
            columns = (logits, labels, seed % tokens, wanted)
            got = gpu.log_softmax_at(*(x.to(device) if torch.is_tensor(x) else x for x in columns))
            for one, other in zip(got, plain.log_softmax_at(*columns)):
                close(one, other)

    for tokens in (5, 1030):
        logits = torch.randn(7, tokens)
        logits[0, 2], logits[1, -1], logits[1, ::1024] = math.nan, math.inf, math.inf
        logits[2] = -math.inf
        logits[3, 0], logits[3, -1] = math.inf, math.nan
        logits[4, :-1] = -math.inf
        logits[5] = torch.finfo(torch.float32).min
        logits[6] *= 1e4
        columns = (logits, torch.full((7,), tokens - 1), 1, torch.ones(7, dtype=torch.bool))
        got = gpu.log_softmax_at(*(x.to(device) if torch.is_tensor(x) else x for x in columns))
        want = plain.log_softmax_at(*columns)
        assert torch.isfinite(got[0][2])  # of nothing but -inf; which number it is does not matter
        got[0][2] = want[0][2]
        for one, other in zip(got, want):
            close(one, other)


def check_logit_gradient(device):
    for seed, (rows, tokens) in enumerate(SHAPES):
        for dtype in DTYPES:
            torch.manual_seed(seed)
            logits, labels = random_logits(rows, tokens, dtype), torch.randint(0, tokens, (rows,))
            blank = seed % tokens
            labels[0] = blank
            weights = torch.randn(rows, dtype=dtype)
            weights = [weights * torch.rand(rows, dtype=dtype) for _ in range(2)]
            normaliser = logits.logsumexp(1).clamp_(min=-100)
            for i in range(1, rows, 3):
                weights[0][i] = weights[1][i] = 0
                logits[i], normaliser[i] = math.nan, math.nan
            columns = (logits, labels, blank, normaliser, *weights)
            there = [x.to(device) if torch.is_tensor(x) else x for x in columns]
            want, got = torch.empty_like(logits), torch.full_like(logits, 7.0).to(device)
            plain.logit_gradient(*columns, out=want)
            assert torch.isfinite(want).all()
            gpu.logit_gradient(*there, out=got)
            close(got, want)

            before = torch.randn(rows, tokens, dtype=dtype)
            want, got = before.clone(), before.clone().to(device)
            plain.logit_gradient(*columns, out=want, add=True)
            gpu.logit_gradient(*there, out=got, add=True)
            close(got, want)
            got = before.t().contiguous().to(device).t()
            gpu.logit_gradient(*there, out=got, add=True)
            close(got, want)

            want = torch.empty_like(logits)
            plain.logit_gradient(*columns, out=want)
            in_place = there[0].clone()
            gpu.logit_gradient(in_place, *there[1:], out=in_place)
            close(in_place, want)


def random_lattice(seed, dtype, modified, count=2, frames=None, labels=None, kept=None):
    torch.manual_seed(seed)
    frames = int(torch.randint(1, 6, ())) if frames is None else frames
    labels = int(torch.randint(0, 7, ())) if labels is None else labels
    kept = min(int(torch.randint(1, 5, ())) if kept is None else kept, labels + 1)
    if seed % 2:  # up to the last label
        step = 1 if modified else max(kept - 1, 1)
        starts = torch.stack([make_band(frames, labels, kept, step)[:, 0] for _ in range(count)]).clamp_(min=0)
    else:  # up and down
        starts = torch.randint(0, labels + 2 - kept, (count, frames))
    boundary = torch.tensor([[0, 0, labels, frames]]).repeat(count, 1)
    for row in boundary[1:] if seed % 3 else boundary:
        row[2:] = torch.stack([torch.randint(0, n + 1, ()) for n in (labels, frames)])
        if seed % 5 < 3:
            row[:2] = torch.stack([torch.randint(0, n + 1, ()) for n in row[2:].tolist()])
        if row[1] == row[3]:
            row[0] = row[2]
    scale = (1.0, 3.0, 500.0)[seed % 3]
    arcs = [(-scale * torch.rand(count, frames, kept, dtype=torch.float64)).to(dtype) for _ in range(2)]
    if seed % 4 == 0:
        for arc in arcs:
            arc[torch.rand(arc.shape) < 0.15] = -math.inf
    # What lies outside the lattice is not looked at.
    u, t = starts.unsqueeze(2) + torch.arange(kept), torch.arange(frames).view(1, -1, 1)
    u_begin, t_begin, u_end, t_end = boundary.view(count, 4, 1, 1).unbind(1)
    for arc in arcs:
        arc[~((u >= u_begin) & (u <= u_end) & (t >= t_begin) & (t < t_end))] = math.nan
    return (*arcs, starts, boundary)


def same_lattice(device, arguments, modified):
    want = plain.score_lattice(*arguments, modified, True)
    there = [x.to(device) for x in arguments]
    got = gpu.score_lattice(*there, modified, True)
    assert got.score.dtype == torch.float64 and got.score.device == there[0].device
    close(got.score, want.score)
    for one, other in zip(got[1:], want[1:]):
        assert one.dtype == arguments[0].dtype
        close(one, other.to(one.dtype))
    return got, there


def check_score_lattice(device):
    interpreted = device == "cpu"
    reached = 0
    for seed in range(40 if interpreted else 400):
        modified = seed % 2 == seed // 2 % 2
        got, there = same_lattice(device, random_lattice(seed, DTYPES[seed // 2 % 2], modified), modified)
        labels = int(there[3][:, 2].max()) + seed % 3
        score, *others = gpu.score_lattice(*there, modified, False, labels)
        assert others == [None, None] and torch.equal(score, got.score)
        reached += int(torch.isfinite(score).sum())
    assert reached > seed / 2

    same_lattice(device, random_lattice(1, torch.float64, False, 1, 2, 69, 70), False)
    same_lattice(device, random_lattice(1, torch.float32, True, 3, 30, 40, 300), True)
    # As many labels as go with 64 lanes, and so many paths that m is made smaller on the way; and one label more.
    for labels, frames in ((62, 80), (63, 2)):
        arguments = [torch.full((1, frames, labels + 1), -0.001, dtype=torch.float64) for _ in range(2)]
        arguments += [torch.zeros(1, frames, dtype=torch.int64), torch.tensor([[0, 0, labels, frames]])]
        same_lattice(device, arguments, False)
    for modified in (False, True):
        same_lattice(device, random_lattice(5, torch.float64, modified, 1, 60, 40, 2), modified)  # a long chain
    if not interpreted:
        # More paths than float64 can count.
        arguments = [torch.zeros(1, 1100, 551, dtype=torch.float64) for _ in range(2)]
        arguments += [torch.zeros(1, 1100, dtype=torch.int64), torch.tensor([[0, 0, 550, 1100]])]
        for modified in (False, True):
            same_lattice(device, arguments, modified)
        for seed, kept in ((1, 5), (7, 70), (11, 200), (13, 1100)):
            for modified in (False, True):
                for dtype in DTYPES:
                    frames = max(150, kept + 50)
                    same_lattice(device, random_lattice(seed, dtype, modified, 5, frames, kept + 9, kept), modified)

    # A nan leads to a node that no path goes on from.
    arguments = [-torch.rand(1, 5, 2, dtype=torch.float64) for _ in range(2)]
    arguments += [torch.tensor([[0, 0, 2, 2, 2]]), torch.tensor([[0, 0, 3, 5]])]
    results = []
    for value in (-math.inf, math.nan):
        arguments[1][0, 0, 0] = value
        results.append(gpu.score_lattice(*(x.to(device) for x in arguments), True, True))
    assert torch.isfinite(results[0].score) and all(torch.equal(*both) for both in zip(*results))

    # Numbers that float64 has no place for, and one that is not a number, each leave the others alone.
    for modified in (False, True):
        label, blank, starts, boundary = random_lattice(0, torch.float64, modified, 4, 3, 2, 3)
        label, blank = -torch.rand_like(label), -torch.rand_like(blank)
        boundary[:] = torch.tensor([0, 0, 2, 3])
        label[0], blank[0] = label[0] * 1e30, blank[0] * 1e30
        label[1, 1, :], blank[1, 1, :] = math.nan, math.nan
        label[2], blank[2] = -math.inf, -math.inf
        arguments = [x.to(device) for x in (label, blank, starts, boundary)]
        got, want = (
            module.score_lattice(*x, modified, True)
            for module, x in ((gpu, arguments), (plain, (label, blank, starts, boundary)))
        )
        close(got.score, want.score)
        for one, other in zip(got[1:], want[1:]):
            close(one[1:], other[1:])
            assert ((one[0] >= 0) & (one[0] <= 1)).all()
            assert (one[1:3] == 0).all() and one[3].sum() > 0
        label[3, :, :] = math.inf
        result = gpu.score_lattice(label.to(device), *arguments[1:], modified, True)
        assert not torch.isfinite(result.score[3]) and not any(x[3].any() for x in result[1:])


class TinyJoiner(nn.Module):
    def __init__(self, channels, tokens):
        super().__init__()
        self.out = nn.Linear(channels, tokens)

    def hidden(self, am, lm):
        return torch.tanh(am + lm)

    def forward(self, am, lm):
        return self.out(self.hidden(am, lm))


def public_functions(device, dtype, kind, sizes, ranges=None):
    """What the public functions make of one batch: ranges, losses, posteriors and gradients, on the CPU.

    Their own ranges are among it in any case; what follows on ranges is computed with those given.
    """
    count, frames, labels, tokens, kept = sizes
    torch.manual_seed(6)
    symbols, blank = labels_for(count, labels, tokens, 0), 0
    boundary = torch.tensor([[0, 0, labels, frames]]).repeat(count, 1)
    boundary[-1, 2:] = torch.tensor([labels - 1, frames - 1])
    lm, am = torch.randn(count, labels + 1, tokens).to(dtype), torch.randn(count, frames, tokens).to(dtype)
    joiner = TinyJoiner(tokens, tokens).to(dtype)
    symbols, boundary, lm, am, joiner = (x.to(device) for x in (symbols, boundary, lm, am, joiner))
    lm.requires_grad_(), am.requires_grad_()
    leaves = (lm, am, *joiner.parameters())
    simple, grads = rnnt.rnnt_loss_smoothed(
        lm, am, symbols, blank, 0.25, 0.1, boundary, kind, 0.01, "none", return_grad=True, backend="native")
    own_ranges = rnnt.get_rnnt_prune_ranges(*grads, boundary, kept, backend="native")
    ranges = own_ranges if ranges is None else ranges.to(device)
    pruned = rnnt.do_rnnt_pruning(am, lm, ranges, backend="native")
    loss, occupancies = rnnt.rnnt_loss_pruned(
        joiner(*pruned), symbols, ranges, blank, boundary, kind, 0.01, "none", return_occupancies=True,
        backend="native")
    together = rnnt.rnnt_loss_fused(joiner, am, lm, symbols, ranges, blank, boundary, kind, 0.01, "sum")
    results = [own_ranges, simple, *grads, *pruned, loss, *occupancies, together]
    results += torch.autograd.grad(simple.sum(), (lm, am))
    results += torch.autograd.grad(loss.sum(), leaves)
    results += torch.autograd.grad(together, leaves)
    return [x.detach().cpu() for x in results]


def same_public_functions(device, dtype, kind, sizes):
    want = public_functions("cpu", dtype, kind, sizes)
    if device == "cpu":
        native.kernels_for = fused.kernels_for = lambda tensor: gpu
    got = public_functions(device, dtype, kind, sizes, want[0])
    # In many frames of float32 some two windows hold the same to its precision.
    if dtype == torch.float64 or sizes[1] < 10:
        assert torch.equal(got[0], want[0])
    for one, other in zip(got[1:], want[1:]):
        close(one, other, *((1e-4, 1e-4) if dtype == torch.float32 else (1e-8, 1e-10)))


def check_public_functions(device):
    for dtype, kind in zip(DTYPES, TYPES):
        kernels_for = native.kernels_for
        try:
            same_public_functions(device, dtype, kind, (2, 4, 3, 5, 2))
        finally:
            native.kernels_for = fused.kernels_for = kernels_for


def check_what_is_not_finite(device):
    """nan and +inf at nodes that a path visits, cannot reach, and cannot go on from: the same as by the plain kernels."""
    torch.manual_seed(7)
    symbols, ranges = labels_for(2, 2, 4, 0), all_nodes(2, 3, 2)
    kernels_for = native.kernels_for

    def results(device, kernels, logits):
        native.kernels_for = lambda tensor: kernels
        try:
            leaf = logits.to(device).requires_grad_()
            loss, occupancies = rnnt.rnnt_loss_pruned(
                leaf, symbols.to(device), ranges.to(device), 0, None, "modified", reduction="none",
                return_occupancies=True, backend="native")
            return loss.detach(), *occupancies, torch.autograd.grad(loss.sum(), leaf)[0]
        finally:
            native.kernels_for = kernels_for

    for t, u in ((0, 0), (1, 2), (2, 0)):
        logits = torch.randn(2, 3, 3, 4)
        logits[1, t, u, 3] = math.nan
        got = results(device, gpu, logits.clone())
        for one, other in zip(got, results("cpu", plain, logits.clone())):
            close(one, other)
        assert got[0][1].isnan() and torch.isfinite(got[0][0]) and not got[3][1].any()
        logits[1, t, u, 3] = math.inf
        with pytest.raises(ValueError, match="logits of utterance 1 is .inf"):
            results(device, gpu, logits)

    # A frame and a history of nothing but -inf meet in nodes through which no path leads.
    lm, am, symbols = torch.randn(2, 3, 4), torch.randn(2, 3, 4), symbols.to(device)
    am[1, 1], lm[1, 0] = -math.inf, -math.inf
    native.kernels_for = lambda tensor: gpu
    try:
        loss = rnnt.rnnt_loss_smoothed(lm.to(device), am.to(device), symbols, 0, reduction="none", backend="native")
    finally:
        native.kernels_for = kernels_for
    assert torch.isfinite(loss[0]) and loss[1] == math.inf


@st.composite
def values_to_look_at(draw):
    """The arguments of ``checks.look``: of a lattice that is good, or nearly."""
    count, frames, labels = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(0, 6))
    tokens, kind = draw(st.integers(2, 9)), draw(st.sampled_from(TYPES))
    kept = min(draw(st.integers(1 if kind == "modified" else 2, 4)), labels + 1)
    torch.manual_seed(draw(st.integers(0, 10**6)))
    blank = draw(st.integers(0, tokens - 1))
    symbols = labels_for(count, labels, tokens, blank)
    boundary = torch.tensor([[0, 0, labels, frames]]).repeat(count, 1)
    if draw(st.booleans()):
        for row in boundary[1:]:
            row[2:] = torch.stack([torch.randint(0, n + 1, ()) for n in (labels, frames)])
            row[:2] = torch.stack([torch.randint(0, n + 1, ()) for n in row[2:].tolist()])
    step = 1 if kind == "modified" else kept - 1
    ranges = torch.stack([make_band(frames, labels, kept, step) for _ in range(count)])
    if draw(st.booleans()):  # up to the last label of each utterance, or not quite
        last = boundary[:, 2:3] + 1 - kept - draw(st.integers(0, 1))
        ranges = torch.minimum(step * torch.arange(frames), last).clamp(min=0).unsqueeze(2) + torch.arange(kept)
    far = [-2**63, -1, 2**31, 2**63 - 1]
    near = {"symbols": [blank, 0, tokens - 1, tokens], "others": [0, 1, labels, labels + 1, frames, frames + 1]}
    for name, tensor in (("symbols", symbols), ("others", ranges), ("others", boundary)):
        if tensor.numel() and draw(st.sampled_from([False, False, True])):
            place = draw(st.integers(0, tensor.numel() - 1))
            tensor.view(-1)[place] = draw(st.one_of(st.sampled_from(near[name]), st.sampled_from(far)))
    tokens = draw(st.sampled_from([tokens, None]))
    call = draw(st.sampled_from(["symbols", "boundary", "ranges", "all", "all covered", "covered"]))
    if call not in ("symbols", "all", "all covered"):
        symbols = None
    if call == "ranges":
        boundary = None
    if call in ("symbols", "boundary"):
        ranges = None
    if symbols is None and draw(st.booleans()):
        labels = None
    return symbols, ranges, boundary, frames, labels, tokens, blank, kind if "covered" in call else None


def check_arguments(device):
    """The kernel finds wrong what the torch forms do, and of arguments that are right these are not asked."""
    complaints = ("consecutive", "lies outside the tensors", "negative|vocabulary", "termination symbol", "cover", "^$")
    seen = dict.fromkeys(complaints, 0)

    @settings(max_examples=600, database=None)
    @given(values=values_to_look_at(), block=st.sampled_from([2, 8, 1024]))
    def agree(values, block):
        findings = checks.look(*values)
        want = torch.stack([finding.bad for finding in findings]).any(0)
        gpu_checks.BLOCK = block
        got = gpu_checks.wrong_utterances(*(x.to(device) if torch.is_tensor(x) else x for x in values))
        assert got.device.type == device and torch.equal(got.cpu().bool(), want)
        found = [finding.message() for finding in findings if finding.bad.any()] or [""]
        if len(found) == 1:
            seen[next(complaint for complaint in complaints if re.search(complaint, found[0]))] += 1

    usual = gpu_checks.BLOCK
    try:
        agree()
    finally:
        gpu_checks.BLOCK = usual
    assert min(seen.values()) > 0 and seen["^$"] > 100, seen  # each by itself, and nothing

    kernel_for, look, looks = checks.kernel_for, checks.look, []
    assert device == "cpu" or kernel_for(torch.zeros(1, device=device).device) is gpu_checks.wrong_utterances
    checks.kernel_for = lambda device: gpu_checks.wrong_utterances
    checks.look = lambda *values: looks.append(values) or look(*values)
    try:
        symbols, ranges = torch.tensor([[1, 2], [3, 1]], device=device), all_nodes(2, 3, 2).to(device)
        arcs, logits = torch.randn(2, 3, 3, device=device), torch.randn(2, 3, 3, 5, device=device)
        boundary = torch.tensor([[0, 0, 2, 3], [0, 0, 1, 3]], device=device)
        calls = {
            "smoothed": lambda y, k, b: rnnt.rnnt_loss_smoothed(logits[:, 0], logits[:, 1], y, 0, 0.1, 0.1, b),
            "ranges": lambda y, k, b: rnnt.get_rnnt_prune_ranges(arcs[:, :2], arcs, b, 3),
            "pruning": lambda y, k, b: rnnt.do_rnnt_pruning(arcs, arcs, k),
            "pruned": lambda y, k, b: rnnt.rnnt_loss_pruned(logits, y, k, 0, b),
            "symbols": lambda y, k, b: rnnt.node_symbols(y, k, b, 0),
            "posteriors": lambda y, k, b: rnnt.node_posteriors(arcs, arcs, k, b),
        }
        for call in calls.values():
            call(symbols, ranges, boundary)
        assert not looks
        for name, message, change in (
            ("smoothed", "symbols of utterance 1 lie outside the vocabulary of 5", (symbols + 2, ranges, boundary)),
            ("pruned", "symbols of utterance 1 contain the termination symbol 0", (symbols % 3, ranges, boundary)),
            ("ranges", "boundary of utterance 0, 1 lies outside the tensors .2 labels", (symbols, ranges, boundary + 1)),
            ("pruning", "ranges of utterance 0, 1 are not consecutive", (symbols, ranges * 2, boundary)),
            ("symbols", "symbols of utterance 0, 1 are negative", (symbols - 2, ranges, boundary)),
            ("posteriors", "ranges of utterance 1 do not cover its labels", (symbols, ranges + 2, boundary)),
        ):
            with pytest.raises(ValueError, match=message):
                calls[name](*change)
        assert len(looks) == 6
    finally:
        checks.kernel_for, checks.look = kernel_for, look


CHECKS = (check_log_softmax_at, check_logit_gradient, check_score_lattice, check_public_functions, check_what_is_not_finite,
          check_arguments)


@needs_triton
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_in_the_interpreter(check):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__, check], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tensors_that_are_taken():
    assert not gpu.takes(torch.zeros(1))  # on the CPU, without the interpreter
    assert native.kernels_for(torch.zeros(1)) is not gpu
    assert not gpu.takes(torch.zeros(1, dtype=torch.float16))
    # Nothing but a CUDA tensor brings Triton in.
    code = "import sys, kdlib.rnnt; print([m for m in ('triton', 'kdlib.rnnt.gpu') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@needs_triton
def test_a_device_that_triton_cannot_launch_on():
    with pytest.warns(UserWarning, match="Triton cannot launch a kernel on cpu .*: slower kernels"):
        assert not gpu._launches(torch.device("cpu"))
    gpu._launches.cache_clear()


def test_a_device_without_memory_left_is_asked_again(monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    gpu._launches.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "log_softmax_at", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            gpu._launches(torch.device("cpu"))
    monkeypatch.setattr(gpu, "log_softmax_at", lambda *_: None)
    assert gpu._launches(torch.device("cpu"))
    gpu._launches.cache_clear()


def test_imports_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from kdlib.rnnt import gpu; print(gpu.available(), gpu.takes(torch.zeros(1)))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "False False\n"


def compile_for_gpu(kernel, dtype, constants, **options):
    """PTX of a kernel for an H100 or H200, and its machine code, by ptxas; no GPU is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"labels": "*i64", "starts": "*i64", "boundary": "*i64", "wanted": "*u8"}
    kinds["variables"] = "*fp64"
    kinds.update(dict.fromkeys(("rows", "units", "blank", "blocks", "count", "frames", "nodes"), "i32"))
    kinds.update(symbols="*i64", ranges="*i64", wrong="*u8", tokens="i32")
    if kernel in (gpu_lattice._lattice, gpu_lattice._posteriors):
        kinds["score"] = "*fp64"
    kinds.update(dict.fromkeys(constants, "constexpr"))
    signature = {name: kinds.get(name, "*fp32" if dtype == torch.float32 else "*fp64") for name in kernel.arg_names}
    # As with tensors from torch: addresses that are multiples of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    return code["ptx"], code["cubin"]


def cuda_tool(name):
    """Triton's own, or the one that is installed, or None."""
    if not gpu.available():
        return None
    beside = pathlib.Path(gpu_launch.triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(beside) if beside.exists() else shutil.which(name)


@pytest.mark.skipif(cuda_tool("ptxas") is None, reason="there is no Triton here, or no ptxas with it")
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_for_a_gpu(dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    lowest = torch.finfo(dtype).min
    for tokens in (2, 500, 5000):
        rows, block = gpu._tile(tokens)
        tile = dict(ROWS=rows, BLOCK=block, VECTOR=gpu._vector(tokens))
        blocks = -(-tokens // block)
        code, _ = compile_for_gpu(
            gpu._log_softmax_at, dtype, dict(tile, LOWEST=lowest, BLOCKS=blocks), num_warps=gpu.WARPS)
        wide = tokens > 2  # several logits at once
        assert ("ld.global.v" in code) == wide
        for add in (False, True):
            code, _ = compile_for_gpu(gpu._logit_gradient, dtype, dict(tile, ADD=add), num_warps=gpu.WARPS)
            assert ("ld.global.v" in code) == ("st.global.v" in code) == wide
    for modified in (False, True):
        for kernel in (gpu_lattice._arriving, gpu_lattice._posteriors):
            compile_for_gpu(kernel, dtype, dict(MODIFIED=modified, BLOCK=256), num_warps=4)


@pytest.mark.skipif(cuda_tool("ptxas") is None, reason="there is no Triton here, or no ptxas with it")
@pytest.mark.parametrize("lanes", (64, 256, 2048))
@pytest.mark.parametrize("modified", (False, True))
def test_the_chain_of_the_lattice_is_short(lanes, modified, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = gpu_lattice._shape(lanes)
    constants = dict(MODIFIED=modified, BLOCK=shape.pop("BLOCK"), AHEAD=shape.pop("AHEAD"))
    code, machine_code = compile_for_gpu(gpu_lattice._lattice, torch.float64, constants, num_stages=1, **shape)
    # The score is read after a barrier, and not from a cache that takes memory to be constant.
    assert "bar.sync" in code and ".nc" not in code
    if lanes == 64:  # in one warp numbers go from thread to thread, and wait for none
        assert code.count("shfl.sync") == 16 and code.count("bar.sync") == 1 and "shared" not in code
    older = tuple(int(number) for number in gpu_launch.triton.__version__.split(".")[:2]) < (3, 6)
    if cuda_tool("cuobjdump") is None or lanes > 256 and older:
        return  # some older ones run out of registers
    (tmp_path / "machine_code").write_bytes(machine_code)
    used = [cuda_tool("cuobjdump"), "-res-usage", str(tmp_path / "machine_code")]
    used = subprocess.run(used, capture_output=True, text=True, check=True).stdout
    assert " STACK:0 " in used and " LOCAL:0 " in used


@pytest.mark.skipif(cuda_tool("ptxas") is None, reason="there is no Triton here, or no ptxas with it")
@pytest.mark.parametrize("absent", [
    (), ("tokens",), ("symbols", "rows"), ("ranges",), ("symbols", "ranges"), ("symbols", "boundary"),
])
def test_the_argument_checks_compile_for_a_gpu(absent, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kind in (None, *TYPES) if "ranges" not in absent and "boundary" not in absent else (None,):
        given = dict(COVERED=kind is not None, MODIFIED=kind == "modified", BLOCK=gpu_checks.BLOCK)
        compile_for_gpu(gpu_checks._wrong_utterances, torch.float32, {**dict.fromkeys(absent), **given}, num_warps=4)


# ---- on a GPU ----


@pytest.mark.cuda
@needs_triton
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_kernels_on_a_gpu(check):
    check("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_functions_on_a_gpu(dtype, kind):
    assert not gpu.available() or native.kernels_for(torch.zeros(1, device="cuda", dtype=dtype)) is gpu
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for sizes in ((2, 5, 3, 7, 2), (4, 60, 25, 500, 5)):
            same_public_functions("cuda", dtype, kind, sizes)
    finally:
        torch.set_float32_matmul_precision(precision)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", TYPES)
def test_gradients_by_finite_differences_on_a_gpu(kind):
    torch.manual_seed(4)
    symbols, boundary = labels_for(2, 3, 3, 1).cuda(), torch.tensor([[0, 0, 3, 5], [1, 1, 2, 4]]).cuda()
    lm, am, logits = (
        torch.randn(*shape, dtype=torch.float64, device="cuda", requires_grad=True)
        for shape in ((2, 4, 3), (2, 5, 3), (2, 5, 3, 3))
    )
    assert torch.autograd.gradcheck(
        lambda lm, am: rnnt.rnnt_loss_smoothed(
            lm, am, symbols, 1, 0.2, 0.1, boundary, kind, 0.05, "none", backend="native"), (lm, am))
    ranges = (torch.tensor([0, 0, 1, 1, 1])[:, None] + torch.arange(3)).expand(2, 5, 3).cuda()
    boundary[1, 0] = 0
    assert torch.autograd.gradcheck(
        lambda x: rnnt.rnnt_loss_pruned(x, symbols, ranges, 1, boundary, kind, 0.05, "none", backend="native"), logits)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", TYPES)
def test_every_path_on_a_gpu(kind):
    torch.manual_seed(1)
    modified = kind == "modified"
    kept, labels, tokens = (2 if modified else 3), 6, 5
    symbols = labels_for(1, labels, tokens, 0)
    for _ in range(5):
        ranges = make_band(6, labels, kept, 1 if modified else 2)
        logits = torch.randn(1, 6, kept, tokens, dtype=torch.float64, requires_grad=True)
        there = logits.detach().cuda().requires_grad_()
        loss = rnnt.rnnt_loss_pruned(
            there, symbols.cuda(), ranges[None].cuda(), 0, None, kind, reduction="sum", backend="native")
        want = -every_path_in_band(logits[0], symbols[0].tolist(), ranges, 0, labels, 6, modified)
        close(loss.detach(), want.detach())
        if math.isfinite(want.item()):
            close(torch.autograd.grad(loss, there)[0], torch.autograd.grad(want, logits)[0])


@pytest.mark.cuda
def test_all_nodes_kept_equals_torchaudio_on_a_gpu():
    functional = pytest.importorskip("torchaudio").functional
    torch.manual_seed(2)
    count, frames, labels, tokens, blank = 3, 40, 12, 300, 4
    symbols = labels_for(count, labels, tokens, blank)
    boundary = torch.tensor([[0, 0, labels, frames], [0, 0, labels, frames - 9], [0, 0, 3, frames]])
    logits = (3 * torch.randn(count, frames, labels + 1, tokens)).requires_grad_()
    there = logits.detach().cuda().requires_grad_()
    loss = rnnt.rnnt_loss_pruned(
        there, symbols.cuda(), all_nodes(count, frames, labels).cuda(), blank, boundary.cuda(), reduction="none",
        backend="native")
    expected = functional.rnnt_loss(
        logits, symbols.int(), boundary[:, 3].int(), boundary[:, 2].int(), blank=blank, reduction="none")
    close(loss.detach(), expected.detach())
    close(torch.autograd.grad(loss.sum(), there)[0], torch.autograd.grad(expected.sum(), logits)[0], rtol=1e-4)


if __name__ == "__main__":
    with np.errstate(all="ignore"):  # the interpreter computes with numpy, which warns of each log(0)
        {check.__name__: check for check in CHECKS}[sys.argv[1]]("cpu")
