#!/usr/bin/env python3
"""Run one step of a stage unless it is done: the skip and resume rule of every recipe.

    stage_stamp.py --stamp FILE [--conf FILE...] [--from N FILE...]... [--makes FILE...] -- python script.py ...

A step is done when its stamp holds the same command and the same inputs as now, and its outputs as they are now. The
stamp is removed when the step starts and written when it has ended well, so that a step that was killed is never taken
for done. Inputs and outputs are files, folders or glob patterns; --from names the stage that makes an input, --conf
those that come with the recipe. Needs the standard library alone, so that skipping costs nothing.
"""

import argparse
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

HASHED_BELOW = 1_000_000  # bytes; a larger file is known by its size and time, since reading it would cost more
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # what network file systems say that have none
MADE = "made"  # the stamp's key of the outputs
# Options that change the speed of a step and not its result, or no more of it than another machine would.
NO_EFFECT = ("--jobs", "--world-size")


class StepError(Exception):
    """A line for the user."""


def expand(pattern: str) -> List[Path]:
    """The paths that a declared input or output stands for; empty when there are none. Only its last part may be a pattern:
    the folders are the user's."""
    folder, name = os.path.split(pattern)
    if glob.has_magic(name) and not os.path.exists(pattern):
        found = sorted(glob.glob(os.path.join(glob.escape(folder), name)))
        return [Path(path) for path in found if os.path.exists(path)]  # links to nothing are found too
    return [Path(pattern)] if os.path.exists(pattern) else []


def size_and_time(path) -> str:
    """What is known of a file without reading it. A link to nothing is a state like any other: whether the step can do
    without, it knows itself."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"error {error.errno}"
    return f"{status.st_size} {status.st_mtime_ns}"


def describe(path: Path) -> Iterator[Tuple[str, str]]:
    """(name, what it is now) of a file, or of each file below a folder; hidden files are left out.

    A folder that several links lead to is told once, so that a link to a folder above has an end.
    """
    if path.is_dir():
        seen = set()
        for folder, folders, names in os.walk(path, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                yield os.path.join(folder, name), size_and_time(os.path.join(folder, name))
        return
    if path.is_file() and path.stat().st_size < HASHED_BELOW:
        yield str(path), hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        yield str(path), size_and_time(path)


def digests(patterns: Sequence[str]) -> Dict[str, str]:
    """What each pattern's files are now."""
    result = {}
    for pattern in patterns:
        digest = hashlib.sha256()
        for path in expand(pattern):
            for name, state in describe(path):
                digest.update(os.fsencode(name) + f"\0{state}\n".encode())
        result[pattern] = digest.hexdigest()
    return result


def words_with_effect(command: Sequence[str]) -> str:
    """The command without what changes no result."""
    words, skip = [], False
    for word in command:
        if skip or word in NO_EFFECT:
            skip = not skip
        else:
            words.append(word)
    return " ".join(words)


def fingerprint(command: Sequence[str], inputs: Sequence[str]) -> Dict[str, str]:
    """What the result of the step depends on: its command, and one digest for each declared input."""
    return {"command": words_with_effect(command), **digests(inputs)}


def difference(old: Optional[Dict[str, str]], new: Dict[str, str]) -> str:
    """Why a step that has a stamp is run again."""
    if old is None:
        return ""
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "its command" if changed == ["command"] else ", ".join(key for key in changed if key != "command")


