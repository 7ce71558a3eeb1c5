"""Settings for a corpus nobody has trained on yet, from its hours, its texts and its rates.

They are where to start from, not where to end; docs/adapt.md says the same as a table.
"""

import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import List, Sequence, Tuple

from kdlib.config import LangConfig, ModelConfig
from kdlib.errors import RecipeError
from kdlib.lang import TooManyTokens, train_lang
from kdlib.plan_config import PlanConfig
from kdlib.planning import measure_model, plan_stages
from kdlib.survey import unspaced

# Up to so many hours: layers, width, heads, feed-forward, kernel, channels of the subsampling; seconds of a batch; how often
# training goes through the speech, each speed counted.
# - 10: the sizes of egs/voice_commands and egs/fsdd, whose results this project has measured on 8 and 3.4 hours. Short, for
#   machines without a GPU.
# - 1000: 12 layers of 512, the size that icefall's pruned_transducer_stateless4 has for LibriSpeech's 960 hours; those before
#   have the width and depth between these two, and the kernel of egs/aishell. 60 passes are the 20 epochs at three speeds of
#   egs/librispeech; icefall's 25 epochs of the 960 hours are 75 passes, its 50 epochs of 100 hours 150.
# - more: 20 epochs at one speed, of speech that varies enough by itself.
_TIERS = (
    (10.0, (4, 144, 4, 432, 9, 32), 20.0, 30),
    (100.0, (8, 192, 4, 768, 15, 48), 60.0, 60),
    (500.0, (12, 256, 4, 1024, 15, 64), 300.0, 60),
    (1000.0, (12, 512, 8, 2048, 31, 128), 600.0, 60),
    (math.inf, (12, 512, 8, 2048, 31, 128), 600.0, 20),
)
# Of little speech more passes are needed to see as many updates: 60 hours heard are 10,800 updates of 20 s, half as many again
# as the commands' teacher has, and three times those of the digits', which say themselves that theirs are short.
_HEARD, _MOST_PASSES = 60.0, 60
# Speed perturbation (Ko et al., Audio augmentation for speech recognition, Interspeech 2015) pays where speech is not plenty.
_PERTURBED_UP_TO = 1000.0
# icefall's LibriSpeech recipes have 500 tokens; a token should be heard some 300 times in training, so that its row of the
# output layer is learnt: one token for each 1,000 characters of text, a token being about three characters.
_MOST_TOKENS, _LEAST_TOKENS, _CHARACTERS_A_TOKEN = 500, 50, 1000
# So few different words, each said so often, are a closed vocabulary: every word becomes one token, as in
# egs/voice_commands, but for those that SentencePiece always divides: of more than 15 letters, or of letters with digits,
# apostrophes or hyphens. A handful of sentences has few different words too, but most of them once.
_CLOSED, _SAID = 300, 10


@dataclass(frozen=True)
class Proposal:
    """What ``tools/new_recipe.py`` writes into a recipe's conf/."""

    sampling_rate: int
    num_filters: int
    speed_factors: Tuple[float, ...]
    lang_type: str
    vocab_size: int
    model: ModelConfig
    students: Tuple[ModelConfig, ...]
    batch_seconds: float
    epochs: int
    student_epochs: int
    learning_rate: float
    updates: int  # of the teacher, about
    reasons: Tuple[str, ...]  # one line for each choice

    @property
    def parameters(self) -> int:
        """The teacher's, as deployed."""
        return measure_model(self.model, self.vocab_size, run=False).total


def propose_rate(found: Counter) -> int:
    """16 kHz unless most of the seconds have less, as telephone speech does: then 8 kHz; ``found``: those of each (rate,
    channels)."""
    low = sum(count for (rate, _), count in found.items() if rate < 16000)
    return 8000 if 2 * low > sum(found.values()) else 16000


