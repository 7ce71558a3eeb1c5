"""Arguments that do not fit, by the public transducer functions that take few others: each is named."""

import math

import pytest
import torch
from torch import nn

from kdlib import rnnt
from kdlib.losses import best_path_weights, occupancy_weights
from kdlib.rnnt import cpu

pytestmark = pytest.mark.both

RANGES = torch.tensor([[[0, 1], [0, 1], [1, 2], [1, 2]]] * 2)
BOUNDARY = torch.tensor([[0, 0, 2, 4]] * 2)


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


POSTERIORS = {
    "rnnt_type 'constrained'": dict(rnnt_type="constrained"),
    "sharpness must be a number": dict(sharpness=math.nan),
    "sharpness must be above 0": dict(sharpness=0.0),
    "label_arcs must be a floating tensor": dict(label_arcs=torch.zeros(2, 4, 2, dtype=torch.int64)),
    "label_arcs is empty": dict(label_arcs=torch.zeros(0, 4, 2)),
    r"blank_arcs \(2, 4, 1\) and label_arcs \(2, 4, 2\) must be of one shape": dict(blank_arcs=torch.zeros(2, 4, 1)),
    r"blank_arcs \(2, 1, 2\) and label_arcs": dict(blank_arcs=torch.zeros(2, 1, 2)),
    "blank_arcs is torch.float64, label_arcs is torch.float32": dict(blank_arcs=torch.zeros(2, 4, 2).double()),
    "blank_arcs must be a tensor, not None": dict(blank_arcs=None),
    "blank_arcs lies on meta": dict(blank_arcs=torch.zeros(2, 4, 2, device="meta")),
    "ranges lies on meta": dict(ranges=RANGES.to("meta")),
    r"ranges must be int64 \(2, 4, R\), not torch.int64 \(2, 1, 2\)": dict(ranges=RANGES[:, :1]),
    r"ranges must be int64 \(2, 4, R\), not torch.int32": dict(ranges=RANGES.int()),
    "ranges keeps 1 nodes a frame, label_arcs has 2": dict(ranges=RANGES[:, :, :1]),
    "ranges of utterance 1 are not consecutive label counts of 0 or more": dict(ranges=changed(RANGES, (1, 0, 0), -1)),
    "ranges of utterance 0, 1 do not cover its labels": dict(ranges=torch.arange(2).expand(2, 4, 2)),
    r"boundary must be int64 \(N, 4\), not None": dict(boundary=None),
    r"boundary must be int64 \(2, 4\), not torch.int64 \(1, 4\)": dict(boundary=BOUNDARY[:1]),
    r"boundary must be int64 \(2, 4\), not torch.int32": dict(boundary=BOUNDARY.int()),
    "boundary of utterance 1 lies outside the tensors .4 frames.": dict(boundary=changed(BOUNDARY, (1, 3), 10**8)),
    "boundary of utterance 0 lies outside": dict(boundary=changed(BOUNDARY, (0, 1), -3)),
}


@pytest.mark.parametrize("message", POSTERIORS)
def test_node_posteriors(message):
    arguments = dict(label_arcs=-torch.rand(2, 4, 2), blank_arcs=-torch.rand(2, 4, 2), ranges=RANGES, boundary=BOUNDARY)
    assert rnnt.node_posteriors(**arguments).sum() > 0
    with pytest.raises(ValueError, match=message):
        rnnt.node_posteriors(**{**arguments, **POSTERIORS[message]})


@pytest.mark.parametrize("weights", [occupancy_weights, best_path_weights])
def test_weights_by_the_posteriors(weights):
    arcs = -torch.rand(2, 2, 4, 2)
    with pytest.raises(ValueError, match="boundary of utterance 1 lies outside the tensors .4 frames."):
        weights(*arcs, RANGES, changed(BOUNDARY, (1, 3), 99), torch.ones(2, 4, 2, dtype=torch.bool), "regular")


def test_the_compiled_lattice_compares_shapes():
    arcs, starts = -torch.rand(2, 4, 2), RANGES[:, :, 0]
    for change in (dict(blank_arcs=arcs[:, :3]), dict(starts=starts[:, :3]), dict(boundary=BOUNDARY[:, :3])):
        arguments = dict(label_arcs=arcs, blank_arcs=arcs, starts=starts, boundary=BOUNDARY)
        with pytest.raises(ValueError, match="do not go with label_arcs"):
            cpu.score_lattice(**{**arguments, **change}, modified=False, occupancies=True)


