"""The spoken commands corpus: made for real by espeak-ng, a few dozen utterances, and its manifests."""

import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import espeakng_loader
import lhotse
import numpy as np
import pytest
import soundfile
from scripts import load, refused, run_script
from skipping import listed

LOCAL = Path(__file__).resolve().parents[1] / "egs" / "voice_commands" / "local"
PARTS = ("train", "dev", "test-clean", "test-other")
grammar = load(LOCAL / "grammar.py")
voices = load(LOCAL / "voices.py")


def run(script: str, *arguments, cwd=None, check=True):
    ended = run_script(LOCAL / script, *arguments, cwd=cwd)
    if check:
        assert ended.returncode == 0, ended.stderr
    return ended


def synthesize(folder: Path, *arguments, check=True):
    return run("synthesize.py", "--output", folder, "--hours", "0.02", "--test-words", "40", "--noise-minutes", "0.5",
               *arguments, check=check)


def entries(corpus: Path, part: str):
    return [json.loads(line) for line in (corpus / part / "metadata.jsonl").read_text().splitlines()]


def tree(corpus: Path):
    """Every list and every recording, bytes and all."""
    return {str(path.relative_to(corpus)): path.read_bytes() for path in corpus.rglob("*")
            if path.suffix in (".flac", ".jsonl")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "data" / "corpus"
    synthesize(folder, "--jobs", "1")
    return folder


@pytest.fixture
def copy(corpus, tmp_path):
    """A corpus to spoil, in a folder laid out as a recipe's."""
    shutil.copytree(corpus, tmp_path / "data" / "corpus")
    return tmp_path


def test_same_seed_same_bytes_for_any_number_of_jobs(corpus, tmp_path):
    synthesize(tmp_path / "again", "--jobs", "3")
    assert tree(tmp_path / "again") == tree(corpus)


def test_a_killed_run_resumes_to_the_same_bytes(corpus, copy):
    half = copy / "data" / "corpus"
    (half / "corpus.json").unlink()
    (half / ".shards" / "dev-0000.jsonl").unlink()
    shutil.rmtree(half / "dev")
    kept = half / "train" / "0000" / "train-000000.flac"
    before = kept.stat().st_mtime_ns
    ended = synthesize(half)
    assert "shards are there already" in ended.stdout
    assert tree(half) == tree(corpus) and kept.stat().st_mtime_ns == before
    assert "there already" in synthesize(half).stdout


def test_a_damaged_or_missing_list_is_made_again_without_speaking(corpus, copy):
    spoiled = copy / "data" / "corpus"
    (spoiled / "train" / "metadata.jsonl").write_text('{"id": ')
    (spoiled / "noise" / "metadata.jsonl").unlink()
    before = (spoiled / "corpus.json").read_bytes()
    ended = synthesize(spoiled)
    assert "shards are there already" in ended.stdout
    assert tree(spoiled) == tree(corpus) and (spoiled / "corpus.json").read_bytes() == before


def test_another_seed_makes_another_corpus_in_place_of_the_first(corpus, copy):
    synthesize(copy / "data" / "corpus", "--seed", "2")
    assert json.loads((copy / "data" / "corpus" / "corpus.json").read_text())["options"]["seed"] == 2
    other, first = ([e["text"] for e in entries(folder, "train")] for folder in (copy / "data" / "corpus", corpus))
    assert other != first


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    line = refused(synthesize(tmp_path, check=False))
    assert str(tmp_path) in line and (tmp_path / "thesis.txt").read_text() == "precious"


def test_voices_and_sentences_are_held_out(corpus):
    said = {part: {e["text"] for e in entries(corpus, part)} for part in PARTS}
    heard = {part: {e["voice"] for e in entries(corpus, part)} for part in PARTS}
    for first in PARTS:
        for second in PARTS:
            if first < second:
                assert not said[first] & said[second]
    assert not heard["train"] & (heard["dev"] | heard["test-clean"] | heard["test-other"])
    assert not heard["dev"] & (heard["test-clean"] | heard["test-other"])
    variants = {part: {voice.split("+")[1] for voice in voices.voices_of(part)} for part in ("train", "dev", "test")}
    assert not variants["train"] & variants["dev"] and not variants["train"] & variants["test"]
    assert not variants["dev"] & variants["test"] and len(voices.voices_of("train")) >= 70


def test_no_voice_sounds_as_one_of_another_part_does():
    """Names tell voices apart, sounds may not: a few files of espeak-ng are those of others but for a hair."""
    said = {"text": "turn on the kitchen lights and call maria", "rate": 140, "pitch": 50}
    code = f"import sys; sys.path[:0] = [{str(LOCAL)!r}]" + """
import espeak, json, render, voices
speak = espeak.Synthesizer(1)
said = json.load(sys.stdin)
for part in ("train", "dev", "test"):
    for voice in voices.voices_of(part):
        print(json.dumps([voice, render.say(speak, dict(said, voice=voice)).tolist()]))
"""
    ended = subprocess.run([sys.executable, "-c", code], input=json.dumps(said), capture_output=True, text=True, check=True)
    spectra = {}
    for voice, samples in map(json.loads, ended.stdout.splitlines()):
        frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::160] * np.hanning(512)
        spectra[voice] = np.log(np.abs(np.fft.rfft(frames)[:, :200]) ** 2 + 1e-6).mean(0)

    def apart(one, other):
        return np.sqrt(np.mean((spectra[one] - spectra[other]) ** 2))

    parts = [voices.voices_of(part) for part in ("train", "dev", "test")]
    near = [(one, other) for first, second in itertools.combinations(parts, 2) for one in first for other in second
            if apart(one, other) < 0.4]
    assert not near
    assert apart("en-us+adam", "en-us+klatt6") < 0.15 and apart("en-us+steph", "en-us+steph2") < 0.4


