"""The parts of a corpus: which make train, dev and the test sets, what is held out of train, and that they are apart."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy
from skipping import Reasons, listed
from toy_corpora import SPEAKERS, csv_corpus, cut, say

from kdlib.corpus_forms import read_corpus, read_manifests, write_parts
from kdlib.corpus_forms.shared import said_role
from kdlib.corpus_parts import (allot, check_apart, checked_role, describe_holding, describe_roles, hold_out,
                                part_roles, prepare_parts, subset)
from kdlib.errors import RecipeError
from kdlib.heard import heard_together
from kdlib.manifests import Skipped, describe, write_manifests
from kdlib.survey import shared_speakers



def long_session(table: Path) -> Path:
    """The table with a recording of a minute and a half more, that was never cut into utterances."""
    soundfile.write(table.parent / "wav" / "session.wav", say(["ONE"] * 300), 16000)
    with open(table, "a") as file:
        file.write(f"wav/session.wav,one two,{SPEAKERS[0]}\n")
    return table


class TestHoldingOut:
    SHARES = {"dev": 0.1, "test": 0.1}

    def names(self, dealt):
        return {part: sorted(c.id for c in cuts) for part, cuts in dealt.items()}

    def test_by_speaker_and_by_nothing_else_than_the_names(self):
        cuts = [cut(f"{speaker}-{k}", speaker) for speaker in map(str, range(20)) for k in range(5)]
        dealt, by = hold_out(cuts, self.SHARES)
        assert by == "speaker" and shared_speakers(dealt) == {}
        assert {part: len(some) for part, some in dealt.items()} == {"train": 80, "dev": 10, "test": 10}
        assert self.names(hold_out(cuts[::-1], self.SHARES)[0]) == self.names(dealt)
        assert sorted(c.id for some in dealt.values() for c in some) == sorted(c.id for c in cuts)

    @pytest.mark.parametrize("cuts, by", [
        ([cut(f"{k}", "one") for k in range(30)], "utterance"),
        ([cut(f"{k}", None) for k in range(30)], "utterance"),
        ([cut(f"{k}", None, of=f"talk{k % 15}") for k in range(45)], "recording"),
        # one speaker says nearly everything
        ([cut(f"{k}", f"s{k}" if k < 12 else "talker", 1.0 if k < 12 else 25.0) for k in range(40)], "utterance")])
    def test_where_speakers_are_too_few(self, cuts, by):
        dealt, how = hold_out(cuts, self.SHARES)
        assert how == by and len(dealt["train"]) > 0.6 * len(cuts)
        assert all(dealt.values())

    def test_three_utterances_are_enough_and_two_are_not(self):
        dealt, _ = hold_out([cut(name) for name in "abc"], self.SHARES)
        assert all(len(some) == 1 for some in dealt.values())
        with pytest.raises(RecipeError, match="2 utterances that can be used are too few"):
            hold_out([cut(name) for name in "ab"], self.SHARES)

    def test_what_training_leaves_out_has_no_share_and_stays_in_train(self):
        cuts = [cut(f"{k}", "one", 5.0) for k in range(30)] + [cut("session", "one", 3000.0), cut("click", "one", 0.15)]
        dealt, _ = hold_out(cuts, self.SHARES)
        assert {part: len(some) for part, some in dealt.items()} == {"train": 26, "dev": 3, "test": 3}
        assert {"session", "click"} <= {c.id for c in dealt["train"]}
        with pytest.raises(RecipeError, match=r"2 utterances that can be used are too few .* \(besides, there are 1 "
                                              r"longer than 30 s and 1 shorter than 0.2 s\)"):
            hold_out([cut("a"), cut("b"), cut("c", seconds=40.0), cut("d", seconds=0.1)], self.SHARES)

    def test_each_part_gets_an_utterance_however_they_last(self):
        for names in ("abc", "abd", "bce", "xyz"):
            for place in range(3):
                dealt, _ = hold_out([cut(n, seconds=29.0 if k == place else 0.2) for k, n in enumerate(names)], self.SHARES)
                assert all(len(some) == 1 for some in dealt.values())

    @pytest.mark.parametrize("unknown", [None, ""])
    def test_utterances_of_unknown_speakers_go_to_train(self, unknown):
        cuts = [cut(f"{speaker}-{k}", speaker) for speaker in map(str, range(20)) for k in range(5)]
        dealt, by = hold_out([*cuts, cut("somebody", unknown)], self.SHARES)
        assert by == "speaker" and shared_speakers(dealt) == {} and "somebody" in {c.id for c in dealt["train"]}
        assert describe_holding(self.SHARES, by, dealt["train"]) == (
            "dev and test are held out of train by speaker; 1 utterances whose speakers are not known are in train")

    def test_speakers_of_one_utterance_each_are_speakers(self):
        dealt, by = hold_out([cut(f"{k}", f"s{k}") for k in range(30)], self.SHARES)
        assert by == "speaker" and describe_holding(["dev"], by, dealt["train"]) == "dev is held out of train by speaker"

    def test_parts_by_their_names(self):
        assert part_roles(["train_clean", "Dev-A", "valid", "test_other", "eval92"]) == {
            "train": ["train_clean"], "dev": ["Dev-A", "valid"], "test-other": ["test_other"], "eval92": ["eval92"]}
        assert part_roles(["all"]) == {"train": ["all"]} and part_roles(["a", "b"]) == {"train": ["a", "b"]}
        assert part_roles(["größe-test", "prédev-train", "test.1"]) == {
            "train": ["prédev-train"], "größe-test": ["größe-test"], "test-1": ["test.1"]}

    @pytest.mark.parametrize("role, names", [
        ("train", "train tr tr05_real si_tr_s train_devanagari train-nodev tr_no_dev et-train tt-train no-train TrainClean"),
        ("dev", "validate Validation val cv dt05 si_dt_05 TrainDev train_dev devclean cv-dev no-dev"),
        ("test", "tt et05 si_et_05 held-out held_out HeldOut heldout2 holdout unseen TrainTest evaltest eval2000 TEST_NET tst"),
        (None, "devices testimonies other validated all no XL")])
    def test_what_names_of_parts_say(self, role, names):
        assert {name: said_role(name) for name in names.split()} == dict.fromkeys(names.split(), role)

    def test_a_part_that_might_be_for_a_test_is_refused(self):
        with pytest.raises(RecipeError, match="the parts other, validated might be for training or for a test, beside "
                                              "train, dev: rename what they come from"):
            part_roles(["train", "dev", "other", "validated"])

    def test_what_was_called_invalidated_makes_nothing(self):
        names = ["train", "test", "eu-invalidated"]
        assert part_roles(names) == {"train": ["train"], "test": ["test"]}
        assert describe_roles(names, part_roles(names)) == [
            "train is made of train", "test is made of test", "left out: eu-invalidated"]
        assert describe_roles(["all"], {"train": ["all"]}) == []

    @pytest.mark.parametrize("names", [("test_a", "test-a"), ("Test", "test"), ("train", "eval.1", "eval-1")])
    def test_test_sets_of_one_name_are_refused(self, names):
        with pytest.raises(RecipeError, match=f"the parts {names[-2]} and {names[-1]} of the corpus would both be called"):
            part_roles(names)

    def part(self, folder, ids, of=""):
        """Utterances of a part: each of a recording of its own, or all of the recording ``of``."""
        folder.mkdir()
        recordings = {}
        for name in ids:
            soundfile.write(folder / f"{of or name}.wav", say(["ONE"]), 16000)
            recordings[of or name] = Recording.from_file(folder / f"{of or name}.wav")
        return RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(
            SupervisionSegment(id=name, recording_id=of or name, start=0, duration=0.3, text="ONE") for name in ids)

    def test_an_id_in_two_parts_of_one_role_is_left_out_once(self, tmp_path, capsys):
        parts = {"a": self.part(tmp_path / "a", ["u0", "u1"]), "b": self.part(tmp_path / "b", ["u1", "u2"])}
        write_parts(tmp_path / "raw", parts)
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["a", "b"]}, {}, 16000)
        output = capsys.readouterr().out
        assert "skipped u1: a second utterance of this id" in output
        assert listed(tmp_path / "manifests")[-1] == (f"{tmp_path / 'raw'}, train", "u1", "a second utterance of this id")
        assert "cuts_train.jsonl.gz: 3 utterances" in output
        cuts = CutSet.from_file(tmp_path / "manifests" / "cuts_train.jsonl.gz")
        assert {c.id: Path(c.recording.sources[0].source).parent.name for c in cuts} == {"u0": "a", "u1": "a", "u2": "b"}

    def test_one_recording_id_of_two_files_in_two_parts_is_two_recordings(self, tmp_path):
        """As where Kaldi folders number their recordings alike; the same file in a third part is the recording that it is. An
        id that is made up belongs to no other, whatever the others are called."""
        parts = {"a": self.part(tmp_path / "a", ["u0"], "talk"), "b": self.part(tmp_path / "b", ["u1"], "talk"),
                 "d": self.part(tmp_path / "d", ["u3"], "b-talk")}
        parts["c"] = parts["a"][0], SupervisionSet.from_segments([
            SupervisionSegment(id="u2", recording_id="talk", start=0, duration=0.2, text="TWO")])
        skipped = Skipped()
        cuts = checked_role(parts, ["a", "b", "c", "d"], 16000, skipped)
        found = {c.id: (Path(c.recording.sources[0].source).parent.name, c.recording_id) for c in cuts}
        assert len(skipped) == 0 and found == {
            "u0": ("a", "talk"), "u1": ("b", "b-b-talk"), "u2": ("a", "talk"), "u3": ("d", "b-talk")}
        write_parts(tmp_path / "raw", parts)
        assert self.prepared(tmp_path, parts={"train": [*parts]}, held_out={}) == {"train": ["u0", "u1", "u2", "u3"]}

    def test_of_two_files_of_one_id_in_a_part_none_is_taken_for_that_of_a_part_before(self, tmp_path):
        parts = {"a": self.part(tmp_path / "a", ["u0"], "talk"), "b": self.part(tmp_path / "b", ["u1"], "talk")}
        parts["b"] = RecordingSet.from_recordings([*parts["a"][0], *parts["b"][0]]), parts["b"][1]
        skipped = Reasons()
        assert [c.id for c in checked_role(parts, ["a", "b"], 16000, skipped)] == ["u0"]
        assert skipped.of["u1"] == "two files have the id of its recording, b-talk"

    @given(st.lists(st.tuples(st.sampled_from(["train", "dev", "test-a", "test-b"]), st.integers(0, 5)), unique=True))
    def test_ids_are_apart_but_for_test_sets(self, placed):
        """However the parts are ordered."""
        parts, roles = {}, {}
        for role, number in placed:
            roles.setdefault(role, []).append(f"{role}{number}")
            parts[f"{role}{number}"] = [], [SupervisionSegment(id=f"u{number}", recording_id="r", start=0, duration=1)]
        leak = any(a[1] == b[1] and a[0] != b[0] and {a[0], b[0]} & {"train", "dev"} for a in placed for b in placed)
        if leak:
            with pytest.raises(RecipeError, match=r"the utterance u\d is in the part"):
                check_apart(parts, roles)
        else:
            check_apart(parts, roles)

    def test_a_leak_is_refused_by_the_recipe_too(self, tmp_path):
        write_parts(tmp_path / "raw", {"a": self.part(tmp_path / "a", ["u0", "u1"]), "b": self.part(tmp_path / "b", ["u1"])})
        with pytest.raises(RecipeError, match="utterance u1 is in the part a, which makes train, and in b, which makes dev"):
            prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["a"], "dev": ["b"]}, {}, 16000)

    def test_the_same_audio_under_another_id_is_a_leak_too(self, tmp_path):
        """By whatever path it is named; other times or another channel of it are something else."""
        recordings, _ = self.part(tmp_path / "a", ["talk"])
        (tmp_path / "link.wav").symlink_to(tmp_path / "a" / "talk.wav")
        other = Recording.from_file(tmp_path / "link.wav", recording_id="other")

        def said(id_, start, duration, of="other", channel=0):
            return SupervisionSegment(id=id_, recording_id=of, start=start, duration=duration, text="ONE", channel=channel)

        parts = {"a": (recordings, [said("u0", 0, 0.1, "talk"), said("u1", 0.1, 0.2, "talk"), said("u2", 0, 0.2, "talk")]),
                 "b": ([other], [said("v0", 0.1, 0.1), said("v1", 0, 0.1, channel=1), said("v2", float("nan"), 0.1)])}
        roles = {"train": ["a"], "test": ["b"]}
        check_apart(parts, roles)
        parts["b"][1].extend([said("v3", 0.1002, 0.1999), said("v4", 0, 0.2)])
        with pytest.raises(RecipeError, match=r"utterance u1 of the part a, which makes train, is the same audio as v3 of "
                                              r"b, which makes test \(2 of theirs are in both\): take it out of one "
                                              "of them"):
            check_apart(parts, roles)
        check_apart(parts, {"test-a": ["a"], "test-b": ["b"]})

    def test_a_copy_of_a_file_is_the_same_audio(self, tmp_path):
        """Byte for byte; another of its size is not, though the middle of both is silent, nor is a pipe, or what is missing."""
        recordings, supervisions = self.part(tmp_path / "a", ["u0", "u1"])
        silent = np.zeros(16000)
        for name, level in (("s0", 0.1), ("s1", 0.2)):
            silent[0] = level
            soundfile.write(tmp_path / "a" / f"{name}.wav", silent, 16000)
        os.mkfifo(tmp_path / "p0.wav")
        os.mkfifo(tmp_path / "p1.wav")

        def part(*files):
            """An utterance of each file, which are named in any folder."""
            some = [Recording(file.stem, [AudioSource("file", [0], str(file))], 16000, 4800, 0.3) for file in files]
            return some, [SupervisionSegment(id=f"{file.parent.name}-{file.stem}", recording_id=file.stem, start=0,
                                             duration=0.3, text="ONE") for file in files]

        a, b = tmp_path / "a", tmp_path / "b"
        b.mkdir()
        parts = {"a": part(a / "u0.wav", a / "u1.wav", a / "s0.wav", a / "gone.wav", tmp_path / "p0.wav"),
                 "b": part(a / "s1.wav", b / "gone.wav", tmp_path / "p1.wav")}
        roles = {"train": ["a"], "test": ["b"]}
        check_apart(parts, roles)
        shutil.copy(a / "u1.wav", b / "v.wav")
        parts["b"] = part(a / "s1.wav", b / "v.wav")
        with pytest.raises(RecipeError, match=r"utterance a-u1 of the part a, which makes train, is the same audio as b-v of "
                                              r"b, which makes test \(1 of theirs are in both\)"):
            check_apart(parts, roles)

    @pytest.mark.parametrize("what, reason", [
        ("no text", "its transcript is empty"), ("page", "Format not recognised"), ("cut short", "is cut short"),
        ("raw", "samples without a header")])
    def test_copies_that_nothing_could_use_are_no_leak(self, tmp_path, what, reason):
        """As silence without a transcript and failed downloads, which are left out and named. One id is still refused."""
        parts = {"a": self.part(tmp_path / "a", ["u0", "u1"]), "b": self.part(tmp_path / "b", ["v0", "v1"])}
        one, copy = tmp_path / "a" / "u0.wav", tmp_path / "b" / ("v0.raw" if what == "raw" else "v0.wav")
        if what == "page":
            one.write_text("<html>404 Not Found</html>")
        elif what == "cut short":
            one.write_bytes(one.read_bytes()[:2000])
        shutil.copy(one, copy)
        list(parts["b"][0])[0].sources[0].source = str(copy)
        for first in (list(part[1])[0] for part in parts.values()):
            first.text = "..." if what == "no text" else "ONE"
        options = {"parts": {"train": ["a"], "test": ["b"]}, "held_out": {}, "normalise": lambda text: text.replace(".", "")}
        write_parts(tmp_path / "raw", parts)
        assert self.prepared(tmp_path, **options) == {"train": ["u0", "u1"] if what == "raw" else ["u1"], "test": ["v1"]}
        said = {name: why for _, name, why in listed(tmp_path / "manifests")}
        assert set(said) == {"v0"} | {*(["u0"] if what != "raw" else [])} and all(reason in why for why in said.values())
        recordings, supervisions = parts["b"]
        parts["b"] = recordings, [fastcopy(s, id=s.id.replace("v0", "u0")) for s in supervisions]
        with pytest.raises(RecipeError, match="the utterance u0 is in the part a, which makes train, and in b"):
            check_apart(parts, options["parts"])

    def test_the_same_path_of_what_cannot_be_read_is_a_leak(self, tmp_path):
        parts = {name: self.part(tmp_path / name, [id_], "talk") for name, id_ in (("a", "u"), ("b", "v"))}
        (tmp_path / "a" / "talk.wav").write_text("<html>404 Not Found</html>")
        parts["b"] = parts["a"][0], parts["b"][1]
        with pytest.raises(RecipeError, match="utterance u of the part a, which makes train, is the same audio as v of b"):
            check_apart(parts, {"train": ["a"], "test": ["b"]})

    def test_no_file_of_a_corpus_of_one_role_is_read(self, tmp_path, monkeypatch):
        parts = {name: self.part(tmp_path / name, [name]) for name in "ab"}
        monkeypatch.setattr("kdlib.corpus_parts.known_files", lambda recordings: pytest.fail("nothing can be shared"))
        check_apart(parts, {"train": ["a", "b"]})

    def test_many_copies_are_not_compared_with_each_other(self):
        """30,000 would be half a billion pairs. Copies are of the group of what overlaps them."""
        differences = []

        class Moment(int):
            def __sub__(self, other):
                differences.append(other)
                return int(self) - int(other)

        silence = ((("silence.wav", 0),), Moment(0), Moment(1000))
        audios = {f"u{k:03d}": silence for k in range(300)}
        audios.update({"a": ((("silence.wav", 0),), Moment(200), Moment(1000)), "b": ((("other.wav", 0),), 0, 1000),
                       "c": None, "d": None})
        assert heard_together(audios) == {**dict.fromkeys(audios, "a"), "b": "b", "c": "c", "d": "d"}
        assert 0 < len(differences) < 10

    def test_copies_of_a_file_are_held_out_as_one(self, tmp_path):
        recordings, _ = self.part(tmp_path / "a", [f"u{k:02d}" for k in range(30)])
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        cuts = []
        for recording in recordings:
            file = Path(recording.sources[0].source)
            for name, path in ((f"a-{file.stem}", file), (f"b-{file.stem}", tmp_path / "b" / file.name)):
                cuts.append(cut(name, None, 0.3))
                cuts[-1].recording = Recording.from_file(path, recording_id=name)
        dealt, by = hold_out(cuts, self.SHARES)
        assert by == "utterance" and min(map(len, dealt.values())) > 0
        places = [{c.id[2:] for c in some} for some in dealt.values()]
        assert sum(map(len, places)) == 30

    @pytest.mark.parametrize("one, other, channel, leak", [
        ([[0]], [[0], [1]], 0, True), ([[0]], [[0], [1]], 1, False), ([[0], [1]], [[0, 1]], 0, True),
        ([[0], [1]], [[1], [0]], 0, False), ([[0], [1]], [[1], [0]], 1, True)])
    def test_audio_of_one_of_several_files_is_the_same_in_any_recording(self, one, other, channel, leak):
        """Channel 0 of ``one`` is the first of ch0.wav; the channels of both are given for each file."""
        def part(name, channels, channel):
            talk = Recording(name, [AudioSource("file", some, f"ch{k}.wav") for k, some in enumerate(channels)], 16000, 160000,
                             10.0)
            return [talk], [SupervisionSegment(id=name, recording_id=name, start=0, duration=5, channel=channel, text="ONE")]

        parts = {"a": part("u", one, 0), "b": part("v", other, channel)}
        if leak:
            with pytest.raises(RecipeError, match="utterance u of the part a, which makes train, is the same audio as v of b"):
                check_apart(parts, {"train": ["a"], "test": ["b"]})
        else:
            check_apart(parts, {"train": ["a"], "test": ["b"]})

    @pytest.mark.parametrize("perturb", ["perturb_speed", "perturb_tempo"])
    def test_audio_that_is_perturbed_in_speed_is_that_of_its_file(self, perturb):
        """Of 0.9 of the speed, 333.3 s are where 300 s were."""
        talk = Recording("talk", [AudioSource("file", [0], "talk.wav")], 16000, 16000 * 600, 600.0)
        slow = getattr(talk, perturb)(0.9)

        def part(recording, id_, start, seconds):
            return [recording], [SupervisionSegment(id=id_, recording_id=recording.id, start=start, duration=seconds,
                                                     text="ONE")]

        roles = {"train": ["a"], "test": ["b"]}
        check_apart({"a": part(slow, "u", 333.3, 11.1), "b": part(talk, "v", 333.3, 10.0)}, roles)
        with pytest.raises(RecipeError, match="the utterance v of the part b, which makes test, lies mostly within audio"):
            check_apart({"a": part(slow, "u", 333.3, 11.1), "b": part(talk, "v", 300.0, 10.0)}, roles)

    @pytest.mark.parametrize("start, seconds, channel, leak", [
        (1.0, 3.0, 0, True), (3.0, 3.9, 0, True), (4.0, 2.4, 0, False), (0.0, 5.0, 1, False), (8.0, 1.2, 0, False),
        (4.5, 4.0, 0, True), (4.9, 0.15, 0, False)])
    def test_an_utterance_within_audio_of_train_is_a_leak(self, start, seconds, channel, leak):
        """Of which there is 0 to 5 s, in two utterances that overlap, and 6.5 to 8.5 s."""
        talk = Recording("talk", [AudioSource("file", [0, 1], "talk.wav")], 16000, 160000, 10.0)

        def said(id_, start, seconds, channel=0):
            return SupervisionSegment(id=id_, recording_id="talk", start=start, duration=seconds, channel=channel, text="ONE")

        parts = {"a": ([talk], [said("u0", 0.0, 4.0), said("u1", 3.0, 2.0), said("u2", 6.5, 2.0)]),
                 "b": ([talk], [said("v0", 8.5, 1.0), said("v1", start, seconds, channel)])}
        if leak:
            with pytest.raises(RecipeError, match=r"utterance v1 of the part b, which makes test, lies mostly within audio of "
                                                  r"train \(1 of its 2 do\): take it out"):
                check_apart(parts, {"train": ["a"], "test": ["b"]})
        else:
            check_apart(parts, {"train": ["a"], "test": ["b"]})
        check_apart(parts, {"test-a": ["a"], "test-b": ["b"]})

    def test_windows_that_slide_over_a_recording_are_held_out_with_it(self):
        cuts = [fastcopy(cut(f"{talk}-{k}", None, 10.0, of=talk), start=2.0 * k) for talk in "abc" for k in range(20)]
        for some in cuts:
            some.recording.sources[0].source = f"{some.recording_id}.wav"
        dealt, by = hold_out(cuts, self.SHARES)
        assert by == "utterance" and {part: len({c.recording_id for c in some}) for part, some in dealt.items()} == {
            "train": 1, "dev": 1, "test": 1}
        with pytest.raises(RecipeError, match="^2 utterances that can be used, overlapping ones taken as one, are too few"):
            hold_out(cuts[:40], self.SHARES)
        apart = [fastcopy(some, start=6.0 * (k % 20)) for k, some in enumerate(cuts)]  # of what they share there is less
        assert len(hold_out(apart, self.SHARES)[0]["dev"]) == 6

    def test_by_speaker_what_is_heard_within_audio_of_train_is_left_out(self):
        """As where a speaker of dev and one of train speak at once; a smaller share of it does no harm."""
        cuts = {f"{speaker}-{k}": cut(f"{speaker}-{k}", f"s{speaker}") for speaker in range(20) for k in range(5)}
        whole, _ = hold_out([*cuts.values()], self.SHARES)
        (dev, other), heard = whole["dev"][:2], whole["train"][0]
        for some, start in ((dev, 0.4), (other, 0.6)):
            cuts[some.id] = fastcopy(some, recording=heard.recording, start=start)
        skipped = Reasons()
        dealt, by = hold_out([*cuts.values()], self.SHARES, skipped)
        assert by == "speaker" and skipped.of == {dev.id: "it would be in dev, and lies mostly within audio of train"}
        assert self.names(dealt) == {**self.names(whole), "dev": sorted(c.id for c in whole["dev"] if c.id != dev.id)}

    def test_of_a_meeting_in_one_recording_none_is_heard_in_train(self, tmp_path, capsys):
        """Twelve people, of whom each second one speaks before the one before is done."""
        soundfile.write(tmp_path / "talk.wav", say(["ONE"] * 400), 16000)
        segments = [SupervisionSegment(id=f"u{k:02d}", recording_id="talk", start=1.2 * k + (0.2, 1.0)[k % 2], duration=1.0,
                                       text="ONE", speaker=f"s{k * 7 % 12}") for k in range(96)]
        write_parts(tmp_path / "raw", {"all": (RecordingSet.from_recordings([Recording.from_file(tmp_path / "talk.wav")]),
                                               SupervisionSet.from_segments(segments))})
        found = self.prepared(tmp_path, parts={"train": ["all"]}, held_out=self.SHARES)
        assert sum(map(len, found.values())) == 96 and min(map(len, found.values())) > 5
        pairs = {part: {(int(name[1:]) + 1) // 2 for name in names} for part, names in found.items()}
        assert not pairs["train"] & (pairs["dev"] | pairs["test"])
        assert ("dev and test are held out of train by utterance: there are too few known speakers, or one says too much, "
                "or others speak at once, to hold some out") in capsys.readouterr().out

    def test_what_is_left_out_of_what_is_held_out_is_named_and_listed(self, new_recipe, tmp_path, capsys):
        recordings, supervisions = read_corpus("csv", str(csv_corpus(tmp_path / "corpus")), Skipped())["all"]
        options = {"parts": {"train": ["all"]}, "held_out": self.SHARES}
        write_parts(tmp_path / "raw", {"all": (recordings, supervisions)})
        before = self.prepared(tmp_path, **options)
        moved, heard = before["dev"][0], before["train"][0]
        said = [fastcopy(s, recording_id=heard, start=0.1, duration=0.4) if s.id == moved else s for s in supervisions]
        write_parts(tmp_path / "raw", {"all": (recordings, SupervisionSet.from_segments(said))})
        assert self.prepared(tmp_path, **options) == {**before, "dev": before["dev"][1:]}
        reason = "it would be in dev, and lies mostly within audio of train"
        assert (f"{tmp_path}/raw, held out of train", moved, reason) in listed(tmp_path / "manifests")
        for printed in (capsys.readouterr().out, new_recipe("--manifests", tmp_path / "raw")):
            assert f"skipped {moved}: {reason}\nskipped 1 in all of {tmp_path}/raw, held out of train" in printed

    @pytest.mark.parametrize("speakers", [["one"], [f"s{k}" for k in range(15)]])
    def test_the_same_audio_under_two_ids_is_held_out_as_one(self, speakers):
        cuts = [cut(f"{name}{k}", speakers[(k + shift) % len(speakers)], of=f"talk{k}")
                for name, shift in (("u", 0), ("v", 1)) for k in range(30)]
        for k, some in enumerate(cuts):
            some.recording.sources[0].source = f"talk{k % 30}.wav"
        dealt, by = hold_out(cuts, self.SHARES)
        assert by == ("utterance" if speakers == ["one"] else "speaker")
        places = {part: {c.id[1:] for c in some} for part, some in dealt.items()}
        assert sum(map(len, places.values())) == 30 and sorted(c.id for some in dealt.values() for c in some) == sorted(
            c.id for c in cuts)
        with pytest.raises(RecipeError, match="2 utterances that can be used are too few"):
            hold_out([some for some in cuts if some.id[1:] in "01"], self.SHARES)

    def test_one_long_recording_leaves_training_what_it_had(self, new_recipe, tmp_path, capsys):
        table = csv_corpus(tmp_path / "corpus", 2)
        without = new_recipe("--csv", table)
        with_it = new_recipe("--csv", long_session(table), name="other")
        count = re.compile(r"^train: (\d+)", re.MULTILINE)
        assert int(count.search(with_it)[1]) == int(count.search(without)[1]) + 1
        assert "1 utterances longer than 30 s, which training leaves out: wav-session" in with_it
        hours = re.compile("for ([0-9.]+) h of training")
        assert hours.search(with_it)[1] == hours.search(without)[1]
        write_parts(tmp_path / "raw", read_corpus("csv", str(table), Skipped()))
        for hours in (0.0, 0.002):  # some of the hours are hours of utterances too
            prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["all"]}, self.SHARES, 16000, hours=hours)
            train = CutSet.from_file(tmp_path / "manifests" / "cuts_train.jsonl.gz")
            assert sum(c.duration < 30 for c in train) > 2

    def test_nothing_to_train_on_is_one_error(self, new_recipe, tmp_path):
        (tmp_path / "wav").mkdir()
        for k in range(4):
            soundfile.write(tmp_path / "wav" / f"{k}.wav", say(["ONE"] * 120), 16000)
        (tmp_path / "corpus.csv").write_text("".join(f"wav/{k}.wav,one,anna\n" for k in range(4)))
        with pytest.raises(RecipeError, match="corpus.csv has no utterance that can be trained on: of 4 there are 4 longer "
                                              "than 30 s; cut long recordings into utterances"):
            new_recipe("--csv", tmp_path / "corpus.csv")
        assert not new_recipe.folder.exists()

    def test_too_little_to_train_on_is_one_error(self, new_recipe, tmp_path):
        (tmp_path / "wav").mkdir()
        for k in range(4):
            soundfile.write(tmp_path / "wav" / f"{k}.wav", say(["ONE", "TWO"] * (k + 1)), 16000)
        (tmp_path / "corpus.csv").write_text("".join(f"wav/{k}.wav,{'one two ' * (k + 1)},anna\n" for k in range(4)))
        with pytest.raises(RecipeError, match="2 training utterances are too few to make batches of: use more data"):
            new_recipe("--csv", tmp_path / "corpus.csv")
        assert not new_recipe.folder.exists()

    @pytest.fixture
    def of_long(self, tmp_path):
        """A part of utterances of 36 s each, in a folder and a manifest of its own."""
        def make(name, count):
            (tmp_path / name).mkdir()
            files = [tmp_path / name / f"{name}{k}.wav" for k in range(count)]
            for file in files:
                soundfile.write(file, say(["ONE"] * 120), 16000)
            recordings = [Recording.from_file(file) for file in files]
            return RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(
                SupervisionSegment(id=r.id, recording_id=r.id, start=0, duration=r.duration, text="ONE") for r in recordings)

        return make

    def test_a_dev_part_that_gives_no_dev_loss_is_one_error(self, of_long, new_recipe, tmp_path):
        write_parts(tmp_path / "raw", {"train": self.part(tmp_path / "train", ["u0", "u1"]), "dev": of_long("dev", 2)})
        said = "raw has no utterance that can be used for the dev loss: of 2 there are 2 longer than 30 s; cut long"
        with pytest.raises(RecipeError, match=said):
            new_recipe("--manifests", tmp_path / "raw")
        for hours in (0.0, 0.1):
            with pytest.raises(RecipeError, match=said):
                prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["train"], "dev": ["dev"]}, {}, 16000,
                              hours=hours)

    def test_some_hours_of_a_test_set_of_long_utterances(self, of_long, tmp_path):
        """They are decoded whatever their length is; those of the usual lengths come first."""
        parts = {"train": self.part(tmp_path / "train", ["u0", "u1"]), "long": of_long("long", 3)}
        mixed = [*zip(*(part for part in (of_long("mixed", 2), self.part(tmp_path / "short", ["v0", "v1"]))))]
        parts["mixed"] = (RecordingSet.from_recordings(r for some in mixed[0] for r in some),
                          SupervisionSet.from_segments(s for some in mixed[1] for s in some))
        write_parts(tmp_path / "raw", parts)
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["train"], "test-a": ["long"], "test-b": ["mixed"]},
                      {}, 16000, hours=4 * 50 / 3600)
        found = {part: {c.id for c in CutSet.from_file(tmp_path / "manifests" / f"cuts_{part}.jsonl.gz")}
                 for part in ("test-a", "test-b")}
        assert len(found["test-a"]) == 2 and found["test-a"] < {"long0", "long1", "long2"}
        assert found["test-b"] == {"v0", "v1"}

    def test_other_parts_get_a_quarter_of_the_hours_and_those_of_one_role_share(self, tmp_path):
        """Of utterances of 0.3 s: ten in the two parts of train, and three in the test set."""
        parts = {name: self.part(tmp_path / name, [f"{name}{k}" for k in range(12)]) for name in ("a", "b", "c")}
        write_parts(tmp_path / "raw", parts)
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["a", "b"], "test": ["c"]}, {}, 16000,
                      hours=2.9 / 3600)
        found = {part: [c.id[0] for c in CutSet.from_file(tmp_path / "manifests" / f"cuts_{part}.jsonl.gz")]
                 for part in ("train", "test")}
        assert found == {"train": ["a"] * 5 + ["b"] * 5, "test": ["c"] * 3}

    def test_cuts_of_a_part_of_the_hours(self, tmp_path, capsys):
        write_parts(tmp_path / "raw", read_corpus("csv", str(csv_corpus(tmp_path / "corpus")), Skipped()))
        part = read_manifests(tmp_path / "raw", Skipped())["all"]
        some = subset(part, 0.01)[1]
        assert 36 <= sum(s.duration for s in some) < 38 and list(subset(part, 0.01)[1]) == list(some)
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["all"]}, self.SHARES, 16000, hours=0.01)
        assert "train.jsonl.gz" in capsys.readouterr().out
        with pytest.raises(RecipeError, match="holds no part gone, which makes train: it holds all"):
            prepare_parts(tmp_path / "raw", tmp_path / "manifests", {"train": ["gone"]}, {}, 16000)

    def prepared(self, tmp_path, **options):
        """Ids of the cuts of each part that stage 1 makes."""
        prepare_parts(tmp_path / "raw", tmp_path / "manifests", sampling_rate=16000, **options)
        return {path.name[5:-9]: [c.id for c in CutSet.from_file(path)]
                for path in (tmp_path / "manifests").glob("cuts_*.jsonl.gz")}

    def test_what_a_small_part_lacks_of_the_hours_the_others_give(self, tmp_path):
        assert allot({"a": 5.0, "b": 0.5, "c": 1.25}, 3.0) == {"b": 0.5, "c": 1.25, "a": 1.25}
        assert allot({"a": 1.0, "b": 2.0}, 9.0) == {"a": 1.0, "b": 2.0}
        parts = {"a": self.part(tmp_path / "a", [f"a{k}" for k in range(12)]), "b": self.part(tmp_path / "b", ["b0", "b1"])}
        write_parts(tmp_path / "raw", parts)
        (found,) = self.prepared(tmp_path, parts={"train": ["a", "b"]}, held_out={}, hours=2.9 / 3600).values()
        assert [name[0] for name in found] == ["a"] * 8 + ["b"] * 2

    @pytest.mark.parametrize("lack", ["text", "recording", "id"])
    def test_what_cannot_be_used_is_none_of_the_hours(self, tmp_path, lack):
        """Of 60 utterances of 0.3 s in two parts, 40 are without a transcript, or a recording, or have the id of another."""
        parts = {}
        for name in "ab":
            recordings, supervisions = self.part(tmp_path / name, [f"{name}{k:02d}" for k in range(30)])
            if lack == "text":
                supervisions = [fastcopy(s, text=s.text if k < 10 else "...") for k, s in enumerate(supervisions)]
            elif lack == "recording":
                recordings = list(recordings)[:10]
            else:
                supervisions = [fastcopy(s, id=f"{name}{min(k, 9):02d}") for k, s in enumerate(supervisions)]
            parts[name] = RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions)
        write_parts(tmp_path / "raw", parts)
        options = {"parts": {"train": ["a", "b"]}, "held_out": {}, "normalise": lambda text: text.replace(".", "")}
        (found,) = self.prepared(tmp_path, **options, hours=4.4 / 3600).values()
        assert len(found) == 16 and [name[0] for name in found].count("a") in (7, 8)
        said = sorted(listed(tmp_path / "manifests"))
        reason = {"text": "its transcript is empty", "recording": "its recording ", "id": "a second utterance of this id"}[lack]
        assert len(said) == 40 and all(line[2].startswith(reason) for line in said)
        (found,) = self.prepared(tmp_path, **options).values()  # all the hours
        assert len(found) == 20 and sorted(listed(tmp_path / "manifests")) == said

    def test_part_of_the_hours_gives_no_smaller_test(self, tmp_path):
        """As long as that is no more than a tenth of them."""
        write_parts(tmp_path / "raw", {"all": self.part(tmp_path / "all", [f"u{k:03d}" for k in range(200)])})
        options = {"parts": {"train": ["all"]}, "held_out": {"test": 0.02}}
        assert {part: len(found) for part, found in self.prepared(tmp_path, **options).items()} == {"train": 196, "test": 4}
        for hours, sizes in ((29.9 / 3600, {"train": 96, "test": 4}), (5.9 / 3600, {"train": 18, "test": 2})):
            assert {part: len(found) for part, found in self.prepared(tmp_path, **options, hours=hours).items()} == sizes

    def test_a_part_that_is_there_and_held_out_is_refused(self, tmp_path):
        write_parts(tmp_path / "raw", {name: self.part(tmp_path / name, [name]) for name in ("train", "dev")})
        with pytest.raises(RecipeError, match="dev is among PARTS, which the corpus has, and among HELD_OUT, which train"):
            self.prepared(tmp_path, parts={"train": ["train"], "dev": ["dev"]}, held_out={"dev": 0.1})

    def test_what_stage_1_left_of_a_part_that_was_taken_out_goes(self, tmp_path, capsys):
        """Stage 2 makes features of all cuts there are; those of other corpora, and of noise, stay."""
        parts = {name: self.part(tmp_path / name, [f"{name}{k}" for k in range(4)]) for name in ("train", "test")}
        soundfile.write(tmp_path / "far.wav", np.stack([say(["ONE"])] * 2, axis=1), 16000)
        parts["far"] = (RecordingSet.from_recordings([Recording.from_file(tmp_path / "far.wav")]), SupervisionSet.from_segments(
            [SupervisionSegment(id="far", recording_id="far", start=0, duration=0.3, channel=[0, 1], text="ONE")]))
        write_parts(tmp_path / "raw", parts)
        write_manifests(tmp_path / "manifests", "noise", [describe("n", tmp_path / "train" / "train0.wav", 4800, 16000, None)])
        roles = {"train": ["train"], "test": ["test"], "test-far": ["far"]}
        write_parts(tmp_path / "raw-2", {"near": self.part(tmp_path / "near", ["near0", "near1"])})
        prepare_parts(tmp_path / "raw-2", tmp_path / "manifests", {"test-near": ["near"]}, {}, 16000)
        self.prepared(tmp_path, parts=roles, held_out={"dev": 0.25})
        there = {path.name for path in (tmp_path / "manifests").iterdir()}
        gone = {"mixed_test-far", "audio_test-far.txt"} | {f"{kind}_{part}.jsonl.gz" for part in ("test-far", "dev")
                                                          for kind in ("recordings", "supervisions", "cuts")}
        assert gone | {"cuts_noise.jsonl.gz"} < there
        del roles["test-far"]
        assert set(self.prepared(tmp_path, parts=roles, held_out={})) == {"train", "test", "test-near", "noise"}
        assert {path.name for path in (tmp_path / "manifests").iterdir()} == there - gone - {"audio_dev.txt"}
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("removed")]
        assert said == [f"removed the manifests of {part}, which no part of {tmp_path}/raw makes any more"
                        for part in ("dev", "test-far")]

    def test_a_part_may_be_called_recordings_and_what_is_not_read_is_said(self, tmp_path, capsys):
        write_parts(tmp_path / "raw", {"recordings": self.part(tmp_path / "wav", ["u0", "u1"])})
        (tmp_path / "raw" / "recordings_odd.jsonl").touch()
        assert self.prepared(tmp_path, parts={"train": ["recordings"]}, held_out={}) == {"train": ["u0", "u1"]}
        said = "supervisions_odd.jsonl is not beside it, so it has no transcripts"
        assert f"skipped recordings_odd.jsonl: {said}" in capsys.readouterr().out
        assert listed(tmp_path / "manifests") == [(str(tmp_path / "raw"), "recordings_odd.jsonl", said)]
