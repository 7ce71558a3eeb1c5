"""Imported first by the tools: where kdlib is not installed they run in the environment that install.sh has made."""

import importlib.util
import os
import sys
from pathlib import Path

STARTED = "KDLIB_TOOL_STARTED_AGAIN"  # in the environment of the second start, so that there is no third

again = os.environ.pop(STARTED, None)
if importlib.util.find_spec("kdlib") is None:
    python = Path(__file__).resolve().parent / "venv" / "bin" / "python"
    if not python.exists():
        sys.exit("error: kdlib is not installed: tools/install.sh makes an environment, and this command then finds it")
    reason = "finds no kdlib"
    if not again:
        os.environ[STARTED] = "yes"
        try:
            os.execv(python, [str(python), *sys.argv])
        except OSError as error:
            reason = f"does not start ({error.strerror})"
    sys.exit(f"error: {python} {reason}: tools/install.sh mends it")
