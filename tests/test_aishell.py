"""The Mandarin recipe: stages 0 and 1 on a tree in AISHELL-1's layout, good and bad; and all of it on synthetic speech."""

import gzip
import http.server
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import mandarin
import numpy as np
import pytest
import soundfile
from scripts import run_script
from skipping import listed
from test_recipes import MODELS, run

from kdlib.config import LangConfig
from kdlib.lang import train_lang
from kdlib.scoring import read_recogs

LOCAL = mandarin.ROOT / "egs" / "aishell" / "local"
TRANSCRIPT = Path("transcript") / "aishell_transcript_v0.8.txt"


def script(name: str, *arguments, cwd, code=0):
    """Run a script of the recipe; one that is refused says so in one line and no stack trace."""
    ended = run_script(LOCAL / name, *arguments, cwd=cwd)
    assert ended.returncode == code, ended.stderr
    if code:
        assert ended.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in ended.stderr
        return ended.stderr.splitlines()[-1]
    return ended.stdout


@pytest.fixture
def corpus(tmp_path) -> Path:
    """The corpus with noise for speech."""
    noise = np.random.default_rng(1)
    return mandarin.write_corpus(tmp_path / "corpus", lambda *_: 0.1 * noise.standard_normal(8000))


def prepare(corpus: Path, cwd: Path, *options, code=0):
    script("get_corpus.py", "--corpus-dir", corpus.parent, cwd=cwd)
    return script("prepare_manifests.py", *options, cwd=cwd, code=code)


def cuts(cwd: Path, part: str):
    text = gzip.decompress((cwd / "data" / "manifests" / f"cuts_{part}.jsonl.gz").read_bytes())
    return {cut["id"]: cut for cut in map(json.loads, text.splitlines())}


def test_every_utterance_stands_in_its_part_without_spaces(corpus, tmp_path):
    printed = prepare(corpus, tmp_path)
    assert "skipped" not in printed
    for part in mandarin.UTTERANCES:
        made = cuts(tmp_path, part)
        assert {name: (cut["supervisions"][0]["text"], cut["supervisions"][0]["speaker"]) for name, cut in made.items()} == {
            name: ("".join(words), speaker) for name, speaker, words in mandarin.sentences(part)}
        assert {cut["duration"] for cut in made.values()} == {0.5}


def test_folders_of_speakers_may_be_links(corpus, tmp_path):
    for number, speaker in enumerate(sorted((corpus / "wav").glob("*/*"))):
        speaker.rename(tmp_path / f"{number}")
        speaker.symlink_to(tmp_path / f"{number}")
    assert "skipped" not in prepare(corpus, tmp_path)
    assert {part: len(cuts(tmp_path, part)) for part in mandarin.UTTERANCES} == mandarin.UTTERANCES


def test_a_part_of_the_speech_is_chosen_evenly(corpus, tmp_path):
    prepare(corpus, tmp_path, "--hours", 30 * 0.5 / 3600, "--test-hours", 4 * 0.5 / 3600)
    chosen = cuts(tmp_path, "train")
    assert len(chosen) == 30 and len(cuts(tmp_path, "dev")) == len(cuts(tmp_path, "test")) == 4
    assert {cut["supervisions"][0]["speaker"] for cut in chosen.values()} == {"S0002", "S0003", "S0004"}
    assert "--hours -1.0 is not 0 or more" in prepare(corpus, tmp_path, "--hours", -1, code=1)


def test_speech_without_words_is_none_of_the_hours(corpus, tmp_path):
    transcript, names = corpus / TRANSCRIPT, [name for name, _, _ in mandarin.sentences("train")]
    silent = set(names[::2])
    lines = [line.split()[0] if line.split()[0] in silent else line
             for line in transcript.read_text(encoding="utf-8").splitlines()]
    transcript.write_text("\n".join(lines), encoding="utf-8")
    printed = prepare(corpus, tmp_path, "--hours", 30 * 0.5 / 3600)
    assert len(cuts(tmp_path, "train")) == 30 and f"skipped {len(silent)} in all of" in printed


