"""The objective of one batch: the same by all logits and by the fused losses, alone and dealt out to processes."""

import dataclasses
import math

import pytest
import torch
from objective_cases import SIZES, make, make_batch, outputs, results, with_nbest

from kdlib import rnnt
from kdlib.config import DistillTerm, LossConfig, ModelConfig
from kdlib.conformer import subsampled_length
from kdlib.data import Batch
from kdlib.errors import RecipeError
from kdlib.losses import (REGISTRY, SequenceLoss, best_path_weights, collapsed_kl, encoder_l1, encoder_logits_kl,
                          encoder_mse, lattice_kl, lattice_kl_at, occupancy_weights, shifted)
from kdlib.training.objective import Objective, loss_with_layers, mean_parts
from kdlib.transducer import Transducer

pytestmark = pytest.mark.both

TERMS = [DistillTerm(name="pruned_lattice_kl", weight=2.0, temperature=2.0), DistillTerm(name="collapsed_kl", weight=0.5),
         DistillTerm(name="encoder_mse", weight=0.1)]
SEQUENCE = [DistillTerm(name="nbest_rnnt", weight=0.7)]
HEARD = [[3, 4], [5], [6, 7, 8], [2]], [0, 1, 1, 2], [-1.0, -2.0, -3.0, -1.0]  # hypotheses, whose, and how likely


@pytest.mark.parametrize("distill", [[], TERMS])
@pytest.mark.parametrize("update", [0, 10])
@pytest.mark.parametrize("kind", ["regular", "modified"])
def test_fused_is_the_same(distill, update, kind):
    outcomes = []
    for fused in ("never", "always"):
        objective = make(distill=distill, fused=fused, rnnt_type=kind, delay_penalty=0.01, sharpness=2.0,
                         ctc_first_updates=5)
        outcomes.append(results(objective, make_batch(), update))
    (total, parts, grads), (other_total, other_parts, other_grads) = outcomes
    torch.testing.assert_close(total, other_total)
    assert parts.keys() == other_parts.keys() and grads.keys() == other_grads.keys()
    assert {term.name for term in distill} < parts.keys()
    for name, part in parts.items():
        torch.testing.assert_close(part, other_parts[name])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=1e-3, atol=1e-6)


# The sequence-level loss is a cross-entropy, with tests of its own.
EVERY = [DistillTerm(name=name, weight=0.5 + i, temperature=1.5 if "temperature" in REGISTRY[name].settings else 1.0)
         for i, name in enumerate(sorted(REGISTRY)) if not isinstance(REGISTRY[name], SequenceLoss)]


def test_every_loss_of_the_registry_by_its_definition():
    objective, batch = make(distill=EVERY), make_batch()
    student, teacher = objective.student.eval(), objective.teacher
    total, parts, grads = results(objective, batch, 10)
    assert torch.isfinite(total) and all(torch.isfinite(grad).all() for grad in grads.values())

    with torch.no_grad():
        logits, lengths = [], None
        for model in (student, teacher):
            encoded, lengths, _ = model.encoder(batch.features, batch.feature_lengths)
            am = model.joiner.encoder_proj(encoded)
            lm = model.joiner.predictor_proj(model.predictor.prefix(batch.symbols))
            logits.append(model.joiner(am.unsqueeze(2), lm.unsqueeze(1)))
        boundary = torch.zeros(3, 4, dtype=torch.int64)
        boundary[:, 2], boundary[:, 3] = batch.symbol_lengths, lengths
        every = torch.arange(6).expand(3, logits[0].size(1), 6)
        symbols, mask = rnnt.node_symbols(batch.symbols, every, boundary, 0)
        full = lattice_kl(*logits, mask, 1.5)
        collapsed = collapsed_kl(*logits, symbols, mask, 0, 1.5)
        log_probs = logits[1].log_softmax(-1)
        arcs = log_probs.gather(3, symbols.unsqueeze(3)).squeeze(3), log_probs[..., 0]
        weights = best_path_weights(*arcs, every, boundary, mask, "modified")
        best = (lattice_kl_at(*logits, 1.5) * weights).sum()
    torch.testing.assert_close(parts["full_lattice_kl"], full, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["full_collapsed_kl"], collapsed, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["best_path_kl"], best, rtol=1e-4, atol=1e-6)
    assert parts["full_collapsed_kl"] <= parts["full_lattice_kl"]


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("fused", ["never", "always"])
def test_every_loss_in_half_precision_is_near_that_of_float32(name, fused):
    """Under autocast; nothing that has a gradient is left without."""
    term = DistillTerm(name=name, temperature=1.5 if "temperature" in REGISTRY[name].settings else 1.0)
    batch = with_nbest(make_batch(), *HEARD)
    (_, parts, grads), (_, half_parts, half_grads) = (
        results(make(distill=[term], fused=fused), batch, 10, autocast) for autocast in (False, True))
    assert parts[name] > 0 and half_parts[name] != parts[name]
    assert float(half_parts[name]) == pytest.approx(float(parts[name]), rel=0.06)
    assert half_grads.keys() == grads.keys()
    whole, half = (torch.cat([grad.flatten() for grad in one.values()]) for one in (grads, half_grads))
    assert half.dtype == torch.float32 and (half - whole).norm() < 0.05 * whole.norm()


