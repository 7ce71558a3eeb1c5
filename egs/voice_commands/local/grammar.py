"""The commands that the corpus speaks: templates, their slots, and which sentences are held out of training.

A sentence belongs to one part for ever: a hash of its words says which. So no sentence of dev, test-clean or
test-other occurs in training or in another of them, whatever the corpus's size.
"""

import hashlib
import random
import re
from typing import Dict, List, Tuple

PARTS = ("train", "dev", "test-clean", "test-other")
LONGEST = 10
# Of a hundred sentences, how many are held out for each part; the others are for training.
_HELD_OUT = (("dev", 6), ("test-clean", 10), ("test-other", 10))

_SLOTS: Dict[str, List[str]] = {
    "name": "ANNA DAVID MARIA PETER SARAH THOMAS JULIA ROBERT EMMA DANIEL".split(),
    "place": "KITCHEN BEDROOM BATHROOM GARAGE GARDEN OFFICE".split(),
    "colour": "RED GREEN BLUE WHITE YELLOW PURPLE".split(),
    "genre": "JAZZ ROCK CLASSICAL DISCO".split(),
    "day": "TODAY TOMORROW MONDAY FRIDAY SATURDAY".split(),
    "weekday": "MONDAY FRIDAY SATURDAY".split(),
    "half": "MORNING EVENING".split(),
    "unit": "SECONDS MINUTES HOURS".split(),
    "digit": "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split(),
    "few": "TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE FIFTEEN".split(),
    "hour": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE".split(),
    "tens": "TWENTY THIRTY FORTY FIFTY".split(),
    "minute": ["FIFTEEN", "{tens}", "{tens} FIVE", "TEN"],
    "count": ["{few}", "{few}", "{tens}", "{tens} {few_digit}"],
    "few_digit": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split(),
    "onoff": ["ON", "OFF"],
    "clock": ["{hour}", "{hour} {minute}"],
    "lamp": ["LIGHTS", "{place} LIGHTS"],
    "thing": ["TIMER", "MUSIC", "ALARM", "RADIO"],
    "direction": ["UP", "DOWN"],
    # two of these make a sentence
    "clause": ["{colour} LIGHTS", "LIGHTS {onoff}", "{place} LIGHTS {onoff}", "DIM THE {place} LIGHTS", "PLAY {genre}",
               "PLAY {genre} MUSIC", "NEXT SONG", "PREVIOUS SONG", "STOP THE {thing}", "START THE {thing}", "PAUSE THE {thing}",
               "CALL {name}", "MESSAGE {name}", "VOLUME {direction}", "SHUFFLE MY MUSIC", "REPEAT THE SONG",
               "CANCEL THE {thing}", "DELETE THE MESSAGE", "RADIO {onoff}", "MAKE IT LOUDER", "MAKE IT QUIETER", "WAKE {name}"],
    "word": "STOP PAUSE CANCEL REPEAT LOUDER QUIETER YES NO NEXT PREVIOUS SHUFFLE HELP".split(),
}

