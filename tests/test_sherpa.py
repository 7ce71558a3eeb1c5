"""Exported files in sherpa-onnx: the words of our own streaming search, the files that it refuses, and the benchmark."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording
from lhotse.utils import fastcopy
from scripts import load, refused
from untrained import CHUNK, LEFT, LOCAL, export, own_words, random_model, save_finished, script

from kdlib.config import FbankConfig, LangConfig
from kdlib.errors import RecipeError, known_failure
from kdlib.example_wavs import write_examples
from kdlib.export import ExportedEncoder, OnnxModel, export_onnx, quantise
from kdlib.files import write_json
from kdlib.lang import train_lang
from kdlib.scoring import read_recogs, write_recogs
from kdlib.sherpa import PARTS, decode_ready, make_recognizer, read_model, seal

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


def sherpa_words(finished, folder, method):
    """What sherpa-onnx hears in the test set, by an exported folder."""
    done = script("decode_sherpa.py", "--model", folder, "--cuts", finished[0], "--test-sets", "test", "--method", method)
    assert done.returncode == 0, done.stderr
    return {id_: words for id_, _, words in read_recogs(next((folder / "decode").glob(f"recogs-*{method}*")))}


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_sherpa_onnx_hears_what_our_streams_hear(finished, exported, method):
    own = own_words(finished, method)
    assert sherpa_words(finished, exported, method) == own
    assert sum(map(len, own.values())) > 5  # there is something to compare
    name = "summary" if method == "greedy_search" else "summary-test-sherpa-onnx-modified_beam_search-beam-4"
    summary = json.loads((exported / "decode" / f"{name}.json").read_text())
    assert summary["method"] == method  # what is tried leaves the recipe's own summary alone
    assert summary["test_sets"]["test"]["utterances"] == 6 and summary["real_time_factor"] > 0


@pytest.mark.parametrize("token", [1, 2])  # <sos/eos>, <unk>
def test_a_token_that_is_no_text_is_a_blank_to_both(finished, tmp_path, token):
    model = random_model(len(finished[2]))
    with torch.no_grad():
        model.joiner.out.bias[token] = 4.0
    save_finished(finished[0] / "exp" / f"token-{token}", model, finished[2])
    folder = export(finished[0], f"token-{token}", tmp_path / "onnx")
    for method in ("greedy_search", "modified_beam_search"):
        own = own_words(finished, method, model)
        assert sherpa_words(finished, folder, method) == own
        usual = own_words(finished, method)
        assert sum(map(len, own.values())) > 5 and own != usual  # it takes the place of some words, not of all


@pytest.mark.parametrize("letters, byte_bpe", [
    ("\uac00\ub098\ub2e4\ub77c\ub9c8\ubc14\uc0ac\uc544", False),  # Hangul: between such the runtime's text has no spaces
    ("'ABCDEFG", False),  # nor before punctuation
    ("A\u2028\x85\u2029DEFG", False),  # characters that divide lines elsewhere are tokens
    ("\u018fABCDEFG", True)])  # of which it makes bytes
def test_words_that_the_text_of_the_runtime_garbles(finished, tmp_path, letters, byte_bpe):
    lang = train_lang([" ".join(letters)], LangConfig(type="char"), tmp_path / "lang")
    model = random_model(len(lang))
    with torch.no_grad():
        for token in ("\u2581", letters[0]):
            model.joiner.out.bias[lang.tokens.index(token)] = 6.0
    save_finished(tmp_path / "exp" / "tiny", model, lang)
    done = script("export_onnx.py", "--exp", tmp_path / "exp" / "tiny", "--lang", tmp_path / "lang", "--fbank-config",
                  finished[0] / "fbank.yaml", "--output", tmp_path / "onnx")
    assert done.returncode == 0, done.stderr
    assert ("warning: sherpa-onnx takes these tokens for bytes" in done.stdout) == byte_bpe
    own = own_words((finished[0], model, lang, finished[3]), "greedy_search")
    assert sherpa_words(finished, tmp_path / "onnx", "greedy_search") == own and sum(map(len, own.values())) > 10


def test_the_runtime_hears_the_frequencies_of_the_training(finished, tmp_path):
    (tmp_path / "fbank.yaml").write_text("low_freq: 300.0\nhigh_freq: -2500.0\n")
    done = script("export_onnx.py", "--exp", finished[0] / "exp" / "tiny", "--lang", finished[0] / "lang", "--fbank-config",
                  tmp_path / "fbank.yaml", "--output", tmp_path / "onnx")
    assert done.returncode == 0, done.stderr
    heard = sherpa_words(finished, tmp_path / "onnx", "greedy_search")
    for low, high, alike in ((300.0, -2500.0, True), (300.0, -400.0, False), (20.0, -2500.0, False)):
        own = own_words(finished, "greedy_search", fbank=FbankConfig(low_freq=low, high_freq=high))
        assert (own == heard) == alike


def test_int8_is_smaller_and_decodes(finished, exported):
    done = script("decode_sherpa.py", "--model", exported, "--cuts", finished[0], "--test-sets", "test", "--int8")
    assert done.returncode == 0, done.stderr
    summary = json.loads((exported / "decode-int8" / "summary.json").read_text())
    assert "tiny.int8" in done.stdout
    card = (exported / "model_card.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| int8"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        "int8", "greedy_search", f"{summary['test_sets']['test']['wer']:.2f}"]
    big = random_model(500, encoder_dim=144, feedforward_dim=432, predictor_dim=144, joiner_dim=144)
    folder = exported.parent / "big"
    export_onnx(big, folder, CHUNK, LEFT)
    quantise(folder)
    sizes = [sum((folder / f"{part}{suffix}.onnx").stat().st_size for part in PARTS) for suffix in ("", ".int8")]
    assert sizes[1] < 0.4 * sizes[0]
    # Rounding, and no more: sums that overflow, as those of signed weights of 8 bits do on some processors, are 20% off. Two
    # products of a byte with these are at most 32767 everywhere.
    signed = [weight for weight in map(onnx.numpy_helper.to_array, onnx.load(folder / "encoder.int8.onnx").graph.initializer)
              if weight.dtype == np.int8 and weight.ndim == 2]
    assert len(signed) == 2 + 8 * big.config.num_layers
    assert all(2 * 255 * abs(weight.astype(int)).max() <= 32767 for weight in signed)
    encoders = [OnnxModel(folder, suffix) for suffix in ("", ".int8")]
    caches = ExportedEncoder(big).initial_caches(1, LEFT)
    audio = torch.randn(1, 4 * CHUNK + 3, 80, generator=torch.Generator().manual_seed(5)) * 3.0 - 8.0
    want, got = (encoder.run("encoder", audio, *caches, torch.zeros(1, dtype=torch.int64))[0] for encoder in encoders)
    assert 1e-4 < (got - want).abs().mean() / want.abs().mean() < 0.05


def test_with_a_gain_it_hears_what_it_hears_of_louder_audio(finished, exported, tmp_path):
    """And clips what goes beyond full scale. It is a trial: the recipe's own files stay."""
    scaled = []
    for cut in finished[3]:
        path = tmp_path / f"{cut.id}.wav"
        soundfile.write(path, np.clip(10 * cut.load_audio()[0], -1, 1), 16000, subtype="FLOAT")
        scaled.append(fastcopy(cut, recording=Recording.from_file(path)))
    CutSet.from_cuts(scaled).to_file(tmp_path / "cuts_test.jsonl.gz")
    shutil.copytree(exported, tmp_path / "onnx", ignore=shutil.ignore_patterns("decode", "decode-int8"))

    def heard(cuts, *options):
        done = script("decode_sherpa.py", "--model", tmp_path / "onnx", "--cuts", cuts, "--test-sets", "test", *options)
        assert done.returncode == 0, done.stderr
        name = f"recogs-test-sherpa-onnx-greedy_search{'-gain-20' if options else ''}.txt"
        return read_recogs(tmp_path / "onnx" / "decode" / name)

    louder = heard(tmp_path)
    summary = (tmp_path / "onnx" / "decode" / "summary.json").read_bytes()
    assert heard(finished[0], "--gain", "20") == louder
    assert (tmp_path / "onnx" / "decode" / "summary.json").read_bytes() == summary
    assert heard(finished[0]) != louder
    assert "--beam 8 is of modified_beam_search, and this search is greedy_search" in refused(
        script("decode_sherpa.py", "--model", exported, "--cuts", tmp_path, "--test-sets", "test", "--beam", 8))
    assert "give dB" in refused(script("decode_sherpa.py", "--model", exported, "--cuts", tmp_path, "--test-sets", "test",
                                       "--gain", "nan"))


