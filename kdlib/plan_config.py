"""The settings of a chain of students, ``conf/progressive.yaml``."""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from kdlib.config_checks import require


@dataclass
class StageConfig:
    """One compression stage: what it changes of the model, and of the training that all students share."""

    model: Dict[str, Any] = field(default_factory=dict)
    loss: Dict[str, Any] = field(default_factory=dict)
    optim: Dict[str, Any] = field(default_factory=dict)
    data: Dict[str, Any] = field(default_factory=dict)
    training: Dict[str, Any] = field(default_factory=dict)
    init: Dict[str, Any] = field(default_factory=dict)


@dataclass
class PlanConfig:
    """Students whose sizes follow from the teacher's and a target (see :mod:`kdlib.planning`)."""

    stages: int = 3
    target: str = "60%"  # smaller than the teacher; or 700k, 0.7M (parameters); or 900kB, 1.2MB (bytes at int8)
    # How soon each dimension gives way beside the others: it is multiplied by s to this power. Layers last: of models of one
    # size the narrow and deep ones make fewer errors (docs/losses.md, "Which shape?").
    proportions: Dict[str, float] = field(default_factory=lambda: {
        "num_layers": 0.25, "num_heads": 0.5, "feedforward_dim": 1.0, "encoder_dim": 0.5, "subsampling_channels": 0.5,
        "predictor_dim": 0.5, "joiner_dim": 0.5})
    # What each stage but the last, which has the target, keeps of the teacher; geometrically spaced when empty.
    parts: List[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.stages >= 1, "plan.stages", self.stages, "at least 1")
        require(all(p >= 0 for p in self.proportions.values()), "plan.proportions", self.proportions, "0 or more each")
        steps = [1.0, *self.parts]
        require(len(self.parts) in (0, self.stages - 1), "plan.parts", self.parts, "one for each stage but the last")
        require(all(a > b > 0 for a, b in zip(steps, steps[1:])), "plan.parts", self.parts, "falling, from below 1")


@dataclass
class ProgressiveConfig:
    """The chain of students. Settings not named here are the teacher's (:func:`kdlib.planning.inherited`)."""

    # Per cent that the last student must be smaller than the teacher. Unless it is given: 60 without a plan; plan's target
    # where that is a percentage, and None where it is a number of parameters or bytes, which is then what must be met.
    target_compression: Optional[float] = None
    plan: Optional[PlanConfig] = None  # the stages' sizes, unless each stage gives its own
    stages: List[StageConfig] = field(default_factory=list)
    student: Dict[str, Any] = field(default_factory=dict)  # settings of every student's training
    # Settings of the baselines in one step, single and single-matched, which are otherwise those of the last stage.
    single: Dict[str, Any] = field(default_factory=dict)
    # Settings of the baselines without a teacher, scratch and scratch-matched, which are otherwise the teacher's.
    scratch: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target_compression is None and self.plan is None:
            self.target_compression = 60.0
        elif self.target_compression is None:
            percent = re.fullmatch(r"\s*(\d{1,2}|\d{0,2}\.\d+)\s*%\s*", self.plan.target)
            self.target_compression = float(percent[1]) if percent else None
        require(self.target_compression is None or 0 < self.target_compression < 100, "target_compression",
                self.target_compression, "between 0 and 100 per cent")
        for name in ("single", "scratch"):
            require("model" not in getattr(self, name), f"{name}.model", getattr(self, name).get("model"),
                    "left out: a baseline has the last stage's model")
