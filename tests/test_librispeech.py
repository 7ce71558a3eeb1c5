"""The LibriSpeech recipe: its stages 0 and 1 on a made-up tree in the corpus's layout, and the whole chain on real speech.

$LIBRISPEECH_DIR names a folder with a part dev-clean of the corpus, in FLAC or in MP3, and the corpus's CHAPTERS.TXT.
"""

import functools
import gzip
import http.server
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from scripts import refused, run_script
from skipping import listed
from test_recipes import check_results
from test_recipes import run as run_recipe

from kdlib.config import LangConfig, TrainConfig, load_config
from kdlib.plan_config import ProgressiveConfig
from kdlib.planning import measure_model, stage_configs


ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs" / "librispeech"
RATE = 16000
TREE = {"train-clean-100": ["19/198", "26/495"], "train-other-500": ["20/205"], "dev-clean": ["84/121123"],
        "test-clean": ["61/70968"]}


def run(script: str, *arguments, cwd, check=True):
    ended = run_script(RECIPE / "local" / script, *arguments, cwd=cwd)
    if check:
        assert ended.returncode == 0, ended.stderr
    return ended


def sound(seconds: float, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))


def write_chapters(root: Path, tree) -> None:
    lines = ["; Some pipe(|) separated metadata", ";ID    |READER|MINUTES| SUBSET           | PROJ."]
    lines += [f"{chapter.split('/')[1]:6} | {chapter.split('/')[0]:4} | 0.10  | {part:16} | 53   | 1023  | In Chancery"
              for part, chapters in tree.items() for chapter in chapters]
    (root / "CHAPTERS.TXT").write_text("\n".join(lines) + "\n")


def make_tree(root: Path) -> Path:
    """Four utterances of noise a chapter."""
    for part, chapters in TREE.items():
        for chapter in chapters:
            folder = root / part / chapter
            folder.mkdir(parents=True)
            name = chapter.replace("/", "-")
            for number in range(4):
                soundfile.write(folder / f"{name}-{number:04d}.flac", sound(0.6 + 0.1 * number, number), RATE)
            (folder / f"{name}.trans.txt").write_text("".join(f"{name}-{n:04d} WORD {n * 'MORE '}\n" for n in range(4)))
    write_chapters(root, TREE)
    return root


@pytest.fixture
def tree(tmp_path) -> Path:
    return make_tree(tmp_path / "LibriSpeech")


CHOICE = ["--parts", "train-clean-100 train-other-500 dev-clean test-clean"]


def find(tree: Path, *options, check=True):
    """Stage 0 in the folder beside LibriSpeech/."""
    return run("get_corpus.py", "--corpus-dir", tree, *options, *([] if "--parts" in options else CHOICE),
               cwd=tree if (tree / "LibriSpeech").is_dir() else tree.parent, check=check)


def prepare(cwd: Path, *options, check=True):
    chosen = ["--train-parts", "train-clean-100 train-other-500", "--dev-parts", "dev-clean", "--test-sets", "test-clean"]
    return run("prepare_manifests.py", *chosen, *options, cwd=cwd, check=check)


def cuts(cwd: Path, name: str):
    text = gzip.decompress((cwd / "data" / "manifests" / f"cuts_{name}.jsonl.gz").read_bytes())
    return {cut["id"]: cut for cut in map(json.loads, text.splitlines())}


