"""local/plan.py: the configs of all students and baselines, checked before they are trained."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scripts import load, refused, run_script

from kdlib.comparison import UPDATES_TOLERANCE
from kdlib.config import InitConfig, LangConfig, TrainConfig, load_config
from kdlib.errors import RecipeError
from kdlib.lang import Lang, train_lang
from kdlib.plan_config import ProgressiveConfig
from kdlib.planning import ModelSize, measure_model, parse_target

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "local" / "plan.py"
# conf/ of each recipe, and the folders in it that --settings names.
SETTINGS = [(recipe, name) for recipe in ("aishell", "fsdd", "librispeech", "voice_commands")
            for name in (".", *sorted(path.name for path in (ROOT / "egs" / recipe / "conf").iterdir() if path.is_dir()))]
TEACHER = {"model": {"num_layers": 4, "encoder_dim": 32, "head_dim": 8, "feedforward_dim": 96, "dropout": 0.2},
           "training": {"num_epochs": 10, "updates_per_epoch": 5}, "data": {"curriculum": {"updates": 7}}}
PLAN = {"target_compression": 40,
        "stages": [{"model": {"num_layers": 3}}, {"model": {"num_layers": 2, "feedforward_dim": 32}}],
        "student": {"loss": {"distill": [{"name": "encoder_mse"}]}, "training": {"num_epochs": 2, "updates_per_epoch": 9},
                    "data": {"curriculum": {"updates": 0}}}}


@pytest.fixture
def folder(tmp_path):
    train_lang(["AB BA"], LangConfig(type="char", vocab_size=10), tmp_path / "lang")
    return tmp_path


def plan(folder, *overrides, teacher=TEACHER, stages=PLAN):
    (folder / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    (folder / "progressive.yaml").write_text(yaml.safe_dump(stages))
    return run_script(SCRIPT, "--config", folder / "progressive.yaml", "--teacher-config", folder / "teacher.yaml", "--lang",
                      folder / "lang", "--output", folder / "conf", *overrides)


def config(folder, name) -> TrainConfig:
    return load_config(TrainConfig, folder / "conf" / f"{name}.yaml")


def updates_of(config: TrainConfig) -> int:
    return config.training.num_epochs * config.training.updates_per_epoch


def test_every_model_gets_its_config(folder):
    done = plan(folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "conf" / "plan.json").read_text())["stages"] == 2
    first, last, scratch = config(folder, "stage1"), config(folder, "stage2"), config(folder, "scratch")
    assert (first.model.num_layers, first.model.feedforward_dim, first.model.dropout) == (3, 96, 0.2)
    assert last.model == scratch.model == config(folder, "single").model == config(folder, "single-matched").model
    assert scratch.loss.distill == [] and scratch.data.curriculum.updates == 7
    # As many updates as the teacher, as the last stage, as the two stages together, and as the teacher and they.
    for name, updates in (("scratch", 10 * 5), ("single", 2 * 9), ("single-matched", 4 * 9)):
        assert updates_of(config(folder, name)) == updates
    longer = config(folder, "scratch-matched")
    assert 10 * 5 + 4 * 9 <= updates_of(longer) < 10 * 5 + 4 * 9 + longer.training.num_epochs
    assert longer.model == scratch.model and longer.optim == scratch.optim and longer.loss == scratch.loss
    assert "single-matched" in done.stdout and "2 stages" in done.stdout


def test_the_baselines_from_scratch_are_trained_as_the_teacher_is(folder):
    """With its dropout and its CTC head, which no deployed model has."""
    teacher = {**TEACHER, "loss": {"ctc_weight": 0.3}}
    students = {**PLAN["student"], "model": {"dropout": 0.0, "ctc_head": False}}
    students["loss"] = {**students["loss"], "ctc_weight": 0.0}
    done = plan(folder, teacher=teacher, stages={**PLAN, "student": students})
    assert done.returncode == 0, done.stderr
    for name, expected in (("stage2", (0.0, False)), ("single-matched", (0.0, False)), ("scratch", (0.2, True)),
                           ("scratch-matched", (0.2, True))):
        model = config(folder, name).model
        assert (model.dropout, model.ctc_head) == expected
        assert replace(model, dropout=0.0, ctc_head=False) == config(folder, "stage2").model


def test_a_curriculum_as_long_as_all_that_is_to_be_matched_is_refused(folder):
    scratch = {"data": {"curriculum": {"updates": 10 * 5 + 7 + 4 * 9}}}
    said = refused(plan(folder, stages={**PLAN, "scratch": scratch}))
    assert "scratch-matched: its curriculum of 93 updates is as long as all the trainings" in said


def test_a_matched_baseline_has_the_epochs_that_are_averaged(folder):
    single = {"training": {"num_epochs": 3, "avg": 3, "updates_per_epoch": 30}}
    done = plan(folder, stages={**PLAN, "single": single})
    assert done.returncode == 0, done.stderr
    matched = config(folder, "single-matched")
    assert matched.training.num_epochs == 3 and updates_of(matched) == 4 * 9


@pytest.mark.parametrize("teacher, student, curriculum", [((2, 6), (2, 4), 3), ((15, 25), (5, 25), 30), ((5, 20), (2, 17), 0),
                                                          ((3, 7), (1, 4), 1), ((10, 5), (2, 9), 7)])
def test_a_matched_baseline_of_short_epochs_passes_for_matched(folder, teacher, student, curriculum):
    """Whatever the lengths of the epochs, stage 8 does not say that it is not."""
    lengths = [dict(zip(("num_epochs", "updates_per_epoch"), one)) for one in (teacher, student)]
    settings = {**TEACHER, "training": {**lengths[0], "avg": 2}, "data": {"curriculum": {"updates": curriculum}}}
    stages = {**PLAN, "student": {**PLAN["student"], "training": {**lengths[1], "avg": 1}}}
    done = plan(folder, teacher=settings, stages=stages)
    assert done.returncode == 0, done.stderr
    together = {"single-matched": 2 * student[0] * student[1]}
    together["scratch-matched"] = curriculum + teacher[0] * teacher[1] + together["single-matched"]
    for name, wanted in together.items():
        matched = config(folder, name)
        assert wanted <= matched.data.curriculum.updates + updates_of(matched) <= (1 + UPDATES_TOLERANCE) * wanted
        assert matched.training.num_epochs >= matched.training.avg


def test_a_matched_baseline_has_epochs_of_the_usual_length_where_these_do(folder):
    """Of 5,550 updates in epochs of 450, which twelve of 463 come near."""
    teacher = {**TEACHER, "training": {"num_epochs": 7, "updates_per_epoch": 450}, "data": {}}
    students = {**PLAN["student"], "training": {"num_epochs": 4, "updates_per_epoch": 300}}
    assert plan(folder, teacher=teacher, stages={**PLAN, "student": students}).returncode == 0
    training = config(folder, "scratch-matched").training
    assert (training.num_epochs, training.updates_per_epoch) == (12, 463)


def test_the_target_is_the_plan_s_own(folder):
    for planned, target in (("55.5%", 55.5), ("4k", None), ("9kB", None)):
        stages = {"plan": {"stages": 1, "target": planned}, "student": PLAN["student"]}
        (folder / "progressive.yaml").write_text(yaml.safe_dump(stages))
        assert load_config(ProgressiveConfig, folder / "progressive.yaml").target_compression == target
    assert plan(folder, stages={"plan": {"stages": 2, "target": "75%"}, "student": PLAN["student"]}).returncode == 0


@pytest.mark.parametrize("target", ["70k", "140kB"])
def test_a_target_that_is_no_percentage_is_all_that_is_asked(folder, target):
    """Unless a percentage stands in the file as well."""
    stages = {"plan": {"stages": 2, "target": target}, "student": PLAN["student"]}
    done = plan(folder, stages=stages)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "conf" / "plan.json").read_text())["compression"] < 60
    assert "target_compression 60% allows" in refused(plan(folder, stages={**stages, "target_compression": 60}))
    larger = {**stages, "stages": [{}, {"model": {"feedforward_dim": 96}}]}
    assert re.search(rf"the last stage has [0-9,]+ (parameters|int8 bytes), and plan.target {target} allows",
                     refused(plan(folder, stages=larger)))


def test_the_baselines_from_scratch_have_settings_of_their_own(folder):
    scratch = {"training": {"num_epochs": 30}, "optim": {"learning_rate": 3e-4}}
    assert plan(folder, stages={**PLAN, "scratch": scratch}).returncode == 0
    assert updates_of(config(folder, "scratch")) == 30 * 5
    assert config(folder, "scratch").optim.learning_rate == config(folder, "scratch-matched").optim.learning_rate == 3e-4
    assert updates_of(config(folder, "scratch-matched")) == pytest.approx(10 * 5 + 4 * 9, rel=0.2)


def taken(folder, *overrides, updates=57, **other):
    """A plan beside a teacher that has had so many updates."""
    (folder / "done.json").write_text(json.dumps({"updates": updates}))
    return plan(folder, *overrides, "--teacher-done", folder / "done.json", **other)


def test_a_teacher_that_is_trained_counts_with_the_updates_that_it_has_had(folder):
    """Words of the command line, for a training that comes, change nothing of it."""
    done = taken(folder, "training.num_epochs=3", "data.curriculum.updates=1", "optim.clip_norm=3")
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("teacher")] == ["10"]
    stages, longer = 2 * (1 + 3 * 9), config(folder, "scratch-matched")
    assert updates_of(config(folder, "single-matched")) + 1 == pytest.approx(stages, abs=6)
    assert 0 <= 1 + updates_of(longer) - (57 + stages) < longer.training.num_epochs
    assert config(folder, "scratch").training.num_epochs == 3 and longer.optim.clip_norm == 3


def test_a_trained_teacher_whose_epochs_were_passes(folder):
    """Over whatever data that was: it counts as it should where the trainings of this run are counted in updates."""
    teacher = {**TEACHER, "training": {"num_epochs": 10}}
    done = taken(folder, "training.updates_per_epoch=9", updates=900, teacher=teacher)
    assert done.returncode == 0 and "matched only" not in done.stdout, done.stderr
    longer = config(folder, "scratch-matched")
    assert 0 <= 7 + updates_of(longer) - (900 + 2 * 2 * 9) < longer.training.num_epochs
    said = refused(taken(folder, teacher=teacher))
    assert "training.updates_per_epoch=N on the command line sets it for all" in said
    passes = {**PLAN, "student": {**PLAN["student"], "training": {"num_epochs": 2}}}
    done = taken(folder, teacher={**teacher, "data": {}}, stages=passes)
    assert done.returncode == 0, done.stderr
    assert config(folder, "scratch-matched").training.num_epochs == 10 + 2 + 2
    assert "scratch-matched is matched only if the teacher's training part was as long as this run's" in done.stdout


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_done_json_that_does_not_say_what_the_teacher_has_had(folder, content):
    (folder / "done.json").write_text(content)
    said = refused(plan(folder, "--teacher-done", folder / "done.json"))
    assert "done.json" in said and "give the folder of a finished training" in said


def test_a_student_of_another_run_as_the_teacher(folder):
    """Its own distillation is none of the baselines' that have no teacher."""
    teacher = {**TEACHER, "loss": {"distill": [{"name": "encoder_mse"}]}}
    done = plan(folder, teacher=teacher)
    assert done.returncode == 0, done.stderr
    assert config(folder, "scratch").loss.distill == config(folder, "scratch-matched").loss.distill == []
    # Nor are they trained as long as a model that knows nothing needs, unless they say so.
    assert ("warning: the teacher is a student of another run: scratch and scratch-matched, which have no teacher, are trained "
            f"with that student's settings but for what stands under 'scratch' in {folder}/progressive.yaml, and "
            "scratch-matched does not count the updates of that student's own teachers\n") in done.stdout
    assert "a student of another run" not in plan(folder).stdout
    scratch = {"loss": {"distill": [{"name": "encoder_mse"}]}}
    said = refused(plan(folder, teacher=teacher, stages={**PLAN, "scratch": scratch}))
    assert "scratch: it asks for distillation losses" in said


