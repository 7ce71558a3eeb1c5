"""Error counts against jiwer, a small example worked by hand, and the files read back."""

import re
import unicodedata
from types import SimpleNamespace

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.errors import RecipeError
from kdlib.scoring import (UNSPACED, ErrorCounts, align_words, by_characters, count_errors, describe_errors, errors_by_take,
                           errors_by_utterance, read_recogs, read_takes, split_characters, write_error_stats,
                           write_recogs, write_results, write_wer_summary)

WORD_LISTS = st.lists(st.sampled_from(["A", "B", "C", "*", "É"]), max_size=8)

# Worked by hand: u1 has TWO -> TOO, then FOUR deleted; u2 has one insertion; u3 has no reference and two insertions.
EXAMPLE = [
    ("u2", ["STOP"], ["STOP", "NOW"]),
    ("u1", ["ONE", "TWO", "THREE", "FOUR"], ["ONE", "TOO", "THREE"]),
    ("u3", [], ["NOW", "THEN"]),
]
EXAMPLE_ERRS = """\
%WER = 100.00
Errors: 3 insertions, 1 deletions, 1 substitutions, over 5 reference words (3 correct)
Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:

PER-UTT DETAILS: corr or (ref->hyp)\x20\x20
u1:\tONE (TWO->TOO) THREE (FOUR->*)
u2:\tSTOP (*->NOW)
u3:\t(*->NOW THEN)

SUBSTITUTIONS: count ref -> hyp
1   TWO -> TOO

DELETIONS: count ref
1   FOUR

INSERTIONS: count hyp
2   NOW
1   THEN

PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp
NOW   0 2 0 2
TWO   0 1 1 0
TOO   0 1 0 1
THEN   0 1 0 1
FOUR   0 1 1 0
THREE   1 0 1 1
STOP   1 0 1 1
ONE   1 0 1 1
"""


def test_errs_file_of_the_hand_worked_example(tmp_path):
    counts = write_error_stats(tmp_path / "errs.txt", "test-clean", EXAMPLE)
    assert (tmp_path / "errs.txt").read_text(encoding="utf-8") == EXAMPLE_ERRS
    assert counts == ErrorCounts(ins=3, del_=1, sub=1, hits=3, utterances=3)
    assert (counts.words, counts.errors, counts.wer) == (5, 5, 100.0)
    assert counts.as_dict() == {"wer": 100.0, "errors": 5, "words": 5, "ins": 3, "del": 1, "sub": 1, "utterances": 3}


def test_neighbouring_errors_are_shown_together(tmp_path):
    write_error_stats(tmp_path / "errs.txt", "x", [("u", ["A", "B", "C", "D"], ["A", "X", "D"])])
    assert "u:\tA (B C->X) D\n" in (tmp_path / "errs.txt").read_text()


def test_recogs_file_has_two_lines_an_utterance_sorted_by_id(tmp_path):
    write_recogs(tmp_path / "recogs.txt", EXAMPLE)
    assert (tmp_path / "recogs.txt").read_text().splitlines() == [
        "u1:\tref=['ONE', 'TWO', 'THREE', 'FOUR']", "u1:\thyp=['ONE', 'TOO', 'THREE']",
        "u2:\tref=['STOP']", "u2:\thyp=['STOP', 'NOW']",
        "u3:\tref=[]", "u3:\thyp=['NOW', 'THEN']",
    ]


def test_wer_summary_lists_the_best_setting_first(tmp_path):
    write_wer_summary(tmp_path / "wer-summary.txt", {"greedy_search": 3.0551, "modified_beam_search": 2.9})
    assert (tmp_path / "wer-summary.txt").read_text() == (
        "settings\tWER\nmodified_beam_search\t2.90\ngreedy_search\t3.06\n")


