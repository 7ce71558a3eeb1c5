"""tools/bench_training.py on tiny models: what it prints adds up, and what is wrong is one line."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml
from made_up_speech import make_speech
from scripts import refused, run_script

from kdlib.config import FbankConfig

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "bench_training.py"
TEACHER = {
    "model": dict(subsampling_channels=4, encoder_dim=32, num_layers=3, num_heads=2, head_dim=8, feedforward_dim=64,
                  kernel_size=5, predictor_dim=16, joiner_dim=16),
    "data": dict(max_duration=10, num_buckets=2, num_workers=0, noise_probability=0.5),
    "optim": dict(learning_rate=1e-3), "training": dict(num_epochs=3)}
PROGRESSIVE = {
    "target_compression": 20,
    "stages": [{"model": {"feedforward_dim": 48}}, {"model": {"num_layers": 2, "feedforward_dim": 32}}],
    "student": {"loss": {"distill": [{"name": "encoder_mse", "weight": 0.1}]},
                "training": {"num_epochs": 2}}}


@pytest.fixture
def recipe(tmp_path) -> Path:
    conf = tmp_path / "recipe" / "conf"
    conf.mkdir(parents=True)
    for name, content in (("teacher", TEACHER), ("progressive", PROGRESSIVE), ("lang", {"type": "bpe", "vocab_size": 60}),
                          ("fbank", {"speed_factors": [0.8]})):
        (conf / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return conf.parent


def bench(recipe: Path, *options: str):
    return run_script(SCRIPT, "--recipe", recipe, "--seconds", "0:0.4 100:1.6", "--updates", "3", "--warm-up", "1", *options)


def bench_with(folder: Path, change: str, recipe: Path, *options: str):
    """The same where ``change`` has been done to ``bench``, the tool as a module."""
    script = folder / "bench_with.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport bench_training as bench\n"
                      f"{textwrap.dedent(change)}\nif __name__ == '__main__':\n    bench.run_main(bench.main)\n")
    return run_script(script, "--recipe", recipe, "--seconds", "0:0.4 100:1.6", *options)


# Models of a gigabyte that take no time.
MEASURE_NOTHING = """
    def measure(args, name, *rest):
        if name == FAILS:
            raise MemoryError("no more of it")
        return {"memory": 1, "audio": 1.0, "updates": 1.0, "batch": 1.0, "state": 10 ** 9, "bad": 0}
    bench.measure, FAILS = measure, ""