def test_students_of_a_student_start_as_progressive_yaml_says(folder):
    """Not as their teacher did when it was a student."""
    was = {"init": {"weights": "scratch", "layers": [1, 3], "units": "first"},
           "loss": {"distill": [{"name": "collapsed_kl"}], "distill_from": "first", "ctc_weight": 0.3}}
    assert plan(folder, teacher={**TEACHER, **was}).returncode == 0
    assert plan(folder, teacher={**TEACHER, **was}, stages={**PLAN, "student": {
        **PLAN["student"], "init": {"layers": "importance"}}}).returncode == 0
    for name in ("stage1", "stage2", "single", "single-matched"):
        made = config(folder, name)
        assert made.init == InitConfig(layers="importance") and made.loss.distill_from == "previous"
        assert [term.name for term in made.loss.distill] == ["encoder_mse"] and made.loss.ctc_weight == 0.3
    assert config(folder, "scratch").init == InitConfig() and config(folder, "scratch").loss.distill_from == "previous"
    said = refused(plan(folder, teacher={**TEACHER, **was}, stages={**PLAN, "student": {}}))
    assert "student.loss.distill is empty" in said


def test_epochs_that_are_passes_add_up(folder):
    passes = {**PLAN, "student": {**PLAN["student"], "training": {"num_epochs": 2}}}
    assert plan(folder, "training.updates_per_epoch=0", stages=passes).returncode == 0
    longer = config(folder, "scratch-matched").training
    assert (longer.num_epochs, longer.updates_per_epoch) == (10 + 2 + 2, 0)
    for given, other in ((0, 9), (5, 0)):
        done = plan(folder, teacher={**TEACHER, "training": {"updates_per_epoch": given}},
                    stages={**PLAN, "student": {**PLAN["student"], "training": {"updates_per_epoch": other}}})
        assert "updates_per_epoch must be 0 for the teacher and all stages, or for none" in refused(done)
    # A curriculum's updates are no passes.
    done = plan(folder, "training.updates_per_epoch=0", "data.curriculum.updates=7", stages=passes)
    assert "a baseline of whole epochs cannot have the updates of several curricula" in refused(done)