def test_examples_travel_with_the_model(finished, exported, tmp_path):
    """The shortest of three words, or of the most; written in 16 bits, of which the words beside them are heard."""
    cuts = list(finished[3])
    cuts[3] = fastcopy(cuts[3], supervisions=[fastcopy(cuts[3].supervisions[0], text="UP DOWN LEFT")])
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts_test.jsonl.gz")
    heard = {}
    for options in ([], ["--int8"]):
        done = script("decode_sherpa.py", "--model", exported, "--cuts", tmp_path, "--test-sets", "test", *options)
        assert done.returncode == 0, done.stderr
        recogs = next((exported / f"decode{'-int8' if options else ''}").glob("recogs-*greedy_search*"))
        heard[bool(options)] = {id_: " ".join(words) for id_, _, words in read_recogs(recogs)}
    header, *rows = [line.split("\t") for line in (exported / "test_wavs" / "trans.txt").read_text().splitlines()]
    assert header == ["file", "id", "reference", "float32", "int8"]
    assert rows == [[f"{number}.wav", cut.id, cut.supervisions[0].text, heard[False][cut.id], heard[True][cut.id]]
                    for number, cut in enumerate((cuts[3], cuts[5], cuts[0]))]
    for (name, *_), cut in zip(rows, (cuts[3], cuts[5], cuts[0])):
        with soundfile.SoundFile(str(exported / "test_wavs" / name)) as audio:
            assert (audio.subtype, audio.samplerate, audio.frames) == ("PCM_16", 16000, cut.num_samples)
    assert any(row[3] for row in rows)
    # Another test set is a trial, and the examples stay those of the recipe's.
    CutSet.from_cuts(cuts[1:3]).to_file(tmp_path / "cuts_other.jsonl.gz")
    shipped = {path.name: path.read_bytes() for path in (exported / "test_wavs").iterdir()}
    done = script("decode_sherpa.py", "--model", exported, "--cuts", tmp_path, "--test-sets", "other")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (exported / "test_wavs").iterdir()} == shipped


