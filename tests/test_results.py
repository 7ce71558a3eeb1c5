"""Stage 8 on made-up runs: the figures that go in come out, and what is unfair, missing or foreign is said."""

import json
import re
import struct

import pytest
from finished_run import SCRIPT, UPDATES, WERS, Run, stage8, summary
from hypothesis import given
from hypothesis import strategies as st
from scripts import run_script

from kdlib.config import TrainConfig, config_to_dict, merge_config, save_config
from kdlib.errors import RecipeError
from kdlib.files import content_digest, write_json
from kdlib.report import format_duration, format_relative, markdown_table, plain_table, relative_change


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_every_figure_of_the_run_comes_out(run):
    results = run.results()
    assert [row["model"] for row in results["rows"]] == list(WERS)
    assert results["test_sets"] == ["test-clean", "test-other"]
    for row in results["rows"]:
        made = summary(row["model"])
        for key in ("parameters", "updates", "epoch", "avg", "method", "max_sym_per_frame", "chunk_ms"):
            assert row[key] == made[key]
        assert row["training"]["seconds"] == 365.2 and row["decode_seconds"] == 31.4
        for name, test in made["test_sets"].items():
            test = {key: value for key, value in test.items() if not key.endswith("by_utterance")}
            assert {key: row["test_sets"][name][key] for key in test} == test
            low, high = row["test_sets"][name]["interval"]
            assert low <= test["wer"] <= high
    by_model = {row["model"]: row for row in results["rows"]}
    assert by_model["stage3"]["percent_of_teacher"] == pytest.approx(100 * 660 / 1700)
    assert by_model["stage3"]["test_sets"]["test-clean"]["relative"] == pytest.approx(50.0)
    assert by_model["stage2"]["test_sets"]["test-other"]["relative"] == pytest.approx(100 * (410 - 432) / 432)
    assert results["reached_compression"] == pytest.approx(100 - 100 * 660 / 1700)
    assert results["software"] == {"torch": ["2.11.0"], "k2": [], "rnnt_backend": ["native"], "device": []}
    assert results["stage_updates"] == 2600
    assert results["warnings"] == []
    assert [row["other"] for row in results["differences"]] == ["teacher", *stage8.BASELINES]


def test_published_figures_end_the_report(run):
    (run.folder / "published.md").write_text("## Published figures\n\nNone.\n")
    stage8.main([*run.arguments(), "--published", str(run.folder / "published.md")])
    assert (run.folder / "RESULTS.md").read_text().endswith("seeds.\n\n## Published figures\n\nNone.\n")


