"""Tables of audio and transcripts: what a program or a hand writes is read back, and no row goes without a word."""

import csv
import io
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skipping import Reasons

from kdlib.corpus_forms import read_corpus

soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty files of audio, a0.wav to a29.wav."""
    folder = tmp_path_factory.mktemp("tables")
    soundfile.write(folder / "a0.wav", [0.1] * 1600, 16000)
    for number in range(1, 30):
        shutil.copy(folder / "a0.wav", folder / f"a{number}.wav")
    return folder


def read(folder, content: str):
    """(id: (text, speaker)) of a table's utterances, and what was left out."""
    table = folder / "table"
    table.write_bytes(content.encode())
    skipped = Reasons()
    _, supervisions = read_corpus("csv", str(table), skipped)["all"]
    return {s.id: (s.text, s.speaker) for s in supervisions}, {name.replace(str(table), "table"): why
                                                               for name, why in skipped.of.items()}


def rows(separator, count=8, start=0):
    return [separator.join((f"a{number}.wav", f"word{number}", "anna")) for number in range(start, start + count)]


# What stands in transcripts and tables.
CELL = st.text(alphabet='ab "\',;|\té的', min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(separator=st.sampled_from(",;"), header=st.booleans(), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
       end=st.sampled_from(["\n", "\r\n"]), data=st.data())
def test_what_a_spreadsheet_writes_is_read_back(folder, separator, header, quoting, end, data):
    cell = st.text(alphabet='ab "\',;|é的\n', min_size=1, max_size=12).filter(str.strip)
    texts = data.draw(st.lists(cell, min_size=1, max_size=6))
    content = io.StringIO(newline="")
    table = csv.writer(content, delimiter=separator, quoting=quoting, lineterminator=end)
    if header:
        table.writerow(["audio", "text", "speaker"])
    # Enough plain rows that the separator is beyond doubt.
    table.writerows([f"a{number}.wav", text, "anna"] for number, text in enumerate(["one"] * 20 + texts))
    found, left_out = read(folder, content.getvalue())
    assert left_out == {} and found == {f"a{number}": (text, "anna") for number, text in enumerate(["one"] * 20 + texts)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(separator=st.sampled_from("\t|"), quoted=st.booleans(), header=st.booleans(), data=st.data())
def test_what_common_voice_and_pandas_write_is_read_back(folder, separator, quoted, header, data):
    """Without quoting, or with that of pandas: a cell with a quote in it is quoted."""
    cell = st.text(alphabet='ab "\',;é的', min_size=1, max_size=12).filter(str.strip)
    texts = data.draw(st.lists(cell, min_size=1, max_size=9))
    if not quoted:  # a pair around all of a cell reads as quoting, whoever wrote it
        texts = [text for text in texts if not text.startswith('"')]

    def written(text):
        return '"' + text.replace('"', '""') + '"' if quoted and '"' in text else text

    lines = ["audio text speaker".replace(" ", separator)] if header else []
    lines += [separator.join((f"a{number}.wav", written(text), "anna")) for number, text in enumerate(texts + ["one"])]
    found, left_out = read(folder, "\n".join(lines))
    assert left_out == {} and found == {f"a{number}": (text, "anna") for number, text in enumerate(texts + ["one"])}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(separator=st.sampled_from(",;\t|"), lines=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_whatever_stands_in_a_table_no_line_is_lost_without_a_word(folder, separator, lines):
    """As written by hand, quotes, separators and all: each line is an utterance, part of one, or left out and named."""
    content = rows(separator, 20) + [separator.join((f"a{20 + number}.wav", *cells)) for number, cells in enumerate(lines)]
    found, left_out = read(folder, "\n".join(content))
    for number in range(len(content)):
        assert f"a{number}" in found or f"table, line {number + 1}" in left_out or any(
            f"a{number}.wav" in text for text, _ in found.values()) or any(
            f"a{number}.wav" in (speaker or "") for _, speaker in found.values()), (number, found, left_out)


@pytest.mark.parametrize("separator", list(",;\t|"))
@pytest.mark.parametrize("place", [0, 1, 3, 7])
def test_a_stray_quote_costs_no_other_row(folder, separator, place):
    content = rows(separator)
    content[place] = content[place].replace("word", '"word')
    found, left_out = read(folder, "\n".join(["audio text speaker".replace(" ", separator), *content]))
    if separator in ",;":
        (line, why), = left_out.items()
        assert line == f"table, line {place + 2}" and "its quotes do not fit" in why
        assert set(found) == {f"a{number}" for number in range(8)} - {f"a{place}"}
    else:
        assert left_out == {} and found[f"a{place}"] == (f'"word{place}', "anna") and len(found) == 8


def test_a_row_of_other_columns_is_left_out_and_named(folder):
    content = ["audio,text,speaker", "a0.wav,yes, sir,anna", "a1.wav,no", "", "a2.wav,one,anna", 'a3.wav,"one, two",anna']
    found, left_out = read(folder, "\n".join(content))
    assert found == {"a2": ("one", "anna"), "a3": ("one, two", "anna")}
    assert left_out == {"table, line 2": "it has 4 columns, where the first row has 3",
                        "table, line 3": "it has 2 columns, where the first row has 3"}
    found, left_out = read(folder, "\n".join(content[1:]))
    assert set(found) == {"a2", "a3"} and left_out["table, line 1"] == "it has 4 columns, where most rows have 3"


def test_a_line_end_in_a_cell_parts_words(folder):
    found, left_out = read(folder, 'audio,text\na0.wav,"hello\nworld"\na1.wav,"hello\r\nworld"\n')
    assert left_out == {} and [text.split() for text, _ in found.values()] == [["hello", "world"]] * 2


@pytest.mark.parametrize("cell", [".", "..", "/", "x" * 300 + ".wav", "x" * 5000, "a\0b.wav", "none.wav"])
def test_an_audio_cell_that_names_no_file_is_left_out(folder, cell):
    found, left_out = read(folder, f"a0.wav,one,anna\n{cell},two,anna\na1.wav,three,anna\n")
    assert set(found) == {"a0", "a1"} and len(left_out) == 1


def test_the_text_first_is_skipped_rows_and_no_failure(folder):
    found, left_out = read(folder, "\n".join(f"{'many words ' * 40}{number},a{number}.wav" for number in range(5)))
    assert found == {} and len(left_out) == 5