def test_by_hand_no_file_of_a_step_is_replaced(finished, tmp_path, monkeypatch):
    """Of the model's folder, which travels with the words that the step heard."""
    model = export(finished[0], "tiny", tmp_path / "onnx")

    def decode(cuts):
        """What lies in the folder then, by name; and the line of the test set."""
        done = script("decode_sherpa.py", "--model", model, "--cuts", cuts, "--test-sets", "test")
        assert done.returncode == 0, done.stderr
        return {path: path.read_bytes() for path in [*model.glob("decode/*"), *model.glob("*.md")]}, done.stdout

    with monkeypatch.context() as patch:
        patch.setenv("RECIPE_STEP", "stage 9, decode stage3")
        of_the_step, _ = decode(finished[0])
    CutSet.from_cuts(finished[3][1:3]).to_file(tmp_path / "cuts_test.jsonl.gz")
    both, said = decode(tmp_path)
    assert {path: both.pop(path) for path in of_the_step} == of_the_step
    assert len(both) == 4 and all(path.stem.endswith("sherpa-onnx-greedy_search-by-hand") for path in both)
    assert f"-> {model}/decode/errs-test-sherpa-onnx-greedy_search-by-hand.txt\n" in said


@pytest.mark.parametrize("method, beam, goes_on", [
    ("greedy_search", 4, True), ("modified_beam_search", 4, True), ("modified_beam_search", 1, False)])