@given(st.lists(st.tuples(WORD_LISTS.filter(bool), WORD_LISTS), min_size=1, max_size=5))
def test_totals_equal_jiwer(pairs):
    counts = count_errors([(str(index), ref, hyp) for index, (ref, hyp) in enumerate(pairs)])
    other = jiwer.process_words([" ".join(ref) for ref, _ in pairs], [" ".join(hyp) for _, hyp in pairs])
    # Alignments of equal cost may split the errors otherwise, so only their sum is comparable.
    assert counts.errors == other.insertions + other.deletions + other.substitutions
    assert counts.wer == pytest.approx(100 * other.wer)
    assert counts.utterances == len(pairs)
    assert counts.words == sum(len(ref) for ref, _ in pairs)


@given(WORD_LISTS, WORD_LISTS)
def test_alignment_spells_both_sides(ref, hyp):
    alignment = align_words(ref, hyp)
    assert [left for left, _ in alignment if left is not None] == ref
    assert [right for _, right in alignment if right is not None] == hyp
    assert (None, None) not in alignment


@given(st.dictionaries(st.from_regex(r"[a-z0-9:_-]{1,12}", fullmatch=True), st.tuples(WORD_LISTS, WORD_LISTS),
                       max_size=6))
def test_recogs_are_read_back(tmp_path_factory, results):
    path = tmp_path_factory.mktemp("recogs") / "recogs.txt"
    write_recogs(path, [(cut_id, ref, hyp) for cut_id, (ref, hyp) in results.items()])
    assert read_recogs(path) == [(cut_id, *results[cut_id]) for cut_id in sorted(results)]


@given(st.lists(st.tuples(WORD_LISTS, WORD_LISTS), min_size=1, max_size=5).filter(lambda ps: any(r for r, _ in ps)))
def test_figures_in_the_errs_file_agree_with_each_other(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("errs") / "errs.txt"
    results = [(f"{index:03d}", ref, hyp) for index, (ref, hyp) in enumerate(pairs)]
    counts = write_error_stats(path, "t", results)
    assert counts == count_errors(results)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"%WER = {counts.wer:.2f}\n")

    def total(section):
        body = re.search(rf"^{section}: .*\n((?:\d+   .*\n)*)", text, re.MULTILINE).group(1)
        return sum(int(line.split()[0]) for line in body.splitlines())

    assert (total("SUBSTITUTIONS"), total("DELETIONS"), total("INSERTIONS")) == (counts.sub, counts.del_, counts.ins)
    words = [line.split() for line in text.split("PER-WORD STATS:")[-1].splitlines()[1:]]
    assert sum(int(row[1]) for row in words) == counts.hits
    assert sum(int(row[2]) for row in words) == counts.ins + counts.del_ + 2 * counts.sub
    assert sum(int(row[3]) for row in words) == counts.words


@pytest.mark.parametrize("write", [lambda path, results: write_recogs(path, results),
                                   lambda path, results: write_error_stats(path, "t", results)])
def test_an_id_that_stands_twice_is_named_and_the_old_file_stays(tmp_path, write):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RecipeError, match="utterance u7 stands twice"):
        write(path, [("u7", ["A"], ["A"]), ("u1", ["A"], []), ("u7", ["B"], ["B"])])
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_test_set_without_words_is_named(tmp_path):
    with pytest.raises(RecipeError, match="test-other has no reference words"):
        write_error_stats(tmp_path / "errs.txt", "test-other", [("u", [], ["A"])])
    assert not (tmp_path / "errs.txt").exists()
    with pytest.raises(RecipeError, match="reference words"):
        count_errors([]).wer


def test_a_string_is_not_taken_for_a_word_list():
    with pytest.raises(TypeError, match="lists of words"):
        align_words("ONE TWO", ["ONE"])


@pytest.mark.parametrize("text", ["u1:\thyp=['A']\n", "nonsense\n", "u1:\tref=['A'\nu1:\thyp=[]\n", "u1:\tref=['A']\n",
                                  "u1:\tref=['A']\nu1:\thyp=['A']\n" * 2, "\xff\xfe\n",
                                  "u1:\tref='A'\nu1:\thyp=[]\n", "u1:\tref=[1]\nu1:\thyp=[]\n", "u1:\tref={[]: 1}\n"])
