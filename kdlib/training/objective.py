"""The training objective of one batch: pruned RNN-T, auxiliary CTC, distillation."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import rnnt
from kdlib.config import LossConfig
from kdlib.data import Batch
from kdlib.errors import RecipeError
from kdlib.losses import EncoderLoss, EncoderPair, LatticeLoss, find_loss, node_weights
from kdlib.transducer import Transducer


def _joiner_side(model: Transducer, encoded: Tensor, predicted: Tensor) -> rnnt.Side:
    return rnnt.Side(model.joiner, model.joiner.encoder_proj(encoded), model.joiner.predictor_proj(predicted))


class Objective(nn.Module):
    """A student, what only its training needs, and (outside the parameters) its teacher.

    total = RNN-T + ctc_weight * CTC + sum over the configured distillation losses of weight * loss. RNN-T and CTC
    are sums of nats over the batch divided by its frames after subsampling; the distillation losses are means over its
    utterances. Of a batch dealt out to several processes each computes its part, and the parts add up to the whole.
    """

    def __init__(self, student: Transducer, config: LossConfig, teacher: Optional[Transducer] = None):
        super().__init__()
        self.student = student
        self.config = config
        terms = [(term, find_loss(term.name)) for term in config.distill] if teacher is not None else []
        self.lattice_terms = [(term, loss) for term, loss in terms if isinstance(loss, LatticeLoss)]
        self.encoder_terms = [(term, loss) for term, loss in terms if isinstance(loss, EncoderLoss)]
        if config.ctc_weight > 0 and student.ctc is None:
            raise RecipeError("loss.ctc_weight is above 0 but the model has no CTC head: set model.ctc_head=true")
        self.projection = None
        if teacher is not None:
            if teacher.vocab_size != student.vocab_size:
                raise RecipeError(f"the teacher has {teacher.vocab_size} tokens, the student {student.vocab_size}: "
                                  "both must use the same lang folder")
            teacher.eval().requires_grad_(False)
            widths = student.config.encoder_dim, teacher.config.encoder_dim
            if self.encoder_terms and widths[0] != widths[1]:
                self.projection = nn.Linear(*widths)
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule: neither trained nor saved

    @property
    def teacher(self) -> Optional[Transducer]:
        return self._teacher[0]

    def forward(self, batch: Batch, update: int) -> Tuple[Tensor, Dict[str, Tensor]]:
        """
        Args:
            batch: see :class:`kdlib.data.Batch`; every utterance has a path through the lattice.
            update: the number of updates made so far; it sets the warm-ups.
        Returns:
            this process's part of the batch's total, a scalar, and the means over its own utterances by name, detached.
        """
        c, student = self.config, self.student
        encoded, lengths, _ = student.encoder(batch.features, batch.feature_lengths)
        predicted = student.predictor.prefix(batch.symbols)
        boundary = torch.zeros(lengths.size(0), 4, dtype=torch.int64, device=lengths.device)
        boundary[:, 2], boundary[:, 3] = batch.symbol_lengths, lengths
        lattice = dict(symbols=batch.symbols, termination_symbol=student.blank_id, boundary=boundary,
                       rnnt_type=c.rnnt_type, delay_penalty=c.delay_penalty)
        # The lattice's sums of log-probabilities need float32, whatever the model computes in.
        simple, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
            lm=student.simple_lm(predicted).float(), am=student.simple_am(encoded).float(), lm_only_scale=c.lm_scale,
            am_only_scale=c.am_scale, reduction="sum", return_grad=True, backend=c.rnnt_backend, **lattice)
        ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, c.prune_range, backend=c.rnnt_backend)
        taught = None
        if self.lattice_terms or self.encoder_terms:
            with torch.no_grad():
                taught, _, _ = self.teacher.encoder(batch.features, batch.feature_lengths)

        # What a nat of each sum, and one of each mean over the utterances, counts in the total of the whole batch.
        first_ctc = student.ctc is not None and update < c.ctc_first_updates
        per_nat = 1.0 / batch.total_frames
        share = len(batch.ids) / batch.total_utterances
        warm = min(1.0, update / c.warmup_updates) if c.warmup_updates > 0 else 1.0
        weights = {"simple": 1 - warm * (1 - c.simple_scale), "pruned": 0.1 + 0.9 * warm, "ctc": c.ctc_weight}
        if first_ctc:
            weights = {"simple": 0.1 * weights["simple"], "pruned": 0.1 * weights["pruned"], "ctc": 1.0}

        total, values = self._lattice_losses(batch, encoded, predicted, taught, ranges, lattice,
                                             weights["pruned"] * per_nat, share)
        total = total + weights["simple"] * per_nat * simple
        values["simple"] = simple.detach()
        if student.ctc is not None and weights["ctc"] > 0:
            log_probs = F.log_softmax(student.ctc(encoded).float(), dim=-1).transpose(0, 1)
            ctc = F.ctc_loss(log_probs, batch.symbols, lengths, batch.symbol_lengths, blank=student.blank_id,
                             reduction="sum", zero_infinity=True)
            total = total + weights["ctc"] * per_nat * ctc
            values["ctc"] = ctc.detach()
        parts = {name: value / lengths.sum() if name in weights else value for name, value in values.items()}
        if self.encoder_terms:
            pair = EncoderPair(encoded if self.projection is None else self.projection(encoded), taught, lengths)
        for term, loss in self.encoder_terms:
            value = loss.of_pair(pair)
            total = total + term.weight * share * value
            parts[term.name] = value.detach()
        weights.update((term.name, term.weight) for term, _ in self.lattice_terms + self.encoder_terms)
        parts["total"] = sum(weights[name] * value for name, value in parts.items())
        return total, parts

    def _lattice_losses(self, batch: Batch, encoded: Tensor, predicted: Tensor, taught: Optional[Tensor],
                        ranges: Tensor, lattice: Dict[str, object], pruned_weight: float,
                        share: float) -> Tuple[Tensor, Dict[str, Tensor]]:
        """The pruned RNN-T loss and the distillation at the lattice's nodes.

        Args:
            taught: the teacher's (N, T, C).
            pruned_weight, share: of the pruned loss's sum and of the distillation's means in the total.
        Returns:
            their part of the total, and the sum and the means, detached.
        """
        c, student, teacher = self.config, self.student, self.teacher
        next_symbols, mask = rnnt.node_symbols(batch.symbols, ranges, lattice["boundary"], student.blank_id)
        ours, theirs = _joiner_side(student, encoded, predicted), None
        if self.lattice_terms:
            with torch.no_grad():
                theirs = _joiner_side(teacher, taught, teacher.predictor.prefix(batch.symbols))
        terms = [rnnt.NodeTerm(lambda s, t, y, term=term, loss=loss: loss.at_nodes(s, t, y, student.blank_id,
                                                                                   term.temperature),
                               node_weights(mask), term.weight * share)
                 for term, loss in self.lattice_terms]
        names = [term.name for term, _ in self.lattice_terms]
        if self._fuses(mask):
            total, each, means = rnnt.lattice_losses_fused(
                *ours, ranges=ranges, weight=pruned_weight, teacher=theirs, terms=terms, **lattice)
            return total, {"pruned": each.sum(), **dict(zip(names, means))}
        logits = self._logits(ours, ranges)
        pruned = rnnt.rnnt_loss_pruned(logits=logits, ranges=ranges, reduction="sum", backend=c.rnnt_backend, **lattice)
        total, values = pruned_weight * pruned, {"pruned": pruned.detach()}
        if theirs is not None:
            with torch.no_grad():
                target = self._logits(theirs, ranges)
        for name, term in zip(names, terms):
            per_node = term.per_node(logits, target, next_symbols).masked_fill(~mask, 0.0)
            value = (per_node * term.weights).sum()
            total = total + term.scale * value
            values[name] = value.detach()
        return total, values

    def _logits(self, side: rnnt.Side, ranges: Tensor) -> Tensor:
        """(N, T, R, V) float32 logits of the kept nodes."""
        am, lm = rnnt.do_rnnt_pruning(am=side.am, lm=side.lm, ranges=ranges, backend=self.config.rnnt_backend)
        return side.joiner(am, lm).float()

    def _fuses(self, mask: Tensor) -> bool:
        """Whether the logits of these nodes (N, T, R) are computed a few at a time."""
        c = self.config
        if c.fused == "auto":
            return rnnt.backend_in_use(c.rnnt_backend) == "native" and rnnt.fused_pays(
                mask, self.student.vocab_size, bool(self.lattice_terms))
        return c.fused == "always"
