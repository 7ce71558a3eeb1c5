#!/usr/bin/env python3
"""Train one model: a teacher, a student with its teacher, or a baseline (stages 4, 6 and 7)."""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import List

import torch
from lhotse import CutSet

from kdlib.compression import init_from_teacher, least_missed_layers
from kdlib.config import TrainConfig, load_config, save_config
from kdlib.cuts import (TrainCuts, cut_of_other_bins, describe_skipped, feature_statistics, has_nbest, load_cuts, mixed,
                        require_enough, select_cuts, shar_index, short_cuts, total_seconds)
from kdlib.data import batches_ahead, eval_loader, seeded
from kdlib.errors import RecipeError, run_main
from kdlib.files import content_digest, read_record, write_json
from kdlib.lang import Lang
from kdlib.losses import SequenceLoss, find_loss
from kdlib.options import require_positive
from kdlib.planning import check_student
from kdlib.shar import SharCuts
from kdlib.training.checkpoint import begin_run, check_features, finished, load_averaged
from kdlib.training.loop import Trainer
from kdlib.training.objective import loss_with_layers
from kdlib.training.parallel import default_world_size, launch, require_devices, training_device
from kdlib.training.records import log_messages
from kdlib.transducer import Transducer


def get_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML of the model and its training")
    parser.add_argument("--fbank", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--train-cuts", type=Path, nargs="+", metavar="CUTS",
                        help="manifests to train on, such as local/nbest.py's (FBANK/cuts_train.jsonl.gz)")
    parser.add_argument("--lang", type=Path, required=True, help="folder of stage 3")
    parser.add_argument("--exp", type=Path, required=True, help="folder for this model")
    parser.add_argument("--init-from", type=Path, help="folder of a finished model whose weights to start from")
    parser.add_argument("--teacher", type=Path, help="folder of a finished model to distil from")
    parser.add_argument("--first-teacher", type=Path, help="the one to distil from where loss.distill_from is 'first'")
    parser.add_argument("--world-size", type=int, default=default_world_size(),
                        help="processes that share each batch (one for each GPU, or for each core up to four)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for the config")
    return parser.parse_intermixed_args()


def load_train_cuts(files: List[Path], shar_root: str) -> TrainCuts:
    """The cuts of all manifests, where one id in two of them is an error; or of the index of Shar features. Those of several
    manifests are mixed, so that each part of the training meets cuts of every one."""
    if files[0].suffix == ".json":
        if len(files) > 1:
            raise RecipeError(f"{files[0]} is an index of Shar features, beside which there can be no other training cuts")
        return SharCuts(files[0], shar_root)
    cuts = [load_cuts(path) for path in files]
    ids = set()
    for path, part in zip(files, cuts):
        twice = ids.intersection(part.ids)
        if twice:
            raise RecipeError(f"{path} holds {len(twice)} cuts that stand in another training manifest too, such as "
                              f"{min(twice)}: give each cut once")
        ids.update(part.ids)
    return CutSet.from_cuts(mixed(cut for part in cuts for cut in part)) if len(cuts) > 1 else cuts[0]


def require_bins(cuts: TrainCuts, source: str, bins: int, config_file: Path) -> None:
    """See that all features have as many bins as the model hears: what has others could not be trained on when it is met,
    maybe after hours. Of Shar features the first cut's speak for all."""
    cut = cut_of_other_bins([next(iter(cuts))] if isinstance(cuts, SharCuts) else cuts, bins)
    if cut is not None:
        raise RecipeError(f"cut {cut.id} of {source} has {cut.num_features} feature bins, model.num_features is {bins}: "
                          f"make conf/fbank.yaml and {config_file} agree")


def layers_to_start_from(args, config: TrainConfig, start: Transducer, lang: Lang, dev_cuts) -> List[int]:
    """Numbers from 0; none where they are evenly spaced. Those by importance are measured once, and written down."""
    if isinstance(config.init.layers, list):
        return [number - 1 for number in config.init.layers]
    chosen = args.exp / "layers.json"
    if config.init.layers != "importance" or (args.exp / "checkpoint.pt").exists() and not chosen.exists():
        return []  # of a training that has begun the checkpoint holds all weights
    if not chosen.exists():
        device = training_device(0, args.world_size)
        loader = eval_loader(dev_cuts, lang, config.data, config.data.max_duration)
        start.to(device)
        with seeded(config.training.seed):  # what a training draws does not depend on whether they were measured before
            layers = least_missed_layers(start.config.num_layers, config.model.num_layers,
                                         lambda kept: loss_with_layers(start, kept, config.loss, loader, device))
        start.to("cpu")
        torch.cuda.empty_cache()  # or this process would hold memory that rank 0's needs
        write_json(chosen, {"layers": [number + 1 for number in layers]})
    return [number - 1 for number in read_record(chosen, "remove it", "layers")["layers"]]


def train(config, exp, lang, model, train_cuts, dev_cuts, noise, teacher, rank, device):
    """What each process does."""
    if not logging.getLogger().handlers:  # a spawned process does not have its parent's
        log_messages()
        log_messages(exp)
    Trainer(config, exp, lang, model, train_cuts, dev_cuts, noise, teacher, device, rank).train()