def read_stamp(path: Path) -> Tuple[Optional[Dict[str, str]], Optional[Dict[str, str]]]:
    """The stored fingerprint and the digests of what the step made; None for either that the stamp does not hold.

    No fingerprint means: not done. Stamps once did not hold what was made.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, None
    if not isinstance(value, dict) or not isinstance(value.get(MADE, {}), dict):
        return None, None
    made = value.pop(MADE, None)
    return value, made


def lock(folder: Path, shared: bool = False) -> None:
    """Hold the folder for this step: two runs at once would overwrite each other's results. Any number of steps may hold it
    ``shared``: they read what is there, and no run makes it anew meanwhile.

    The lock lasts as long as this process. The command gets no share in it, since helpers that it left behind when it
    was killed would hold the folder on; the command itself ends with this process (:func:`die_with_parent`).
    """
    descriptor = os.open(folder / "lock", os.O_CREAT | (os.O_RDONLY if shared else os.O_RDWR), 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StepError(f"another run is at work in {folder.parent} ({holder(descriptor)}): wait for its "
                        "end, or stop it and run this command again") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise StepError(f"{folder / 'lock'} cannot be locked: {error.strerror}") from None
        print(f"{folder.parent} is on a file system without locks ({error.strerror}): a second run there would not be "
              "noticed, start none until this one has ended", flush=True)
    if not shared:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())


def lock_data(folder: Path, own: Path) -> None:
    """Hold the data that this step reads, by the folder of their stamps, unless that is its own, which it holds already."""
    try:
        if not os.path.samefile(folder, own):
            lock(folder, shared=True)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EROFS):  # no run has made the data, or none is to
            raise


def holder(descriptor: int) -> str:
    """Who holds the lock, for a message. A step that holds it alone has left its number in the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return f"process {os.read(descriptor, 32).decode(errors='replace').strip() or 'unknown'}"
    return "it reads what is there"


def set_aside(folder: Path, title: str) -> None:
    """Keep what a forced step made before, in a folder beside it."""
    if folder.exists():
        keep = folder.with_name(time.strftime("before-%Y%m%d-%H%M%S"))
        keep.mkdir(exist_ok=True)
        folder.rename(keep / folder.name)
        print(f"[{title}] --force: the earlier {folder} is now in {keep}")


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent ends, so that a run.sh that is killed takes its step with it."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
    except (AttributeError, OSError):
        pass  # elsewhere a run.sh that is killed leaves this process to end its step, and to hold the lock until then


