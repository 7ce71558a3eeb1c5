"""What a training tells of itself while it runs: its log, and TensorBoard's events.

Where they cannot be written, for a full disk for instance, the training ends with an OSError that names them.
"""

import logging
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from torch.utils.tensorboard import SummaryWriter

from kdlib.files import naming


def log_messages(exp: Optional[Path] = None) -> None:
    """Begin to show messages and, given the training's folder, to write them into its ``train.log``."""
    line = "%(asctime)s %(levelname)s %(message)s"
    if exp is None:
        logging.basicConfig(level=logging.INFO, format=line, force=True)
        return
    log = TrainLog(exp / "train.log")
    log.setFormatter(logging.Formatter(line))
    logging.getLogger().addHandler(log)


class TrainLog(logging.FileHandler):
    """The file of a training's messages."""

    def handleError(self, record: logging.LogRecord) -> None:
        """A message that cannot be written ends the training, by an OSError that names the file: the disk is full."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        with naming(self.baseFilename):
            raise error


class Means:
    """Means of what updates tell, from one reading to the next. Tensors stay where they are until then."""

    def __init__(self):
        self.sums: Dict[str, Any] = {}
        self.counts: Dict[str, int] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """What one update tells: numbers, or tensors of one, by their names."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> Dict[str, float]:
        """The means since the last reading."""
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


class Board:
    """TensorBoard's events of one training, in ``folder``, which is made; earlier ones of updates from ``update`` on no longer
    count, since a resumed training makes them again."""

    def __init__(self, folder: Path, update: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        threading.excepthook = _thread_failed
        with naming(folder):
            self.writer = SummaryWriter(str(folder), purge_step=update)

    def add(self, group: str, values: Dict[str, float], update: int) -> None:
        """Curves ``group/name``, a point each. Raises OSError, which names the folder, also of what was written before."""
        with naming(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, update)

    def close(self) -> None:
        """Write what is left; OSError as of :meth:`add`."""
        with naming(self.folder):
            self.writer.close()


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """The thread that writes hands its error to the writer's next call, which raises it: Python need not tell it as well."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
