#!/usr/bin/env python3
"""How fast this machine trains a recipe's models, and what a whole run would cost on it.

    tools/bench_training.py --recipe egs/librispeech --hours 960

makes some minutes of sound with utterances as long as the corpus's, their features and transcripts, trains each model of
the recipe on them for a few updates as local/train.py does (on all GPUs, or on the CPU where there is none), and prints the
throughput, the most memory that a process took, and from them the hours of the whole run, its disk and its memory. No corpus
is needed. key=value changes a setting of every training, as in run.sh: data.max_duration=60 makes the batches of a
recipe for GPUs small enough for a CPU. Dev losses, decoding and waiting for a cold disk are not in the figures.
"""

import environment  # noqa: F401  first, since the rest needs what it finds

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from lhotse import CutSet
from torch.utils.data import DataLoader

from kdlib.config import FbankConfig, LangConfig, TrainConfig, load_config, merge_config
from kdlib.conformer import RIGHT_CONTEXT, SUBSAMPLING
from kdlib.cuts import feature_statistics
from kdlib.data import train_loader
from kdlib.errors import RecipeError, known_failure, run_main
from kdlib.files import read_json, write_json, write_text
from kdlib.lang import Lang
from kdlib.options import require_positive
from kdlib.planning import FRAMES_A_SECOND, measure_model
from kdlib.report import describe_machine, markdown_table, name_processor
from kdlib.training import loop
from kdlib.training.parallel import default_world_size, launch, require_devices
from kdlib.transducer import Transducer
import peak_memory
from made_up_speech import POOL, MadeUpSpeech, make_speech, read_durations

PLAN = Path(__file__).resolve().parents[1] / "local" / "plan.py"
# Durations of LibriSpeech's train-clean-360 at its three speeds, as icefall's display_manifest_statistics.py gives them.
LIBRISPEECH = "0:1.0 1:2.5 5:4.2 10:6.2 25:11.2 50:13.7 75:15.3 90:16.6 99:18.1 99.9:18.8 100:20"
GIB = 2**30
LONGER = "-matched"  # ends the name of a baseline that is trained as another is, for longer


def get_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True, help="folder of a recipe, such as egs/librispeech")
    parser.add_argument("--settings", metavar="NAME", help="conf/NAME/ before conf/, as for the recipe's run.sh")
    parser.add_argument("--hours", type=float, default=960.0, help="of speech to train on, at one speed (960)")
    parser.add_argument("--models", nargs="+", help="of teacher, stage1, ..., scratch, single (all)")
    parser.add_argument("--updates", type=int, default=20, help="measured, of each model (20)")
    parser.add_argument("--warm-up", type=int, help="updates before them (5, and more than data.num_workers)")
    parser.add_argument("--seconds", default=LIBRISPEECH, metavar="'PERCENT:SECONDS ...'",
                        help="the utterances' durations: so many per cent are at most so long (LibriSpeech's)")
    parser.add_argument("--tokens-per-second", type=float, default=4.4, help="of labels (4.4, as LibriSpeech has)")
    parser.add_argument("--vocab-size", type=int, help="tokens (as in the recipe's lang.yaml)")
    parser.add_argument("--world-size", type=int, default=default_world_size(), help="processes (as local/train.py)")
    parser.add_argument("--output", type=Path, help="a file for the tables in Markdown")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every training")
    args = parser.parse_intermixed_args()
    # Settings that follow the models' names are settings, as they are for run.sh.
    args.overrides += [word for word in args.models or () if "=" in word]
    args.models = list(dict.fromkeys(word for word in args.models or () if "=" not in word))
    for name in args.models:  # whether the recipe has so many stages is known once its models are planned
        if not re.fullmatch("teacher|stage[1-9][0-9]*|scratch|single", name):
            raise RecipeError(f"--models {name}: the recipe has teacher, stage1, ..., scratch, single")
    require_positive(**{name: getattr(args, name) for name in ("hours", "updates", "warm_up", "tokens_per_second",
                                                               "vocab_size", "world_size")})
    if not (args.recipe / "conf").is_dir():
        raise RecipeError(f"{args.recipe} is no recipe: give its folder, such as egs/librispeech")
    if args.settings and not (args.recipe / "conf" / args.settings).is_dir():
        raise RecipeError(f"--settings {args.settings}: there is no folder {args.recipe / 'conf' / args.settings}")
    return args


