"""The training objective of one batch: pruned RNN-T, auxiliary CTC, distillation."""

import logging
import random
from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdlib import rnnt
from kdlib.config import DistillTerm, LossConfig
from kdlib.config_checks import require
from kdlib.conformer import subsampled_length
from kdlib.data import Batch, checked, describe_spoilt
from kdlib.errors import RecipeError
from kdlib.losses import (EncoderLoss, LatticeLoss, Loss, SequenceLoss, best_path_weights, find_loss, matched_layers,
                          node_weights, occupancy_weights, shifted)
from kdlib.rnnt.lattice import summable
from kdlib.shar import REMAKE
from kdlib.transducer import Transducer

Term = Tuple[str, DistillTerm, Loss]  # its name in logs, its settings, what they name


def labels_before(model: Transducer, batch: Batch) -> Optional[Tensor]:
    """(N, context_size) int64, what the model's predictor reads before each utterance; None where each is a beginning."""
    return None if batch.before is None else model.predictor.context_after(batch.before, batch.before_lengths)


class Objective(nn.Module):
    """A student, what only its training needs, and (outside the parameters) its teacher.

    total = RNN-T + ctc_weight * CTC + sum over the configured distillation losses of weight * loss. RNN-T, on the
    references and on the teacher's hypotheses, and CTC are sums of nats over the batch divided by its frames after
    subsampling; the other distillation losses are means over its utterances. In training each update draws one of
    ``chunk_sizes`` and one of ``left_contexts`` by ``seed``, for student and teacher, and the same in all processes; the
    model's own stand where there are none; and a loss whose weight has decayed to 0 is left out, the teacher with it where no
    other loss needs it. Of a batch dealt out to several processes each computes its part, and the parts add up to the whole.
    """

    def __init__(self, student: Transducer, config: LossConfig, teacher: Optional[Transducer] = None,
                 chunk_sizes: Sequence[int] = (), left_contexts: Sequence[int] = (), seed: int = 0):
        super().__init__()
        self.seed = seed
        self.chunk_sizes, self.left_contexts = list(chunk_sizes), list(left_contexts)
        self.student = student
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule: neither trained nor saved
        self.config = config
        terms = [(name, term, find_loss(term.name)) for name, term in zip(config.distill_names(), config.distill)]
        terms = terms if teacher is not None else []
        self.lattice_terms = [term for term in terms if isinstance(term[-1], LatticeLoss)]
        self.encoder_terms = [term for term in terms if isinstance(term[-1], EncoderLoss)]
        self.sequence_terms = [term for term in terms if isinstance(term[-1], SequenceLoss)]
        self.pairs: Dict[str, List[Tuple[int, int]]] = {}  # of layers, (student's, teacher's), by the term's name
        self.per_frame = {"simple", "pruned", "ctc", *(name for name, _, _ in self.sequence_terms)}  # parts in nats a frame
        rnnt.backend_in_use(config.rnnt_backend)  # an error where it is not to be had
        for name, term, _ in terms:  # here and not where configs are read: there are models that were trained so
            require(term.schedule != "constant" or term.schedule_updates == 0, f"loss.distill, {name}, schedule_updates",
                    term.schedule_updates, "left out, or beside schedule: warmup or decay")
        for key in ("ctc_weight", "ctc_first_updates"):
            if getattr(config, key) > 0 and student.ctc is None:
                raise RecipeError(f"loss.{key} is above 0 but the model has no CTC head: set model.ctc_head=true or "
                                  f"loss.{key}=0")
        self.projections = nn.ModuleDict()  # by "student's layer-teacher's layer", where their widths differ
        if teacher is not None:
            if teacher.vocab_size != student.vocab_size:
                raise RecipeError(f"the teacher has {teacher.vocab_size} tokens, the student {student.vocab_size}: "
                                  "both must use the same lang folder")
            bins = student.config.num_features, teacher.config.num_features
            if bins[0] != bins[1]:
                raise RecipeError(f"model.num_features is {bins[0]} in the student and {bins[1]} in its teacher, and both "
                                  "read the same features: leave it as in the teacher")
            teacher.eval().requires_grad_(False)
            widths = student.config.encoder_dim, teacher.config.encoder_dim
            self.pairs = {name: self._layer_pairs(term) if loss.of == "embedding" else []
                          for name, term, loss in self.encoder_terms}
            if widths[0] != widths[1]:
                for ours, theirs in sorted({pair for pairs in self.pairs.values() for pair in pairs}):
                    self.projections[f"{ours}-{theirs}"] = nn.Linear(*widths)

    @property
    def teacher(self) -> Optional[Transducer]:
        """The model that the student learns from, which is no part of what is trained and saved; None without one."""
        return self._teacher[0]

    def _layer_pairs(self, term: DistillTerm) -> List[Tuple[int, int]]:
        """(student's, teacher's) layer numbers, from 0."""
        depths = self.student.config.num_layers, self.teacher.config.num_layers
        if term.layers == "last":
            return [(depths[0] - 1, depths[1] - 1)]
        if term.layers == "matched":
            return matched_layers(*depths)
        for pair in term.layers:
            if pair[0] > depths[0] or pair[1] > depths[1]:
                raise RecipeError(f"loss.distill, {term.name}: layers {pair}: the student has {depths[0]} layers, its "
                                  f"teacher {depths[1]}")
        return [(ours - 1, theirs - 1) for ours, theirs in term.layers]

    def _live(self, terms: List[Term], update: int) -> List[Term]:
        """Those that are computed: in training a weight that has decayed to 0 stays there, and its loss is work for nothing."""
        return [term for term in terms if not (self.student.training and term[1].ended(update))]

    def weights(self, update: int) -> Dict[str, float]:
        """What one of each part counts in the total after so many updates, by the part's name."""
        c = self.config
        warm = min(1.0, update / c.warmup_updates) if c.warmup_updates > 0 else 1.0
        weights = {"simple": 1 - warm * (1 - c.simple_scale), "pruned": 0.1 + 0.9 * warm, "ctc": c.ctc_weight}
        if update < c.ctc_first_updates:
            weights = {"simple": 0.1 * weights["simple"], "pruned": 0.1 * weights["pruned"], "ctc": 1.0}
        distilling = self.lattice_terms + self.encoder_terms + self.sequence_terms
        return {**weights, **{name: term.weight_at(update) for name, term, _ in distilling}}

    def forward(self, batch: Batch, update: int) -> Tuple[Tensor, Dict[str, Tensor]]:
        """
        Args:
            batch: see :class:`kdlib.data.Batch`; every utterance has a path through the lattice.
            update: the number of updates made so far; it sets the warm-ups.
        Returns:
            this process's part of the batch's total, a scalar, and the means over its own utterances by name, detached.
        """
        c, student = self.config, self.student
        lattice_terms, encoder_terms = (self._live(terms, update) for terms in (self.lattice_terms, self.encoder_terms))
        wanted = [sorted({pair[side] for name, _, _ in encoder_terms for pair in self.pairs[name]}) for side in (0, 1)]
        context = self._context(update)
        encoded, lengths, layers = student.encoder(batch.features, batch.feature_lengths, *context, layers=wanted[0])
        predicted = student.predictor.prefix(batch.symbols, labels_before(student, batch))
        simple, ranges, lattice = self._simple(encoded, lengths, predicted, batch.symbols, batch.symbol_lengths)
        simple = simple.sum()
        taught, taught_layers = None, []
        if lattice_terms or encoder_terms:
            whole = lattice_terms or any(loss.of == "logits" for _, _, loss in encoder_terms)
            depth = None if whole else wanted[1][-1] + 1  # the layers above are compared with nothing
            with torch.no_grad():
                taught, _, taught_layers = self.teacher.encoder(batch.features, batch.feature_lengths, *context,
                                                                layers=wanted[1], depth=depth)

        # What a nat of each sum, and one of each mean over the utterances, counts in the total of the whole batch.
        weights = self.weights(update)
        per_nat = 1.0 / batch.total_frames
        share = len(batch.ids) / batch.total_utterances
        sharpness = c.sharpness if batch.progress >= c.sharpness_start else 1.0
        total, values = self._lattice_losses(batch, encoded, predicted, taught, ranges, lattice,
                                             weights["pruned"] * per_nat, sharpness, share, update)
        total = total + weights["simple"] * per_nat * simple
        values["simple"] = simple.detach()
        if weights["ctc"] > 0:
            log_probs = F.log_softmax(summable(student.ctc(encoded)), dim=-1).transpose(0, 1)
            ctc = F.ctc_loss(log_probs, batch.symbols, lengths, batch.symbol_lengths, blank=student.blank_id,
                             reduction="sum", zero_infinity=True)
            total = total + weights["ctc"] * per_nat * ctc
            values["ctc"] = ctc.detach()
        parts = {name: value / lengths.sum() if name in self.per_frame else value for name, value in values.items()}
        outputs = dict(zip(wanted[0], layers)), dict(zip(wanted[1], taught_layers))
        for name, term, loss in encoder_terms:
            value = self._encoder_loss(term, loss, self.pairs[name], encoded, taught, outputs, lengths)
            total = total + weights[name] * share * value
            parts[name] = value.detach()
        for name, term, loss in self._live(self.sequence_terms, update) if batch.nbest is not None else ():
            posterior = loss.posterior(batch.nbest.log_probs, batch.nbest.rows, len(batch.ids), term.temperature)
            value = self._nbest_loss(batch, posterior, encoded, lengths, weights["simple"], weights["pruned"], sharpness)
            total = total + weights[name] * per_nat * value
            parts[name] = value.detach() / lengths.sum()
        parts["total"] = sum(weights[name] * value for name, value in parts.items())
        return total, parts

    def _context(self, update: int) -> Tuple[Optional[int], Optional[int]]:
        """The chunk size and the left context of this update; None is the model's."""
        if not self.student.training:
            return None, None
        draw = random.Random(f"{self.seed} {update}")
        return tuple(draw.choice(sizes) if sizes else None for sizes in (self.chunk_sizes, self.left_contexts))

    def _simple(self, encoded: Tensor, lengths: Tensor, predicted: Tensor, symbols: Tensor,
                symbol_lengths: Tensor) -> Tuple[Tensor, Tensor, Dict[str, object]]:
        """The smoothed loss of each utterance (N,), its prune ranges (N, T, R), and what names the lattice."""
        c, student = self.config, self.student
        boundary = rnnt.boundary_of(symbol_lengths, lengths)
        lattice = dict(symbols=symbols, termination_symbol=student.blank_id, boundary=boundary, rnnt_type=c.rnnt_type,
                       delay_penalty=c.delay_penalty)
        simple, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
            lm=summable(student.simple_lm(predicted)), am=summable(student.simple_am(encoded)),
            lm_only_scale=c.lm_scale, am_only_scale=c.am_scale, reduction="none", return_grad=True,
            backend=c.rnnt_backend, **lattice)
        ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, c.prune_range, backend=c.rnnt_backend)
        return simple, ranges, lattice

    def _nbest_loss(self, batch: Batch, posterior: Tensor, encoded: Tensor, lengths: Tensor, simple_weight: float,
                    pruned_weight: float, sharpness: float) -> Tensor:
        """The RNN-T loss on the hypotheses (M of them) by their posterior (M,), summed over the batch, in nats."""
        nbest, before = batch.nbest, labels_before(self.student, batch)
        encoded, lengths = encoded[nbest.rows], lengths[nbest.rows]
        predicted = self.student.predictor.prefix(nbest.symbols, None if before is None else before[nbest.rows])
        simple, ranges, lattice = self._simple(encoded, lengths, predicted, nbest.symbols, nbest.symbol_lengths)
        side = self.student.lattice_side(encoded, predicted)
        _, mask = rnnt.node_symbols(nbest.symbols, ranges, lattice["boundary"], self.student.blank_id)
        if self._fuses(mask, False):
            pruned = rnnt.lattice_losses_fused(*side, ranges=ranges, weight=posterior, sharpness=sharpness, **lattice).total
        else:
            pruned = (posterior * rnnt.rnnt_loss_pruned(logits=self._logits(side, ranges), ranges=ranges, reduction="none",
                                                        sharpness=sharpness, backend=self.config.rnnt_backend,
                                                        **lattice)).sum()
        return simple_weight * (posterior * simple).sum() + pruned_weight * pruned

    def _encoder_loss(self, term: DistillTerm, loss: EncoderLoss, pairs: List[Tuple[int, int]], encoded: Tensor,
                      taught: Tensor, outputs: Tuple[Dict[int, Tensor], Dict[int, Tensor]], lengths: Tensor) -> Tensor:
        """The mean of the loss over its pairs of layers, or the loss of the last layers' logits."""
        if loss.of == "logits":
            sides = [(summable(self.student.simple_am(encoded)), summable(self.teacher.simple_am(taught)))]
        else:
            sides = []
            for ours, theirs in pairs:
                output, name = outputs[0][ours], f"{ours}-{theirs}"
                sides.append((self.projections[name](output) if name in self.projections else output, outputs[1][theirs]))
        values = [loss.between(*shifted(*side, lengths, term.shift), term.temperature) for side in sides]
        return sum(values) / len(values)

    def _lattice_losses(self, batch: Batch, encoded: Tensor, predicted: Tensor, taught: Optional[Tensor],
                        ranges: Tensor, lattice: Dict[str, object], pruned_weight: float, sharpness: float,
                        share: float, update: int) -> Tuple[Tensor, Dict[str, Tensor]]:
        """The pruned RNN-T loss and the distillation at the lattice's nodes.

        Args:
            taught: the teacher's (N, T, C).
            pruned_weight, share: of the pruned loss's sum and of the distillation's means in the total.
            sharpness: of the pruned loss.
        Returns:
            their part of the total, and the sum and the means, detached.
        """
        c, student, teacher = self.config, self.student, self.teacher
        ours, theirs = student.lattice_side(encoded, predicted), None
        live = self._live(self.lattice_terms, update)
        if live:
            with torch.no_grad():
                theirs = teacher.lattice_side(taught, teacher.predictor.prefix(batch.symbols, labels_before(teacher, batch)))
        total, values = 0.0, {}
        for nodes, kept in (("pruned", ranges), ("all", rnnt.all_nodes(encoded, batch.symbols))):
            chosen = [(name, term, loss) for name, term, loss in live if loss.nodes == nodes]
            if nodes == "all" and not chosen:
                continue
            next_symbols, mask = rnnt.node_symbols(batch.symbols, kept, lattice["boundary"], student.blank_id)
            terms = [self._node_term(term, loss, theirs, kept, mask, lattice, term.weight_at(update) * share)
                     for _, term, loss in chosen]
            names = [name for name, _, _ in chosen]
            if nodes == "all" or self._fuses(mask, bool(terms)):
                weight = pruned_weight if nodes == "pruned" else 0.0
                part, each, means = rnnt.lattice_losses_fused(
                    *ours, ranges=kept, weight=weight, teacher=theirs, terms=terms, sharpness=sharpness, **lattice)
                total = total + part
                values.update(zip(names, means))
                if nodes == "pruned":
                    values["pruned"] = each.sum()
                continue
            logits = self._logits(ours, kept)
            pruned = rnnt.rnnt_loss_pruned(logits=logits, ranges=kept, reduction="sum", sharpness=sharpness,
                                           backend=c.rnnt_backend, **lattice)
            total, values["pruned"] = total + pruned_weight * pruned, pruned.detach()
            if terms:
                with torch.no_grad():
                    target = self._logits(theirs, kept)
            for name, term in zip(names, terms):
                per_node = term.per_node(logits, target, next_symbols).masked_fill(~mask, 0.0)
                value = (per_node * term.weights).sum()
                total = total + term.scale * value
                values[name] = value.detach()
        return total, values

    def _node_term(self, term: DistillTerm, loss: LatticeLoss, theirs: rnnt.Side, ranges: Tensor, mask: Tensor,
                   lattice: Dict[str, object], scale: float) -> rnnt.NodeTerm:
        weigh = {"best_path": best_path_weights, "occupancy": occupancy_weights}.get(loss.weighting)
        if weigh is None:
            weights = node_weights(mask)
        else:
            arcs = rnnt.arc_log_probs(theirs, lattice["symbols"], ranges, self.student.blank_id, lattice["boundary"],
                                      self.config.rnnt_type)
            weights = weigh(*arcs, ranges, lattice["boundary"], mask, self.config.rnnt_type)
        return rnnt.NodeTerm(
            lambda ours, taught, labels: loss.at_nodes(ours, taught, labels, self.student.blank_id, term.temperature),
            weights, scale)

    def _logits(self, side: rnnt.Side, ranges: Tensor) -> Tensor:
        """(N, T, R, V) logits of the kept nodes."""
        am, lm = rnnt.do_rnnt_pruning(am=side.am, lm=side.lm, ranges=ranges, backend=self.config.rnnt_backend)
        return summable(side.joiner(am, lm))

    def _fuses(self, mask: Tensor, distilling: bool) -> bool:
        """Whether the logits of these nodes (N, T, R) are computed a few at a time."""
        c = self.config
        if c.fused == "auto":
            return rnnt.backend_in_use(c.rnnt_backend) == "native" and rnnt.fused_pays(
                mask, self.student.vocab_size, distilling)
        return c.fused == "always"


