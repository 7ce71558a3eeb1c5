"""Numbers on the command line that cannot be: one line that names the option, before anything is read or made."""

from pathlib import Path

import pytest
from scripts import run_script

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
