#!/usr/bin/env python3
"""Stage 8: the table, the plot and the report, from what the finished stages left behind.

Reads exp/<model>/decode/summary.json of the teacher, of each stage of exp/conf/plan.json and of the baselines;
writes results.json, table.md and wer_vs_size.png into --output and the report that is kept with the recipe. No figure comes
from anywhere else. summaries.json beside them is what local/seeds.py needs of the run: what it was, and every model's
summary with the errors of each utterance.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from kdlib.comparison import (compare, differences_table, errors_table, full_rate_name, has_latency, headline, is_number,
                              latency_legend, latency_table, legend, rate_name, rate_names, reference_words,
                              summary_problem, table)
from kdlib.comparison import read_summary as read_decoding_summary
from kdlib.config import TrainConfig, config_to_dict, load_config
from kdlib.errors import RecipeError, run_main
from kdlib.files import content_digest, read_json, read_record, write_json, write_text
from kdlib.model_card import DECODINGS
from kdlib.plan_config import ProgressiveConfig
from kdlib.report import (SizedModel, describe_machine, describe_trainings, format_duration, markdown_table, name_processor,
                          newest_date, plain_table, plot_wer_against_size, shown)
from kdlib.training.checkpoint import with_effect

RERUN = os.environ.get("RECIPE_RERUN", "run.sh")  # how the user called it: local/stage_stamp.py says so
EXPORT = f"export it again with stage 9 ({RERUN} --stage 9)"

# The baselines and how the plot calls them.
BASELINES = {
    "scratch": "scratch (no teacher)",
    "scratch-matched": "scratch-matched (no teacher, all updates)",
    "single": "single (one step)",
    "single-matched": "single-matched (one step, all updates)",
}
# What all models are trained on, by the part it plays in run.json, and what messages call it.
DATA = {"train 1": "training data", "dev": "dev data", "noise": "noise", "tokens": "tokens"}


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    target = load_config(ProgressiveConfig, args.config).target_compression
    chain = ["teacher", *(f"stage{number}" for number in range(1, read_stage_count(args.exp) + 1))]
    summaries = {model: read_summary(args.exp, model) for model in [*chain, *BASELINES]}
    check_same_test_sets(args.exp, summaries)
    check_made_from(args.exp, list(summaries))
    check_same_data(args.exp, list(summaries))
    matched = {"scratch-matched": chain, "single-matched": chain[1:]}
    run = describe_run(args, summaries)
    results = {**run, **compare(summaries, chain, list(BASELINES), matched, target),
               "exports": read_exports(args.exp, summaries)}

    header, rows = table(results)
    notes = legend(results) + [f"**Warning:** {warning}" for warning in results["warnings"]]
    differences = differences_table(results)
    tests = results["rows"][0]["test_sets"]
    table_text = (markdown_table(header, rows) + f"\nThe last stage beside the others, in points of {rate_names(tests)}:\n\n"
                  + markdown_table(*differences) + "\nThe errors:\n\n" + markdown_table(*errors_table(results))
                  + "\n" + "".join(f"- {note}\n" for note in notes))
    exported, late = exports_table(results["exports"], tests) if results["exports"] else None, ""
    sherpa = "" if exported is None else (
        f"## Exported files\n\nWhat stage 9 has made, decoded by sherpa-onnx, streaming, {results['exports'][0]['method']}, "
        f"on one thread:\n\n{markdown_table(*exported)}\n")
    if all(map(has_latency, results["rows"])):
        late = (f"## Latency\n\n{markdown_table(*latency_table(results['rows']))}\n"
                f"{latency_legend(results['chunk_ms'])}\n\n")
    points = {row["model"]: SizedModel(BASELINES.get(row["model"], row["model"]), row["parameters"],
                                       {name: headline(test)["wer"] for name, test in row["test_sets"].items()})
              for row in results["rows"]}
    plot = args.output / "wer_vs_size.png"
    write_json(args.output / "results.json", results)
    # Thousands of small numbers, a line for each of which would be no easier to read.
    write_text(args.output / "summaries.json", json.dumps({**run, "models": summaries}, separators=(",", ":")) + "\n")
    write_text(args.output / "table.md", table_text)
    plot_wer_against_size(plot, [points[model] for model in chain], [points[model] for model in BASELINES],
                          {name: full_rate_name({name: test}) for name, test in tests.items()},
                          f"{args.recipe}: {full_rate_name(tests)} against size")
    write_text(args.report, report(args, results, table_text, sherpa + late))
    for path in (*(args.output / name for name in ("results.json", "summaries.json", "table.md")), plot, args.report):
        print(f"wrote {path}")
    print("\n" + plain_table(header, rows) + "\n" + plain_table(*differences))
    if late:
        print(plain_table(*latency_table(results["rows"])))
    if exported:
        print(plain_table(*exported))
    print("\n".join(legend(results) + [f"warning: {warning}" for warning in results["warnings"]]))


def parse_args(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the table, the plot and the report of a finished run.")
    parser.add_argument("--exp", type=Path, required=True, help="folder with one folder a model")
    parser.add_argument("--config", type=Path, required=True, help="progressive.yaml, for target_compression")
    parser.add_argument("--recipe", required=True, help="name of the recipe, for titles")
    parser.add_argument("--output", type=Path, required=True,
                        help="folder for results.json, summaries.json, table.md and the plot")
    parser.add_argument("--report", type=Path, required=True, help="the report to write, such as RESULTS.md")
    parser.add_argument("--published", type=Path, help="Markdown to end the report with: figures of others to compare with")
    parser.add_argument("--command", help="the command to name in the report (egs/RECIPE/run.sh)")
    return parser.parse_args(argv)


def read_stage_count(exp: Path) -> int:
    path, remedy = exp / "conf" / "plan.json", f"run stage 6, which plans the distillation stages ({RERUN} --stage 6)"
    plan = read_json(path, remedy)
    stages = plan.get("stages") if isinstance(plan, dict) else None
    if not isinstance(stages, int) or isinstance(stages, bool) or stages < 1:
        raise RecipeError(f"{path} names no stages: {remedy}")
    return stages


def remedy_for(model: str) -> str:
    """How a model comes to be there as it should."""
    if model == "teacher":
        return f"train and decode it with stages 4 and 5 ({RERUN} --stage 4 --stop-stage 5)"
    stage = 7 if model in BASELINES else 6
    return f"train and decode it with stage {stage} ({RERUN} --stage {stage} --stop-stage {stage})"


def read_summary(exp: Path, model: str) -> Dict[str, Any]:
    """The decoding summary of ``model``, checked, with what is known of its training under ``training``."""
    path, done, remedy = exp / model / "decode" / "summary.json", exp / model / "done.json", remedy_for(model)
    summary = read_decoding_summary(path, model, remedy)
    summary["training"] = read_json(done, remedy) if done.exists() else {}
    if not isinstance(summary["training"], dict) or not is_number(summary["training"].get("seconds", 0)):
        raise RecipeError(f"{done} does not describe a training: {remedy}")
    print(f"read {path}" + (f" and {done.name}" if done.exists() else ""))
    return summary


def read_exports(exp: Path, summaries: Dict[str, Dict[str, Any]]) -> List[Dict[str, Any]]:
    """What stage 9 has exported of these very models and decoded by sherpa-onnx: a row for each kind of files of each model.
    What an earlier training left there is not of this run. What is of other epochs or chunks than were decoded is left out, and
    that is printed."""
    rows = []
    for model, own in summaries.items():
        record = exp / "export" / model / "model.json"
        for name, kind in DECODINGS:
            decoded = record.parent / name / "summary.json"
            if not (record.exists() and decoded.exists()):
                continue
            about, summary = read_record(record, EXPORT), read_record(decoded, EXPORT)
            if about.get("weights") != own["training"].get("weights") or summary.get("digest") != about.get("digest"):
                print(f"left out {decoded}: it is of another training or export than {exp / model} and {record}: {EXPORT}")
                continue
            problem = summary_problem(summary, model)
            if problem or reference_words(summary) != reference_words(own):
                print(f"left out {decoded}, which {problem or f'is of other test data than {exp / model}'}: {EXPORT}")
                continue
            differ = [f"{key} {summary[key]} instead of {own[key]}" for key in ("epoch", "avg", "chunk_ms", "left_context_ms")
                      if summary[key] != own[key]]
            if differ:
                print(f"left out {decoded}, which is of {', '.join(differ)}: {EXPORT}")
                continue
            rows.append({"model": model, "files": kind, "bytes": about[f"{kind}_bytes"],
                         "method": summary["method"], "real_time_factor": summary["real_time_factor"],
                         "test_sets": {name: headline(test)["wer"] for name, test in summary["test_sets"].items()}})
    return rows


def check_same_test_sets(exp: Path, summaries: Dict[str, Dict[str, Any]]) -> None:
    """Error rates may be compared only when they were counted over the same words, utterance by utterance."""
    def words(model: str) -> Dict[str, Any]:
        return {name: headline(test)["words"] for name, test in summaries[model]["test_sets"].items()}

    for model in summaries:
        if reference_words(summaries[model]) != reference_words(summaries["teacher"]):
            path = exp / model / "decode" / "summary.json"
            raise RecipeError(f"{path} was decoded on other test data than the teacher (words {words(model)}, "
                              f"not {words('teacher')}): run from stage 5 again ({RERUN} --stage 5)")


def check_made_from(exp: Path, models: List[str]) -> None:
    """A chain is one only where each student was made from the very models that are there, and by the plan that is there: a
    stage 6 that was stopped leaves students of those before them, and without stage 7 it leaves the baselines of another plan.
    Of what was trained before ``run.json`` named models nothing is known."""
    for model in models:
        record = exp / model / "run.json"
        # A teacher that was taken may be a student itself, of models of its own run.
        if model == "teacher" or not record.exists():
            continue
        run = read_record(record, remedy_for(model))
        for role, name in run.get("models", {}).items():
            done = exp / name / "done.json"
            if done.exists() and run["inputs"][role] != content_digest(done):
                raise RecipeError(f"{exp / model} was trained from another {name} than is there: {remedy_for(model)}")
        # The words of the command line are in it, too.
        planned = exp / "conf" / f"{model}.yaml"
        if planned.exists() and "config" in run and (
                with_effect(run["config"]) != with_effect(config_to_dict(load_config(TrainConfig, planned)))):
            raise RecipeError(f"{exp / model} was trained with other settings than {planned} says: {remedy_for(model)}")


def check_same_data(exp: Path, models: List[str]) -> None:
    """Error rates may be compared only of models that were trained on the same data. A teacher that was taken has that of its
    own run; of what was trained before ``run.json`` named the parts that files play nothing is known."""
    first: Dict[str, Tuple[str, str]] = {}  # by part, who was first seen to be trained on it, and its digest
    for model in models:
        record = exp / model / "run.json"
        if not record.exists() or model == "teacher" and is_taken(exp / model):
            continue
        run = read_record(record, remedy_for(model))
        inputs = run.get("inputs", {})
        for part in DATA:
            # Where a loss reads hypotheses, the training part is that of the student's own teacher, which has added them.
            if part not in inputs or part == "train 1" and "nbest_rnnt" in str(run.get("config")):
                continue
            other, digest = first.setdefault(part, (model, inputs[part]))
            if digest != inputs[part]:
                raise RecipeError(f"{exp / model} was trained on other {DATA[part]} than {exp / other}: train both on what is "
                                  f"there now, from stage 4 on ({RERUN} --stage 4)")


def is_taken(teacher: Path) -> bool:
    """Whether stage 4 did not train the teacher but was given one with --teacher, be it this run's own. The log of a training
    is not taken with it."""
    return "--teacher" in RERUN.split() or not (teacher / "train.log").exists()


def describe_run(args: argparse.Namespace, summaries: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """What the run was: its command, when its last decoding ended (UTC), on what machine and with what software."""
    trainings = [summary["training"] for summary in summaries.values()]
    return {
        "recipe": args.recipe,
        "command": args.command or f"egs/{args.recipe}/run.sh",
        "config": shown(args.config),
        "date": newest_date(args.exp / model / "decode" / "summary.json" for model in summaries),
        "machine": summaries["teacher"]["training"].get("machine") or describe_machine(),
        "software": {key: list(dict.fromkeys(str(training[key]) for training in trainings if training.get(key)))
                     for key in ("torch", "k2", "rnnt_backend", "device")},
        "trained_on": describe_trainings(trainings),
    }


def exports_table(rows: List[Dict[str, Any]], tests: Dict[str, Any]) -> Tuple[List[str], List[List[str]]]:
    """Header and cells of :func:`read_exports`."""
    rates = [f"{rate_name(test)} {name}" for name, test in tests.items()]
    return ["Model", "Files", "Bytes", *rates, "Real-time factor"], [
        [row["model"], row["files"], f"{row['bytes']:,}", *(f"{row['test_sets'][name]:.2f}" for name in tests),
         f"{row['real_time_factor']:.3f}"] for row in rows]


def report(args: argparse.Namespace, results: Dict[str, Any], table_text: str, more: str) -> str:
    machine, software = results["machine"], results["software"]
    published = "\n" + args.published.read_text(encoding="utf-8") if args.published else ""
    error_rate = full_rate_name(results["rows"][0]["test_sets"])
    memory = f", {machine['memory_gib']:g} GiB of memory" if machine["memory_gib"] else ""
    versions = [f"{name} {', '.join(software[key])}" for key, name in
                (("torch", "torch"), ("k2", "k2"), ("rnnt_backend", "RNN-T backend")) if software[key]]
    times = markdown_table(
        ["Model", "Updates", "Training time", "Decoding time", "Epoch", "Averaged"],
        [[row["model"], f"{row['updates']:,}", format_duration(row["training"].get("seconds")),
          format_duration(row["decode_seconds"]), str(row["epoch"]), str(row["avg"])] for row in results["rows"]])
    return (
        f"# Results of {results['recipe']}\n\n"
        "Written by stage 8 of the recipe; every figure comes from the files of one run.\n\n"
        f"- Command: `{results['command']}`, with `{results['config']}`\n"
        f"- Date of the run: {results['date']}\n"
        f"- Machine: {name_processor(machine)}{memory}; {machine['system']}, "
        f"Python {machine['python']}\n"
        + (f"- Software: {'; '.join(versions)}\n" if versions else "")
        + (f"- Trained on {'; '.join(results['trained_on'])}\n" if results["trained_on"] else "")
        + f"\n## {error_rate.capitalize()} and size\n\n{table_text}\n"
        f"The plot of {error_rate} against size is `{shown(args.output / 'wer_vs_size.png')}`, the same figures for "
        f"programs are `{shown(args.output / 'results.json')}`.\n\n"
        f"{more}## Time\n\n{times}\n"
        "## How to reproduce\n\n"
        f"```\n{results['command']}\n```\n\n"
        "Stages that are done are skipped; `--stage 8 --stop-stage 8` writes this report again from a finished run. "
        "The number of processes is part of what trainings draw at random (`--world-size`, \"Trained on\" above), and other "
        "processors round otherwise: figures differ between machines by about as much as between seeds.\n"
        f"{published}"
    )


if __name__ == "__main__":
    run_main(main)
