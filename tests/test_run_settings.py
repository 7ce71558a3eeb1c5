"""run.sh: where its options and the key=value settings go, and what they change."""

import os
import re
import shutil
import sys

import pytest
from scripts import run
from toy_recipe import CHAIN

from kdlib.processes import usable_cores


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

    def test_folders_of_any_name(self, toy, tmp_path):
        for folder in ("My Passport", "br[1]", "a*b"):
            words = "--data", tmp_path / folder / "data", "--exp", tmp_path / folder / "exp"
            assert toy(*words).ran == CHAIN and toy(*words).ran == []

    def test_a_file_in_a_folders_place(self, toy, tmp_path):
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            result = toy("--data", folder)
            assert result.returncode == 1
            assert result.stderr.startswith(f"error: a file stands where the folder {folder} is to be")

    def test_as_many_jobs_as_cores(self, toy):
        """Whatever the number of threads that a process may have."""
        toy("--stop-stage", "1")
        for threads in ("1", "64"):
            result = run("env", f"OMP_NUM_THREADS={threads}", toy.folder / "run.sh", "--stage", "2", "--stop-stage", "2",
                         "--force")
            assert f" --jobs {usable_cores()}\n" in result.stdout, result.stdout

    def test_a_link_to_nothing_in_a_folders_place(self, toy, tmp_path):
        """Such as a disk that is not mounted."""
        (tmp_path / "link").symlink_to("/no/disk")
        for folder in (tmp_path / "link", tmp_path / "link" / "below"):
            result = toy("--data", folder)
            assert result.returncode == 1 and result.stderr == (
                f"error: {tmp_path}/link is a link to /no/disk, which is not there: make or mount that, or name another "
                "folder\n")

    def test_a_relative_link_to_nothing_is_refused_as_well(self, toy):
        """What it leads to is not made in its place."""
        link = toy.folder.parent / "link"
        link.symlink_to(toy.folder.parent / "disk" / "exp")
        for option in ("--data", "--exp"):
            result = run("env", "-C", link.parent, toy.folder / "run.sh", option, "link")
            assert result.returncode == 1 and result.stderr == (
                f"error: link is a link to {os.readlink(link)}, which is not there: make or mount that, or name another "
                "folder\n")
            assert not (link.parent / "disk").exists()

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

    @pytest.mark.parametrize("decoding", ["beam: 4\nepoch: 7  # of 9\navg: '3'\n", "{beam: 4, epoch: 7, avg: 3}\n"])
    def test_the_epochs_that_are_decoded_are_aligned_and_exported(self, toy, decoding):
        """And where nothing is said of them, commands are as they were: nothing runs again."""
        plain = dict(zip(CHAIN, toy("decode.beam=2").commands))
        same = ["align", "export-teacher", "export-stage2"]
        assert not any("--epoch" in plain[name] or "--avg" in plain[name] for name in same)
        (toy.folder / "conf" / "decode.yaml").write_text(decoding)
        told = toy("decode.avg=2", "fbank.num_filters=40")
        commands = dict(zip(told.ran, told.commands))
        for name in same:
            assert "--epoch 7 --avg 2" in commands[name]
        assert commands["export-stage2"].endswith("--avg 2 num_filters=40") and commands["decode-stage2"].endswith(" avg=2")

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
        assert not toy("--settings", "tiny/", "training.seed=5", "--stop-stage", "7").ran
        assert toy("--half", "--stop-stage", "4", "training.seed=5").ran == []  # a recipe may choose them itself
        assert "(there is tiny)" in toy("--help").stdout
        missing = toy("--settings", "none")
        assert missing.returncode == 2 and "there is no folder conf/none" in missing.stderr

    def test_a_folder_of_settings_whose_name_has_a_space(self, toy):
        (toy.folder / "conf" / "my own").mkdir()
        (toy.folder / "conf" / "my own" / "published.md").write_text("Of the whole corpus.\n")
        result = toy("--settings", "my own")
        assert result.returncode == 0 and result.ran == CHAIN, result.stderr
        assert "--published conf/my own/published.md" in result.stdout
        assert toy("--settings", "my own").ran == []

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

    @pytest.mark.parametrize("words", [["--smoke"], ["--settings", "tiny"]])
    def test_other_settings_leave_the_report_in_whatever_folder_they_are(self, toy, words):
        (toy.folder / "conf" / "tiny").mkdir()
        (toy.folder / "conf" / "ablation.yaml").write_text("")
        for report in ("RESULTS.md", "ABLATION.md"):
            (toy.folder / report).write_text("of the whole corpus")
        for last in ("8", "10"):
            assert toy(*words, "--exp", "exp", "--stop-stage", last).returncode == 0
        for report in ("RESULTS.md", "ABLATION.md"):
            assert (toy.folder / report).read_text() == "of the whole corpus"
            assert (toy.folder / "exp" / report).exists()

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
        again = toy("--force")  # once, though several students learn from it
        assert [name for name in again.ran if name.startswith("nbest")] == ["nbest-teacher-train"]
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

    @pytest.mark.parametrize("wanted, named", [
        ("- {weight: 1.0, name: nbest_rnnt}\n", "nbest_rnnt in conf/progressive.yaml"),
        ("2", "unlabelled_cuts in run.sh")])
    def test_hypotheses_of_shards_are_refused_before_anything_is_made(self, toy, wanted, named):
        (toy.folder / "conf" / "progressive.yaml").write_text(wanted)
        if named.startswith("unlabelled"):
            script = (toy.folder / "run.sh").read_text()
            (toy.folder / "run.sh").write_text(script.replace("recipe=toy", 'recipe=toy unlabelled_cuts="more"'))
        for words in ((), ("--stage", "4"), ("--stage", "6")):
            refused = toy(*words, "fbank.storage=shar")
            assert refused.returncode == 1 and refused.ran == [] and not (toy.folder / "data").exists()
            assert refused.stderr == (f"error: {named} needs the teacher's hypotheses, which are not made of shards: set "
                                      "fbank.storage=files\n")
        assert toy("--stop-stage", "5", "fbank.storage=shar").ran[-1] == "decode-teacher"  # that needs none

    def test_shards_serve_where_no_hypotheses_are_wanted(self, toy):
        (toy.folder / "conf" / "progressive.yaml").write_text("2  # once there was nbest_rnnt\n")
        assert toy("fbank.storage=shar").ran == CHAIN
        # What only the students' own configs say is refused when they are planned.
        (toy.folder / "conf" / "teacher.yaml").write_text("- name: nbest_rnnt\n")
        refused = toy("fbank.storage=shar")
        assert refused.returncode == 1 and refused.ran[-1] == "plan"
        assert refused.stderr.startswith("error: nbest_rnnt in exp/conf/stage1.yaml needs the teacher's hypotheses")
        (toy.folder / "conf" / "ablation.yaml").write_text("{name: nbest_rnnt}\n")
        refused = toy("--stage", "10", "fbank.storage=shar")
        assert refused.returncode == 1 and refused.ran == [] and "nbest_rnnt in conf/ablation.yaml" in refused.stderr

    def test_paths_start_from_where_the_user_stands(self, toy, tmp_path):
        elsewhere = tmp_path / "a folder"
        elsewhere.mkdir()
        result = toy("--stop-stage", "0", "--corpus-dir", "speech", "--data", "here", cwd=elsewhere)
        assert result.returncode == 0, result.stderr
        assert result.commands[0].endswith("--at ../../a folder/speech")
        assert (elsewhere / "here" / "corpus").exists() and not (toy.folder / "data").exists()

    def test_an_interpreter_is_taken_for_what_it_is_called(self, toy, tmp_path):
        """Not for what it is a link to: that knows nothing of the environment."""
        (tmp_path / "env" / "bin").mkdir(parents=True)
        (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
        for given, taken in (("env/bin/python", f"{tmp_path}/env/bin/python"), (f"{tmp_path}/env/bin/python",) * 2,
                             ("python3.11", "python3.11")):
            result = toy("--python", given, "--stop-stage", "0", "--data", "here", cwd=tmp_path)
            assert result.returncode == 0 and result.stdout.startswith(f"asked for --python {taken}\n"), result.stdout

    def test_a_download_serves_all_settings(self, toy, tmp_path):
        script = (toy.folder / "run.sh").read_text()
        (toy.folder / "run.sh").write_text(script.replace('--at "$corpus_dir"', '--at "$downloads"'))
        (toy.folder / "conf" / "tiny").mkdir()

        def downloads(*words):
            return toy(*words, "--stop-stage", "0", "--force").commands[0].rpartition("--at ")[2]

        assert [downloads(), downloads("--smoke"), downloads("--settings", "tiny")] == ["data/download"] * 3
        assert downloads("--data", tmp_path) == downloads("--data", tmp_path, "--smoke") == f"{tmp_path}/download"
        (toy.folder / "data-smoke" / "download").mkdir()  # as it was once
        assert downloads("--smoke") == "data-smoke/download" and downloads() == "data/download"

    def test_the_folders_of_cdpath_are_not_searched(self, toy, tmp_path):
        checkout = toy.folder.parents[1]
        (tmp_path / "elsewhere" / "egs" / "toy").mkdir(parents=True)
        for searched in (checkout, tmp_path / "elsewhere"):
            result = run("env", f"CDPATH={searched}", "bash", "egs/toy/run.sh", "--stop-stage", "0", "--data", "here",
                         cwd=checkout)
            assert result.returncode == 0, result.stderr
            assert result.stdout.startswith("toy, stages 0 to 0") and (checkout / "here" / "corpus").exists()
            shutil.rmtree(checkout / "here")

    def test_a_folder_is_the_same_however_it_is_written(self, toy, tmp_path):
        (tmp_path / "disk").mkdir()
        (toy.folder / "link").symlink_to(tmp_path / "disk")
        for data, *others in ((toy.folder / "data", f"{toy.folder}/data/", "data", "data/", "../toy/data//",
                               f"{toy.folder}//data", f"{toy.folder}/./data"),
                              ("link", f"{toy.folder}/link/", "./link"),
                              (tmp_path / "data", f"{tmp_path}/data/")):
            assert len(toy("--data", data, "--stop-stage", "3").ran) == 4
            for other in others:
                result = toy("--data", other, "--stop-stage", "3")
                assert result.returncode == 0 and result.ran == [], (other, result.stdout)
        toy("--exp", f"{toy.folder}/exp/", "--stop-stage", "8")
        assert (toy.folder / "RESULTS.md").exists()

    def test_this_runs_own_teacher_is_there_already(self, toy):
        """It is neither moved aside by --force nor copied onto itself."""
        toy("--stop-stage", "4")
        done = toy.folder / "exp" / "teacher" / "done.json"
        there = done.stat().st_mtime_ns
        for words in ((), ("--force",)):
            ended = toy("--teacher", "exp/teacher", "--lang", "data/lang", "--stop-stage", "5", *words)
            assert ended.returncode == 0 and done.stat().st_mtime_ns == there, ended.stderr
            for kept, step in (("exp/teacher", "take-teacher"), ("data/lang", "lang")):
                assert step not in ended.ran and f"{kept} is this run's own: it stays as it is" in ended.stdout
        assert toy("--stop-stage", "4").ran == []
        assert not list((toy.folder / "exp").glob("before-*"))

    def test_a_teacher_of_another_run_is_compressed(self, toy):
        toy("--stop-stage", "4")
        other = ["--exp", "exp/other", "--data", "data/other", "--teacher", "exp/teacher", "--lang", "data/lang"]
        ended = toy(*other)
        assert ended.returncode == 0, ended.stderr
        assert ended.ran == ["take-teacher" if name == "train-teacher" else name for name in CHAIN]
        commands = dict(zip(CHAIN, ended.commands))
        assert "--take data/lang" in commands["lang"] and "--from exp/teacher" in commands["train-teacher"]
        assert "--teacher-config exp/teacher/config.yaml --teacher-done exp/teacher/done.json " in commands["plan"]
        assert "--teacher DIR --lang DIR" in commands["results"]
        assert toy(*other).ran == []
        (toy.folder / "conf" / "smoke.conf").write_text("training.num_epochs=1\nmodel.num_layers=1\n")
        small = dict(zip(CHAIN, toy("--smoke", *other[4:], "training.num_epochs=3").commands))
        assert "num_epochs=3" in small["plan"] and "model." not in small["plan"]
        assert "--teacher-done" not in small["plan"]  # no baseline of minutes could have as many updates
        for words, said in ((other[:-2], "--teacher needs --lang"), ([*other, "model.num_layers=3"], "is what it is"),
                            ([*other, "--teacher", "exp/none"], "no training has ended there"),
                            ([*other, "--lang", "data"], "there is no tokens.txt")):
            refused = toy(*words)
            assert refused.returncode == 2 and said in refused.stderr and refused.stderr.count("\n") == 1