def test_markdown_table_has_one_row_a_model(run, capsys):
    run.results()
    lines = (run.folder / "out" / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == ["Model", "Params", "% of teacher", "Updates", "WER test-clean", "95%", "rel.", "p",
                        "WER test-other", "95%", "rel.", "p"]

    def without_intervals(row):
        return row[:5] + row[6:9] + row[10:]

    assert without_intervals(cells[2]) == ["teacher", "1,700,000", "100.0", "2,400", "6.00", "0.0%", "", "18.00", "0.0%",
                                           ""]
    assert without_intervals(cells[5]) == ["stage3", "660,000", "38.8", "1,000", "9.00", "+50.0%", "<0.0002", "22.50",
                                           "+25.0%", "<0.0002"]
    assert cells[6][8] == "61.50" and cells[4][10:] == ["-5.1%", "<0.0002"] and cells[3][10:] == ["0.0%", "1.000"]
    low, high = map(float, cells[2][5].split("-"))
    assert 5.0 < low < 6.0 < high < 7.0
    # The second table: the last stage beside the teacher and each baseline.
    assert [row[0] for row in cells[2 + len(WERS):9 + len(WERS)]] == [
        "Compared", cells[1 + len(WERS) + 2][0], "stage3 - teacher", "stage3 - scratch", "stage3 - scratch-matched",
        "stage3 - single", "stage3 - single-matched"]
    assert cells[8 + len(WERS)][1:] == ["-0.75", "<0.0002", "-1.50", "<0.0002"] and cells[4 + len(WERS)][1] == "+3.00"
    # The third: insertions, deletions and substitutions.
    assert cells[9 + len(WERS)][:3] == ["Model", "insertions test-clean", "deletions test-clean"]
    assert cells[-len(WERS)] == ["teacher", "1", "2", "117", "1", "2", "429"] and cells[-1][0] == "single-matched"
    text = "\n".join(lines)
    assert "greedy_search, at most 1 symbol a frame, chunks of 320 ms with 1280 ms of left context" in text
    assert "test-clean 2,000 in 400 utterances" in text
    assert "61.1% smaller than the teacher (target 60%)" in text
    assert "Warning" not in text
    printed = capsys.readouterr().out
    for model in WERS:
        assert any(line.split()[:1] == [model] and len(line.split()) in (10, 12) for line in printed.splitlines())


def test_the_machine_is_that_of_the_trainings(run):
    done = json.loads((run.folder / "exp" / "teacher" / "done.json").read_text())
    machine = {"processor": "Abacus", "cores": 3, "memory_gib": 2.5, "system": "Linux wood", "python": "3.11"}
    done.update(machine=machine, device="cpu", processes=2, precision="bfloat16")
    (run.folder / "exp" / "teacher" / "done.json").write_text(json.dumps(done))
    results = run.results()
    text = (run.folder / "RESULTS.md").read_text()
    assert results["machine"] == machine and "- Machine: Abacus, 3 cores, 2.5 GiB of memory; Linux wood, Python 3.11\n" in text
    assert "- Trained on cpu of Abacus, 3 cores, 2 processes, in bfloat16\n" in text


def test_report_names_the_run_and_no_place_on_this_machine(run):
    results = run.results()
    text = (run.folder / "RESULTS.md").read_text()
    assert text.startswith("# Results of commands\n")
    assert "`egs/commands/run.sh`" in text
    assert f"Date of the run: {results['date']}" in text
    assert results["machine"]["processor"] in text
    assert "torch 2.11.0; RNN-T backend native" in text
    assert (run.folder / "out" / "table.md").read_text() in text
    assert "6 min 05 s" in text
    out = run.folder / "out"
    for written in (run.folder / "RESULTS.md", out / "table.md", out / "results.json", out / "summaries.json"):
        assert str(run.folder.parent) not in written.read_text()


def test_changes_are_those_of_the_counts(run):
    """48 errors beside 46 are 4.348% more, their rates as summaries have them, rounded, 4.36%; of 1,000 words 4.80 and 4.60."""
    for model in WERS:
        errors, made = {"teacher": 46, "stage3": 48}.get(model, 60), summary(model)
        made["test_sets"]["test-clean"].update(
            wer=round(100 * errors / 4800, 4), errors=errors, words=4800, words_by_utterance=[12] * 400,
            errors_by_utterance=[1] * errors + [0] * (400 - errors))
        run.write(model, test_sets=made["test_sets"])
    results = run.results()
    row = next(row for row in results["rows"] if row["model"] == "stage3")["test_sets"]["test-clean"]
    assert row["relative"] == pytest.approx(100 * 2 / 46, abs=1e-9)
    beside = next(found for found in results["differences"] if found["other"] == "teacher")["test_sets"]["test-clean"]
    assert beside["difference"] == pytest.approx(100 * 2 / 4800, abs=1e-9)


def test_test_sets_in_characters_are_compared_by_these(run, capsys):
    """The figures over characters of one test set: its CER leads and its WER stands behind it; the other has its WER."""
    for model in WERS:
        made = summary(model)
        test = made["test_sets"]["test-clean"]
        test["characters"] = dict(test, ins=7, sub=test["sub"] - 6)
        test.update(wer=80.0, errors=320, words=400, words_by_utterance=[1] * 400, errors_by_utterance=[1] * 320 + [0] * 80)
        run.write(model, test_sets=made["test_sets"])
    results = run.results()
    row = next(row for row in results["rows"] if row["model"] == "stage3")["test_sets"]["test-clean"]
    assert (row["wer"], row["characters"]["wer"], row["relative"]) == (80.0, 9.0, pytest.approx(50.0))
    assert row["interval"][0] < 9.0 < row["interval"][1]
    lines = (run.folder / "out" / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0][4:] == ["CER test-clean", "95%", "rel.", "p", "WER test-clean", "WER test-other", "95%", "rel.", "p"]
    assert cells[5][4] == "9.00" and cells[5][6:10] == ["+50.0%", "<0.0002", "80.00", "22.50"]
    assert ["stage3 - single-matched", "-0.75", "<0.0002", "-1.50", "<0.0002"] in cells
    assert ["teacher", "7", "2", "111", "1", "2", "429"] in cells
    report = (run.folder / "RESULTS.md").read_text()
    assert "## Error rate and size" in report and "CER counts errors over characters" in report
    printed = capsys.readouterr().out
    assert "CER and WER in per cent" in printed
    assert "Reference words or characters: test-clean 2,000 in 400 utterances" in printed
    foreign = summary("single")["test_sets"]
    foreign["test-clean"]["characters"] = {**foreign["test-clean"], "errors": 1}
    run.write("single", test_sets=foreign)
    with pytest.raises(RecipeError, match="add up to the errors of test set test-clean"):
        run.results()


def test_the_exported_files_stand_in_the_report_once_they_are_there(run):
    assert "exports" in run.results() and "Exported files" not in (run.folder / "RESULTS.md").read_text()
    for model in ("teacher", "stage3"):
        folder = run.folder / "exp" / "export" / model
        for name in ("decode", "decode-int8"):
            (folder / name).mkdir(parents=True)
            (folder / name / "summary.json").write_text(json.dumps(summary(model, real_time_factor=0.0312, digest=model)))
        done = run.folder / "exp" / model / "done.json"
        done.write_text(json.dumps({**json.loads(done.read_text()), "weights": f"weights of {model}"}))
        (folder / "model.json").write_text(json.dumps({"float32_bytes": 2_650_123, "int8_bytes": 812_345, "digest": model,
                                                       "weights": f"weights of {model}"}))
    rows = run.results()["exports"]
    assert [(row["model"], row["files"]) for row in rows] == [
        (model, kind) for model in ("teacher", "stage3") for kind in ("float32", "int8")]
    written = (run.folder / "RESULTS.md").read_text().split("## Exported files")[1].split("##")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines() if line.startswith("|")]
    assert lines[0] == ["Model", "Files", "Bytes", "WER test-clean", "WER test-other", "Real-time factor"]
    assert lines[-1] == ["stage3", "int8", "812,345", "9.00", "22.50", "0.031"]
    # Trained anew since, exported anew since, or of other words: no figure of this model's.
    done.write_text(done.read_text().replace("weights of stage3", "others"))
    earlier = run.folder / "exp" / "export" / "teacher" / "decode" / "summary.json"
    earlier.write_text(json.dumps(summary("teacher", real_time_factor=0.0312, digest="before")))
    assert [(row["model"], row["files"]) for row in run.results()["exports"]] == [("teacher", "int8")]


