"""run.sh: its options, and when a stage is skipped, run again, resumed or refused."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from scripts import alive, run, wait_for
from toy_recipe import CHAIN, ROOT

RECIPES = ["voice_commands", "fsdd"]


class TestOptions:
    """Told before anything is set up or started."""

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_help_names_each_stage_and_option(self, recipe):
        result = run(ROOT / "egs" / recipe / "run.sh", "--help")
        assert result.returncode == 0 and not result.stderr
        assert re.findall(r"^  (\d)  \S", result.stdout, re.MULTILINE) == [str(n) for n in range(10)]
        for option in ("--stage", "--stop-stage", "--smoke", "--settings", "--force", "--jobs", "--world-size", "--python",
                       "--hours"):
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
        (["--world-size", "two"], "--world-size two"),
    ])
    def test_a_bad_option_is_one_line(self, recipe, arguments, said):
        result = run(ROOT / "egs" / recipe / "run.sh", *arguments)
        assert result.returncode == 2 and not result.stdout
        assert result.stderr.startswith(f"error: {said}") and result.stderr.count("\n") == 1


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
        for name in ("teacher", "scratch", "scratch-matched"):
            assert "--teacher" not in commands[f"train-{name}"]
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
        (7, "data/fbank/cuts_train.jsonl.gz", 2), (8, "exp/teacher/decode/summary.json", 5),
        (9, "exp/conf/plan.json", 6)])
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
                             "sherpa-int8-stage3", "results"]
        changed = toy("--size", "20")
        assert changed.ran[:5] == CHAIN[:5]
        assert "runs again because of: its command" in changed.stdout
        assert "runs again because of: data/corpus" in changed.stdout

    @pytest.mark.parametrize("part, again", [("noise", ("train-",)), ("test", ("decode-", "sherpa-"))])
    def test_what_reads_a_part_runs_again_where_that_changed(self, toy, part, again):
        run_sh, maker = toy.folder / "run.sh", toy.folder / "local" / "manifests.py"
        run_sh.write_text(run_sh.read_text().replace("recipe=toy", "recipe=toy noise_cuts=noise"))
        maker.write_text(maker.read_text().replace('"more")', '"more", "noise")'))
        toy()
        maker.write_text(maker.read_text() + f'\nwrite(value("--output") / "cuts_{part}.jsonl.gz", "other")\n')
        toy("--stage", "1", "--stop-stage", "1", "--force")
        assert {name for name in CHAIN if name.startswith(again)} <= set(toy().ran)

    def test_other_decodings_make_another_table(self, toy):
        decode = toy.folder.parents[1] / "local" / "decode.py"
        toy("--stop-stage", "8")
        for stage, model in (("5", "teacher"), ("6", "stage2"), ("7", "single")):
            decode.write_text(decode.read_text() + f"""
