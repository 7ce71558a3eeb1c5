"""The recipes from their first stage to their table, at --smoke size, as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdlib.cuts import load_cuts

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["teacher", "stage1", "stage2", "stage3", "scratch", "scratch-matched", "single", "single-matched"]


def run(recipe: str, folder: Path, *options: str, code: int = 0) -> str:
    """Run the recipe's run.sh with this Python's environment active; return what it printed."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [ROOT / "egs" / recipe / "run.sh", "--smoke", "--data", folder / "data", "--exp", folder / "exp", *options]
    done = subprocess.run([str(word) for word in command], env=env, cwd=folder, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == code, done.stdout[-3000:]
    return done.stdout


def check_results(folder: Path, test_sets, backend: str) -> None:
    results = json.loads((folder / "exp" / "results" / "results.json").read_text())
    rows = {model["model"]: model for model in results["rows"]}
    assert list(rows) == MODELS
    for name, row in rows.items():
        summary = json.loads((folder / "exp" / name / "decode" / "summary.json").read_text())
        assert list(row["test_sets"]) == test_sets
        for test_set in test_sets:
            wer = summary["test_sets"][test_set]["wer"]
            assert row["test_sets"][test_set]["wer"] == wer
            written = next((folder / "exp" / name / "decode").glob(f"errs-{test_set}-*.txt")).read_text()
            assert float(re.match(r"%WER = ([\d.]+)", written).group(1)) == pytest.approx(wer, abs=0.006)
        assert json.loads((folder / "exp" / name / "done.json").read_text())["rnnt_backend"] == backend
    assert rows["stage3"]["parameters"] <= 0.4 * rows["teacher"]["parameters"]
    assert rows["scratch"]["parameters"] == rows["single"]["parameters"] == rows["stage3"]["parameters"]
    stages = sum(rows[f"stage{k}"]["updates"] for k in (1, 2, 3))
    assert rows["single-matched"]["updates"] == pytest.approx(stages, rel=0.02)
    assert rows["scratch"]["updates"] == pytest.approx(rows["teacher"]["updates"], rel=0.02)
    assert rows["scratch-matched"]["updates"] == pytest.approx(rows["teacher"]["updates"] + stages, rel=0.02)
    table = (folder / "exp" / "RESULTS.md").read_text()
    assert all(f"| {name} " in table for name in MODELS) and "## Latency" in table
    aligned = list(load_cuts(folder / "exp" / "teacher" / "align" / f"cuts_{test_sets[0]}.jsonl.gz"))
    assert len(aligned) == len(load_cuts(folder / "data" / "fbank" / f"cuts_{test_sets[0]}.jsonl.gz"))
    for cut in aligned:
        words = cut.supervisions[0].alignment["word"]
        assert [item.symbol for item in words] == cut.supervisions[0].text.split()
        assert 0 <= words[0].start and words[-1].end <= cut.duration + 0.04
        assert all(a.end <= b.end for a, b in zip(words, words[1:]))
    assert (folder / "exp" / "results" / "wer_vs_size.png").stat().st_size > 5000
    for name in ("teacher", "stage3"):  # by sherpa-onnx, from the exported files alone
        for decoded in ("decode", "decode-int8"):
            exported = json.loads((folder / "exp" / "export" / name / decoded / "summary.json").read_text())
            assert list(exported["test_sets"]) == test_sets and exported["parameters"] == rows[name]["parameters"]
    exports = json.loads((folder / "exp" / "results" / "results.json").read_text())["exports"]
    assert [(row["model"], row["files"]) for row in exports] == [
        (name, files) for name in ("teacher", "stage3") for files in ("float32", "int8")]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice_commands")
    return folder, run("voice_commands", folder)


@pytest.mark.slow
def test_voice_commands_from_nothing_to_the_table(commands):
    folder, output = commands
    check_results(folder, ["test-clean", "test-other"], "native")
    assert "single-matched" in output  # the table is printed
    for stage in range(10):
        assert f"== stage {stage}:" in output


@pytest.mark.slow
def test_a_second_run_does_nothing_again(commands):
    folder, _ = commands
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    run("voice_commands", folder)
    changed = [path for path in before if not path.exists() or path.stat().st_mtime_ns != before[path]]
    assert [path for path in changed if ".stamps" not in path.parts] == []


@pytest.mark.slow
def test_a_model_of_other_tokens_is_refused(commands):
    folder, _ = commands
    output = run("voice_commands", folder, "--stage", "3", "--stop-stage", "3", "lang.vocab_size=90")
    assert "90 tokens" in output
    output = run("voice_commands", folder, "--stage", "5", "--stop-stage", "5", code=1)
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "was trained with other tokens" in error[0]
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("FSDD_DIR"), reason="FSDD_DIR does not name a copy of the Free Spoken Digit Dataset")
def test_fsdd_from_nothing_to_the_table(tmp_path):
    run("fsdd", tmp_path, "--corpus-dir", os.environ["FSDD_DIR"])
    check_results(tmp_path, ["test", "test-unseen"], "native")


@pytest.mark.k2
def test_voice_commands_trains_with_the_real_k2(tmp_path):
    run("voice_commands", tmp_path)
    check_results(tmp_path, ["test-clean", "test-other"], "k2")