def run(command: Sequence[str], title: str, rerun: str) -> int:
    """The exit code of the command, which finds the step's title in its environment as RECIPE_STEP: so it knows that its
    results are the recipe's; and as RECIPE_RERUN how the user called that, for messages. Signals that end this process
    reach the command first."""
    words = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
    child = subprocess.Popen(words, preexec_fn=die_with_parent, env={
        **os.environ, "RECIPE_STEP": title, "RECIPE_RERUN": rerun})
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: child.send_signal(received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    code = child.wait()
    return 128 - code if code < 0 else code


def size(path: Path) -> str:
    """Size of a file in words; the number of files for a folder."""
    if path.is_dir():
        return f"{sum(1 for _ in describe(path))} files"
    count = float(path.stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            break
        count /= 1000
    else:
        unit = "GB"
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def step(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Check, run, stamp."""
    stamp = Path(args.stamp)
    title = args.title
    if args.ask in ("command", "conf"):
        before, _ = read_stamp(stamp)
        now = fingerprint(command, args.conf if args.ask == "conf" else [])
        # What is not there is told by the step that needs it.
        if all(map(expand, args.makes)) and any((before or {}).get(key) != state for key, state in now.items()):
            print(title)
        return 0
    inputs = args.conf + [pattern for source in args.sources for pattern in source[1:]]
    now, (before, made) = fingerprint(command, inputs), read_stamp(stamp)
    missing = [pattern for pattern in args.makes if not expand(pattern)]
    there = digests(args.makes)
    changed = [] if made is None else [pattern for pattern in args.makes if there[pattern] != made.get(pattern)]
    done = before == now and not missing and not changed and not args.force
    if args.ask == "done":
        return 0 if done else 1
    if done:
        print(f"[{title}] done before, skipped: {', '.join(args.makes)}", flush=True)
        return 0

    for pattern in args.conf:
        if not expand(pattern):
            raise StepError(f"stage {args.stage} needs {pattern}, which comes with the recipe: take it from the repository "
                            "again, or name another one")
    for number, *patterns in sorted(args.sources, key=lambda source: int(source[0])):
        for pattern in patterns:
            if not expand(pattern):
                raise StepError(f"stage {args.stage} needs {pattern}, which stage {number} makes: "
                                f"{args.rerun} --stage {number} --stop-stage {number}")
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        if os.path.islink(error.filename) and not os.path.exists(error.filename):
            raise StepError(f"{error.filename} is a link to {os.readlink(error.filename)}, which is not there: make or mount "
                            "that, or name another folder") from None
        raise StepError(f"a file stands where the folder {stamp.parent.parent} is to be: move it, or name another "
                        "folder") from None
    lock(stamp.parent)
    if args.reads:
        lock_data(Path(args.reads) / ".stamps", stamp.parent)
    why = "--force" if args.force and before == now else difference(before, now)
    if not why and before is not None:
        why = f"{missing[0]} is missing" if missing else f"{changed[0]} is not as this stage left it"
    stamp.unlink(missing_ok=True)
    if args.force and args.aside:
        set_aside(Path(args.aside), title)
    print(f"[{title}] {' '.join(command)}" + (f"\n[{title}] runs again because of: {why}" if why else ""))
    if inputs:
        print(f"[{title}] reads {', '.join(inputs)}")
    sys.stdout.flush()
    started = time.monotonic()
    code = run(command, title, args.rerun)
    seconds = time.monotonic() - started
    if code:
        print(f"[{title}] stopped with exit code {code} after {seconds:.1f} s; what it has made so far is kept",
              file=sys.stderr)
        return code
    for pattern in args.makes:
        if not expand(pattern):
            raise StepError(f"{title} ended without making {pattern}; run "
                            f"{args.rerun} --stage {args.stage} --stop-stage {args.stage} --force")
    partial = stamp.with_name(stamp.name + ".part")
    partial.write_text(json.dumps({**now, MADE: digests(args.makes)}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, stamp)
    made = {pattern: expand(pattern) for pattern in args.makes}
    told = ", ".join(f"{pattern} ({len(paths)} files)" if len(paths) > 1 else f"{paths[0]} ({size(paths[0])})"
                     for pattern, paths in made.items())
    print(f"[{title}] wrote {told} in {seconds:.1f} s", flush=True)
    return 0


def main() -> int:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--stamp", required=True, help="the step's own file that says it is done")
    parser.add_argument("--title", required=True, help="how messages call the step")
    parser.add_argument("--stage", required=True, help="number of the stage, for the messages")
    parser.add_argument("--rerun", default="run.sh", help="how the user calls the recipe, for the messages")
    parser.add_argument("--force", action="store_true", help="run it even if it is done")
    parser.add_argument("--ask", choices=["done", "command", "conf"],
                        help="run nothing; 'done': exit code 0 if it would be skipped, else 1; 'command': print the title if "
                        "what it makes is there and was not made, to the end, by this command; 'conf': or not with these "
                        "--conf")
    parser.add_argument("--aside", metavar="FOLDER", help="with --force: keep this folder elsewhere before the step runs")
    parser.add_argument("--reads", metavar="FOLDER", help="data that no other run may make anew while the step runs")
    parser.add_argument("--conf", nargs="+", default=[], help="inputs that come with the recipe")
    parser.add_argument("--from", dest="sources", nargs="+", action="append", default=[],
                        help="a stage's number, then inputs that it makes")
    parser.add_argument("--makes", nargs="+", default=[], help="outputs")
    args = parser.parse_args(words[:end])
    command = words[end + 1:]
    if not command:
        parser.error("no command after --")
    die_with_parent()
    try:
        return step(args, command)
    except (StepError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # writing does not say where
            error = f"{args.stamp} cannot be written: {error.strerror}: make room, and run the same command again"
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
