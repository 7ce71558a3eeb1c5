"""local/ablation.py: arms to configs, and their summaries to tables."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from finished_run import summary
from scripts import refused, run_script

from kdlib.comparison import ablation_table
from kdlib.config import LangConfig, TrainConfig, load_config
from kdlib.lang import train_lang
from kdlib.significance import paired_p_value

SCRIPT = Path(__file__).resolve().parents[1] / "local" / "ablation.py"
TEACHER = {"model": {"num_layers": 4, "encoder_dim": 32, "head_dim": 8, "feedforward_dim": 96}}
PROGRESSIVE = {
    "stages": [{"model": {"num_layers": 3}}, {"model": {"num_layers": 2, "feedforward_dim": 32}}],
    "student": {"loss": {"distill": [{"name": "encoder_mse"}]}, "training": {"num_epochs": 2, "updates_per_epoch": 9}}}
ABLATION = {
    "base": {"stages": [{"model": {"num_layers": 2}}]},
    "arms": {"mixture": None, "rnnt": {"student": {"loss": {"distill": []}}},
             "two": {"stages": [{"model": {"num_layers": 3}}, {"model": {"num_layers": 1}, "training": {"num_epochs": 5}}]}},
    "tables": [{"title": "Losses", "arms": ["rnnt", "mixture"]}, {"title": "Stages", "arms": ["mixture", "two"]}]}


class Recipe:
    def __init__(self, folder: Path, ablation=ABLATION):
        self.folder = folder
        train_lang(["AB BA"], LangConfig(type="char", vocab_size=10), folder / "lang")
        for name, content in (("teacher", TEACHER), ("progressive", PROGRESSIVE), ("ablation", ablation)):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def __call__(self, do, *words):
        at = self.folder
        return run_script(
            SCRIPT, "--do", do, "--config", at / "ablation.yaml", "--exp", at / "exp", "--progressive",
            at / "progressive.yaml", "--teacher-config", at / "teacher.yaml", "--lang", at / "lang", "--recipe", "toy",
            "--command", "egs/toy/run.sh --stage 10", "--teacher", at / "exp" / "teacher" / "decode" / "summary.json",
            "--report", at / "ABLATION.md", *words)

    def config(self, name) -> TrainConfig:
        return load_config(TrainConfig, self.folder / "exp" / "conf" / f"{name}.yaml")

    def decoded(self, model, errors, updates=100):
        words = [10] * len(errors)
        test = {"wer": 100 * sum(errors) / sum(words), "errors": sum(errors), "words": sum(words), "ins": 0, "del": 0,
                "sub": sum(errors), "utterances": len(words), "errors_by_utterance": errors, "words_by_utterance": words}
        path = self.folder / "exp" / model / "decode" / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({
            "model": model, "parameters": 1234, "updates": updates, "epoch": 1, "avg": 1, "method": "greedy_search",
            "max_sym_per_frame": 1, "chunk_ms": 640, "left_context_ms": 0, "test_sets": {"dev": test}}))


def test_an_arm_changes_what_it_names(tmp_path):
    recipe = Recipe(tmp_path)
    done = recipe("plan", "training.seed=7")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exp" / "arms.txt").read_text() == "mixture 1\nrnnt 1\ntwo 2\n"
    mixture, rnnt = recipe.config("mixture-stage1"), recipe.config("rnnt-stage1")
    assert mixture.model.num_layers == rnnt.model.num_layers == 2 and mixture.training.seed == 7
    assert [term.name for term in mixture.loss.distill] == ["encoder_mse"] and rnnt.loss.distill == []
    assert [recipe.config(f"two-stage{k}").model.num_layers for k in (1, 2)] == [3, 1]
    assert [recipe.config(f"two-stage{k}").training.num_epochs for k in (1, 2)] == [2, 5]


def test_arms_of_a_teacher_that_was_a_student_start_from_it(tmp_path):
    recipe = Recipe(tmp_path)
    teacher = {**TEACHER, "init": {"weights": "scratch"}, "loss": {"distill": [{"name": "collapsed_kl"}]}}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    (tmp_path / "progressive.yaml").write_text(yaml.safe_dump({**PROGRESSIVE, "student": {}}))
    assert recipe("plan").returncode == 0
    mixture = recipe.config("mixture-stage1")
    assert mixture.init.weights == "teacher" and mixture.loss.distill == []


def test_tables_compare_with_the_first_row(tmp_path):
    recipe = Recipe(tmp_path)
    recipe("plan")
    errors = {"mixture": [1, 0, 2, 1] * 5, "rnnt": [2, 1, 2, 3] * 5, "two": [1, 0, 2, 2] * 5}
    for model in ("mixture-stage1", "rnnt-stage1", "two-stage2"):
        recipe.decoded(model, errors[model.split("-")[0]])
    recipe.decoded("two-stage1", [9] * 20, updates=50)
    done = recipe("table")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "run stage 5 again" in done.stderr
    recipe.decoded("teacher", [1, 0] * 10, updates=3000)
    done = recipe("table")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "ABLATION.md").read_text()
    assert "Their teacher: 1,234 parameters, 3,000 updates, WER dev 5.00.\n" in report
    p = paired_p_value(errors["two"], errors["mixture"], [10] * 20)
    rows = {line.split("|")[1].strip(): line for line in report.splitlines() if line.startswith("|")}
    assert "| 1,234 |" in rows["two"].replace("  ", " ") and "150" in rows["two"]
    assert f"12.50 (+2.50, p {p:.3f})" in rows["two"]
    assert report.index("## Losses") < report.index("20.00") < report.index("10.00 (-10.00, p <0.0002)")
    assert "`egs/toy/run.sh --stage 10`" in report and "Losses" in done.stdout


def test_delays_stand_beside_the_error_rates_where_all_arms_have_them():
    arms = {name: summary(name) for name in ("stage1", "stage2")}
    tests = [test for arm in arms.values() for test in arm["test_sets"].values()]
    for late, test in enumerate(tests):
        test["latency"] = {"words": 1900, "delay_ms": 100.0 + late, "delay_p90_ms": 200.4, "first_token_ms": 1011.6}
    header, rows = ablation_table(arms)
    assert header == ["Arm", "Params", "Updates", "WER test-clean", "delay / 90%", "WER test-other", "delay / 90%"]
    assert [row[4::2] for row in rows] == [["100 / 200", "101 / 200"], ["102 / 200", "103 / 200"]]
    del tests[3]["latency"]
    assert "delay / 90%" not in ablation_table(arms)[0]


def test_the_report_says_when_and_on_what_the_arms_were_trained(tmp_path):
    """Not where stage 10 wrote it."""
    recipe = Recipe(tmp_path)
    recipe("plan")
    for model in ("mixture-stage1", "rnnt-stage1", "two-stage1", "two-stage2", "teacher"):
        recipe.decoded(model, [1, 0, 2])
        os.utime(tmp_path / "exp" / model / "decode" / "summary.json", (0, 86400 * (model == "two-stage1")))
    assert recipe("table").returncode == 0
    report = (tmp_path / "ABLATION.md").read_text()
    assert "\n\n- Date of the run: 1970-01-02\n\nTheir teacher" in report and "achine" not in report
    for model, cores in (("mixture-stage1", 8), ("rnnt-stage1", 8), ("two-stage2", 1)):
        (tmp_path / "exp" / model / "done.json").write_text(json.dumps(
            {"device": "cpu", "machine": {"processor": "Abacus", "cores": cores}, "processes": 2}))
    assert recipe("table").returncode == 0
    assert ("- Trained on cpu of Abacus, 8 cores, 2 processes; cpu of Abacus, 1 core, 2 processes\n\nTheir teacher"
            in (tmp_path / "ABLATION.md").read_text())
    assert f"`egs/toy/run.sh --stage 10`, with `{tmp_path.name}/ablation.yaml`; every" in report
    (tmp_path / "exp" / "two-stage2" / "done.json").write_text("{")
    assert "two-stage2/done.json is not valid JSON" in refused(recipe("table"))


@pytest.mark.parametrize("change, said", [
    ({"tables": [{"title": "Losses", "arms": ["mixture", "nothing"]}]}, "'Losses' compares nothing: .* stand under arms"),
    ({"tables": [{"title": "Losses"}]}, "'Losses' compares nothing"),
    ({"arms": {"../up": None}, "tables": []}, r"arm '../up': a name is made of"),
    ({"arms": {"a": {"students": {}}}, "tables": []}, "ablation.yaml, a: key 'students'"),
    ({"arms": {"a": {"student": {"loss": {"distil": []}}}}, "tables": []}, "ablation.yaml, a, stage 1: key 'loss.distil'"),
    ({"arm": {}}, "key 'arm'"),
    ({"arms": {}, "tables": []}, "ablation.yaml: it names no arms"),
])
def test_what_is_wrong_is_one_line(tmp_path, change, said):
    done = Recipe(tmp_path, {**ABLATION, **change})("plan")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(said, done.stderr), done.stderr


def test_an_arm_that_was_not_decoded(tmp_path):
    recipe = Recipe(tmp_path)
    recipe("plan")
    recipe.decoded("mixture-stage1", [1])
    done = recipe("table")
    assert done.returncode == 1 and "rnnt-stage1/decode/summary.json is missing: run stage 10 again" in done.stderr


def test_arms_that_cannot_be_compared(tmp_path):
    recipe = Recipe(tmp_path)
    recipe("plan")
    for model in ("mixture-stage1", "rnnt-stage1", "two-stage1", "two-stage2", "teacher"):
        recipe.decoded(model, [1, 0, 2])
    assert recipe("table").returncode == 0
    other = tmp_path / "exp" / "rnnt-stage1" / "decode" / "summary.json"
    summary = json.loads(other.read_text())
    for tests in ({"test": summary["test_sets"]["dev"]},
                  {"dev": {**summary["test_sets"]["dev"], "words_by_utterance": [20, 5, 5]}}):
        other.write_text(json.dumps({**summary, "test_sets": tests}))
        assert refused(recipe("table")) == ("error: arm 'rnnt' was decoded on other test data than 'mixture': run stage 10 "
                                            "again")
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({**ABLATION, "arms": {**ABLATION["arms"], "new": {}}}))
    assert "arms.txt knows no arm 'new' of" in refused(recipe("table"))