NODES = {
    "ranges must be int64": dict(ranges=RANGES[0]),
    "symbols must be int64 .N, U.": dict(symbols=torch.tensor([1, 2])),
    r"symbols must be a tensor, not \[\[1, 2\]": dict(symbols=[[1, 2], [3, 1]]),
    "ranges must be a tensor, not None": dict(ranges=None),
    r"symbols must be int64 \(2, U\), not torch.int32": dict(symbols=torch.tensor([[1, 2], [3, 1]]).int()),
    r"symbols must be int64 \(2, U\), not torch.float32": dict(symbols=torch.tensor([[1.0, 2.0], [3.0, 1.0]])),
    "symbols lies on meta, ranges on cpu": dict(symbols=torch.zeros(2, 2, dtype=torch.int64, device="meta")),
    "symbols of utterance 1 are negative": dict(symbols=torch.tensor([[1, 2], [-1, 2]])),
    "symbols of utterance 0 contain the termination symbol 0": dict(symbols=torch.tensor([[0, 2], [1, 2]])),
    "termination_symbol -1 is negative": dict(termination_symbol=-1),
    "termination_symbol must be an int, not 0.0 of type float": dict(termination_symbol=0.0),
    "termination_symbol must be an int, not True of type bool": dict(termination_symbol=True),
    "boundary of utterance 0 lies outside": dict(boundary=changed(BOUNDARY, (0, 2), 3)),
    r"boundary must be int64 \(N, 4\), not \[\[0, 0, 2, 4\]": dict(boundary=BOUNDARY.tolist()),
    r"ranges is empty: \(0, 4, 2\)": dict(symbols=torch.zeros(0, 2, dtype=torch.int64), ranges=RANGES[:0],
                                        boundary=BOUNDARY[:0]),
}


@pytest.mark.parametrize("message", NODES)
def test_node_symbols(message):
    arguments = dict(symbols=torch.tensor([[1, 2], [3, 1]]), ranges=RANGES, boundary=BOUNDARY, termination_symbol=0)
    rnnt.node_symbols(**arguments)
    with pytest.raises(ValueError, match=message):
        rnnt.node_symbols(**{**arguments, **NODES[message]})


SMOOTHED = {
    "lm_only_scale must be a number, finite and not negative, not nan": dict(lm_only_scale=math.nan),
    "lm_only_scale must be a number, finite and not negative, not -2": dict(lm_only_scale=-2.0),
    "am_only_scale must be a number": dict(am_only_scale=math.inf),
    "delay_penalty must be a number": dict(delay_penalty=math.inf),
    "lm must be a floating tensor of 3 dimensions, not None": dict(lm=None),
    r"symbols must be a tensor, not \[\[1, 2\]": dict(symbols=[[1, 2], [3, 1]]),
    "termination_symbol must be an int, not tensor.0. of type Tensor": dict(termination_symbol=torch.tensor(0)),
    r"boundary must be int64 \(N, 4\), not \[\[0, 0, 2, 5\]": dict(boundary=[[0, 0, 2, 5]] * 2),
}


@pytest.mark.parametrize("message", SMOOTHED)
def test_smoothed(message):
    arguments = dict(lm=torch.zeros(2, 3, 4), am=torch.zeros(2, 5, 4), symbols=torch.tensor([[1, 2], [3, 1]]),
                     termination_symbol=0)
    rnnt.rnnt_loss_smoothed(**arguments)
    with pytest.raises(ValueError, match=message):
        rnnt.rnnt_loss_smoothed(**{**arguments, **SMOOTHED[message]})


def test_prune_ranges():
    px_grad, py_grad = torch.rand(2, 6, 9), torch.rand(2, 7, 8)
    with pytest.raises(ValueError, match="s_range must be an int, not 2.5 of type float"):
        rnnt.get_rnnt_prune_ranges(px_grad, py_grad, torch.tensor([[0, 0, 6, 8]] * 2), 2.5)
    for grads in ((px_grad, py_grad > 0.5), (px_grad.tolist(), py_grad), (px_grad, None)):
        with pytest.raises(ValueError, match="must be floating tensors .N, U, T.1. or .N, U, T., and .N, U.1, T."):
            rnnt.get_rnnt_prune_ranges(*grads, torch.tensor([[0, 0, 6, 8]] * 2), 2)
    # Without a frame there is no path, whatever R is; the others need no more than 2.
    for degenerate in ([0, 0, 6, 0], [2, 3, 6, 3]):
        boundary = torch.tensor([[0, 0, 6, 8], degenerate])
        ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 2)
        assert ranges.shape == (2, 8, 2)
        logits = torch.zeros(2, 8, 2, 9)
        loss = rnnt.rnnt_loss_pruned(logits, torch.arange(1, 7).expand(2, 6), ranges, 0, boundary, reduction="none")
        assert torch.isfinite(loss[0]) and loss[1] == math.inf


