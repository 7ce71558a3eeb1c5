"""Word error counts and the files that decoding leaves behind, laid out as icefall lays them out.

``results`` is everywhere a sequence of ``(utterance id, reference words, recognised words)``; words are non-empty
strings without white space. The alignment is Levenshtein's with unit costs, computed by kaldialign.

Some scripts put no spaces between words, so that these depend on who wrote the transcripts down, or are whole sentences.
Where references are in such scripts (:data:`UNSPACED`) errors are counted over characters as well: the character error rate
(CER).
"""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from kdlib.errors import RecipeError
from kdlib.files import PathLike, write_text

Result = Tuple[str, Sequence[str], Sequence[str]]
Pair = Tuple[Optional[str], Optional[str]]

GAP = "*"  # how a missing word is shown in files
# How a missing word is marked inside alignments: white space, which no word contains, so that a corpus whose words
# include "*" is counted rightly.
_EPSILON = " "
# Scripts that are written without spaces between words, as Unicode names their characters, and where these stand. Vowel and
# tone signs are characters of their own, as in character tokens.
UNSPACED = {
    "CJK": "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",  # with the marks 々 and 〆, and zero
    "HIRAGANA": "\u3040-\u309f",
    "KATAKANA": "\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f",  # with those of half width
    "THAI": "\u0e00-\u0e7f",
    "LAO": "\u0e80-\u0eff",
    "KHMER": "\u1780-\u17ff",
    "MYANMAR": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "TIBETAN": "\u0f00-\u0fff",
}
_ALONE = "".join(UNSPACED.values())
_CHARACTERS = re.compile(f"[{_ALONE}]|[^{_ALONE}]+")
_UNSPACED = re.compile(f"[{_ALONE}]")


@dataclass(frozen=True)
class ErrorCounts:
    """Word errors of a test set: every reference word is a hit, a substitution or a deletion."""

    ins: int
    del_: int
    sub: int
    hits: int
    utterances: int

    @property
    def words(self) -> int:
        """Number of reference words."""
        return self.hits + self.sub + self.del_

    @property
    def errors(self) -> int:
        """Number of insertions, deletions and substitutions."""
        return self.ins + self.del_ + self.sub

    @property
    def wer(self) -> float:
        """Word error rate in per cent, above 100 when insertions abound; :class:`RecipeError` without any word."""
        if self.words == 0:
            raise RecipeError("the word error rate needs reference words and there are none; check the transcripts")
        return 100.0 * self.errors / self.words

    def as_dict(self) -> Dict[str, Union[int, float]]:
        """The counts by their usual names, ready for JSON."""
        return {"wer": self.wer, "errors": self.errors, "words": self.words, "ins": self.ins, "del": self.del_,
                "sub": self.sub, "utterances": self.utterances}


def align_words(ref: Sequence[str], hyp: Sequence[str]) -> List[Pair]:
    """Align two word lists at the least number of errors.

    Returns pairs ``(reference word, recognised word)`` in order; None on the left marks an insertion, on the right a
    deletion. Raises TypeError for a plain string, which would be taken letter by letter.
    """
    import kaldialign

    if isinstance(ref, str) or isinstance(hyp, str):
        raise TypeError("ref and hyp must be lists of words, not strings")
    return [(None if left == _EPSILON else left, None if right == _EPSILON else right)
            for left, right in kaldialign.align(list(ref), list(hyp), _EPSILON)]


def is_unspaced(text: str) -> bool:
    """Whether a character of an unspaced script stands in the text."""
    return _UNSPACED.search(text) is not None


def split_characters(words: Iterable[str]) -> List[str]:
    """The units of the character error rate: each character of an unspaced script, and what stands between them whole.

    So a word in Latin letters counts as one, and words without such characters are returned as they are.
    """
    return [unit for word in words for unit in _CHARACTERS.findall(word)]


def by_characters(results: Iterable[Result]) -> Optional[List[Result]]:
    """The results with characters for words; None where no reference has characters to count."""
    results = list(results)
    if not any(is_unspaced(word) for _, ref, _ in results for word in ref):
        return None
    return [(cut_id, split_characters(ref), split_characters(hyp)) for cut_id, ref, hyp in results]


def count_errors(results: Iterable[Result]) -> ErrorCounts:
    """Insertions, deletions, substitutions and hits over all ``results``; an empty reference has only insertions."""
    results = list(results)
    return _count(align_words(ref, hyp) for _, ref, hyp in results)


def errors_by_utterance(results: Iterable[Result]) -> Tuple[List[int], List[int]]:
    """Errors and reference words of each utterance, in the order of their ids."""
    counts = [_count([align_words(ref, hyp)]) for _, ref, hyp in _sorted_unique(results)]
    return [count.errors for count in counts], [count.words for count in counts]


def read_takes(cuts: Iterable[Any]) -> Optional[Dict[str, List[str]]]:
    """The takes that each cut's words are from, by cut id; None where a cut does not say.

    A corpus that puts utterances together from recorded words, as egs/fsdd does, names them in ``custom["takes"]`` of
    the supervision, one a word: where several utterances share a take, their errors are not independent.
    """
    takes = {cut.id: (cut.supervisions[0].custom or {}).get("takes") if cut.supervisions else None for cut in cuts}
    return None if None in takes.values() else takes