def test_a_damaged_recogs_file_is_named(tmp_path, text):
    (tmp_path / "recogs.txt").write_text(text, encoding="latin-1")
    with pytest.raises(RecipeError, match="recogs.txt"):
        read_recogs(tmp_path / "recogs.txt")


def test_errors_by_utterance_follow_the_ids():
    results = [("b", ["A", "B"], ["A"]), ("a", ["C"], ["C", "D", "E"]), ("c", [], [])]
    assert errors_by_utterance(results) == ([2, 1, 0], [1, 2, 0])


def test_errors_are_counted_by_take_over_all_utterances():
    """Worked by hand: b's second word is deleted, a word is inserted at the beginning of c and one behind it."""
    results = [("b", ["ONE", "TWO"], ["ONE"]), ("c", ["TWO"], ["SIX", "TWO", "SIX"]), ("a", ["ONE"], ["TEN"])]
    takes = {"a": ["1_ann_0"], "b": ["1_ann_0", "2_ann_7"], "c": ["2_ann_7"]}
    assert errors_by_take(results, takes) == ([1, 3], [2, 2])
    with pytest.raises(RecipeError, match="b has 1 takes and 2 words"):
        errors_by_take(results, {**takes, "b": ["1_ann_0"]})
    assert errors_by_take([("d", ["ONE", "TWO"], ["SIX", "ONE", "TWO"])], {"d": ["y", "x"]}) == ([0, 1], [1, 1])
    with pytest.raises(RecipeError, match="e has 0 takes and 0 words"):
        errors_by_take([("e", [], ["ONE"])], {"e": []})


def test_takes_are_those_of_all_cuts_or_of_none():
    def cut(name, **supervision):
        return SimpleNamespace(id=name, supervisions=[SimpleNamespace(**supervision)])

    said = [cut("a", custom={"takes": ["1_ann_0"]}), cut("b", custom={"takes": ["2_ann_7", "1_ann_0"]})]
    assert read_takes(said) == {"a": ["1_ann_0"], "b": ["2_ann_7", "1_ann_0"]}
    for other in (cut("c", custom=None), cut("c", custom={}), SimpleNamespace(id="c", supervisions=[])):
        assert read_takes([*said, other]) is None


@given(st.lists(st.tuples(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=5),
                          st.lists(st.sampled_from("abc"), max_size=6)), min_size=1, max_size=6))
def test_errors_by_take_add_up_to_those_by_utterance(pairs):
    results = [(str(n), [word for word, _ in ref], hyp) for n, (ref, hyp) in enumerate(pairs)]
    takes = {str(n): [f"{word}{number}" for word, number in ref] for n, (ref, _) in enumerate(pairs)}
    errors, words = errors_by_take(results, takes)
    counts = count_errors(results)
    assert (sum(errors), sum(words)) == (counts.errors, counts.words)
    assert len(words) == len({take for names in takes.values() for take in names})


def test_characters_stand_alone_and_latin_words_whole():
    assert split_characters(["我们去KTV", "唱歌", "A-B", "カラオケ", "二〇二六年", "人々", "〆切", "ｶﾗｵｹとﾊﾞｽ"]) == [
        "我", "们", "去", "KTV", "唱", "歌", "A-B", *"カラオケ二〇二六年人々〆切ｶﾗｵｹとﾊﾞｽ"]
    assert split_characters(["HELLO", "IT'S", "É*"]) == ["HELLO", "IT'S", "É*"]
    assert by_characters([("u", ["HELLO"], ["今"])]) is None  # of words, whatever was recognised
    assert by_characters([("u", ["ｱｲｳ"], ["ｱｲ"])]) == [("u", ["ｱ", "ｲ", "ｳ"], ["ｱ", "ｲ"])]  # katakana of half width
    assert by_characters([("u", ["HELLO"], []), ("v", ["今天"], ["今"])]) == [("u", ["HELLO"], []), ("v", ["今", "天"], ["今"])]


