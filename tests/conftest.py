"""Leaves out the tests that this machine or environment cannot run, and says so."""

import importlib.util

import pytest


def k2_imports() -> bool:
    """True where k2 is there for true: its wheel installs on Pythons where it cannot be imported."""
    if importlib.util.find_spec("k2") is None:
        return False
    try:
        import k2  # noqa: F401
    except Exception:  # a binary for another torch or Python fails with whatever it meets first
        return False
    return True


def cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()


NEEDS = {
    "k2": (k2_imports, "k2 cannot be imported here: tools/test.sh --k2 runs this test"),
    "cuda": (cuda_available, "there is no GPU here"),
}


def pytest_collection_modifyitems(items):
    for marker, (available, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
