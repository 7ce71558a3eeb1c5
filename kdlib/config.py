"""Typed settings: dataclasses that a YAML file and ``key=value`` words fill.

An unknown key, a value of the wrong type or a missing file is a :class:`RecipeError` that names it.
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Type, TypeVar

from omegaconf import OmegaConf

from kdlib.config_checks import require, require_above_0, require_amounts, require_range
from kdlib.config_help import FAULTS, merge_layer, what_is_wrong
from kdlib.errors import RecipeError, in_one_line
from kdlib.files import PathLike, write_text
from kdlib.losses import find_loss

MAX_TEMPERATURE = 20.0
FEWEST_BINS = 7  # that a model takes: the two convolutions of its subsampling leave one of them
T = TypeVar("T")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1  # True is an int too


@dataclass
class ModelConfig:
    """Sizes of a streaming Conformer transducer. Frames are counted after subsampling by 4 (40 ms each)."""

    num_features: int = 80
    subsampling_channels: int = 32
    encoder_dim: int = 144
    num_layers: int = 4
    num_heads: int = 4
    head_dim: int = 36
    feedforward_dim: int = 432
    kernel_size: int = 9
    chunk_size: int = 8
    left_context: int = 32
    predictor_dim: int = 144
    context_size: int = 2
    joiner_dim: int = 144
    dropout: float = 0.1
    ctc_head: bool = True  # a training aid: it is left out of the deployed model and of its parameter count

    def __post_init__(self) -> None:
        require_above_0(self, "model", *(f.name for f in fields(self) if f.type is int and f.name not in
                                         ("chunk_size", "left_context")))
        require(self.num_features >= FEWEST_BINS, "model.num_features", self.num_features, f"at least {FEWEST_BINS}")
        require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "even, for rotary positions")
        require(self.chunk_size >= 0, "model.chunk_size", self.chunk_size, "0 (full context) or more")
        require(0 <= self.dropout < 1, "model.dropout", self.dropout, "from 0 to below 1")


@dataclass
class DistillTerm:
    """One distillation loss by its registered name (see :mod:`kdlib.losses`); settings of no use to it are errors."""

    name: str = ""
    weight: float = 1.0
    schedule: str = "constant"  # of the weight: constant, warmup (from 0) or decay (to 0), over schedule_updates
    schedule_updates: int = 0
    temperature: float = 1.0  # of losses between distributions
    # Of losses between encoders: teacher frame t - shift against student frame t, in frames after subsampling; below 0 the
    # student is to be earlier than its teacher.
    shift: int = 0
    # Of losses between encoders' outputs: last; matched (layer i of L_s with round(i * L_t / L_s)); or a list of
    # [student's, teacher's] pairs, counted from 1.
    layers: Any = "last"

    def __post_init__(self) -> None:
        loss = find_loss(self.name)
        where = f"loss.distill, {self.name}"
        require(0 <= self.weight < math.inf, f"{where}, weight", self.weight, "0 or more, and finite")
        require(self.schedule in ("constant", "warmup", "decay"), f"{where}, schedule", self.schedule,
                "constant, warmup or decay")
        require(self.schedule == "constant" or self.schedule_updates > 0, f"{where}, schedule_updates",
                self.schedule_updates, f"at least 1 for schedule {self.schedule}")
        for name, value in (("temperature", 1.0), ("shift", 0), ("layers", "last")):
            require(name in loss.settings or getattr(self, name) == value, f"{where}, {name}", getattr(self, name),
                    f"left out: this loss has only {' and '.join(('weight', 'schedule', *loss.settings))}")
        # Hotter distributions differ by less than float32 can say, and their loss is that difference times the square.
        require(0 < self.temperature <= MAX_TEMPERATURE, f"{where}, temperature", self.temperature,
                f"above 0 and at most {MAX_TEMPERATURE:g}")
        pairs = self.layers if isinstance(self.layers, list) else []
        good = self.layers in ("last", "matched") or (pairs and all(
            isinstance(p, list) and len(p) == 2 and all(map(_is_count, p)) for p in pairs))
        require(bool(good), f"{where}, layers", self.layers, "last, matched or a list of pairs such as [[2, 4], [4, 8]]")

    def weight_at(self, update: int) -> float:
        """The weight after so many updates."""
        if self.schedule == "constant":
            return self.weight
        passed = min(1.0, update / self.schedule_updates)
        return self.weight * (passed if self.schedule == "warmup" else 1.0 - passed)

    def ended(self, update: int) -> bool:
        """Whether the weight has decayed, and from this update on is 0. A constant 0 has not: its loss is for the log."""
        return self.schedule == "decay" and update >= self.schedule_updates


@dataclass
class LossConfig:
    """The training objective: RNN-T + ctc_weight * CTC + the sum of weight * distillation loss."""

    rnnt_type: str = "modified"
    rnnt_backend: str = "auto"
    # always: never all logits of the lattice's kept nodes at once; never: all of them; auto: a few where it is not slower.
    # Losses over all nodes of the lattice are computed a few at a time in any case.
    fused: str = "auto"
    prune_range: int = 5
    lm_scale: float = 0.25
    am_scale: float = 0.0
    simple_scale: float = 0.5
    warmup_updates: int = 2000  # the simple loss goes from 1 to simple_scale, the pruned loss from 0.1 to 1
    delay_penalty: float = 0.0
    # Above 1 the pruned loss prefers one good alignment to many that are good together (kdlib.rnnt.rnnt_loss_pruned):
    # greedy search, which follows one, then leaves out fewer words.
    sharpness: float = 1.0
    sharpness_start: float = 0.0  # the part of the training until which it is 1: alignments must be found first
    ctc_weight: float = 0.0
    ctc_first_updates: int = 0  # so long CTC stands at full weight and the RNN-T loss at a tenth
    distill: List[DistillTerm] = field(default_factory=list)
    distill_from: str = "previous"  # the stage before, or the first teacher of the chain

    def __post_init__(self) -> None:
        require(self.distill_from in ("previous", "first"), "loss.distill_from", self.distill_from,
                "previous or first")
        require(self.rnnt_type in ("regular", "modified"), "loss.rnnt_type", self.rnnt_type, "regular or modified")
        require(self.rnnt_backend in ("auto", "k2", "native"), "loss.rnnt_backend", self.rnnt_backend,
                "auto, k2 or native")
        require(self.fused in ("auto", "always", "never"), "loss.fused", self.fused, "auto, always or never")
        require(self.fused != "always" or self.rnnt_backend != "k2", "loss.fused", self.fused,
                "auto or never where loss.rnnt_backend is k2, which has no fused loss")
        require(1.0 <= self.sharpness <= 100.0, "loss.sharpness", self.sharpness, "from 1 to 100")
        require(0.0 <= self.sharpness_start <= 1.0, "loss.sharpness_start", self.sharpness_start, "from 0 to 1")
        require_amounts(self, "loss", "lm_scale", "am_scale", "simple_scale", "delay_penalty", "ctc_weight",
                        "warmup_updates", "ctc_first_updates")
        # The joint term has the rest of the weight: with less than none of it the loss has no lower bound.
        require(self.lm_scale + self.am_scale <= 1, "loss.lm_scale", self.lm_scale,
                f"at most 1 together with loss.am_scale, {self.am_scale}")
        require(self.prune_range >= 2, "loss.prune_range", self.prune_range, "at least 2")
        for number, term in enumerate(self.distill):
            require(term not in self.distill[:number], "loss.distill", term.name,
                    "named once, or each time with other settings")

    def distill_names(self) -> List[str]:
        """What each term of ``distill`` is called in logs: its loss; the second of one loss is encoder_mse_2, and so on."""
        losses = [term.name for term in self.distill]
        counts = [losses[:number].count(name) + 1 for number, name in enumerate(losses)]
        return [name if count == 1 else f"{name}_{count}" for name, count in zip(losses, counts)]


@dataclass
class OptimConfig:
    learning_rate: float = 1.2e-3
    warmup_updates: int = 200
    final_ratio: float = 0.02  # the cosine ends at this part of learning_rate
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        require_above_0(self, "optim", "learning_rate", "clip_norm")
        require_amounts(self, "optim", "learning_rate", "weight_decay", "warmup_updates")
        require_amounts(self, "optim", "final_ratio", most=1)
        require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "from 0 to below 1")


@dataclass
class CurriculumConfig:
    """Epoch 0: that many updates on the shortest utterances; 0 updates leave it out."""

    updates: int = 0
    max_words: int = 2

    def __post_init__(self) -> None:
        require_amounts(self, "data.curriculum", "updates", "max_words")


@dataclass
class SpecAugmentConfig:
    """SpecAugment (Park et al. 2019, arXiv 1904.08779); masks in feature bins and in 10 ms frames."""

    enabled: bool = True
    start: float = 0.0  # the part of the training after which it begins
    num_feature_masks: int = 2
    feature_mask_size: int = 20
    num_frame_masks: int = 2
    frame_mask_size: int = 30
    max_frames_fraction: float = 0.15
    time_warp: int = 0

    def __post_init__(self) -> None:
        require_above_0(self, "data.spec_augment", "feature_mask_size", "frame_mask_size")
        require_amounts(self, "data.spec_augment", "num_feature_masks", "num_frame_masks", "time_warp")
        require_amounts(self, "data.spec_augment", "start", "max_frames_fraction", most=1)


@dataclass
class GainConfig:
    """dB by which an utterance, with its noise, is made louder or, below 0, quieter: drawn from ``range``."""

    range: List[float] = field(default_factory=lambda: [0.0, 0.0])
    start: float = 0.0  # the part of the training after which it begins

    def __post_init__(self) -> None:
        require_range("data.gain.range", self.range, "the lowest and the highest gain, in dB")
        require_amounts(self, "data.gain", "start", most=1)


@dataclass
class DataConfig:
    max_duration: float = 25.0  # seconds of audio in a batch
    num_buckets: int = 10
    num_workers: int = 1  # processes that read and augment, for each one that trains
    shar_root: str = ""  # folder or URL of the shards of Shar features, where that is not the folder of stage 2
    shar_buffer: int = 5000  # their utterances that each process holds, with features, to shuffle and to make batches of
    noise_probability: float = 0.0
    # dB, of mean powers in the filterbank while there is noise
    noise_snr: List[float] = field(default_factory=lambda: [8.0, 25.0])
    # Share of the utterances that the predictor begins with the last labels of another one, which is what it meets where a
    # stream goes on after a sentence.
    carried_labels: float = 0.0
    min_seconds: float = 0.2
    max_seconds: float = 30.0
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    gain: GainConfig = field(default_factory=GainConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)

    def __post_init__(self) -> None:
        require_above_0(self, "data", "max_duration", "shar_buffer", "max_seconds")
        require_amounts(self, "data", "max_duration")
        require(self.min_seconds < self.max_seconds, "data.min_seconds", self.min_seconds,
                f"below data.max_seconds, {self.max_seconds:g}")
        require(self.num_buckets >= 2, "data.num_buckets", self.num_buckets, "at least 2")  # or Lhotse makes none
        require_amounts(self, "data", "noise_probability", "carried_labels", most=1)
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "0 or more")
        require_range("data.noise_snr", self.noise_snr, "the lowest and the highest ratio, in dB")

    def wrong_length(self, seconds: float) -> Optional[str]:
        """Why training leaves out an utterance of that length, such as "longer than 30 s"; None where it does not."""
        if not seconds >= self.min_seconds:  # nor does a length that is no number do
            return f"shorter than {self.min_seconds:g} s"
        if seconds > self.max_seconds:
            return f"longer than {self.max_seconds:g} s"
        return None


@dataclass
class TrainingConfig:
    num_epochs: int = 5
    updates_per_epoch: int = 0  # 0: an epoch is once through the training cuts
    avg: int = 1  # epochs whose moving averages make the finished model
    seed: int = 42
    save_every_updates: int = 400
    log_every_updates: int = 25
    # In frames after subsampling (40 ms): each update draws one of each, so that one model serves several latencies. 0 is
    # full context, a negative left context all the past; the model's own when empty.
    chunk_sizes: List[int] = field(default_factory=list)
    left_contexts: List[int] = field(default_factory=list)
    # bfloat16: matrix products and convolutions in half precision (torch.autocast), quicker where the machine has them; the
    # weights, their average and the sums of the losses stay float32, and so does all that comes after training.
    precision: str = "float32"
    micro_batches: int = 1  # in so many parts, one after another, a process computes its share of a batch, for less memory

    def __post_init__(self) -> None:
        require(all(size >= 0 for size in self.chunk_sizes), "training.chunk_sizes", self.chunk_sizes,
                "0 (full context) or more each")
        # Each update's seed is made of it, and torch takes 64 bits.
        require(0 <= self.seed < 2**32, "training.seed", self.seed, "from 0 to below 2^32")
        require_above_0(self, "training", "num_epochs", "avg", "save_every_updates", "log_every_updates", "micro_batches")
        require(self.precision in ("float32", "bfloat16"), "training.precision", self.precision, "float32 or bfloat16")
        require(self.avg <= self.num_epochs, "training.avg", self.avg,
                f"at most training.num_epochs, {self.num_epochs}, the epochs that there are to average")
        require(self.updates_per_epoch >= 0, "training.updates_per_epoch", self.updates_per_epoch, "0 or more")


@dataclass
class InitConfig:
    """What a student starts from (see :mod:`kdlib.compression`)."""

    weights: str = "teacher"  # or scratch
    # Which of the teacher's layers: even (evenly spaced), importance (those whose removal hurts the dev loss most are
    # kept), or a list of their numbers, counted from 1.
    layers: Any = "even"
    units: str = "norm"  # of a narrower layer: those of largest weight norm, or the first

    def __post_init__(self) -> None:
        require(self.weights in ("teacher", "scratch"), "init.weights", self.weights, "teacher or scratch")
        numbers = self.layers if isinstance(self.layers, list) else []
        rising = bool(numbers) and all(map(_is_count, numbers)) and numbers == sorted(set(numbers))
        require(rising or self.layers in ("even", "importance"), "init.layers", self.layers,
                "even, importance or a list of rising layer numbers such as [1, 3, 4]")
        require(self.units in ("norm", "first"), "init.units", self.units, "norm or first")


@dataclass
class TrainConfig:
    """Everything that ``local/train.py`` reads."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: InitConfig = field(default_factory=InitConfig)  # of a student


