#!/usr/bin/env python3
"""The ablation of a recipe: what each choice of its students' training is worth (stage 10).

conf/ablation.yaml names the arms, each a change of progressive.yaml, and the tables that compare them:

    base: {...}                   what every arm changes of progressive.yaml
    arms:
      mixture: {}                 a change of progressive.yaml: student, stages
      rnnt: {student: {loss: {distill: []}}}
    tables:
      - {title: Losses, arms: [rnnt, mixture]}   the first one is what the others are compared with

``--do plan`` writes the config of every stage of every arm, ``--do table`` reads their decoding summaries.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

from kdlib.comparison import ablation_table, drawn_over, headline, rate_name, rate_names, read_summary, reference_words
from kdlib.config import TrainConfig, config_to_dict, load_config, merge_config, save_config
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_record, write_text
from kdlib.lang import Lang
from kdlib.plan_config import ProgressiveConfig
from kdlib.planning import check_chain, of_trainings, stage_configs
from kdlib.report import describe_trainings, markdown_table, newest_date, plain_table, shown

ARMS = "arms.txt"  # a line for each arm: its name and how many stages it has


@dataclass
class Table:
    title: str = ""
    arms: List[str] = field(default_factory=list)


@dataclass
class AblationConfig:
    base: Dict[str, Any] = field(default_factory=dict)
    arms: Dict[str, Any] = field(default_factory=dict)
    tables: List[Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.arms:
            raise RecipeError("it names no arms: list at least one under 'arms'")
        for table in self.tables:
            unknown = [arm for arm in table.arms if arm not in self.arms]
            if unknown or not table.arms:
                raise RecipeError(f"table {table.title!r} compares {', '.join(unknown) or 'nothing'}: give it names that "
                                  f"stand under arms ({', '.join(self.arms)})")
        for name in self.arms:
            if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
                raise RecipeError(f"arm {name!r}: a name is made of letters, digits, '-', '_' and '.', since a folder is "
                                  "called after it")


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--do", choices=["plan", "table"], required=True, help="before or after the arms are trained")
    parser.add_argument("--config", type=Path, required=True, help="conf/ablation.yaml")
    parser.add_argument("--exp", type=Path, required=True, help="folder of the arms, one folder a stage of an arm")
    parser.add_argument("--progressive", type=Path, help="conf/progressive.yaml")
    parser.add_argument("--teacher-config", type=Path, help="conf/teacher.yaml")
    parser.add_argument("--lang", type=Path, help="folder of stage 3, for the vocabulary size")
    parser.add_argument("--teacher", type=Path, help="the teacher's decode/summary.json, for the tables")
    parser.add_argument("--recipe", default="", help="its name, for the title")
    parser.add_argument("--command", default="", help="the command that made it, for the report")
    parser.add_argument("--report", type=Path, help="the Markdown file to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every training")
    return parser.parse_intermixed_args()


def plan(args, config: AblationConfig) -> None:
    teacher = load_config(TrainConfig, args.teacher_config, args.overrides)
    chain = config_to_dict(load_config(ProgressiveConfig, args.progressive))
    vocab_size = len(Lang(args.lang))
    overrides = of_trainings(args.overrides)
    lines = []
    for name, change in config.arms.items():
        source = f"{args.config}, {name}"
        arm = merge_config(ProgressiveConfig, [chain, config.base, change or {}], source=source)
        stages = stage_configs(arm, teacher, vocab_size, overrides, source)
        check_chain(teacher, {f"stage {number}": stage for number, stage in enumerate(stages, start=1)}, vocab_size, source)
        for number, stage in enumerate(stages, start=1):
            save_config(stage, args.exp / "conf" / f"{name}-stage{number}.yaml")
        lines.append(f"{name} {len(stages)}\n")
        print(f"{name}: " + ", ".join(f"{stage.training.num_epochs} epochs of {stage.training.updates_per_epoch} updates"
                                      for stage in stages))
    write_text(args.exp / ARMS, "".join(lines))


def read_arm(exp: Path, name: str, stages: int) -> Dict[str, Any]:
    """The summary of an arm's last stage, its updates those of all its stages."""
    summaries = []
    for number in range(1, stages + 1):
        model = f"{name}-stage{number}"
        summaries.append(read_summary(exp / model / "decode" / "summary.json", model, "run stage 10 again"))
    return {**summaries[-1], "updates": sum(summary["updates"] for summary in summaries)}


def write_tables(args, config: AblationConfig) -> None:
    stages = dict(line.split() for line in (args.exp / ARMS).read_text(encoding="utf-8").splitlines())
    unplanned = [name for name in config.arms if name not in stages]
    if unplanned:
        raise RecipeError(f"{args.exp / ARMS} knows no arm {unplanned[0]!r} of {args.config}: run stage 10 again")
    arms = {name: read_arm(args.exp, name, int(stages[name])) for name in config.arms}
    first, *others = arms
    for name in others:
        if reference_words(arms[name]) != reference_words(arms[first]):
            raise RecipeError(f"arm {name!r} was decoded on other test data than {first!r}: run stage 10 again")
    tests = arms[first]["test_sets"]
    teacher = read_summary(args.teacher, "teacher", "run stage 5 again")
    taught = ", ".join(f"{rate_name(test)} {name} {headline(test)['wer']:.2f}"
                       for name, test in teacher["test_sets"].items())
    models = [args.exp / f"{name}-stage{number}" for name in arms for number in range(1, int(stages[name]) + 1)]
    done = [model / "done.json" for model in models if (model / "done.json").exists()]
    trained = describe_trainings(read_record(path, "run stage 10 again") for path in done)
    text = (f"# Ablation of {args.recipe}\n\nWritten by `{args.command}`, with `{shown(args.config)}`; every figure "
            "comes from the files of one run, one seed.\n\n"
            f"- Date of the run: {newest_date(model / 'decode' / 'summary.json' for model in models)}\n"
            + (f"- Trained on {'; '.join(trained)}\n" if trained else "")
            + f"\nTheir teacher: {teacher['parameters']:,} parameters, {teacher['updates']:,} updates, {taught}.\n\n"
            f"{rate_names(tests)} in per cent; in brackets the difference to the first row and its p-value (paired "
            f"bootstrap over {drawn_over(tests)}, two-sided; it knows nothing of other seeds). Updates are those of all stages. "
            "delay / 90%: milliseconds from a word's end to the frame that emits it, mean and 90th percentile, as in "
            "RESULTS.md.\n")
    for table in config.tables:
        header, rows = ablation_table({name: arms[name] for name in table.arms})
        text += f"\n## {table.title}\n\n{markdown_table(header, rows)}"
        print(f"{table.title}\n{plain_table(header, rows)}")
    write_text(args.report, text)
    print(f"wrote {args.report}")


def main():
    args = get_args()
    config = load_config(AblationConfig, args.config)
    if args.do == "plan":
        plan(args, config)
    else:
        write_tables(args, config)


if __name__ == "__main__":
    run_main(main)