def test_pruned_with_all_nodes_is_the_full_lattice():
    names = ("full_lattice_kl", "pruned_lattice_kl", "collapsed_kl", "full_collapsed_kl")
    objective = make(distill=[DistillTerm(name=name) for name in names])
    objective.config.prune_range = 6
    _, parts, _ = results(objective, make_batch(), 10)
    torch.testing.assert_close(parts["full_lattice_kl"], parts["pruned_lattice_kl"])
    torch.testing.assert_close(parts["full_collapsed_kl"], parts["collapsed_kl"])


def test_layers_and_shift():
    terms = [DistillTerm(name="encoder_mse", layers="matched"), DistillTerm(name="encoder_cosine", layers=[[1, 2], [1, 3]])]
    torch.manual_seed(0)
    teacher = Transducer(ModelConfig(**{**SIZES, "encoder_dim": 20, "num_layers": 3}), 13)
    student = Transducer(ModelConfig(**SIZES), 13)
    objective = Objective(student, LossConfig(rnnt_backend="native", distill=terms), teacher)
    assert objective.pairs == {"encoder_mse": [(0, 2)], "encoder_cosine": [(0, 1), (0, 2)]}
    assert set(objective.projections) == {"0-1", "0-2"}
    _, parts, grads = results(objective, make_batch(), 10)
    assert parts["encoder_cosine"] > 0 and grads["projections.0-1.weight"].abs().sum() > 0
    with pytest.raises(RecipeError, match="the student has 1 layers, its teacher 3"):
        Objective(student, LossConfig(distill=[DistillTerm(name="encoder_mse", layers=[[2, 3]])]), teacher)


@pytest.mark.parametrize("name, weigh", [("occupancy_kl", occupancy_weights), ("best_path_kl", best_path_weights)])
def test_alignments_weigh_the_nodes(name, weigh):
    objective, batch = make(distill=[DistillTerm(name=name, temperature=2.0)]), make_batch()
    objective.config.prune_range = 6  # all nodes
    with torch.no_grad():  # new models say much the same at every node
        for model in (objective.student, objective.teacher):
            model.predictor.embedding.weight.mul_(10)
            model.joiner.out.weight.mul_(10)
    value = results(objective, batch, 10)[1][name]
    with torch.no_grad():
        logits = []
        for model in (objective.student, objective.teacher):
            encoded, lengths, _ = outputs(model, batch)
            am, lm = model.joiner.encoder_proj(encoded), model.joiner.predictor_proj(model.predictor.prefix(batch.symbols))
            logits.append(model.joiner(am.unsqueeze(2), lm.unsqueeze(1)))
        boundary = rnnt.boundary_of(batch.symbol_lengths, lengths)
        every = torch.arange(6).expand(3, encoded.size(1), 6)
        symbols, mask = rnnt.node_symbols(batch.symbols, every, boundary, 0)
        log_probs = logits[1].log_softmax(-1)
        arcs = log_probs.gather(3, symbols.unsqueeze(3)).squeeze(3), log_probs[..., 0]
        each = lattice_kl_at(*logits, 2.0)
        want = (each * weigh(*arcs, every, boundary, mask, "modified")).sum()
    torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-6)
    assert abs(want - lattice_kl(*logits, mask, 2.0)) > 0.01 * want  # the plain mean is another


