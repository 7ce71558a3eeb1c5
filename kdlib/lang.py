"""Tokens: a SentencePiece model whose first three symbols are ``<blk>``, ``<sos/eos>`` and ``<unk>``."""

import io
import re
from pathlib import Path
from typing import Iterable, List

import sentencepiece as spm

from kdlib.config import LangConfig
from kdlib.errors import RecipeError, in_one_line
from kdlib.files import PathLike, atomic_path, read_lines, write_text

BLANK, SOS_EOS, UNK = "<blk>", "<sos/eos>", "<unk>"
REMEDY = "run stage 3 again to make it"
# SentencePiece leaves out, without a word, texts of more bytes than it is told to take, 4,192 by itself, and all with the
# character that it marks what is unknown by.
_USUAL_BYTES, _RESERVED = 4192, "\u2585"


class TooManyTokens(RecipeError):
    """More tokens are asked for than a text can fill; ``most`` can be."""

    def __init__(self, message: str, most: int) -> None:
        super().__init__(message)
        self.most = most


def train_lang(texts: Iterable[str], config: LangConfig, output: PathLike) -> "Lang":
    """Train SentencePiece on ``texts`` and write ``bpe.model`` and ``tokens.txt`` into the folder ``output``.

    Every text counts, however long; U+2585 alone, which SentencePiece keeps for itself, becomes no token.
    ``char`` takes every character, whatever the vocabulary's size. Where texts of characters hold no space, none stands
    for the beginning of a word either: it would be a label before every utterance that says nothing.

    Raises:
        RecipeError: there is no text, or the vocabulary is too small for the characters. TooManyTokens: it is larger than the
            text can fill.
    """
    texts = [text for text in (text.replace(_RESERVED, "") for text in texts) if text.strip()]
    if not texts:
        raise RecipeError("there is no text to make tokens from: the training cuts hold no transcripts")
    model = io.BytesIO()
    options = dict(
        sentence_iterator=iter(texts), model_writer=model, model_type=config.type, vocab_size=config.vocab_size,
        character_coverage=1.0, user_defined_symbols=[BLANK, SOS_EOS], unk_id=2, bos_id=-1, eos_id=-1, pad_id=-1,
        normalization_rule_name="identity", minloglevel=2)
    longest = max(len(text.encode()) for text in texts)
    if longest > _USUAL_BYTES:  # of no cost, since SentencePiece goes by words; models of other texts stay as they were
        options["max_sentence_length"] = longest
    if config.type == "char":
        options["use_all_vocab"] = True
        options["vocab_size"] = max(config.vocab_size, 3)  # with less it does not begin
        options["add_dummy_prefix"] = any(len(text.split()) > 1 for text in texts)
    try:
        spm.SentencePieceTrainer.train(**options)
    except RuntimeError as error:
        said = f"SentencePiece cannot make {config.vocab_size} {config.type} tokens: {in_one_line(error)}"
        limit = re.search(r"Vocabulary size too high .* value <= (\d+)", said)
        raise (TooManyTokens(said, int(limit[1])) if limit else RecipeError(said)) from None
    output = Path(output)
    with atomic_path(output / "bpe.model") as temporary:
        temporary.write_bytes(model.getvalue())
    processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
    # tokens.txt comes last: a folder with it is whole.
    write_text(output / "tokens.txt",
               "".join(f"{processor.id_to_piece(i)} {i}\n" for i in range(processor.get_piece_size())))
    return Lang(output)


class Lang:
    """The folder that stage 3 makes. ``tokens[i]`` is the token of id i; the blank is 0.

    Raises:
        RecipeError: a file is missing or damaged, or ``tokens.txt`` and ``bpe.model`` do not belong together.
    """

    def __init__(self, folder: PathLike, remedy: str = REMEDY):
        folder = Path(folder)
        for name in ("tokens.txt", "bpe.model"):
            if not (folder / name).is_file():
                raise RecipeError(f"{folder / name} is missing: {remedy}")
        try:
            # By its content, since SentencePiece takes no path that is not UTF-8.
            self.processor = spm.SentencePieceProcessor()
            self.processor.LoadFromSerializedProto((folder / "bpe.model").read_bytes())
        except RuntimeError:
            raise RecipeError(f"{folder / 'bpe.model'} is no SentencePiece model: {remedy}") from None
        self.tokens = [self.processor.id_to_piece(i) for i in range(self.processor.get_piece_size())]
        if read_lines(folder / "tokens.txt", remedy) != [f"{token} {i}" for i, token in enumerate(self.tokens)]:
            raise RecipeError(f"{folder / 'tokens.txt'} does not fit {folder / 'bpe.model'}: {remedy}")
        if self.tokens[:3] != [BLANK, SOS_EOS, UNK]:
            raise RecipeError(f"{folder / 'tokens.txt'} must begin with {BLANK}, {SOS_EOS}, {UNK}: {remedy}")
        self.blank_id = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> List[int]:
        """Text to token ids."""
        return self.processor.encode(text, out_type=int)

    def unknown(self, text: str) -> List[str]:
        """The characters of a text that no token holds; :meth:`encode` makes ``<unk>`` of them."""
        pieces = self.processor.encode(text, out_type=str)
        return [character for piece in pieces if self.processor.piece_to_id(piece) == 2 for character in piece]

    def decode(self, ids: List[int]) -> str:
        """Token ids to text; an unknown token reads as a blank does: as nothing."""
        return self.processor.decode([i for i in ids if i > 2])
