"""What the tests of corpora ask of what was left out."""

from kdlib.corpus_forms import read_corpus
from kdlib.manifests import Skipped


class Reasons(Skipped):
    """Remembers why each item was left out."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def add(self, name, reason):
        super().add(name, reason)
        self.of[name] = reason


def listed(folder):
    """(where, name, reason) of each item that a stage's list names; none where there is no list."""
    path = folder / "skipped.txt"
    lines = path.read_bytes().decode("utf-8", "surrogateescape").splitlines() if path.exists() else []
    return [tuple(line.split("\t")) for line in lines]


def read_form(form, source, **options):
    """The parts of a corpus of that form, and how many things were left out of it."""
    skipped = Skipped()
    return read_corpus(form, str(source), skipped, **options), len(skipped)