def test_matched_is_by_updates_whatever_the_stages_epochs_are(folder):
    """Epochs of other lengths, and a curriculum before those of every stage."""
    stages = [{**PLAN["stages"][0], "training": {"num_epochs": 3, "updates_per_epoch": 20}}, PLAN["stages"][1]]
    student = {**PLAN["student"], "data": {"curriculum": {"updates": 11}}}
    assert plan(folder, stages={**PLAN, "stages": stages, "student": student}).returncode == 0
    together = (11 + 3 * 20) + (11 + 2 * 9)
    for name, wanted in (("single-matched", together), ("scratch-matched", 7 + 10 * 5 + together)):
        matched = config(folder, name)
        updates = matched.data.curriculum.updates + updates_of(matched)
        assert wanted <= updates < wanted + matched.training.num_epochs


@pytest.mark.parametrize("word", ["model.num_layers=8", "model={num_layers: 8}", "model[num_layers]=8"])
def test_words_of_the_command_line_reach_trainings_but_not_the_students_sizes(folder, word):
    done = plan(folder, word, "optim.clip_norm=3")
    assert done.returncode == 0, done.stderr
    assert config(folder, "stage1").model.num_layers == 3
    assert config(folder, "stage1").optim.clip_norm == config(folder, "scratch").optim.clip_norm == 3


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_model_of_exactly_the_size_that_a_target_allows_meets_it(percent):
    teacher, last = (ModelSize({"encoder": count}, 0, 0, 0) for count in (1_830_000, 18_300 * (100 - percent)))
    assert parse_target(f"{percent}%", teacher) == ("parameters", last.total)
    chain = ProgressiveConfig(target_compression=percent)
    script = load(SCRIPT)
    script.refuse_missed_target(chain, teacher, last, "progressive.yaml")
    larger = ModelSize({"encoder": last.total + 1}, 0, 0, 0)
    with pytest.raises(RecipeError, match="make it smaller, or lower target_compression"):
        script.refuse_missed_target(chain, teacher, larger, "progressive.yaml")


