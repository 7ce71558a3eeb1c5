"""Stage 0: find the Free Spoken Digit Dataset at --corpus-dir, or download its public release."""

import argparse
import os
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from kdlib.downloads import DAMAGED, NETWORK_FAILED, SILENCE, describe_failure
from kdlib.errors import RecipeError, known_failure, run_main
from kdlib.files import atomic_path, write_json
from takes import FILE_NAME, all_takes

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"


def check_recordings(folder: Path) -> Path:
    """Return the folder of the 3000 takes, ``folder`` or the ``recordings`` in it; RecipeError when takes are missing.

    Whether a take can be read is looked at in stage 1: a damaged one is no reason to stop.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder} is no folder: give the dataset's as --corpus-dir, or none to download it")
    recordings = folder / "recordings" if (folder / "recordings").is_dir() else folder
    there = {entry.name for entry in os.scandir(recordings) if entry.is_file()}  # a link to nothing is none
    wanted = [take.file_name for take in all_takes()]
    missing = [name for name in wanted if name not in there]
    if len(missing) == len(wanted):
        raise RecipeError(f"{folder} holds no take of the Free Spoken Digit Dataset (recordings/0_george_0.wav and so "
                          "on): give another --corpus-dir, or none to download it")
    if missing:
        raise RecipeError(f"{recordings} is half copied: {len(missing)} of {len(wanted)} takes are missing, first "
                          f"{', '.join(missing[:3])}; copy it again, or give no --corpus-dir to download it")
    return recordings


def download(url: str, archive: Path) -> None:
    """Fetch ``url`` to ``archive``, whole or not at all; RecipeError when that fails."""
    remedy = "check the network and run stage 0 again, or copy the dataset here and give its folder as --corpus-dir"
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"--url {url} is no http or https address")
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer, atomic_path(archive) as temporary:
            size = int(answer.headers.get("Content-Length") or 0)
            with open(temporary, "wb") as file, tqdm(total=size or None, unit="B", unit_scale=True,
                                                     desc="download") as bar:
                while True:
                    block = answer.read(1 << 16)
                    if not block:
                        break
                    file.write(block)
                    bar.update(len(block))
            if size and temporary.stat().st_size != size:
                raise RecipeError(f"{url} broke off after {temporary.stat().st_size} of {size} bytes: {remedy}")
    except NETWORK_FAILED as error:
        if known_failure(error):  # a full disk, for one
            raise
        raise RecipeError(f"{url} cannot be downloaded ({describe_failure(error)}): {remedy}") from None


def unpack(archive: Path, recordings: Path) -> None:
    """Write the archive's takes to ``recordings``, which appears only when all are written.

    Only regular files called ``<top>/recordings/<take>.wav`` are taken, under their bare name: nothing in the archive
    can reach outside the folder. A damaged archive is removed, so that the next run fetches it again: RecipeError.
    """
    recordings.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=recordings.parent, prefix=".tmp-"))
    temporary.chmod(0o755)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts
                if (not member.isreg() or len(parts) != 3 or parts[1] != "recordings"
                        or not FILE_NAME.fullmatch(parts[2])):
                    continue
                with tar.extractfile(member) as source, open(temporary / parts[2], "wb") as target:
                    shutil.copyfileobj(source, target)
        check_recordings(temporary)
        shutil.rmtree(recordings, ignore_errors=True)
        os.replace(temporary, recordings)
    except (*DAMAGED, RecipeError) as error:
        archive.unlink()
        reason = "it does not hold the 3000 takes" if isinstance(error, RecipeError) else error
        raise RecipeError(f"{archive} is damaged or something else ({reason}) and was removed: run stage 0 again, "
                          "or copy the dataset here and give its folder as --corpus-dir") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Find or download the Free Spoken Digit Dataset.")
    parser.add_argument("--corpus-dir", type=Path, help="the dataset's folder, when it is on this machine already")
    parser.add_argument("--url", default=URL, help="where the release archive is (%(default)s)")
    parser.add_argument("--download", type=Path, default=Path("data/download"),
                        help="where the download goes (data/download)")
    parser.add_argument("--output", type=Path, default=Path("data/corpus.json"),
                        help="says where the recordings are (data/corpus.json)")
    options = parser.parse_args()
    if options.corpus_dir is not None:
        recordings = check_recordings(options.corpus_dir)
        print(f"read {recordings}: all 3000 takes are there")
    else:
        recordings = options.download / "recordings"
        try:
            check_recordings(recordings)
            print(f"{recordings}: downloaded already, all 3000 takes are there")
        except RecipeError:  # not there, or some of it was removed
            archive = options.download / "fsdd.tar.gz"
            if not archive.exists():
                download(options.url, archive)
            unpack(archive, recordings)
            print(f"wrote {recordings}: 3000 takes")
    write_json(options.output, {"recordings": str(recordings)})
    print(f"wrote {options.output}")


if __name__ == "__main__":
    run_main(main)
