"""A few utterances that travel with an exported model, and what sherpa-onnx hears in them by its files: whoever builds the
model into a device can tell from them whether the device hears the same."""

from pathlib import Path
from typing import Any, Iterable

import soundfile
from lhotse.cut import Cut

from kdlib.cuts import load_samples, transcript
from kdlib.files import PathLike, write_audio, write_text
from kdlib.scoring import split_characters
from kdlib.sherpa import hear, make_recognizer, read_model

FOLDER = "test_wavs"  # as the models that sherpa-onnx publishes have it
TABLE = "trans.txt"
UTTERANCES, WORDS = 3, 3


def write_examples(folder: PathLike, cuts: Iterable[Cut], recognizer: Any) -> Path:
    """Leave the shortest cuts of a few words, or of the most words where none has so many, in ``test_wavs/`` of an exported
    model as WAV of 16 bits at its rate, and beside them ``trans.txt``: for each its file, id and words, and those that are
    heard in it by greedy search in float32 and in int8, with tabs between them; ``recognizer`` is that of the float32 files.
    Returns the path of that table."""
    forget_examples(folder)
    place, about = Path(folder) / FOLDER, read_model(folder)
    rate = about["sampling_rate"]
    recognizers = [recognizer, make_recognizer(folder, read_model(folder, True), True)]
    rows = [["file", "id", "reference", "float32", "int8"]]
    chosen = sorted(cuts, key=lambda cut: (-min(WORDS, len(split_characters(transcript(cut).split()))), cut.duration, cut.id))
    for number, cut in enumerate(chosen[:UTTERANCES]):
        path = place / f"{number}.wav"
        write_audio(path, load_samples(cut, rate)[0], rate)
        samples, _ = soundfile.read(str(path), dtype="float32")  # of these bits are the words, not of the corpus's
        texts = [transcript(cut).split(), *(hear(recognizer, about, samples) for recognizer in recognizers)]
        rows.append([path.name, cut.id, *map(" ".join, texts)])
    write_text(place / TABLE, "".join("\t".join(row) + "\n" for row in rows))
    return place / TABLE


def forget_examples(folder: PathLike) -> None:
    """Delete what :func:`write_examples` has left, of another model maybe."""
    place = Path(folder) / FOLDER
    for path in (place / TABLE, *(place / f"{number}.wav" for number in range(UTTERANCES))):
        path.unlink(missing_ok=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()
