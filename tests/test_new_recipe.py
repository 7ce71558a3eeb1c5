"""tools/new_recipe.py: from each form of a corpus to a recipe that runs."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from lhotse import CutSet
from scripts import load, run_script
from skipping import listed
from toy_corpora import commonvoice_corpus, csv_corpus, kaldi_corpus, manifests_corpus, yesno_corpus

from kdlib.config import DecodeConfig, FbankConfig, LangConfig, TrainConfig, load_config
from kdlib.errors import RecipeError
from kdlib.plan_config import ProgressiveConfig
from kdlib.planning import stage_configs
from kdlib.proposal import propose

ROOT = Path(__file__).resolve().parents[1]
FORMS = {"csv": csv_corpus, "kaldi": kaldi_corpus, "manifests": manifests_corpus, "lhotse": yesno_corpus}


@pytest.fixture(scope="module")
def tool():
    return load(ROOT / "tools" / "new_recipe.py")


def options_of(form: str, source: Path):
    return ("--lhotse", "yesno", "--corpus-dir", source) if form == "lhotse" else (f"--{form}", source)


def run_sh(folder: Path, *options) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([str(folder / "run.sh"), *options], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def stage_1(folder: Path) -> Path:
    """The manifests that the recipe's stages 0 and 1 leave."""
    run_sh(folder, "--stop-stage", "1", "--jobs", "1")
    return folder / "data" / "manifests"


def test_a_tenth_is_held_out_and_never_more_than_two_hours(tool):
    assert tool.held_out_shares(0.0, ["dev"]) == {"dev": 0.1} and tool.held_out_shares(400, []) == {}
    assert tool.held_out_shares(10, ["dev", "test"]) == {"dev": 0.1, "test": 0.1}
    assert tool.held_out_shares(400, ["dev", "test"]) == {"dev": 0.005, "test": 0.005}


@pytest.mark.parametrize("hours, masks, masks_of_students, average", [
    (0.5, (2, 0.75), None, 1), (5, (2, 0.0), 2, 1), (50, (10, 0.0), 10, 5), (5000, (10, 0.0), 10, 5)])
def test_more_speech_has_other_settings(tool, tmp_path, hours, masks, masks_of_students, average):
    proposed = propose(hours, ["THE CAT SAT ON THE MAT", "A DOG RAN TO THE DOOR"] * 20, Counter({(8000, 1): 9}))
    rest = dict.fromkeys(("name", "test_sets", "option", "variable", "source", "arguments", "import", "parts", "held_out"), "x")
    tool.write_recipe(tmp_path / "x", {**tool.settings(proposed), **rest})
    teacher = load_config(TrainConfig, tmp_path / "x/conf/teacher.yaml")
    plan = load_config(ProgressiveConfig, tmp_path / "x/conf/progressive.yaml")
    last = stage_configs(plan, teacher, proposed.vocab_size, [], "conf")[-1]
    found = teacher.data.spec_augment
    assert (found.num_frame_masks, found.start) == masks and found.feature_mask_size < proposed.num_filters
    assert teacher.training.avg == average
    gain = teacher.data.gain
    assert gain.range == last.data.gain.range == [-20, 10] and (gain.start > 0) == (hours == 0.5) and last.data.gain.start == 0
    heard = last.data.spec_augment
    assert (heard.num_frame_masks if heard.enabled else None) == masks_of_students
    updates = proposed.updates * last.training.num_epochs / teacher.training.num_epochs
    assert 0 < last.optim.warmup_updates < 0.1 * updates