OTHER_WORDS = {"test_sets": {"test-clean": summary("stage3")["test_sets"]["test-clean"]}}


@pytest.mark.parametrize("other, said", [({"avg": 1}, "avg 1 instead of 3"),
                                         ({"chunk_ms": 1280.0}, "chunk_ms 1280.0 instead of 320.0"),
                                         (OTHER_WORDS, "other test data than {}")])
def test_exported_files_of_another_epoch_or_chunk_are_left_out(run, capsys, other, said):
    """They would stand under the name, or beside the latency, of a model that they are not."""
    folder = run.folder / "exp" / "export" / "stage3"
    (folder / "decode").mkdir(parents=True)
    (folder / "decode" / "summary.json").write_text(json.dumps(summary("stage3", real_time_factor=0.03, **other)))
    (folder / "model.json").write_text("{}")
    assert run.results()["exports"] == []
    said = said.format(run.folder / "exp" / "stage3")
    said = f"left out {folder / 'decode' / 'summary.json'}, which is of {said}: export it again with stage 9"
    assert said in capsys.readouterr().out


def test_takes_that_utterances_share_are_drawn_in_their_place(run, tmp_path, capsys):
    """The same 9.00 and 9.75 per cent: 15 errors more, each of an utterance of its own, but all of one take."""
    independent = run.results()["differences"][-1]["test_sets"]["test-clean"]["p"]
    for model in WERS:
        made = summary(model)
        test = made["test_sets"]["test-clean"]
        more = 15 * (model == "single-matched")
        test["errors_by_take"] = [test["errors"] - 60 - more, more, *[6] * 10]
        test["words_by_take"] = [1000, 400, *[60] * 10]
        run.write(model, test_sets=made["test_sets"])
    difference = run.results()["differences"][-1]["test_sets"]["test-clean"]
    assert (difference["difference"], independent) == (pytest.approx(-0.75), pytest.approx(0.0002, abs=1e-4))
    assert difference["p"] == 1.0  # one take is one coin toss
    assert "takes (recorded words, which several utterances share)" in capsys.readouterr().out
    results = json.loads((run.folder / "out" / "results.json").read_text())
    assert {row["test_sets"]["test-clean"]["drawn"] for row in results["rows"]} == {"takes"}
    assert not any("by_take" in key for row in results["rows"] for key in row["test_sets"]["test-clean"])
    run.write("single", test_sets=summary("single")["test_sets"])
    with pytest.raises(RecipeError, match="not decoded on the same utterances: decode again"):
        run.results()


