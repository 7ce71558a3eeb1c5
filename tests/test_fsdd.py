"""The digits recipe's stages 0 and 1, on a made-up tree in the dataset's layout, or on the real one in $FSDD_DIR."""

import gzip
import http.server
import shutil
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scripts import load, refused, run_script
from skipping import listed


LOCAL = Path(__file__).resolve().parents[1] / "egs" / "fsdd" / "local"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
WORDS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()


takes = load(LOCAL / "takes.py")


def test_the_tests_find_real_speech_beside_the_checkout(tmp_path):
    """Unless a variable names it."""
    (tmp_path / "checkout" / "tests").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path / "checkout" / "tests")
    beside = tmp_path / "shared" / "data" / "fsdd"
    beside.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("FSDD_DIR", "LIBRISPEECH_DIR")}
    for given, found in (({}, str(beside)), ({"FSDD_DIR": "mine"}, "mine")):
        said = subprocess.run([sys.executable, "-c", "import conftest, os; print(os.environ['FSDD_DIR'])"],
                              cwd=tmp_path / "checkout" / "tests", env={**environment, **given}, capture_output=True,
                              text=True)
        assert said.stdout.strip() == found, said.stderr


def run(script: str, *arguments, cwd, check=True):
    ended = run_script(LOCAL / script, *arguments, cwd=cwd)
    if check:
        assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    """3000 takes: each digit a tone, each speaker a level, each take a duration."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for digit in range(10):
        for number, speaker in enumerate(SPEAKERS):
            for index in range(50):
                time = np.arange(800 + 12 * index) / 8000
                samples = 0.02 * (number + 1) * np.sin(2 * np.pi * (300 + 100 * digit) * time)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav",
                                samples + 1e-3 * rng.standard_normal(len(time)), 8000, subtype="PCM_16")
    return folder.parent


@pytest.fixture(scope="module")
def dataset(made_up) -> Path:
    return Path(os.environ["FSDD_DIR"]) if os.environ.get("FSDD_DIR") else made_up


def copy_of(source: Path, target: Path) -> Path:
    """Hard links, so that a copy costs nothing; spoil one only by replacing it."""
    (target / "recordings").mkdir(parents=True)
    for path in (source / "recordings").glob("*.wav"):
        os.link(path, target / "recordings" / path.name)
    return target


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def prepare(cwd: Path, *arguments, check=True):
    return run("prepare_manifests.py", "--hours", "0.03", "--test-words", "60", *arguments, cwd=cwd, check=check)


def cuts(cwd: Path, part: str):
    text = gzip.decompress((cwd / "data" / "manifests" / f"cuts_{part}.jsonl.gz").read_bytes())
    return [json.loads(line) for line in text.splitlines()]


def used(cwd: Path, part: str):
    return Counter(take for cut in cuts(cwd, part) for take in cut["supervisions"][0]["custom"]["takes"])


def audio(cwd: Path):
    return {path.relative_to(cwd): path.read_bytes() for path in (cwd / "data" / "strings").rglob("*.flac")}


@pytest.fixture(scope="module")
def prepared(dataset, tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("recipe")
    run("get_corpus.py", "--corpus-dir", dataset, cwd=cwd)
    prepare(cwd, "--jobs", "1")
    return cwd


@pytest.mark.parametrize("unseen", ("",) + SPEAKERS)
def test_split_deals_every_take_once_and_hides_one_speaker(unseen):
    parts = takes.split(unseen)
    assert Counter(take for part in parts.values() for take in part) == Counter(takes.all_takes())
    assert len(takes.all_takes()) == 3000
    assert {(take.speaker, take.index) for take in parts["test"]} == {(s, i) for s in SPEAKERS for i in range(5)}
    assert all(take.speaker != unseen for part in ("train", "dev") for take in parts[part])
    assert all(take.speaker == unseen for take in parts.get("test-unseen", ()))


def test_no_take_stands_in_two_sets_and_the_unseen_speaker_stays_unseen(prepared):
    parts = {part: used(prepared, part) for part in ("train", "dev", "test", "test-unseen")}
    for first in parts:
        for second in parts:
            if first != second:
                assert not parts[first].keys() & parts[second].keys()
    assert {name.split("_")[1] for name in parts["test"]} == set(SPEAKERS)
    assert all(int(re.search(r"(\d+)\.wav", name).group(1)) < 5 for name in parts["test"])
    assert all(int(re.search(r"(\d+)\.wav", name).group(1)) >= 5 for part in ("train", "dev") for name in parts[part])
    assert {name.split("_")[1] for name in parts["test-unseen"]} == {"theo"}
    assert "theo" not in {name.split("_")[1] for part in ("train", "dev") for name in parts[part]}


def test_strings_say_what_their_takes_say(prepared):
    for part in ("train", "dev", "test", "test-unseen"):
        for cut in cuts(prepared, part):
            (supervision,) = cut["supervisions"]
            digits, speakers, _ = zip(*(name.split("_") for name in supervision["custom"]["takes"]))
            assert supervision["text"].split() == [WORDS[int(digit)] for digit in digits]
            assert set(speakers) == {supervision["speaker"]}
            assert len(digits) in (range(1, 8) if part == "train" else range(3, 8))
            samples, rate = soundfile.read(prepared / cut["recording"]["sources"][0]["source"])
            assert rate == 8000 and len(samples) == cut["recording"]["num_samples"]
            assert 0.01 < (samples**2).mean() ** 0.5 and abs(samples).max() < 0.99
            # No digital silence in the gaps: every 10 ms has some sound.
            assert abs(samples[: len(samples) // 80 * 80].reshape(-1, 80)).max(axis=1).min() > 0
        if part.startswith("test"):
            assert sum(len(cut["supervisions"][0]["text"].split()) for cut in cuts(prepared, part)) >= 60
    short = [len(cut["supervisions"][0]["text"].split()) <= 2 for cut in cuts(prepared, "train")]
    assert 0 < sum(short) < len(short)


def test_takes_of_a_test_are_used_evenly(prepared):
    counts = used(prepared, "test")
    assert max(counts.values()) - min(counts.values()) <= 1


def test_same_for_any_number_of_jobs_and_other_for_another_seed(dataset, prepared, tmp_path):
    run("get_corpus.py", "--corpus-dir", dataset, cwd=tmp_path)
    prepare(tmp_path, "--jobs", "3")
    assert audio(tmp_path) == audio(prepared) and cuts(tmp_path, "train") == cuts(prepared, "train")
    prepare(tmp_path, "--seed", "2")
    assert cuts(tmp_path, "train") != cuts(prepared, "train")
    # what the manifests name is there, and the first run's strings are gone
    assert {cut["recording"]["sources"][0]["source"] for part in ("train", "dev", "test", "test-unseen")
            for cut in cuts(tmp_path, part)} == {str(path) for path in audio(tmp_path)}


def test_only_training_strings_are_spoken_by_other_voices(dataset, prepared, tmp_path):
    run("get_corpus.py", "--corpus-dir", dataset, cwd=tmp_path)
    prepare(tmp_path, "--voice-spread", "0")

    def sounds(cwd, part):
        return {cut["id"]: (cwd / cut["recording"]["sources"][0]["source"]).read_bytes() for cut in cuts(cwd, part)}

    for part in ("train", "dev", "test", "test-unseen"):
        assert (sounds(tmp_path, part) == sounds(prepared, part)) == (part != "train")


def test_every_speaker_may_train(dataset, tmp_path):
    run("get_corpus.py", "--corpus-dir", dataset, cwd=tmp_path)
    prepare(tmp_path)
    prepare(tmp_path, "--unseen-speaker", "none", "--voice-spread", "0")
    assert {name.split("_")[1] for name in used(tmp_path, "train")} == set(SPEAKERS)
    assert not list((tmp_path / "data" / "manifests").glob("*test-unseen*"))


@pytest.mark.parametrize("speaker", ["lucas", "none"])
def test_run_sh_takes_the_unseen_speaker(made_up, tmp_path, speaker):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([LOCAL.parent / "run.sh", "--smoke", "--corpus-dir", made_up, "--unseen-speaker", speaker,
                           "--data", tmp_path / "data", "--exp", tmp_path / "exp", "--stop-stage", "1"], env=env,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unseen = {name.split("_")[1] for name in used(tmp_path, "test-unseen")} if speaker != "none" else set()
    assert unseen == {speaker} - {"none"} and {name.split("_")[1] for name in used(tmp_path, "train")} == set(SPEAKERS) - unseen
    assert (tmp_path / "data" / "manifests" / "cuts_test-unseen.jsonl.gz").exists() == bool(unseen)


def test_damaged_takes_are_skipped_named_and_counted(made_up, tmp_path):
    spoiled = copy_of(made_up, tmp_path / "spoiled")
    recordings = spoiled / "recordings"
    whole = (recordings / "7_lucas_20.wav").read_bytes()
    replace(recordings / "3_george_10.wav", b"this is no audio")
    replace(recordings / "7_lucas_20.wav", whole[: len(whole) // 2])
    replace(recordings / "9_theo_30.wav", b"")
    run("get_corpus.py", "--corpus-dir", spoiled, cwd=tmp_path)
    ended = prepare(tmp_path)
    for name in ("3_george_10.wav", "7_lucas_20.wav", "9_theo_30.wav"):
        assert f"skipped {name}: " in ended.stdout
        assert all(name not in used(tmp_path, part) for part in ("train", "dev", "test", "test-unseen"))
    assert "skipped 3 in all" in ended.stdout and "2997 takes" in ended.stdout
    assert len(listed(tmp_path / "data" / "manifests")) == 3


def test_empty_and_half_copied_folders_are_one_line(made_up, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(run("get_corpus.py", "--corpus-dir", tmp_path / "empty", cwd=tmp_path, check=False))
    assert "holds no take" in line and "--corpus-dir" in line
    half = copy_of(made_up, tmp_path / "half")
    for path in (half / "recordings").glob("[5-9]_*.wav"):
        path.unlink()
        path.symlink_to("nowhere.wav")  # no take either
    line = refused(run("get_corpus.py", "--corpus-dir", half, cwd=tmp_path, check=False))
    assert "1500 of 3000" in line and "5_george_0.wav" in line
    assert str(tmp_path / "nowhere") in refused(run("get_corpus.py", "--corpus-dir", tmp_path / "nowhere", cwd=tmp_path,
                                                   check=False))
    assert not (tmp_path / "data" / "corpus.json").exists()
    line = refused(prepare(tmp_path, check=False))
    assert "data/corpus.json" in line and "stage 0" in line
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.json").write_text('{"corpus": 1}')
    line = refused(prepare(tmp_path, check=False))
    assert "data/corpus.json says nothing of recordings" in line and "stage 0" in line


@pytest.fixture
def server(tmp_path):
    """Serve a folder on this machine; yields (folder, address)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{http_server.server_address[1]}"
        http_server.shutdown()


