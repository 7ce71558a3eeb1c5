"""A recipe of the shared stages whose scripts only write files, in a moment each."""

import re
import shutil
import sys
from pathlib import Path

from scripts import run

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """\
import json, pathlib, sys
words = sys.argv[1:]
value = lambda name: pathlib.Path(words[words.index(name) + 1])
write = lambda path, text: (path.parent.mkdir(parents=True, exist_ok=True), path.write_text(text))
"""
SCRIPTS = {  # what each stage leaves behind, and nothing else
    "local/prepare_features.py": """
for cuts in value("--manifests").glob("cuts_*"): write(value("--output") / cuts.name, cuts.read_text())
write(value("--output") / "fbank.json", "")
if "storage=shar" in words: write(value("--output") / "shar_train.json", "")
""",
    "local/prepare_lang.py": """
for name in ("bpe.model", "tokens.txt"): write(value("--output") / name, value("--cuts").read_text())
""",
    "local/train.py": """
write(value("--exp") / "epoch-1.pt", " ".join(words))
write(value("--exp") / "config.yaml", value("--config").read_text())
write(value("--exp") / "done.json", value("--config").read_text())
""",
    "local/take_teacher.py": """
for name in ("epoch-1.pt", "done.json"): write(value("--exp") / name, (value("--from") / name).read_text())
""",
    "local/nbest.py": 'write(value("--output"), value("--cuts").read_text() + (value("--exp") / "done.json").read_text())',
    "local/align.py": """
for name in words[words.index("--test-sets") + 1].split():
    write(value("--output") / f"cuts_{name}.jsonl.gz", (value("--exp") / "done.json").read_text())
""",
    "local/decode.py": 'write(value("--exp") / "decode" / "summary.json", (value("--exp") / "done.json").read_text())',
    "local/plan.py": """
try:
    count = int(value("--config").read_text().partition("#")[0])
except ValueError:
    raise SystemExit("error: no plan can be made of this")
if "--output" not in words: raise SystemExit(print("planned"))
for name in [f"stage{k + 1}" for k in range(count)] + ["scratch", "scratch-matched", "single", "single-matched"]:
    write(value("--output") / f"{name}.yaml", value("--teacher-config").read_text() + " ".join(w for w in words if "=" in w))
write(value("--output") / "plan.json", json.dumps({"stages": count}))
""",
    "local/results.py": """
for name in ("results.json", "summaries.json", "table.md", "wer_vs_size.png"): write(value("--output") / name, "")
write(value("--report"), words[words.index("--command") + 1])
""",
    "local/export_onnx.py": """
for name in ("encoder.onnx", "tokens.txt", "model.json"): write(value("--output") / name, value("--exp").name)
""",
    "local/decode_sherpa.py": """
write(value("--model") / ("decode-int8" if "--int8" in words else "decode") / "summary.json", "")
if "--int8" not in words: write(value("--model") / "test_wavs" / "trans.txt", "")
""",
    "local/ablation.py": """
if "table" in words: write(value("--report"), value("--exp").name)
else: write(value("--exp") / "arms.txt", "one 1\\ntwo 2\\n")
for name in ("one-stage1", "two-stage1", "two-stage2"): write(value("--exp") / "conf" / f"{name}.yaml", name)
""",
    "egs/toy/local/corpus.py": 'write(value("--output"), words[words.index("--size") + 1])',
    "egs/toy/local/manifests.py": """
for part in ("train", "dev", "test", "more"): write(value("--output") / f"cuts_{part}.jsonl.gz", value("--corpus").read_text())
""",
}
RUN_SH = """\
#!/usr/bin/env bash
source "$(dirname "${BASH_SOURCE[0]}")/../../local/recipe.sh"
recipe=toy
test_sets="test"
option size 10 1 "size of the corpus"
path_option corpus-dir "where it is"
flag half "half of it, with smaller models"
settle() {
  if [[ $half ]]; then subset=yes; fi
  if [[ $half && -d conf/tiny ]]; then settings=tiny; fi
}
corpus() {
  step corpus --makes "$data/corpus" -- python local/corpus.py --size "$size" --output "$data/corpus" --at "$corpus_dir"
}
manifests() {
  step manifests --from 0 "$data/corpus" --makes "${manifests[@]}" -- \\
    python local/manifests.py --corpus "$data/corpus" --output "$data/manifests"
}
stage 0 corpus "the corpus"
stage 1 manifests "manifests"
stage 2 prepare_features "features"
stage 3 prepare_tokens "tokens"
stage 4 train_teacher "teacher"
stage 5 decode_teacher "decoding"
stage 6 distil "distillation"
stage 7 train_baselines "baselines"
stage 8 write_results "table"
stage 9 export_models "export"
extra_stage 10 ablate "ablation"
run_recipe "$@"
"""

CHAIN = ["corpus", "manifests", "fbank", "lang", "train-teacher", "align", "decode-teacher", "plan", "train-stage1",
         "decode-stage1", "train-stage2", "decode-stage2", "train-scratch", "decode-scratch", "train-scratch-matched",
         "decode-scratch-matched", "train-single", "decode-single", "train-single-matched", "decode-single-matched", "results",
         "export-teacher", "sherpa-teacher", "sherpa-int8-teacher", "export-stage2", "sherpa-stage2", "sherpa-int8-stage2",
         "results"]


def make_toy(folder):
    """The recipe in an empty folder, as a function: called with options, it returns what ran and what it said."""
    for name, text in SCRIPTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SCRIPT + text)
    for name in ("recipe.sh", "stages.sh", "stage_stamp.py"):
        shutil.copy(ROOT / "local" / name, folder / "local" / name)
    (folder / "tools").mkdir()
    activate = (ROOT / "tools" / "activate.sh").read_text()
    (folder / "tools" / "activate.sh").write_text(f"{activate}\nactivate_environment() {{ PYTHON={sys.executable}; "
                                                 'if (($#)); then echo "asked for $*"; fi; }\n')
    recipe = folder / "egs" / "toy"
    (recipe / "conf").mkdir()
    for name, text in (("fbank.yaml", ""), ("lang.yaml", ""), ("teacher.yaml", "t"), ("decode.yaml", ""),
                       ("progressive.yaml", "2"), ("smoke.conf", "# small\ntraining.num_epochs=1\nlang.vocab_size=9\n")):
        (recipe / "conf" / name).write_text(text)
    (recipe / "run.sh").write_text(RUN_SH)
    (recipe / "run.sh").chmod(0o755)

    def call(*arguments, cwd=recipe):
        result = run(recipe / "run.sh", *arguments, cwd=cwd)
        result.ran = re.findall(r"^\[stage \d+, (\S+)\] python ", result.stdout, re.MULTILINE)
        result.commands = re.findall(r"^\[stage \d+, \S+\] (python .*)", result.stdout, re.MULTILINE)
        return result

    call.folder = recipe
    return call
