"""The forms in which a corpus may come: what is read of each, what is left out or refused, and how it is written."""

import gzip
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording, RecordingSet, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.qa import trim_supervisions_to_recordings
from lhotse.utils import fastcopy
from skipping import Reasons, read_form
from toy_corpora import csv_corpus, kaldi_corpus, manifests_corpus, say, yesno_corpus

from kdlib.corpus import checked_cuts
from kdlib.corpus_forms import check_still_there, read_corpus, read_manifests, write_parts
from kdlib.errors import RecipeError
from kdlib.manifests import Skipped



class TestWriting:
    def test_what_is_as_before_stays_and_mended_audio_shows(self, tmp_path):
        table = csv_corpus(tmp_path / "corpus", 1)
        file = tmp_path / "corpus" / "wav" / "speaker03-0.flac"
        soundfile.write(file, say(["ONE"] * 5), 16000)
        table.write_text(table.read_text().replace("speaker03-0.wav", "speaker03-0.flac"))
        whole = file.read_bytes()
        file.write_bytes(whole[:len(whole) // 2])  # its header is that of the whole

        def written():
            write_parts(tmp_path / "raw", read_corpus("csv", str(table), Skipped()))
            return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "raw").iterdir()}

        first = written()
        assert set(first) == {"recordings_all.jsonl.gz", "supervisions_all.jsonl.gz", "audio.txt"}
        assert written() == first
        file.write_bytes(whole)
        mended = written()
        assert {name for name in first if mended[name] != first[name]} == {"audio.txt"}
        (tmp_path / "raw" / "recordings_all.jsonl.gz").write_bytes(b"damaged")
        assert written()["recordings_all.jsonl.gz"][0][:2] == b"\x1f\x8b"

    @pytest.mark.parametrize("form", ["csv", "manifests"])
    def test_a_disk_that_is_gone_is_no_smaller_corpus(self, tmp_path, form):
        """But single files may go, and the corpus may stand elsewhere; by Lhotse's manifests the audio is only looked at."""
        def imported(place):
            source = place / {"csv": "corpus.csv", "manifests": "manifests"}[form]
            parts = read_corpus(form, str(source), Skipped())
            check_still_there(tmp_path / "raw", parts)
            write_parts(tmp_path / "raw", parts)
            return sum(len(recordings) for recordings, _ in parts.values())

        (csv_corpus if form == "csv" else manifests_corpus)(tmp_path / "corpus")
        assert imported(tmp_path / "corpus") == 96
        for path in (tmp_path / "corpus" / "wav").glob("speaker04-[0-4].wav"):
            path.unlink()
        assert imported(tmp_path / "corpus") in (91, 96)
        before = {path: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
        lost = "speaker0[56]" if form == "csv" else "speaker01"  # of the latter one part is
        (tmp_path / "disk").mkdir()
        for path in (tmp_path / "corpus" / "wav").glob(f"{lost}*"):
            path.rename(tmp_path / "disk" / path.name)
        said = "of the 91 recordings of all .*, 16 are" if form == "csv" else "of the 8 recordings of dev .*, 8 are"
        with pytest.raises(RecipeError, match=f"{said} missing, .*wav for one: mount the disk .* or remove .*raw to go on"):
            imported(tmp_path / "corpus")
        assert {path: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == before
        for path in (tmp_path / "disk").iterdir():
            path.rename(tmp_path / "corpus" / "wav" / path.name)
        if form == "csv":
            assert imported((tmp_path / "corpus").rename(tmp_path / "moved")) == 91


class TestForms:
    def test_kaldi_folders(self, tmp_path):
        folder = kaldi_corpus(tmp_path / "corpus")
        (recordings, supervisions), left_out = read_form("kaldi", folder)[0]["all"], read_form("kaldi", folder)[1]
        assert left_out == 0 and len(recordings) == 12 and len(supervisions) == 96
        second = supervisions["speaker00-1"]
        assert second.recording_id == second.speaker == "speaker00" and second.start > 0
        with open(folder / "text", "a") as text, open(folder / "segments", "a") as segments:
            text.write("lost ONE\nlast TWO\nlast THREE\n")
            segments.write("last speaker00 1.5 -1\nodd speaker00 1.5\n")
        (_, supervisions), left_out = read_form("kaldi", folder)[0]["all"], read_form("kaldi", folder)[1]
        assert left_out == 3  # lost, the second last, odd
        assert supervisions["last"].end == pytest.approx(recordings["speaker00"].duration)
        parts, _ = read_form("kaldi", folder.parent)
        assert list(parts) == ["corpus"]

    def test_an_end_a_little_after_the_recording_is_cut_to_it(self, tmp_path, capsys):
        """As Kaldi's extract-segments has it; what is no more than rounding is not counted."""
        soundfile.write(tmp_path / "a.wav", say(["ONE"] * 10), 16000)
        ends = {"over": 3.2, "most": 3.45, "rounded": 3.01, "within": 2.9, "beyond": 3.5, "kaldi": -1}
        (tmp_path / "wav.scp").write_text("a a.wav\n")
        (tmp_path / "text").write_text("".join(f"{name} ONE\n" for name in [*ends, "after"]))
        (tmp_path / "segments").write_text("".join(f"{name} a 2 {end}\n" for name, end in ends.items()) + "after a 3.1 3.3\n")
        skipped = Reasons()
        recordings, supervisions = read_corpus("kaldi", str(tmp_path), skipped)["all"]
        assert capsys.readouterr().out == (
            f"{tmp_path}/segments: 2 utterances end up to 0.45 s after their recording: they are cut to its end\n")
        cuts = checked_cuts(recordings, supervisions, 16000, skipped)
        assert {c.id: c.end for c in cuts} == {"over": 3.0, "most": 3.0, "rounded": 3.0, "within": 2.9, "kaldi": 3.0}
        assert set(skipped.of) == {"beyond", "after"} and all("lie outside its recording" in r for r in skipped.of.values())

    @pytest.mark.parametrize("with_segments", [False, True])
    def test_an_id_of_two_files_is_left_out(self, tmp_path, with_segments):
        for place in ("one", "two", "three"):
            (tmp_path / place).mkdir()
            soundfile.write(tmp_path / place / "a.wav", say(["ONE"]), 16000)
        (tmp_path / "wav.scp").write_text("a one/a.wav\na two/a.wav\nb three/a.wav\nb ./three/a.wav\n")
        (tmp_path / "text").write_text("a ONE\nb TWO\n")
        if with_segments:
            (tmp_path / "segments").write_text("a a 0 0.3\nb b 0 0.3\n")
        skipped = Reasons()
        recordings, supervisions = read_corpus("kaldi", str(tmp_path), skipped)["all"]
        assert [r.id for r in recordings] == ["b"]
        assert skipped.of == {"a": f"{tmp_path}/wav.scp, line 2: two files have this id, and nothing tells which of them a "
                                   "transcript is of", "b": f"{tmp_path}/wav.scp, line 4: a second recording of this id"}
        assert [cut.id for cut in checked_cuts(recordings, supervisions, 16000, Skipped())] == ["b"]

    def test_a_segment_may_name_its_channel(self, tmp_path):
        """The first is 0; of a file with a single one any number is that."""
        tones = say(["ONE"] * 4), say(["TWO"] * 4)
        soundfile.write(tmp_path / "mono.wav", tones[0], 16000)
        soundfile.write(tmp_path / "call.wav", np.stack(tones, axis=1), 16000)
        channels = {"m": "", "m0": "0", "m1": "1", "c": "", "c0": "0", "c1": "1", "c2": "2", "ca": "A", "c3": "0 1"}
        (tmp_path / "wav.scp").write_text("m mono.wav\nc call.wav\n")
        (tmp_path / "text").write_text("".join(f"{name} ONE\n" for name in channels))
        (tmp_path / "segments").write_text("".join(f"{name} {name[0]} 0.3 0.9 {channel}\n"
                                                   for name, channel in channels.items()))
        skipped = Reasons()
        parts = read_corpus("kaldi", str(tmp_path), skipped)
        assert {s.id: s.channel for s in parts["all"][1]} == {
            "m": 0, "m0": 0, "m1": 0, "c": [0, 1], "c0": 0, "c1": 1, "c2": 2}
        assert [reason for name, reason in skipped.of.items() if "line" in name] == [
            "it is not: utterance, recording, start, end and perhaps a channel"] * 2
        cuts, skipped = {cut.id: cut for cut in checked_cuts(*parts["all"], 16000, skipped)}, skipped.of
        assert skipped["c2"] == "its recording has no channel 2, but [0, 1]" and len(cuts) == 6
        heard = cuts["c1"].load_audio()[0]
        assert np.abs(heard - tones[1][4800:14400]).max() < 1e-3 and cuts["c0"].load_audio()[0] == pytest.approx(
            cuts["m1"].load_audio()[0])

    def test_names_of_parts_keep_their_letters_and_stay_apart(self, tmp_path):
        names = ["größe_test", "训练", "हिन्दी dev", "a.b-c"]
        for name in names:
            kaldi_corpus(tmp_path / "corpus" / name)
        wanted = {name.replace("_", "-").replace(" ", "-") for name in names}
        assert set(read_form("kaldi", tmp_path / "corpus")[0]) == wanted
        kaldi_corpus(tmp_path / "corpus" / "a.b_c")
        with pytest.raises(RecipeError, match=r"the parts a.b-c and a.b_c of .*corpus would both be called 'a.b-c': rename"):
            read_form("kaldi", tmp_path / "corpus")

    @pytest.mark.parametrize("form, name", [("kaldi", "segments"), ("kaldi", "utt2spk"), ("kaldi", "wav.scp"),
                                            ("manifests", "supervisions_dev.jsonl.gz")])
    def test_a_link_to_nothing_is_no_file_that_was_left_out(self, tmp_path, form, name):
        """Without its segments, for one, each recording would pass for an utterance."""
        folder = {"kaldi": kaldi_corpus, "manifests": manifests_corpus}[form](tmp_path / "corpus")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/no/disk/file")
        with pytest.raises(RecipeError, match=f"{name} is a link to /no/disk/file, which is not there: copy what it leads to"):
            read_form(form, folder)

    def test_a_part_of_manifests_that_is_there_twice_is_refused(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        for kind in ("recordings", "supervisions"):
            (folder / f"{kind}_dev.jsonl").write_bytes(gzip.decompress((folder / f"{kind}_dev.jsonl.gz").read_bytes()))
        with pytest.raises(RecipeError, match="has the part dev twice, the second time in recordings_dev.jsonl.gz: take"):
            read_form("manifests", folder)

    @pytest.mark.parametrize("command", [
        "flac -c -d -s wav/a.flac |", "flac -dcs wav/a.flac|", "sox wav/a.flac -t wav - |", "sox wav/a.flac -t wav -|",
        "cat  wav/a.flac |", "/kaldi/tools/sph2pipe -f wav wav/a.flac |"])
    def test_a_command_that_only_reads_a_file_is_that_file(self, tmp_path, monkeypatch, command):
        monkeypatch.setenv("PATH", "")
        (tmp_path / "data").mkdir()
        (tmp_path / "wav").mkdir()
        soundfile.write(tmp_path / "wav" / "a.flac", say(["ONE"]), 16000)
        (tmp_path / "data" / "wav.scp").write_text(f"a {command}\n")
        (tmp_path / "data" / "text").write_text("a ONE\n")
        (recordings, _), left_out = read_form("kaldi", tmp_path / "data")[0]["all"], read_form("kaldi", tmp_path / "data")[1]
        assert left_out == 0 and Path(recordings["a"].sources[0].source).samefile(tmp_path / "wav" / "a.flac")

    def test_of_several_kaldi_folders_one_without_text_is_left_out(self, tmp_path):
        """As those of noise are. Where no other is there, it is an error."""
        for name in ("train", "musan_noise"):
            kaldi_corpus(tmp_path / name)
        (tmp_path / "musan_noise" / "text").unlink()
        skipped = Reasons()
        assert list(read_corpus("kaldi", str(tmp_path), skipped)) == ["train"]
        assert skipped.of == {"musan_noise": "it has no text, so it has no transcripts"}
        shutil.rmtree(tmp_path / "train")
        for folder in (tmp_path, tmp_path / "musan_noise"):
            with pytest.raises(RecipeError, match="musan_noise/text is missing"):
                read_form("kaldi", folder)

    @pytest.mark.parametrize("left", ["text", "segments"])
    def test_of_several_kaldi_folders_one_without_audio_is_left_out(self, tmp_path, left):
        """As one of features alone."""
        for name in ("train", "test"):
            kaldi_corpus(tmp_path / name)
        for path in (tmp_path / "test").glob("*"):
            if path.name not in (left, "wav"):
                path.unlink()
        skipped = Reasons()
        assert list(read_corpus("kaldi", str(tmp_path), skipped)) == ["train"]
        assert skipped.of == {"test": "it has no wav.scp, so it has no audio"}

    @pytest.mark.parametrize("name", ["test/wav.scp", "test"])
    def test_of_several_kaldi_folders_one_that_is_not_there_is_one_error(self, tmp_path, name):
        """As where a disk is not mounted."""
        for part in ("train", "test"):
            kaldi_corpus(tmp_path / part)
        (tmp_path / name).rename(tmp_path / "gone")
        (tmp_path / name).symlink_to("/no/disk")
        shutil.rmtree(tmp_path / "gone", ignore_errors=True)
        with pytest.raises(RecipeError, match=f"{tmp_path / name} is a link to /no/disk, which is not there: copy what"):
            read_form("kaldi", tmp_path)

    def test_of_several_kaldi_folders_other_links_to_nothing_are_named(self, tmp_path):
        kaldi_corpus(tmp_path / "train")
        (tmp_path / "mfcc").symlink_to("/no/disk")
        (tmp_path / ".#README").symlink_to("me@host.123:456")  # an editor's lock
        skipped = Reasons()
        assert list(read_corpus("kaldi", str(tmp_path), skipped)) == ["train"]
        assert skipped.of == {"mfcc": "it is a link to what is not there"}

    def test_kaldi_folders_further_down_are_named(self, tmp_path):
        """As in ESPnet's dump, where raw/org has the utterances of raw again."""
        dump = tmp_path / "dump"
        for name in ("raw/train_sp", "raw/org/train_sp"):
            kaldi_corpus(dump / name)
        skipped = Reasons()
        assert list(read_corpus("kaldi", str(dump / "raw"), skipped)) == ["train-sp"]
        assert skipped.of == {"org": "it has no wav.scp, and those of the folders in it are not read"}
        with pytest.raises(RecipeError, match=f"{dump} holds no wav.scp, nor does a folder in it: give one of {dump}/raw, "
                                              f"{dump}/raw/org, whose folders have it, or a folder of links to those that"):
            read_form("kaldi", dump)
        shutil.rmtree(dump / "raw" / "org")
        for folder in (dump, tmp_path):
            with pytest.raises(RecipeError, match=f"nor does a folder in it: give {dump}/raw, whose folders have it$"):
                read_form("kaldi", folder)

    def test_a_place_in_an_archive_is_one_error(self, tmp_path):
        (tmp_path / "wav.scp").write_text("a /data/raw.ark:1234\n")
        (tmp_path / "text").write_text("a ONE\n")
        with pytest.raises(RecipeError, match="line 1 .a. names a place in an archive, /data/raw.ark:1234, and archives are"):
            read_form("kaldi", tmp_path)

    def test_a_speaker_for_each_utterance_is_none(self, tmp_path, capsys):
        """As Kaldi's utt2spk has it where nobody knows; of recordings of one utterance each they are speakers."""
        folder = kaldi_corpus(tmp_path / "corpus")
        names = [line.split()[0] for line in (folder / "text").read_text().splitlines()]
        (folder / "utt2spk").write_text("".join(f"{name} of-{name}\n" for name in names))
        assert {s.speaker for s in read_form("kaldi", folder)[0]["all"][1]} == {None}
        assert capsys.readouterr().out.startswith("all: 96 utterances of 12 recordings name 96 speakers, nearly one each: they")
        (folder / "segments").unlink()
        (folder / "text").write_text("".join(f"{line.split()[0]} ONE\n" for line in open(folder / "wav.scp")))
        (folder / "utt2spk").write_text("".join(f"{line.split()[0]} s{n}\n" for n, line in enumerate(open(folder / "wav.scp"))))
        assert len({s.speaker for s in read_form("kaldi", folder)[0]["all"][1]}) == 12

    @pytest.mark.parametrize("speaker, known", [("{}", False), ("s-{}", True)])
    def test_an_utterance_is_not_its_own_speaker(self, tmp_path, capsys, speaker, known):
        """Where each recording is one, too; but many speakers of an utterance each are, by other names."""
        names = [f"u{number}" for number in range(20)]
        for name in names:
            soundfile.write(tmp_path / f"{name}.wav", say(["ONE"]), 16000)
        (tmp_path / "wav.scp").write_text("".join(f"{name} {name}.wav\n" for name in names))
        (tmp_path / "text").write_text("".join(f"{name} ONE\n" for name in names))
        (tmp_path / "utt2spk").write_text("u0 anna\n" + "".join(f"{name} {speaker.format(name)}\n" for name in names[1:]))
        found = {s.speaker for s in read_form("kaldi", tmp_path)[0]["all"][1]}
        assert found == ({"anna", *(f"s-{name}" for name in names[1:])} if known else {None})
        assert capsys.readouterr().out == (
            "" if known else "all: 19 of 20 utterances have their own id as their speaker: speakers are taken as unknown\n")

    @pytest.mark.parametrize("command", [
        "cat a.wav b.wav |", "sph2pipe -f wav a.sph |", "/bin/sph2pipe -f wav none.wav |",
        "sph2pipe -f wav -c 1 a.wav |", "touch {flag} |", "cat $(touch {flag}) |",
        "cat a.wav|touch {flag} |", "sox a.wav -t wav - speed 0.9 |", "flac -c -d -s --until=9 a.wav |", "cat -n |",
        "| cat a.wav"])
    def test_commands_in_wav_scp_are_refused_and_not_run(self, tmp_path, command):
        flag = tmp_path / "ran"
        soundfile.write(tmp_path / "a.wav", say(["ONE"]), 16000)
        (tmp_path / "wav.scp").write_text(f"a {command.format(flag=flag)}\n")
        (tmp_path / "text").write_text("a ONE\n")
        with pytest.raises(RecipeError, match="wav.scp, line 1 .a. holds a command, which is never run: write the audio to"):
            read_form("kaldi", tmp_path)
        assert not flag.exists()

    def test_relative_audio_is_found_above_the_manifests(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "recordings_dev.jsonl.gz"
        recordings = RecordingSet.from_recordings(
            Recording(r.id, [AudioSource("file", [0], f"wav/{r.id}.wav")], r.sampling_rate, r.num_samples, r.duration)
            for r in RecordingSet.from_file(path))
        recordings.to_file(path)
        found = read_manifests(folder, Skipped())["dev"][0]
        assert all(Path(r.sources[0].source).is_file() and Path(r.sources[0].source).is_absolute() for r in found)

    @pytest.mark.parametrize("table", [".", "lists/one"])
    @pytest.mark.parametrize("form", ["csv", "kaldi", "manifests"])
    def test_a_missing_file_is_not_taken_from_another_corpus(self, tmp_path, form, table):
        """Whose files, in a folder above, are called the same."""
        names, folder = ["a", "b", "c", "d"], tmp_path / "mine" / table
        for path in (tmp_path / "wav", tmp_path / "mine" / "wav", folder):
            path.mkdir(parents=True, exist_ok=True)
        for name in names:
            soundfile.write(tmp_path / "wav" / f"{name}.wav", say(["ONE"]), 16000)
            if name in "cd":
                shutil.copy(tmp_path / "wav" / f"{name}.wav", tmp_path / "mine" / "wav")
        write_parts(folder, {"all": (RecordingSet.from_recordings(
            Recording(name, [AudioSource("file", [0], f"wav/{name}.wav")], 16000, 4800, 0.3) for name in names),
            SupervisionSet.from_segments([]))})
        (folder / "t.csv").write_text("".join(f"wav/{name}.wav,one\n" for name in names))
        (folder / "wav.scp").write_text("".join(f"{name} wav/{name}.wav\n" for name in names))
        (folder / "text").write_text("".join(f"{name} ONE\n" for name in names))
        skipped = Reasons()
        recordings = read_corpus(form, str(folder / "t.csv" if form == "csv" else folder), skipped)["all"][0]
        found = {Path(source.source).resolve() for recording in recordings for source in recording.sources}
        there = names if form == "manifests" else names[2:]  # whose audio is looked at later
        assert found == {tmp_path / "mine" / "wav" / f"{name}.wav" for name in there}
        missing = [] if form == "manifests" else names[:2]
        assert [reason.rpartition("/mine/")[2] for reason in skipped.of.values()] == [
            f"wav/{name}.wav is missing" for name in missing]

    def changed(self, folder: Path, kind: str, **values) -> Path:
        """Manifests with other values in the first row of a file."""
        path = manifests_corpus(folder) / f"{kind}_train.jsonl.gz"
        rows = [json.loads(line) for line in gzip.open(path, "rt")]
        rows[0].update(values)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path.parent

    @pytest.mark.parametrize("kind, values, said", [
        ("supervisions", {"duration": "1 s"}, "its duration is '1 s'"), ("supervisions", {"start": None}, "start is None"),
        ("supervisions", {"text": ["a", "b"]}, r"transcript is \['a', 'b'\]"), ("supervisions", {"id": None}, "has no id"),
        ("supervisions", {"channel": []}, "names no channel"), ("supervisions", {"channel": [[0]]}, r"is \[\[0\]\]"),
        ("supervisions", {"channel": None}, "channel is None"), ("supervisions", {"channel": "0"}, "channel is '0'"),
        ("recordings", {"channel_ids": 5}, "channels are 5, not a list of numbers"),
        ("recordings", {"sources": [{"type": "file", "channels": None, "source": "a.wav"}]}, "channels are None, not"),
        ("recordings", {"duration": 100.0}, "duration is 100.000 s, but its [0-9]+ samples at 16000 Hz are .* s: mend"),
        ("recordings", {"sources": []}, "names no audio"),
        ("recordings", {"sampling_rate": 0}, "sampling_rate is 0"), ("recordings", {"num_samples": "many"}, "is 'many'"),
        ("recordings", {"sources": [{"type": "file", "channels": [0], "source": None}]}, "names no audio"),
        ("recordings", {"sources": [{"type": "memory", "channels": [0], "source": "abc"}]}, "no file but of type 'memory'"),
        ("recordings", {"sources": [{"type": "tape", "channels": [0], "source": "abc"}]}, "no file but of type 'tape'")])
    def test_a_row_of_a_manifest_that_cannot_be(self, new_recipe, tmp_path, kind, values, said):
        folder = self.changed(tmp_path / "corpus", kind, **values)
        output = new_recipe("--manifests", folder)
        assert re.search(f"skipped .*{said}", output) and "train: 78 utterances" in output

    def test_what_pandas_left_empty_is_no_word(self, tmp_path):
        folder = self.changed(tmp_path / "corpus", "supervisions", text=float("nan"), speaker=float("nan"))
        first = next(iter(read_form("manifests", folder)[0]["train"][1]))
        assert first.text is None and first.speaker is None

    def test_a_speaker_is_one_however_typed(self, tmp_path):
        """Composed as on most systems, in parts as a Mac has it; and without a name there is none."""
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "supervisions_train.jsonl.gz"
        names = ["J\u00fcrgen", "Ju\u0308rgen", " J\u00fcrgen ", "", " ", None]
        SupervisionSet.from_segments(fastcopy(segment, speaker=names[k % len(names)]) for k, segment in enumerate(
            SupervisionSet.from_file(path))).to_file(path)
        assert {segment.speaker for segment in read_form("manifests", folder)[0]["train"][1]} == {"J\u00fcrgen", None}

    def test_supervisions_without_recordings_are_named(self, tmp_path):
        """As where one file of recordings is for several of supervisions."""
        folder = manifests_corpus(tmp_path / "corpus")
        (folder / "recordings_dev.jsonl.gz").unlink()
        supervisions = folder / "supervisions_test-größe.jsonl.gz"
        (folder / "supervisions_test-größe.jsonl").write_bytes(gzip.decompress(supervisions.read_bytes()))
        shutil.copy(supervisions, folder / "man_supervisions.jsonl.gz")
        skipped = Reasons()
        assert set(read_corpus("manifests", str(folder), skipped)) == {"train", "test-größe"}
        assert skipped.of == {
            f"{before}supervisions{part}.jsonl.gz": f"{before}recordings{part}.jsonl.gz is not beside it, so it has no audio"
            for before, part in (("man_", ""), ("", "_dev"))}

    def test_supervisions_or_cuts_alone_are_one_error_with_its_remedy(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        for path in folder.glob("recordings*"):
            path.unlink()
        with pytest.raises(RecipeError, match="supervisions_dev.jsonl.gz needs recordings_dev.jsonl.gz beside it"):
            read_form("manifests", folder)
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.replace("supervisions", "cuts")))
        with pytest.raises(RecipeError, match=r"holds cuts: take them apart \(lhotse cut decompose .*/cuts_dev.jsonl.gz PART"):
            read_form("manifests", folder)

    def test_manifests_of_something_else_are_one_error(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        recordings, supervisions = (folder / f"{kind}_dev.jsonl.gz" for kind in ("recordings", "supervisions"))
        recordings.rename(folder / "third")
        supervisions.rename(recordings)
        (folder / "third").rename(supervisions)
        with pytest.raises(RecipeError, match="recordings_dev.jsonl.gz holds a SupervisionSegment where its name says Rec"):
            read_form("manifests", folder)

    def test_manifests_with_other_endings(self, tmp_path):
        folder = manifests_corpus(tmp_path / "corpus")
        path = folder / "supervisions_dev.jsonl.gz"
        (folder / "supervisions_dev.jsonl").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
        assert len(read_form("manifests", folder)[0]["dev"][1]) == 8
        (tmp_path / "json").mkdir()
        RecordingSet.from_file(folder / "recordings_dev.jsonl.gz").to_file(tmp_path / "json" / "recordings_dev.json")
        with pytest.raises(RecipeError, match="lhotse copy recordings_dev.json recordings_dev.jsonl.gz"):
            read_form("manifests", tmp_path / "json")

    def test_what_a_recipe_of_lhotse_leaves_out_is_counted(self, tmp_path, monkeypatch, capsys):
        """But not what it keeps and mends."""
        import lhotse.recipes

        whole = lhotse.recipes.prepare_yesno

        def prepare_yesno(corpus_dir, output_dir=None):
            logging.warning("No transcript of %s", "0_1.wav")
            made = whole(corpus_dir, output_dir)
            for part in made.values():
                first, *rest = part["supervisions"]
                part["supervisions"] = trim_supervisions_to_recordings(
                    part["recordings"], [fastcopy(first, duration=first.duration + 1), *rest])
            return made

        monkeypatch.setattr(lhotse.recipes, "prepare_yesno", prepare_yesno)
        skipped, handlers = Reasons(), list(logging.getLogger().handlers)
        parts = read_corpus("lhotse", "yesno", skipped, corpus_dir=yesno_corpus(tmp_path / "waves"))
        assert skipped.of == {"prepare_yesno": "No transcript of 0_1.wav"} and logging.getLogger().handlers == handlers
        assert {len(supervisions) for _, supervisions in parts.values()} == {30}
        assert capsys.readouterr().out == 2 * "prepare_yesno: Trimmed 1 supervisions exceeding the end of the recording.\n"

    def test_lhotse_parts(self, tmp_path):
        parts, _ = read_form("lhotse", "yesno", corpus_dir=yesno_corpus(tmp_path / "waves"))
        assert {part: len(some) for part, (some, _) in parts.items()} == {"train": 30, "test": 30}

    @pytest.mark.parametrize("form, source, options, said", [
        ("csv", "latin.csv", {}, "is not UTF-8"), ("csv", "utf16.csv", {}, "is UTF-16 without .*: convert it, .* utf-16le"),
        ("csv", "none.csv", {}, "none.csv is missing"),
        ("csv", "empty.csv", {}, "holds no rows"), ("csv", "damaged", {}, "is a folder: give the file"),
        ("kaldi", ".", {}, "holds no wav.scp"),
        ("manifests", ".", {}, "holds no recordings_"), ("manifests", "none", {}, "is no folder"),
        ("manifests", "damaged", {}, "cannot be read as a Lhotse manifest"),
        ("lhotse", "yesno", {}, "as --corpus-dir"), ("lhotse", "yesno", {"corpus_dir": "none"}, "is no folder"),
        ("lhotse", "yesno", {"corpus_dir": "."}, "is this the folder that it expects"),
        ("lhotse", "libri_speech", {"corpus_dir": "."}, "did you mean librispeech"),
        ("lhotse", "xyzzy", {"corpus_dir": "."}, "no corpus called 'xyzzy': it knows .*, aishell, "),
        ("lhotse", "cmu-arctic", {"corpus_dir": "none"}, "none is no folder"),  # as `lhotse prepare` calls it
        ("lhotse", "heroico", {"corpus_dir": "."}, "lhotse prepare heroico")])
    def test_what_is_no_corpus_is_one_error(self, tmp_path, monkeypatch, form, source, options, said):
        monkeypatch.chdir(tmp_path)
        Path("latin.csv").write_bytes("a.wav,Grüße,anna\n".encode("latin-1"))
        Path("utf16.csv").write_bytes("a.wav,one,anna\n".encode("utf-16-le"))
        Path("empty.csv").write_text("\n")
        Path("damaged").mkdir()
        for kind in ("recordings", "supervisions"):
            Path(f"damaged/{kind}_all.jsonl.gz").write_bytes(b"no gzip")
        with pytest.raises(RecipeError, match=said):
            read_form(form, source, **options)
