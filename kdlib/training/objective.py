"""The training objective of one batch: pruned RNN-T, auxiliary CTC, distillation."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlib import rnnt
from kdlib.config import LossConfig
from kdlib.data import Batch
from kdlib.errors import RecipeError
from kdlib.losses import DistillInputs, find_loss
from kdlib.transducer import Transducer


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
        self.terms = [(term, find_loss(term.name)) for term in config.distill] if teacher is not None else []
        reads = {loss.reads for _, loss in self.terms}
        self.reads_lattice, self.reads_encoder = "lattice" in reads, "encoder" in reads
        if config.ctc_weight > 0 and student.ctc is None:
            raise RecipeError("loss.ctc_weight is above 0 but the model has no CTC head: set model.ctc_head=true")
        self.projection = None
        if teacher is not None:
            if teacher.vocab_size != student.vocab_size:
                raise RecipeError(f"the teacher has {teacher.vocab_size} tokens, the student {student.vocab_size}: "
                                  "both must use the same lang folder")
            teacher.eval().requires_grad_(False)
            widths = student.config.encoder_dim, teacher.config.encoder_dim
            if self.reads_encoder and widths[0] != widths[1]:
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
        lattice = dict(termination_symbol=student.blank_id, boundary=boundary, rnnt_type=c.rnnt_type,
                       delay_penalty=c.delay_penalty, reduction="sum", backend=c.rnnt_backend)
        # The lattice's sums of log-probabilities need float32, whatever the model computes in.
        simple, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
            lm=student.simple_lm(predicted).float(), am=student.simple_am(encoded).float(), symbols=batch.symbols,
            lm_only_scale=c.lm_scale, am_only_scale=c.am_scale, return_grad=True, **lattice)
        ranges = rnnt.get_rnnt_prune_ranges(px_grad, py_grad, boundary, c.prune_range, backend=c.rnnt_backend)
        logits = self._logits(student, encoded, predicted, ranges)
        pruned = rnnt.rnnt_loss_pruned(logits=logits, symbols=batch.symbols, ranges=ranges, **lattice)

        frames = lengths.sum()
        simple, pruned = simple / frames, pruned / frames
        warm = min(1.0, update / c.warmup_updates) if c.warmup_updates > 0 else 1.0
        total = (1 - warm * (1 - c.simple_scale)) * simple + (0.1 + 0.9 * warm) * pruned
        parts = {"simple": simple.detach(), "pruned": pruned.detach()}
        if student.ctc is not None and (c.ctc_weight > 0 or update < c.ctc_first_updates):
            log_probs = F.log_softmax(student.ctc(encoded).float(), dim=-1).transpose(0, 1)
            ctc = F.ctc_loss(log_probs, batch.symbols, lengths, batch.symbol_lengths, blank=student.blank_id,
                             reduction="sum", zero_infinity=True) / frames
            parts["ctc"] = ctc.detach()
            total = 0.1 * total + ctc if update < c.ctc_first_updates else total + c.ctc_weight * ctc
        parts["total"] = total.detach()
        total = total * (frames / batch.total_frames)
        if self.terms:
            inputs = self._distill_inputs(batch, encoded, lengths, logits, ranges, boundary)
            for term, loss in self.terms:
                value = loss.compute(inputs, term.temperature)
                parts[term.name] = value.detach()
                parts["total"] = parts["total"] + term.weight * value.detach()
                total = total + term.weight * value * (len(batch.ids) / batch.total_utterances)
        return total, parts

    def _logits(self, model: Transducer, encoded: Tensor, predicted: Tensor, ranges: Tensor) -> Tensor:
        """(N, T, R, V) float32 logits of the kept nodes."""
        am, lm = rnnt.do_rnnt_pruning(am=model.joiner.encoder_proj(encoded), lm=model.joiner.predictor_proj(predicted),
                                      ranges=ranges, backend=self.config.rnnt_backend)
        return model.joiner(am, lm).float()

    def _distill_inputs(self, batch: Batch, encoded: Tensor, lengths: Tensor, logits: Tensor, ranges: Tensor,
                        boundary: Tensor) -> DistillInputs:
        teacher = self.teacher
        inputs = DistillInputs(blank_id=self.student.blank_id, lengths=lengths)
        with torch.no_grad():
            inputs.teacher_encoder, _, _ = teacher.encoder(batch.features, batch.feature_lengths)
            if self.reads_lattice:
                inputs.teacher_logits = self._logits(teacher, inputs.teacher_encoder,
                                                     teacher.predictor.prefix(batch.symbols), ranges)
        if self.reads_lattice:
            inputs.student_logits = logits
            inputs.next_symbols, inputs.mask = rnnt.node_symbols(batch.symbols, ranges, boundary,
                                                                 self.student.blank_id)
        if self.reads_encoder:
            inputs.student_encoder = encoded if self.projection is None else self.projection(encoded)
        return inputs
