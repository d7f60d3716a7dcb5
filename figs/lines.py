"""Lines of tables and figures from rows of validate.py: one labelled line for several trainings of a
generator."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.compare import ASIDE, identity, read_rows
from figs.names import SETS
from figs.tables import markdown
from scoring.results import TRAININGS, plus_minus, source_name, told_apart

PLACE = (
    "dataset",
    "split",
    "val_size",
    "classifier",
    "ipc",
    "budget",
)  # budget last: a line of the table holds both budgets
# The rows of the README's front table, by their source.
README = {
    "random-real": "10 random real images a class",
    "condensed": "10 condensed images a class (DM)",
    "condensed-jpeg-scan": "as many condensed images, in JPEG scans, as the generator's bytes hold",
    "generator": "generator, GAN alone",
    "generator, matched": "generator, matched",
    "random-real-jpeg-scan": "real images as JPEG scans, as many bytes",
    "real": "the whole training set",
}


@dataclass
class Line:
    """A row, or the rows of several trainings of a generator (or several sets of a file) together.

    numbers: places of the rows in the record. label: what was trained on, and the settings that distinguish
    it from other lines of its place.
    """

    rows: list[dict]
    numbers: list[int]
    label: str

    def __getitem__(self, name: str):
        return self.rows[0].get(name)

    def at(self, *names: str) -> tuple:
        """The values of these settings."""
        return tuple(self[name] for name in names)

    @property
    def series(self) -> str:
        """The label without the settings in which points of one curve over bytes differ."""
        return re.sub(r", (match_bytes|generator_parameters) \d+", "", self.label)

    @property
    def mean(self) -> float:
        return mean(row["mean"] for row in self.rows)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over trainings, or over classifiers if there is one row."""
        return stdev(row["mean"] for row in self.rows) if len(self.rows) > 1 else self["std"]

    @property
    def n(self) -> str:
        counts = "/".join(map(str, sorted({row["n"] for row in self.rows})))
        return f"{len(self.rows)}x{counts}" if len(self.rows) > 1 else counts

    @property
    def num_bytes(self) -> float | None:
        sizes = [row.get("num_bytes") or row.get("generator_bytes") for row in self.rows]
        return None if None in sizes else mean(sizes)


def read_named(given: str) -> list[dict]:
    """The rows of FOLDER; of NAME=FOLDER with NAME as the name of how its generators were trained."""
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        return read_rows(given)
    return [row | {"trained": name} if row["source"] == "generator" else row for row in read_rows(path)]


def unique(rows: list[dict]) -> list[dict]:
    """Drop repeated rows, such as the real images that every command adds.

    Of rows with the same settings the one with most classifiers is kept.
    """

    def full(row: dict) -> tuple:
        return len(row["accs"]), bool(row.get("curve_accs")), bool(row.get("samples"))

    best: dict[str, dict] = {}
    for row in rows:
        key = identity(row) + json.dumps([row.get(name) for name in TRAININGS if name != "num_bytes"])
        if key not in best or full(row) > full(best[key]):
            best[key] = row
    if len(best) < len(rows):
        print(
            f"rows that stand again: {len(rows) - len(best)}; of each the one with most classifiers is used",
            file=sys.stderr,
        )
    return list(best.values())


def images_of(rows: list[dict]) -> str:
    """What the classifiers were trained on: "generator fp16, soft labels at 4"."""
    row, source = rows[0], rows[0]["source"]
    if source == "generator":
        storage = row.get("storage") or "fp32"  # one name, or that of each generator
        source += " " + (storage if isinstance(storage, str) else "/".join(sorted(set(storage))))
    parts = [source_name(row | {"source": source, "set": None if len(rows) > 1 else row.get("set")})]
    if isinstance(row.get("checkpoint_sha256"), list):
        parts.append(f"mixture of {len(row['checkpoint_sha256'])}")
    if row.get("filter"):
        parts.append(f"filter {row['filter']:g}")
    if row.get("trained"):
        parts.append(row["trained"])
    return ", ".join(parts)


