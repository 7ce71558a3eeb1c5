"""A made-up language that is learned in seconds: its cuts, the settings of its models, and how to train one."""

from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet, Features, MonoCut, NumpyFilesWriter, SupervisionSegment

from kdlib.compression import init_from_teacher
from kdlib.config import TrainConfig, merge_config
from kdlib.training.loop import Trainer
from kdlib.transducer import Transducer

WORDS = ["A", "B", "C", "D"]
BINS = 16
SETTINGS = {
    "model": dict(num_features=BINS, subsampling_channels=4, encoder_dim=32, num_layers=2, num_heads=2, head_dim=8,
                  feedforward_dim=32, kernel_size=5, chunk_size=4, left_context=8, predictor_dim=16, joiner_dim=16,
                  dropout=0.05),
    "loss": dict(warmup_updates=5, ctc_weight=0.3, prune_range=3, rnnt_backend="native"),
    "optim": dict(learning_rate=1e-2, warmup_updates=5),
    "data": dict(max_duration=4.0, num_workers=0, num_buckets=2, spec_augment=dict(enabled=True, frame_mask_size=4, feature_mask_size=3)),
    "training": dict(num_epochs=2, save_every_updates=5, log_every_updates=5),
}


def settings(*overrides) -> TrainConfig:
    return merge_config(TrainConfig, SETTINGS, overrides)


def make_cuts(folder: Path, name: str, count: int, seed: int) -> CutSet:
    """Each word is 0.24 s of its own four bins, in noise; 1 to 3 words an utterance."""
    random = np.random.RandomState(seed)
    cuts = []
    with NumpyFilesWriter(folder / name) as writer:
        for number in range(count):
            words = random.choice(len(WORDS), 1 + random.randint(3))
            frames = random.randn(24 * len(words) + 8, BINS).astype(np.float32)
            for place, word in enumerate(words):
                frames[24 * place:24 * (place + 1), 4 * word:4 * word + 4] += 4.0
            id_ = f"{name}-{number}"
            seconds = len(frames) / 100
            features = Features(type="fbank", num_frames=len(frames), num_features=BINS, frame_shift=0.01,
                                sampling_rate=16000, start=0, duration=seconds, storage_type=writer.name,
                                storage_path=str(writer.storage_path), storage_key=writer.write(id_, frames),
                                channels=0)
            text = " ".join(WORDS[w] for w in words)
            cuts.append(MonoCut(id=id_, start=0, duration=seconds, channel=0, features=features, supervisions=[
                SupervisionSegment(id=id_, recording_id=id_, start=0, duration=seconds, text=text, speaker="s")]))
    return CutSet.from_cuts(cuts)


def spoil(cut, value):
    """One number of the cut's features is no number."""
    path = Path(cut.features.storage_path) / cut.features.storage_key
    features = np.load(path)
    features[5, 2] = value
    np.save(path, features)


def make_noise(folder: Path) -> CutSet:
    """Three backgrounds of 2 s."""
    noise = make_cuts(folder, "noise", 3, 9)
    return CutSet.from_cuts(cut.drop_supervisions() for cut in noise)


def trainer(config, exp, corpus, teacher=None, start=None) -> Trainer:
    folder, lang, train, dev = corpus
    torch.manual_seed(config.training.seed)
    model = Transducer(config.model, len(lang))
    if start is not None:
        init_from_teacher(model, start)
    exp.mkdir(parents=True, exist_ok=True)
    noise = make_noise(folder) if config.data.noise_probability > 0 else None
    return Trainer(config, exp, lang, model, train, dev, noise, teacher, torch.device("cpu"))