@pytest.mark.parametrize("starts, u_begin, has_path", [
    ([3, 3, 3, 3], 3, True),  # the last arc may be a label
    ([0, 1, 2, 3], 1, True),
    ([4, 4, 4, 4], 3, False),  # holds no node to begin at
    ([2, 2, 2, 2], 3, None),
    ([0, 1, 2, 2], 1, None),
])
def test_coverage_of_a_modified_lattice_that_begins_late(starts, u_begin, has_path):
    """Up to label 5 in four frames, from label 3 or 1: it is their number that the frames must have room for."""
    ranges = (torch.tensor(starts)[:, None] + torch.arange(2)).unsqueeze(0)
    arguments = (torch.zeros(1, 4, 2, 6), torch.arange(1, 6).unsqueeze(0), ranges, 0, torch.tensor([[u_begin, 0, 5, 4]]))
    if has_path is None:
        with pytest.raises(ValueError, match=f"ranges of utterance 0 do not cover its labels: .* {starts[-1]} to .* of 5"):
            rnnt.rnnt_loss_pruned(*arguments, "modified")
    else:
        loss = rnnt.rnnt_loss_pruned(*arguments, "modified", backend="native")
        assert bool(torch.isfinite(loss)) == has_path and not loss.isnan()


def test_boundaries_and_all_nodes():
    lengths = torch.tensor([3, 4])
    assert rnnt.boundary_of(torch.tensor([1, 2]), lengths).tolist() == [[0, 0, 1, 3], [0, 0, 2, 4]]
    for symbol_lengths in ([1, 2], torch.tensor([1]), torch.tensor([1, 2]).int(), torch.tensor([[1, 2]]), torch.tensor(1)):
        with pytest.raises(ValueError, match=r"symbol_lengths must be int64 \(2,\)"):
            rnnt.boundary_of(symbol_lengths, lengths)
    for other in (None, lengths.int()):
        with pytest.raises(ValueError, match=r"lengths must be int64 \(N,\)"):
            rnnt.boundary_of(lengths, other)
    with pytest.raises(ValueError, match="symbol_lengths lie on meta, lengths on cpu"):
        rnnt.boundary_of(lengths.to("meta"), lengths)
    assert rnnt.all_nodes(torch.zeros(2, 3, 4), torch.ones(2, 5)).shape == (2, 3, 6)
    for encoder_out, symbols in ((torch.zeros(2, 3), torch.ones(2, 5)), (torch.zeros(2, 3, 4), torch.ones(3, 5)),
                                 (None, torch.ones(3, 5))):
        with pytest.raises(ValueError, match="encoder_out and symbols must be .*, not "):
            rnnt.all_nodes(encoder_out, symbols)


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 6)

    def hidden(self, am, lm):
        return torch.tanh(am + lm)


def test_second_derivatives_are_refused():
    """Rather than computed with the posteriors as constants; of the first, all are as they were."""
    torch.manual_seed(0)
    lm, am = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    logits, symbols = torch.randn(2, 4, 2, 6, requires_grad=True), torch.tensor([[1, 2], [3, 1]])
    side = Joiner(), torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    losses = {
        "smoothed": (am, lambda: rnnt.rnnt_loss_smoothed(lm, am, symbols, 0, backend="native")),
        "pruned": (logits, lambda: rnnt.rnnt_loss_pruned(logits, symbols, RANGES, 0, backend="native")),
        "fused": (side[1], lambda: rnnt.rnnt_loss_fused(*side, symbols, RANGES, 0)),
    }
    for name, (leaf, loss) in losses.items():
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(loss(), leaf, create_graph=True)
        assert torch.autograd.grad(loss(), leaf)[0].abs().sum() > 0, name


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def fused_arguments():
    """A student, a teacher and one term at the lattice of RANGES."""
    torch.manual_seed(1)
    joiner, teacher = Joiner(), Joiner()
    am, lm = torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 3, 4)
    term = rnnt.NodeTerm(lambda s, t, y: (s - t).pow(2).sum(-1), torch.ones(2, 4, 2))
    return dict(joiner=joiner, am=am, lm=lm, symbols=torch.tensor([[1, 2], [3, 1]]), ranges=RANGES, termination_symbol=0,
                boundary=BOUNDARY, teacher=rnnt.Side(teacher, am.detach(), lm), terms=[term])


def with_output(layer):
    joiner = Joiner()
    joiner.out = layer
    return joiner


def hooked(register):
    layer = nn.Linear(4, 6)
    getattr(layer, register)(lambda *given: None)
    return with_output(layer)


def of_teacher(**change):
    return lambda given: dict(teacher=given["teacher"]._replace(**change))


