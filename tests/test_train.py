"""local/train.py: what it refuses, what it takes for the same training, and which models it makes a student of."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from lhotse.utils import fastcopy
from made_up import make_cuts, make_noise, settings
from scripts import run, run_script

from kdlib.config import FbankConfig, LangConfig, config_to_dict, save_config
from kdlib.cuts import feature_statistics
from kdlib.errors import RecipeError
from kdlib.files import content_digest, read_json, write_json
from kdlib.lang import train_lang
from kdlib.training.checkpoint import begin_run, load_averaged, save_checkpoint

SCRIPT = Path(__file__).resolve().parents[1] / "local" / "train.py"
SHORT = ("training.num_epochs=1", "training.updates_per_epoch=2", "data.curriculum.updates=0")
NOISY = (*SHORT, "data.noise_probability=0.5", "optim.learning_rate=1e-9")
SMALLER = (*SHORT, "model.feedforward_dim=16", "loss.distill=[{name: encoder_mse}]")


@pytest.fixture(scope="module")
def fbank(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fbank")
    for part, cuts in (("train", corpus[2]), ("dev", corpus[3])):
        cuts.to_file(folder / f"cuts_{part}.jsonl.gz")
    write_json(folder / "fbank.json", FbankConfig(num_filters=16).heard())
    return folder


@pytest.fixture(scope="module")
def train(corpus, fbank, tmp_path_factory):
    """Train in the folder ``exp`` with a config, from and towards the folders given as options."""
    def call(exp, config, *words, **models):
        path = tmp_path_factory.mktemp("conf") / "config.yaml"
        save_config(config, path)
        words += tuple(f"--{role.replace('_', '-')}={folder}" for role, folder in models.items())
        return run_script(SCRIPT, "--config", path, "--fbank", fbank, "--lang", corpus[0] / "lang", "--exp", exp,
                          "--world-size", "1", *words)
    return call


@pytest.fixture(scope="module")
def student(train, teacher_folder, tmp_path_factory):
    """A finished student of the teacher."""
    exp = tmp_path_factory.mktemp("exp") / "student"
    done = train(exp, settings(*SMALLER), init_from=teacher_folder, teacher=teacher_folder)
    assert done.returncode == 0, done.stderr
    return exp


def refused(done, said):
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert said in done.stderr.splitlines()[-1], done.stderr


def test_a_training_that_is_refused_leaves_the_finished_one_where_it_is(train, corpus, teacher_folder, student,
                                                                                tmp_path):
    before = {path: path.stat().st_mtime_ns for path in student.rglob("*")}
    models = dict(init_from=teacher_folder, teacher=teacher_folder)
    for words, said in [
        (("model.num_layers=1", "model.predictor_dim=24"), "the student's predictor (24) is larger than its teacher's (16)"),
        (("model.feedforward_dim=32",), "the student has 21908 parameters, its teacher 21908; a stage must make the model"),
        (("loss.distill=[{name: encoder_mse, layers: [[1, 3]]}]",), "the student has 2 layers, its teacher 2"),
    ]:
        refused(train(student, settings(*SMALLER, *words), **models), said)
    refused(train(student, settings(*SMALLER), init_from=teacher_folder), "give --teacher")
    few = ("data.curriculum.updates=5", "data.curriculum.max_words=0")
    refused(train(student, settings(*SMALLER, *few), **models),
            "0 training utterances have at most 0 words, too few for data.curriculum: raise data.curriculum.max_words")
    corpus[2].subset(first=2).to_file(tmp_path / "cuts.jsonl.gz")
    refused(train(student, settings(*SMALLER), "--train-cuts", tmp_path / "cuts.jsonl.gz", **models),
            "2 training utterances are too few to make batches of: use more data")
    assert {path: path.stat().st_mtime_ns for path in student.rglob("*")} == before


def test_features_that_are_no_numbers_leave_the_finished_training_where_it_is(train, trained, tmp_path):
    """Of their mean a model that starts from no other is made."""
    cuts = make_cuts(tmp_path, "spoilt", 40, 5)
    path = Path(cuts[3].features.storage_path) / cuts[3].features.storage_key
    np.save(path, np.full_like(np.load(path), np.nan))
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    before = {path: path.stat().st_mtime_ns for path in (trained / "exp").rglob("*")}
    refused(train(trained / "exp", settings(*NOISY), f"--fbank={trained}/fbank", "--train-cuts", tmp_path / "cuts.jsonl.gz"),
            "the features of spoilt-3 hold nan or infinity, with which nothing can be learned: mend its audio")
    assert {path: path.stat().st_mtime_ns for path in (trained / "exp").rglob("*")} == before


def test_batches_that_shared_memory_cannot_hold_leave_the_finished_training_where_it_is(corpus, fbank, teacher_folder, student,
                                                                                         tmp_path):
    save_config(settings(*SMALLER, "data.num_workers=1", "optim.learning_rate=0.5"), tmp_path / "config.yaml")
    code = """