@pytest.mark.parametrize("change,said", [
    ({"stages": []}, "names no stages"),
    ({"target_compression": 90}, "target_compression 90% allows"),
    ({"stages": [{"model": {"num_layers": 2}}, {"model": {"num_layers": 4}}]},
     "stage2 has .* each stage must make the model"),
    ({"stages": [{"model": {"layers": 2}}]}, "stage 1: key 'model.layers'"),
    ({"student": {}}, "nothing would be distilled"),
    ({"target": 90}, "key 'target'"),
    ({"target_compression": 100}, "target_compression is 100.0; it must be between 0 and 100 per cent"),
])
def test_what_is_wrong_is_one_line(folder, change, said):
    done = plan(folder, stages={**PLAN, **change})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert not (folder / "conf" / "plan.json").exists()


def chain(loss=None, **last):
    """PLAN with other distillation losses, and other settings of its last stage."""
    stages = [PLAN["stages"][0], {**PLAN["stages"][1], **last}]
    student = {**PLAN["student"], "loss": {"distill": [{"name": "encoder_mse"}] if loss is None else [loss]}}
    return {**PLAN, "stages": stages, "student": student}


@pytest.mark.parametrize("stages, said", [
    (chain({"name": "kl"}), "stage 1: loss.distill: unknown loss 'kl'; known are"),
    ({**chain({"name": "encoder_mse", "layers": [[3, 9]]}), "single": {"loss": {"distill": [{"name": "encoder_mse"}]}}},
     "stage 1: .*layers .3, 9.: the student has 3 layers, its teacher 4"),
    (chain({"name": "encoder_mse", "layers": [[3, 4]]}), "the last stage's layers of encoder_mse .* say under 'single'"),
    (chain(init={"layers": [1, 2, 3]}), "the last stage's init.layers are numbers of stage1's layers, .* under 'single'"),
    ({**chain(init={"layers": [1, 9]}), "single": {"init": {"layers": "even"}}},
     "stage 2: the student has 2 layers and cannot start from the layers 1 9 of a teacher of 3"),
    ({**PLAN, "single": {"init": {"layers": [1, 9]}}}, "single: .* cannot start from the layers 1 9 of a teacher of 4"),
    ({**PLAN, "single": {"model": {"num_layers": 1}}}, "single.model is .*; it must be left out"),
    ({**chain(model={"num_layers": 1, "ctc_head": False}),
      "student": {**PLAN["student"], "loss": {"distill": [{"name": "encoder_mse"}], "ctc_weight": 0.3}}},
     "stage 2: .*set model.ctc_head=true"),
    (chain(model={"num_layers": 1, "num_features": 40}), "stage 2: model.num_features is 40 in the student and 80"),
    (chain(model={"num_layers": 1, "feedforward_dim": 128}),
     r"stage 2: the student's layer 1 feed_forward1 \(128\) is larger"),
    ({**PLAN, "scratch": {"loss": {"distill": [{"name": "encoder_mse"}]}}}, "scratch: it asks for distillation losses"),
    ({**chain(), "stages": [], "plan": {"stages": 2}, "student": {"model": {"num_layers": 3}}},
     "student.model.num_layers stands beside a plan"),
])
def test_what_would_stop_a_training_is_said_before_the_first_one(folder, stages, said):
    done = plan(folder, stages=stages)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(said, done.stderr.splitlines()[-1]), done.stderr
    assert not (folder / "conf" / "plan.json").exists()


