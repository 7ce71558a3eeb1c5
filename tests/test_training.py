"""Training on a made-up language: it learns, resumes exactly, distils, and names what is wrong with its inputs."""

import json
import logging
import math
import re
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lhotse import CutSet
from made_up import make_cuts, make_noise, settings, trainer
from scripts import run_script

from kdlib.batch_plan import Phase
from kdlib.config import DistillTerm, LangConfig
from kdlib.data import eval_loader, train_loader
from kdlib.decoding import greedy_search, modified_beam_search
from kdlib.errors import RecipeError
from kdlib.lang import Lang, train_lang
from kdlib.report import format_duration
from kdlib.training import loop
from kdlib.training.checkpoint import load_averaged, load_checkpoint, save_checkpoint, state_digest
from kdlib.training.loop import MovingAverage, Trainer, learning_rate, make_optimizer
from kdlib.training.objective import Objective
from kdlib.training.parallel import launch, world_size
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread", "no_gpu")]


def test_an_utterance_too_short_for_a_frame_has_no_words(corpus):
    folder, lang, _, _ = corpus
    cut = make_cuts(folder, "short", 1, 6)[0].truncate(duration=0.04)
    batch = next(iter(eval_loader(CutSet.from_cuts([cut]), lang, settings().data, 8.0)))
    model = Transducer(settings().model, len(lang)).eval()
    encoded, lengths, _ = model.encoder(batch.features, batch.feature_lengths)
    assert greedy_search(model, encoded, lengths) == modified_beam_search(model, encoded, lengths) == [[]]


def decode(model, corpus, method=greedy_search):
    _, lang, _, dev = corpus
    errors = words = 0
    for batch in eval_loader(dev, lang, settings().data, 8.0):
        encoded, lengths, _ = model.encoder(batch.features, batch.feature_lengths)
        for text, ids in zip(batch.texts, method(model, encoded, lengths)):
            errors += lang.decode(ids) != text
            words += 1
    return errors / words


def test_it_learns_and_leaves_its_files(corpus, teacher_folder):
    done = json.loads((teacher_folder / "done.json").read_text())
    assert done["epoch"] == 12 and done["rnnt_backend"] == "native"
    assert (teacher_folder / "epoch-0.pt").exists() and (teacher_folder / "epoch-12.pt").exists()
    assert list((teacher_folder / "tensorboard").iterdir())
    average = load_checkpoint(teacher_folder / "epoch-12.pt", "")["average"]
    assert done["weights"] == state_digest(average) != state_digest({**average, "extra": torch.ones(1)})
    model, config, which = load_averaged(teacher_folder, avg=2, tokens=corpus[1].tokens)
    assert which == {"updates": done["updates"], "epoch": 12, "avg": 2}
    assert decode(model, corpus) < 0.3
    assert decode(model, corpus, modified_beam_search) < 0.3


def test_the_chunks_of_a_training_are_those_of_its_config(corpus, tmp_path):
    words = ["training.chunk_sizes=[2,0]", "training.left_contexts=[8,-1]", "training.seed=7"]
    objective = trainer(settings(*words), tmp_path, corpus).objective
    assert (objective.chunk_sizes, objective.left_contexts, objective.seed) == ([2, 0], [8, -1], 7)


@pytest.mark.parametrize("words", [(), ("training.precision=bfloat16", "training.micro_batches=3")])
def test_resuming_gives_what_an_uninterrupted_training_gives(corpus, tmp_path, monkeypatch, words):
    config = settings("data.curriculum.updates=4", "data.noise_probability=0.5", *words)
    whole = trainer(config, tmp_path / "whole", corpus)
    whole.train()

    update, calls = Trainer._update, []

    def dies(self, shares):
        calls.append(1)
        if len(calls) in (3, 13, 20):
            raise RuntimeError("killed")
        return update(self, shares)

    monkeypatch.setattr(Trainer, "_update", dies)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="killed"):
            trainer(config, tmp_path / "resumed", corpus).train()
    done = trainer(config, tmp_path / "resumed", corpus).train()
    assert done["updates"] == whole.updates
    first, second = (load_checkpoint(tmp_path / name / "epoch-2.pt", "") for name in ("whole", "resumed"))
    for kind in ("model", "average"):
        for name, value in first[kind].items():
            assert torch.equal(value, second[kind][name]), (kind, name)