def errors_by_take(results: Iterable[Result], takes: Mapping[str, Sequence[str]]) -> Tuple[List[int], List[int]]:
    """Errors and reference words of each take, in the order of their names, over all utterances that have it.

    ``takes`` is of :func:`read_takes`. An insertion counts for the word before it, or for the first one.
    Raises :class:`RecipeError` naming an utterance that has not one take a word.
    """
    errors: Counter = Counter()
    words: Counter = Counter()
    for cut_id, ref, hyp in results:
        if len(takes[cut_id]) != len(ref) or not ref:
            raise RecipeError(f"{cut_id} has {len(takes[cut_id])} takes and {len(ref)} words: make its manifest again, with "
                              "one take a word or none at all")
        words.update(takes[cut_id])
        place = -1
        for left, right in align_words(ref, hyp):
            place += left is not None
            errors[takes[cut_id][max(place, 0)]] += left != right
    names = sorted(words)
    return [errors[name] for name in names], [words[name] for name in names]


def write_recogs(path: PathLike, results: Iterable[Result]) -> None:
    """Write references and recognised words, two lines an utterance, sorted by id.

    Raises :class:`RecipeError` naming an id that stands twice. The file appears whole or not at all.
    """
    lines = []
    for cut_id, ref, hyp in _sorted_unique(results):
        lines += [f"{cut_id}:\tref={list(ref)}\n", f"{cut_id}:\thyp={list(hyp)}\n"]
    write_text(path, "".join(lines))


def read_recogs(path: PathLike) -> List[Tuple[str, List[str], List[str]]]:
    """Read a file of :func:`write_recogs` (or icefall's); raises :class:`RecipeError` naming a line it can't take, or an
    id that stands twice."""
    references: Dict[str, List[str]] = {}
    results = []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            cut_id, ref_mark, ref = line.rstrip("\n").partition(":\tref=")
            if not ref_mark:
                cut_id, hyp_mark, hyp = line.rstrip("\n").partition(":\thyp=")
            try:
                if ref_mark:
                    references[cut_id] = _words(ref)
                else:
                    results.append((cut_id, references.pop(cut_id), _words(hyp)))
            except (KeyError, SyntaxError, TypeError, ValueError):
                raise RecipeError(f"{path}, line {number}: expected 'id:\\tref=[...]' followed by 'id:\\thyp=[...]'; "
                                  "decode again") from None
    if references:
        raise RecipeError(f"{path}: {next(iter(references))} has a reference and no hypothesis; decode again")
    try:
        _sorted_unique(results)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return results