def test_the_baselines_may_have_layers_of_their_own(folder):
    stages = chain({"name": "encoder_mse", "layers": [[2, 3]]}, init={"layers": [1, 3]})
    single = {"init": {"layers": [2, 4]}, "loss": {"distill": [{"name": "encoder_mse", "layers": [[2, 4]]}]}}
    done = plan(folder, stages={**stages, "single": single})
    assert done.returncode == 0, done.stderr
    assert config(folder, "stage2").init.layers == [1, 3] and config(folder, "stage2").loss.distill[0].layers == [[2, 3]]
    for name in ("single", "single-matched"):
        assert config(folder, name).init.layers == [2, 4] and config(folder, name).loss.distill[0].layers == [[2, 4]]
    assert config(folder, "single-matched").training.num_epochs == 4 == 2 * config(folder, "single").training.num_epochs
    # One stage has the baselines' teacher, and so has a loss that is always the first one's.
    one = {**stages, "stages": [{"model": {"num_layers": 2, "feedforward_dim": 32}, "init": {"layers": [1, 3]}}]}
    assert plan(folder, stages=one).returncode == 0
    first = chain({"name": "encoder_mse", "layers": [[2, 4]]})
    first["student"]["loss"]["distill_from"] = "first"
    assert plan(folder, stages=first).returncode == 0


