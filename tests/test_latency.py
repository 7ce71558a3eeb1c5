"""Forced alignment against every path of small lattices, and the delays that are measured against it."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet
from lhotse.supervision import AlignmentItem

from kdlib.alignment import align_labels, word_frames
from kdlib.config import ModelConfig
from kdlib.decoding import Hypothesis
from kdlib.latency import LatencyMeter, emission_delays, shown_at
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]

VOCAB = 5


def model_of(seed, blank=0):
    torch.manual_seed(seed)
    config = ModelConfig(num_features=8, subsampling_channels=2, encoder_dim=8, num_layers=1, num_heads=1, head_dim=8,
                         feedforward_dim=8, kernel_size=3, predictor_dim=8, joiner_dim=8)
    model = Transducer(config, VOCAB, blank).eval()
    with torch.no_grad():
        model.joiner.out.weight.normal_(0, 2.0)
        model.joiner.out.bias.zero_()
    return model


def scored_frames(log_probs, labels, modified, blank):
    """The frames of the labels on each path, and its log-probability; log_probs: (T, U+1, V)."""
    frames, scores = range(log_probs.shape[0]), {}
    pick = itertools.combinations if modified else itertools.combinations_with_replacement
    for places in pick(frames, len(labels)):
        score, u = 0.0, 0
        for t in frames:
            emitted = 0
            while u < len(labels) and places[u] == t:
                score += log_probs[t, u, labels[u]]
                u, emitted = u + 1, emitted + 1
            if not modified or not emitted:
                score += log_probs[t, u, blank]
        scores[places] = float(score)
    return scores


@given(st.integers(0, 999), st.booleans(), st.sampled_from([0, 3]),
       st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=3))
@settings(max_examples=40)
def test_alignment_is_the_best_of_all_paths(seed, modified, blank, sizes):
    model = model_of(seed, blank)
    lengths, counts = (torch.tensor(column) for column in zip(*sizes))
    encoded = torch.randn(len(sizes), int(lengths.max()), 8)
    symbols = (blank + torch.randint(1, VOCAB, (len(sizes), int(counts.max())))) % VOCAB
    found = align_labels(model, encoded, lengths, symbols, counts, "modified" if modified else "regular")
    side = model.lattice_side(encoded, model.predictor.prefix(symbols))
    with torch.no_grad():
        logits = model.joiner(side.am.unsqueeze(2), side.lm.unsqueeze(1))
    for row, (length, count) in enumerate(sizes):
        scores = scored_frames(logits[row, :length].log_softmax(-1), symbols[row, :count].tolist(), modified, blank)
        assert found[row] == (list(max(scores, key=scores.get)) if scores else None)


@pytest.mark.parametrize("rnnt_type, label_costs, blank_costs", [
    ("modified", ["110", "101", "101", "000", "011", "111"], ["001", "001", "011", "110", "110", "000"]),
    ("regular", ["101", "100", "001", "011"], ["001", "110", "011", "111"]),
])
def test_frames_of_several_best_paths_are_not_put_together(monkeypatch, rnnt_type, label_costs, blank_costs):
    """Four paths are the best here. The last frames in which half of them have each label are [2, 2] and [2, 1]: no path."""
    arcs = [-torch.tensor([[float(cost) for cost in row] for row in rows])[None] for rows in (label_costs, blank_costs)]
    monkeypatch.setattr("kdlib.rnnt.arc_log_probs", lambda *_: arcs)
    count, model = len(label_costs), model_of(0)
    found = align_labels(model, torch.zeros(1, count, 8), torch.tensor([count]), torch.tensor([[1, 2]]), torch.tensor([2]),
                         rnnt_type)
    assert found == [None]


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
def test_where_all_frames_are_the_same_no_path_is_the_best(rnnt_type):
    model, symbols = model_of(0), torch.tensor([[1, 2, 3]] * 4)
    torch.nn.init.zeros_(model.joiner.out.weight)
    found = align_labels(model, torch.zeros(4, 100, 8), torch.tensor([100] * 4), symbols, torch.arange(4), rnnt_type)
    assert found == [[], None, None, None]


def test_a_batch_without_any_frame():
    encoded, labels, counts = torch.zeros(2, 1, 8), torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 0])
    for rnnt_type in ("regular", "modified"):
        assert align_labels(model_of(0), encoded, torch.tensor([0, 0]), labels, counts, rnnt_type) == [None, []]


def test_a_label_belongs_to_the_word_that_it_changes(corpus):
    _, lang, train, _ = corpus
    text = next(cut.supervisions[0].text for cut in train if len(cut.supervisions[0].text.split()) == 2)
    tokens = lang.encode(text)
    found = word_frames(lang, tokens, list(range(10, 10 + len(tokens))))
    assert [word for word, _, _ in found] == text.split()
    # A piece that only marks where a word begins changes no word.
    first, second = text.split()
    ends = [len(lang.encode(first)), len(tokens)]
    assert [last for _, _, last in found] == [9 + end for end in ends]
    assert word_frames(lang, [], []) == []
    spoken = lang.encode("AB CD")
    at = {part: 9 + len(lang.encode(part)) for part in ("A", "AB", "AB C", "AB CD")}
    assert word_frames(lang, spoken, list(range(10, 10 + len(spoken)))) == [("AB", at["A"], at["AB"]),
                                                                          ("CD", at["AB C"], at["AB CD"])]


def test_characters_without_spaces_are_words_and_a_label_may_join_two():
    pieces = SimpleNamespace(decode=lambda tokens: "".join("今天好"[token] for token in tokens))
    assert word_frames(pieces, [0, 1, 2], [4, 5, 9]) == [("今", 4, 4), ("天", 5, 5), ("好", 9, 9)]
    joining = SimpleNamespace(decode=lambda tokens: {1: "well k", 2: "wellknown"}[len(tokens)])
    assert word_frames(joining, [7, 8], [4, 6]) == [("wellknown", 4, 6)]


def test_only_words_that_are_right_are_timed():
    reference = [("a", 0.5), ("b", 1.0), ("c", 1.5)]
    recognised = [("a", 0.7), ("x", 1.0), ("c", 1.4), ("d", 2.0)]
    assert emission_delays(reference, recognised) == pytest.approx([0.2, -0.1])
    assert emission_delays(reference, []) == []


@pytest.mark.parametrize("reference, recognised, delays", [
    ("3@0.5 3@1.0 5@1.5", "3@1.05 5@1.6", [0.05, 0.1]),
    ("3@0.5 3@1.0 5@1.5", "3@0.55 5@1.6", [0.05, 0.1]),
    ("3@0.5 5@1.5", "3@0.1 3@0.55 5@1.6", [0.05, 0.1]),
    ("3@0.5 5@1.5", "3@0.55 3@0.9 5@1.6", [0.05, 0.1]),
    ("3@0.5 3@1.0 3@1.5", "3@0.55 3@1.6", [0.05, 0.1]),
    ("3@0.5 3@1.0", "3@0.1 3@0.6 3@0.8 3@1.1", [0.1, 0.1]),
    ("3@0.5 3@1.0", "3@1.0 3@1.5", [0.5, 0.5]),  # late, but none is amiss
    ("3@0.5 4@1.0 3@1.5", "3@1.5", [1.0]),  # no neighbours: as the words alone are aligned
    ("3@0.5 3@1.0", "", []),
])
def test_of_equal_neighbours_the_nearest_in_time_are_timed(reference, recognised, delays):
    """Where they were recognised more or fewer times than said."""
    reference, recognised = ([(word, float(at)) for word, at in (item.split("@") for item in side.split())]
                             for side in (reference, recognised))
    assert emission_delays(reference, recognised) == pytest.approx(delays)


def test_every_other_word_of_a_long_run_is_timed():
    """Too long a run for all choices to be tried."""
    said = [("no", 0.5 * n) for n in range(1, 31)]
    assert emission_delays(said, [("no", 0.1 + at) for _, at in said[::2]]) == pytest.approx([0.1] * 15)


@pytest.mark.parametrize("frame, chunk, duration, expected", [
    (0, 16, 9.0, 0.67),  # 4 * 16 + 3 feature frames
    (15, 16, 9.0, 0.67),
    (16, 16, 9.0, 1.31),
    (16, 16, 1.0, 1.0),  # the last chunk may be short
    (16, 16, math.inf, 1.31),  # it is not run
    (3, 0, 2.5, 2.5),  # full context waits for all
])
def test_what_is_said_is_shown_when_its_chunk_has_come(frame, chunk, duration, expected):
    assert shown_at(frame, chunk, duration) == pytest.approx(expected)


def test_the_meter_counts_aligned_utterances(corpus, tmp_path):
    _, lang, _, dev = corpus
    (cut, other), text = list(dev)[:2], "AB CD"
    aligned = cut.with_id("seen")
    aligned.supervisions = [cut.supervisions[0].with_alignment(
        "word", [AlignmentItem(word, 0.0, 0.2) for word in text.split()])]
    CutSet.from_cuts([aligned, other]).to_file(tmp_path / "cuts.jsonl.gz")
    tokens = tuple(lang.encode(text))
    meter = LatencyMeter(tmp_path / "cuts.jsonl.gz", lang, 2)
    meter.add("seen", Hypothesis(0.0, tokens, tuple(range(3, 3 + len(tokens)))))
    meter.add(other.id, Hypothesis(0.0, tokens, tuple([0] * len(tokens))))  # not aligned
    meter.add("unseen", Hypothesis(0.0, tokens, tuple([0] * len(tokens))))
    words = text.split()
    heard = [3 + len(lang.encode(part)) for part in ("AB", "AB CD")]  # frames, when each word has ended
    delays = [40 * frames - 200 for frames in heard]
    assert meter.summary() == {"words": len(words), "delay_ms": pytest.approx(sum(delays) / len(words), abs=0.1),
                               "delay_p90_ms": pytest.approx(np.percentile(delays, 90), abs=0.1),
                               "first_token_ms": 190.0}  # frame 3 is in the chunk of 2 and 3, which reads 11 more
    meter.delays, meter.first_tokens = [*(0.1 * n for n in range(10)), 2.1], [0.3, 0.4, 0.8]
    assert meter.summary() == {"words": 11, "delay_ms": 600.0, "delay_p90_ms": 900.0, "first_token_ms": 500.0}
    for tail in (0.0, 0.1, math.inf):  # of the silence after the audio
        late = LatencyMeter(tmp_path / "cuts.jsonl.gz", lang, 100)
        late.tail = tail
        late.add("seen", Hypothesis(0.0, tokens[:1], (0,)))
        assert late.first_tokens == pytest.approx([min(cut.duration + tail, 4.03)])
    empty = LatencyMeter(tmp_path / "cuts.jsonl.gz", lang, 8)
    empty.add("seen", Hypothesis())
    assert empty.summary() == {"words": 0, "delay_ms": None, "delay_p90_ms": None, "first_token_ms": None}