def test_latency_is_shown_where_every_model_has_it(run, capsys):
    for place, model in enumerate(WERS):
        timed = summary(model)
        for late, test in enumerate(timed["test_sets"].values()):
            test["latency"] = {"words": 1900, "delay_ms": 100.0 + place, "delay_p90_ms": 200.4 + late, "first_token_ms": 1011.6}
        run.write(model, test_sets=timed["test_sets"])
    run.results()
    report = (run.folder / "RESULTS.md").read_text()
    lines = report.partition("## Latency")[2].partition("## Time")[0].split("\n")
    cells = [cell.strip() for cell in next(line for line in lines if line.startswith("| stage3")).split("|")[1:-1]]
    assert cells == ["stage3", "103", "200", "1012", "103", "201", "1012"]
    assert "chunk of 320 ms" in report and "first token" in capsys.readouterr().out
    for model in WERS:
        run.write(model, chunk_ms=0.0, left_context_ms=-40.0, test_sets=json.loads(run.path(model).read_text())["test_sets"])
    run.results()
    report = (run.folder / "RESULTS.md").read_text()
    assert "symbol a frame, each utterance as a whole.\n" in report and "the wait until the utterance has ended.\n" in report
    for model in WERS:
        run.write(model, left_context_ms=-40.0)
    run.results()
    report = (run.folder / "RESULTS.md").read_text()
    assert "symbol a frame, chunks of 320 ms with all that came before.\n" in report
    assert "## Latency" not in report


def test_plot_is_an_image(run):
    run.results()
    image = (run.folder / "out" / "wer_vs_size.png").read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and image[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", image[16:24])
    assert 800 <= width <= 2400 and 400 <= height <= 1600
    assert 10_000 < len(image) < 1_000_000


def test_running_twice_gives_the_same_files(run):
    def contents():
        run.results()
        files = [run.folder / "RESULTS.md", *sorted((run.folder / "out").iterdir())]
        return [path.read_bytes() for path in files]

    assert contents() == contents()


def test_one_stage_one_test_set_and_a_faultless_teacher(run):
    def only(model, wer):
        errors = round(20 * wer)
        test = dict(summary(model)["test_sets"]["test-clean"], wer=wer, errors=errors,
                    errors_by_utterance=[1] * errors + [0] * (400 - errors))
        return {"test_sets": {"test": test}, "parameters": 1000 if model == "teacher" else 400,
                "updates": 20 if model == "scratch-matched" else 10}

    for model in ("teacher", "stage1", *stage8.BASELINES):
        run.write(model, **only(model, 0.0 if model == "teacher" else 1.5))
    (run.folder / "exp" / "conf" / "plan.json").write_text('{"stages": 1}')
    results = run.results()
    assert [row["model"] for row in results["rows"]] == ["teacher", "stage1", *stage8.BASELINES]
    assert all(row["test_sets"]["test"]["relative"] is None for row in results["rows"])
    assert results["reached_compression"] == pytest.approx(60.0) and results["warnings"] == []
    table = (run.folder / "out" / "table.md").read_text().splitlines()
    teacher, student = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:4])
    assert student == ["stage1", "400", "40.0", "10", "1.50", "1.0-2.0", "-", "<0.0002"]
    assert teacher[4:] == ["0.00", "", "-", ""]  # nothing that could be drawn otherwise