import os, runpy, sys, types
os.statvfs = lambda path: types.SimpleNamespace(f_blocks=1000, f_frsize=1)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    refused(run(sys.executable, "-c", code, SCRIPT, "--config", tmp_path / "config.yaml", "--fbank", fbank, "--lang",
                corpus[0] / "lang", "--exp", student, "--init-from", teacher_folder, "--teacher", teacher_folder),
            "/dev/shm has room for 0.")
    assert not list(student.glob("before-*"))


def test_a_teacher_of_another_run_is_taken_where_it_fits(corpus, fbank, train, student, tmp_path):
    def take(lang=corpus[0] / "lang", features=fbank):
        return run_script(SCRIPT.with_name("take_teacher.py"), "--from", student, "--fbank", features, "--lang", lang, "--exp",
                          tmp_path / "teacher")

    train_lang(["AB BA"], LangConfig(type="char"), tmp_path / "lang")
    refused(take(lang=tmp_path / "lang"), "was trained with other tokens")
    write_json(tmp_path / "fbank.json", FbankConfig(num_filters=16, sampling_rate=8000).heard())
    refused(take(features=tmp_path), "says sampling_rate 8000")
    assert not (tmp_path / "teacher" / "done.json").exists()
    assert take().returncode == 0
    (own, _, which), (taken, _, same) = (load_averaged(exp) for exp in (student, tmp_path / "teacher"))
    assert which == same and all(torch.equal(value, taken.state_dict()[name]) for name, value in own.state_dict().items())
    ended = train(tmp_path / "next", settings(*SMALLER, "model.joiner_dim=8", "model.feedforward_dim=8"),
                  init_from=tmp_path / "teacher", teacher=tmp_path / "teacher")
    assert ended.returncode == 0, ended.stderr


def test_a_teacher_that_is_taken_moves_another_aside(corpus, fbank, teacher_folder, student, tmp_path):
    """Of two teachers' epochs in one folder some would be averaged, or decoded, for those of one."""
    exp = tmp_path / "teacher"
    shutil.copytree(teacher_folder, exp)
    own = {path.relative_to(exp) for path in exp.rglob("*") if path.is_file()}
    (exp / ".tmp-half.pt").touch()
    for _ in range(2):  # the second time it is there
        done = run_script(SCRIPT.with_name("take_teacher.py"), "--from", student, "--fbank", fbank, "--lang",
                          corpus[0] / "lang", "--exp", exp)
        assert done.returncode == 0, done.stderr
    assert {path.relative_to(exp / "before-1") for path in (exp / "before-1").rglob("*") if path.is_file()} >= own
    taken = {path.name for path in exp.iterdir()} - {"before-1"}
    assert taken < {path.name for path in student.iterdir()} and "done.json" in taken and ".tmp-half.pt" not in taken


