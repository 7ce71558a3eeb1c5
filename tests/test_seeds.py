"""local/seeds.py on made-up runs of several seeds: what they have together, and which runs do not fit."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from finished_run import WERS, Run, stage8, summary
from scipy import stats
from scripts import refused, run_script

from kdlib.errors import RecipeError
from kdlib.seeds import pool_seeds, seed_differences_table, seeds_table

SEEDS = Path(__file__).resolve().parents[1] / "local" / "seeds.py"


def finished_pair(folder):
    """Two finished runs, the second better in one model."""
    run, second = (Run(folder / seed / "toy") for seed in ("42", "43"))
    better = summary("stage3")["test_sets"]
    better["test-clean"].update(wer=6.0, errors=120, errors_by_utterance=[1] * 120 + [0] * 280, sub=117)
    second.write("stage3", test_sets=better)
    finish(run, second)
    return run, second


def test_seeds_are_pooled(tmp_path):
    """Two runs that differ in one model: its two rates, their mean and spread, and p-values of both together."""
    run, second = finished_pair(tmp_path)
    done = run_script(SEEDS, run.folder / "exp", second.folder / "exp", "--output", tmp_path / "seeds.md")
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in (tmp_path / "seeds.md").read_text().splitlines() if line.startswith("|")}
    stage3 = rows["stage3"]
    assert stage3[2] == "1,000" and stage3[3:6] == ["7.50", "2.12", "9.00 6.00"]
    assert stage3[6] == "+25.0%" and stage3[8] == ""
    assert rows["teacher"][3:6] == ["6.00", "0.00", "6.00 6.00"] and rows["teacher"][7] == ""
    assert rows["scratch"][7] == rows["scratch"][8] == "<0.0002" and "2 seeds" in done.stdout
    assert list(rows)[-5:] == [f"stage3 - {other}" for other in ("teacher", *stage8.BASELINES)]
    against = rows["stage3 - teacher"]
    assert against[:2] == ["+1.50", "+3.00 +0.00"] and against[3] == f"{stats.ttest_1samp([3.0, 0.0], 0).pvalue:.3f}"
    report = (tmp_path / "seeds.md").read_text()
    assert report.startswith("# commands from 2 seeds\n") and \
        report.count("- `egs/commands/run.sh`, with `toy/progressive.yaml`: ") == 2
    # A kept copy does as well as the folder, and can be kept: it is small.
    kept = shutil.move(summaries(second), tmp_path / "kept.json")
    shutil.rmtree(second.folder)
    run_script(SEEDS, run.folder / "exp", kept, "--output", tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == report and kept.stat().st_size < 40_000


def test_runs_that_differ_in_more_than_the_seed_say_so(tmp_path):
    run, second = finished_pair(tmp_path)

    def note(*words):
        for each, more in zip((run, second), words):
            whole = json.loads(summaries(each).read_text())
            summaries(each).write_text(json.dumps({**whole, "command": f"egs/toy/run.sh {more}".strip()}))
        printed = run_script(SEEDS, run.folder / "exp", second.folder / "exp", "--output", tmp_path / "seeds.md").stdout
        lines = [line for line in printed.splitlines() if "more than the seed" in line]
        assert [f"- {line}" for line in lines] == [
            line for line in (tmp_path / "seeds.md").read_text().splitlines() if "more than the seed" in line]
        return lines

    assert note("", "--exp DIR training.seed=43") == []
    assert note("--hours 20 --data DIR data.gain.range=[-20,10]",
                "--exp DIR --data DIR --hours 20 training.seed=43 data.gain.range=[-20,10]") == []
    assert note("--hours 20", "--hours 8 --exp DIR training.seed=43 optim.learning_rate=1e-5") == [
        "These runs differ in more than the seed: not all of them have `--hours 20`, `--hours 8`, `optim.learning_rate=1e-5`."]
    assert note("--smoke training.seed=42", "--smoke training.seed=43") == []


def finish(*runs):
    for run in runs:
        run.results()
        (run.folder / "out").rename(run.folder / "exp" / "results")


def summaries(run):
    return run.folder / "exp" / "results" / "summaries.json"


def two_runs():
    """The summaries of two seeds; of the second the teacher makes ten errors less."""
    runs = [{model: summary(model) for model in WERS} for _ in range(2)]
    test = runs[1]["teacher"]["test_sets"]["test-clean"]
    test.update(wer=5.5, errors=110, errors_by_utterance=[1] * 110 + [0] * 290)
    return runs


def test_what_is_relative_is_so_to_the_teacher_of_all_seeds():
    header, rows = seeds_table(pool_seeds(two_runs()))
    cells = {row[0]: dict(zip(header[:10], row)) for row in rows}
    assert cells["teacher"]["WER test-clean"] == "5.75"
    assert cells["stage3"]["rel."] == f"{100 * (9.0 / 5.75 - 1):+.1f}%"


def test_seeds_that_differ_by_the_same_errors_have_no_p():
    """Though the rates of their summaries are rounded, so that the differences of these are not the same."""
    runs = [{model: summary(model) for model in WERS} for _ in range(3)]
    for run, (teacher, last) in zip(runs, ((60, 55), (71, 66), (88, 83))):
        for model, errors in (("teacher", teacher), ("stage3", last)):
            test = run[model]["test_sets"]["test-clean"]
            test.update(wer=round(100 * errors / 2403, 4), errors=errors, words=2403, words_by_utterance=[2403, *[0] * 399],
                        errors_by_utterance=[errors, *[0] * 399])
        for model in set(WERS) - {"teacher", "stage3"}:
            run[model]["test_sets"]["test-clean"].update(words=2403, words_by_utterance=[2403, *[0] * 399])
    _, rows = seed_differences_table(pool_seeds(runs))
    assert rows[0][:3] == ["stage3 - teacher", "-0.21", "-0.21 -0.21 -0.21"] and rows[0][4] == ""


def test_one_run_has_no_spread():
    header, rows = seeds_table(pool_seeds(two_runs()[:1]))
    assert all(row[header.index("sd")] == "" and "nan" not in row for row in rows)


def test_columns_are_the_teachers_test_sets_whatever_their_order_in_other_models():
    runs = two_runs()
    wanted = seeds_table(pool_seeds(runs)), seed_differences_table(pool_seeds(runs))
    sets = runs[0]["stage3"]["test_sets"]
    assert len(sets) > 1
    runs[0]["stage3"]["test_sets"] = {name: sets[name] for name in reversed(sets)}
    assert (seeds_table(pool_seeds(runs)), seed_differences_table(pool_seeds(runs))) == wanted


def test_takes_and_characters_are_pooled_where_they_are():
    runs = two_runs()
    for run in runs:
        for one in run.values():
            clean, other = one["test_sets"].values()
            clean.update(errors_by_take=[clean["errors"] - 7, 7], words_by_take=[1500, 500])
            other["characters"] = dict(other)
            other.update(wer=80.0, errors=320, words=400, words_by_utterance=[1] * 400,
                         errors_by_utterance=[1] * 320 + [0] * 80)
    clean, other = pool_seeds(runs)["teacher"]["test_sets"].values()
    assert clean == {"rate": "WER", "wers": [6.0, 5.5], "errors_by_take": [120 + 110 - 14, 14],
                     "words_by_take": [3000, 1000]}
    assert (other["rate"], other["wers"], sum(other["words_by_utterance"])) == ("CER", [18.0, 18.0], 4800)


def test_a_few_updates_more_are_no_other_training():
    runs = two_runs()
    runs[1]["stage1"]["updates"] = 812  # of 800
    pool_seeds(runs)
    runs[1]["stage1"]["updates"] = 820
    with pytest.raises(RecipeError, match="stage1 was trained for 820 updates in run 2 and for 800 in the first one"):
        pool_seeds(runs)


def test_trainings_are_told_apart_by_their_weights():
    """Runs that learned nothing make the same errors."""
    runs = [{model: summary(model, training={"weights": f"{seed} {model}"}) for model in WERS} for seed in (42, 43)]
    assert pool_seeds(runs)["teacher"]["test_sets"]["test-clean"]["wers"] == [6.0, 6.0]
    for model in WERS:
        runs[1][model]["training"]["weights"] = f"42 {model}"
    with pytest.raises(RecipeError, match="runs 1 and 2 do not differ in any model: they are one run, or two of one seed: "
                                          "give runs of one recipe that differ in training.seed alone"):
        pool_seeds(runs)
    del runs[0]["stage1"]["training"]  # of a version that wrote no digests
    with pytest.raises(RecipeError, match="runs 1 and 2 do not differ in any model"):
        pool_seeds(runs)
    runs[1]["stage2"]["training"]["weights"] = "43"
    pool_seeds(runs)


def test_models_that_are_averaged_otherwise_are_not_pooled():
    runs = two_runs()
    runs[1]["stage1"]["avg"] = 1
    with pytest.raises(RecipeError, match="stage1 is the mean of 1 epoch in run 2 and of 3 epochs in the first one"):
        pool_seeds(runs)


@pytest.mark.parametrize("key, other", [("recipe", "fsdd"), ("config", "conf/tiny/progressive.yaml")])
def test_runs_of_other_recipes_or_settings_are_not_pooled(tmp_path, key, other):
    kept = []
    for seed in (42, 43):
        whole = json.loads((SEEDS.parents[1] / "egs" / "voice_commands" / "seeds" / f"{seed}.json").read_text())
        kept.append(tmp_path / f"{seed}.json")
        kept[-1].write_text(json.dumps({**whole, key: other} if seed == 43 else whole))
    said = refused(run_script(SEEDS, *kept))
    assert said == (f"error: {kept[1]} is a run of the {key} {other}, {kept[0]} of {whole[key]}: seeds are pooled of runs that "
                    "differ in nothing else")


def test_runs_of_other_models_or_test_sets_are_not_pooled():
    runs = two_runs()
    less = {model: one for model, one in runs[1].items() if model != "stage2"}
    with pytest.raises(RecipeError, match="run 2 holds the models teacher, stage1, stage3, .*; the first one teacher, st"):
        pool_seeds([runs[0], less])
    fewer = copy.deepcopy(runs[1])
    del fewer["single"]["test_sets"]["test-other"]
    with pytest.raises(RecipeError, match="single was decoded on other test sets in run 2 than in the first one"):
        pool_seeds([runs[0], fewer])


def test_runs_that_do_not_fit_are_named(tmp_path):
    run, second = (Run(tmp_path / seed / "toy") for seed in ("42", "43"))
    finish(run, second)
    whole = json.loads(summaries(second).read_text())

    def pooled_with(model, **changes):
        """What is said of both runs after these changes of one model in the second."""
        changed = {**whole, "models": {**whole["models"], model: {**whole["models"][model], **changes}}}
        summaries(second).write_text(json.dumps(changed))
        done = run_script(SEEDS, run.folder / "exp", second.folder / "exp")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        return done.stderr

    assert "stage2 has 7 parameters in run 2" in pooled_with("stage2", parameters=7)
    other = summary("stage1")["test_sets"]
    other["test-other"]["words_by_utterance"] = [5, 7, *[6] * 398]
    assert "stage1 was decoded on another test-other in run 2" in pooled_with("stage1", test_sets=other)
    assert "stage1 was trained for 9,999 updates in run 2" in pooled_with("stage1", updates=9999)
    assert "decoded otherwise in run 2 than in the first one: method" in pooled_with("stage1", method="beam_search")
    assert "decoded otherwise in run 2 than in the first one: beam 8 instead of None" in pooled_with("stage1", beam=8)
    assert "runs 1 and 2 do not differ in any model" in pooled_with("stage1")
    other["test-other"]["errors"] += 1
    assert "summaries.json, stage1: has no errors_by_utterance that add up" in pooled_with("stage1", test_sets=other)


def test_files_that_are_no_finished_runs_are_named(tmp_path):
    run = Run(tmp_path)
    finish(run)
    whole = json.loads(summaries(run).read_text())
    other = {**whole["models"], "stage1": {**whole["models"]["stage1"], "training": []}}
    for content, said in (("{", "is not valid JSON"), ("{}", "says nothing of recipe, command"),
                          (json.dumps({**whole, "models": []}), "is not stage 8's"),
                          (json.dumps({**whole, "models": other}), "describes no training of stage1"),
                          (json.dumps({**whole, "models": {"teacher": whole["models"]["teacher"]}}), "is not stage 8's")):
        summaries(run).write_text(content)
        done = run_script(SEEDS, run.folder / "exp")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"summaries.json {said}" in done.stderr and "finish that run with the call of run.sh, its" in done.stderr
    summaries(run).write_text(json.dumps({**whole, "machine": {}}))
    done = run_script(SEEDS, run.folder / "exp", "--output", tmp_path / "report.md")
    assert done.returncode == 1 and "what run 1 says of its machine and software is not stage 8's" in done.stderr
    done = run_script(SEEDS, tmp_path / "none")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "none is missing: finish that run with the call of run.sh, its options" in done.stderr