def test_a_student_resumes_exactly_in_every_process(corpus, teacher_folder, tmp_path):
    """With its projection to its teacher's width, and what the optimizer knows of it; and TensorBoard tells of all updates."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings("model.encoder_dim=20", "loss.distill=[{name: encoder_mse}]", "training.log_every_updates=1")

    def work(exp, stop, rank, device):
        run = trainer(config, exp, corpus, load_averaged(teacher_folder)[0])
        run.rank = rank
        update, calls = run._update, []

        def dies(shares):
            calls.append(1)
            if len(calls) == stop:
                raise RecipeError("killed")
            return update(shares)

        run._update = dies
        run.train()

    launch(partial(work, tmp_path / "whole", 0), 2)
    with pytest.raises(RecipeError, match="killed"):
        launch(partial(work, tmp_path / "resumed", 8), 2)  # saved after the fifth update
    launch(partial(work, tmp_path / "resumed", 0), 2)
    whole, resumed = (load_checkpoint(tmp_path / name / "checkpoint.pt", "")["objective"] for name in ("whole", "resumed"))
    assert any("projections" in name for name in whole)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    for kind in ("train", "dev"):
        first, second = ([(event.step, event.value) for event in EventAccumulator(
            str(tmp_path / name / "tensorboard")).Reload().Scalars(f"{kind}/total")] for name in ("whole", "resumed"))
        assert first == second, kind


def test_a_distilled_student_comes_closer_to_its_teacher(corpus, teacher_folder, tmp_path):
    teacher, _, _ = load_averaged(teacher_folder)
    terms = "loss.distill=[{name: pruned_lattice_kl, weight: 1.0}, {name: collapsed_kl}, {name: encoder_mse}]"
    config = settings("model.num_layers=1", "model.encoder_dim=20", "model.feedforward_dim=24", terms,
                      "training.num_epochs=6", "loss.warmup_updates=0")
    run = trainer(config, tmp_path / "student", corpus, teacher, start=teacher)
    before = run._dev_loss()
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    run.train()
    after = run._dev_loss()
    for name in ("pruned_lattice_kl", "collapsed_kl", "encoder_mse", "pruned"):
        assert after[name] < before[name], name
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, weights[name]), f"the teacher's {name} changed"
    assert len(run.objective.projections) == 1  # widths differ, and the projection is no part of the model
    assert not any("projection" in name for name in torch.load(tmp_path / "student" / "epoch-6.pt",
                                                               weights_only=True)["model"])


def test_the_log_tells_how_it_goes(corpus, tmp_path, caplog):
    """Means over the updates since the line before, and when the end will be."""
    caplog.set_level(logging.INFO)
    run = trainer(settings("training.num_epochs=2", "training.save_every_updates=3", "data.max_duration=8"), tmp_path, corpus)
    update, told = run._update, []

    def recorded(shares):
        parts, norm = update(shares)
        told.append((float(parts["total"]), norm, shares[0].progress))
        return parts, norm

    run._update = recorded
    run.train()
    lines = [message for message in caplog.messages if " of the training: loss " in message]
    assert len(lines) == len(told) // 3 > 2
    for number, line in enumerate(lines, start=1):
        part = told[3 * number - 3:3 * number]
        words = re.match(r"epoch [12], update (\d+), (\d+)% of the training: loss ([\d.]+) \(.*pruned [\d.]+.*\), gradient "
                         r"([\d.]+), rate [\d.e-]+, [1-9]\d* s of audio a second, (\d+ min )?\d+ s left", line)
        assert int(words[1]) == 3 * number and int(words[2]) == round(100 * part[-1][2]), line
        assert float(words[3]) == pytest.approx(sum(loss for loss, _, _ in part) / 3, abs=1e-4)
        assert float(words[4]) == pytest.approx(sum(norm for _, norm, _ in part) / 3, abs=0.01)


@pytest.mark.parametrize("curriculum", [4, 5])
def test_the_audio_a_second_is_that_since_the_line_before(corpus, tmp_path, caplog, monkeypatch, curriculum):
    """Or since the first update after a curriculum; where that is the line's own, its pace is not known."""
    caplog.set_level(logging.INFO)
    now, heard = [0.0], []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = trainer(settings("training.num_epochs=1", "training.updates_per_epoch=12", "training.save_every_updates=3",
                           f"data.curriculum={{updates: {curriculum}, max_words: 2}}"), tmp_path, corpus)
    update = run._update

    def timed(shares):
        now[0] += 0.01
        heard.append(shares[0].total_frames * 4)  # of 40 ms, in 0.01 s
        return update(shares)

    run._update = timed
    run.train()
    told = {int(found[1]): found[2] and int(found[2]) for found in (
        re.search(r"update (\d+), .*, rate [\d.e-]+(?:, (\d+) s of audio a second)?", message) for message in caplog.messages)
        if found}
    # What came before the first update of each phase, which is not in the time, is not in the audio either.
    since = {3: 1, 6: curriculum + 1, 9: 6, 12: 9, 15: 12}
    assert told == {line: round(sum(heard[start:line]) / (line - start)) if start < line else None
                    for line, start in since.items()}