"""


def rows(text: str):
    """The table by its first column."""
    lines = [[cell.strip().replace(",", "") for cell in line.strip("|\n").split("|")] for line in text.splitlines()
             if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}


def test_the_cost_of_a_run_follows_from_what_was_measured(recipe, tmp_path):
    done = bench(recipe, "--hours", "1000", "--world-size", "1", "--output", str(tmp_path / "table.md"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "table.md").read_text()
    assert text == done.stdout[:-1]
    table = rows(text)
    assert list(table) == ["teacher", "stage1", "stage2", "scratch", "scratch-matched", "single", "single-matched",
                           "together"]
    for name, row in table.items():
        if name == "together":
            continue
        speed, batch = float(row["s of audio / s"]), float(row["s in a batch"])
        assert speed > 0 and 0.05 < float(row["GiB"]) < 50 and batch <= 11
        rounded = 0.01 + 0.05 / speed  # the speed is printed to a tenth, the batch to a second
        assert float(row["updates / s"]) * batch == pytest.approx(speed, rel=0.1 + rounded)
        assert float(row["hours"]) == pytest.approx(float(row["h of audio"]) / speed, abs=0.1, rel=rounded)
    # An epoch is once through the corpus at both speeds.
    for name, epochs in (("teacher", 3), ("stage1", 2), ("scratch", 3), ("scratch-matched", 7), ("single-matched", 4)):
        assert table[name]["epochs"] == str(epochs)
        assert float(table[name]["h of audio"]) == pytest.approx(epochs * 1000 * (1 + 1 / 0.8))
    for name in ("scratch", "single"):
        assert table[f"{name}-matched"]["s of audio / s"] == table[name]["s of audio / s"]
    assert int(table["teacher"]["Params"]) > int(table["stage1"]["Params"]) > int(table["stage2"]["Params"])
    assert float(table["together"]["hours"]) == pytest.approx(
        sum(float(row["hours"]) for name, row in table.items() if name != "together"), abs=0.4)
    each, whole = map(float, re.search(r"Features: ([\d.]+) MB an hour, ([\d.]+) GB for 2,250 h", text).groups())
    assert 5 < each < 100 and whole == pytest.approx(2250 * each / 1000, rel=0.01)
    assert re.search(r"Cuts: [\d,]+ bytes each", text) and re.search(r"Checkpoints: [\d.]+ GB", text)


def test_processes_share_the_batches(recipe, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine may have one GPU
    (recipe / "conf" / "longer").mkdir()
    longer = {**PROGRESSIVE, "student": {**PROGRESSIVE["student"], "training": {"num_epochs": 3}}}
    (recipe / "conf" / "longer" / "progressive.yaml").write_text(yaml.safe_dump(longer))
    done = bench(recipe, "--settings", "longer", "--models", "stage1", "--world-size", "2", "data.max_duration=6", "training.updates_per_epoch=90",
                 "data.curriculum.updates=400", "training.micro_batches=2", "training.precision=bfloat16")
    assert done.returncode == 0, done.stderr
    assert list(rows(done.stdout)) == ["stage1", "together"] and "2 processes" in done.stdout
    assert "--settings longer --hours 960 data.max_duration=6" in done.stdout and float(rows(done.stdout)["stage1"]["s in a batch"]) <= 7
    stage = rows(done.stdout)["stage1"]  # an epoch is so many updates, and so is the curriculum
    assert float(stage["h of audio"]) == pytest.approx((3 * 90 + 400) * float(stage["s in a batch"]) / 3600, rel=0.1, abs=0.06)


def test_updates_wait_for_what_they_train_on(recipe, tmp_path):
    """Not for what was read while the first of them compiled its kernels: one process that reads for 0.3 s gives no more than
    3.3 batches a second; one may be ready."""
    done = bench_with(tmp_path, """
        import time
        from kdlib.data import TransducerDataset

        def slow(self, planned, read=TransducerDataset.__getitem__):
            time.sleep(0.3)
            return read(self, planned)

        def update(self, shares, usual=bench.TimedTrainer._update):
            if not self.marks:
                time.sleep(3)
            return usual(self, shares)
        TransducerDataset.__getitem__, bench.TimedTrainer._update = slow, update
        """, recipe, "--models", "teacher", "--world-size", "1", "--updates", "7", "data.num_workers=1")
    assert done.returncode == 0, done.stderr
    assert 0 < float(rows(done.stdout)["teacher"]["updates / s"]) < 1.25 / 0.3


@pytest.mark.parametrize("workers, options, after, warned", [
    ("0", [], 5, False), ("12", [], 13, False), ("4", ["--warm-up", "4"], 4, True), ("3", ["--warm-up", "4"], 4, False)])
def test_the_warm_up_is_longer_than_what_is_read_ahead(recipe, tmp_path, workers, options, after, warned):
    done = bench_with(tmp_path, MEASURE_NOTHING, recipe, *options, f"data.num_workers={workers}")
    assert done.returncode == 0 and f"20 updates of each model after {after};" in done.stdout
    assert (f"--warm-up {after}: up to {workers} batches" in done.stderr) == warned


def test_a_model_that_fails_leaves_the_others_their_table(recipe, tmp_path):
    done = bench_with(tmp_path, MEASURE_NOTHING + "    FAILS = 'stage1'", recipe, "--output", str(tmp_path / "table.md"))
    assert list(rows(done.stdout)) == ["teacher", "stage2", "scratch", "scratch-matched", "single", "single-matched",
                                       "together"]
    assert "\nWithout stage1, which failed.\n" in (tmp_path / "table.md").read_text()
    assert "error: stage1: out of memory (no more of it)" in done.stderr
    assert refused(done) == "error: stage1 could not be measured, for the reasons above"
    done = bench_with(tmp_path, MEASURE_NOTHING + "    FAILS = 'stage1'", recipe, "--models", "stage1")
    assert refused(done) and not done.stdout


def test_settings_may_follow_the_models_and_a_wrong_model_costs_no_measurement(recipe, tmp_path):
    done = bench_with(tmp_path, MEASURE_NOTHING, recipe, "--models", "teacher", "nonsense")
    assert refused(done).startswith("error: --models nonsense: the recipe has") and "of audio a second" not in done.stderr
    done = bench_with(tmp_path, MEASURE_NOTHING, recipe, "--models", "teacher", "teacher", "data.num_workers=1")
    assert list(rows(done.stdout)) == ["teacher", "together"] and "--hours 960 data.num_workers=1" in done.stdout


@pytest.mark.parametrize("name", ["scratch-matched", "Teacher", "stage", "stage0", "stage1x"])
def test_what_is_the_name_of_no_model_costs_no_speech_either(recipe, tmp_path, name):
    done = bench_with(tmp_path, """
        def make_speech(*_):
            raise AssertionError("speech is made")
        bench.make_speech = make_speech
        """, recipe, "--models", "teacher", name, "data.num_workers=1")
    assert refused(done) == f"error: --models {name}: the recipe has teacher, stage1, ..., scratch, single"


def test_checkpoints_are_of_all_epochs_and_what_resuming_needs(recipe, tmp_path):
    done = bench_with(tmp_path, MEASURE_NOTHING, recipe, "--models", "teacher")
    assert "Checkpoints: 10.00 GB, of all epochs and what resuming needs." in done.stdout  # 3 epochs of two, and four


def test_more_processes_than_gpus(recipe, tmp_path):
    done = bench_with(tmp_path, """
        import torch
        torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
        torch.cuda.get_device_capability = lambda *_: (9, 0)
        """, recipe, "--world-size", "4", "--models", "teacher")
    assert refused(done).startswith("error: --world-size 4: there are 1 GPUs")


def test_cuts_are_weighed_at_all_speeds(tmp_path):
    """Those at other speeds hold how they are made."""
    weights = []
    for factors in ([], [0.9, 1.1]):
        folder = tmp_path / str(len(factors))
        folder.mkdir()
        weights.append(make_speech(folder, FbankConfig(speed_factors=factors), 60, 1.0, "0:0.3 100:0.6", 4.4).bytes_per_cut)
    assert 1.03 * weights[0] < weights[1] < 1.3 * weights[0]


def test_tokens_that_are_characters_are_as_many_as_the_corpus_has(recipe, tmp_path):
    (recipe / "conf" / "lang.yaml").write_text("type: char\n")
    assert refused(bench_with(tmp_path, MEASURE_NOTHING, recipe)).startswith("error: --vocab-size is wanted")
    few, many = (rows(bench_with(tmp_path, MEASURE_NOTHING, recipe, "--models", "teacher", "--vocab-size", count).stdout)
                 for count in ("60", "90"))
    assert int(few["teacher"]["Params"]) < int(many["teacher"]["Params"])


@pytest.mark.parametrize("options, said", [
    (["--seconds", "short"], "--seconds 'short' is not understood"),
    (["--seconds", "0:3 100:2"], "must rise from 0 to 100 per cent"),
    (["--seconds", "0:nan 100:2"], "to a finite number"),
    (["--seconds", "0:1 100:inf"], "to a finite number"),
    (["--seconds", "0:0.05 100:0.1"], "training leaves out utterances shorter than 0.2 s"),
    (["--seconds", "0:25 100:40"], "training leaves out utterances longer than 30 s"),
    (["model.num_features=40"], "model.num_features is 40, and "),
    (["--models", "stage7"], "--models stage7: the recipe has teacher, stage1, stage2, scratch, single"),
    (["--updates", "0"], "--updates 0 is not positive"),
    (["model.layers=3"], "key 'model.layers'"),
    (["--recipe", "/nowhere"], "/nowhere is no recipe"),
    (["--settings", "none"], "--settings none: there is no folder")])
def test_what_is_wrong_is_one_line(recipe, options, said):
    done = bench(recipe, *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and said in done.stderr
