"""What tools/new_recipe.py tells of a corpus before a recipe is made of it, and which corpora it refuses."""

import gzip
import json
import re

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import SupervisionSegment, SupervisionSet
from lhotse.utils import fastcopy
from toy_corpora import SPEAKERS, csv_corpus, cut, kaldi_corpus, manifests_corpus, say

from kdlib.errors import RecipeError
from kdlib.proposal import propose_rate
from kdlib.scoring import split_characters
from kdlib.survey import (common_punctuation, describe_survey, histogram, odd_characters, overlapping, rates,
                          seconds_of_rates, unspaced)



class TestTheSurvey:
    def test_it_tells_what_is_wrong_with_a_corpus(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "corpus")
        wav = table.parent / "wav"
        (wav / "speaker00-0.wav").unlink()
        (wav / "speaker00-1.wav").write_bytes((wav / "speaker00-1.wav").read_bytes()[:4000])
        soundfile.write(wav / "speaker01-0.wav", np.zeros(16000 * 31), 16000)
        soundfile.write(wav / "speaker01-1.wav", np.zeros((9600, 2)), 48000)
        lines = table.read_text().splitlines()
        lines += [lines[-1], f"wav/speaker02-0.wav, ,{SPEAKERS[2]}"]
        lines[20] = lines[20].replace(",", ",4 ", 1)
        table.write_text("\n".join(lines))
        output = new_recipe("--csv", table)
        for said in ("skipped wav-speaker00-0: ", "is missing", "skipped wav-speaker00-1: ", "is cut short",
                     "skipped wav-speaker11-7: a second utterance of this id", "skipped 4 in all",
                     "dev and test are held out of train by speaker", "1 utterances longer than 30 s",
                     "93 recordings of 16000 Hz, 1 channel; 1 recordings of 48000 Hz, 2 channels",
                     "odd character '4' (DIGIT FOUR): 1 times in 1 transcripts"):
            assert said in output, said

    def test_speakers_of_a_test_that_train_hears(self, new_recipe, tmp_path):
        output = new_recipe("--manifests", manifests_corpus(tmp_path / "corpus"))
        assert f"1 speakers of test-größe are in train too: {SPEAKERS[3]}" in output
        assert "held out" not in output
        assert 'test_sets="test-größe"' in (new_recipe.folder / "run.sh").read_text()

    def test_pairs_overlap_within_a_part_alone(self, new_recipe, tmp_path):
        """Kaldi folders of one talk each, called the same, whose utterances are called differently."""
        for part in ("train", "test"):
            folder = kaldi_corpus(tmp_path / "corpus" / part)
            for name in ("text", "utt2spk", "segments"):
                (folder / name).write_text("".join(f"{part}-{line}\n" for line in (folder / name).read_text().splitlines()))
        assert "overlap others" not in new_recipe("--kaldi", tmp_path / "corpus")

    def test_each_utterance_counts_once_and_where_it_is_left_out(self):
        """Two test sets of one talk, which share an utterance; and one too long, that tests decode all the same."""
        recordings, supervisions = [cut("a").recording], {
            name: [SupervisionSegment(id=id_, recording_id="a", start=begin, duration=2, text="A") for id_, begin in times]
            for name, times in (("one", [("x", 0), ("y", 1)]),
                                ("two", [("x", 0), ("y", 1), ("left out", 1.5), ("z", 9)]))}
        parts = {"train": [cut("t"), cut("short", seconds=0.15)], "dev": [cut("d", seconds=31.0)],
                 "one": [cut("x"), cut("y")], "two": [cut("x"), cut("y"), cut("z", seconds=40.0)]}
        lines = describe_survey([(recordings, some) for some in supervisions.values()], parts)
        assert sum(map(int, re.findall(r"^ *[0-9.]+ - +[0-9.]* s +(\d+)", "\n".join(lines), re.MULTILINE))) == 6
        assert "1 utterances longer than 30 s, which training leaves out: d" in lines
        assert "1 utterances shorter than 0.2 s, which training leaves out: short" in lines
        assert "audio: 1 recordings of 16000 Hz, 1 channel" in lines
        assert "2 utterances overlap others in their recording: x and y" in lines

    @given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(0, 1)), min_size=1, max_size=12))
    def test_each_that_overlaps_any_is_counted(self, spans):
        segments = [SupervisionSegment(id=str(k), recording_id="a", start=begin, duration=seconds, channel=channel, text="A")
                    for k, (begin, seconds, channel) in enumerate(spans)]
        brute = {a.id for a in segments for b in segments
                 if a is not b and a.channel == b.channel and a.start < b.end and b.start < a.end}
        assert {id_ for pair in overlapping(segments) for id_ in pair} == brute

    def test_punctuation_that_is_common_is_one_line(self, new_recipe, tmp_path):
        table = csv_corpus(tmp_path / "corpus", 2)
        lines = table.read_text().splitlines()
        lines[1:] = [line.replace(" ", ", ", 1) if k % 2 else line for k, line in enumerate(lines[1:])]
        table.write_text("\n".join(re.sub(r"^([^,]*),(.*),([^,]*)$", r'\1,"\2",\3', line) for line in lines))
        output = new_recipe("--csv", table)
        assert ("punctuation, which becomes tokens and is scored unless the recipe's normalise takes it out: "
                "',' in 50% of the transcripts") in output
        assert "odd character" not in output

    @pytest.mark.parametrize("parts, said", [
        ({"train": "", "dev": "ONE", "test": "ONE"}, "no utterance that can be used in train, which makes train: mend what"),
        ({"train": "ONE", "dev": " ", "test": "ONE"}, "in dev, which makes dev"),
        ({"train": "ONE", "dev": "ONE", "test": ""}, "in test, which makes test"),
        ({"all": ""}, "no utterance that can be used in all, which makes train")])
    def test_a_part_without_transcripts_is_one_error(self, new_recipe, tmp_path, capsys, parts, said):
        for part, text in parts.items():
            folder = tmp_path / "corpus" / part
            folder.mkdir(parents=True)
            for k in range(4):
                soundfile.write(folder / f"{part}{k}.wav", say(["ONE"]), 16000)
            (folder / "wav.scp").write_text("".join(f"{part}{k} {part}{k}.wav\n" for k in range(4)))
            (folder / "text").write_text("".join(f"{part}{k} {text}\n" for k in range(4)))
        with pytest.raises(RecipeError, match=said):
            new_recipe("--kaldi", tmp_path / "corpus")
        assert "its transcript is empty" in capsys.readouterr().out and not new_recipe.folder.exists()

    def test_an_utterance_of_train_in_a_test_is_refused(self, new_recipe, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "supervisions_test-größe.jsonl.gz"
        tests = list(SupervisionSet.from_file(path))
        SupervisionSet.from_segments([*tests, next(iter(SupervisionSet.from_file(
            folder / "supervisions_train.jsonl.gz")))]).to_file(path)
        with pytest.raises(RecipeError, match="the utterance speaker00-0 is in the part train, which makes train, and in "
                                              r"test-größe, which makes test-größe \(1 of theirs are in both\): take it"):
            new_recipe("--manifests", folder)
        assert not new_recipe.folder.exists()

    def test_numbers_for_ids_texts_and_speakers(self, new_recipe, tmp_path):
        """As JSON that another program wrote may have them."""
        folder = manifests_corpus(tmp_path / "corpus")
        for path in folder.glob("*.jsonl.gz"):
            rows = [json.loads(line) for line in gzip.open(path, "rt")]
            for row in rows:
                for key in {"id", "recording_id", "speaker"} & row.keys():
                    row[key] = int(re.sub(r"\D", "", row[key]))
            if path.name.startswith("supervisions"):
                rows[0]["text"] = 5
            with gzip.open(path, "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        output = new_recipe("--manifests", folder)
        assert "train: 79 utterances" in output and "1 speakers of test-größe are in train too: 3" in output

    def test_histogram_covers_shortest_to_longest(self):
        lines = histogram([0.7, 2.5, 2.6, 45.0])
        assert len(lines) == 12 and lines[0].split()[:5] == ["0.5", "-", "1", "s", "1"]
        assert lines[2].count("#") == 40 and lines[0].count("#") == 20 and lines[-1].split()[:4] == ["30", "-", "s", "1"]

    def test_odd_characters_are_those_that_do_not_belong(self):
        texts = {f"u{k}": "THE CAT'S MAT" for k in range(100)}
        assert odd_characters(texts) == {}
        texts.update(a="5 CATS", b="A CAT – 5", c="КОТ")
        odd = odd_characters(texts)
        assert set(odd) == set("5–КОТ") and odd["5"] == (2, ["a", "b"])
        assert odd_characters({f"u{k}": f"ROOM {k % 10}" for k in range(100)}) == {}  # this corpus writes digits
        chinese = {f"u{k}": chr(0x4E00 + k) + "的" for k in range(100)}
        assert odd_characters(chinese) == {} and unspaced(chinese.values()) and not unspaced(texts.values())

    def test_a_script_without_spaces_is_one_whose_characters_are_counted(self):
        for words in ("今天", "カラオケ", "ｶﾗｵｹ", "人々〆々", "สวัสดี"):
            assert unspaced([words, "K"]) and split_characters([words]) == list(words)
        for words in ("HELLO", "नमस्ते", "안녕"):
            assert not unspaced([words, "今"]) and split_characters([words]) == [words]

    @pytest.mark.parametrize("character, said", [
        ("\u200b", r"'\u200b' (ZERO WIDTH SPACE)"), ("\ufeff", r"'\ufeff' (ZERO WIDTH NO-BREAK SPACE)"),
        ("\x7f", r"'\x7f' (no name)"), ("\ue000", r"'\ue000' (no name)")])
    def test_characters_that_nobody_sees_are_odd_however_many_there_are(self, character, said):
        cuts = [cut(f"u{k}") for k in range(4)]
        for some in cuts:
            some.supervisions[0].text = f"A{character}B, C\N{DEGREE SIGN}"
        lines = describe_survey([([some.recording for some in cuts], [])], {"train": cuts})
        assert [line for line in lines if line.startswith("odd")] == [
            f"odd character {said}: 4 times in 4 transcripts, u0, u1, u2 ..."]

    def test_of_many_odd_characters_the_first_ten_are_named(self):
        cuts = [cut(f"u{k}") for k in range(60)]
        for k, some in enumerate(cuts):
            some.supervisions[0].text = "THE CAT SAT ON THE MAT AND WAS FAT " + (chr(0x4E00 + k) if k < 12 else "")
        lines = [line for line in describe_survey([([cuts[0].recording], [])], {"train": cuts}) if "odd" in line]
        assert len(lines) == 11 and lines[9].startswith("odd character '\u4e09' (CJK UNIFIED IDEOGRAPH-4E09): 1 times")
        assert lines[10] == "... and 2 more odd characters"

    def test_a_mark_that_japanese_is_written_with_is_not_odd(self):
        texts = {f"u{k}": "人々が行く" if k % 40 == 0 else "人が行く" for k in range(200)}
        assert odd_characters(texts) == {} and odd_characters({**texts, "x": "〆切"}) == {}

    def test_the_chinese_zero_is_a_character_like_others(self):
        """And no symbol, though Unicode has it as a number; among words of letters it is as odd as any hanzi."""
        assert odd_characters({**{f"u{k}": "今天很好" for k in range(100)}, "x": "二〇二六年"}) == {}
        assert unspaced(["二〇〇〇", "ABC"]) and common_punctuation({"x": "二〇二六年"}) == {}
        assert set(odd_characters({**{f"u{k}": "A CAT" for k in range(300)}, **{f"z{k}": "〇" for k in range(10)}})) == {"〇"}

    @pytest.mark.parametrize("texts, said", [
        (["kıl", "kil"], True), (["Iğdır", "istanbul"], True), (["kil", "İstanbul"], False), (["KIL", "KİL"], False),
        (["to see Işık", *["a film"] * 30], False)])
    def test_letters_that_capitals_make_one(self, texts, said):
        """The transcripts of the cuts are normalised already."""
        cuts = [cut(f"u{k}") for k in range(len(texts))]
        spoken = [fastcopy(some.supervisions[0], text=text) for some, text in zip(cuts, texts)]
        lines = describe_survey([([cuts[0].recording], spoken)], {"train": cuts})
        assert [line for line in lines if "capitals" in line] == said * [
            "\u0131 and i (Turkish has both) become one letter, I, in capitals, which the recipe writes: let its "
            'normalise return " ".join(text.replace("I", "ı").replace("İ", "i").lower().split())']

    @pytest.mark.parametrize("texts, said", [
        (["Straße in Massen,", "Strasse in Maßen."], "maßen and massen, straße and strasse"),
        (["Maße", "MASSE"], "maße and masse"), (["Straße in Maßen", "Gasse"], "")])
    def test_words_that_capitals_make_one(self, texts, said):
        cuts = [cut(f"u{k}") for k in range(len(texts))]
        spoken = [fastcopy(some.supervisions[0], text=text) for some, text in zip(cuts, texts)]
        lines = describe_survey([([cuts[0].recording], spoken)], {"train": cuts})
        assert [line for line in lines if "capitals" in line] == bool(said) * [
            f"in capitals, which the recipe writes, ß is SS, so that {said} become one word: where they are two, let its "
            'normalise return " ".join(text.lower().split())']

    def test_a_combining_accent_is_odd_where_it_is_rare(self):
        texts = {f"u{k}": "CAFÉ" for k in range(100)}
        assert set(odd_characters({**texts, "d": "CAFE\u0301 X\u0302"})) == {"\u0301", "\u0302"}
        yoruba = {f"u{k}": "Ẹ\u0300KỌ\u0301" for k in range(100)}
        assert odd_characters(yoruba) == {}
        hindi = {**{f"u{k}": "नमस्ते" for k in range(100)}, "x": "की"}
        assert odd_characters(hindi) == {}  # a vowel sign is a letter of its script, however rare

    def test_common_punctuation(self):
        texts = {f"u{k}": "WELL, IT'S 5" if k % 4 else "YES!" if k else "HÉ & E\u0301" for k in range(100)}
        assert common_punctuation(texts) == {",": 75, "!": 24} and set(odd_characters(texts)) == {"&", "\u0301"}

    def test_overlaps_are_of_one_channel(self):
        def segment(name, start, duration, channel=0, of="talk"):
            return SupervisionSegment(id=name, recording_id=of, start=start, duration=duration, channel=channel)

        found = overlapping(SupervisionSet.from_segments([
            segment("a", 0, 10), segment("b", 2, 1), segment("c", 5, 1), segment("d", 10, 1), segment("e", 5, 5, channel=1),
            segment("f", 0, 5, of="other")]))
        assert found == [("a", "b"), ("a", "c")]
        assert overlapping([segment("a", 0, 10), segment("a", 0, 10), segment("b", 2, 1)]) == [("a", "b")]


def test_many_short_calls_are_less_than_one_long_talk():
    """The rate is that of most of the speech; the same recording in two parts is one."""
    recordings = [cut(f"call{k}").recording for k in range(9)]
    for recording in recordings:
        recording.sampling_rate, recording.duration = 8000, 3.0
    recordings += [cut("talk").recording] * 2
    assert rates(recordings) == {(8000, 1): 9, (16000, 1): 1}
    assert seconds_of_rates(recordings) == {(8000, 1): 27.0, (16000, 1): 60.0}
    assert propose_rate(seconds_of_rates(recordings)) == 16000
