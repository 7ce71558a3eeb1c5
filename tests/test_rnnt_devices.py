"""The same batches as against k2, and those that k2 does not take, on every device and by every kind of kernels.

The reference is the compiled kernels on the CPU, which ``test_rnnt.py`` and ``test_rnnt_k2.py`` hold to torchaudio, to
every path written out and to k2. Without a GPU the plain kernels are compared on the CPU, by the same code.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from rnnt_cases import assert_equal, batches, make, total

from kdlib import rnnt
from kdlib.config import ModelConfig
from kdlib.joiner import Joiner
from kdlib.losses import lattice_kl_at, node_weights
from kdlib.rnnt import fused, gpu, native, plain

pytestmark = pytest.mark.both

MANY = settings(max_examples=100, suppress_health_check=list(HealthCheck))
WHERE = [
    pytest.param("cpu", "plain", id="cpu-plain"),
    pytest.param("cuda", "plain", id="cuda-plain", marks=pytest.mark.cuda),
    pytest.param("cuda", "triton", id="cuda-triton", marks=[
        pytest.mark.cuda, pytest.mark.skipif(not gpu.available(), reason="Triton cannot be imported here")]),
]


@pytest.fixture
def kernels(monkeypatch):
    """Has the kernels chosen by name: None for those that are chosen without us."""
    chosen, own = [None], native.kernels_for
    for module in (native, fused):
        monkeypatch.setattr(module, "kernels_for", lambda tensor: chosen[0] or own(tensor))

    def choose(name):
        chosen[0] = {None: None, "plain": plain, "triton": gpu}[name]

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield choose
    torch.set_float32_matmul_precision(precision)


def leaves(device, *tensors):
    return [tensor.detach().to(device).requires_grad_() for tensor in tensors]


def smoothed(case, device):
    """Losses, posteriors and gradients, on the CPU."""
    lm, am, symbols, boundary = make(case)
    inputs = leaves(device, lm, am)
    boundary = None if case["boundary"] == "none" else boundary.to(device)
    loss, posteriors = rnnt.rnnt_loss_smoothed(
        *inputs, symbols.to(device), case["blank"], case["lm_scale"], case["am_scale"], boundary, case["kind"],
        case["penalty"], "none", return_grad=True, backend="native")
    return [x.detach().cpu() for x in (loss, *posteriors, *torch.autograd.grad(total(loss), inputs))]


def band(case, device, posteriors):
    """Of posteriors in whole 4096ths, whose sums are exact in whatever order a device adds."""
    boundary = make(case)[3] if case["boundary"] != "none" else None
    posteriors = [posterior.mul(4096).round().div(4096).to(device) for posterior in posteriors]
    return rnnt.get_rnnt_prune_ranges(*posteriors, boundary, max(case["kept"], 2), backend="native").cpu()


def pruned(case, device, ranges):
    """Losses, occupancies and gradients by way of all logits, and by the fused losses with a term, on the CPU."""
    lm, am, symbols, boundary = make(case)
    torch.manual_seed(case["seed"])
    joiners = [Joiner(ModelConfig(joiner_dim=case["tokens"]), case["tokens"]).to(case["dtype"]).to(device) for _ in "st"]
    inputs = leaves(device, am, lm)
    symbols, ranges, boundary = symbols.to(device), ranges.to(device), boundary.to(device)
    if case["boundary"] == "none":
        boundary[:] = boundary[:1].clone()
    lattice = dict(symbols=symbols, ranges=ranges, termination_symbol=case["blank"], boundary=boundary,
                   rnnt_type=case["kind"], delay_penalty=case["penalty"])
    logits = joiners[0](*rnnt.do_rnnt_pruning(*inputs, ranges, backend="native"))
    loss, occupancies = rnnt.rnnt_loss_pruned(
        logits, reduction="none", return_occupancies=True, backend="native", **lattice)
    _, mask = rnnt.node_symbols(symbols, ranges, boundary, case["blank"])
    sources = [*inputs, joiners[0].out.weight, joiners[0].out.bias]
    results = [loss, *occupancies, *torch.autograd.grad(total(loss), sources)]
    term = rnnt.NodeTerm(lambda s, t, y: lattice_kl_at(s, t), node_weights(mask).to(case["dtype"]))
    together = rnnt.lattice_losses_fused(
        joiners[0], *inputs, weight=torch.isfinite(loss.detach()).to(loss.dtype), terms=[term],
        teacher=rnnt.Side(joiners[1], *(x.detach() for x in inputs)), logits_at_once=7 * case["tokens"], **lattice)
    results += [*together, *torch.autograd.grad(together.total, sources)]
    return [x.detach().cpu() for x in results]


@pytest.mark.parametrize("device, name", WHERE)
@MANY
@given(case=batches(within_k2=False))
def test_the_same_numbers(kernels, device, name, case):
    want = smoothed(case, "cpu")
    ranges = band(case, "cpu", want[1:3])
    want_pruned = pruned(case, "cpu", ranges)
    kernels(name)
    try:
        # From one and the same posteriors: from each one's own, a tie in the last bit may fall either way.
        assert torch.equal(band(case, device, want[1:3]), ranges)
        results = smoothed(case, device) + pruned(case, device, ranges)
    finally:
        kernels(None)
    assert len(results) == len(want + want_pruned)
    for i, (got, expected) in enumerate(zip(results, want + want_pruned)):
        assert got.dtype == expected.dtype
        assert_equal(got, expected, case["dtype"], f"result {i}")
