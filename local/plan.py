#!/usr/bin/env python3
"""Plan the students: the config of every stage and baseline, checked and counted before any of them is trained."""

import argparse
import math
from pathlib import Path
from typing import Dict, List, Optional

from kdlib.comparison import UPDATES_TOLERANCE
from kdlib.config import TrainConfig, config_to_dict, load_config, merge_config, save_config
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_record, write_json
from kdlib.lang import Lang
from kdlib.plan_config import ProgressiveConfig
from kdlib.planning import (ModelSize, check_chain, check_student, inherited, measure_model, of_trainings, parse_target,
                            size_table, stage_configs)
from kdlib.report import plain_table
from kdlib.transducer import Transducer


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="conf/progressive.yaml")
    parser.add_argument("--teacher-config", type=Path, required=True, help="conf/teacher.yaml")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3, for the vocabulary size")
    parser.add_argument("--teacher-done", type=Path, metavar="FILE",
                        help="done.json of a teacher that is trained already: the overrides are none of its")
    parser.add_argument("--output", type=Path, help="folder for the configs and plan.json; without it they are only checked")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every training of the plan")
    return parser.parse_intermixed_args()


def make_configs(plan: ProgressiveConfig, teacher: TrainConfig, vocab_size: int, overrides, source: str,
                 trained: Optional[int] = None):
    """The training config of every model by name, the stages first and in order; ``trained`` are the updates of a teacher
    that has had them already."""
    overrides = of_trainings(overrides)
    stages = stage_configs(plan, teacher, vocab_size, overrides, source)
    configs = {f"stage{number}": config for number, config in enumerate(stages, start=1)}
    last = stages[-1]
    if not last.loss.distill:
        raise RecipeError(f"{source}: student.loss.distill is empty, so nothing would be distilled")
    # The baselines are the last student's model, and differ in how they are trained alone: scratch as the teacher is,
    # single as the last stage. 'matched' means as long as all that the last stage rests on: the stages, and for a model
    # that has no teacher the teacher's training too.
    final_model = {"model": config_to_dict(last)["model"]}
    # These are of the training, not of the model that is deployed.
    as_the_teacher = {"model": {"dropout": teacher.model.dropout, "ctc_head": teacher.model.ctc_head}}
    single = merge_config(TrainConfig, [config_to_dict(last), plan.single, final_model], overrides,
                          source=f"{source}, single")
    if len(stages) > 1:
        refuse_layers_of_another_teacher(plan, single, f"stage{len(stages) - 1}", source)
    scratch = merge_config(TrainConfig, [inherited(teacher), plan.scratch, final_model, as_the_teacher], overrides,
                           source=f"{source}, scratch")
    # Where epochs are passes over the training part, no updates can be counted.
    had = trained if trained and scratch.training.updates_per_epoch else 0
    for name, alone, rests_on, more in (("scratch", scratch, stages if had else [teacher, *stages], had),
                                        ("single", single, stages, 0)):
        matched = f"{source}, {name}-matched"
        training = as_long_as(rests_on, alone, matched, more)
        configs[name] = alone
        configs[f"{name}-matched"] = merge_config(TrainConfig, [config_to_dict(alone), {"training": training}], source=matched)
    return configs


def as_long_as(others: List[TrainConfig], alone: TrainConfig, source: str, more: int) -> Dict[str, int]:
    """The epochs of a training that is otherwise ``alone``, with as many updates as all the others together and ``more``, or up
    to ``UPDATES_TOLERANCE`` above."""
    trainings = [config.training for config in others]
    # Those of a curriculum come before the first epoch.
    before = more + sum(config.data.curriculum.updates for config in others) - alone.data.curriculum.updates
    lengths = {training.updates_per_epoch for training in (*trainings, alone.training)}
    if 0 in lengths:  # an epoch is a pass over the training part
        if len(lengths) > 1:
            raise RecipeError(f"{source}: training.updates_per_epoch must be 0 for the teacher and all stages, or for none, "
                              "so that a baseline can have as many updates as all of them: training.updates_per_epoch=N on "
                              "the command line sets it for all")
        if before:
            raise RecipeError(f"{source}: a baseline of whole epochs cannot have the updates of several curricula: set "
                              "training.updates_per_epoch, or data: {curriculum: {updates: 0}} for the students")
        return {"num_epochs": sum(training.num_epochs for training in trainings), "updates_per_epoch": 0}
    updates = before + sum(training.num_epochs * training.updates_per_epoch for training in trainings)
    if updates < 1:
        raise RecipeError(f"{source}: its curriculum of {alone.data.curriculum.updates} updates is as long as all the "
                          "trainings that it is to match: make data.curriculum.updates smaller")
    # As many epochs as of the usual length, or the number nearest to it where rounding up adds so little that they pass for
    # matched.
    usual, least = round(updates / alone.training.updates_per_epoch), alone.training.avg
    matched = (count for count in range(least, updates + 1)
               if count * math.ceil(updates / count) <= (1 + UPDATES_TOLERANCE) * updates)
    count = min(matched, key=lambda count: abs(count - usual), default=least)
    return {"num_epochs": count, "updates_per_epoch": math.ceil(updates / count)}