def test_reset_of_the_runtime_keeps_the_last_labels(finished, tmp_path, method, beam, goes_on):
    """As docs/deploy.md says. By a model that hears nothing, whose last labels alone say the next one: after reset() it goes on
    as a stream does that was not reset, and in a new stream it begins anew; so it does after reset() where there is one path,
    since sherpa-onnx sets a beginning without labels beside what it keeps, and that is the likelier at first."""
    model = random_model(len(finished[2]))
    with torch.no_grad():
        model.joiner.encoder_proj.weight.zero_()
        model.joiner.out.weight.mul_(4.0)  # so sure of each label that a beam is of no use
        model.joiner.out.bias[:3] = -300.0  # blank, and what is no text: each frame has a label
    save_finished(finished[0] / "exp" / f"deaf-{method}-{beam}", model, finished[2])
    folder = export(finished[0], f"deaf-{method}-{beam}", tmp_path / "onnx")
    recognizer = make_recognizer(folder, read_model(folder), method=method, beam=beam)
    noise = np.ones(16000, dtype=np.float32)

    def heard(stream):
        """The tokens of the stream after another second."""
        stream.accept_waveform(16000, noise)
        while decode_ready(recognizer, stream):
            pass
        return recognizer.tokens(stream)

    going_on, reset = recognizer.create_stream(), recognizer.create_stream()
    first = heard(going_on)
    assert heard(reset) == first
    recognizer.reset(reset)
    later, anew, on = heard(reset), heard(recognizer.create_stream()), heard(going_on)[len(first):]
    count = min(len(later), len(anew))
    assert count > 10 and on[:count] != anew[:count] == first[:count]
    assert later[:count] == (on if goes_on else anew)[:count]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_a_disk_that_is_full_before_the_examples_are_written(finished, exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "model")
    recognizer = make_recognizer(exported, read_model(exported))

    def full(dir, prefix, suffix):
        path = Path(dir, f"{prefix}x{suffix}")
        path.symlink_to("/dev/full")
        return os.open(path, os.O_RDWR), str(path)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError) as failure:
        write_examples(tmp_path / "model", finished[3], recognizer)
    assert known_failure(failure.value) == (f"no space left on the disk while writing {tmp_path}/model/test_wavs/0.wav; "
                                            "free some space and run the same command again")
    assert not list((tmp_path / "model" / "test_wavs").iterdir())


def test_the_program_of_the_documentation_hears_the_same(finished, exported):
    program = re.search(r"```python\n(.*?)```", (LOCAL.parent / "docs" / "deploy.md").read_text(), re.DOTALL)[1]
    assert "\nchunk_size = 16 " in program
    program = program.replace("\nchunk_size = 16 ", f"\nchunk_size = {CHUNK} ")
    done = script("decode_sherpa.py", "--model", exported, "--cuts", finished[0], "--test-sets", "test", "--int8")
    assert done.returncode == 0, done.stderr
    want = {id_: words for id_, _, words in read_recogs(next((exported / "decode-int8").glob("recogs-*greedy_search*")))}
    for cut in finished[3]:
        heard = subprocess.run([sys.executable, "-c", program, str(exported), str(finished[0] / f"{cut.id}.wav")],
                               stdout=subprocess.PIPE, text=True, check=True).stdout
        assert heard.split("\n")[-2].split() == want[cut.id]  # universal newlines: what is shown on the way ends in \r


def test_streaming_decode_of_the_same_audio(finished, exported):
    """By its own command the words of sherpa-onnx, and a command that says so."""
    folder = finished[0]

    def decode(*words):
        done = script("streaming_decode.py", "--exp", folder / "exp" / "tiny", "--fbank", folder, "--lang",
                      folder / "lang", "--config", folder / "decode.yaml", "--test-sets", "test", "--fbank-config",
                      folder / "fbank.yaml", *words)
        assert done.returncode == 0, done.stderr
        assert "real-time factor" in done.stdout

    for method in ("greedy_search", "modified_beam_search"):
        decode("--tail", "sherpa-onnx", "--method", method, "--streams", "2")
        ours, = (folder / "exp" / "tiny" / "streaming_decode").glob(f"recogs-test-*{method}*-tail-sherpa-onnx.txt")
        own = {id_: words for id_, _, words in read_recogs(ours)}
        assert own == own_words(finished, method) == sherpa_words(finished, exported, method)
        theirs = exported / "decode" / f"recogs-test-sherpa-onnx-{method}{'-beam-4' * (method != 'greedy_search')}.txt"
        assert script("compare_recogs.py", ours, theirs).stdout == "6 of 6 utterances are heard alike (100.00 %)\n"
    decode("--tail", "0.21")
    recogs, = (folder / "exp" / "tiny" / "streaming_decode").glob("recogs-test-*-tail-0.21.txt")
    assert len(read_recogs(recogs)) == 6


def test_audio_shorter_than_a_window_of_features(finished, tmp_path):
    cut = finished[3][0].truncate(duration=10 / 16000, preserve_id=True)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts_short.jsonl.gz")
    done = script("streaming_decode.py", "--exp", finished[0] / "exp" / "tiny", "--fbank", tmp_path, "--lang",
                  finished[0] / "lang", "--config", finished[0] / "decode.yaml", "--test-sets", "short", "--fbank-config",
                  finished[0] / "fbank.yaml", "--tail", "0")
    assert done.returncode == 0, done.stderr