if value("--exp").name == "{model}": write(value("--exp") / "decode" / "summary.json", "other")
""")
            toy("--stage", stage, "--stop-stage", stage, "--force")
            assert toy("--stage", "8", "--stop-stage", "8").ran == ["results"], model

    def test_stage_9_alone_writes_the_report_that_is_there_again(self, toy):
        """With the figures of what it has exported; it writes none where there is none."""
        toy("--stop-stage", "7")
        exported = [name for name in CHAIN if name.startswith(("export-", "sherpa-"))]
        assert toy("--stage", "9").ran == exported
        assert toy("--stage", "8", "--stop-stage", "8").ran == ["results"]
        shutil.rmtree(toy.folder / "exp" / "export" / "teacher")
        assert toy("--stage", "8", "--stop-stage", "8").ran == ["results"]
        assert toy("--stage", "9").ran == [*exported[:3], "results"]

    @pytest.mark.parametrize("words, step", [
        (["training.seed=5"], "stage 4, train-teacher"), (["decode.beam=8"], "stage 5, decode-teacher"),
        (["decode.epoch=1"], "stage 5, align"),
        (["--teacher", "exp/teacher", "--lang", "data/lang"], "stage 6, plan")])
    def test_a_report_in_words_that_did_not_make_its_models_is_refused(self, toy, words, step):
        """The report names the words of the call that writes it."""
        toy("--stop-stage", "8")
        for options in ((), ("--force",)):
            refused = toy("--stage", "8", *words, *options)
            assert refused.returncode == 1 and refused.ran == []
            assert refused.stderr.startswith(f"error: {step} was not done, or not to the end, with")
            assert f"(run.sh {' '.join(words)} --stage {step[6]})" in refused.stderr and refused.stderr.count("\n") == 1
        assert (toy.folder / "RESULTS.md").read_text() == "egs/toy/run.sh"
        made = toy("--stage", step[6], "--stop-stage", "7", *words)  # as the message says
        assert made.returncode == 0 and toy("--stage", "8", "--stop-stage", "8", *words).ran == ["results"]

    def test_students_of_a_teacher_of_other_words_are_refused_before_they_are_trained(self, toy):
        toy("--stop-stage", "5")
        refused = toy("--stage", "6", "training.seed=5")
        assert refused.returncode == 1 and refused.ran == []
        assert refused.stderr.startswith("error: stage 4, train-teacher was not done, or not to the end, with")
        assert toy("--stage", "6", "--stop-stage", "7", "training.seed=5").returncode == 0  # that writes no report
        own = toy("--stage", "6", "--stop-stage", "8", "training.seed=5", "--teacher", "exp/teacher", "--lang", "data/lang")
        assert own.returncode == 0 and own.ran[0] == "plan" and own.ran[-1] == "results"

    def test_a_report_of_what_was_half_made_anew_is_refused(self, toy):
        toy("--stop-stage", "8")
        decode = toy.folder.parents[1] / "local" / "decode.py"
        good = decode.read_text()
        decode.write_text("raise SystemExit('error: no more memory')")
        toy("--stage", "5", "--stop-stage", "5", "--force")
        decode.write_text(good)
        refused = toy("--stage", "8")
        assert refused.returncode == 1 and refused.stderr.startswith("error: stage 5, decode-teacher was not done")
        assert toy("--stage", "5", "--stop-stage", "8").returncode == 0

    def test_a_report_is_written_again_though_files_have_changed_since(self, toy):
        """It is of the words and the models, whatever has become of the scripts, the files in conf/ and the data."""
        toy("--stop-stage", "8")
        for path in (*(toy.folder / "conf").glob("*.yaml"), *(toy.folder.parents[1] / "local").glob("*.py")):
            path.write_text(path.read_text() + "# newer\n")
        shutil.rmtree(toy.folder / "data")
        for words in ((), ("--force",), ("--jobs", "1", "--world-size", "2", "--force")):
            assert toy("--stage", "8", "--stop-stage", "8", *words).ran == ["results"]

    def test_students_are_not_trained_for_a_report_beside_a_teacher_of_another_conf(self, toy):
        """As after teacher.yaml was edited: the baselines would be of the new one, and be held against the old."""
        toy()
        conf = toy.folder / "conf" / "teacher.yaml"
        conf.write_text(conf.read_text() + "# newer\n")
        refused = toy("--stage", "6")
        assert refused.returncode == 1 and refused.ran == [] and refused.stderr == (
            "error: stage 4, train-teacher was not done, or not to the end, with the words of this call and the files of now "
            "in conf/, which the report would name: give those that the models were made with, or run it again from there (run.sh "
            "--stage 4)\n")
        assert toy("--stage", "4").returncode == 0 and toy("--stage", "6").returncode == 0

    def test_stage_9_in_other_words_leaves_the_report_as_it_is(self, toy):
        toy()
        exported = toy("--stage", "9", "decode.epoch=1", "decode.avg=1")
        assert exported.returncode == 0 and "results" not in exported.ran and "export-teacher" in exported.ran
        assert "RESULTS.md stays as it is: stage 5, align was not done, or not to the end, with" in exported.stdout
        assert (toy.folder / "RESULTS.md").read_text() == "egs/toy/run.sh"

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
                                              ("data/lang/bpe.model", "lang"), ("exp/teacher/done.json", "train-teacher"),
                                              ("exp/teacher/epoch-1.pt", "train-teacher")])
    def test_an_output_that_was_damaged_is_made_again(self, toy, output, step):
        toy("--stop-stage", "5")
        whole = (toy.folder / output).read_text()
        (toy.folder / output).write_text("")
        result = toy("--stop-stage", "5")
        assert step in result.ran and (toy.folder / output).read_text() == whole
        assert f"runs again because of: {output.replace('-1', '-*')} is not as this stage left it" in result.stdout
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

    def test_the_processes_of_every_training(self, toy):
        trained = [command for command in toy("--world-size", "3").commands if "/train.py " in command]
        assert len(trained) == sum(name.startswith("train-") for name in CHAIN)
        assert all(command.count(" --world-size 3") == 1 for command in trained)
        assert toy("--world-size", "1").ran == toy().ran == []  # they change no result

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

    def test_a_plan_that_cannot_be_had_is_refused_before_the_teacher_is_trained(self, toy):
        plan = toy.folder / "conf" / "progressive.yaml"
        good = plan.read_text()
        plan.write_text("smaller than nothing")
        refused = toy()
        assert refused.returncode == 1 and refused.stderr.startswith("error: no plan can be made of this")
        assert refused.ran == CHAIN[:4] and not (toy.folder / "exp" / "teacher").exists()
        assert toy("--stop-stage", "5").returncode == 0  # the teacher alone needs no plan
        plan.write_text(good)
        ended = toy()
        assert ended.returncode == 0 and "planned" not in ended.stdout  # nor is one checked when it is trained

    @pytest.mark.parametrize("words", [[], ["--force"], ["training.seed=5"]])
    def test_a_plan_is_checked_before_the_teacher_is_trained_anew(self, toy, words):
        toy("--stop-stage", "5")
        (toy.folder / "conf" / "progressive.yaml").write_text("smaller than nothing")
        if not words:
            (toy.folder / "conf" / "teacher.yaml").write_text("larger")
        refused = toy("--stage", "4", *words)
        assert refused.returncode == 1 and refused.ran == []
        assert refused.stderr.startswith("error: no plan can be made of this")
        assert (toy.folder / "exp" / "teacher" / "done.json").exists()

    def test_a_plan_is_not_checked_again_where_the_teacher_is_there(self, toy):
        toy("--stop-stage", "5")
        assert "planned" not in toy("--stage", "4", "--stop-stage", "6").stdout
        (toy.folder / "exp" / "teacher" / "done.json").unlink()
        again = toy("--stage", "4", "--stop-stage", "6")
        assert again.stdout.count("planned") == 1 and again.ran == ["train-teacher"]

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
        assert result.returncode == 1 and result.stderr == (
            "error: stage 0, corpus ended without making data/corpus; run run.sh --stage 0 --stop-stage 0 --force\n")


class TestKilled:
    SLOW = "import time, pathlib, os; pathlib.Path('started').write_text(str(os.getpid())); time.sleep(600)"

    def start(self, toy, first="", words=()):
        script = toy.folder / "local" / "corpus.py"
        good = script.read_text()
        script.write_text("import os, pathlib\n" + first + self.SLOW)
        process = subprocess.Popen([toy.folder / "run.sh", "--stop-stage", "0", *words], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = toy.folder / "started"
        wait_for(lambda: started.exists() and started.read_text())
        script.write_text(good)
        return process, int(started.read_text())

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_killed_run_takes_its_stage_along_and_is_not_done(self, toy, number):
        process, script = self.start(toy)
        process.send_signal(number)
        process.wait()
        wait_for(lambda: not alive(script))
        assert toy("--stop-stage", "0").ran == ["corpus"]

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    def test_what_a_killed_step_leaves_behind_does_not_hold_the_folder(self, toy):
        process, script = self.start(toy, "left = os.fork()\nif not left: __import__('time').sleep(600)\n"
                                          "pathlib.Path('left').write_text(str(left))\n")
        left = int((toy.folder / "left").read_text())
        try:
            os.kill(script, signal.SIGKILL)
            process.wait()
            assert alive(left)
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
            wait_for(lambda: (toy.folder / "started").exists())
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
        wait_for(lambda: not alive(script))

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    def test_the_data_of_a_training_stay_as_they_are(self, toy):
        """Other runs may read them meanwhile, and train on them, but not make them anew."""
        toy("--stop-stage", "8")
        train = toy.folder.parents[1] / "local" / "train.py"
        good = train.read_text()
        train.write_text(self.SLOW)
        process = subprocess.Popen([toy.folder / "run.sh", "--exp", "exp-b"], cwd=toy.folder, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: (toy.folder / "started").exists())
            train.write_text(good)
            for words in (("--size", "20"), ("--stage", "2", "--stop-stage", "2", "--force")):
                refused = toy("--exp", "exp-c", *words)
                assert refused.returncode == 1 and refused.ran == []
                assert refused.stderr == ("error: another run is at work in data (it reads what is there): wait for its end, "
                                          "or stop it and run this command again\n")
            beside = toy("--exp", "exp-c")
            assert beside.returncode == 0 and beside.ran == CHAIN[4:], beside.stderr
        finally:
            process.kill()
            process.wait()
        wait_for(lambda: toy("--size", "20", "--stop-stage", "3").returncode == 0)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    def test_nothing_is_trained_on_data_that_are_being_made(self, toy):
        toy("--stop-stage", "3")
        process, script = self.start(toy, words=["--force"])
        try:
            refused = toy("--stage", "4")
            assert refused.returncode == 1 and refused.ran == []
            assert refused.stderr.startswith("error: another run is at work in data (process ")
        finally:
            process.kill()
            process.wait()
        wait_for(lambda: not alive(script))

    def test_data_and_models_in_one_folder(self, toy):
        assert toy("--data", "all", "--exp", "all").ran == CHAIN
