"""Random batches for the transducer functions, drawn by hypothesis, and what it means that two results are equal."""

import torch
from hypothesis import strategies as st

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


@st.composite
def batches(draw, within_k2=True):
    """Sizes and options of a batch; within k2's limits there is a label at least, and no fewer frames than labels."""
    labels = draw(st.integers(1 if within_k2 else 0, 12))
    fewest = labels if within_k2 else 1
    frames = draw(st.integers(fewest, labels + draw(st.sampled_from([0, 3, 25])))) if labels else draw(st.integers(1, 25))
    kind = draw(st.sampled_from(["regular", "modified"]))
    tokens = draw(st.one_of(st.integers(2, 12), st.integers(13, 600)))
    lm_scale = draw(st.sampled_from([0.0, 0.1, 0.25, 0.5]))
    return dict(
        seed=draw(st.integers(0, 10**6)),
        count=draw(st.integers(1, 4)),
        labels=labels,
        frames=frames,
        tokens=tokens,
        blank=draw(st.integers(0, tokens - 1)),
        kind=kind,
        dtype=draw(st.sampled_from([torch.float32, torch.float64])),
        scale=draw(st.sampled_from([0.1, 1.0, 4.0])),
        kept=draw(st.integers(1 if kind == "modified" else 2, labels + 3)),
        lm_scale=lm_scale,
        am_scale=draw(st.sampled_from([0.0, 0.1, 0.4])),
        penalty=draw(st.sampled_from([0.0, 0.01, 0.3])),
        boundary=draw(st.sampled_from(["none", "lengths", "begins"])),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
    )


def make(case):
    """lm, am, symbols, boundary (or None) of a case. The first utterance is as long as the tensors."""
    torch.manual_seed(case["seed"])
    count, labels, frames, tokens = (case[key] for key in ("count", "labels", "frames", "tokens"))
    lm = case["scale"] * torch.randn(count, labels + 1, tokens, dtype=case["dtype"])
    am = case["scale"] * torch.randn(count, frames, tokens, dtype=case["dtype"])
    symbols = torch.randint(0, tokens - 1, (count, labels))
    symbols += (symbols >= case["blank"]).long()
    boundary = torch.tensor([[0, 0, labels, frames]]).repeat(count, 1)
    for n in range(1, count):
        boundary[n, 2] = torch.randint(0, labels + 1, ())  # no labels at all, or more labels than frames, included
        boundary[n, 3] = torch.randint(1, frames + 1, ())
        if case["boundary"] == "begins":
            boundary[n, 0] = torch.randint(0, int(boundary[n, 2]) + 1, ())
            boundary[n, 1] = torch.randint(0, int(boundary[n, 3]), ())
    return lm, am, symbols, boundary


def assert_equal(got, want, dtype, what):
    """Equal up to the tolerance, relative to the largest value, infinities in the same places.

    Gradients are differences of probabilities, so that one smaller than a hundredth has lost the digits that a
    relative comparison asks for, in k2 as well: what they must keep is that part of 1.
    """
    finite = torch.isfinite(want)
    assert torch.equal(finite, torch.isfinite(got)) and torch.equal(got[~finite], want[~finite]), what
    if finite.any():
        error = (got[finite] - want[finite]).abs().max().item()
        size = want[finite].abs().max().item()
        assert error <= TOLERANCE[dtype] * max(size, 1e-2), f"{what}: {error:.2g} of {size:.2g}"


def total(loss):
    """What to differentiate: an utterance without a path (see below) is left out."""
    return loss[torch.isfinite(loss)].sum()