def _words(text: str) -> List[str]:
    words = ast.literal_eval(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("no list of words")
    return words


def write_error_stats(path: PathLike, test_set_name: str, results: Iterable[Result]) -> ErrorCounts:
    """Write the word error rate and what it is made of; return the counts.

    The file begins with ``%WER = 3.06`` and the counts, then shows each utterance with its errors as
    ``(reference->recognised)`` (neighbouring errors joined), then each kind of error by frequency, then each word
    with its correct count, its errors and how often it stands in references and in hypotheses. Where the references
    have characters to count (:func:`by_characters`), the file is about these: it begins with ``%CER = 3.06`` and their
    counts, and the word error rate follows. The counts that are returned are of words.

    Raises :class:`RecipeError` for an id that stands twice and for a test set without reference words (both named).
    """
    results = _sorted_unique(results)
    alignments = [align_words(ref, hyp) for _, ref, hyp in results]
    counts = words = _count(alignments)
    characters = by_characters(results)
    if characters:
        results = characters
        alignments = [align_words(ref, hyp) for _, ref, hyp in results]
        counts = _count(alignments)
    if counts.words == 0:
        raise RecipeError(f"test set {test_set_name} has no reference words, so no word error rate; check the "
                          "transcripts of its cuts")

    substitutions = Counter(pair for ali in alignments for pair in ali if None not in pair and pair[0] != pair[1])
    deletions = Counter(left for ali in alignments for left, right in ali if right is None)
    insertions = Counter(right for ali in alignments for left, right in ali if left is None)
    lines = [
        f"%{'CER' if characters else 'WER'} = {counts.wer:.2f}",
        f"Errors: {counts.ins} insertions, {counts.del_} deletions, {counts.sub} substitutions, over {counts.words} "
        f"reference {'characters' if characters else 'words'} ({counts.hits} correct)",
        *([f"%WER = {words.wer:.2f}, over {words.words} words between spaces"] if characters else []),
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",  # readers of such files compare this line with its two blanks
        *(f"{cut_id}:\t{_show(ali)}" for (cut_id, _, _), ali in zip(results, alignments)),
        "",
        "SUBSTITUTIONS: count ref -> hyp",
        *(f"{count}   {left} -> {right}" for (left, right), count in _most_frequent(substitutions)),
        "",
        "DELETIONS: count ref",
        *(f"{count}   {word}" for word, count in _most_frequent(deletions)),
        "",
        "INSERTIONS: count hyp",
        *(f"{count}   {word}" for word, count in _most_frequent(insertions)),
        "",
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
        *_word_lines(results, alignments),
    ]
    write_text(path, "\n".join(lines) + "\n")
    return words


def write_wer_summary(path: PathLike, wers: Mapping[str, float], rate: str = "WER") -> None:
    """Write the error rate (per cent) of each decoding setting, the best first."""
    rows = sorted(wers.items(), key=lambda item: item[1])
    write_text(path, f"settings\t{rate}\n" + "".join(f"{setting}\t{wer:.2f}\n" for setting, wer in rows))


def write_results(folder: PathLike, test_set: str, setting: str, suffix: str, results: Iterable[Result],
                  takes: Optional[Mapping[str, Sequence[str]]] = None) -> Dict[str, Any]:
    """Write the files of a decoded test set, and return what a decoding summary keeps of it.

    ``setting`` names how it was decoded, ``suffix`` also with which epochs; the files are ``recogs-``, ``errs-`` and
    ``wer-summary-<test_set>-<suffix>.txt`` in ``folder``, and ``cer-summary-`` where there are characters to count.
    ``takes``, of :func:`read_takes`, has the errors counted by take as well.
    """
    folder, results = Path(folder), list(results)
    write_recogs(folder / f"recogs-{test_set}-{suffix}.txt", results)
    counts = write_error_stats(folder / f"errs-{test_set}-{suffix}.txt", test_set, results)
    write_wer_summary(folder / f"wer-summary-{test_set}-{suffix}.txt", {setting: counts.wer})
    kept = _kept(counts, results)
    if takes is not None:
        kept["errors_by_take"], kept["words_by_take"] = errors_by_take(results, takes)
    characters = by_characters(results)
    if characters:
        counts = count_errors(characters)
        write_wer_summary(folder / f"cer-summary-{test_set}-{suffix}.txt", {setting: counts.wer}, "CER")
        kept["characters"] = _kept(counts, characters)
    return kept


def _kept(counts: ErrorCounts, results: Iterable[Result]) -> Dict[str, Any]:
    errors, words = errors_by_utterance(results)
    return {**counts.as_dict(), "wer": round(counts.wer, 4), "errors_by_utterance": errors, "words_by_utterance": words}


def describe_errors(test: Mapping[str, Any], by: str = "") -> str:
    """What :func:`write_results` returned, for people: the word error rate, after the character error rate if any.

    ``by`` stands behind the rate, to say how it came about.
    """
    described = f"WER {test['wer']:.2f} %{by} ({test['errors']} errors in {test['words']} words)"
    if "characters" in test:
        over = test["characters"]
        described = f"CER {over['wer']:.2f} %{by} ({over['errors']} errors in {over['words']} characters), {described}"
    return described


def _sorted_unique(results: Iterable[Result]) -> List[Result]:
    ordered = sorted(results, key=lambda result: result[0])
    for (first, _, _), (second, _, _) in zip(ordered, ordered[1:]):
        if first == second:
            raise RecipeError(f"utterance {first} stands twice in the results; ids of a test set must be unique, so "
                              "make its manifest again")
    return ordered


def _count(alignments: Iterable[List[Pair]]) -> ErrorCounts:
    ins = del_ = sub = hits = utterances = 0
    for alignment in alignments:
        utterances += 1
        for left, right in alignment:
            if left is None:
                ins += 1
            elif right is None:
                del_ += 1
            elif left == right:
                hits += 1
            else:
                sub += 1
    return ErrorCounts(ins=ins, del_=del_, sub=sub, hits=hits, utterances=utterances)


def _show(alignment: List[Pair]) -> str:
    """One line: correct words as they are, each run of errors as ``(reference words->recognised words)``."""
    shown: List[str] = []
    wrong: List[Pair] = []

    def close_run() -> None:
        if wrong:
            left, right = (" ".join(word for word in side if word is not None) or GAP for side in zip(*wrong))
            shown.append(f"({left}->{right})")
            wrong.clear()

    for pair in alignment:
        if pair[0] == pair[1]:
            close_run()
            shown.append(pair[0])
        else:
            wrong.append(pair)
    close_run()
    return " ".join(shown)


def _most_frequent(counter: Counter) -> List[tuple]:
    """Items by falling count, ties by falling name (the order that such files have elsewhere)."""
    return sorted(counter.items(), key=lambda item: (item[1], item[0]), reverse=True)


def _word_lines(results: Sequence[Result], alignments: Sequence[List[Pair]]) -> List[str]:
    in_ref = Counter(word for _, ref, _ in results for word in ref)
    in_hyp = Counter(word for _, _, hyp in results for word in hyp)
    correct = Counter(left for ali in alignments for left, right in ali if left == right)
    # A substitution counts against both words that it concerns.
    errors = Counter({word: in_ref[word] + in_hyp[word] - 2 * correct[word] for word in in_ref.keys() | in_hyp.keys()})
    return [f"{word}   {correct[word]} {count} {in_ref[word]} {in_hyp[word]}"
            for word, count in _most_frequent(errors)]
