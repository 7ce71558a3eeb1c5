"""Imported first by the tools: where kdlib is not installed they run in the environment that install.sh has made."""

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("kdlib") is None:
    python = Path(__file__).resolve().parent / "venv" / "bin" / "python"
    if not python.exists():
        sys.exit("error: kdlib is not installed: tools/install.sh makes an environment, and this command then finds it")
    os.execv(python, [str(python), *sys.argv])
