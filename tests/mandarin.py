"""Makes a small corpus in AISHELL-1's layout, spoken by espeak-ng: python tests/mandarin.py FOLDER.

A process of its own, since a process holds one espeak-ng engine.
"""

import itertools
import random
import sys
from pathlib import Path

from scripts import load

ROOT = Path(__file__).resolve().parents[1]
UTTERANCES = {"train": 90, "dev": 12, "test": 12}
SPEAKERS = {"train": ["S0002", "S0003", "S0004"], "dev": ["S0724"], "test": ["S0764"]}
WORDS = [["今天", "明天", "昨天", "上午", "晚上"], ["我们", "他们", "老师", "学生"], ["去", "来", "看"],
         ["北京", "学校", "公园", "电影", "KTV"]]
UNSEEN = "鲸鱼"  # stands in a dev transcript alone


def sentences(part):
    """(id, speaker, words) of a part's utterances; none stands in two parts."""
    every = list(itertools.product(*WORDS))
    random.Random(1).shuffle(every)
    begin = sum(UTTERANCES[p] for p in itertools.takewhile(lambda p: p != part, UTTERANCES))
    for number in range(UTTERANCES[part]):
        words = list(every[begin + number])
        if part == "dev" and number == 0:
            words[-1] = UNSEEN
        speaker = SPEAKERS[part][number % len(SPEAKERS[part])]
        yield f"BAC009{speaker}W{number:04d}", speaker, words


def write_corpus(folder, say) -> Path:
    """The corpus with audio ``say(speaker, text)`` (samples at 16 kHz) in ``folder``; returns its data_aishell."""
    import soundfile

    data, lines = Path(folder) / "data_aishell", []
    for part in UTTERANCES:
        for name, speaker, words in sentences(part):
            path = data / "wav" / part / speaker / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, say(speaker, "".join(words)), 16000, subtype="PCM_16")
            lines.append(f"{name} {' '.join(words)}\n")
    transcript = data / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.parent.mkdir(parents=True)
    transcript.write_text("".join(lines), encoding="utf-8")
    return data


def main(folder):
    from kdlib.audio import resample

    espeak = load(ROOT / "egs" / "voice_commands" / "local" / "espeak.py")
    engine = espeak.Synthesizer(seed=1)
    voices = dict(zip(itertools.chain(*SPEAKERS.values()), ("cmn", "cmn+f2", "cmn+m3", "cmn+f4", "cmn+m1")))
    write_corpus(folder, lambda speaker, text: resample(engine(text, voices[speaker]), engine.rate, 16000))


if __name__ == "__main__":
    main(sys.argv[1])