def conf(args: argparse.Namespace, name: str) -> Path:
    """That file of the recipe's settings, as run.sh chooses it."""
    special = args.recipe / "conf" / (args.settings or "") / name
    return special if special.exists() else args.recipe / "conf" / name


def require_fitting(args: argparse.Namespace, fbank: FbankConfig, lang: LangConfig, teacher: TrainConfig) -> None:
    """See that the options and settings go together, before anything is made.

    Raises:
        RecipeError
    """
    require_devices(args.world_size, teacher.training.precision)
    if lang.type == "char" and args.vocab_size is None:
        raise RecipeError("--vocab-size is wanted: the tokens are the characters of the corpus, which nothing here tells "
                          "(AISHELL-1 has over 4,000)")
    if teacher.model.num_features != fbank.num_filters:
        raise RecipeError(f"model.num_features is {teacher.model.num_features}, and {conf(args, 'fbank.yaml')} makes "
                          f"{fbank.num_filters} feature bins: make them agree")
    for seconds in read_durations(args.seconds)[1]:
        wrong = teacher.data.wrong_length(seconds)
        if wrong:
            raise RecipeError(f"--seconds {args.seconds}: training leaves out utterances {wrong}; give durations from "
                              "data.min_seconds to data.max_seconds")


def read_configs(args: argparse.Namespace, folder: Path) -> Dict[str, TrainConfig]:
    """The trainings of the teacher and of all that local/plan.py plans, by name and in order."""
    teacher = load_config(TrainConfig, conf(args, "teacher.yaml"), args.overrides)
    done = subprocess.run([sys.executable, str(PLAN), "--config", str(conf(args, "progressive.yaml")), "--teacher-config",
                           str(conf(args, "teacher.yaml")), "--lang", str(folder / "lang"), "--output", str(folder / "conf"),
                           *args.overrides], capture_output=True, text=True)
    if done.returncode:
        raise RecipeError((done.stderr.strip().splitlines() or ["error: local/plan.py failed"])[-1].replace("error: ", ""))
    stages = [f"stage{number + 1}" for number in range(read_json(folder / "conf" / "plan.json", "")["stages"])]
    configs = {name: load_config(TrainConfig, folder / "conf" / f"{name}.yaml")
               for name in (*stages, *(f"{name}{end}" for name in ("scratch", "single") for end in ("", LONGER)))}
    return {"teacher": teacher, **configs}


def teacher_of(name: str, configs: Dict[str, TrainConfig]) -> Optional[str]:
    """Whom a model is distilled from."""
    if name in ("teacher", "scratch"):
        return None
    number = int(name[5:]) if name.startswith("stage") else 1
    return "teacher" if number == 1 or configs[name].loss.distill_from == "first" else f"stage{number - 1}"


class TimedTrainer(loop.Trainer):
    """The training loop, which notes when each update ended and how many seconds of audio it heard."""

    marks: List[Tuple[float, float]]

    def _update(self, shares):
        made = super()._update(shares)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        frames = SUBSAMPLING * shares[0].total_frames + RIGHT_CONTEXT * shares[0].total_utterances
        self.marks.append((time.perf_counter(), frames / FRAMES_A_SECOND))
        return made

    def _end_epoch(self):
        self.epoch += 1  # neither dev loss nor checkpoint


def set_warm_up(args: argparse.Namespace, read_ahead: int) -> None:
    """The warm-up trains on all that was read while the first update compiled what it runs, so that the updates measured pay
    for the reading of what they train on."""
    if args.warm_up is None:
        args.warm_up = max(5, read_ahead + 1)
    elif args.warm_up <= read_ahead:
        print(f"warning: --warm-up {args.warm_up}: up to {read_ahead} batches (data.num_workers) are read before it, so that "
              f"what reading costs may be missing in the figures; {read_ahead + 1} updates would do", file=sys.stderr)


