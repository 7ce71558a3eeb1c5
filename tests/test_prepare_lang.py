"""Stage 3 on transcripts that the vocabulary does not fit (which utterances, and what to change), and on odd ones."""

import os
import sys
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from scripts import locale_of, refused, run, run_script

from kdlib.config import LangConfig
from kdlib.errors import RecipeError
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


@pytest.mark.parametrize("settings, said", [
    (dict(type="BPE"), "lang.type is 'BPE'; it must be bpe, unigram or char"),
    (dict(type="bpe", vocab_size=2), "lang.vocab_size is 2; it must be at least 5"),
])
def test_settings_that_no_text_fits(cuts, settings, said):
    assert f"lang.yaml: {said}" in refused(prepare(cuts, **settings))


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


@pytest.mark.parametrize("size", [-3, 0, 2, 4, 500])
def test_of_characters_there_are_as_many_as_there_are(cuts, size):
    assert prepare(cuts, type="char", vocab_size=size).returncode == 0
    assert set("".join(TEXTS.values())) - {" "} <= set(Lang(cuts.parent / "lang").tokens)


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram"])
def test_the_longest_text_counts_too(tmp_path, kind):
    """Two minutes of Thai have more bytes than SentencePiece takes by itself."""
    long = "\u0e01" * 1398 + "\u0e02\u0e03"
    lang = train_lang(["\u0e01\u0e32\u0e01", "\u0e32\u0e01", long], LangConfig(type=kind, vocab_size=8), tmp_path)
    assert lang.unknown(long) == [] and lang.decode(lang.encode(long)) == long


def test_a_character_that_sentencepiece_keeps_for_itself_is_all_that_is_lost(cuts):
    texts = {"u-1": "THE CAT", "u-2": "A \u2585 QUIZ"}
    CutSet.from_cuts(MonoCut(id=name, start=0, duration=1, channel=0, supervisions=[
        SupervisionSegment(id=name, recording_id=name, start=0, duration=1, text=text)])
        for name, text in texts.items()).to_file(cuts)
    done = prepare(cuts, type="char")
    assert done.returncode == 0, done.stderr
    assert f"{cuts}: 1 of 15 characters are in none of the tokens and become <unk>, which counts as an error: \u2585\n" \
        in done.stdout
    assert Lang(cuts.parent / "lang").unknown("THE QUIZ CAT") == []


def test_characters_that_divide_lines_are_tokens(tmp_path):
    """And a copy of the tokens whose lines end as Windows ends them, or the last one in nothing, is the same."""
    odd = "\u2028\u2029\x85\x0b\x0c\r\x1c"
    lang = train_lang([f"A{odd}B"], LangConfig(type="char"), tmp_path)
    assert set(odd) <= set(lang.tokens) and lang.decode(lang.encode(f"A{odd}B")) == f"A{odd}B"
    path = tmp_path / "tokens.txt"
    lines = path.read_bytes()
    for same in (lines.replace(b"\n", b"\r\n"), lines.rstrip(b"\n")):
        path.write_bytes(same)
        assert Lang(tmp_path).tokens == lang.tokens
    for other, said in ((lines + b"\n", "tokens.txt does not fit"), (b"\xff 0\n", "tokens.txt is not UTF-8")):
        path.write_bytes(other)
        with pytest.raises(RecipeError, match=f"{said}.*run stage 3"):
            Lang(tmp_path)


def test_a_path_that_is_not_utf8(cuts, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    lang = train_lang(TEXTS.values(), LangConfig(type="char"), folder)
    assert Lang(folder).tokens == lang.tokens
    (folder / "bpe.model").write_bytes(b"")
    with pytest.raises(RecipeError, match="bpe.model is no SentencePiece model: run stage 3"):
        Lang(folder)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_transcripts_are_utf8_in_every_locale(cuts, tmp_path, encoding):
    (tmp_path / "lang.yaml").write_text("type: char\n")
    done = run(sys.executable, SCRIPT, "--cuts", cuts, "--config", tmp_path / "lang.yaml", "--output", tmp_path / "lang",
               env=locale_of(encoding, tmp_path))
    assert done.returncode == 0, done.stderr
    assert {"Ö", "★"} <= set(Lang(tmp_path / "lang").tokens)
