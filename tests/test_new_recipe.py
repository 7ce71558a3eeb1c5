"""tools/new_recipe.py: from each form of a corpus to a recipe that runs; and the library's part in that."""

import csv
import gzip
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from skipping import Reasons, listed

from kdlib.config import (DecodeConfig, FbankConfig, LangConfig, ProgressiveConfig, TrainConfig, load_config)
from kdlib.corpus_forms import read_corpus, read_manifests, write_parts
from kdlib.corpus_parts import (check_apart, checked_role, describe_holding, hold_out, part_roles, prepare_parts,
                                subset)
from kdlib.errors import RecipeError
from kdlib.manifests import Skipped
from kdlib.planning import measure_model
from kdlib.proposal import propose, propose_rate, propose_tokens
from kdlib.survey import (common_punctuation, describe_survey, histogram, odd_characters, overlapping, shared_speakers,
                          unspaced)

soundfile = pytest.importorskip("soundfile")
ROOT = Path(__file__).resolve().parents[1]
PITCHES = {"ONE": 300, "TWO": 500, "THREE": 800, "FOUR": 1200}
SPEAKERS = [f"speaker{number:02d}" for number in range(12)]


def say(words, rate=16000) -> np.ndarray:
    """Each word is 0.3 s of a pitch of its own, in noise."""
    time = np.arange(int(0.3 * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * PITCHES[word] * time) for word in words]
    return np.concatenate(tones) + 0.01 * np.random.default_rng(len(words)).standard_normal(len(words) * len(time))


def utterances(count=8):
    """(speaker, id, words) of a small corpus: every speaker says other words."""
    random = np.random.default_rng(1)
    for speaker in SPEAKERS:
        for number in range(count):
            words = list(random.choice(list(PITCHES), random.integers(2, 6)))
            yield speaker, f"{speaker}-{number}", words