@pytest.mark.parametrize("model, changes, words", [
    ("single-matched", {"updates": 2540}, "single-matched had 2,540 updates and stage1 to stage3 together had 2,600"),
    ("single-matched", {"updates": 2660}, "single-matched had 2,660 updates and stage1 to stage3 together had 2,600"),
    ("scratch-matched", {"updates": 2600}, "scratch-matched had 2,600 updates and teacher to stage3 together had 5,000"),
    ("scratch", {"parameters": 659_999}, "scratch has 659,999 parameters and stage3 has 660,000"),
    ("stage2", {"max_sym_per_frame": 10}, "stage2 was decoded otherwise than the teacher: max_sym_per_frame 10"),
    ("stage2", {"beam": 4}, "stage2 was decoded otherwise than the teacher: beam 4 instead of None"),
])
def test_unfair_comparisons_are_said(run, capsys, model, changes, words):
    run.write(model, **changes)
    assert any(words in warning for warning in run.results()["warnings"])
    assert f"warning: {words}" in capsys.readouterr().out
    for written in (run.folder / "RESULTS.md", run.folder / "out" / "table.md"):
        assert f"**Warning:** {words}" in written.read_text()
        said = re.findall(r"(\S+) has as many as", written.read_text())
        assert said == [matched for matched in ("scratch-matched", "single-matched") if (matched, "updates") not in
                        ((model, key) for key in changes)]


def test_updates_that_were_left_out_are_said(run):
    record = run.folder / "exp" / "stage2" / "done.json"
    for bad in (0, 3):
        record.write_text(json.dumps({**json.loads(record.read_text()), "bad_updates": bad}))
        said = f"stage2 left out 3 of its {UPDATES['stage2']:,} updates, whose gradients were not finite."
        assert run.results()["warnings"] == ([said] if bad else [])


def test_a_few_updates_more_or_less_are_still_matched(run):
    run.write("single-matched", updates=2590)
    assert run.results()["warnings"] == []


def test_missed_compression_is_said_and_not_rounded_away(run):
    for model in ("stage3", *stage8.BASELINES):
        run.write(model, parameters=680_500)  # 59.97% smaller
    assert run.results()["warnings"] == ["the last stage is 59.9% smaller than the teacher; the target is 60%."]
    run.write("teacher", parameters=1_800_000)
    assert run.results()["warnings"] == []
    (run.folder / "progressive.yaml").write_text("target_compression: 35.6\n")
    for model in ("stage3", *stage8.BASELINES):
        run.write(model, parameters=1_159_200)  # 35.6% smaller, of which float arithmetic makes 35.599999999999994
    assert run.results()["warnings"] == []
    assert "35.6% smaller than the teacher (target 35.6%)" in (run.folder / "RESULTS.md").read_text()


def test_a_target_that_is_no_percentage(run):
    """Stage 6 has held the last stage against it."""
    (run.folder / "progressive.yaml").write_text("plan: {target: 1.2MB}\n")
    for model in ("stage3", *stage8.BASELINES):
        run.write(model, parameters=700_000)
    results = run.results()
    assert results["target_compression"] is None and results["warnings"] == []
    assert "the last stage is 58.8% smaller than the teacher.\n" in (run.folder / "RESULTS.md").read_text()


@pytest.mark.parametrize("model, stage", [("teacher", "--stage 4 --stop-stage 5"), ("stage2", "--stage 6"),
                                          ("single-matched", "--stage 7")])
def test_a_missing_summary_names_the_file_and_the_stage(run, model, stage):
    run.path(model).unlink()
    with pytest.raises(RecipeError) as error:
        run.results()
    assert str(run.path(model)) in str(error.value) and stage in str(error.value)
    assert "\n" not in str(error.value)
    assert not (run.folder / "RESULTS.md").exists()


