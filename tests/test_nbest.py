"""local/nbest.py: a teacher's hypotheses of training audio, as a loss and as transcripts."""

import copy
import math
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, SupervisionSegment
from lhotse.utils import fastcopy
from made_up import BINS, WORDS, make_cuts, settings, spoil
from scripts import load, refused, run_script

from kdlib.batch_plan import Phase
from kdlib.config import DataConfig, DecodeConfig, save_config
from kdlib.cuts import NBEST, load_cuts, select_cuts
from kdlib.data import TransducerDataset, eval_loader, train_loader
from kdlib.decoding import Hypothesis
from kdlib.errors import RecipeError
from kdlib.files import read_json
from kdlib.training.checkpoint import load_averaged

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]
LOCAL = Path(__file__).resolve().parents[1] / "local"


def script(name, *words):
    return run_script(LOCAL / name, *words)


@pytest.fixture(scope="module")
def decode_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("conf") / "decode.yaml"
    path.write_text("beam: 3\n")
    return path


@pytest.fixture(scope="module")
def fbank(corpus, tmp_path_factory):
    """A folder as stage 2 leaves it, with a part whose transcripts are not known."""
    folder = tmp_path_factory.mktemp("fbank")
    _, _, train, dev = corpus
    train.to_file(folder / "cuts_train.jsonl.gz")
    dev.to_file(folder / "cuts_dev.jsonl.gz")
    more = make_cuts(folder, "more", 24, 5)
    CutSet.from_cuts(cut.drop_supervisions() for cut in more).to_file(folder / "cuts_more.jsonl.gz")
    return folder, {cut.id: cut.supervisions[0].text for cut in more}


def nbest(corpus, exp, cuts, output, decode_config, *words):
    return script("nbest.py", "--exp", exp, "--cuts", cuts, "--lang", corpus[0] / "lang", "--config", decode_config,
                  "--output", output, *words)


@pytest.fixture(scope="module")
def manifests(corpus, teacher_folder, fbank, decode_config):
    """What is heard in the training part and in the one without transcripts."""
    outputs = [fbank[0] / "nbest" / f"cuts_{part}.jsonl.gz" for part in ("train", "more")]
    for output, option in zip(outputs, ([], ["--pseudo-label"])):
        done = nbest(corpus, teacher_folder, fbank[0] / output.name, output, decode_config, *option)
        assert done.returncode == 0, done.stderr
    return outputs


def test_transcripts_stay_and_hypotheses_come(corpus, fbank, manifests):
    before, after = load_cuts(fbank[0] / "cuts_train.jsonl.gz"), load_cuts(manifests[0])
    assert {c.id: c.supervisions[0].text for c in after} == {c.id: c.supervisions[0].text for c in before}
    right = 0
    for cut in after:
        texts, scores = zip(*cut.supervisions[0].custom[NBEST])
        assert 1 <= len(texts) <= 3 and len(set(texts)) == len(texts)
        assert list(scores) == sorted(scores, reverse=True) and max(scores) <= 1e-4
        assert all(set(text) <= {*WORDS, " "} for text in texts)
        right += texts[0] == cut.supervisions[0].text
    assert right >= 0.8 * len(after)  # the teacher has learned the language


def test_what_is_heard_becomes_the_transcript(fbank, manifests):
    cuts = load_cuts(manifests[1])
    assert all(cut.supervisions[0].text == cut.supervisions[0].custom[NBEST][0][0] for cut in cuts)
    assert sum(cut.supervisions[0].text == fbank[1][cut.id] for cut in cuts) >= 0.8 * len(cuts)
    assert all(cut.supervisions[0].duration == cut.duration for cut in cuts)


def test_a_window_on_several_utterances_becomes_one(corpus, teacher_folder, fbank, decode_config, tmp_path):
    cut = list(load_cuts(fbank[0] / "cuts_more.jsonl.gz"))[0]
    half = SupervisionSegment(f"{cut.id}-half", cut.id, 0.0, cut.duration / 2)
    cut.supervisions = [half, fastcopy(half, id=f"{cut.id}-rest", start=half.duration, text="D D")]
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    words = (corpus, teacher_folder, tmp_path / "cuts.jsonl.gz", tmp_path / "out.jsonl.gz", decode_config)
    assert f"cut {cut.id} has 2 supervisions" in refused(nbest(*words))
    done = nbest(*words, "--pseudo-label")
    assert done.returncode == 0, done.stderr
    (segment,) = load_cuts(tmp_path / "out.jsonl.gz")[0].supervisions
    assert (segment.start, segment.duration, segment.text) == (0.0, cut.duration, fbank[1][cut.id])