def test_the_shift_of_a_term_is_that_of_its_loss():
    terms = [DistillTerm(name="encoder_mse", shift=3), DistillTerm(name="encoder_logits_kl", shift=-2, temperature=4.0)]
    objective, batch = make(distill=terms), make_batch()
    _, parts, _ = results(objective, batch, 10)
    (ours, lengths, _), (theirs, _, _) = outputs(objective.student, batch), outputs(objective.teacher, batch)
    with torch.no_grad():
        mse = encoder_mse(*shifted(objective.projections["0-0"](ours), theirs, lengths, 3))
        logits = objective.student.simple_am(ours), objective.teacher.simple_am(theirs)
        kl = encoder_logits_kl(*shifted(*logits, lengths, -2), 4.0)
        apart = encoder_logits_kl(*shifted(*logits, lengths, -2), 1.0)
    torch.testing.assert_close(parts["encoder_mse"], mse)
    torch.testing.assert_close(parts["encoder_logits_kl"], kl)
    assert abs(kl - apart) > 0.01 * kl


def test_matched_layers_are_learned_from():
    torch.manual_seed(0)
    teacher = Transducer(ModelConfig(**{**SIZES, "num_layers": 4}), 13)
    student = Transducer(ModelConfig(**{**SIZES, "num_layers": 2}), 13)
    terms = [DistillTerm(name="encoder_l1", layers="matched"), DistillTerm(name="encoder_mse")]
    objective, batch = Objective(student, LossConfig(rnnt_backend="native", distill=terms), teacher), make_batch()
    assert objective.pairs == {"encoder_l1": [(0, 1), (1, 3)], "encoder_mse": [(1, 3)]}
    _, parts, _ = results(objective, batch, 10)
    (_, lengths, ours), (_, _, theirs) = outputs(student, batch, (0, 1)), outputs(teacher, batch, (1, 3))
    torch.testing.assert_close(parts["encoder_l1"], sum(encoder_l1(a, b, lengths) for a, b in zip(ours, theirs)) / 2)
    torch.testing.assert_close(parts["encoder_mse"], encoder_mse(ours[1], theirs[1], lengths))


def test_a_loss_may_stand_several_times():
    terms = [DistillTerm(name="encoder_mse", weight=0.5), DistillTerm(name="encoder_mse", weight=0.25, shift=2),
             DistillTerm(name="pruned_lattice_kl", temperature=4.0), DistillTerm(name="pruned_lattice_kl")]
    objective, batch = make(distill=terms), make_batch()
    frames = int(outputs(objective.student, batch)[1].sum())
    batch = dataclasses.replace(batch, total_frames=frames, total_utterances=3)
    total, parts, _ = results(objective, batch, 10)
    names = ["encoder_mse", "encoder_mse_2", "pruned_lattice_kl", "pruned_lattice_kl_2"]
    for name, term in zip(names, terms):
        alone = make(distill=[term])
        alone.load_state_dict(objective.state_dict(), strict=False)  # a projection, where it has one
        torch.testing.assert_close(parts[name], results(alone, batch, 10)[1][term.name])
    assert len({float(parts[name]) for name in names}) == 4
    plain = results(make(), batch, 10)[0]
    torch.testing.assert_close(total, plain + sum(term.weight * parts[name] for name, term in zip(names, terms)))
    torch.testing.assert_close(parts["total"], total)


