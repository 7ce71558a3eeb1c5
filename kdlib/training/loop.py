"""The training loop: epochs of bucketed batches, moving average of the weights, checkpoints that resume exactly."""

import json
import logging
import math
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from lhotse import CutSet
from torch import Tensor, nn
from tqdm import tqdm

from kdlib import rnnt
from kdlib.batch_plan import Phase
from kdlib.config import OptimConfig, TrainConfig, config_to_dict
from kdlib.conformer import FRAME_MS
from kdlib.cuts import TrainCuts, short_cuts, total_seconds
from kdlib.data import Batch, TransducerDataset, checked, describe_spoilt, eval_loader, train_loader
from kdlib.errors import RecipeError
from kdlib.files import write_json
from kdlib.lang import Lang
from kdlib.report import describe_machine, format_duration
from kdlib.training.checkpoint import finished, load_checkpoint, load_state, save_checkpoint, state_digest
from kdlib.training.objective import Objective, mean_parts
from kdlib.training.parallel import sum_gradients, world_size
from kdlib.training.records import Board, Means
from kdlib.transducer import Transducer

MAX_BAD_UPDATES = 20
RESUMABLE = ("objective", "average", "optimizer", "epoch", "batch", "updates", "bad_updates", "seconds")


def learning_rate(config: OptimConfig, update: int, progress: float) -> float:
    """Linear warm-up over updates, then a cosine over the training's progress (0 to 1)."""
    warm = min(1.0, (update + 1) / max(1, config.warmup_updates))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warm * (config.final_ratio + (1 - config.final_ratio) * cosine)


def make_optimizer(objective: Objective, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101); norms and biases do not decay."""
    matrices = [p for p in objective.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in objective.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # One kernel for all tensors instead of ten for each; torch has it for the CPU from 2.4 on.
    fused = {"fused": True} if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4) else {}
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), **fused)


def _suspects(shares: Sequence[Batch]) -> str:
    """Those of this process's utterances whose features are not finite; where all are, of how many it is, and some of them."""
    found = [id_ for share in shares for id_ in share.spoilt()]
    if found:
        return describe_spoilt(found)
    count, ids = shares[0].total_utterances, [id_ for share in shares for id_ in share.ids]
    return f"any of the batch's {count} utterances" + (f", {', '.join(ids[:3])} among them" if ids else "")