def test_the_teacher_may_be_the_first_of_the_chain(train, teacher_folder, student, tmp_path):
    """A student as large as the one before it shows which of the two it learns from."""
    models = dict(init_from=student, teacher=student, first_teacher=teacher_folder)
    refused(train(tmp_path / "next", settings(*SMALLER), **models), "a stage must make the model smaller")
    done = train(tmp_path / "next", settings(*SMALLER, "loss.distill_from=first"), **models)
    assert done.returncode == 0, done.stderr
    run = read_json(tmp_path / "next" / "run.json", "")
    assert run["models"] == {"init-from": "student", "teacher": teacher_folder.name}
    assert run["features"] == FbankConfig(num_filters=16).heard()
    assert run["inputs"]["teacher"] == content_digest(teacher_folder / "done.json") != run["inputs"]["init-from"]


def test_spawned_processes_train_what_forked_ones_do(train, corpus, fbank, teacher_folder, tmp_path, monkeypatch):
    """Spawned ones are those beside GPUs, where a forked process could not use them. Each draws the projection of a narrower
    student for itself. What is given to them needs no file for each tensor."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine may have one GPU
    assert train(tmp_path / "forked", settings(*SMALLER, "model.encoder_dim=12"), "--world-size", "2", init_from=teacher_folder,
                 teacher=teacher_folder).returncode == 0
    code = """
import resource, runpy, sys
import torch
from kdlib.training import parallel
parallel.training_device = lambda rank, world_size: torch.device("cuda")  # in this process alone
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = run(sys.executable, "-c", code, SCRIPT, "--config", tmp_path / "forked" / "config.yaml", "--fbank", fbank, "--lang",
               corpus[0] / "lang", "--exp", tmp_path / "spawned", "--world-size", "2", "--init-from", teacher_folder,
               "--teacher", teacher_folder)
    assert done.returncode == 0, done.stderr
    weights, others = (load_averaged(tmp_path / name)[0].state_dict() for name in ("forked", "spawned"))
    assert 2 * len(weights) > 100 and all(torch.equal(weights[name], others[name]) for name in weights)
    log = (tmp_path / "spawned" / "train.log").read_text()
    assert log.count("INFO epoch 1 of 1: 2 updates") == 1 and log.count("done after 2 updates") == 1
    assert log.splitlines()[0] in done.stderr and "INFO epoch 1 of 1" in done.stderr


def test_a_teacher_of_other_features_is_refused(train, student, tmp_path):
    shutil.copytree(student, tmp_path / "other")
    run = read_json(student / "run.json", "")
    write_json(tmp_path / "other" / "run.json", {**run, "features": {**run["features"], "high_freq": -200.0}})
    refused(train(tmp_path / "next", settings(*SMALLER, "model.feedforward_dim=8"), init_from=student,
                  teacher=tmp_path / "other"), f"fbank.json says high_freq -400.0, and {tmp_path / 'other'} was trained with "
            "-200.0: give the fbank settings of its stage 2")


@pytest.mark.parametrize("part", ["train", "dev", "noise"])
def test_a_cut_of_other_feature_bins_is_named(train, corpus, tmp_path, part):
    """Wherever among the others it stands, and before anything is trained."""
    cuts = {"train": corpus[2], "dev": corpus[3], "noise": make_noise(corpus[0])}
    odd = cuts[part][1].with_id("odd")
    odd.features = fastcopy(odd.features, num_features=20)
    cuts[part] = CutSet.from_cuts([*cuts[part], odd])
    for name, some in cuts.items():
        some.to_file(tmp_path / f"cuts_{name}.jsonl.gz")
    refused(train(tmp_path / "exp", settings(*NOISY), f"--fbank={tmp_path}"),
            f"cut odd of {tmp_path}/cuts_{part}.jsonl.gz has 20 feature bins, model.num_features is 16: make conf/fbank.yaml")
    assert not list((tmp_path / "exp").iterdir())