def pack(source: Path, archive: Path, extra=()) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(source / "recordings", "free-spoken-digit-dataset-1.0.10/recordings")
        for name, kind in extra:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"evil"))


def test_download_of_the_release(made_up, server, tmp_path):
    folder, address = server
    pack(made_up, folder / "release.tar.gz", [("../../evil.wav", tarfile.REGTYPE),
                                              ("top/recordings/../../../evil.wav", tarfile.REGTYPE),
                                              ("top/recordings/0_mallory_0.wav", tarfile.SYMTYPE),
                                              ("top/setup.py", tarfile.REGTYPE)])
    cwd = tmp_path / "recipe"
    cwd.mkdir()
    run("get_corpus.py", "--url", f"{address}/release.tar.gz", cwd=cwd)
    got = cwd / "data" / "download" / "recordings"
    assert {path.name: path.read_bytes() for path in got.iterdir()} == {
        path.name: path.read_bytes() for path in (made_up / "recordings").iterdir()}
    assert not list(tmp_path.rglob("evil.wav")) and not list(cwd.rglob("setup.py"))
    assert json.loads((cwd / "data" / "corpus.json").read_text()) == {"recordings": "data/download/recordings"}
    # a second run needs no network
    (folder / "release.tar.gz").unlink()
    assert "downloaded already" in run("get_corpus.py", "--url", f"{address}/release.tar.gz", cwd=cwd).stdout


