"""Stage 3 on transcripts that the vocabulary does not fit: which utterances, and what to change."""

from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from scripts import refused, run_script

from kdlib.config import LangConfig
from kdlib.lang import Lang, train_lang

SCRIPT = Path(__file__).resolve().parents[1] / "local" / "prepare_lang.py"
TEXTS = {"u-1": "THE CAT SAT", "u-2": "THE MAT Ö", "u-3": "A CAT", "u-4": "THE ★ SAT"}


@pytest.fixture
def cuts(tmp_path) -> Path:
    path = tmp_path / "cuts_train.jsonl.gz"
    CutSet.from_cuts(MonoCut(id=name, start=0, duration=1, channel=0, supervisions=[
        SupervisionSegment(id=name, recording_id=name, start=0, duration=1, text=text)])
        for name, text in TEXTS.items()).to_file(path)
    return path


def prepare(cuts: Path, *options, **settings):
    config = cuts.parent / "lang.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    return run_script(SCRIPT, "--cuts", cuts, "--config", config, "--output", cuts.parent / "lang", *options)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_more_characters_than_the_vocabulary_holds(cuts, kind):
    characters = len(set("".join(TEXTS.values())) - {" "})
    line = refused(prepare(cuts, type=kind, vocab_size=characters + 3))
    assert f"{cuts}: the transcripts hold {characters} different characters" in line
    assert f"give lang.vocab_size={characters + 4} or more" in line
    assert "'Ö' (1 times, first in u-2)" in line and "'★' (1 times, first in u-4)" in line
    assert not (cuts.parent / "lang" / "tokens.txt").exists()
    done = prepare(cuts, type=kind, vocab_size=characters + 4)  # as it said
    assert done.returncode == 0, done.stderr
    assert len(Lang(cuts.parent / "lang")) == characters + 4


def test_a_vocabulary_that_the_text_cannot_fill(cuts):
    line = refused(prepare(cuts, type="bpe", vocab_size=500))
    most = int(line.partition("no more than ")[2].split()[0])
    assert f"give lang.vocab_size={most} or less" in line
    assert prepare(cuts, type="bpe", vocab_size=most).returncode == 0


def test_the_tokens_of_another_run_are_taken(cuts, tmp_path):
    other = train_lang(["THE CAT SAT ON A MAT"], LangConfig(type="char"), tmp_path / "other")
    done = prepare(cuts, "--take", tmp_path / "other", type="bpe", vocab_size=500)
    assert done.returncode == 0, done.stderr
    assert Lang(cuts.parent / "lang").tokens == other.tokens
    characters = sum(map(len, TEXTS.values()))
    assert f"{cuts}: 2 of {characters} characters are in none of the tokens and become <unk>" in done.stdout
    (tmp_path / "other" / "bpe.model").unlink()
    line = refused(prepare(cuts, "--take", tmp_path / "other", type="bpe", vocab_size=500))
    assert "bpe.model is missing: give the folder that stage 3 of the teacher's recipe made" in line


def test_a_proposed_vocabulary_shrinks_to_what_the_text_fills(cuts):
    done = prepare(cuts, "--proposed", "500", type="bpe", vocab_size=500)
    assert done.returncode == 0, done.stderr
    most = len(Lang(cuts.parent / "lang"))
    assert f"no more than {most} bpe tokens, of the 500 that were proposed" in done.stdout
    assert f"give lang.vocab_size={most} or less" in refused(prepare(cuts, "--proposed", "500", type="bpe", vocab_size=501))
    line = refused(prepare(cuts, "--proposed", "500", "--", "vocab_size=600", type="bpe", vocab_size=500))
    assert "600 asks for: give" in line


def test_of_characters_there_are_as_many_as_there_are(cuts):
    assert prepare(cuts, type="char", vocab_size=4).returncode == 0
    assert set("".join(TEXTS.values())) - {" "} <= set(Lang(cuts.parent / "lang").tokens)
