"""How large a model is, and from a teacher and a target to the sizes and the trainings of the students between them.

A plan shrinks all dimensions of the model by one number s: a dimension d becomes d * s^p, p being its proportion, so
that dimensions with a larger proportion give way sooner. The stages' sizes are geometrically spaced by default: each
student keeps the same part of its teacher.
"""

import math
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from kdlib.compression import init_from_teacher
from kdlib.config import ModelConfig, TrainConfig, config_to_dict, merge_config
from kdlib.conformer import chunk_mask
from kdlib.errors import RecipeError
from kdlib.plan_config import PlanConfig, ProgressiveConfig
from kdlib.training.objective import Objective
from kdlib.transducer import DEPLOYED, Transducer

FRAMES_A_SECOND = 100  # of features
# What each dimension is rounded to, and the least that it may become.
GRAINS = {"num_layers": 1, "num_heads": 1, "feedforward_dim": 8, "encoder_dim": 8, "subsampling_channels": 8,
          "predictor_dim": 8, "joiner_dim": 8}
NEAR = 0.98  # a stage that has so much of its goal is not searched for any longer
FAR = 0.95  # a last stage that has less of the target is planned anew, with all that lead to it
UNITS = {"": 1, "k": 10**3, "m": 10**6}
# Bytes of nodes and names in a model's exported files, and in each layer more, as local/export_onnx.py writes them.
GRAPH_FLOAT32, LAYER_FLOAT32, GRAPH_INT8, LAYER_INT8 = 6_500, 3_700, 10_500, 10_300


@dataclass(frozen=True)
class ModelSize:
    """Deployed parameters by part, what they weigh, and what a second of audio costs.

    The bytes are those of the three exported files, to a few thousand: int8 has one for each weight of a matrix (linear
    layers and the embedding) and four for all else, as dynamic quantisation leaves them. multiply_adds are those of linear
    and convolution layers and of attention, a second of audio, decoded greedily with one token a frame.
    """

    parameters: Mapping[str, int]
    float32_bytes: int
    int8_bytes: int
    multiply_adds: int

    @property
    def total(self) -> int:
        """Of all parts, as deployed."""
        return sum(self.parameters.values())


def measure_model(config: ModelConfig, vocab_size: int, run: bool = True) -> ModelSize:
    """The size of a model, counted on one that is built and, unless ``run`` is false, run on ten seconds of silence."""
    return _measure(tuple(sorted(vars(config).items())), vocab_size, run)


@lru_cache(maxsize=None)
def _measure(items: Tuple[Tuple[str, object], ...], vocab_size: int, run: bool) -> ModelSize:
    config = ModelConfig(**dict(items))
    # A plan counts models by the hundred: all layers are alike, and where none has to run one layer is enough.
    built = config if run else replace(config, num_layers=1)
    # Without weights where torch can (from 2.0 on); drawing them takes numbers that the caller's training would miss.
    unfilled = nullcontext() if run or not hasattr(torch.device, "__enter__") else torch.device("meta")
    with torch.random.fork_rng(devices=[]), unfilled:
        model = Transducer(built, vocab_size).eval()
    counts: Dict[str, int] = dict.fromkeys(DEPLOYED, 0)
    matrices = scales = 0
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part in counts:
            alike = config.num_layers // built.num_layers if name.startswith("encoder.layers.") else 1
            counts[part] += alike * parameter.numel()
            if parameter.dim() == 2:
                matrices, scales = matrices + alike * parameter.numel(), scales + alike * parameter.size(0)
    # A scale of four bytes and a zero point of one go with each output; the rotations of the positions that a chunk sees
    # are constants.
    positions = 8 * config.head_dim * (2 * config.chunk_size + max(config.left_context, 0))
    float32 = 4 * sum(counts.values()) + positions
    return ModelSize(counts, float32 + GRAPH_FLOAT32 + config.num_layers * LAYER_FLOAT32,
                     float32 - 3 * matrices + 5 * scales + GRAPH_INT8 + config.num_layers * LAYER_INT8,
                     _multiply_adds(model, 10) if run else 0)


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
    frames = encoded.size(1)
    if config.chunk_size and config.left_context >= 0:
        scores = frames * (config.chunk_size + config.left_context)  # the cache has its size from the first frame on
    else:
        scores = int(chunk_mask(frames, config.chunk_size, config.left_context).sum())
    counted += 2 * config.num_layers * scores * config.num_heads * config.head_dim
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
    if not unit and number < 1000:
        raise RecipeError(f"plan.target {target} alone would be so many parameters: write 60% for a model that is 60% smaller "
                          "than the teacher")
    if unit == "%":
        kind, wanted = "parameters", math.floor(teacher.total * (100 - number) / 100)
    else:
        kind = "int8_bytes" if unit.endswith("b") else "parameters"
        wanted = int(number * UNITS[unit.rstrip("b")])
    whole = teacher.total if kind == "parameters" else teacher.int8_bytes
    if not 0 < wanted < whole:
        raise RecipeError(f"plan.target {target} leaves {max(wanted, 0):,} {kind.replace('_', ' ')} of the teacher's "
                          f"{whole:,}: it must be smaller than the teacher, and something")
    return kind, wanted