def csv_corpus(folder: Path, count=8, header=("audio", "text", "speaker"), separator=",") -> Path:
    (folder / "wav").mkdir(parents=True)
    with open(folder / "corpus.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=separator)
        if header:
            table.writerow(header)
        for speaker, name, words in utterances(count):
            soundfile.write(folder / "wav" / f"{name}.wav", say(words), 16000)
            table.writerow([f"wav/{name}.wav", " ".join(words).lower(), speaker])
    return folder / "corpus.csv"


def kaldi_corpus(folder: Path) -> Path:
    """One recording a speaker, cut into utterances by a file of segments."""
    (folder / "wav").mkdir(parents=True)
    lines = {name: [] for name in ("wav.scp", "text", "utt2spk", "segments")}
    talks = {}
    for speaker, name, words in utterances():
        start = sum(map(len, talks.get(speaker, []))) / 16000
        talks.setdefault(speaker, []).append(say(words))
        lines["text"].append(f"{name} {' '.join(words)}")
        lines["utt2spk"].append(f"{name} {speaker}")
        lines["segments"].append(f"{name} {speaker} {start:.3f} {start + 0.3 * len(words):.3f}")
    for speaker, talk in talks.items():
        soundfile.write(folder / "wav" / f"{speaker}.flac", np.concatenate(talk), 16000)
        lines["wav.scp"].append(f"{speaker} wav/{speaker}.flac")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
    return folder


def manifests_corpus(folder: Path) -> Path:
    """Lhotse manifests with parts of their own, one in letters beyond ASCII; one speaker of the test is in train too."""
    csv_corpus(folder)
    parts = {"train": [], "dev": [], "test-größe": []}
    for speaker, name, words in utterances():
        number = SPEAKERS.index(speaker)
        part = "dev" if number == 1 else "test-größe" if number == 2 or name == f"{SPEAKERS[3]}-0" else "train"
        recording = Recording.from_file(folder / "wav" / f"{name}.wav")
        parts[part].append((recording, SupervisionSegment(id=name, recording_id=name, start=0, duration=recording.duration,
                                                          text=" ".join(words), speaker=speaker)))
    write_parts(folder / "manifests", {
        part: (RecordingSet.from_recordings(r for r, _ in pairs), SupervisionSet.from_segments(s for _, s in pairs))
        for part, pairs in parts.items()})
    return folder / "manifests"


def yesno_corpus(folder: Path) -> Path:
    """In the layout of OpenSLR 1, as Lhotse's recipe yesno expects it: 60 files of eight words each."""
    folder.mkdir()
    for number in range(60):
        bits = f"{number * 4 + 3:08b}"
        words = ["ONE" if bit == "1" else "TWO" for bit in bits]
        soundfile.write(folder / f"{'_'.join(bits)}.wav", say(words, 8000), 8000)
    return folder


def commonvoice_corpus(folder: Path, columns: str) -> Path:
    """In the layout of Common Voice, in MP3, of one language."""
    clips = folder / "eu" / "clips"
    clips.mkdir(parents=True)
    rows = {part: [columns.split()] for part in ("train", "dev", "test")}
    for speaker, name, words in utterances(2):
        part = {SPEAKERS[1]: "dev", SPEAKERS[2]: "test"}.get(speaker, "train")
        soundfile.write(clips / f"{name}.mp3", say(words, 32000), 32000, format="MP3")
        values = {"client_id": speaker, "path": f"{name}.mp3", "sentence": f'"{" ".join(words)}'}  # an open quote is text
        rows[part].append([values.get(column, "") for column in columns.split()])
    for part, lines in rows.items():
        (folder / "eu" / f"{part}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("new_recipe", ROOT / "tools" / "new_recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def new_recipe(tool, tmp_path, monkeypatch, capsys):
    """Called with the tool's options it makes tmp_path/house/egs/mine, in a house of the shared stages, and returns what
    was printed."""
    house = tmp_path / "house"
    (house / "egs").mkdir(parents=True)
    for name in ("local", "tools"):
        (house / name).symlink_to(ROOT / name)

    def call(*options, name="mine"):
        monkeypatch.setattr(sys, "argv", ["new_recipe.py", "--name", name, "--output", str(house / "egs"), "--jobs", "1",
                                          *map(str, options)])
        capsys.readouterr()
        tool.main()
        return capsys.readouterr().out

    call.folder = house / "egs" / "mine"
    return call


FORMS = {"csv": csv_corpus, "kaldi": kaldi_corpus, "manifests": manifests_corpus, "lhotse": yesno_corpus}


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
        assert [row["model"] for row in rows] == ["teacher", "stage1", "stage2", "stage3", "scratch", "single",
                                                  "single-matched"]
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
        assert [line.split(" utt")[0] for line in output.splitlines()[:3]] == ["train: 20", "dev: 2", "eu-test: 2"]
        assert "audio: 24 recordings of 32000 Hz, 1 channel" in output and "held out" not in output
        assert len(CutSet.from_file(stage_1(new_recipe.folder) / "cuts_eu-test.jsonl.gz")) == 2

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

    def test_an_existing_folder_is_left_alone(self, new_recipe, tmp_path, monkeypatch):
        table = csv_corpus(tmp_path / "corpus", count=2)
        new_recipe.folder.mkdir()
        (new_recipe.folder / "mine.txt").write_text("years of work")
        monkeypatch.chdir(new_recipe.folder.parents[1])
        with pytest.raises(RecipeError, match="^egs/mine exists and is not overwritten"):
            new_recipe("--csv", table)
        assert [path.name for path in new_recipe.folder.iterdir()] == ["mine.txt"]
        assert [path.name for path in new_recipe.folder.parent.iterdir()] == ["mine"]

    @pytest.mark.parametrize("name", ["../mine", "Mine", "a b", "_x", "$(touch x)"])
    def test_a_name_that_is_no_folder_is_refused(self, new_recipe, tmp_path, name):
        with pytest.raises(RecipeError, match="small letters, digits"):
            new_recipe("--csv", tmp_path / "none.csv", name=name)

    def test_the_path_of_the_corpus_may_hold_anything(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "my $(touch ran) 'speech'", count=2)
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
            monkeypatch.setattr(sys, "argv", ["new_recipe.py", "--name", "mine", "--csv", str(table), "--output", str(output)])
            with pytest.raises(RecipeError, match=f"--output {output}: .* needs {lacks}, which is missing: leave the option "):
                tool.main()
            assert not output.exists() and "decode" not in capsys.readouterr().err  # said before hours of work

    def test_an_error_is_one_line(self, tmp_path):
        done = subprocess.run([sys.executable, str(ROOT / "tools" / "new_recipe.py"), "--name", "mine", "--csv",
                               str(tmp_path / "none.csv"), "--output", str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'none.csv'} is missing")
        assert done.stderr.count("\n") == 1


class TestTheSurvey:
    def test_it_tells_what_is_wrong_with_a_corpus(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "corpus")
        wav = table.parent / "wav"
        (wav / "speaker00-0.wav").unlink()
        (wav / "speaker00-1.wav").write_bytes((wav / "speaker00-1.wav").read_bytes()[:4000])
        soundfile.write(wav / "speaker01-0.wav", np.zeros(16000 * 31), 16000)
        soundfile.write(wav / "speaker01-1.wav", np.zeros((9600, 2)), 48000)
        lines = table.read_text().splitlines()
        lines += [lines[-1], f"wav/speaker02-0.wav, ,{SPEAKERS[2]}"]
        lines[20] = lines[20].replace(",", ",4 ", 1)
        table.write_text("\n".join(lines))
        output = new_recipe("--csv", table)
        for said in ("skipped wav-speaker00-0: ", "is missing", "skipped wav-speaker00-1: ", "is cut short",
                     "skipped wav-speaker11-7: a second utterance of this id", "skipped 4 in all",
                     "dev and test are held out of train by speaker", "1 utterances longer than 30 s",
                     "93 recordings of 16000 Hz, 1 channel; 1 recordings of 48000 Hz, 2 channels",
                     "odd character '4' (DIGIT FOUR): 1 times in 1 transcripts"):
            assert said in output, said

    def test_speakers_of_a_test_that_train_hears(self, new_recipe, tmp_path):
        output = new_recipe("--manifests", manifests_corpus(tmp_path / "corpus"))
        assert f"1 speakers of test-größe are in train too: {SPEAKERS[3]}" in output
        assert "held out" not in output
        assert 'test_sets="test-größe"' in (new_recipe.folder / "run.sh").read_text()

    def test_pairs_overlap_within_a_part_alone(self, new_recipe, tmp_path):
        """Kaldi folders of one talk each, called the same, whose utterances are called differently."""
        for part in ("train", "test"):
            folder = kaldi_corpus(tmp_path / "corpus" / part)
            for name in ("text", "utt2spk", "segments"):
                (folder / name).write_text("".join(f"{part}-{line}\n" for line in (folder / name).read_text().splitlines()))
        assert "pairs of utterances overlap" not in new_recipe("--kaldi", tmp_path / "corpus")

    def test_each_utterance_counts_once_and_where_it_is_left_out(self):
        """Two test sets of one talk, which share an utterance; and one too long, that tests decode all the same."""
        recordings, supervisions = [cut("a").recording], {
            name: [SupervisionSegment(id=id_, recording_id="a", start=begin, duration=2, text="A") for id_, begin in times]
            for name, times in (("one", [("x", 0), ("y", 1)]), ("two", [("x", 0), ("y", 1), ("z", 9)]))}
        parts = {"train": [cut("t"), cut("short", seconds=0.15)], "dev": [cut("d", seconds=31.0)],
                 "one": [cut("x"), cut("y")], "two": [cut("x"), cut("y"), cut("z", seconds=40.0)]}
        lines = describe_survey([(recordings, some) for some in supervisions.values()], parts)
        assert sum(map(int, re.findall(r"^ *[0-9.]+ - +[0-9.]* s +(\d+)", "\n".join(lines), re.MULTILINE))) == 6
        assert "1 utterances longer than 30 s, which training leaves out: d" in lines
        assert "1 utterances shorter than 0.2 s, which training leaves out: short" in lines
        assert "audio: 1 recordings of 16000 Hz, 1 channel" in lines
        assert "1 pairs of utterances overlap in their recording: x and y" in lines

    def test_punctuation_that_is_common_is_one_line(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "corpus", 2)
        lines = table.read_text().splitlines()
        lines[1:] = [line.replace(" ", ", ", 1) if k % 2 else line for k, line in enumerate(lines[1:])]
        table.write_text("\n".join(re.sub(r"^([^,]*),(.*),([^,]*)$", r'\1,"\2",\3', line) for line in lines))
        output = new_recipe("--csv", table)
        assert ("punctuation, which becomes tokens and is scored unless the recipe's normalise takes it out: "
                "',' in 50% of the transcripts") in output
        assert "odd character" not in output

    @pytest.mark.parametrize("parts, said", [
        ({"train": "", "dev": "ONE", "test": "ONE"}, "no utterance that can be used in train, which makes train: mend what"),
        ({"train": "ONE", "dev": " ", "test": "ONE"}, "in dev, which makes dev"),
        ({"train": "ONE", "dev": "ONE", "test": ""}, "in test, which makes test"),
        ({"all": ""}, "no utterance that can be used in all, which makes train")])
    def test_a_part_without_transcripts_is_one_error(self, new_recipe, tmp_path, capsys, parts, said):
        for part, text in parts.items():
            folder = tmp_path / "corpus" / part
            folder.mkdir(parents=True)
            for k in range(4):
                soundfile.write(folder / f"{part}{k}.wav", say(["ONE"]), 16000)
            (folder / "wav.scp").write_text("".join(f"{part}{k} {part}{k}.wav\n" for k in range(4)))
            (folder / "text").write_text("".join(f"{part}{k} {text}\n" for k in range(4)))
        with pytest.raises(RecipeError, match=said):
            new_recipe("--kaldi", tmp_path / "corpus")
        assert "its transcript is empty" in capsys.readouterr().out and not new_recipe.folder.exists()

    def test_an_utterance_of_train_in_a_test_is_refused(self, new_recipe, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "supervisions_test-größe.jsonl.gz"
        tests = list(SupervisionSet.from_file(path))
        SupervisionSet.from_segments([*tests, next(iter(SupervisionSet.from_file(
            folder / "supervisions_train.jsonl.gz")))]).to_file(path)
        with pytest.raises(RecipeError, match="the utterance speaker00-0 is in the part train, which makes train, and in "
                                              r"test-größe, which makes test-größe \(1 of theirs are in both\): take it"):
            new_recipe("--manifests", folder)
        assert not new_recipe.folder.exists()

    def test_numbers_for_ids_texts_and_speakers(self, new_recipe, tmp_path):
        """As JSON that another program wrote may have them."""
        folder = manifests_corpus(tmp_path / "corpus")
        for path in folder.glob("*.jsonl.gz"):
            rows = [json.loads(line) for line in gzip.open(path, "rt")]
            for row in rows:
                for key in {"id", "recording_id", "speaker"} & row.keys():
                    row[key] = int(re.sub(r"\D", "", row[key]))
            if path.name.startswith("supervisions"):
                rows[0]["text"] = 5
            with gzip.open(path, "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        output = new_recipe("--manifests", folder)
        assert "train: 79 utterances" in output and "1 speakers of test-größe are in train too: 3" in output

    def test_histogram_covers_shortest_to_longest(self):
        lines = histogram([0.7, 2.5, 2.6, 45.0])
        assert len(lines) == 12 and lines[0].split()[:5] == ["0.5", "-", "1", "s", "1"]
        assert lines[2].count("#") == 40 and lines[0].count("#") == 20 and lines[-1].split()[:4] == ["30", "-", "s", "1"]

    def test_odd_characters_are_those_that_do_not_belong(self):
        texts = {f"u{k}": "THE CAT'S MAT" for k in range(100)}
        assert odd_characters(texts) == {}
        texts.update(a="5 CATS", b="A CAT – 5", c="КОТ")
        odd = odd_characters(texts)
        assert set(odd) == set("5–КОТ") and odd["5"] == (2, ["a", "b"])
        assert odd_characters({f"u{k}": f"ROOM {k % 10}" for k in range(100)}) == {}  # this corpus writes digits
        chinese = {f"u{k}": chr(0x4E00 + k) + "的" for k in range(100)}
        assert odd_characters(chinese) == {} and unspaced(chinese.values()) and not unspaced(texts.values())

    def test_a_combining_accent_is_odd_where_it_is_rare(self):
        texts = {f"u{k}": "CAFÉ" for k in range(100)}
        assert set(odd_characters({**texts, "d": "CAFE\u0301 X\u0302"})) == {"\u0301", "\u0302"}
        yoruba = {f"u{k}": "Ẹ\u0300KỌ\u0301" for k in range(100)}
        assert odd_characters(yoruba) == {}
        hindi = {**{f"u{k}": "नमस्ते" for k in range(100)}, "x": "की"}
        assert odd_characters(hindi) == {}  # a vowel sign is a letter of its script, however rare

    def test_common_punctuation(self):
        texts = {f"u{k}": "WELL, IT'S 5" if k % 4 else "YES!" if k else "HÉ & E\u0301" for k in range(100)}
        assert common_punctuation(texts) == {",": 75, "!": 24} and set(odd_characters(texts)) == {"&", "\u0301"}

    def test_overlaps_are_of_one_channel(self):
        def segment(name, start, duration, channel=0, of="talk"):
            return SupervisionSegment(id=name, recording_id=of, start=start, duration=duration, channel=channel)

        found = overlapping(SupervisionSet.from_segments([
            segment("a", 0, 10), segment("b", 2, 1), segment("c", 5, 1), segment("d", 10, 1), segment("e", 5, 5, channel=1),
            segment("f", 0, 5, of="other")]))
        assert found == [("a", "b"), ("a", "c")]
        assert overlapping([segment("a", 0, 10), segment("a", 0, 10), segment("b", 2, 1)]) == [("a", "b")]


def cut(name: str, speaker="s", seconds=1.0, of=""):
    recording = Recording(id=of or name, sources=[AudioSource("file", [0], f"{name}.wav")], sampling_rate=16000,
                          num_samples=16000 * 60, duration=60.0)
    return MonoCut(id=name, start=0, duration=seconds, channel=0, recording=recording, supervisions=[
        SupervisionSegment(id=name, recording_id=recording.id, start=0, duration=seconds, text="A", speaker=speaker)])


def long_session(table: Path) -> Path:
    """The table with a recording of a minute and a half more, that was never cut into utterances."""
    soundfile.write(table.parent / "wav" / "session.wav", say(["ONE"] * 300), 16000)
    with open(table, "a") as file:
        file.write(f"wav/session.wav,one two,{SPEAKERS[0]}\n")
    return table


class TestHoldingOut:
    SHARES = {"dev": 0.1, "test": 0.1}

    def names(self, dealt):
        return {part: sorted(c.id for c in cuts) for part, cuts in dealt.items()}

    def test_by_speaker_and_by_nothing_else_than_the_names(self):
        cuts = [cut(f"{speaker}-{k}", speaker) for speaker in map(str, range(20)) for k in range(5)]
        dealt, by = hold_out(cuts, self.SHARES)
        assert by == "speaker" and shared_speakers(dealt) == {}
        assert {part: len(some) for part, some in dealt.items()} == {"train": 80, "dev": 10, "test": 10}
        assert self.names(hold_out(cuts[::-1], self.SHARES)[0]) == self.names(dealt)
        assert sorted(c.id for some in dealt.values() for c in some) == sorted(c.id for c in cuts)

    @pytest.mark.parametrize("cuts, by", [
        ([cut(f"{k}", "one") for k in range(30)], "utterance"),
        ([cut(f"{k}", None) for k in range(30)], "utterance"),
        ([cut(f"{k}", None, of=f"talk{k % 15}") for k in range(45)], "recording"),
        # one speaker says nearly everything
        ([cut(f"{k}", f"s{k}" if k < 12 else "talker", 1.0 if k < 12 else 25.0) for k in range(40)], "utterance")])
    def test_where_speakers_are_too_few(self, cuts, by):
        dealt, how = hold_out(cuts, self.SHARES)
        assert how == by and len(dealt["train"]) > 0.6 * len(cuts)
        assert all(dealt.values())

    def test_three_utterances_are_enough_and_two_are_not(self):
        dealt, _ = hold_out([cut(name) for name in "abc"], self.SHARES)
        assert all(len(some) == 1 for some in dealt.values())
        with pytest.raises(RecipeError, match="2 utterances that can be used are too few"):
            hold_out([cut(name) for name in "ab"], self.SHARES)

    def test_what_training_leaves_out_has_no_share_and_stays_in_train(self):
        cuts = [cut(f"{k}", "one", 5.0) for k in range(30)] + [cut("session", "one", 3000.0), cut("click", "one", 0.15)]
        dealt, _ = hold_out(cuts, self.SHARES)
        assert {part: len(some) for part, some in dealt.items()} == {"train": 26, "dev": 3, "test": 3}
        assert {"session", "click"} <= {c.id for c in dealt["train"]}
        with pytest.raises(RecipeError, match=r"2 utterances that can be used are too few .* \(besides, there are 1 "
                                              r"longer than 30 s and 1 shorter than 0.2 s\)"):
            hold_out([cut("a"), cut("b"), cut("c", seconds=40.0), cut("d", seconds=0.1)], self.SHARES)

    def test_each_part_gets_an_utterance_however_they_last(self):
        for names in ("abc", "abd", "bce", "xyz"):
            for place in range(3):
                dealt, _ = hold_out([cut(n, seconds=29.0 if k == place else 0.2) for k, n in enumerate(names)], self.SHARES)
                assert all(len(some) == 1 for some in dealt.values())

    @pytest.mark.parametrize("unknown", [None, ""])
    def test_utterances_of_unknown_speakers_go_to_train(self, unknown):
        cuts = [cut(f"{speaker}-{k}", speaker) for speaker in map(str, range(20)) for k in range(5)]
        dealt, by = hold_out([*cuts, cut("somebody", unknown)], self.SHARES)
        assert by == "speaker" and shared_speakers(dealt) == {} and "somebody" in {c.id for c in dealt["train"]}
        assert describe_holding(self.SHARES, by, dealt["train"]) == (
            "dev and test are held out of train by speaker; 1 utterances whose speakers are not known are in train")

    def test_speakers_of_one_utterance_each_are_speakers(self):
        dealt, by = hold_out([cut(f"{k}", f"s{k}") for k in range(30)], self.SHARES)
        assert by == "speaker" and describe_holding(["dev"], by, dealt["train"]) == "dev is held out of train by speaker"

    def test_parts_by_their_names(self):
        assert part_roles(["train_clean", "other", "Dev-A", "valid", "test_other", "eval92"]) == {
            "train": ["train_clean", "other"], "dev": ["Dev-A", "valid"], "test-other": ["test_other"], "eval92": ["eval92"]}
        assert part_roles(["all"]) == {"train": ["all"]}
        assert part_roles(["größe-test", "prédev", "test.1"]) == {"train": ["prédev"], "größe-test": ["größe-test"],
                                                                 "test-1": ["test.1"]}

    @pytest.mark.parametrize("names", [("test_a", "test-a"), ("Test", "test"), ("train", "eval.1", "eval-1")])
    def test_test_sets_of_one_name_are_refused(self, names):
        with pytest.raises(RecipeError, match=f"the parts {names[-2]} and {names[-1]} of the corpus would both be called"):
            part_roles(names)

    def part(self, folder, ids, of=""):
        """Utterances of a part: each of a recording of its own, or all of the recording ``of``."""
        folder.mkdir()
        recordings = {}
        for name in ids:
            soundfile.write(folder / f"{of or name}.wav", say(["ONE"]), 16000)
            recordings[of or name] = Recording.from_file(folder / f"{of or name}.wav")
        return RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(
            SupervisionSegment(id=name, recording_id=of or name, start=0, duration=0.3, text="ONE") for name in ids)

    def test_an_id_in_two_parts_of_one_role_is_left_out_once(self, tmp_path, capsys):
        parts = {"a": self.part(tmp_path / "a", ["u0", "u1"]), "b": self.part(tmp_path / "b", ["u1", "u2"])}
        write_parts(tmp_path / "raw", parts)
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["a", "b"]}, {}, 16000)
        output = capsys.readouterr().out
        assert "skipped u1: a second utterance of this id" in output
        assert listed(tmp_path / "manifests")[-1] == (f"{tmp_path / 'raw'}, train", "u1", "a second utterance of this id")
        assert "cuts_train.jsonl.gz: 3 utterances" in output
        cuts = CutSet.from_file(tmp_path / "manifests" / "cuts_train.jsonl.gz")
        assert {c.id: Path(c.recording.sources[0].source).parent.name for c in cuts} == {"u0": "a", "u1": "a", "u2": "b"}

    def test_one_recording_id_of_two_files_is_left_out_once(self, tmp_path):
        parts = {"a": self.part(tmp_path / "a", ["u0"], "talk"), "b": self.part(tmp_path / "b", ["u1"], "talk")}
        parts["c"] = parts["a"][0], SupervisionSet.from_segments([
            SupervisionSegment(id="u2", recording_id="talk", start=0, duration=0.2, text="TWO")])
        skipped = Skipped()
        cuts = checked_role(parts, ["a", "b", "c"], 16000, skipped)
        assert [c.id for c in cuts] == ["u0", "u2"] and len(skipped) == 2  # the recording of b, and u1 that is lost by it
        assert {Path(c.recording.sources[0].source).parent.name for c in cuts} == {"a"}

    @given(st.lists(st.tuples(st.sampled_from(["train", "dev", "test-a", "test-b"]), st.integers(0, 5)), unique=True))
    def test_ids_are_apart_but_for_test_sets(self, placed):
        """However the parts are ordered."""
        parts, roles = {}, {}
        for role, number in placed:
            roles.setdefault(role, []).append(f"{role}{number}")
            parts[f"{role}{number}"] = [], [SupervisionSegment(id=f"u{number}", recording_id="r", start=0, duration=1)]
        leak = any(a[1] == b[1] and a[0] != b[0] and {a[0], b[0]} & {"train", "dev"} for a in placed for b in placed)
        if leak:
            with pytest.raises(RecipeError, match=r"the utterance u\d is in the part"):
                check_apart(parts, roles)
        else:
            check_apart(parts, roles)

    def test_a_leak_is_refused_by_the_recipe_too(self, tmp_path):
        write_parts(tmp_path / "raw", {"a": self.part(tmp_path / "a", ["u0", "u1"]), "b": self.part(tmp_path / "b", ["u1"])})
        with pytest.raises(RecipeError, match="utterance u1 is in the part a, which makes train, and in b, which makes dev"):
            prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["a"], "dev": ["b"]}, {}, 16000)

    def test_the_same_audio_under_another_id_is_a_leak_too(self, tmp_path):
        """By whatever path it is named; other times or another channel of it are something else."""
        recordings, _ = self.part(tmp_path / "a", ["talk"])
        (tmp_path / "link.wav").symlink_to(tmp_path / "a" / "talk.wav")
        other = Recording.from_file(tmp_path / "link.wav", recording_id="other")

        def said(id_, start, duration, of="other", channel=0):
            return SupervisionSegment(id=id_, recording_id=of, start=start, duration=duration, text="ONE", channel=channel)

        parts = {"a": (recordings, [said("u0", 0, 0.1, "talk"), said("u1", 0.1, 0.2, "talk"), said("u2", 0, 0.2, "talk")]),
                 "b": ([other], [said("v0", 0.1, 0.1), said("v1", 0, 0.1, channel=1), said("v2", float("nan"), 0.1)])}
        roles = {"train": ["a"], "test": ["b"]}
        check_apart(parts, roles)
        parts["b"][1].extend([said("v3", 0.1002, 0.1999), said("v4", 0, 0.2)])
        with pytest.raises(RecipeError, match=r"utterance u1 of the part a, which makes train, is the same audio as v3 of b, "
                                              r"which makes test \(2 of theirs are in both\): take it out of one of them"):
            check_apart(parts, roles)
        check_apart(parts, {"test-a": ["a"], "test-b": ["b"]})

    @pytest.mark.parametrize("speakers", [["one"], [f"s{k}" for k in range(15)]])
    def test_the_same_audio_under_two_ids_is_held_out_as_one(self, speakers):
        cuts = [cut(f"{name}{k}", speakers[(k + shift) % len(speakers)], of=f"talk{k}")
                for name, shift in (("u", 0), ("v", 1)) for k in range(30)]
        for k, some in enumerate(cuts):
            some.recording.sources[0].source = f"talk{k % 30}.wav"
        dealt, by = hold_out(cuts, self.SHARES)
        assert by == ("utterance" if speakers == ["one"] else "speaker")
        places = {part: {c.id[1:] for c in some} for part, some in dealt.items()}
        assert sum(map(len, places.values())) == 30 and sorted(c.id for some in dealt.values() for c in some) == sorted(
            c.id for c in cuts)
        with pytest.raises(RecipeError, match="2 utterances that can be used are too few"):
            hold_out([some for some in cuts if some.id[1:] in "01"], self.SHARES)

    def test_one_long_recording_leaves_training_what_it_had(self, new_recipe, tmp_path, capsys):
        table = csv_corpus(tmp_path / "corpus", 2)
        without = new_recipe("--csv", table)
        with_it = new_recipe("--csv", long_session(table), name="other")
        count = re.compile(r"^train: (\d+)", re.MULTILINE)
        assert int(count.search(with_it)[1]) == int(count.search(without)[1]) + 1
        assert "1 utterances longer than 30 s, which training leaves out: wav-session" in with_it
        hours = re.compile("for ([0-9.]+) h of training")
        assert hours.search(with_it)[1] == hours.search(without)[1]
        write_parts(tmp_path / "raw", read_corpus("csv", str(table), Skipped()))
        for hours in (0.0, 0.002):  # some of the hours are hours of utterances too
            prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["all"]}, self.SHARES, 16000, hours=hours)
            train = CutSet.from_file(tmp_path / "manifests" / "cuts_train.jsonl.gz")
            assert sum(c.duration < 30 for c in train) > 2

    def test_nothing_to_train_on_is_one_error(self, new_recipe, tmp_path):
        (tmp_path / "wav").mkdir()
        for k in range(4):
            soundfile.write(tmp_path / "wav" / f"{k}.wav", say(["ONE"] * 120), 16000)
        (tmp_path / "corpus.csv").write_text("".join(f"wav/{k}.wav,one,anna\n" for k in range(4)))
        with pytest.raises(RecipeError, match="corpus.csv has no utterance that can be trained on: of 4 there are 4 longer "
                                              "than 30 s; cut long recordings into utterances"):
            new_recipe("--csv", tmp_path / "corpus.csv")
        assert not new_recipe.folder.exists()

    def test_cuts_of_a_part_of_the_hours(self, tmp_path, capsys):
        write_parts(tmp_path / "raw", read_corpus("csv", str(csv_corpus(tmp_path / "corpus")), Skipped()))
        part = read_manifests(tmp_path / "raw", Skipped())["all"]
        some = subset(part, 0.01)[1]
        assert 36 <= sum(s.duration for s in some) < 38 and list(subset(part, 0.01)[1]) == list(some)
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["all"]}, self.SHARES, 16000, hours=0.01)
        assert "train.jsonl.gz" in capsys.readouterr().out
        with pytest.raises(RecipeError, match="holds no part gone, which makes train: it holds all"):
            prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["gone"]}, {}, 16000)