def read_little_ahead(*args, **options) -> DataLoader:
    """The training's loader, but each of its workers has one batch ready in place of eight: of a few updates most would else
    train on what was read before they began."""
    loader = train_loader(*args, **options)
    if loader.num_workers:
        loader.prefetch_factor = 1
    return loader


def train(config: TrainConfig, teacher: Optional[TrainConfig], lang: Lang, cuts: CutSet, skip: int, exp: Path, rank: int,
          device: torch.device) -> None:
    """What each process does; its figures go to a file of its own in ``exp``."""
    statistics = feature_statistics(cuts.subset(first=POOL))
    models = []
    for one in (config, teacher):
        models.append(None if one is None else Transducer(one.model, len(lang)))
        if one is not None:
            models[-1].encoder.set_feature_statistics(*statistics)
    noise = None
    if config.data.noise_probability > 0:
        noise = CutSet.from_cuts(cut.drop_supervisions() for cut in cuts.subset(first=POOL))
    if device.type == "cuda":
        gc.collect()
        torch.cuda.init()  # before that it has no counters to reset
        torch.cuda.empty_cache()  # what an earlier model held
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # then it is of the whole process so far
            peak_memory.start_anew()
    loop.train_loader = read_little_ahead
    trainer = TimedTrainer(config, exp, lang, models[0], cuts, cuts.subset(first=POOL), noise, models[1], device, rank)
    trainer.marks = []
    trainer.train()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
    else:
        try:
            peak = peak_memory.most()
        except OSError:
            peak = 0  # it cannot be told
    state = sum(value.numel() * value.element_size() for value in trainer.model.state_dict().values())
    took, measured = trainer.marks[-1][0] - trainer.marks[skip - 1][0], trainer.marks[skip:]
    heard = sum(seconds for _, seconds in measured)
    write_json(exp / f"figures-{rank}.json", {"memory": peak, "audio": heard / took, "updates": len(measured) / took,
                                              "batch": heard / len(measured), "state": state, "bad": trainer.bad_updates})


def measure(args: argparse.Namespace, name: str, configs: Dict[str, TrainConfig], speech: MadeUpSpeech,
            folder: Path) -> Dict[str, float]:
    """The figures of one model; the memory is the most that one of its processes took."""
    teacher = teacher_of(name, configs)
    few = [f"training.updates_per_epoch={args.warm_up + args.updates}", "training.num_epochs=1", "training.avg=1",
           "training.save_every_updates=1000000", "data.curriculum.updates=0"]
    exp = folder / name
    exp.mkdir()
    launch(partial(train, merge_config(TrainConfig, configs[name], few), configs[teacher] if teacher else None, speech.lang,
                   speech.cuts, args.warm_up, exp), args.world_size)
    figures = [json.loads(path.read_text()) for path in sorted(exp.glob("figures-*.json"))]
    if figures[0]["bad"]:
        raise RecipeError(f"{figures[0]['bad']} updates had gradients that are not finite and were left out, which "
                          "is quicker: lower optim.learning_rate")
    return {**figures[0], "memory": max(one["memory"] for one in figures)}