def shrink(teacher: ModelConfig, s: float, proportions: Mapping[str, float]) -> ModelConfig:
    """The teacher's sizes times s^p, rounded to their grain, for each dimension and its proportion p.

    One without a proportion, or of 0, is left as it is: it need be no multiple of the grain.
    """
    sizes = {}
    for name, grain in GRAINS.items():
        if proportions.get(name, 0.0) > 0:
            whole = getattr(teacher, name)
            sizes[name] = min(whole, max(grain, grain * round(whole * s ** proportions[name] / grain)))
    return replace(teacher, **sizes)


def _within(low: ModelConfig, high: ModelConfig, config: ModelConfig) -> ModelConfig:
    return replace(config, **{name: min(getattr(high, name), max(getattr(low, name), getattr(config, name)))
                              for name in GRAINS})


def _largest(goal: int, low: ModelConfig, high: ModelConfig, shape: Callable[[float], ModelConfig],
             count: Callable[[ModelConfig], int]) -> ModelConfig:
    """The model just below ``goal`` each of whose dimensions lies between those of ``low``, which fits, and ``high``.

    It has the proportions of ``shape``, from s to a model, where these come near the goal; where a layer or a head less
    would leave too much, other numbers of layers and heads are tried, and of those that come near, the likest is taken.
    """
    def unlikeness(config: ModelConfig) -> float:
        return sum(abs(math.log(getattr(config, name) / getattr(best, name))) for name in GRAINS)

    best = _fit(goal, low, high, shape, count)
    if count(best) >= NEAR * goal:
        return best
    return min(_near(goal, low, high, shape, count), key=unlikeness)


def _fit(goal: int, low: ModelConfig, high: ModelConfig, shape: Callable[[float], ModelConfig],
         count: Callable[[ModelConfig], int]) -> ModelConfig:
    """:func:`_largest` in the proportions of ``shape`` alone; ``low`` where even that does not fit."""
    small, large = 0.0, 1.0  # at small it fits
    for _ in range(30):
        middle = (small + large) / 2
        fits = count(_within(low, high, shape(middle))) <= goal
        small, large = (middle, large) if fits else (small, middle)
    best = _within(low, high, shape(small))
    # What rounding has left is given to the feed-forward layers, the finest of the dimensions.
    while low.feedforward_dim < high.feedforward_dim > best.feedforward_dim:
        width = min(high.feedforward_dim, best.feedforward_dim + GRAINS["feedforward_dim"])
        if count(replace(best, feedforward_dim=width)) > goal:
            break
        best = replace(best, feedforward_dim=width)
    return best


def _near(goal: int, low: ModelConfig, high: ModelConfig, shape: Callable[[float], ModelConfig],
          count: Callable[[ModelConfig], int]) -> List[ModelConfig]:
    """Models of all numbers of layers and heads that come near the goal from below, or the one that comes nearest."""
    models = [_fit(goal, low, high, shape, count)]
    for layers in range(low.num_layers, high.num_layers + 1):
        for heads in range(low.num_heads, high.num_heads + 1):
            coarse = dict(num_layers=layers, num_heads=heads)
            models.append(_fit(goal, replace(low, **coarse), replace(high, **coarse), shape, count))
    models = [model for model in models if count(model) <= goal]
    return [model for model in models if count(model) >= NEAR * goal] or [max(models, key=count)]