MADE_FROM = {"teacher": "stage2", "stage1": "teacher", "stage2": "stage1", "stage3": "stage2", "single": "teacher"}


def record_models(run):
    """What local/train.py writes down of the models that others were made from; the teacher's is of the run that it is taken
    from, where it was a student."""
    for model, source in MADE_FROM.items():
        digest = content_digest(run.folder / "exp" / source / "done.json") if model != "teacher" else "0" * 64
        inputs, models = (dict.fromkeys(("init-from", "teacher"), value) for value in (digest, source))
        (run.folder / "exp" / model / "run.json").write_text(json.dumps({"config": {}, "inputs": inputs, "models": models}))
    (run.folder / "exp" / "scratch" / "run.json").write_text(json.dumps({"config": {}, "inputs": {}, "models": {}}))


@pytest.mark.parametrize("changed, refused", [("stage1", "stage2"), ("stage2", "stage3"), ("teacher", "stage1")])
def test_a_chain_that_was_trained_anew_in_part_is_refused(run, changed, refused):
    """A stage 6 that was stopped leaves models of the chain before it."""
    record_models(run)
    assert run.results()["warnings"] == []
    done = run.folder / "exp" / changed / "done.json"
    done.write_text(done.read_text().replace("365.2", "365.3"))
    with pytest.raises(RecipeError) as error:
        run.results()
    assert str(error.value) == (f"{run.folder / 'exp' / refused} was trained from another {changed} than is there: train and "
                                f"decode it with stage 6 (run.sh --stage 6 --stop-stage 6)")


def test_a_baseline_of_another_teacher_is_refused(run):
    record_models(run)
    (run.folder / "exp" / "single" / "run.json").write_text(
        json.dumps({"config": {}, "inputs": {"teacher": "0" * 64}, "models": {"teacher": "teacher"}}))
    with pytest.raises(RecipeError, match="single was trained from another teacher .* with stage 7 "):
        run.results()


def test_models_that_no_record_tells_of_are_taken_as_they_are(run):
    """Those of before the records named models, or a model from elsewhere."""
    record_models(run)
    (run.folder / "exp" / "stage1" / "run.json").unlink()
    (run.folder / "exp" / "stage2" / "run.json").write_text(json.dumps({"config": {}, "inputs": {"stage1": "0" * 64}}))
    (run.folder / "exp" / "stage3" / "run.json").write_text(
        json.dumps({"config": {}, "inputs": {"teacher": "0" * 64}, "models": {"teacher": "elsewhere"}}))
    assert run.results()["warnings"] == []


def record_trainings(run):
    """What local/train.py writes down of settings and data, and the plan that these settings come from."""
    (run.folder / "exp" / "teacher" / "train.log").write_text("")
    for model in WERS:
        if model != "teacher":
            save_config(TrainConfig(), run.folder / "exp" / "conf" / f"{model}.yaml")
        write_json(run.folder / "exp" / model / "run.json", {
            "config": config_to_dict(TrainConfig()), "models": {},
            "inputs": {"train 1": "0" * 64, "dev": "1" * 64, "tokens": "2" * 64, "noise": "3" * 64}})


def change_record(run, model, **changes):
    """Change what ``run.json`` says of a training; None takes it away."""
    record = run.folder / "exp" / model / "run.json"
    made = json.loads(record.read_text())
    for key, value in changes.items():
        made[key] = {**made[key], **value} if value else {}
    write_json(record, made)


@pytest.mark.parametrize("model, stage", [("stage3", 6), ("single-matched", 7), ("scratch", 7)])
def test_a_model_of_other_settings_than_the_plan_s_is_refused(run, model, stage):
    """Planned anew, and not trained anew: the stages would be compared with a baseline of another learning rate."""
    record_trainings(run)
    assert run.results()["warnings"] == []
    planned = run.folder / "exp" / "conf" / f"{model}.yaml"
    save_config(merge_config(TrainConfig, {}, ["optim.learning_rate=2e-4"]), planned)
    with pytest.raises(RecipeError) as error:
        run.results()
    assert str(error.value) == (f"{run.folder / 'exp' / model} was trained with other settings than {planned} says: train and "
                                f"decode it with stage {stage} (run.sh --stage {stage} --stop-stage {stage})")


