"""A finished run of a recipe, made up, for stage 8 and local/seeds.py to read."""

import json
from pathlib import Path

from scripts import load

SCRIPT = Path(__file__).resolve().parents[1] / "local" / "results.py"
stage8 = load(SCRIPT)

SIZES = {"teacher": 1_700_000, "stage1": 1_250_000, "stage2": 920_000, "stage3": 660_000}
WERS = {  # test-clean, test-other
    "teacher": (6.0, 18.0), "stage1": (6.3, 18.0), "stage2": (7.5, 17.1), "stage3": (9.0, 22.5),
    "scratch": (38.25, 61.5), "scratch-matched": (30.0, 45.0), "single": (12.0, 27.0), "single-matched": (9.75, 24.0),
}
UPDATES = {"teacher": 2400, "stage1": 800, "stage2": 800, "stage3": 1000, "scratch": 2400, "scratch-matched": 5000,
           "single": 1000, "single-matched": 2600}


def summary(name, **changes):
    words = {"test-clean": 2000, "test-other": 2400}
    tests = {}
    for (test_set, total), wer in zip(words.items(), WERS[name]):
        errors = round(wer * total / 100)
        tests[test_set] = {"wer": wer, "errors": errors, "words": total, "ins": 1, "del": 2, "sub": errors - 3,
                           "utterances": 400, "words_by_utterance": [total // 400] * 400,
                           "errors_by_utterance": [errors // 400 + (n < errors % 400) for n in range(400)]}
    return {"model": name, "parameters": SIZES.get(name, SIZES["stage3"]), "updates": UPDATES[name], "epoch": 9,
            "avg": 3, "method": "greedy_search", "max_sym_per_frame": 1, "chunk_ms": 320.0, "left_context_ms": 1280.0,
            "seconds": 31.4, "test_sets": tests, **changes}


class Run:
    """A finished run in a temporary folder, one part of which a test may change."""

    def __init__(self, folder: Path):
        self.folder = folder
        for model in WERS:
            self.write(model)
            (folder / "exp" / model / "done.json").write_text(json.dumps(
                {"rnnt_backend": "native", "seconds": 365.2, "torch": "2.11.0", "updates": UPDATES[model]}))
        (folder / "exp" / "conf").mkdir(parents=True)
        (folder / "exp" / "conf" / "plan.json").write_text(json.dumps({"stages": 3}))
        (folder / "progressive.yaml").write_text("target_compression: 60\n")

    def path(self, model: str) -> Path:
        return self.folder / "exp" / model / "decode" / "summary.json"

    def write(self, name: str, **changes) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(json.dumps(summary(name, **changes)))

    def arguments(self) -> list:
        return ["--exp", str(self.folder / "exp"), "--config", str(self.folder / "progressive.yaml"), "--recipe",
                "commands", "--output", str(self.folder / "out"), "--report", str(self.folder / "RESULTS.md")]

    def results(self) -> dict:
        stage8.main(self.arguments())
        return json.loads((self.folder / "out" / "results.json").read_text())