class TestTheRecipe:
    @pytest.mark.parametrize("form", FORMS)
    def test_each_form_makes_a_small_folder_whose_settings_hold(self, new_recipe, tmp_path, form):
        output = new_recipe(*options_of(form, FORMS[form](tmp_path / "corpus")))
        folder = new_recipe.folder
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert files == ["conf/decode.yaml", "conf/fbank.yaml", "conf/lang.yaml", "conf/progressive.yaml", "conf/smoke.conf",
                         "conf/teacher.yaml", "local/prepare_manifests.py", "run.sh"]
        text = "".join((folder / name).read_text() for name in files)
        assert text.count("\n") < 120 and not re.search("@[a-z_]+@", text)
        fbank = load_config(FbankConfig, folder / "conf/fbank.yaml")
        teacher = load_config(TrainConfig, folder / "conf/teacher.yaml")
        assert fbank.num_filters == teacher.model.num_features
        assert fbank.sampling_rate == (8000 if form == "lhotse" else 16000)
        for schema, name in ((LangConfig, "lang"), (DecodeConfig, "decode"), (ProgressiveConfig, "progressive")):
            load_config(schema, folder / f"conf/{name}.yaml")
        smoke = [line for line in (folder / "conf/smoke.conf").read_text().splitlines() if line[0] != "#"]
        load_config(TrainConfig, folder / "conf/teacher.yaml", [word for word in smoke if word[:4] not in ("lang", "fban")])
        assert re.findall(r"^  (\d)  \S", run_sh(folder, "--help"), re.MULTILINE) == [str(n) for n in range(10)]
        assert f"wrote {os.path.relpath(folder)}: " in output and "durations:" in output

    @pytest.mark.slow
    @pytest.mark.parametrize("form", FORMS)
    def test_each_form_runs_to_its_exported_models(self, new_recipe, tmp_path, form):
        new_recipe(*options_of(form, FORMS[form](tmp_path / "corpus")))
        output = run_sh(new_recipe.folder, "--smoke")
        data, exp = new_recipe.folder / "data-smoke", new_recipe.folder / "exp-smoke"
        test = "test-größe" if form == "manifests" else "test"
        for part in ("train", "dev", test):
            assert f"wrote data-smoke/manifests/cuts_{part}.jsonl.gz" in output
            assert (data / "fbank" / f"cuts_{part}.jsonl.gz").is_file()
        rows = json.loads((exp / "results" / "results.json").read_text())["rows"]
        assert [row["model"] for row in rows] == ["teacher", "stage1", "stage2", "stage3", "scratch", "scratch-matched",
                                                  "single", "single-matched"]
        assert rows[3]["parameters"] <= 0.4 * rows[0]["parameters"]
        for name in ("teacher", "stage3"):
            for decoded in ("decode", "decode-int8"):
                summary = json.loads((exp / "export" / name / decoded / "summary.json").read_text())
                assert list(summary["test_sets"]) == [test]

    @pytest.mark.slow
    @pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="this libsndfile writes no MP3")
    def test_common_voice_by_lhotse(self, new_recipe, tmp_path):
        columns = "client_id path sentence up_votes down_votes age gender accents locale segment"
        with pytest.raises(RecipeError, match=r"cannot read .*old \(KeyError: 'variant'\): .* may be read from a table"):
            new_recipe("--lhotse", "commonvoice", "--corpus-dir", commonvoice_corpus(tmp_path / "old", columns))
        corpus = commonvoice_corpus(tmp_path / "new", f"{columns} variant")
        output = new_recipe("--lhotse", "commonvoice", "--corpus-dir", corpus)
        assert [line.split(" utt")[0] for line in output.splitlines()[:6]] == [
            "train is made of eu-train", "dev is made of eu-dev", "eu-test is made of eu-test", "train: 20", "dev: 2",
            "eu-test: 2"]
        assert "audio: 24 recordings of 32000 Hz, 1 channel" in output and "held out" not in output
        assert len(CutSet.from_file(stage_1(new_recipe.folder) / "cuts_eu-test.jsonl.gz")) == 2

    def test_a_corpus_that_moved_is_found_from_where_the_user_stands(self, new_recipe, tmp_path):
        """Wherever the data goes."""
        table = csv_corpus(tmp_path / "corpus", 2)
        new_recipe("--csv", table)
        table = (tmp_path / "corpus").rename(tmp_path / "moved") / table.name
        data = tmp_path / "of" / "another" / "disk" / "far" / "away" / "data"
        output = run_sh(new_recipe.folder, "--csv", os.path.relpath(table), "--data", str(data), "--stop-stage", "1", "--jobs",
                        "1")
        assert "skipped " not in output
        written = (data / "manifests").glob("cuts_*")
        found = [cut.recording.sources[0].source for path in written for cut in CutSet.from_file(path)]
        assert len(found) == 24 and all(source.startswith(f"{tmp_path}/moved/") for source in found)

    @pytest.mark.slow
    def test_features_that_machines_shared_are_joined_by_stage_2(self, new_recipe, tmp_path):
        """As docs/scaling.md has it; and then the stage is done."""
        new_recipe("--csv", csv_corpus(tmp_path / "corpus", 2))
        stage_1(new_recipe.folder)
        words = ["--manifests", "data/manifests", "--output", "data/fbank", "--config", "conf/fbank.yaml"]
        for part in ("1/2", "2/2"):
            done = run_script(ROOT / "local" / "prepare_features.py", *words, "--part", part, "--jobs", "1",
                              cwd=new_recipe.folder)
            assert done.returncode == 0, done.stderr
        made = {path: path.stat().st_mtime_ns for path in (new_recipe.folder / "data" / "fbank").rglob("*.lca")}
        output = run_sh(new_recipe.folder, "--stop-stage", "2", "--jobs", "1")
        assert made and made == {path: path.stat().st_mtime_ns for path in made}
        assert "Extracting" not in output and "stage 2, fbank] wrote" in output
        assert "stage 2, fbank] done before" in run_sh(new_recipe.folder, "--stop-stage", "2", "--jobs", "1")

    def test_another_rate_is_that_of_stage_1_too(self, new_recipe, tmp_path):
        new_recipe("--csv", csv_corpus(tmp_path / "corpus", 2))
        other = new_recipe.folder / "conf" / "telephone" / "fbank.yaml"
        other.parent.mkdir()
        other.write_text("sampling_rate: 12000\n")
        for rate, data, *words in ((8000, "data", "fbank.sampling_rate=8000"),
                                   (12000, "data-telephone", "--settings", "telephone")):
            run_sh(new_recipe.folder, *words, "--stop-stage", "1", "--jobs", "1")
            made = CutSet.from_file(new_recipe.folder / data / "manifests" / "cuts_train.jsonl.gz")
            assert {cut.sampling_rate for cut in made} == {rate}

    def test_part_of_the_speech_leaves_the_table_of_all_as_it_is(self, new_recipe, tmp_path):
        """The script asks for it; what that does is held for every recipe."""
        new_recipe("--csv", csv_corpus(tmp_path / "corpus", 2))
        (function,) = re.findall(r"^settle\(\) .*$", (new_recipe.folder / "run.sh").read_text(), re.MULTILINE)
        for hours, subset in (("0", ""), ("5", "yes")):
            done = subprocess.run(["bash", "-euc", f"hours={hours} subset=; {function}\nsettle; echo $subset"],
                                  capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, f"{subset}\n")

    def test_part_of_the_speech_fills_fewer_tokens(self, new_recipe, tmp_path):
        new_recipe("--csv", csv_corpus(tmp_path / "corpus", 4))
        prepare = new_recipe.folder / "local" / "prepare_manifests.py"
        prepare.write_text(prepare.read_text().replace("normalise_text(text)", 'normalise_text(text).replace("THREE", "")'))
        output = run_sh(new_recipe.folder, "--stop-stage", "3", "--jobs", "1")
        assert "that were proposed for all of the corpus: so many are made" in output

    @pytest.mark.slow
    @pytest.mark.parametrize("form", ["csv", "manifests", "lhotse"])
    def test_audio_that_is_put_back_or_mended_is_seen(self, new_recipe, tmp_path, form):
        source = FORMS[form](tmp_path / "corpus")
        new_recipe(*options_of(form, source))
        file = sorted((tmp_path / "corpus").rglob("*.wav"))[40]
        content = file.read_bytes()

        def heard():
            output = run_sh(new_recipe.folder, "--stop-stage", "1", "--jobs", "1")
            written = (new_recipe.folder / "data" / "manifests").glob("cuts_*")
            return output, {Path(cut.recording.sources[0].source).name for path in written for cut in CutSet.from_file(path)}

        if form == "lhotse":  # whose recipe wants all of its files there
            file.write_bytes(content[:1000])
        else:
            file.unlink()
        assert file.name not in heard()[1]
        assert any(file.stem in name for stage in ("corpus", "manifests")
                   for _, name, _ in listed(new_recipe.folder / "data" / stage))
        file.write_bytes(content)
        output, names = heard()
        assert file.name in names and "[stage 1, manifests] runs again because of: data/corpus/*" in output
        assert "[stage 1, manifests] done before, skipped" in heard()[0]
        assert listed(new_recipe.folder / "data" / "corpus") == listed(new_recipe.folder / "data" / "manifests") == []

    def test_nothing_is_held_out_by_speakers_that_are_made_up(self, new_recipe, tmp_path):
        """A Kaldi folder where each utterance is its own speaker, and a table whose third column is a second text."""
        table = csv_corpus(tmp_path / "corpus", 2, header=None)
        rows = [line.split(",") for line in table.read_text().splitlines()]
        ids = [Path(path).stem for path, *_ in rows]
        table.write_text("".join(f"{path}|Nr. {id_}|number {id_}, {text}\n" for id_, (path, text, _) in zip(ids, rows)))
        for name, column in (("wav.scp", [path for path, *_ in rows]), ("text", [text for _, text, _ in rows]),
                             ("utt2spk", ids)):
            (table.parent / name).write_text("".join(f"{id_} {value}\n" for id_, value in zip(ids, column)))
        for form, source in (("csv", table), ("kaldi", table.parent)):
            output = new_recipe(f"--{form}", source, name=form)
            assert "dev and test are held out of train by utterance" in output and output.count("unknown speakers") == 3

    def test_an_existing_folder_is_left_alone(self, new_recipe, tmp_path, monkeypatch):
        table = csv_corpus(tmp_path / "corpus", count=2)
        new_recipe.folder.mkdir()
        (new_recipe.folder / "mine.txt").write_text("years of work")
        monkeypatch.chdir(new_recipe.folder.parents[1])
        with pytest.raises(RecipeError, match="^egs/mine exists and is not overwritten"):
            new_recipe("--csv", table)
        assert [path.name for path in new_recipe.folder.iterdir()] == ["mine.txt"]
        assert [path.name for path in new_recipe.folder.parent.iterdir()] == ["mine"]

    @pytest.mark.parametrize("name", ["../mine", "Mine", "a b", "_x", "$(touch x)", 65 * "a", 300 * "a"])
    def test_a_name_that_is_no_folder_is_refused(self, new_recipe, tmp_path, name):
        with pytest.raises(RecipeError, match="small letters, digits, - and _, 64 of them at most"):
            new_recipe("--csv", tmp_path / "none.csv", name=name)

    def test_the_path_of_the_corpus_may_hold_anything(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "my $(touch ran) 'speech'", count=2)
        table.symlink_to(table.rename(tmp_path / "elsewhere.csv"))  # and be a link, beside what the table names
        new_recipe("--csv", table)
        output = run_sh(new_recipe.folder, "--smoke", "--help")
        assert "--csv VALUE" in output and not list(tmp_path.rglob("ran"))
        script = (new_recipe.folder / "run.sh").read_text()
        source = re.search(r"local (source=.*)$", script, re.MULTILINE)[1]
        shown = subprocess.run(["bash", "-c", source + '; echo "$source"'],
                               capture_output=True, text=True, cwd=tmp_path).stdout
        assert shown == f"{table}\n" and not list(tmp_path.rglob("ran"))

    def test_a_place_where_its_run_sh_would_not_run_is_refused(self, tool, tmp_path, monkeypatch, capsys):
        table = csv_corpus(tmp_path / "corpus", count=2)
        (tmp_path / "house" / "local").mkdir(parents=True)
        (tmp_path / "house" / "local" / "recipe.sh").write_text("")
        for output, lacks in ((tmp_path / "recipes", tmp_path / "local" / "recipe.sh"),
                              (tmp_path / "house" / "egs", tmp_path / "house" / "tools" / "activate.sh")):
            monkeypatch.setattr(sys, "argv", ["new_recipe.py", "--name", "mine", "--csv", str(table), "--output",
                                              str(output)])
            with pytest.raises(RecipeError, match=f"--output {output}: .* needs {lacks}, which is missing: "
                                                  "leave the option "):
                tool.main()
            assert not output.exists() and "decode" not in capsys.readouterr().err  # said before hours of work

    def test_a_place_where_nothing_can_be_written_is_refused(self, new_recipe, tool, tmp_path, monkeypatch):
        """Before the corpus, which is none, is looked at."""
        egs = new_recipe.folder.parent
        egs.rename(egs.with_name("old"))
        egs.write_text("")
        with pytest.raises(RecipeError, match=f"--output {egs} is no folder: "):
            new_recipe("--csv", tmp_path)
        egs.unlink()
        for asked in (egs.parent, egs):  # what is there, of what is to be written to
            monkeypatch.setattr(tool.os, "access", lambda path, mode, asked=asked: Path(path) != asked)
            with pytest.raises(RecipeError, match=f"--output {egs}: nothing can be written there"):
                new_recipe("--csv", tmp_path)
            egs.mkdir(exist_ok=True)

    @pytest.mark.parametrize("form", FORMS)
    def test_a_corpus_that_is_not_named_is_refused(self, new_recipe, form):
        with pytest.raises(RecipeError, match=f"--{form} is empty: say "):
            new_recipe(f"--{form}", "")

    def test_a_corpus_folder_that_nothing_would_look_into_is_refused(self, new_recipe, tmp_path):
        for form in ("csv", "kaldi", "manifests"):
            source = FORMS[form](tmp_path / form)
            with pytest.raises(RecipeError, match=f"--corpus-dir is for --lhotse alone: .*--{form}"):
                new_recipe(f"--{form}", source, "--corpus-dir", tmp_path)

    @pytest.mark.parametrize("form", ["csv", "kaldi"])
    def test_of_paths_that_are_all_missing_the_remedy_is_told(self, new_recipe, tmp_path, form):
        """As of Common Voice's tables, which leave out clips/."""
        source = FORMS[form](tmp_path / "corpus")
        (tmp_path / "corpus" / "wav").rename(tmp_path / "corpus" / "clips")
        with pytest.raises(RecipeError, match="has no recording that can be used: all files that it names are missing. "
                                              f"Relative paths in it start from {tmp_path / 'corpus'} or a folder above: "):
            new_recipe(f"--{form}", source)

    def test_where_not_all_is_missing_no_such_remedy_is_told(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "corpus", 1)
        for path in (tmp_path / "corpus" / "wav").iterdir():
            path.write_bytes(b"")
        with pytest.raises(RecipeError, match="has no recording that can be used: see what was skipped above$"):
            new_recipe("--csv", table)

    def test_an_error_is_one_line(self, new_recipe, tmp_path):
        done = subprocess.run([sys.executable, str(ROOT / "tools" / "new_recipe.py"), "--name", "mine", "--csv",
                               str(tmp_path / "none.csv"), "--output", str(new_recipe.folder.parent)], capture_output=True,
                              text=True)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'none.csv'} is missing")
        assert done.stderr.count("\n") == 1