def test_a_download_that_was_removed_is_made_again(made_up, tmp_path):
    """As the message of the stage that needs it says."""
    def recipe(*words):
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        folders = "--data", tmp_path / "data", "--exp", tmp_path / "exp"
        return subprocess.run([LOCAL.parent / "run.sh", "--smoke", *folders, *words], env=env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)

    recordings = copy_of(made_up, tmp_path / "data" / "download") / "recordings"
    for _ in range(2):
        done = recipe("--stop-stage", "0")
        assert done.returncode == 0, done.stderr
    assert "done before, skipped" in done.stdout
    pack(made_up, tmp_path / "data" / "download" / "fsdd.tar.gz")
    shutil.rmtree(recordings)
    done = recipe("--stage", "1", "--stop-stage", "1")
    assert f"needs {recordings}, which stage 0 makes: " in done.stderr and done.stderr.endswith("--stage 0 --stop-stage 0\n")
    for _ in range(2):
        done = recipe("--stage", "0", "--stop-stage", "0")
        assert done.returncode == 0 and len(list(recordings.iterdir())) == 3000, done.stderr
        next(recordings.iterdir()).unlink()  # some of it is enough


def test_failed_downloads_are_one_line_and_leave_nothing(made_up, server, tmp_path):
    folder, address = server
    pack(made_up, folder / "whole.tar.gz")
    (folder / "cut.tar.gz").write_bytes((folder / "whole.tar.gz").read_bytes()[:100000])
    (folder / "page.tar.gz").write_text("<html>sorry</html>")
    with tarfile.open(folder / "other.tar.gz", "w:gz") as tar:
        tar.add(__file__, "top/recordings/readme.txt")
    for url in (f"{address}/missing.tar.gz", f"{address}/cut.tar.gz", f"{address}/page.tar.gz",
                f"{address}/other.tar.gz", "http://127.0.0.1:9/closed.tar.gz", "file:///etc/passwd"):
        line = refused(run("get_corpus.py", "--url", url, cwd=tmp_path, check=False))
        assert "--corpus-dir" in line or "--url" in line
        left = [path.name for path in (tmp_path / "data").rglob("*")] if (tmp_path / "data").exists() else []
        assert set(left) <= {"download"}