@dataclass
class DecodeConfig:
    method: str = "greedy_search"
    max_sym_per_frame: int = 1
    beam: int = 4
    max_duration: float = 200.0
    epoch: int = -1  # -1: the last one
    avg: int = -1  # -1: as the training's config says

    def __post_init__(self) -> None:
        require(self.method in ("greedy_search", "modified_beam_search", "fast_beam_search"), "decode.method", self.method,
                "greedy_search, modified_beam_search or, where k2 is there, fast_beam_search")
        require_above_0(self, "decode", "max_sym_per_frame", "beam", "max_duration")


@dataclass
class FbankConfig:
    """What Lhotse's ``Fbank`` is given, and the training part's speed perturbation."""

    sampling_rate: int = 16000
    num_filters: int = 80
    low_freq: float = 20.0
    high_freq: float = -400.0  # 0 or less: so far below half the sampling rate
    speed_factors: List[float] = field(default_factory=list)
    storage: str = "files"  # of the training part's features: files, to be read in any order, or shar, from end to end
    shard_size: int = 1000  # utterances in a file of shar

    def __post_init__(self) -> None:
        require(self.storage in ("files", "shar"), "fbank.storage", self.storage, "files or shar")
        require(self.sampling_rate > 0 and self.sampling_rate % 100 == 0, "fbank.sampling_rate", self.sampling_rate,
                "a multiple of 100 Hz, so that a frame of 10 ms has whole samples")
        require(self.num_filters >= FEWEST_BINS, "fbank.num_filters", self.num_filters,
                f"at least {FEWEST_BINS}, the fewest that a model takes")
        half = self.sampling_rate / 2
        top = self.high_freq if self.high_freq > 0 else half + self.high_freq
        require(0 < top <= half, "fbank.high_freq", self.high_freq,
                f"at most {half:g} Hz, half of fbank.sampling_rate, or from 0 to above -{half:g}, counted down from there")
        require(0 <= self.low_freq < top, "fbank.low_freq", self.low_freq,
                f"from 0 to below the highest frequency, {top:g} Hz")
        require_above_0(self, "fbank", "shard_size")
        require(all(0.1 <= factor <= 10 for factor in self.speed_factors), "fbank.speed_factors", self.speed_factors,
                "a list of numbers from 0.1 to 10, such as 0.9")
        require(1 not in self.speed_factors, "fbank.speed_factors", self.speed_factors,
                "without 1: the speed 1 is there already")
        require(len(set(self.speed_factors)) == len(self.speed_factors), "fbank.speed_factors", self.speed_factors,
                "a list of different numbers")

    def heard(self) -> Dict[str, Any]:
        """What a model must always be given as it was in training: all that says which numbers come of a second of audio."""
        return {key: getattr(self, key) for key in ("sampling_rate", "num_filters", "low_freq", "high_freq")}


