"""Markdown tables of rows of continual-learning runs: results, accuracy by budget, differences at equal
bytes, nearness to real images."""

import json
from statistics import mean

from scipy.stats import ttest_1samp

from figs.rows import front_of
from scoring.results import plus_minus
from utils import UsageError

HEADS = {
    "results": [
        "data",
        "method",
        "kept, bytes",
        "images kept",
        "class-il",
        "task-il",
        "forgetting",
        "seconds",
        "n",
    ],
    "differences": [
        "data",
        "budget, bytes",
        "method",
        "minus",
        "difference, points",
        "95 % interval",
        "ahead",
        "n",
    ],
    "nearness": ["data", "method", "kept, bytes", "images", "distance ratio", "near copies, %", "n"],
}
SETTING = (
    "split",
    "track",
    "classes",
    "networks",
)  # in which rows of one data set must agree to stand beside each other
Places = list[tuple[str, int]]  # of each row: the record that holds it, and its number there


def markdown(heads: list[str], lines: list[tuple[list[str], list[int]]], places: Places | None) -> list[str]:
    """A table. lines: of each the cells, and the rows that it is made of, whose places stand in a last column
    if there are any."""
    heads = heads + ["record, rows"] * bool(places)
    table = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for cells, numbers in lines:
        table.append("| " + " | ".join([*cells, *([links(numbers, places)] if places else [])]) + " |")
    return table


def links(numbers: list[int], places: Places) -> str:
    """Where these rows are kept: each record once, with the numbers of its rows."""
    records = dict.fromkeys(places[number][0] for number in numbers)
    of = {
        record: [str(places[number][1]) for number in numbers if places[number][0] == record]
        for record in records
    }
    return "; ".join(f"[record]({record}) {', '.join(found)}" for record, found in of.items())


def results_table(rows: list[dict], places: Places | None = None) -> list[str]:
    """The rows, best first within a data set."""
    lines = []
    for number, row in sorted(enumerate(rows), key=lambda pair: (pair[1]["data"], -pair[1]["mean"])):
        cells = [
            row["data"],
            row["label"],
            f"{row['num_bytes']['total']:,.0f}",
            f"{row['buffer_images']:,.0f}",
        ]
        cells += [plus_minus(row["mean"], row["std"]), plus_minus(row["task_il_mean"], row["task_il_std"])]
        cells += [
            plus_minus(row["forgetting_mean"], row["forgetting_std"]),
            f"{row['seconds']:.0f}",
            str(row["n"]),
        ]
        lines.append((cells, [number]))
    return markdown(HEADS["results"], lines, places)


def front_table(rows: list[dict], places: Places | None = None) -> list[str]:
    """Accuracy of each method at each budget, with the number of seeds in brackets, best first within a data
    set.

    The quality of stored images is left out of the names. Of several rows of one name and budget the one with
    the most seeds counts; rows without a budget are left out. Raises UsageError if none has one, or if runs
    of several settings of one data set are mixed.
    """
    settings: dict[str, set[str]] = {}
    for row in rows:
        settings.setdefault(row["data"], set()).add(json.dumps([row[name] for name in SETTING]))
    for data, found in settings.items():
        if len(found) > 1:
            raise UsageError(
                f"--front: expected rows of one setting of {data} ({', '.join(SETTING)}), found "
                f"{' and '.join(sorted(found))}"
            )
    sized = {
        method: {budget: i for budget, i in numbers.items() if budget}
        for method, numbers in front_of(rows).items()
    }
    methods = {method: numbers for method, numbers in sized.items() if numbers}
    budgets = sorted({budget for numbers in methods.values() for budget in numbers})
    if not budgets:
        raise UsageError("--front: expected rows with a budget in bytes, found none")
    lines = []
    for (data, name), numbers in methods.items():
        own = {budget: rows[number] for budget, number in numbers.items()}
        cells = [
            f"{plus_minus(own[b]['mean'], own[b]['std'])} ({own[b]['n']})" if b in own else ""
            for b in budgets
        ]
        lines.append(
            (data, -max(row["mean"] for row in own.values()), [data, name, *cells], sorted(numbers.values()))
        )
    lines = [(cells, numbers) for _, _, cells, numbers in sorted(lines)]
    return markdown(
        ["data", "method", *(f"{b / 1e6:g} MB" if b >= 1e6 else f"{b / 1e3:g} kB" for b in budgets)],
        lines,
        places,
    )


def differences(row: dict, other: dict) -> list[float]:
    """Points of `row` minus those of `other`, for each seed that both have."""
    accs = dict(zip(other["seeds"], other["accs"], strict=True))
    return [acc - accs[seed] for seed, acc in zip(row["seeds"], row["accs"], strict=True) if seed in accs]


def interval_of(values: list[float]) -> str:
    """Student's 95 % interval of their mean; an empty text for fewer than two, or if all are the same."""
    if len(set(values)) < 2:
        return ""
    found = ttest_1samp(values, 0).confidence_interval(0.95)
    return f"[{found.low:+.2f}, {found.high:+.2f}]"


def differences_table(rows: list[dict], label: str, places: Places | None = None) -> list[str]:
    """Each row minus the row called `label` at the same budget in bytes, on the same tasks, split and
    networks, seed by seed.

    Rows without such a partner, or of other seeds, are left out. Raises UsageError if no line is left, or if
    two partners have the name.
    """
    lines = []
    same = ("data", "memory_bytes", *SETTING)
    for number, row in enumerate(rows):
        if row["label"] == label or not row["memory_bytes"]:
            continue
        partners = [
            i
            for i, other in enumerate(rows)
            if other["label"] == label and all(row[name] == other[name] for name in same)
        ]
        if len(partners) > 1:
            found = f"{len(partners)} rows of {row['data']} at {row['memory_bytes']:,} bytes"
            raise UsageError(f"--against {label}: expected one row of this name at a budget, found {found}")
        values = differences(row, rows[partners[0]]) if partners else []
        if values:
            ahead = f"{sum(value > 0 for value in values)} of {len(values)}"
            cells = [
                row["data"],
                f"{row['memory_bytes']:,}",
                row["label"],
                label,
                f"{mean(values):+.2f}",
                interval_of(values),
                ahead,
            ]
            lines.append(([*cells, str(len(values))], [number, partners[0]]))
    if not lines:
        found = ", ".join(sorted({row["label"] for row in rows}))
        raise UsageError(
            f"--against {label}: expected the name of a row that shares budget and seeds with another, "
            f"found {found}"
        )
    return markdown(HEADS["differences"], lines, places)


def nearness_table(rows: list[dict], places: Places | None = None) -> list[str]:
    """How near each kind of images in memory is to the real images that were learnt; rows that did not
    measure it are left out.

    Raises UsageError if none did.
    """
    lines = []
    for number, row in enumerate(rows):
        near = row.get("near_copies") or {}
        for kind, ratio in (row.get("distance_ratio") or {}).items():
            cells = [
                row["data"],
                row["label"],
                f"{row['num_bytes']['total']:,.0f}",
                kind,
                plus_minus(ratio, None),
            ]
            lines.append(([*cells, plus_minus(near.get(kind), None), str(row["n"])], [number]))
    if not lines:
        raise UsageError(
            "--nearness: expected runs that measured how near their images are, found none (earlier "
            "versions did not)"
        )
    return markdown(HEADS["nearness"], lines, places)
