"""Rows of results: their file and their printed table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.files import short_hash, write_json
from utils import UsageError

# The sources of images, and what the printed table says of each.
SOURCES = {
    "generator": "images of the generator; stream: new ones at each epoch, fixed: one set, drawn once",
    "real": "the whole training set, in shuffled passes",
    "random-real": "random training images, the same ones at each epoch",
    "herding": "training images chosen by herding, the same ones at each epoch",
    "condensed": "images whose pixels were optimised here, the same ones at each epoch",
    "file": "the distilled set in --file, the same images at each epoch",
}
RECIPES = {
    "dim": "that of the DiM paper; the papers on distilled sets train by --recipe dc",
    "dc": "that of the papers on distilled sets since DSA",
    "strong": "cosine decay, flips where the set allows them, CutMix, averaged weights",
}
# The fields of a row that are results; all others are settings.
RESULTS = (
    "n mean std accs seconds_generate seconds_train images_seen steps num_bytes num_images bits_per_class "
    "confusion curve_images_seen curve_accs samples class_names "
    "path group images_per_class"  # of what a row was trained on, for its name and its mean
).split()
# The fields in which rows of several trainings of one generator, or of several sets of one file, may differ.
TRAININGS = ("checkpoint_sha256", "file_sha256", "set", "num_bytes")


@dataclass
class Cost:
    """Cost of training one classifier."""

    images_seen: int = 0
    steps: int = 0
    seconds_generate: float = 0.0
    seconds_train: float = 0.0
    seconds_test: float = 0.0


@dataclass
class Outcome:
    """Result of one classifier: its accuracy in percent at the last epoch, its cost, and the size of what it
    was trained on.

    confusion[i][j]: number of test images of class i that are classified as class j. curve: (images seen,
    accuracy) of each test during training. num_images: number of stored images; None if they are generated.
    num_bytes: size of what is stored.
    """

    accuracy: float
    cost: Cost
    confusion: list[list[int]] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    num_images: int | None = None
    num_bytes: int = 0


class ResultsFile:
    """The rows in results/TAG/results.json; the file is rewritten as a whole after each classifier.

    writes: whether this process writes the file. Raises UsageError if the file does not hold a list of rows.
    """

    def __init__(self, folder: Path, writes: bool = True):
        self.path, self.writes = folder / "results.json", writes
        try:
            self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
            if not all(
                isinstance(row, dict) and isinstance(row.get("accs"), list) for row in list(self.rows)
            ):
                raise ValueError("no list of rows")
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{self.path}: expected a list of rows, found something else ({error})"
            ) from None

    def row(self, settings: dict) -> dict:
        """Return the row with these settings; add it if there is none."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in settings.items()):
                return row
        self.rows.append(
            settings
            | {"n": 0, "mean": None, "std": None, "accs": [], "seconds_generate": 0.0, "seconds_train": 0.0}
        )
        return self.rows[-1]

    def add(self, row: dict, outcome: Outcome) -> None:
        """Add the result of one classifier to `row` and rewrite the file.

        Seconds, number of images and bytes are means over classifiers; confusion matrices are summed.
        """
        n, cost = row["n"], outcome.cost
        row["accs"].append(round(outcome.accuracy, 4))
        row["n"] = n + 1
        row["mean"] = statistics.mean(row["accs"])
        row["std"] = statistics.stdev(row["accs"]) if n else None
        row["images_seen"], row["steps"] = cost.images_seen, cost.steps
        means = {name: getattr(cost, name) for name in ("seconds_generate", "seconds_train")}
        means |= {name: getattr(outcome, name) for name in ("num_bytes", "num_images")}
        for name, value in means.items():
            row[name] = None if value is None else ((row.get(name) or 0) * n + value) / (n + 1)
        k = len(outcome.confusion)
        row["bits_per_class"] = 8 * row["num_bytes"] / max(1, k)
        before = [list(map(int, line.split())) for line in row.get("confusion", [])] or [[0] * k] * k
        sums = [map(sum, zip(*lines, strict=True)) for lines in zip(before, outcome.confusion, strict=True)]
        row["confusion"] = [" ".join(map(str, line)) for line in sums]
        if outcome.curve:
            row["curve_images_seen"] = [images for images, _ in outcome.curve]
            row["curve_accs"] = [*row.get("curve_accs", []), [round(acc, 4) for _, acc in outcome.curve]]
        self.write()

    def write(self) -> None:
        """Rewrite the file, if this process is the one that writes it."""
        if self.writes:
            write_json(self.path, self.rows)


def row_hash(row: dict) -> str:
    """A short name of a row's settings, so that the classifiers of two rows are never taken for each
    other."""
    settings = {name: value for name, value in row.items() if name not in RESULTS}
    return short_hash(json.dumps(settings, sort_keys=True), 8)


