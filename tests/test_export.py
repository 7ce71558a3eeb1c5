"""Exported files: the numbers of torch, and what cannot be exported."""

import json
import logging
import os
import shutil
import sys

import pytest
import torch
from scripts import run
from untrained import CHUNK, LEFT, random_model, save_finished, script

from kdlib.config import DistillTerm, FbankConfig
from kdlib.errors import RecipeError
from kdlib.export import OnnxModel, check_exported, export_onnx, quantise
from kdlib.files import write_json
from kdlib.model_card import write_model_card
from kdlib.sherpa import PARTS, read_model
from kdlib.training.checkpoint import load_averaged, load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


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
    assert about["carried_labels"] == 0 and "\n- A stream: of one sentence; " in card
    assert about["gain"] == [0, 0] and "\n- Level of the speech: that of the corpus, not much" in card
    write_json(exported / "model.json", {**about, "carried_labels": 0.2, "gain": [-20, 10]})
    write_model_card(exported)
    assert "speech: that of the corpus, from -20 dB to +10 dB\n" in (exported / "model_card.md").read_text()
    assert "\n- A stream: may go on after a sentence\n" in (exported / "model_card.md").read_text()
    write_json(exported / "model.json", about)
    write_model_card(exported)
    assert (exported / "model_card.md").read_text() == card


def test_a_loss_that_stands_twice_is_told_twice(finished, tmp_path):
    """In the card too, each by its name in the logs."""
    exp, output = tmp_path / "exp", tmp_path / "onnx"
    save_finished(exp, finished[1], finished[2], [DistillTerm("encoder_mse", 0.25, shift=2), DistillTerm("encoder_l1", 2.0)])
    done = script("export_onnx.py", "--exp", exp, "--lang", finished[0] / "lang", "--fbank-config",
                  finished[0] / "fbank.yaml", "--output", output)
    assert done.returncode == 0, done.stderr
    assert read_model(output)["distillation"] == {"encoder_mse": 0.5, "encoder_mse_2": 0.25, "encoder_l1": 2.0}
    assert ("distilled with `encoder_mse` (weight 0.5), `encoder_mse_2` (weight 0.25), `encoder_l1` (weight 2)\n"
            in (output / "model_card.md").read_text())


def test_the_average_that_the_config_says_is_exported_or_the_one_that_is_asked_for(finished, tmp_path):
    folder, model, lang, _ = finished
    exp = tmp_path / "exp"
    save_finished(exp, model, lang)
    content = load_checkpoint(exp / "epoch-1.pt", "")
    config = json.loads(content["config"])
    config["training"].update(num_epochs=2, avg=2)
    moved = {name: value + 0.1 for name, value in content["average"].items()}
    save_checkpoint(exp / "epoch-2.pt", {**content, "average": moved, "epoch": 2, "config": json.dumps(config)})
    write_json(exp / "done.json", {"updates": 5, "epoch": 2})
    for words, part in ((), 0.05), (("--avg", 1), 0.1), (("--epoch", 1, "--avg", 1), 0.0):
        wanted = random_model(len(lang))
        wanted.load_state_dict({name: value + part for name, value in content["average"].items()})
        done = script("export_onnx.py", "--exp", exp, "--lang", folder / "lang", "--fbank-config", folder / "fbank.yaml",
                      "--output", tmp_path / "onnx", *words)
        assert done.returncode == 0, done.stderr
        check_exported(wanted, tmp_path / "onnx", CHUNK, LEFT)
    # The weights themselves are never used where there is their moving average.
    assert torch.equal(load_averaged(exp, avg=1)[0].joiner.out.weight, moved["joiner.out.weight"])


@pytest.mark.parametrize("chunk, left", [(2, 4), (4, 8), (16, 64), (8, 3)])
def test_the_numbers_of_torch(finished, tmp_path, chunk, left):
    export_onnx(finished[1], tmp_path, chunk, left)
    assert check_exported(finished[1], tmp_path, chunk, left, chunks=12) < 1e-4


def test_a_model_that_hears_all_the_past_is_exported_with_what_is_asked_for(tmp_path):
    assert export_onnx(random_model(20, left_context=-1), tmp_path, CHUNK, 8) < 1e-4


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


def test_how_weights_become_integers(exported):
    """The encoder's are signed and keep to 7 bits, the others' are unsigned and have all 8; a scale for each output."""
    import onnx

    for part in PARTS:
        graph = onnx.load(str(exported / f"{part}.int8.onnx")).graph
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        weights = {name: x for name, x in tensors.items() if x.dtype in ("int8", "uint8") and x.ndim == 2}
        assert not [name for name, x in tensors.items() if x.dtype == "float32" and x.ndim == 2]
        assert {str(x.dtype) for x in weights.values()} == {"int8" if part == "encoder" else "uint8"}
        if part == "encoder":
            assert all(abs(x.astype(int)).max() <= 64 for x in weights.values())
        else:
            assert any(x.max() - x.min() > 128 for x in weights.values())
        scales = [tensors[name.replace("_quantized", "_scale")] for name in weights]
        assert any(scale.size > 1 for scale in scales)