def lines_of(rows: list[dict]) -> list[Line]:
    """Join rows to lines, best first within a place.

    If lines of one place, in either budget, have the same label, the settings in which they differ are added
    to it.
    """
    groups: dict[str, list[int]] = {}
    rows = [row | {"file": row["group"]} if row.get("group") else row for row in told_apart(rows)]
    for number, row in enumerate(rows):
        groups.setdefault(identity(row), []).append(number)
    lines = [
        Line([rows[i] for i in numbers], numbers, images_of([rows[i] for i in numbers]))
        for numbers in groups.values()
    ]
    for name in dict.fromkeys(name for row in rows for name in row if name not in (*ASIDE, *PLACE)):
        values: dict[tuple, set] = {}
        for line in lines:
            values.setdefault((line.label, *line.at(*PLACE[:-1])), set()).add(str(line[name]))
        clashing = {label for (label, *_), several in values.items() if len(several) > 1}
        for line in lines:
            if line.label in clashing and line[name] is not None:
                line.label += f", {name} {line[name]!s:.12}"
    for line in lines:
        if len(line.rows) > 1:
            several = f", {len(line.rows)} " + ("trainings" if line["source"] == "generator" else "sets")
            line.label += several
    classifiers, budgets = (
        list(dict.fromkeys(row.get(name) for row in rows)) for name in ("classifier", "budget")
    )

    def order(line: Line) -> tuple:
        place = classifiers.index(line["classifier"]), line["ipc"] or 0, budgets.index(line["budget"])
        return line["dataset"], str(line["split"]), *place, -line.mean

    return sorted(lines, key=order)


def place_of(line: Line, *names: str) -> str:
    """A panel's title: "fashion, 5,000 held out, convnet, ipc 50"."""
    parts = [line["dataset"]] + ([f"{line['val_size'] or 0:,} held out"] if line["split"] == "val" else [])
    return ", ".join(parts + [f"ipc {line[name]}" if name == "ipc" else str(line[name]) for name in names])


def grouped(lines: Iterable[Line], *names: str) -> dict[str, list[Line]]:
    """Group lines by place_of: their data and these settings."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(place_of(line, *names), []).append(line)
    return groups


def once(lines: Iterable[Line]) -> list[tuple[str, Line]]:
    """(name of the budget to append to a label, line) for each line to draw.

    The budget makes a difference only to generated images; other lines are taken once, and nothing is
    appended.
    """
    first = {}
    for line in lines:
        budget = f", {line['budget']}" if line["source"] == "generator" else ""
        first.setdefault((line.label + budget, *line.at(*PLACE[:-1])), (budget, line))
    return list(first.values())


def table(lines: list[Line], record: str | None = None) -> list[str]:
    """The lines as Markdown; one line of the table holds both budgets."""
    heads = ["data", "classifier", "images", "stream", "fixed", "ipc", "stored MB", "bits per class", "n"]
    shared: dict[tuple, dict[str, Line]] = {}
    for line in lines:
        shared.setdefault((line.label, *line.at(*PLACE[:-1])), {})[line["budget"] or "stream"] = line
    table = []
    for budgets in shared.values():
        ordered = [budgets[name] for name in ("stream", "fixed") if name in budgets]
        line = ordered[0]
        cells = [place_of(line), line["classifier"], line.label]
        cells += [
            plus_minus(budgets[name].mean, budgets[name].std) if name in budgets else ""
            for name in ("stream", "fixed")
        ]
        cells += [line["ipc"], "" if line.num_bytes is None else f"{line.num_bytes / 1e6:,.3f}"]
        cells += ["" if line["bits_per_class"] is None else f"{line['bits_per_class']:,.0f}"]
        cells += [" / ".join(dict.fromkeys(line.n for line in ordered))]
        table.append((cells, [number for line in ordered for number in line.numbers]))
    places = [(record, number) for number in range(sum(len(line.rows) for line in lines))] if record else None
    return markdown(heads, table, places)


def readme_table(rows: list[dict]) -> list[str]:
    """The front table of the README, of the rows that `python runs/run.py readme` makes."""
    of_source: dict[str, dict[str, dict]] = {}
    for row in rows:
        matched = "match" in "/".join(Path(row.get("path") or "").parts[-2:])
        source = "generator, matched" if row["source"] == "generator" and matched else row["source"]
        if row["split"] == "test":
            of_source.setdefault(source, {})[row["dataset"]] = row
    lines = []
    for source, name in README.items():
        own = [of_source.get(source, {}).get(data) for data in SETS]
        stored = " / ".join(f"{row['num_bytes'] / 1e6:.3g}" if row else "–" for row in own)
        lines.append(
            ([name, stored, *(plus_minus(row["mean"], row["std"]) if row else "" for row in own)], [])
        )
    heads = ["classifier trained on", "MB stored (CIFAR-10 / Fashion / MNIST)", *SETS.values()]
    return markdown(heads, lines, None)
