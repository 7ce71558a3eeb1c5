"""Tables of audio and transcripts: what a program or a hand writes is read back, and no row goes without a word."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skipping import Reasons, read_form
from toy_corpora import csv_corpus, say

from kdlib.corpus import checked_cuts
from kdlib.corpus_forms import read_corpus
from kdlib.errors import RecipeError
from kdlib.manifests import Skipped



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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_the_text_first_is_one_error(folder):
    with pytest.raises(RecipeError, match="files stand in column 2, not in the first: let a first row call") as error:
        read(folder, "\n".join(f"{'many words ' * 40}{number},a{number}.wav" for number in range(5)))
    assert len(str(error.value)) < 400 + len(str(folder))


class TestColumns:
    @pytest.mark.parametrize("header, separator", [(("audio", "text", "speaker"), ","), (None, ","), (None, "\t"),
                                                   (("path", "sentence", "client_id"), ";")])
    def test_tables(self, tmp_path, header, separator):
        table = csv_corpus(tmp_path / "corpus", 2, header, separator)
        ((name, (recordings, supervisions)),), left_out = read_form("csv", table)[0].items(), read_form("csv", table)[1]
        assert name == "all" and left_out == 0 and len(recordings) == len(supervisions) == 24
        first = next(iter(supervisions))
        assert (first.id, first.speaker) == ("wav-speaker00-0", "speaker00") and first.text.islower()

    def test_a_table_of_two_columns_or_others_in_another_order(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", say(["ONE"]), 16000)
        (tmp_path / "two.csv").write_text('a.wav,"one, two"\n')
        (tmp_path / "more.csv").write_text("﻿speaker,id,Text,Audio\nanna,7,one,a.wav\n", encoding="utf-8")
        two, more = (next(iter(read_form("csv", tmp_path / name)[0]["all"][1])) for name in ("two.csv", "more.csv"))
        assert (two.text, two.speaker) == ("one, two", None) and (more.text, more.speaker) == ("one", "anna")

    def table(self, tmp_path, text, files=("a.wav", "b.wav", "c.wav")):
        """What is read of a table, (id, text) each, and why the rest is not."""
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            soundfile.write(tmp_path / name, say(["ONE", "TWO"]), 16000)
        (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        skipped = Reasons()
        supervisions = read_corpus("csv", str(tmp_path / "t.csv"), skipped)["all"][1]
        return [(s.id, s.text) for s in supervisions], skipped.of

    @pytest.mark.parametrize("header, end", [("audio,start,end,text", "0.3"), ("offset,duration,audio,text", "0.2")])
    def test_rows_of_a_part_of_their_file(self, tmp_path, header, end):
        rows = [("a.wav", "0.1", end, "one"), ("a.wav", "x", end, "two"), ("b.wav", "0.1", end, "three")]
        if header.startswith("offset"):
            rows = [(start, end, audio, text) for audio, start, end, text in rows]
        found, left_out = self.table(tmp_path, "\n".join([header, *map(",".join, rows)]))
        assert found == [("a-0000100", "one"), ("b-0000100", "three")]
        assert list(left_out.values()) == ["its times are no numbers of seconds"]
        first = next(iter(read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1]))
        assert (first.start, round(first.end, 6), first.recording_id) == (0.1, 0.3, "a")

    @pytest.mark.parametrize("header, said", [
        ("audio,start,text", "start, but not where they end"), ("audio,end,text", "end, but not where they start"),
        ("transcript,sound,who", "names a column transcript, but none of the audio: call that one audio"),
        ("audio,words,who", "names a column audio, but none of the text: call that one text")])
    def test_a_header_that_lacks_a_name_is_one_error(self, tmp_path, header, said):
        with pytest.raises(RecipeError, match=said):
            self.table(tmp_path, f"{header}\na.wav,1,one\n")

    @pytest.mark.parametrize("text, said", [
        ("clip,speaker,words,split\na.wav,anna,one,train\n",
         r"names a column speaker, but none of the audio or the text: let a first row call them audio \(.*\) and text \(or tr"),
        ("clip,who,words\na.wav,anna,one\nb.wav,bert,two\n",
         "the first row, 'clip, who, words', names no column that is known, and no file, though the rows after it do: let"),
        ("id,filepath,words\n0,a.wav,one\n1,b.wav,two\n",
         "the first row, 'id, filepath, words', names no column that is known, and files stand in column 2, not in the first"),
        (",clip,words\n0,a.wav,one\n", "files stand in column 2, not in the first: let a first row call them audio"),
        ("one,a.wav\ntwo,b.wav\n", "the first row, 'one, a.wav', names no column that is known, and files stand in column 2")])
    def test_a_header_without_a_name_that_is_known_is_not_read_by_position(self, tmp_path, text, said):
        """Speakers would be taken for transcripts, parts be mixed, and each row be an id that is no file."""
        with pytest.raises(RecipeError, match=said):
            self.table(tmp_path, text)

    @pytest.mark.parametrize("first", ["lost.wav,stop,anna", "lost.wav,set,anna", ",one,anna", "# of 2024"])
    def test_a_first_row_that_cannot_be_used_is_no_header(self, tmp_path, first):
        """Though the word that is said is one that columns are called too."""
        found, left_out = self.table(tmp_path, f"{first}\na.wav,one,anna\nb.wav,two,anna\n")
        assert found == [("a", "one"), ("b", "two")] and len(left_out) == 1

    def test_files_without_an_ending_need_no_first_row(self, tmp_path):
        for name in "ab":
            soundfile.write(tmp_path / name, say(["ONE"]), 16000, format="WAV")
        found, left_out = self.table(tmp_path, "lost,one\na,two\nb,three\n", files=())
        assert found == [("a", "two"), ("b", "three")] and list(left_out) == ["lost"]

    @pytest.mark.parametrize("text, said", [
        ("a.wav|7|one two\nb.wav|7|three\n",
         "names no columns: the audio is the 1st ('a.wav'), the text the 2nd ('7'), the speaker the 3rd ('one two')\n"),
        ("a.wav,one\n", "names no columns: the audio is the 1st ('a.wav'), the text the 2nd ('one')\n"),
        ("audio,text\na.wav,one\n", "")])
    def test_what_is_read_by_position_is_said(self, tmp_path, capsys, text, said):
        """So that a list in another order, as VITS has, is noticed."""
        self.table(tmp_path, text)
        assert capsys.readouterr().out == (f"{tmp_path / 't.csv'}: the first row {said}" if said else "")

    def test_a_second_text_in_the_third_column_is_no_speaker(self, tmp_path, capsys):
        """As in LJSpeech's lists, which hold the transcript as it is read too."""
        lines = [f"{name}.wav|Nr. {number}|number {number}" for number, name in enumerate("abc", 1)]
        assert self.table(tmp_path, "\n".join(lines))[0][0] == ("a", "Nr. 1")
        assert capsys.readouterr().out.endswith(
            "2nd ('Nr. 1'); the 3rd ('number 1') is another text in nearly each row and no speaker: none is known\n")
        read = read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1]
        assert [s.speaker for s in read] == [None] * 3
        for speakers in (("anna b", "anna b", "carl d"), ("anna", "bert", "carl")):  # a few, or names of one word
            (tmp_path / "t.csv").write_text("".join(f"{name}.wav|one|{who}\n" for name, who in zip("abc", speakers)))
            read = read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1]
            assert tuple(s.speaker for s in read) == speakers

    @pytest.mark.parametrize("speakers", [["1272", "1462"] * 3, ["1272", "1462", "84", "174", "1272", "251"]])
    @pytest.mark.parametrize("texts", [[f"he said that {number}" for number in range(6)],
                                       [f"这是第{number}个很普通句子" for number in "一二三四五六"],
                                       [f"please call {name} now" for name in ("anna", "bert", "carl")] * 2])
    def test_a_second_column_of_speakers_before_texts_is_one_error(self, tmp_path, texts, speakers):
        """As in VITS's lists: the speakers would be learned as texts. Those of VCTK read the same sentences."""
        files = [f"{name}.wav" for name in "abcdef"]
        if len({*speakers}) >= len({*texts}):
            texts = [*texts[:3], *(f"{text} again" for text in texts[3:])]
        lines = [f"{file}|{who}|{text}|xx" for file, who, text in zip(files, speakers, texts)]
        with pytest.raises(RecipeError, match=r"2nd column \('1272'\) seems to be the speaker and the 3rd \('.*'\) the text.*"
                                              "or, if the 2nd is the text, audio, text and another name"):
            self.table(tmp_path, "\n".join(lines), files)
        found, _ = self.table(tmp_path, "\n".join(["audio|speaker|text|language", *lines]), files)
        assert [text for _, text in found] == texts

    @pytest.mark.parametrize("words, third", [
        (["one", "two"], [f"2024-03-01 00:15:0{number}" for number in range(6)]),
        (["one", "two"], [f"Galaxy Tab S{number}" for number in range(6)]),
        (["one", "two"], ["to be said again", "much too loud here", "a door falls shut", "", "", ""]),
        (["はい", "いいえ"], [f"スマートフォン{number}" for number in "一二三四五六"])])
    def test_few_words_beside_what_is_no_sentence_are_the_texts(self, tmp_path, words, third):
        files = [f"{name}.wav" for name in "abcdef"]
        found, left_out = self.table(tmp_path, "\n".join(map(",".join, zip(files, words * 3, third))), files)
        assert [text for _, text in found] == words * 3 and left_out == {}

    @pytest.mark.parametrize("values, known", [(["5.855", "4.0", "12.31"], False), (["5,855", "4,815", ""], False),
                                               (["1272.0", "1462.0", "84.0"], True)])
    def test_numbers_with_a_fraction_in_the_third_column_are_no_speakers(self, tmp_path, capsys, values, known):
        """But durations, by which nobody would be held out; 1272.0 is a whole number, as pandas writes some."""
        self.table(tmp_path, "".join(f"{name}.wav|one two|{value}\n" for name, value in zip("abc", values)))
        assert capsys.readouterr().out.endswith(
            f"the speaker the 3rd ({values[0]!r})\n" if known else
            f"the 3rd ({values[0]!r}) is a number with a fraction in most rows and no speaker: none is known\n")
        read = read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1]
        assert [s.speaker for s in read] == (values if known else [None] * 3)

    @pytest.mark.parametrize("header, row, unused", [
        ("audio,text,duration", "a.wav,one,0.3", "column duration"),
        ("audio,text,start,end,duration,take", "a.wav,one,0,0.3,0.3,1", "columns duration, take"),
        ("audio,text,start,duration", "a.wav,one,0,0.3", ""),
        (f"audio,text,{','.join(f'take{number}' for number in range(12))}", f"a.wav,one{',1' * 12}",
         "columns take0, take1, take2, take3, take4, take5, take6, take7 and 4 more")])
    def test_a_duration_that_has_no_use_is_named(self, tmp_path, capsys, header, row, unused):
        self.table(tmp_path, f"{header}\n{row}\n")
        assert capsys.readouterr().out == (f"{tmp_path / 't.csv'}: not used: the {unused}\n" if unused else "")

    @pytest.mark.parametrize("header, row, said", [
        ("audio,sentence,speaker,text", "a.wav,two,anna,one", "the text is the column text, not sentence"),
        ("file,Audio,text,sentence,sentence", "x.wav,a.wav,one,two,three", "the audio is the column audio, not file"),
        ("audio,text,end,start", "a.wav,one,0.3,0", "")])
    def test_of_several_columns_the_best_name_is_taken(self, tmp_path, capsys, header, row, said):
        found, left_out = self.table(tmp_path, f"{header}\n{row}\n")
        assert [text for _, text in found] == ["one"] and left_out == {}
        printed = capsys.readouterr().out
        assert said in printed and printed.startswith(str(tmp_path / "t.csv")) == bool(said)

    @pytest.mark.parametrize("header, said", [("audio,text,Text", "two columns text: .* that is not the text"),
                                              ("audio,audio,text", "two columns audio: .* that is not the audio")])
    def test_two_columns_of_one_name_are_one_error(self, tmp_path, header, said):
        with pytest.raises(RecipeError, match=said):
            self.table(tmp_path, f"{header}\na.wav,one,two\n")

    @pytest.mark.parametrize("column", ["split", "Subset", "set", "part"])
    def test_a_column_says_what_part_a_row_is_in(self, tmp_path, capsys, column):
        for name in ("a.wav", "b.wav", "c.wav", "d.wav", "e.wav", "f.wav"):
            soundfile.write(tmp_path / name, say(["ONE"]), 16000)
        (tmp_path / "t.csv").write_text(f"audio,text,{column},take\na.wav,one,train,1\nb.wav,two,test,1\nc.wav,three,train,2\n"
                                        "d.wav,four,,2\ne.wav,five,nan,2\nf.wav,six,NULL,2\n")
        skipped = Reasons()
        parts = read_corpus("csv", str(tmp_path / "t.csv"), skipped)
        assert {part: [[r.id for r in of], [s.text for s in said]] for part, (of, said) in parts.items()} == {
            "train": [["a", "c"], ["one", "three"]], "test": [["b"], ["two"]]}
        assert list(skipped.of.values()) == [f"its cell of the column {column} has no value"] * 3
        assert capsys.readouterr().out == f"{tmp_path / 't.csv'}: not used: the column take\n"

    def call(self, tmp_path, content):
        """Of a table of a call on two channels and of a mono file (id, channel, start, speaker), and what is left out."""
        tones = np.stack([say(["ONE"] * 4), say(["TWO"] * 4)], axis=1)
        soundfile.write(tmp_path / "call.wav", tones, 16000)
        soundfile.write(tmp_path / "mono.wav", tones[:, 0], 16000)
        (tmp_path / "t.csv").write_text(content)
        skipped = Reasons()
        parts = read_corpus("csv", str(tmp_path / "t.csv"), skipped)["all"]
        cuts = checked_cuts(*parts, 16000, skipped)
        assert all(np.abs(cut.load_audio()[0] - tones[:len(cut.load_audio()[0]), s.channel]).max() < 1e-3
                   for cut in cuts for s in cut.supervisions if cut.start == 0 and isinstance(s.channel, int))
        return [(s.id, s.channel, s.start, s.speaker) for s in parts[1]], skipped.of

    @pytest.mark.parametrize("numbers", ["012", ("0.0", "1.0", "2.0")])  # as pandas writes them where a cell is empty
    def test_a_column_says_what_channel_a_row_is_of(self, tmp_path, capsys, numbers):
        zero, one, two = numbers
        rows = [f"call.wav,{zero},0,1.0,one,anna", f"call.wav,{one},0,1.0,two,bert", f"call.wav,{one},0,1.2,three,bert",
                f"mono.wav,{one},0,1.0,four,carl", f"call.wav,{two},0,0.5,five,dora", "call.wav,A,0,0.5,six,dora"]
        found, left_out = self.call(tmp_path, "audio,channel,start,end,text,speaker\n" + "\n".join(rows))
        assert found == [("call-0-0000000", 0, 0, "anna"), ("call-1-0000000", 1, 0, "bert"),
                         ("call-1-0000000-0001200", 1, 0, "bert"), ("mono-0000000", 0, 0, "carl"),
                         ("call-2-0000000", 2, 0, "dora")]
        assert sorted(left_out.values()) == ["its channel is 'A', and channels are numbers, the first being 0",
                                             "its recording has no channel 2, but [0, 1]"]
        assert "not used" not in capsys.readouterr().out

    def test_whole_files_by_channel(self, tmp_path):
        found, left_out = self.call(tmp_path, "audio,channel,text\ncall.wav,0,one\ncall.wav,1,two\n")
        assert found == [("call-0", 0, 0, None), ("call-1", 1, 0, None)] and left_out == {}

    @pytest.mark.parametrize("numbers", ["12", "AB"])
    def test_channels_that_do_not_count_from_0_are_one_error(self, tmp_path, numbers):
        """Each would be heard with the words of the other."""
        with pytest.raises(RecipeError, match="t.csv: no cell of the column channel is 0, and the first channel is: number"):
            self.call(tmp_path, "audio,channel,text\n" + "".join(f"call.wav,{number},one\n" for number in numbers))
        found, _ = self.call(tmp_path, f"audio,channel,text\nmono.wav,{numbers[0]},one\n")  # which has but one
        assert found == [("mono", 0, 0, None)]

    def test_rows_of_one_file_with_other_texts_and_no_times_that_are_known_are_all_left_out(self, tmp_path):
        """The whole file would be heard with the words of its first row."""
        lines = ["a.wav,0,one", "b.wav,0,two", "c.wav,0,One", "a.wav,0.3,two", "c.wav,0.3, one"]
        found, left_out = self.table(tmp_path, "\n".join(["audio,from_s,text", *lines]))
        assert found == [("b", "two"), ("c", "One"), ("c", " one")]  # the second of which is left out as such later
        assert left_out == {"a": "other rows name its file with other texts, and no columns start and end (or duration) tell "
                                 "which part of it a row is of"}
        skipped = Skipped()
        recordings, _ = read_corpus("csv", str(tmp_path / "t.csv"), skipped)["all"]
        assert {recording.id for recording in recordings} == {"b", "c"} and len(skipped) == 2

    @pytest.mark.parametrize("header", ["audio,text,from_s,to_s\n", ""])
    def test_a_table_of_parts_of_files_without_times_that_are_known_is_one_error(self, tmp_path, header):
        with pytest.raises(RecipeError, match="2 of 3 rows name .* which part of it a row is of: name those columns so"):
            self.table(tmp_path, f"{header}a.wav,one,0,0.3\na.wav,two,0.3,0.6\nb.wav,one,0,0.3\n")

    def test_a_part_that_would_lose_all_of_its_rows_is_one_error(self, tmp_path):
        """Else a test with two references for each file would go, and other speech of training be the test."""
        rows = ["a.wav,one,train", "b.wav,two,train", "d.wav,two,train", "c.wav,one,test", "c.wav,two,test"]
        with pytest.raises(RecipeError, match="all rows of the part test name a file .*, or leave one row of each file"):
            self.table(tmp_path, "\n".join(["audio,text,split", *rows]), [f"{name}.wav" for name in "abcd"])

    @pytest.mark.parametrize("texts, same", [(("hello there 3", "Hello, there 3."), True), (("ice cream", "Ice-cream"), True),
                                             (("hello", "..."), False), (("के", "का"), False)])
    def test_texts_that_differ_in_case_spaces_or_punctuation_alone_are_one(self, tmp_path, texts, same):
        rows = [f'a.wav,"{text}"' for text in texts] + ["b.wav,one", "c.wav,two"]
        found, left_out = self.table(tmp_path, "\n".join(["audio,text", *rows]))
        assert [text for name, text in found if name == "a"] == [*texts] * same and (left_out == {}) == same

    def test_rows_of_one_start_are_told_apart_by_their_ends(self, tmp_path):
        rows = ["0,0.3,one", "0,0.6,one two", "0,0.3,one", "0,0.6,two"]
        found, _ = self.table(tmp_path, "audio,start,end,text\n" + "".join(f"a.wav,{row}\n" for row in rows))
        assert [name for name, _ in found] == ["a-0000000", "a-0000000-0000600"] * 2  # of which two are left out later

    @pytest.mark.parametrize("array, indent", [(False, None), (True, None), (True, 2)])
    def test_objects_of_json_are_rows(self, tmp_path, capsys, array, indent):
        """NeMo's keys, on lines of their own or in an array; digits in quotes, nothing and numbers stay what they are."""
        objects = [{"audio_filepath": "a.wav", "text": "one, \"two\"\u2028x", "offset": 0.10, "duration": 0.2, "speaker": "007",
                    "words": [{"word": "one"}]}, {},
                   {"audio_filepath": str(tmp_path / "b.wav"), "text": 7, "offset": 0, "duration": 0.3, "speaker": None,
                    "words": None}]
        lines = [json.dumps(item, ensure_ascii=False) for item in objects]
        content = json.dumps(objects, indent=indent) if array else "\n" + "\r\n\n".join(lines)
        found, left_out = self.table(tmp_path, content)
        assert found == [("a-0000100", 'one, "two"\u2028x'), ("b-0000000", "7")]
        ((where, reason),) = left_out.items()
        assert where.endswith("t.csv, item 2" if array else "t.csv, line 4") and "no audio path" in reason
        assert capsys.readouterr().out == f"{tmp_path / 't.csv'}: not used: the column words (nested)\n"
        read = read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1]
        assert [(s.start, round(s.end, 6), s.speaker) for s in read] == [(0.1, 0.3, "007"), (0, 0.3, None)]

    def test_an_object_of_nemo_without_an_offset_starts_at_0(self, tmp_path):
        """NeMo takes it so; without a duration too, nothing is known of its end."""
        found, left_out = self.table(tmp_path, '{"audio_filepath": "a.wav", "text": "one", "duration": 0.2}\n'
                                               '{"audio_filepath": "b.wav", "text": "two", "duration": 0.2, "offset": 0.1}\n'
                                               '{"audio_filepath": "c.wav", "text": "three"}\n')
        assert found == [("a-0000000", "one"), ("b-0000100", "two")]
        assert list(left_out.values()) == ["its times are no numbers of seconds"]
        _, left_out = self.table(tmp_path, "audio,text,offset,duration\na.wav,one,0,0.2\nb.wav,two,,0.2\n")
        assert list(left_out.values()) == ["its times are no numbers of seconds"]

    def test_a_key_without_use_that_is_nested_in_some_objects_costs_none(self, tmp_path, capsys):
        found, left_out = self.table(tmp_path, '{"audio": "a.wav", "text": "one", "mood": ["calm"], "sentence": ["x"]}\n'
                                               '{"audio": "b.wav", "text": "two", "mood": "calm", "sentence": "x"}\n')
        assert found == [("a", "one"), ("b", "two")] and left_out == {}
        assert f"{tmp_path / 't.csv'}: not used: the column mood\n" in capsys.readouterr().out

    @pytest.mark.parametrize("inner", [{"audio": "a.wav", "text": "one"}, ["a.wav", "one"]])
    def test_one_object_of_others_is_one_short_error(self, tmp_path, inner):
        content = json.dumps({f"utterance{number}": inner for number in range(1000)})
        with pytest.raises(RecipeError, match="one object, which holds others: write one whole object on each line") as error:
            self.table(tmp_path, content)
        with pytest.raises(RecipeError, match=r"keys utterance0 \(nested\), .* and 993 more, but none of the audio") as more:
            self.table(tmp_path, f'{content[:-1]}, "version": 1}}')
        assert max(len(str(error.value)), len(str(more.value))) < 500 + len(str(tmp_path))

    def test_the_keys_of_hugging_face_are_known(self, tmp_path):
        found, left_out = self.table(tmp_path, '{"file_name": "a.wav", "transcription": "one"}\n')
        assert found == [("a", "one")] and left_out == {}

    @pytest.mark.parametrize("content, said", [
        ('{"audio": "a.wav", "text": "one"}\n\n{"audio": "b.wav", "text": "two"\n', r", line 3: broken JSON \(Expecting ','"),
        ('{"audio": "a.wav", "text": "on', r", line 1: broken JSON \(Unterminated"),
        ('[{"audio": "a.wav", "text": "one"},\n{"audio": "b.wav", "text": "two"},\n', ", line 3: broken JSON"),
        ('{\n"audio": "a.wav", "text": "one"}\n', "line 1: broken JSON .*: write one whole object on each line"),
        ('{"audio": "a.wav", "text": "one"}\n["b.wav", "two"]\n', "line 2: JSON, but no object: write one"),
        ('[{"audio": "a.wav", "text": "one"}, 7]', "item 2: JSON, but no object"),
        ('[["a.wav", "one"], ["b.wav", "two"]]', "item 1: JSON, but no object: write one whole object on each line"),
        ('{"clip": "a.wav", "words": "one"}', "keys clip, words, but none of the audio or the text: let keys call them audio"),
        ('{"audio": {"path": "a.wav"}, "text": "one"}', r"keys audio \(nested\), text, but none of the audio: call that one"),
        ('{"audio": "a.wav", "text": "one", "\\ud83d": 1}', r"line 1: its key '\\ud83d' holds half of a character"),
        (f'{{"audio": "a.wav", "text": "one", "x": {"[" * 100000}', "line 1: JSON that is nested too deep"),
        ('{"audio": "a.wav", "text": "one", "Text": "two"}', "names two columns text: rename")])
    def test_json_that_is_no_table_is_one_error(self, tmp_path, content, said):
        with pytest.raises(RecipeError, match=said):
            self.table(tmp_path, content)

    def test_an_object_that_cannot_be_a_row_is_left_out_and_named(self, tmp_path):
        found, left_out = self.table(tmp_path, '{"audio": "a.wav", "text": "one"}\n{"audio": "b.wav", "text": ["two", "too"]}\n'
                                               '{"audio": "c.wav", "text": "\\ud83d"}\n{"audio": "b.wav", "text": NaN}')
        assert found == [("a", "one")] and [name[-6:] for name in left_out] == ["line 2", "line 3", "line 4"]
        assert "its text is nested" in list(left_out.values())[0] and "half of a character" in list(left_out.values())[1]

    def test_a_column_of_other_parts_is_not_used_and_that_is_said(self, tmp_path, capsys):
        found, left_out = self.table(tmp_path, "audio,text,part\na.wav,one,1\nb.wav,two,2\nc.wav,three,\n")
        assert len(found) == 3 and left_out == {}
        assert "the column part makes no parts, since none of its values says train, dev or test" in capsys.readouterr().out

    def test_a_cell_without_a_value_is_no_word(self, tmp_path):
        found, left_out = self.table(tmp_path, "audio,text,speaker\na.wav,one,nan\nb.wav,NaN,anna\nc.wav,NULL,anna\n")
        assert found == [("a", "one")] and sorted(left_out.values()) == [
            f"its text is {cell}, which tables hold where there is none" for cell in ("NULL", "NaN")]
        assert next(iter(read_corpus("csv", str(tmp_path / "t.csv"), Skipped())["all"][1])).speaker is None

    def test_ids_say_nothing_of_where_a_corpus_stands(self, tmp_path):
        ids = []
        for place in (tmp_path / "here", tmp_path / "far" / "away"):
            for name in ("s1/a", "s2/b"):
                (place / name).parent.mkdir(parents=True)
                soundfile.write(place / f"{name}.wav", say(["ONE"]), 16000)
            (tmp_path / "t.csv").write_text(f"{place}/s1/a.wav,one\n{place}/s2/b.wav,two\n")
            ids.append([s.id for s in read_form("csv", tmp_path / "t.csv")[0]["all"][1]])
        assert ids == [["s1-a", "s2-b"]] * 2

    def test_files_of_one_id_are_both_named(self, tmp_path):
        found, left_out = self.table(tmp_path, "s1/1-0.wav,one\ns1-1/0.wav,two\n./s1/1-0.wav,one\n",
                                     ("s1/1-0.wav", "s1-1/0.wav"))
        assert found == [("s1-1-0", "one")] * 2  # the second of which is left out as such later
        (reason,) = left_out.values()
        assert "s1-1/0.wav would have the id s1-1-0, which is that of" in reason and "s1/1-0.wav: rename" in reason

    @pytest.mark.parametrize("text", [
        "sep=;\na.wav;one, two\nb.wav;one, three\n", 'a.wav,"one; two"\nb.wav,"one; three"\n'.replace("; ", ", "),
        "a.wav,one; two\nb.wav,one; three\n", "a.wav\tone\nb.wav\ttwo\n".encode("utf-16")])
    def test_the_separator_is_the_one_under_which_there_is_audio(self, tmp_path, text):
        found, left_out = self.table(tmp_path, text)
        assert [name for name, _ in found] == ["a", "b"] and left_out == {} and "one" in found[0][1]

    def test_an_open_quote_takes_in_no_rows(self, tmp_path):
        found, left_out = self.table(tmp_path, 'a.wav,"one,anna\nb.wav,two,anna\nc.wav,three",anna\na.wav,"x\ny",anna\n')
        assert found == [("b", "two"), ("c", 'three"'), ("a", "x\ny")]
        ((where, reason),) = left_out.items()
        assert where.endswith("line 1") and "goes on to line 3, over rows with audio of their own" in reason

    def test_rows_without_audio_or_text_are_counted(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", say(["ONE"]), 16000)
        (tmp_path / "bad.csv").write_text("a.wav,one,anna\nnone.wav,one,anna\nlonely\n,two,anna\n")
        parts, left_out = read_form("csv", tmp_path / "bad.csv")
        assert len(parts["all"][1]) == 1 and left_out == 3