@pytest.mark.parametrize("script, words", [
    ("CJK", "今天"), ("HIRAGANA", "ありがとう"), ("KATAKANA", "カラオケ"), ("THAI", "สวัสดี"), ("LAO", "ສະບາຍດີ"), ("KHMER", "សួស្តី"),
    ("MYANMAR", "မင်္ဂလာပါ"), ("TIBETAN", "བཀྲ་ཤིས")])
def test_each_script_without_spaces_is_counted_in_characters(script, words):
    assert script in UNSPACED and {unicodedata.name(c).split()[0] for c in words} == {script}
    assert split_characters([words, "OK"]) == [*words, "OK"]
    (result,) = by_characters([("u", [words], [words[:-1]])])
    assert count_errors([result]).as_dict()["errors"] == 1 and len(result[1]) == len(words)


def test_scripts_with_spaces_are_counted_in_words():
    for word in ("HELLO", "привет", "नमस्ते", "안녕하세요", "مرحبا", "γεια"):
        assert by_characters([("u", [word], [])]) is None and split_characters([word]) == [word]


@given(st.lists(st.tuples(st.text("今天气很好", min_size=1, max_size=8), st.text("今天气很好", max_size=8)), min_size=1,
                max_size=5))
def test_character_errors_equal_jiwer(pairs):
    results = [(str(index), [ref], [hyp] if hyp else []) for index, (ref, hyp) in enumerate(pairs)]
    counts = count_errors(by_characters(results))
    assert counts.wer == pytest.approx(100 * jiwer.cer([ref for ref, _ in pairs], [hyp for _, hyp in pairs]))
    assert counts.words == sum(len(ref) for ref, _ in pairs)


def test_a_test_set_in_characters_is_led_by_their_errors(tmp_path):
    """Worked by hand: u1 has 气 -> 汽 and 好 deleted, u2 is right; seven characters, two words between spaces."""
    results = [("u2", ["KTV"], ["KTV"]), ("u1", ["今天天气很好"], ["今天天汽很"])]
    kept = write_results(tmp_path, "test", "greedy", "epoch-1-greedy", results)
    lines = (tmp_path / "errs-test-epoch-1-greedy.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["%CER = 28.57", "Errors: 0 insertions, 1 deletions, 1 substitutions, over 7 reference characters "
                         "(5 correct)", "%WER = 50.00, over 2 words between spaces"]
    assert "u1:\t今 天 天 (气->汽) 很 (好->*)" in lines
    assert (tmp_path / "cer-summary-test-epoch-1-greedy.txt").read_text() == "settings\tCER\ngreedy\t28.57\n"
    assert (tmp_path / "wer-summary-test-epoch-1-greedy.txt").read_text() == "settings\tWER\ngreedy\t50.00\n"
    assert read_recogs(tmp_path / "recogs-test-epoch-1-greedy.txt")[0] == ("u1", ["今天天气很好"], ["今天天汽很"])
    assert (kept["wer"], kept["errors"], kept["words"], kept["errors_by_utterance"]) == (50.0, 1, 2, [1, 0])
    by = kept["characters"]
    assert (by["wer"], by["errors"], by["words"], by["errors_by_utterance"]) == (28.5714, 2, 7, [2, 0])
    assert by["words_by_utterance"] == [6, 1]
    assert describe_errors(kept, " here") == ("CER 28.57 % here (2 errors in 7 characters), WER 50.00 % here (1 errors in 2 "
                                             "words)")
    words = write_results(tmp_path, "other", "greedy", "g", [("u", ["A", "B"], ["A"])])
    assert "characters" not in words and describe_errors(words) == "WER 50.00 % (1 errors in 2 words)"
    assert not list(tmp_path.glob("cer-summary-other-*"))