def test_what_does_not_match_is_skipped_named_and_counted(corpus, tmp_path):
    names = [name for name, _, _ in mandarin.sentences("train")]
    wav = {path.stem: path for path in (corpus / "wav").rglob("*.wav")}
    lines = (corpus / TRANSCRIPT).read_text(encoding="utf-8").splitlines()
    wav[names[0]].unlink()  # a line without audio
    wav[names[1]].write_bytes(wav[names[1]].read_bytes()[:8000])  # audio cut short
    lines = [line for line in lines if not line.startswith(names[2])]  # audio without a line
    lines = [names[3] if line.startswith(names[3]) else line for line in lines]  # a line without a text
    wav[names[4]].write_bytes(b"")  # the download broke off
    wav[names[5]].write_bytes(b"this is no audio")
    samples = 0.1 * np.ones((24000, 2))
    samples[0, 0] = np.nan
    soundfile.write(wav[names[6]], samples, 48000, subtype="FLOAT")
    lines += ["", f"{names[7]} 不同"]  # a blank line says nothing, a second line of an id is not believed
    second = wav[names[8]].parents[1] / "S0099" / wav[names[8]].name  # a second recording of one id
    second.parent.mkdir()
    second.write_bytes(wav[names[8]].read_bytes())
    soundfile.write(wav[names[9]], 0.1 * np.ones((24000, 2)), 48000)
    (corpus / TRANSCRIPT).write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # a byte-order mark is no part of an id
    printed = prepare(corpus, tmp_path)
    for name, reason in zip(names, (
            "its transcript has no recording", ".* is cut short", "its recording has no line", "its transcript is empty",
            ".* is empty", ".* cannot be read", ".* no finite numbers", ".* a second one of this id",
            ".*/S0099/.* is a second recording")):
        assert re.search(f"skipped {name}: .*{reason}", printed), printed
    assert "skipped 7 in all of" in printed and "skipped 2 in all of" in printed and printed.count("skipped ") == 9 + 2
    assert {name for _, name, _ in listed(tmp_path / "data" / "manifests")} == set(names[:9])
    made = cuts(tmp_path, "train")
    assert set(made) == set(names[7:])
    spoken = {name: "".join(words) for name, _, words in mandarin.sentences("train")}
    assert {name: cut["supervisions"][0]["text"] for name, cut in made.items()} == {name: spoken[name] for name in made}
    assert made[names[8]]["supervisions"][0]["speaker"] != "S0099"
    assert len(made[names[9]]["recording"]["sources"][0]["channels"]) == 2  # and the first of them is heard, resampled
    assert made[names[9]]["channel"] == 0 and made[names[9]]["recording"]["sampling_rate"] == 16000


def test_separators_of_unicode_end_no_line_of_the_transcripts(corpus, tmp_path):
    separators, train = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e", list(mandarin.sentences("train"))
    text = (corpus / TRANSCRIPT).read_text(encoding="utf-8")
    for separator, (_, _, words) in zip(separators, train):
        text = text.replace(" ".join(words), separator.join(words))
    text += "BAC009S0002W9999 一\u2028S0999W0001 一\n"  # for stage 0 no speaker S0999
    (corpus / TRANSCRIPT).write_bytes(text.replace("\n", "\r\n").encode())
    prepare(corpus, tmp_path)
    made = cuts(tmp_path, "train")
    assert {name: cut["supervisions"][0]["text"] for name, cut in made.items()} == {
        name: "".join(words) for name, _, words in train}
    assert [name for _, name, _ in listed(tmp_path / "data" / "manifests")] == ["BAC009S0002W9999"]


def test_one_recording_in_two_parts_is_refused_by_name(corpus, tmp_path):
    """Such a test would be of what was trained on."""
    heard = min((corpus / "wav" / "train").rglob("*.wav"))
    leaked = corpus / "wav" / "test" / "S0764" / heard.name
    leaked.write_bytes(heard.read_bytes())
    line = prepare(corpus, tmp_path, code=1)
    assert f"{heard.stem} stands in train and in test ({heard} and {leaked})" in line
    assert not (tmp_path / "data" / "manifests").exists()


def test_what_cannot_be_read_at_all_is_one_line(corpus, tmp_path):
    transcript = corpus / TRANSCRIPT
    text = transcript.read_text(encoding="utf-8")
    transcript.write_text(text, encoding="gb18030")
    assert "is not UTF-8" in prepare(corpus, tmp_path, code=1)
    transcript.unlink()
    assert f"{transcript} is missing" in script("get_corpus.py", "--corpus-dir", corpus, cwd=tmp_path, code=1)
    assert "holds no data_aishell" in script("get_corpus.py", "--corpus-dir", tmp_path, cwd=tmp_path, code=1)
    assert "is no folder" in script("get_corpus.py", "--corpus-dir", tmp_path / "none", cwd=tmp_path, code=1)
    transcript.write_text(text, encoding="utf-8")
    for path in (corpus / "wav" / "dev").rglob("*.wav"):
        path.write_bytes(b"")
    assert "the part dev has no recording that can be used" in prepare(corpus, tmp_path, code=1)
    for path in (corpus / "wav" / "dev").rglob("*.wav"):
        path.unlink()
    assert "dev holds no recordings" in script("get_corpus.py", "--corpus-dir", corpus, cwd=tmp_path, code=1)