def in_hours(hours: float) -> str:
    """To a tenth, and of a run that takes minutes to a hundredth."""
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def report(args: argparse.Namespace, configs: Dict[str, TrainConfig], found: Dict[str, Dict[str, float]],
           failed: List[str], speech: MadeUpSpeech, fbank: FbankConfig) -> str:
    """The tables, in Markdown, of the models that were measured; those that ``failed`` are named."""
    on_gpu = torch.cuda.is_available() and args.world_size <= torch.cuda.device_count()
    machine = describe_machine()
    cores = args.world_size if on_gpu else machine["cores"]
    device = f"{args.world_size} x {torch.cuda.get_device_name(0)}" if on_gpu else \
        f"{name_processor(machine)}, {args.world_size} processes"
    heard = args.hours * (1 + sum(1 / factor for factor in fbank.speed_factors))
    rows, total, checkpoints = [], 0.0, 0
    for name, config in configs.items():
        figures = found.get(name.removesuffix(LONGER))
        if figures is None:
            continue
        training = config.training
        audio = training.num_epochs * (training.updates_per_epoch * figures["batch"] / 3600 if training.updates_per_epoch
                                       else heard)
        curriculum = config.data.curriculum.updates  # an epoch of its own, before the others
        audio += curriculum * figures["batch"] / 3600
        hours = audio / figures["audio"]
        total += hours
        epochs = training.num_epochs + (curriculum > 0)
        # Each epoch's weights and their moving average; what resuming needs has the optimizer's two moments as well.
        checkpoints += (2 * epochs + 4) * figures["state"]
        rows.append([name, f"{measure_model(config.model, len(speech.lang), run=False).total:,}", f"{figures['audio']:,.1f}",
                     f"{figures['updates']:.3f}", f"{figures['batch']:,.0f}", f"{figures['memory'] / GIB:.2f}",
                     str(training.num_epochs), f"{audio:,.1f}", in_hours(hours), in_hours(hours * cores)])
    rows.append(["together", *[""] * 7, in_hours(total), in_hours(total * cores)])
    header = ["Model", "Params", "s of audio / s", "updates / s", "s in a batch", "GiB", "epochs", "h of audio", "hours",
              "GPU hours" if on_gpu else "core hours"]
    cuts = heard * 3600 / (sum(cut.duration for cut in speech.cuts) / len(speech.cuts))
    settings = [f"--settings {args.settings}"] if args.settings else []
    command = " ".join([*settings, f"--hours {args.hours:g}", *args.overrides])
    each = speech.features_per_hour
    without = f"Without {', '.join(failed)}, which failed.\n" if failed else ""
    return (f"{device}; torch {torch.__version__}; {args.updates} updates of each model after {args.warm_up}; "
            f"{command}. GiB: the most that a {'GPU' if on_gpu else 'process'} held.\n\n{markdown_table(header, rows)}\n"
            f"{without}"
            f"Features: {each / 1e6:.1f} MB an hour, {each * heard / 1e9:.2f} GB for {heard:,.0f} h (training, "
            f"{1 + len(fbank.speed_factors)} speeds).\n"
            f"Checkpoints: {checkpoints / 1e9:.2f} GB, of all epochs and what resuming needs.\n"
            f"Cuts: {speech.bytes_per_cut:,.0f} bytes each in memory, {speech.bytes_per_cut * cuts / GIB:.2f} GiB for "
            f"{cuts:,.0f} of them in each process.\n")


def main() -> None:
    args = get_args()
    torch.set_num_threads(1)  # processes are forked from this one
    fbank = load_config(FbankConfig, conf(args, "fbank.yaml"))
    lang = load_config(LangConfig, conf(args, "lang.yaml"))
    teacher = load_config(TrainConfig, conf(args, "teacher.yaml"), args.overrides)
    require_fitting(args, fbank, lang, teacher)
    set_warm_up(args, teacher.data.num_workers)
    # Enough for all updates and for what the buckets hold back.
    seconds = teacher.data.max_duration * (args.warm_up + args.updates + 2 * teacher.data.num_buckets)
    with tempfile.TemporaryDirectory() as temporary:
        folder, found, failed = Path(temporary), {}, []
        speech = make_speech(folder, fbank, args.vocab_size or lang.vocab_size, seconds, args.seconds, args.tokens_per_second)
        configs = read_configs(args, folder)
        known = [name for name in configs if not name.endswith(LONGER)]
        for name in args.models:
            if name not in known:
                raise RecipeError(f"--models {name}: the recipe has {', '.join(known)}")
        for name in args.models or known:
            try:
                found[name] = measure(args, name, configs, speech, folder)
            except Exception as error:
                told = known_failure(error)
                if told is None:
                    raise
                failed.append(name)  # and the others are worth their time still
                print(f"error: {name}: {told}", file=sys.stderr)
            else:
                print(f"{name}: {found[name]['audio']:,.1f} s of audio a second", file=sys.stderr)
        text = report(args, configs, found, failed, speech, fbank) if found else ""
    if found:
        print(text)
        if args.output:
            write_text(args.output, text)
    if failed:
        raise RecipeError(f"{', '.join(failed)} could not be measured, for the reasons above")


if __name__ == "__main__":
    run_main(main)