def test_settings_that_make_no_other_training_are_no_other_settings(run):
    record_trainings(run)
    planned = run.folder / "exp" / "conf" / "stage1.yaml"
    save_config(merge_config(TrainConfig, {}, ["training.log_every_updates=7", "data.shar_root=elsewhere"]), planned)
    older = config_to_dict(TrainConfig())
    del older["data"]["gain"]  # a setting that was not there yet
    write_json(run.folder / "exp" / "stage2" / "run.json", {"config": older, "inputs": {}, "models": {}})
    assert run.results()["warnings"] == []


@pytest.mark.parametrize("role, what", [("train 1", "training data"), ("dev", "dev data"), ("tokens", "tokens"),
                                        ("noise", "noise")])
@pytest.mark.parametrize("changed, refused", [("stage2", "stage2"), ("single", "single"), ("teacher", "stage1")])
def test_models_of_other_data_than_each_other_are_refused(run, role, what, changed, refused):
    record_trainings(run)
    change_record(run, changed, inputs={role: "f" * 64})
    with pytest.raises(RecipeError) as error:
        run.results()
    assert str(error.value) == (f"{run.folder / 'exp' / refused} was trained on other {what} than {run.folder / 'exp'}/teacher"
                                ": train both on what is there now, from stage 4 on (run.sh --stage 4)")


def test_a_teacher_that_was_taken_has_data_of_its_own(run, monkeypatch):
    record_trainings(run)
    change_record(run, "teacher", inputs={"train 1": "f" * 64, "dev": "f" * 64})
    monkeypatch.setattr(stage8, "RERUN", "run.sh --teacher exp/teacher --lang data/lang")  # this run's own, kept as it is
    assert run.results()["warnings"] == []
    monkeypatch.setattr(stage8, "RERUN", "run.sh")
    (run.folder / "exp" / "teacher" / "train.log").unlink()  # which is not taken with it
    assert run.results()["warnings"] == []
    change_record(run, "single", inputs={"dev": "e" * 64})
    with pytest.raises(RecipeError, match="exp/single was trained on other dev data than .*/exp/stage1: "):
        run.results()


def test_hypotheses_are_no_other_data(run):
    """A student's training cuts are those that its own teacher wrote down its hypotheses of."""
    record_trainings(run)
    for number, model in enumerate(("stage1", "stage2", "stage3", "single", "single-matched")):
        config = merge_config(TrainConfig, {"loss": {"distill": [{"name": "nbest_rnnt"}]}})
        save_config(config, run.folder / "exp" / "conf" / f"{model}.yaml")
        change_record(run, model, config=config_to_dict(config), inputs={"train 1": f"{number}" * 64})
    for model in ("scratch", "scratch-matched"):
        change_record(run, model, inputs=None)  # of before the inputs went by the parts that they play
    assert run.results()["warnings"] == []
    for number, model in enumerate(("stage1", "stage2")):  # of speech without transcripts
        config = config_to_dict(TrainConfig())
        save_config(TrainConfig(), run.folder / "exp" / "conf" / f"{model}.yaml")
        change_record(run, model, config=config, inputs={"train 1": "0" * 64, "train 2": f"{number}" * 64})
    assert run.results()["warnings"] == []


