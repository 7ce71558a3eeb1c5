"""run.sh: its options, and when a stage is skipped, run again, resumed or refused."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ["voice_commands", "fsdd"]


def run(*command, **options):
    return subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, **options)


class TestOptions:
    """Told before anything is set up or started."""

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_help_names_each_stage_and_option(self, recipe):
        result = run(ROOT / "egs" / recipe / "run.sh", "--help")
        assert result.returncode == 0 and not result.stderr
        assert re.findall(r"^  (\d)  \S", result.stdout, re.MULTILINE) == [str(n) for n in range(10)]
        for option in ("--stage", "--stop-stage", "--smoke", "--settings", "--force", "--jobs", "--python", "--hours"):
            assert f"  {option} " in result.stdout

    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("arguments, said", [
        (["--nope"], "unknown option --nope"),
        (["--nope=3"], "unknown option --nope"),
        (["nope"], "unknown option nope"),
        (["-s"], "unknown option -s"),
        (["--stage"], "--stage needs a value"),
        (["--stage="], "--stage needs a value"),
        (["--stage", "11"], "--stage 11: this recipe has the stages 0 to 9"),
        (["--stop-stage", "two"], "--stop-stage two: this recipe has the stages 0 to 9"),
        (["--stage", "-1"], "--stage -1: this recipe has the stages 0 to 9"),
        (["--stage", "5", "--stop-stage", "4"], "--stage 5 comes after --stop-stage 4"),
        (["--jobs", "0"], "--jobs 0"),
    ])
    def test_a_bad_option_is_one_line(self, recipe, arguments, said):
        result = run(ROOT / "egs" / recipe / "run.sh", *arguments)
        assert result.returncode == 2 and not result.stdout
        assert result.stderr.startswith(f"error: {said}") and result.stderr.count("\n") == 1


SCRIPT = """\
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: pathlib.Path(words[words.index(name) + 1])
write = lambda path, text: (path.parent.mkdir(parents=True, exist_ok=True), path.write_text(text))
"""
SCRIPTS = {  # what each stage leaves behind, and nothing else
    "local/prepare_features.py": """
for cuts in value("--manifests").glob("cuts_*"): write(value("--output") / cuts.name, cuts.read_text())
write(value("--output") / "fbank.json", "")
""",
    "local/prepare_lang.py": """
for name in ("bpe.model", "tokens.txt"): write(value("--output") / name, value("--cuts").read_text())
""",
    "local/train.py": """
write(value("--exp") / "epoch-1.pt", " ".join(words))
write(value("--exp") / "done.json", value("--config").read_text())
""",
    "local/nbest.py": 'write(value("--output"), value("--cuts").read_text() + (value("--exp") / "done.json").read_text())',
    "local/align.py": """
for name in words[words.index("--test-sets") + 1].split():
    write(value("--output") / f"cuts_{name}.jsonl.gz", (value("--exp") / "done.json").read_text())
""",
    "local/decode.py": 'write(value("--exp") / "decode" / "summary.json", (value("--exp") / "done.json").read_text())',
    "local/plan.py": """
count = int(value("--config").read_text())
for name in [f"stage{k + 1}" for k in range(count)] + ["scratch", "single", "single-matched"]:
    write(value("--output") / f"{name}.yaml", value("--teacher-config").read_text() + " ".join(w for w in words if "=" in w))
write(value("--output") / "plan.json", json.dumps({"stages": count}))
""",
    "local/results.py": """
for name in ("results.json", "table.md", "wer_vs_size.png"): write(value("--output") / name, "")
write(value("--report"), words[words.index("--command") + 1])
""",
    "local/export_onnx.py": """
for name in ("encoder.onnx", "tokens.txt", "model.json"): write(value("--output") / name, value("--exp").name)
""",
    "local/decode_sherpa.py": """
write(value("--model") / ("decode-int8" if "--int8" in words else "decode") / "summary.json", "")
""",
    "local/ablation.py": """
if "table" in words: write(value("--report"), value("--exp").name)
else: write(value("--exp") / "arms.txt", "one 1\\ntwo 2\\n")
for name in ("one-stage1", "two-stage1", "two-stage2"): write(value("--exp") / "conf" / f"{name}.yaml", name)
""",
    "egs/toy/local/corpus.py": 'write(value("--output"), words[words.index("--size") + 1])',
    "egs/toy/local/manifests.py": """
