"""Tables, a plot of error against size, and a description of the machine, for the reports of recipes."""

import datetime
import math
import os
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

from kdlib.errors import RecipeError
from kdlib.files import PathLike, atomic_path
from kdlib.processes import usable_cores

UNKNOWN = "-"


@dataclass(frozen=True)
class SizedModel:
    """A model in the plot: ``parameters`` is a count, ``wers`` the error rates in per cent by test set."""

    name: str
    parameters: int
    wers: Mapping[str, float]


def relative_change(value: float, reference: float) -> Optional[float]:
    """Change from ``reference`` to ``value`` in per cent of ``reference``; None where the reference is zero."""
    return 100.0 * (value - reference) / reference if reference else None


def format_relative(change: Optional[float]) -> str:
    """A relative change with its sign, such as ``+12.5%``; zero has no sign, None gives ``-``."""
    if change is None:
        return UNKNOWN
    text = f"{change:+.1f}%"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text


def format_duration(seconds: Optional[float]) -> str:
    """Seconds as ``45 s``, ``6 min 05 s`` or ``2 h 03 min``; None gives ``-``."""
    if seconds is None:
        return UNKNOWN
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = int(round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right; ends in a newline."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = _widths(escaped)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join("| " + " | ".join(row) + " |\n"
                   for row in [_pad(escaped[0], widths), rule, *(_pad(row, widths) for row in escaped[1:])])


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal: columns aligned by blanks, a rule under the header; ends in a newline."""
    widths = _widths([header, *rows])
    lines = [_pad(header, widths), ["-" * width for width in widths], *(_pad(row, widths) for row in rows)]
    return "".join("  ".join(line).rstrip() + "\n" for line in lines)


def describe_machine() -> Dict[str, object]:
    """Processor model, cores that this process may use, memory in GiB, operating system and Python version."""
    processor = platform.processor() or platform.machine() or "unknown processor"
    memory = None
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError, AttributeError):
        pass  # not Linux: what platform says must do
    return {"processor": processor, "cores": usable_cores(), "memory_gib": memory,
            "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}


def name_processor(machine: Mapping[str, object]) -> str:
    """Of what :func:`describe_machine` returns, such as "AMD EPYC, 2 cores"."""
    return f"{machine['processor']}, {machine['cores']} core{'' if machine['cores'] == 1 else 's'}"


def describe_trainings(trainings: Iterable[Mapping[str, Any]]) -> List[str]:
    """On what and by how many processes models were trained, as far as their done.json say, each way once."""
    return list(dict.fromkeys(_describe_training(training) for training in trainings if training.get("device")))


def _describe_training(training: Mapping[str, Any]) -> str:
    machine, processes = training.get("machine"), training.get("processes")
    return (training["device"] + (f" of {name_processor(machine)}" if machine else "")
            + (f", {processes} process{'' if processes == 1 else 'es'}" if processes else "")
            + (f", in {training['precision']}" if training.get("precision", "float32") != "float32" else ""))


def newest_date(paths: Iterable[Path]) -> str:
    """The day (UTC) on which the last of these files was written."""
    newest = max(path.stat().st_mtime for path in paths)
    return datetime.datetime.fromtimestamp(newest, datetime.timezone.utc).date().isoformat()


def shown(path: Path) -> str:
    """``path`` for a file that other people read: as given when relative, else its last two parts."""
    return shlex.quote((path if not path.is_absolute() else Path(*path.parts[-2:])).as_posix())


def plot_wer_against_size(path: PathLike, chain: Sequence[SizedModel], others: Sequence[SizedModel],
                          test_sets: Mapping[str, str], title: str) -> None:
    """Draw error rate against the number of parameters as a PNG, one panel a test set; each is named with its rate.

    ``chain`` (the largest first) is joined by a line and named on the logarithmic size axis, so that no text stands
    among the points; ``others`` are single markers named in the legend. Raises :class:`RecipeError` without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, NullLocator
    except ImportError as error:
        raise RecipeError(f"the plot needs matplotlib ({error}); run tools/install.sh") from None

    columns = min(len(test_sets), 3)
    rows = math.ceil(len(test_sets) / columns)
    # A Figure of its own, not pyplot's: nothing is left open and no display is looked for.
    figure = Figure(figsize=(1.6 + 4.6 * columns, 0.9 + 4.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (test_set, rate) in zip(panels, test_sets.items()):
        panel.axhline(chain[0].wers[test_set], color="0.6", linestyle=":", linewidth=1, zorder=1)
        panel.plot([model.parameters for model in chain], [model.wers[test_set] for model in chain], "o-",
                   color="tab:blue", markersize=7, zorder=3, label="progressive distillation")
        for model, marker, color in zip(others, _cycle("s^DvPX"), _cycle(["tab:red", "tab:orange", "tab:green", "tab:purple"])):
            panel.plot([model.parameters], [model.wers[test_set]], marker, color=color, markersize=9,
                       markerfacecolor="none", markeredgewidth=1.8, linestyle="none", zorder=4, label=model.name)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(FixedLocator([model.parameters for model in chain]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels([f"{model.name}\n{_short_count(model.parameters)}" for model in chain],
                              rotation=0 if len(chain) <= 5 else 60, fontsize=9)
        panel.margins(x=0.12)
        highest = max(model.wers[test_set] for model in [*chain, *others])
        panel.set_ylim(0, 1.1 * highest if highest else 1)
        panel.set_xlabel("parameters of the deployed model")
        panel.set_ylabel(f"{rate} (%)")
        panel.set_title(test_set, fontsize=11)
        panel.grid(alpha=0.3)
    for panel in panels[len(test_sets):]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns + 1, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _cycle(items: Sequence[str]):
    while True:
        yield from items


def _short_count(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 100_000 else f"{count / 1e3:.1f} k"


def _widths(rows: Sequence[Sequence[str]]) -> List[int]:
    return [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]


def _pad(row: Sequence[str], widths: Sequence[int]) -> List[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