def test_the_time_left_goes_by_the_pace_of_the_updates(corpus, tmp_path, caplog, monkeypatch):
    """What is read before the first one, and a curriculum, take time and are no progress."""
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = trainer(settings("training.num_epochs=2", "training.updates_per_epoch=12", "training.save_every_updates=3",
                           "data.curriculum={updates: 4, max_words: 2}"), tmp_path, corpus)
    update = run._update

    def timed(shares):
        now[0] += 10 if run.updates else 9000
        return update(shares)

    run._update = timed
    run.train()
    left = {int(found[1]): found[2] for found in (re.search(r"update (\d+), .* a second(?:, (.*) left)?$", message)
                                                  for message in caplog.messages) if found}
    assert left == {3: None, **{made: format_duration(10 * (28 - made)) for made in range(6, 28, 3)}}


def test_the_dev_loss_is_of_the_average_that_is_kept(corpus, tmp_path):
    run = trainer(settings(), tmp_path, corpus)
    before = run._dev_loss()
    kept = {name: value.clone() for name, value in run.model.state_dict().items()}
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(3)
    changed = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert run._dev_loss() == before and run.model.training
    assert all(torch.equal(value, changed[name]) for name, value in run.model.state_dict().items())
    assert any(not torch.equal(value, kept[name]) for name, value in changed.items())


