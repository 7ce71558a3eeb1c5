"""A small model that was never trained, as a training leaves it; its export, and the words that our streams hear by it."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from scripts import run_script

from kdlib.config import (DecodeConfig, DistillTerm, FbankConfig, LangConfig, LossConfig, ModelConfig, TrainConfig,
                          config_to_dict)
from kdlib.features import fbank_extractor
from kdlib.files import write_json
from kdlib.lang import train_lang
from kdlib.streaming import StreamingRecogniser
from kdlib.training.checkpoint import save_checkpoint
from kdlib.transducer import Transducer

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


def save_finished(exp, model, lang, more=()):
    """The folder of a training that has ended in this model; ``more`` are distillation losses beside its own."""
    config = TrainConfig(model=model.config, loss=LossConfig(distill=[DistillTerm(name="encoder_mse", weight=0.5), *more]))
    weights = model.state_dict()
    exp.mkdir(parents=True)
    save_checkpoint(exp / "epoch-1.pt", {"model": weights, "average": weights, "config": json.dumps(config_to_dict(config)),
                                         "tokens": lang.tokens, "updates": 5, "epoch": 1})
    write_json(exp / "done.json", {"updates": 5, "epoch": 1})
    write_json(exp / "run.json", {"config": {}, "inputs": {"cuts_train.jsonl.gz": "1", "elder": "2"}})


def finish(folder):
    """A finished model's folder, its tokens, and a test set of noises."""
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


def own_words(finished, method, model=None, fbank=FbankConfig()):
    """What our streams hear in the audio followed by as much silence as sherpa-onnx is given; of another model, if given."""
    _, usual, lang, cuts = finished
    model = model or usual
    recogniser = StreamingRecogniser(model, config=DecodeConfig(method))
    extractor, heard = fbank_extractor(fbank), {}
    for cut in cuts:
        silence = np.zeros((1, int((4 * CHUNK + 4) * 160) + 1), dtype=np.float32)
        samples = np.concatenate([cut.load_audio(), silence], axis=1)
        stream = recogniser.create_stream()
        stream.accept(torch.from_numpy(np.asarray(extractor.extract(samples, 16000))))
        recogniser.run([stream])  # whole chunks alone, as the runtime
        heard[cut.id] = lang.decode(list(stream.result.tokens)).split()
    return heard