def describe(row: dict) -> str:
    """Describe how a row's images are stored, with the size in megabytes (10^6 bytes): "0.23 MB, fp16, filter
    0.5"."""
    parts = [f"{row['num_bytes'] / 1e6:.2f} MB"]
    if row.get("generator_bytes"):
        parts.append(row.get("storage") or "fp32")
        if row.get("filter"):
            parts.append(f"filter {row['filter']}")
    elif row.get("num_images") is not None:
        codec = row.get("codec", "raw")
        parts.append(f"{row['num_images']:,.0f} images" + (f" in {codec}" if codec != "raw" else ""))
    if counts := row.get("images_per_class"):
        parts.append(f"{min(counts):,} to {max(counts):,} a class")
    if factor := row.get("factor"):
        parts.append(f"each a collage of {factor} x {factor}")
    return ", ".join(parts)


def told_apart(rows: Sequence[dict], generators: bool = False) -> list[dict]:
    """Copies of rows whose `file` is the whole path if others are files of the same name.

    generators: do the same for rows of several generators, whose `file` is then their checkpoint.
    """
    named = []
    for row in rows:
        path = row.get("path")
        others = {one.get("path") for one in rows if one["source"] == row["source"]} - {None, path}
        if path and (row["source"] == "file" or (generators and others)):
            name = Path(path).name
            row = row | {"file": path if name in {Path(other).name for other in others} else name}
        named.append(row)
    return named


def file_of(row: dict) -> str | None:
    """What the sets of a row of --source file are trainings of: the group that the user named, or else the
    file. None for other sources."""
    return (row.get("group") or row.get("path") or row.get("file")) if row["source"] == "file" else None


def source_name(row: dict) -> str:
    """Name of a row's source and of its labels: "file set.pt", "generator, soft labels at 4", "condensed,
    mean, 1,000 steps"."""
    name = f"{row['source']} {row['file']}" if row.get("file") else row["source"]
    if row.get("set"):
        name += f" [{row['set']}]"
    if condensing := row.get("condensing"):
        name += f", {condensing['match']}, {condensing['steps']:,} steps"
    if row.get("labels") == "soft":
        name += ", soft labels" + (f" at {row['temperature']:g}" if row.get("temperature") else "")
    return name


def plus_minus(mean: float | None, std: float | None) -> str:
    """Format mean and standard deviation as "95.62 ± 0.31", or the mean alone; an empty text without a
    mean."""
    return "" if mean is None else f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}")


def over_trainings(rows: Sequence[dict]) -> list[list[dict]]:
    """Groups of two or more rows that differ only in the training of the generator, or in the set of one file
    or of one --group."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        settings = {name: value for name, value in row.items() if name not in (*RESULTS, *TRAININGS)}
        settings = {name: value for name, value in settings.items() if value is not None}
        settings["file"] = file_of(row)
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def print_table(rows: list[dict]) -> None:
    """Print a line for each row, with the mean and sample standard deviation of its accuracy in percent, the
    means over trainings, and what the columns and rows are."""
    rows = told_apart(rows, generators=True)
    heads = "classifier,trained on,stored,budget,images/class,accuracy,n,images seen,steps,seconds".split(",")
    lines = [heads]
    for row in rows:
        lines.append(
            [
                row["classifier"],
                source_name(row),
                describe(row),
                row["budget"],
                row["ipc"],
                plus_minus(row["mean"], row["std"]),
                row["n"],
                f"{row['images_seen']:,}",
                f"{row['steps']:,}",
                f"{row['seconds_generate'] + row['seconds_train']:.1f}",
            ]
        )
    present = {row["source"] for row in rows}
    if "generator" not in present and len({row["budget"] for row in rows}) == 1:  # it says nothing then
        lines = [line[:3] + line[4:] for line in lines]
    columns = [list(map(str, column)) for column in zip(*lines, strict=True)]
    for column in columns:
        width = max(map(len, column))
        left = column[0] in heads[:4]
        column[:] = [cell.ljust(width) if left else cell.rjust(width) for cell in column]
    for line in zip(*columns, strict=True):
        print("  ".join(line))
    for group in over_trainings(rows):
        one, means = group[0], [row["mean"] for row in group]
        file = one.get("group") or (one.get("file") if one["source"] == "file" else None)
        name = source_name(one | {"file": file, "set": None})
        mean = plus_minus(statistics.mean(means), statistics.stdev(means))
        row = f"{one['classifier']}, {name}, {one['budget']}, ipc {one['ipc']}"
        print(f"{row}: {mean} over {len(group)} trainings")
    first = rows[0]
    split = "held-out training images" if first["split"] == "val" else "the test set"
    few = "; provisional, n < 5" if min(row["n"] for row in rows) < 5 else ""
    print(
        f"accuracy: percent on {split} of {first['dataset']} after {first['epochs']:,} epochs, mean ± sample "
        f"standard deviation over n classifiers{few}"
    )
    print(f"recipe {first['recipe']}: {RECIPES[first['recipe']]}")
    for name, description in SOURCES.items():
        if name in present:
            print(f"{name}: {description}")
    if present - SOURCES.keys():
        print("random-real-CODEC, condensed-CODEC: as many as fit into the generator's bytes, by this codec")