for part in ("train", "dev", "test", "more"): write(value("--output") / f"cuts_{part}.jsonl.gz", value("--corpus").read_text())
""",
}
RUN_SH = """\
#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"
recipe=toy
test_sets="test"
option size 10 1 "size of the corpus"
path_option corpus-dir "where it is"
flag half "half of it, with smaller models"
settle() {
  if [[ $half ]]; then subset=yes; fi
  if [[ $half && -d conf/tiny ]]; then settings=tiny; fi
}
corpus() {
  step corpus --makes "$data/corpus" -- python local/corpus.py --size "$size" --output "$data/corpus" --at "$corpus_dir"
}
manifests() {
  step manifests --from 0 "$data/corpus" --makes "${manifests[@]}" -- \\
    python local/manifests.py --corpus "$data/corpus" --output "$data/manifests"
}
stage 0 corpus "the corpus"
stage 1 manifests "manifests"
stage 2 prepare_features "features"
stage 3 prepare_tokens "tokens"
stage 4 train_teacher "teacher"
stage 5 decode_teacher "decoding"
stage 6 distil "distillation"
stage 7 train_baselines "baselines"
stage 8 write_results "table"
stage 9 export_models "export"
extra_stage 10 ablate "ablation"
run_recipe "$@"
"""


@pytest.fixture
def toy(tmp_path):
    """A recipe of the shared stages whose scripts only write files; called, it returns what ran and what it said."""
    for name, text in SCRIPTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SCRIPT + text)
    for name in ("recipe.sh", "stages.sh", "stage_stamp.py"):
        shutil.copy(ROOT / "local" / name, tmp_path / "local" / name)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "activate.sh").write_text(f"activate_environment() {{ PYTHON={sys.executable}; }}\n")
    recipe = tmp_path / "egs" / "toy"
    (recipe / "conf").mkdir()
    for name, text in (("fbank.yaml", ""), ("lang.yaml", ""), ("teacher.yaml", "t"), ("decode.yaml", ""),
                       ("progressive.yaml", "2"), ("smoke.conf", "# small\ntraining.num_epochs=1\nlang.vocab_size=9\n")):
        (recipe / "conf" / name).write_text(text)
    (recipe / "run.sh").write_text(RUN_SH)
    (recipe / "run.sh").chmod(0o755)

    def call(*arguments, cwd=recipe):
        result = run(recipe / "run.sh", *arguments, cwd=cwd)
        result.ran = re.findall(r"^\[stage \d+, (\S+)\] python ", result.stdout, re.MULTILINE)
        result.commands = re.findall(r"^\[stage \d+, \S+\] (python .*)", result.stdout, re.MULTILINE)
        return result

    call.folder = recipe
    return call


CHAIN = ["corpus", "manifests", "fbank", "lang", "train-teacher", "align", "decode-teacher", "plan", "train-stage1",
         "decode-stage1", "train-stage2", "decode-stage2", "train-scratch", "decode-scratch", "train-single",
         "decode-single", "train-single-matched", "decode-single-matched", "results", "export-teacher", "sherpa-teacher",
         "sherpa-int8-teacher", "export-stage2", "sherpa-stage2", "sherpa-int8-stage2"]


class TestStages:
    def test_the_whole_chain_once(self, toy):
        first = toy()
        assert first.returncode == 0, first.stderr
        assert first.ran == CHAIN
        assert (toy.folder / "RESULTS.md").exists()
        second = toy()
        assert second.returncode == 0 and second.ran == []
        assert second.stdout.count("done before, skipped") == len(CHAIN)

    def test_each_student_teaches_the_next(self, toy):
        commands = {name: command for name, command in zip(CHAIN, toy().commands)}
        assert "--teacher" not in commands["train-teacher"] and "--teacher" not in commands["train-scratch"]
        for name, teacher in (("stage1", "teacher"), ("stage2", "stage1"), ("single", "teacher"),
                              ("single-matched", "teacher")):
            assert f"--config exp/conf/{name}.yaml" in commands[f"train-{name}"]
            assert (f"--init-from exp/{teacher} --teacher exp/{teacher} --first-teacher exp/teacher"
                    in commands[f"train-{name}"])

    def test_parts(self, toy):
        assert toy("--stop-stage", "1").ran == CHAIN[:2]
        assert toy("--stage", "2", "--stop-stage", "3").ran == CHAIN[2:4]
        assert toy("--stage=4", "--stop-stage=5").ran == CHAIN[4:7]

    @pytest.mark.parametrize("stage, missing, maker", [
        (1, "data/corpus", 0), (2, "data/manifests/cuts_train.jsonl.gz", 1), (3, "data/manifests/cuts_train.jsonl.gz", 1),
        (4, "data/fbank/cuts_train.jsonl.gz", 2), (5, "data/fbank/cuts_test.jsonl.gz", 2), (6, "data/lang/tokens.txt", 3),
        (7, "data/fbank/cuts_train.jsonl.gz", 2), (8, "exp/teacher/decode/summary.json", 5)])
    def test_a_stage_before_its_predecessor(self, toy, stage, missing, maker):
        result = toy("--stage", stage, "--stop-stage", stage)
        assert result.returncode == 1 and result.ran == []
        assert result.stderr == (f"error: stage {stage} needs {missing}, which stage {maker} makes: "
                                 f"run.sh --stage {maker} --stop-stage {maker}\n")

    def test_a_config_that_is_gone(self, toy):
        toy("--stop-stage", "3")
        (toy.folder / "conf" / "teacher.yaml").unlink()
        result = toy("--stage", "4", "--stop-stage", "4")
        assert result.returncode == 1 and result.stderr.startswith("error: stage 4 needs conf/teacher.yaml, which comes")

    def test_what_depends_on_a_change_runs_again_and_nothing_else(self, toy):
        toy()
        (toy.folder / "conf" / "decode.yaml").write_text("beam: 4")
        assert toy().ran == [name for name in CHAIN if name.startswith("decode-")]  # to the same results: no new table
        (toy.folder / "conf" / "progressive.yaml").write_text("3")
        assert toy().ran == ["plan", "train-stage3", "decode-stage3", "results", "export-stage3", "sherpa-stage3",
                             "sherpa-int8-stage3"]
        changed = toy("--size", "20")
        assert changed.ran[:5] == CHAIN[:5]
        assert "runs again because of: its command" in changed.stdout
        assert "runs again because of: data/corpus" in changed.stdout

    def test_a_changed_config_trains_again(self, toy):
        toy("--stop-stage", "5")
        (toy.folder / "conf" / "teacher.yaml").write_text("larger")
        result = toy("--stop-stage", "5")
        assert result.ran == ["train-teacher", "align", "decode-teacher"]
        assert "runs again because of: conf/teacher.yaml" in result.stdout

    def test_an_output_that_was_removed_is_made_again(self, toy):
        toy("--stop-stage", "5")
        (toy.folder / "data" / "lang" / "tokens.txt").unlink()
        result = toy("--stop-stage", "5")
        assert result.ran == ["lang"]
        assert "runs again because of: data/lang/tokens.txt is missing" in result.stdout

    @pytest.mark.parametrize("output, step", [("data/manifests/cuts_dev.jsonl.gz", "manifests"),
                                              ("data/lang/bpe.model", "lang"), ("exp/teacher/done.json", "train-teacher")])
    def test_an_output_that_was_damaged_is_made_again(self, toy, output, step):
        toy("--stop-stage", "5")
        whole = (toy.folder / output).read_text()
        (toy.folder / output).write_text("")
        result = toy("--stop-stage", "5")
        assert step in result.ran and (toy.folder / output).read_text() == whole
        assert f"runs again because of: {output} is not as this stage left it" in result.stdout
        assert toy("--stop-stage", "5").ran == []

    def test_a_config_of_the_plan_that_was_removed_is_planned_again(self, toy):
        toy()
        (toy.folder / "exp" / "conf" / "stage1.yaml").unlink()
        result = toy()
        assert result.returncode == 0 and result.ran == ["plan"]

    @pytest.mark.parametrize("text", ["{", "[]", '{"stages": "two"}', "{}"])
    def test_a_damaged_plan_is_one_line(self, toy, text):
        toy()
        (toy.folder / "exp" / "conf" / "plan.json").write_text(text)
        result = toy("--stage", "8")
        assert result.returncode == 1 and result.ran == []
        assert result.stderr == ("error: exp/conf/plan.json is damaged, stage 6 makes it anew: "
                                 "run.sh --stage 6 --stop-stage 6\n")
        assert toy("--stage", "6", "--stop-stage", "6").ran == ["plan"]

    def test_the_number_of_jobs_changes_no_result(self, toy):
        assert toy("--stop-stage", "3", "--jobs", "1").ran == CHAIN[:4]
        assert toy("--stop-stage", "3", "--jobs", "2").ran == []

    def test_force(self, toy):
        toy("--stop-stage", "5")
        forced = toy("--stage", "4", "--stop-stage", "4", "--force")
        assert forced.ran == ["train-teacher"]
        assert len(list(toy.folder.glob("exp/before-*/teacher/done.json"))) == 1

    def test_force_leaves_everything_where_it_is_when_the_stage_cannot_run(self, toy):
        toy("--stop-stage", "4")
        (toy.folder / "data" / "fbank" / "cuts_dev.jsonl.gz").unlink()
        refused = toy("--stage", "4", "--stop-stage", "4", "--force")
        assert refused.returncode == 1 and refused.ran == []
        assert (toy.folder / "exp" / "teacher" / "done.json").exists()

    def test_a_failed_stage_keeps_what_is_made_and_goes_on_when_mended(self, toy):
        train = toy.folder / ".." / ".." / "local" / "train.py"
        good = train.read_text()
        train.write_text("raise SystemExit('error: no more memory')")
        failed = toy()
        assert failed.returncode == 1 and failed.ran == CHAIN[:5]
        assert failed.stderr.splitlines()[0] == "error: no more memory"
        assert "Traceback" not in failed.stderr
        train.write_text(good)
        assert toy().ran == CHAIN[4:]

    def test_a_script_that_forgets_its_output_is_not_done(self, toy):
        (toy.folder / "local" / "corpus.py").write_text("")
        result = toy("--stop-stage", "0")
        assert result.returncode == 1 and "ended without making data/corpus" in result.stderr


class TestSettings:
    def test_smoke_has_folders_sizes_and_settings_of_its_own(self, toy):
        smoke = toy("--smoke")
        assert smoke.returncode == 0 and smoke.ran == CHAIN
        assert "--size 1 " in smoke.commands[0] and "data-smoke/corpus" in smoke.commands[0]
        assert smoke.commands[3].endswith("vocab_size=9")
        assert smoke.commands[4].endswith("training.num_epochs=1")
        assert (toy.folder / "exp-smoke" / "RESULTS.md").exists()
        assert not any((toy.folder / name).exists() for name in ("RESULTS.md", "data", "exp"))

    def test_the_remedy_repeats_what_chose_the_folders(self, toy):
        result = toy("--smoke", "--stage", "3", "--exp", "elsewhere")
        assert result.stderr.endswith("run.sh --smoke --exp elsewhere --stage 1 --stop-stage 1\n")

    def test_the_remedy_repeats_the_options_and_settings(self, toy):
        result = toy("--stage", "3", "--size", "20", "--corpus-dir=my speech", "optim.betas=[0.9,0.98]", "--jobs", "2")
        assert result.stderr.endswith(r"run.sh --size 20 --corpus-dir my\ speech optim.betas=\[0.9\,0.98\] "
                                      "--stage 1 --stop-stage 1\n")

    def test_the_report_names_the_options_and_no_path_of_this_machine(self, toy, tmp_path):
        toy("--size", "20", "--corpus-dir", tmp_path, "training.seed=5")
        assert (toy.folder / "RESULTS.md").read_text() == "egs/toy/run.sh --size 20 --corpus-dir DIR training.seed=5"

    def test_settings_go_where_their_name_says(self, toy):
        words = ["lang.vocab_size=7", "fbank.num_filters=40", "decode.beam=2", "training.seed=5", "optim.clip_norm=1"]
        commands = dict(zip(CHAIN, toy(*words).commands))
        assert commands["lang"].endswith(" vocab_size=7")
        assert commands["fbank"].endswith(" num_filters=40")
        assert commands["decode-teacher"].endswith(" beam=2") and commands["decode-stage2"].endswith(" beam=2")
        assert commands["train-teacher"].endswith(" training.seed=5 optim.clip_norm=1")
        # The students' configs are the plan's, which works out what follows from a setting.
        assert commands["plan"].endswith(" training.seed=5 optim.clip_norm=1")
        assert "training.seed" not in commands["train-stage1"]

    def test_the_users_settings_win_over_those_of_smoke(self, toy):
        commands = toy("--smoke", "training.num_epochs=3", "--stop-stage", "4").commands
        assert commands[4].endswith("training.num_epochs=1 training.num_epochs=3")

    def test_a_folder_of_settings_stands_in_for_what_it_holds(self, toy):
        tiny = toy.folder / "conf" / "tiny"
        tiny.mkdir()
        for name in ("teacher.yaml", "lang.yaml"):
            (tiny / name).write_text("4\n")
        (toy.folder / "conf" / "published.md").write_text("Of the whole corpus.\n")
        commands = dict(zip(CHAIN, toy("--settings", "tiny", "training.seed=5").commands))
        assert "--config conf/tiny/lang.yaml " in commands["lang"] and "--config conf/fbank.yaml " in commands["fbank"]
        assert "--config conf/tiny/teacher.yaml " in commands["train-teacher"]
        assert "--config conf/progressive.yaml --teacher-config conf/tiny/teacher.yaml " in commands["plan"]
        assert (toy.folder / "exp-tiny" / "RESULTS.md").read_text() == "egs/toy/run.sh --settings tiny training.seed=5"
        assert not any((toy.folder / name).exists() for name in ("RESULTS.md", "data", "exp"))
        shared = toy("--settings", "tiny", "training.seed=5", "--data", "data-tiny", "--exp", "exp-tiny",
                     "--stop-stage", "7")
        assert not shared.ran  # the folders that it has by itself
        assert toy("--half", "--stop-stage", "4", "training.seed=5").ran == []  # a recipe may choose them itself
        assert "(there is tiny)" in toy("--help").stdout
        missing = toy("--settings", "none")
        assert missing.returncode == 2 and "there is no folder conf/none" in missing.stderr

    def test_a_flag_has_no_value(self, toy):
        refused = toy("--half=no")
        assert refused.returncode == 2 and "--half takes no value" in refused.stderr
        assert toy("--half", "--stage", "3", "--exp", "elsewhere").stderr.endswith(
            "run.sh --exp elsewhere --half --stage 1 --stop-stage 1\n")
        assert re.search(r"--half +half of it", toy("--help").stdout)

    def test_a_run_on_a_part_of_the_corpus_leaves_the_report_of_the_whole(self, toy):
        (toy.folder / "conf" / "published.md").write_text("Of the whole corpus.\n")
        (toy.folder / "RESULTS.md").write_text("of the whole corpus")
        part = dict(zip(CHAIN, toy("--half").commands))
        assert "--report exp/RESULTS.md --command egs/toy/run.sh --half" in part["results"]
        assert "--published" not in part["results"]
        assert (toy.folder / "RESULTS.md").read_text() == "of the whole corpus"
        assert "--report RESULTS.md --command egs/toy/run.sh --published conf/published.md" in " ".join(toy().commands)

    def test_hypotheses_are_made_once_for_each_teacher_that_is_to_give_them(self, toy):
        (toy.folder / "conf" / "teacher.yaml").write_text("- name: nbest_rnnt\n")
        result = toy()
        chain = ["plan", "nbest-teacher-train", "train-stage1", "decode-stage1", "nbest-stage1-train", "train-stage2"]
        assert result.returncode == 0, result.stderr
        assert result.ran[7:13] == chain and result.ran[13:].count("nbest-teacher-train") == 0
        given = "--train-cuts exp/{}/nbest/cuts_train.jsonl.gz"
        commands = dict(zip(result.ran, result.commands))
        assert given.format("teacher") in commands["train-stage1"] and given.format("stage1") in commands["train-stage2"]
        assert given.format("teacher") in commands["train-single"] and "--train-cuts" not in commands["train-scratch"]
        assert toy().ran == []

    def test_the_ablation_is_an_extra_stage(self, toy):
        (toy.folder / "conf" / "ablation.yaml").write_text("")
        assert "train-ablation-one-stage1" not in toy().ran
        result = toy("--stage", "10", "training.seed=5")
        arms = ["one-stage1", "two-stage1", "two-stage2"]
        assert result.ran == ["ablation-plan", *(f"{do}-ablation-{arm}" for arm in arms for do in ("train", "decode")),
                              "ablation-table"], result.stderr
        commands = dict(zip(result.ran, result.commands))
        assert commands["ablation-plan"].endswith(" training.seed=5")
        assert "--init-from exp/teacher " in commands["train-ablation-two-stage1"]
        assert "--init-from exp/ablation/two-stage1 --teacher exp/ablation/two-stage1 --first-teacher exp/teacher" in \
            commands["train-ablation-two-stage2"]
        assert "--test-sets dev test" in commands["decode-ablation-one-stage1"].replace("'", "")
        assert (toy.folder / "ABLATION.md").exists()
        assert toy("--stage", "10", "training.seed=5").ran == []
        refused = toy("--stage", "11")
        assert refused.returncode == 2 and "--stage 11: this recipe has the stages 0 to 9, and 10" in refused.stderr

    def test_the_first_teacher_gives_its_hypotheses_to_all_students(self, toy):
        (toy.folder / "conf" / "teacher.yaml").write_text("distill_from: first\nname: nbest_rnnt\n")
        result = toy()
        assert [name for name in result.ran if name.startswith("nbest")] == ["nbest-teacher-train"]
        assert "--train-cuts exp/teacher/nbest/" in dict(zip(result.ran, result.commands))["train-stage2"]

    def test_students_hear_their_teachers_transcripts_of_unlabelled_speech(self, toy):
        script = (toy.folder / "run.sh").read_text()
        (toy.folder / "run.sh").write_text(script.replace("recipe=toy", 'recipe=toy unlabelled_cuts="more"'))
        commands = dict(zip((result := toy()).ran, result.commands))
        assert result.returncode == 0, result.stderr
        assert commands["nbest-stage1-more"].endswith(" --pseudo-label")
        # Those of the labelled part are made where a loss reads them.
        assert "nbest-stage1-train" not in commands and "nbest-teacher-train" not in commands
        assert "--train-cuts data/fbank/cuts_train.jsonl.gz exp/stage1/nbest/cuts_more.jsonl.gz" in commands["train-stage2"]
        assert "--train-cuts" not in commands["train-teacher"]
        (toy.folder / "conf" / "teacher.yaml").write_text("- name: nbest_rnnt\n")
        commands = dict(zip((result := toy()).ran, result.commands))
        assert "nbest-stage1-train" in commands
        assert "--train-cuts exp/stage1/nbest/cuts_train.jsonl.gz exp/stage1/nbest/cuts_more.jsonl.gz" in \
            commands["train-stage2"]

    def test_paths_start_from_where_the_user_stands(self, toy, tmp_path):
        elsewhere = tmp_path / "a folder"
        elsewhere.mkdir()
        result = toy("--stop-stage", "0", "--corpus-dir", "speech", "--data", "here", cwd=elsewhere)
        assert result.returncode == 0, result.stderr
        assert result.commands[0].endswith("--at ../../a folder/speech")
        assert (elsewhere / "here" / "corpus").exists() and not (toy.folder / "data").exists()


class TestKilled:
    SLOW = "import time, pathlib, os; pathlib.Path('started').write_text(str(os.getpid())); time.sleep(60)"

    def start(self, toy, first=""):
        script = toy.folder / "local" / "corpus.py"
        good = script.read_text()
        script.write_text("import os, pathlib\n" + first + self.SLOW)
        process = subprocess.Popen([toy.folder / "run.sh", "--stop-stage", "0"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = toy.folder / "started"
        self.wait_for(lambda: started.exists() and started.read_text())
        script.write_text(good)
        return process, int(started.read_text())

    @staticmethod
    def wait_for(condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    @staticmethod
    def alive(number):
        try:
            state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_killed_run_takes_its_stage_along_and_is_not_done(self, toy, number):
        process, script = self.start(toy)
        process.send_signal(number)
        process.wait()
        self.wait_for(lambda: not self.alive(script))
        assert toy("--stop-stage", "0").ran == ["corpus"]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    def test_what_a_killed_step_leaves_behind_does_not_hold_the_folder(self, toy):
        process, script = self.start(toy, "left = os.fork()\nif not left: __import__('time').sleep(60)\n"
                                          "pathlib.Path('left').write_text(str(left))\n")
        left = int((toy.folder / "left").read_text())
        try:
            os.kill(script, signal.SIGKILL)
            process.wait()
            assert self.alive(left)
            assert toy("--stop-stage", "0").ran == ["corpus"]
        finally:
            os.kill(left, signal.SIGKILL)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    def test_force_moves_nothing_while_another_run_is_at_work(self, toy):
        toy()
        train = toy.folder / ".." / ".." / "local" / "train.py"
        train.write_text(self.SLOW)
        process = subprocess.Popen([toy.folder / "run.sh", "--stage", "7", "--force"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.wait_for(lambda: (toy.folder / "started").exists())
            refused = toy("--stage", "4", "--stop-stage", "4", "--force")
            assert "another run is at work" in refused.stderr and refused.ran == []
            assert (toy.folder / "exp" / "teacher" / "done.json").exists()
        finally:
            process.kill()
            process.wait()

    def test_a_second_run_at_once_is_refused(self, toy):
        process, script = self.start(toy)
        try:
            second = toy("--stop-stage", "0")
            assert second.returncode == 1
            assert second.stderr.startswith("error: another run is at work in data (process ")
        finally:
            process.kill()
            process.wait()
        self.wait_for(lambda: not self.alive(script))
