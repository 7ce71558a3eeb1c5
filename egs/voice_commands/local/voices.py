"""Which espeak-ng voices speak which part; a variant that speaks in one part never speaks in another.

Not fit for speech that a recogniser should learn, and so in no part: the whispered and the robot variants, klatt and
klatt2 (mostly noise), RicishayMax* (echo), Demonic, caleb, zac, Marco, UniRobot and anikaRobot, travis and kaukovalta
(the first formant an octave or more too low, so that vowels are other vowels). Variants that are near copies of each
other (the steph, iven and mike families, for instance, or adam, which is klatt6 but for weaker consonants) are kept
in one part; fast, from which the test's john and dev's m6 can hardly be told, is in none.
"""

from typing import Dict, List

_HELD_OUT: Dict[str, List[str]] = {
    "dev": ["f2", "f5", "m6", "m8", "paul", "Nguyen", "victor"],
    "test": ["f4", "belinda", "aunty", "Andy", "Reed", "marcelo", "m2", "boris", "quincy", "john"],
}
_TRAIN = """Alex Alicia Andrea Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Mario Michael Mike
Storm Tweaky adam anika announcer antonio benjamin croak david ed edward edward2 f1 f3 grandma grandpa gustave ian
iven iven2 iven3 iven4 klatt3 klatt4 klatt5 klatt6 linda m1 m3 m4 m5 m7 max michel miguel mike2 norbert pablo pedro
rob robert sandro shelby steph steph2 steph3""".split()
# British voices, about an eighth of each part: "en" is espeak-ng's name for British English, "en-gb" is none.
_BRITISH = {"train": ["en+f1", "en+m3", "en+Alicia", "en+max", "en+robert", "en-gb-x-rp+f3", "en-gb-x-rp+m1",
                      "en-gb-x-rp+michel", "en-gb-x-rp+Mario"],
            "dev": ["en+m6"],
            "test": ["en+f4"]}


def voices_of(part: str) -> List[str]:
    """Return the voices (language+variant) of ``train``, ``dev`` or ``test``; test-clean and test-other share them."""
    variants = _TRAIN if part == "train" else _HELD_OUT[part]
    return [f"en-us+{variant}" for variant in variants] + _BRITISH[part]