@torch.no_grad()
def mean_parts(objective: Objective, loader: DataLoader, update: int, device: torch.device) -> Dict[str, float]:
    """The parts of the objective over a loader's batches, the student in evaluation mode.

    Parts in nats a frame are means over all frames, the others over all utterances, and the total is of these means: so
    which utterances make a batch changes nothing. A warning names utterances whose features are not finite: nor is any mean.
    """
    objective.student.eval()
    spoilt: List[str] = []
    sums: Dict[str, Tensor] = {}  # on the device, whose numbers are waited for once
    frames = utterances = 0
    for batch in checked(loader):
        frames_here, utterances_here = int(subsampled_length(batch.feature_lengths).sum()), len(batch.ids)
        spoilt += batch.spoilt()
        _, parts = objective(batch.to(device), update)
        del parts["total"]
        frames, utterances = frames + frames_here, utterances + utterances_here
        for name, value in parts.items():
            here = frames_here if name in objective.per_frame else utterances_here
            sums[name] = sums.get(name, 0.0) + value.double() * here
    if spoilt:
        logging.warning("%s, so the dev loss tells nothing: mend their audio, and %s", describe_spoilt(spoilt), REMAKE)
    means = {name: float(value) / (frames if name in objective.per_frame else utterances) for name, value in sums.items()}
    weights = objective.weights(update)
    means["total"] = sum(weights[name] * value for name, value in means.items())
    return means


def loss_with_layers(model: Transducer, layers: List[int], config: LossConfig, loader: DataLoader,
                     device: torch.device = torch.device("cpu")) -> float:
    """The pruned RNN-T loss, nats a frame, of ``model``, on ``device``, with only these of its encoder's layers."""
    config = replace(config, ctc_weight=0.0, ctc_first_updates=0, distill=[])
    whole = model.encoder.layers
    model.encoder.layers = nn.ModuleList(whole[i] for i in layers)
    try:
        return mean_parts(Objective(model, config), loader, config.warmup_updates, device)["pruned"]
    finally:
        model.encoder.layers = whole