class TestStages0And1:
    def test_parts_become_training_dev_and_test_cuts(self, tree):
        found = find(tree.parent)  # the folder above LibriSpeech serves too
        assert "train-clean-100: 8 utterances in 2 chapters" in found.stdout
        prepare(tree.parent, "--jobs", "2")
        assert {name: len(cuts(tree.parent, name)) for name in ("train", "dev", "test-clean")} == {
            "train": 12, "dev": 4, "test-clean": 4}
        cut = cuts(tree.parent, "train")["20-205-0002"]
        (segment,) = cut["supervisions"]
        assert (segment["text"], segment["speaker"]) == ("WORD MORE MORE", "20")
        assert cut["duration"] == pytest.approx(0.8) and cut["recording"]["sampling_rate"] == RATE
        assert not (tree.parent / "data" / "manifests" / "cuts_noise.jsonl.gz").exists()

    def test_a_second_choice_leaves_nothing_of_the_first_and_takes_as_many_as_asked(self, tree):
        cwd = tree.parent
        musan = cwd / "noises" / "musan"
        for part, seconds in (("music", 2.0), ("noise", 0.5)):
            (musan / part / "fma").mkdir(parents=True)
            soundfile.write(musan / part / "fma" / f"{part}-fma-0000.wav", sound(seconds, 1), RATE, subtype="PCM_16")
        (musan / "music" / "fma" / "music-fma-0001.wav").write_bytes(b"RIFF")
        said = find(tree, "--musan-dir", musan.parent).stdout
        assert "speech are missing" in said
        said = prepare(cwd).stdout
        assert set(cuts(cwd, "noise")) == {"music-fma-0000", "noise-fma-0000"} and "skipped music-fma-0001: " in said
        assert [name for _, name, _ in listed(cwd / "data" / "manifests")] == ["music-fma-0001"]
        find(tree, "--parts", "train-clean-100 dev-clean train-other-500")
        chosen = ["--train-parts", "train-clean-100", "--test-sets", "train-other-500", "--max-utterances", "3"]
        prepare(cwd, *chosen)
        assert sorted(path.name for path in (cwd / "data" / "manifests").glob("cuts_*")) == [
            "cuts_dev.jsonl.gz", "cuts_train-other-500.jsonl.gz", "cuts_train.jsonl.gz"]
        assert not [path for part in ("noise", "test-clean") for path in (cwd / "data" / "manifests").glob(f"*{part}*")]
        assert listed(cwd / "data" / "manifests") == []
        assert set(cuts(cwd, "train")) == {"19-198-0000", "19-198-0002", "26-495-0001"}

    def test_a_second_sound_of_one_name_is_skipped(self, tree):
        """One that cannot be used takes its name from none."""
        cwd = tree.parent
        for folder, number in (("music/a", 2), ("noise/a", 1), ("noise/b", 1), ("noise/b", 2), ("noise/c", 1)):
            (cwd / "musan" / folder).mkdir(parents=True, exist_ok=True)
            soundfile.write(cwd / "musan" / folder / f"{number}.wav", sound(0.5, 1), RATE, subtype="PCM_16")
        (cwd / "musan" / "noise" / "a" / "1.wav").write_bytes(b"RIFF")
        find(tree, "--musan-dir", "musan")
        said = prepare(cwd).stdout
        sources = {name: cut["recording"]["sources"][0]["source"] for name, cut in cuts(cwd, "noise").items()}
        assert sources == {"1": "musan/noise/b/1.wav", "2": "musan/music/a/2.wav"}
        for number, folder, first in ((2, "noise/b", "music/a"), (1, "noise/c", "noise/b")):
            assert (f"skipped {number}: musan/{folder}/{number}.wav is a second sound of this name, which "
                    f"musan/{first}/{number}.wav has: rename one of them\n") in said
        assert "skipped 3 in all of musan" in said

    def test_folders_may_be_links(self, tree):
        """Of speakers and of chapters, as where a corpus lies on several disks; and those of MUSAN."""
        cwd = tree.parent
        for number, name in enumerate(("train-clean-100/19", "train-clean-100/26/495", "dev-clean/84", "test-clean/61")):
            (tree / name).rename(cwd / f"{number}")
            (tree / name).symlink_to(cwd / f"{number}")
        (cwd / "fma").mkdir()
        soundfile.write(cwd / "fma" / "music-fma-0000.wav", sound(0.5, 1), RATE, subtype="PCM_16")
        (cwd / "musan" / "music").mkdir(parents=True)
        (cwd / "musan" / "music" / "fma").symlink_to(cwd / "fma")
        found = find(tree, "--musan-dir", cwd / "musan").stdout
        assert "train-clean-100: 8 utterances in 2 chapters" in found
        assert "skipped" not in prepare(cwd).stdout
        assert {name: len(cuts(cwd, name)) for name in ("train", "dev", "test-clean", "noise")} == {
            "train": 12, "dev": 4, "test-clean": 4, "noise": 1}

    def test_what_cannot_be_used_is_skipped_named_and_counted(self, tree):
        chapter = tree / "train-clean-100" / "19" / "198"
        (chapter / "19-198-0000.flac").write_bytes(b"fLaC this is none")
        whole = (chapter / "19-198-0001.flac").read_bytes()
        (chapter / "19-198-0001.flac").write_bytes(whole[: len(whole) // 2])
        (chapter / "19-198-0002.flac").unlink()
        transcript = chapter / "19-198.trans.txt"
        transcript.write_text(transcript.read_text().replace("19-198-0003 WORD MORE MORE MORE", "19-198-0003"))
        soundfile.write(chapter / "19-198-0009.flac", sound(0.5, 9), RATE)
        (chapter / "19-198-0010.flac").write_bytes(b"")
        with open(transcript, "a") as file:
            file.write("19-198-0010 WORD\n")
        other = tree / "train-clean-100" / "26" / "495" / "26-495.trans.txt"
        other.write_text(other.read_text(), encoding="utf-8-sig")  # a byte-order mark is no part of an id
        find(tree, "--partial")
        said = prepare(tree.parent).stdout
        for name, reason in (("0000", "0000.flac cannot be read (Error opening "),
                             ("0001", "19-198-0001.flac cannot be read (Error : flac decoder"),
                             ("0002", "0002.flac is missing"), ("0003", "transcript is empty"),
                             ("0009", "has no transcript"), ("0010", "0010.flac is empty")):
            line = next(line for line in said.splitlines() if line.startswith(f"skipped 19-198-{name}: "))
            assert reason in line
        assert "skipped 6 in all of" in said
        assert set(cuts(tree.parent, "train")) == {f"{c}-{n:04d}" for c in ("26-495", "20-205") for n in range(4)}

    def test_an_id_that_is_a_path_is_named_and_nothing_is_read_there(self, tree):
        chapter = tree / "train-clean-100" / "19" / "198"
        elsewhere = tree.parent / "elsewhere"
        shutil.copy(chapter / "19-198-0000.flac", f"{elsewhere}.flac")
        with open(chapter / "19-198.trans.txt", "a") as transcript:
            transcript.write(f"{elsewhere} WORD\n../198/19-198-0001 WORD\n")
        line = refused(find(tree, check=False))
        assert "2 more files or chapters are missing" in line and f"train-clean-100/19/198/{elsewhere}.flac" in line
        find(tree, "--partial")
        said = prepare(tree.parent).stdout
        for name in (elsewhere, "../198/19-198-0001"):
            assert f"skipped {name}: its id is no name of a file" in said
        assert "skipped 2 in all of" in said and len(cuts(tree.parent, "train")) == 12

    def test_other_characters_are_left_out_of_training_and_kept_elsewhere(self, tree):
        for part, chapter in (("train-clean-100", "19/198"), ("dev-clean", "84/121123"), ("test-clean", "61/70968")):
            name = chapter.replace("/", "-")
            transcript = tree / part / chapter / f"{name}.trans.txt"
            lines = transcript.read_text().splitlines()
            lines[1:3] = [f"{name}-0001 WÖRD ★ 你好", f"{name}-0002 it's lower"]
            transcript.write_text("\n".join(lines) + "\n", encoding="utf-8")
        find(tree)
        said = prepare(tree.parent).stdout
        assert "skipped 19-198-0001: its transcript holds Ö★你好, " in said and "skipped 1 in all of" in said
        made = cuts(tree.parent, "train")
        assert "19-198-0001" not in made and len(made) == 11
        assert made["19-198-0002"]["supervisions"][0]["text"] == "IT'S LOWER"
        for part, name in (("dev", "84-121123-0001"), ("test-clean", "61-70968-0001")):
            assert f"kept {name}: its transcript holds Ö★你好, " in said and f"kept 1 in all of {part}" in said
            assert len(cuts(tree.parent, part)) == 4
            assert cuts(tree.parent, part)[name]["supervisions"][0]["text"] == "WÖRD ★ 你好"

    def test_separators_of_unicode_end_no_line_of_a_transcript(self, tree):
        words = "A\u2028B\u2029C\x85D\x0bE\x0cF\x1cG\x1dH\x1eI"
        transcript = tree / "train-clean-100" / "19" / "198" / "19-198.trans.txt"
        text = transcript.read_text().replace("19-198-0002 WORD", f"19-198-0002 {words} WORD")
        transcript.write_bytes(text.replace("\n", "\r\n").encode())
        assert "train-clean-100: 8 utterances in 2 chapters" in find(tree).stdout
        assert "skipped" not in prepare(tree.parent).stdout
        assert cuts(tree.parent, "train")["19-198-0002"]["supervisions"][0]["text"] == "A B C D E F G H I WORD MORE MORE"

    def test_half_a_corpus_is_one_line_that_names_what_is_missing(self, tree):
        for number in (1, 3):
            (tree / "train-clean-100" / "26" / "495" / f"26-495-000{number}.flac").unlink()
        shutil.rmtree(tree / "test-clean" / "61")
        (tree / "train-other-500" / "20" / "205" / "20-205.trans.txt").unlink()
        wanted = "train-clean-100 train-other-500 train-clean-360 dev-clean test-clean"
        line = refused(find(tree, "--parts", wanted, check=False))
        for said in ("has no train-clean-360, test-clean and", "train-clean-100 (8 utterances in 2 chapters; 2 more",
                     "train-clean-100/26/495/26-495-0001.flac", "train-other-500/20/205/20-205.trans.txt",
                     "(dev-clean is whole)", "--partial", "--test-sets"):
            assert said in line
        assert not (tree.parent / "data" / "corpus.json").exists()
        (tree / "dev-clean" / "84" / "121123" / "84-121123-0001.flac").unlink()
        (tree / "dev-clean" / "84" / "121123" / "84-121123-0001.flac").symlink_to("nowhere.flac")
        line = refused(find(tree, "--parts", "dev-clean", check=False))
        assert "dev-clean (4 utterances in 1 chapters; 1 more" in line and "dev-clean/84/121123/84-121123-0001.flac" in line
        # What CHAPTERS.TXT lists is missed, too.
        write_chapters(tree, {"dev-clean": ["84/121123", "84/999"]})
        line = refused(find(tree, "--parts", "dev-clean", check=False))
        assert "only half of dev-clean (4 utterances in 1 chapters; 2 more" in line and "dev-clean/84/999" in line

    def test_wrong_names_and_folders_are_one_line(self, tree):
        cwd = tree.parent
        assert "train-clean-99 is no part of LibriSpeech" in refused(find(tree, "--parts", "train-clean-99", check=False))
        assert "dev-clean is named twice" in refused(find(tree, "--parts", "dev-clean dev-clean", check=False))
        assert f"{cwd / 'nowhere'} is no folder" in refused(find(cwd / "nowhere", check=False))
        assert "does not hold MUSAN" in refused(find(tree, "--musan-dir", tree, check=False))
        line = refused(prepare(cwd, check=False))
        assert "data/corpus.json" in line and "stage 0" in line

    def test_an_utterance_in_two_sets_is_refused(self, tree):
        (tree / "dev-clean-2").symlink_to(tree / "dev-clean")
        find(tree, "--parts", "train-clean-100 dev-clean dev-clean-2")
        line = refused(prepare(tree.parent, "--test-sets", "dev-clean-2", check=False))
        assert "84-121123-0000 stands in dev-clean and in dev-clean-2" in line

    def test_an_utterance_in_two_parts_of_a_set_is_refused(self, tree):
        """Of two copies none would be left, since nothing tells them apart."""
        (tree / "train-clean-5").symlink_to(tree / "train-clean-100")
        find(tree, "--parts", "train-clean-100 train-clean-5 dev-clean test-clean")
        line = refused(prepare(tree.parent, "--train-parts", "train-clean-100 train-clean-5", check=False))
        assert "stands in train-clean-100 and in train-clean-5: choose parts that share no utterance" in line


class TestSplittingAPart:
    def split(self, tree, *options, output="parts", check=True):
        return run("split_part.py", "--corpus-dir", tree, "--part", "train-clean-100", "--output", output, *options,
                   cwd=tree.parent, check=check)

    def test_each_part_has_speakers_of_its_own_and_stage_0_finds_it_whole(self, tree):
        chapter = tree / "train-clean-100" / "26" / "495"
        samples = sound(0.9, 7)
        (chapter / "26-495-0001.flac").unlink()
        soundfile.write(chapter / "26-495-0001.mp3", samples, RATE, format="MP3")
        said = self.split(tree, "--speakers", "train-clean-5=1 test-clean=1").stdout
        assert "train-clean-5: 4 utterances of 19 " in said and "test-clean: 4 utterances of 26 " in said
        parts = tree.parent / "parts"
        decoded, rate = soundfile.read(parts / "test-clean" / "26" / "495" / "26-495-0001.flac")
        assert rate == RATE and len(decoded) == pytest.approx(len(samples), abs=2500)
        found = find(parts, "--parts", "train-clean-5 test-clean").stdout
        assert "train-clean-5: 4 utterances in 1 chapters" in found and "test-clean: 4 utterances in 1 chapters" in found
        line = refused(self.split(tree, "--speakers", "dev-clean-2=1", check=False))  # whose speaker is in train-clean-5
        assert "parts holds test-clean, train-clean-5 already" in line and not (parts / "dev-clean-2").exists()
        said = self.split(tree, "--speakers", "dev-clean-2=1", "--shortest", "3", output="others").stdout
        assert "dev-clean-2: 3 utterances of 19 " in said
        chapter = tree.parent / "others" / "dev-clean-2" / "19" / "198"
        assert soundfile.info(chapter / "19-198-0002.flac").frames == int(0.8 * RATE)

    @pytest.mark.parametrize("options, said", [
        (["--speakers", "train-clean-5=2 test-clean=1"], "has 2 speakers, and --speakers asks for 3"),
        (["--speakers", "train-clean-5=two"], "as in train-clean-5=2"), (["--speakers", "mine=1"], "mine is no part of"),
        (["--part", "test-other"], "does not hold test-other and CHAPTERS.TXT")])
    def test_a_wrong_choice_is_one_line(self, tree, options, said):
        assert said in refused(self.split(tree, *options, check=False))

    def test_it_is_run_as_it_is_written_down(self, tree):
        """In the environment that run.sh takes, from any folder."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        ended = subprocess.run([RECIPE / "local" / "split_part.py", "--corpus-dir", tree, "--part", "train-clean-100",
                                "--speakers", "test-clean=1", "--output", "parts"], cwd=tree.parent, env=environment,
                               capture_output=True, text=True)
        assert ended.returncode == 0 and "test-clean: 4 utterances of 19 " in ended.stdout, ended.stderr

    def test_a_transcript_that_names_a_path_is_one_line(self, tree):
        with open(tree / "train-clean-100" / "19" / "198" / "19-198.trans.txt", "a") as transcript:
            transcript.write(f"{tree}/elsewhere WORD\n")
        line = refused(self.split(tree, "--speakers", "test-clean=1", check=False))
        assert f"names {tree}/elsewhere, of which there is no" in line

    def test_audio_that_is_missing_or_damaged_is_named(self, tree):
        audio = tree / "train-clean-100" / "19" / "198" / "19-198-0000.flac"
        audio.write_bytes(b"fLaC")
        choice = ["--speakers", "test-clean=2"]
        assert "19-198-0000.flac cannot be read" in refused(self.split(tree, *choice, check=False))
        line = refused(self.split(tree, *choice, "--shortest", "1", output="others", check=False))
        assert "19-198-0000.flac cannot be read" in line
        audio.unlink()
        audio.symlink_to("nowhere.flac")
        line = refused(self.split(tree, *choice, output="others", check=False))
        assert "names 19-198-0000, of which there is no" in line


class TestDownload:
    @pytest.fixture
    def server(self, tree):
        """Serves archives of the tree's parts where openslr.org has them; yields its address."""
        served = tree.parent / "served"
        (served / "12").mkdir(parents=True)
        for part in ("train-clean-100", "dev-clean"):
            with tarfile.open(served / "12" / f"{part}.tar.gz", "w:gz") as tar:
                tar.add(tree / part, f"LibriSpeech/{part}")
        (served / "12" / "test-clean.tar.gz").write_bytes(b"no archive")

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        handler = functools.partial(Quiet, directory=str(served))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{listening.server_port}"
            listening.shutdown()

    def test_parts_are_downloaded_once(self, tree, server):
        cwd = tree.parent
        for _ in range(2):
            run("get_corpus.py", "--url", server, "--parts", "train-clean-100 dev-clean", cwd=cwd)
            (cwd / "served" / "12" / "dev-clean.tar.gz").unlink(missing_ok=True)  # the second time nothing is fetched
        root = cwd / "data" / "download"
        found = json.loads((cwd / "data" / "corpus.json").read_text())
        assert found == {"librispeech": "data/download/LibriSpeech", "musan": ""}
        assert len(list(root.rglob("*.flac"))) == 12 and not list(root.rglob("*.tar.gz"))

    def test_musan_that_was_removed_is_downloaded_again(self, tree, server):
        """Lhotse's mark of what it has unpacked stands beside it, and stays."""
        cwd = tree.parent
        noise = cwd / "musan" / "noise" / "free-sound" / "noise-free-sound-0000.wav"
        noise.parent.mkdir(parents=True)
        soundfile.write(noise, sound(0.5, 1), RATE, subtype="PCM_16")
        (cwd / "served" / "17").mkdir()
        with tarfile.open(cwd / "served" / "17" / "musan.tar.gz", "w:gz") as tar:
            tar.add(cwd / "musan", "musan")
        for _ in range(2):
            run("get_corpus.py", "--url", server, "--parts", "dev-clean", "--musan", cwd=cwd)
            assert (cwd / "data" / "download" / noise.relative_to(cwd)).exists()
            shutil.rmtree(cwd / "data" / "download" / "musan")

    def test_a_part_that_was_removed_is_downloaded_again(self, tree):
        """As the message of the stage that needs it says."""
        words = ["--stop-stage", "0", "--parts", "train-clean-100", "--dev-parts", "dev-clean", "--test-sets", "test-clean"]
        cwd = tree.parent / "run"
        (cwd / "data" / "download").mkdir(parents=True)
        tree.rename(cwd / "data" / "download" / "LibriSpeech")
        parts = [cwd / "data" / "download" / "LibriSpeech" / words[place] for place in (3, 5, 7)]
        for part in parts:
            (part / ".completed").touch()  # as Lhotse marks what it has unpacked
        run_recipe("librispeech", cwd, *words)
        assert "done before, skipped" in run_recipe("librispeech", cwd, *words)
        for reader in parts[1].glob("[0-9]*"):
            shutil.rmtree(reader)
        (cwd / "data" / "corpus.json").unlink()
        assert "LibriSpeech has no dev-clean (train-clean-100, test-clean are whole): remove the folders of these parts " \
            "and run stage 0 again to download them anew" in run_recipe("librispeech", cwd, *words, code=1)
        shutil.rmtree(parts[0])
        with pytest.MonkeyPatch.context() as patch:  # nothing is fetched
            for name in ("http_proxy", "https_proxy"):
                patch.setenv(name, "http://127.0.0.1:9")
            assert "train-clean-100.tar.gz cannot be downloaded" in run_recipe("librispeech", cwd, *words, code=1)

    def test_a_failed_download_is_one_line(self, tree, server):
        line = refused(run("get_corpus.py", "--url", server, "--parts", "test-clean", cwd=tree.parent, check=False))
        assert "test-clean.tar.gz is damaged" in line and "--corpus-dir" in line
        assert not (tree.parent / "data" / "download" / "test-clean.tar.gz").exists()
        line = refused(run("get_corpus.py", "--url", server, "--parts", "test-other", cwd=tree.parent, check=False))
        assert "test-other.tar.gz cannot be downloaded" in line and "--corpus-dir" in line


class TestOptions:
    @pytest.mark.parametrize("arguments, said", [
        (["--parts"], "--parts needs a value"), (["--mini", "maybe"], "unknown option maybe"),
        (["--stage", "10"], "--stage 10: this recipe has the stages 0 to 9")])
    def test_a_bad_option_is_one_line(self, arguments, said):
        ended = subprocess.run([RECIPE / "run.sh", *arguments], capture_output=True, text=True)
        assert ended.returncode == 2 and ended.stderr.startswith(f"error: {said}") and ended.stderr.count("\n") == 1

    def test_mini_chooses_its_parts(self, tree):
        said = run_recipe("librispeech", tree.parent, "--corpus-dir", "LibriSpeech", "--test-sets", "test-clean",
                          "--stop-stage", "0", "--mini", code=1)
        assert "has no train-clean-5, dev-clean-2 (test-clean is whole)" in said
        said = run_recipe("librispeech", tree.parent, "--corpus-dir", "LibriSpeech", "--test-sets", "test-clean",
                          "--stop-stage", "0", "--mini", "--parts", "train-clean-100", "--dev-parts", "dev-clean")
        assert "train-clean-100: 8 utterances" in said and "train-clean-5" not in said.partition("== stage 0")[2]

    def test_mini_alone_is_tested_on_its_dev_part(self, tree):
        """And the dev part is of speakers held out of training."""
        mini = tree.parent / "mini"
        for speaker in range(24):
            folder = mini / "train-clean-5" / f"{speaker}" / "1"
            folder.mkdir(parents=True)
            for k in range(2):
                soundfile.write(folder / f"{speaker}-1-000{k}.flac", sound(0.6, 2 * speaker + k), RATE)
            (folder / f"{speaker}-1.trans.txt").write_text("".join(f"{speaker}-1-000{k} WORD\n" for k in range(2)))
        shutil.copytree(tree / "dev-clean", mini / "dev-clean-2")
        said = run_recipe("librispeech", tree.parent, "--corpus-dir", "mini", "--mini", "--test-sets", "dev-clean-2",
                          "--stop-stage", "1")
        assert "dev is held out of train by speaker" in said
        made = {name: cuts(tree.parent, name) for name in ("train", "dev", "dev-clean-2")}
        assert {name: len(some) for name, some in made.items()} == {"train": 46, "dev": 2, "dev-clean-2": 4}
        heard = {cut["supervisions"][0]["speaker"] for cut in made["train"].values()}
        assert heard.isdisjoint(cut["supervisions"][0]["speaker"] for cut in made["dev"].values())

    @pytest.mark.parametrize("options, config, report", [
        (["--mini"], "conf/small/teacher.yaml", "exp-small/RESULTS.md"),
        (["--parts", "train-clean-100"], "conf/100h/teacher.yaml", "exp-100h/RESULTS.md"),
        (["--parts", "train-clean-100", "--settings", "small"], "conf/small/teacher.yaml", "exp-small/RESULTS.md"),
        (["--parts", "train-clean-360"], "conf/teacher.yaml", "exp/RESULTS.md"),
        (["--parts", "train-other-500 train-clean-100  train-clean-360"], "conf/teacher.yaml", "RESULTS.md"),
        (["--max-utterances", "100"], "conf/teacher.yaml", "exp/RESULTS.md"),
        (["--partial"], "conf/teacher.yaml", "exp/RESULTS.md"),
        (["--dev-parts", "dev-clean"], "conf/teacher.yaml", "exp/RESULTS.md"),
        (["--test-sets", "test-clean"], "conf/teacher.yaml", "exp/RESULTS.md"),
        ([], "conf/teacher.yaml", "RESULTS.md")])
    def test_the_report_of_960_hours_is_of_no_fewer(self, options, config, report):
        """What run.sh would do, as its functions say once the options are read."""
        script = (RECIPE / "run.sh").read_text().replace("${BASH_SOURCE[0]}", str(RECIPE / "run.sh"))
        script = script.replace('run_recipe "$@"', 'parse_options "$@"; conf teacher.yaml; echo "$report"')
        ended = subprocess.run(["bash", "-c", script, "run.sh", *options], capture_output=True, text=True, cwd=RECIPE)
        assert ended.stdout.split() == [config, report], ended.stderr


def test_the_report_keeps_the_published_figures():
    published = (RECIPE / "conf" / "published.md").read_text()
    assert (RECIPE / "RESULTS.md").read_text().endswith("\n" + published)


@pytest.mark.parametrize("folder, large", [("conf", (75e6, 85e6)), ("conf/100h", (75e6, 85e6)), ("conf/small", (1e6, 2e6))])
def test_the_teachers_are_as_large_as_they_say(folder, large):
    lang = RECIPE / folder / "lang.yaml"
    tokens = load_config(LangConfig, lang if lang.exists() else RECIPE / "conf" / "lang.yaml").vocab_size
    teacher = load_config(TrainConfig, RECIPE / folder / "teacher.yaml")
    chain = load_config(ProgressiveConfig, RECIPE / folder / "progressive.yaml")
    size = measure_model(teacher.model, tokens, run=False).total
    last = stage_configs(chain, teacher, tokens, [], folder)[-1]
    assert large[0] <= size <= large[1]
    assert measure_model(last.model, tokens, run=False).total <= (1 - chain.target_compression / 100) * size


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A few minutes of dev-clean, each speaker in one of five parts: FLAC, and the corpus's own lines."""
    if not os.environ.get("LIBRISPEECH_DIR"):
        pytest.skip("LIBRISPEECH_DIR does not name a folder with LibriSpeech's dev-clean")
    root = tmp_path_factory.mktemp("real") / "LibriSpeech"
    shares = "train-clean-100=6 train-other-500=3 dev-clean=2 test-clean=2 test-other=2"
    run("split_part.py", "--corpus-dir", os.environ["LIBRISPEECH_DIR"], "--speakers", shares, "--shortest", 5,
        "--output", root, cwd=root.parent)
    return root


PARTS = ["--parts", "train-clean-100 train-other-500", "--dev-parts", "dev-clean"]


@pytest.mark.slow
def test_from_real_speech_to_the_table(real, tmp_path):
    said = run_recipe("librispeech", tmp_path, "--corpus-dir", str(real), *PARTS)
    check_results(tmp_path, ["test-clean", "test-other"], "native")
    lines = dict(line.split(maxsplit=1) for path in real.glob("train-*/*/*/*.trans.txt")
                 for line in path.read_text().splitlines())
    text = gzip.decompress((tmp_path / "data" / "manifests" / "cuts_train.jsonl.gz").read_bytes())
    made = list(map(json.loads, text.splitlines()))
    assert {cut["id"]: cut["supervisions"][0]["text"] for cut in made} == lines and len(lines) > 20
    trained = gzip.decompress((tmp_path / "data" / "fbank" / "cuts_train.jsonl.gz").read_bytes())
    assert len(trained.splitlines()) == 3 * len(lines)  # at three speeds
    config = yaml.safe_load((tmp_path / "exp" / "teacher" / "config.yaml").read_text())
    assert config["data"]["noise_probability"] == 0 and "skipped" not in said.split("== stage 2")[0]
    # These parts are not the 960 h that the published figures are of.
    assert "## Published figures" not in (tmp_path / "exp" / "RESULTS.md").read_text()


@pytest.mark.slow
def test_noise_is_mixed_in_where_it_is_given(real, tmp_path):
    noises = tmp_path / "musan" / "noise" / "free-sound"
    noises.mkdir(parents=True)
    for number in range(3):
        soundfile.write(noises / f"noise-free-sound-{number:04d}.wav", sound(4.0, number), RATE, subtype="PCM_16")
    run_recipe("librispeech", tmp_path, "--corpus-dir", str(real), "--musan-dir", "musan", *PARTS, "--stop-stage", "4")
    config = yaml.safe_load((tmp_path / "exp" / "teacher" / "config.yaml").read_text())
    assert config["data"]["noise_probability"] == 0.5
    assert (tmp_path / "data" / "fbank" / "cuts_noise.jsonl.gz").exists()