def test_what_is_left_out_is_told_of_each_set(train, corpus, tmp_path):
    def empty(cuts):
        return CutSet.from_cuts(cut.map_supervisions(lambda segment: fastcopy(segment, text="")) for cut in cuts)

    train_file, dev_file = (tmp_path / f"cuts_{part}.jsonl.gz" for part in ("train", "dev"))
    train_cuts, dev_cuts = list(corpus[2])[:40], list(corpus[3])
    CutSet.from_cuts([*train_cuts[2:], *empty(train_cuts[:2])]).to_file(train_file)
    empty(dev_cuts[:3]).to_file(dev_file)
    refused(train(tmp_path / "exp", settings(*SHORT), f"--fbank={tmp_path}"),
            f"error: {dev_file} holds no utterance that can be trained on; skipped 3 utterances (empty transcript): dev-0, "
            "dev-1, dev-2")
    CutSet.from_cuts([*dev_cuts[1:], *empty(dev_cuts[:1])]).to_file(dev_file)
    done = train(tmp_path / "exp", settings(*SHORT), f"--fbank={tmp_path}")
    assert done.returncode == 0, done.stderr
    for file, said in ((train_file, "2 utterances (empty transcript): train-0, train-1"),
                       (dev_file, "1 utterances (empty transcript): dev-0")):
        assert f"WARNING {file}: skipped {said}\n" in done.stderr


def test_a_student_may_start_from_nothing(train, corpus, teacher_folder, student, tmp_path):
    """With statistics of its own training's features, where another has its teacher's, and the units that it names."""
    cuts = corpus[2].subset(first=30)
    cuts.to_file(tmp_path / "cuts_some.jsonl.gz")
    taught = load_averaged(teacher_folder)[0].encoder
    for weights, mean in (("scratch", feature_statistics(cuts)[0]), ("teacher", taught.subsampling.mean)):
        config = settings(*SMALLER, f"init.weights={weights}", "init.units=first", "optim.learning_rate=1e-9")
        done = train(tmp_path / weights, config, "--train-cuts", tmp_path / "cuts_some.jsonl.gz", init_from=teacher_folder,
                     teacher=teacher_folder)
        assert done.returncode == 0, done.stderr
        assert ("weights start from" in done.stderr) == (weights == "teacher")
        encoder = load_averaged(tmp_path / weights)[0].encoder
        torch.testing.assert_close(encoder.subsampling.mean, mean)
        ours, theirs = (one.layers[0].feed_forward1.up.weight for one in (encoder, taught))
        assert torch.allclose(ours, theirs[:16], atol=1e-6) == (weights == "teacher")


def test_important_layers_are_chosen_once(train, teacher_folder, tmp_path):
    config = settings(*SMALLER, "model.num_layers=1", "init.layers=importance")
    models = dict(init_from=teacher_folder, teacher=teacher_folder)
    done = train(tmp_path / "student", config, **models)
    assert done.returncode == 0, done.stderr
    chosen = tmp_path / "student" / "layers.json"
    number, = read_json(chosen, "")["layers"]
    assert f"its layers {number}\n" in done.stderr
    write_json(chosen, {"layers": [3 - number]})  # a second measurement would not agree
    assert f"its layers {3 - number}\n" in train(tmp_path / "student", config, **models).stderr
    chosen.unlink()  # as trainings were left once: all weights are in the checkpoint
    done = train(tmp_path / "student", config, **models)
    assert done.returncode == 0 and not chosen.exists() and not list(tmp_path.glob("student/before-*"))



