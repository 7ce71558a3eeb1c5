"""The Free Spoken Digit Dataset's layout: which takes there are, and which part each belongs to."""

import re
from typing import Dict, List, NamedTuple

SAMPLING_RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
TAKES = 50
# Takes 0 to 4 are the official test; of the official training's 5 to 49 the last five are kept for dev.
TEST_TAKES = range(0, 5)
DEV_TAKES = range(45, 50)

FILE_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")


class Take(NamedTuple):
    """One recording of one digit."""

    digit: int
    speaker: str
    index: int

    @property
    def file_name(self) -> str:
        return f"{self.digit}_{self.speaker}_{self.index}.wav"


def all_takes() -> List[Take]:
    """Return the dataset's 3000 takes in a fixed order."""
    return [Take(digit, speaker, index) for speaker in SPEAKERS for digit in range(10) for index in range(TAKES)]


def split(unseen_speaker: str) -> Dict[str, List[Take]]:
    """Deal all takes to the parts; no take is in two, and ``unseen_speaker`` is in no training or dev take.

    ``test`` holds the official test takes of all six speakers. ``test-unseen`` holds the other takes of the speaker
    that training never hears; with ``unseen_speaker`` empty there is no such part and training hears everybody.
    """
    parts: Dict[str, List[Take]] = {"train": [], "dev": [], "test": []}
    if unseen_speaker:
        parts["test-unseen"] = []
    for take in all_takes():
        if take.index in TEST_TAKES:
            parts["test"].append(take)
        elif take.speaker == unseen_speaker:
            parts["test-unseen"].append(take)
        else:
            parts["dev" if take.index in DEV_TAKES else "train"].append(take)
    return parts