def test_a_plan_counts_what_all_students_change(folder):
    own = {"kernel_size": 3, "subsampling_channels": 16}  # the second is a dimension that this plan leaves alone
    stages = {"plan": {"stages": 2, "target": "60%", "proportions": {"subsampling_channels": 0}},
              "student": {**PLAN["student"], "model": own}}
    done = plan(folder, stages=stages)
    assert done.returncode == 0, done.stderr
    last = config(folder, "stage2").model
    assert last.kernel_size == 3 and last.subsampling_channels == 16
    teacher = load_config(TrainConfig, folder / "teacher.yaml").model
    whole, reached = (measure_model(model, len(Lang(folder / "lang"))).total for model in (teacher, last))
    assert 0.39 * whole < reached <= 0.4 * whole


@pytest.mark.parametrize("words, stage", [(["training.num_epochs=1", "training.avg=1"], {}),
                                          (["training.num_epochs=1"], {"training": {"avg": 1}})])
def test_a_plan_asks_what_is_averaged_of_whole_trainings(folder, words, stage):
    """What the students share may be wrong by itself, and right with what the command line or each stage says."""
    student = {**PLAN["student"], "training": {"updates_per_epoch": 9, "avg": 2}}
    stages = {"plan": {"stages": 2, "target": "60%"}, "student": student, "stages": [stage, stage]}
    done = plan(folder, *words, stages=stages)
    assert done.returncode == 0, done.stderr
    assert config(folder, "stage2").training.avg == config(folder, "stage2").training.num_epochs == 1


def test_a_stage_may_change_any_setting_of_its_training(folder):
    stages = [PLAN["stages"][0], {**PLAN["stages"][1], "optim": {"learning_rate": 3e-4}, "data": {"max_duration": 9},
                                  "loss": {"distill": [{"name": "collapsed_kl", "weight": 2}]}}]
    done = plan(folder, stages={**PLAN, "stages": stages})
    assert done.returncode == 0, done.stderr
    first, last = config(folder, "stage1"), config(folder, "stage2")
    assert [term.name for term in first.loss.distill] == ["encoder_mse"] and first.data.max_duration == 25
    for name in ("stage2", "single", "single-matched"):
        assert config(folder, name).optim.learning_rate == 3e-4 and config(folder, name).data.max_duration == 9
        assert [term.name for term in config(folder, name).loss.distill] == ["collapsed_kl"]
    assert last.optim.warmup_updates == first.optim.warmup_updates
    assert config(folder, "scratch").optim.learning_rate == first.optim.learning_rate