FUSED = {
    "lm is torch.float64, am is torch.float32": lambda given: dict(lm=given["lm"].double()),
    "am is torch.float64, joiner is torch.float32": lambda given: {key: given[key].double() for key in ("am", "lm")},
    "lm must be a floating tensor of 3 dimensions, not None": lambda given: dict(lm=None),
    "a term's weights must be a tensor, not None": lambda given: dict(
        terms=[given["terms"][0]._replace(weights=None)]),
    "a term's weights lies on meta": lambda given: dict(
        terms=[given["terms"][0]._replace(weights=torch.ones(2, 4, 2, device="meta"))]),
    "a parameter of joiner lies on meta": lambda given: dict(joiner=Joiner().to("meta")),
    "the teacher's am lies on meta, am on cpu": lambda given: dict(
        teacher=rnnt.Side(given["teacher"].joiner, given["am"].to("meta"), given["lm"].to("meta"))),
    "a parameter of the teacher's joiner lies on meta": of_teacher(joiner=Joiner().to("meta")),
    "the teacher's am is torch.float32, the teacher's joiner is torch.float64": of_teacher(joiner=Joiner().double()),
    "the teacher's lm is torch.float64, the teacher's am is torch.float32": of_teacher(lm=torch.zeros(2, 3, 4).double()),
    "its output layer out, a Doubled, has a forward of its own": lambda given: dict(joiner=with_output(Doubled(4, 6))),
    "joiner: its output layer out, a Linear, has hooks": lambda given: dict(joiner=hooked("register_forward_hook")),
    "the teacher's joiner: its output layer out, a Linear, has hooks": of_teacher(
        joiner=hooked("register_forward_pre_hook")),
    r"terms: per_node must return \(16,\), one number a node, not \(\)": lambda given: dict(
        terms=[rnnt.NodeTerm(lambda s, t, y: s.sum(), torch.ones(2, 4, 2))]),
    r"terms: per_node must return \(16,\), one number a node, not \(16, 6\)": lambda given: dict(
        terms=[rnnt.NodeTerm(lambda s, t, y: s, torch.ones(2, 4, 2))]),
    r"weight must be a number or float \(2,\) on cpu, not None": lambda given: dict(weight=None),
    r"weight must be a number or float \(2,\) on cpu, not torch.bool": lambda given: dict(weight=torch.ones(2) > 0),
    "weight must be finite": lambda given: dict(weight=torch.tensor([1.0, math.nan])),
    "weight must be finite, not inf": lambda given: dict(weight=math.inf),
    r"boundary must be int64 \(N, 4\), not \[\[0, 0, 2, 4\]": lambda given: dict(boundary=BOUNDARY.tolist()),
    "weight: no gradient flows into it": lambda given: dict(weight=torch.ones(2, requires_grad=True)),
    "the weights of term 0: no gradient flows into it": lambda given: dict(
        terms=[given["terms"][0]._replace(weights=torch.ones(2, 4, 2, requires_grad=True))]),
}


@pytest.mark.parametrize("message", FUSED)
def test_fused(message):
    arguments = fused_arguments()
    assert torch.isfinite(rnnt.lattice_losses_fused(**arguments).total)
    with pytest.raises(ValueError, match=message):
        rnnt.lattice_losses_fused(**{**arguments, **FUSED[message](arguments)})


def test_an_empty_batch_of_the_fused_loss():
    arguments = fused_arguments()
    del arguments["teacher"], arguments["terms"]
    empty = {key: value[:0] for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ValueError, match="am is empty"):
        rnnt.rnnt_loss_fused(**{**arguments, **empty})


def test_a_loss_of_no_weight_adds_nothing_even_where_it_is_infinite():
    """Of two utterances, the one that has more labels than frames has no path in a modified lattice."""
    arguments = fused_arguments()
    del arguments["teacher"], arguments["terms"]
    arguments.update(ranges=torch.arange(3).expand(2, 4, 3), boundary=torch.tensor([[0, 0, 2, 4], [0, 0, 2, 1]]))
    arguments.update(rnnt_type="modified")
    result = rnnt.lattice_losses_fused(**arguments, weight=torch.tensor([0.5, 0.0]))
    assert result.rnnt[1] == math.inf and torch.isfinite(result.rnnt[0])
    torch.testing.assert_close(result.total, 0.5 * result.rnnt[0])
    grad = torch.autograd.grad(result.total, arguments["am"])[0]
    assert torch.isfinite(grad).all() and grad[0].abs().sum() > 0 and grad[1].abs().sum() == 0
    assert rnnt.lattice_losses_fused(**arguments, weight=0.0).total == 0
    assert rnnt.lattice_losses_fused(**arguments).total == math.inf


def test_a_term_that_is_a_constant_to_the_student():
    arguments = fused_arguments()
    given = {**arguments, "terms": [rnnt.NodeTerm(lambda s, t, y: t.sum(-1), torch.ones(2, 4, 2))]}
    alone = {key: value for key, value in arguments.items() if key not in ("teacher", "terms")}
    slopes = [torch.autograd.grad(rnnt.lattice_losses_fused(**each).total, arguments["am"])[0] for each in (given, alone)]
    torch.testing.assert_close(*slopes)
