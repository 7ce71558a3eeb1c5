#!/usr/bin/env python3
"""Times the transducer losses: ours, k2's (where it can be imported) and torchaudio's, side by side in one process.

    tools/bench_rnnt.py                   on the CPU: the losses, how they grow, and the fused losses
    tools/bench_rnnt.py --device cuda     on a GPU: the same, the losses with their joiner too, and the bandwidth of the kernels

Every candidate of a row runs in turn, again and again, and the medians stand in the table; a ratio is the other's time
or memory over ours, so above 1 means that ours is better. Memory is the peak during a call above what was held before
it: of the process on the CPU (Linux only), of the allocator on a GPU. The tables are Markdown, as docs/benchmarks.md
has them.
"""

import environment  # noqa: F401  first, since the rest needs what it finds

import argparse
import datetime
import gc
import os
import platform
import statistics
import time
from importlib import metadata
from typing import Callable, Dict, List, Optional, Sequence, Tuple

# As the recipes run (tools/activate.sh): threads that spin after one candidate's work would slow the next one down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from kdlib import rnnt  # noqa: E402
from kdlib.config import ModelConfig  # noqa: E402
from kdlib.errors import RecipeError, in_one_line, run_main  # noqa: E402
from kdlib.joiner import Joiner  # noqa: E402
from kdlib.losses import lattice_kl, lattice_kl_at, node_weights  # noqa: E402
from kdlib.options import require_positive  # noqa: E402
from kdlib.report import markdown_table  # noqa: E402
import peak_memory  # noqa: E402

SIZES = ((8, 250, 40, 500, 5), (8, 400, 80, 500, 5))  # N, T, U, V, R
GPU_SIZES = ((30, 310, 55, 500, 5), (30, 310, 55, 5000, 5))  # as batches of LibriSpeech's train-clean-100
INT32_MAX = 2**31 - 1  # how many logits of all nodes torchaudio's CUDA kernels can index
JOINER_DIM = 512
OURS = "ours"
BOTH = "Training takes both of ours, the ranges and what is computed in them: their times add up to stand against torchaudio's."


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on the CPU (2)")
    parser.add_argument("--repeats", type=int, default=9, help="of each candidate (9)")
    parser.add_argument("--only", choices=("loss", "growth", "fused", "bandwidth"),
                        help="one of the tables (all; bandwidth is of a GPU alone)")
    parser.add_argument("--skip-torchaudio", action="store_true", help="whose full lattice takes seconds a call")
    args = parser.parse_args()
    require_positive(threads=args.threads, repeats=args.repeats)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: torch sees no GPU here; without it the CPU is measured")
    if args.only == "bandwidth" and args.device == "cpu":
        raise RecipeError("--only bandwidth: it is a GPU's that is measured, with --device cuda")
    return args


class Batch:
    """A random batch: all utterances as long as the tensors, or, ``ragged``, down to half as long."""

    def __init__(self, n: int, t: int, u: int, v: int, r: int, device: str, ragged: bool = False):
        torch.manual_seed(0)
        self.size = (n, t, u, v, r)
        self.symbols = torch.randint(1, v, (n, u)).to(device)
        part = torch.linspace(0.5, 1.0, n) if ragged else torch.ones(n)
        self.boundary = torch.zeros(n, 4, dtype=torch.int64)
        self.boundary[:, 2], self.boundary[:, 3] = (part * u).long(), (part * t).long()
        self.boundary = self.boundary.to(device)
        climb = torch.arange(t)[None, :] * (self.boundary[:, 2:3].cpu() + 1 - r) / (self.boundary[:, 3:4].cpu() - 1)
        starts = climb.long().clamp(min=0).minimum(self.boundary[:, 2:3].cpu() + 1 - r)
        self.ranges = (starts.unsqueeze(2) + torch.arange(r)).to(device)
        self.lattice = dict(symbols=self.symbols, termination_symbol=0, boundary=self.boundary)


def leaf(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device).requires_grad_()


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(call: Callable[[], None], device: str) -> float:
    """MiB above what was held before; nan where it cannot be told."""
    if device == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        peak_memory.start_anew()
        before = peak_memory.now()
        call()
        return (peak_memory.most() - before) / 2**20
    except OSError:
        return float("nan")