def _grain_by_grain(high: ModelConfig, low: ModelConfig, proportions: Mapping[str, float]) -> List[ModelConfig]:
    """From ``high`` to ``low``, a grain of one dimension less at a time, in the order in which :func:`shrink` takes them.

    However it is ordered, no chain of models that only ever shrink is longer.
    """
    steps = []
    for name, grain in GRAINS.items():
        whole, least = getattr(high, name), getattr(low, name)
        for size in range(least, whole, grain):
            # The s at which rounding comes down to this size.
            steps.append((((size + grain / 2) / whole) ** (1 / proportions[name]), name, size))
    models = [high]
    for _, name, size in sorted(steps, reverse=True):
        models.append(replace(models[-1], **{name: size}))
    return models


def _near_goals(sizes: Sequence[int], goals: Sequence[float]) -> Tuple[float, List[int]]:
    """Of falling sizes those near the falling goals, one for each and the last of all for the last.

    Returns:
        how far the farthest is, as the logarithm of a ratio, and which they are.
    """
    distances, chosen = [], []
    for number, goal in enumerate(goals, start=1):
        left = len(goals) - number
        free = range(chosen[-1] + 1 if chosen else 0, len(sizes) - left) if left else [len(sizes) - 1]
        chosen.append(min(free, key=lambda i: abs(math.log(sizes[i] / goal))))
        distances.append(abs(math.log(sizes[chosen[-1]] / goal)))
    return max(distances), chosen


def _by_grains(goals: Sequence[float], ways: Sequence[Sequence[ModelConfig]],
               count: Callable[[ModelConfig], int]) -> List[ModelConfig]:
    """Of the ways to a last student that are long enough the one that passes nearest to the goals: its models there."""
    found = []
    for way in ways:
        if len(way) >= len(goals):
            distance, chosen = _near_goals(list(map(count, way)), goals)
            found.append((distance, [way[i] for i in chosen]))
    return min(found, key=lambda chain: chain[0])[1]


def plan_stages(teacher: ModelConfig, plan: PlanConfig, vocab_size: int,
                whole: Optional[ModelConfig] = None) -> List[ModelConfig]:
    """The students' sizes, the largest first, the last one at the target or just below.

    Every student starts from the one before it, so none is larger than that one in any dimension. Each is just below its
    goal; where so many stages leave too little between them for that, they are as near their goals as can be, above them
    as well.

    Args:
        teacher: what the target and the parts are measured against.
        whole: the teacher with what all students change of it (a kernel size, for instance), where they do.
    Raises:
        RecipeError: the target cannot be reached, or not in so many stages; it says what can be had.
    """
    unknown = sorted(set(plan.proportions) - set(GRAINS))
    if unknown:
        raise RecipeError(f"plan.proportions: {', '.join(unknown)} is no dimension: use {', '.join(GRAINS)}")
    kind, wanted = parse_target(plan.target, measure_model(teacher, vocab_size, run=False))
    unit = kind.replace("_", " ")
    whole = teacher if whole is None else whole

    def count(config: ModelConfig) -> int:
        measured = measure_model(config, vocab_size, run=False)
        return measured.total if kind == "parameters" else measured.int8_bytes

    def shape(s: float) -> ModelConfig:
        return shrink(whole, s, plan.proportions)

    full, least = count(teacher), count(shape(0.0))
    if least > wanted:
        raise RecipeError(
            f"plan.target {plan.target}: with these proportions no model has fewer than {least:,} "
            f"{unit} ({100 * (1 - least / full):.1f}% below the teacher's {full:,}): let more "
            "dimensions shrink, encoder_dim among them, or ask for less")
    if plan.parts and plan.parts[-1] * full <= wanted:
        raise RecipeError(f"plan.parts: the stage before the last keeps {plan.parts[-1]:g} of the teacher, plan.target "
                          f"{plan.target} leaves the last one {wanted / full:.3f}: each part must be above that")
    students: List[ModelConfig] = []
    for stage in range(1, plan.stages + 1):
        before = count(students[-1]) if students else full
        # From where the stage before came out: its grains may have been too coarse for its goal.
        steps = plan.stages - stage + 1
        goal = round(plan.parts[stage - 1] * full if stage <= len(plan.parts) else before * (wanted / before) ** (1 / steps))
        students.append(_largest(goal, shape(0.0), students[-1] if students else whole, shape, count))
    sizes = [full, *map(count, students)]
    falling = all(before > after for before, after in zip(sizes, sizes[1:]))
    if falling and sizes[-1] >= FAR * wanted:
        return students
    # A stage has taken what was left for the next, or has grains that pass by the target. So the last one first, and of the
    # sizes on the way there those near the goals.
    ways = [[model for model in _grain_by_grain(whole, last, plan.proportions) if count(model) < full]
            for last in _near(wanted, shape(0.0), whole, shape, count)]
    most = max(map(len, ways))
    if most < plan.stages and falling:
        return students
    if most < plan.stages:
        raise RecipeError(f"plan: in these proportions {plan.target} can be reached in {most} stages, each smaller than "
                          f"the one before, not in {plan.stages}: plan fewer stages, or let more dimensions shrink")
    parts = plan.parts or [(wanted / full) ** (stage / plan.stages) for stage in range(1, plan.stages)]
    return _by_grains([*(part * full for part in parts), wanted], ways, count)