def propose_tokens(texts: Sequence[str]) -> Tuple[str, int, str]:
    """(type, size, reason): BPE, or characters for scripts without spaces; the size is one that SentencePiece can make."""
    said = Counter(word for text in texts for word in text.split())
    words = set(said)
    letters = {letter for word in words for letter in word}
    if unspaced(texts):
        return "char", len(letters) + 4, "characters, since most letters are of a script without spaces"
    closed = len(words) <= _CLOSED and sum(said.values()) >= _SAID * len(words)
    wanted = sum(map(len, texts)) // _CHARACTERS_A_TOKEN
    wanted = _MOST_TOKENS if closed else max(_LEAST_TOKENS, min(_MOST_TOKENS, 50 * round(wanted / 50)))
    if len(letters) + 4 > _MOST_TOKENS:
        return "char", len(letters) + 4, f"characters, since there are {len(letters)} of them"
    wanted = max(wanted, len(letters) + 4)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                lang = train_lang(texts, LangConfig(type="bpe", vocab_size=wanted), folder)
                break
            except RecipeError as error:
                most = error.most if isinstance(error, TooManyTokens) else wanted
                if most >= wanted:
                    return "char", len(letters) + 4, f"characters, since BPE does not fit the text ({error})"
                wanted = most
    if closed and len(lang) < _MOST_TOKENS:
        whole = sum(len(lang.encode(word)) == 1 for word in words)
        return "bpe", len(lang), f"BPE, as many as the text fills: {whole} of {len(words)} words are one token"
    return "bpe", len(lang), f"BPE, for {len(words):,} different words in {sum(map(len, texts)):,} characters"


def propose(hours: float, texts: Sequence[str], found_rates: Counter) -> Proposal:
    """Settings for ``hours`` of training speech with these transcripts."""
    reasons: List[str] = []
    rate = propose_rate(found_rates)
    lang_type, vocab_size, why = propose_tokens(texts)
    reasons.append(f"tokens: {vocab_size}, {why}")
    (layers, width, heads, feedforward, kernel, channels), batch, passes = next(
        tier[1:] for tier in _TIERS if hours <= tier[0])
    # One of so many characters stands for a syllable or a word, and says more of the next than a piece of a word does.
    context = 1 if lang_type == "char" and vocab_size > _MOST_TOKENS else 2
    model = ModelConfig(num_features=80 if rate >= 16000 else 40, subsampling_channels=channels, encoder_dim=width,
                        num_layers=layers, num_heads=heads, head_dim=width // heads, feedforward_dim=feedforward,
                        kernel_size=kernel, predictor_dim=width, joiner_dim=width, context_size=context, chunk_size=16,
                        left_context=64)
    students = tuple(plan_stages(model, PlanConfig(), vocab_size))
    count = measure_model(model, vocab_size, run=False).total
    reasons.append(f"teacher: {count / 1e6:.1f} M parameters, {layers} layers of {width}, for {hours:.2f} h of training "
                   "speech")
    last = measure_model(students[-1], vocab_size, run=False).total
    reasons.append(f"stages: {len(students)} to a model of {last / 1e6:.2f} M, {100 * (1 - last / count):.0f}% smaller")
    factors = (0.9, 1.1) if hours <= _PERTURBED_UP_TO else ()
    # Epochs go over the perturbed speech, which is three times as much.
    heard = hours * (1 + len(factors))
    passes = min(_MOST_PASSES, max(passes, math.ceil(_HEARD / max(hours, 0.01))))
    epochs = max(1, math.ceil(passes / (1 + len(factors))))
    updates = max(1, math.ceil(epochs * heard * 3600 / batch))
    reasons.append(f"training: {epochs} epochs{' at three speeds' if factors else ''}, about {updates:,} updates of "
                   f"{batch:g} s")
    return Proposal(rate, model.num_features, factors, lang_type, vocab_size, model, students, batch, epochs,
                    max(1, round(epochs / 5)), round(1.2e-3 * math.sqrt(144 / width), 5), updates, tuple(reasons))
