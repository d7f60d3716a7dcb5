"""Markdown tables of continual-learning rows: results, accuracy at each budget, differences of two rows."""

import json
import re
from statistics import mean

from scipy.stats import ttest_1samp

from figs.names import COLUMNS, names_of
from figs.rows import best_at_budgets
from scoring.results import plus_minus
from utils import UsageError

SETTING = ("split", "track", "classes", "networks")  # rows of one set must agree in these to be compared
Places = list[tuple[str, int]]  # of each row: the record that holds it, and its number there


def size(num_bytes: int) -> str:
    """A budget as it is written in tables and figures: 50 kB, 1.5 MB."""
    return f"{num_bytes / 1e6:g} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:g} kB"


def markdown(heads: list[str], lines: list[tuple[list, list[int]]], places: Places | None) -> list[str]:
    """A table. lines: the cells of each, and the numbers of the rows that it is made of.

    places: adds a last column that links these rows.
    """
    table = [[*heads, "record, rows"] if places else heads, ["---"] * (len(heads) + bool(places))]
    for cells, numbers in lines:
        table.append([*cells, links(numbers, places)] if places else cells)
    return ["| " + " | ".join(f"{cell}" or "–" for cell in cells) + " |" for cells in table]


def links(numbers: list[int], places: Places) -> str:
    """Links to the records of these rows, each with the numbers of its rows."""
    by_record: dict[str, list[str]] = {}
    for number in numbers:
        record, place = places[number]
        by_record.setdefault(record, []).append(str(place))
    return "; ".join(f"[record]({record}) {', '.join(rows)}" for record, rows in by_record.items())


def results_table(rows: list[dict], places: Places | None = None) -> list[str]:
    """The rows, best first within a data set."""
    heads = [
        "data",
        *COLUMNS,
        "kept, bytes",
        "images kept",
        "class-il",
        "task-il",
        "forgetting",
        "seconds",
        "n",
    ]
    names, lines = names_of(rows), []
    for number, row in sorted(enumerate(rows), key=lambda pair: (pair[1]["data"], -pair[1]["mean"])):
        cells = [row["data"], *names[number].cells()]
        cells += [f"{row['num_bytes']['total']:,.0f}", f"{row['buffer_images']:,.0f}"]
        cells += [
            plus_minus(row[f"{metric}mean"], row[f"{metric}std"])
            for metric in ("", "task_il_", "forgetting_")
        ]
        lines.append(([*cells, f"{row['seconds']:.0f}", row["n"]], [number]))
    return markdown(heads, lines, places)


def check_settings(rows: list[dict]) -> None:
    """Raise UsageError if rows of one data set were measured in several settings."""
    settings: dict[str, set[str]] = {}
    for row in rows:
        settings.setdefault(row["data"], set()).add(json.dumps([row[name] for name in SETTING]))
    for data, several in settings.items():
        if len(several) > 1:
            raise UsageError(
                f"expected rows of one setting of {data} ({', '.join(SETTING)}), found "
                f"{' and '.join(sorted(several))}"
            )


def front_table(rows: list[dict], places: Places | None = None) -> list[str]:
    """Accuracy of each memory at each budget, with the number of seeds in brackets, best first within a data
    set.

    A line holds the best of several qualities and details at a budget; rows without a budget are left out.
    Raises UsageError if none has one, or if runs of several settings of one data set are mixed.
    """
    check_settings(rows)
    keys = []
    for row, name in zip(rows, names_of(rows), strict=True):
        stored = re.sub(r" q\d+", "", name.stored)
        keys.append((row["data"], name.memory, name.loss, stored, str(name.passes), name.rehearsal))
    front = best_at_budgets(rows, keys)
    budgets = sorted({row["memory_bytes"] for row in rows if row["memory_bytes"]})
    if not budgets:
        raise UsageError("--front: expected rows with a budget in bytes, found none")
    lines = []
    for key, numbers in front.items():
        own = {budget: rows[number] for budget, number in numbers.items() if budget}
        cells = [
            f"{plus_minus(own[b]['mean'], own[b]['std'])} ({own[b]['n']})" if b in own else ""
            for b in budgets
        ]
        if own:
            best = max(row["mean"] for row in own.values())
            lines.append((key[0], -best, [*key, *cells], sorted(numbers.values())))
    lines = [(cells, numbers) for _, _, cells, numbers in sorted(lines)]
    return markdown(["data", *COLUMNS, *map(size, budgets)], lines, places)


def differences_table(rows: list[dict], other: str, places: Places | None = None) -> list[str]:
    """Each row minus the row called `other` at the same budget, on the same tasks and networks, seed by seed.

    `other` is the name of a curve, such as ER-ACE, or the whole name of a row. Rows without such a partner,
    or of other seeds, are left out. Raises UsageError if no line is left, or if a row has two partners.
    """
    lines = []
    names = names_of(rows)
    for number, row in enumerate(rows):
        partners = [
            i
            for i, partner in enumerate(rows)
            if other in (names[i].curve, str(names[i]))
            and row["memory_bytes"]
            and all(row[name] == partner[name] for name in ("data", "memory_bytes", *SETTING))
        ]
        if number in partners:
            continue
        if len(partners) > 1:
            raise UsageError(
                f"--against {other}: expected one such row of {row['data']} at {size(row['memory_bytes'])}, "
                f"found {'; '.join(str(names[i]) for i in partners)}"
            )
        accs = (
            dict(zip(rows[partners[0]]["seeds"], rows[partners[0]]["accs"], strict=True)) if partners else {}
        )
        pairs = zip(row["seeds"], row["accs"], strict=True)
        values = [acc - accs[seed] for seed, acc in pairs if seed in accs]
        if values:
            interval = ""
            if len(set(values)) > 1:  # Student's 95 % interval of the mean
                low, high = ttest_1samp(values, 0).confidence_interval(0.95)
                interval = f"[{low:+.2f}, {high:+.2f}]"
            cells = [row["data"], size(row["memory_bytes"]), *names[number].cells(), other]
            cells += [f"{mean(values):+.2f}", interval]
            cells += [f"{sum(value > 0 for value in values)} of {len(values)}", len(values)]
            lines.append((cells, [number, partners[0]]))
    if not lines:
        raise UsageError(
            f"--against {other}: expected the name of a row that shares budget and seeds with another, "
            f"found {', '.join(sorted({name.curve for name in names}))}"
        )
    heads = ["data", "budget", *COLUMNS, "minus", "difference, points", "95 % interval", "ahead", "n"]
    return markdown(heads, lines, places)