def test_cuts_that_are_mixed_of_several_are_refused(corpus, teacher_folder, fbank, decode_config, tmp_path):
    """What is put into them is lost. Told before anything is decoded."""
    first, second = list(load_cuts(fbank[0] / "cuts_train.jsonl.gz"))[:2]
    for number, mixed in enumerate((second.pad(duration=second.duration + 1), second.append(second), second.mix(first))):
        cuts = tmp_path / f"{number}.jsonl.gz"
        CutSet.from_cuts([first, mixed]).to_file(cuts)
        for words in ((), ("--pseudo-label",)):
            done = nbest(corpus, teacher_folder, cuts, tmp_path / "out.jsonl.gz", decode_config, *words)
            said = refused(done)
            assert f"cut {mixed.id} is mixed of several" in said and "compute_and_store_features(mix_eagerly=True)" in said
            assert "n best" not in done.stderr and not (tmp_path / "out.jsonl.gz").exists()


def test_what_is_too_long_to_be_heard_at_once_is_left_out(corpus, teacher_folder, fbank, decode_config, tmp_path):
    cuts = list(load_cuts(fbank[0] / "cuts_more.jsonl.gz"))[:3]
    cuts[1] = fastcopy(cuts[1], duration=301.0)
    for name, chosen in (("some", cuts), ("none", cuts[1:2])):
        CutSet.from_cuts(chosen).to_file(tmp_path / f"{name}.jsonl.gz")
    done = nbest(corpus, teacher_folder, tmp_path / "some.jsonl.gz", tmp_path / "out.jsonl.gz", decode_config)
    assert done.returncode == 0 and f"(longer than 300 s): {cuts[1].id}" in done.stdout
    assert [cut.id for cut in load_cuts(tmp_path / "out.jsonl.gz")] == [cuts[0].id, cuts[2].id]
    done = nbest(corpus, teacher_folder, tmp_path / "none.jsonl.gz", tmp_path / "out.jsonl.gz", decode_config)
    assert "none.jsonl.gz holds no cut that can be heard" in refused(done) and "longer than 300 s" in done.stderr


def test_what_is_heard_without_confidence_is_left_out(corpus, teacher_folder, fbank, decode_config, tmp_path):
    done = nbest(corpus, teacher_folder, fbank[0] / "cuts_more.jsonl.gz", tmp_path / "sure.jsonl.gz", decode_config,
                 "--min-confidence", "0.9")
    assert done.returncode == 0, done.stderr
    kept = load_cuts(tmp_path / "sure.jsonl.gz")
    for cut in kept:
        scores = [score for _, score in cut.supervisions[0].custom[NBEST]]
        assert math.exp(scores[0]) / sum(map(math.exp, scores)) >= 0.9
    left = len(load_cuts(fbank[0] / "cuts_more.jsonl.gz")) - len(kept)
    assert (f"skipped {left} utterances (confidence below 0.9)" in done.stdout) == (left > 0)
    done = nbest(corpus, teacher_folder, fbank[0] / "cuts_more.jsonl.gz", tmp_path / "x.jsonl.gz", decode_config,
                 "--min-confidence", "1.5")
    assert done.returncode == 1 and "--min-confidence 1.5: a posterior lies between 0 and 1" in done.stderr


@pytest.mark.parametrize("output, said", [("out.txt", "out.txt: the manifest is called something.jsonl.gz"),
                                          ("folder.jsonl.gz", "folder.jsonl.gz is a folder"),
                                          ("link.jsonl.gz", "link.jsonl.gz is the file that --cuts names")])
def test_where_no_manifest_can_be_written(corpus, teacher_folder, fbank, decode_config, tmp_path, output, said):
    """Told before anything is decoded."""
    cuts = tmp_path / "cuts.jsonl.gz"
    load_cuts(fbank[0] / "cuts_more.jsonl.gz").to_file(cuts)
    before = cuts.read_bytes()
    (tmp_path / "folder.jsonl.gz").mkdir()
    (tmp_path / "link.jsonl.gz").symlink_to(cuts)
    done = nbest(corpus, teacher_folder, cuts, tmp_path / output, decode_config)
    assert said in refused(done) and "n best" not in done.stderr and cuts.read_bytes() == before


