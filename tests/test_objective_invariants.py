"""What every distillation loss is held to, as the training objective computes it, in float64.

Invariants of the whole registry; and the losses along the teacher's alignments and on its hypotheses against all paths of
tiny lattices, written out one by one.
"""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from objective_cases import SIZES, make, make_batch, outputs, results, with_nbest

from kdlib import rnnt
from kdlib.config import DistillTerm, LossConfig, ModelConfig
from kdlib.data import Batch, NBest
from kdlib.losses import REGISTRY, SequenceLoss
from kdlib.training.objective import Objective
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]

DIVERGENCES = sorted(name for name, loss in REGISTRY.items() if not isinstance(loss, SequenceLoss))
EXACT = dict(rtol=1e-9, atol=1e-11)


def precise(objective, batch):
    """Both in float64."""
    objective.double()
    if objective.teacher is not None:
        objective.teacher.double()
    nbest = batch.nbest and dataclasses.replace(batch.nbest, log_probs=batch.nbest.log_probs.double())
    return objective, dataclasses.replace(batch, features=batch.features.double(), nbest=nbest)


def cut(batch, n):
    """Utterance ``n`` alone, without padding."""
    frames, labels = int(batch.feature_lengths[n]), int(batch.symbol_lengths[n])
    nbest = batch.nbest
    if nbest is not None:
        mine = nbest.rows == n
        nbest = NBest(nbest.symbols[mine], nbest.symbol_lengths[mine], nbest.rows[mine] - n, nbest.log_probs[mine])
    return dataclasses.replace(batch, features=batch.features[n:n + 1, :frames], symbols=batch.symbols[n:n + 1, :labels],
                               feature_lengths=batch.feature_lengths[n:n + 1], ids=batch.ids[n:n + 1],
                               symbol_lengths=batch.symbol_lengths[n:n + 1], texts=[""], nbest=nbest)


def pad(batch):
    """More frames and labels, all of them junk."""
    junk = torch.full((3, 31, 16), 5.0).to(batch.features), torch.full((3, 2), 3)
    nbest = dataclasses.replace(batch.nbest, symbols=torch.cat([batch.nbest.symbols, torch.full((4, 1), 2)], dim=1))
    return dataclasses.replace(batch, features=torch.cat([batch.features, junk[0]], dim=1),
                               symbols=torch.cat([batch.symbols, junk[1]], dim=1), nbest=nbest)


def heard(batch):
    return with_nbest(batch, [[3, 4, 5], [3, 4], [7], [8, 9, 1, 2]], [0, 0, 1, 2], [-1.0, -1.5, -2.0, -3.0])


@pytest.mark.parametrize("fused", ["never", "always"])
@given(seed=st.integers(0, 10 ** 6), temperature=st.sampled_from([0.5, 1.0, 4.0]))
@settings(max_examples=4)
def test_no_divergence_where_student_and_teacher_agree(fused, seed, temperature):
    terms = [DistillTerm(name=name, temperature=temperature if "temperature" in REGISTRY[name].settings else 1.0)
             for name in DIVERGENCES]
    batch = make_batch()
    torch.manual_seed(seed)
    student = Transducer(ModelConfig(**SIZES), 13).eval()
    config = LossConfig(prune_range=3, rnnt_backend="native", fused=fused)
    plain = results(*precise(Objective(student, config), batch), 10)[2]
    taught = Objective(student, dataclasses.replace(config, distill=terms), copy.deepcopy(student))
    _, parts, grads = results(*precise(taught, batch), 10)
    assert not set(DIVERGENCES) - set(parts)
    for name in DIVERGENCES:
        assert abs(parts[name].item()) < 1e-12, name
    for name, grad in grads.items():
        if name in plain:
            torch.testing.assert_close(grad, plain[name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(REGISTRY))
@given(seed=st.integers(0, 10 ** 6))
@settings(max_examples=4)
def test_padding_and_batching_change_nothing(name, seed):
    objective, batch = make(distill=[DistillTerm(name=name)]), heard(make_batch())
    torch.manual_seed(seed)
    objective, batch = precise(objective, dataclasses.replace(batch, features=torch.randn_like(batch.features)))

    def value(batch):
        return results(objective, batch, 10)[1][name]

    together = value(batch)
    assert together >= 0
    torch.testing.assert_close(value(pad(batch)), together, **EXACT)
    # The sequence-level loss is in nats a frame of the batch, each other one a mean over the utterances.
    lengths = outputs(objective.student, batch)[1].double()
    shares = lengths / lengths.sum() if name == "nbest_rnnt" else torch.full((3,), 1 / 3)
    alone = sum(float(share) * value(cut(batch, n)) for n, share in enumerate(shares))
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-8)  # the nodes' weights are float32