@pytest.fixture(scope="module")
def trained(train, corpus, fbank, tmp_path_factory):
    """A finished training and what it was made of: the folders exp, fbank and lang."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(fbank, folder / "fbank")
    shutil.copytree(corpus[0] / "lang", folder / "lang")
    make_noise(corpus[0]).to_file(folder / "fbank" / "cuts_noise.jsonl.gz")
    done = train(folder / "exp", settings(*NOISY), f"--fbank={folder}/fbank")  # the last one given holds
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("what", ["train", "dev", "tokens", "noise", "seed"])
def test_another_training_is_trained_and_the_old_one_set_aside(train, trained, corpus, tmp_path, what):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    exp, fbank, lang = (tmp_path / name for name in ("exp", "fbank", "lang"))
    if what == "tokens":
        train_lang(["A B C", "D"] * 50, LangConfig(type="char", vocab_size=8), lang)
    elif what != "seed":
        cuts = make_noise(corpus[0]) if what == "noise" else corpus[2 if what == "train" else 3]
        CutSet.from_cuts(list(cuts)[:-1]).to_file(fbank / f"cuts_{what}.jsonl.gz")
    config = settings(*NOISY, *(["training.seed=7"] if what == "seed" else []))
    done = train(exp, config, f"--fbank={fbank}", f"--lang={lang}")
    assert done.returncode == 0 and "resuming" not in done.stderr and "INFO epoch 1 of 1: 2 updates" in done.stderr
    assert {"done.json", "run.json", "checkpoint.pt", "epoch-1.pt"} <= {path.name for path in (exp / "before-1").iterdir()}
    if what in ("train", "seed"):  # of a rate that changes no weight
        weights = [load_averaged(folder)[0].joiner.out.weight for folder in (exp, trained / "exp")]
        assert ((weights[0] - weights[1]).abs().max() > 0.01) == (what == "seed")


def test_a_training_that_ends_after_its_layers_were_measured_goes_on_the_same(train, teacher_folder, tmp_path):
    config = settings(*SMALLER, "model.num_layers=1", "model.encoder_dim=12", "init.layers=importance")
    models = dict(init_from=teacher_folder, teacher=teacher_folder)
    assert train(tmp_path / "whole", config, **models).returncode == 0
    (tmp_path / "ended").mkdir()
    for name in ("run.json", "config.yaml", "layers.json"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "ended")
    assert train(tmp_path / "ended", config, **models).returncode == 0
    weights, others = (load_averaged(tmp_path / name)[0].state_dict() for name in ("whole", "ended"))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("run, names", [
    ({"inputs": {"dev": "a", "init-from": "b"}, "models": {"init-from": "stage1", "teacher": "teacher"}},
     ["stage1", "teacher"]),
    ({"inputs": {"teacher": "b"}, "models": {"init-from": "teacher", "teacher": "teacher"}}, ["teacher"]),
    ({"inputs": {"cuts_dev.jsonl.gz": "a", "stage1": "b"}}, ["stage1"]),  # as it was once
    (None, []),
])
def test_the_export_names_what_a_model_was_made_of(run, names, tmp_path):
    if run is not None:
        write_json(tmp_path / "run.json", run)
    assert runpy.run_path(str(SCRIPT.parent / "export_onnx.py"))["made_from"](tmp_path) == names


class TestTheSameTraining:
    INPUTS = {"train 1": "a", "dev": "b", "tokens": "c", "init-from": "d", "teacher": "e"}
    MODELS = {"init-from": "model", "teacher": "model"}

    def begin(self, exp, inputs=None, config=settings(), models=None):
        """Whether what was there is still there."""
        begin_run(exp, config, {**self.INPUTS, **(inputs or {})}, models or self.MODELS)
        return (exp / "done.json").exists()

    @pytest.fixture
    def exp(self, tmp_path):
        assert not self.begin(tmp_path)
        write_json(tmp_path / "done.json", {})
        return tmp_path

    @pytest.mark.parametrize("change", [
        {"inputs": {"init-from": "x"}}, {"inputs": {"teacher": "x"}}, {"inputs": {"dev": "x"}},
        {"inputs": {"init-from": "e", "teacher": "d"}}, {"inputs": {"train 2": "a"}},
        {"config": settings("training.seed=7")},
    ])
    def test_one_of_other_inputs_begins_anew(self, exp, change):
        """Two models of one name among them."""
        assert not self.begin(exp, **change)
        assert (exp / "before-1" / "done.json").exists()
        assert json.loads((exp / "before-1" / "run.json").read_text())["inputs"] == self.INPUTS

    def test_a_move_that_was_cut_short_is_ended_by_the_next_run(self, exp, monkeypatch):
        """And a second change has a folder of its own."""
        (exp / "checkpoint.pt").write_bytes(b"of the old training")
        rename, moved = Path.rename, []

        def dies(path, target):
            if moved:
                raise OSError("killed")
            moved.append(path)
            return rename(path, target)

        other = settings("training.seed=7")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
            patch.setattr(Path, "rename", dies)
            self.begin(exp, config=other)
        self.begin(exp, config=other)
        assert sorted(path.name for path in exp.iterdir()) == ["before-1", "before-2", "run.json"]
        assert sorted(path.name for path in exp.glob("before-*/*")) == ["checkpoint.pt", "done.json", "run.json"]

    def test_one_of_the_same_inputs_goes_on(self, exp):
        assert self.begin(exp) and self.begin(exp, models={"init-from": "moved", "teacher": "moved"})

    @pytest.mark.parametrize("change", ["training.save_every_updates=9", "training.log_every_updates=9", "data.num_workers=3",
                                        "data.shar_root=s3://bucket", "training.micro_batches=3"])
    def test_one_that_only_reads_or_saves_otherwise_goes_on(self, exp, change):
        assert self.begin(exp, config=settings(change))
        assert json.loads((exp / "run.json").read_text())["config"] == config_to_dict(settings(change))

    def test_one_from_before_a_setting_was_there_goes_on(self, exp):
        """As its default is; one of a setting that is no more begins anew."""
        record = read_json(exp / "run.json", "")
        del record["config"]["training"]["precision"]
        write_json(exp / "run.json", record)
        assert self.begin(exp)
        record["config"]["training"]["precise"] = True
        write_json(exp / "run.json", record)
        assert not self.begin(exp)

    @pytest.mark.parametrize("schedule, same", [("constant", True), ("decay", False)])
    def test_one_that_had_updates_of_no_schedule_goes_on_without_them(self, exp, schedule, same):
        def of(updates):
            return settings(f"loss.distill=[{{name: encoder_mse, schedule: {schedule}, schedule_updates: {updates}}}]")

        self.begin(exp, config=of(500))
        (exp / "done.json").touch()
        assert self.begin(exp, config=of(0 if same else 400)) == same

    @pytest.mark.parametrize("change, same", [("data.num_workers=3", True), ("optim.learning_rate=0.5", False)])
    def test_of_one_without_a_record_the_checkpoint_says_the_config(self, exp, change, same):
        """Of a folder that was copied, say."""
        (exp / "run.json").unlink()
        save_checkpoint(exp / "checkpoint.pt", {"model": {}, "average": {}, "tokens": [], "updates": 1,
                                                "config": json.dumps(config_to_dict(settings()))})
        assert self.begin(exp, config=settings(change)) == same == (exp / "checkpoint.pt").exists()
        assert same or (exp / "before-1" / "checkpoint.pt").exists()

    @pytest.mark.parametrize("config", ["not JSON", "[]", '{"model": 5}'])
    def test_one_that_says_no_config_is_refused(self, exp, config):
        (exp / "run.json").unlink()
        save_checkpoint(exp / "checkpoint.pt", {"model": {}, "average": {}, "tokens": [], "updates": 1, "config": config})
        with pytest.raises(RecipeError, match="checkpoint.pt is no checkpoint of this kind: remove it"):
            self.begin(exp)

    def test_what_a_killed_one_left_half_written_goes(self, exp):
        (exp / ".tmp-a1.pt").write_bytes(b"half")
        assert self.begin(exp) and not list(exp.glob(".*"))

    def test_one_whose_inputs_went_by_their_names_goes_on(self, exp):
        record = read_json(exp / "run.json", "")
        named = {"cuts_train.jsonl.gz": "a", "cuts_dev.jsonl.gz": "b", "tokens.txt": "c", "stage1": "d", "teacher": "e"}
        write_json(exp / "run.json", {"config": record["config"], "inputs": named})
        assert self.begin(exp)
        write_json(exp / "run.json", {"config": record["config"], "inputs": {**named, "stage1": "x"}})
        assert not self.begin(exp)