def test_what_two_decodings_hear_otherwise(tmp_path):
    write_recogs(tmp_path / "a.txt", [("u1", ["UP"], ["UP"]), ("u2", ["DOWN"], ["DAWN", "X"]), ("u3", [], [])])
    write_recogs(tmp_path / "b.txt", [("u1", ["UP"], ["UP"]), ("u2", ["DOWN"], ["DOWN"]), ("u3", [], [])])
    write_recogs(tmp_path / "c.txt", [("u1", ["UP"], ["UP"])])
    assert script("compare_recogs.py", tmp_path / "a.txt", tmp_path / "b.txt").stdout.splitlines() == [
        "u2", "  reference: DOWN", "  DAWN X  <- a.txt", "  DOWN  <- b.txt",
        "2 of 3 utterances are heard alike (66.67 %)"]
    done = script("compare_recogs.py", tmp_path / "a.txt", tmp_path / "c.txt")
    assert done.returncode == 1 and "are not of one test set (u2 is in one of them alone)" in done.stderr


def change(**entries):
    def damage(folder):
        about = json.loads((folder / "model.json").read_text())
        write_json(folder / "model.json", {key: value for key, value in {**about, **entries}.items() if value is not None})
    return damage


def flip(name):
    """A byte in the middle of the file is another one: its size stays."""
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 0x55
        (folder / name).write_bytes(content)
    return damage


def rewrite_tokens(text, resealed):
    def damage(folder):
        (folder / "tokens.txt").write_bytes(text)
        if resealed:
            write_json(folder / "model.json", seal(folder, json.loads((folder / "model.json").read_text())))
    return damage


@pytest.mark.parametrize("damage, said", [
    (lambda folder: (folder / "model.json").unlink(), "model.json is missing: export the model again"),
    (lambda folder: (folder / "model.json").write_text('{"model": 3}'), "model.json says nothing of parameters, updates"),
    (lambda folder: (folder / "model.json").write_text("[]"), "does not describe an exported model"),
    (lambda folder: (folder / "joiner.onnx").unlink(), "joiner.onnx is missing: the int8 files are there: give --int8"),
    (flip("encoder.onnx"), "encoder.onnx is not the file of which model.json has the digest"),
    (flip("joiner.onnx"), "joiner.onnx is not the file"),
    (rewrite_tokens(b"a 0\n", False), "tokens.txt is not the file"),
    (rewrite_tokens(b"a 0\n", True), "tokens.txt does not have the model's 20 tokens"),
    (rewrite_tokens(b"\xff\xfe 0\n", True), "tokens.txt is not UTF-8"),
    (change(digest=None), "model.json says nothing of digest, as if an earlier version had written it: export the model"),
    (change(low_freq=None), "model.json says nothing of low_freq"),
    (change(low_freq="20"), "low_freq: '20'"),
    (change(low_freq=float("nan")), "low_freq: nan"),
    (change(high_freq=-7990.0), "high_freq: -7990.0"),
    (change(chunk_size=-5), "chunk_size: -5"),
    (change(chunk_size=True), "chunk_size: True"),
    (change(chunk_size=8), "model.json is not as it was exported"),
    (change(num_filters=40), "model.json is not as it was exported"),
    (change(sampling_rate=0), "sampling_rate: 0"),
])
def test_a_folder_that_is_not_whole(exported, tmp_path, damage, said):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    read_model(folder)
    damage(folder)
    with pytest.raises(RecipeError, match=re.escape(said)):
        read_model(folder)


