"""Training on a made-up language: it learns, resumes exactly, distils, and names what is wrong with its inputs."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from made_up import make_cuts, make_noise, settings, trainer
from scripts import run_script

from kdlib.config import DecodeConfig, DistillTerm, LangConfig, TrainConfig, load_config, merge_config
from kdlib.cuts import describe_skipped, feature_statistics, load_cuts, select_cuts
from kdlib.data import Phase, eval_loader, plan_batch, train_loader, TransducerDataset
from kdlib.decoding import greedy_search, modified_beam_search
from kdlib.errors import RecipeError
from kdlib.lang import Lang, train_lang
from kdlib.plan_config import ProgressiveConfig
from kdlib.training.checkpoint import load_averaged, load_checkpoint, load_state
from kdlib.training.loop import MovingAverage, Trainer, learning_rate, make_optimizer
from kdlib.training.objective import Objective
from kdlib.training.parallel import launch
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


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
    model, config, which = load_averaged(teacher_folder, avg=2, tokens=corpus[1].tokens)
    assert which == {"updates": done["updates"], "epoch": 12, "avg": 2}
    assert decode(model, corpus) < 0.3
    assert decode(model, corpus, modified_beam_search) < 0.3


def test_the_average_is_the_mean_of_the_epochs(teacher_folder):
    model, _, _ = load_averaged(teacher_folder, epoch=11, avg=3)
    parts = [torch.load(teacher_folder / f"epoch-{n}.pt", weights_only=True)["average"] for n in (9, 10, 11)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, sum(p[name] for p in parts) / 3)


def test_as_many_epochs_are_averaged_as_the_training_says(teacher_folder, tmp_path):
    """Unless another number is given."""
    for number in (10, 11, 12):
        content = torch.load(teacher_folder / f"epoch-{number}.pt", weights_only=True)
        config = json.loads(content["config"])
        config["training"]["avg"] = 3
        torch.save({**content, "config": json.dumps(config)}, tmp_path / f"epoch-{number}.pt")
    (tmp_path / "done.json").write_bytes((teacher_folder / "done.json").read_bytes())
    model, _, which = load_averaged(tmp_path)
    assert which["avg"] == 3 and load_averaged(tmp_path, avg=1)[2]["avg"] == 1
    for name, value in load_averaged(teacher_folder, avg=3)[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_chunks_of_a_training_are_those_of_its_config(corpus, tmp_path):
    objective = trainer(settings("training.chunk_sizes=[2,0]", "training.left_contexts=[8,-1]"), tmp_path, corpus).objective
    assert (objective.chunk_sizes, objective.left_contexts) == ([2, 0], [8, -1])


def test_resuming_gives_what_an_uninterrupted_training_gives(corpus, tmp_path, monkeypatch):
    config = settings("data.curriculum.updates=4", "data.noise_probability=0.5")
    whole = trainer(config, tmp_path / "whole", corpus)
    whole.train()

    update, calls = Trainer._update, []

    def dies(self, batch):
        calls.append(1)
        if len(calls) in (3, 13, 20):
            raise RuntimeError("killed")
        return update(self, batch)

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


def test_batches_do_not_depend_on_workers_or_on_where_one_resumes(corpus):
    folder, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings("data.noise_probability=0.5").data, make_noise(folder), train=True)

    def batches(skip, workers):
        config = settings(f"data.num_workers={workers}").data
        return list(train_loader(train, dataset, config, Phase(3, seed=1, begin=0.5, end=1.0), skip))

    whole, late = batches(0, 0), batches(4, 1)
    clean = list(train_loader(train, TransducerDataset(lang, settings().data, train=True), settings().data,
                              Phase(3, seed=1, begin=0.5, end=1.0)))
    assert not all(torch.equal(a.features, b.features) for a, b in zip(whole, clean))  # there is noise in it
    assert len(late) == len(whole) - 4
    for a, b in zip(whole[4:], late):
        assert a.ids == b.ids and torch.equal(a.features, b.features) and a.progress == b.progress
    assert [b.progress for b in whole] == sorted(b.progress for b in whole) and whole[-1].progress == 1.0
    assert sorted(i for b in whole for i in b.ids) == sorted(c.id for c in train)


def test_batches_of_a_test_set_are_as_large_as_may_be(corpus):
    _, lang, _, dev = corpus
    batches = list(eval_loader(dev, lang, settings().data, 2.0))
    assert sorted(id_ for batch in batches for id_ in batch.ids) == sorted(dev.ids)
    longest = [batch.features.size(1) / 100 for batch in batches]  # of each, in seconds
    assert longest == sorted(longest, reverse=True) and len(batches) > 3
    assert all(seconds * len(batch.ids) <= 2.0 for seconds, batch in zip(longest, batches))
    assert all(seconds * (len(batch.ids) + 1) > 2.0 for seconds, batch in list(zip(longest, batches))[:-1])


def test_statistics_of_the_features(corpus):
    for most, chosen in ((300, list(corpus[2])), (30, list(corpus[2])[::3])):
        frames = torch.cat([torch.from_numpy(cut.load_features()) for cut in chosen])
        mean = frames.mean(0)
        std = ((frames - mean) ** 2).sum(0).div(len(frames) - 1).sqrt()
        torch.testing.assert_close(feature_statistics(corpus[2], most), (mean, std))


def test_no_two_batches_are_augmented_alike(corpus):
    """Nor the shares of one batch, nor one that comes again in another epoch or from another seed."""
    _, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    seeds = [planned.seed for epoch, seed, rank in ((1, 1, 0), (1, 1, 1), (2, 1, 0), (1, 2, 0))
             for planned in train_loader(train, dataset, settings().data, Phase(epoch, seed), rank=rank, world_size=2).sampler]
    assert len(seeds) > 40 and len(set(seeds)) == len(seeds)


def test_an_epoch_of_so_many_updates(corpus):
    _, lang, train, _ = corpus
    dataset = TransducerDataset(lang, settings().data, train=True)
    epochs = [list(train_loader(train, dataset, settings().data, Phase(epoch, seed=1, updates=25))) for epoch in (1, 2)]
    assert [len(batches) for batches in epochs] == [25, 25]  # more than the cuts make once
    assert epochs[0][-1].progress == 1.0 and epochs[0][0].progress == pytest.approx(1 / 25)
    assert [b.ids for b in epochs[0]] != [b.ids for b in epochs[1]]
    assert {i for b in epochs[0] for i in b.ids} == {c.id for c in train}


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
        Trainer(config, exp, *corpus[1:2], model, *corpus[2:], None, teacher, device, rank).train()

    for name, processes in (("one", 1), ("two", 2)):
        launch(partial(work, tmp_path / name), processes)
    assert json.loads((tmp_path / "two" / "done.json").read_text())["processes"] == 2
    one, two = (load_checkpoint(tmp_path / name / "epoch-1.pt", "")["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)


def test_utterances_that_cannot_be_learnt_from_are_counted(corpus):
    folder, lang, train, _ = corpus
    cuts = list(train)[:5]
    empty = make_cuts(folder, "empty", 1, 3)[0]
    empty.supervisions[0].text = " "
    long = make_cuts(folder, "labels", 1, 4)[0]
    long.supervisions[0].text = "A B C D " * 5  # more characters than frames after subsampling
    bare = make_cuts(folder, "bare", 1, 5)[0]
    bare.features = None
    kept, skipped = select_cuts(CutSet.from_cuts(cuts + [empty, long, bare]), lang, settings().data, modified=True)
    assert [c.id for c in kept] == [c.id for c in cuts]
    assert skipped == {"empty transcript": ["empty-0"], "too short for its labels": ["labels-0"], "no features": ["bare-0"]}
    assert "skipped 1 utterances (empty transcript): empty-0" in describe_skipped(skipped)
    kept, _ = select_cuts(CutSet.from_cuts([long]), lang, settings().data, modified=False)
    assert len(kept) == 1  # the regular lattice takes several labels a frame


def test_features_that_are_gone_are_named(corpus, tmp_path):
    cuts = make_cuts(tmp_path, "gone", 30, 5)
    for path in (tmp_path / "gone").rglob("*.npy"):
        path.unlink()
    _, lang, _, dev = corpus
    for workers in (0, 1):
        config = settings(f"data.num_workers={workers}")
        run = Trainer(config, tmp_path, lang, Transducer(config.model, len(lang)), cuts, dev, None, None,
                      torch.device("cpu"))
        with pytest.raises(RecipeError, match="the features of gone-.* cannot be read .*: run stage 2 again"):
            run.train()


def test_a_finished_training_is_left_as_it_is(corpus, teacher_folder):
    before = (teacher_folder / "done.json").read_bytes()
    config = settings("training.num_epochs=12", "data.curriculum.updates=10", "data.curriculum.max_words=1")
    assert trainer(config, teacher_folder, corpus).train()["epoch"] == 12
    assert (teacher_folder / "done.json").read_bytes() == before


def test_learning_rate_warms_up_and_ends_low():
    config = settings().optim
    assert learning_rate(config, 0, 0.0) == pytest.approx(config.learning_rate / 5)
    assert learning_rate(config, 10, 0.0) == pytest.approx(config.learning_rate)
    assert learning_rate(config, 10, 1.0) == pytest.approx(config.learning_rate * config.final_ratio)
    # A quarter of the way down a cosine, not down a line.
    part = config.final_ratio + (1 - config.final_ratio) * (1 + 0.5 ** 0.5) / 2
    assert learning_rate(config, 10, 0.25) == pytest.approx(config.learning_rate * part)


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
        told = run._update(batch)[1]
        norms.append((told, torch.stack([p.grad.norm() for p in run.objective.parameters()]).norm().item()))
    (told, whole), (same, clipped) = norms
    assert told == same == pytest.approx(whole) and clipped == pytest.approx(0.01, rel=1e-3) and whole > 0.1


def test_the_curriculum_is_of_short_utterances(corpus, tmp_path, monkeypatch):
    seen = []

    def listen(self, batch):
        seen.append(max(len(text.split()) for text in batch.texts))
        self.updates += 1
        return {}, 0.0

    monkeypatch.setattr(Trainer, "_update", listen)
    trainer(settings("data.curriculum.updates=6", "data.curriculum.max_words=2", "training.num_epochs=1"), tmp_path / "exp",
            corpus).train()
    assert max(seen[:6]) == 2 and max(seen[6:]) == 3  # of utterances of one to three words


def test_noise_is_as_frequent_and_as_loud_as_the_config_says(corpus):
    folder, lang, train, _ = corpus
    planned = plan_batch(list(train)[:60], seed=1, progress=1.0)
    clean = TransducerDataset(lang, settings().data)[planned].features

    def noise(probability, ratio):
        """The part of the utterances that hold some, and how much the features differ."""
        config = settings(f"data.noise_probability={probability}", f"data.noise_snr=[{ratio},{ratio}]",
                          "data.spec_augment.enabled=false").data
        noisy = TransducerDataset(lang, config, make_noise(folder), train=True)[planned].features
        difference = (noisy - clean).abs().flatten(1)
        return (difference.amax(1) > 1e-3).float().mean().item(), difference.mean().item()

    (some, _), (every, much), (_, little) = noise(0.5, 0.0), noise(1.0, 0.0), noise(1.0, 30.0)
    assert 0.25 < some < 0.75 and every == 1.0 and much > 3 * little > 0


def test_features_are_masked_from_where_the_config_says(corpus):
    _, lang, train, _ = corpus
    config = settings("data.spec_augment.start=0.5").data
    learning, other = (TransducerDataset(lang, config, train=train) for train in (True, False))
    for progress, masked in ((0.4, False), (0.5, True)):
        planned = plan_batch(list(train)[:4], seed=1, progress=progress)
        assert torch.equal(learning[planned].features, other[planned].features) != masked


# What is wrong is named in one line.

def test_damaged_and_foreign_checkpoints(corpus, teacher_folder, tmp_path):
    good = teacher_folder / "epoch-12.pt"
    with pytest.raises(RecipeError, match="nothing.pt is missing: do this"):
        load_checkpoint(tmp_path / "nothing.pt", "do this")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(RecipeError, match="cut.pt is damaged or no checkpoint"):
        load_checkpoint(cut, "do this")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(RecipeError, match="text.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "text.pt", "do this")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(RecipeError, match="foreign.pt is no checkpoint of this kind"):
        load_checkpoint(tmp_path / "foreign.pt", "do this")
    other = Transducer(settings("model.encoder_dim=20").model, len(corpus[1]))
    with pytest.raises(RecipeError, match="is a checkpoint of another model: .* is .* the config makes"):
        load_state(other, load_checkpoint(good, "")["model"], good)
    with pytest.raises(RecipeError, match="epoch-12.pt is no checkpoint of this kind"):
        load_checkpoint(good, "do this", needs=("optimizer",))
    with pytest.raises(RecipeError, match=r"trained with other tokens \(\d+ of them\) than the lang folder"):
        load_averaged(teacher_folder, tokens=["<blk>"])
    with pytest.raises(RecipeError, match="epoch-99.pt is missing: choose one of the epochs 0, 1, "):
        load_averaged(teacher_folder, epoch=99)
    with pytest.raises(RecipeError, match="epoch is -5: choose one of the epochs 0, 1, .*, or -1 for the last one"):
        load_averaged(teacher_folder, epoch=-5)
    with pytest.raises(RecipeError, match="avg must be between 1 and the epoch, .*; got -3"):
        load_averaged(teacher_folder, avg=-3)
    with pytest.raises(RecipeError, match="done.json is missing: its training has not ended"):
        load_averaged(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"model": {}, "config": "{}", "tokens": [], "average": {}, "updates": 1, "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(RecipeError, match="evil.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "evil.pt", "remove it")
    assert not (tmp_path / "run").exists()


def test_configs_name_what_is_wrong(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {num_layer: 3}\n")
    with pytest.raises(RecipeError, match=r"a.yaml: key 'model.num_layer'.*known keys there: .*num_layers"):
        load_config(TrainConfig, path)
    path.write_text("model: {num_layers: many}\n")
    with pytest.raises(RecipeError, match="a.yaml: key 'model.num_layers'.*many"):
        load_config(TrainConfig, path)
    path.write_text("model: {num_layers: 3}\n")
    assert load_config(TrainConfig, path, ["model.num_layers=5"]).model.num_layers == 5
    with pytest.raises(RecipeError, match="command line: key 'modle'"):
        load_config(TrainConfig, path, ["modle.num_layers=5"])
    with pytest.raises(RecipeError, match="unknown option '--frobnicate'"):
        load_config(TrainConfig, path, ["--frobnicate"])
    with pytest.raises(RecipeError, match=r"command line: data.noise_snr=\[1"):
        load_config(TrainConfig, path, ["data.noise_snr=[1"])
    with pytest.raises(RecipeError, match="command line: .*nothing"):
        load_config(TrainConfig, path, ["training.seed=${nothing}"])
    for word, wanted in (("model.head_dim=35", "even"), ("model.dropout=2", "below 1"), ("model.num_heads=0", "above 0"),
                         ("loss.rnnt_type=x", "regular or modified"), ("training.save_every_updates=0", "above 0"),
                         ("training.avg=6", "at most training.num_epochs, 5"),
                         # What else would end a training in a stack trace, or have it learn nothing without a word.
                         ("loss.lm_scale=-1", "finite"), ("loss.am_scale=.nan", "0 or more"),
                         ("loss.simple_scale=.inf", "finite"),
                         ("loss.delay_penalty=-1", "0 or more"), ("loss.ctc_weight=-1", "0 or more"),
                         ("optim.learning_rate=-1", "above 0"), ("optim.learning_rate=.inf", "finite"),
                         ("optim.clip_norm=0", "above 0"), ("optim.weight_decay=-1", "0 or more"),
                         ("optim.final_ratio=-1", "0 or more"), ("optim.ema_decay=1", "below 1"),
                         ("data.noise_probability=2", "from 0 to 1"), ("data.spec_augment.frame_mask_size=0", "above 0"),
                         ("data.spec_augment.num_feature_masks=-1", "0 or more"),
                         ("data.spec_augment.max_frames_fraction=1.5", "from 0 to 1"),
                         ("training.seed=20261128111500", "below 2.32")):
        with pytest.raises(RecipeError, match=f"a.yaml: {word.split('=')[0]} is .*; it must be .*{wanted}"):
            load_config(TrainConfig, path, [word])
    with pytest.raises(RecipeError, match="method is 'best'; it must be greedy_search, modified_beam_search or"):
        merge_config(DecodeConfig, {}, ["method=best"])
    path.write_text("model: {num_layers: [\n")
    with pytest.raises(RecipeError, match="a.yaml is not valid YAML"):
        load_config(TrainConfig, path)
    path.write_text("- a list\n")
    with pytest.raises(RecipeError, match="a.yaml holds no YAML mapping"):
        load_config(TrainConfig, path)
    with pytest.raises(RecipeError, match="b.yaml is missing"):
        load_config(TrainConfig, tmp_path / "b.yaml")
    assert load_config(TrainConfig, write(path, "loss: {distill: [{name: encoder_mse, weight: 2}]}")).loss.distill == [
        DistillTerm("encoder_mse", 2.0)]


@pytest.mark.parametrize("content, words, said", [
    ({"loss": {"distill": {"name": "encoder_mse"}}}, [], "conf: key 'loss.distill' is a mapping, .*; it must be a list"),
    ({"loss": [1]}, [], r"conf: key 'loss' is a list, \[1\]; it must be a mapping"),
    ({"model": 3}, [], "conf: key 'model' is a value, 3; it must be a mapping"),
    ({"data": {"noise_snr": {"low": 1}}}, [], "conf: key 'data.noise_snr' is a mapping"),
    (3, [], "conf: all of it is a value, 3; it must be a mapping"),
    ({}, ["loss.distill.0.weight=3"], "command line: key 'loss.distill' is a mapping, .*; it must be a list, given whole"),
    ({}, ["model=[1]"], "command line: key 'model' is a list"),
    ([{"loss": {"distill": [{"name": "encoder_mse"}]}}, {"loss": {"distill": {"name": "encoder_l1"}}}], [],
     "conf: key 'loss.distill' is a mapping"),
])
def test_lists_and_mappings_that_stand_in_each_others_place(content, words, said):
    with pytest.raises(RecipeError, match=said):
        merge_config(TrainConfig, content, words, source="conf")


@pytest.mark.parametrize("content, said", [
    ({"stages": {"a": 1}}, "conf: key 'stages' is a mapping, {'a': 1}; it must be a list"),
    ({"student": [1]}, "conf: key 'student' is a list"),
    ({"plan": 3}, "conf: key 'plan', 3, has a list, a mapping or a value in the place"),
    ({"plan": {"parts": {"a": 1}}}, "conf: key 'plan', {'parts': .*in the place of another"),
    ([{"student": {"loss": {"distill": []}}}, {"student": {"loss": {"distill": {"name": "x"}}}}],
     "conf: key 'student.loss.distill' is a mapping"),
])
def test_chains_with_lists_and_mappings_in_each_others_place(content, said):
    with pytest.raises(RecipeError, match=said):
        merge_config(ProgressiveConfig, content, source="conf")


def write(path, text):
    path.write_text(text)
    return path


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
    with pytest.raises(RecipeError, match="lang type 'word' is unknown"):
        train_lang(["A"], LangConfig(type="word"), tmp_path)


def test_cut_manifests_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="cuts.jsonl.gz is missing: run stage 2"):
        load_cuts(tmp_path / "cuts.jsonl.gz")
    (tmp_path / "cuts.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(RecipeError, match="cuts.jsonl.gz cannot be read as a Lhotse cut manifest"):
        load_cuts(tmp_path / "cuts.jsonl.gz")


def test_distilling_from_a_first_teacher_that_is_not_given(tmp_path):
    (tmp_path / "config.yaml").write_text("loss: {distill_from: first, distill: [{name: encoder_mse}]}")
    script = Path(__file__).resolve().parents[1] / "local" / "train.py"
    words = [f"--{name}={tmp_path / name}" for name in ("fbank", "lang", "exp", "teacher")]
    done = run_script(script, "--config", tmp_path / "config.yaml", *words)
    assert done.returncode == 1 and "loss.distill_from is 'first': give --first-teacher" in done.stderr
