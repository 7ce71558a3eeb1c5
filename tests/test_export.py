"""Exported files: the numbers of torch, and in sherpa-onnx the words of our own streaming search."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from scripts import run_script

from kdlib.config import (DecodeConfig, DistillTerm, FbankConfig, LangConfig, LossConfig, ModelConfig, TrainConfig,
                          config_to_dict)
from kdlib.errors import RecipeError
from kdlib.export import ExportedEncoder, OnnxModel, check_exported, export_onnx, quantise
from kdlib.features import fbank_extractor
from kdlib.files import write_json
from kdlib.lang import train_lang
from kdlib.scoring import read_recogs, write_recogs
from kdlib.sherpa import PARTS, make_recognizer, read_model, seal
from kdlib.streaming import StreamingRecogniser
from kdlib.training.checkpoint import save_checkpoint
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]
LOCAL = Path(__file__).resolve().parents[1] / "local"
WORDS = "NORTH SOUTH EAST WEST UP DOWN LEFT RIGHT".split()
CHUNK, LEFT = 4, 8


def random_model(vocab_size: int, **changes) -> Transducer:
    """Untrained, with outputs that differ from frame to frame."""
    torch.manual_seed(3)
    sizes = dict(encoder_dim=24, num_layers=2, num_heads=2, head_dim=8, feedforward_dim=32, kernel_size=5, chunk_size=CHUNK,
                 left_context=LEFT, predictor_dim=20, joiner_dim=18, subsampling_channels=4)
    model = Transducer(ModelConfig(**{**sizes, **changes}), vocab_size).eval()
    with torch.no_grad():
        model.joiner.out.weight.normal_(0, 2.0)
        model.joiner.out.bias.zero_()
        model.joiner.out.bias[0] = 1.0
        model.encoder.set_feature_statistics(torch.full((80,), -8.0), torch.full((80,), 3.0))
    return model


def save_finished(exp, model, lang):
    """The folder of a training that has ended in this model."""
    config = TrainConfig(model=model.config, loss=LossConfig(distill=[DistillTerm(name="encoder_mse", weight=0.5)]))
    weights = model.state_dict()
    exp.mkdir(parents=True)
    save_checkpoint(exp / "epoch-1.pt", {"model": weights, "average": weights, "config": json.dumps(config_to_dict(config)),
                                         "tokens": lang.tokens, "updates": 5, "epoch": 1})
    write_json(exp / "done.json", {"updates": 5, "epoch": 1})
    write_json(exp / "run.json", {"config": {}, "inputs": {"cuts_train.jsonl.gz": "1", "elder": "2"}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished model's folder, its tokens, and a test set of noises."""
    folder = tmp_path_factory.mktemp("finished")
    lang = train_lang([" ".join(WORDS)] * 3, LangConfig(type="char"), folder / "lang")
    model = random_model(len(lang))
    save_finished(folder / "exp" / "tiny", model, lang)
    (folder / "fbank.yaml").write_text("{}\n")
    (folder / "decode.yaml").write_text("max_sym_per_frame: 1\n")
    random, cuts = np.random.RandomState(0), []
    for number, seconds in enumerate([0.3, 1.0, 2.37, 4.0, 3.1, 0.05]):
        samples = np.convolve(random.randn(int(16000 * seconds)), random.randn(20), "same") * 0.02
        samples *= 1 + np.sin(np.arange(len(samples)) / 900)
        path = folder / f"noise-{number}.wav"
        soundfile.write(str(path), samples, 16000)
        recording = Recording.from_file(path)
        cuts.append(MonoCut(id=f"noise-{number}", start=0, duration=recording.duration, channel=0, recording=recording,
                            supervisions=[SupervisionSegment(f"noise-{number}", recording.id, 0, recording.duration,
                                                             text="UP DOWN")]))
    CutSet.from_cuts(cuts).to_file(folder / "cuts_test.jsonl.gz")
    return folder, model, lang, cuts


def script(name, *words):
    return run_script(LOCAL / name, *words)


