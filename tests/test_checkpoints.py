"""What a training leaves: the weights that are averaged and loaded, what of it is written anew, and what is refused."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from made_up import settings, trainer

from kdlib.errors import RecipeError
from kdlib.training.checkpoint import load_averaged, load_checkpoint, load_state
from kdlib.transducer import Transducer

pytestmark = [pytest.mark.both, pytest.mark.usefixtures("one_thread")]


def flip_a_bit(path):
    """Of a weight, so that all but its value is as it was."""
    weights = torch.load(path, weights_only=True)["average"]["joiner.out.weight"].numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weights) + 3] ^= 1
    path.write_bytes(content)


def test_the_average_is_the_mean_of_the_epochs(teacher_folder):
    model, _, _ = load_averaged(teacher_folder, epoch=11, avg=3)
    parts = [torch.load(teacher_folder / f"epoch-{n}.pt", weights_only=True)["average"] for n in (9, 10, 11)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, sum(p[name] for p in parts) / 3)


def test_as_many_epochs_are_averaged_as_the_training_says(teacher_folder, tmp_path):
    """Unless another number is given."""
    for number in (10, 11, 12):
        content = torch.load(teacher_folder / f"epoch-{number}.pt", weights_only=True)
        config = json.loads(content["config"])
        config["training"]["avg"] = 3
        torch.save({**content, "config": json.dumps(config)}, tmp_path / f"epoch-{number}.pt")
    (tmp_path / "done.json").write_bytes((teacher_folder / "done.json").read_bytes())
    model, _, which = load_averaged(tmp_path)
    assert which["avg"] == 3 and load_averaged(tmp_path, avg=1)[2]["avg"] == 1
    for name, value in load_averaged(teacher_folder, avg=3)[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_finished_training_is_left_as_it_is(corpus, teacher_folder):
    before = (teacher_folder / "done.json").read_bytes()
    config = settings("training.num_epochs=12", "data.curriculum.updates=10", "data.curriculum.max_words=1")
    assert trainer(config, teacher_folder, corpus).train()["epoch"] == 12
    assert (teacher_folder / "done.json").read_bytes() == before


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:2000]), flip_a_bit])
def test_a_last_epoch_that_was_lost_is_written_anew(corpus, teacher_folder, tmp_path, harm):
    exp = tmp_path / "exp"
    shutil.copytree(teacher_folder, exp)
    before = load_checkpoint(exp / "epoch-12.pt", "")
    harm(exp / "epoch-12.pt")
    with pytest.raises(RecipeError, match="run the stage that trains .* again, which writes its last epoch anew"):
        load_averaged(exp)
    config = settings("training.num_epochs=12", "data.curriculum.updates=10", "data.curriculum.max_words=1")
    assert trainer(config, exp, corpus).train()["epoch"] == 12
    after = load_checkpoint(exp / "epoch-12.pt", "")
    assert after["updates"] == before["updates"] and after["epoch"] == before["epoch"]
    for part in ("model", "average"):
        assert all(torch.equal(after[part][name], value) for name, value in before[part].items())


def test_the_record_of_a_finished_training_is_written_anew_where_it_is_damaged(corpus, teacher_folder, tmp_path):
    exp = tmp_path / "exp"
    shutil.copytree(teacher_folder, exp)
    before = json.loads((exp / "done.json").read_text())
    (exp / "done.json").write_text("{")
    config = settings("training.num_epochs=12", "data.curriculum.updates=10", "data.curriculum.max_words=1")
    trainer(config, exp, corpus).train()
    after = json.loads((exp / "done.json").read_text())
    # The whole training's, not only those of the start that wrote it anew.
    assert after.pop("seconds") >= int(before.pop("seconds")) - 1 and after == before


def test_epochs_of_other_models_are_not_averaged(teacher_folder, tmp_path):
    for name in ("epoch-11.pt", "epoch-12.pt", "done.json"):
        shutil.copy(teacher_folder / name, tmp_path)
    content = load_checkpoint(tmp_path / "epoch-11.pt", "")
    name = next(name for name, value in content["average"].items() if value.dim() == 1)
    torch.save({**content, "average": {**content["average"], name: torch.zeros(1)}}, tmp_path / "epoch-11.pt")
    with pytest.raises(RecipeError, match=rf"epoch-11.pt is a checkpoint of another model: {name} is \(1,\)"):
        load_averaged(tmp_path, avg=2)


def test_damaged_and_foreign_checkpoints(corpus, teacher_folder, tmp_path):
    good = teacher_folder / "epoch-12.pt"
    with pytest.raises(RecipeError, match="nothing.pt is missing: do this"):
        load_checkpoint(tmp_path / "nothing.pt", "do this")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(RecipeError, match="cut.pt is damaged or no checkpoint"):
        load_checkpoint(cut, "do this")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(RecipeError, match="text.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "text.pt", "do this")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(RecipeError, match="foreign.pt is no checkpoint of this kind"):
        load_checkpoint(tmp_path / "foreign.pt", "do this")
    other = Transducer(settings("model.encoder_dim=20").model, len(corpus[1]))
    with pytest.raises(RecipeError, match="is a checkpoint of another model: .* is .* the config makes"):
        load_state(other, load_checkpoint(good, "")["model"], good)
    with pytest.raises(RecipeError, match="epoch-12.pt is no checkpoint of this kind"):
        load_checkpoint(good, "do this", needs=("optimizer",))
    with pytest.raises(RecipeError, match=r"trained with other tokens \(\d+ of them\) than the lang folder"):
        load_averaged(teacher_folder, tokens=["<blk>"])
    with pytest.raises(RecipeError, match="epoch-99.pt is missing: choose one of the epochs 1, "):
        load_averaged(teacher_folder, epoch=99)
    for none in (-5, 0):  # 0 is the curriculum's
        with pytest.raises(RecipeError, match=f"epoch is {none}: choose one of the epochs 1, .*, or -1 for the last one"):
            load_averaged(teacher_folder, epoch=none)
    with pytest.raises(RecipeError, match="avg must be between 1 and the epoch, .*; got -3"):
        load_averaged(teacher_folder, avg=-3)
    with pytest.raises(RecipeError, match="done.json is missing: its training has not ended"):
        load_averaged(tmp_path)


def test_weights_of_which_a_bit_flipped_are_refused(teacher_folder, tmp_path):
    for name in ("epoch-12.pt", "done.json"):
        shutil.copy(teacher_folder / name, tmp_path)
    load_averaged(tmp_path)
    flip_a_bit(tmp_path / "epoch-12.pt")
    with pytest.raises(RecipeError, match=r"epoch-12.pt is damaged or no checkpoint \(.*checksum.*\): run the stage that"):
        load_averaged(tmp_path)


def test_a_checkpoint_that_says_nonsense_is_refused(teacher_folder, tmp_path):
    """Whatever torch then raises."""
    nonsense = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."
    with zipfile.ZipFile(teacher_folder / "epoch-12.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, nonsense if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(RecipeError, match="bad.pt is damaged or no checkpoint .*: do this"):
        load_checkpoint(tmp_path / "bad.pt", "do this")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    torch.save({"model": {}, "config": "{}", "tokens": [], "average": {}, "updates": 1, "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(RecipeError, match="evil.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "evil.pt", "remove it")
    assert not (tmp_path / "run").exists()