class MovingAverage:
    """Exponential moving average of a model's weights; it follows quickly while the training is young."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Take in the model's weights after ``updates`` of them."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates))
        for name, value in model.state_dict().items():
            self.state[name].lerp_(value, weight)


class Trainer:
    """Trains one model in the folder ``exp`` and resumes from what it finds there.

    Leaves ``epoch-N.pt`` (weights and their moving average), ``checkpoint.pt`` (what resuming needs, overwritten),
    ``tensorboard/`` and, at the end, ``done.json``. With several processes (see :mod:`kdlib.training.parallel`) each
    computes its share of every batch, all make the same updates, and rank 0 writes. A batch may be computed in
    ``training.micro_batches`` parts, one after another, and what is drawn at random depends on the number of all parts of all
    processes: two processes train what one trains in two parts.
    """

    def __init__(self, config: TrainConfig, exp: Path, lang: Lang, model: Transducer, train_cuts: TrainCuts,
                 dev_cuts: CutSet, noise: Optional[CutSet], teacher: Optional[Transducer], device: torch.device,
                 rank: int = 0):
        self.config, self.exp, self.lang, self.device, self.rank = config, exp, lang, device, rank
        self.train_cuts = train_cuts
        # Without gradients a process has room for four times what it computes of a training batch at once.
        at_once = config.data.max_duration / (world_size() * config.training.micro_batches)
        self.dev = eval_loader(dev_cuts, lang, config.data, max_duration=4 * at_once)
        self.dataset = TransducerDataset(lang, config.data, noise=noise, train=True)
        self.model = model.to(device)
        self.objective = Objective(model, config.loss, None if teacher is None else teacher.to(device),
                                   config.training.chunk_sizes, config.training.left_contexts,
                                   config.training.seed).to(device)
        self.optimizer = make_optimizer(self.objective, config.optim)
        self.average = MovingAverage(model, config.optim.ema_decay)
        self.epoch = 0 if config.data.curriculum.updates > 0 else 1
        self.batch = 0  # batches of this epoch already trained on
        self.updates = 0
        self.bad_updates = self.bad_in_a_row = 0
        self.seconds = 0.0

    def train(self) -> Dict[str, Any]:
        """Train to the end and return what ``done.json`` holds."""
        self._resume()
        if self.epoch > self.config.training.num_epochs:
            self._keep_last_epoch()
            try:
                return finished(self.exp)  # unwritten: what was made from this model stays up to date
            except RecipeError:
                pass  # it was never written, or is damaged
        if self.rank == 0:
            (self.exp / "done.json").unlink(missing_ok=True)  # of a training whose checkpoint was removed, say
        self.clock = time.monotonic()
        self.told, self.lately, self.heard = Means(), Means(), 0.0  # since the last event; since the last line of the log
        # The progress from which this process goes on at its pace, reading and all, and when that was.
        self.began: Optional[Tuple[float, float]] = None
        self.board = Board(self.exp / "tensorboard", self.updates + 1) if self.rank == 0 else None
        while self.epoch <= self.config.training.num_epochs:
            self._train_epoch()
            self._end_epoch()
        done = {"updates": self.updates, "epoch": self.config.training.num_epochs, "seconds": round(self._elapsed(), 1),
                "bad_updates": self.bad_updates, "rnnt_backend": rnnt.backend_in_use(self.config.loss.rnnt_backend),
                "torch": torch.__version__, "device": str(self.device),
                "machine": describe_machine(), "processes": world_size(), "precision": self.config.training.precision,
                "parameters": self.model.parameter_counts()["total"],
                # Those who learn from the model know it by this file.
                "weights": state_digest(self.average.state)}
        if self.device.type == "cuda":
            done["device"] = torch.cuda.get_device_name(self.device)
        if done["rnnt_backend"] == "k2":
            done["k2"] = metadata.version("k2")
        if self.rank == 0:
            self.board.close()
            write_json(self.exp / "done.json", done)
        return done

    def _train_epoch(self) -> None:
        config, epochs = self.config, self.config.training.num_epochs
        cuts = self.train_cuts
        phase = Phase(self.epoch, config.training.seed, (self.epoch - 1) / epochs, self.epoch / epochs,
                      config.training.updates_per_epoch)
        if self.epoch == 0:
            cuts = short_cuts(cuts, config.data.curriculum.max_words)
            phase = Phase(0, config.training.seed, 0.0, 0.0, config.data.curriculum.updates)
        parts_of_each = config.training.micro_batches
        loader = train_loader(cuts, self.dataset, config.data, phase, self.batch, self.rank, world_size(), parts_of_each)
        self.model.train()
        total = phase.updates or math.ceil(total_seconds(cuts) / config.data.max_duration)
        with tqdm(total=total, initial=self.batch, desc=f"epoch {self.epoch}", unit="update", mininterval=5,
                  disable=self.rank > 0) as bar:
            for shares in zip(*[checked(loader)] * parts_of_each):
                parts, norm = self._update(shares)
                self.batch += 1
                bar.update()
                if self.rank == 0:
                    self._tell(parts, norm, shares[0], bar)
                if self.updates % config.training.save_every_updates == 0:
                    self._save_resumable()

    def _tell(self, parts: Dict[str, Tensor], norm: float, share: Batch, bar: tqdm) -> None:
        """Show and record how it goes, each time as means over the updates since the last time, of rank 0's shares."""
        if self.began is None:
            self.heard, self.said = 0.0, time.monotonic()
            self.began = share.progress, self.said
        else:
            self.heard += share.total_frames * FRAME_MS / 1000
        if parts and math.isfinite(norm):
            self.told.add({**parts, "grad_norm": norm})
            self.lately.add({**parts, "grad_norm": norm})
        if self.updates % self.config.training.log_every_updates == 0:
            values = self.told.read()
            if values:
                bar.set_postfix({"loss": f"{values['total']:.3f}", "pruned": f"{values['pruned']:.3f}"}, refresh=False)
                self.board.add("train", {**values, "learning_rate": self._rate()}, self.updates)
        if self.updates % self.config.training.save_every_updates == 0:
            self._log(share.progress)

    def _log(self, progress: float) -> None:
        values, now = self.lately.read(), time.monotonic()
        if values:
            total, norm = values.pop("total"), values.pop("grad_norm")
            before, then = self.began
            pace = (now - then) / (progress - before) if progress > before else None
            left = f", {format_duration(pace * (1 - progress))} left" if pace is not None else ""
            audio = f", {self.heard / (now - self.said):.0f} s of audio a second" if self.heard else ""
            memory = (f", {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB" if self.device.type == "cuda" else "")
            logging.info("epoch %d, update %d, %.0f%% of the training: loss %.4f (%s), gradient %.2f, rate %.2e%s%s%s",
                         self.epoch, self.updates, 100 * progress, total,
                         ", ".join(f"{name} {value:.4f}" for name, value in values.items()), norm, self._rate(), audio,
                         memory, left)
        self.heard, self.said = 0.0, now

    def _rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _update(self, shares: Sequence[Batch]) -> Tuple[Dict[str, Tensor], float]:
        """One step on what this process computes of a batch; the parts of the loss, of one share, and the gradient's norm."""
        rate = learning_rate(self.config.optim, self.updates, shares[0].progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        half = self.config.training.precision == "bfloat16"
        parts: Dict[str, Tensor] = {}
        for number, share in enumerate(shares, start=self.rank * len(shares)):
            # Dropout draws from a seed of the update's own, so that a resumed training goes on as if never stopped.
            torch.manual_seed((self.config.training.seed * 1000003 + self.updates) * 1009 + number)
            if share.ids:  # the smallest batches do not make so many
                # Older torch refuses to have it named, even switched off, on a GPU that lacks it.
                with torch.autocast(self.device.type, dtype=torch.bfloat16) if half else nullcontext():
                    loss, told = self.objective(share.to(self.device), self.updates)
                loss.backward()
                parts = parts or told
        sum_gradients(self.objective.parameters())
        norm = float(nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.optim.clip_norm))
        self.updates += 1
        if math.isfinite(norm):
            self.optimizer.step()
            self.average.update(self.model, self.updates)
            self.bad_in_a_row = 0
        else:
            self.bad_updates += 1
            self.bad_in_a_row += 1
            logging.warning("update %d: the gradient is not finite, the update is left out (%s)", self.updates,
                            _suspects(shares))
            if self.bad_in_a_row >= MAX_BAD_UPDATES:
                raise RecipeError(f"{MAX_BAD_UPDATES} updates in a row had gradients that are not finite: lower "
                                  "optim.learning_rate or check the features")
        return parts, norm

    def _end_epoch(self) -> None:
        if self.rank == 0:
            self._write_epoch()
        if self.epoch == 0:
            self.began = None  # a curriculum is no progress
        self.epoch, self.batch = self.epoch + 1, 0
        self._save_resumable()

    def _write_epoch(self) -> None:
        dev = self._dev_loss()
        self.board.add("dev", dev, self.updates)
        logging.info("epoch %d of %d: %d updates, %.0f s, dev loss %.4f (pruned %.4f)", self.epoch,
                     self.config.training.num_epochs, self.updates, self._elapsed(), dev["total"], dev["pruned"])
        self._save_epoch(self.epoch)

    def _save_epoch(self, epoch: int) -> None:
        save_checkpoint(self.exp / f"epoch-{epoch}.pt",
                        {**self._common(), "average": self.average.state, "epoch": epoch})

    def _keep_last_epoch(self) -> None:
        """Write the last epoch's file, which is the model, anew where it was lost or damaged since the training ended."""
        epoch = self.config.training.num_epochs
        if self.rank == 0:
            try:
                load_checkpoint(self.exp / f"epoch-{epoch}.pt", "it is written anew from checkpoint.pt")
            except RecipeError as error:
                logging.warning("%s", error)
                self._save_epoch(epoch)

    def _dev_loss(self) -> Dict[str, float]:
        """The dev set's loss of the moving average, which is what is kept of the model."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.state)
        parts = mean_parts(self.objective, self.dev, self.updates, self.device)
        self.model.load_state_dict(current)
        self.model.train()
        return parts

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.clock

    def _common(self) -> Dict[str, Any]:
        return {"model": self.model.state_dict(), "config": json.dumps(config_to_dict(self.config)),
                "tokens": self.lang.tokens, "updates": self.updates}

    def _save_resumable(self) -> None:
        if self.rank:
            return
        save_checkpoint(self.exp / "checkpoint.pt", {
            **self._common(), "objective": self.objective.state_dict(), "average": self.average.state,
            "optimizer": self.optimizer.state_dict()["state"], "epoch": self.epoch, "batch": self.batch,
            "bad_updates": self.bad_updates, "bad_in_a_row": self.bad_in_a_row, "seconds": round(self._elapsed())})

    def _resume(self) -> None:
        path = self.exp / "checkpoint.pt"
        if not path.exists():
            return
        content = load_checkpoint(path, f"remove it to train {self.exp} from the start", needs=RESUMABLE)
        load_state(self.objective, content["objective"], path)
        self.average.state = {name: value.to(self.device) for name, value in content["average"].items()}
        # What else an optimizer's state holds follows from the config.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": content["optimizer"]})
        for name in RESUMABLE[3:]:
            setattr(self, name, content[name])
        self.bad_in_a_row = content.get("bad_in_a_row", 0)  # older checkpoints do not say
        if self.rank == 0:
            logging.info("resuming %s at update %d (epoch %d, batch %d)", self.exp, self.updates, self.epoch, self.batch)