def export(folder, name, output):
    done = script("export_onnx.py", "--exp", folder / "exp" / name, "--lang", folder / "lang", "--fbank-config",
                  folder / "fbank.yaml", "--output", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def exported(finished):
    return export(finished[0], "tiny", finished[0] / "onnx")


def test_the_folder_is_whole(finished, exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {f"{part}{suffix}.onnx" for part in PARTS for suffix in ("", ".int8")} | {
        "tokens.txt", "model.json", "model_card.md"}
    about = json.loads((exported / "model.json").read_text())
    assert about["parameters"] == finished[1].parameter_counts()["total"]
    assert about["int8_bytes"] == sum((exported / f"{part}.int8.onnx").stat().st_size for part in PARTS)
    card = (exported / "model_card.md").read_text()
    assert f"{about['parameters']:,}" in card and f"{about['float32_bytes']:,} in float32" in card and "160 ms" in card
    assert "from `elder`; distilled with `encoder_mse` (weight 0.5)" in card and "Word error rates" not in card


@pytest.mark.parametrize("chunk, left", [(2, 4), (4, 8), (16, 64), (8, 3)])
def test_the_numbers_of_torch(finished, tmp_path, chunk, left):
    export_onnx(finished[1], tmp_path, chunk, left)
    assert check_exported(finished[1], tmp_path, chunk, left, chunks=12) < 1e-4


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_caches_of_two_widths(tmp_path, heads):
    """Keys and values of one head of 8 are narrower than the model's 24 channels, those of two are wider, and a width that
    suits both caches is what sherpa-onnx makes its caches of."""
    model = random_model(20, num_heads=heads, head_dim=8 if heads < 3 else 4)
    assert export_onnx(model, tmp_path, CHUNK, 8) < 1e-4
    width = {1: 24, 2: 32, 3: 24}[heads]
    encoder = OnnxModel(tmp_path).sessions["encoder"]
    assert encoder.get_modelmeta().custom_metadata_map["encoder_dim"] == str(width)
    assert [value.shape[-1] for value in encoder.get_inputs()[1:3]] == [width, width]


def test_metadata_is_what_the_runtime_asks_for(finished, exported):
    sessions = OnnxModel(exported).sessions
    found = {part: sessions[part].get_modelmeta().custom_metadata_map for part in PARTS}
    assert found["encoder"] == {"model_type": "conformer", "num_encoder_layers": "2", "T": "19", "decode_chunk_len": "16",
                                "left_context": "8", "encoder_dim": "32", "pad_length": "3", "cnn_module_kernel": "5"}
    assert found["decoder"] == {"vocab_size": str(len(finished[2])), "context_size": "2"}
    assert found["joiner"] == {"joiner_dim": "18"}
    assert [value.name for value in sessions["encoder"].get_inputs()] == ["x", "cached_attn", "cached_conv",
                                                                          "processed_lens"]


def own_words(finished, method, model=None):
    """What our streams hear in the audio followed by as much silence as sherpa-onnx is given; of another model, if given."""
    _, usual, lang, cuts = finished
    model = model or usual
    recogniser = StreamingRecogniser(model, config=DecodeConfig(method))
    extractor, heard = fbank_extractor(FbankConfig()), {}
    for cut in cuts:
        silence = np.zeros((1, int((4 * CHUNK + 4) * 160) + 1), dtype=np.float32)
        samples = np.concatenate([cut.load_audio(), silence], axis=1)
        stream = recogniser.create_stream()
        stream.accept(torch.from_numpy(np.asarray(extractor.extract(samples, 16000))))
        recogniser.run([stream])  # whole chunks alone, as the runtime
        heard[cut.id] = lang.decode(list(stream.result.tokens)).split()
    return heard


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


def test_an_unknown_token_is_a_blank_to_both(finished, tmp_path):
    model = random_model(len(finished[2]))
    with torch.no_grad():
        model.joiner.out.bias[2] = 4.0
    save_finished(finished[0] / "exp" / "unknown", model, finished[2])
    folder = export(finished[0], "unknown", tmp_path / "onnx")
    for method in ("greedy_search", "modified_beam_search"):
        own = own_words(finished, method, model)
        assert sherpa_words(finished, folder, method) == own
        usual = own_words(finished, method)
        assert sum(map(len, own.values())) > 5 and own != usual  # <unk> takes the place of some words, not of all


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
    # Rounding to 8 bits, and no more: sums that overflow, as those of signed weights do on some processors, are 20% off.
    encoders = [OnnxModel(folder, suffix) for suffix in ("", ".int8")]
    caches = ExportedEncoder(big).initial_caches(1, LEFT)
    audio = torch.randn(1, 4 * CHUNK + 3, 80, generator=torch.Generator().manual_seed(5)) * 3.0 - 8.0
    want, got = (encoder.run("encoder", audio, *caches, torch.zeros(1, dtype=torch.int64))[0] for encoder in encoders)
    assert 1e-4 < (got - want).abs().mean() / want.abs().mean() < 0.05


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


def test_what_cannot_be_exported(finished, exported, tmp_path):
    with pytest.raises(RecipeError, match="chunk_size 0 and left_context 8 cannot be exported"):
        export_onnx(finished[1], tmp_path, 0, LEFT)
    other = random_model(len(finished[2]))
    with torch.no_grad():
        other.joiner.out.bias += 0.01
    with pytest.raises(RecipeError, match="give other numbers than torch"):
        check_exported(other, exported, CHUNK, LEFT)
    with pytest.raises(RecipeError, match="encoder.onnx is missing: export the model again"):
        OnnxModel(tmp_path)


@pytest.mark.parametrize("changes, words, said", [
    ({"kernel_size": 1}, [], "a model with kernel_size 1 cannot be exported"),
    ({}, ["--chunk-size", "100000"], "cannot be exported with chunk_size: 100000 frames: give fewer"),
    ({}, ["--left-context", "2000000"], "cannot be exported with left_context: 2000000 frames: give fewer"),
    ({}, ["num_filters=40"], "exp was trained with 80: give the fbank settings of its stage 2"),
    ({}, ["sampling_rate=0"], "fbank.yaml says what no exported model can have (sampling_rate: 0)"),
    ({}, ["low_freq=9000"], "fbank.yaml says what no exported model can have (low_freq: 9000.0, high_freq: -400.0)"),
])
def test_what_is_refused_before_anything_is_written(finished, tmp_path, changes, words, said):
    save_finished(tmp_path / "exp", random_model(len(finished[2]), **changes), finished[2])
    done = script("export_onnx.py", "--exp", tmp_path / "exp", "--lang", finished[0] / "lang", "--fbank-config",
                  finished[0] / "fbank.yaml", "--output", tmp_path / "onnx", *words)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("name, own, other", [("sampling_rate", 16000, 8000), ("low_freq", 20.0, 0.0)])
def test_features_other_than_those_of_the_training_are_refused(finished, tmp_path, name, own, other):
    exp = tmp_path / "exp"
    save_finished(exp, finished[1], finished[2])
    write_json(exp / "run.json", {"config": {}, "inputs": {}, "models": {}, "features": FbankConfig().heard()})
    (tmp_path / "fbank.yaml").write_text(f"{name}: {other}\n")
    given = ["--exp", exp, "--lang", finished[0] / "lang", "--fbank-config", tmp_path / "fbank.yaml"]
    for done in (script("export_onnx.py", *given, "--output", tmp_path / "onnx"),
                 script("streaming_decode.py", *given, "--fbank", finished[0], "--config", finished[0] / "decode.yaml",
                        "--test-sets", "test", "--tail", "0")):
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert f"fbank.yaml says {name} {other}, and {exp} was trained with {own}" in done.stderr
    assert not (tmp_path / "onnx").exists()
    (tmp_path / "fbank.yaml").write_text(f"{name}: {own}\n")
    assert script("export_onnx.py", *given, "--output", tmp_path / "onnx").returncode == 0


def test_an_export_deletes_what_an_export_wrote_and_no_more(finished, tmp_path):
    exp, results = tmp_path / "exp", {"recogs-test-epoch-1.txt": "words", "summary.json": "{}"}
    save_finished(exp, finished[1], finished[2])
    (exp / "decode").mkdir()
    for name, text in results.items():
        (exp / "decode" / name).write_text(text)
    options = ["--exp", exp, "--lang", finished[0] / "lang", "--fbank-config", finished[0] / "fbank.yaml", "--output"]
    done = script("export_onnx.py", *options, exp)
    assert done.returncode == 1 and f"--output {exp} is the folder of a training" in done.stderr
    assert {path.name: path.read_text() for path in (exp / "decode").iterdir()} == results
    output = tmp_path / "onnx"
    for name in ("decode", "decode-int8"):
        (output / name).mkdir(parents=True)
        (output / name / "recogs-test-sherpa-onnx-greedy_search.txt").write_text("of another model")
        (output / name / "summary.json").write_text("{}")
    (output / "decode-int8" / "mine.txt").write_text("a user's")
    assert script("export_onnx.py", *options, output).returncode == 0
    assert [path.name for path in output.glob("decode*/*")] == ["mine.txt"]
    assert "Word error rates" not in (output / "model_card.md").read_text()


def test_the_check_fills_the_cache(finished, tmp_path):
    """A file that is right until its cache of 40 chunks is full is found out."""
    export_onnx(finished[1], tmp_path, 1, 40)
    forgets = random_model(len(finished[2]))
    whole = forgets.encoder.streaming_forward

    def forget(x, attention, convolution, processed, lengths=None):
        x = torch.where((processed >= 40)[:, None, None], torch.zeros_like(x), x)
        return whole(x, attention, convolution, processed)

    forgets.encoder.streaming_forward = forget
    with pytest.raises(RecipeError, match="give other numbers than torch"):
        check_exported(forgets, tmp_path, 1, 40)


def test_numbers_that_are_none_are_not_passed_over(finished, exported, tmp_path):
    spoilt = random_model(len(finished[2]))
    with torch.no_grad():
        spoilt.joiner.out.bias[3] = float("nan")
    with pytest.raises(RecipeError, match="largest difference inf"):
        check_exported(spoilt, exported, CHUNK, LEFT)
    shutil.copytree(exported, tmp_path / "model")
    with pytest.raises(RecipeError, match="largest difference inf"):  # in the files and in torch
        export_onnx(spoilt, tmp_path / "model", CHUNK, LEFT)
    with pytest.raises(RecipeError, match="model.json is missing"):  # nothing vouches for a mixture of two exports
        read_model(tmp_path / "model", int8=True)


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
    (lambda folder: (folder / "joiner.onnx").unlink(), "joiner.onnx is missing"),
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


def test_what_the_runtime_cannot_run(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    for path in folder.glob("*.onnx"):
        path.write_bytes(b"no model")
    write_json(folder / "model.json", seal(folder, json.loads((folder / "model.json").read_text())))
    with pytest.raises(RecipeError, match="sherpa-onnx cannot run the model in .*: export the model again"):
        make_recognizer(folder, read_model(folder))


def test_features_that_the_model_does_not_take(finished, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    about = json.loads((folder / "model.json").read_text())
    write_json(folder / "model.json", seal(folder, {**about, "num_filters": 40}))
    done = script("decode_sherpa.py", "--model", folder, "--cuts", finished[0], "--test-sets", "test")
    assert done.returncode == 1 and "sherpa-onnx cannot run the model (" in done.stderr and "Traceback" not in done.stderr
    assert "error: sherpa-onnx cannot run the model (" in transcribe(folder, finished[0] / "noise-3.wav", code=1)[1]


@pytest.mark.parametrize("option", [{"num_threads": 100000}, {"num_threads": 0}, {"beam": 0}, {"beam": 10 ** 12}])
def test_more_than_the_machine_has(exported, option):
    with pytest.raises(RecipeError, match=r"(beam|threads) is \d+: it may be from 1 to \d+"):
        make_recognizer(exported, read_model(exported), **option)


TRANSCRIBE = LOCAL.parent / "tools" / "transcribe.py"


START = ("import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
         f"sys.path.insert(0, {str(TRANSCRIBE.parent)!r}); "  # as Python does where the script itself is run
         f"runpy.run_path({str(TRANSCRIBE)!r}, run_name='__main__')")


def transcribe(exported, *words, code=0, start=START, **options):
    """Lines of standard output, and the errors; torch cannot be imported meanwhile."""
    done = subprocess.run([sys.executable, "-c", start, "transcribe.py", "--model", str(exported), *map(str, words)],
                          capture_output=True, **options)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout.decode().splitlines(), done.stderr.decode()


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_transcribe_says_what_the_test_set_said(finished, exported):
    folder, _, _, cuts = finished
    files = [folder / f"{cut.id}.wav" for cut in cuts]
    for method in ("modified_beam_search", "greedy_search"):
        own = own_words(finished, method)
        want = [f"{file}: {' '.join(own[cut.id])}".rstrip(" ") for file, cut in zip(files, cuts)]
        for options in ([], ["--live"]):
            lines = [line.rstrip(" ") for line in transcribe(exported, *files, "--method", method, *options)[0]]
            if method != "greedy_search":  # where it has revised its words, those of the last line are right
                lines = list({line.split(":")[0]: line for line in lines}.values())
            assert lines == want
    for line, cut in zip(transcribe(exported, *files, "--timestamps")[0], cuts):
        times = [float(word[1:-1]) for word in line.split(": ")[-1].split()[::2]] if own[cut.id] else []
        assert times == sorted(times) and all(0 <= time <= cut.duration + 0.3 for time in times)
    raw, rate = soundfile.read(str(files[3]), dtype="int16")
    assert transcribe(exported, "-", input=raw.tobytes())[0][0].split(":", 1)[1] == want[3].split(":", 1)[1]


def test_transcribe_reads_what_there_is(finished, exported, tmp_path):
    """Two channels, nothing, samples that are no numbers."""
    samples, _ = soundfile.read(str(finished[0] / "noise-3.wav"))
    broken = samples.copy()
    broken[100:200] = np.nan
    files = [tmp_path / f"{name}.wav" for name in ("stereo", "empty", "nan")]
    for file, audio in zip(files, (np.stack([samples, samples], 1), samples[:0], broken)):
        soundfile.write(str(file), audio, 16000, subtype="FLOAT")
    lines, errors = transcribe(exported, *files)
    assert [line.split(":")[0] for line in lines] == [str(file) for file in files]
    original = transcribe(exported, finished[0] / "noise-3.wav")[0][0].split(":", 1)[1]
    assert lines[0].split(":", 1)[1] == original and len(original) > 5
    assert f"warning: {files[1]} is empty" in errors
    assert f"warning: {files[2]}: 100 samples are not finite" in errors


def test_a_long_file_takes_no_more_memory(finished, exported, tmp_path):
    short = finished[0] / "noise-3.wav"
    samples, rate = soundfile.read(str(short), dtype="int16")
    soundfile.write(str(tmp_path / "long.wav"), np.tile(samples, 75), rate)  # five minutes: 19 MB in float32
    start = START + "; print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    peaks = []  # in kB; not by getrusage, which counts what the parent held when it started the process
    for file in (short, tmp_path / "long.wav"):
        lines = transcribe(exported, file, start=start)[0]
        peaks.append(int(lines[1].split()[1]))
    assert len(lines[0]) > 1000 and peaks[1] < peaks[0] + 10000


def test_transcribe_says_what_a_file_lacks(finished, exported, tmp_path):
    """Files that libsndfile reads to where they were cut without a word, and one that it does not."""
    samples, rate = soundfile.read(str(finished[0] / "noise-3.wav"))
    said = {"wav": r"is cut short: \d+ of 128044 bytes", "aiff": r"is cut short: \d+ of 128054 bytes",
            "ogg": r"is cut short: \d+ of at least \d+ bytes", "mp3": r"is cut short: \d+ of 64000 samples",
            "flac": r"is damaged: what follows \d\.00 s cannot be read"}
    whole, cut = [], []
    for kind in said:
        whole.append(tmp_path / f"whole.{kind}")
        cut.append(tmp_path / f"cut.{kind}")
        soundfile.write(str(whole[-1]), samples, rate)
        content = whole[-1].read_bytes()
        cut[-1].write_bytes(content[:len(content) * 3 // 4])
    bare = tmp_path / "bare.wav"
    bare.write_bytes(whole[0].read_bytes()[:44])
    assert "error" not in transcribe(exported, *whole)[1]
    lines, errors = transcribe(exported, *cut, bare, code=1)
    assert [line.split(":")[0] for line in lines] == [str(file) for file in [*cut, bare]]
    assert all(len(line.split(":", 1)[1]) > 3 for line in lines[:-1])  # what is there is heard
    for file, reason in zip(cut, said.values()):
        assert re.search(f"error: {re.escape(str(file))} {reason}", errors), (file, errors)
    assert f"{bare} is cut short: 44 of 128044 bytes; it is empty" in errors
    assert "6 of 6 could not be transcribed in full" in errors


def test_samples_of_another_scale(finished, exported, tmp_path):
    """One sample beyond all bounds costs that sample, and integers in a file of floats are told."""
    samples, rate = soundfile.read(str(finished[0] / "noise-3.wav"), dtype="float32")
    huge, doubled, integers = samples.copy(), np.stack([samples, samples], 1), samples * 32768
    huge[1000] = 1e30
    doubled[1000] = np.inf, -np.inf
    for name, audio in {"huge": huge, "doubled": doubled, "integers": integers}.items():
        soundfile.write(str(tmp_path / f"{name}.wav"), audio, rate, subtype="FLOAT")
    lines, errors = transcribe(exported, *(tmp_path / f"{name}.wav" for name in ("huge", "doubled", "integers")))
    silenced = samples.copy()
    silenced[1000] = 0.0
    soundfile.write(str(tmp_path / "silenced.wav"), silenced, rate, subtype="FLOAT")
    want = transcribe(exported, tmp_path / "silenced.wav")[0][0].split(":", 1)[1]
    assert [line.split(":", 1)[1] for line in lines[:2]] == [want, want]
    assert errors.splitlines() == [
        *(f"warning: {tmp_path / name}.wav: 1 samples are not finite or beyond 65536, and were taken for silence"
          for name in ("huge", "doubled")),
        f"warning: {tmp_path / 'integers'}.wav: samples go up to {np.abs(integers).max():.0f} where 1 is full scale, as if "
        "they were integers: divide them, by 32768 for 16 bit"]


def test_what_standard_input_may_be(finished, exported):
    file = finished[0] / "noise-3.wav"
    raw = soundfile.read(str(file), dtype="int16")[0].tobytes()
    line = transcribe(exported, file)[0][0].replace(str(file), "-")
    lines, errors = transcribe(exported, "-", input=raw + b"x")
    assert lines == [line] and errors == "warning: -: the last byte is half a sample, and was left out\n"
    lines, errors = transcribe(exported, "-", input=b"")
    assert len(lines) == 1 and errors == "warning: -: there was no sound in it\n"
    errors = transcribe(exported, "-", code=1, input=file.read_bytes())[1]
    assert "error: -: this is a file with a header (RIFF), and no raw PCM: give it by its name" in errors
    errors = transcribe(exported, "-", code=1, start="import os; os.close(0); import sys; sys.stdin = None; " + START)[1]
    assert "error: -: standard input is closed: pipe raw PCM into it" in errors
    assert "warning: --rate is of raw PCM on '-'" in transcribe(exported, file, "--rate", "8000")[1]


def test_names_of_all_kinds(finished, exported, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff.wav"
    shutil.copy(os.fsencode(finished[0] / "noise-1.wav"), name)
    os.mkfifo(tmp_path / "fifo.wav")
    done = subprocess.run([sys.executable, "-c", START, "transcribe.py", "--model", str(exported), name, str(tmp_path),
                           str(tmp_path / "fifo.wav")], capture_output=True)
    assert done.stdout.startswith(name + b": ") and b"Traceback" not in done.stderr
    assert f"error: {tmp_path} is a folder: give the files in it".encode() in done.stderr
    assert f"error: {tmp_path / 'fifo.wav'} is no regular file".encode() in done.stderr


@pytest.mark.parametrize("module, package", [("sherpa_onnx", "sherpa-onnx"), ("soundfile", "soundfile"), ("soxr", "soxr")])
def test_a_package_that_is_not_there(finished, exported, module, package):
    start = f"import sys; sys.modules[{module!r}] = None; " + START
    errors = transcribe(exported, finished[0] / "noise-1.wav", code=1, start=start)[1]
    assert f"the package {package} cannot be imported" in errors and f"pip install {package}" in errors


def test_whoever_reads_may_have_enough(finished, exported):
    command = [sys.executable, "-c", START, "transcribe.py", "--model", exported, finished[0] / "noise-1.wav", "--live"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.wait(60) and running.stderr.read() == b""


MICROPHONE = """
import os, signal, time
import soundfile

class PortAudioError(Exception):
    pass

class InputStream:
    def __init__(self, channels, dtype, samplerate):
        if "HEARD" not in os.environ:
            raise PortAudioError("Error querying device -1")
        self.samples, _ = soundfile.read(os.environ["HEARD"], dtype=dtype)
        assert channels == 1 and samplerate == 16000

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, count):
        if not len(self.samples):
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C, while the microphone is silent
            time.sleep(60)
        block, self.samples = self.samples[:count], self.samples[count:]
        return block[:, None], False
"""


@pytest.mark.parametrize("options", [[], ["--live"]])
def test_ctrl_c_ends_the_microphone(finished, exported, tmp_path, options):
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    file = finished[0] / "noise-3.wav"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    lines, errors = transcribe(exported, "mic", *options, env={**os.environ, "PYTHONPATH": path, "HEARD": str(file)})
    assert lines == [transcribe(exported, file)[0][0].replace(str(file), "mic")] and len(lines[0]) > 10 and errors == ""


def test_a_microphone_that_cannot_be_opened(exported, tmp_path):
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {key: value for key, value in os.environ.items() if key != "HEARD"}
    errors = transcribe(exported, "mic", code=1, env={**environment, "PYTHONPATH": path})[1]
    assert "error: the microphone cannot be opened at 16000 Hz (Error querying device -1)" in errors


def test_ctrl_c_ends_standard_input(finished, exported):
    file = finished[0] / "noise-3.wav"
    with subprocess.Popen([sys.executable, "-c", START, "transcribe.py", "--model", str(exported), "-"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdin.write(soundfile.read(str(file), dtype="int16")[0].tobytes())
        running.stdin.flush()
        unread = 1
        while unread:  # until all is taken out of the pipe, which stays open
            time.sleep(0.2)
            unread, = struct.unpack("i", fcntl.ioctl(running.stdin.fileno(), termios.FIONREAD, bytes(4)))
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0, running.stderr.read()
        assert running.stdout.read().decode() == transcribe(exported, file)[0][0].replace(str(file), "-") + "\n"


@pytest.mark.parametrize("rate", [0, 999, 999999999999])
def test_rates_that_no_audio_has(exported, tmp_path, rate):
    errors = transcribe(exported, "-", "--rate", rate, code=1, input=b"")[1]
    assert f"error: --rate: {rate} samples a second cannot be taken" in errors
    if 0 < rate < 2 ** 31:
        soundfile.write(str(tmp_path / "slow.wav"), np.zeros(50), rate)
        assert f"slow.wav: {rate} samples a second cannot be taken" in transcribe(exported, tmp_path / "slow.wav", code=1)[1]


def test_transcribe_names_what_it_cannot_read(finished, exported, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "nothing.wav").write_bytes(b"")
    good = finished[0] / "noise-1.wav"
    words = [tmp_path / "text.wav", good, tmp_path / "nothing.wav", tmp_path / "gone.wav"]
    lines, errors = transcribe(exported, *words, code=1)
    assert len(lines) == 1 and lines[0].startswith(f"{good}:")
    assert f"{tmp_path / 'text.wav'} cannot be read as audio" in errors
    assert f"{tmp_path / 'gone.wav'}: there is no such file" in errors and "3 of 4 could not be transcribed" in errors
    assert "model.json is missing" in transcribe(tmp_path, good, code=1)[1]


class EveryThird:
    """Stands in for sherpa-onnx: a chunk at a time, a word a chunk, and with each third one a segment ends."""

    def __init__(self, chunk):
        self.chunk, self.heard = chunk, []

    def create_stream(self):
        stream = SimpleNamespace(samples=np.zeros(0), words=0, input_finished=lambda: None)
        stream.accept_waveform = lambda rate, more: setattr(stream, "samples", np.concatenate([stream.samples, more]))
        return stream

    def is_ready(self, stream):
        return len(stream.samples) > self.chunk

    def decode_stream(self, stream):
        self.heard.append(stream.samples[:self.chunk])
        stream.samples, stream.words = stream.samples[self.chunk:], stream.words + 1

    def is_endpoint(self, stream):
        return stream.words == 3

    def tokens(self, stream):
        return [f" w{number}" for number in range(stream.words)]

    def timestamps(self, stream):
        return [0.64 * number for number in range(stream.words)]


ABOUT = {"sampling_rate": 16000, "chunk_size": 16}


def hear(recognizer, rate, blocks, **options):
    """What tools/transcribe.py does with a runtime that is stood in for."""
    options = SimpleNamespace(**{"live": False, "timestamps": False, "method": "greedy_search", **options})
    load(TRANSCRIBE).transcribe(recognizer, ABOUT, "a.wav", rate, blocks, options)


def test_a_new_segment_begins_where_the_last_one_ended(capsys):
    recognizer = EveryThird(10240)
    audio = np.random.default_rng(0).standard_normal(80000).astype(np.float32)
    hear(recognizer, 16000, iter(np.split(audio, [12345, 50000])), timestamps=True)
    np.testing.assert_allclose(np.concatenate(recognizer.heard)[:len(audio)], audio, atol=1e-6)
    times = [float(word[1:-1]) for word in capsys.readouterr().out.split()[1::2]]
    assert times == pytest.approx([0.64 * number for number in range(len(recognizer.heard))], abs=0.006)
    assert len(times) > 6


def test_segments_at_a_rate_of_no_whole_frames(monkeypatch, capsys):
    """At 22050 Hz the runtime's frames are 220 samples apart, not 220.5: what it has not seen goes to the next segment."""
    monkeypatch.setitem(ABOUT, "sampling_rate", 22050)
    recognizer = EveryThird(64 * 220)
    audio = np.random.default_rng(0).standard_normal(200000).astype(np.float32)
    hear(recognizer, 22050, iter([audio]))
    np.testing.assert_array_equal(np.concatenate(recognizer.heard)[:len(audio)], audio)


def given(path):
    """The samples that a file gives to the runtime, without the silence after them."""
    recognizer = EveryThird(10240)
    hear(recognizer, *load(TRANSCRIBE).file_blocks(path))
    return np.concatenate(recognizer.heard)


def sound(rate):
    """Three seconds of tones below 4 kHz that swell and fade: the same sound at any rate."""
    time = np.arange(3 * rate) / rate
    return sum(np.sin(2 * np.pi * tone * time) for tone in (310, 1270, 2900)) * np.sin(np.pi * time / 3) ** 2 * 0.25


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_any_rate_gives_the_runtime_the_same_sound(tmp_path, rate):
    soundfile.write(str(tmp_path / "a.wav"), np.stack([sound(rate), sound(rate)], 1), rate, subtype="FLOAT")
    samples = given(tmp_path / "a.wav")
    np.testing.assert_allclose(samples[:48000], sound(16000), atol=2e-3)
    assert not np.abs(samples[48100:]).max() > 2e-3  # then silence


def test_silence_clipping_and_no_numbers_as_the_runtime_gets_them(tmp_path):
    clipped, broken = np.sign(sound(16000)), sound(16000)
    broken[100:200], broken[300] = np.nan, np.inf
    for name, audio in {"silent": np.zeros(48000), "clipped": clipped, "broken": broken}.items():
        soundfile.write(str(tmp_path / f"{name}.wav"), audio, 16000, subtype="FLOAT")
    assert not given(tmp_path / "silent.wav").any()
    np.testing.assert_allclose(given(tmp_path / "clipped.wav")[:48000], clipped, atol=1e-6)
    broken[100:200] = broken[300] = 0.0
    np.testing.assert_allclose(given(tmp_path / "broken.wav")[:48000], broken, atol=1e-6)


class Says(EveryThird):
    """A token a chunk, those that it was told; and what was printed before each."""

    def __init__(self, tokens, printed):
        super().__init__(10240)
        self.said, self.printed, self.shown = tokens, printed, [""]

    def decode_stream(self, stream):
        super().decode_stream(stream)
        self.shown.append(self.shown[-1] + self.printed())

    def is_endpoint(self, stream):
        return False

    def tokens(self, stream):
        return self.said[:stream.words]


@pytest.mark.parametrize("tokens, text, early, timed", [
    ("我 们 说 HE LLO 再 见", " 我们说HELLO再见", " 我们", " [0.00] 我 [0.64] 们 [1.28] 说 [1.92] HELLO [3.20] 再 [3.84] 见"),
    ("▁你好 吗 ▁O K ▁ か な", " 你好吗 OK かな", " 你好吗", " [0.00] 你 [0.00] 好 [0.64] 吗 [1.28] OK [2.56] か [3.84] な"),
])
def test_characters_that_no_blank_divides_are_words(capsys, tokens, text, early, timed):
    for options, want in (({}, text), ({"live": True}, text), ({"timestamps": True}, timed)):
        recognizer = Says(tokens.split(), lambda: capsys.readouterr().out)
        hear(recognizer, 16000, iter([np.zeros(10240 * 7, dtype=np.float32)]), **options)
        assert recognizer.shown[-1] + capsys.readouterr().out == f"a.wav:{want}\n"
        if "live" in options:
            assert recognizer.shown[4] == f"a.wav:{early}"  # of three tokens: the last word may go on


class Revises(Says):
    """The whole text after each chunk, as a beam search has it: of other words than before, now and then."""

    def tokens(self, stream):
        return [f"▁{word}" for word in self.said[min(stream.words, len(self.said)) - 1].split()] if stream.words else []


@pytest.mark.parametrize("said, printed", [
    (["I", "I SC", "I SCREAM", "I SCREAM FOR", "ICE CREAM FOR", "ICE CREAM FOR ME", "ICE CREAM FOR ME"],
     ["a.wav: I SCREAM", "a.wav: ICE CREAM FOR ME"]),  # shown, and revised
    (["A", "A B C D", "A C D", "A C D", "A C D E", "A C D E F", "A C D E F"], ["a.wav: A C D E F"]),  # B was not there twice
    (["A", "A B", "A B C", "A B C", "A B", "A", "A"], ["a.wav: A B", "a.wav: A"]),  # there was nothing after all
])
def test_words_that_a_beam_search_revises(capsys, said, printed):
    blocks = [np.zeros(10240 * 7, dtype=np.float32)]
    for options in ({}, {"live": True}):
        recognizer = Revises(said, lambda: capsys.readouterr().out)
        hear(recognizer, 16000, iter(blocks), method="modified_beam_search", **options)
        lines = (recognizer.shown[-1] + capsys.readouterr().out).splitlines()
        assert lines == (printed if options else printed[-1:])


def test_the_benchmark_measures_each_runtime(finished, exported, tmp_path):
    folder = finished[0]
    for source, place in (("exp/tiny", "exp/tiny"), ("onnx", "exp/export/tiny"), ("lang", "data/lang")):
        shutil.copytree(folder / source, tmp_path / place)
    (tmp_path / "data" / "fbank").mkdir()
    cuts = CutSet.from_cuts([finished[3][0].drop_supervisions(), *finished[3][1:]])  # of the first nobody knows the words
    cuts.to_file(tmp_path / "data" / "fbank" / "cuts_test.jsonl.gz")
    bench = LOCAL.parent / "tools" / "bench_streaming.py"
    words = [sys.executable, str(bench), "--recipe", str(tmp_path), "--models", "tiny", "--test-set", "test", "--repeats",
             "1"]
    done = subprocess.run([*words, "--output", str(tmp_path / "table.md")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (tmp_path / "table.md").read_text().splitlines()
            if line.startswith("| tiny")]
    assert [row[1] for row in rows] == ["sherpa-onnx float32", "sherpa-onnx int8", "torch float32"]
    assert (tmp_path / "table.md").read_text().startswith("6 utterances of test, ")  # of the 100 that were asked for
    assert rows[0][3] == rows[0][6] == "1.00" and rows[0][7] == rows[2][7]
    assert 0 < float(rows[0][4]) < float(rows[2][4])  # a device needs no torch
    done = subprocess.run([*words[:-1], "0"], capture_output=True, text=True)
    assert done.returncode == 1 and "--repeats 0 is not positive" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*words[:3], str(tmp_path / "data")], capture_output=True, text=True)
    assert done.returncode == 1 and "run stage 9 of the recipe" in done.stderr
    # Beside the rates, which may agree by chance: the words themselves.
    np.savez(tmp_path / "audio.npz", *(cut.load_audio()[0] for cut in cuts))
    heard = [subprocess.run([*words, "--measure", "tiny", runtime, tmp_path / "audio.npz"], capture_output=True, text=True)
             for runtime in ("sherpa-onnx float32", "torch float32")]
    own = own_words(finished, "greedy_search")
    assert [json.loads(done.stdout)["heard"] for done in heard] == 2 * [[own[cut.id] for cut in cuts]]
    CutSet.from_cuts([cut.resample(8000) for cut in cuts]).to_file(tmp_path / "data" / "fbank" / "cuts_test.jsonl.gz")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "noise-0 has audio of 8000 Hz and the model hears 16000 Hz" in done.stderr


def test_the_benchmark_takes_the_last_stage(tmp_path):
    for name in ("teacher", "stage2", "stage10", "stage9", "stage9-old"):
        (tmp_path / name).mkdir()
    last_stage = load(LOCAL.parent / "tools" / "bench_streaming.py").last_stage
    assert last_stage(tmp_path) == ["stage10"] and last_stage(tmp_path / "teacher") == []