def measure(calls: Dict[str, Callable[[], None]], repeats: int, device: str):
    """Median milliseconds and peak MiB of each, the candidates taking turns."""
    for call in calls.values():
        call()
    memory = {name: peak_mib(call, device) for name, call in calls.items()}
    times: Dict[str, List[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}, memory


def clear(*tensors: Tensor) -> None:
    """Drop the gradients, so that the next call finds as much memory taken as this one."""
    for tensor in tensors:
        tensor.grad = None


def smoothed_call(batch: Batch, backend: str, device: str) -> Callable[[], None]:
    n, t, u, v, r = batch.size
    am, lm = leaf(n, t, v, device=device), leaf(n, u + 1, v, device=device)

    def call():
        loss, (px_grad, py_grad) = rnnt.rnnt_loss_smoothed(
            lm, am, lm_only_scale=0.25, am_only_scale=0.0, reduction="sum", return_grad=True, backend=backend,
            **batch.lattice)
        rnnt.get_rnnt_prune_ranges(px_grad, py_grad, batch.boundary, r, backend=backend)
        loss.backward()
        clear(am, lm)

    return call


def pruned_call(batch: Batch, backend: str, device: str) -> Callable[[], None]:
    n, t, _, v, r = batch.size
    logits = leaf(n, t, r, v, device=device)

    def call():
        rnnt.rnnt_loss_pruned(logits, ranges=batch.ranges, reduction="sum", backend=backend, **batch.lattice).backward()
        clear(logits)

    return call


def floor_call(batch: Batch, device: str) -> Callable[[], None]:
    """One read and one write of the logits, with their exponentials."""
    n, t, _, v, r = batch.size
    logits, out = torch.randn(n, t, r, v, device=device), torch.empty(n, t, r, v, device=device)
    return lambda: torch.exp(logits, out=out)


def torchaudio_call(batch: Batch, device: str, joiner: Optional[Joiner] = None) -> Optional[Callable[[], None]]:
    """The full lattice, from given logits or through a joiner; None, and a line, without torchaudio."""
    try:
        from torchaudio.functional import rnnt_loss
    except Exception as error:  # a binary for another torch or CUDA fails with whatever it meets first
        print(f"torchaudio cannot be imported, so there is no row of it: {in_one_line(error)}\n")
        return None
    n, t, u, v, _ = batch.size
    symbols, lengths = batch.symbols.int(), [batch.boundary[:, i].int().contiguous() for i in (3, 2)]
    if joiner is None:
        logits = leaf(n, t, u + 1, v, device=device)
        sources = [logits]
    else:
        am, lm = leaf(n, t, JOINER_DIM, device=device), leaf(n, u + 1, JOINER_DIM, device=device)
        sources = [am, lm, *joiner.parameters()]

    def call():
        scores = logits if joiner is None else joiner(am.unsqueeze(2), lm.unsqueeze(1))
        rnnt_loss(scores, symbols, *lengths, blank=0, reduction="sum").backward()
        clear(*sources)

    try:
        call()
    except RuntimeError as error:
        # All nodes may be more than fit in memory, and a torchaudio without CUDA says NotImplementedError. After any other
        # error on a GPU nothing works there in this process.
        if device == "cuda" and not isinstance(error, (torch.cuda.OutOfMemoryError, NotImplementedError)):
            raise
        print(f"torchaudio cannot take {batch.size}: {str(error).splitlines()[0]}\n")
        return None
    return call


def joiner_call(batch: Batch, device: str, fused: bool, joiner: Joiner, teacher: Optional[Joiner] = None):
    """From encoder and predictor outputs through the joiner to the pruned loss; with a teacher, distilled too."""
    n, t, u, _, _ = batch.size
    am, lm = leaf(n, t, JOINER_DIM, device=device), leaf(n, u + 1, JOINER_DIM, device=device)
    inputs = dict(ranges=batch.ranges, **batch.lattice)
    _, mask = rnnt.node_symbols(batch.symbols, batch.ranges, batch.boundary, 0)
    target = None
    if teacher is not None:
        target = rnnt.Side(teacher, am.detach().clone(), lm.detach().clone())
    terms = [] if teacher is None else [rnnt.NodeTerm(lambda s, t, y: lattice_kl_at(s, t), node_weights(mask))]

    def call():
        if fused:
            loss = rnnt.lattice_losses_fused(joiner, am, lm, teacher=target, terms=terms, **inputs).total
        else:
            logits = joiner(*rnnt.do_rnnt_pruning(am, lm, batch.ranges, backend="native"))
            loss = rnnt.rnnt_loss_pruned(logits, reduction="sum", backend="native", **inputs)
            if target is not None:
                with torch.no_grad():
                    taught = teacher(*rnnt.do_rnnt_pruning(target.am, target.lm, batch.ranges, backend="native"))
                loss = loss + lattice_kl(logits, taught, mask)
        loss.backward()
        clear(am, lm, *joiner.parameters())

    return call


def make_joiner(tokens: int, device: str) -> Joiner:
    return Joiner(ModelConfig(joiner_dim=JOINER_DIM, encoder_dim=8, predictor_dim=8), tokens).to(device)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[f"{cell:,.2f}" if isinstance(cell, float) and cell < 10 else f"{cell:,.0f}"
              if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    print(markdown_table(header, cells), flush=True)


def print_comparison(title: str, rows) -> None:
    """``rows`` of (what, size, {candidate: ms}, {candidate: MiB}), ours among the candidates."""
    print(f"{title}\n")
    table = []
    for what, size, times, memory in rows:
        for name in times:
            table.append((what, size, name, times[name], times[name] / times[OURS], memory[name],
                          memory[name] / memory[OURS]))
    print_table(("loss", "N, T, U, V, R", "by", "ms", "time / ours", "MiB", "memory / ours"), table)


def losses(args: argparse.Namespace) -> None:
    rows = []
    backends = {OURS: "native", **({"k2": "k2"} if rnnt.backend_in_use() == "k2" else {})}
    for size in SIZES:
        batch = Batch(*size, args.device)
        smoothed = {name: smoothed_call(batch, backend, args.device) for name, backend in backends.items()}
        rows.append(("smoothed, ranges", size, *measure(smoothed, args.repeats, args.device)))
        pruned = {name: pruned_call(batch, backend, args.device) for name, backend in backends.items()}
        pruned["exp(logits)"] = floor_call(batch, args.device)
        rows.append(("pruned", size, *measure(pruned, args.repeats, args.device)))
        whole = None if args.skip_torchaudio else torchaudio_call(batch, args.device)
        if whole is not None:
            calls = {OURS: pruned[OURS], "torchaudio, all nodes": whole}
            rows.append(("pruned", size, *measure(calls, max(1, args.repeats // 4), args.device)))
    print_comparison(f"Forward and backward, the pruned loss from given logits. {BOTH}", rows)


def growth(args: argparse.Namespace) -> None:
    base = dict(n=8, t=200, u=40, v=500, r=5)
    rows = []
    for name in ("", "t", "u", "v", "r"):
        size = {**base, **({name: 2 * base[name]} if name else {})}
        batch = Batch(**size, device=args.device)
        calls = {"smoothed": smoothed_call(batch, "native", args.device),
                 "pruned": pruned_call(batch, "native", args.device)}
        times, memory = measure(calls, 3 * args.repeats, args.device)
        rows.append((name, tuple(size.values()), times, memory))
    first = rows[0]
    print("Growth: one size doubled at a time, and how many times as long it takes.\n")
    print_table(("doubled", "N, T, U, V, R", "smoothed ms", "times", "MiB", "times", "pruned ms", "times", "MiB", "times"), [
        (name.upper() or "-", size,
         *(value for what in ("smoothed", "pruned")
           for value in (times[what], times[what] / first[2][what], memory[what], memory[what] / first[3][what])))
        for name, size, times, memory in rows])


def fused(args: argparse.Namespace) -> None:
    print(f"Through the joiner ({JOINER_DIM} channels): fused against all logits at once. A ragged batch has utterances "
          "down to half as long.\n")
    rows = []
    for size in ((8, 250, 40, 500, 5), (8, 250, 40, 2000, 5), (8, 250, 40, 5000, 5)):
        joiner, teacher = make_joiner(size[3], args.device), make_joiner(size[3], args.device).requires_grad_(False)
        for ragged in (False, True):
            batch = Batch(*size, args.device, ragged)
            for what, target in (("pruned", None), ("pruned + lattice KL", teacher)):
                calls = {name: joiner_call(batch, args.device, name == "fused", joiner, target)
                         for name in ("all at once", "fused")}
                times, memory = measure(calls, max(3, args.repeats // 2), args.device)
                rows.append((what, size, "ragged" if ragged else "full", times["all at once"], times["fused"],
                             times["fused"] / times["all at once"], memory["all at once"], memory["fused"],
                             memory["fused"] / memory["all at once"]))
    print_table(("losses", "N, T, U, V, R", "batch", "ms", "ms fused", "fused / all", "MiB", "MiB fused", "fused / all"),
                rows)


def indexable(n: int, t: int, u: int, v: int, r: int) -> Tuple[int, int, int, int, int]:
    """The size with as many utterances, of N, as torchaudio can index all nodes of on a GPU."""
    return min(n, INT32_MAX // (t * (u + 1) * v)), t, u, v, r


def gpu_losses(args: argparse.Namespace) -> None:
    rows = []

    def compare(what: str, batch: Batch, calls: Dict[str, Callable[[], None]], joiner: Optional[Joiner] = None) -> None:
        if not args.skip_torchaudio:
            calls["torchaudio, all nodes"] = torchaudio_call(batch, args.device, joiner)
        rows.append((what, batch.size, *measure({k: c for k, c in calls.items() if c}, args.repeats, args.device)))

    sizes = [size if args.skip_torchaudio else indexable(*size) for size in GPU_SIZES]
    cut = "".join(f" Of N = {whole[0]} at V = {whole[3]} there are {size[0]} here, for all alike: the most whose nodes "
                  "torchaudio, which counts in int32, can index." for whole, size in zip(GPU_SIZES, sizes) if whole != size)
    for size in sizes:
        batch, joiner = Batch(*size, args.device), make_joiner(size[3], args.device)
        smoothed = {OURS: smoothed_call(batch, "native", args.device)}
        rows.append(("smoothed, ranges", size, *measure(smoothed, args.repeats, args.device)))
        compare("pruned", batch, {OURS: pruned_call(batch, "native", args.device)})
        compare("with joiner", batch, {OURS: joiner_call(batch, args.device, True, joiner),
                                       "ours, all at once": joiner_call(batch, args.device, False, joiner)}, joiner)
    print_comparison(f"Forward and backward, the pruned loss from given logits and with its joiner ({JOINER_DIM} channels). "
                     f"{BOTH}{cut}", rows)


def kernel_ms(call: Callable[[], None], repeats: int) -> Optional[float]:
    """Milliseconds that the GPU computes in a call, without what it waits for the host; the mean. None, and a line, where
    the profiler sees no kernels: without CUPTI, or in a container that may not use it."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(repeats):
                call()
            synchronise("cuda")
        spans = [event.time_range for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        total = sum(span.elapsed_us() for span in spans) / repeats / 1e3
    except Exception as error:  # the calls were measured before: it is the profiler that fails, each version in its own way
        print(f"The kernels' times cannot be told: {in_one_line(error)}\n")
        return None
    if not total:
        print("The kernels' times cannot be told: the profiler saw none (is there CUPTI, and may it be used here?)\n")
    return total or None


def bandwidth(args: argparse.Namespace) -> None:
    """The pruned loss must read the logits twice (before and after the lattice is known) and write their gradient.

    Both the time of a call is shown and that of its kernels, which is less by what the GPU waits for the host.
    """
    rows = []
    for size in GPU_SIZES:
        batch = Batch(*size, args.device)
        n, t, _, v, r = size
        logits = torch.randn(n, t, r, v, device=args.device)
        out = torch.empty_like(logits)
        calls = {"copy": lambda: out.copy_(logits), "pruned": pruned_call(batch, "native", args.device)}
        times, _ = measure(calls, 3 * args.repeats, args.device)
        bytes_of = {"copy": 2 * logits.numel() * 4, "pruned": 3 * logits.numel() * 4}
        kernels = {name: kernel_ms(call, args.repeats) for name, call in calls.items()}
        for name in calls:
            row = [name, size]
            for each in (times, kernels):
                speed = {what: bytes_of[what] / each[what] / 1e6 if each[what] else None for what in calls}
                share = 100 * speed[name] / speed["copy"] if speed[name] and speed["copy"] else None
                row += [each[name] or "-", speed[name] or "-", "-" if share is None else f"{share:.0f}%"]
            rows.append(row)
    print("Bandwidth, counting the bytes that must move: in the time of a call, and of its kernels alone.\n")
    print_table(("what", "N, T, U, V, R", "ms", "GB/s", "of copy", "kernels ms", "GB/s", "of copy"), rows)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = torch.cuda.get_device_name() if args.device == "cuda" else \
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    k2 = ", k2 " + metadata.version("k2") if rnnt.backend_in_use() == "k2" else ""
    print(f"{device}; Python {platform.python_version()}, torch {torch.__version__}{k2}; "
          f"{datetime.date.today().isoformat()}\n")
    tables = {"loss": losses, "growth": growth, "fused": fused, "bandwidth": bandwidth}
    if args.device == "cuda":
        tables["loss"] = gpu_losses
    for name, table in tables.items():
        if args.only == name or (args.only is None and (name != "bandwidth" or args.device == "cuda")):
            table(args)


if __name__ == "__main__":
    run_main(main)
