"""Leaves out the tests that this machine or environment cannot run, and says so; and what many tests share."""

import importlib.util
import os
import sys
from pathlib import Path

import hypothesis
import pytest

# A loaded machine is no fault of what is tested, and what passes on one machine passes on the next.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("tests")

# Where the tools find what they share, as Python does where they are run.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

# Real speech for the tests that want it, where it lies beside the checkout and nothing else is named.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
for variable, folder in (("FSDD_DIR", "fsdd"), ("LIBRISPEECH_DIR", "librispeech-devclean-mp3")):
    if not os.environ.get(variable) and (DATA / folder).is_dir():
        os.environ[variable] = str(DATA / folder)


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
    # Files with slow tests first, so that none of them is what the other cores wait for in the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for marker, (available, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def servers_of_this_machine_need_no_proxy():
    """And whatever proxies the user has, those that a test gives are asked for all others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture
def one_thread():
    """Tiny tensors: threads cost more than they give, and one thread sums in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_gpu(monkeypatch):
    """Processes that a test starts are forked; spawned ones, as beside several GPUs, would know nothing of its functions."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def toy(tmp_path):
    """A recipe of the shared stages whose scripts only write files; called, it returns what ran and what it said."""
    from toy_recipe import make_toy

    return make_toy(tmp_path)


@pytest.fixture
def new_recipe(tmp_path, monkeypatch, capsys):
    """Called with the options of tools/new_recipe.py it makes tmp_path/house/egs/mine, in a house of the shared stages, and
    returns what was printed."""
    from scripts import load

    root, house = Path(__file__).resolve().parents[1], tmp_path / "house"
    tool = load(root / "tools" / "new_recipe.py")
    (house / "egs").mkdir(parents=True)
    for name in ("local", "tools"):
        (house / name).symlink_to(root / name)

    def call(*options, name="mine"):
        monkeypatch.setattr(sys, "argv", ["new_recipe.py", "--name", name, "--output", str(house / "egs"), "--jobs", "1",
                                          *map(str, options)])
        capsys.readouterr()
        tool.main()
        return capsys.readouterr().out

    call.folder = house / "egs" / "mine"
    return call


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """(folder, lang, training cuts, dev cuts) of the made-up language."""
    from made_up import make_cuts

    from kdlib.config import LangConfig
    from kdlib.lang import train_lang

    folder = tmp_path_factory.mktemp("corpus")
    train, dev = make_cuts(folder, "train", 90, 1), make_cuts(folder, "dev", 20, 2)
    lang = train_lang([c.supervisions[0].text for c in train], LangConfig(type="char", vocab_size=20), folder / "lang")
    return folder, lang, train, dev


@pytest.fixture(scope="session")
def teacher_folder(corpus, tmp_path_factory):
    """A model of the made-up language that has learned it."""
    import torch
    from made_up import settings, trainer

    exp = tmp_path_factory.mktemp("teacher")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer(settings("training.num_epochs=12", "data.curriculum.updates=10", "data.curriculum.max_words=1"),
            exp, corpus).train()
    torch.set_num_threads(threads)
    return exp


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, model, lang, cuts): an untrained model in the folder of its training, and a test set of noises."""
    from untrained import finish

    return finish(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def exported(finished):
    """The folder of that model's export; of each file of tests its own, since decoding adds to it."""
    from untrained import export

    return export(finished[0], "tiny", finished[0] / "onnx")
