"""Whatever corpus Lhotse has a recipe for, prepared by it."""

import difflib
import inspect
import logging
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

from kdlib.corpus_forms.shared import WHOLE, Part
from kdlib.errors import RecipeError, known_failure, with_its_type
from kdlib.manifests import Skipped


def read_lhotse(name: str, corpus: Path, jobs: int, skipped: Skipped) -> Dict[str, Part]:
    """What ``lhotse.recipes.prepare_NAME`` finds in the folder ``corpus``; ``name`` may have dashes, as `lhotse prepare`
    takes it. Raises :class:`RecipeError` where Lhotse knows no such corpus, needs more than a folder for it, or cannot read
    this one."""
    import lhotse.recipes

    name = name.replace("-", "_")
    known = sorted(key[len("prepare_"):] for key in dir(lhotse.recipes) if key.startswith("prepare_"))
    if name not in known:
        near = difflib.get_close_matches(name, known)
        raise RecipeError(f"Lhotse prepares no corpus called {name!r}: "
                          + (f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}"))
    prepare = getattr(lhotse.recipes, f"prepare_{name}")
    parameters = inspect.signature(prepare).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in ("corpus_dir", "output_dir")]
    if needed or "corpus_dir" not in parameters:
        raise RecipeError(f"Lhotse's {name} needs more than a folder ({', '.join(needed) or 'nothing'}): prepare it with "
                          f"'lhotse prepare {name.replace('_', '-')}' and give its manifests with --manifests")
    if not corpus.is_dir():
        raise RecipeError(f"{corpus} is no folder: give the corpus's as --corpus-dir")
    with tempfile.TemporaryDirectory() as temporary:
        given: Dict[str, Any] = {"corpus_dir": str(corpus.resolve())}
        if "num_jobs" in parameters:
            given["num_jobs"] = jobs
        if "output_dir" in parameters and parameters["output_dir"].default is inspect.Parameter.empty:
            given["output_dir"] = temporary
        try:
            with _warnings_counted(f"prepare_{name}", skipped):
                prepared = prepare(**given)
        except Exception as error:  # recipes of a hundred corpora, each with exceptions of its own
            if known_failure(error) and not isinstance(error, FileNotFoundError):
                raise
            raise RecipeError(f"Lhotse's prepare_{name} cannot read {corpus} ({with_its_type(error, 300)}): is this "
                              "the folder that it expects, and is it whole? What it cannot read may be read from "
                              "a table of the files (--csv)") from None
        parts = dict(_flat(prepared, "", skipped))
    if not parts:
        raise RecipeError(f"Lhotse's prepare_{name} found no recordings with supervisions in {corpus}")
    return parts


@contextmanager
def _warnings_counted(who: str, skipped: Skipped) -> Iterator[None]:
    """Lhotse's recipes log what they leave out, and go on: it is named and counted like anything else that is. Supervisions
    that end after their recording are kept, up to its end: that is said alone."""
    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = " ".join(record.getMessage().split())
            if message.startswith("Trimmed "):
                print(f"{who}: {message}")
            else:
                skipped.add(who, message)

    handler = Counting(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _flat(prepared: Any, path: str, skipped: Skipped) -> Iterator[Tuple[str, Part]]:
    """Recordings and supervisions of a part, of parts, or of parts of parts."""
    if isinstance(prepared, tuple):
        prepared = dict(zip(("recordings", "supervisions"), prepared))
    if not isinstance(prepared, dict):
        return
    if "recordings" not in prepared:
        for key, value in prepared.items():
            yield from _flat(value, f"{path}-{key}" if path else str(key), skipped)
    elif prepared.get("supervisions") is None:
        skipped.add(path or WHOLE, "Lhotse gives this part no supervisions")
    else:
        yield path or WHOLE, (prepared["recordings"].to_eager(), prepared["supervisions"].to_eager())
