"""Options on the command line: numbers that cannot be, one line each before anything is read; settings among them."""

from pathlib import Path

import pytest
from scripts import refused, run_script

from kdlib.corpus_parts import prepare_parts
from kdlib.errors import RecipeError
from kdlib.options import require_not_negative, require_positive

ROOT = Path(__file__).resolve().parents[1]


def test_what_may_be():
    require_positive(hours=0.1, test_words=10**400, jobs=None)
    require_not_negative(hours=0, jobs=None)


@pytest.mark.parametrize("value, said", [(0, "0 is not positive"), (-1.5, "-1.5 is not positive"),
                                         (float("nan"), "nan is not positive"), (float("inf"), "inf is not finite")])
def test_what_cannot_be_positive(value, said):
    with pytest.raises(RecipeError, match=f"--test-words {said}"):
        require_positive(jobs=1, test_words=value)


@pytest.mark.parametrize("value, said", [(-1, "-1 is not 0 or more"), (float("nan"), "nan is not 0 or more"),
                                         (float("inf"), "inf is not finite")])
def test_what_cannot_be_an_amount(value, said):
    with pytest.raises(RecipeError, match=f"--hours {said}"):
        require_not_negative(hours=value)


@pytest.mark.parametrize("given, said", [({"hours": float("nan")}, "--hours nan"), ({"hours": -1}, "--hours -1"),
                                         ({"jobs": 0}, "--jobs 0")])
def test_stage_1_of_a_recipe_that_was_written(tmp_path, given, said):
    with pytest.raises(RecipeError, match=said):
        prepare_parts(tmp_path, tmp_path / "manifests", {"train": ["all"]}, {}, 16000, **given)


@pytest.mark.parametrize("command, said", [
    ("local/prepare_features.py --manifests none --output none --config none --jobs 0", "--jobs 0"),
    ("local/import_corpus.py --csv none --output none --jobs -1", "--jobs -1"),
    ("tools/new_recipe.py --name mine --csv none --jobs 0", "--jobs 0"),
    ("egs/aishell/local/prepare_manifests.py --test-hours inf", "--test-hours inf"),
    ("egs/fsdd/local/prepare_manifests.py --seed -1", "--seed -1"),
    ("egs/librispeech/local/prepare_manifests.py --train-parts a --dev-parts b --test-sets c --jobs 0", "--jobs 0"),
    ("egs/voice_commands/local/prepare_manifests.py --jobs 0", "--jobs 0"),
    ("tools/bench_rnnt.py --threads 0", "--threads 0"), ("tools/bench_rnnt.py --repeats -1", "--repeats -1")])
def test_scripts_say_so_in_one_line(tmp_path, command, said):
    script, *words = command.split()
    done = run_script(ROOT / script, *words, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {said} is not ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [
    "local/ablation.py --do plan SETTING --config none --exp none",
    "local/decode.py --exp none --fbank none SETTING --lang none --config none --test-sets test",
    "local/export_onnx.py --exp none --lang none SETTING --fbank-config none --output none",
    "local/nbest.py --exp none --cuts none SETTING --lang none --config none --output none",
    "local/plan.py --config none SETTING --teacher-config none --lang none",
    "local/prepare_features.py --manifests none SETTING --output none --config none",
    "local/prepare_lang.py --cuts none SETTING --config none --output none",
    "local/streaming_decode.py --exp none --fbank none SETTING --lang none --config none --test-sets test --carry-labels",
    "local/train.py --config none --fbank none SETTING --lang none --exp none",
    "tools/bench_training.py --recipe none SETTING --hours 1"])
def test_settings_may_stand_before_between_and_after_options(tmp_path, command):
    """The script reads on, to the first file that is not there."""
    script, *words = command.replace("SETTING", "a=1 b=2").split()
    done = run_script(ROOT / script, "c=3", *words, "d=4", cwd=tmp_path)
    assert "none" in refused(done) and done.stderr.count("\n") == 1


def test_settings_are_heeded_wherever_they_stand(tmp_path):
    (tmp_path / "lang.yaml").write_text("type: char\n")
    options = ["--cuts", "none", "--config", "lang.yaml", "--output", "none"]
    for place in (0, 2, 4, 6):  # the one is refused beside the other
        words = ["type=bpe", *options[:place], "vocab_size=3", *options[place:]]
        assert "lang.vocab_size is 3" in refused(run_script(ROOT / "local" / "prepare_lang.py", *words, cwd=tmp_path))


@pytest.mark.parametrize("words, said", [
    (["--config=none", "--fbank=none", "--lang=none", "a=1", "--exp=none", "b=2", "--bad"], "unrecognized arguments: --bad"),
    (["a=1", "--exp", "none", "b=2"], "the following arguments are required: --config, --fbank, --lang")])
def test_what_options_cannot_be_is_said_of_them_alone(tmp_path, words, said):
    done = run_script(ROOT / "local" / "train.py", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == f"train.py: error: {said}"