def refuse_layers_of_another_teacher(plan: ProgressiveConfig, single: TrainConfig, before: str, source: str) -> None:
    """Numbers of layers that the last stage gives mean those of the stage before it, and the baselines have the teacher."""
    named = []
    if isinstance(single.init.layers, list) and "layers" not in plan.single.get("init", {}):
        named.append("init.layers")
    if single.loss.distill_from == "previous" and "distill" not in plan.single.get("loss", {}):
        named += [f"layers of {term.name} in loss.distill" for term in single.loss.distill if isinstance(term.layers, list)]
    if named:
        raise RecipeError(f"{source}: the last stage's {named[0]} are numbers of {before}'s layers, and the baselines "
                          "single and single-matched, otherwise trained alike, have the teacher's: say under "
                          "'single' what is theirs, for example single: {init: {layers: even}}")


def refuse_missed_target(plan: ProgressiveConfig, teacher: ModelSize, last: ModelSize, source: str) -> None:
    """What a stage says of its own model goes before the plan, so the last one may have missed a plan's target as well."""
    if plan.target_compression is None:
        kind, most = parse_target(plan.plan.target, teacher)
        count = last.total if kind == "parameters" else last.int8_bytes
        if count > most:
            raise RecipeError(f"{source}: the last stage has {count:,} {kind.replace('_', ' ')}, and plan.target "
                              f"{plan.plan.target} allows {most:,}: make it smaller, or raise plan.target")
        return
    reached, most = 100 * (1 - last.total / teacher.total), math.floor(teacher.total * (100 - plan.target_compression) / 100)
    if last.total > most:
        raise RecipeError(f"{source}: the last stage has {last.total:,} parameters, {reached:.1f}% fewer than the teacher, "
                          f"and target_compression {plan.target_compression:g}% allows {most:,}: make it smaller, or lower "
                          "target_compression")


def main():
    args = get_args()
    trained = None
    if args.teacher_done is not None:
        trained = read_record(args.teacher_done, "give the folder of a finished training", "updates")["updates"]
    teacher = load_config(TrainConfig, args.teacher_config, args.overrides if trained is None else [])
    plan = load_config(ProgressiveConfig, args.config)
    vocab_size = len(Lang(args.lang))
    configs = make_configs(plan, teacher, vocab_size, args.overrides, str(args.config), trained)
    header, rows = size_table({name: config.model for name, config in {"teacher": teacher, **configs}.items()}, vocab_size)
    epochs = [teacher.training.num_epochs, *(config.training.num_epochs for config in configs.values())]
    print(plain_table([*header, "epochs"], [[*row, str(n)] for row, n in zip(rows, epochs)]), end="")
    whole = previous = measure_model(teacher.model, vocab_size).total
    stages = [name for name in configs if name.startswith("stage")]
    for name in stages:
        count = measure_model(configs[name].model, vocab_size).total
        if count >= previous:
            raise RecipeError(f"{args.config}: {name} has {count} parameters, the stage before it {previous}; "
                              "each stage must make the model smaller")
        previous = count
    reached = 100 * (1 - previous / whole)
    refuse_missed_target(plan, measure_model(teacher.model, vocab_size), measure_model(configs[stages[-1]].model, vocab_size),
                         str(args.config))
    check_chain(teacher, {f"stage {number}": configs[name] for number, name in enumerate(stages, start=1)}, vocab_size,
                str(args.config))
    check_chain(teacher, {"single": configs["single"]}, vocab_size, str(args.config))
    check_student(Transducer(configs["scratch"].model, vocab_size), configs["scratch"], None, None,
                  f"{args.config}, scratch")
    if trained is not None and not configs["scratch"].training.updates_per_epoch:
        print("warning: scratch-matched is matched only if the teacher's training part was as long as this run's, since epochs "
              "are passes over it: training.updates_per_epoch=N on the command line has updates counted")
    if teacher.loss.distill:
        print("warning: the teacher is a student of another run: scratch and scratch-matched, which have no teacher, are "
              f"trained with that student's settings but for what stands under 'scratch' in {args.config}, and "
              "scratch-matched does not count the updates of that student's own teachers")
    summary = f"{len(stages)} stages, {reached:.1f}% smaller at the end"
    if args.output is None:
        print(summary)
        return
    for name, config in configs.items():
        save_config(config, args.output / f"{name}.yaml")
    # Written last: the folder is whole when it is there.
    write_json(args.output / "plan.json", {"stages": len(stages), "compression": round(reached, 2)})
    print(f"{summary} -> {args.output}")


if __name__ == "__main__":
    run_main(main)