def test_a_corpus_without_some_of_its_speakers_is_refused_by_their_names(corpus, tmp_path):
    """As it is when not all archives of speakers were unpacked; --partial takes it."""
    for speaker in ("S0002", "S0004"):
        shutil.rmtree(corpus / "wav" / "train" / speaker)
    (corpus / "wav" / "train" / "S0004").mkdir()
    (corpus / "wav" / "train" / "S0004" / "BAC009S0004W0001.wav").symlink_to("/no/disk/file")
    line = script("get_corpus.py", "--corpus-dir", corpus, cwd=tmp_path, code=1)
    assert (f"{corpus / 'wav'} has no recording of 2 of 5 speakers (S0002, S0004): unpack data_aishell.tgz again, or take it "
            "as it is with --partial") in line
    (corpus / "wav" / "S0002.tar.gz").write_bytes(b"")
    line = script("get_corpus.py", "--corpus-dir", corpus, cwd=tmp_path, code=1)
    assert f"unpack the 1 archives of speakers in {corpus / 'wav'}, or" in line
    run("aishell", tmp_path, "--corpus-dir", str(corpus.parent), "--partial", "--stop-stage", "1")
    made = cuts(tmp_path, "train")
    assert {cut["supervisions"][0]["speaker"] for cut in made.values()} == {"S0003"}
    assert len(listed(tmp_path / "data" / "manifests")) == 61  # transcripts without a recording, and the link to nothing


@pytest.mark.parametrize("options, report", [([], "RESULTS.md"), (["--partial"], "exp/RESULTS.md"),
                                             (["--hours", "10"], "exp/RESULTS.md"), (["--test-hours", "1"], "exp/RESULTS.md")])