def test_a_batch_holds_the_hypotheses_that_fit(corpus):
    _, lang, train, _ = corpus
    cuts = [copy.deepcopy(cut) for cut in list(train)[:3]]
    frames = (cuts[0].num_frames - 3) // 4
    exact, more = (next("A" * n for n in range(99) if len(lang.encode("A" * n)) == labels)
                   for labels in (frames, frames + 1))
    for cut, found in zip(cuts, ([["A", -0.5], ["A B", -1.0], [exact, -2.0], [more, -2.5]], [],
                                 [["A " * 60, -0.1], ["B", -3.0]])):
        cut.supervisions[0].custom = {NBEST: found}
    batch = next(iter(eval_loader(CutSet.from_cuts(cuts), lang, DataConfig(), 100.0)))
    order = [batch.ids.index(cut.id) for cut in cuts]
    got = sorted(zip(batch.nbest.rows.tolist(), batch.nbest.log_probs.tolist(),
                     (lang.decode(row[:length].tolist()) for row, length in zip(batch.nbest.symbols,
                                                                                 batch.nbest.symbol_lengths))))
    want = [(order[0], -0.5, "A"), (order[0], -1.0, "A B"), (order[0], -2.0, exact), (order[2], -3.0, "B")]
    assert [(row, text) for row, _, text in got] == [(row, text) for row, _, text in sorted(want)]
    assert [score for _, score, _ in got] == pytest.approx([score for _, score, _ in sorted(want)])
    moved = batch.to("meta")
    tensors = [x for part in (moved, moved.nbest) for x in vars(part).values() if isinstance(x, torch.Tensor)]
    assert len(tensors) == 8 and all(x.is_meta for x in tensors)
    assert TransducerDataset(lang, DataConfig())[next(iter(eval_loader(train, lang, DataConfig(), 9.0).sampler))].nbest is None


@pytest.mark.cuda
def test_a_training_reads_its_batches_into_pinned_memory(corpus):
    _, lang, train, _ = corpus
    loader = train_loader(train, TransducerDataset(lang, DataConfig(), train=True), DataConfig(), Phase(1, seed=1))
    batch = next(iter(loader))
    assert batch.features.is_pinned() and batch.symbols.is_pinned()
    assert torch.equal(batch.to("cuda").features.cpu(), batch.features)


@pytest.mark.parametrize("found", ["A B", [["A"]], [["A", "B"]], [[1, -0.5]], {"A": 1.0}, [["A", float("nan")]],
                                   [["A", -0.5], ["B", float("-inf")]]])
def test_a_field_of_somebody_else(corpus, found):
    _, lang, train, _ = corpus
    cut = copy.deepcopy(train[0])
    cut.supervisions[0].custom = {NBEST: found}
    with pytest.raises(RecipeError, match=f"cut {cut.id}: the field nbest .* make the manifest anew"):
        select_cuts(CutSet.from_cuts([cut]), lang, DataConfig(), False)


def train(corpus, fbank, config, exp, teacher, *words):
    save_config(config, exp.parent / "config.yaml")
    return script("train.py", "--config", exp.parent / "config.yaml", "--fbank", fbank, "--lang", corpus[0] / "lang",
                  "--exp", exp, "--init-from", teacher, "--teacher", teacher, "--world-size", "1", *words)


CONFIG = settings("model.feedforward_dim=16", "loss.distill=[{name: nbest_rnnt, weight: 0.5}]", "training.num_epochs=1",
                  "optim.learning_rate=0.003")


def test_a_student_learns_from_labelled_and_unlabelled_speech(corpus, fbank, manifests, teacher_folder, tmp_path):
    done = train(corpus, fbank[0], CONFIG, tmp_path / "student", teacher_folder, "--train-cuts", *manifests)
    assert done.returncode == 0, done.stderr
    assert "114 training cuts" in done.stderr  # 90 and 24
    assert read_json(tmp_path / "student" / "done.json", "")["bad_updates"] == 0
    assert load_averaged(tmp_path / "student")[0].config.num_features == BINS
    log = next((tmp_path / "student" / "tensorboard").iterdir()).read_bytes()
    assert b"train/nbest_rnnt" in log

    # Labelled and unlabelled are mixed, in whatever order they are given.
    turned = tmp_path / "turned"
    assert train(corpus, fbank[0], CONFIG, turned, teacher_folder, "--train-cuts", *reversed(manifests)).returncode == 0
    weights, others = (load_averaged(folder)[0].state_dict() for folder in (tmp_path / "student", turned))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_student_whose_teacher_was_not_heard(corpus, fbank, teacher_folder, tmp_path):
    done = train(corpus, fbank[0], CONFIG, tmp_path / "student", teacher_folder)
    assert done.returncode == 1 and "make them with local/nbest.py" in done.stderr and "Traceback" not in done.stderr


def test_a_cut_that_is_given_twice(corpus, fbank, manifests, teacher_folder, tmp_path):
    twice = [fbank[0] / "cuts_train.jsonl.gz", manifests[0]]
    done = train(corpus, fbank[0], CONFIG, tmp_path / "student", teacher_folder, "--train-cuts", *twice)
    assert done.returncode == 1 and "90 cuts that stand in another training manifest too" in done.stderr