def test_what_cannot_be_exported(finished, exported, tmp_path):
    for chunk, left in ((0, LEFT), (CHUNK, 0)):
        with pytest.raises(RecipeError, match=f"chunk_size {chunk} and left_context {left} cannot be exported"):
            export_onnx(finished[1], tmp_path, chunk, left)
    other = random_model(len(finished[2]))
    with torch.no_grad():
        other.joiner.out.bias += 0.01
    with pytest.raises(RecipeError, match="give other numbers than torch"):
        check_exported(other, exported, CHUNK, LEFT)
    with pytest.raises(RecipeError, match="encoder.onnx is missing: export the model again"):
        OnnxModel(tmp_path)
    with pytest.raises(RecipeError, match=r"the path .*\udcff is not UTF-8, as sherpa-onnx must have it: rename that folder"):
        export_onnx(finished[1], os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), CHUNK, LEFT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes, words, said", [
    ({"kernel_size": 1}, [], "a model with kernel_size 1 cannot be exported"),
    ({}, ["--chunk-size", "100000"], "cannot be exported with chunk_size: 100000 frames: give fewer"),
    ({}, ["--left-context", "2000000"], "cannot be exported with left_context: 2000000 frames: give fewer"),
    ({}, ["num_filters=40"], "exp was trained with 80: give the fbank settings of its stage 2"),
    ({}, ["sampling_rate=1000000"], "fbank.yaml says what no exported model can have (sampling_rate: 1000000)"),
    ({}, ["low_freq=9000"], "fbank.yaml: fbank.low_freq is 9000.0; it must be from 0 to below the highest frequency, 7600 Hz"),
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
    (output / "test_wavs").mkdir()
    for name in ("0.wav", "1.wav", "2.wav", "trans.txt"):
        (output / "test_wavs" / name).write_text("of another model")
    assert script("export_onnx.py", *options, output).returncode == 0
    assert not (output / "test_wavs").exists()
    assert [path.name for path in output.glob("decode*/*")] == ["mine.txt"]
    assert "Word error rates" not in (output / "model_card.md").read_text()


QUANTISE = """
import logging, shutil, sys
from pathlib import Path
from kdlib.errors import known_failure
from kdlib.export import quantise

logging.disable()
source, folder, filler = Path(sys.argv[1]), Path(sys.argv[2], "model"), Path(sys.argv[2], "filler")
for kilobytes in range(0, 400, 20):
    shutil.rmtree(folder, ignore_errors=True)
    filler.unlink(missing_ok=True)
    folder.mkdir()
    for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx"):
        shutil.copy(source / name, folder)
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - 1024 * kilobytes))
    try:
        done = [path.name for path in quantise(folder)]
    except Exception as error:
        done = known_failure(error) or repr(error)
    print(done, sorted({path.name for path in folder.iterdir()} - {"encoder.onnx", "decoder.onnx", "joiner.onnx"}), sep="; ")
"""


def test_advice_that_is_not_for_the_user_is_not_given(exported, tmp_path, caplog):
    """onnxruntime would have its own pre-processing of the files run before; what else it says is said."""
    shutil.copytree(exported, tmp_path / "model")
    quantise(tmp_path / "model")
    assert caplog.messages == []
    logging.warning("another")
    assert caplog.messages == ["another"]


def test_a_disk_that_is_full_before_all_is_quantised(exported, tmp_path):
    """However much room there is: the files, or one line that says so and nothing that was begun."""
    disk = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m disk "$0" && exec "$@"',
            tmp_path]
    if not shutil.which("unshare") or run(*disk, "true").returncode:
        pytest.skip("no small disk can be mounted here (unshare, mount -t tmpfs)")
    done = run(*disk, sys.executable, "-c", QUANTISE, exported, tmp_path)
    assert done.returncode == 0, done.stderr
    files = [f"{part}.int8.onnx" for part in PARTS]
    full = [f"no space left on the disk while writing {tmp_path}/model/{name}; free some space and run the same command again; "
            f"{sorted(files[:number])}" for number, name in enumerate(files)]
    lines = done.stdout.splitlines()
    assert lines[0] == full[0] and lines[-1] == f"{files}; {sorted(files)}" and set(lines) <= {*full, lines[-1]}


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
