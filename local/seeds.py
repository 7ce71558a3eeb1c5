#!/usr/bin/env python3
"""One report of the same recipe run from several seeds:

    for seed in 42 43 44; do egs/fsdd/run.sh --exp egs/fsdd/exp-$seed training.seed=$seed; done
    python local/seeds.py egs/fsdd/exp-42 egs/fsdd/exp-43 egs/fsdd/exp-44 --output egs/fsdd/SEEDS.md

Of each run it needs results/summaries.json, which stage 8 writes; a copy kept elsewhere does in place of the folder.
"""

import argparse
import re
from pathlib import Path

from kdlib.comparison import drawn_over, rate_names, summary_problem
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_record, write_text
from kdlib.report import markdown_table, name_processor, plain_table
from kdlib.seeds import pool_seeds, seed_differences_table, seeds_table

# With other options it would be another run, whose models are trained anew.
REMEDY = "finish that run with the call of run.sh, its options and settings, that it was begun with, or leave it out"


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="folders of finished runs, or their summaries.json, one a seed")
    parser.add_argument("--output", type=Path, help="a file for the report, in Markdown, which is printed in any case")
    return parser.parse_args()


def read_run(path: Path):
    """What stage 8 has written of a run for this report: what it was, and the summaries of its models."""
    path = path / "results" / "summaries.json" if path.is_dir() else path
    run = read_record(path, REMEDY, "recipe", "command", "config", "date", "machine", "software", "models")
    models = run["models"]
    if not isinstance(models, dict) or not {"teacher", "stage1"} <= models.keys():
        raise RecipeError(f"{path} is not stage 8's: {REMEDY}")
    for model, summary in models.items():
        problem = summary_problem(summary, model)
        if problem:
            raise RecipeError(f"{path}, {model}: {problem}: {REMEDY}")
        if not isinstance(summary.get("training", {}), dict):
            raise RecipeError(f"{path} describes no training of {model}: {REMEDY}")
    return run


def count_seeds(runs):
    return f"{len(runs)} seed{'s' * (len(runs) > 1)}"


def differing_words(runs):
    """What some of the runs' commands say and others do not, but for the seed and the folders: an empty list, if they are runs
    that differ in nothing else. Some other wording of the same settings is told too."""
    said = [{word for word in re.findall(r"--[a-z-]+(?: (?!--)[^ =]+(?= |$))?|\S+=\S+", run["command"])
             if not re.match(r"--(exp|data|corpus-dir)\b|training\.seed=", word)} for run in runs]
    return sorted(set.union(*said) - set.intersection(*said))


def describe_runs(runs):
    """The title and what each run was, in Markdown."""
    lines = []
    for number, run in enumerate(runs, start=1):
        software = run["software"]
        try:
            lines.append(f"- `{run['command']}`, with `{run['config']}`: {run['date']}, {name_processor(run['machine'])}; "
                         f"torch {', '.join(software['torch'])}, RNN-T {', '.join(software['rnnt_backend'])}, on "
                         f"{', '.join(software['device'])}\n")
        except (KeyError, TypeError):
            raise RecipeError(f"what run {number} says of its machine and software is not stage 8's: {REMEDY}") from None
    return (f"# {runs[0]['recipe']} from {count_seeds(runs)}\n\nWritten by `local/seeds.py` from the files of these runs of "
            f"the recipe:\n\n{''.join(lines)}\n")


def main():
    args = get_args()
    runs = [read_run(path) for path in args.runs]
    for path, run in zip(args.runs, runs):
        for key in ("recipe", "config"):
            if run[key] != runs[0][key]:
                raise RecipeError(f"{path} is a run of the {key} {run[key]}, {args.runs[0]} of {runs[0][key]}: seeds "
                                  "are pooled of runs that differ in nothing else")
    pooled = pool_seeds([run["models"] for run in runs])
    header, rows = seeds_table(pooled)
    differences = seed_differences_table(pooled)
    rates = rate_names(pooled["teacher"]["test_sets"])
    notes = [f"{count_seeds(runs)}. {rates} in per cent over all of them, its standard deviation between them, and each "
             "one's; p: two-sided, of a paired bootstrap over "
             f"{drawn_over(pooled['teacher']['test_sets'])} with the errors of all seeds added up, so of these trained "
             "models: how much seeds differ stands in the column sd.",
             "p models is that p; p seeds, two-sided too, is that of Student's t of the seeds' differences: whether models "
             "from other seeds would differ in the same way. With few seeds it is small only where they all agree; none "
             "stands where all differences are the same."]
    differing = differing_words(runs)
    if differing:
        notes.append("These runs differ in more than the seed: not all of them have "
                     f"{', '.join(f'`{word}`' for word in differing)}.")
    print(plain_table(header, rows) + "\n" + plain_table(*differences) + "\n".join(notes))
    if args.output:
        write_text(args.output, describe_runs(runs) + markdown_table(header, rows)
                   + f"\nThe last stage beside the others, in points of {rates}, over all seeds and in each:\n\n"
                   + markdown_table(*differences) + "\n" + "".join(f"- {note}\n" for note in notes))
        print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