def test_what_a_stage_says_of_its_model_goes_before_the_plan(folder):
    stages = {key: value for key, value in PLAN.items() if key != "stages"}
    models = []
    for own in ([], [{}, {"model": {"joiner_dim": 8}}]):
        done = plan(folder, stages={**stages, "plan": {"stages": 2, "target": "60%"}, "stages": own})
        assert done.returncode == 0, done.stderr
        models.append([config(folder, name).model for name in ("stage1", "stage2")])
    (first, last), changed = models
    assert changed == [first, replace(last, joiner_dim=8)] != [first, last]


def test_sizes_follow_from_a_target(folder):
    stages = {key: value for key, value in PLAN.items() if key not in ("stages", "target_compression")}
    stages.update(plan={"stages": 2, "target": "65%"}, stages=[{}, {"optim": {"learning_rate": 5e-4}}],
                  student={**PLAN["student"], "model": {"dropout": 0.3}})
    done = plan(folder, stages={**stages, "target_compression": 65})
    assert done.returncode == 0, done.stderr
    first, last = config(folder, "stage1"), config(folder, "stage2")
    assert first.model.dropout == last.model.dropout == 0.3
    assert first.model.joiner_dim > last.model.joiner_dim and last.optim.learning_rate == 5e-4
    lines = [line.split() for line in done.stdout.splitlines()]
    sizes = {words[0]: float(words[9].rstrip("%")) for words in lines if words[:1] in (["teacher"], ["stage1"], ["stage2"])}
    assert sizes["teacher"] == 100.0 and 50 < sizes["stage1"] < 60 and 32 < sizes["stage2"] <= 35
    done = plan(folder, stages={**stages, "plan": {"stages": 1, "target": "65%"}})
    assert done.returncode == 1 and "2 stages are listed, plan.stages is 1" in done.stderr


@pytest.mark.parametrize("recipe, settings", SETTINGS)
def test_every_recipes_settings_have_a_plan_for_a_smoke_run(folder, recipe, settings):
    """What stage 6 of `run.sh --smoke --settings NAME` does, and no curriculum that would take as long as a real run's."""
    conf = ROOT / "egs" / recipe / "conf"
    files = {name: path if (path := conf / settings / name).exists() else conf / name
             for name in ("smoke.conf", "teacher.yaml", "progressive.yaml")}
    smoke = [line for line in files["smoke.conf"].read_text().splitlines()
             if not line.startswith(("#", "fbank.", "lang.", "decode."))]
    done = run_script(SCRIPT, "--config", files["progressive.yaml"], "--teacher-config", files["teacher.yaml"], "--lang",
                      folder / "lang", "--output", folder / "conf", *smoke)
    assert done.returncode == 0, done.stderr
    assert load_config(TrainConfig, files["teacher.yaml"], smoke).data.curriculum.updates == 0

    # What students may be in a real run they may be in a smoke run: without the CTC head, for one, that the teacher has.
    chain = yaml.safe_load(files["progressive.yaml"].read_text())
    chain["student"]["model"] = {**chain["student"].get("model", {}), "ctc_head": False}
    chain["student"]["loss"]["ctc_weight"] = 0.0
    (folder / "without.yaml").write_text(yaml.safe_dump(chain))
    done = run_script(SCRIPT, "--config", folder / "without.yaml", "--teacher-config", files["teacher.yaml"], "--lang",
                      folder / "lang", *smoke)
    assert done.returncode == 0, done.stderr