def test_two_processes_train_what_one_trains(corpus, tmp_path):
    """Batches of an odd number of utterances, of one among them: shares of unequal size must weigh what they hold."""
    config = settings("model.dropout=0", "data.spec_augment.enabled=false", "training.num_epochs=1",
                      "data.max_duration=1.5", "optim.learning_rate=1e-3")
    teacher = Transducer(config.model, len(corpus[1]))
    config.loss.distill = [DistillTerm("pruned_lattice_kl"), DistillTerm("encoder_mse")]

    def work(exp, rank, device):
        torch.manual_seed(1)
        model = Transducer(config.model, len(corpus[1]))
        exp.mkdir(exist_ok=True)
        trained = Trainer(config, exp, *corpus[1:2], model, *corpus[2:], None, teacher, device, rank)
        seconds = [sum(cut.duration for cut in batch.cuts) for batch in trained.dev.sampler]
        assert config.data.max_duration < max(seconds) <= 4 * config.data.max_duration / world_size()
        trained.train()

    for name, processes in (("one", 1), ("two", 2)):
        launch(partial(work, tmp_path / name), processes)
    assert json.loads((tmp_path / "two" / "done.json").read_text())["processes"] == 2
    one, two = (load_checkpoint(tmp_path / name / "epoch-1.pt", "")["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)


def test_one_process_trains_in_parts_what_two_train(corpus, tmp_path):
    """With the same random numbers too: dropout, masks and noise."""
    noise = make_noise(corpus[0])  # once: a process that wrote it would take it from under the other

    def work(config, exp, rank, device):
        torch.manual_seed(1)
        model = Transducer(config.model, len(corpus[1]))
        exp.mkdir(exist_ok=True)
        Trainer(config, exp, *corpus[1:2], model, *corpus[2:], noise, None, device, rank).train()

    for name, processes, parts in (("one", 1, 4), ("two", 2, 2), ("other", 1, 1)):
        config = settings("training.num_epochs=1", "data.max_duration=2.5", "optim.learning_rate=1e-3", "model.dropout=0.3",
                          "data.noise_probability=0.5", f"training.micro_batches={parts}")
        launch(partial(work, config, tmp_path / name), processes)
    one, two, other = (load_checkpoint(tmp_path / name / "epoch-1.pt", "")["model"] for name in ("one", "two", "other"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)
    assert max((one[name] - value).abs().max() for name, value in other.items()) > 2e-3  # of other random numbers


def test_half_precision_is_of_the_computing_alone(corpus, tmp_path):
    """The gradients are near those of float32; weights, average and dev loss are float32."""
    gradients, losses = [], []
    for precision in ("float32", "bfloat16"):
        run = trainer(settings(f"training.precision={precision}", "model.dropout=0"), tmp_path / precision, corpus)
        batch = next(iter(train_loader(corpus[2], run.dataset, run.config.data, Phase(1, seed=1))))
        losses.append(run._dev_loss()["total"])
        run._update([batch])
        gradients.append(torch.cat([p.grad.flatten() for p in run.objective.parameters()]))
        assert gradients[-1].dtype == torch.float32
    assert losses[0] == losses[1]
    apart = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert 1e-4 < apart < 0.03
    done = run.train()
    assert done["precision"] == "bfloat16" and done["bad_updates"] == 0
    content = load_checkpoint(tmp_path / "bfloat16" / "epoch-2.pt", "")
    assert {value.dtype for kind in ("model", "average") for value in content[kind].values()} == {torch.float32}


def test_learning_rate_warms_up_and_ends_low():
    config = settings().optim
    assert learning_rate(config, 0, 0.0) == pytest.approx(config.learning_rate / 5)
    assert learning_rate(config, 10, 0.0) == pytest.approx(config.learning_rate)
    assert learning_rate(config, 10, 1.0) == pytest.approx(config.learning_rate * config.final_ratio)
    # A quarter of the way down a cosine, not down a line.
    part = config.final_ratio + (1 - config.final_ratio) * (1 + 0.5 ** 0.5) / 2
    assert learning_rate(config, 10, 0.25) == pytest.approx(config.learning_rate * part)


def test_a_training_follows_its_schedule(corpus, tmp_path, monkeypatch):
    config = settings("training.num_epochs=2", "training.updates_per_epoch=6", "data.curriculum.updates=4",
                      "optim.final_ratio=0.1", "optim.ema_decay=0.37")
    seen, update = [], Trainer._update

    def watch(self, shares):
        told = update(self, shares)
        seen.append((shares[0].progress, {group["lr"] for group in self.optimizer.param_groups}))
        return told

    monkeypatch.setattr(Trainer, "_update", watch)
    run = trainer(config, tmp_path, corpus)
    run.train()
    progress = [0.0] * 4 + [number / 12 for number in range(1, 13)]  # the curriculum counts for nothing
    assert [one for one, _ in seen] == pytest.approx(progress) and run.average.decay == 0.37
    for number, (one, (_, rates)) in enumerate(zip(progress, seen)):
        wanted = 0.01 * min(1, (number + 1) / 5) * (0.1 + 0.9 * (1 + math.cos(math.pi * one)) / 2)
        assert list(rates) == [pytest.approx(wanted)]


def test_another_seed_draws_other_batches_and_other_dropout(corpus, tmp_path, monkeypatch):
    heard, seeds, seed_torch = [], [], torch.manual_seed
    update = Trainer._update

    def watch(self, shares):
        heard.append(shares[0].ids)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or seed_torch(seed))
            return update(self, shares)

    monkeypatch.setattr(Trainer, "_update", watch)
    drawn = []
    for seed in (1, 2):
        trainer(settings("training.num_epochs=1", f"training.seed={seed}"), tmp_path / str(seed), corpus).train()
        drawn.append((heard[:], set(seeds)))
        heard.clear(), seeds.clear()
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] and not drawn[0][1] & drawn[1][1]


def test_moving_average_of_a_constant_is_that_constant():
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    for update in range(200):
        average.update(model, update)
    torch.testing.assert_close(average.state["weight"], torch.full((2, 2), 3.0))


def test_a_moving_average_follows_quickly_while_the_training_is_young():
    model = torch.nn.Linear(1, 1, bias=False)
    for updates, kept in ((1, 2 / 11), (8, 0.5), (1000, 0.9)):
        with torch.no_grad():
            model.weight.fill_(1.0)
        average = MovingAverage(model, 0.9)
        with torch.no_grad():
            model.weight.fill_(2.0)
        average.update(model, updates)
        assert average.state["weight"].item() == pytest.approx(2.0 - kept)


def test_norms_and_biases_do_not_decay():
    objective = Objective(Transducer(settings().model, 9), settings().loss)
    optimizer = make_optimizer(objective, settings("optim.weight_decay=0.03").optim)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in objective.named_parameters()}
    assert set(found.values()) == {0.0, 0.03}
    assert all(value == (0.0 if "norm" in name or name.endswith("bias") else 0.03) for name, value in found.items())


