"""Cuts of small corpora laid out here: what is kept, what is left out and why, and what the feature stage makes of them."""

import os
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.utils import fastcopy
from scripts import run_script
from skipping import Reasons

import kdlib.corpus
from kdlib.corpus import checked_cuts, usable_part, write_cuts
from kdlib.corpus_forms import read_corpus
from kdlib.errors import RecipeError
from kdlib.manifests import Skipped, normalise_text

ROOT = Path(__file__).resolve().parents[1]


def tone(path: Path, seconds: float = 1.0, rate: int = 16000, pitches=(400,), level: float = 0.3) -> Path:
    """A file with a tone in each channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, level * np.stack([np.sin(2 * np.pi * pitch * time) for pitch in pitches], axis=1), rate)
    return path


def recording(path: Path, name: str = "") -> Recording:
    return Recording.from_file(path, recording_id=name or path.stem)


def says(name: str, text="one two", start=0.0, duration=1.0, of="", channel=0, speaker="anna"):
    return SupervisionSegment(id=name, recording_id=of or name, start=start, duration=duration, channel=channel,
                              text=text, speaker=speaker)


def cuts_of(recordings, supervisions, rate=16000, **options):
    """The cuts, and what was left out: reason by name."""
    skipped = Reasons()
    cuts = checked_cuts(RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions), rate, skipped,
                        **options)
    return cuts, skipped.of


def prepared(manifests: Path, rate=16000, bins=40) -> list:
    """The training cuts that stage 2, as it is, makes of a folder of manifests, by id."""
    output = manifests.parent / "fbank"
    config = manifests.parent / "fbank.yaml"
    config.write_text(f"sampling_rate: {rate}\nnum_filters: {bins}\n")
    done = run_script(ROOT / "local" / "prepare_features.py", "--manifests", manifests, "--output", output, "--config", config,
                      "--jobs", "1")
    assert done.returncode == 0, done.stderr
    return sorted(CutSet.from_file(output / "cuts_train.jsonl.gz"), key=lambda cut: cut.id)


def test_one_cut_an_utterance_sorted_with_the_text_normalised(tmp_path):
    files = [tone(tmp_path / f"{name}.wav") for name in "cab"]
    cuts, left_out = cuts_of([recording(path) for path in files],
                             [says("c", " three\tfour "), says("a", "Über"), says("b", "two")])
    assert left_out == {}
    assert [(cut.id, cut.start, cut.duration, cut.supervisions[0].text) for cut in cuts] == [
        ("a", 0, 1, "ÜBER"), ("b", 0, 1, "TWO"), ("c", 0, 1, "THREE FOUR")]
    cuts, _ = cuts_of([recording(files[0])], [says("c", "Three")], normalise=lambda text: text.lower())
    assert cuts[0].supervisions[0].text == "three" and cuts[0].supervisions[0].speaker == "anna"


def test_a_letter_is_one_letter_however_it_was_typed(tmp_path):
    names = "ab"
    heard = []

    def normalise(text):
        heard.append(text)
        return text.upper()

    cuts, _ = cuts_of([recording(tone(tmp_path / f"{name}.wav")) for name in names],
                      [says("a", "café"), says("b", "cafe\u0301")], normalise=normalise)
    assert heard == ["café", "café"] and [cut.supervisions[0].text for cut in cuts] == ["CAFÉ", "CAFÉ"]


@pytest.mark.parametrize("normalise", [normalise_text, str.upper])
def test_upper_case_letters_are_composed_as_far_as_they_can_be(tmp_path, normalise):
    """upper() takes these apart; where there is no such letter, an accent is left."""
    texts = {"ΐ": "\N{GREEK CAPITAL LETTER IOTA WITH DIALYTIKA}\u0301", "ΰ": "\N{GREEK CAPITAL LETTER UPSILON WITH DIALYTIKA}"
             "\u0301", "ῆ": "Η\u0342", "ᾶ": "Α\u0342", "ώ": "Ώ", "ǰ": "J\u030c"}
    file = recording(tone(tmp_path / "a.wav"))
    cuts, left_out = cuts_of([file], [says(str(k), text, of="a") for k, text in enumerate(texts)], normalise=normalise)
    assert [cut.supervisions[0].text for cut in cuts] == list(texts.values()) and left_out == {}
    assert normalise_text("ΐ") == texts["ΐ"]


def test_a_name_that_no_file_can_have_is_left_out(tmp_path):
    good = recording(tone(tmp_path / "good.wav"))
    bad = [Recording(id=name, sources=[AudioSource("file", [0], source)], sampling_rate=16000, num_samples=16000,
                     duration=1.0) for name, source in (("long", "x" * 300 + ".wav"), ("nul", "a\0b.wav"))]
    cuts, left_out = cuts_of([good, *bad], [says("good"), says("long"), says("nul")])
    assert [cut.id for cut in cuts] == ["good"] and set(left_out) == {"long", "nul"}


@pytest.mark.parametrize("form", ["csv", "kaldi"])
@pytest.mark.parametrize("typed, there", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_files_in_the_other_form_of_unicode_are_found(tmp_path, form, typed, there):
    """As of a corpus from a Mac; the folder that all is in may be called in either form, and one file as it was typed."""
    corpus = tmp_path / unicodedata.normalize(typed, "étude")
    names = ["père/forêt.wav", "père/éçà.wav", "plain.wav"]
    for name in names:
        tone(corpus / unicodedata.normalize(there, name))
    tone(corpus / unicodedata.normalize(there, "père") / unicodedata.normalize(typed, "hôtel.wav"))
    lines = [f"{unicodedata.normalize(typed, name)}{{}}one two\n" for name in (*names, "père/hôtel.wav", "père/ôté.wav")]
    if form == "csv":
        (corpus / "corpus.csv").write_text("".join(line.format(",") for line in lines))
        source = corpus / "corpus.csv"
    else:
        for name, wanted in (("wav.scp", 0), ("text", 1)):
            (corpus / name).write_text("".join(f"u{k} {line.split('{}')[wanted].strip()}\n" for k, line in enumerate(lines)))
        source = corpus
    skipped = Reasons()
    recordings, supervisions = read_corpus(form, str(source), skipped)["all"]
    (missing,) = skipped.of.values()
    assert missing == f"{corpus / unicodedata.normalize(typed, 'père/ôté.wav')} is missing"
    cuts = checked_cuts(recordings, supervisions, 16000, skipped)
    assert len(skipped) == 1 and [cut.load_audio().shape for cut in cuts] == 4 * [(1, 16000)]


@pytest.mark.parametrize("form", ["csv", "manifests"])
def test_several_utterances_of_a_file_in_the_other_form_of_unicode(tmp_path, form):
    file = tone(tmp_path / unicodedata.normalize("NFD", "forêt.wav"))
    typed = unicodedata.normalize("NFC", file.name)
    times = (0.0, 0.5)
    if form == "csv":
        source = tmp_path / "corpus.csv"
        source.write_text("audio,start,end,text\n" + "".join(f"{typed},{start},{start + 0.5},one\n" for start in times))
    else:
        source = tmp_path
        audio = fastcopy(Recording.from_file(file), id="long", sources=[AudioSource("file", [0], typed)])
        RecordingSet.from_recordings([audio]).to_file(tmp_path / "recordings_train.jsonl.gz")
        SupervisionSet.from_segments(says(f"u{start}", start=start, duration=0.5, of="long") for start in times).to_file(
            tmp_path / "supervisions_train.jsonl.gz")
    skipped = Reasons()
    (part,) = read_corpus(form, str(source), skipped).values()
    assert len(checked_cuts(*part, 16000, skipped)) == 2 and skipped.of == {}


def test_ids_that_were_seen_elsewhere_are_left_out(tmp_path):
    recordings = [recording(tone(tmp_path / f"{name}.wav")) for name in "ab"]
    seen, skipped = {"a"}, Reasons()
    usable = usable_part(RecordingSet.from_recordings(recordings), SupervisionSet.from_segments([says("a"), says("b")]),
                         skipped, seen=seen)
    assert [[item.id for item in some] for some in usable] == [["b"], ["b"]] and seen == {"a", "b"}
    assert skipped.of == {"a": "a second utterance of this id"}


@pytest.mark.parametrize("texts, reasons", [
    (("", "yes", "no"), ["its transcript is empty", "a second utterance of this id"]),
    (("yes", ""), ["a second utterance of this id"]), (("", None), ["its transcript is empty"] * 2)])
def test_an_empty_transcript_takes_no_id_from_another(tmp_path, texts, reasons):
    """The first one that says anything is used."""
    skipped = Skipped()
    recordings = RecordingSet.from_recordings([recording(tone(tmp_path / "a.wav"))])
    usable = usable_part(recordings, [says("a", text) for text in texts], skipped)
    assert [s.text for s in usable[1]] == ["yes"] * ("yes" in texts) and skipped.reasons == reasons


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise in the middle":
        half = len(content) // 2
        path.write_bytes(content[:half] + np.random.default_rng(0).bytes(2000) + content[half + 2000:])
    elif kind == "cut short":
        path.write_bytes(content[:len(content) // 2])
    elif kind == "no audio":
        path.write_text("<html>not found</html>")
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "a header alone":
        soundfile.write(path, np.zeros(0), 16000)


@pytest.mark.parametrize("jobs", [1, 2])
def test_audio_that_cannot_be_used_is_left_out_and_named(tmp_path, jobs):
    damages = {"gone.wav": ("missing", "is missing"), "empty.flac": ("empty", "is empty"),
               "spoilt.flac": ("noise in the middle", "cannot be read"), "half.flac": ("cut short", "cannot be read"),
               "half.wav": ("cut short", "is cut short"), "page.flac": ("no audio", "cannot be read"),
               "folder.wav": ("a folder", "is no file"), "header.wav": ("a header alone", "holds no sound"),
               "whole.wav": ("", ""), "whole.flac": ("", "")}
    recordings, supervisions, wanted = [], [], {}
    for name, (kind, reason) in damages.items():
        path = tone(tmp_path / name, 2.0)
        id_ = name.replace(".", "-")
        recordings.append(recording(path, id_))
        supervisions.append(says(id_, duration=2.0))
        damage(path, kind)
        if kind:
            wanted[id_] = f"{path} {reason}"
    cuts, left_out = cuts_of(recordings, supervisions, jobs=jobs)
    assert [cut.id for cut in cuts] == ["whole-flac", "whole-wav"]
    assert left_out.keys() == wanted.keys()
    for name, reason in wanted.items():
        assert left_out[name].startswith(reason), left_out[name]


def test_a_file_that_ends_its_decoder_is_left_out(tmp_path, monkeypatch):
    """As a fault of libsndfile would."""
    whole = kdlib.corpus.check_audio
    monkeypatch.setattr(kdlib.corpus, "check_audio", lambda path: os._exit(11) if "r23" in str(path) else whole(path))
    recordings = [recording(tone(tmp_path / f"r{k:02d}.wav", 0.2)) for k in range(40)]
    cuts, left_out = cuts_of(recordings, [says(r.id, duration=0.2) for r in recordings], jobs=2)
    assert [cut.id for cut in cuts] == [f"r{k:02d}" for k in range(40) if k != 23]
    assert left_out == {"r23": f"{tmp_path / 'r23.wav'} ends the process that decodes it, by a fault of its decoder or for "
                               "want of memory: write it again"}


def test_a_file_other_than_its_manifest_says_is_left_out(tmp_path):
    recordings = [recording(tone(tmp_path / f"{name}.wav", 2.0)) for name in ("longer", "shorter", "faster", "same")]
    tone(tmp_path / "longer.wav", 2.5)
    tone(tmp_path / "shorter.wav", 1.5)
    tone(tmp_path / "faster.wav", 2.0, rate=8000)
    tone(tmp_path / "same.wav", 2.01)  # within what Lhotse itself mends
    recordings.append(fastcopy(recordings[-1], id="counted", num_samples=30000))
    cuts, left_out = cuts_of(recordings, [says(r.id) for r in recordings])
    assert [cut.id for cut in cuts] == ["same"]
    assert "has 2.010 s where its manifest says 1.875" in left_out["counted"]
    assert "has 2.500 s where its manifest says 2.000" in left_out["longer"]
    assert "has 1.500 s where its manifest says 2.000" in left_out["shorter"]
    assert "has 8000 Hz where its manifest says 16000" in left_out["faster"]


def test_commands_and_addresses_are_never_followed(tmp_path):
    flag = tmp_path / "ran"
    recordings = [Recording(id=kind, sources=[AudioSource(type=kind, channels=[0], source=source)], sampling_rate=16000,
                            num_samples=16000, duration=1.0)
                  for kind, source in (("command", f"touch {flag}"), ("url", "http://127.0.0.1:9/a.wav"))]
    cuts, left_out = cuts_of(recordings, [says("command"), says("url")])
    assert len(cuts) == 0 and not flag.exists()
    assert f"a command (touch {flag})" in left_out["command"] and "a url (http:" in left_out["url"]


@pytest.mark.parametrize("kind, reason", [("memory", "of type 'memory'"), ("tape", "of type 'tape'"),
                                          (None, "names no audio")])
def test_audio_that_is_no_file(tmp_path, kind, reason):
    good = recording(tone(tmp_path / "good.wav"))
    bad = Recording(id="bad", sources=[AudioSource(kind, [0], "abc")] if kind else [], sampling_rate=16000,
                    num_samples=16000, duration=1.0, channel_ids=[0])
    cuts, left_out = cuts_of([good, bad], [says("good"), says("bad"), says("mute", of="good", channel=[])])
    assert [cut.id for cut in cuts] == ["good"] and reason in left_out["bad"] and "no channel" in left_out["mute"]


def test_what_does_not_belong_together_is_left_out(tmp_path):
    recordings = [recording(tone(tmp_path / f"{name}.wav")) for name in ("good", "silent", "blank", "twice")]
    cuts, left_out = cuts_of([*recordings, recordings[0]],
                             [says("good"), says("lost", of="nowhere"), says("blank", " \t"), says("none", None, of="blank"),
                              says("twice", "first"), says("twice", "second")])
    assert [(cut.id, cut.supervisions[0].text) for cut in cuts] == [("good", "ONE TWO"), ("twice", "FIRST")]
    assert left_out == {"lost": "its recording nowhere is missing", "silent": "the recording has no transcript",
                        "blank": "its transcript is empty", "none": "its transcript is empty",
                        "twice": "a second utterance of this id", "good": "a second recording of this id"}


def test_a_recording_id_of_two_files_is_left_out_with_its_transcripts(tmp_path):
    """Each transcript may be of either."""
    recordings = [recording(tone(tmp_path / place / "a.wav")) for place in ("one", "two")]
    cuts, left_out = cuts_of([*recordings, recording(tone(tmp_path / "b.wav"))], [says("a"), says("c", of="a"), says("b")])
    assert [cut.id for cut in cuts] == ["b"]
    assert left_out == {"a": "two files have the id of its recording, a", "c": "two files have the id of its recording, a"}


@pytest.mark.parametrize("start, duration, reason", [
    (0.5, 1.6, "its times, 0.500 to 2.100 s, lie outside its recording of 2.000 s"),
    (3.0, 1.0, "lie outside"), (-1.0, 1.5, "lie outside"), (float("nan"), 1.0, "lie outside"),
    (0.0, float("inf"), "lie outside"), (0.5, 0.05, "it is shorter than 0.1 s"), (0.5, 0.0, "shorter"),
    (0.5, -0.2, "shorter"), (1.95, 0.07, "shorter")])
def test_times_that_cannot_be(tmp_path, start, duration, reason):
    whole = recording(tone(tmp_path / "a.wav", 2.0))
    cuts, left_out = cuts_of([whole], [says("bad", start=start, duration=duration, of="a"), says("good", of="a")])
    assert [cut.id for cut in cuts] == ["good"]
    assert reason in left_out["bad"]


@pytest.mark.parametrize("times", [{"start": None}, {"duration": "1.0"}])
def test_times_that_are_no_numbers(tmp_path, times):
    cuts, left_out = cuts_of([recording(tone(tmp_path / "a.wav"))], [says("bad", of="a", **times), says("good", of="a")])
    assert [cut.id for cut in cuts] == ["good"] and "are no numbers" in left_out["bad"]


def test_times_rounded_a_little_beyond_the_end_are_mended(tmp_path):
    whole = recording(tone(tmp_path / "a.wav", 2.0))
    cuts, left_out = cuts_of([whole], [says("a", start=1.0, duration=1.01), says("b", start=-0.01, duration=1.01, of="a")])
    assert left_out == {} and [(cut.start, round(cut.end, 6)) for cut in cuts] == [(1.0, 2.0), (0.0, 1.0)]
    write_cuts(tmp_path / "manifests", "train", cuts)


def test_segments_of_a_long_recording_are_cuts_of_their_own(tmp_path, capsys):
    """Each second of the recording has a pitch of its own, and each cut hears its own second."""
    pitches = (500, 1000, 2000)
    parts = [soundfile.read(tone(tmp_path / f"{pitch}.wav", pitches=(pitch,)))[0] for pitch in pitches]
    soundfile.write(tmp_path / "talk.flac", np.concatenate(parts), 16000)
    cuts, left_out = cuts_of([recording(tmp_path / "talk.flac")],
                             [says(f"talk-{k}", f"word{k}", start=float(k), of="talk") for k in range(3)])
    assert left_out == {}
    write_cuts(tmp_path / "manifests", "train", cuts)
    assert "3 utterances, 0.00 h, 3 words, 1 speakers" in capsys.readouterr().out
    supervisions = SupervisionSet.from_file(tmp_path / "manifests" / "supervisions_train.jsonl.gz").to_eager()
    assert [(s.id, s.start, s.recording_id) for s in supervisions] == [(f"talk-{k}", float(k), "talk") for k in range(3)]
    assert len(RecordingSet.from_file(tmp_path / "manifests" / "recordings_train.jsonl.gz").to_eager()) == 1
    for cut, pitch in zip(prepared(tmp_path / "manifests"), pitches):
        assert cut.num_frames == 100
        assert loudest_pitch(cut) == pytest.approx(pitch, abs=2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_files_that_decode_from_their_start_alone_are_left_out(tmp_path, jobs):
    """Though the utterance be the whole of one."""
    recordings = []
    for name in ("whole", "talk", "sound"):
        samples, rate = soundfile.read(tone(tmp_path / "tone.wav", 3.0, rate=8000))
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="PCM_16" if name == "sound" else "GSM610")
        recordings.append(recording(tmp_path / f"{name}.wav"))
    cuts, left_out = cuts_of(recordings, [says("whole", duration=3.0), says("talk-0", of="talk"), says(
        "talk-1", of="talk", start=1.0), says("sound-1", of="sound", start=1.0)], rate=8000, jobs=jobs)
    assert [cut.id for cut in cuts] == ["sound-1"] and set(left_out) == {"whole", "talk-0", "talk-1"}
    assert all("(GSM 6.10) can be decoded from its start alone: convert it" in reason for reason in left_out.values())
    assert [cut.load_audio().shape for cut in cuts] == [(1, 8000)]


def loudest_pitch(cut) -> float:
    (samples,) = cut.load_audio()
    return np.argmax(np.abs(np.fft.rfft(samples))) * cut.sampling_rate / len(samples)


def test_audio_of_any_rate_and_channels_goes_through_stage_2_mono_and_resampled(tmp_path):
    stereo = tone(tmp_path / "stereo.wav", 1.5, rate=48000, pitches=(600, 1500))
    recordings = [recording(stereo), recording(tone(tmp_path / "slow.wav", 1.5, rate=8000, pitches=(600,)))]
    cuts, left_out = cuts_of(recordings, [
        says("stereo", channel=[0, 1], start=0.25), says("left", of="stereo", channel=0),
        says("right", of="stereo", channel=[1]), says("nowhere", of="stereo", channel=2), says("slow")])
    assert left_out == {"nowhere": "its recording has no channel 2, but [0, 1]"}
    assert {cut.sampling_rate for cut in cuts} == {16000} and {cut.load_audio().shape for cut in cuts} == {(1, 16000)}
    write_cuts(tmp_path / "manifests", "train", cuts)
    done = {cut.id: cut for cut in prepared(tmp_path / "manifests")}
    assert len(done) == 4
    for cut in done.values():
        assert cut.load_audio().shape == (1, 16000) and cut.load_features().shape == (100, 40)
        assert cut.supervisions[0].text == "ONE TWO"
    assert loudest_pitch(done["left"]) == loudest_pitch(done["slow"]) == pytest.approx(600, abs=2)
    assert loudest_pitch(done["right"]) == pytest.approx(1500, abs=2)
    spectrum = np.abs(np.fft.rfft(done["stereo"].load_audio()[0])) / 8000  # of tones at 0.3 each
    assert spectrum[600] == pytest.approx(0.15, abs=0.01) and spectrum[1500] == pytest.approx(0.15, abs=0.01)


def test_mixes_of_the_same_audio_stay_as_they_are(tmp_path):
    """And with them the manifests: no later stage runs again for them."""
    stereo = recording(tone(tmp_path / "stereo.wav", pitches=(600, 1500)))

    def written():
        cuts, _ = cuts_of([stereo], [says("a", of="stereo", channel=[0, 1])])
        write_cuts(tmp_path / "manifests", "train", cuts)
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "manifests").rglob("*") if path.is_file()}

    before = written()
    time.sleep(0.05)
    assert written() == before and len(before) == 5
    tone(tmp_path / "stereo.wav", pitches=(700, 1500))
    assert not {*written().items()} & {*before.items()}


def test_mixes_of_an_earlier_run_are_removed(tmp_path):
    stereo = recording(tone(tmp_path / "stereo.wav", 2.0, pitches=(600, 1500)))
    manifests = tmp_path / "manifests"
    cuts, _ = cuts_of([stereo], [says(name, of="stereo", channel=[0, 1]) for name in ("a", "b/../../c")])
    write_cuts(manifests, "train", cuts)
    assert len(list((manifests / "mixed_train").iterdir())) == 2
    cuts, _ = cuts_of([stereo], [says("a", of="stereo", channel=[0, 1])])
    write_cuts(manifests, "train", cuts)
    (left,) = (manifests / "mixed_train").iterdir()
    assert CutSet.from_file(manifests / "cuts_train.jsonl.gz")[0].recording.sources[0].source == str(left)


def test_manifests_that_would_say_the_same_stay_unless_the_audio_is_another(tmp_path):
    """So that nothing is extracted and trained anew for a stage 1 that found nothing new."""
    def written(*names):
        cuts, _ = cuts_of([recording(tmp_path / f"{name}.wav") for name in names], map(says, names))
        write_cuts(tmp_path / "manifests", "train", cuts)
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "manifests").iterdir()}

    for name in "ab":
        tone(tmp_path / f"{name}.wav")
    first = written("a", "b")
    assert written("a", "b") == first and len(first) == 4
    (tmp_path / "manifests" / "audio_train.txt").unlink()  # as of a run before there were such lists
    assert all(written("a", "b")[name] != first[name] for name in first if name != "audio_train.txt")
    assert all(written("a")[name] != first[name] for name in first)
    second = written("a", "b")
    old = (tmp_path / "a.wav").stat()
    tone(tmp_path / "a.wav", level=0.1)  # which has the same header
    os.utime(tmp_path / "a.wav", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert all(written("a", "b")[name] != second[name] for name in second)


@pytest.mark.parametrize("linked", [False, True])
def test_manifests_of_a_folder_that_another_took_the_place_of_are_new_ones(tmp_path, linked):
    """By a rename, or by a link that leads elsewhere, which no file in it knows of: its audio is older than the manifests."""
    def written():
        cuts, _ = cuts_of([recording(tmp_path / "corpus" / "a.wav")], [says("a")])
        write_cuts(tmp_path / "manifests", "train", cuts)
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "manifests").iterdir()}

    def put(version):
        if linked:
            (tmp_path / "link").symlink_to(tmp_path / version)
            (tmp_path / "link").replace(tmp_path / "corpus")
        else:
            (tmp_path / version).rename(tmp_path / "corpus")

    for version, level in (("one", 0.3), ("other", 0.1)):
        tone(tmp_path / version / "a.wav", level=level)
        time.sleep(0.02)
    put("one")
    first = written()
    assert written() == first
    if not linked:
        (tmp_path / "corpus").rename(tmp_path / "one")
    put("other")
    second = written()
    assert all(second[name] != first[name] for name in first)


def test_a_part_without_cuts_is_one_error_and_leaves_what_was_there(tmp_path):
    cuts, _ = cuts_of([recording(tone(tmp_path / "a.wav"))], [says("a")])
    write_cuts(tmp_path / "manifests", "dev", cuts)
    before = {path: path.read_bytes() for path in (tmp_path / "manifests").iterdir()}
    with pytest.raises(RecipeError, match="the part dev has no recording that can be used"):
        write_cuts(tmp_path / "manifests", "dev", CutSet.from_cuts([]))
    assert {path: path.read_bytes() for path in (tmp_path / "manifests").iterdir()} == before


def test_relative_files_stay_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone(Path("wav/a.wav"))
    cuts, _ = cuts_of([recording(Path("wav/a.wav"))], [says("a")])
    assert cuts[0].recording.sources[0].source == "wav/a.wav"
