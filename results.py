"""Rows of results: how they are kept in a file and printed as a table."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from utils import UsageError, write_json

# What a row holds beside its settings.
RESULTS = ("n", "mean", "std", "accs", "seconds_generate", "seconds_train", "images_seen", "steps")


@dataclass
class Cost:
    """What training one classifier took."""

    images_seen: int = 0
    steps: int = 0
    seconds_generate: float = 0.0
    seconds_train: float = 0.0


class ResultsFile:
    """results/TAG/results.json: a list of rows, rewritten whole after each classifier by the process that writes."""

    def __init__(self, folder: Path, writes: bool = True):
        self.path, self.writes = folder / "results.json", writes
        try:
            self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
            if not all(isinstance(row, dict) and isinstance(row.get("accs"), list) for row in list(self.rows)):
                raise ValueError("no list of rows")
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.path}: expected a list of rows, found something else ({error})") from None

    def row(self, settings: dict) -> dict:
        """The row of exactly these settings, added if it is not there."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in settings.items()):
                return row
        self.rows.append(settings | {"n": 0, "mean": None, "std": None, "accs": [], "seconds_generate": 0.0, "seconds_train": 0.0})
        return self.rows[-1]

    def add(self, row: dict, acc: float, cost: Cost) -> None:
        """Add one classifier to `row`. Seconds are means per classifier."""
        n = row["n"]
        row["accs"].append(round(acc, 4))
        row["n"] = n + 1
        row["mean"] = statistics.mean(row["accs"])
        row["std"] = statistics.stdev(row["accs"]) if n else None
        row["images_seen"], row["steps"] = cost.images_seen, cost.steps
        for name in ("seconds_generate", "seconds_train"):
            row[name] = (row[name] * n + getattr(cost, name)) / (n + 1)
        if self.writes:
            write_json(self.path, self.rows)


def describe(row: dict) -> str:
    """What of a generator is stored, in megabytes (10^6 bytes): "0.23 MB, fp16, 2 generators, filter 0.5"."""
    if not row.get("generator_bytes"):
        return ""
    storage = row.get("storage") or "fp32"  # one name, or that of each generator
    parts = [f"{row['generator_bytes'] / 1e6:.2f} MB", storage if isinstance(storage, str) else "/".join(sorted(set(storage)))]
    if isinstance(row["checkpoint_sha256"], list):
        parts.append(f"{len(row['checkpoint_sha256'])} generators")
    if row.get("filter"):
        parts.append(f"filter {row['filter']}")
    return ", ".join(parts)


def print_table(rows: list[dict]) -> None:
    """One line a row, the accuracy as mean and sample standard deviation in percent."""
    heads = ("classifier", "source", "budget", "recipe", "stored", "ipc", "accuracy", "n", "images seen", "steps", "generate s", "train s")
    lines = [heads]
    for row in rows:
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        accuracy = f"{row['mean']:.2f}{spread}"
        cells = (row["classifier"], row["source"], row["budget"], row["recipe"], describe(row), row["ipc"], accuracy, row["n"])
        counts = (f"{row['images_seen']:,}", f"{row['steps']:,}", f"{row['seconds_generate']:.1f}", f"{row['seconds_train']:.1f}")
        lines.append(tuple(map(str, cells + counts)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        left = [cell.ljust(width) for cell, width in zip(line[:5], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(line[5:], widths[5:], strict=True)]
        print("  ".join(left + right))
    split = "held-out training images" if rows[0]["split"] == "val" else "test set"
    few = "; provisional, n < 5" if min(row["n"] for row in rows) < 5 else ""
    print(f"{rows[0]['dataset']}, {split}: percent at the last epoch, mean ± sample standard deviation over n classifiers{few}")