class TestWriting:
    def test_what_is_as_before_stays_and_mended_audio_shows(self, tmp_path):
        table = csv_corpus(tmp_path / "corpus", 1)
        file = tmp_path / "corpus" / "wav" / "speaker03-0.flac"
        soundfile.write(file, say(["ONE"] * 5), 16000)
        table.write_text(table.read_text().replace("speaker03-0.wav", "speaker03-0.flac"))
        whole = file.read_bytes()
        file.write_bytes(whole[:len(whole) // 2])  # its header is that of the whole

        def written():
            write_parts(tmp_path / "raw", read_corpus("csv", str(table), Skipped()))
            return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "raw").iterdir()}

        first = written()
        assert set(first) == {"recordings_all.jsonl.gz", "supervisions_all.jsonl.gz", "audio.txt"}
        assert written() == first
        file.write_bytes(whole)
        mended = written()
        assert {name for name in first if mended[name] != first[name]} == {"audio.txt"}
        (tmp_path / "raw" / "recordings_all.jsonl.gz").write_bytes(b"damaged")
        assert written()["recordings_all.jsonl.gz"][0][:2] == b"\x1f\x8b"


class TestForms:
    def read(self, form, source, **options):
        skipped = Skipped()
        return read_corpus(form, str(source), skipped, **options), len(skipped)

    @pytest.mark.parametrize("header, separator", [(("audio", "text", "speaker"), ","), (None, ","), (None, "\t"),
                                                   (("path", "sentence", "client_id"), ";")])
    def test_tables(self, tmp_path, header, separator):
        table = csv_corpus(tmp_path / "corpus", 2, header, separator)
        ((name, (recordings, supervisions)),), left_out = self.read("csv", table)[0].items(), self.read("csv", table)[1]
        assert name == "all" and left_out == 0 and len(recordings) == len(supervisions) == 24
        first = next(iter(supervisions))
        assert (first.id, first.speaker) == ("wav-speaker00-0", "speaker00") and first.text.islower()

    def test_a_table_of_two_columns_or_others_in_another_order(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", say(["ONE"]), 16000)
        (tmp_path / "two.csv").write_text('a.wav,"one, two"\n')
        (tmp_path / "more.csv").write_text("﻿speaker,id,Text,Audio\nanna,7,one,a.wav\n", encoding="utf-8")
        two, more = (next(iter(self.read("csv", tmp_path / name)[0]["all"][1])) for name in ("two.csv", "more.csv"))
        assert (two.text, two.speaker) == ("one, two", None) and (more.text, more.speaker) == ("one", "anna")

    def table(self, tmp_path, text, files=("a.wav", "b.wav", "c.wav")):
        """What is read of a table, (id, text) each, and why the rest is not."""
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            soundfile.write(tmp_path / name, say(["ONE", "TWO"]), 16000)
        (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        skipped = Reasons()
        supervisions = read_corpus("csv", str(tmp_path / "t.csv"), skipped)["all"][1]
        return [(s.id, s.text) for s in supervisions], skipped.of

    @pytest.mark.parametrize("header, end", [("audio,start,end,text", "0.3"), ("offset,duration,audio,text", "0.2")])
    def test_rows_of_a_part_of_their_file(self, tmp_path, header, end):
        rows = [("a.wav", "0.1", end, "one"), ("a.wav", "x", end, "two"), ("b.wav", "0.1", end, "three")]
        if header.startswith("offset"):
            rows = [(start, end, audio, text) for audio, start, end, text in rows]
        found, left_out = self.table(tmp_path, "\n".join([header, *map(",".join, rows)]))
        assert found == [("a-0000100", "one"), ("b-0000100", "three")]
        assert list(left_out.values()) == ["its times are no numbers of seconds"]
        first = next(iter(read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1]))
        assert (first.start, round(first.end, 6), first.recording_id) == (0.1, 0.3, "a")

    @pytest.mark.parametrize("header, said", [
        ("audio,start,text", "start, but not where they end"), ("audio,end,text", "end, but not where they start"),
        ("transcript,sound,who", "names a column transcript, but none of the audio: call that one audio"),
        ("audio,words,who", "names a column audio, but none of the text: call that one text")])
    def test_a_header_that_lacks_a_name_is_one_error(self, tmp_path, header, said):
        with pytest.raises(RecipeError, match=said):
            self.table(tmp_path, f"{header}\na.wav,1,one\n")

    def test_files_of_one_id_are_both_named(self, tmp_path):
        found, left_out = self.table(tmp_path, "s1/1-0.wav,one\ns1-1/0.wav,two\n./s1/1-0.wav,three\n",
                                     ("s1/1-0.wav", "s1-1/0.wav"))
        assert found == [("s1-1-0", "one"), ("s1-1-0", "three")]  # the second of which is left out as such later
        (reason,) = left_out.values()
        assert "s1-1/0.wav would have the id s1-1-0, which is that of" in reason and "s1/1-0.wav: rename" in reason

    @pytest.mark.parametrize("text", [
        "sep=;\na.wav;one, two\nb.wav;one, three\n", 'a.wav,"one; two"\nb.wav,"one; three"\n'.replace("; ", ", "),
        "a.wav,one; two\nb.wav,one; three\n", "a.wav\tone\nb.wav\ttwo\n".encode("utf-16")])
    def test_the_separator_is_the_one_under_which_there_is_audio(self, tmp_path, text):
        found, left_out = self.table(tmp_path, text)
        assert [name for name, _ in found] == ["a", "b"] and left_out == {} and "one" in found[0][1]

    def test_an_open_quote_takes_in_no_rows(self, tmp_path):
        found, left_out = self.table(tmp_path, 'a.wav,"one,anna\nb.wav,two,anna\nc.wav,three",anna\na.wav,"x\ny",anna\n')
        assert found == [("b", "two"), ("c", 'three"'), ("a", "x\ny")]
        ((where, reason),) = left_out.items()
        assert where.endswith("line 1") and "goes on to line 3, over rows with audio of their own" in reason

    def test_rows_without_audio_or_text_are_counted(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", say(["ONE"]), 16000)
        (tmp_path / "bad.csv").write_text("a.wav,one,anna\nnone.wav,one,anna\nlonely\n,two,anna\n")
        parts, left_out = self.read("csv", tmp_path / "bad.csv")
        assert len(parts["all"][1]) == 1 and left_out == 3

    def test_kaldi_folders(self, tmp_path):
        folder = kaldi_corpus(tmp_path / "corpus")
        (recordings, supervisions), left_out = self.read("kaldi", folder)[0]["all"], self.read("kaldi", folder)[1]
        assert left_out == 0 and len(recordings) == 12 and len(supervisions) == 96
        second = supervisions["speaker00-1"]
        assert second.recording_id == second.speaker == "speaker00" and second.start > 0
        with open(folder / "text", "a") as text, open(folder / "segments", "a") as segments:
            text.write("lost ONE\nlast TWO\nlast THREE\n")
            segments.write("last speaker00 1.5 -1\nodd speaker00 1.5\n")
        (_, supervisions), left_out = self.read("kaldi", folder)[0]["all"], self.read("kaldi", folder)[1]
        assert left_out == 3  # lost, the second last, odd
        assert supervisions["last"].end == pytest.approx(recordings["speaker00"].duration)
        parts, _ = self.read("kaldi", folder.parent)
        assert list(parts) == ["corpus"]

    def test_names_of_parts_keep_their_letters_and_stay_apart(self, tmp_path):
        names = ["größe_test", "训练", "हिन्दी dev", "a.b-c"]
        for name in names:
            kaldi_corpus(tmp_path / "corpus" / name)
        wanted = {name.replace("_", "-").replace(" ", "-") for name in names}
        assert set(self.read("kaldi", tmp_path / "corpus")[0]) == wanted
        kaldi_corpus(tmp_path / "corpus" / "a.b_c")
        with pytest.raises(RecipeError, match=r"the parts a.b-c and a.b_c of .*corpus would both be called 'a.b-c': rename"):
            self.read("kaldi", tmp_path / "corpus")

    def test_a_part_of_manifests_that_is_there_twice_is_refused(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        for kind in ("recordings", "supervisions"):
            (folder / f"{kind}_dev.jsonl").write_bytes(gzip.decompress((folder / f"{kind}_dev.jsonl.gz").read_bytes()))
        with pytest.raises(RecipeError, match="has the part dev twice, the second time in recordings_dev.jsonl.gz: take"):
            self.read("manifests", folder)

    @pytest.mark.parametrize("command", ["cat a.wav |", "sph2pipe -f wav a.sph |", "touch {flag} |"])
    def test_commands_in_wav_scp_are_refused_and_not_run(self, tmp_path, command):
        flag = tmp_path / "ran"
        (tmp_path / "wav.scp").write_text(f"a {command.format(flag=flag)}\n")
        (tmp_path / "text").write_text("a ONE\n")
        with pytest.raises(RecipeError, match="wav.scp, line 1 .a. holds a command, which is never run: write the audio to"):
            self.read("kaldi", tmp_path)
        assert not flag.exists()

    def test_relative_audio_is_found_above_the_manifests(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "recordings_dev.jsonl.gz"
        recordings = RecordingSet.from_recordings(
            Recording(r.id, [AudioSource("file", [0], f"wav/{r.id}.wav")], r.sampling_rate, r.num_samples, r.duration)
            for r in RecordingSet.from_file(path))
        recordings.to_file(path)
        found = read_manifests(folder, Skipped())["dev"][0]
        assert all(Path(r.sources[0].source).is_file() and Path(r.sources[0].source).is_absolute() for r in found)

    def changed(self, folder: Path, kind: str, **values) -> Path:
        """Manifests with other values in the first row of a file."""
        path = manifests_corpus(folder) / f"{kind}_train.jsonl.gz"
        rows = [json.loads(line) for line in gzip.open(path, "rt")]
        rows[0].update(values)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path.parent

    @pytest.mark.parametrize("kind, values, said", [
        ("supervisions", {"duration": "1 s"}, "its duration is '1 s'"), ("supervisions", {"start": None}, "start is None"),
        ("supervisions", {"text": ["a", "b"]}, r"transcript is \['a', 'b'\]"), ("supervisions", {"id": None}, "has no id"),
        ("supervisions", {"channel": []}, "names no channel"), ("recordings", {"sources": []}, "names no audio"),
        ("recordings", {"sampling_rate": 0}, "sampling_rate is 0"), ("recordings", {"num_samples": "many"}, "is 'many'"),
        ("recordings", {"sources": [{"type": "file", "channels": [0], "source": None}]}, "names no audio"),
        ("recordings", {"sources": [{"type": "memory", "channels": [0], "source": "abc"}]}, "no file but of type 'memory'"),
        ("recordings", {"sources": [{"type": "tape", "channels": [0], "source": "abc"}]}, "no file but of type 'tape'")])
    def test_a_row_of_a_manifest_that_cannot_be(self, new_recipe, tmp_path, kind, values, said):
        folder = self.changed(tmp_path / "corpus", kind, **values)
        output = new_recipe("--manifests", folder)
        assert re.search(f"skipped .*{said}", output) and "train: 78 utterances" in output

    def test_manifests_of_something_else_are_one_error(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        recordings, supervisions = (folder / f"{kind}_dev.jsonl.gz" for kind in ("recordings", "supervisions"))
        recordings.rename(folder / "third")
        supervisions.rename(recordings)
        (folder / "third").rename(supervisions)
        with pytest.raises(RecipeError, match="recordings_dev.jsonl.gz holds a SupervisionSegment where its name says Rec"):
            self.read("manifests", folder)

    def test_manifests_with_other_endings(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "supervisions_dev.jsonl.gz"
        (folder / "supervisions_dev.jsonl").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
        assert len(self.read("manifests", folder)[0]["dev"][1]) == 8
        (tmp_path / "json").mkdir()
        RecordingSet.from_file(folder / "recordings_dev.jsonl.gz").to_file(tmp_path / "json" / "recordings_dev.json")
        with pytest.raises(RecipeError, match="lhotse copy recordings_dev.json recordings_dev.jsonl.gz"):
            self.read("manifests", tmp_path / "json")

    def test_what_a_recipe_of_lhotse_leaves_out_is_counted(self, tmp_path, monkeypatch):
        import lhotse.recipes

        whole = lhotse.recipes.prepare_yesno

        def prepare_yesno(corpus_dir, output_dir=None):
            logging.warning("No transcript of %s", "0_1.wav")
            return whole(corpus_dir, output_dir)

        monkeypatch.setattr(lhotse.recipes, "prepare_yesno", prepare_yesno)
        skipped, handlers = Reasons(), list(logging.getLogger().handlers)
        read_corpus("lhotse", "yesno", skipped, corpus_dir=yesno_corpus(tmp_path / "waves"))
        assert skipped.of == {"prepare_yesno": "No transcript of 0_1.wav"} and logging.getLogger().handlers == handlers

    def test_lhotse_parts(self, tmp_path):
        parts, _ = self.read("lhotse", "yesno", corpus_dir=yesno_corpus(tmp_path / "waves"))
        assert {part: len(some) for part, (some, _) in parts.items()} == {"train": 30, "test": 30}

    @pytest.mark.parametrize("form, source, options, said", [
        ("csv", "latin.csv", {}, "is not UTF-8"), ("csv", "none.csv", {}, "none.csv is missing"),
        ("csv", "empty.csv", {}, "holds no rows"), ("csv", "damaged", {}, "is a folder: give the file"),
        ("kaldi", ".", {}, "holds no wav.scp"),
        ("manifests", ".", {}, "holds no recordings_"), ("manifests", "none", {}, "is no folder"),
        ("manifests", "damaged", {}, "cannot be read as a Lhotse manifest"),
        ("lhotse", "yesno", {}, "as --corpus-dir"), ("lhotse", "yesno", {"corpus_dir": "none"}, "is no folder"),
        ("lhotse", "yesno", {"corpus_dir": "."}, "is this the folder that it expects"),
        ("lhotse", "libri_speech", {"corpus_dir": "."}, "it knows librispeech"),
        ("lhotse", "heroico", {"corpus_dir": "."}, "lhotse prepare heroico")])
    def test_what_is_no_corpus_is_one_error(self, tmp_path, monkeypatch, form, source, options, said):
        monkeypatch.chdir(tmp_path)
        Path("latin.csv").write_bytes("a.wav,Grüße,anna\n".encode("latin-1"))
        Path("empty.csv").write_text("\n")
        Path("damaged").mkdir()
        for kind in ("recordings", "supervisions"):
            Path(f"damaged/{kind}_all.jsonl.gz").write_bytes(b"no gzip")
        with pytest.raises(RecipeError, match=said):
            self.read(form, source, **options)


class TestProposals:
    TEXTS = ["THE CAT SAT ON THE MAT", "A DOG RAN TO THE DOOR"] * 20

    def test_larger_models_for_more_speech(self):
        sizes = [propose(hours, self.TEXTS, {(16000, 1): 9}).parameters for hours in (0.1, 5, 50, 200, 1000)]
        assert sizes[0] == sizes[1] < sizes[2] < sizes[3] < sizes[4]

    @pytest.mark.parametrize("hours", [0.05, 0.5, 5, 20, 150, 960])
    def test_the_stages_reach_their_target(self, hours):
        proposed = propose(hours, self.TEXTS, {(16000, 1): 9})
        last = measure_model(proposed.students[-1], proposed.vocab_size, run=False).total
        assert last <= 0.4 * proposed.parameters and proposed.epochs >= 1 and proposed.student_epochs >= 1

    def test_less_speech_is_heard_more_often(self):
        often = [propose(hours, self.TEXTS, {(16000, 1): 9}) for hours in (0.5, 5, 50)]
        assert often[0].epochs > often[1].epochs >= often[2].epochs

    def test_tokens_fit_the_text(self):
        kind, size, _ = propose_tokens(self.TEXTS)
        assert kind == "bpe" and size > len(set("".join(self.TEXTS)))
        assert propose_tokens(["今天天气很好", "我们去公园"])[0] == "char"
        # blank, end, unknown, the mark of a word's begin, the letter and the two together
        assert propose_tokens(["A"] * 3)[:2] == ("bpe", 6)
        many = ["".join(chr(0xAC00 + 7 * k + j) for j in range(5)) + " " for k in range(400)]
        assert propose_tokens(many)[0] == "char"  # Hangul has spaces, and more letters than BPE has tokens

    def test_few_words_that_are_said_once_are_no_closed_vocabulary(self):
        words = ["".join(chr(ord("A") + (7 * k + 3 * j) % 26) for j in range(3 + k % 5)) for k in range(150)]
        kind, size, why = propose_tokens([" ".join(words[k:k + 10]) for k in range(0, 150, 10)])
        assert (kind, size) == ("bpe", 50) and "make each" not in why

    def test_rates(self):
        assert propose_rate({(8000, 1): 5, (16000, 1): 4}) == 8000
        assert propose_rate({(44100, 2): 5, (16000, 1): 4, (8000, 1): 8}) == 16000
