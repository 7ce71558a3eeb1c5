#!/usr/bin/env python3
"""One report of the same recipe run from several seeds:

    for seed in 42 43 44; do egs/fsdd/run.sh --exp egs/fsdd/exp-$seed training.seed=$seed; done
    python local/seeds.py egs/fsdd/exp-42 egs/fsdd/exp-43 egs/fsdd/exp-44 --output egs/fsdd/SEEDS.md
"""

import argparse
from pathlib import Path

from results import BASELINES, read_stage_count, read_summary

from kdlib.comparison import drawn_over, rate_names
from kdlib.errors import RecipeError, run_main
from kdlib.files import read_json, write_text
from kdlib.report import markdown_table, name_processor, plain_table
from kdlib.seeds import pool_seeds, seed_differences_table, seeds_table

# With other options it would be another run, whose models are trained anew.
FINISH = "finish that run with the call of run.sh, its options and settings, that it was begun with"


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp", nargs="+", type=Path, help="folders of finished runs, one a seed")
    parser.add_argument("--output", type=Path, help="a file for the report, in Markdown, which is printed in any case")
    return parser.parse_args()


def read_run(exp: Path):
    """The summaries of a run by model, in the order of the table."""
    try:
        models = ("teacher", *(f"stage{k}" for k in range(1, read_stage_count(exp) + 1)), *BASELINES)
        return {model: read_summary(exp, model) for model in models}
    except RecipeError as error:
        raise RecipeError(f"{error}; {FINISH}, or leave it out") from None


def describe_runs(exps):
    """The title and what each run was, in Markdown, from what its stage 8 has written."""
    lines = []
    for exp in exps:
        results = read_json(exp / "results" / "results.json", FINISH)
        try:
            recipe, machine, software = results["recipe"], results["machine"], results["software"]
            lines.append(f"- `{results['command']}`, with `{results['config']}`: {results['date']}, {name_processor(machine)}; "
                         f"torch {', '.join(software['torch'])}, RNN-T {', '.join(software['rnnt_backend'])}, on "
                         f"{', '.join(software['device'])}\n")
        except (KeyError, TypeError):
            raise RecipeError(f"{exp}/results/results.json is not stage 8's: {FINISH}") from None
    return (f"# {recipe} from {len(exps)} seeds\n\nWritten by `local/seeds.py` from the files of these runs of the "
            f"recipe:\n\n{''.join(lines)}\n")


def main():
    args = get_args()
    pooled = pool_seeds([read_run(exp) for exp in args.exp])
    header, rows = seeds_table(pooled)
    differences = seed_differences_table(pooled)
    rates = rate_names(pooled["teacher"]["test_sets"])
    notes = [f"{len(args.exp)} seeds. {rates} in per cent over all of them, its standard deviation between them, and each "
             "one's; p: two-sided, of a paired bootstrap over "
             f"{drawn_over(pooled['teacher']['test_sets'])} with the errors of all seeds added up, so of these trained "
             "models: how much seeds differ stands in the column sd.",
             "p models is that p; p seeds, two-sided too, is that of Student's t of the seeds' differences: whether models "
             "from other seeds would differ in the same way. With few seeds it is small only where they all agree; none "
             "stands where all differences are the same."]
    print(plain_table(header, rows) + "\n" + plain_table(*differences) + "\n".join(notes))
    if args.output:
        write_text(args.output, describe_runs(args.exp) + markdown_table(header, rows)
                   + f"\nThe last stage beside the others, in points of {rates}, over all seeds and in each:\n\n"
                   + markdown_table(*differences) + "\n" + "".join(f"- {note}\n" for note in notes))
        print(f"wrote {args.output}")


if __name__ == "__main__":
    run_main(main)