def of_trainings(overrides: Sequence[str]) -> List[str]:
    """Of ``key=value`` words those for every training. The others are about the model: the teacher's, whose config has them
    already, while a stage's sizes are its own."""
    return [word for word in overrides if not re.match(r"model\b", word)]


def inherited(teacher: TrainConfig) -> dict:
    """What other trainings take over of a teacher's config: not what it has of its own teacher, where it is a student of
    another run."""
    values, usual = config_to_dict(teacher), config_to_dict(TrainConfig())
    loss = {**values["loss"], **{key: usual["loss"][key] for key in ("distill", "distill_from")}}
    return {**values, "loss": loss, "init": usual["init"]}


def stage_configs(chain: ProgressiveConfig, teacher: TrainConfig, vocab_size: int, overrides: Sequence[str],
                  source: str) -> List[TrainConfig]:
    """The training of each stage: the teacher's (:func:`inherited`), changed by what all students share and by what the stage
    says.

    Planned sizes come after what all students share and before what a stage itself says of its model. ``overrides`` are
    ``key=value`` words that every training gets; ``source`` names the chain in errors.

    Raises:
        RecipeError: there are no stages, or a setting of one is wrong.
    """
    base = inherited(teacher)
    stages = [config_to_dict(stage) for stage in chain.stages]
    if chain.plan is None and not stages:
        raise RecipeError(f"{source} names no stages: list at least one under 'stages', or write a 'plan'")
    planned: List[dict] = [{} for _ in stages]
    if chain.plan is not None:
        # The model alone: of the training the stages and the command line have yet to speak.
        shared = merge_config(ModelConfig, [base["model"], chain.student.get("model", {})], source=f"{source}, student.model")
        for name in GRAINS:
            if name in chain.student.get("model", {}) and chain.plan.proportions.get(name, 0.0) > 0:
                raise RecipeError(f"{source}: student.model.{name} stands beside a plan, which sets it for each stage: "
                                  f"leave it out, or give it no part in the plan (plan.proportions.{name}: 0)")
        students = plan_stages(teacher.model, chain.plan, vocab_size, shared)
        if len(stages) > len(students):
            raise RecipeError(f"{source}: {len(stages)} stages are listed, plan.stages is {len(students)}")
        stages += [{}] * (len(students) - len(stages))
        planned = [{"model": {name: getattr(student, name) for name in GRAINS}} for student in students]
    return [merge_config(TrainConfig, [base, chain.student, sizes, stage], overrides, source=f"{source}, stage {number}")
            for number, (sizes, stage) in enumerate(zip(planned, stages), start=1)]


def check_student(student: Transducer, config: TrainConfig, start: Optional[Transducer], teacher: Optional[Transducer],
                  source: str) -> None:
    """Hold a training against the models that it is to be made from: what it would stop at is said before it begins.

    Args:
        student: a model of the config; where it is to start from another it is left with weights from there, of evenly
            spaced layers where the config goes by importance.
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
        with torch.random.fork_rng(devices=[]):  # the training draws its projections itself
            Objective(student, config.loss, teacher)
        if start is not None and config.init.weights == "teacher":
            numbers = config.init.layers if isinstance(config.init.layers, list) else []
            init_from_teacher(student, start, [number - 1 for number in numbers], config.init.units)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


def check_chain(teacher: TrainConfig, students: Mapping[str, TrainConfig], vocab_size: int, source: str) -> None:
    """:func:`check_student` for each of a chain of students, by name, on models that know nothing yet.

    The first starts from the teacher, each other from the one before it. ``source`` names the chain in errors.
    """
    first = before = Transducer(teacher.model, vocab_size)
    for name, config in students.items():
        student = Transducer(config.model, vocab_size)
        check_student(student, config, before, first if config.loss.distill_from == "first" else before,
                      f"{source}, {name}")
        before = student


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