# One intent a line: how often it is drawn, then its templates (all equally likely).
_INTENTS: List[Tuple[float, List[str]]] = [
    # one and two words: training begins with these
    (5, ["{word}", "{digit}", "{hour}"]),
    (5, ["NEXT SONG", "PREVIOUS SONG", "LIGHTS {onoff}", "CALL {name}", "CALL {name}", "PLAY {genre}", "PLAY MUSIC",
         "STOP {thing}", "START {thing}", "CANCEL {thing}", "{digit} {digit}", "DIM LIGHTS", "{place} {onoff}",
         "{colour} LIGHTS", "VOLUME {few}", "RADIO {onoff}", "YES PLEASE", "NO PLEASE", "HELP ME", "{tens} {few_digit}",
         "DELETE ALL", "{day} {half}", "MESSAGE {name}", "{few} {unit}", "{tens} PERCENT"]),
    # alarms and timers
    (6, ["SET ALARM FOR {clock}", "SET THE ALARM FOR {clock} {day} {half}", "WAKE ME UP AT {clock}",
         "WAKE ME UP {day} AT {clock}", "WAKE ME AT {clock} IN THE {half} PLEASE", "CANCEL THE ALARM FOR {clock}",
         "DELETE MY {half} ALARM", "TURN OFF THE ALARM AT {clock}", "SET MY {weekday} ALARM FOR {clock} IN THE {half}"]),
    (6, ["SET TIMER FOR {count} {unit}", "START THE TIMER FOR {count} {unit}", "SET THE {place} TIMER FOR {count} {unit}",
         "STOP THE {place} TIMER", "CANCEL THE {place} TIMER PLEASE", "START MY {few} MINUTES TIMER",
         "SET TIMER FOR {few} HOURS AND {count} MINUTES", "SET THE TIMER FOR {few} MINUTES AND {count} SECONDS PLEASE"]),
    # calls and messages
    (5, ["CALL {name} PLEASE", "CALL {name} AT {clock}", "CALL {name} AND {name}", "SEND MESSAGE TO {name}",
         "SEND {name} THE MESSAGE", "SEND THE MESSAGE TO {name} AND {name}", "CALL {name} {day} AT {clock}",
         "DELETE THE MESSAGE TO {name}", "REPEAT THE MESSAGE FOR {name}", "CALL {name} IN {count} {unit}"]),
    (4, ["DIAL {digit} {digit} {digit}", "DIAL {digit} {digit} {digit} {digit}", "CALL NUMBER {digit} {digit} {digit} {digit}",
         "DIAL {digit} {digit} {digit} {digit} {digit} {digit} PLEASE", "{digit} {digit} {digit} {digit}",
         "SEND NUMBER {digit} {digit} {digit} {digit} {digit} TO {name}"]),
    # lights
    (6, ["TURN {onoff} THE {lamp}", "TURN THE {lamp} {onoff} PLEASE", "TURN {onoff} ALL LIGHTS", "DIM THE {lamp} TO {tens} PERCENT",
         "MAKE THE {lamp} {colour}", "TURN THE {place} LIGHTS {colour} AND THE {place} LIGHTS {colour}",
         "SET THE {place} LIGHTS TO {count} PERCENT", "LIGHTS {onoff} IN THE {place}", "{colour} LIGHTS IN THE {place} PLEASE",
         "TURN {onoff} THE {place} LIGHTS AND THE RADIO", "TURN {onoff} THE LIGHTS AT {clock} IN THE {half}"]),
    # music
    (5, ["PLAY {genre} MUSIC", "PLAY THE NEXT SONG", "PLAY {genre} IN THE {place}", "TURN THE VOLUME {direction}",
         "TURN {direction} THE {place} RADIO", "SET VOLUME TO {count} PERCENT", "SHUFFLE MY {genre} MUSIC",
         "PAUSE THE MUSIC IN THE {place}", "STOP THE RADIO AT {clock}", "PLAY {genre} MUSIC FOR {name} AND {name}",
         "PLAY THE PREVIOUS SONG PLEASE", "REPEAT SONG NUMBER {few}", "MAKE THE MUSIC LOUDER",
         "MAKE THE RADIO QUIETER PLEASE"]),
    # questions with numbers
    (3, ["WHAT IS {count} PLUS {count}", "WHAT TIME IS THE ALARM", "WHAT IS THE NUMBER FOR {name}",
         "WHAT IS {few} PLUS {few} PLUS {few}", "YES SET IT FOR {clock}", "NO TURN IT {onoff}", "HELP ME CALL {name}",
         "WHAT SONG IS IT", "WHAT TIME IS IT {day}"]),
    # two commands at once
    (7, ["{clause} AND {clause}", "{clause} AND {clause} PLEASE", "PLEASE {clause}", "{clause} {day}",
         "PLEASE {clause} AND {clause}", "{clause} AT {clock}"]),
]

_SLOT = re.compile(r"\{(\w+)\}")
_WEIGHTS = [weight for weight, _ in _INTENTS]


def vocabulary() -> List[str]:
    """Return every word that a sentence can have, sorted."""
    texts = [text for _, templates in _INTENTS for text in templates]
    texts += [text for fillers in _SLOTS.values() for text in fillers]
    return sorted({word for text in texts for word in _SLOT.sub(" ", text).split()})


def sample(rng: random.Random) -> str:
    """Draw a sentence of 1 to 10 upper-case words separated by one space."""
    while True:
        text = rng.choice(rng.choices(_INTENTS, _WEIGHTS)[0][1])
        while "{" in text:
            text = _SLOT.sub(lambda slot: rng.choice(_SLOTS[slot.group(1)]), text)
        if len(text.split()) <= LONGEST:
            return text


def part_of(sentence: str) -> str:
    """Return the only part in which ``sentence`` may occur: ``train``, ``dev``, ``test-clean`` or ``test-other``."""
    bucket = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") % 100
    for part, share in _HELD_OUT:
        if bucket < share:
            return part
        bucket -= share
    return "train"


class Sentences:
    """An endless stream of one part's sentences.

    The held-out parts give each sentence once, until their sentences run short. Training repeats sentences as the
    grammar draws them, but begins with enough of them to hold every word of the vocabulary.
    """

    def __init__(self, part: str, seed: int):
        self._part = part
        self._rng = random.Random(f"{part}-{seed}")
        self._seen: set = set()
        self._missing = set(vocabulary()) if part == "train" else set()

    def __iter__(self) -> "Sentences":
        return self

    def __next__(self) -> str:
        for _ in range(5000):
            sentence = sample(self._rng)
            if part_of(sentence) != self._part:
                continue
            if self._missing:
                if self._missing.isdisjoint(sentence.split()):
                    continue
                self._missing.difference_update(sentence.split())
            elif self._part != "train" and sentence in self._seen:
                continue
            break
        else:
            # Either a word that no training sentence has, which the tests exclude, or new sentences are used up.
            self._missing.clear()
            self._seen.clear()
            return next(self)
        self._seen.add(sentence)
        return sentence