def main():
    args = get_args()
    require_positive(world_size=args.world_size)
    # Processes are forked from this one, which is safe as long as it has not started threads.
    torch.set_num_threads(1)
    config = load_config(TrainConfig, args.config, args.overrides)
    require_devices(args.world_size, config.training.precision)
    if args.teacher is not None and config.loss.distill_from == "first":
        if args.first_teacher is None:
            raise RecipeError(f"{args.config}: loss.distill_from is 'first': give --first-teacher")
        args.teacher = args.first_teacher
    args.exp.mkdir(parents=True, exist_ok=True)
    log_messages()
    lang = Lang(args.lang)
    train_files = args.train_cuts or [args.fbank / "cuts_train.jsonl.gz"]
    if shar_index(train_files[0]).is_file() and not train_files[0].exists():
        train_files[0] = shar_index(train_files[0])
    dev_file = args.fbank / "cuts_dev.jsonl.gz"
    inputs = {f"train {number}": path for number, path in enumerate(train_files, start=1)}
    inputs.update(dev=dev_file, tokens=args.lang / "tokens.txt")
    modified = config.loss.rnnt_type == "modified"
    train_cuts, skipped = select_cuts(load_train_cuts(train_files, config.data.shar_root), lang, config.data, modified)
    dev_cuts, dev_skipped = select_cuts(load_cuts(dev_file), lang, config.data, modified)
    parts = [(", ".join(map(str, train_files)), train_cuts, skipped), (str(dev_file), dev_cuts, dev_skipped)]
    for source, cuts, left_out in parts:
        if len(cuts) == 0:
            raise RecipeError("; ".join([f"{source} holds no utterance that can be trained on", *describe_skipped(left_out)]))
        require_bins(cuts, source, config.model.num_features, args.config)
    if any(isinstance(find_loss(term.name), SequenceLoss) for term in config.loss.distill) and not has_nbest(train_cuts):
        raise RecipeError(f"{args.config} asks for a loss of the teacher's hypotheses and no training cut has any: make "
                          "them with local/nbest.py and give its manifest as --train-cuts")
    noise = None
    if config.data.noise_probability > 0:
        inputs["noise"] = args.fbank / "cuts_noise.jsonl.gz"
        noise = load_cuts(inputs["noise"], "make the noise set or set data.noise_probability=0")
        require_bins(noise, str(inputs["noise"]), config.model.num_features, args.config)

    # What cannot be trained is refused before anything of an earlier training is moved.
    models = {role: path for role, path in (("init-from", args.init_from), ("teacher", args.teacher)) if path is not None}
    inputs.update((role, path / "done.json") for role, path in models.items())
    loaded = {path: load_averaged(path, tokens=lang.tokens)[0] for path in models.values()}
    made_as = args.fbank / "fbank.json"  # not there beside features that stage 2 has not made
    features = read_record(made_as, "run stage 2 again") if made_as.exists() else None
    for path, model in loaded.items():
        check_features(path, model, features or {"num_filters": config.model.num_features}, made_as if features else args.fbank)
    start = loaded[args.init_from] if args.init_from is not None and config.init.weights == "teacher" else None
    teacher = loaded.get(args.teacher)
    torch.manual_seed(config.training.seed)
    model = Transducer(config.model, len(lang))
    check_student(model, config, start, teacher, str(args.config))
    require_enough(train_cuts)
    if config.data.curriculum.updates > 0:
        short_cuts(train_cuts, config.data.curriculum.max_words)  # for what it refuses
    seconds = total_seconds(train_cuts)
    if config.data.num_workers > 0:
        batches_ahead(train_cuts, seconds, config.data, config.training.micro_batches)
    if start is None:
        model.encoder.set_feature_statistics(*feature_statistics(train_cuts))
    begin_run(args.exp, config, {role: content_digest(path) for role, path in inputs.items()},
              {role: path.name for role, path in models.items()}, features)
    save_config(config, args.exp / "config.yaml")
    log_messages(args.exp)
    for source, _, left_out in parts:
        for line in describe_skipped(left_out):
            logging.warning("%s: %s", source, line)

    if start is not None:
        layers = init_from_teacher(model, start, layers_to_start_from(args, config, start, lang, dev_cuts), config.init.units)
        logging.info("weights start from %s, its layers %s", args.init_from, " ".join(str(i + 1) for i in layers))
    logging.info("%s: %d parameters deployed, %d training cuts (%.2f h), %d processes", args.exp,
                 model.parameter_counts()["total"], len(train_cuts), seconds / 3600,
                 args.world_size)
    launch(partial(train, config, args.exp, lang, model, train_cuts, dev_cuts, noise, teacher), args.world_size)
    done = finished(args.exp)
    logging.info("%s: done after %d updates and %.0f s (RNN-T: %s) -> %s", args.exp, done["updates"], done["seconds"],
                 done["rnnt_backend"], args.exp / f"epoch-{done['epoch']}.pt")


if __name__ == "__main__":
    run_main(main)
