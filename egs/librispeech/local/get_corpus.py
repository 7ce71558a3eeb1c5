"""Stage 0: find the parts of LibriSpeech at --corpus-dir, or download them with Lhotse; the same for MUSAN."""

import argparse
from pathlib import Path
from typing import Callable, Dict, List, Set

from lhotse.recipes import download_librispeech, download_musan
from lhotse.recipes.librispeech import MINI_LIBRISPEECH

from kdlib.downloads import fetch_and_unpack
from kdlib.errors import RecipeError, run_main
from kdlib.files import write_json
from parts import MUSAN_PARTS, listed_chapters, look_at, sounds, split_names

URL = "https://www.openslr.org/resources"


def fetched(download: Callable[[], object], url: str, archive: Path, option: str) -> None:
    """Call Lhotse's ``download``, which fetches ``archive`` and unpacks it."""
    fetch_and_unpack(download, lambda: (url, archive),
                     f"run stage 0 again to go on, or copy the corpus here and give its folder as {option}")
    archive.unlink(missing_ok=True)  # unpacked; kept, it would double what the corpus takes on the disk


def check_parts(root: Path, parts: List[str], partial: bool, listed: Dict[str, Set[str]], downloaded: bool) -> None:
    """Print what is there of each part; a RecipeError that names all that are missing or half there.

    ``listed`` are the chapters that each part should have, as far as is known.
    """
    missing, half, whole = [], [], []
    for part in parts:
        state = look_at(root / part, listed.get(part, set()))
        if state.chapters == 0:
            missing.append(part)
            print(f"{part}: missing")
            continue
        found = f"{state.utterances} utterances in {state.chapters} chapters"
        if state.whole:
            whole.append(part)
            print(f"{part}: {found}")
        else:
            half.append(f"{part} ({found}; {len(state.lacks)} more files or chapters are missing, first "
                        f"{', '.join(state.lacks[:3])})")
            print(f"{part}: half there, {found}, {len(state.lacks)} more files or chapters are missing")
    problems = [f"has no {', '.join(missing)}"] if missing else []
    if half and not partial:
        problems.append(f"has only half of {'; '.join(half)}")
    if problems:
        there = f" ({', '.join(whole)} {'is' if len(whole) == 1 else 'are'} whole)" if whole else ""
        # Lhotse downloads no part again while its mark, .completed, is there.
        remedy = ("remove the folders of these parts and run stage 0 again to download them anew" if downloaded
                  else "copy what is missing")
        as_it_is = ", or take it as it is with --partial" if half and not partial else ""
        raise RecipeError(f"{root} {' and '.join(problems)}{there}: {remedy}, or choose from what is there with --parts, "
                          f"--dev-parts and --test-sets{as_it_is}")


def find_musan(folder: Path) -> Path:
    """The folder of music/, speech/ and noise/, ``folder`` or the ``musan`` in it; a RecipeError when they hold no sound."""
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder: give MUSAN's as --musan-dir, or none to train without noise")
    root = folder / "musan" if (folder / "musan").is_dir() else folder
    silent = [part for part in MUSAN_PARTS if not sounds(root, part)]
    if len(silent) == len(MUSAN_PARTS):
        raise RecipeError(f"{folder} does not hold MUSAN ({', '.join(f'{part}/*/*.wav' for part in MUSAN_PARTS)}): "
                          "give another --musan-dir, or none to train without noise")
    print(f"read {root}: MUSAN" + (f", of which {' and '.join(silent)} are missing" if silent else ""))
    return root


def find_librispeech(options: argparse.Namespace, parts: List[str]) -> Path:
    """The folder of the parts, downloaded first where there is no --corpus-dir."""
    if options.corpus_dir is None:
        for part in parts:
            print(f"download {part} to {options.download}")
            number = 31 if part in MINI_LIBRISPEECH else 12  # OpenSLR's, where Lhotse looks for them
            fetched(lambda: download_librispeech(options.download, [part], base_url=options.url),
                    f"{options.url}/{number}/{part}.tar.gz", options.download / f"{part}.tar.gz", "--corpus-dir")
        return options.download / "LibriSpeech"
    if not options.corpus_dir.is_dir():
        raise RecipeError(f"{options.corpus_dir} is no folder: give LibriSpeech's as --corpus-dir, or none to download it")
    inner = options.corpus_dir / "LibriSpeech"
    return inner if inner.is_dir() else options.corpus_dir


def main() -> None:
    parser = argparse.ArgumentParser(description="Find or download LibriSpeech, and MUSAN where it is asked for.")
    parser.add_argument("--parts", required=True, help="all that are wanted, separated by spaces")
    parser.add_argument("--corpus-dir", type=Path, help="the corpus's folder, when it is on this machine already")
    parser.add_argument("--partial", action="store_true", help="take parts that are half there")
    parser.add_argument("--musan-dir", type=Path, help="MUSAN's folder, when it is on this machine already")
    parser.add_argument("--musan", action="store_true", help="download it without --musan-dir")
    parser.add_argument("--url", default=URL, help="where openslr.org's resources are (%(default)s)")
    parser.add_argument("--download", type=Path, default=Path("data/download"), help="where downloads go (data/download)")
    parser.add_argument("--output", type=Path, default=Path("data/corpus.json"),
                        help="says where the corpora are (data/corpus.json)")
    options = parser.parse_args()
    parts = split_names(options.parts)
    root = find_librispeech(options, parts)
    # Of what it has unpacked Lhotse knows that it is whole.
    check_parts(root, parts, options.partial, listed_chapters(root) if options.corpus_dir else {}, not options.corpus_dir)
    musan = ""
    if options.musan_dir is not None:
        musan = str(find_musan(options.musan_dir))
    elif options.musan:
        if not (options.download / "musan").is_dir():  # Lhotse's mark that it is there stands beside it
            (options.download / ".musan_completed").unlink(missing_ok=True)
        url = f"{options.url}/17/musan.tar.gz"
        fetched(lambda: download_musan(options.download, url=url), url, options.download / "musan.tar.gz", "--musan-dir")
        musan = str(find_musan(options.download))
    write_json(options.output, {"librispeech": str(root), "musan": musan})
    print(f"wrote {options.output}")


if __name__ == "__main__":
    run_main(main)
