"""Stage 0: find AISHELL-1 at --corpus-dir, or let Lhotse download it from OpenSLR."""

import argparse
import re
from pathlib import Path
from typing import List, Tuple

from lhotse.recipes import download_aishell

from kdlib.downloads import fetch_and_unpack
from kdlib.errors import RecipeError, run_main
from kdlib.files import write_json

PARTS = ("train", "dev", "test")
URL = "https://www.openslr.org/resources"


def silent_speakers(data: Path, transcript: Path) -> Tuple[List[str], int]:
    """The speakers that the transcripts name (S0002 of BAC009S0002W0122) and no part has a recording of; and how many
    speakers they name in all."""
    lines = transcript.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    named = {found[1] for found in (re.match(r"\S*(S\d{4})W\d+\s", line) for line in lines) if found}
    heard = {folder.name for part in PARTS for folder in (data / "wav" / part).iterdir()
             if any(path.is_file() for path in folder.glob("*.wav"))}
    return sorted(named - heard), len(named)


def find_corpus(folder: Path, partial: bool, downloaded: bool) -> Path:
    """Return the folder data_aishell, ``folder`` itself or in it; RecipeError when something of it is missing.

    With ``partial`` speakers may be missing. ``downloaded``, by this script, it can be so again. Whether every recording can
    be read, and has its transcript, is looked at in stage 1.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder: give the one that holds data_aishell as --corpus-dir, or none to "
                          "download it")
    data = folder if folder.name == "data_aishell" else folder / "data_aishell"
    if not data.is_dir():
        raise RecipeError(f"{folder} holds no data_aishell: unpack data_aishell.tgz there, give another --corpus-dir, or "
                          "none to download it")
    transcript = data / "transcript" / "aishell_transcript_v0.8.txt"
    remedy = f"remove {folder} and run stage 0 again to download it anew" if downloaded else "unpack data_aishell.tgz again"
    if not transcript.is_file():
        raise RecipeError(f"{transcript} is missing: {remedy}")
    packed = len(list((data / "wav").glob("*.tar.gz")))
    if packed:
        remedy = f"unpack the {packed} archives of speakers in {data / 'wav'}"
    for part in PARTS:
        if not any(path.is_file() for path in (data / "wav" / part).glob("*/*.wav")):
            raise RecipeError(f"{data / 'wav' / part} holds no recordings (SPEAKER/ID.wav): {remedy}")
    silent, speakers = silent_speakers(data, transcript)
    if silent and not partial:
        raise RecipeError(f"{data / 'wav'} has no recording of {len(silent)} of {speakers} speakers ({', '.join(silent[:3])}"
                          f"{' ...' if len(silent) > 3 else ''}): {remedy}, or take it as it is with --partial")
    if silent:
        print(f"{len(silent)} of {speakers} speakers have no recording: {', '.join(silent)}")
    return data


def download(target: Path, url: str) -> Path:
    """Let Lhotse fetch and unpack the corpus; what is there already is kept, and a download that broke off goes on."""
    corpus = target / "aishell"
    names = "data_aishell", "resource_aishell"

    def archive() -> Tuple[str, Path]:
        name = names[(corpus / names[0] / ".completed").is_file()]  # Lhotse's mark of what it has unpacked
        return f"{url}/33/{name}.tgz", target / f"{name}.tgz"

    fetch_and_unpack(lambda: download_aishell(target, base_url=url), archive,
                     "run stage 0 again to go on, or copy the corpus here and give its folder as --corpus-dir")
    # Unpacked; kept, they would treble what the corpus takes on the disk.
    for packed in (*(target / f"{name}.tgz" for name in names), *(corpus / names[0] / "wav").glob("*.tar.gz")):
        packed.unlink(missing_ok=True)
    return corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus-dir", type=Path, help="folder that holds data_aishell, when it is on this machine already")
    parser.add_argument("--partial", action="store_true", help="take a corpus that lacks speakers")
    parser.add_argument("--url", default=URL, help="where OpenSLR's resources are (%(default)s)")
    parser.add_argument("--download", type=Path, default=Path("data/download"),
                        help="where the download goes (data/download)")
    parser.add_argument("--output", type=Path, default=Path("data/corpus.json"),
                        help="says where the corpus is (data/corpus.json)")
    options = parser.parse_args()
    data = find_corpus(options.corpus_dir or download(options.download, options.url), options.partial, not options.corpus_dir)
    print(f"read {data}: transcripts, and recordings of {', '.join(PARTS)}")
    write_json(options.output, {"data_aishell": str(data)})
    print(f"wrote {options.output}")


if __name__ == "__main__":
    run_main(main)
