"""Checkpoints: written whole, read without running code, and averaged into a finished model."""

import hashlib
import io
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from lhotse.cut import Cut
from torch import Tensor

from kdlib.config import TrainConfig, config_to_dict, merge_config
from kdlib.cuts import cut_of_other_bins
from kdlib.errors import RecipeError
from kdlib.files import PathLike, atomic_path, read_record, remove_unfinished, write_json
from kdlib.transducer import Transducer


def save_checkpoint(path: PathLike, content: Dict[str, Any]) -> None:
    """``torch.save``, atomically; an OSError, of a full disk for instance, leaves the previous file.

    ``content`` may hold tensors, strings and integers in dicts and lists: no floats, which torch 1.13 writes and then
    refuses to load with ``weights_only``.
    """
    # By way of memory: on a full disk torch's own writer raises what does not say so, or aborts the process.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or after a power cut the name may stand for an empty file


def state_digest(state: Dict[str, Tensor]) -> str:
    """SHA-256 of a model's tensors, by the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_checkpoint(path: PathLike, remedy: str, needs: Sequence[str] = ("model", "average", "updates")) -> Dict[str, Any]:
    """Read tensors and plain containers only.

    Raises:
        RecipeError: the file is missing, damaged, or no checkpoint that holds all that ``needs`` names.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
            if damaged is not None:  # torch looks at no checksum: it takes flipped bits for weights
                raise ValueError(f"{damaged} in it has another checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RecipeError(f"{path} is missing: {remedy}") from None
    except MemoryError:
        raise
    except Exception as error:  # of damaged files the unpickler raises whatever it meets first
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise RecipeError(f"{path} is damaged or no checkpoint ({reason}): {remedy}") from None
    if (not isinstance(content, dict) or not {"model", "config", "tokens", *needs} <= set(content)
            or not _is_config(content["config"])):
        raise RecipeError(f"{path} is no checkpoint of this kind: {remedy}")
    return content


def _is_config(text: Any) -> bool:
    """Whether it is JSON as ``save_checkpoint`` writes a config: sections with settings."""
    try:
        sections = json.loads(text)
    except (TypeError, ValueError):
        return False
    return isinstance(sections, dict) and all(isinstance(section, dict) for section in sections.values())


def load_state(model: torch.nn.Module, state: Dict[str, Tensor], path: PathLike) -> None:
    """Fill ``model``; a checkpoint of another model is a :class:`RecipeError` that names the first difference."""
    own = model.state_dict()
    for name in sorted(set(own) | set(state)):
        if name not in state or name not in own:
            side = "lacks" if name not in state else "has an unexpected"
            raise RecipeError(f"{path} is a checkpoint of another model: it {side} {name}; give the folder of the "
                              "model that the config describes")
        if own[name].shape != state[name].shape:
            raise RecipeError(f"{path} is a checkpoint of another model: {name} is {tuple(state[name].shape)}, the "
                              f"config makes {tuple(own[name].shape)}")
    model.load_state_dict(state)


def finished(exp: PathLike) -> Dict[str, Any]:
    """What training left in ``done.json``; a training that has not ended is a :class:`RecipeError`."""
    return read_record(Path(exp) / "done.json", f"its training has not ended; finish the stage that trains {exp}", "epoch")


def load_averaged(exp: PathLike, epoch: int = -1, avg: int = -1,
                  tokens: Optional[List[str]] = None) -> Tuple[Transducer, TrainConfig, Dict[str, Any]]:
    """A finished model: the mean of the moving averages of the epochs ``epoch - avg + 1`` to ``epoch``.

    Args:
        exp: the training's folder.
        epoch, avg: -1 for the last epoch, and for what the training's config says.
        tokens: the lang folder's tokens; others in the checkpoint are an error.
    Returns:
        The model in eval mode on the CPU, its config, and {"updates", "epoch", "avg"}.
    Raises:
        RecipeError: a checkpoint is missing, damaged or of another model, or the tokens differ.
    """
    exp = Path(exp)
    if epoch < -1 or epoch == 0:
        raise RecipeError(f"epoch is {epoch}: choose {_epochs(exp)}, or -1 for the last one")
    remedy = f"choose {_epochs(exp)} or train longer"
    if epoch == -1:
        epoch = finished(exp)["epoch"]
        remedy = f"run the stage that trains {exp} again, which writes its last epoch anew"
    paths = [exp / f"epoch-{epoch}.pt"]
    contents = [load_checkpoint(paths[0], remedy)]
    config = merge_config(TrainConfig, json.loads(contents[0]["config"]), source=str(paths[0]))
    avg = config.training.avg if avg == -1 else avg
    if avg < 1 or avg > epoch:
        raise RecipeError(f"avg must be between 1 and the epoch, {epoch}; got {avg}")
    for number in range(epoch - 1, epoch - avg, -1):
        paths.append(exp / f"epoch-{number}.pt")
        contents.append(load_checkpoint(paths[-1], f"choose a smaller avg than {avg}, which is another model, or train it "
                                                   "again: this run's run.sh with --stage N --stop-stage N --force, N being "
                                                   f"the stage that trains {exp}"))
    for path, content in zip(paths, contents):
        if tokens is not None and content["tokens"] != tokens:
            raise RecipeError(f"{path} was trained with other tokens ({len(content['tokens'])} of them) than the lang "
                              f"folder holds ({len(tokens)}): give the lang folder of that training")
    model = Transducer(config.model, len(contents[0]["tokens"]))
    for path, content in zip(reversed(paths), reversed(contents)):
        load_state(model, content["average"], path)  # the last epoch's last
    if avg > 1:
        model.load_state_dict({name: sum(c["average"][name].double() for c in contents).div(avg).to(value.dtype)
                               if value.is_floating_point() else value for name, value in model.state_dict().items()})
    return model.eval(), config, {"updates": contents[0]["updates"], "epoch": epoch, "avg": avg}


def _epochs(exp: Path) -> str:
    """Those that there are to choose from: not 0, the curriculum's, before the first that may be averaged."""
    found = sorted(int(p.stem[6:]) for p in exp.glob("epoch-*.pt") if p.stem[6:].isdigit() and int(p.stem[6:]) > 0)
    return f"one of the epochs {', '.join(map(str, found))} in {exp}" if found else f"another folder ({exp} has no epochs)"


def check_features(exp: PathLike, model: Transducer, heard: Dict[str, Any], source: PathLike) -> None:
    """See that features are made as those that the model in ``exp`` was trained on, as far as is known.

    Args:
        heard: how they are made (``FbankConfig.heard``), which ``source`` says.
    Raises:
        RecipeError: the model was trained on others; the message names what differs.
    """
    record = Path(exp) / "run.json"
    trained_on = read_record(record, f"train {exp} again").get("features") if record.exists() else None
    for key, value in (trained_on or {"num_filters": model.config.num_features}).items():
        if heard.get(key, value) != value:
            raise RecipeError(f"{source} says {key} {heard.get(key)}, and {exp} was trained with {value}: give the fbank "
                              "settings of its stage 2")


def check_cuts(exp: PathLike, model: Transducer, cuts: Iterable[Cut], folder: PathLike) -> None:
    """:func:`check_features` of the cuts in ``folder``, and that they have as many feature bins as the model hears.

    Of features that stage 2 has not made, with no ``fbank.json`` beside their cuts, no more than the bins is known. Raises
    :class:`RecipeError` where they are other ones.
    """
    made_as = Path(folder) / "fbank.json"
    if made_as.exists():
        check_features(exp, model, read_record(made_as, "run stage 2 again"), made_as)
    bins = model.config.num_features
    cut = cut_of_other_bins(cuts, bins)
    if cut is not None:
        raise RecipeError(f"cut {cut.id} in {folder} has {cut.num_features} feature bins, and {exp} was trained with "
                          f"{bins}: give cuts with features made as those of its training")


# Settings that change the weights no more than another machine would: another value is no other training.
NO_EFFECT = (("training", "save_every_updates"), ("training", "log_every_updates"), ("data", "num_workers"),
             ("data", "shar_root"), ("training", "micro_batches"))


def with_effect(config: Dict[str, Any]) -> Dict[str, Any]:
    """What of a training's config, as ``run.json`` keeps it, its weights depend on: to be compared with another's."""
    try:  # a setting that is newer than the record was as its default is
        config = config_to_dict(merge_config(TrainConfig, config))
        for term in config["loss"]["distill"]:
            if term["schedule"] == "constant":
                term["schedule_updates"] = 0
    except RecipeError:  # one that is no more: another training
        pass
    return {section: {key: value for key, value in settings.items() if (section, key) not in NO_EFFECT}
            for section, settings in config.items()}


def set_aside(exp: PathLike) -> Path:
    """Move all that a training's folder holds to ``before-N``, a folder in it, and return that."""
    exp = Path(exp)
    number = 1 + max([int(p.name[7:]) for p in exp.glob("before-*") if p.name[7:].isdigit()], default=0)
    old, record = exp / f"before-{number}", exp / "run.json"
    old.mkdir()
    # The record goes last, after the checkpoint: a move that was cut short is seen, and ended, by the next run.
    for item in sorted((p for p in exp.iterdir() if not p.name.startswith("before-")),
                       key=lambda p: (p == record, p.name == "checkpoint.pt")):
        item.rename(old / item.name)
    return old


def begin_run(exp: PathLike, config: TrainConfig, inputs: Dict[str, str], models: Dict[str, str],
              features: Optional[Dict[str, Any]] = None) -> None:
    """Write down in ``run.json`` what a training is made of, and set aside what another config or other data made; remove
    what a run that was killed left half written.

    Call it when nothing can refuse the training any more: what was there moves to ``before-N``, a folder of its own. Where
    there is no ``run.json`` a checkpoint's own config is what it was made with; a damaged one is a :class:`RecipeError`.

    Args:
        exp: the training's folder.
        config: its settings.
        inputs: by the part each plays, a digest of what the training reads.
        models: by the part each plays, the name of a model that is among the inputs; another name is no other training.
        features: what the features were made with (``FbankConfig.heard``), where that is known.
    """
    exp, record = Path(exp), Path(exp) / "run.json"
    remove_unfinished(exp)
    run = {"config": config_to_dict(config), "inputs": inputs, "models": models, "features": features}
    was, checkpoint = run, exp / "checkpoint.pt"
    if record.exists():
        was = read_record(record, f"remove {exp}", "config", "inputs")
    elif checkpoint.exists():  # copied here, or older than such records: it says the config, and no more
        was = {**run, "config": json.loads(load_checkpoint(checkpoint, f"remove it to train {exp} from the start")["config"])}
    same = was["inputs"] == inputs
    if "models" not in was:  # once the inputs went by their files' names
        same = set(was["inputs"].values()) == set(inputs.values())
    if with_effect(was["config"]) != with_effect(run["config"]) or not same:
        logging.info("the config, the data or the teacher of %s changed: what was there is now in %s", exp, set_aside(exp))
    write_json(record, run)
