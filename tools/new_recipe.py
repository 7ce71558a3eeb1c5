#!/usr/bin/env python3
"""Write a recipe for your own corpus: check the corpus, say what is in it, propose settings, write egs/NAME.

docs/adapt.md shows it at work.
"""

import environment  # noqa: F401  first, since the rest needs what it finds

import argparse
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Dict

from kdlib.corpus_forms import add_corpus_options, chosen_corpus, read_corpus
from kdlib.corpus_parts import (check_apart, check_trainable, checked_role, describe_holding, describe_roles,
                                held_out_shares, hold_out, part_roles, trainable)
from kdlib.cuts import require_enough
from kdlib.errors import RecipeError, run_main
from kdlib.manifests import Skipped
from kdlib.options import require_positive
from kdlib.processes import usable_cores
from kdlib.proposal import Proposal, propose, propose_rate
from kdlib.survey import Speech, describe_survey, seconds_of_rates

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "egs"
TEMPLATE = ROOT / "tools" / "recipe_template"
# How run.sh runs stage 0. The audio that a table, Kaldi or manifests name may stand anywhere, so that a stamp cannot tell
# when a file is mended: it is looked at each time. What Lhotse prepares stands in one folder, and may take long to prepare.
_EACH_TIME = '''# No `step`: audio that was mended since is seen each time; what it does not change stays as it is.
  "$PYTHON" "$scripts/import_corpus.py"'''
_ONCE = '''local watched=()
  if [[ -e $source ]]; then watched=(--conf "$source"); fi
  step corpus "${watched[@]}" --makes "$data/corpus/*" -- \\
    python "$scripts/import_corpus.py"'''


def get_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the recipe: its folder in egs/")
    add_corpus_options(parser)
    parser.add_argument("--output", type=Path, default=TARGET, help="where the recipe's folder goes (egs)")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes that decode audio (all cores)")
    return parser.parse_args()


def settings(p: Proposal) -> Dict[str, object]:
    """What stands between @ signs in the files of conf/."""
    # As those of egs/fsdd: masks and gains late or never, students that learn faster than their teacher.
    small = p.updates < 20000
    student_updates = p.updates * p.student_epochs / p.epochs
    # The most updates that the learning rate, the pruned loss and the CTC in the beginning take: wide models rise slowly.
    rise, warm, first = (10000, 6000, 2000) if p.model.encoder_dim >= 512 else (2000, 2000, 1000)
    large = p.model.encoder_dim >= 192  # than those of egs/fsdd: as those of egs/librispeech, whose masks are of 80 filters
    wide = round(27 * p.num_filters / 80)
    masks = (f"{{time_warp: 80, feature_mask_size: {wide}, num_frame_masks: 10, frame_mask_size: 100}}" if large else
             "{enabled: true}")
    return {
        "sampling_rate": p.sampling_rate, "num_filters": p.num_filters, "speed_factors": list(p.speed_factors),
        "lang_type": p.lang_type, "vocab_size": p.vocab_size, "parameters": f"{p.parameters / 1e6:.1f}",
        **{name: getattr(p.model, name) for name in ("subsampling_channels", "encoder_dim", "num_layers", "num_heads",
                                                     "head_dim", "feedforward_dim", "kernel_size", "context_size")},
        "batch_seconds": f"{p.batch_seconds:g}", "epochs": p.epochs, "student_epochs": p.student_epochs,
        "learning_rate": p.learning_rate, "student_learning_rate": round(p.learning_rate * (5 / 3 if small else 1), 5),
        "num_buckets": 30 if large else 10, "num_workers": 4 if large else 1, "ema_decay": 0.999 if large else 0.99,
        "avg": p.epochs // 4 if large else 1, "student_avg": max(1, p.student_epochs // 4) if large else 1,
        "masks": "{start: 0.75}" if small else masks,
        "gain": "{range: [-20, 10], start: 0.5}" if small else "{range: [-20, 10]}",
        "student_masks": "{enabled: false}" if small else masks,
        # Of the updates, the parts that egs/fsdd gives them, up to those of the larger recipes.
        "loss_warmup": min(warm, max(1, round(0.08 * p.updates))), "ctc_first": min(first, max(1, round(0.04 * p.updates))),
        "optim_warmup": min(rise, max(1, round(0.03 * p.updates))),
        "student_warmup": min(2000, max(1, round(0.05 * student_updates)))}


