"""What the tests of corpora ask of what was left out."""

from kdlib.manifests import Skipped


class Reasons(Skipped):
    """Remembers why each item was left out."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def add(self, name, reason):
        super().add(name, reason)
        self.of[name] = reason
