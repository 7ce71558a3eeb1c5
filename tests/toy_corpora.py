"""A small corpus of made-up speech in each form that a recipe may be made from, and cuts that need no audio."""

import csv
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource

from kdlib.corpus_forms import write_parts

PITCHES = {"ONE": 300, "TWO": 500, "THREE": 800, "FOUR": 1200}
SPEAKERS = [f"speaker{number:02d}" for number in range(12)]
_NOISE = np.random.default_rng(1)


def say(words, rate=16000) -> np.ndarray:
    """Each word is 0.3 s of a pitch of its own, in noise that is never the same, since copies of a file are taken for one."""
    time = np.arange(int(0.3 * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * PITCHES[word] * time) for word in words]
    return np.concatenate(tones) + 0.01 * _NOISE.standard_normal(len(words) * len(time))


def utterances(count=8):
    """(speaker, id, words) of a small corpus: every speaker says other words."""
    random = np.random.default_rng(1)
    for speaker in SPEAKERS:
        for number in range(count):
            words = list(random.choice(list(PITCHES), random.integers(2, 6)))
            yield speaker, f"{speaker}-{number}", words


def csv_corpus(folder: Path, count=8, header=("audio", "text", "speaker"), separator=",") -> Path:
    (folder / "wav").mkdir(parents=True)
    with open(folder / "corpus.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=separator)
        if header:
            table.writerow(header)
        for speaker, name, words in utterances(count):
            soundfile.write(folder / "wav" / f"{name}.wav", say(words), 16000)
            table.writerow([f"wav/{name}.wav", " ".join(words).lower(), speaker])
    return folder / "corpus.csv"


def kaldi_corpus(folder: Path) -> Path:
    """One recording a speaker, cut into utterances by a file of segments."""
    (folder / "wav").mkdir(parents=True)
    lines = {name: [] for name in ("wav.scp", "text", "utt2spk", "segments")}
    talks = {}
    for speaker, name, words in utterances():
        start = sum(map(len, talks.get(speaker, []))) / 16000
        talks.setdefault(speaker, []).append(say(words))
        lines["text"].append(f"{name} {' '.join(words)}")
        lines["utt2spk"].append(f"{name} {speaker}")
        lines["segments"].append(f"{name} {speaker} {start:.3f} {start + 0.3 * len(words):.3f}")
    for speaker, talk in talks.items():
        soundfile.write(folder / "wav" / f"{speaker}.flac", np.concatenate(talk), 16000)
        lines["wav.scp"].append(f"{speaker} wav/{speaker}.flac")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
    return folder


def manifests_corpus(folder: Path) -> Path:
    """Lhotse manifests with parts of their own, one in letters beyond ASCII; one speaker of the test is in train too."""
    csv_corpus(folder)
    parts = {"train": [], "dev": [], "test-größe": []}
    for speaker, name, words in utterances():
        number = SPEAKERS.index(speaker)
        part = "dev" if number == 1 else "test-größe" if number == 2 or name == f"{SPEAKERS[3]}-0" else "train"
        recording = Recording.from_file(folder / "wav" / f"{name}.wav")
        parts[part].append((recording, SupervisionSegment(id=name, recording_id=name, start=0, duration=recording.duration,
                                                          text=" ".join(words), speaker=speaker)))
    write_parts(folder / "manifests", {
        part: (RecordingSet.from_recordings(r for r, _ in pairs), SupervisionSet.from_segments(s for _, s in pairs))
        for part, pairs in parts.items()})
    return folder / "manifests"


def yesno_corpus(folder: Path) -> Path:
    """In the layout of OpenSLR 1, as Lhotse's recipe yesno expects it: 60 files of eight words each."""
    folder.mkdir()
    for number in range(60):
        bits = f"{number * 4 + 3:08b}"
        words = ["ONE" if bit == "1" else "TWO" for bit in bits]
        soundfile.write(folder / f"{'_'.join(bits)}.wav", say(words, 8000), 8000)
    return folder


def commonvoice_corpus(folder: Path, columns: str) -> Path:
    """In the layout of Common Voice, in MP3, of one language."""
    clips = folder / "eu" / "clips"
    clips.mkdir(parents=True)
    rows = {part: [columns.split()] for part in ("train", "dev", "test")}
    for speaker, name, words in utterances(2):
        part = {SPEAKERS[1]: "dev", SPEAKERS[2]: "test"}.get(speaker, "train")
        soundfile.write(clips / f"{name}.mp3", say(words, 32000), 32000, format="MP3")
        values = {"client_id": speaker, "path": f"{name}.mp3", "sentence": f'"{" ".join(words)}'}  # an open quote is text
        rows[part].append([values.get(column, "") for column in columns.split()])
    for part, lines in rows.items():
        (folder / "eu" / f"{part}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder


def cut(name: str, speaker="s", seconds=1.0, of=""):
    recording = Recording(id=of or name, sources=[AudioSource("file", [0], f"{name}.wav")], sampling_rate=16000,
                          num_samples=16000 * 60, duration=60.0)
    return MonoCut(id=name, start=0, duration=seconds, channel=0, recording=recording, supervisions=[
        SupervisionSegment(id=name, recording_id=recording.id, start=0, duration=seconds, text="A", speaker=speaker)])