def test_sizes_are_as_asked_for(corpus):
    about = json.loads((corpus / "corpus.json").read_text())
    assert about["parts"]["train"]["hours"] == pytest.approx(0.02, rel=0.3)
    for part in ("test-clean", "test-other"):
        words = sum(len(e["text"].split()) for e in entries(corpus, part))
        assert words == about["parts"][part]["words"] >= 40


def test_recordings_are_16_khz_mono_audible_and_not_clipped(corpus):
    for part in PARTS + ("noise",):
        for entry in entries(corpus, part):
            samples, rate = soundfile.read(corpus / entry["audio"])
            assert rate == 16000 and samples.ndim == 1 and len(samples) == round(entry["duration"] * rate)
            assert 0.01 < (samples**2).mean() ** 0.5 and abs(samples).max() < 0.99


def test_conditions_of_test_other_are_recorded(corpus):
    for entry in entries(corpus, "test-other"):
        assert 5.0 <= entry["conditions"]["snr"] <= 15.0 and 0.9 <= entry["conditions"]["speed"] <= 1.1
        assert entry["conditions"]["noise"] in ("white", "pink", "hum", "music", "babble")
    assert all("conditions" not in entry for entry in entries(corpus, "test-clean"))


def test_training_hears_neither_the_tests_noises_nor_its_voices(corpus):
    sounds, voices = (load(LOCAL / name) for name in ("sounds.py", "voices.py"))
    assert not set(sounds.TRAIN_MAKERS.values()) & set(sounds.TEST_MAKERS.values())
    assert {entry["noise"] for entry in entries(corpus, "noise")} <= {*sounds.TRAIN_MAKERS, "babble"}
    for part, whose in (("noise", "train"), ("test-other", "test")):
        crowd = json.loads((corpus / ".shards" / f"{part}-0000.json").read_text())["crowd"]
        assert crowd and {one["voice"] for one in crowd} <= set(voices.voices_of(whose))
    assert not set(voices.voices_of("train")) & set(voices.voices_of("test"))


def test_grammar_has_what_a_curriculum_needs():
    stream = grammar.Sentences("train", 5)
    sentences = [next(stream) for _ in range(2000)]
    lengths = [len(sentence.split()) for sentence in sentences]
    assert min(lengths) == 1 and max(lengths) <= 10 and 4 <= sum(lengths) / len(lengths) <= 6
    assert sum(length <= 2 for length in lengths) >= 0.15 * len(lengths)
    assert {word for sentence in sentences for word in sentence.split()} == set(grammar.vocabulary())
    assert 90 <= len(grammar.vocabulary()) <= 110


@pytest.mark.parametrize("seed", range(5))
def test_few_training_sentences_hold_the_whole_vocabulary(seed):
    stream = grammar.Sentences("train", seed)
    assert {word for _ in range(120) for word in next(stream).split()} == set(grammar.vocabulary())


def test_manifests_are_plain_lhotse(copy):
    run("prepare_manifests.py", cwd=copy)
    for part in PARTS:
        cuts = lhotse.CutSet.from_file(copy / "data" / "manifests" / f"cuts_{part}.jsonl.gz").to_eager()
        wanted = {e["id"]: e for e in entries(copy / "data" / "corpus", part)}
        assert set(cuts.ids) == set(wanted)
        for cut in cuts:
            assert len(cut.supervisions) == 1 and cut.supervisions[0].text == wanted[cut.id]["text"]
            assert cut.supervisions[0].speaker == wanted[cut.id]["voice"] and cut.sampling_rate == 16000
            # relative to the recipe's folder, so that it can be moved
            assert cut.recording.sources[0].source == f"data/corpus/{wanted[cut.id]['audio']}"
    noise = gzip.decompress((copy / "data" / "manifests" / "cuts_noise.jsonl.gz").read_bytes()).splitlines()
    assert len(noise) == 3