@dataclass
class LangConfig:
    type: str = "bpe"
    vocab_size: int = 500  # of characters there are as many as the text has, whatever this is

    def __post_init__(self) -> None:
        require(self.type in ("bpe", "unigram", "char"), "lang.type", self.type, "bpe, unigram or char")
        require(self.type == "char" or self.vocab_size >= 5, "lang.vocab_size", self.vocab_size,
                "at least 5: three symbols, the mark of a word's beginning and a letter")


def load_config(schema: Type[T], path: PathLike, overrides: Sequence[str] = ()) -> T:
    """Fill ``schema`` (a dataclass type) from the YAML file ``path``, then from ``key=value`` words.

    Raises:
        RecipeError: the file is missing or no YAML mapping, a key is unknown, a value has the wrong type.
    """
    path = Path(path)
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise RecipeError(f"{path} is missing: give an existing config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from None
    except Exception as error:  # PyYAML's errors share no base with OmegaConf's
        raise RecipeError(f"{path} is not valid YAML: {in_one_line(error)}") from None
    if not OmegaConf.is_dict(content):
        raise RecipeError(f"{path} holds no YAML mapping; see the files in the recipe's conf/ folder")
    return merge_config(schema, content, overrides, source=str(path))


def merge_config(schema: Type[T], content: Any, overrides: Sequence[str] = (), source: str = "config") -> T:
    """Fill ``schema`` from a mapping, or from several in a list, the later ones over the earlier, and ``key=value`` words.

    ``source`` names the mappings in errors.

    Raises:
        RecipeError: a key is unknown, a value has the wrong type, a word is no ``key=value``.
    """
    for word in overrides:
        if "=" not in word or word.startswith(("=", "-")):
            raise RecipeError(f"unknown option '{word}': settings are given as key=value, for example training.seed=7")
    try:
        words = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # PyYAML's errors, of a value such as [1
        raise RecipeError(f"command line: {' '.join(overrides)}: {in_one_line(error)}") from None
    merged = OmegaConf.structured(schema)
    contents = content if isinstance(content, (list, tuple)) else [content]
    for origin, layer in (*((source, layer) for layer in contents), ("command line", words)):
        try:
            merged = merge_layer(merged, layer)
        except FAULTS:
            raise RecipeError(f"{origin}: {what_is_wrong(merged, layer)}") from None
    try:
        return OmegaConf.to_object(merged)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def save_config(config: Any, path: PathLike) -> None:
    """Write a config dataclass as YAML, atomically."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def config_to_dict(config: Any) -> dict:
    """Plain containers of a config dataclass, as stored in checkpoints."""
    return OmegaConf.to_container(OmegaConf.structured(config))
