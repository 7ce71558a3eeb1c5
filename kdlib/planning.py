"""How large a model is, and from a teacher and a target to the sizes and the trainings of the students between them.

A plan shrinks all dimensions of the model by one number s: a dimension d becomes d * s^p, p being its proportion, so
that dimensions with a larger proportion give way sooner. The stages' sizes are geometrically spaced by default: each
student keeps the same part of its teacher.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from kdlib.compression import init_from_teacher
from kdlib.config import ModelConfig, PlanConfig, ProgressiveConfig, TrainConfig, config_to_dict, merge_config
from kdlib.errors import RecipeError
from kdlib.training.objective import Objective
from kdlib.transducer import DEPLOYED, Transducer

FRAMES_A_SECOND = 100  # of features
# What each dimension is rounded to, and the least that it may become.
GRAINS = {"num_layers": 1, "num_heads": 1, "feedforward_dim": 8, "encoder_dim": 8, "predictor_dim": 8, "joiner_dim": 8}
UNITS = {"": 1, "k": 10**3, "m": 10**6}


@dataclass(frozen=True)
class ModelSize:
    """Deployed parameters by part, what they weigh, and what a second of audio costs.

    int8 counts a byte for each weight of a matrix (linear layers and the embedding) and four for all else, as dynamic
    quantisation leaves them. multiply_adds are those of linear and convolution layers and of attention, a second of
    audio, decoded greedily with one token a frame.
    """

    parameters: Mapping[str, int]
    float32_bytes: int
    int8_bytes: int
    multiply_adds: int

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def measure_model(config: ModelConfig, vocab_size: int, run: bool = True) -> ModelSize:
    """The size of a model, counted on one that is built and, unless ``run`` is false, run on ten seconds of silence."""
    return _measure(tuple(sorted(config_to_dict(config).items())), vocab_size, run)


@lru_cache(maxsize=256)
def _measure(items: Tuple[Tuple[str, object], ...], vocab_size: int, run: bool) -> ModelSize:
    config = ModelConfig(**dict(items))
    with torch.random.fork_rng(devices=[]):  # building one draws numbers that the caller's training would miss
        model = Transducer(config, vocab_size).eval()
    parts = {name: list(getattr(model, name).parameters()) for name in DEPLOYED}
    matrices = sum(p.numel() for part in parts.values() for p in part if p.dim() == 2)
    total = sum(p.numel() for part in parts.values() for p in part)
    return ModelSize({name: sum(p.numel() for p in part) for name, part in parts.items()}, 4 * total,
                     matrices + 4 * (total - matrices), _multiply_adds(model, 10) if run else 0)


@torch.no_grad()
def _multiply_adds(model: Transducer, seconds: int) -> int:
    """Of a second of audio, on average over so many."""
    counted = 0

    def count(layer: nn.Module, inputs: Tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += output.numel() * layer.weight[0].numel()

    config = model.config
    layers = [m for name in DEPLOYED for m in getattr(model, name).modules()
              if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    frames = seconds * FRAMES_A_SECOND
    encoded, _, _ = model.encoder(torch.zeros(1, frames, config.num_features), torch.tensor([frames]))
    predicted = model.predictor.prefix(torch.zeros(1, encoded.size(1) - 1, dtype=torch.int64))
    model.joiner(model.joiner.encoder_proj(encoded), model.joiner.predictor_proj(predicted))
    for hook in hooks:
        hook.remove()
    seen = config.chunk_size + config.left_context if config.chunk_size else encoded.size(1)
    counted += 2 * config.num_layers * encoded.size(1) * seen * config.num_heads * config.head_dim
    return counted // seconds


def parse_target(target: str, teacher: ModelSize) -> Tuple[str, int]:
    """("parameters" or "int8_bytes", how many): "60%" (smaller), "700k" or "0.7M" parameters, "900kB" or "1.2MB" at int8.

    Raises:
        RecipeError: it reads otherwise, or is no smaller than the teacher.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[kKmM]?[bB]?)\s*", str(target))
    if not match:
        raise RecipeError(f"plan.target {target!r} is not understood: write 60% (smaller than the teacher), 700k or 0.7M "
                          "(parameters), or 900kB or 1.2MB (bytes at int8)")
    number, unit = float(match.group(1)), match.group(2).lower()
    if unit == "%":
        kind, wanted = "parameters", int(teacher.total * (1 - number / 100))
    else:
        kind = "int8_bytes" if unit.endswith("b") else "parameters"
        wanted = int(number * UNITS[unit.rstrip("b")])
    whole = teacher.total if kind == "parameters" else teacher.int8_bytes
    if not 0 < wanted < whole:
        raise RecipeError(f"plan.target {target} leaves {max(wanted, 0):,} {kind.replace('_', ' ')} of the teacher's "
                          f"{whole:,}: it must be smaller than the teacher, and something")
    return kind, wanted


def shrink(teacher: ModelConfig, s: float, proportions: Mapping[str, float]) -> ModelConfig:
    """The teacher's sizes times s^p, rounded to their grain, for each dimension and its proportion p."""
    sizes = {}
    for name, grain in GRAINS.items():
        whole = getattr(teacher, name)
        sizes[name] = min(whole, max(grain, grain * round(whole * s ** proportions.get(name, 0.0) / grain)))
    return replace(teacher, **sizes)