def test_schedules_follow_the_updates():
    term = DistillTerm(name="pruned_lattice_kl", weight=4.0, schedule="decay", schedule_updates=100)
    objective, batch = make(distill=[term]), make_batch()
    early, late = (results(objective, batch, update) for update in (50, 100))
    value = early[1]["pruned_lattice_kl"]
    torch.testing.assert_close(early[0] - late[0], 2.0 * value * 3 / 6)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_loss_that_has_faded_out_is_not_computed_in_training(name):
    """Nor is the teacher asked, and the total is the same number."""
    term = DistillTerm(name=name, weight=2.0, schedule="decay", schedule_updates=20)
    objective, batch, asked = make(distill=[term]).train(), with_nbest(make_batch(), *HEARD), []
    objective.teacher.encoder.register_forward_hook(lambda *_: asked.append(name))
    assert results(objective, batch, 19)[1][name] > 0
    taught = len(asked)
    assert taught == (name != "nbest_rnnt")
    total, parts, grads = results(objective, batch, 20)
    assert name not in parts and len(asked) == taught
    plain, plain_parts, plain_grads = results(make(), batch, 20)
    assert total == plain and parts == plain_parts and grads.keys() == plain_grads.keys()
    assert all(torch.equal(grad, plain_grads[key]) for key, grad in grads.items())
    evaluated, parts, _ = results(objective.eval(), batch, 20)
    assert evaluated == total and parts[name] > 0 and len(asked) == 2 * taught


def test_what_has_not_faded_out_for_good_is_computed():
    terms = [DistillTerm(name="pruned_lattice_kl", schedule="decay", schedule_updates=20),
             DistillTerm(name="encoder_mse", schedule="decay", schedule_updates=21), DistillTerm(name="encoder_l1", weight=0.0),
             DistillTerm(name="encoder_cosine", schedule="warmup", schedule_updates=20)]
    objective, batch = make(distill=terms).train(), make_batch()
    common = {"simple", "pruned", "ctc", "total", "encoder_l1", "encoder_cosine"}
    assert results(objective, batch, 0)[1].keys() == common | {"pruned_lattice_kl", "encoder_mse"}
    assert results(objective, batch, 20)[1].keys() == common | {"encoder_mse"}
    assert results(objective, batch, 21)[1].keys() == common


LOWER = DistillTerm(name="encoder_mse", layers=[[1, 2]])


@pytest.mark.parametrize("others, depth", [
    ([], 2), ([DistillTerm(name="encoder_cosine", layers=[[1, 1]])], 2), ([DistillTerm(name="nbest_rnnt")], 2),
    ([DistillTerm(name="encoder_l1", layers=[[1, 3]])], 3), ([DistillTerm(name="encoder_l1")], 3),
    ([DistillTerm(name="encoder_logits_kl")], 3), ([DistillTerm(name="best_path_kl")], 3),
    ([DistillTerm(name="pruned_lattice_kl", schedule="decay", schedule_updates=5)], 2)])