def test_gradients_are_clipped_and_their_norm_is_told(corpus, tmp_path):
    _, lang, train, _ = corpus
    norms = []
    for most in (1e9, 0.01):
        run = trainer(settings(f"optim.clip_norm={most}"), tmp_path / str(most), corpus)
        batch = next(iter(train_loader(train, run.dataset, run.config.data, Phase(1, seed=1))))
        told = run._update([batch])[1]
        norms.append((told, torch.stack([p.grad.norm() for p in run.objective.parameters()]).norm().item()))
    (told, whole), (same, clipped) = norms
    assert told == same == pytest.approx(whole) and clipped == pytest.approx(0.01, rel=1e-3) and whole > 0.1


def test_a_gradient_that_is_not_finite_names_the_utterances_that_are_not(corpus, tmp_path, caplog):
    """And where all are, of how many it may be any."""
    run = trainer(settings("training.micro_batches=2"), tmp_path, corpus)
    shares = list(islice(train_loader(corpus[2], run.dataset, run.config.data, Phase(1, seed=1), micro_batches=2), 2))
    shares[1].features[-1, 3, 2] = math.nan
    run._update(shares)
    assert f"the update is left out (the features of {shares[1].ids[-1]} hold nan or infinity)" in caplog.messages[-1]
    shares[1].features[-1, 3, 2] = 0.0
    with torch.no_grad():
        run.model.joiner.out.weight[0, 0] = math.nan
    run._update(shares)
    ids = shares[0].ids + shares[1].ids
    assert len(ids) > 3
    assert caplog.messages[-1].endswith(f"left out (any of the batch's {len(ids)} utterances, {', '.join(ids[:3])} among them)")
    assert run.bad_updates == 2


