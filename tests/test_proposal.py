"""The models, tokens and rate that a recipe proposes for a corpus."""

import pytest

from kdlib.planning import measure_model
from kdlib.proposal import propose, propose_rate, propose_tokens


class TestProposals:
    TEXTS = ["THE CAT SAT ON THE MAT", "A DOG RAN TO THE DOOR"] * 20

    def test_larger_models_for_more_speech(self):
        sizes = [propose(hours, self.TEXTS, {(16000, 1): 9}).parameters for hours in (0.1, 5, 50, 200, 1000)]
        assert sizes[0] == sizes[1] < sizes[2] < sizes[3] < sizes[4]

    @pytest.mark.parametrize("hours", [0.05, 0.5, 5, 20, 150, 960])
    def test_the_stages_reach_their_target(self, hours):
        proposed = propose(hours, self.TEXTS, {(16000, 1): 9})
        last = measure_model(proposed.students[-1], proposed.vocab_size, run=False).total
        assert last <= 0.4 * proposed.parameters and proposed.epochs >= 1 and proposed.student_epochs >= 1

    def test_little_speech_is_heard_more_often_and_plenty_less(self):
        def passes(hours):
            proposed = propose(hours, self.TEXTS, {(16000, 1): 9})
            return proposed.epochs * (1 + len(proposed.speed_factors))

        assert [passes(hours) for hours in (0.5, 1.5, 5, 50, 200, 960, 5000)] == [60, 42, 30, 60, 60, 60, 20]

    def test_tokens_fit_the_text(self):
        kind, size, _ = propose_tokens(self.TEXTS)
        assert kind == "bpe" and size > len(set("".join(self.TEXTS)))
        assert propose_tokens(["今天天气很好", "我们去公园"])[0] == "char"
        # blank, end, unknown, the mark of a word's begin, the letter and the two together
        assert propose_tokens(["A"] * 3)[:2] == ("bpe", 6)
        many = ["".join(chr(0xAC00 + 7 * k + j) for j in range(5)) + " " for k in range(400)]
        assert propose_tokens(many)[0] == "char"  # Hangul has spaces, and more letters than BPE has tokens

    @pytest.mark.parametrize("letters, context", [(26, 2), (2000, 1)])
    def test_the_predictor_reads_one_character_where_each_says_much(self, letters, context):
        texts = ["".join(chr(0x4E00 + (7 * k + j) % letters) for j in range(7)) for k in range(letters)]
        assert propose(50, texts, {(16000, 1): 9}).model.context_size == context

    def test_few_words_that_are_said_once_are_no_closed_vocabulary(self):
        words = ["".join(chr(ord("A") + (7 * k + 3 * j) % 26) for j in range(3 + k % 5)) for k in range(150)]
        kind, size, why = propose_tokens([" ".join(words[k:k + 10]) for k in range(0, 150, 10)])
        assert (kind, size) == ("bpe", 50) and "one token" not in why

    @pytest.mark.parametrize("words, told", [
        (["YES", "NO", "STOP"], "3 of 3 words are one token"),
        (["YES", "NO", "MP3", "DON'T", "ABCDEFGHIJKLMNO", "ABCDEFGHIJKLMNOP"], "3 of 6 words are one token")])
    def test_of_a_closed_vocabulary_it_says_how_many_words_are_one_token(self, words, told):
        """SentencePiece makes none of digits or apostrophes with letters, nor of more than 15 letters."""
        kind, _, why = propose_tokens([" ".join(words[k:] + words[:k]) for k in range(len(words))] * 10)
        assert kind == "bpe" and why == f"BPE, as many as the text fills: {told}"

    def test_rates(self):
        assert propose_rate({(8000, 1): 5, (16000, 1): 4}) == 8000
        assert propose_rate({(44100, 2): 5, (16000, 1): 4, (8000, 1): 8}) == 16000