def write_recipe(folder: Path, values: Dict[str, object]) -> int:
    """Fill the template into ``folder``, which appears whole or not at all; return its lines."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    lines = 0
    try:
        for path in sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            text = re.sub("@([a-z_]+)@", lambda match: str(values[match[1]]), path.read_text(encoding="utf-8"))
            target = temporary / path.relative_to(TEMPLATE)
            target.parent.mkdir(exist_ok=True)
            target.write_text(text, encoding="utf-8")
            lines += text.count("\n")
        (temporary / "run.sh").chmod(0o755)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except FileExistsError:
        raise RecipeError(f"{os.path.relpath(folder)} exists: choose another --name, or remove it") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return lines


def check_output(folder: Path) -> None:
    """See that a recipe can be written to ``folder``, and that its run.sh would find the stages that all recipes share."""
    house = folder.resolve().parent
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--output {folder} is no folder: give that of the recipes, or leave the option out, which takes "
                          f"{os.path.relpath(TARGET)}")
    for name in ("local/recipe.sh", "tools/activate.sh"):
        if not (house / name).is_file():
            raise RecipeError(f"--output {folder}: a recipe there would not run, since its run.sh needs {house / name}, which "
                              f"is missing: leave the option out, which takes {os.path.relpath(TARGET)}, or give a folder "
                              "beside local/ and tools/ of a checkout")
    if not os.access(folder if folder.exists() else house, os.W_OK | os.X_OK):
        raise RecipeError(f"--output {folder}: nothing can be written there: give a folder beside local/ and tools/ of a "
                          "checkout of your own")


def main():
    args = get_args()
    require_positive(jobs=args.jobs)
    folder = args.output / args.name
    shown = os.path.relpath(folder)
    if not re.fullmatch("[a-z0-9][a-z0-9_-]{0,63}", args.name):
        raise RecipeError(f"--name {args.name}: use small letters, digits, - and _, 64 of them at most")
    if folder.exists():
        raise RecipeError(f"{shown} exists and is not overwritten: choose another --name, or remove it")
    check_output(args.output)
    (form, source), skipped = chosen_corpus(args), Skipped()
    where = f"{source} in {args.corpus_dir}" if form == "lhotse" else source
    parts = read_corpus(form, source, skipped, args.corpus_dir, args.jobs)
    roles = part_roles(parts)
    if "train" not in roles:
        raise RecipeError(f"{source} has no part to train on, but {', '.join(parts)}: rename one, or leave the parts out")
    for line in describe_roles(list(parts), roles):
        print(line)
    check_apart(parts, roles)
    found = seconds_of_rates(recording for recordings, _ in parts.values() for recording in recordings)
    if not found:
        skipped.report(where)
        remedy = "see what was skipped above"
        if skipped.reasons and all(reason.endswith(" is missing") for reason in skipped.reasons):
            remedy = ("all files that it names are missing. Relative paths in it start from "
                      f"{source if form == 'kaldi' else Path(source).parent} or a folder above: write the paths as they are, "
                      "with clips/ or .wav where those are left out, or give a corpus that Lhotse knows by --lhotse")
        raise RecipeError(f"{source} has no recording that can be used: {remedy}")
    rate = propose_rate(found)
    cuts = {role: checked_role(parts, names, rate, skipped, jobs=args.jobs) for role, names in roles.items()}
    skipped.report(where)
    for role, names in roles.items():
        if not cuts[role]:
            raise RecipeError(f"{source} has no utterance that can be used in {', '.join(names)}, which makes {role}: mend "
                              "what was skipped above, or leave the part out")
    for role in ("train", "dev"):
        check_trainable(cuts.get(role, []), role, str(source))
    tests = [role for role in roles if role not in ("train", "dev")]
    shares = held_out_shares(Speech.of(trainable(cuts["train"])).hours,
                             (("dev",) if "dev" not in roles else ()) + (("test",) if not tests else ()))
    if shares:
        apart = Skipped()
        dealt, by = hold_out(cuts["train"], shares, apart)
        apart.report(f"{where}, held out of train")
        cuts.update(dealt)
        print(describe_holding(shares, by, cuts["train"]))
    print(*describe_survey(parts.values(), cuts), "", sep="\n")
    require_enough(trainable(cuts["train"]))
    proposal = propose(Speech.of(trainable(cuts["train"])).hours, [cut.supervisions[0].text for cut in cuts["train"]], found)
    print(*proposal.reasons, sep="\n")
    corpus = args.corpus_dir if form == "lhotse" else Path(source)
    option = "csv" if form == "csv" else "corpus-dir"  # not the form's name: $manifests is recipe.sh's
    lines = write_recipe(folder, {
        **settings(proposal), "name": args.name, "test_sets": " ".join(tests or ["test"]), "option": option,
        "variable": option.replace("-", "_"), "source": shlex.quote(os.path.abspath(corpus)),
        "arguments": f'--lhotse {source} --corpus-dir "$source"' if form == "lhotse" else f'--{form} "$source"',
        "import": _ONCE if form == "lhotse" else _EACH_TIME, "parts": roles, "held_out": shares})
    print(f"wrote {shown}: {lines} lines. Next: {shown}/run.sh --smoke, then without --smoke")


if __name__ == "__main__":
    run_main(main)
