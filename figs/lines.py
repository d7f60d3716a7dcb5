"""Lines of tables and figures from rows of validate.py: one labelled line for several trainings of a
generator."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.compare import ASIDE, identity
from figs.names import SETS
from figs.tables import markdown
from scoring.results import TRAININGS, plus_minus, source_name, told_apart

# The settings in which lines of one place agree, but for the budget: a line of the table holds both budgets.
PLACE = ("dataset", "split", "val_size", "classifier", "ipc")
# The rows of the README's front table, by their source.
README = {
    "random-real": "10 random real images a class",
    "condensed": "10 condensed images a class (DM)",
    "condensed-jpeg-scan": "condensed images as JPEG scans, at most the generator's bytes",
    "generator": "generator, GAN alone (stage 1)",
    "generator, matched": "generator, matched (stages 1 and 2)",
    "random-real-jpeg-scan": "real images as JPEG scans, at most the generator's bytes",
    "real": "the whole training set, for as many steps",
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

    @property
    def place(self) -> tuple:
        return tuple(self[name] for name in PLACE)

    @property
    def data(self) -> str:
        """The data set: "fashion", or "fashion, 5,000 held out"."""
        return self["dataset"] + (f", {self['val_size'] or 0:,} held out" if self["split"] == "val" else "")

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


def unique(rows: list[dict]) -> list[dict]:
    """Of rows with the same settings, such as the real images of several commands, the one with the most
    classifiers."""
    best: dict[str, dict] = {}
    for row in rows:
        key = identity(row) + str([row.get(name) for name in TRAININGS if name != "num_bytes"])
        if key not in best or row["n"] > best[key]["n"]:
            best[key] = row
    return list(best.values())


def images_of(rows: list[dict]) -> str:
    """What the classifiers were trained on: "generator fp16, soft labels at 4"."""
    row = rows[0]
    if row["source"] == "generator":
        row = row | {"source": f"generator {row.get('storage') or 'fp32'}"}
    name = source_name(row | {"set": None} if len(rows) > 1 else row)
    filtered = f", filter {row['filter']:g}" if row.get("filter") else ""
    return name + filtered + (f", {row['trained']}" if row.get("trained") else "")


def lines_of(rows: list[dict]) -> list[Line]:
    """Join rows to lines, best first within a place.

    If lines of one place, in either budget, have the same label, the settings in which they differ are added
    to it.
    """
    rows = [row | {"file": row["group"]} if row.get("group") else row for row in told_apart(rows)]
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(identity(row), []).append(number)
    lines = []
    for numbers in groups.values():
        own = [rows[number] for number in numbers]
        lines.append(Line(own, numbers, images_of(own)))
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in (*ASIDE, *PLACE, "budget"):
            continue
        values: dict[tuple, set] = {}
        for line in lines:
            values.setdefault((line.label, line.place), set()).add(str(line[name]))
        clashing = {label for (label, _), several in values.items() if len(several) > 1}
        for line in lines:
            if line.label in clashing and line[name] is not None:
                line.label += f", {name} {line[name]!s:.12}"
    for line in lines:
        if len(line.rows) > 1:
            line.label += f", {len(line.rows)} {'trainings' if line['source'] == 'generator' else 'sets'}"
    classifiers = [row.get("classifier") for row in rows]
    budgets = [row.get("budget") for row in rows]

    def order(line: Line) -> tuple:
        place = classifiers.index(line["classifier"]), line["ipc"] or 0, budgets.index(line["budget"])
        return line["dataset"], str(line["split"]), *place, -line.mean

    return sorted(lines, key=order)


def table(lines: list[Line], record: str | None = None) -> list[str]:
    """The lines as Markdown; one line of the table holds both budgets."""
    heads = ["data", "classifier", "images", "stream", "fixed", "ipc", "stored MB", "bits per class", "n"]
    shared: dict[tuple, dict[str, Line]] = {}
    for line in lines:
        shared.setdefault((line.label, line.place), {})[line["budget"] or "stream"] = line
    table = []
    for budgets in shared.values():
        ordered = [budgets[name] for name in ("stream", "fixed") if name in budgets]
        line = ordered[0]
        cells = [line.data, line["classifier"], line.label]
        for name in ("stream", "fixed"):
            cells.append(plus_minus(budgets[name].mean, budgets[name].std) if name in budgets else "")
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
        stored = " / ".join(f"{row['num_bytes'] / 1e6:.2f}" if row else "–" for row in own)
        lines.append(
            ([name, stored, *(plus_minus(row["mean"], row["std"]) if row else "" for row in own)], [])
        )
    heads = ["classifier trained on", "MB stored (CIFAR-10 / Fashion / MNIST)", *SETS.values()]
    return markdown(heads, lines, None)
