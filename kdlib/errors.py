"""The one exception that recipes show to people, and how scripts show it."""

import errno
import sys
from typing import Callable


class RecipeError(Exception):
    """Something the user can mend: the message names the thing and the remedy."""


def run_main(main: Callable[[], object]) -> None:
    """Run a script's ``main`` and end the process; a known failure is one line on stderr.

    A full disk, a missing file or a missing permission comes from the system and is shown as it is named there; an
    unexpected exception keeps its traceback, since that is a defect to report.
    """
    try:
        main()
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            print(f"error: no space left on the disk while writing {error.filename or 'a file'}; free some "
                  "space and run the same command again", file=sys.stderr)
        elif error.errno in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR):
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        else:
            raise
        sys.exit(1)