def test_updates_left_out_in_a_row_are_counted_on_by_a_training_that_is_started_again(corpus, tmp_path, monkeypatch):
    """As a supervisor starts it, each time before it comes to the most that may be; checkpoints once did not hold the count."""
    config = settings("training.updates_per_epoch=50", "training.save_every_updates=5")
    update, calls = Trainer._update, []

    def spoilt(self, shares):
        calls.append(1)
        if len(calls) % 8 == 0:
            raise RuntimeError("killed")
        for share in shares:
            share.features.fill_(math.nan)
        return update(self, shares)

    monkeypatch.setattr(Trainer, "_update", spoilt)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="killed"):
            trainer(config, tmp_path, corpus).train()
    path = tmp_path / "checkpoint.pt"
    kept = load_checkpoint(path, "")
    assert kept["updates"] == kept["bad_updates"] == 15
    with pytest.raises(RecipeError, match="20 updates in a row had gradients that are not finite"):
        trainer(config, tmp_path, corpus).train()
    assert len(calls) == 3 * 8 + 5

    save_checkpoint(path, {name: value for name, value in kept.items() if name != "bad_in_a_row"})
    with pytest.raises(RuntimeError, match="killed"):
        trainer(config, tmp_path, corpus).train()
    assert load_checkpoint(path, "")["updates"] == 15


def test_the_curriculum_is_of_short_utterances(corpus, tmp_path, monkeypatch):
    seen = []

    def listen(self, shares):
        seen.append(max(len(text.split()) for text in shares[0].texts))
        self.updates += 1
        return {}, 0.0

    monkeypatch.setattr(Trainer, "_update", listen)
    trainer(settings("data.curriculum.updates=6", "data.curriculum.max_words=2", "training.num_epochs=1"), tmp_path / "exp",
            corpus).train()
    assert max(seen[:6]) == 2 and max(seen[6:]) == 3  # of utterances of one to three words


# What is wrong is named in one line.

def test_lang_folders_that_do_not_fit(corpus, tmp_path):
    folder = corpus[0] / "lang"
    assert Lang(folder).tokens[:3] == ["<blk>", "<sos/eos>", "<unk>"]
    assert Lang(folder).decode(Lang(folder).encode("A D")) == "A D"
    assert Lang(folder).decode([0, 1, *Lang(folder).encode("A"), 2]) == "A"  # the first three stand for nothing
    with pytest.raises(RecipeError, match="tokens.txt is missing: run stage 3"):
        Lang(tmp_path)
    (tmp_path / "tokens.txt").write_text("<blk> 0\n")
    (tmp_path / "bpe.model").write_bytes((folder / "bpe.model").read_bytes())
    with pytest.raises(RecipeError, match="tokens.txt does not fit .*bpe.model"):
        Lang(tmp_path)
    (tmp_path / "bpe.model").write_bytes(b"junk")
    with pytest.raises(RecipeError, match="bpe.model is no SentencePiece model"):
        Lang(tmp_path)
    with pytest.raises(RecipeError, match="there is no text"):
        train_lang(["", " "], LangConfig(), tmp_path)


def test_distilling_from_a_first_teacher_that_is_not_given(tmp_path):
    (tmp_path / "config.yaml").write_text("loss: {distill_from: first, distill: [{name: encoder_mse}]}")
    script = Path(__file__).resolve().parents[1] / "local" / "train.py"
    words = [f"--{name}={tmp_path / name}" for name in ("fbank", "lang", "exp", "teacher")]
    done = run_script(script, "--config", tmp_path / "config.yaml", *words)
    assert done.returncode == 1 and "loss.distill_from is 'first': give --first-teacher" in done.stderr
