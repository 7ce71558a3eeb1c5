"""What README.md says of the results is what the committed reports say."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTS = {"commands, 60% smaller": "voice_commands/SEEDS.md", "commands, 87% smaller": "voice_commands/SEEDS-tiny.md",
           "commands, 93% smaller": "voice_commands/SEEDS-large.md", "spoken digits, 61% smaller": "fsdd/SEEDS.md",
           "the same, third seed": "voice_commands/RESULTS-large-44.md"}


def cells(line: str):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_figures_of_the_readme_are_those_of_the_reports():
    table = (ROOT / "README.md").read_text().split("## What it gives")[1].split("\n\n")[2]
    header, _, *rows = map(cells, table.splitlines())
    assert {row[0] for row in rows} == set(REPORTS)
    for row in rows:
        report = (ROOT / "egs" / REPORTS[row[0]]).read_text()
        titles, _, *lines = [cells(line) for line in report.splitlines() if line.startswith("|")]
        rates = [number for number, title in enumerate(titles) if title.startswith("WER ")]
        found = {line[0]: " / ".join(line[number] for number in rates) for line in lines if len(line) == len(titles)}
        found["last stage"] = found[max(name for name in found if name.startswith("stage"))]
        assert row[2:] == [found[name] for name in header[2:]]