def test_bad_recordings_are_skipped_named_and_counted(copy):
    corpus = copy / "data" / "corpus"
    recordings = [corpus / entry["audio"] for entry in entries(corpus, "train")]
    recordings[3].unlink()
    recordings[4].write_bytes(b"")
    recordings[5].write_bytes(b"this is no audio")
    recordings[6].write_bytes(recordings[6].read_bytes()[: recordings[6].stat().st_size // 2])
    metadata = corpus / "train" / "metadata.jsonl"
    lines = metadata.read_text().splitlines()
    lines[7] = json.dumps(dict(json.loads(lines[7]), text="  "))
    lines[8] = lines[8][:30]
    metadata.write_text("\n".join(lines) + "\n")
    ended = run("prepare_manifests.py", cwd=copy)
    for number in (3, 4, 5, 6, 7):
        assert f"skipped train-{number:06d}: " in ended.stdout
    assert "skipped train-000007: its transcript is empty" in ended.stdout
    assert "skipped data/corpus/train/metadata.jsonl:9" in ended.stdout and "skipped 6 in all" in ended.stdout
    kept = gzip.decompress((copy / "data" / "manifests" / "cuts_train.jsonl.gz").read_bytes()).splitlines()
    assert len(kept) == len(lines) - 6 and len(listed(copy / "data" / "manifests")) == 6


def test_manifests_are_made_again_of_a_corpus_that_was_spoiled(copy):
    """Lists and recordings, which corpus.json says nothing of."""
    def stage_1():
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([LOCAL.parent / "run.sh", "--data", copy / "data", "--stage", "1", "--stop-stage", "1"], env=env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines = (copy / "data" / "corpus" / "train" / "metadata.jsonl").read_text()
    recording = next((copy / "data" / "corpus" / "train").rglob("*.flac"))
    sound = recording.read_bytes()
    assert "skipped 1" not in stage_1() and "done before, skipped" in stage_1()
    for path, whole in ((copy / "data" / "corpus" / "train" / "metadata.jsonl", lines.encode()), (recording, sound)):
        path.write_bytes(whole[: len(whole) // 2])
        assert "skipped 1 in all of" in stage_1()
        path.write_bytes(whole)
        printed = stage_1()
        assert "done before" not in printed and "skipped 1" not in printed


def test_half_made_corpus_and_empty_part_are_one_line(copy, tmp_path):
    corpus = copy / "data" / "corpus"
    (corpus / "corpus.json").rename(tmp_path / "kept.json")
    line = refused(run("prepare_manifests.py", cwd=copy, check=False))
    assert "data/corpus/corpus.json" in line and "stage 0" in line
    (tmp_path / "kept.json").rename(corpus / "corpus.json")
    (corpus / "dev" / "metadata.jsonl").write_text("")
    assert "dev" in refused(run("prepare_manifests.py", cwd=copy, check=False))
    assert (copy / "data" / "manifests" / "cuts_train.jsonl.gz").exists()


def test_missing_wheel_is_one_line(tmp_path, copy):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "espeakng_loader.py").write_text("raise ImportError('not here')\n")
    code = ("import sys; sys.path[:0] = [{!r}, {!r}]; from kdlib.errors import run_main; import espeak; "
            "run_main(lambda: espeak.Synthesizer(1))").format(str(tmp_path / "hidden"), str(LOCAL))
    line = refused(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True))
    assert "espeakng-loader" in line and "tools/install.sh" in line


def test_a_voice_that_is_not_there_is_refused():
    """Where espeak-ng itself would speak with the language's default voice; and all voices of the parts are there."""
    code = ("import sys; sys.path[:0] = [{!r}]; from kdlib.errors import run_main; import espeak, voices; "
            "speak = espeak.Synthesizer(1); print(min(len(speak('one', voice)) for part in ('train', 'dev', 'test') "
            "for voice in voices.voices_of(part))); run_main(lambda: speak('one', 'en-us+klatt66'))").format(str(LOCAL))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(ended.stdout) > 1000
    assert "espeak-ng has no voice en-us+klatt66" in refused(ended)


def test_an_environment_deep_down_in_folders(tmp_path):
    """Of a path of more than 159 characters espeak-ng takes no notice."""
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    shutil.copytree(Path(espeakng_loader.__file__).parent, deep / "espeakng_loader")
    code = "import sys; sys.path[:0] = [{!r}, {!r}]; import espeak; print(len(espeak.Synthesizer(1)('one', 'en-us+f3')))"
    lengths = [subprocess.run([sys.executable, "-c", code.format(str(folder), str(LOCAL))], capture_output=True,
                              text=True).stdout for folder in (deep, tmp_path)]
    assert lengths[0] == lengths[1] and int(lengths[0]) > 1000


@pytest.mark.parametrize("arguments", [("--hours", "0"), ("--jobs", "-1"), ("--test-words", "0")])
def test_senseless_sizes_are_refused(tmp_path, arguments):
    assert arguments[0] in refused(run("synthesize.py", "--output", tmp_path / "c", *arguments, check=False))
