"""The model card of an exported folder: what the model is, how it was made, and how well it hears."""

from pathlib import Path
from typing import Any, Dict, List

from kdlib.comparison import full_rate_name, headline
from kdlib.conformer import FRAME_MS
from kdlib.files import PathLike, read_json, write_text
from kdlib.report import markdown_table
from kdlib.sherpa import AGAIN

DECODINGS = (("decode", "float32"), ("decode-int8", "int8"))  # the folders of sherpa-onnx's decodings


def write_model_card(folder: PathLike) -> None:
    """Write ``model_card.md`` from ``model.json`` and the decodings that are there; call it again after each of them."""
    folder = Path(folder)
    about = read_json(folder / "model.json", AGAIN)
    made = [f"{about['updates']:,} updates to epoch {about['epoch']}, {about['avg']} averaged, seed {about['seed']}"]
    if about["made_from"]:
        made.append("from " + " and ".join(f"`{name}`" for name in about["made_from"]))
    if about["distillation"]:
        made.append("distilled with " + ", ".join(f"`{name}` (weight {weight:g})"
                                                  for name, weight in about["distillation"].items()))
    goes_on = ("may go on after a sentence" if about.get("carried_labels") else  # older exports do not say
               "of one sentence; after its labels the model expects no other to begin")
    gain = about.get("gain", [0, 0])
    level = "that of the corpus, " + (f"from {gain[0]:+g} dB to {gain[1]:+g} dB" if any(gain) else
                                      "not much quieter and not much louder")
    text = (f"# {about['model']}\n\n"
            "A streaming Conformer transducer for sherpa-onnx (model type `conformer`).\n\n"
            f"- Parameters: {about['parameters']:,}\n"
            f"- Bytes: {about['float32_bytes']:,} in float32 (`encoder.onnx`, `decoder.onnx`, `joiner.onnx`), "
            f"{about['int8_bytes']:,} in int8 (`*.int8.onnx`)\n"
            f"- Chunk: {about['chunk_size'] * FRAME_MS} ms, with {about['left_context'] * FRAME_MS} ms of left context\n"
            f"- Features: {about['num_filters']} mel bins from {about['low_freq']:g} Hz to {about['high_freq']:g} Hz "
            f"(below 0: from half the rate), {about['sampling_rate']} Hz audio\n"
            f"- A stream: {goes_on}\n"
            f"- Level of the speech: {level}\n"
            f"- Training: {'; '.join(made)}\n")
    title, *rows = _error_rates(folder)
    if rows:
        text += f"\n## {title}\n\nIn per cent, by sherpa-onnx from these files.\n\n{markdown_table(*rows)}"
    write_text(folder / "model_card.md", text)


def _error_rates(folder: Path) -> List[Any]:
    """What the rates are called, header and cells of the decodings that are there; only the first where there is none."""
    found: Dict[str, Any] = {kind: read_json(folder / name / "summary.json", AGAIN) for name, kind in DECODINGS
                             if (folder / name / "summary.json").exists()}
    tests = {name: test for summary in found.values() for name, test in summary["test_sets"].items()}
    title = f"{full_rate_name(tests).capitalize()}s"
    if not found:
        return [title]
    return [title, ["Files", "Search", *tests],
            [[kind, summary["method"], *(f"{headline(test)['wer']:.2f}" if (test := summary["test_sets"].get(name)) else ""
                                         for name in tests)] for kind, summary in found.items()]]
