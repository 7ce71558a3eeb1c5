"""A student's first weights, cut out of its teacher: some of its layers, and in each of them some of its units.

Initialising from evenly spaced layers, first and last kept, is distil-whisper's way (arXiv 2311.00430). Where a
student is narrower, every named dimension of the model (the residual width, each layer's feed-forward units, heads and
convolution channels, the joiner, the predictor, ...) keeps its units of largest weight norm, the same units in every
tensor that the dimension runs through.
"""

import math
import re
from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from kdlib.config import ModelConfig
from kdlib.errors import RecipeError
from kdlib.transducer import Transducer


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: which dimension of the model runs along it, and how.

    The axis holds ``repeat`` copies of the dimension one after the other, and ``block`` entries for each unit.
    """

    dimension: str
    repeat: int = 1
    block: int = 1


def evenly_spaced_layers(num_teacher: int, num_student: int) -> List[int]:
    """Which teacher layer each student layer starts from: evenly spaced, the first and the last kept.

    Raises:
        RecipeError: the student has no layer, or more layers than its teacher.
    """
    if not 1 <= num_student <= num_teacher:
        raise RecipeError(f"a student of {num_student} layers cannot start from a teacher of {num_teacher}")
    if num_student == 1:
        return [num_teacher - 1]
    return [round(i * (num_teacher - 1) / (num_student - 1)) for i in range(num_student)]


def least_missed_layers(num_teacher: int, num_student: int, loss_of: Callable[[List[int]], float]) -> List[int]:
    """The teacher layers to keep when, one after the other, the layer goes whose removal leaves the lowest loss.

    Args:
        num_teacher, num_student: layers.
        loss_of: the loss of the teacher with these layers alone, numbers from 0 in rising order.
    Raises:
        RecipeError: the student has no layer, or more layers than its teacher; or no loss is finite.
    """
    kept = list(range(num_teacher))
    evenly_spaced_layers(num_teacher, num_student)  # the same bounds
    while len(kept) > num_student:
        losses = {i: loss_of(kept[:i] + kept[i + 1:]) for i in range(len(kept))}
        finite = {i: loss for i, loss in losses.items() if math.isfinite(loss)}
        if not finite:
            raise RecipeError("without any one of its layers the teacher's loss on the dev set is not finite: check the dev "
                              "set's features, or choose init.layers=even")
        del kept[min(finite, key=finite.__getitem__)]
    return kept


def _axes(name: str, config: ModelConfig) -> Tuple[Axis, ...]:
    """The axes of the parameter ``name``, in order; an axis that is never cut has an empty dimension."""
    whole, width, lattice = Axis(""), Axis("encoder"), Axis("joiner")
    layer = re.match(r"encoder\.layers\.(\d+)\.(.+)", name)
    if layer:
        number, part = int(layer[1]) + 1, layer[2]  # as configs count them
        if part.startswith("feed_forward"):
            hidden = Axis(f"layer {number} {part.split('.')[0]}")
            table = {"up.weight": (hidden, width), "up.bias": (hidden,), "down.weight": (width, hidden)}
            return table.get(part.split(".", 1)[1], (width,))
        if part.startswith("attention"):
            heads = f"layer {number} heads"
            rows = Axis(heads, repeat=3, block=config.head_dim)
            table = {"qkv.weight": (rows, width), "qkv.bias": (rows,),
                     "out.weight": (width, Axis(heads, block=config.head_dim))}
            return table.get(part.split(".", 1)[1], (width,))
        if part.startswith("convolution"):
            channel = f"layer {number} convolution"
            table = {"gated.weight": (Axis(channel, repeat=2), width), "gated.bias": (Axis(channel, repeat=2),),
                     "depthwise.weight": (Axis(channel), whole, Axis("kernel")), "depthwise.bias": (Axis(channel),),
                     "inner_norm.weight": (Axis(channel),), "inner_norm.bias": (Axis(channel),),
                     "out.weight": (width, Axis(channel))}
            return table.get(part.split(".", 1)[1], (width,))
        return (width,)
    subsampled, predictor = Axis("subsampling"), Axis("predictor")
    features = (config.num_features - 3) // 4
    table = {
        "encoder.subsampling.mean": (whole,), "encoder.subsampling.inverse_std": (whole,),
        "encoder.subsampling.conv1.weight": (Axis("subsampling 1"), whole, whole, whole),
        "encoder.subsampling.conv1.bias": (Axis("subsampling 1"),),
        "encoder.subsampling.conv2.weight": (subsampled, Axis("subsampling 1"), whole, whole),
        "encoder.subsampling.conv2.bias": (subsampled,),
        "encoder.subsampling.out.weight": (width, Axis("subsampling", block=features)),
        "encoder.subsampling.out.bias": (width,),
        "predictor.embedding.weight": (whole, predictor),
        "predictor.conv.weight": (predictor, whole, whole), "predictor.conv.bias": (predictor,),
        "joiner.encoder_proj.weight": (lattice, width), "joiner.encoder_proj.bias": (lattice,),
        "joiner.predictor_proj.weight": (lattice, predictor), "joiner.predictor_proj.bias": (lattice,),
        "joiner.out.weight": (whole, lattice), "joiner.out.bias": (whole,),
        "simple_am.weight": (whole, width), "simple_am.bias": (whole,),
        "simple_lm.weight": (whole, predictor), "simple_lm.bias": (whole,),
        "ctc.weight": (whole, width), "ctc.bias": (whole,),
    }
    return table[name]


def init_from_teacher(student: Transducer, teacher: Transducer, layers: Sequence[int] = (),
                      units: str = "norm") -> List[int]:
    """Fill ``student`` with its teacher's weights, in place.

    Args:
        student, teacher: of the same vocabulary; no dimension of the student may exceed its teacher's.
        layers: the teacher's layer for each layer of the student, numbered from 0; evenly spaced when empty.
        units: what a narrower dimension keeps: those of largest weight "norm", or the "first".
    Returns:
        The layers used.
    Raises:
        RecipeError: a dimension that cannot be cut differs, or one of the student's is larger.
    """
    layers = list(layers) or evenly_spaced_layers(teacher.config.num_layers, student.config.num_layers)
    if len(layers) != student.config.num_layers or not 0 <= min(layers) <= max(layers) < teacher.config.num_layers:
        raise RecipeError(f"the student has {student.config.num_layers} layers and cannot start from the layers "
                          f"{' '.join(str(i + 1) for i in layers)} of a teacher of {teacher.config.num_layers}")
    for name in ("num_features", "head_dim", "context_size"):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise RecipeError(f"model.{name} is {ours} in the student and {theirs} in its teacher: it must be the same "
                              "for the student to start from the teacher's weights")
    if student.vocab_size != teacher.vocab_size:
        raise RecipeError(f"the student has {student.vocab_size} tokens, its teacher {teacher.vocab_size}: give both one lang "
                          "folder")
    source = {}  # the teacher's tensors under the student's names
    teacher_state = teacher.state_dict()
    for name in student.state_dict():
        match = re.match(r"encoder\.layers\.(\d+)\.(.+)", name)
        origin = f"encoder.layers.{layers[int(match.group(1))]}.{match.group(2)}" if match else name
        if origin in teacher_state:
            source[name] = teacher_state[origin]
    kept = _choose_units(student, teacher.config, source, units)
    state = student.state_dict()
    for name, tensor in source.items():
        for position, axis in enumerate(_axes(name, teacher.config)):
            if axis.dimension in kept:
                tensor = tensor.index_select(position, _positions(axis, kept[axis.dimension],
                                                                  tensor.size(position)))
        state[name] = tensor.clone()
    student.load_state_dict(state)
    return layers


def _choose_units(student: Transducer, config: ModelConfig, source: Dict[str, Tensor],
                  units: str) -> Dict[str, Tensor]:
    """The units that each narrower dimension keeps, as sorted int64 indices: those of largest summed squared weight."""
    wanted: Dict[str, int] = {}
    importance: Dict[str, Tensor] = {}
    state = student.state_dict()
    for name, tensor in source.items():
        for position, axis in enumerate(_axes(name, config)):
            per_unit = axis.repeat * axis.block
            ours, theirs = state[name].size(position), tensor.size(position)
            if not axis.dimension:
                if ours != theirs:
                    raise RecipeError(f"{name} is {tuple(state[name].shape)} in the student and {tuple(tensor.shape)} "
                                      "in its teacher, and this axis cannot be cut")
                continue
            if ours > theirs:
                raise RecipeError(f"the student's {axis.dimension} ({ours // per_unit}) is larger than its teacher's "
                                  f"({theirs // per_unit}): make it no larger, or start from scratch")
            if ours == theirs:
                continue
            wanted[axis.dimension] = ours // per_unit
            square = tensor.double().square().movedim(position, 0).reshape(theirs, -1).sum(1)
            square = square.view(axis.repeat, theirs // per_unit, axis.block).sum((0, 2))
            # Each tensor counts alike: a large one must not drown what the others say of a unit.
            square = square / square.mean().clamp(min=1e-30)
            importance[axis.dimension] = importance.get(axis.dimension, 0) + square
    kept = {}
    for dimension, count in wanted.items():
        total = importance[dimension]
        if dimension == "kernel":  # the nearest taps of a causal kernel are its last ones
            kept[dimension] = torch.arange(len(total) - count, len(total))
        else:
            kept[dimension] = torch.arange(count) if units == "first" else total.topk(count).indices.sort().values
    return kept


def _positions(axis: Axis, units: Tensor, size: int) -> Tensor:
    """The entries of an axis of ``size`` that belong to ``units``."""
    grid = torch.arange(size).view(axis.repeat, -1, axis.block)
    return grid[:, units].reshape(-1)