def test_the_teacher_runs_no_layer_that_is_not_needed(others, depth):
    torch.manual_seed(0)
    teacher = Transducer(ModelConfig(**{**SIZES, "num_layers": 3}), 13)
    student, batch, run = Transducer(ModelConfig(**SIZES), 13), with_nbest(make_batch(), *HEARD), []
    objective = Objective(student, LossConfig(rnnt_backend="native", distill=[LOWER, *others]), teacher).train()
    (_, lengths, (ours,)), (_, _, (theirs,)) = outputs(student, batch, [0]), outputs(teacher, batch, [1])
    for number, layer in enumerate(teacher.encoder.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    _, parts, _ = results(objective, batch, 10)
    assert run == list(range(1, depth + 1))
    torch.testing.assert_close(parts["encoder_mse"], encoder_mse(ours, theirs, lengths))


def test_sharpness_comes_late():
    def pruned(progress, **loss):
        return results(make(**loss), dataclasses.replace(make_batch(), progress=progress), 10)[1]["pruned"]

    late = dict(sharpness=3.0, sharpness_start=0.6)
    assert pruned(0.5, **late) == pruned(0.5) < pruned(0.5, sharpness=3.0)
    assert pruned(0.6, **late) == pruned(0.6, sharpness=3.0) > pruned(0.6)
    for wrong in (dict(sharpness=0.5), dict(sharpness_start=1.5)):
        with pytest.raises(RecipeError, match="loss.sharpness"):
            LossConfig(**wrong)


def test_the_total_is_the_weighted_sum_of_its_parts():
    objective, batch = make(distill=TERMS + SEQUENCE), with_nbest(make_batch(), *HEARD)
    frames = int(objective.student.encoder(batch.features, batch.feature_lengths)[1].sum())
    batch = dataclasses.replace(batch, total_frames=frames, total_utterances=3)
    total, parts, _ = results(objective, batch, 10)
    want = (0.5 * parts["simple"] + parts["pruned"] + 0.3 * parts["ctc"] + 2.0 * parts["pruned_lattice_kl"]
            + 0.5 * parts["collapsed_kl"] + 0.1 * parts["encoder_mse"] + 0.7 * parts["nbest_rnnt"])
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(parts["total"], want)
    assert not any(part.requires_grad for part in parts.values())


@pytest.mark.parametrize("update, first, simple, pruned, ctc", [
    (0, 0, 1.0, 0.1, 0.3), (5, 0, 0.75, 0.55, 0.3), (10, 0, 0.5, 1.0, 0.3), (30, 0, 0.5, 1.0, 0.3),
    (5, 6, 0.075, 0.055, 1.0), (6, 6, 0.7, 0.64, 0.3)])
def test_the_weights_of_the_warm_up(update, first, simple, pruned, ctc):
    """Of ten updates; and before it is over, of those in which CTC leads and the two others count for a tenth."""
    objective, batch = make(ctc_first_updates=first), make_batch()
    frames = int(outputs(objective.student, batch)[1].sum())
    total, parts, _ = results(objective, dataclasses.replace(batch, total_frames=frames, total_utterances=3), update)
    torch.testing.assert_close(total, simple * parts["simple"] + pruned * parts["pruned"] + ctc * parts["ctc"])
    torch.testing.assert_close(parts["total"], total)


@pytest.mark.parametrize("loss", [dict(ctc_weight=0.3), dict(ctc_first_updates=5)])
def test_a_head_that_is_not_there_is_asked_for(loss):
    (key,) = loss
    with pytest.raises(RecipeError, match=f"loss.{key} is above 0 but the model has no CTC head: set model.ctc_head=true"):
        Objective(Transducer(ModelConfig(**SIZES, ctc_head=False), 13), LossConfig(**loss))


@pytest.mark.parametrize("changes, vocab, said", [({"num_features": 24}, 13, "model.num_features is 16 in the student and 24"),
                                                  ({}, 12, "the teacher has 12 tokens, the student 13")])
def test_a_teacher_of_other_features_or_tokens_is_refused(changes, vocab, said):
    student, teacher = Transducer(ModelConfig(**SIZES), 13), Transducer(ModelConfig(**{**SIZES, **changes}), vocab)
    with pytest.raises(RecipeError, match=said):
        Objective(student, LossConfig(distill=[DistillTerm("encoder_mse")]), teacher)


@pytest.mark.parametrize("updates", [500, -5])
def test_updates_of_a_schedule_that_is_not_named_are_refused(updates):
    """In training; of what was trained so before, the config can still be read."""
    term = DistillTerm("encoder_mse", schedule_updates=updates)
    student, teacher = (Transducer(ModelConfig(**SIZES), 13) for _ in range(2))
    with pytest.raises(RecipeError, match=f"loss.distill, encoder_mse, schedule_updates is {updates}; it must be left out"):
        Objective(student, LossConfig(distill=[term]), teacher)


def test_labels_that_only_the_lattice_has_room_for():
    """As many as frames, all the same one: between two of these CTC wants a blank."""
    batch = make_batch()
    symbols = torch.nn.functional.pad(batch.symbols, (0, 4))
    symbols[2] = 3
    full = dataclasses.replace(batch, symbols=symbols, symbol_lengths=torch.tensor([5, 3, 9]))
    total, _, grads = results(make(), full, 10)
    assert torch.isfinite(total) and all(torch.isfinite(grad).all() for grad in grads.values())


def test_without_a_warm_up_and_without_a_head_there_is_nothing_to_wait_for():
    torch.manual_seed(0)
    student, batch = Transducer(ModelConfig(**SIZES, ctc_head=False), 13), make_batch()
    objective = Objective(student, LossConfig(prune_range=3, rnnt_backend="native", warmup_updates=0))
    frames = int(outputs(objective.student, batch)[1].sum())
    total, parts, _ = results(objective, dataclasses.replace(batch, total_frames=frames, total_utterances=3), 0)
    torch.testing.assert_close(total, 0.5 * parts["simple"] + parts["pruned"])
    assert "ctc" not in parts


@pytest.mark.parametrize("fused", ["never", "always"])
def test_both_lattices_have_the_delay_penalty(fused):
    objective, batch = make(fused=fused, delay_penalty=0.2, am_scale=0.3), make_batch()
    objective.config.prune_range = 6  # all nodes
    _, parts, _ = results(objective, batch, 10)
    student = objective.student
    with torch.no_grad():
        encoded, lengths, _ = outputs(student, batch)
        predicted = student.predictor.prefix(batch.symbols)
        side, ranges = student.lattice_side(encoded, predicted), rnnt.all_nodes(encoded, batch.symbols)

        def losses(delay_penalty):
            lattice = dict(symbols=batch.symbols, termination_symbol=0, rnnt_type="modified", reduction="sum",
                           boundary=rnnt.boundary_of(batch.symbol_lengths, lengths), delay_penalty=delay_penalty,
                           backend="native")
            simple = rnnt.rnnt_loss_smoothed(student.simple_lm(predicted), student.simple_am(encoded), lm_only_scale=0.25,
                                             am_only_scale=0.3, **lattice)
            pruned = rnnt.rnnt_loss_pruned(student.joiner(side.am.unsqueeze(2), side.lm.unsqueeze(1)), ranges=ranges,
                                           **lattice)
            return torch.stack([simple, pruned]) / lengths.sum()

        want, without = losses(0.2), losses(0.0)
    torch.testing.assert_close(torch.stack([parts["simple"], parts["pruned"]]), want)
    assert ((want - without).abs() > 0.01 * want).all()


def test_the_teacher_neither_learns_nor_drops_out():
    objective = make(distill=TERMS).train()
    assert objective.student.training and not any(module.training for module in objective.teacher.modules())
    assert not any(parameter.requires_grad for parameter in objective.teacher.parameters())


def test_means_over_batches_are_without_dropout():
    """Of what each part is per: frames of the losses in nats a frame, else utterances."""
    objective, batch = make(distill=TERMS), make_batch()
    one = dataclasses.replace(batch, ids=["a"], texts=[""], **{
        name: getattr(batch, name)[:1] for name in ("features", "feature_lengths", "symbols", "symbol_lengths")})
    parts = [results(objective, some, 10)[1] for some in (batch, one)]  # of three utterances and of one
    frames = [int(subsampled_length(some.feature_lengths).sum()) for some in (batch, one)]
    for module in objective.student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    means = mean_parts(objective.train(), [batch, one], 10, torch.device("cpu"))
    assert means.keys() == parts[0].keys()
    for name in means.keys() - {"total"}:
        counts = frames if name in ("simple", "pruned", "ctc") else [3, 1]
        want = sum(count * part[name].item() for count, part in zip(counts, parts)) / sum(counts)
        assert means[name] == pytest.approx(want, rel=1e-5), name


def dev_set(size):
    """The same 24 utterances in batches of so many: the longer ones have fewer labels, and every third was heard."""
    torch.manual_seed(2)
    lengths, counts = torch.arange(24) * 9 + 35, 6 - torch.arange(24) // 5
    features, symbols = torch.randn(24, 242, 16, dtype=torch.float64), torch.randint(1, 13, (24, 6))
    for rows in torch.arange(24).split(size):
        batch = Batch(features[rows, :lengths[rows].max()], lengths[rows], symbols[rows, :counts[rows].max()], counts[rows],
                      [""] * size, [str(row) for row in rows.tolist()], 1.0, int(subsampled_length(lengths[rows]).sum()), size)
        heard = [place for place, row in enumerate(rows.tolist()) if row % 3 == 0]
        yield with_nbest(batch, [[3, 4]] * len(heard), heard, [-1.0] * len(heard)) if heard else batch


def test_means_do_not_depend_on_the_batches():
    objective = make(distill=TERMS + SEQUENCE).double()
    objective.teacher.double()
    alone, four, together = (mean_parts(objective, list(dev_set(size)), 5, torch.device("cpu")) for size in (1, 4, 24))
    assert together.keys() == {"simple", "pruned", "ctc", "total", *(term.name for term in TERMS + SEQUENCE)}
    _, parts, _ = results(objective, *dev_set(24), 5)
    for name, value in together.items():
        assert value == pytest.approx(parts[name].item(), rel=1e-6), name  # the nodes' weights are float32
        assert alone[name] == pytest.approx(value, rel=1e-6) and four[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("update, simple, pruned", [(10, 0.5, 1.0), (5, 0.75, 0.55)])
@pytest.mark.parametrize("options", [{}, dict(sharpness=2.0, delay_penalty=0.2)])
@pytest.mark.parametrize("fused", ["never", "always"])
def test_a_certain_hypothesis_counts_as_a_reference(fused, options, update, simple, pruned):
    batch = make_batch()
    references = [row[:length].tolist() for row, length in zip(batch.symbols, batch.symbol_lengths)]
    taught = make(distill=SEQUENCE, fused=fused, **options)
    total, parts, grads = results(taught, with_nbest(batch, references, [0, 1, 2], [-3.0, -70.0, 0.0]), update)
    plain, plain_parts, plain_grads = results(make(fused=fused, **options), batch, update)
    again = 0.7 * (simple * plain_parts["simple"] + pruned * plain_parts["pruned"])
    frames = taught.student.encoder(batch.features, batch.feature_lengths)[1].sum()
    torch.testing.assert_close(parts["nbest_rnnt"], again / 0.7)
    torch.testing.assert_close(total, plain + again * frames / batch.total_frames)
    name = "student.joiner.out.weight"  # that CTC does not reach
    torch.testing.assert_close(grads[name], 1.7 * plain_grads[name], rtol=1e-3, atol=1e-6)


def test_hypotheses_count_by_their_posterior():
    labels, batch = [[3, 4, 5], [3, 4], [7], [8, 9, 1, 2]], make_batch()
    objective = make(distill=SEQUENCE)

    def value(*chosen, log_probs):
        chosen_batch = with_nbest(batch, [labels[i] for i in chosen], [[0, 0, 0, 2][i] for i in chosen], log_probs)
        return results(objective, chosen_batch, 10)[1]["nbest_rnnt"]

    each = [value(i, log_probs=[-5.0]) for i in range(4)]
    odds = [0.5, 0.3, 0.2]
    want = sum(p * x for p, x in zip(odds, each)) + each[3]
    got = value(0, 1, 2, 3, log_probs=[torch.tensor(p).log().item() - 40 for p in odds] + [-9.0])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(value(3, 2, 1, 0, log_probs=[-9.0] + [torch.tensor(p).log().item() for p in odds[::-1]]), want)


def test_temperature_and_schedule_of_the_hypotheses():
    labels, batch = [[3, 4, 5], [7]], make_batch()
    each = [results(make(distill=SEQUENCE), with_nbest(batch, [label], [0], [0.0]), 10)[1]["nbest_rnnt"] for label in labels]
    both = with_nbest(batch, labels, [0, 0], [-1.0, -4.0])
    term = DistillTerm(name="nbest_rnnt", weight=0.5, temperature=3.0, schedule="warmup", schedule_updates=40)
    objective = make(distill=[term])
    early, late = results(objective, both, 10), results(objective, both, 30)
    likely = 1 / (1 + math.exp(-3.0 / 3.0))
    want = likely * each[0] + (1 - likely) * each[1]
    torch.testing.assert_close(early[1]["nbest_rnnt"], want)
    frames = outputs(objective.student, batch)[1].sum()
    plain = results(make(), batch, 10)[0]
    for update, (total, parts, _) in ((10, early), (30, late)):
        torch.testing.assert_close(total, plain + 0.5 * update / 40 * want * frames / batch.total_frames)


def test_fused_hypotheses_are_the_same():
    batch = with_nbest(make_batch(), [[3, 4, 5], [3, 4], [7]], [0, 0, 2], [-1.0, -1.5, -2.0])
    (total, parts, grads), (other, other_parts, other_grads) = (
        results(make(distill=SEQUENCE, fused=fused), batch, 3) for fused in ("never", "always"))
    torch.testing.assert_close(total, other)
    torch.testing.assert_close(parts["nbest_rnnt"], other_parts["nbest_rnnt"])
    assert grads.keys() == other_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, other_grads[name], rtol=1e-3, atol=1e-6)


def test_a_batch_without_hypotheses_is_trained_on_its_references():
    batch = make_batch()
    total, parts, _ = results(make(distill=SEQUENCE), batch, 10)
    plain, plain_parts, _ = results(make(), batch, 10)
    assert total == plain and parts.keys() == plain_parts.keys()


def test_chunks_are_drawn_for_each_update_of_a_training_alone():
    objective, batch, seen = make(distill=TERMS), make_batch(), []
    objective.chunk_sizes, objective.left_contexts = [0, 2, 4], [-1, 3]
    for model in (objective.student, objective.teacher):
        def record(*args, call=model.encoder.forward, **options):
            seen.append(args[2:])
            return call(*args, **options)
        model.encoder.forward = record
    drawn = []
    for update in range(40):
        results(objective.train(), batch, update)
        ours, theirs = seen[-2:]
        assert ours == theirs
        drawn.append(ours)
    assert set(drawn) == {(size, left) for size in (0, 2, 4) for left in (-1, 3)}
    results(objective, batch, 7)
    assert seen[-1] == drawn[7]  # a resumed training draws the same
    objective.seed = 1
    for update in range(40):
        results(objective, batch, update)
    assert [pair for pair in seen[-80::2]] != drawn  # another seed does not
    objective.chunk_sizes, objective.left_contexts = [2], [3]
    results(objective, batch, 7)
    assert seen[-1] == seen[-2] == (2, 3)
    objective.student.eval()
    results(objective, batch, 7)
    assert seen[-1] == seen[-2] == (None, None)


def test_a_layer_that_does_nothing_is_not_missed():
    torch.manual_seed(0)
    model = Transducer(ModelConfig(**{**SIZES, "num_layers": 3}), 13).eval()
    with torch.no_grad():
        layer = model.encoder.layers[1]  # the identity, up to its norm: what comes out of a layer is normalised already
        for block in (layer.feed_forward1.down, layer.feed_forward2.down, layer.attention.out, layer.convolution.out):
            block.weight.zero_()
            block.bias.zero_()
    config = LossConfig(rnnt_backend="native", prune_range=3)
    losses = {kept: loss_with_layers(model, list(kept), config, [make_batch()])
              for kept in ((0, 1, 2), (0, 2), (1, 2), (0, 1))}
    assert losses[0, 2] == pytest.approx(losses[0, 1, 2], rel=1e-4)
    assert abs(losses[1, 2] - losses[0, 1, 2]) > 10 * abs(losses[0, 2] - losses[0, 1, 2])
    assert len(model.encoder.layers) == 3