def test_the_report_of_the_corpus_is_of_no_less(options, report):
    """What run.sh would do, as its functions say once the options are read."""
    recipe = LOCAL.parent
    text = (recipe / "run.sh").read_text().replace("${BASH_SOURCE[0]}", str(recipe / "run.sh"))
    text = text.replace('run_recipe "$@"', 'parse_options "$@"; echo "$report"')
    ended = subprocess.run(["bash", "-c", text, "run.sh", *options], capture_output=True, text=True, cwd=recipe)
    assert ended.stdout.split() == [report], ended.stderr


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_the_corpus_is_downloaded_and_unpacked(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "server" / "33"
    folder.mkdir(parents=True)
    for speaker in {speaker for part in mandarin.SPEAKERS.values() for speaker in part}:
        part = next(path for path in (corpus / "wav").glob(f"*/{speaker}"))
        with tarfile.open(corpus / "wav" / f"{speaker}.tar.gz", "w:gz") as tar:
            tar.add(part, f"{part.parent.name}/{speaker}")
    with tarfile.open(folder / "data_aishell.tgz", "w:gz") as tar:
        tar.add(corpus / TRANSCRIPT, f"data_aishell/{TRANSCRIPT}")
        for path in (corpus / "wav").glob("*.tar.gz"):
            tar.add(path, f"data_aishell/wav/{path.name}")
    with tarfile.open(folder / "resource_aishell.tgz", "w:gz") as tar:
        tar.add(corpus / TRANSCRIPT, "resource_aishell/lexicon.txt")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        script("get_corpus.py", "--url", url, cwd=tmp_path)
        line = script("get_corpus.py", "--url", f"{url}/none", "--download", tmp_path / "other", cwd=tmp_path, code=1)
        assert "cannot be downloaded" in line and "--corpus-dir" in line
        server.shutdown()
    assert not [*(tmp_path / "data").rglob("*gz")]  # unpacked, and no place taken twice
    assert "skipped" not in script("prepare_manifests.py", cwd=tmp_path)
    assert len(cuts(tmp_path, "train")) == mandarin.UTTERANCES["train"]
    script("get_corpus.py", "--url", url, cwd=tmp_path)  # there already: no server is asked
    # By run.sh it is made again when it was removed.
    words = tmp_path, "--stop-stage", "0"
    assert "done before" not in run("aishell", *words) and "done before" in run("aishell", *words)
    downloaded = tmp_path / "data" / "download" / "aishell"
    shutil.rmtree(downloaded / "data_aishell" / "wav" / "dev")
    assert f"remove {downloaded.relative_to(tmp_path)} and run stage 0 again" in script("get_corpus.py", cwd=tmp_path, code=1)
    shutil.rmtree(downloaded / "data_aishell")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is fetched
    assert "cannot be downloaded" in run("aishell", *words, code=1)


def test_thousands_of_characters_are_tokens_and_no_others(tmp_path):
    characters = [chr(0x4e00 + number) for number in range(4300)]
    texts = ["".join(characters[start:start + 20]) for start in range(0, 4300, 20)]
    lang = train_lang(texts, LangConfig(type="char"), tmp_path)
    assert set(lang.tokens[3:]) == set(characters)  # and nothing that stands for a space
    for text in texts:
        ids = lang.encode(text)
        assert len(ids) == len(text) and lang.decode(ids) == text and lang.unknown(text) == []
    other = texts[0] + "鿿"
    assert lang.encode(other)[-1] == 2 and lang.unknown(other) == ["鿿"] and lang.decode(lang.encode(other)) == texts[0]


@pytest.mark.slow
def test_run_sh_trains_from_shards(corpus, tmp_path):
    """Its stages hand the index of Shar features on in place of the cuts; nothing is learnt in three updates."""
    words = ("--corpus-dir", str(corpus.parent), "--stop-stage", "4", "fbank.storage=shar", "fbank.shard_size=25",
             "training.updates_per_epoch=3", "data.num_workers=0", "model.num_layers=1")
    printed = run("aishell", tmp_path, *words)
    fbank, done = tmp_path / "data" / "fbank", json.loads((tmp_path / "exp" / "teacher" / "done.json").read_text())
    assert len(list((fbank / "train").glob("features.*.tar"))) == 8 and not (fbank / "cuts_train.jsonl.gz").exists()
    assert "180 training cuts" in printed and done["updates"] == 3
    assert f"[stage 4, train-teacher] reads conf/teacher.yaml, {fbank}/shar_train.json, " in printed
    assert run("aishell", tmp_path, *words).count("done before, skipped") == 5


@pytest.mark.slow
def test_aishell_from_nothing_to_the_table(tmp_path):
    subprocess.run([sys.executable, mandarin.__file__, str(tmp_path / "corpus")], check=True)
    output = run("aishell", tmp_path, "--corpus-dir", str(tmp_path / "corpus"))
    exp = tmp_path / "exp"
    # Of the dev transcripts two characters stand in no training transcript.
    assert re.search(r"cuts_dev.jsonl.gz: 2 of \d+ characters are in none of the tokens and become <unk>", output)
    assert not re.search(r"cuts_test.jsonl.gz: \d+ of", output)
    results = json.loads((exp / "results" / "results.json").read_text())
    assert [row["model"] for row in results["rows"]] == MODELS and results["test_sets"] == ["test"]
    characters = sum(len(re.sub("KTV", "K", "".join(words))) for _, _, words in mandarin.sentences("test"))
    for row in results["rows"]:
        test = row["test_sets"]["test"]
        assert test["characters"]["words"] == characters and test["words"] == mandarin.UTTERANCES["test"]
        folder = exp / row["model"] / "decode"
        written = next(folder.glob("errs-test-*.txt")).read_text(encoding="utf-8")
        assert float(re.match(r"%CER = ([\d.]+)", written).group(1)) == pytest.approx(test["characters"]["wer"], abs=0.006)
        recogs = read_recogs(next(folder.glob("recogs-test-*.txt")))
        assert test["errors"] == sum(ref != hyp for _, ref, hyp in recogs)  # one word an utterance
    assert results["rows"][3]["parameters"] <= 0.4 * results["rows"][0]["parameters"]
    report = (exp / "RESULTS.md").read_text(encoding="utf-8")
    assert "## Character error rate and size" in report and "| CER test |" in re.sub(" +", " ", report)
    assert "CER" in output and all(f"| {name} " in report for name in MODELS)
    for name in ("teacher", "stage3"):
        for decoded in ("decode", "decode-int8"):
            summary = json.loads((exp / "export" / name / decoded / "summary.json").read_text())
            assert summary["test_sets"]["test"]["characters"]["words"] == characters
    for stage in range(10):
        assert f"== stage {stage}:" in output