@pytest.mark.parametrize("fused", ["never", "always"])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_gradients_match_finite_differences_and_spare_the_teacher(name, fused):
    objective, batch = precise(make(distill=[DistillTerm(name=name, weight=5.0)], fused=fused), heard(make_batch()))
    objective.config.prune_range = 6  # all nodes: which ones are kept is no smooth function
    teacher = objective.teacher.requires_grad_(True)
    _, _, grads = results(objective, batch, 10)
    assert all(p.grad is None for p in teacher.parameters())
    torch.manual_seed(2)
    names = ["encoder.layers.0.feed_forward2.up.weight", "encoder.subsampling.out.weight", "predictor.embedding.weight"]
    steps = {f"student.{n}": torch.randn_like(objective.student.get_parameter(n)) for n in names}

    @torch.no_grad()
    def value(size):
        for n, step in steps.items():
            objective.get_parameter(n).add_(step, alpha=size)
        total, _ = objective(batch, 10)
        for n, step in steps.items():
            objective.get_parameter(n).sub_(step, alpha=size)
        return total

    size = 1e-6  # short enough for the kinks of encoder_l1
    slope = (value(size) - value(-size)) / (2 * size)
    want = sum((grads[n] * step).sum() for n, step in steps.items())
    torch.testing.assert_close(slope, want, rtol=1e-5, atol=1e-7)


# Tiny lattices, all of whose paths are written out.

@st.composite
def tiny(draw):
    """Lengths of up to three utterances, options of the loss, and a seed."""
    modified = draw(st.booleans())
    frames = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    labels = [draw(st.integers(0, min(3, t) if modified else 3)) for t in frames]
    return dict(frames=frames, labels=labels, kind="modified" if modified else "regular", seed=draw(st.integers(0, 10 ** 6)),
                temperature=draw(st.sampled_from([0.5, 1.0, 3.0])), fused=draw(st.sampled_from(["never", "always"])),
                kept=draw(st.sampled_from([2, 4])))


def tiny_objective(case, name):
    """Models that say something else at every node, and a batch with junk for padding."""
    torch.manual_seed(case["seed"])
    teacher, student = (Transducer(ModelConfig(**{**SIZES, "joiner_dim": width}), 5) for width in (12, 8))
    with torch.no_grad():
        for model in (teacher, student):
            for weight in (model.predictor.embedding.weight, model.joiner.out.weight, model.simple_lm.weight):
                weight.mul_(6)
    config = LossConfig(prune_range=case["kept"], rnnt_backend="native", rnnt_type=case["kind"], warmup_updates=10,
                        fused=case["fused"], distill=[DistillTerm(name=name, temperature=case["temperature"])])
    frames, labels = torch.tensor(case["frames"]), torch.tensor(case["labels"])
    features = torch.randn(len(frames), 4 * int(frames.max()) + 3, 16)
    batch = Batch(features, 4 * frames + 3, torch.randint(1, 5, (len(frames), int(labels.max()))), labels,
                  [""] * len(frames), list("abc")[:len(frames)], 0.5, int(frames.sum()), len(frames))
    return Objective(student, config, teacher).eval(), batch


def node_logits(model, batch, labels):
    """(T, U + 1, V) logits of the only utterance of the batch, a node at a time; and those of the simple joiner's sides."""
    encoded = outputs(model, batch)[0][0]
    predicted = model.predictor.prefix(torch.tensor([labels], dtype=torch.int64))[0]
    logits = torch.stack([torch.stack([model.joiner(model.joiner.encoder_proj(frame), model.joiner.predictor_proj(state))
                                       for state in predicted]) for frame in encoded])
    return logits, model.simple_am(encoded), model.simple_lm(predicted)


def all_paths(log_probs, labels, kept, modified):
    """(log-probability, nodes) of each path: (T, U + 1, V) and, of each frame, the label counts of its kept nodes."""
    log_probs, found = log_probs.tolist(), []

    def walk(t, u, score, nodes):
        if t == len(kept):
            if u == len(labels):
                found.append((score, nodes))
        elif u in kept[t]:
            nodes = [*nodes, (t, u)]
            walk(t + 1, u, score + log_probs[t][u][0], nodes)
            if u < len(labels):
                walk(t + modified, u + 1, score + log_probs[t][u][labels[u]], nodes)

    walk(0, 0, 0.0, [])
    return found