@pytest.mark.parametrize("changes, words", [
    ({"model": "stage3"}, "belongs to model 'stage3', not to 'stage1'"),
    ({"test_sets": {}}, "is not a decoding summary"),
    ({"parameters": None}, "has no number as parameters"),
    ({"updates": "many"}, "has no number as updates"),
    ({"left_context_ms": None}, "has no number as left_context_ms"),
    ({"parameters": 0}, "counts 0 parameters"),
    ({"test_sets": {"test-clean": {"wer": 3.0}}}, "has no number errors for test set test-clean"),
    ({"test_sets": {name: {**test, "errors_by_utterance": [1, 2]}
                    for name, test in summary("stage2")["test_sets"].items()}},
     "has no errors_by_utterance that add up to the errors of test set test-clean"),
    ({"test_sets": {name: {**test, "errors_by_take": [test["errors"] - 1], "words_by_take": [test["words"]]}
                    for name, test in summary("stage1")["test_sets"].items()}},
     "has no errors_by_take that add up to the errors of test set test-clean"),
    ({"test_sets": {"test-clean": summary("stage1")["test_sets"]["test-clean"]}}, "was decoded on other test data"),
    ({"test_sets": {name: {**test, "words_by_utterance": [test["words_by_utterance"][0] + 1,
                                                          test["words_by_utterance"][1] - 1,
                                                          *test["words_by_utterance"][2:]]}
                    for name, test in summary("stage1")["test_sets"].items()}}, "was decoded on other test data"),
])
def test_a_foreign_summary_is_named(run, changes, words):
    run.write("stage1", **changes)
    with pytest.raises(RecipeError) as error:
        run.results()
    assert str(run.path("stage1")) in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("key", ["parameters", "updates", "epoch", "avg", "method", "max_sym_per_frame", "chunk_ms",
                                 "left_context_ms"])
def test_a_summary_that_lacks_something_is_named(run, key):
    made = summary("stage1")
    del made[key]
    run.path("stage1").write_text(json.dumps(made))
    with pytest.raises(RecipeError, match=f"stage1/decode/summary.json has no {key}: train and decode it with stage 6"):
        run.results()


@pytest.mark.parametrize("name, text, words", [
    ("exp/conf/plan.json", "{}", "names no stages: run stage 6"),
    ("exp/conf/plan.json", "{", "is not valid JSON"),
    ("exp/conf/plan.json", None, "is missing: run stage 6"),
    ("progressive.yaml", None, "is missing"),
    ("progressive.yaml", "stage: 3\n", "key 'stage'"),
    ("progressive.yaml", "target_compression: sixty\n", "key 'target_compression'"),
    ("exp/stage1/done.json", "[]", "does not describe a training"),
])
def test_a_bad_plan_or_config_is_named(run, name, text, words):
    path = run.folder / name
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(RecipeError) as error:
        run.results()
    assert str(path) in str(error.value) and words in str(error.value)


def test_the_script_ends_in_one_line_without_a_traceback(run, monkeypatch):
    run.path("scratch").write_text("{")
    monkeypatch.setenv("RECIPE_RERUN", "run.sh --settings tiny")  # as local/stage_stamp.py says how it was called
    done = run_script(SCRIPT, *run.arguments())
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert str(run.path("scratch")) in done.stderr and "(run.sh --settings tiny --stage 7 --stop-stage 7)" in done.stderr


def test_relative_changes_and_durations():
    assert relative_change(9.0, 6.0) == pytest.approx(50.0)
    assert relative_change(1.0, 0.0) is None
    assert [format_relative(change) for change in (50.0, -5.0, -0.01, 0.0, None)] == \
        ["+50.0%", "-5.0%", "0.0%", "0.0%", "-"]
    assert [format_duration(seconds) for seconds in (None, 45.4, 59.7, 365.2, 3599.8, 7380)] == \
        ["-", "45 s", "1 min 00 s", "6 min 05 s", "1 h 00 min", "2 h 03 min"]


@given(st.lists(st.lists(st.text("ab|é -", max_size=9), min_size=3, max_size=3), max_size=4))
def test_tables_are_aligned(rows):
    lines = markdown_table(["A", "B", "C"], rows).splitlines()
    assert len(lines) == len(rows) + 2 and len({len(line) for line in lines}) == 1
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)
    assert len(plain_table(["A", "B", "C"], rows).splitlines()) == len(rows) + 2


def test_p_values_have_the_digits_that_they_have():
    from kdlib.comparison import format_p

    assert [format_p(p) for p in (1e-4, 4e-4, 0.0056, 0.0123, 1.0)] == ["<0.0002", "0.0004", "0.006", "0.012", "1.000"]


def test_a_delay_of_nothing_is_one():
    from kdlib.comparison import latency_table

    timed = {"delay_ms": 0.0, "delay_p90_ms": -0.4, "first_token_ms": None}
    _, rows = latency_table([{"model": "teacher", "test_sets": {"test": {"latency": timed}}}])
    assert rows == [["teacher", "0", "0", "-"]]