def test_a_teacher_that_hears_nothing(corpus, fbank, decode_config, teacher_folder, tmp_path):
    """In the epoch that is asked for, which is not the last."""
    silent = tmp_path / "silent"
    silent.mkdir()
    for name in ("done.json", "epoch-11.pt", "epoch-12.pt"):
        (silent / name).write_bytes((teacher_folder / name).read_bytes())
    content = torch.load(silent / "epoch-11.pt", weights_only=True)
    for weights in (content["model"], content["average"]):
        weights["joiner.out.bias"][0] += 1000.0
    torch.save(content, silent / "epoch-11.pt")
    done = nbest(corpus, silent, fbank[0] / "cuts_more.jsonl.gz", tmp_path / "x.jsonl.gz", decode_config, "epoch=11")
    assert done.returncode == 1 and "hears nothing in" in done.stderr and "Traceback" not in done.stderr
    assert "skipped 24 utterances (nothing heard)" in done.stdout and not (tmp_path / "x.jsonl.gz").exists()


def test_the_same_words_in_other_tokens_are_one_hypothesis(monkeypatch, corpus, teacher_folder):
    """Such as with a token more that only says that a word begins, of which the text has another space."""
    module, lang = load(LOCAL / "nbest.py"), corpus[1]
    usual, mark = lang.encode("A B"), lang.tokens.index("\u2581")
    place = usual.index(lang.encode("B")[0], 1)
    doubled = [*usual[:place], mark, *usual[place:]]
    assert lang.encode(lang.decode(doubled)) == usual != doubled
    ranked = [Hypothesis(math.log(part), tuple(tokens))
              for part, tokens in ((0.46, lang.encode("C")), (0.3, usual), (0.24, doubled))]
    monkeypatch.setattr(module, "nbest_search", lambda *_: [ranked])
    found = module.hypotheses(load_averaged(teacher_folder)[0], CutSet.from_cuts([corpus[2][0]]), lang, DecodeConfig(), "cpu")
    (texts, scores), = (zip(*nbest) for nbest in found.values())
    assert texts == ("A B", "C") and scores == pytest.approx([math.log(0.54), math.log(0.46)])


@pytest.mark.parametrize("more", [(), ("--pseudo-label", "--min-confidence", "0.5")])
def test_features_that_hold_nan_are_left_out(corpus, teacher_folder, decode_config, tmp_path, more):
    """None of what is heard in them is a probability, nor is it more than the least confidence."""
    cuts = make_cuts(tmp_path, "spoilt", 3, 5)
    spoil(cuts[1], math.nan)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    done = nbest(corpus, teacher_folder, tmp_path / "cuts.jsonl.gz", tmp_path / "out.jsonl.gz", decode_config, *more)
    assert done.returncode == 0, done.stderr
    assert "skipped 1 utterances (features that hold nan or infinity): spoilt-1\n" in done.stdout
    assert [cut.id for cut in load_cuts(tmp_path / "out.jsonl.gz")] == ["spoilt-0", "spoilt-2"]
    CutSet.from_cuts([cuts[1]]).to_file(tmp_path / "cuts.jsonl.gz")
    done = nbest(corpus, teacher_folder, tmp_path / "cuts.jsonl.gz", tmp_path / "out.jsonl.gz", decode_config, *more)
    assert done.returncode == 1 and "no cut of" in done.stderr and "has features that are numbers: mend" in done.stderr


def test_silence_is_a_hypothesis_too(corpus):
    """The best one leaves nothing to learn; another takes its part of the confidence."""
    label = load(LOCAL / "nbest.py").label
    silent, doubtful = [("", -0.1), ("A", -2.5)], [("A", -0.5), ("", -1.0), ("B", -9.0)]

    def labelled(nbest, pseudo_label, least):
        cut = copy.deepcopy(corpus[2][0])
        before = cut.supervisions[0].text
        reason = label(cut, nbest, pseudo_label, least)
        return reason or (cut.supervisions[0].text.replace(before, "before"), cut.supervisions[0].custom[NBEST])

    assert labelled(silent, True, 0.0) == "nothing heard"
    assert labelled(silent, False, 0.0) == ("before", [])
    assert labelled(doubtful, True, 0.7) == "confidence below 0.7"  # 0.62
    assert labelled(doubtful, True, 0.6) == ("A", [["A", -0.5], ["B", -9.0]])
    assert labelled(doubtful, False, 0.7) == ("before", [["A", -0.5], ["B", -9.0]])