def test_a_device_has_files_of_one_kind(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    for path in folder.glob("*.int8.onnx"):
        path.unlink()
    read_model(folder)
    with pytest.raises(RecipeError, match="encoder.int8.onnx is missing: the float32 files are there: leave --int8 out"):
        read_model(folder, int8=True)
    (folder / "joiner.onnx").unlink()
    for int8 in (False, True):
        with pytest.raises(RecipeError, match="onnx is missing: export the model again"):
            read_model(folder, int8=int8)


def test_what_the_runtime_cannot_run(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    for path in folder.glob("*.onnx"):
        path.write_bytes(b"no model")
    write_json(folder / "model.json", seal(folder, json.loads((folder / "model.json").read_text())))
    with pytest.raises(RecipeError, match="sherpa-onnx cannot run the model in .*: export the model again"):
        make_recognizer(folder, read_model(folder))
    other = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    shutil.copytree(exported, other)
    with pytest.raises(RecipeError, match=r"the path .*\udcff is not UTF-8, as sherpa-onnx must have it: rename that folder"):
        make_recognizer(other, read_model(other))


@pytest.mark.parametrize("option", [{"num_threads": 100000}, {"num_threads": 0}, {"beam": 0}, {"beam": 10 ** 12}])
def test_more_than_the_machine_has(exported, option):
    with pytest.raises(RecipeError, match=r"(beam|threads) is \d+: it may be from 1 to \d+"):
        make_recognizer(exported, read_model(exported), **option)


def test_the_benchmark_measures_each_runtime(finished, exported, tmp_path):
    folder = finished[0]
    for source, place in (("exp/tiny", "exp/tiny"), ("onnx", "exp/export/tiny-again"), ("lang", "data/lang")):
        shutil.copytree(folder / source, tmp_path / place)
    (tmp_path / "data" / "fbank").mkdir()
    cuts = CutSet.from_cuts([finished[3][0].drop_supervisions(), *finished[3][1:]])  # of the first nobody knows the words
    cuts.to_file(tmp_path / "data" / "fbank" / "cuts_test.jsonl.gz")
    bench = LOCAL.parent / "tools" / "bench_streaming.py"
    words = [sys.executable, str(bench), "--recipe", str(tmp_path), "--models", "tiny-again", "--test-set", "test", "--repeats",
             "1"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([*words, "--output", "table.md"], capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (elsewhere / "table.md").read_text().splitlines()
            if " float32 " in line or " int8 " in line or " features " in line]
    assert [row[:2] for row in rows] == [["tiny-again", "sherpa-onnx float32"], ["tiny-again", "sherpa-onnx int8"],
                                         ["tiny-again", "torch float32"], ["", "sherpa-onnx features"]]
    assert rows[3][5:] == ["", "", ""] and 0 < float(rows[3][4]) < float(rows[2][4])  # of no model
    assert (elsewhere / "table.md").read_text().startswith("6 utterances of test, ")  # of the 100 that were asked for
    assert rows[0][3] == rows[0][6] == "1.00" and rows[0][7] == rows[2][7]
    assert 0 < float(rows[0][4]) < float(rows[2][4])  # a device needs no torch
    done = subprocess.run([*words[:-1], "0"], capture_output=True, text=True)
    assert done.returncode == 1 and "--repeats 0 is not positive" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*words[:3], str(tmp_path / "data")], capture_output=True, text=True)
    assert done.returncode == 1 and "run stage 9 of the recipe" in done.stderr
    # Beside the rates, which may agree by chance: the words themselves.
    np.savez(tmp_path / "audio.npz", *(cut.load_audio()[0] for cut in cuts))
    heard = [subprocess.run([*words, "--measure", "tiny-again", runtime, tmp_path / "audio.npz"], capture_output=True,
                            text=True) for runtime in ("sherpa-onnx float32", "torch float32")]
    own = own_words(finished, "greedy_search")
    assert [json.loads(done.stdout)["heard"] for done in heard] == 2 * [[own[cut.id] for cut in cuts]]
    # The memory does not grow with the number of utterances: 38 MB of audio here.
    held = []
    for count in (1, 30):
        np.savez(tmp_path / "audio.npz", *count * [np.zeros(20 * 16000, np.float32)])
        done = subprocess.run([*words, "--measure", "tiny-again", "sherpa-onnx features", tmp_path / "audio.npz"],
                              capture_output=True, text=True)
        held.append(json.loads(done.stdout)["memory"])
    assert held[1] < held[0] + 10
    CutSet.from_cuts([cut.resample(8000) for cut in cuts]).to_file(tmp_path / "data" / "fbank" / "cuts_test.jsonl.gz")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "noise-0 has audio of 8000 Hz and the model hears 16000 Hz" in done.stderr


def test_the_benchmark_takes_the_last_stage(tmp_path):
    for name in ("teacher", "stage2", "stage10", "stage9", "stage9-old"):
        (tmp_path / name).mkdir()
    last_stage = load(LOCAL.parent / "tools" / "bench_streaming.py").last_stage
    assert last_stage(tmp_path) == ["stage10"] and last_stage(tmp_path / "teacher") == []
