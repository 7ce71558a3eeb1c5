#!/usr/bin/env python3
"""Says whether this Python environment serves the recipes: exit code 0 if it does, else 1 and what to mend.

The versions come from the packages' metadata, so nothing heavy is imported; k2 alone (--k2) is imported for true,
since its wheel installs on Pythons where it cannot be imported. Needs the standard library alone.
"""

import argparse
import ast
import importlib.util
import os
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Callable, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)\s*(?:>=\s*([0-9.]+))?$")


def requirements(tests: bool = False, setup_file: Path = ROOT / "setup.py") -> List[Tuple[str, str]]:
    """The (package, lowest version or "") pairs of setup.py, which is parsed and not run.

    ``tests`` adds those of the extra ``dev``.
    """
    lists = {getattr(node.targets[0], "id", ""): node.value
             for node in ast.parse(setup_file.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)}
    wanted = ast.literal_eval(lists["REQUIRES"]) + (ast.literal_eval(lists["EXTRAS"])["dev"] if tests else [])
    matches = {text: REQUIREMENT.match(text) for text in wanted}
    for text, match in matches.items():
        if match is None:
            raise SystemExit(f"error: {setup_file}: '{text}' is neither 'package' nor 'package>=version'")
    return [(match.group(1), match.group(2) or "") for match in matches.values() if match]


def release(version: str) -> Tuple[int, ...]:
    """The release numbers of a version: "2.11.0+cu130" -> (2, 11, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def installed_version(package: str) -> Optional[str]:
    """The installed version, or None when the package is absent (or its installation was cut short)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def python_problems(version: Tuple[int, ...]) -> List[str]:
    """What is wrong with the Python itself."""
    if version[:2] < OLDEST_PYTHON:
        return [f"Python {'.'.join(str(part) for part in version)} is too old: the recipes need 3.10 or newer"]
    return []


def package_problems(find_version: Callable[[str], Optional[str]] = installed_version, tests: bool = False) -> List[str]:
    """Each package that is missing, too old, or not fit for its neighbour, with the remedy."""
    problems = []
    for package, lowest in requirements(tests):
        found = find_version(package)
        wanted = f"{package}>={lowest}" if lowest else package
        if found is None:
            problems.append(f"{package} is missing: pip install '{wanted}'")
        elif release(found) < release(lowest):
            problems.append(f"{package} {found} is too old: pip install '{wanted}'")

    torch, torchaudio, numpy = find_version("torch"), find_version("torchaudio"), find_version("numpy")
    if torch and torchaudio:
        # torchaudio 0.N belonged to torch 1.N; since 2.0 both carry one number.
        major, minor = release(torch)[:2]
        pair = (0, minor) if major == 1 else (major, minor)
        if release(torchaudio)[:2] != pair:
            problems.append(f"torchaudio {torchaudio} does not belong to torch {torch}: pip install "
                            f"'torchaudio=={pair[0]}.{pair[1]}.*', or a torch that has such a torchaudio")
    if torch and numpy and release(torch) < (2, 3) and release(numpy) >= (2,):
        problems.append(f"torch {torch} cannot use numpy {numpy}: pip install 'numpy<2'")
    return problems


def hiding_folder() -> Optional[str]:
    """The folder of PYTHONPATH whose kdlib is found in place of this checkout's, whatever is installed, or None.

    tools/install.sh asks the same, without a Python.
    """
    spec = importlib.util.find_spec("kdlib")
    found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else ROOT
    folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return None if found == ROOT else next((folder for folder in folders if Path(folder).resolve() == found), None)


def kdlib_problems() -> List[str]:
    """kdlib must come from this checkout, not from another one."""
    remedy = f"python -m pip install --no-deps -e {shlex.quote(str(ROOT))}"
    spec = importlib.util.find_spec("kdlib")
    if spec is None:
        return [f"kdlib is not installed: {remedy}"]
    if not spec.origin or Path(spec.origin).resolve().parent != ROOT / "kdlib":
        return [f"kdlib comes from {spec.origin or 'elsewhere'} and not from this checkout: {remedy}"]
    return []


def k2_problems() -> List[str]:
    """Import k2 for true."""
    remedy = "tools/install.sh --k2 makes an environment that has it"
    if importlib.util.find_spec("k2") is None:
        return [f"k2 is missing: {remedy}"]
    try:
        import k2  # noqa: F401
    except Exception as error:  # a wheel for another torch or Python fails with whatever its binary meets first
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [f"k2 {installed_version('k2')} is installed but cannot be imported ({first_line}): {remedy}"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description="Does this Python environment serve the recipes?")
    parser.add_argument("--k2", action="store_true", help="ask for an importable k2 too")
    parser.add_argument("--tests", action="store_true", help="ask for what the tests need too")
    parser.add_argument("--no-import", action="store_true", help="with --k2: look at versions alone, import nothing")
    parser.add_argument("--quiet", action="store_true", help="print nothing when the environment serves")
    args = parser.parse_args()

    hiding = hiding_folder()
    if hiding:
        print(f"PYTHONPATH has {hiding}, whose kdlib hides this checkout's: unset PYTHONPATH, or leave that folder out")
        return 1
    problems = python_problems(sys.version_info[:3]) + package_problems(tests=args.tests) + kdlib_problems()
    if args.k2 and not problems:
        if args.no_import:
            problems += [] if installed_version("k2") else ["k2 is missing: run tools/install.sh --k2"]
        else:
            problems += k2_problems()
    for problem in problems:
        print(problem)
    if problems:
        print(f"{sys.executable} does not serve: mend the above, or let tools/install.sh"
              f"{' --k2' if args.k2 else ''} make an environment")
    elif not args.quiet:
        version = ".".join(str(part) for part in sys.version_info[:3])
        print(f"{sys.executable} serves: Python {version}, torch {installed_version('torch')}"
              + (f", k2 {installed_version('k2')}" if args.k2 else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