def kept_nodes(student, batch, config):
    """The label counts that the student's pruned RNN-T keeps of each frame, (N, T, R)."""
    encoded, lengths, _ = outputs(student, batch)
    boundary = rnnt.boundary_of(batch.symbol_lengths, lengths)
    _, occupancies = rnnt.rnnt_loss_smoothed(
        student.simple_lm(student.predictor.prefix(batch.symbols)), student.simple_am(encoded), batch.symbols, 0,
        config.lm_scale, config.am_scale, boundary, config.rnnt_type, reduction="none", return_grad=True, backend="native")
    return rnnt.get_rnnt_prune_ranges(*occupancies, boundary, config.prune_range, backend="native")


@pytest.mark.parametrize("name", ["best_path_kl", "occupancy_kl"])
@given(case=tiny())
@settings(max_examples=25)
@torch.no_grad()
def test_losses_along_the_alignments_by_all_paths(name, case):
    objective, batch = precise(*tiny_objective(case, name))
    tau, modified = case["temperature"], case["kind"] == "modified"
    ranges = kept_nodes(objective.student, batch, objective.config)
    want = []
    for n, frames in enumerate(case["frames"]):
        labels = batch.symbols[n, :case["labels"][n]].tolist()
        every = [range(len(labels) + 1)] * frames
        kept = every if name == "best_path_kl" else [[u for u in at if u <= len(labels)] for at in ranges[n, :frames].tolist()]
        teacher, student = (node_logits(model, cut(batch, n), labels)[0] for model in (objective.teacher, objective.student))
        paths = sorted(all_paths(teacher.log_softmax(-1), labels, kept, modified), reverse=True)
        q, p = (teacher / tau).softmax(-1), (student / tau).softmax(-1)
        divergence = tau ** 2 * (q * (q / p).log()).sum(-1)
        if name == "best_path_kl":
            best = max(score for score, _ in paths)
            nearly = [nodes for score, nodes in paths if score > best - 0.004]
            assume(len(nearly) == 1)  # two best paths would share
            visits = dict.fromkeys(nearly[0], 1.0)
        else:
            total, visits = sum(math.exp(score) for score, _ in paths), {}
            for score, nodes in paths:
                for node in nodes:
                    visits[node] = visits.get(node, 0.0) + math.exp(score) / total
        want.append(sum(weight * divergence[node] for node, weight in visits.items()) / sum(visits.values()))
    _, parts = objective(batch, 10)
    torch.testing.assert_close(parts[name], sum(want) / len(want), rtol=1e-6, atol=1e-9)  # the weights are float32


@given(case=tiny(), data=st.data())
@settings(max_examples=25)
@torch.no_grad()
def test_loss_on_the_hypotheses_by_all_paths(case, data):
    case["kept"] = 4  # all nodes
    objective, batch = tiny_objective(case, "nbest_rnnt")
    modified, lm_scale = case["kind"] == "modified", objective.config.lm_scale
    heard = [(n, data.draw(st.lists(st.integers(1, 4), max_size=min(3, frames) if modified else 3)),
              data.draw(st.floats(-9.0, 0.0, width=32)))
             for n, frames in enumerate(case["frames"]) for _ in range(data.draw(st.integers(0 if n else 1, 3)))]
    rows, labels, log_probs = (list(column) for column in zip(*heard))
    objective, batch = precise(objective, with_nbest(batch, labels, rows, log_probs))
    want = 0.0
    for n, frames in enumerate(case["frames"]):
        mine = [(hypothesis, log_prob) for row, hypothesis, log_prob in heard if row == n]
        weights = [math.exp(log_prob / case["temperature"]) for _, log_prob in mine]
        for (hypothesis, _), weight in zip(mine, weights):
            logits, am, lm = node_logits(objective.student, cut(batch, n), hypothesis)
            simple = (1 - lm_scale) * (am[:, None] + lm).log_softmax(-1) + lm_scale * lm.log_softmax(-1)
            every = [range(len(hypothesis) + 1)] * frames
            losses = [-math.log(sum(math.exp(score) for score, _ in all_paths(log_probs, hypothesis, every, modified)))
                      for log_probs in (logits.log_softmax(-1), simple)]
            want += weight / sum(weights) * (losses[0] + 0.5 * losses[1])  # at the end of the warm-up
    _, parts = objective(batch, 10)
    assert parts["nbest_rnnt"].item() == pytest.approx(want / sum(case["frames"]), rel=1e-9)