def plan_stages(teacher: ModelConfig, plan: PlanConfig, vocab_size: int) -> List[ModelConfig]:
    """The students' sizes, the largest first, the last one at the target or just below.

    Raises:
        RecipeError: the target cannot be reached, or the stages are too many to differ; it says what can be had.
    """
    unknown = sorted(set(plan.proportions) - set(GRAINS))
    if unknown:
        raise RecipeError(f"plan.proportions: {', '.join(unknown)} is no dimension: use {', '.join(GRAINS)}")
    kind, wanted = parse_target(plan.target, measure_model(teacher, vocab_size, run=False))

    def count(config: ModelConfig) -> int:
        measured = measure_model(config, vocab_size, run=False)
        return measured.total if kind == "parameters" else measured.int8_bytes

    whole = count(teacher)
    least = count(shrink(teacher, 0.0, plan.proportions))
    if least > wanted:
        raise RecipeError(
            f"plan.target {plan.target}: with these proportions no model has fewer than {least:,} "
            f"{kind.replace('_', ' ')} ({100 * (1 - least / whole):.1f}% below the teacher's {whole:,}): let more "
            "dimensions shrink, encoder_dim among them, or ask for less")
    students: List[ModelConfig] = []
    for stage in range(1, plan.stages + 1):
        goal = wanted
        if stage < plan.stages:
            goal = round(whole * (plan.parts[stage - 1] if plan.parts else (wanted / whole) ** (stage / plan.stages)))
        low, high = 0.0, 1.0  # at low it is small enough
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if count(shrink(teacher, middle, plan.proportions)) <= goal else (low, middle)
        student = shrink(teacher, low, plan.proportions)
        # What rounding has left is given to the feed-forward layers, the finest of the dimensions.
        room = students[-1].feedforward_dim if students else teacher.feedforward_dim
        while student.feedforward_dim < room and plan.proportions.get("feedforward_dim", 0.0) > 0.0:
            wider = replace(student, feedforward_dim=min(room, student.feedforward_dim + GRAINS["feedforward_dim"]))
            if count(wider) > goal:
                break
            student = wider
        if students and count(student) >= count(students[-1]):
            raise RecipeError(f"plan: stages {stage - 1} and {stage} come out at the same size ({count(student):,} "
                              f"{kind.replace('_', ' ')}): plan fewer stages, or let more dimensions shrink")
        students.append(student)
    return students


def stage_configs(chain: ProgressiveConfig, teacher: TrainConfig, vocab_size: int, overrides: Sequence[str],
                  source: str) -> List[TrainConfig]:
    """The training of each stage: the teacher's, changed by what all students share and by what the stage says.

    Planned sizes come before what a stage itself says of its model. ``overrides`` are ``key=value`` words that every
    training gets; ``source`` names the chain in errors.

    Raises:
        RecipeError: there are no stages, or a setting of one is wrong.
    """
    stages = [config_to_dict(stage) for stage in chain.stages]
    if chain.plan is None and not stages:
        raise RecipeError(f"{source} names no stages: list at least one under 'stages', or write a 'plan'")
    if chain.plan is not None:
        students = plan_stages(teacher.model, chain.plan, vocab_size)
        if len(stages) > len(students):
            raise RecipeError(f"{source}: {len(stages)} stages are listed, plan.stages is {len(students)}")
        stages += [{}] * (len(students) - len(stages))
        stages = [OmegaConf.merge({"model": {name: getattr(student, name) for name in GRAINS}}, stage)
                  for student, stage in zip(students, stages)]
    base = config_to_dict(teacher)
    return [merge_config(TrainConfig, OmegaConf.merge(base, chain.student, stage), overrides,
                         source=f"{source}, stage {number}") for number, stage in enumerate(stages, start=1)]


def check_student(student: Transducer, config: TrainConfig, start: Optional[Transducer], teacher: Optional[Transducer],
                  source: str) -> None:
    """Hold a training against the models that it is to be made from: what it would stop at is said before it begins.

    Args:
        student: a model of the config; it is left with some first weights.
        start: the model that its weights come from, or None.
        teacher: the model to distil from, or None.
        source: the config's name, for errors.
    Raises:
        RecipeError: the student is not smaller than its teacher or cannot start from those weights, a loss names layers
            that are not there, there is no teacher to distil from, ...
    """
    try:
        if teacher is None and config.loss.distill:
            raise RecipeError("it asks for distillation losses, and there is no teacher: give --teacher")
        if teacher is not None:
            ours, theirs = student.parameter_counts()["total"], teacher.parameter_counts()["total"]
            if ours >= theirs:
                raise RecipeError(f"the student has {ours} parameters, its teacher {theirs}; a stage must make the model "
                                  "smaller")
        Objective(student, config.loss, teacher)
        if start is not None and config.init.weights == "teacher":
            numbers = config.init.layers if isinstance(config.init.layers, list) else []
            init_from_teacher(student, start, [number - 1 for number in numbers], config.init.units)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def size_table(models: Mapping[str, ModelConfig], vocab_size: int) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of the table of a plan; the first model is the teacher."""
    sizes = {name: measure_model(config, vocab_size) for name, config in models.items()}
    whole = next(iter(sizes.values())).total
    header = ["Model", "layers", "width", "ff", "heads", *DEPLOYED, "params", "of teacher", "float32", "int8", "MMAC/s"]
    rows = []
    for (name, config), size in zip(models.items(), sizes.values()):
        rows.append([name, str(config.num_layers), str(config.encoder_dim), str(config.feedforward_dim),
                     str(config.num_heads), *(f"{size.parameters[part]:,}" for part in DEPLOYED), f"{size.total:,}",
                     f"{100 * size.total / whole:.1f}%", f"{size.float32_bytes / 1e6:.2f} MB",
                     f"{size.int8_bytes / 1e6:.2f} MB", f"{size.multiply_adds / 1e6:.1f}"])
    return header, rows
